"""Signals: what a first one asks for, and what becomes of one that comes while an error is on its way out."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from trivet.training import interrupt


@pytest.fixture(autouse=True)
def handlers():
    """Those of the test's own process are put back."""
    old = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    yield old
    for number, handler in old.items():
        signal.signal(number, handler)


def test_the_first_asks_and_the_second_stops(handlers, capsys) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.graceful() as state:
        os.kill(os.getpid(), signal.SIGTERM)
        assert state.requested and "stopping after this step" in capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGINT)
    assert {s: signal.getsignal(s) for s in handlers} == handlers


def test_an_error_of_one_process_puts_back_what_was(handlers) -> None:
    with pytest.raises(OSError), interrupt.graceful():
        raise OSError
    assert {s: signal.getsignal(s) for s in handlers} == handlers


def test_one_of_several_says_its_error_before_it_is_ended(handlers, monkeypatch) -> None:
    """torchrun ends the others the moment that one is lost: they were cut off before they had said why."""
    monkeypatch.setattr(interrupt, "here", lambda: SimpleNamespace(world=2))
    with pytest.raises(OSError), interrupt.graceful():
        raise OSError
    os.kill(os.getpid(), signal.SIGTERM)  # it would end this test's own process
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]
