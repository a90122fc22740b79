"""Does the evaluation tell models apart that differ, and leave alone those that do not?

    self_false_positive_rate  the base against itself, fresh seeds, 200 times: share of tables in which Holm's test
                              finds any difference; its 95% interval should contain 5%. All comparisons ask the same
                              items: only the sampling is fresh (one of eight answers that the model was sampled to
                              each prompt), so the interval does not cover other draws of items
    broken_models_caught      three models broken on purpose: how many are found worse on the leg that they broke
    mc_max_abs_error          MC1 and MC2 beside a plain computation that shares no code, largest difference
    ratio_lm_eval             time of lm-evaluation-harness over ours, same questions: the median over rounds, with
                              the least and the largest

    python benchmarks/evaluation.py --data DIR [--quick] [--json FILE] [--work DIR]      --quick: tiny counts, no peer
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broken import EXPECTED, noised, tuned
from common import load_average, options, report
from trivet.artifacts import Completions, Prompt, read_json
from trivet.cli import main as trivet
from trivet.config import EMBEDDED, Device
from trivet.evaluate import statistics
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import SUITES, draw
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import Subject
from trivet.generate.config import Sampling
from trivet.intervals import Interval
from trivet.training.device import prepare

SAMPLED = ("instructions", "prompts", "unknown", "agreeing", "attacks", "refusals")
"""Suites whose figures rest on sampled answers: another seed gives another figure."""
LEVEL = 0.05
PARTS = ("broken", "self", "peer")


class Pool(Subject):
    """A subject that answers each prompt several times once, and then draws one of these answers a run."""

    size: int
    run: int = 0
    pool: dict[str, dict[str, Completions]]

    def answer(self, suite: str, prompts: Sequence[Prompt], sampling: Sampling, *, n: int = 1) -> list[Completions]:
        """See Subject.answer. The first call draws the pool; what a run draws of it depends on the run alone."""
        known = self.pool.setdefault(suite, {})
        if missing := [p for p in prompts if p.id not in known]:
            known |= {r.id: r for r in super().answer(suite, missing, sampling, n=self.size)}
        drawn = [random.Random(f"{self.seed}:{self.run}:{suite}:{p.id}").randrange(self.size) for p in prompts]
        return [known[p.id].model_copy(update={"completions": [known[p.id].completions[k]]})
                for p, k in zip(prompts, drawn, strict=True)]


def single_turn(items: Sequence[Any]) -> list[Any]:
    """Items of one turn: the second turn would depend on the run's own first answer."""
    return [i for i in items if getattr(i, "then", None) is None]


def false_positives(work: Path, *, quick: bool, model: str, seed: int, comparisons: int, items: int,
                    size: int) -> dict[str, Any]:
    """The base against itself: two evaluations a comparison, none used twice.

    Each evaluation draws, with a seed of its own, one of the `size` answers that the model was sampled to each prompt:
    both sides come from one distribution, item by item, so whatever is found is a false alarm. (400 evaluations
    sampled token by token would take days of one core.)
    """
    config = EvaluateConfig(model=model, suites=list(SAMPLED), seed=seed, plain_template=True,
                            sampling=Sampling(temperature=0.7, max_new_tokens=4 if quick else 48))
    subject = Pool(model, work / "pool", prepare(Device()), seed=seed, batch_size=256, plain_template=True)
    subject.size, subject.pool = size, {}
    chosen = {name: draw(single_turn(SUITES[name].load().read(config)), items, seed) for name in SAMPLED}
    tables: list[dict[str, list[Score]]] = []
    measures: dict[str, Measure] = {}
    for number in range(2 * comparisons):
        subject.run = number
        found: dict[str, list[Score]] = {}
        for name, questions in chosen.items():
            module = SUITES[name].load()
            measures |= {m.key: m for m in module.MEASURES if m.tested}
            for score in module.run(subject, questions, config):
                found.setdefault(score.measure, []).append(score)
        tables.append(found)
    tested = [k for k in measures if k in tables[0]]
    families, rejected, tests = 0, 0, 0
    for i in range(comparisons):
        mine, other = tables[2 * i], tables[2 * i + 1]
        found_ps = [statistics.permutation_test(measures[k], mine[k], other[k], seed + i) for k in tested]
        families += any(p is not None and p <= LEVEL for p in statistics.holm_family(found_ps))
        in_family = [p for p, least in found_ps if statistics.in_family(p, least)]
        rejected += sum(p <= LEVEL for p in in_family)
        tests += len(in_family)
    rate = families / comparisons
    return {
        "self_false_positive_rate": Interval(rate, *statistics.wilson(rate, comparisons), comparisons).as_dict(),
        "stated_level": LEVEL, "measures": tested, "prompts": sum(map(len, chosen.values())), "answers_a_prompt": size,
        "unadjusted_rate_per_test": rejected / max(tests, 1), "tests": tests,
    }


def broken(work: Path, *, quick: bool, model: str, data: Path | None, limit: int) -> dict[str, Any]:
    """Models broken on purpose beside the base: on which legs each is found worse."""
    common = ["--limit", str(limit), "--suites", "text", "unknown", "agreeing", "refusals",
              *(["--data", str(data)] if data else []), *(["--sampling.max-new-tokens", "8"] if quick else [])]
    trivet(["evaluate", model, "--out", str(work / "base"), *common])
    found = {}
    for kind, (leg, keys) in EXPECTED.items():
        if not (work / kind / "ready").exists():
            path = noised(work / kind, model=model) if kind == "noised" else tuned(kind, work / kind, model=model,
                                                                                   quick=quick)
            (work / kind / "ready").write_text(str(path))
        path = Path((work / kind / "ready").read_text())
        trivet(["evaluate", str(path), "--against", str(work / "base"), "--out", str(work / f"{kind}-evaluated"),
                *common])
        rows = read_json(work / f"{kind}-evaluated" / "results.json")["measures"]
        worse = [m["key"] for m in rows if m["verdict"] == "worse"]
        found[kind] = {"leg": leg, "caught": any(k in worse for k in keys), "worse": worse,
                       "better": [m["key"] for m in rows if m["verdict"] == "better"]}
    return {"broken_models_caught": sum(f["caught"] for f in found.values()), "broken_models": found}


def own_options(parser: argparse.ArgumentParser) -> None:
    """Which model and data, and where to work; a folder given by --work is kept, and gone on with."""
    parser.add_argument("--model", default=EMBEDDED, help="the base (default: the embedded model)")
    parser.add_argument("--data", type=Path, help="the folder of data sets; without it the peer has nothing to answer")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS,
                        help="these parts alone; the JSON file keeps its other figures")
    parser.add_argument("--work", type=Path, help="keep what was made in this folder, and go on from it")


def main() -> None:
    """All four figures."""
    chosen = options(__doc__ or "", own_options)
    load = load_average()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        figures = {}
        if set(chosen.only) < set(PARTS) and chosen.json and chosen.json.exists():
            figures = json.loads(chosen.json.read_text())["figures"]
        if "broken" in chosen.only:
            figures |= broken(work, quick=chosen.quick, model=chosen.model, data=chosen.data,
                              limit=4 if chosen.quick else 60)
        if "self" in chosen.only:
            figures |= false_positives(work, quick=chosen.quick, model=chosen.model, seed=chosen.seed,
                                       comparisons=4 if chosen.quick else 200, items=3 if chosen.quick else 60,
                                       size=3 if chosen.quick else 8)
        if "peer" in chosen.only and chosen.data is not None and not chosen.quick:
            from lm_eval_peer import compare_with_lm_eval

            figures |= compare_with_lm_eval(quick=False, seed=chosen.seed, data=chosen.data)
    report("evaluation", figures, chosen, load=load)


if __name__ == "__main__":
    main()
