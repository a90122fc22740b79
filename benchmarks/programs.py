"""The sandbox's arithmetic: the `<<expression=value>>` of GSM8K's solutions, each run as a program.

Counted: those that give their value, those that give it once rounded as written there, those that are no Python as
they stand, and those that give something else (by the line of the file and the place in it; no text is kept).

    python benchmarks/programs.py [--data FOLDER] [--quick] [--json FILE]      --quick: the first 50 questions
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
from pathlib import Path
from typing import Any

from common import load_average, options, report
from trivet.sandbox import Limits, run_program

CALCULATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")


def outcome(expression: str, value: str) -> tuple[str, str]:
    """What became of one calculation: `equal`, `rounded`, `no number`, `no program` or `differs`; and the tier."""
    try:
        wanted = float(value.replace(",", "").replace("$", "").strip().rstrip("%"))
    except ValueError:
        return "no number", ""
    result = run_program(expression.strip(), Limits(seconds=2))
    if not result.ok or type(result.value) not in (int, float):
        return "no program", result.tier
    got = float(result.value)
    if abs(got - wanted) <= 1e-9 * max(1.0, abs(wanted)):
        return "equal", result.tier
    places = len(value.strip().partition(".")[2])
    # cut off or rounded, to the places that were written
    return ("rounded" if abs(got - wanted) < 10.0 ** -places else "differs"), result.tier


def calculations(file: Path, count: int | None) -> dict[str, Any]:
    """The figures over a file of questions with solutions."""
    found: collections.Counter[str] = collections.Counter()
    tiers: collections.Counter[str] = collections.Counter()
    places: dict[str, list[str]] = {"no number": [], "no program": [], "differs": []}
    for number, line in enumerate(file.read_text().splitlines()[:count], 1):
        for place, match in enumerate(CALCULATION.finditer(json.loads(line)["answer"]), 1):
            said, tier = outcome(match[1], match[2])
            found[said] += 1
            tiers[tier] += 1
            if said in places:
                places[said].append(f"{number}:{place}")
    return {"calculations": sum(found.values()), **dict(found), "by_tier": dict(tiers), "places": places}


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRIVET_DATA", "../shared/data")))


def main() -> None:
    chosen = options(__doc__ or "", _data)
    load = load_average()
    report("programs", {"gsm8k_test": calculations(chosen.data / "gsm8k/test.jsonl", 50 if chosen.quick else None)},
           chosen, load=load)


if __name__ == "__main__":
    main()
