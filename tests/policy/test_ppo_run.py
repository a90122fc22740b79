"""The stage `ppo` through its own door: it improves, stops by name, and writes what the report reads."""

from __future__ import annotations

import json

import pytest

from trivet.artifacts import RolloutRow, read_json, read_rows
from trivet.errors import TrivetError
from trivet.models.source import load_causal_lm, resolve
from trivet.policy.config import PPOConfig
from trivet.policy.watch import WatchRow
from trivet.stages import STAGES, run_stage

FAST = {"device": {"threads": 1}, "check": False, "rollout": 16, "sampling": {"max_new_tokens": 10},
        "optimizer": {"lr": 1e-2}}


def vowels(samples):
    """A reward that a random model can raise."""
    return [sum(c in "aeiou" for c in s.completion) - 0.2 * len(s.completion) for s in samples]


def run(prompt_file, model, out, **changes):
    given = {"prompts": prompt_file, "model": str(model), "out": out, "reward": ["test_ppo_run:vowels"]}
    return run_stage(STAGES["ppo"], PPOConfig(**(given | FAST | changes)))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The reward above can be imported by name."""
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("changes", [
    {}, {"tune": "full", "optimizer": {"lr": 3e-3}, "critic": "separate"},
    {"kl": {"where": "loss", "coef": 0.02}, "entropy_coef": 0.001, "minibatches": 2, "micro_batch": 4},
    {"answers": 4, "prompt_baseline": True, "lora": {"last_layers": 1}, "minibatches": 2},
    {"answers": 4, "advantage": "rloo"}, {"answers": 4, "advantage": "grpo", "minibatches": 2, "seed": 1},
    {"advantage": "reinforce++", "micro_batch": 8},
])
def test_the_policy_gets_better(prompt_file, any_tiny_model_folder, tmp_path, changes) -> None:
    summary = run(prompt_file, any_tiny_model_folder, tmp_path / "p", stop={"steps": 25},
                  evaluation={"share": 0.5, "every": 10, "samples": 8}, **changes)
    assert summary.stop == "steps"
    assert summary.reward_gain["low"] > 0
    assert summary.kl > 0
    rows = [json.loads(x) for x in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == list(range(1, 26))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert rows[0]["ratio_first"] == 0.0
    assert len(read_rows(tmp_path / "p" / "rollouts" / "step-00003.jsonl", RolloutRow)) == 16
    before = read_rows(tmp_path / "p" / "evaluations" / "step-00000.jsonl", WatchRow)
    assert {r.kl for r in before} == {0.0}
    assert (tmp_path / "p" / "evaluations" / "step-00010.jsonl").exists()


def test_the_answers_to_a_prompt_stand_side_by_side(prompt_file, tiny_model_folder, tmp_path) -> None:
    run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 1}, answers=4)
    rows = read_rows(tmp_path / "p" / "rollouts" / "step-00001.jsonl", RolloutRow)
    prompts = [r.id.split("/")[0] for r in rows]
    assert prompts == [p for p in prompts[::4] for _ in range(4)] and len(set(prompts)) == 4
    assert len({r.completion for r in rows[:4]}) > 1


def test_the_prompt_baseline_is_taken_from_what_is_learned(prompt_file, tiny_model_folder, tmp_path, monkeypatch
                                                           ) -> None:
    from trivet.policy import ppo

    seen, tokens = [], ppo.token_rewards
    monkeypatch.setattr(ppo, "token_rewards", lambda scores, *rest: seen.append(scores) or tokens(scores, *rest))
    run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 1}, answers=4, prompt_baseline=True,
        missing_end_penalty=0.0)
    scores = [r.score for r in read_rows(tmp_path / "p" / "rollouts" / "step-00001.jsonl", RolloutRow)]
    expected = [s - (sum(scores[i // 4 * 4 : i // 4 * 4 + 4]) - s) / 3 for i, s in enumerate(scores)]
    assert seen[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert any(abs(e - s) > 0.1 for e, s in zip(expected, scores, strict=True))


@pytest.mark.parametrize("changes", [
    {"advantage": "rloo", "answers": 2, "kl": {"adaptive": True}}, {"advantage": "grpo", "answers": 2},
    {"advantage": "reinforce++", "answers": 2, "prompt_baseline": True, "kl": {"where": "loss"}},
    {"advantage": "rloo", "answers": 2, "tune": "full", "minibatches": 2, "micro_batch": 4},
])
def test_without_a_critic_there_is_nothing_of_one(prompt_file, tiny_model_folder, tmp_path, changes, capsys) -> None:
    import torch
    from safetensors.torch import load_file

    run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 2}, checkpoint={"every": 1}, **changes)
    for line in (tmp_path / "p" / "metrics.jsonl").read_text().splitlines():
        assert not [k for k in json.loads(line) if k.startswith("value")]
        assert {"policy_loss", "kl_loss", "grad_norm"} <= json.loads(line).keys()
    checkpoint = tmp_path / "p" / "checkpoints" / "step-00000002"
    (tensors,) = (checkpoint / "tensors").iterdir()
    assert load_file(tensors) and not [n for n in load_file(tensors) if "value" in n]
    assert len(torch.load(checkpoint / "optimizer.pt", weights_only=True)) == 1
    assert "critic: none" in capsys.readouterr().out
    config = (tmp_path / "p" / "config.yaml").read_text()
    in_loss = changes["advantage"] == "grpo" or changes.get("kl", {}).get("where") == "loss"
    assert ("where: loss" in config) == in_loss and ("where: reward" in config) != in_loss


def test_the_report_copes_without_a_critic(prompt_file, tiny_model_folder, tmp_path) -> None:
    from trivet.report.config import ReportConfig
    from trivet.report.page import write_report

    run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 3}, advantage="rloo", answers=2)
    page = write_report(ReportConfig(run=tmp_path)).read_text()
    assert "Clip fraction" in page and "Critic: variance" not in page


@pytest.mark.parametrize(("changes", "what"), [
    ({"answers": 3}, "do not divide"), ({"prompt_baseline": True}, "needs two answers")])
def test_groups_that_do_not_fit_are_refused(prompt_file, tiny_model_folder, tmp_path, changes, what) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=what):
        run(prompt_file, tiny_model_folder, tmp_path / "p", **changes)


def test_the_saved_policy_is_the_one_that_was_measured(prompt_file, tiny_model_folder, tmp_path) -> None:
    """Loaded from its folder, it gives the log-probabilities that the last evaluation's answers were drawn with."""
    import torch

    run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 4})
    source = resolve(str(tmp_path / "p" / "policy"))
    assert source.is_adapter
    assert read_json(source.folder / "trivet_adapter.json")["stop"] == "steps"
    policy = load_causal_lm(source, torch.float32, "cpu")
    base = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    assert not torch.allclose(policy(ids).logits, base(ids).logits, atol=1e-3)


@pytest.mark.parametrize(("stop", "name"), [
    ({"steps": 2}, "steps"), ({"steps": None, "episodes": 40}, "episodes"), ({"steps": 50, "seconds": 0.01}, "seconds"),
    ({"steps": 50, "kl": 0.3}, "kl"), ({"steps": 50, "reward": -100.0}, "reward"),
    ({"steps": 50, "plateau_patience": 1, "plateau_delta": 100.0}, "plateau"),
])
def test_stop_criteria_are_named(prompt_file, tiny_model_folder, tmp_path, capsys, stop, name) -> None:
    summary = run(prompt_file, tiny_model_folder, tmp_path / "p", stop=stop, evaluation={"every": 1, "share": 0.3})
    assert summary.stop == name
    assert f"stop={name}" in capsys.readouterr().out
    assert summary.steps < 50
    if name == "kl":
        last = json.loads((tmp_path / "p" / "metrics.jsonl").read_text().splitlines()[-1])
        assert last["kl"] <= 0.3, "the update after the budget was exceeded is not made"


def test_the_frozen_reference_bounds_kl_and_without_it_the_policy_drifts(prompt_file, tiny_model_folder, tmp_path
                                                                         ) -> None:
    """The notes' remedy, of two runs that differ in the coefficient alone."""
    kl = {}
    for coef in (0.0, 3.0):
        run(prompt_file, tiny_model_folder, tmp_path / f"c{coef}", stop={"steps": 20}, kl={"coef": coef})
        rows = [json.loads(x) for x in (tmp_path / f"c{coef}" / "metrics.jsonl").read_text().splitlines()]
        kl[coef] = [sum(r["kl"] for r in rows[k : k + 5]) / 5 for k in (0, 5, 10, 15)]
    assert kl[3.0][-1] < kl[0.0][-1] / 2
    assert kl[0.0] == sorted(kl[0.0]) and kl[0.0][-1] > 2 * kl[0.0][0], "without the term it goes on drifting"
    assert max(kl[3.0]) < min(kl[0.0][1:]), "with it, it stays near"
    assert kl[3.0][-1] < 1.2 * kl[3.0][1], "and drifts no further"


def test_two_runs_are_equal_and_another_seed_is_not(prompt_file, tiny_model_folder, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(prompt_file, tiny_model_folder, tmp_path / name, stop={"steps": 3}, seed=seed)
    a, b, c = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in "abc")
    assert a == b != c


def test_a_weak_model_is_refused_with_evidence(prompt_file, tiny_model_folder, tmp_path) -> None:
    with pytest.raises(TrivetError, match="--force"):
        run(prompt_file, tiny_model_folder, tmp_path / "p", check=True, stop={"steps": 1})
    assert not (tmp_path / "p" / "policy").exists()
    summary = run(prompt_file, tiny_model_folder, tmp_path / "p", check=True, force=True, stop={"steps": 1})
    assert summary.steps == 1


def test_maths_by_exact_answer(prompt_file, tiny_model_folder, tmp_path) -> None:
    summary = run(prompt_file, tiny_model_folder, tmp_path / "p", reward=["trivet.judge.maths:exact_answer"],
                  stop={"steps": 1})
    assert summary.steps == 1


def test_tensorboard(prompt_file, tiny_model_folder, tmp_path) -> None:
    run(prompt_file, tiny_model_folder, tmp_path / "p", report_to=["tensorboard"], stop={"steps": 2})
    events = list((tmp_path / "p").rglob("events.out.tfevents*"))
    assert events and events[0].stat().st_size > 500


def test_a_model_that_passes_the_check_goes_on(prompt_file, tiny_model_folder, tmp_path, monkeypatch) -> None:
    """The verdict is looked at: once every model was refused, capable ones too."""
    from types import SimpleNamespace

    monkeypatch.setattr("trivet.policy.ppo.assess", lambda *args, **kwargs: SimpleNamespace(verdict=True))
    assert run(prompt_file, tiny_model_folder, tmp_path / "p", check=True, stop={"steps": 1}).steps == 1
