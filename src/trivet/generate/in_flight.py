"""Requests to a server, several at once: what vLLM rollouts, endpoint judges and endpoint writers share."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Another request has failed for good, or somebody pressed Ctrl-C: this one is given up."""


def ask_all(numbers: Sequence[int], ask: Callable[[int, threading.Event], T],
            take: Callable[[list[tuple[int, T]]], None], at_once: int) -> list[BaseException]:
    """Ask for each of `numbers`, at most `at_once` at a time; the failures, in the order that they came.

    ask: in a thread of its own, given a number and the event that is set when no more is wanted; it may raise Stopped
    then. take: in the caller's thread, given (number, answer) of all that have come since it was called last, so that
    what it does once (such as syncing a file) holds no request up. After a failure no new request is sent and those in
    flight are waited for. Ctrl-C, and what `take` raises, is raised at once.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, T] | BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for number in numbers:
        todo.put(number)

    def work() -> None:
        try:
            while not stop.is_set():
                number = todo.get_nowait()
                done.put((number, ask(number, stop)))
        except (queue.Empty, Stopped):
            pass  # nothing left to do
        except BaseException as error:
            stop.set()
            done.put(error)
        finally:
            done.put(None)

    workers = min(at_once, len(numbers))
    for _ in range(workers):
        # daemons: an interrupted command need not wait for a server's time-out
        threading.Thread(target=work, daemon=True).start()
    failures: list[BaseException] = []
    try:
        while workers:
            items, came = [done.get()], list[tuple[int, T]]()
            with contextlib.suppress(queue.Empty):
                while True:
                    items.append(done.get_nowait())
            for item in items:
                if item is None:
                    workers -= 1
                elif isinstance(item, BaseException):
                    failures.append(item)
                else:
                    came.append(item)
            if came:
                take(came)
    finally:
        stop.set()
    return failures
