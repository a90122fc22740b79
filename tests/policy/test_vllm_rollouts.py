"""PPO whose rollouts a server draws: weights handed over, mismatch weighed, faults of the server, resume."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import torch

from trivet.artifacts import RolloutRow, read_rows
from trivet.errors import TrivetError
from trivet.generate.vllm_server import RolloutInterrupted, ServerLost
from trivet.policy.behaviour import weigh
from trivet.policy.config import PPOConfig
from trivet.stages import STAGES, run_stage
from trivet.training import checkpoints
from vllm_stand_in import Fault, StandIn

FAST = {"device": {"threads": 1}, "check": False, "rollout": 8, "sampling": {"max_new_tokens": 8},
        "optimizer": {"lr": 1e-2}, "stop": {"steps": 3}, "evaluation": {"every": 100, "share": 0.3},
        "checkpoint": {"every": 100}, "reward": ["test_vllm_rollouts:vowels"], "generate": "vllm"}


def vowels(samples):
    return [sum(c in "aeiou" for c in s.completion) - 0.2 * len(s.completion) for s in samples]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("trivet.generate.vllm_engine.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("trivet.policy.behaviour.LOOK_AGAIN", 0.05)


@pytest.fixture
def server(tiny_model_folder):
    with StandIn(tiny_model_folder) as found:
        yield found


def ppo(prompt_file, model, out, server, **changes):
    given = {"prompts": prompt_file, "model": str(model), "out": out, "url": server.url}
    return run_stage(STAGES["ppo"], PPOConfig(**(given | FAST | changes)))


def metrics(out):
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_servers_samples_are_the_policys(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    """A new adapter after each update, the old one unloaded; with equal arithmetic the mismatch is rounding."""
    out = tmp_path / "p"
    summary = ppo(prompt_file, tiny_model_folder, out, server)
    assert summary.stop == "steps"
    rows = metrics(out)
    assert [r["staleness"] for r in rows] == [0, 0, 0]
    assert all(abs(r["mismatch_kl"]) < 1e-6 and r["mismatch"] < 1e-4 for r in rows)
    assert all(r["importance_weight"] == pytest.approx(1, abs=1e-4) and r["importance_truncated"] == 0 for r in rows)
    assert rows[-1]["kl"] > 0.01, "the weights have moved, and the server's with them"
    assert len(server.loaded) == 3 == len(set(server.loaded)) and server.unloaded == server.loaded
    assert not server.adapters and not (out / "handed").exists()
    assert {r["model"] for r in server.requests} == set(server.loaded)
    assert len(read_rows(out / "rollouts" / "step-00003.jsonl", RolloutRow)) == 8


def test_only_the_policys_adapter_is_handed_over(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    from safetensors.torch import load_file

    seen: dict[str, set[str]] = {}
    load = server._load

    def look(body):
        from pathlib import Path

        folder = Path(body["lora_path"])
        seen.setdefault("files", set()).update(p.name for p in folder.iterdir())
        seen.setdefault("tensors", set()).update(load_file(folder / "adapter_model.safetensors"))
        return load(body)

    server._load = look
    ppo(prompt_file, tiny_model_folder, tmp_path / "p", server, critic="separate", stop={"steps": 1})
    assert seen["files"] == {"adapter_config.json", "adapter_model.safetensors", "trivet_adapter.json"}
    assert all(".lora_" in name and "critic" not in name for name in seen["tensors"])


def test_all_weights_where_the_server_can_reload(prompt_file, tiny_model_folder, make_tiny, tmp_path) -> None:
    with StandIn(tiny_model_folder, dev=True) as server:
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", server, tune="full", optimizer={"lr": 3e-3})
        assert len(server.reloaded) == 3 and not server.loaded
    rows = metrics(tmp_path / "p")
    assert all(r["mismatch"] < 1e-4 for r in rows) and rows[-1]["kl"] > 0.005
    with StandIn(tiny_model_folder) as server, pytest.raises(TrivetError, match="VLLM_SERVER_DEV_MODE"):
        ppo(prompt_file, tiny_model_folder, tmp_path / "q", server, tune="full")
    tied = make_tiny(tmp_path / "tied", "gpt2")
    with StandIn(tied, dev=True) as server, pytest.raises(TrivetError, match="tied to its embeddings"):
        ppo(prompt_file, tied, tmp_path / "r", server, tune="full")


def test_the_update_weighs_by_the_mismatch() -> None:
    logps = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, 0.0, 0.0]])
    behaviour = torch.tensor([[-1.0, -4.0, 9.0], [-0.7, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weighed, figures = weigh(torch.full((2, 3), 3.0), logps, behaviour, mask, cap=2.0)
    exact = torch.exp(torch.tensor(0.2)).item()
    assert weighed.tolist() == [pytest.approx([3.0, 6.0, 0.0]), pytest.approx([3 * exact, 0.0, 0.0])]
    assert figures["importance_truncated"] == pytest.approx(1 / 3)
    assert figures["mismatch"] == pytest.approx((0 + 2 + 0.2) / 3)
    assert figures["importance_weight"] == pytest.approx((1 + 2 + exact) / 3)
    naive = [sum(torch.exp(d).item() - 1 - d.item() for d in row) for row in
             (torch.tensor([0.0, 2.0]), torch.tensor([0.2]))]
    assert figures["mismatch_kl"] == pytest.approx(sum(naive) / 2, rel=1e-5)


# --- servers that do not fit ------------------------------------------------------------------------------


@pytest.mark.parametrize(("server", "changes", "words"), [
    ({"processed": False}, {}, "--logprobs-mode processed_logprobs"),
    ({"lora": False}, {}, "--enable-lora"),
    ({"runtime": False}, {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ({"max_rank": 8}, {}, "--max-lora-rank 16"),
    ({"context": 12}, {}, "--max-model-len"),
    ({}, {"vllm": {"seen_as": "/elsewhere"}}, "vllm.seen_as"),
])
def test_a_server_that_does_not_fit(prompt_file, tiny_model_folder, tmp_path, server, changes, words) -> None:
    with StandIn(tiny_model_folder, **server) as found, pytest.raises(TrivetError, match=words):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", found, **changes)
    assert not (tmp_path / "p" / "policy").exists() and not (tmp_path / "p" / "handed").exists()


def test_other_weights_are_known_by_their_hash(prompt_file, tiny_model_folder, make_tiny, tmp_path) -> None:
    other = make_tiny(tmp_path / "other", seed=5)
    with StandIn(other) as server, pytest.raises(TrivetError, match="serves other weights"):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", server)


def test_other_weights_are_known_by_their_log_probabilities(prompt_file, tiny_model_folder, make_tiny,
                                                            tmp_path) -> None:
    """Where the server's folder can't be seen from here."""
    other = make_tiny(tmp_path / "other", seed=5)
    with StandIn(other, root="org/model") as server, pytest.raises(TrivetError, match="serves another model"):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", server)
    with StandIn(tiny_model_folder, root="org/model") as server:
        assert ppo(prompt_file, tiny_model_folder, tmp_path / "q", server, stop={"steps": 1}).steps == 1


# --- servers that die -------------------------------------------------------------------------------------


def test_a_server_that_comes_back_changes_nothing(prompt_file, tiny_model_folder, tmp_path, server, capsys) -> None:
    ppo(prompt_file, tiny_model_folder, tmp_path / "whole", server)
    server.requests.clear()

    def strike(number):
        if number == 8 + 8 + 8 + 3:  # the probe, the scale's rollout and the first steps; in the second step
            server.before = None
            server.die()
            threading.Timer(0.4, server.rise).start()

    server.before = strike
    ppo(prompt_file, tiny_model_folder, tmp_path / "struck", server, vllm={"wait": 30, "retries": 1})
    assert "is gone (no connection" in capsys.readouterr().out
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "struck" / "metrics.jsonl").read_bytes()


def test_a_server_that_stays_away_leaves_a_state_to_go_on_from(prompt_file, tiny_model_folder, tmp_path,
                                                               server) -> None:
    ppo(prompt_file, tiny_model_folder, tmp_path / "whole", server)
    server.requests.clear()
    server.before = lambda number: server.die() if number == 8 + 8 + 8 + 8 + 3 else None
    out = tmp_path / "struck"
    with pytest.raises(ServerLost, match="did not come back") as stopped:
        ppo(prompt_file, tiny_model_folder, out, server, vllm={"wait": 0.2, "retries": 0})
    assert stopped.value.exit_code == 2 and "run the same command again" in str(stopped.value)
    newest = checkpoints.latest(out / "checkpoints")
    assert newest is not None and newest.name == "step-00000002", "the last whole step, though none was due"
    server.before = None
    server.rise()
    ppo(prompt_file, tiny_model_folder, out, server, vllm={"wait": 0.2, "retries": 0})
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_ctrl_c_while_a_server_is_awaited(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    def strike(number):
        if number == 8 + 8 + 8 + 3:
            server.die()
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    server.before = strike
    began = time.monotonic()
    with pytest.raises(RolloutInterrupted):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", server, vllm={"wait": 600, "retries": 0})
    assert time.monotonic() - began < 60
    assert checkpoints.latest(tmp_path / "p" / "checkpoints").name == "step-00000001"


def test_ctrl_c_twice_during_a_rollout_saves_the_last_step(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    def strike(number):
        if number == 8 + 8 + 8 + 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.3)

    server.before = strike
    with pytest.raises(RolloutInterrupted):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", server)
    assert checkpoints.latest(tmp_path / "p" / "checkpoints").name == "step-00000001"


def test_what_a_killed_run_left_is_unloaded(prompt_file, tiny_model_folder, tmp_path, server, monkeypatch) -> None:
    out = tmp_path / "p"
    with monkeypatch.context() as patched:
        patched.setattr("trivet.policy.behaviour.RemotePolicy.close", lambda self: None)  # kill -9 closes nothing
        server.before = lambda number: (_ for _ in ()).throw(OSError) if number > 30 else None
        with pytest.raises(TrivetError):
            ppo(prompt_file, tiny_model_folder, out, server, vllm={"wait": 0, "retries": 0})
    left = set(server.adapters)
    assert len(left) == 1 and len(list((out / "handed").iterdir())) == 1
    server.before = None
    server.requests.clear()
    ppo(prompt_file, tiny_model_folder, out, server, vllm={"wait": 0, "retries": 0})
    assert not server.adapters and not (out / "handed").exists()
    assert not left & {r["model"] for r in server.requests}, "a name is never used again"


def test_an_adapter_that_somebody_unloaded_is_loaded_again(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    server.before = lambda number: server.adapters.clear() if number == 8 + 8 + 3 else None
    assert ppo(prompt_file, tiny_model_folder, tmp_path / "p", server, vllm={"retries": 0}).steps == 3


def test_faults_that_pass_are_not_seen_in_the_result(prompt_file, tiny_model_folder, tmp_path, server) -> None:
    ppo(prompt_file, tiny_model_folder, tmp_path / "whole", server)
    server.faults = [None, Fault(500), None, Fault(drop=True)] * 5
    ppo(prompt_file, tiny_model_folder, tmp_path / "faulty", server, vllm={"retries": 12})
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "faulty" / "metrics.jsonl").read_bytes()


def test_a_server_started_anew_does_not_answer_with_base_weights(prompt_file, tiny_model_folder, tmp_path) -> None:
    """tune=full: the name in requests is the base's own, and a fresh server knows it."""
    full = {"tune": "full", "optimizer": {"lr": 3e-3}, "vllm": {"in_flight": 1, "tolerance": 9}}
    with StandIn(tiny_model_folder, dev=True) as server:
        ppo(prompt_file, tiny_model_folder, tmp_path / "whole", server, **full)
    with StandIn(tiny_model_folder, dev=True) as server:
        base, struck = server._base, 8 + 8 + 8 + 8 + 3  # probe, scale, first step; probe of the second; in its rollout

        def strike(number):
            if number in (struck, struck + 3):  # and during the probe that follows
                server._base = base

        server.before = strike
        server.faults = [Fault(drop=True) if i in (struck, struck + 3) else None for i in range(1, struck + 4)]
        ppo(prompt_file, tiny_model_folder, tmp_path / "struck", server, **full)
        assert len(server.reloaded) == 3 + 2
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "struck" / "metrics.jsonl").read_bytes()
