"""The guard inside `ppo`: what it is shown, each action, the way back. The detector here follows a script.

tests/policy/test_guard_resume.py has the detector itself, kill -9 and several processes.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from trivet.artifacts import RolloutRow, read_json, read_rows
from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.guard.base import Verdict
from trivet.models import lora
from trivet.models.reward_model import trainable_reward_model
from trivet.models.source import resolve
from trivet.policy.config import PPOConfig
from trivet.policy.guarded import lower_bound, subsample
from trivet.policy.watch import WatchRow
from trivet.stages import STAGES, run_stage
from trivet.training import checkpoints
from vllm_stand_in import StandIn

FAST = {"device": {"threads": 1}, "check": False, "rollout": 8, "sampling": {"max_new_tokens": 6},
        "optimizer": {"lr": 1e-2, "schedule": "constant", "warmup": 0.0}, "stop": {"steps": 6},
        "checkpoint": {"every": 2, "keep": 1}}
FULL = {"tune": "full", "optimizer": {"lr": 3e-3, "schedule": "constant", "warmup": 0.0}}
WATCHED = {"every": 2, "share": 0.3, "samples": 2, "reward": "test_guarded:planted"}
PLANTED: list[float] = []
"""What `planted` says of the next evaluations, in order; 0 when there is nothing left."""


def vowels(samples):
    return [sum(c in "aeiou" for c in s.completion) - 0.2 * len(s.completion) for s in samples]


def spaces(samples):
    return [s.completion.count(" ") - 0.1 * len(s.completion) for s in samples]


def letters(samples):
    return [float(sum(c.isalpha() for c in s.completion)) for s in samples]


def planted(samples):
    value = PLANTED.pop(0) if PLANTED else 0.0
    return [value] * len(samples)


class Scripted:
    """A detector that alarms at the records it is told to, and remembers how many it has seen."""

    alarms: ClassVar[set[tuple[str, int]]] = set()
    records: ClassVar[list] = []
    calibration = SimpleNamespace(calibrated=True)

    def __init__(self, config) -> None:
        self.config, self.seen = config, 0

    def observe(self, record):
        self.seen += 1
        Scripted.records.append(record)
        alarm = (record.source, record.step) in self.alarms
        level = 1.5 if alarm else 0.01 * self.seen
        return Verdict(self.config.action if alarm else "continue", record.step, level,
                       "length" if alarm else None, max(1, record.step - 1) if alarm else None,
                       f"planted at step {record.step}" if alarm else "nothing to see",
                       (len(record) - 1, 0) if alarm else (), {"length": level})

    def notes(self):
        return [f"saw {self.seen} records"]

    def state_dict(self):
        return {"seen": self.seen}

    def load_state(self, state) -> None:
        self.seen = state["seen"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    # the run imports this file by its own name: the same list must be seen from both
    import test_guarded

    test_guarded.PLANTED.clear()


@pytest.fixture
def script(monkeypatch):
    """Plant alarms at (source, step), and what the held-out reward says of one evaluation after the other."""
    import test_guarded

    monkeypatch.setattr("trivet.policy.guarded.Guard", Scripted)
    monkeypatch.setattr(Scripted, "records", [])

    def plan(*alarms, held_out=()):
        monkeypatch.setattr(Scripted, "alarms", set(alarms))
        test_guarded.PLANTED[:] = held_out

    return plan


def ppo(prompt_file, model, out, **changes):
    given = {"prompts": prompt_file, "model": str(model), "out": out, "reward": ["test_guarded:vowels"]}
    return run_stage(STAGES["ppo"], PPOConfig(**(given | FAST | changes)))


def rows(out, name):
    return [json.loads(x) for x in (out / f"{name}.jsonl").read_text().splitlines()]


def weights(out):
    return {k: v for f in sorted((out / "policy").glob("*.safetensors")) for k, v in load_file(f).items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


# --- what it is shown -------------------------------------------------------------------------------------


def test_the_subsample_is_a_function_of_the_step() -> None:
    assert subsample(1, 8, 0.25, 0) == list(range(8)), "all of the first rollout: later ones are compared with it"
    picked = [subsample(step, 8, 0.25, 0) for step in range(2, 30)]
    assert picked == [subsample(step, 8, 0.25, 0) for step in range(2, 30)]
    assert all(len(p) == 2 and p == sorted(p) and set(p) <= set(range(8)) for p in picked)
    assert len({tuple(p) for p in picked}) > 10 and {i for p in picked for i in p} == set(range(8))
    assert picked != [subsample(step, 8, 0.25, 1) for step in range(2, 30)]
    assert len(subsample(2, 8, 0.01, 0)) == 1 and subsample(2, 8, 1.0, 0) == list(range(8))
    assert subsample(1, 8, 0.0, 0) == subsample(2, 8, 0.0, 0) == []


def test_the_lower_bound_is_the_mean_less_the_deviation() -> None:
    assert lower_bound([1.0, 2.0, 6.0], 0.0) == pytest.approx(3.0)
    naive = 3.0 - 0.5 * (((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3) ** 0.5
    assert lower_bound([1.0, 2.0, 6.0], 0.5) == pytest.approx(naive)
    assert lower_bound([4.0, 4.0], 3.0) == pytest.approx(4.0)


def test_records_hold_what_the_files_hold(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script()
    out = tmp_path / "p"
    ppo(prompt_file, tiny_model_folder, out, answers=2, stop={"steps": 3},
        evaluation=WATCHED | {"reward": "test_guarded:spaces"}, guard={"ensemble": ["test_guarded:letters"]})
    records = {(r.source, r.step): r for r in Scripted.records}
    assert list(records) == [("evaluation", 0), ("rollout", 1), ("rollout", 2), ("evaluation", 2), ("rollout", 3),
                             ("evaluation", 3)]
    for (source, step), record in records.items():
        kind, folder = (RolloutRow, "rollouts") if source == "rollout" else (WatchRow, "evaluations")
        written = read_rows(out / folder / f"step-{step:05d}.jsonl", kind)
        assert [s.completion for s in record.samples] == [r.completion for r in written]
        for name in ("kl", "ref_logp", "tokens", "ended", "spread"):
            assert list(getattr(record, name)) == [getattr(r, name) for r in written]
        assert list(record.scores) == [r.score for r in written]
        held_out = "held_out" if source == "rollout" else "second"
        assert list(record.held_out) == [getattr(r, held_out) for r in written]
        asked = [h is not None for h in record.held_out]
        assert asked == [s is not None for s in record.spread]
        if (source, step) in {("rollout", 2), ("rollout", 3)}:
            # one of four prompts, with both of its answers
            assert sum(asked) == 2 and asked[::2] == asked[1::2]
        else:
            assert all(asked)
        naive = spaces(record.samples)
        assert all(h is None or h == n for h, n in zip(record.held_out, naive, strict=True))
    # the reference's log-probability: of the untouched policy's own answers it is what they were drawn with
    first = records["rollout", 1]
    assert first.kl == pytest.approx([0.0] * 8, abs=1e-5)
    assert all(r < 0 for record in records.values() for r in record.ref_logp)
    found = rows(out, "guard")
    assert [(r["source"], r["step"]) for r in found] == list(records)
    assert [r["level"] for r in found] == pytest.approx([0.01 * k for k in range(1, 7)])


def test_the_ensemble_speaks_in_one_scale(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    """Each member has mean 0 and deviation 1 on the first rollout, like the reward."""
    script()
    out = tmp_path / "p"
    ppo(prompt_file, tiny_model_folder, out, stop={"steps": 1}, guard={"ensemble": ["test_guarded:letters"]})
    (record,) = [r for r in Scripted.records if r.source == "rollout"]

    def scaled(values):
        return [(v - statistics.fmean(values)) / (statistics.pstdev(values) or 1.0) for v in values]

    panels = zip(scaled(vowels(record.samples)), scaled(letters(record.samples)), strict=True)
    assert record.spread == pytest.approx([statistics.pstdev(p) for p in panels])


def test_without_a_held_out_reward_it_says_so(prompt_file, tiny_model_folder, tmp_path, script, capsys) -> None:
    script()
    ppo(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 2})
    assert all(set(r.held_out) <= {None} and set(r.spread) == {None} for r in Scripted.records)
    assert "it has no held-out reward (evaluation.reward), no ensemble" in capsys.readouterr().out
    # the reward itself is no second opinion
    ppo(prompt_file, tiny_model_folder, tmp_path / "q", stop={"steps": 2},
        evaluation={"share": 0.3, "reward": "0.5*test_guarded:vowels"})
    assert all(set(r.held_out) <= {None} for r in Scripted.records)
    assert "evaluation.reward is the one trained on" in capsys.readouterr().out


def test_only_every_nth_rollout_is_looked_at(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script()
    out = tmp_path / "p"
    ppo(prompt_file, tiny_model_folder, out, evaluation={"every": 100, "share": 0.3, "reward": "test_guarded:spaces"},
        guard={"every": 3})
    assert [r.step for r in Scripted.records if r.source == "rollout"] == [1, 4]
    assert [r["step"] for r in rows(out, "metrics") if "guard_level" in r] == [1, 4]
    asked = [any(r.held_out is not None for r in read_rows(out / "rollouts" / f"step-0000{s}.jsonl", RolloutRow))
             for s in range(1, 7)]
    assert asked == [True, False, False, True, False, False]


# --- no alarm: nothing changes ----------------------------------------------------------------------------


@pytest.fixture
def reward_folder(tiny_model_folder, tmp_path):
    """A reward model on the tiny trunk, whose weights are not zero."""

    def make(name, seed):
        source = resolve(str(tiny_model_folder))
        model, tokenizer = trainable_reward_model(source, torch.float32, "cpu", LoRA(r=4))
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.2)
        lora.save_adapter(model, "default", tmp_path / name, source, {"role": "reward"})
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("changes", [
    {"critic": "separate"}, FULL | {"answers": 2, "minibatches": 2},
    {"kl": {"where": "loss", "adaptive": False}, "advantage": "rloo", "answers": 2}])
def test_without_an_alarm_the_weights_are_those_without_a_guard(prompt_file, tiny_model_folder, tmp_path, reward_folder,
                                                                script, changes) -> None:
    """Held-out reward and ensemble are adapters on the policy's trunk, or models of their own beside it."""
    script()
    members, second = [reward_folder("one", 1), "test_guarded:letters"], reward_folder("two", 2)
    changes = changes | {"evaluation": WATCHED | {"reward": second}}
    for name, guard in (("off", {"on": False}), ("on", {"ensemble": members})):
        ppo(prompt_file, tiny_model_folder, tmp_path / name, guard=guard, **changes)
    assert same(weights(tmp_path / "off"), weights(tmp_path / "on"))
    plain, guarded = rows(tmp_path / "off", "metrics"), rows(tmp_path / "on", "metrics")
    assert [{k: r[k] for k in plain[0]} for r in guarded] == plain
    assert guarded[0].keys() - plain[0].keys() == {"guard_level", "held_out", "spread"}
    assert rows(tmp_path / "off", "evaluation") == rows(tmp_path / "on", "evaluation")
    assert not (tmp_path / "off" / "guard.jsonl").exists()
    assert read_json(tmp_path / "off" / "summary.json")["guard"] is None
    found = read_json(tmp_path / "on" / "summary.json")["guard"]
    assert not found["alarm"] and found["returned_to"] is None and found["sentence"] == "nothing to see"
    assert 0 < found["share_of_step_time"] < 1
    assert all(r["guard"] > 0 for r in rows(tmp_path / "on", "timing"))
    assert "guard" not in read_json(tmp_path / "on" / "summary.json")["tokens_per_second"]


# --- the actions ------------------------------------------------------------------------------------------


def test_warn_goes_on_and_says_so_once(prompt_file, tiny_model_folder, tmp_path, script, capsys) -> None:
    script()
    ppo(prompt_file, tiny_model_folder, tmp_path / "off", guard={"on": False})
    script(("rollout", 3), ("rollout", 4))
    summary = ppo(prompt_file, tiny_model_folder, tmp_path / "p")
    assert summary.stop == "steps" and summary.steps == 6
    assert capsys.readouterr().out.count("guard: planted") == 1
    assert same(weights(tmp_path / "off"), weights(tmp_path / "p"))
    assert summary.guard["alarm"] and summary.guard["alarms"] == 2 and summary.guard["returned_to"] is None
    assert {k: summary.guard[k] for k in ("step", "began", "signal", "source", "sentence")} == {
        "step": 3, "began": 2, "signal": "length", "source": "rollout", "sentence": "planted at step 3"}
    assert [r.get("guard_signal") for r in rows(tmp_path / "p", "metrics")] == [None, None, "length", "length", None,
                                                                                None]
    alarm = next(r for r in rows(tmp_path / "p", "guard") if r["signal"])
    written = read_rows(tmp_path / "p" / "rollouts" / "step-00003.jsonl", RolloutRow)
    assert alarm["action"] == "warn" and alarm["answers"] == [7, 0]
    assert alarm["ids"] == [written[i].id for i in alarm["answers"]]


def test_the_answers_of_an_evaluation_are_named(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script(("evaluation", 2))
    out = tmp_path / "p"
    ppo(prompt_file, tiny_model_folder, out, evaluation={"every": 2, "share": 0.5, "samples": 2, "during": 2})
    alarm = next(r for r in rows(out, "guard") if r["signal"])
    written = read_rows(out / "evaluations" / "step-00002.jsonl", WatchRow)
    assert alarm["source"] == "evaluation" and alarm["ids"] == [written[i].id for i in alarm["answers"]]


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_raise_beta_multiplies_the_weight_at_each_alarm(prompt_file, tiny_model_folder, tmp_path, script, capsys,
                                                        where) -> None:
    kl = {"coef": 0.1, "where": where}
    script()
    ppo(prompt_file, tiny_model_folder, tmp_path / "off", guard={"on": False}, kl=kl)
    script(("rollout", 2), ("evaluation", 4))
    summary = ppo(prompt_file, tiny_model_folder, tmp_path / "p", kl=kl, evaluation=WATCHED,
                  guard={"action": "raise-beta", "beta_factor": 3.0})
    assert [r["kl_coef"] for r in rows(tmp_path / "p", "metrics")] == pytest.approx([0.1, 0.1, 0.3, 0.3, 0.9, 0.9])
    out = capsys.readouterr().out
    assert "KL weight 0.1 → 0.3" in out and "KL weight 0.3 → 0.9" in out
    assert summary.stop == "steps" and summary.guard["alarms"] == 2
    before, after = rows(tmp_path / "off", "metrics"), rows(tmp_path / "p", "metrics")
    assert all(a[k] == b[k] for a, b in zip(before[:2], after[:2], strict=True) for k in a)
    assert before[3]["score"] != after[3]["score"] or before[3]["policy_loss"] != after[3]["policy_loss"]


def test_penalise_trains_on_the_lower_bound_from_then_on(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script(("rollout", 3))
    out = tmp_path / "p"
    ppo(prompt_file, tiny_model_folder, out, missing_end_penalty=0.0, rollout=8, answers=2,
        guard={"action": "penalise", "ensemble": ["test_guarded:spaces", "test_guarded:letters"],
               "ensemble_weight": 2.0})
    state = read_json(checkpoints.latest(out / "checkpoints") / "state.json")
    assert state["guard"]["lower_bound"] and len(state["guard"]["scales"]) == 2
    scales = [state["scale"], *state["guard"]["scales"]]
    for step, row in enumerate(rows(out, "metrics"), 1):
        written = read_rows(out / "rollouts" / f"step-{step:05d}.jsonl", RolloutRow)
        panels = list(zip(*([(v - s["mean"]) / s["std"] for v in f(_samples(written))]
                            for f, s in zip((vowels, spaces, letters), scales, strict=True)), strict=True))
        bounds = [statistics.fmean(p) - 2 * statistics.pstdev(p) for p in panels]
        assert [r.score for r in written] == pytest.approx([p[0] for p in panels]), "the file keeps the reward itself"
        assert row["score"] == pytest.approx(statistics.fmean(p[0] for p in panels))
        if step > 3:
            assert row["score_penalised"] == pytest.approx(statistics.fmean(bounds), abs=1e-5)
            assert [r.spread for r in written] == pytest.approx([statistics.pstdev(p) for p in panels])
        else:
            assert row["score_penalised"] == pytest.approx(row["score"], abs=1e-5)
            assert sum(r.spread is not None for r in written) == (8 if step == 1 else 2)


def _samples(written):
    from trivet.judge.base import Sample

    return [Sample(r.id, tuple(r.messages), r.completion) for r in written]


@pytest.mark.parametrize("changes", [{}, FULL | {"critic": "separate"}, {"merge": True}])
def test_return_exports_the_best_checkpoint(prompt_file, tiny_model_folder, tmp_path, script, capsys, changes) -> None:
    """Best by the held-out reward is step 2; the alarm comes at step 7, when `keep` has rotated others away."""
    script()
    common = changes | {"evaluation": WATCHED}
    ppo(prompt_file, tiny_model_folder, tmp_path / "two", guard={"on": False}, **common | {"stop": {"steps": 2}})
    script(("rollout", 7), held_out=[0.0, 1.0, 0.5, 1.0])
    out = tmp_path / "p"
    summary = ppo(prompt_file, tiny_model_folder, out, guard={"action": "return", "share": 0},
                  **common | {"stop": {"steps": 9}, "checkpoint": {"every": 1, "keep": 1}})
    assert summary.stop == "guard" and summary.steps == 7
    assert summary.guard["returned_to"] == 2 == summary.guard["best_step"], "of equals the earlier one"
    assert summary.guard["best_held_out"] == 1.0
    assert same(weights(out), weights(tmp_path / "two"))
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"step-00000002", "step-00000006"}
    said = capsys.readouterr().out
    assert "stop=guard after 7 steps" in said and "guard: back to step 2 (held-out reward model +1.000)" in said
    # figures and texts are those of the exported policy, from as many answers as at the end of any run
    after = read_rows(out / "evaluations" / "step-00002.jsonl", WatchRow)
    other = read_rows(tmp_path / "two" / "evaluations" / "step-00002.jsonl", WatchRow)
    assert [r.completion for r in after] == [r.completion for r in other] and len(after) == len(other)
    plain = read_json(tmp_path / "two" / "summary.json")
    assert summary.reward_after == plain["reward_after"] and summary.kl == plain["kl"]
    facts = read_json(out / "policy" / ("trivet_model.json" if changes.get("tune") else "trivet_adapter.json"))
    assert facts["steps"] == 2 and facts["stop"] == "guard"
    if changes.get("merge"):
        assert same(*({k: v for f in (tmp_path / n / "model").glob("*.safetensors") for k, v in load_file(f).items()}
                      for n in ("two", "p")))


def test_return_to_the_untouched_policy_is_said(prompt_file, tiny_model_folder, tmp_path, script, capsys) -> None:
    script(("rollout", 4), held_out=[0.0, -1.0])
    out = tmp_path / "p"
    summary = ppo(prompt_file, tiny_model_folder, out, evaluation=WATCHED, guard={"action": "return", "share": 0})
    assert summary.guard["returned_to"] == 0 and summary.steps == 4 and summary.kl == 0.0
    assert summary.reward_gain["value"] == 0.0
    assert "the untouched policy: by the held-out reward nothing was gained" in capsys.readouterr().out
    assert all(not v.any() for k, v in weights(out).items() if "lora_B" in k)


def test_an_alarm_of_an_evaluation_returns_too(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    """To an earlier one; or to itself, where it is the best: then the run only ends."""
    for name, held_out, to in (("earlier", [0.0, 1.0, 0.5], 2), ("itself", [0.0, 1.0, 2.0], 4)):
        script(("evaluation", 4), held_out=held_out)
        summary = ppo(prompt_file, tiny_model_folder, tmp_path / name, evaluation=WATCHED,
                      guard={"action": "return", "share": 0})
        assert summary.stop == "guard" and summary.steps == 4 and summary.guard["returned_to"] == to
        first, last = (read_rows(tmp_path / name / "evaluations" / f"step-0000{s}.jsonl", WatchRow) for s in (0, to))
        assert [r.id for r in first] == [r.id for r in last], "as many answers a prompt as before the first step"
    ppo(prompt_file, tiny_model_folder, tmp_path / "four", guard={"on": False}, evaluation=WATCHED, stop={"steps": 4})
    assert same(weights(tmp_path / "itself"), weights(tmp_path / "four"))


def test_an_alarm_at_the_last_evaluation_returns_too(prompt_file, tiny_model_folder, tmp_path, script, capsys) -> None:
    script(("evaluation", 6), held_out=[0.0, 1.0, 0.5, 0.7])
    summary = ppo(prompt_file, tiny_model_folder, tmp_path / "p", evaluation=WATCHED,
                  guard={"action": "return", "share": 0})
    assert summary.stop == "guard" and summary.steps == 6 and summary.guard["returned_to"] == 2
    assert "stop=steps" not in capsys.readouterr().out


def test_without_an_alarm_the_last_policy_is_exported(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script(held_out=[0.0, 1.0, 0.5, 0.2])
    summary = ppo(prompt_file, tiny_model_folder, tmp_path / "p", evaluation=WATCHED,
                  guard={"action": "return", "share": 0})
    assert summary.stop == "steps" and summary.guard["returned_to"] is None and summary.guard["best_step"] == 2
    script()
    ppo(prompt_file, tiny_model_folder, tmp_path / "off", evaluation=WATCHED, guard={"on": False})
    assert same(weights(tmp_path / "p"), weights(tmp_path / "off"))


def test_a_checkpoint_that_is_gone_is_an_error(prompt_file, tiny_model_folder, tmp_path, script, monkeypatch) -> None:
    script(("rollout", 5), held_out=[0.0, 1.0])
    monkeypatch.setattr("trivet.policy.guarded.checkpoints.is_complete", lambda folder: False)
    with pytest.raises(TrivetError, match="goes back is gone or damaged"):
        ppo(prompt_file, tiny_model_folder, tmp_path / "p", evaluation=WATCHED, guard={"action": "return", "share": 0})
    assert not (tmp_path / "p" / "policy").exists()


def test_after_a_return_a_server_is_given_nothing(prompt_file, tiny_model_folder, tmp_path, script) -> None:
    script(("rollout", 3), held_out=[0.0, 1.0])
    with StandIn(tiny_model_folder) as server:
        summary = ppo(prompt_file, tiny_model_folder, tmp_path / "p", generate="vllm", url=server.url,
                      evaluation=WATCHED, guard={"action": "return", "share": 0})
        assert summary.stop == "guard" and summary.guard["returned_to"] == 2
        # the policy before each of three steps, the first of them also for the reward's scale
        assert len(server.loaded) == 3 and server.unloaded == server.loaded


# --- resume -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["warn", "raise-beta", "penalise", "return"])
@pytest.mark.parametrize("crash", [1, 2, 4, 6])
def test_a_crash_changes_nothing(prompt_file, tiny_model_folder, tmp_path, script, monkeypatch, action, crash) -> None:
    """The alarm comes at step 3 (for return at step 6); a crash before it, after it, and before any step is saved."""
    from trivet.policy import ppo as loop

    guard = {"action": action, "ensemble": ["test_guarded:letters"]}
    changes = {"evaluation": WATCHED | {"reward": "test_guarded:spaces"}, "guard": guard,
               "checkpoint": {"every": 2, "keep": 1}}
    script(("rollout", 6) if action == "return" else ("rollout", 3))
    whole, out, right = tmp_path / "whole", tmp_path / "p", loop.update
    ppo(prompt_file, tiny_model_folder, whole, **changes)

    def wrong(*args, **kwargs):
        if args[7] == crash:
            raise RuntimeError("planted")
        return right(*args, **kwargs)

    monkeypatch.setattr(loop, "update", wrong)
    with pytest.raises(RuntimeError, match="planted"):
        ppo(prompt_file, tiny_model_folder, out, **changes)
    monkeypatch.setattr(loop, "update", right)
    ppo(prompt_file, tiny_model_folder, out, **changes)
    for name in ("metrics", "guard", "evaluation"):
        assert (out / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes(), name
    assert same(weights(out), weights(whole))
    one, other = (read_json(f / "summary.json") for f in (out, whole))
    for found in (one, other):
        del found["guard"]["share_of_step_time"]
    assert one["guard"] == other["guard"] and one["reward_after"] == other["reward_after"]


def test_checkpoints_that_others_need_stay(tmp_path) -> None:
    for step, needs in ((1, []), (2, []), (3, [1]), (4, [1]), (5, [4])):
        with checkpoints.saving(tmp_path, step, keep=2, facts={"needs": needs}) as folder:
            (folder / "weights").write_text(str(step))
    assert [checkpoints.step_of(p) for p in checkpoints.complete(tmp_path)] == [1, 4, 5], "4 still needs 1"
    with checkpoints.saving(tmp_path, 6, keep=2, facts={"needs": [4]}):
        pass
    assert [checkpoints.step_of(p) for p in checkpoints.complete(tmp_path)] == [4, 5, 6]


# --- settings that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "what"), [
    ({"guard": {"action": "return"}}, "set evaluation.reward"),
    ({"guard": {"action": "return"}, "evaluation": {"reward": "2*test_guarded:vowels"}}, "is the reward trained on"),
    ({"guard": {"action": "penalise"}}, "name them in guard.ensemble"),
    ({"guard": {"action": "raise-beta"}, "kl": {"coef": 0}}, "multiplies kl.coef, which is 0"),
    ({"guard": {"ensemble": ["a:b", "0.5*a:b"]}}, "named twice"),
    ({"guard": {"ensemble": ["test_guarded:vowels"]}}, "is one of it anyway"),
    ({"guard": {"ensemble": ["a:b"]}, "normalise": False}, "one scale for all"),
    ({"guard": {"ensemble": ["a:b"], "action": "penalise"}, "evaluation": {"reward": "a:b"}}, "would train on it"),
])
def test_what_does_not_fit_is_refused(changes, what) -> None:
    with pytest.raises(ValidationError, match=what):
        PPOConfig(prompts="p.jsonl", reward=["test_guarded:vowels"], **changes)
    off = changes | {"guard": changes["guard"] | {"on": False}}
    PPOConfig(prompts="p.jsonl", reward=["test_guarded:vowels"], **off)


def test_its_settings_and_files_make_the_run_another(prompt_file, tmp_path) -> None:
    from trivet.config import fingerprint
    from trivet.runs import input_hashes

    calibration = tmp_path / "c.json"

    def mark(**guard):
        config = PPOConfig(prompts=prompt_file, reward=["a:b"], guard=guard)
        return fingerprint("ppo", config, input_hashes(config))

    calibration.write_text("{}")
    marks = [mark(), mark(action="raise-beta"), mark(on=False), mark(calibration=calibration)]
    calibration.write_text("{ }")
    marks.append(mark(calibration=calibration))
    assert len(set(marks)) == len(marks)
