"""The study's prompts: those of the starter set and more of our own, made by rule, dealt to parts that share none.

A short system message asks for brief answers, so that some end by themselves within the few tokens that a run on a
CPU can afford. No torch.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from overopt.scale import Scale
from trivet.artifacts import Message, Prompt, read_rows, write_rows

STARTER = Path(str(files("trivet") / "starter"))
SYSTEM = "Answer in one or two short sentences."

THINGS = """
bread, bicycles, the moon, volcanoes, tea, rain, bees, libraries, clocks, maps, bridges, mirrors, chess,
rivers, snow, glass, candles, umbrellas, cheese, mountains, trains, violins, ants, gold, paper, cats, deserts,
dreams, elephants, fog, gardens, hats, ice, jazz, kites, lemons, magnets, noodles, oceans, parrots, quilts,
radios, salt, tides, owls, vinegar, whales, yoghurt, batteries, comets, dust, eclipses, feathers, granite,
honey, insects, jackets, keys, lightning, moss, nests, onions, pianos, rainbows, soap, thunder, turtles, wool,
windmills, apples, bamboo, coral, dolphins, echoes, forests, ginger, harbours, islands, kettles, lanterns,
mushrooms, needles, olives, penguins, rockets, shadows, spiders, tunnels, wheat, zebras
"""
ABOUT_THINGS = ("What is interesting about {}?", "Explain {} to a child in one sentence.",
                "Why do people care about {}?", "Tell me one fact about {}.",
                "Describe {} in your own words.")
DOINGS = """
learning to swim, baking bread, keeping a diary, planting tomatoes, riding a bike to work, cleaning an old
kitchen, saving money, sleeping better, writing a thank-you note, painting a wall, packing for a trip, cooking
rice, fixing a squeaky door, growing herbs indoors, reading more books, remembering names, walking every day,
sharpening a knife, ironing a shirt, hosting a dinner, learning the guitar, drinking enough water, waking
up early, asking for help at work, making good coffee, choosing a used car, studying for an exam, washing a
woollen jumper, calming a nervous dog, moving to a new city, giving a short speech, cutting down on sugar,
taking better photos, storing potatoes, finding lost keys, training for a long run, folding a map, drawing a
face, saying sorry, planning a week, sorting old letters, buying a first guitar, keeping houseplants alive,
cooking for one, speaking up in meetings, mending a sock, making soup from leftovers, learning ten new words a day
"""
ABOUT_DOINGS = ("Give me one tip for {}.", "What is a common mistake in {}?", "How do I get started with {}?",
                "Is {} worth the time? Say why.", "What do I need for {}?")


def _items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.replace("\n", " ").split(",") if item.strip()]


def every_prompt() -> list[Prompt]:
    """Single-turn prompts of the starter set, then those made by rule; with the study's system message."""
    starter = [p for p in read_rows(STARTER / "prompts.jsonl", Prompt) if len(p.messages) == 1]
    found = [(p.id, p.messages[0].content, p.tags) for p in starter]
    for forms, items in ((ABOUT_THINGS, _items(THINGS)), (ABOUT_DOINGS, _items(DOINGS))):
        found += [(f"made-{item.replace(' ', '-')}-{k}", form.format(item), ["made"])
                  for item in items for k, form in enumerate(forms)]
    return [Prompt(id=i, messages=[Message(role="system", content=SYSTEM), Message(role="user", content=text)],
                   tags=list(tags)) for i, text, tags in found]


def deal(scale: Scale, seed: int) -> dict[str, list[Prompt]]:
    """The parts, in an order that depends on the prompts' ids and the seed alone.

    train, evaluation: the policy's. proxy, heldout: labelled for those reward models. gold: answers to damage.
    test: pairs on which all reward models are measured.
    """
    pool = sorted(every_prompt(), key=lambda p: hashlib.sha256(f"{seed}:{p.id}".encode()).digest())
    sizes = {"train": scale.train_prompts, "evaluation": scale.evaluation_prompts, "proxy": scale.proxy_prompts,
             "heldout": scale.heldout_prompts, "gold": scale.gold_prompts, "test": scale.test_prompts}
    if sum(sizes.values()) > len(pool):
        raise ValueError(f"{sum(sizes.values())} prompts are asked for, {len(pool)} there are")
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = pool[start : start + size]
        start += size
    return parts


def write_parts(scale: Scale, seed: int, folder: Path) -> dict[str, Path]:
    """The parts as files, one a part."""
    paths = {}
    for name, rows in deal(scale, seed).items():
        paths[name] = folder / f"{name}.jsonl"
        write_rows(paths[name], rows)
    return paths
