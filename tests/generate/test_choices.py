"""Shared prefixes against one plain pass for each continuation."""

from __future__ import annotations

import random

import pytest
import torch

from conftest import build_tiny, make_tokenizer
from trivet.errors import TrivetError
from trivet.generate import choices
from trivet.generate.choices import Fork, fork_of, score_forks, shares_prefixes


def load(folder, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def plainly(model, fork: Fork) -> list[tuple[float, bool]]:
    """One forward pass for each continuation, no code shared with what is tested."""
    found = []
    for ids in fork.continuations:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*fork.prompt, *ids]]), use_cache=False).logits[0]
        logps = torch.log_softmax(logits.double(), -1)[len(fork.prompt) - 1 : -1]
        wanted = torch.tensor(ids)
        found.append((logps.gather(-1, wanted[:, None]).sum().item(), bool((logps.argmax(-1) == wanted).all())))
    return found


def forks(preamble: int, count: int = 7, seed: int = 0) -> list[Fork]:
    """Prompts with a common beginning; continuations that share beginnings, repeat, or begin one another."""
    draw = random.Random(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, 250) for _ in range(n))

    head, made = some(preamble), []
    for _ in range(count):
        stem = some(draw.randrange(1, 5))
        ends = [stem, stem + some(3), stem + some(1), some(1), some(draw.randrange(2, 9)), stem]
        made.append(Fork(head + some(draw.randrange(1, 9)), tuple(ends[: draw.randrange(1, 7)])))
    return made


@pytest.mark.parametrize("preamble", [0, 3, 20])
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_equals_one_pass_for_each_continuation(any_tiny_model_folder, preamble, batch_tokens) -> None:
    model = load(any_tiny_model_folder)
    assert shares_prefixes(model)
    given = forks(preamble)
    done: list[int] = []
    scored = score_forks(model, given, batch_tokens=batch_tokens, progress=done.append)
    assert sum(done) == len(given)
    for fork, found in zip(given, scored, strict=True):
        assert [s.tokens for s in found] == [len(c) for c in fork.continuations]
        for one, (logp, greedy) in zip(found, plainly(model, fork), strict=True):
            assert one.logp == pytest.approx(logp, abs=1e-5 * max(1, abs(logp)))
            assert one.greedy == greedy


def test_float64_is_exact_to_its_arithmetic(any_tiny_model_folder) -> None:
    model = load(any_tiny_model_folder, torch.float64)
    given = forks(30)
    for fork, found in zip(given, score_forks(model, given), strict=True):
        assert [s.logp for s in found] == pytest.approx([p for p, _ in plainly(model, fork)], abs=1e-6)


def test_greedy_continuations_are_known(tiny_model_folder) -> None:
    model = load(tiny_model_folder)
    prompt = list(range(7, 20))
    ids = list(prompt)
    for _ in range(4):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    best = tuple(ids[len(prompt):])
    other = (*best[:3], (best[3] + 1) % 250)
    assert [s.greedy for s in score_forks(model, [Fork(tuple(prompt), (best, other, best[:2]))])[0]] == [
        True, False, True]


def test_a_prefix_is_run_once(tiny_model_folder) -> None:
    """Tokens run: the preamble once, each prompt's rest once, a shared beginning once, no continuation's last."""
    model = load(tiny_model_folder)
    head = tuple(range(10, 30))
    given = [Fork((*head, 31, 32), ((40, 41, 42), (40, 41, 43), (50,))), Fork((*head, 33), ((60, 61),))]
    tokens: list[tuple[str, int]] = []
    score_forks(model, given, count=lambda kind, n: tokens.append((kind, n)))
    assert tokens == [("scored", 20 + (2 + 2) + (1 + 1))]


def test_a_long_row_is_cut(tiny_model_folder, monkeypatch) -> None:
    model = load(tiny_model_folder)
    fork = Fork(tuple(range(10, 20)), tuple(tuple(range(i, i + 12)) for i in range(20, 40)))
    whole = score_forks(model, [fork])[0]
    assert len(list(choices._tree_rows(0, fork, 0))) == 1
    monkeypatch.setattr(choices, "ROW_TOKENS", 40)
    rows = list(choices._tree_rows(0, fork, 0))
    assert len(rows) > 3 and all(len(r) <= 40 for r in rows)
    cut = score_forks(model, [fork])[0]
    assert [s.logp for s in cut] == pytest.approx([s.logp for s in whole], abs=1e-4)


def test_output_layer_in_chunks_and_logits_that_are_more_than_a_layer(tiny_model_folder, monkeypatch) -> None:
    model = load(tiny_model_folder)
    given = forks(12)
    expected = [s.logp for row in score_forks(model, given) for s in row]
    monkeypatch.setattr(choices, "CHUNK_LOGITS", 1)
    assert [s.logp for row in score_forks(model, given) for s in row] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(choices, "plain_output_layer", lambda model: None)
    assert [s.logp for row in score_forks(model, given) for s in row] == pytest.approx(expected, abs=1e-5)


def test_a_model_that_bears_no_sharing_gets_rows_of_its_own(tiny_model_folder, monkeypatch) -> None:
    model = load(tiny_model_folder)
    given = forks(12)
    expected = [s.logp for row in score_forks(model, given) for s in row]
    forward = type(model.model).forward

    def no_cache(self, *args, **kwargs):
        if kwargs.get("past_key_values") is not None:
            raise TypeError("no cache")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", no_cache)
    del model._trivet_shares_prefixes
    assert not shares_prefixes(model)
    assert [s.logp for row in score_forks(model, given) for s in row] == pytest.approx(expected, abs=1e-4)


def test_a_model_that_ignores_the_mask_is_found_out(tiny_model_folder, monkeypatch) -> None:
    model = load(tiny_model_folder)
    forward = type(model.model).forward

    def blind(self, *args, **kwargs):
        kwargs["attention_mask"] = None
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", blind)
    assert not shares_prefixes(model)


def test_a_sliding_window_is_heeded(tmp_path) -> None:
    """A mask of our own would let every layer see all: rows longer than the window are run singly."""
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    MistralForCausalLM(MistralConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.2, bos_token_id=None, eos_token_id=1,
        pad_token_id=0)).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    given = forks(12, count=3)
    for fork, found in zip(given, score_forks(model, given), strict=True):
        assert [s.logp for s in found] == pytest.approx([p for p, _ in plainly(model, fork)], abs=1e-3)


def test_split_of_prompt_and_continuation() -> None:
    tokenizer = make_tokenizer()
    fork = fork_of(tokenizer, "Is it rice? ", ["yes, rice", "no"])
    for ids, text in zip(fork.continuations, ["yes, rice", "no"], strict=True):
        assert tokenizer.decode([*fork.prompt, *ids]) == f"Is it rice? {text}"
        assert tokenizer.decode(ids) == f" {text}"
    with pytest.raises(TrivetError, match="no tokens"):
        fork_of(tokenizer, "Is it rice?", ["yes", ""])


def test_what_does_not_fit_is_said(tmp_path) -> None:
    model = load(build_tiny(tmp_path / "m", context=32))
    with pytest.raises(TrivetError, match="context is 32"):
        score_forks(model, [Fork(tuple(range(31)), ((1, 2, 3),))])
    fork = Fork(tuple(range(30)), ((1, 2, 3),))  # the last token is never run
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([[*range(30), 1, 2]])).logits[0, 29:], -1)
    assert score_forks(model, [fork])[0][0].logp == pytest.approx(
        sum(logps[i, t].item() for i, t in enumerate((1, 2, 3))), abs=1e-4)
    for bad in (Fork((), ((1,),)), Fork((1,), ()), Fork((1,), ((),))):
        with pytest.raises(TrivetError, match="no tokens"):
            score_forks(model, [bad])
    assert score_forks(model, []) == []
