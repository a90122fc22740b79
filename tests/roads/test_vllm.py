"""A real vLLM server (its CPU build) draws PPO's rollouts from the embedded model: `make vllm`, then these run."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest
import torch

import peers
from trivet.artifacts import Message
from trivet.config import LoRA
from trivet.data.chat import prompt_ids, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.config import VLLM, Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.generate.vllm_engine import VLLMEngine
from trivet.generate.vllm_server import Server
from trivet.models.roles import SharedTrunk
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.policy.config import PPOConfig
from trivet.stages import STAGES, run_stage
from vllm_server import FOR_ROLLOUTS, VLLMServer, vllm_server

pytestmark = [pytest.mark.vllm, pytest.mark.real_weights, pytest.mark.timeout(1800),
              pytest.mark.skipif(not peers.available("vllm"), reason="no vLLM here: make vllm")]
QUESTIONS = ["What should I cook tonight?", "Is the moon made of cheese?", "How do I say no politely?",
             "Name three colours.", "Why is the sky blue?", "Write a haiku about rain.",
             "What is the capital of France?", "Give me a tip for better sleep."]


@pytest.fixture(scope="module")
def trunk():
    source = resolve("smollm2-135m-instruct")
    roles = SharedTrunk(source, torch.float32, "cpu", LoRA(r=8))
    tokenizer = load_tokenizer(source)
    with roles.model("policy") as model:
        stops = stop_token_ids(model, tokenizer)
    return roles, tokenizer, stops, [prompt_ids(tokenizer, [Message(role="user", content=q)]) for q in QUESTIONS]


@pytest.fixture(scope="module")
def running(trunk, tmp_path_factory):
    """In float32, so that what differs from this process is little; with reloading switched on."""
    log = tmp_path_factory.mktemp("vllm") / "log"
    with vllm_server(peers.environment("vllm"), trunk[0].base.folder, log, *FOR_ROLLOUTS, dtype="float32",
                     reload=True) as server:
        yield server


def of(server: VLLMServer, model: str, stops: frozenset[int]) -> VLLMEngine:
    return VLLMEngine(Server(server.url, VLLM()), model, stops)


def here(trunk, role: str = "policy"):
    roles, tokenizer, stops, _ = trunk

    def engine(model):
        return TorchEngine(model, tokenizer.pad_token_id, stops)

    return roles.model(role), engine


def distance(a, b) -> float:
    pairs = [(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def test_greedy_answers_are_the_same(running, trunk) -> None:
    """In float32. Where two tokens are all but equally likely the order of sums decides: one in eight may differ."""
    greedy = Sampling(temperature=0.0, max_new_tokens=24)
    role, engine = here(trunk)
    with role as model:
        ours = engine(model).generate(trunk[3], greedy, n=1, seeds=[0] * 8)
    theirs = of(running, Server(running.url, VLLM()).card().model, trunk[2]).generate(trunk[3], greedy, n=1,
                                                                                      seeds=[0] * 8)
    same = sum(a[0].token_ids == b[0].token_ids and a[0].ended == b[0].ended for a, b in zip(ours, theirs, strict=True))
    assert same >= 7


def test_log_probabilities_are_those_at_the_temperature(running, trunk) -> None:
    sampling = Sampling(temperature=0.7, max_new_tokens=24)
    name = Server(running.url, VLLM()).card().model
    drawn = of(running, name, trunk[2]).generate(trunk[3], sampling, n=2, seeds=list(range(8)))
    assert any(a[0].token_ids != a[1].token_ids for a in drawn)
    again = of(running, name, trunk[2]).generate(trunk[3], sampling, n=2, seeds=list(range(8)))
    assert sum(a.token_ids == b.token_ids for x, y in zip(drawn, again, strict=True)
               for a, b in zip(x, y, strict=True)) >= 14, "a seed fixes an answer, up to the arithmetic of its batch"
    prompts, answers = [p for p in trunk[3] for _ in range(2)], [a for group in drawn for a in group]
    role, engine = here(trunk)
    with role as model:
        for temperature, low, high in ((0.7, 0.0, 2e-3), (1.0, 0.2, 2.0)):
            ours = engine(model).score(prompts, [a.token_ids for a in answers], temperature)
            assert low <= distance([a.logps for a in answers], ours) <= high


def test_an_adapter_changes_the_samples_as_it_does_here(running, trunk, tmp_path) -> None:
    roles, _, stops, prompts = trunk
    torch.manual_seed(0)
    learned = {n: p for n, p in roles.trainable().items() if "lora_B" in n}
    with torch.no_grad():
        for parameter in learned.values():
            parameter.normal_(std=0.02)
    try:
        roles.save_policy(tmp_path / "a", {})
        server = Server(running.url, VLLM())
        server.load_adapter("a", str(tmp_path / "a"), 8)
        assert server.card().adapters == ("a",)
        drawn = of(running, "a", stops).generate(prompts, Sampling(temperature=0.7, max_new_tokens=24), n=1,
                                                 seeds=list(range(8)))
        answers = [group[0] for group in drawn]
        for name, low, high in (("policy", 0.0, 2e-3), ("reference", 0.1, 9.0)):
            role, engine = here(trunk, name)
            with role as model:
                ours = engine(model).score(prompts, [a.token_ids for a in answers], 0.7)
            assert low <= distance([a.logps for a in answers], ours) <= high, name
        server.unload_adapter("a")
        server.unload_adapter("a")  # nothing to do
        assert server.card().adapters == ()
        with pytest.raises(TrivetError, match=r"vllm\.seen_as"):
            server.load_adapter("b", "/nowhere", 8)
    finally:
        with torch.no_grad():
            for parameter in learned.values():
                parameter.zero_()


def short(samples):
    """A reward that any model can raise."""
    return [-len(s.completion) / 40 for s in samples]


def ppo(tmp_path: Path, url: str, **changes):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": f"q{i}", "prompt": q}) + "\n" for i, q in enumerate(QUESTIONS)))
    given = {"prompts": prompts, "reward": ["test_vllm:short"], "out": tmp_path / "ppo", "generate": "vllm", "url": url,
             "device": {"threads": 1}, "check": False, "rollout": 6, "sampling": {"max_new_tokens": 12},
             "lora": {"r": 8, "last_layers": 6}, "stop": {"steps": 2}, "checkpoint": {"every": 100},
             "evaluation": {"share": 0.3, "samples": 1, "every": 100}}
    return run_stage(STAGES["ppo"], PPOConfig(**(given | changes)))


@pytest.fixture
def by_name(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_all_weights_but_the_embeddings_can_be_reloaded(running, trunk, tmp_path, by_name) -> None:
    """Last of those that share the server: it is left with other weights.

    vLLM 0.32's CPU build keeps the old output layer where it is tied to the embeddings (0.14 nats a token were measured
    when those had moved by 3%). When this changes, `require_reloadable` in policy/behaviour.py can go.
    """
    role, _ = here(trunk)
    with role as model:
        assert model.config.tie_word_embeddings
    other = load_causal_lm(trunk[0].base, torch.float32, "cpu")
    torch.manual_seed(0)
    server, (_, tokenizer, stops) = Server(running.url, VLLM()), trunk[:3]
    server.require_reload()
    for moved, low, high in (("mlp", 0.0, 1e-3), ("embed_tokens", 0.02, 2.0)):
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                if moved in name:
                    parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.03)
        other.save_pretrained(tmp_path / moved)
        tokenizer.save_pretrained(tmp_path / moved)
        server.reload(str(tmp_path / moved))
        drawn = of(running, server.card().model, stops).generate(
            trunk[3], Sampling(temperature=0.7, max_new_tokens=16), n=1, seeds=list(range(8)))
        answers = [group[0] for group in drawn]
        ours = TorchEngine(other, tokenizer.pad_token_id, stops).score(trunk[3], [a.token_ids for a in answers], 0.7)
        assert low <= distance([a.logps for a in answers], ours) <= high, moved
    with pytest.raises(TrivetError, match="tune=lora"):
        ppo(tmp_path, running.url, tune="full")


def test_ppo_whose_server_dies_in_a_rollout_and_comes_back(trunk, tmp_path, by_name, monkeypatch, capsys) -> None:
    """bfloat16, as it would be used: the mismatch is what rounding makes of it."""
    monkeypatch.setattr("trivet.policy.behaviour.LOOK_AGAIN", 0.5)
    server = VLLMServer(peers.environment("vllm"), trunk[0].base.folder, tmp_path / "log", *FOR_ROLLOUTS)
    complete, count = Server.complete, 0

    def watched(self, body):
        nonlocal count
        count += 1
        if count == 8 + 6 + 6 + 3:  # the comparison, the reward's scale, the first step; in the second one
            server.stop(signal.SIGKILL)
            threading.Thread(target=server.start, daemon=True).start()
        return complete(self, body)

    monkeypatch.setattr(Server, "complete", watched)
    server.start()
    try:
        summary = ppo(tmp_path, server.url, vllm={"in_flight": 2, "retries": 1})
    finally:
        server.stop()
    assert summary.stop == "steps" and summary.steps == 2
    out = capsys.readouterr().out
    assert "is gone (no connection" in out and "the server is back" in out
    rows = [json.loads(x) for x in (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert all(r["staleness"] == 0 and r["mismatch"] < 0.15 and r["mismatch_kl"] < 0.5 for r in rows)
    assert rows[1]["kl"] != 0
