"""A small client of the labelling API, for AI labelers and other programs.

    with LabelClient("http://127.0.0.1:8000", token) as client:
        client.label(lambda item: Verdict(ranks=my_ranks(item.messages, item.answers)))

A request that got no answer is sent again with the same request id, so that nothing is saved twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import httpx

from trivet.artifacts import Completions, Message, Ranking, atomic_write
from trivet.errors import TrivetError


class LabelError(TrivetError):
    """What the server said no to; `status` is the HTTP status."""

    def __init__(self, status: int, what: str, mend: str) -> None:
        super().__init__(what, mend=mend)
        self.status = status


@dataclass(frozen=True)
class Item:
    """An item to rank: the conversation, and the answers in the order in which they are shown to this labeler."""

    id: int
    prompt_id: str
    purpose: str
    messages: list[Message]
    answers: list[str]
    ranks: list[int | None] | None


@dataclass(frozen=True)
class Verdict:
    """A judgment: one rank for each answer as shown (1 best, equal is a tie, None is F)."""

    ranks: Sequence[int | None]
    note: str | None = None
    ratings: Sequence[dict[str, int]] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Skip:
    """An item left to others, with the reason."""

    reason: str


@dataclass
class LabelClient:
    """The API with a token. Raises LabelError where the server refuses, TrivetError where it can't be reached."""

    url: str
    token: str = field(repr=False)
    timeout: float = 60.0
    tries: int = 6
    """How often an unanswered request is sent, with growing pauses (1, 2, 4, … s)."""
    transport: httpx.BaseTransport | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url.rstrip("/") + "/api/v1", timeout=self.timeout,
                                  headers={"Authorization": f"Bearer {self.token}"}, transport=self.transport)

    def __enter__(self) -> LabelClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(min(30.0, 2.0 ** (attempt - 1)))
            try:
                response = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if response.status_code in {502, 503, 504}:
                reason = f"it answered {response.status_code}"
                continue
            if response.is_success:
                return response
            try:
                told = response.json()
                what, mend = str(told["error"]), str(told["mend"])
            except (ValueError, KeyError, TypeError):
                what, mend = f"the server answered {response.status_code}", "look at its log"
            raise LabelError(response.status_code, what, mend or "see the API page")
        raise TrivetError(f"{self.url} does not answer ({reason})", mend="check the address and that it runs")

    # --- labelling -----------------------------------------------------------------------------------

    def me(self) -> dict[str, Any]:
        """Whose token this is."""
        return dict(self._call("GET", "/me").json())

    def instructions(self) -> str:
        """What labelers are told, in Markdown."""
        return str(self._call("GET", "/instructions").json()["instructions"])

    def next(self) -> Item | None:
        """The next item to rank; None when there is nothing to do."""
        response = self._call("POST", "/assignments/next")
        return None if response.status_code == 204 else _item(response.json())

    def submit(self, item: Item | int, ranks: Sequence[int | None], *, note: str | None = None,
               ratings: Sequence[dict[str, int]] | None = None, seconds: float = 0.0,
               request_id: str | None = None) -> dict[str, Any]:
        """Rank an item. When this returns, the judgment is stored for good."""
        return self._judge("POST", item, Verdict(ranks, note, ratings, seconds), request_id)

    def edit(self, item: Item | int, ranks: Sequence[int | None], *, note: str | None = None,
             ratings: Sequence[dict[str, int]] | None = None, seconds: float = 0.0,
             request_id: str | None = None) -> dict[str, Any]:
        """Change a judgment; the earlier one stays in the audit trail."""
        return self._judge("PUT", item, Verdict(ranks, note, ratings, seconds), request_id)

    def _judge(self, method: str, item: Item | int, verdict: Verdict, request_id: str | None) -> dict[str, Any]:
        body = {"ranks": list(verdict.ranks), "note": verdict.note, "seconds": verdict.seconds or 0.0,
                "ratings": None if verdict.ratings is None else list(verdict.ratings),
                "request_id": request_id or secrets.token_urlsafe(12)}
        return dict(self._call(method, f"/assignments/{_id(item)}/judgment", body).json())

    def skip(self, item: Item | int, reason: str, request_id: str | None = None) -> dict[str, Any]:
        """Leave an item to others."""
        body = {"reason": reason, "request_id": request_id or secrets.token_urlsafe(12)}
        return dict(self._call("POST", f"/assignments/{_id(item)}/skip", body).json())

    def undo(self, request_id: str | None = None) -> Item | None:
        """Take the newest judgment back; its item, or None where there was none."""
        response = self._call("POST", "/undo", {"request_id": request_id or secrets.token_urlsafe(12)})
        return None if response.status_code == 204 else _item(response.json())

    def history(self, limit: int = 50, before: int | None = None) -> list[dict[str, Any]]:
        """One's own judgments, newest first."""
        query = f"?limit={limit}" + ("" if before is None else f"&before={before}")
        return list(self._call("GET", f"/history{query}").json())

    def label(self, judge: Callable[[Item], Verdict | Skip], limit: int | None = None) -> int:
        """Rank all there is to rank (or `limit` items) with a function; how many were done.

        An item that others have finished in the meantime is passed over.
        """
        done = 0
        while limit is None or done < limit:
            item = self.next()
            if item is None:
                break
            start = time.monotonic()
            verdict = judge(item)
            try:
                if isinstance(verdict, Skip):
                    self.skip(item, verdict.reason)
                else:
                    spent = time.monotonic() - start if verdict.seconds is None else verdict.seconds
                    self.submit(item, verdict.ranks, note=verdict.note, ratings=verdict.ratings, seconds=spent)
            except LabelError as error:
                if error.status != 409:
                    raise
                continue
            done += 1
        return done

    # --- administration ------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """How far the project is."""
        return dict(self._call("GET", "/progress").json())

    def labelers(self) -> list[dict[str, Any]]:
        """Each labeler's counts."""
        return list(self._call("GET", "/labelers").json())

    def agreement(self) -> dict[str, Any]:
        """How far labelers agree."""
        return dict(self._call("GET", "/agreement").json())

    def add_completions(self, rows: Iterable[Completions], round: int = 1) -> dict[str, int]:
        """Add items to rank."""
        body = {"rows": [r.model_dump(mode="json") for r in rows], "round": round}
        return dict(self._call("POST", "/completions", body).json())

    def add_gold(self, rows: Iterable[Ranking]) -> dict[str, int]:
        """Add items whose right ranks are known."""
        return dict(self._call("POST", "/gold", {"rows": [r.model_dump(mode="json") for r in rows]}).json())

    def add_ai_labeler(self, name: str) -> str:
        """An account for a program; its token."""
        return str(self._call("POST", "/users", {"name": name, "kind": "ai"}).json()["token"])

    def invite(self, role: Literal["labeler", "admin"] = "labeler", name: str | None = None) -> str:
        """An invitation link."""
        return str(self._call("POST", "/invitations", {"role": role, "name": name}).json()["url"])

    def change_settings(self, **changes: Any) -> dict[str, Any]:
        """Change the project's settings; all of them, as they are then."""
        return dict(self._call("PATCH", "/settings", changes).json())

    def export(self, path: str | Path,
               format: Literal["rankings", "preference", "argilla", "label_studio"] = "rankings") -> Path:
        """Write the current judgments to a file, atomically."""
        response = self._call("GET", f"/export/{format}")
        with atomic_write(path, "wb") as file:
            file.write(response.content)
        return Path(path)


def _item(value: dict[str, Any]) -> Item:
    return Item(value["id"], value["prompt_id"], value["purpose"], [Message(**m) for m in value["messages"]],
                [a["text"] for a in value["answers"]], value["ranks"])


def _id(item: Item | int) -> int:
    return item if isinstance(item, int) else item.id
