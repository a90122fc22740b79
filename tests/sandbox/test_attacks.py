"""No attack reaches the host, in any tier that works here; and the oracles would notice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from attacking import Attack, Host, attacks, in_the_open, in_tier, require_limits, through
from trivet.sandbox import TIERS, availability

SUITE = attacks()
OPEN = {a.trips: a for a in reversed(SUITE) if a.trips}
"""For each oracle the first attack that must set it off in the open."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tier(request: pytest.FixtureRequest, host: Host) -> str:
    name = str(request.param)
    why = availability(name)[name]
    if why is not None:
        assert not os.environ.get("CI"), f"CI must have every tier; {name}: {why}"
        pytest.skip(f"{name}: {why}")
    require_limits(name, host)
    return name


@pytest.mark.parametrize("attack", SUITE, ids=lambda a: a.name)
@pytest.mark.parametrize("tier", TIERS, indirect=True, scope="module")
def test_no_attack_reaches_the_host(tier: str, attack: Attack, host: Host) -> None:
    if attack.only and tier not in attack.only:
        pytest.skip(f"means nothing in {tier}")
    assert through(attack, in_tier(tier), host) == []


def test_there_are_enough_of_every_kind() -> None:
    kinds = {a.kind for a in SUITE}
    assert kinds == {"files", "network", "processes", "signals", "proc", "limits", "memory", "time", "output",
                     "introspection"}
    assert len(SUITE) >= 60 and len({a.name for a in SUITE}) == len(SUITE)


@pytest.mark.parametrize("attack", OPEN.values(), ids=lambda a: a.trips)
def test_the_oracles_notice_where_nothing_holds_the_program(attack: Attack, host: Host) -> None:
    found = through(attack, in_the_open, host)
    assert attack.trips in found, found


def test_the_oracles_are_silent_where_nothing_happens(host: Host) -> None:
    assert through(Attack("nothing", "files", "print(6 * 7)"), in_the_open, host) == []
