"""A real vLLM server (its CPU build) as the endpoint of a writer and a judge: `make vllm`, then these run."""

from __future__ import annotations

import re

import httpx
import pytest

import peers
from trivet.artifacts import Message
from trivet.config import Device
from trivet.errors import TrivetError
from trivet.generate.config import Sampling, Writing
from trivet.generate.endpoint import Endpoints
from trivet.generate.spending import Requests
from trivet.generate.writing import Ask, make_writer
from trivet.judge.ask import both_orders, make_judge
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import BETTER, HARMFUL
from trivet.models.source import resolve
from trivet.training.device import prepare
from vllm_server import vllm_server

MODEL = "smollm2-135m-instruct"
pytestmark = [pytest.mark.vllm, pytest.mark.real_weights, pytest.mark.timeout(1800),
              pytest.mark.skipif(not peers.available("vllm"), reason="no vLLM here: make vllm")]
QUESTIONS = ["What should I cook tonight?", "Is the moon made of cheese?", "How do I say no politely?",
             "Name three colours.", "Why is the sky blue?", "Write a haiku about rain.",
             "What is the capital of France?", "Give me a tip for better sleep."]
ASKS = [Ask(f"q{i}", (Message(role="user", content=q),)) for i, q in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """In float32, so that what differs from this process is little."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with vllm_server(peers.environment("vllm"), resolve(MODEL).folder, log, "--served-model-name", "small",
                     "--generation-config", "vllm", dtype="float32", context=1024) as running:
        yield running


def succeeded(url: str) -> int:
    """Requests that the server says it answered."""
    found = re.findall(r"^vllm:request_success_total\{.*\} ([\d.e+]+)$", httpx.get(f"{url}/metrics").text, re.M)
    assert found
    return int(sum(map(float, found)))


def test_writer_and_judge_share_a_server_that_counts_as_they_do(server, tmp_path) -> None:
    before, url = succeeded(server.url), f"{server.url}/v1"
    endpoints = Endpoints(tmp_path / "requests.jsonl")
    greedy, hot = Sampling(temperature=0, max_new_tokens=24), Sampling(max_new_tokens=24)
    writer = make_writer(Writing(by=url, model="small"), None, seed=0, folder=tmp_path / "a", field="target",
                         endpoints=endpoints)
    ours = make_writer(Writing(by=MODEL), prepare(Device(device="cpu", precision="float32")), seed=0,
                       folder=tmp_path / "b", field="target")
    found = writer(ASKS, greedy)
    # where two tokens are all but equally likely the order of sums decides: one in eight may differ
    assert sum((a.text, a.ended) == (b.text, b.ended) for a, b in zip(found, ours(ASKS, greedy), strict=True)) >= 7
    drawn = writer(ASKS, hot)
    assert all(w.ended or w.tokens == 24 for w in drawn)
    other = make_writer(Writing(by=url, model="small"), None, seed=0, folder=tmp_path / "c", field="target",
                        endpoints=endpoints)(ASKS, hot)
    assert sum(a == b for a, b in zip(drawn, other, strict=True)) >= 6, "a seed fixes a text, up to its batch"
    assert sum(a != b for a, b in zip(drawn, writer([Ask(a.id, a.messages, 1) for a in ASKS], hot), strict=True)) >= 6

    settings = Judging(by=url, model="small", retries=1)
    judge = make_judge(settings, None, folder=tmp_path / "j", endpoints=endpoints)
    cases = [Case(a.id, a.messages, (w.text or "-", "I do not know."), BETTER)
             for a, w in zip(ASKS, found, strict=True)]
    verdicts = both_orders(judge, cases)
    assert all(0.0 < v.given < 1.0 and 0.0 < v.swapped < 1.0 for v in verdicts), "read from log-probabilities"
    graded = judge([Case(c.id, c.messages, c.answers[:1], HARMFUL) for c in cases])
    assert all(0.0 < p < 1.0 for p in graded)
    account = Requests(tmp_path / "requests.jsonl")
    assert account.of("small").requests == succeeded(server.url) - before == 4 * 8 + 3 * 8
    assert account.of("small").output_tokens > sum(w.tokens or 0 for texts in (found, drawn, other) for w in texts)
    # a second run asks nothing
    make_writer(Writing(by=url, model="small"), None, seed=0, folder=tmp_path / "a", field="target")(ASKS, hot)
    both_orders(make_judge(settings, None, folder=tmp_path / "j"), cases)
    assert succeeded(server.url) - before == 56


def test_stop_strings_and_what_the_context_cannot_hold(server, tmp_path) -> None:
    writer = make_writer(Writing(by=f"{server.url}/v1", model="small"), None, seed=0, folder=tmp_path, field="target")
    (plain,) = writer(ASKS[:1], Sampling(temperature=0, max_new_tokens=24))
    word = plain.text.split()[3]
    (cut,) = writer(ASKS[:1], Sampling(temperature=0, max_new_tokens=24, stop=[word]))
    assert cut.text == plain.text.split(word)[0].strip() and cut.ended
    with pytest.raises(TrivetError, match="can't hold 'long'"):
        writer([Ask("long", (Message(role="user", content="word " * 3000),))], Sampling(max_new_tokens=24))
    with pytest.raises(TrivetError, match="status 404"):
        make_writer(Writing(by=f"{server.url}/v1", model="nobody"), None, seed=0, folder=tmp_path, field="target")(
            ASKS[:1], Sampling(max_new_tokens=4))


def test_votes_where_log_probabilities_are_not_told(server, tmp_path) -> None:
    case = Case("c", ASKS[0].messages, ("Rice with beans.", "No."), BETTER)
    judge = make_judge(Judging(by=f"{server.url}/v1", model="small", votes=5), None, folder=tmp_path)
    judge.judge.client._habits._left_out |= {"logprobs", "top_logprobs"}  # as an endpoint that does not know them
    (share,) = judge([case])
    assert share in [k / 5 for k in range(6)] and len(judge.verdicts) == 6
