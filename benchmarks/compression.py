"""What smaller forms of a model cost and buy: `trivet compress`, as a person would run it, and its figures as JSON.

The shipped recipe prunes, distils, quantizes and exports a model, and weighs all forms against their source in one run
on this machine. By variant: bytes, bits a weight, zeros, tokens a second at batch 1 and 16 (median of rounds that
alternate, with the least and the most), perplexity, KL, and with a run or a reward the reward and the refusals that are
kept. `distilled_minus_hard` is benchmarks/distillation.py's, whose last result is read.

Of the folder of a run (`trivet run quickstart`) the aligned policy is taken: how much of the alignment is left?

    python benchmarks/compression.py [--quick] [--json FILE] [--model MODEL or RUN] [--reward REWARD] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from common import load_average, options, report
from trivet.compress.tradeoff_results import PERPLEXITY, REFUSALS_KEPT, REWARD_KEY, Row, Spread, Tradeoff, read
from trivet.config import EMBEDDED
from trivet.evaluate.results import Figure
from trivet.pipeline import CompressOptions, run_compress

DISTILLATION = Path(__file__).parent / "results" / "distillation.json"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help="a model, or the folder of a run that aligned one")
    parser.add_argument("--reward", help="a reward model that scores answers (default: the run's)")
    parser.add_argument("--out", type=Path, help="the run folder, which is kept and gone on with")
    parser.add_argument("--distillation", type=Path, default=DISTILLATION, help="the result of distillation.py")


def figures(found: Tradeoff) -> dict[str, Any]:
    """The benchmark's figures out of a table; what was not measured is None."""
    alone = found.alone()
    prompt = alone[1] if alone else 0
    quickest = max((r for r in found.rows[1:] if _faster(r, alone) is not None),
                   key=lambda r: _faster(r, alone) or 0.0, default=None)
    return {
        "source": found.source.name, "machine_compute": found.compute, "prompt_tokens": prompt,
        "new_tokens": found.new_tokens, "rounds": found.rounds, "quality": found.quality(),
        "front": sorted(found.front(found.quality())),
        "fastest": quickest.name if quickest else None,
        "fastest_times_source": _spread(quickest.workload(*alone).faster) if quickest and alone and
        (timed := quickest.workload(*alone)) and timed else None,
        "by_variant": {row.name: _variant(row, found, prompt) for row in found.rows}}


def _faster(row: Row, alone: tuple[int, int] | None) -> float | None:
    timed = row.workload(*alone) if alone else None
    return None if timed is None or timed.faster is None else timed.faster.value


def _variant(row: Row, found: Tradeoff, prompt: int) -> dict[str, Any]:
    batches = sorted({b for b, p in found.workloads if p == prompt})
    told: dict[str, Any] = {
        "method": row.variant.method, "format": row.variant.format, "bytes": row.variant.bytes,
        "parameters": row.variant.parameters, "bits_per_weight": row.variant.bits_per_weight,
        "sparsity": row.variant.sparsity, "failed": row.failed, "absent": row.absent,
        "memory_bytes": _spread(row.memory), "load_seconds": _spread(row.load)}
    for batch in batches:
        timed = row.workload(batch, prompt)
        told[f"tokens_per_second_b{batch}"] = _spread(timed.decode if timed else None)
        told[f"times_source_b{batch}"] = _spread(timed.faster if timed else None)
    first = row.workload(batches[0], prompt) if batches else None
    told["first_token_seconds"] = _spread(first.first if first else None)
    for name, key in (("perplexity", PERPLEXITY), ("kl", "capable.kl"), ("reward", REWARD_KEY),
                      ("refusals_kept", REFUSALS_KEPT.key)):
        line = row.line(key)
        told[name] = _interval(line.value if line else None)
        if line is not None and line.difference is not None:
            told[f"{name}_change"] = _interval(line.difference)
    told["perplexity_growth"] = _interval(row.perplexity_growth)
    return told


def _spread(of: Spread | None) -> dict[str, Any] | None:
    """Median, least and most of the rounds: no confidence interval."""
    return None if of is None else of.model_dump()


def _interval(of: Figure | None) -> dict[str, Any] | None:
    return None if of is None else {k: getattr(of, k) for k in ("value", "low", "high", "n")}


def distilled(path: Path) -> Any:
    """What distillation.py found of distilled students less ones trained on hard labels; None without its result."""
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))["figures"].get("distilled_minus_hard")


def main() -> None:
    chosen = options(__doc__ or "", _options)
    load = load_average()
    with tempfile.TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary) / "compress"
        began = time.monotonic()
        run_compress(CompressOptions(model=chosen.model, reward=chosen.reward, out=out, quick=chosen.quick))
        seconds = time.monotonic() - began
        steps = json.loads((out / "summary.json").read_text(encoding="utf-8"))["seconds"]
        (weighed,) = out.glob("*/tradeoff.json")
        found = figures(read(weighed))
    report("compression", found | {
        "seconds": round(seconds, 1), "seconds_by_step": steps,
        "distilled_minus_hard": distilled(chosen.distillation)}, chosen, load=load)


if __name__ == "__main__":
    main()
