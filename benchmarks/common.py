"""What every benchmark shares: its options, the machine it ran on, where its figures go."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trivet.ledger import machine

QUIET_LOAD = 0.3


def options(about: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """--quick and --json, the same for all; `add` gives the parser a benchmark's own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if add is not None:
        add(parser)
    parser.add_argument("--quick", action="store_true", help="small counts: to see that it works")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def provenance(load: float) -> dict[str, Any]:
    """Where, when and by which command figures come about. load: what stood before."""
    return {
        "machine": machine(), "load_before": round(load, 2), "quiet": load <= QUIET_LOAD,
        "versions": {p: importlib.metadata.version(p) for p in ("trivet", "torch", "transformers", "peft")},
        "command": "python " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat()}


def report(name: str, figures: dict[str, Any], chosen: argparse.Namespace, *, load: float) -> None:
    """Print the figures, and write them with machine, versions, command and date."""
    whole = {"benchmark": name, "figures": figures, "seed": chosen.seed, "quick": chosen.quick} | provenance(load)
    print(json.dumps(figures, indent=2))
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(whole, indent=2) + "\n")


def load_average() -> float:
    """Load of the last minute, before the benchmark begins; warns where something else is at work."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"warning: a load of {load:.2f} stands above {QUIET_LOAD}: times taken now are not the machine's own, "
              "and the result says so", file=sys.stderr, flush=True)
    return load
