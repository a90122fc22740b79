"""The client for endpoints: what is asked of it counts once, in one account, whatever goes wrong."""

from __future__ import annotations

import json
import threading

import pytest

from endpoint_server import Endpoint, Fault
from trivet.artifacts import Message
from trivet.config import StageConfig
from trivet.errors import TrivetError
from trivet.generate.config import EndpointSettings
from trivet.generate.connection import Again
from trivet.generate.endpoint import Endpoints
from trivet.generate.in_flight import Stopped, ask_all
from trivet.generate.spending import Budget, Event, Limits, Requests, Spent
from trivet.ledger import Calls, read
from trivet.runs import Summary, execute

HELLO = [Message(role="user", content="Hello?")]


def client(server: Endpoint, endpoints: Endpoints | None = None, field: str = "target", **settings):
    return (endpoints or Endpoints()).client(
        server.url, "m", EndpointSettings(**{"timeout": 20.0, **settings}), field=field, kept="all is kept", pause=0.01)


def ask(asked, land=None, **options):
    return asked.ask(HELLO, {"max_tokens": 8, **options}, what="'a'", stop=threading.Event(), land=land)


def echo(prompt: str) -> str:
    return f"You said {prompt}"


@pytest.mark.parametrize("fault", [
    Fault(500, "oops"), Fault(503, {"error": {"message": "loading"}}), Fault(429, {"error": "slow down"}),
    Fault(200, "{garbage"), Fault(200, ""), Fault(200, {"choices": []}), Fault(200, [1, 2]), Fault(200, "null"),
    Fault(200, {"choices": [{"message": {"content": 7}}]}), Fault(200, {"choices": [{"message": None}]}),
    Fault(drop=True), Fault(200, {"choices": []}, cut=True), Fault(408, "late"), Fault(425), Fault(hang=1.0),
    Fault(429, headers={"Retry-After": "0"}), Fault(503, headers={"Retry-After": "nonsense"}),
])
def test_failures_that_may_pass_are_tried_again_and_counted(fault, tmp_path) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [None, fault, fault]
        asked = client(server, Endpoints(tmp_path / "requests.jsonl"), timeout=0.4)
        for _ in range(2):  # the second one on a connection that is there
            assert ask(asked).text == "You said Hello?"
    again = Requests(tmp_path / "requests.jsonl")
    assert len(server.requests) == 4 == asked.spent.requests == again.of("m").requests
    assert again.of("m") == asked.spent and asked.spent.input_tokens > 0 and not again.lost
    events = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["sent", "answered", "sent", "failed", "sent", "failed", "sent", "answered"]
    assert [e["id"] for e in events[::2]] == server.ids == [e["id"] for e in events[1::2]]


@pytest.mark.parametrize(("status", "body", "words"), [
    (401, {"error": {"message": "no"}}, "answers 'a' with status 401: no"), (404, {"detail": "Not Found"}, "Not Found"),
    (400, {"message": "bad", "code": 40}, "bad"), (418, "tea", "tea"), (400, "", "nothing more"),
    (422, {"detail": [{"loc": ["body", "x"]}]}, "loc"), (307, "", "status 307"),
    (400, {"error": {"message": "This model's maximum context length is 20 tokens. However, your max_tokens …"}},
     "can't hold 'a'"),
    (400, {"error": {"message": "too much", "code": "context_length_exceeded"}}, "can't hold 'a': too much"),
])
def test_refusals_are_told_at_once(status, body, words) -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [Fault(status, body)] * 3
        with pytest.raises(TrivetError, match=words):
            ask(client(server))
        assert len(server.requests) == 1


def test_nobody_there_is_told_soon() -> None:
    with Endpoint(echo) as server:
        pass
    with pytest.raises(TrivetError, match=r"after 2 tries \(no connection: ") as caught:
        ask(client(server, retries=1))
    assert caught.value.field == "target.by" and "all is kept" in caught.value.mend


@pytest.mark.parametrize("url", ["http://[::1", "http://ho st/v1", "http:///v1"])
def test_no_address(url) -> None:
    asked = Endpoints().client(url, "m", EndpointSettings(retries=0), field="target", kept="all is kept")
    with pytest.raises(TrivetError, match=r"is no address|no connection"):
        ask(asked)


def test_what_is_kept_comes_before_the_end_of_the_request(tmp_path) -> None:
    account = tmp_path / "requests.jsonl"
    with Endpoint(echo, writes=True) as server:
        asked = client(server, Endpoints(account))
        seen = []

        def land(reply) -> None:
            seen.append(len(account.read_text().splitlines()))
            if len(seen) == 1:
                raise Again("not this one")

        ask(asked, land)
    assert seen == [1, 3] and len(server.requests) == 2 == asked.spent.requests


def test_half_a_character_does_no_harm() -> None:
    with Endpoint(echo, writes=True) as server:
        server.faults = [Fault(200, '{"choices": [{"message": {"content": "a\\ud800b"}}]}')]
        assert ask(client(server)).text == "a?b"


def test_options_are_learnt_for_all_who_ask_the_same(capsys) -> None:
    with Endpoint(echo, writes=True, unknown=("seed", "top_k", "stop")) as server:
        endpoints = Endpoints()
        first, second = client(server, endpoints), client(server, endpoints, "critic")
        ask(first, seed=3, top_k=5, stop=["x"], temperature=0.5)
        assert len(server.requests) == 4 and server.requests[-1]["temperature"] == 0.5
        ask(second, seed=3, top_k=5, stop=["x"])
        assert len(server.requests) == 5
    assert capsys.readouterr().out.count("it is left out") == 3


def test_the_key_is_never_shown(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with Endpoint(echo, key="other") as server, pytest.raises(TrivetError) as caught:
        ask(client(server, Endpoints(tmp_path / "r.jsonl")))
    assert "sk-secret" not in str(caught.value) and "***" in str(caught.value)
    assert "sk-secret" not in (tmp_path / "r.jsonl").read_text()


# --- shared by judge and writer --------------------------------------------------------------------------


def test_one_bound_and_one_budget_for_all_who_ask() -> None:
    with Endpoint(echo, writes=True, work=0.03) as server:
        endpoints = Endpoints()
        ones = [client(server, endpoints, "target", concurrency=6, requests=30),
                client(server, endpoints, "judge", concurrency=4, requests=20)]
        failures: dict[int, list[BaseException]] = {}

        def many(k: int) -> None:
            failures[k] = ask_all(range(15), lambda i, stop: ones[k].ask(
                HELLO, {"max_tokens": 8}, what="'a'", stop=stop), lambda rows: None, ones[k].settings.concurrency)

        threads = [threading.Thread(target=many, args=(k,)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.most == 4  # the smaller bound
    assert not failures[0] and "judge.requests" in str(failures[1][0])
    assert sum(o.spent.requests for o in ones) == len(server.requests) == endpoints.requests.of("m").requests
    assert 20 <= len(server.requests) < 30


def test_retry_after_holds_for_all_who_ask_there() -> None:
    with Endpoint(echo, writes=True) as server:
        endpoints = Endpoints()
        first, second = client(server, endpoints), client(server, endpoints)
        server.faults = [Fault(429, headers={"Retry-After": "0.5"})]
        thread = threading.Thread(target=ask, args=(first,))
        thread.start()
        while not server.requests or second._connection._hold_until == 0:
            threading.Event().wait(0.01)
        ask(second)
        thread.join()
        assert min(server.times[1:]) - server.times[0] > 0.45


def test_a_waiting_request_is_given_up() -> None:
    with Endpoint(echo, writes=True) as server:
        asked = client(server)
        asked._connection.hold(60)
        stop = threading.Event()
        threading.Timer(0.1, stop.set).start()
        with pytest.raises(Stopped):
            asked.ask(HELLO, {"max_tokens": 8}, what="'a'", stop=stop)
        assert not server.requests and asked.spent.requests == 0


# --- the account -----------------------------------------------------------------------------------------


def test_a_request_without_an_end_counts_as_one(tmp_path, capsys) -> None:
    file = tmp_path / "requests.jsonl"
    first = Requests(file)
    done, open_one = first.send("m"), first.send("m")
    first.over(done, "m", answered=True, tokens=(10, 2))
    assert first.of("m").requests == 1  # what is under way is not in it
    endpoints = Endpoints(file)
    assert endpoints.requests.of("m") == Spent(model="m", requests=2, input_tokens=10, output_tokens=2)
    assert "1 request to m had no answer yet" in capsys.readouterr().out
    first.over(open_one, "m", answered=True, tokens=(5, 1))  # a thread of the interrupted run comes back after all
    again = Endpoints(file)
    assert again.requests.spent == endpoints.requests.spent and not again.requests.lost
    assert capsys.readouterr().out == ""


def test_the_ledger_is_told_what_a_killed_run_had_not_told(tmp_path) -> None:
    """As after `kill -9`: the account says more than the state that the stage keeps of itself."""
    class Config(StageConfig):
        fail: bool = False
        not_in_fingerprint = ("out", "overwrite", "fail")

    with Endpoint(echo, writes=True) as server:
        def work(config: Config, run) -> Summary:
            endpoints = Endpoints.of(run)
            assert Endpoints.of(run) is endpoints
            for _ in range(3):
                ask(client(server, endpoints))
            if config.fail:
                raise RuntimeError
            return Summary()

        with pytest.raises(RuntimeError):
            execute("s", Config(out=tmp_path / "s", fail=True), work, Summary)
        state = json.loads((tmp_path / "s/.state.json").read_text())
        whole = Calls.model_validate(state["spent"]["endpoints"]["m"])
        state["spent"]["endpoints"]["m"]["requests"] = 1
        (tmp_path / "s/.state.json").write_text(json.dumps(state))
        with (tmp_path / "s/requests.jsonl").open("a") as file:
            file.write(Event(event="sent", id="x", model="m").model_dump_json() + "\n")
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    (entry,) = read(tmp_path / "ledger.jsonl")
    assert whole.requests == 3 and entry.endpoints["m"].requests == 7 == len(server.requests) + 1
    assert entry.endpoints["m"].input_tokens == 2 * whole.input_tokens


def test_what_was_spent_is_summed_by_model(tmp_path) -> None:
    requests = Requests(tmp_path / "r.jsonl")
    for model, tokens in (("m", (10, 2)), ("m", (10, None)), ("n", (None, None))):
        requests.over(requests.send(model), model, answered=True, tokens=tokens)
    assert requests.spent == Requests(tmp_path / "r.jsonl").spent == {
        "m": Spent(model="m", requests=2, input_tokens=20, output_tokens=2), "n": Spent(model="n", requests=1)}
    # what the ledger counts, with the model's name: they add up there
    assert requests.of("m").plus(requests.of("n")) == Calls(requests=3, input_tokens=20, output_tokens=2)


@pytest.mark.parametrize(("line", "words"), [
    ("{nonsense", "broken JSON"), ('{"event": "paid", "id": "x", "model": "m"}', "event"), ('{"event": "sent"}', "id"),
    ('{"event": "answered", "id": "x", "model": "m", "input_tokens": -1}', "input_tokens"),
])
def test_a_damaged_account_is_told_with_its_place(tmp_path, line, words) -> None:
    whole = Event(event="sent", id="x", model="m").model_dump_json()
    (tmp_path / "r.jsonl").write_text(f"{whole}\n{line}\n{whole}\n")
    with pytest.raises(TrivetError, match=words) as caught:
        Endpoints(tmp_path / "r.jsonl")
    assert caught.value.line == 2


def test_an_account_that_cannot_be_written_sends_nothing(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with Endpoint(echo, writes=True) as server:
        with pytest.raises(TrivetError, match=r"not a folder|a file stands"):
            ask(client(server, Endpoints(tmp_path / "file" / "r.jsonl")))
        assert not server.requests


def test_a_budget_holds_back_what_requests_in_flight_may_cost() -> None:
    stop, limits = threading.Event(), Limits(tokens=100)
    budget = Budget(Spent(model="m"))
    first = budget.enter(100, 10, limits, stop)  # 50 guessed + 10
    assert first == 60
    waited: list[int | None] = []
    thread = threading.Thread(target=lambda: waited.append(budget.enter(100, 10, limits, stop)))
    thread.start()
    thread.join(0.3)
    assert not waited  # no room for 60 more while the first one's cost is not known
    budget.leave(first, 100, Spent(model="m", requests=1, input_tokens=25, output_tokens=3))
    thread.join(5)
    assert waited == [35]  # a quarter of a token a character, as seen
    budget.leave(35, 100, Spent(model="m", requests=1, input_tokens=50, output_tokens=3))
    with pytest.raises(TrivetError, match="used up"):
        budget.enter(100, 10, limits, stop)
    stop.set()
    assert budget.enter(1, 1, limits, stop) is None
