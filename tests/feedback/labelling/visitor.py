"""Visitors that use the labelling app as a browser does, and items to rank."""

from __future__ import annotations

import html
import re
from typing import Any

from starlette.testclient import TestClient

from trivet.artifacts import Completion, Completions, Message
from trivet.feedback.store import Assignment

PASSWORD = "four words in a row"


def item(number: int, answers: int = 4, **texts: str) -> Completions:
    """A prompt with answers whose text says where in the file they stand."""
    return Completions(
        id=f"p{number}", messages=[Message(role="user", content=texts.get("prompt", f"Question number {number}?"))],
        completions=[Completion(id=f"p{number}/secret{j}", text=texts.get(f"text{j}", f"answer-{number}-{j}"),
                                model="secret-model", sampling={"temperature": 0.7}) for j in range(answers)])


class Visitor:
    """A browser without a script: follows redirects, keeps cookies, sends forms with the fields the page had."""

    def __init__(self, app: Any, url: str = "http://label.test") -> None:
        self.client = TestClient(app, base_url=url, raise_server_exceptions=False)
        self.page = ""

    def get(self, path: str, **more: Any) -> Any:
        response = self.client.get(path, **more)
        self.page = response.text
        return response

    @property
    def hidden(self) -> dict[str, str]:
        """The hidden fields of the last page's main form."""
        return {name: html.unescape(value) for name, value in re.findall(
            r'<input type="hidden" name="(\w+)" value="([^"]*)"', self.page)}

    def post(self, path: str, data: dict[str, str] | None = None, **more: Any) -> Any:
        response = self.client.post(path, data=self.hidden | (data or {}), **more)
        self.page = response.text
        return response

    def sign_in(self, name: str, password: str = PASSWORD) -> Any:
        self.get("/sign-in")
        return self.post("/sign-in", {"name": name, "password": password})

    def assignment_id(self) -> int:
        """Of the item page that is open."""
        found = re.search(r'data-assignment="(\d+)"', self.page)
        assert found, self.page[:2000]
        return int(found[1])

    def rank(self, *ranks: str, **more: str) -> Any:
        """Submit the open item with ranks in the order shown."""
        return self.post(f"/label/{self.assignment_id()}", {f"rank-{i}": r for i, r in enumerate(ranks)} | more)


def shown_texts(assignment: Assignment) -> list[str]:
    return [assignment.completions[p].text for p in assignment.shown_order]
