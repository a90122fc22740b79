"""Fine-tuning: loss on the answer only, packing that changes nothing, a merged model folder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_tokenizer
from trivet.artifacts import Message
from trivet.data.chat import conversation_ids
from trivet.data.supervised import Example, pack_rows, read_conversations, tokenize
from trivet.errors import TrivetError
from trivet.models.source import load_tokenizer, resolve
from trivet.policy.config import SFTConfig
from trivet.stages import STAGES, run_stage
from trivet.training.written import IGNORED, collate, token_losses

CHAT = [Message(role="user", content="Count to five."), Message(role="assistant", content="one two"),
        Message(role="user", content="Go on."), Message(role="assistant", content="three four five")]


def test_only_the_assistants_tokens_are_learnt(tiny_model_folder) -> None:
    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    ids, written = conversation_ids(tokenizer, CHAT)
    learnt = tokenizer.decode([i for i, w in zip(ids, written, strict=True) if w])
    assert learnt == "one two<|end|>three four five<|end|>"
    assert tokenizer.decode(ids).startswith("<|user|>Count to five.<|end|>")


def test_packing_changes_no_loss_and_no_gradient(any_tiny_model_folder) -> None:
    torch.manual_seed(0)
    examples = [Example(tuple(torch.randint(5, 200, (n,)).tolist()), (False,) * 2 + (True,) * (n - 2))
                for n in (9, 5, 12, 7)]
    model = AutoModelForCausalLM.from_pretrained(any_tiny_model_folder, dtype=torch.float32).eval()
    packed = collate(pack_rows(examples, 20), 0)
    assert packed["input_ids"].shape[0] == 2
    loss, count = token_losses(model, packed)
    loss.backward()
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    apart = [token_losses(model, collate([[e]], 0)) for e in examples]
    torch.stack([a for a, _ in apart]).sum().backward()
    assert count == sum(c for _, c in apart) == sum(sum(e.written) for e in examples)
    assert float(loss.detach()) == pytest.approx(float(sum(a.detach() for a, _ in apart)), rel=1e-5)
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(gradient[name], p.grad, atol=2e-5), name


def test_an_example_does_not_predict_the_next_ones_first_token() -> None:
    examples = [Example((5, 6, 7), (True, True, True)), Example((8, 9), (True, True))]
    labels = collate([examples], 0)["labels"]
    assert labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9]]


def test_it_learns_and_leaves_a_plain_model_folder(jsonl, tiny_model_folder, tmp_path) -> None:
    data = jsonl("d.jsonl", [{"prompt": f"Say {w}.", "completion": "yes yes yes"} for w in ("red", "blue", "warm")] * 6)
    stage = STAGES["sft"]
    for tune, lr in (("lora", 2e-2), ("full", 1e-2)):
        out = tmp_path / tune
        summary = run_stage(stage, SFTConfig(
            data=data, model=str(tiny_model_folder), out=out, tune=tune, epochs=12, batch=2, max_length=64,
            optimizer={"lr": lr}, check=False, device={"threads": 1}))
        assert summary.last_loss < 1.0 < 5.0 < summary.first_loss
        model = AutoModelForCausalLM.from_pretrained(out / "model")
        assert not any("lora" in n for n, _ in model.named_parameters())
        tokenizer = load_tokenizer(resolve(str(out / "model")))
        text = tokenizer.apply_chat_template([{"role": "user", "content": "Say red."}], tokenize=False,
                                             add_generation_prompt=True)
        made = model.generate(**tokenizer(text, return_tensors="pt", add_special_tokens=False), max_new_tokens=8,
                              do_sample=False)
        assert "yes yes" in tokenizer.decode(made[0])


@pytest.mark.parametrize(("row", "words"), [
    ({"messages": [{"role": "user", "content": "x"}]}, "does not end with an answer"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "assistant"),
    ({"question": "x", "answer": "y"}, "none of the known forms"),
    ({"prompt": "x", "completion": " "}, "does not end with an answer"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "without a question"),
    ({"prompt": "x", "completion": "y", "learn": "first"}, "which turns are to be learned"),
])
def test_rows_that_do_not_fit(jsonl, row, words) -> None:
    path = jsonl("d.jsonl", [{"prompt": "a", "completion": "b"}, row])
    with pytest.raises(TrivetError, match=words) as error:
        read_conversations(path)
    assert error.value.line == 2


def test_instruction_data_is_read(jsonl) -> None:
    path = jsonl("d.jsonl", [json.loads('{"instruction": "Add.", "input": "1 2", "output": "3"}')])
    ((line, messages, last_only),) = read_conversations(path)
    assert not last_only
    assert (line, messages[0].content, messages[1].content) == (1, "Add.\n\n1 2", "3")


def test_only_the_last_turn_may_be_learned(jsonl) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a?"), ("assistant", "never"), ("user", "b?"),
                                                    ("assistant", "yes"))]
    path = jsonl("d.jsonl", [{"messages": turns}, {"messages": turns, "learn": "last"}])
    tokenizer = make_tokenizer()
    every, last = tokenize(read_conversations(path), tokenizer, 64, path)

    def learned(example: Example) -> str:
        return tokenizer.decode([i for i, w in zip(example.ids, example.written, strict=True) if w])

    assert every.ids == last.ids
    assert learned(every) == "never<|end|>yes<|end|>" and learned(last) == "yes<|end|>"
