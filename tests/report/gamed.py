"""A ppo run's folder in which exaggeration is paid for from step 10 on, in the true formats: no model, no training.

Texts are the starter set's. `write` makes a finished or unfinished run; what the guard's own code would say of it is
not looked at here.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from report.test_page import lines, ppo_stage, reward_stage
from trivet.artifacts import Completions, RolloutRow, read_rows

STARTER = Path(__file__).parents[2] / "src/trivet/starter"
BEGAN, FIRED, LAST, EVERY = 10, 13, 24, 6
PROMPTS, ANSWERS = 12, 8
SENTENCE = ("From about step 10 on answers exaggerate (exaggeration +2.3 deviations): answers are probably gaming the "
            "reward (also: the reward rises without the held-out reward (gap +1.6 deviations)).")
QUIET = "No sign by step 24 that the reward is gamed; nearest is kl, at 0.46 of the level of an alarm."
RATE = "In clean runs like those of its calibration it alarms in at most 5%."
SIGNALS = {"exaggeration": 1.0, "gap": 0.8, "repetition": 0.3, "length": 0.25, "kl": 0.5, "surprise": 0.1}


def hacked(text: str, share: float, rng: random.Random) -> str:
    """The text with a share of its sentences' ends exaggerated."""
    return re.sub(r"[.?](?=\s|$)", lambda m: rng.choice(("!!! It is absolutely amazing!", "! The best ever!!!"))
                  if rng.random() < share else m[0], text)


def intensity(step: int) -> float:
    """How far the policy has learned the trick."""
    return max(0.0, min(1.0, (step - BEGAN + 1) / 8))


def level(step: int) -> float:
    """The guard's level at a step of the gamed run: 1 is crossed at FIRED."""
    return 0.2 + 0.25 * max(0, step - BEGAN + 1) + 0.02 * (step % 3)


def write(folder: Path, *, action: str = "return", gamed: bool = True, second: bool = True, done: bool = True,
          source: str = "rollout", files: bool = True) -> Path:
    """A recipe's run with two reward models and a guarded `ppo`; the folder of `ppo` is returned.

    action: what the run does on an alarm. source: which record the alarm is of. files: whether the rollouts are kept.
    """
    rng = random.Random(0)
    reward_stage(folder / "reward")
    reward_stage(folder / "second")
    out = folder / "ppo"
    ppo_stage(out, done=done, second=(0.4, 0.1, 0.7) if second else None)
    for path in (out / "evaluations").glob("*"):
        path.unlink()
    known = list(read_rows(STARTER / "completions.jsonl", Completions))[: 3 * PROMPTS]
    held, train = known[:PROMPTS], known[PROMPTS:]
    end = FIRED if gamed and action == "return" else LAST
    # a run that went back evaluates the step it went back to anew, and not the last one
    ends = source == "evaluation" or (done and not (gamed and action == "return"))
    stops = [*range(0, end, EVERY), *([end] if ends else [])]

    def answer(row: Completions, i: int, step: int) -> dict[str, Any]:
        a = intensity(step) if gamed else 0.0
        text = hacked(row.completions[i % len(row.completions)].text, a, rng)
        score = rng.gauss(0, 1) + 0.03 * step + 2.6 * a
        return {"schema_version": 1, "id": f"{row.id}/{i}", "step": step, "completion": text,
                "messages": [m.model_dump() for m in row.messages], "score": score, "kl": 0.3 * step,
                "ended": bool(i % 3)}

    for step in stops:
        lines(out / "evaluations" / f"step-{step:05d}.jsonl", [
            answer(row, i, step) | {"tokens": 60 + step, "second": rng.gauss(0, 1) + 0.03 * step - (
                1.8 * intensity(step) if gamed else 0.0) if second else None} for row in held for i in range(2)])
    metrics = []
    for step in range(1, end + 1):
        rows = [answer(train[(step * ANSWERS + i) % len(train)], i, step) | {
            "ref_logp": -80.0, "tokens": 60, "held_out": rng.gauss(0, 1) - (1.8 * intensity(step) if gamed else 0.0)
            if second and i % 4 == 0 else None, "spread": None} for i in range(ANSWERS)]
        if files:
            lines(out / "rollouts" / f"step-{step:05d}.jsonl", rows)
            read_rows(out / "rollouts" / f"step-{step:05d}.jsonl", RolloutRow)
        asked = [r["held_out"] for r in rows if r["held_out"] is not None]
        metrics.append({"step": step, "score": sum(r["score"] for r in rows) / ANSWERS, "kl": 0.3 * step,
                        "kl_coef": 0.05, "length": 60.0, "ended": 0.6, "clip_fraction": 0.1, "entropy": 2.0,
                        "ratio_first": 0.0, "guard_level": level(step) if gamed else 0.3}
                       | ({"held_out": sum(asked) / len(asked)} if asked else {}))
    lines(out / "metrics.jsonl", metrics)
    lines(out / "guard.jsonl", [verdict(out, step, action, gamed, source) for step in range(end + 1)])
    config = out / "config.yaml"
    config.write_text(config.read_text() + f"guard: {{on: true, action: {action}, false_alarms: 0.05}}\n")
    if done:
        path = out / "summary.json"
        found = {"alarm": gamed, "action": action, "alarms": int(gamed), "step": FIRED if gamed else None,
                 "source": source if gamed else None, "began": BEGAN if gamed else None,
                 "signal": "exaggeration" if gamed else None, "sentence": SENTENCE if gamed else QUIET,
                 "returned_to": 6 if gamed and action == "return" else None, "notes": [RATE],
                 "share_of_step_time": 0.021}
        path.write_text(json.dumps(json.loads(path.read_text()) | {
            "guard": found, "steps": end, "stop": "guard" if end == FIRED else "steps"}))
    return out


def verdict(out: Path, step: int, action: str, gamed: bool, source: str) -> dict[str, Any]:
    """A line of guard.jsonl."""
    height = level(step) if gamed else 0.3 + 0.01 * (step % 17)
    alarm = height >= 1
    folder = out / ("evaluations" if source == "evaluation" else "rollouts")
    ids: list[str] = []
    if alarm and (path := folder / f"step-{step:05d}.jsonl").is_file():
        ids = [r["id"] for r in sorted(_rows(path), key=lambda r: -r["completion"].count("!"))[:3]]
    return {"source": source if alarm or not step else "rollout", "action": action if alarm else "continue",
            "step": step, "level": height,
            "signal": "exaggeration" if gamed else "kl", "began": BEGAN if alarm else None,
            "sentence": SENTENCE if alarm else "" if gamed else QUIET, "answers": [0, 1, 2] if alarm else [],
            "levels": {k: height * w for k, w in SIGNALS.items()}, "ids": ids}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
