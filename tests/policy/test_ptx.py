"""PPO-ptx: the loss on earlier data in the update, its place in that data, and that without weight it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trivet.config import LoRA
from trivet.data.supervised import Example, read_examples
from trivet.errors import TrivetError
from trivet.models.roles import SharedTrunk
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.policy.config import PPOConfig
from trivet.policy.ptx import EarlierData, summed_loss
from trivet.stages import STAGES, run_stage
from trivet.training.written import collate, token_losses

ANSWERS = [{"prompt": f"Say {w}.", "completion": f"{w} it is"} for w in ("red", "green", "blue", "warm", "cold")]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(prompt_file, model, out, **changes):
    given = {"prompts": prompt_file, "model": str(model), "out": out, "reward": ["test_ppo_run:vowels"],
             "device": {"threads": 1}, "check": False, "rollout": 8, "sampling": {"max_new_tokens": 8},
             "optimizer": {"lr": 1e-2}, "stop": {"steps": 4}, "micro_batch": 4}
    run_stage(STAGES["ppo"], PPOConfig(**(given | changes)))
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


def earlier(examples: list[Example], **changes) -> EarlierData:
    given = {"coef": 1.0, "batch": 4, "micro_batch": 2, "seed": 0, "pad": 0, "device": "cpu"}
    return EarlierData(examples, **(given | changes))


def some_examples() -> list[Example]:
    torch.manual_seed(0)
    return [Example(tuple(torch.randint(5, 200, (n,)).tolist()), (False,) * 2 + (True,) * (n - 2))
            for n in (9, 5, 12, 7, 3, 11)]


def test_the_loss_is_that_of_sft_by_a_plain_forward(any_tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    batch = collate([[e] for e in some_examples()], 0)
    ours, (plain, _) = summed_loss(model, batch), token_losses(model, batch)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
    apart = sum(float(-torch.log_softmax(model(torch.tensor([e.ids])).logits[0, i - 1], -1)[e.ids[i]].detach())
                for e in some_examples() for i in range(1, len(e.ids)) if e.written[i])
    assert float(ours.detach()) == pytest.approx(apart, rel=1e-5)


def test_micro_batches_add_up_to_the_mean_over_the_steps_tokens(tiny_model_folder) -> None:
    roles = SharedTrunk(resolve(str(tiny_model_folder)), torch.float32, "cpu", LoRA(r=4), critic=None)
    totals = []
    for size in (4, 2, 1):
        with roles.model("policy") as model:
            totals.append(sum(float(summed_loss(model, batch).detach()) / learned
                              for batch, learned in earlier(some_examples(), micro_batch=size).parts(3)))
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)


def test_the_rows_are_a_function_of_the_step_and_all_come() -> None:
    data, again = earlier(some_examples()), earlier(some_examples())
    assert [data.rows(n) for n in range(5)] == [again.rows(n) for n in range(5)]
    seen = [e for n in range(3) for e in data.rows(n)]
    assert sorted(e.ids for e in seen) == sorted(e.ids for e in some_examples() * 2), "12 rows: each of the 6 twice"
    assert data.tokens(0, 3) == 2 * sum(len(e.ids) for e in some_examples())
    assert data.rows(0) != earlier(some_examples(), seed=1).rows(0)


@pytest.mark.parametrize("changes", [
    {}, {"tune": "full", "optimizer": {"lr": 3e-3}, "advantage": "rloo", "answers": 2}])
def test_it_keeps_the_policy_on_that_data(prompt_file, jsonl, tiny_model_folder, tmp_path, changes) -> None:
    data = jsonl("d.jsonl", ANSWERS)
    rows = run(prompt_file, tiny_model_folder, tmp_path / "p", stop={"steps": 15}, **changes,
               ptx={"data": data, "coef": 1.0, "batch": 5})
    losses = [r["ptx_loss"] for r in rows]
    assert losses[-1] < 0.7 * losses[0]
    policy = load_causal_lm(resolve(str(tmp_path / "p" / "policy")), torch.float32, "cpu")
    base = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    batch = collate([[e] for e in read_examples(data, tokenizer, 64, setting="x")], 0)
    with torch.no_grad():
        assert float(summed_loss(policy, batch)) < 0.7 * float(summed_loss(base, batch))


def test_without_weight_not_a_bit_changes(prompt_file, jsonl, tiny_model_folder, tmp_path) -> None:
    plain = run(prompt_file, tiny_model_folder, tmp_path / "a")
    none = run(prompt_file, tiny_model_folder, tmp_path / "b", ptx={"data": jsonl("d.jsonl", ANSWERS), "coef": 0})
    some = run(prompt_file, tiny_model_folder, tmp_path / "c", ptx={"data": jsonl("d.jsonl", ANSWERS)})
    assert plain == none and "ptx_loss" not in plain[0]
    assert some != plain and some[0]["ptx_loss"] > 0


def test_plain_text_is_cut_into_pieces_and_closed(jsonl, tiny_model_folder, tmp_path) -> None:
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    text = "The moon is made of rock and dust, not of cheese. " * 3
    (tmp_path / "a.txt").write_text(text)
    found = read_examples(tmp_path / "a.txt", tokenizer, 16, setting="x")
    ids = [i for e in found for i in e.ids]
    assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert {len(e.ids) for e in found[:-1]} == {16} and all(all(e.written) for e in found)
    rows = read_examples(jsonl("t.jsonl", [{"text": text}, {"text": "rice"}]), tokenizer, 16, setting="x")
    assert rows[: len(found)] == found and tokenizer.decode(rows[-1].ids) == "rice<|end|>"
    with pytest.raises(TrivetError, match="in all"):
        read_examples(jsonl("m.jsonl", [{"text": text}, ANSWERS[0]]), tokenizer, 16, setting="x")
