"""Progress for people: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
QUIET_SECONDS = 15.0


@contextlib.contextmanager
def bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with ETA; call it with the number of items done, and `note=` for what stands beside it."""
    if sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total, note="")

            def advance(n: int = 1, note: str | None = None) -> None:
                if note is None:
                    progress.update(task, advance=n)
                else:
                    progress.update(task, advance=n, note=note)

            yield advance
        return
    started = last = time.monotonic()
    done = 0

    def say(n: int = 1, note: str | None = None) -> None:
        nonlocal last, done
        done += n
        now = time.monotonic()
        if n and (now - last > QUIET_SECONDS or done == total):
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            print(f"{what} {done}/{total}, {left:.0f} s left{'  ' + note if note else ''}", flush=True)

    yield say
