"""The engine behind a vLLM server, against a stand-in that fails as it is told to."""

from __future__ import annotations

import threading

import pytest
import torch

from trivet.errors import TrivetError
from trivet.generate.config import VLLM, Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.generate.vllm_engine import VLLMEngine, request_seed
from trivet.generate.vllm_server import Away, Server, ServerLost
from trivet.models.source import load_causal_lm, resolve
from vllm_stand_in import Fault, StandIn

PROMPTS = [[7, 9, 11], [20, 21], [5, 6, 7, 8], [30]]
STOPS = frozenset({1, 40, 41, 42})
HOT = Sampling(temperature=0.7, max_new_tokens=12)


@pytest.fixture
def server(tiny_model_folder):
    with StandIn(tiny_model_folder) as found:
        yield found


def engine(server: StandIn, returned=None, progress=None, **settings) -> VLLMEngine:
    return VLLMEngine(Server(server.url, VLLM(**settings)), server.root, STOPS, returned=returned, progress=progress)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("trivet.generate.vllm_engine.FIRST_PAUSE", 0.01)


def test_token_ids_both_ways_and_log_probabilities_at_the_temperature(server, tiny_model_folder) -> None:
    done: list[int] = []
    groups = engine(server, progress=done.append).generate(PROMPTS, HOT, n=3, seeds=[1, 2, 3, 4])
    assert [len(g) for g in groups] == [3] * 4 and sum(done) == 12
    assert sorted(r["prompt"] for r in server.requests) == sorted(PROMPTS)
    for group in groups:
        assert len({a.token_ids for a in group}) > 1, "answers to one prompt have seeds of their own"
        for a in group:
            assert a.ended == (a.token_ids[-1] in STOPS)
            assert a.ended or len(a.token_ids) == 12
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    ours = TorchEngine(model, 0, STOPS).score(PROMPTS, [g[0].token_ids for g in groups], 0.7)
    for group, theirs in zip(groups, ours, strict=True):
        assert group[0].logps == pytest.approx(theirs, abs=1e-4)


def test_an_answer_depends_on_its_seed_alone(server) -> None:
    one = engine(server, in_flight=1).generate(PROMPTS, HOT, n=2, seeds=[1, 2, 3, 4])
    many = engine(server, in_flight=8).generate(PROMPTS[::-1], HOT, n=2, seeds=[4, 3, 2, 1])[::-1]
    assert [[a.token_ids for a in g] for g in one] == [[a.token_ids for a in g] for g in many]
    assert engine(server).generate(PROMPTS, HOT, n=2, seeds=[5, 6, 7, 8]) != one


def test_the_servers_own_defaults_are_overruled(server) -> None:
    """vLLM samples by the model's generation_config.json where a request says nothing."""
    engine(server).generate(PROMPTS[:1], HOT, n=1, seeds=[0])
    sent = server.requests[0]
    assert {k: sent[k] for k in ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
                                 "frequency_penalty", "ignore_eos", "stop_token_ids")} == {
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": sorted(STOPS)}


def test_greedy_equals_the_engine_here(server, tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    ours = TorchEngine(model, 0, STOPS).generate(PROMPTS, greedy, n=2, seeds=[0] * 4)
    assert engine(server).generate(PROMPTS, greedy, n=2, seeds=[0] * 4) == ours


def test_requests_in_flight_are_bounded(tiny_model_folder) -> None:
    with StandIn(tiny_model_folder, work=0.2) as server:
        engine(server, in_flight=3).generate([[i + 2] for i in range(12)], HOT, n=1, seeds=range(12))
        assert server.most == 3


def test_what_may_pass_is_sent_again(server) -> None:
    whole = engine(server).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    server.faults = [Fault(500), Fault(drop=True), None, Fault(503), Fault(429), Fault(drop=True)]
    again = engine(server, in_flight=2).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    assert again == whole and not server.faults


def test_after_a_breakdown_only_the_rest_is_asked_again(server) -> None:
    whole = engine(server).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    server.requests.clear()
    server.before = lambda number: server.die() if number == 3 else None
    reasons: list[str] = []

    def returned(reason: str) -> None:
        reasons.append(reason)
        server.before = None
        server.rise()

    found = engine(server, returned, in_flight=1, retries=1).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    assert found == whole
    assert [r["prompt"] for r in server.requests] == [*PROMPTS[:3], *PROMPTS[2:]]
    assert len(reasons) == 1 and "no connection" in reasons[0]


def test_a_server_that_is_there_and_never_answers_is_given_up(server) -> None:
    server.faults = [Fault(500)] * 50
    with pytest.raises(ServerLost, match="is there, but does not answer"):
        engine(server, lambda reason: None, in_flight=1, retries=1).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    assert len(server.requests) == 4


def test_a_name_that_the_server_does_not_know_is_not_asked_for_twice(server) -> None:
    found = VLLMEngine(Server(server.url, VLLM()), "nobody", STOPS)
    with pytest.raises(Away, match="does not know"):
        found.generate(PROMPTS[:1], HOT, n=1, seeds=[1])
    assert len(server.requests) == 1


def test_requests_in_flight_are_waited_for_after_a_failure(server) -> None:
    """No answer of these weights is left behind in the server when the caller goes on."""
    gate = threading.Event()
    server.before = lambda number: gate.wait(0.3) if number > 1 else None
    server.faults = [Fault(500)]
    with pytest.raises(Away):
        engine(server, in_flight=4, retries=0).generate(PROMPTS, HOT, n=1, seeds=[1, 2, 3, 4])
    assert server._now == 0


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c[0].update(token_ids=None), "token ids"),
    (lambda c: c[0].update(logprobs=None), "token ids"),
    (lambda c: c[0]["logprobs"].update(token_logprobs=[-1.0]), "token ids"),
    (lambda c: c[0].update(prompt_token_ids=[7, 9, 11, 1]), "changed a prompt"),
    (lambda c: c.clear(), "something else"),
    (lambda c: c[0].update(token_ids=[7, 9], logprobs={"token_logprobs": [-1.0, -1.0]}), "ended an answer after 2"),
])
def test_answers_of_another_form_are_refused(server, change, words) -> None:
    server.faults = [Fault(change=change)]
    with pytest.raises(TrivetError, match=words):
        engine(server).generate(PROMPTS[:1], HOT, n=1, seeds=[1])


def test_a_broken_off_answer_is_asked_for_again(server) -> None:
    server.faults = [Fault(change=lambda c: c[0].update(finish_reason="abort"))]
    assert len(engine(server).generate(PROMPTS[:1], HOT, n=1, seeds=[1])[0]) == 1
    assert len(server.requests) == 2


def test_neighbouring_seeds_are_far_apart() -> None:
    """vLLM gives child j the seed plus j: seeds 1 and 2 with four answers each would share three."""
    seeds = [request_seed(s) for s in range(50)]
    assert min(abs(a - b) for i, a in enumerate(seeds) for b in seeds[:i]) > 1_000_000
    assert max(seeds) < 2**62


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "http://a:port"])
def test_no_address(url) -> None:
    with pytest.raises(TrivetError, match="no address"):
        Server(url, VLLM())


def test_what_it_lacks_it_says(server) -> None:
    found = engine(server)
    assert found.capabilities.logps and not found.capabilities.score
    with pytest.raises(TrivetError, match="score in this process"):
        found.score(PROMPTS, PROMPTS, 0.7)
    with pytest.raises(TrivetError, match="no tokens"):
        found.generate([[]], HOT, n=1, seeds=[0])
    with pytest.raises(TrivetError, match="stop strings"):
        found.generate(PROMPTS[:1], HOT.model_copy(update={"stop": ["."]}), n=1, seeds=[0])


def test_the_base_of_the_address_may_end_in_v1(server) -> None:
    assert Server(server.url + "/v1/", VLLM()).card().model == server.root


def test_the_key_is_sent_and_its_absence_said(tiny_model_folder, monkeypatch) -> None:
    import http.server

    seen: list[str | None] = []

    class Locked(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as locked:
        threading.Thread(target=locked.serve_forever, daemon=True).start()
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        with pytest.raises(TrivetError, match="VLLM_API_KEY"):
            Server(f"http://127.0.0.1:{locked.server_port}", VLLM()).card()
        locked.shutdown()
    assert seen == ["Bearer secret"]
