"""Any OpenAI-compatible endpoint as a judge, asked for a short structured verdict, or for its reasons and a verdict.

Where the endpoint tells log-probabilities of tokens, the verdict is the probability of its first label; else 1 or 0,
or the share of several votes. How the endpoint is asked, with what patience and for what cost: generate/endpoint.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.endpoint import PAUSE, Endpoints, Reply
from trivet.generate.in_flight import ask_all
from trivet.generate.spending import Spent
from trivet.judge.cache import Keep, Line, Verdicts, case_key, gather
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import THINKING, WORDING, Worded, word
from trivet.judge.reply import label_probability, read_verdict

PROMPT = 1
"""Version of what is sent beside the wording."""
REMINDER = "\n\nYour last reply was no verdict. Reply with the JSON object alone."


class EndpointJudge:
    """Asks `settings.model` at `settings.by` (the endpoint's base, such as http://localhost:8000/v1)."""

    grades, symmetric, sees_ids, reads_criterion = True, False, False, True

    def __init__(self, settings: Judging, *, field: str = "judge", endpoints: Endpoints | None = None,
                 verdicts: Verdicts | None = None, pause: float = PAUSE) -> None:
        """field: what the settings are called in messages. endpoints: what the judges and writers of a stage share.
        verdicts: where votes are kept one by one; verdicts themselves are kept by cache.Kept. pause: seconds before
        the first retry. Raises TrivetError for a key that no header can hold.
        """
        assert settings.by is not None and settings.model is not None, "judge.ask.check comes first"
        self.settings, self.field, self.verdicts = settings, field, verdicts
        self.client = (endpoints or Endpoints()).client(settings.by, settings.model, settings, field=field,
                                                        kept="what was judged is kept", pause=pause)
        self.name = self.client.name

    @property
    def identity(self) -> Mapping[str, Any]:
        """The address, the model's name, the version of what is asked, and how many votes there are."""
        votes = {"votes": self.settings.votes} if self.settings.votes > 1 else {}
        return {**self._asked, **votes}

    @property
    def _asked(self) -> dict[str, Any]:
        """What a single vote depends on: more of them can be drawn later."""
        thinking = {"thinking": THINKING, "tokens": self.settings.think_tokens} if self.settings.think else {}
        return {"kind": "endpoint", "url": self.client.url, "model": self.client.model, "wording": WORDING,
                "prompt": PROMPT, "longest": self.settings.longest, **thinking}

    @property
    def spent(self) -> Spent:
        """What this judge has spent in this process."""
        return self.client.spent

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking: `concurrency` requests in flight, verdicts handed on as they come.

        When one request fails for good no new one is sent, those in flight are waited for, and then it is raised.
        Ctrl-C is raised at once. Raises TrivetError for a model that gives no verdict, and as Client.ask does.
        """
        failures = ask_all(range(len(cases)), lambda i, stop: self._verdict(cases[i], lambda p: keep.write([(i, p)]),
                                                                            stop),
                           keep.settle, self.settings.concurrency)
        if failures:
            raise failures[0]

    # --- one case ----------------------------------------------------------------------------------------

    def _verdict(self, case: Case, write: Callable[[float], None], stop: threading.Event) -> float:
        """The verdict; `write` has kept it when this returns."""
        if self.settings.votes == 1:
            return self._vote(case, {"temperature": 0}, lambda p, _: write(p), stop)[0]
        votes: list[float] = []
        for k in range(self.settings.votes):
            key = case_key({**self._asked, "vote": k}, case)
            vote, told = self.verdicts.get(key) if self.verdicts is not None else None, False
            if vote is None:
                def land(p: float, told: bool, k: int = k, key: str = key) -> None:
                    if k == 0 and told and not self.settings.think:
                        write(p)  # all votes would say the same
                    elif self.verdicts is not None:
                        self.verdicts.add([Line(key=key, case=case.id, criterion=case.criterion.name, probability=p,
                                                vote=k)])

                drawn = {"temperature": 1, "seed": int(key[:8], 16) % 2**31}  # some servers take no larger seed
                vote, told = self._vote(case, drawn, land, stop)
            if k == 0 and told and not self.settings.think:
                return vote
            votes.append(vote)
        share = sum(votes) / len(votes)
        write(share)
        return share

    def _vote(self, case: Case, drawn: Mapping[str, Any], land: Callable[[float, bool], None],
              stop: threading.Event) -> tuple[float, bool]:
        """(probability of the first label, whether log-probabilities told it) of one reply that is a verdict.

        land: given the same before the account says that the request is over.
        """
        worded = word(case, longest=self.settings.longest, as_json=True, think=self.settings.think)
        tries, found, last = self.settings.retries + 1, list[tuple[float, bool]](), Reply(None, "", None, None)

        def read(reply: Reply) -> None:
            if (verdict := self._read(reply, worded.labels)) is not None:
                land(*verdict)
                found.append(verdict)

        text = worded.text
        for _ in range(tries):
            last = self.client.ask([Message(role="user", content=text)], {**drawn, **self._options(worded)},
                                   what=f"case {case.id!r}", stop=stop, land=read)
            if found:
                return found[0]
            text = worded.text + REMINDER
        short = last.finish == "length"
        room = "think_tokens" if self.settings.think else "answer_tokens"
        raise TrivetError(
            f"{self.name} gave no verdict on case {case.id!r} in {tries} tries, it said: "
            f"{(last.text or '')[:200]!r}{' … and was cut off' if short else ''}", field=f"{self.field}.model",
            expected=f'{{"verdict": "{worded.labels[0]}"}} or {{"verdict": "{worded.labels[1]}"}}',
            mend=f"raise {self.field}.{room}: the model needs more room before its verdict" if short
            else "take a model that follows such instructions")

    def _read(self, reply: Reply, labels: tuple[str, str]) -> tuple[float, bool] | None:
        verdict = read_verdict(reply.text or "", labels, reasoned=self.settings.think)
        if verdict is None:
            return None
        p = label_probability(reply.logprobs, labels, reasoned=self.settings.think)
        return (float(verdict[0] == labels[0]), False) if p is None else (p, True)

    def _options(self, worded: Worded) -> dict[str, Any]:
        properties: dict[str, Any] = {"reasoning": {"type": "string"}} if self.settings.think else {}
        properties["verdict"] = {"type": "string", "enum": list(worded.labels)}
        schema = {"type": "object", "properties": properties, "required": list(properties),
                  "additionalProperties": False}
        return {"max_tokens": self.settings.answer_tokens + (self.settings.think_tokens if self.settings.think else 0),
                "logprobs": True, "top_logprobs": 20,
                "response_format": {"type": "json_schema",
                                    "json_schema": {"name": "verdict", "strict": True, "schema": schema}}}
