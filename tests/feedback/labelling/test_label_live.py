"""Live mode: the labeler writes, the model under test answers K times, the conversation goes on with the best."""

from __future__ import annotations

import json
import threading
import time

import pytest

from trivet.artifacts import Completion, Message
from trivet.config import Device
from trivet.errors import TrivetError
from trivet.feedback.labelling.app import create_app
from trivet.feedback.labelling.live import EndpointModel, LiveJobs, TorchModel, live_model
from trivet.generate.config import Sampling


class Echo:
    """A model that says what it was asked; holds its answers back while `gate` is closed."""

    name = "echo-model"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[list[Message]] = []
        self.fail: Exception | None = None

    def answers(self, messages, n: int, seed: int) -> list[Completion]:
        self.gate.wait(10)
        self.asked.append(list(messages))
        if self.fail is not None:
            raise self.fail
        return [Completion(id=f"live/{j}", text=f"echo {j} of {messages[-1].content}", model=self.name)
                for j in range(n)]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def live_app(store, echo):
    return create_app(store, live=echo, answers=3)


def wait_for(one, path: str) -> str:
    """Follow the waiting page until it leads on; where to."""
    if not path.startswith("/live/wait/"):
        return path  # it had answered before the page was asked for
    for _ in range(200):
        if one.client.get(f"{path}/state").json()["state"] in {"done", "failed"}:
            return one.get(path).url.path
        time.sleep(0.02)
    raise AssertionError("the model never answered")


def test_turn_by_turn(store, echo, live_app, visitor, ids) -> None:
    bo = visitor("Bo", live_app)
    assert "Begin a conversation" in bo.get("/live").text
    page = bo.post("/live", {"text": "  hello\r\nmodel "})
    place = wait_for(bo, page.url.path)
    assert place.startswith("/label/")
    assert "echo-model" not in bo.page, "blind"
    first = bo.assignment_id()
    given = store.assignment(first, ids["Bo"])
    assert given is not None and given.purpose == "live" and given.messages[-1].content == "hello\nmodel"
    answer = bo.rank("2", "1", "2")
    assert answer.url.path == f"/live/{first}/next"
    best = given.completions[given.shown_order[1]]
    assert best.text.split("\n")[0] in answer.text
    page = bo.post(f"/live/{first}/next", {"text": "and then?"})
    wait_for(bo, page.url.path)
    assert [m.role for m in echo.asked[-1]] == ["user", "assistant", "user"]
    assert echo.asked[-1][1].content == best.text and echo.asked[-1][2].content == "and then?"
    bo.rank("1", "2", "3")
    rows = store.rankings(include=("live",))
    assert [len(r.messages) for r in rows] == [1, 3] and {r.labeler for r in rows} == {"Bo"}
    assert sorted(r for r in rows[0].ranks) == [1, 2, 2]


def test_a_tie_at_the_top_is_the_labelers_choice(store, echo, live_app, visitor, ids) -> None:
    bo = visitor("Bo", live_app)
    wait_for(bo, _begin(bo, "hi"))
    mine = bo.assignment_id()
    page = bo.rank("1", "F", "1").text
    given = store.assignment(mine, ids["Bo"])
    assert given is not None and page.count('name="best"') == 2
    chosen = given.shown_order[2]
    answer = bo.post(f"/live/{mine}/next", {"text": "more", "best": str(chosen)})
    wait_for(bo, answer.url.path)
    assert echo.asked[-1][1].content == given.completions[chosen].text
    # an answer that was not among the best is not taken
    mine = bo.assignment_id()
    bo.rank("1", "2", "3")
    given = store.assignment(mine, ids["Bo"])
    assert given is not None
    answer = bo.post(f"/live/{mine}/next", {"text": "more", "best": str(given.shown_order[2])})
    wait_for(bo, answer.url.path)
    assert echo.asked[-1][-2].content == given.completions[given.shown_order[0]].text


def _begin(bo, text: str) -> str:
    bo.get("/live")
    return bo.post("/live", {"text": text}).url.path


def test_when_all_fail_it_ends(live_app, visitor) -> None:
    bo = visitor("Bo", live_app)
    wait_for(bo, _begin(bo, "hi"))
    mine = bo.assignment_id()
    assert "No answer was good enough" in bo.rank("F", "F", "F").text
    bo.get("/live")
    assert bo.post(f"/live/{mine}/next", {"text": "go on"}).status_code == 422


def test_one_turn_at_a_time_and_only_ones_own(echo, live_app, visitor) -> None:
    echo.gate.clear()
    bo, cy = visitor("Bo", live_app), visitor("Cy", live_app)
    first = _begin(bo, "one")
    assert _begin(bo, "two") == first, "a second turn of the same labeler waits for the first"
    second = _begin(cy, "three")
    assert cy.get(second).status_code == 200 and "1 before you" in cy.page
    assert cy.client.get(f"{second}/state").json() == {"state": "waiting", "ahead": 1}
    assert cy.get(first).status_code == 404
    assert cy.client.get(f"{first}/state").json() == {"state": "gone"}
    echo.gate.set()
    wait_for(cy, second)
    assert [m[-1].content for m in echo.asked] == ["one", "three"]


@pytest.mark.parametrize("error", [TrivetError("too long", mend="shorten it"), RuntimeError("kaputt")])
def test_a_model_that_fails_is_said_and_the_next_turn_works(echo, live_app, visitor, error, capsys) -> None:
    bo = visitor("Bo", live_app)
    echo.fail = error
    wait_for(bo, _begin(bo, "my <b>text</b>"))
    assert ("too long" in bo.page or "kaputt" in bo.page) and "my &lt;b&gt;text&lt;/b&gt;" in bo.page
    echo.fail = None
    assert wait_for(bo, _begin(bo, "again")).startswith("/label/")


def test_nothing_is_sent_for_nothing(live_app, visitor, echo) -> None:
    bo = visitor("Bo", live_app)
    bo.get("/live")
    assert bo.post("/live", {"text": " \n "}).status_code == 422
    assert echo.asked == []


def test_live_is_off_without_a_model(app, visitor) -> None:
    bo = visitor("Bo")
    assert bo.get("/live").status_code == 404
    assert 'href="/live"' not in bo.get("/label").text


def test_stopping_leaves_the_queue() -> None:
    echo, added = Echo(), []
    echo.gate.clear()
    jobs = LiveJobs(echo, 2, lambda *a: added.append(a) or 1)
    jobs.start(1, [Message(role="user", content="x")], None)
    jobs.start(2, [Message(role="user", content="y")], None)
    jobs.stop()
    echo.gate.set()
    assert jobs._thread is not None
    jobs._thread.join(5)
    assert not jobs._thread.is_alive() and added == []


def test_old_jobs_are_forgotten() -> None:
    echo = Echo()
    jobs = LiveJobs(echo, 2, lambda *_: 1)
    jobs.KEPT = 3
    for n in range(8):
        job = jobs.start(n, [Message(role="user", content="x")], None)
        while job.state != "done":
            time.sleep(0.005)
    assert len(jobs._jobs) <= 4
    jobs.stop()


def test_a_model_in_this_process(tiny_model_folder) -> None:
    model = live_model(str(tiny_model_folder), None, Sampling(max_new_tokens=6), Device(device="cpu"))
    assert isinstance(model, TorchModel) and model._loaded is None, "loaded with the first turn"
    messages = [Message(role="user", content="What should I cook tonight?")]
    one, two = model.answers(messages, 3, 7), model.answers(messages, 3, 7)
    assert len(one) == 3 and [c.text for c in one] == [c.text for c in two]
    assert one[0].sampling is not None and one[0].sampling["seed"] == 7 and one[0].model == str(tiny_model_folder)
    with pytest.raises(TrivetError, match="context"):
        model.answers([Message(role="user", content="word " * 400)], 2, 1)


class TestEndpoint:
    def make(self, handler, name: str | None = "m", **sampling):
        import httpx

        return EndpointModel("http://host/v1/", name, Sampling(max_new_tokens=9, **sampling),
                             transport=httpx.MockTransport(handler))

    def test_asks_in_the_usual_form(self, monkeypatch) -> None:
        import httpx

        monkeypatch.setenv("TRIVET_API_KEY", "k")
        seen = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append((request.url.path, request.headers.get("authorization"),
                         json.loads(request.content) if request.content else None))
            if request.url.path == "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "the-model"}]})
            return httpx.Response(200, json={"choices": [
                {"message": {"content": f"a{len(seen)}"}, "finish_reason": "stop" if len(seen) % 2 else "length"}]})

        found = self.make(answer, None, temperature=0.5).answers([Message(role="user", content="q")], 3, 11)
        assert [c.text for c in found] == ["a2", "a3", "a4"], "asked again where the endpoint gives one at a time"
        assert [c.ended for c in found] == [False, True, False] and {c.model for c in found} == {"the-model"}
        path, key, body = seen[1]
        assert (path, key) == ("/v1/chat/completions", "Bearer k")
        assert body == {"model": "the-model", "messages": [{"role": "user", "content": "q"}], "n": 3,
                        "temperature": 0.5, "top_p": 1.0, "max_tokens": 9, "seed": 11}
        assert len({c.id for c in found}) == 3

    @pytest.mark.parametrize(("status", "content", "told"), [
        (500, "boom", "500"), (401, "who", "401"), (200, "[]", "no JSON object"), (200, "<html>", "no JSON object"),
        (200, "{}", "without choices"), (200, '{"choices": [{"message": {}}]}', "answer"),
    ])
    def test_faults_are_told_in_words(self, status, content, told) -> None:
        import httpx

        with pytest.raises(TrivetError, match=told):
            self.make(lambda _: httpx.Response(status, text=content)).answers([Message(role="user", content="q")], 2, 1)

    def test_out_of_reach(self) -> None:
        import httpx

        def dead(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        with pytest.raises(TrivetError, match="does not answer"):
            self.make(dead).answers([Message(role="user", content="q")], 2, 1)
        with pytest.raises(TrivetError, match="top-k"):
            self.make(dead, top_k=4)
