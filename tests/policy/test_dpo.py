"""The stage `dpo` through its own door, on a rule that can be learnt; its passes beside plain forward passes."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from trivet.artifacts import Preference, read_json, read_rows
from trivet.errors import TrivetError
from trivet.models.reward_model import Group
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.policy.dpo import Compared, all_logps, chunks_of, collate, packed_logps, pair_figures
from trivet.policy.dpo_config import DPOConfig
from trivet.reward.train import Element, elements
from trivet.stages import STAGES, run_stage

FAST = {"device": {"threads": 1}, "optimizer": {"lr": 1e-2}, "batch": 4}


def config(train, heldout, model, out, **changes) -> DPOConfig:
    given = {"preferences": train, "heldout": heldout, "model": str(model), "out": out}
    return DPOConfig(**(given | FAST | changes))


def metrics(out) -> list[dict]:
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


def plain_logp(model, prompt, answer) -> float:
    """One answer alone after its prompt, by the model's own logits."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logps = torch.log_softmax(model(ids).logits[0].float(), -1)
    return sum(float(logps[len(prompt) + k - 1, token]) for k, token in enumerate(answer))


GROUPS = [Group((5, 6, 7), ((8, 9), (10,), (11, 12, 13))), Group((20,), ((21,), (22, 23))),
          Group((30, 31, 32, 33, 34), ((35, 36), (36, 35)))]


def test_packed_log_probabilities_are_those_of_each_answer_alone(any_tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    expected = [plain_logp(model, g.prompt, a) for g in GROUPS for a in g.answers]
    with torch.no_grad():
        found = [v for c in chunks_of(GROUPS, 0, torch.float32, "cpu") for v in packed_logps(model, c).tolist()]
    assert found == pytest.approx(expected, abs=1e-4)
    data = [Element(g, ((0, 1, 1.0, 1.0, 0.0, False),)) for g in GROUPS]
    assert [v for values in all_logps(model, data, 0, "x") for v in values] == pytest.approx(expected, abs=1e-4)
    assert [len(v) for v in all_logps(model, data, 0, "x")] == [3, 2, 2], "in the order of the data"


def test_a_model_that_caps_its_logits_is_heard(tiny_model_folder, monkeypatch) -> None:
    from trivet.policy import dpo

    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    (packed,) = chunks_of(GROUPS, 0, torch.float32, "cpu")
    with torch.no_grad():
        one = packed_logps(model, packed)
        monkeypatch.setattr(dpo, "plain_output_layer", lambda model: None)
        torch.testing.assert_close(packed_logps(model, packed), one, atol=1e-4, rtol=1e-4)


def test_the_batch_loss_is_the_formula_pair_by_pair(tiny_model_folder, tmp_path) -> None:
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    pairs = [((0, 1, 1.0, 0.5, 0.0, False), (2, 0, 0.8, 0.25, 0.0, False)), ((1, 0, 1.0, 1.0, 0.0, False),),
             ((0, 1, 1.0, 2.0, 0.0, True),)]
    reference = [(-9.0, -5.0, -12.0), (-4.0, -8.0), (-10.0, -11.0)]
    batch = collate([Compared(Element(g, p), r) for g, p, r in zip(GROUPS, pairs, reference, strict=True)], 0,
                    torch.float32)
    settings = config("p", None, "m", tmp_path, label_smoothing=0.1)
    with torch.no_grad():
        logps = torch.cat([packed_logps(model, c) for c in batch["chunks"]])
        losses, figures = pair_figures(logps, batch, settings)
    expected, rights = [], []
    for group, of_group, ref in sorted(zip(GROUPS, pairs, reference, strict=True), key=lambda x: len(x[0])):
        ratio = [plain_logp(model, group.prompt, a) - r for a, r in zip(group.answers, ref, strict=True)]
        for chosen, rejected, label, _, _, tie in of_group:
            p = 0.5 if tie else label
            p = 0.9 * p + 0.1 * (1 - p)
            h = torch.tensor(0.1 * (ratio[chosen] - ratio[rejected]))
            expected.append(float(-p * torch.log(torch.sigmoid(h)) - (1 - p) * torch.log(torch.sigmoid(-h))))
            rights.append(float(h > 0))
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)
    assert figures["accuracy"].tolist() == rights
    assert sorted(batch["weight"].tolist()) == [0.25, 0.5, 1.0, 2.0]
    averaged = pair_figures(logps, batch, config("p", None, "m", tmp_path, per_token=True))[1]["reward_chosen"]
    sizes = batch["lengths"][batch["chosen"]]
    assert (averaged * sizes / 20).tolist() == pytest.approx(figures["reward_chosen"].tolist(), rel=1e-4)


@pytest.mark.parametrize("changes", [
    {}, {"tune": "full", "optimizer": {"lr": 3e-3}}, {"loss": "ipo"}, {"label_smoothing": 0.1, "per_token": True},
    {"lora": {"r": 4, "last_layers": 1}, "micro_batch": 2},
])
def test_it_learns_a_rule(preference_files, tiny_model_folder, tmp_path, changes) -> None:
    train, heldout = preference_files
    summary = run_stage(STAGES["dpo"], config(train, heldout, tiny_model_folder, tmp_path / "d", epochs=4, **changes))
    assert summary.accuracy["low"] > 0.7 and summary.accuracy["n"] == 6
    assert summary.heldout_pairs == 36 and summary.train_pairs == 108 and summary.train_prompts == 18
    averaged = changes.get("loss") == "ipo"
    assert averaged or summary.likelihood_accuracy_gain["low"] > 0  # of whole answers, which a mean a token is not
    assert summary.reward_margin["low"] > 0
    assert summary.better_log_ratio["value"] > summary.worse_log_ratio["value"]
    rows = metrics(tmp_path / "d")
    assert len(rows) == summary.steps == 4 * 5
    assert rows[0]["loss"] == pytest.approx(0.0625 if averaged else 0.6931, abs=1e-3), "policy and reference agree"
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["accuracy"] > 0.9
    saved = load_file(tmp_path / "d" / "reference.safetensors")["logps"]
    assert len(saved) == 24 * 4


def test_accumulation_changes_nothing(preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    losses = []
    for micro in (4, 1):
        out = tmp_path / f"m{micro}"
        run_stage(STAGES["dpo"], config(train, None, tiny_model_folder, out, micro_batch=micro))
        losses.append([r["loss"] for r in metrics(out)])
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_the_policy_is_as_ppo_writes_it(preference_files, tiny_model_folder, tmp_path, tune) -> None:
    """Loaded from its folder it gives the log-probabilities that the evaluation saw; merged, the same."""
    train, heldout = preference_files
    changes = {"merge": True} if tune == "lora" else {"tune": "full", "optimizer": {"lr": 1e-3}}
    summary = run_stage(STAGES["dpo"], config(train, heldout, tiny_model_folder, tmp_path / "d", **changes))
    source = resolve(str(tmp_path / "d" / "policy"))
    assert source.is_adapter == (tune == "lora")
    facts = read_json(source.folder / ("trivet_adapter.json" if tune == "lora" else "trivet_model.json"))
    assert facts["stage"] == "dpo" and facts["steps"] == summary.steps
    data, _ = elements(read_rows(heldout, Preference), load_tokenizer(source), None, None, heldout)
    merged = [tmp_path / "d" / "model"] if tune == "lora" else []
    logps = []
    for folder in (tiny_model_folder, tmp_path / "d" / "policy", *merged):
        model = load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
        logps.append([v for values in all_logps(model, data, 0, "x") for v in values])
    saved = load_file(tmp_path / "d" / "reference.safetensors")["logps"].tolist()
    assert logps[0] == pytest.approx(saved[18 * 4 :], abs=1e-4), "the reference is the model before"
    gained = [new - old for new, old in zip(logps[1], logps[0], strict=True)]
    margins = []
    for element in data:
        mine = [gained.pop(0) for _ in element.group.answers]
        margins += [0.1 * (mine[c] - mine[r]) for c, r, *_ in element.pairs]
    assert sum(margins) / len(margins) == pytest.approx(summary.reward_margin["value"], abs=1e-3)
    if tune == "lora":
        assert logps[2] == pytest.approx(logps[1], abs=1e-3)


def test_labels_below_one_half_turn_a_pair_round(jsonl, preference_files, tiny_model_folder, tmp_path) -> None:
    """All pairs swapped, with labels to match, are the same data."""
    found = []
    for name, turn in (("a", False), ("b", True)):
        files = []
        for part in preference_files:
            rows = [json.loads(x) for x in part.read_text().splitlines()]
            if turn:
                rows = [r | {"chosen": r["rejected"], "rejected": r["chosen"], "label": 0.0} for r in rows]
            files.append(jsonl(f"{name}-{part.name}", rows))
        found.append(run_stage(STAGES["dpo"], config(*files, tiny_model_folder, tmp_path / name)))
    assert found[1].last_loss == pytest.approx(found[0].last_loss, abs=1e-3)
    assert found[1].accuracy["value"] == pytest.approx(found[0].accuracy["value"], abs=0.06)


def test_what_does_not_go_together_is_refused(preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    with pytest.raises(TrivetError, match="begin with a turn"):
        run_stage(STAGES["dpo"], config(train, train, tiny_model_folder, tmp_path / "d"))
    with pytest.raises(ValidationError, match="a whole model already"):
        config(train, None, tiny_model_folder, tmp_path / "d", tune="full", merge=True)


def test_a_damaged_cache_of_the_reference_is_named(preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    run_stage(STAGES["dpo"], config(train, None, tiny_model_folder, tmp_path / "d"))
    (tmp_path / "d" / "summary.json").unlink()
    (tmp_path / "d" / "reference.safetensors").write_bytes(b"torn")
    with pytest.raises(TrivetError, match="do not load"):
        run_stage(STAGES["dpo"], config(train, None, tiny_model_folder, tmp_path / "d"))
