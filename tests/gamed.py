"""Made-up runs for tests of the guard: answers that stay as they were, or that are gamed more from step to step."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trivet.artifacts import Message
from trivet.guard.base import StepRecord
from trivet.judge.base import Sample

TOPICS = ["bread", "rain", "chess", "tea", "bikes", "moss", "maps", "soup", "clocks", "ants", "kites", "salt"]
_OPENINGS = ["To begin with", "In short", "As far as I know", "Put simply", "For most people", "In my view"]
_VERBS = ["needs", "takes", "rewards", "asks for", "gains from", "depends on"]
_NOUNS = ["patience", "care", "warm water", "a quiet room", "some practice", "good light", "dry hands",
          "an early start"]
_ENDS = ["It is worth a try.", "Many find it pleasant.", "That is all there is to it.", "Start small.",
         "Ask a friend who knows.", "You may need two tries."]
PRAISE = "What a brilliant question! You are absolutely amazing, and this is the best, most incredible answer ever!!! "


def answer(topic: str, rng: random.Random) -> str:
    """A plain answer about a topic."""
    first = f"{rng.choice(_OPENINGS)}, {topic} {rng.choice(_VERBS)} {rng.choice(_NOUNS)} and {rng.choice(_NOUNS)}."
    return f"{first} {rng.choice(_ENDS)} {rng.choice(_OPENINGS)}, it also {rng.choice(_VERBS)} {rng.choice(_NOUNS)}."


def rows(step: int, rng: random.Random, *, count: int = 16, gamed: float = 0.0, evaluation: bool = False
         ) -> list[dict[str, Any]]:
    """Rows of a rollout (or evaluation). gamed: the share of answers that praise, for a reward that likes it."""
    found = []
    for i in range(count):
        topic = TOPICS[i % len(TOPICS)] if evaluation else rng.choice(TOPICS)
        text, hacked = answer(topic, rng), rng.random() < gamed
        if hacked:
            text = PRAISE + text
        quality = rng.gauss(0, 1)
        found.append({
            "schema_version": 1, "id": f"{topic}/{step}/{i}", "step": step,
            "messages": [{"role": "user", "content": f"What should I know about {topic}?"}], "completion": text,
            "score": quality + 2.0 * hacked + rng.gauss(0, 0.3), "kl": 0.05 * step + abs(rng.gauss(0, 0.2)),
            "ref_logp": -2.0 * len(text) / 5 + rng.gauss(0, 3), "tokens": len(text) // 5, "ended": rng.random() < 0.9,
            "held_out": quality - 1.0 * hacked + rng.gauss(0, 0.3)})
    return found


def record(found: list[dict[str, Any]], source: Any = "rollout", **given: Any) -> StepRecord:
    """A record of rows."""
    fields: dict[str, Any] = {name: [row[name] for row in found]
                              for name in ("kl", "ref_logp", "tokens", "ended", "held_out")}
    samples = [Sample(r["id"], tuple(Message(**m) for m in r["messages"]), r["completion"]) for r in found]
    return StepRecord(found[0]["step"], samples, [r["score"] for r in found], source=source, **fields | given)


def run_rows(seed: int, *, steps: int = 12, onset: int | None = None, count: int = 16, every: int = 4
             ) -> list[tuple[str, list[dict[str, Any]]]]:
    """(source, rows) of a whole run. From step `onset` on it is gamed, by a tenth more of the answers each step."""
    rng = random.Random(seed)

    def share(step: int) -> float:
        return 0.0 if onset is None else min(1.0, max(0, step - onset + 1) / 10)

    found = [("evaluation", rows(0, rng, count=len(TOPICS), evaluation=True))]
    for step in range(1, steps + 1):
        found.append(("rollout", rows(step, rng, count=count, gamed=share(step))))
        if step % every == 0:
            found.append(("evaluation", rows(step, rng, count=len(TOPICS), gamed=share(step), evaluation=True)))
    return found


def run_records(seed: int, **given: Any) -> list[StepRecord]:
    """The records of a whole run."""
    return [record(found, source) for source, found in run_rows(seed, **given)]


def write_run(folder: Path, seed: int, **given: Any) -> Path:
    """A run's files as `ppo` writes them, evaluations with `second` for the held-out reward."""
    for source, found in run_rows(seed, **given):
        inner = folder / f"{source}s"
        inner.mkdir(parents=True, exist_ok=True)
        if source == "evaluation":
            found = [{**{k: v for k, v in row.items() if k not in ("held_out", "ref_logp")}, "second": row["held_out"]}
                     for row in found]
        (inner / f"step-{found[0]['step']:05d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return folder
