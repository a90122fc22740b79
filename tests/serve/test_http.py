"""`trivet serve` over HTTP, by the clients that people use: OpenAI's, Hugging Face's, curl; and what it refuses."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from served import Running, serving

QUESTION = [{"role": "user", "content": "What should I cook tonight?"}]


@pytest.fixture(scope="module")
def server(tiny_model_folder: Path) -> Iterator[Running]:
    with serving(tiny_model_folder, "--model-name", "tiny", "--pal", "--width", "4",
                 "--most-bytes", "20000") as running:
        yield running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny", "tiny:programs", "tiny:auto"]
    assert client.models.retrieve("tiny:auto").id == "tiny:auto"
    with pytest.raises(openai.NotFoundError, match="there is no model 'huge' here"):
        client.chat.completions.create(model="huge", messages=QUESTION)


def test_a_chat_whole_and_streamed_is_the_same_for_a_seed(client: openai.OpenAI) -> None:
    settings = dict(model="tiny", messages=QUESTION, seed=7, max_tokens=24, temperature=1.0)
    whole = client.chat.completions.create(**settings)
    text = whole.choices[0].message.content
    assert text and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.completion_tokens <= 24 and whole.usage.prompt_tokens > 5
    pieces, usage, reasons = [], None, []
    with client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                reasons += [choice.finish_reason] if choice.finish_reason else []
    assert "".join(pieces) == text and len(pieces) > 3
    assert reasons == [whole.choices[0].finish_reason] and usage == whole.usage
    assert client.chat.completions.create(**settings | {"seed": 8}).choices[0].message.content != text


def test_several_answers_stops_and_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="tiny", messages=QUESTION, n=3, seed=1, max_tokens=8, temperature=1.0,
                                           logprobs=True, top_logprobs=2)
    assert len({c.message.content for c in found.choices}) == 3 and [c.index for c in found.choices] == [0, 1, 2]
    for choice in found.choices:
        tokens = choice.logprobs.content
        assert "".join(t.token for t in tokens) == choice.message.content or "�" in str(tokens)
        assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens)
        assert all(t.top_logprobs[0].logprob >= t.logprob - 1e-6 for t in tokens)
    whole = found.choices[0].message.content
    stop = whole[2:4]
    stopped = client.chat.completions.create(model="tiny", messages=QUESTION, n=3, seed=1, max_tokens=8,
                                             temperature=1.0, stop=[stop])
    assert stopped.choices[0].message.content == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_plain_completions(client: openai.OpenAI, server: Running) -> None:
    found = client.completions.create(model="tiny", prompt=["Count to", "Is the moon"], n=2, seed=3, max_tokens=6,
                                      logprobs=1, temperature=1.0)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    assert all(len(c.logprobs.tokens) == len(c.logprobs.token_logprobs) > 0 for c in found.choices)
    echoed = client.completions.create(model="tiny", prompt="Count to", seed=3, max_tokens=6, echo=True)
    assert echoed.choices[0].text.startswith("Count to")
    streamed = client.completions.create(model="tiny", prompt="Count to", seed=3, max_tokens=6, stream=True)
    assert "Count to" + "".join(c.choices[0].text for c in streamed if c.choices) == echoed.choices[0].text
    ids = server.post("/v1/completions", {"model": "tiny", "prompt": [40, 41, 42], "max_tokens": 2})
    assert ids.status_code == 200 and ids.json()["usage"]["prompt_tokens"] == 3
    bad = server.post("/v1/completions", {"model": "tiny", "prompt": [40, 10**6], "max_tokens": 2})
    assert bad.status_code == 400 and "vocabulary" in bad.json()["error"]["message"]


def test_the_hub_client_speaks_to_it(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it refuses this machine, too, else
    hub = InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    whole = hub.chat_completion(QUESTION, model="tiny", seed=5, max_tokens=12, temperature=1.0)
    streamed = hub.chat_completion(QUESTION, model="tiny", seed=5, max_tokens=12, temperature=1.0, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == whole.choices[0].message.content


def test_curl_sees_server_sent_events(server: Running) -> None:
    said = subprocess.run(
        ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d",
         json.dumps({"model": "tiny", "messages": QUESTION, "max_tokens": 4, "stream": True})],
        capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.startswith("data: {") and said.endswith("data: [DONE]\n\n")


def test_ways_answer_and_tell_their_steps(server: Running) -> None:
    body = {"model": "tiny:programs", "messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 16,
            "seed": 1}
    whole = server.post("/v1/chat/completions", body).json()
    assert "error" in whole or whole["trivet"]["fell_back"], "a random model writes no program"
    chunks = [json.loads(line[6:]) for line in server.post(
        "/v1/chat/completions", body | {"stream": True, "steps": True}).text.splitlines()
        if line.startswith("data: {")]
    steps = [c["trivet"]["step"]["kind"] for c in chunks if "step" in c.get("trivet", {})]
    assert "note" in steps or "program" in steps or "error" in chunks[-1]
    for name, value in (("n", 2), ("logprobs", True)):
        refused = server.post("/v1/chat/completions", body | {name: value})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == name


@pytest.mark.parametrize(("change", "status", "param"), [
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
    ({"temperature": -1}, 400, "temperature"),
    ({"logit_bias": {"5": 3}}, 400, "logit_bias"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    ({"stop": [""]}, 400, "stop"),
    ({"max_tokens": 100_000}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 500}]}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, 413, None),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, 400, "messages.0.tool_call_id"),
])
def test_what_is_refused_says_which_field(server: Running, change: dict, status: int, param: str | None) -> None:
    answer = server.post("/v1/chat/completions", {"model": "tiny", "messages": QUESTION} | change)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["message"]


def test_harmless_settings_are_left_out(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="tiny", messages=[{"role": "developer", "content": "Be brief."}, *QUESTION], max_completion_tokens=3,
        frequency_penalty=0, presence_penalty=0, user="u", store=False, response_format={"type": "text"}, logit_bias={})
    assert found.usage.completion_tokens <= 3


def test_bodies_that_are_none(server: Running) -> None:
    for content, kind, status in ((b"{", "application/json", 400), (b"[1]", "application/json", 400),
                                  (b"{}", "text/plain", 415), (b"[" * 15_000, "application/json", 400)):
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status and answer.json()["error"]["message"], answer.text
    assert server.get("/v1/nothing").status_code == 404
    foreign = server.get("/v1/models", headers={"Host": "evil.example"})
    assert foreign.status_code == 421 and "not asked for under that name" in foreign.text


def test_a_client_that_leaves_frees_its_place(server: Running, client: openai.OpenAI) -> None:
    before = server.figure("trivet_cancelled_answers_total")
    with httpx.stream("POST", f"{server.url}/v1/completions", json={
            "model": "tiny", "prompt": ["a"] * 8, "n": 4, "max_tokens": 240, "stream": True,
            "temperature": 1.0}) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", timeout=0.3, json={
            "model": "tiny", "prompt": ["a"] * 8, "n": 16, "max_tokens": 250, "temperature": 1.0})
    until = time.monotonic() + 20
    while time.monotonic() < until and (server.figure("trivet_working_answers")
                                        or server.figure("trivet_waiting_requests")):
        time.sleep(0.1)
    assert server.figure("trivet_working_answers") == server.figure("trivet_waiting_requests") == 0
    assert server.figure("trivet_cancelled_answers_total") > before
    assert client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3).choices


def test_health_metrics_page_and_log(server: Running, client: openai.OpenAI) -> None:
    assert server.get("/healthz").text == "ok\n"
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "zebra secret"}], max_tokens=3)
    assert server.figure("trivet_generated_tokens_total") > 0 and server.figure("trivet_first_token_seconds_count") > 0
    page = server.get("/")
    assert "Trivet chat" in page.text and "default-src 'none'" in page.headers["content-security-policy"]
    assert server.get("/static/chat.js").status_code == 200
    lines = [json.loads(line) for line in server.said if line.startswith("{")]
    assert lines and {"time", "id", "route", "caller", "status", "ms"} <= set(lines[-1])
    assert "zebra" not in "".join(server.said)


def test_keys_rates_and_names(tiny_model_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nann:0123456789abcdef\n0123456789abcdeX\n")
    with serving(tiny_model_folder, "--keys", str(keys), "--rate", "3", "--log-texts", "--hosts", "llm.example",
                 TRIVET_SERVE_KEYS="bob:fedcba9876543210") as running:
        name = tiny_model_folder.name
        assert running.get("/v1/models").status_code == running.get("/metrics").status_code == 401
        assert running.get("/healthz").status_code == 200
        listed = running.get("/v1/models", headers={"Authorization": "Bearer fedcba9876543210", "Host": "llm.example"})
        model = listed.json()["data"][0]["id"]
        assert model.endswith(name)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="0123456789abcdef", max_retries=0)
        for _ in range(3):
            client.chat.completions.create(model=model, messages=QUESTION, max_tokens=2)
        with pytest.raises(openai.RateLimitError, match="more than 3 requests a minute") as refused:
            client.chat.completions.create(model=model, messages=QUESTION, max_tokens=2)
        assert 0 < int(refused.value.response.headers["Retry-After"]) <= 60
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="0123456789abcdee").models.list()
        time.sleep(0.2)
        log = [json.loads(line) for line in running.said if line.startswith("{")]
        assert {line["caller"] for line in log if line["status"] == 200} == {"ann"}
        assert log[0]["messages"][0]["content"] == QUESTION[0]["content"]
        assert "0123456789abcdef" not in "".join(running.said)


def test_a_full_line_gets_429_and_a_stop_finishes_what_was_taken(tiny_model_folder: Path) -> None:
    with serving(tiny_model_folder, "--width", "1", "--queue", "1", "--model-name", "t") as running:
        body = {"model": "t", "prompt": "a", "max_tokens": 250, "temperature": 1.0, "n": 20}
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(running.post("/v1/completions", body)))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.15)
        until = time.monotonic() + 10
        while sum(r.status_code == 429 for r in found) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert [r.json()["error"]["code"] for r in found if r.status_code == 429] == ["queue_full"] * 2
        assert found[0].headers["Retry-After"] == "1"
        assert running.stop() == 0
        for thread in threads:
            thread.join(60)
        assert sorted(r.status_code for r in found) == [200, 200, 429, 429]


def test_a_server_behind_it(server: Running) -> None:
    with serving(f"{server.url}/v1", "--model-name", "tiny", "--pal") as front:
        assert [m["id"] for m in front.get("/v1/models").json()["data"]] == ["tiny", "tiny:programs", "tiny:auto"]
        client = openai.OpenAI(base_url=f"{front.url}/v1", api_key="x", max_retries=0)
        direct = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        settings = dict(model="tiny", messages=QUESTION, seed=7, max_tokens=12, temperature=1.0)
        text = direct.chat.completions.create(**settings).choices[0].message.content
        assert client.chat.completions.create(**settings).choices[0].message.content == text
        streamed = client.chat.completions.create(**settings, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed if c.choices) == text
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            client.chat.completions.create(**settings, logit_bias={"3": 4})
        way = front.post("/v1/chat/completions", {"model": "tiny:auto", "messages": QUESTION, "max_tokens": 8,
                                                  "seed": 7}).json()
        assert way["choices"][0]["message"]["content"] and way["trivet"]["steps"] == []
        assert front.get("/healthz").status_code == 200


@pytest.mark.parametrize(("arguments", "words"), [
    (["no-such-folder"], "no such folder"),
    (["http://127.0.0.1:9/v1"], "is not reached"),
    (["--host", "0.0.0.0"], "no keys are set"),
    (["--keys", "no-such-file"], "can't be read"),
    (["--host", "192.0.2.1", "--open"], "cannot listen on"),
    (["--log", "no/such/folder/log"], "the log can't be written"),
])
def test_what_can_not_be_served_is_said_at_once(arguments: list[str], words: str,
                                                capsys: pytest.CaptureFixture) -> None:
    from trivet.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments, "--port", "0"])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
