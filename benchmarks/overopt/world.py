"""The world of the study: answers, gold, what gold says of them, proxies and the held-out reward model.

Gold is trained once and stands for people's judgement; proxies learn from its labels alone. Everything is made by
Trivet's own stages in one folder, each step skipped when it is finished; world.json holds what was measured, with
hashes.
"""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from overopt import damage
from overopt.prompts import STARTER, write_parts
from overopt.scale import Scale
from trivet.artifacts import (
    Completion,
    Completions,
    Message,
    Preference,
    Prompt,
    atomic_folder,
    atomic_write,
    first_turn,
    is_held_out,
    read_json,
    read_rows,
    sha256_path,
    text_id,
    write_json,
    write_rows,
)
from trivet.config import Device
from trivet.data.chat import context_length, ensure_template
from trivet.data.importers import read_preferences
from trivet.feedback.config import PairsConfig
from trivet.generate.config import SampleConfig, Sampling
from trivet.intervals import bootstrap_mean
from trivet.judge.calibration import Calibration
from trivet.models.lower import blocks
from trivet.models.reward_model import RewardModel, head_weight, load_reward_model
from trivet.models.source import (
    ModelSource,
    load_causal_lm,
    load_sequence_classifier,
    load_tokenizer,
    resolve,
    weights_sha256,
)
from trivet.reward.config import RewardConfig
from trivet.stages import STAGES, run_stage
from trivet.training.device import prepare

GOLD_SEED, HELDOUT_SEED = 61, 1_000
HELDOUT_SHARE = 0.15
Dialogue = tuple[list[Message], str]


@dataclass(frozen=True)
class Proxy:
    """A proxy's recipe: from how many prompts it learns, and which share of gold's labels is turned round."""

    prompts: int
    noise: float

    @property
    def name(self) -> str:
        return f"p{self.prompts}n{round(100 * self.noise)}"


@dataclass(frozen=True)
class World:
    """Where everything stands."""

    folder: Path
    scale: Scale
    seed: int = 0

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath("world", *parts)

    def proxy(self, proxy: Proxy, seed: int) -> Path:
        return self.path("rewards", f"{proxy.name}-s{seed}")

    @property
    def gold(self) -> Path:
        return self.path("gold", "reward", "reward")

    @property
    def heldout(self) -> Path:
        return self.path("rewards", "heldout")

    @property
    def device(self) -> Device:
        return Device(device=self.scale.device)  # type: ignore[arg-type]


def build(world: World, proxies: Sequence[tuple[Proxy, int]], data: Path | None) -> dict[str, Any]:
    """Make what is missing; world.json. Raises TrivetError where the folder holds another world."""
    scale = world.scale
    prepare(world.device)
    files = write_parts(scale, world.seed, world.path("prompts"))
    source = resolve(scale.model)
    for name, count in (("gold", scale.gold_blocks), ("proxy", scale.proxy_blocks)):
        truncated(source, count, world.path("trunks", name))
    answers = sample_all(world, files)
    pairs, contents = gold_pairs(world, answers["gold"], data)
    _train_gold(world, pairs)
    labelled = _label(world, {name: answers[name] for name in ("proxy", "heldout", "test")})
    reference = [*answers["train"], *answers["evaluation"]]
    known = features(world, "reference", reference)
    test = features(world, "test", answers["test"])
    facts: dict[str, Any] = {}
    for name, spec, seed, rows in (
            ("heldout", Proxy(scale.heldout_prompts, 0.0), HELDOUT_SEED, answers["heldout"]),
            *((world.proxy(p, s).name, p, s, answers["proxy"]) for p, s in proxies)):
        facts[name] = _train_proxy(world, name, spec, seed, rows, labelled, known, test, answers["test"])
    found = {"scale": scale.name, "seed": world.seed, "gold": measure_gold(world, pairs) | contents, "proxies": facts,
             "model": {"name": scale.model, "weights_sha256": weights_sha256(source.folder)},
             "sha256": {"gold": sha256_path(world.gold), "heldout": sha256_path(world.heldout)}
             | {f"prompts.{n}": sha256_path(p) for n, p in files.items()}}
    write_json(world.path("world.json"), found)
    return found


# --- models and answers --------------------------------------------------------------------------------


def truncated(source: ModelSource, count: int | None, folder: Path) -> Path:
    """The first `count` blocks of a model, with its final norm, as a model folder of its own: a cheaper reader."""
    if folder.exists():
        return folder
    model: Any = load_causal_lm(source, torch.float32, "cpu")
    every = blocks(model)
    if every is None:
        raise ValueError(f"{type(model).__name__} does not keep its blocks in one list")
    if count is not None and count < len(every):
        del every[count:]
        model.config.num_hidden_layers = count
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:count]
    with atomic_folder(folder) as staged:
        model.save_pretrained(staged)
        load_tokenizer(source).save_pretrained(staged)
    return folder


def sample_all(world: World, files: dict[str, Path]) -> dict[str, list[Completions]]:
    """The model's own answers to all parts: many to the policy's prompts, some to those that are labelled."""
    scale, found = world.scale, {}
    groups = {"reference": (("train", "evaluation"), scale.pool),
              "labelled": (("proxy", "heldout", "gold", "test"), scale.labelled)}
    for group, (parts, count) in groups.items():
        prompts = world.path("prompts", f"{group}.all.jsonl")
        write_rows(prompts, [p for part in parts for p in read_rows(files[part], Prompt)])
        run_stage(STAGES["sample"], SampleConfig(
            out=world.path("sampled", group), prompts=prompts, model=scale.model, completions=count, batch_size=64,
            sampling=Sampling(temperature=scale.temperature, max_new_tokens=scale.tokens), seed=world.seed + 7,
            device=world.device))
        rows = {r.id: r for r in read_rows(world.path("sampled", group, "completions.jsonl"), Completions)}
        for part in parts:
            found[part] = [rows[p.id] for p in read_rows(files[part], Prompt)]
    return found


def dialogues(rows: Iterable[Completions]) -> list[Dialogue]:
    """(messages, answer) of every answer, prompt by prompt."""
    return [(r.messages, c.text) for r in rows for c in r.completions]


# --- gold ----------------------------------------------------------------------------------------------


def gold_pairs(world: World, answers: Sequence[Completions],
               data: Path | None) -> tuple[dict[str, Path], dict[str, Any]]:
    """What gold learns from, and by prompt apart from it what it is measured on; each pair says its source.

    The starter set's rankings, people's judgements on harmlessness (where the data are there), damaged answers.
    """
    run_stage(STAGES["pairs"], PairsConfig(out=world.path("gold", "starter"), input=STARTER / "rankings.jsonl",
                                           heldout=0))
    rows = [r.model_copy(update={"source": "starter"})
            for r in read_rows(world.path("gold", "starter", "train.jsonl"), Preference)]
    harmless, digest = people(world.scale, data)
    starter = [c for c in read_rows(STARTER / "completions.jsonl", Completions) if len(c.messages) == 1]
    # one answer of each, cut to the length that the study has
    starter = [r.model_copy(update={"completions": [cut(r.completions[0], world.scale.tokens)]}) for r in starter]
    rows += harmless + contrasts([*answers, *starter], world.seed)
    paths = {"train": world.path("gold", "pairs.train.jsonl"), "heldout": world.path("gold", "pairs.heldout.jsonl")}
    for name, path in paths.items():
        write_rows(path, [r for r in rows
                          if is_held_out(r.prompt, HELDOUT_SHARE, GOLD_SEED) == (name == "heldout")])
    counts: dict[str, int] = {}
    for row in rows:
        key = str(row.source).split(":")[0]
        counts[key] = counts.get(key, 0) + 1
    return paths, {"pairs": counts, "people_sha256": digest}


def cut(completion: Completion, tokens: int) -> Completion:
    """The first words of an answer: about so many tokens of English."""
    return completion.model_copy(update={"text": " ".join(completion.text.split()[: round(0.75 * tokens)])})


def people(scale: Scale, data: Path | None) -> tuple[list[Preference], str | None]:
    """Some pairs of hh-rlhf's harmlessness, the shortest by text (they fit a small budget), and the file's hash."""
    if data is None or scale.hh_pairs == 0:
        return [], None
    file = data / "hh-harmless" / "pairs.jsonl"
    pairs = sorted(read_preferences(file, "hh").pairs,
                   key=lambda p: (sum(len(m.content) for m in p.prompt) + len(p.chosen) + len(p.rejected), p.id))
    return pairs[: scale.hh_pairs], sha256_path(file)


def contrasts(rows: Sequence[Completions], seed: int) -> list[Preference]:
    """Each answer against itself made worse: one kind in rising doses and single doses of two others.

    source: damage:KIND:DOSE.
    """
    found = []
    for row in rows:
        for k, answer in enumerate(row.completions[:2]):
            rng = random.Random(f"{seed}:{row.id}:{k}")
            # the same question may be there with and without a system message
            prompt = f"{text_id(row.messages)}/{k}"
            first, *others = rng.sample(sorted(damage.KINDS), k=3)
            steps = damage.ladder(answer.text, first, rng)
            single = [d for kind in others if (d := damage.damage(answer.text, kind, rng.choice(damage.DOSES), rng))]
            pairs = [(answer.text, d) for d in (*steps, *single)]
            pairs += [(a.text, b) for a, b in pairwise(steps) if a.text != b.text]
            found += [Preference(
                id=text_id([prompt, better, worse.text]), prompt_id=prompt, prompt=row.messages,
                chosen=better, rejected=worse.text, weight=1 / len(pairs), source=f"damage:{worse.kind}:{worse.dose:g}")
                for better, worse in pairs]
    unique = {p.id: p for p in found}
    return list(unique.values())


def _train_gold(world: World, pairs: dict[str, Path]) -> None:
    run_stage(STAGES["reward"], RewardConfig.model_validate({
        "out": world.path("gold", "reward"), "preferences": pairs["train"], "heldout": pairs["heldout"],
        "model": str(world.path("trunks", "gold")), "tune": "lora", "pool": "mean", "seed": GOLD_SEED,
        "lora": {"last_layers": world.scale.gold_layers}, "optimizer": {"lr": 5e-4}, "epochs": world.scale.gold_epochs,
        "max_length": world.scale.hh_tokens, "calibration": SOON, "device": world.device.model_dump()}))


SOON = {"answers": 8, "sampling": {"temperature": 1.0, "max_new_tokens": 4}}
"""The stage's own calibration, as cheap as can be: `_calibrate` replaces it by one on the policy's reference."""


def scorer(folder: Path, device: Device) -> Callable[[Sequence[Dialogue]], list[float]]:
    """Raw scores by a reward model's folder."""
    compute = prepare(device)
    model = load_reward_model(resolve(str(folder)), compute.trunk, compute.device)
    return model.score


def measure_gold(world: World, pairs: dict[str, Path]) -> dict[str, Any]:
    """Why it can serve as gold: how often it agrees on held-out prompts, by source, with intervals over prompts."""
    file = world.path("gold", "measured.json")
    if file.exists():
        return read_json(file)
    rows = [r for r in read_rows(pairs["heldout"], Preference) if r.label != 0.5 and not r.tie]
    sides = [(r.prompt, t) for r in rows for t in ((r.chosen, r.rejected) if r.label > 0.5 else (r.rejected, r.chosen))]
    scores = scorer(world.gold, world.device)(sides)
    right: dict[str, list[tuple[float, str]]] = {}
    for row, better, worse in zip(rows, scores[::2], scores[1::2], strict=True):
        value = (float(better > worse) + 0.5 * float(better == worse), first_turn(row.prompt))
        source = str(row.source)
        keys = {source.split(":")[0], *([f"damage:{source.split(':')[1]}"] if source.startswith("damage") else [])}
        for key in keys:
            right.setdefault(key, []).append(value)
    found = {"accuracy": {k: bootstrap_mean([v for v, _ in values], [g for _, g in values]).as_dict()
                          for k, values in sorted(right.items())}}
    write_json(file, found)
    return found


# --- labels and the models that learn from them ----------------------------------------------------------


def _label(world: World, parts: dict[str, list[Completions]]) -> dict[str, float]:
    """Gold's raw score of every labelled answer, by the answer's id; kept in a file."""
    file = world.path("gold", "labels.json")
    if not file.exists():
        rows = [r for part in parts.values() for r in part]
        scores = scorer(world.gold, world.device)(dialogues(rows))
        write_json(file, dict(zip((c.id for r in rows for c in r.completions), scores, strict=True)))
    return read_json(file)


def labelled_pairs(rows: Sequence[Completions], labels: dict[str, float], noise: float, seed: int) -> list[Preference]:
    """All pairs of each prompt's answers as gold orders them, a share `noise` of them turned round."""
    found = []
    for row in rows:
        pairs = []
        for i, a in enumerate(row.completions):
            for b in row.completions[:i]:
                if a.text.strip() != b.text.strip() and labels[a.id] != labels[b.id]:
                    pairs.append((a, b) if labels[a.id] > labels[b.id] else (b, a))
        for better, worse in pairs:
            turned = random.Random(f"{seed}:{better.id}:{worse.id}").random() < noise
            better, worse = (worse, better) if turned else (better, worse)
            found.append(Preference(id=f"{better.id}>{worse.id}", prompt_id=row.id, prompt=row.messages,
                                    chosen=better.text, rejected=worse.text, weight=1 / len(pairs), source="gold"))
    return found


def _train_proxy(world: World, name: str, spec: Proxy, seed: int, rows: Sequence[Completions], labels: dict[str, float],
                 known: np.ndarray, test: np.ndarray, test_rows: Sequence[Completions]) -> dict[str, Any]:
    """A head on frozen states, trained on gold's labels; its folder, calibrated on the policy's reference."""
    folder = world.path("rewards", name)
    chosen = random.Random(f"{name}:{seed}").sample(list(rows), k=min(spec.prompts, len(rows)))
    if not folder.exists():
        file = world.path("proxies", f"{name}.pairs.jsonl")
        write_rows(file, labelled_pairs(chosen, labels, spec.noise, seed))
        stage = world.path("proxies", name)
        run_stage(STAGES["reward"], RewardConfig.model_validate({
            "out": stage, "preferences": file, "model": str(world.path("trunks", "proxy")), "tune": "head",
            "pool": "mean", "epochs": 5, "batch": 4, "optimizer": {"lr": 3e-3}, "seed": seed, "calibration": SOON,
            "device": world.device.model_dump()}))
        _calibrate(world, stage / "reward", folder, known)
    scores = by_head(folder, test)
    right, groups, at = [], [], 0
    for row in test_rows:
        ids = [c.id for c in row.completions]
        for i in range(len(ids)):
            for j in range(i):
                if labels[ids[i]] != labels[ids[j]]:
                    right.append(float((scores[at + i] > scores[at + j]) == (labels[ids[i]] > labels[ids[j]])))
                    groups.append(row.id)
        at += len(ids)
    return {"prompts": len(chosen), "noise": spec.noise, "seed": seed, "sha256": sha256_path(folder),
            "agrees_with_gold": bootstrap_mean(right, groups).as_dict() if right else None}


def _calibrate(world: World, made: Path, folder: Path, known: np.ndarray) -> None:
    """The reward model with the calibration that a run needs: on answers of its own reference."""
    source = resolve(world.scale.model)
    with atomic_folder(folder) as staged:
        shutil.copytree(made, staged, dirs_exist_ok=True)
        calibration = Calibration.fit(by_head(staged, known).tolist())
        write_json(staged / "calibration.json", {
            "schema_version": 1, "reference": world.scale.model, "reference_sha256": weights_sha256(source.folder),
            "sampling": {"temperature": world.scale.temperature, "max_new_tokens": world.scale.tokens},
            **calibration.to_dict()})


def features(world: World, name: str, rows: Sequence[Completions]) -> np.ndarray:
    """[answers, H]: the mean state of each answer on the proxies' trunk, which a proxy's head reads. Kept in a file."""
    file = world.path("features", f"{name}.npy")
    if not file.exists():
        compute = prepare(world.device)
        source = resolve(str(world.path("trunks", "proxy")))
        model = load_sequence_classifier(source, compute.trunk, compute.device)
        tokenizer = load_tokenizer(source)
        ensure_template(tokenizer)
        reader = RewardModel(tokenizer, nn.Identity(), lambda: contextlib.nullcontext(model),
                             context=context_length(model), source=source, parameters=0, pool="mean")
        states = np.array(reader.score(dialogues(rows)), dtype=np.float32)
        with atomic_write(file, "wb") as out:
            np.save(out, states)
    return np.load(file)


def by_head(folder: Path, states: np.ndarray) -> np.ndarray:
    """Raw scores [answers] of a reward model that is a head on the proxies' trunk."""
    weight = head_weight(ModelSource(str(folder), folder)).float().numpy()
    return (states @ weight.T)[:, 0]
