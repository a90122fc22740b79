"""Ctrl-C that loses nothing: the first one lets the step end and a checkpoint be written, the second stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from trivet.training.ranks import here


class Interruption:
    """Whether somebody asked to stop."""

    requested = False


@contextlib.contextmanager
def graceful() -> Iterator[Interruption]:
    """Turn SIGINT and SIGTERM into a request to stop between two steps. Main thread only; elsewhere a no-op."""
    state = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if state.requested:
            raise KeyboardInterrupt
        state.requested = True
        print("\nstopping after this step, with a checkpoint (once more: stop at once)", flush=True)

    old: dict[int, Any] = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    except Exception:
        if here().world > 1:
            # where one of several processes is lost, torchrun ends the others at once: not before they said why
            old[signal.SIGTERM] = _ending
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _ending(number: int, frame: FrameType | None) -> None:
    """The process is on its way out with an error already."""
