"""Rollouts by a running vLLM server, behind the same interface as the engine in this process.

Prompts and answers travel as token ids and are never tokenized again. Each prompt is one request with a seed of its
own (vLLM gives answer j the seed plus j), so that a request that has to be sent again asks for the same answers. The
server's own defaults of sampling (it reads generation_config.json) are all overruled. Log-probabilities are those of
the distribution that was drawn from: the server must run with `--logprobs-mode processed_logprobs`.

Not covered: log-probabilities of given answers at a temperature (vLLM has them at temperature 1 alone).
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from trivet.errors import TrivetError
from trivet.generate.base import Capabilities, Generated
from trivet.generate.config import Sampling
from trivet.generate.in_flight import ask_all
from trivet.generate.vllm_server import Away, RolloutInterrupted, Server, ServerLost

FIRST_PAUSE = 0.5
"""Seconds before a request is sent again; doubled each time."""
LONGEST_PAUSE = 20.0


def request_seed(seed: int) -> int:
    """A prompt's seed as the server gets it: far from its neighbour's, since vLLM counts up from it."""
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:7], "big")


class VLLMEngine:
    """Generates with whatever a server has under a name."""

    capabilities = Capabilities(logps=True, score=False)

    def __init__(self, server: Server, model: str, stops: frozenset[int], *,
                 returned: Callable[[str], None] | None = None,
                 progress: Callable[[int], None] | None = None, resend: bool = True) -> None:
        """model: the name in requests. stops: tokens that end an answer, and nothing else does.

        returned: called with the reason when the server is gone; comes back when the server is, with the same weights,
        or raises. Without it `generate` raises Away. resend: off where a server that was started anew would answer to
        the same name with other weights: a request that failed is then sent again only after `returned`.
        """
        self.server, self.model, self.stops = server, model, stops
        self.returned, self.progress, self.resend = returned, progress, resend

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """Always raises TrivetError: see `capabilities`."""
        raise TrivetError("a vLLM server does not tell the log-probabilities of given answers at a temperature",
                          field="generate", mend="score in this process")

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int]
    ) -> list[list[Generated]]:
        """See Engine.generate. Answers that came before a server broke down are kept, the rest is asked again.

        Equal requests give equal answers where the server's arithmetic is the same: in bfloat16 it depends on what
        else is in the batch. Raises TrivetError for an empty prompt and an answer of another form, ServerLost where no
        answer came between two breakdowns (without `resend`: as many as a request has tries), RolloutInterrupted after
        Ctrl-C; TrivetError for stop strings.
        """
        if any(len(p) == 0 for p in prompts):
            raise TrivetError("a prompt has no tokens", field="messages", mend="give every prompt some text")
        if sampling.stop:
            raise TrivetError("stop strings end answers only where they are generated in this process",
                              field="sampling.stop", mend="leave them out, or set generate: torch")
        found: dict[int, list[Generated]] = {}
        before, fruitless = -1, 0
        while (failure := self._ask(prompts, sampling, n, seeds, found)) is not None:
            if self.returned is None:
                raise failure
            fruitless = fruitless + 1 if len(found) == before else 0
            if fruitless >= (1 if self.resend else self.server.settings.retries + 1):
                raise ServerLost(f"the server at {self.server.url} is there, but does not answer: {failure}",
                                 field="url", mend="see its log, then run the same command again")
            before = len(found)
            self.returned(str(failure))
        return [found[i] for i in range(len(prompts))]

    def _ask(self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int, seeds: Sequence[int],
             found: dict[int, list[Generated]]) -> Away | None:
        """Ask for what is not in `found`; None when it is whole, or why the server can't answer now.

        After a failure no new request is sent, and those in flight are waited for: no answer of these weights is
        left behind in the server.
        """
        def take(rows: list[tuple[int, list[Generated]]]) -> None:
            found.update(rows)
            if self.progress is not None:
                self.progress(n * len(rows))

        try:
            failures = ask_all([i for i in range(len(prompts)) if i not in found],
                               lambda i, stop: self._one(prompts[i], sampling, n, seeds[i], stop), take,
                               self.server.settings.in_flight)
        except KeyboardInterrupt:
            raise RolloutInterrupted from None
        # what a person has to mend comes before what may pass
        for failure in failures:
            if not isinstance(failure, Away):
                raise failure
        return next((f for f in reversed(failures) if isinstance(f, Away)), None)

    def _one(self, prompt: Sequence[int], sampling: Sampling, n: int, seed: int,
             stop: threading.Event) -> list[Generated]:
        """The answers to one prompt, sent again a few times where that may help."""
        count = 1 if sampling.temperature == 0 else n  # greedy answers are all the same, and vLLM gives one
        body = {
            "model": self.model, "prompt": list(prompt), "n": count, "seed": request_seed(seed),
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "top_k": sampling.top_k, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": sorted(self.stops), "logprobs": 0,
            "return_token_ids": True, "add_special_tokens": False,
        }
        for attempt in range(self.server.settings.retries + 1 if self.resend else 1):
            if attempt and stop.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)):
                break
            try:
                read = [self._read(choice, prompt, sampling) for choice in self.server.complete(body)]
                return read if count == n else read * n
            except Away as error:
                failure = error
                if "does not know" in str(error):
                    break  # it has to be given the weights first
        raise failure

    def _read(self, choice: dict[str, Any], prompt: Sequence[int], sampling: Sampling) -> Generated:
        """An answer from a choice. Raises Away for one that was broken off, TrivetError for another form."""
        if choice.get("finish_reason") not in ("stop", "length"):
            raise Away(f"an answer was broken off ({choice.get('finish_reason')})")
        try:
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            sent = choice.get("prompt_token_ids")
            well = all(type(i) is int for i in ids) and len(ids) == len(logps) > 0 and \
                all(isinstance(p, float | int) and math.isfinite(p) and p <= 1e-3 for p in logps)
        except (KeyError, TypeError):
            well = False
        if not well:
            raise TrivetError(f"{self.server.url} does not answer with token ids and their log-probabilities",
                              field="url", mend="use vLLM 0.32 or later as the server")
        if sent is not None and list(sent) != list(prompt):
            raise TrivetError(f"{self.server.url} changed a prompt: {len(prompt)} tokens were sent, {len(sent)} read",
                              field="url", mend="start the server without options that change prompts")
        ended = ids[-1] in self.stops
        if not ended and len(ids) < sampling.max_new_tokens:
            raise TrivetError(
                f"{self.server.url} ended an answer after {len(ids)} of {sampling.max_new_tokens} tokens, and not by "
                f"one of the tokens that end it here ({', '.join(map(str, sorted(self.stops)))})", field="url",
                mend="start the server with a larger --max-model-len, and with no stop tokens of its own "
                "(--generation-config vllm)")
        # greedy: all mass is on the token that was taken, whatever the server makes of it
        told = [0.0] * len(ids) if sampling.temperature == 0 else [float(p) for p in logps]
        return Generated(tuple(ids), tuple(told), ended)
