"""The learning curve of PPO whose rollouts a vLLM server draws, beside that of PPO which draws them itself.

On the embedded model. How the two are compared, and what `matches` means, stands in curves.py; held-out prompts are
answered in this process on both sides.

    python benchmarks/vllm_curve.py [--quick] [--json FILE] [--plot FILE]
    --url URL           a running server of the same model, started as docs/guides/vllm.md says (default: started here)
    --peer-env FOLDER   an environment that has vLLM (default: made, .venv-vllm)
    --model FOLDER, --seeds N, --steps N

--quick: a tiny random model and a stand-in for the server, to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import curves
from common import load_average, options, report
from peers import environment
from trivet.models.source import resolve
from vllm_server import FOR_ROLLOUTS, vllm_server

SIDES = {"torch": "rollouts in this process", "vllm": "rollouts by vLLM"}


def figures(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What is reported: curves with intervals, the test, the gains, the mismatch."""
    metrics = [m for r in runs["vllm"] for m in r["metrics"]]
    return curves.compare(runs) | {
        "mismatch_kl": round(statistics.fmean(m["mismatch_kl"] for m in metrics), 5),
        "mismatch": round(statistics.fmean(m["mismatch"] for m in metrics), 5),
        "importance_weight": round(statistics.fmean(m["importance_weight"] for m in metrics), 4),
        "staleness": max(m["staleness"] for m in metrics),
        **{f"rollout_seconds_{side}": round(statistics.fmean(r["timing"]["rollout"] for r in found), 2)
           for side, found in runs.items()},
    }


@contextlib.contextmanager
def server(chosen: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The address of the server: given, a stand-in, or vLLM started here."""
    if chosen.url:
        yield chosen.url
    elif chosen.quick:
        from vllm_stand_in import StandIn

        with StandIn(Path(chosen.model)) as stand_in:
            yield stand_in.url
    else:
        with vllm_server(environment("vllm", chosen.peer_env), resolve(chosen.model).folder, folder / "vllm.log",
                         *FOR_ROLLOUTS) as own:
            yield own.url


def add(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    curves.own_options(parser, steps=6)
    parser.add_argument("--url", help="a running vLLM server of this model")
    parser.add_argument("--peer-env", type=Path, help="an environment that has vLLM (default: made here)")


def main() -> None:
    """Run, compare, report."""
    load, chosen = load_average(), options(__doc__ or "", add)
    with curves.prepared(chosen) as folder, server(chosen, folder) as url:
        here = {"answers": 2, "prompt_baseline": True}
        runs = curves.turn_about(chosen, folder, {"torch": here, "vllm": here | {"generate": "vllm", "url": url}})
    found = figures(runs)
    if chosen.plot:
        curves.plot(found, SIDES, "PPO with rollouts in this process and by vLLM", chosen.plot)
    report("vllm_curve", found, chosen, load=load)


if __name__ == "__main__":
    main()
