"""Stop criteria: each one by its name, in a fixed order, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from trivet.policy.stop import StopState, first_met


@dataclass(frozen=True)
class Criteria:
    steps: int | None = None
    episodes: int | None = None
    seconds: float | None = None
    reward: float | None = None
    kl: float | None = None
    plateau_patience: int | None = None
    plateau_delta: float = 0.0


STATE = StopState(
    step=10, episodes=640, seconds=99.5, reward=1.5, kl=8.0, heldout_rewards=(0.0, 1.0, 0.9, 1.0)
)


@pytest.mark.parametrize(
    ("criteria", "reason"),
    [
        (Criteria(), None),
        (Criteria(steps=10), "steps"),
        (Criteria(steps=11), None),
        (Criteria(episodes=640), "episodes"),
        (Criteria(episodes=641), None),
        (Criteria(seconds=99.5), "seconds"),
        (Criteria(seconds=99.6), None),
        (Criteria(reward=1.5), "reward"),
        (Criteria(reward=1.6), None),
        (Criteria(kl=7.9), "kl"),
        (Criteria(kl=8.0), None),
        (Criteria(plateau_patience=2), "plateau"),
        (Criteria(plateau_patience=3), None),
        (Criteria(plateau_patience=4), None),
        (Criteria(plateau_patience=3, plateau_delta=1.0), "plateau"),
    ],
)
def test_each_criterion_answers_by_its_name(criteria: Criteria, reason: str | None) -> None:
    assert first_met(criteria, STATE) == reason


def test_the_first_of_several_is_named() -> None:
    criteria = Criteria(steps=1, episodes=1, seconds=1.0, reward=0.0, kl=1.0, plateau_patience=2)
    order = []
    while (reason := first_met(criteria, STATE)) is not None:
        order.append(reason)
        field = "plateau_patience" if reason == "plateau" else reason
        criteria = Criteria(**{**vars(criteria), field: None})
    assert order == ["steps", "episodes", "seconds", "reward", "kl", "plateau"]


def test_what_was_not_measured_meets_nothing() -> None:
    criteria = Criteria(reward=-100.0, kl=0.0, plateau_patience=1)
    unmeasured = replace(STATE, reward=None, kl=None, heldout_rewards=())
    assert first_met(criteria, unmeasured) is None
    assert first_met(criteria, replace(unmeasured, reward=float("nan"), kl=float("nan"))) is None


def test_a_plateau_needs_evaluations_before_it() -> None:
    rewards = (3.0, 2.0)
    assert first_met(Criteria(plateau_patience=2), replace(STATE, heldout_rewards=rewards)) is None
    assert first_met(Criteria(plateau_patience=1), replace(STATE, heldout_rewards=rewards)) == "plateau"
    with pytest.raises(ValueError, match="plateau_patience"):
        first_met(Criteria(plateau_patience=0), STATE)


def test_an_improvement_must_exceed_delta() -> None:
    criteria = Criteria(plateau_patience=1, plateau_delta=0.5)
    assert first_met(criteria, replace(STATE, heldout_rewards=(1.0, 1.5))) == "plateau"
    assert first_met(criteria, replace(STATE, heldout_rewards=(1.0, 1.75))) is None


def test_the_module_loads_no_torch() -> None:
    probe = "import sys, trivet.policy.stop; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", probe], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
    )
