"""A model at an OpenAI-compatible endpoint as a writer of texts."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from trivet.generate.config import Sampling
from trivet.generate.connection import Again
from trivet.generate.endpoint import Client, Reply
from trivet.generate.in_flight import ask_all
from trivet.generate.kept import Keeping
from trivet.generate.stops import cut
from trivet.generate.writing import Ask, Written

NO_TEXT_FOR_A_REASON = ("length", "content_filter")
"""Ends of a reply without a text that asking again would not change: no room was left, or a filter took it."""


class EndpointWriter:
    """Writes with whatever the endpoint has under the model's name.

    What is not sent is as the server has it: `top_k` is sent where it is set, everything else in Sampling always. The
    seed of each request is sent; whether equal requests get equal texts is the endpoint's affair.
    """

    def __init__(self, client: Client) -> None:
        self.client, self.name = client, client.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """The address and the model's name there."""
        return {"kind": "endpoint", "url": self.client.url, "model": self.client.model}

    @property
    def loaded(self) -> Mapping[str, tuple[Any, Any]]:
        """See Source."""
        return {}

    def write(self, asks: Sequence[Ask], seeds: Sequence[int], sampling: Sampling, keep: Keeping[Written]) -> None:
        """See Source: `concurrency` requests in flight. A reply without a text is asked for again; where it stays
        empty, an empty text is kept, and how many there were is said.

        When one request fails for good no new one is sent, those in flight are waited for, and then it is raised.
        Ctrl-C is raised at once. Raises TrivetError as Client.ask does.
        """
        empty: list[int] = []

        def one(i: int, stop: threading.Event) -> Written:
            tries, found = self.client.settings.retries, list[Written]()

            def land(reply: Reply) -> None:
                nonlocal tries
                if reply.text is None and reply.finish not in NO_TEXT_FOR_A_REASON and tries:
                    tries -= 1
                    raise Again("a reply without a text")
                if not reply.text:
                    empty.append(i)
                written = _written(reply, sampling)
                keep.write([(i, written)])
                found.append(written)

            self.client.ask(asks[i].messages, request_options(sampling, seeds[i]), what=repr(asks[i].id), stop=stop,
                            land=land)
            return found[0]

        failures = ask_all(range(len(asks)), one, keep.settle, self.client.settings.concurrency)
        if empty:
            print(f"{self.name} gave no text for {len(empty)} of {len(asks)} asks, such as {asks[empty[0]].id!r}: "
                  "they are kept as empty", flush=True)
        if failures:
            raise failures[0]


def request_options(sampling: Sampling, seed: int) -> dict[str, Any]:
    """What of a request says how its reply is to be drawn."""
    options: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p,
                               "max_tokens": sampling.max_new_tokens,
                               "seed": seed % 2**31}  # llama.cpp's server, for one, takes no larger one
    if sampling.top_k:
        options["top_k"] = sampling.top_k
    if sampling.stop:
        options["stop"] = sampling.stop
    return options


def _written(reply: Reply, sampling: Sampling) -> Written:
    text = reply.text or ""
    short = cut(text, sampling.stop)  # for an endpoint that does not know `stop`
    return Written(short.strip(), short != text or reply.finish not in NO_TEXT_FOR_A_REASON, reply.tokens)
