"""The router of program-aided answers: its weights fitted, and its accuracy on questions that were held out.

    python benchmarks/router.py [--data FOLDER] [--write] [--quick] [--json FILE]     --write: into the package

Questions that want a program: GSM8K's, and those of pal/ (SVAMP, MAWPS, dates). Those that don't: the first turns of
prompts/*, self-instruct, hh-harmless, TruthfulQA and XSTest, without the categories and clusters that are about
computing. A few of the latter ask for a number all the same (self-instruct is not labelled by topic): they count as
wrong here. Split by the question's hash, so that the same text is never on both sides: 70% to fit, 30% held out;
GSM8K fits on its train file alone and is measured on its test file. TruthfulQA and XSTest are held out whole: no
question of theirs was seen. Both classes weigh the same in fitting; logistic regression with an L2 penalty, by
Newton's steps.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common import load_average, options, report
from trivet.intervals import bootstrap_mean
from trivet.serve.pal.router import FEATURES, WEIGHTS, features

COMPUTING = {"math", "reasoning", "fermi"}
CLUSTERS = re.compile(r"math|algebra|probab|calcul|arithm|equation|geomet|number|statistic|pric|financ|measure|physics|"
                      r"logic|puzzle|sum\b|rate|dice|count", re.IGNORECASE)
Row = tuple[str, str, bool]
"""Source, question, whether it wants a program."""


def rows(data: Path) -> Iterator[Row]:
    """All questions; those of a test file are named so."""
    for part in ("train", "test"):
        yield from ((f"gsm8k/{part}", r["question"], True) for r in _lines(data / f"gsm8k/{part}.jsonl"))
    for name in ("svamp", "mawpsaddsub", "mawpsmultiarith", "mawpssingleeq"):
        yield from ((name, r["input"], True) for r in _lines(data / f"pal/{name}.jsonl"))
    dates = json.loads((data / "pal/date_understanding.json").read_text())
    yield from (("dates", r["input"], True) for r in dates["examples"])
    for name in ("mt_bench", "vicuna_bench", "arena_hard", "koala"):
        for r in _lines(data / f"prompts/{name}.jsonl"):
            if r.get("category") in COMPUTING or CLUSTERS.search(r.get("cluster", "")):
                continue
            first = r["turns"][0] if "turns" in r else r["prompt"]
            yield name, first["content"] if isinstance(first, dict) else first, False
    for r in _lines(data / "self-instruct/seed_tasks.jsonl"):
        yield "self-instruct", f"{r['instruction']}\n{r['instances'][0]['input']}".strip(), False
    for r in _lines(data / "hh-harmless/pairs.jsonl"):
        yield "hh-harmless", r["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0].strip(), False
    truthful = json.loads((data / "truthfulqa/mc_task.json").read_text())
    yield from (("truthfulqa", r["question"], False) for r in truthful)
    with (data / "xstest/xstest_prompts.csv").open(newline="") as file:
        yield from (("xstest", r["prompt"], False) for r in csv.DictReader(file))


def held_out(row: Row) -> bool:
    """Whether a question is measured on; by its text, so that a copy of it is on the same side."""
    source, question, _ = row
    if source in {"gsm8k/test", "truthfulqa", "xstest"}:
        return True
    if source == "gsm8k/train":
        return False
    return int(hashlib.sha256(question.strip().lower().encode()).hexdigest(), 16) % 10 < 3


def matrix(found: list[Row]) -> np.ndarray:
    """Features [N, F]."""
    return np.array([[values[name] for name in FEATURES] for values in (features(q) for _, q, _ in found)])


def fit(x: np.ndarray, y: np.ndarray, penalty: float = 1.0, steps: int = 50) -> np.ndarray:
    """Weights [F] of a logistic regression in which both classes weigh the same; the bias is not penalised."""
    share = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    ridge = penalty * np.eye(x.shape[1])
    ridge[0, 0] = 0.0
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (share * (p - y)) + ridge @ w
        hessian = (x * (share * p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(x.shape[1])
        change = np.linalg.solve(hessian, gradient)
        w -= change
        if np.abs(change).max() < 1e-8:
            break
    return w


def measured(found: list[Row], w: np.ndarray, seed: int) -> dict[str, Any]:
    """Accuracy over all, of each class and of each source, with intervals over questions."""
    right = ((matrix(found) @ w >= 0) == np.array([r[2] for r in found])).astype(float)
    groups = np.arange(len(found))

    def share(chosen: np.ndarray) -> dict[str, Any]:
        return bootstrap_mean(right[chosen], groups[chosen], seed=seed, resamples=2000).as_dict()

    wants = np.array([r[2] for r in found])
    sources = np.array([r[0] for r in found])
    return {"accuracy": share(np.ones(len(found), bool)), "wants_found": share(wants), "words_left": share(~wants),
            "balanced": (right[wants].mean() + right[~wants].mean()) / 2,
            "by_source": {s: share(sources == s) for s in dict.fromkeys(sources.tolist())}}


def figures(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fit, measure, and write where it is asked for."""
    every = list(dict.fromkeys(rows(chosen.data)))
    if chosen.quick:
        every = every[::10]
    ours, theirs = [r for r in every if not held_out(r)], [r for r in every if held_out(r)]
    known = {q.strip().lower() for _, q, _ in ours}
    theirs = [r for r in theirs if r[1].strip().lower() not in known]
    w = fit(matrix(ours), np.array([float(r[2]) for r in ours]))
    weights = {name: round(float(v), 4) for name, v in zip(FEATURES, w, strict=True)}
    if chosen.write:
        WEIGHTS.write_text(json.dumps({"weights": weights, "fitted_on": len(ours)}, indent=1) + "\n")
    kept = np.array([weights[name] for name in FEATURES])
    return {"fitted_on": len(ours), "held_out": len(theirs), "weights": weights, **measured(theirs, kept, chosen.seed)}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVET_DATA", "../shared/data")))
    parser.add_argument("--write", action="store_true", help="put the weights into the package")


def main() -> None:
    chosen = options(__doc__ or "", _arguments)
    load = load_average()
    report("router", figures(chosen), chosen, load=load)


if __name__ == "__main__":
    main()
