"""A table of `trivet tradeoff` without a model: a source, int8 and int4, a pruned one, and one that failed."""

from __future__ import annotations

import random

from trivet.compress.tradeoff_results import (
    KL,
    PERPLEXITY,
    REFUSALS_KEPT,
    REWARD,
    Row,
    Tradeoff,
    figures,
    growth,
    spread,
)
from trivet.compress.variant import Variant
from trivet.evaluate import results
from trivet.evaluate.base import Score
from trivet.evaluate.suites.text import MEASURES

MADE = {  # name: (MB, bits, method, sparsity, seconds of an answer, nats more, reward more)
    "source": (538.0, 32.0, "source", 0.0, 4.0, 0.0, 0.0),
    "int8": (144.0, 8.5, "gguf", None, 1.0, 0.004, -0.01),
    "int4": (90.0, 5.4, "gguf", None, 0.8, 0.12, -0.4),
    "wanda": (538.0, 32.0, "wanda", 0.5, 4.1, 0.7, -1.0),
    "broken": (10.0, 4.0, "openvino", None, None, None, None),
}


def scores(nats: float, reward: float, *, source: bool) -> list[Score]:
    """Of forty documents and forty prompts; a little noise, the same in every variant."""
    rng = random.Random(0)
    found = []
    for i in range(40):
        noise, off = rng.gauss(0, 0.3), rng.gauss(0, 0.002) * (not source)
        document = {"id": f"d{i}", "group": f"d{i}", "weight": 100}
        found.append(Score(measure=PERPLEXITY, value=2.5 + noise + nats + off, **document))
        found.append(Score(measure=REWARD.key, id=f"p{i}", group=f"p{i}", value=noise + reward + 10 * off))
        if not source:
            found.append(Score(measure=KL.key, value=nats / 2 + 0.001, **document))
    if not source:
        found += [Score(measure=REFUSALS_KEPT.key, id=f"r{i}", group=f"r{i}", value=float(i < 8)) for i in range(10)]
    return found


def table(reward: bool = True) -> Tradeoff:
    """The table. reward: with the reward of answers."""
    measures = [*MEASURES, REWARD, KL, REFUSALS_KEPT]
    known = {name: [s for s in scores(nats, gain or 0.0, source=name == "source")
                    if reward or s.measure != REWARD.key]
             for name, (*_, nats, gain) in MADE.items() if nats is not None}
    tables = {}
    for name, own in known.items():
        beside = name != "source"
        tables[name] = results.build(model=name, measures=measures, scores=own, base="source" if beside else None,
                                     base_scores=known["source"] if beside else None)
    results.judge_together([t for name, t in tables.items() if name != "source"])
    rows = []
    for name, (size, bits, method, sparsity, seconds, _, _) in MADE.items():
        variant = Variant(name=name, method=method, format="safetensors" if sparsity is not None else "gguf",
                          source="source", parameters=int(size * 8e6 / bits), bytes=int(size * 1e6),
                          bits_per_weight=bits, sparsity=sparsity,
                          notes=["Zeros in a dense file"] if name == "wanda" else [])
        if seconds is None:
            rows.append(Row(name=name, path=name, variant=variant, failed="OpenVINO is not installed"))
            continue

        def times(batch: int, whole: float) -> dict[int, tuple[float, float]]:
            return {r: (0.1 * batch * whole, (1 + 0.02 * r) * batch ** 0.5 * whole) for r in range(3)}

        slow = times(1, 4.0), times(16, 4.0)
        rows.append(Row(
            name=name, path=f"runs/{name}", variant=variant, absent={} if name != "int4" else {"KL": "it tells none"},
            load=spread([1.0, 2.0, 1.5]), memory=spread([2.0e6 * size]),
            timed=[figures(1, 128, 64, times(1, seconds), slow[0] if name != "source" else None),
                   figures(16, 128, 64, times(16, seconds), slow[1] if name != "source" else None)],
            measures=tables[name].measures,
            perplexity_growth=None if name == "source" else growth(
                *([s for s in known[n] if s.measure == PERPLEXITY] for n in (name, "source")))))
    return Tradeoff(trivet="0", machine="a machine, 2 cores", compute="cpu, float32 trunk, 2 threads", new_tokens=64,
                    rounds=3, family=tables["int8"].family, reward="runs/second/reward" if reward else None,
                    notes=["A note"], data={}, settings={}, rows=rows)
