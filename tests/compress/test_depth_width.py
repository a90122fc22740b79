"""Whole parts left out: ranked by what was measured, fitted as least squares says, the same in the smaller model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from shapes import make
from trivet.compress.depth import least_missed, losses_without, measurements
from trivet.compress.perplexity import perplexity, window_losses
from trivet.compress.width import narrow, remove_columns
from trivet.errors import TrivetError
from trivet.models.surgery import drop_layers, sizes


def windows(count: int = 3, length: int = 14) -> list[torch.Tensor]:
    return list(torch.randint(3, 50, (count, length), generator=torch.Generator().manual_seed(0)))


def test_window_losses_are_the_model_s_own() -> None:
    model, text = make(), windows()
    with torch.no_grad():
        expected = [float(model(input_ids=w[None], labels=w[None]).loss) for w in text]
    assert torch.allclose(window_losses(model, text), torch.tensor(expected).double(), rtol=1e-5)
    longer = [*text, *windows(1, 40)]
    tokens = [13] * 3 + [39]
    mean = sum(n * float(v) for n, v in zip(tokens, window_losses(model, longer), strict=True)) / sum(tokens)
    assert perplexity(model, longer) == pytest.approx(torch.tensor(mean).exp().item())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "smollm3"])
def test_the_loss_without_a_block_is_that_of_the_model_without_it(kind) -> None:
    model, done = make(kind), []
    found = losses_without(model, windows(), done.append)
    for i in range(4):
        without = drop_layers(model, [k for k in range(4) if k != i])
        assert found[i] == pytest.approx(float(window_losses(without, windows()).mean()), rel=1e-5)
    assert len(done) == 12 and not any("forward" in vars(b) for b in model.model.layers)


def test_once_takes_the_least_missed_and_greedy_measures_again() -> None:
    model = make()
    alone = losses_without(model, windows())
    smaller, removed = least_missed(model, windows(), 2, "once")
    assert [r.layer for r in removed] == alone.argsort()[:2].tolist()
    assert [r.loss for r in removed] == pytest.approx(sorted(alone.tolist())[:2])
    assert sizes(smaller).layers == 2 and sizes(model).layers == 4
    done: list[int] = []
    smaller, removed = least_missed(model, windows(), 2, "greedy", done.append)
    first = int(alone.argmin())
    rest = [i for i in range(4) if i != first]
    again = losses_without(drop_layers(model, rest), windows())
    assert [r.layer for r in removed] == [first, rest[int(again.argmin())]]
    assert float(window_losses(smaller, windows()).mean()) == pytest.approx(removed[-1].loss, rel=1e-5)
    assert len(done) == measurements(4, 2, "greedy") * 3 == 21 and measurements(4, 2, "once") == 4


def naive_fit(weight, gram, keep, damping) -> torch.Tensor:
    """The columns `keep`, fitted in one go: min ‖(W − W')X‖² + λ‖W − W'‖² where W' is zero elsewhere."""
    h = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    fitted[:, keep] = torch.linalg.solve(h[keep][:, keep], h[keep] @ weight.double().T).T
    return fitted


def cost(weight, gram, keep, damping) -> float:
    h = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    change = weight.double() - naive_fit(weight, gram, keep, damping)
    return float(((change @ h) * change).sum())


def dependent(columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(5, columns, generator=generator), x.T @ x


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_removal_is_the_cheapest_and_the_rest_fitted_anew(size, seed) -> None:
    weight, gram = dependent(12, seed)
    groups, left = 12 // size, list(range(12 // size))

    def columns(kept: list[int]) -> list[int]:
        return [g * size + i for g in kept for i in range(size)]

    for count in range(1, groups):
        tried = {g: cost(weight, gram, columns([k for k in left if k != g]), 0.01) for g in left}
        left.remove(min(tried, key=tried.__getitem__))
        found = remove_columns(weight, gram, count, size=size, damping=0.01)
        assert found.keep == left
        expected = naive_fit(weight, gram, columns(left), 0.01)
        assert torch.allclose(found.weight.double(), expected, atol=1e-4)
        assert (found.weight[:, [c for c in range(12) if c not in columns(left)]] == 0).all()
        change = weight.double() - expected
        share = ((change @ gram.double()) * change).sum() / ((weight.double() @ gram.double()) * weight.double()).sum()
        assert found.error == pytest.approx(float(share), rel=1e-3)


def test_a_column_that_another_can_stand_in_for_costs_nothing() -> None:
    weight, _ = dependent(4)
    x = torch.randn(100, 4)
    x[:, 2] = 2 * x[:, 0]
    found = remove_columns(weight, x.T @ x, 1, damping=1e-9)
    assert set(range(4)) - set(found.keep) <= {0, 2} and found.error < 1e-6


def test_counts_that_do_not_fit() -> None:
    weight, gram = dependent(12)
    for count, size in ((12, 1), (-1, 1), (4, 3), (1, 5)):
        with pytest.raises(ValueError, match=f"of {size} columns"):
            remove_columns(weight, gram, count, size=size)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(("channels", "groups"), [(15, 0), (0, 1), (15, 1)])
def test_a_narrowed_model_is_smaller_and_computes_what_was_fitted(kind, channels, groups, tmp_path) -> None:
    model, text = make(kind), windows(12, 30)
    found = narrow(model, text, channels, groups)  # `model` now holds the fit, with zeros where something went
    left = sizes(found.model)
    assert (left.channels, left.groups, left.heads) == (40 - channels, 3 - groups, 6 - 2 * groups)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=text[0][None]).logits, found.model(input_ids=text[0][None]).logits,
                              atol=1e-4)
    assert len(found.channel_errors) == (4 if channels else 0) and len(found.group_errors) == (4 if groups else 0)
    assert all(0 <= e < 1 for e in [*found.channel_errors, *found.group_errors])
    found.model.save_pretrained(tmp_path)
    assert sizes(AutoModelForCausalLM.from_pretrained(tmp_path)) == left


def test_fitting_beats_cutting_alone() -> None:
    """On the text it was fitted to, nearer to the source than the same channels merely cut away."""
    text, source = windows(20, 30), make()
    with torch.no_grad():
        before = source(input_ids=torch.stack(text)).logits
        fitted = narrow(make(), text, 10, 0)
        near = (fitted.model(input_ids=torch.stack(text)).logits - before).square().mean()
        chances = []
        for seed in range(3):
            plain = make()
            for block in plain.model.layers:
                gone = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:10]
                block.mlp.down_proj.weight[:, gone] = 0.0
            chances.append((plain(input_ids=torch.stack(text)).logits - before).square().mean())
    assert near < 0.7 * min(chances)


def test_what_can_t_be_cut_is_refused() -> None:
    with pytest.raises(TrivetError, match="'gpt2' can't be cut"):
        least_missed(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2, n_positions=64)),
                     windows(), 1, "once")
    with pytest.raises(ValueError, match="4 of 4 blocks"):
        least_missed(make(), windows(), 4, "once")
