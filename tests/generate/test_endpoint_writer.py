"""An endpoint as a writer: faults of every kind, and `kill -9` anywhere; nothing lost, nothing asked twice."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from endpoint_server import Endpoint, Fault
from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling, Writing
from trivet.generate.endpoint import Endpoints
from trivet.generate.endpoint_writer import EndpointWriter
from trivet.generate.kept import Keeping
from trivet.generate.spending import Requests
from trivet.generate.writing import Ask, Text, Texts, Writer, Written, check_writer, make_writer
from trivet.ledger import read

HOT = Sampling(max_new_tokens=12)


def asks(n: int) -> list[Ask]:
    return [Ask(f"a{i}", (Message(role="user", content=f"Question {i}?"),)) for i in range(n)]


def echo(prompt: str) -> str:
    return f"You said {prompt}"


def said(n: int) -> list[str]:
    return [echo(f"Question {i}?") for i in range(n)]


def writer(server: Endpoint, folder: Path, endpoints: Endpoints | None = None, **settings) -> Writer:
    """As make_writer's, but without the pauses."""
    chosen = Writing(by=server.url, model="m", **{"timeout": 20.0, **settings})
    client = (endpoints or Endpoints(folder / "requests.jsonl")).client(
        server.url, "m", chosen, field="target", kept="what was written is kept", pause=0.01)
    return Writer(EndpointWriter(client), Texts(folder / "texts.jsonl"), 0)


def body(content, finish: str = "stop") -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def test_it_writes_and_keeps(tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        made = make_writer(Writing(by=server.url + "/", model="m"), None, seed=5, folder=tmp_path, field="target")
        taken: dict[int, Written] = {}
        found = made(asks(20), HOT, take=taken.__setitem__)
        assert [w.text for w in found] == said(20) and taken == dict(enumerate(found))
        assert all(w.ended and w.tokens == 4 for w in found)
        assert made.name == f"m at {server.url}" and made.loaded == {}
        sent = server.requests[0]
        assert sent["temperature"] == 1.0 and sent["top_p"] == 1.0 and sent["max_tokens"] == 12
        assert not {"top_k", "stop", "logprobs", "response_format"} & set(sent)
        assert len({r["seed"] for r in server.requests}) == 20 and all(0 <= r["seed"] < 2**31 for r in server.requests)
        again = make_writer(Writing(by=server.url, model="m"), None, seed=5, folder=tmp_path, field="target")
        assert again(asks(20)[::-1], HOT) == found[::-1] and len(server.requests) == 20
        # whatever its texts depend on asks anew
        for other in (make_writer(Writing(by=server.url, model="n"), None, seed=5, folder=tmp_path, field="target"),
                      make_writer(Writing(by=server.url, model="m"), None, seed=6, folder=tmp_path, field="target")):
            before = len(server.requests)
            other(asks(2), HOT)
            assert len(server.requests) == before + 2
        again(asks(1), Sampling(max_new_tokens=13))
        account = Requests(tmp_path / "requests.jsonl")
        assert len(server.requests) == 25 == account.of("m").requests + account.of("n").requests


def test_what_is_set_is_sent() -> None:
    with Endpoint(lambda prompt: "One. Two. Three", writes=True, unknown=("stop",)) as server:
        client = Endpoints().client(server.url, "m", Writing(), field="target", kept="")
        found: list[Written] = []
        EndpointWriter(client).write(asks(1), [2**40 + 7], Sampling(temperature=0.5, top_p=0.9, top_k=7, stop=["Two"]),
                                     Keeping(lambda rows: found.extend(w for _, w in rows), lambda rows: None))
    first, last = server.requests
    assert first["stop"] == ["Two"] and "stop" not in last
    assert (last["temperature"], last["top_p"], last["top_k"], last["seed"]) == (0.5, 0.9, 7, 7)
    assert found == [Written("One.", True, 3)]  # cut here, where the endpoint does not


@pytest.mark.parametrize("fault", [
    Fault(500, "oops"), Fault(429, {"error": {"message": "slow down"}}), Fault(429, headers={"Retry-After": "0"}),
    Fault(200, "{garbage"), Fault(200, ""), Fault(200, {"choices": []}), Fault(drop=True),
    Fault(200, {"choices": []}, cut=True), Fault(hang=1.0), Fault(200, body(None)), Fault(200, body(None, "abort")),
])
def test_faults_lose_nothing_and_ask_nothing_twice(fault, tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [fault, None, fault, fault, None, None, fault]
        found = writer(server, tmp_path, timeout=0.4, concurrency=3)(asks(30), HOT)
        assert [w.text for w in found] == said(30)
        asked = collections.Counter(r["messages"][-1]["content"] for r in server.requests)
        assert len(asked) == 30 and sum(asked.values()) == 34
    account = Requests(tmp_path / "requests.jsonl")
    assert account.of("m").requests == 34 == len(server.requests)
    rows = [Text.model_validate_json(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert sorted(r.ask for r in rows) == sorted(a.id for a in asks(30))


def test_a_cut_off_text_says_so(tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [Fault(200, body("So it went on and", "length")), Fault(200, body("Bad", "content_filter"))]
        found = writer(server, tmp_path, concurrency=1)(asks(3), HOT)
    assert [(w.text, w.ended) for w in found] == [("So it went on and", False), ("Bad", False), (said(3)[2], True)]


def test_replies_without_a_text(tmp_path, capsys) -> None:
    with Endpoint(echo, writes=True, usage=False) as server:
        # no room was left, and a filter: asking again changes nothing. Else it is tried again, and then kept as empty
        server.faults = [Fault(200, body(None, "length")), Fault(200, body(None, "content_filter")),
                         *[Fault(200, body(None))] * 3]
        found = writer(server, tmp_path, concurrency=1, retries=2)(asks(4), HOT)
        assert [(w.text, w.ended, w.tokens) for w in found] == [
            ("", False, 2), ("", False, 2), ("", True, 2), (said(4)[3], True, None)]
        assert len(server.requests) == 6
        assert "gave no text for 3 of 4 asks, such as 'a0'" in capsys.readouterr().out
        writer(server, tmp_path)(asks(4), HOT)
        assert len(server.requests) == 6


def test_it_cannot_begin_a_text_with_given_words(tmp_path) -> None:
    with Endpoint(echo) as server:
        with pytest.raises(TrivetError, match="shall begin with given words"):
            writer(server, tmp_path)([Ask("a", asks(1)[0].messages, begun="No")], Sampling())
        assert not server.requests


def test_an_ask_that_the_context_cannot_hold_is_named(tmp_path) -> None:
    said = "This model's maximum context length is 64 tokens. However, you requested 70 tokens (58 in the messages)."
    with Endpoint(echo, writes=True) as server:
        server.faults = [None, Fault(400, {"object": "error", "message": said, "type": "BadRequestError"})]
        with pytest.raises(TrivetError, match="can't hold 'a1': This model's") as caught:
            writer(server, tmp_path, concurrency=1)(asks(5), HOT)
        assert caught.value.field == "target.model" and len(server.requests) == 2


def test_a_budget_stops_it_and_more_lets_it_go_on(tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        for _ in range(2):
            with pytest.raises(TrivetError, match=r"the budget of 7 requests for m is used up") as caught:
                writer(server, tmp_path, requests=7)(asks(20), HOT)
            assert "what was written is kept" in caught.value.mend and len(server.requests) == 7
        assert [w.text for w in writer(server, tmp_path, requests=20)(asks(20), HOT)] == said(20)
        assert len(server.requests) == 20


def test_breaking_off_keeps_what_came(tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [*[None] * 6, *[Fault(drop=True)] * 40]
        with pytest.raises(TrivetError, match="no connection"):
            writer(server, tmp_path, concurrency=2, retries=0)(asks(20), HOT)
        server.faults, before = [], len(server.requests)
        assert len(Texts(tmp_path / "texts.jsonl")) == 6
        assert [w.text for w in writer(server, tmp_path)(asks(20), HOT)] == said(20)
        assert len(server.requests) - before == 14


@pytest.mark.parametrize(("settings", "words", "field"), [
    ({"by": "http://localhost:1/v1"}, "which model", "target.model"), ({"by": "http://"}, "no address", "target.by"),
    ({"by": "https://h:99999999/v1", "model": "m"}, "no address", "target.by"),
])
def test_settings_that_name_no_endpoint(settings, words, field, tmp_path) -> None:
    for made in (lambda s: check_writer(s, field="target"),
                 lambda s: make_writer(s, None, seed=0, folder=tmp_path / "new", field="target")):
        with pytest.raises(TrivetError, match=words) as caught:
            made(Writing(**settings))
        assert caught.value.field == field
    assert not (tmp_path / "new").exists()


def test_one_sync_serves_many_texts(tmp_path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr("trivet.generate.kept.os.fsync", lambda file: (synced.append(file), time.sleep(0.05)))
    with Endpoint(echo, writes=True, work=0.01) as server:
        start = time.monotonic()
        writer(server, tmp_path, concurrency=16)(asks(160), HOT)
        taken = time.monotonic() - start
    assert len(synced) < 60 and taken < 160 * 0.05 / 2


KILLED = """
from pathlib import Path
from trivet.artifacts import Message
from trivet.config import StageConfig
from trivet.generate.config import Sampling, Writing
from trivet.generate.endpoint import Endpoints
from trivet.generate.writing import Ask, make_writer
from trivet.runs import Summary, execute
class Config(StageConfig):
    pass
def work(config, run):
    writer = make_writer(Writing(by={url!r}, model="m", concurrency=4), None, seed=0, folder=run.path("target"),
                         field="target", endpoints=Endpoints.of(run))
    print("begun", flush=True)
    asks = [Ask(f"a{{i}}", (Message(role="user", content=f"Question {{i}}?"),)) for i in range(80)]
    found = writer(asks, Sampling(max_new_tokens=12))
    assert [w.text for w in found] == ["You said Question %d?" % i for i in range(80)]
    return Summary()
execute("written", Config(out=Path({out!r})), work, Summary)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_item_it_goes_on(tmp_path, seed) -> None:
    """The account holds every request that the server saw, and nothing that was acknowledged is asked again."""
    chance, out, kills = random.Random(seed), tmp_path / "written", 0
    with Endpoint(echo, writes=True, work=0.01) as server:
        code = KILLED.format(url=server.url, out=str(out))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        while True:
            with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  env=environment) as process:
                wanted = len(server.completed) + chance.randint(1, 30) if kills < 4 else 10**9
                while process.poll() is None and len(server.completed) < wanted:
                    time.sleep(0.001)
                process.send_signal(signal.SIGKILL) if process.poll() is None else None
                assert process.stderr is not None
                errors = process.stderr.read().decode()
            kept = Texts(out / "target" / "texts.jsonl")
            kills += 1
            if process.returncode != -signal.SIGKILL:
                break
        assert process.returncode == 0, errors
    assert kills >= 3 and len(kept) == 80
    events = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    sent = [e["id"] for e in events if e["event"] == "sent"]
    lost = {e["id"] for e in events if e["event"] == "lost"}
    assert set(server.ids) <= set(sent) and len(server.ids) == len(set(server.ids))
    # the account is larger at most by requests that were killed on their way to the server
    assert set(sent) - set(server.ids) <= lost and len(lost) <= 4 * (kills - 1)
    (entry,) = read(tmp_path / "ledger.jsonl")
    assert entry.endpoints["m"].requests == len(sent) == Requests(out / "requests.jsonl").of("m").requests
    # a prompt was asked a second time only where the process died before it had read the first answer
    question = dict(zip(server.ids, (r["messages"][-1]["content"] for r in server.requests), strict=True))
    answered = collections.Counter(question[id] for id in server.completed if id not in lost)
    assert max(answered.values()) == 1
    rows = [Text.model_validate_json(line) for line in (out / "target" / "texts.jsonl").read_text().splitlines()]
    assert len({r.key for r in rows}) == len(rows) == 80


def test_ctrl_c_stops_at_once(tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [None, None, *[Fault(hang=30.0)] * 20]
        made = writer(server, tmp_path, concurrency=4)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands on an ignored one
        timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                made(asks(20), HOT)
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - start < 5 and len(Texts(tmp_path / "texts.jsonl")) == 2
        assert Requests(tmp_path / "requests.jsonl").of("m").requests == 6
