"""The stage `reward` on a rule that can be learnt, through its own door."""

from __future__ import annotations

import json

import pytest
import torch

from trivet.artifacts import Preference, read_json, read_rows
from trivet.errors import TrivetError
from trivet.models.reward_model import Group
from trivet.reward.config import RewardConfig
from trivet.reward.train import Element, collate, elements
from trivet.stages import STAGES, run_stage

FAST = {"device": {"threads": 1}, "optimizer": {"lr": 1e-2}, "batch": 4,
        "calibration": {"answers": 6, "sampling": {"temperature": 1.0, "max_new_tokens": 8}}}


def config(train, heldout, model, out, **changes) -> RewardConfig:
    given = {"preferences": train, "heldout": heldout, "model": str(model), "out": out}
    return RewardConfig(**(given | FAST | changes))


@pytest.mark.parametrize("changes", [
    {"epochs": 6}, {"epochs": 6, "tune": "full", "optimizer": {"lr": 3e-3}},
    {"epochs": 6, "tune": "full", "optimizer": {"lr": 3e-3}, "pool": "mean"}, {"epochs": 6, "pool": "mean"},
    {"epochs": 6, "tune": "head", "pool": "mean", "optimizer": {"lr": 0.3}},
    {"epochs": 6, "loss": "davidson"}, {"epochs": 6, "margin": True, "label_smoothing": 0.1},
])
def test_it_learns_a_rule(preference_files, tiny_model_folder, tmp_path, changes) -> None:
    train, heldout = preference_files
    stage = STAGES["reward"]
    summary = run_stage(stage, config(train, heldout, tiny_model_folder, tmp_path / "r", **changes))
    assert summary.accuracy["low"] > 0.8
    assert summary.accuracy["n"] == 6
    assert summary.heldout_pairs == 36
    rows = [json.loads(x) for x in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == summary.steps == 6 * 5
    assert rows[0]["loss"] == pytest.approx(0.693, abs=0.08) or changes.get("loss") == "davidson"
    calibration = read_json(tmp_path / "r" / "reward" / "calibration.json")
    assert len(calibration["reference_scores"]) == 6
    assert calibration["reference"] == str(tiny_model_folder)


def test_frozen_blocks_that_run_once_change_nothing(preference_files, tiny_model_folder, tmp_path, monkeypatch) -> None:
    from trivet.reward import train as module

    train, heldout = preference_files
    rows, kept_for, keep = [], [], module.keep_states
    monkeypatch.setattr(module, "keep_states", lambda *given: kept_for.append(given[2]) or keep(*given))
    for kept in (4.0, 0.0):
        out = tmp_path / f"k{kept}"
        run_stage(STAGES["reward"], config(train, heldout, tiny_model_folder, out, epochs=2, keep_states=kept,
                                           lora={"r": 4, "last_layers": 1}))
        rows.append([json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()])
    assert kept_for == [1], "the one block without adapters, in the first run alone"
    assert rows[0] == pytest.approx(rows[1], abs=1e-4)
    assert rows[0][-1] != pytest.approx(rows[0][0], abs=1e-3)


def test_the_head_alone_learns_and_its_adapter_stays_zero(preference_files, tiny_model_folder, tmp_path) -> None:
    from trivet.models.lora import adapter_tensors

    train, heldout = preference_files
    run_stage(STAGES["reward"], config(train, heldout, tiny_model_folder, tmp_path / "r", tune="head", pool="mean"))
    tensors = adapter_tensors(tmp_path / "r" / "reward")
    assert all(not t.any() for n, t in tensors.items() if "lora_B" in n)
    assert next(t for n, t in tensors.items() if n.endswith("score.weight")).any()
    assert read_json(tmp_path / "r" / "reward" / "trivet_adapter.json")["trivet_pool"] == "mean"


def test_each_completion_stands_once_in_its_element(preference_files, tiny_model_folder) -> None:
    from trivet.models.source import load_tokenizer, resolve

    train, _ = preference_files
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    found, left_out = elements(read_rows(train, Preference), tokenizer, None, 256, train)
    assert left_out == 0
    assert len(found) == 18
    for element in found:
        assert len(element.group.answers) == 4
        assert len(element.pairs) == 6
        assert element.weight == pytest.approx(1.0)
        assert {i for p in element.pairs for i in p[:2]} == {0, 1, 2, 3}


def test_pair_indices_count_through_the_batch() -> None:
    one = Element(Group((5,), ((6,), (7,))), ((0, 1, 1.0, 1.0, 0.0, False),))
    two = Element(Group((5, 5), ((6,), (7,), (8,))), ((2, 0, 1.0, 0.5, 0.0, False), (1, 2, 0.7, 0.5, 0.0, False)))
    batch = collate([one, two], 0, torch.float32)
    assert batch["chosen"].tolist() == [0, 4, 3]
    assert batch["rejected"].tolist() == [1, 2, 4]
    assert batch["weight"].tolist() == [1.0, 0.5, 0.5]


def test_accumulation_changes_nothing(preference_files, tiny_model_folder, tmp_path) -> None:
    train, heldout = preference_files
    losses = []
    for micro in (4, 2, 1):
        out = tmp_path / f"m{micro}"
        run_stage(STAGES["reward"], config(train, heldout, tiny_model_folder, out, micro_batch=micro, epochs=1))
        losses.append([json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)
    assert losses[2] == pytest.approx(losses[0], abs=2e-4)


def test_heldout_that_shares_a_prompt_is_refused(preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    with pytest.raises(TrivetError, match="begin with a turn"):
        run_stage(STAGES["reward"], config(train, train, tiny_model_folder, tmp_path / "r"))


def test_long_pairs_are_an_error_or_left_out(jsonl, preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    rows = [json.loads(x) for x in train.read_text().splitlines()]
    rows[7]["chosen"] = "yes " * 400
    path = jsonl("long.jsonl", rows)
    with pytest.raises(TrivetError, match=rows[7]["id"]):
        run_stage(STAGES["reward"], config(path, None, tiny_model_folder, tmp_path / "a"))
    summary = run_stage(STAGES["reward"], config(path, None, tiny_model_folder, tmp_path / "b", max_length=256))
    assert summary.left_out_too_long == 1
    assert summary.accuracy is None


def test_reference_answers_of_another_model_are_refused(jsonl, preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    path = jsonl("c.jsonl", [{"prompt": "x?", "completions": [{"id": "a", "text": "y", "model": "another"}]}])
    with pytest.raises(TrivetError, match="not of the reference"):
        run_stage(STAGES["reward"], config(train, None, tiny_model_folder, tmp_path / "r",
                                           calibration={"completions": path}))


def test_ties_need_davidson(jsonl, preference_files, tiny_model_folder, tmp_path) -> None:
    train, _ = preference_files
    rows = [json.loads(x) for x in train.read_text().splitlines()]
    rows[0] |= {"tie": True, "label": 0.5}
    with pytest.raises(TrivetError, match="declared ties"):
        run_stage(STAGES["reward"], config(jsonl("t.jsonl", rows), None, tiny_model_folder, tmp_path / "r"))


def test_chunks_of_like_length_change_nothing(tiny_model_folder, monkeypatch) -> None:
    from trivet.models.output_layer import backbone
    from trivet.models.reward_model import head_of, packed_scores, plain, trainable_reward_model
    from trivet.models.source import resolve
    from trivet.reward import train

    model, _ = trainable_reward_model(resolve(str(tiny_model_folder)), torch.float32, "cpu", None)
    torch.nn.init.normal_(head_of(model).weight)
    found = [Element(Group(tuple(range(5, 5 + n)), ((6, 7), (8,) * n)), ((0, 1, 1.0, 1.0, 0.0, False),))
             for n in (9, 2, 30, 4)]
    seen = []
    for limit in (10**6, 20):
        monkeypatch.setattr(train, "CHUNK_TOKENS", limit)
        batch = collate(found, 0, torch.float32)
        assert (len(batch["chunks"]) > 1) == (limit == 20)
        scores = torch.cat([packed_scores(backbone(plain(model)), head_of(model), c, "last") for c in batch["chunks"]])
        seen.append((scores[batch["chosen"]] - scores[batch["rejected"]]).tolist())
    assert seen[0] == pytest.approx(seen[1], abs=1e-5)
