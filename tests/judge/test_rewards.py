"""Rewards of every kind: functions, endpoints, sums; what they give is checked."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.judge.base import Sample
from trivet.judge.maths import exact_answer, final_number
from trivet.judge.rewards import HTTPReward, call, load_function, make_reward, parse_terms


def sample(completion: str, reference: str | None = None) -> Sample:
    return Sample("s", (Message(role="user", content="How many?"),), completion, reference)


@pytest.fixture
def endpoint():
    """A scoring server on 127.0.0.1 that fails as often as it is told."""
    state = {"fail": 0, "answer": None, "requests": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["requests"].append(body)
            if state["fail"] > 0:
                state["fail"] -= 1
                self.send_response(503)
                self.end_headers()
                return
            answer = state["answer"] or {"scores": [len(s["completion"]) for s in body["samples"]]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/score", state
    server.shutdown()
    server.server_close()


def test_http_reward_gets_what_a_sample_carries(endpoint) -> None:
    url, state = endpoint
    assert HTTPReward(url)([sample("abc", "3"), sample("")]) == [3.0, 0.0]
    assert state["requests"][0]["samples"][0] == {
        "id": "s", "messages": [{"role": "user", "content": "How many?"}], "completion": "abc", "reference": "3",
        "tags": []}


def test_http_reward_retries_and_then_says_so(endpoint) -> None:
    url, state = endpoint
    state["fail"] = 2
    assert HTTPReward(url, backoff=0.01)([sample("ab")]) == [2.0]
    assert len(state["requests"]) == 3
    state["fail"] = 99
    with pytest.raises(TrivetError, match=r"after 3 tries \(status 503\)"):
        HTTPReward(url, retries=2, backoff=0.01)([sample("ab")])


def test_http_nonsense_is_shown(endpoint) -> None:
    url, state = endpoint
    state["answer"] = {"points": [1]}
    with pytest.raises(TrivetError, match="points"):
        HTTPReward(url)([sample("ab")])


def test_a_weighted_sum() -> None:
    reward = make_reward(parse_terms(["2*a.b:c", "0.5*trivet.judge.maths:exact_answer"])[1:], lambda spec: None)
    assert reward([sample("it is 3", "3"), sample("it is 4", "3")]) == [0.5, 0.0]
    assert [(t.weight, t.kind) for t in parse_terms(["0.7*runs/x", "mine:f", "http://h/s"])] == [
        (0.7, "model"), (1.0, "function"), (1.0, "http")]


@pytest.mark.parametrize(("given", "words"), [
    ([1.0], "1 scores for 2 samples"), ([1.0, float("nan")], "gave nan"), (["a", "b"], "not a sequence of numbers"),
    (None, "not a sequence of numbers"),
])
def test_what_a_reward_gives_is_checked(given, words) -> None:
    with pytest.raises(TrivetError, match=words):
        call(lambda samples: given, [sample("a"), sample("b")], "mine:f")


def test_functions_that_are_not_there() -> None:
    with pytest.raises(TrivetError, match="can't be imported"):
        load_function("no_such_module_here:f")
    with pytest.raises(TrivetError, match="can't be imported"):
        load_function("trivet.judge.maths:nothing")
    with pytest.raises(TrivetError, match="no function"):
        load_function("trivet.judge.maths:__doc__")


@pytest.mark.parametrize(("text", "number"), [
    ("so 3 + 4 = 7", 7), ("#### 1,200", 1200), ("It is 2.50.", 2.5), ("-3", -3), ("#### 5 and then 9", 5),
    ("no number", None),
])
def test_final_number(text, number) -> None:
    assert final_number(text) == number


def test_exact_answer_needs_a_reference() -> None:
    assert exact_answer([sample("7.0", "7")]) == [1.0]
    with pytest.raises(TrivetError, match="no known answer"):
        exact_answer([sample("7")])


@pytest.mark.parametrize("prompts", [5, 1])
def test_answers_to_one_prompt_are_dealt_together(monkeypatch, prompts) -> None:
    """Unless there are fewer prompts than ranks."""
    from trivet.training import ranks

    samples = [Sample(f"{p}/{a}", (Message(role="user", content=f"What is {p}?"),), f"{p}{a}")
               for p in range(prompts) for a in range(4)]
    reward = make_reward(parse_terms(["some/model"]), lambda spec: lambda given: [float(s.completion) for s in given])
    shares = []
    for rank in range(2):
        place = ranks.Ranks()
        place.rank, place.world = rank, 2
        monkeypatch.setattr(place, "gather", lambda share: shares.append(share) or share)
        monkeypatch.setattr(ranks, "_here", place)
        reward(samples)
    if prompts == 5:
        assert shares == [[[10.0 * p + a for a in range(4)] for p in of] for of in ([0, 2, 4], [1, 3])]
    else:
        assert shares == [[[0.0], [2.0]], [[1.0], [3.0]]]
