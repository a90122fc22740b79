"""Attacks on the sandbox: how many were tried in each tier that works here, and how many set off an oracle.

A tier that does not work on this machine has `unavailable` with the reason, never a zero. The suite and its oracles are
those of `tests/sandbox`; before anything else each tier must hold five harmless programs.

    python benchmarks/attacks.py [--quick] [--json FILE]      --quick: every eighth attack
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attacking import Attack, Host, attacks, in_tier, require_limits, through
from common import load_average, options, report
from trivet.sandbox import availability


def sandbox(suite: list[Attack]) -> dict[str, Any]:
    """`sandbox_attempted`, `sandbox_through` and the same by tier, with the names of what got through."""
    by_tier: dict[str, Any] = {}
    host = Host()
    try:
        for name, why in availability().items():
            if why is not None:
                by_tier[name] = {"unavailable": why}
                continue
            require_limits(name, host)
            tried = [a for a in suite if not a.only or name in a.only]
            found: dict[str, list[str]] = {}
            for attack in tried:
                seen = through(attack, in_tier(name), host)
                if seen:
                    found[attack.name] = seen
                    print(f"{name}: {attack.name}: {', '.join(seen)}", flush=True)
            kinds = {k: sum(a.kind == k for a in tried) for k in sorted({a.kind for a in tried})}
            by_tier[name] = {"attempted": len(tried), "through": len(found), "got_through": found, "by_kind": kinds}
    finally:
        host.close()
    ran = [t for t in by_tier.values() if "unavailable" not in t]
    return {"sandbox_attempted": sum(t["attempted"] for t in ran), "sandbox_through": sum(t["through"] for t in ran),
            "sandbox_by_tier": by_tier}


def main() -> None:
    chosen = options(__doc__ or "")
    load = load_average()
    suite = attacks()
    report("attacks", sandbox(suite[::8] if chosen.quick else suite), chosen, load=load)


if __name__ == "__main__":
    main()
