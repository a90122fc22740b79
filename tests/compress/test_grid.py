"""Rounding, GPTQ and training through a quantization, each beside a second implementation that is slow and plain."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from trivet.compress.fake_quant import attach, detach, linear_layers
from trivet.compress.gptq import gptq
from trivet.compress.grid import Quantized, fit, round_to_nearest
from trivet.compress.quantize_config import Grid
from trivet.errors import TrivetError
from trivet.models.source import load_causal_lm, resolve

GRIDS = [Grid(bits=b, group=g, symmetric=s, scales=t) for b, g, s, t in itertools.product(
    (3, 4, 8), (8, None), (True, False), ("bfloat16", "float32"))]


def by_hand(row: list[float], grid: Grid) -> list[float]:
    """A group's weights rounded, one number after the other."""
    low, high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    dtype = getattr(torch, grid.scales)
    if grid.symmetric:
        scale, zero = max(abs(w) for w in row) * 2 / (2**grid.bits - 1), 0
    else:
        least, most = min(0.0, *row), max(0.0, *row)
        scale = (most - least) / (2**grid.bits - 1)
    scale = float(torch.tensor(scale).to(dtype)) or float(torch.finfo(dtype).tiny)
    if not grid.symmetric:
        zero = min(high, max(low, round(low - least / scale)))
    return [(min(high, max(low, round(w / scale) + zero)) - zero) * scale for w in row]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rounding_is_what_is_done_by_hand(grid: Grid) -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    weight[1] = 0  # a group of zeros
    weight[2] = weight[2].abs()  # a lopsided one
    found = round_to_nearest(weight, grid)
    size = grid.group or 24
    expected = [[w for i in range(0, 24, size) for w in by_hand(row[i : i + size].tolist(), grid)] for row in weight]
    # a weight in the middle of two numbers (a symmetric group's largest negative one always is) may go either way:
    # float32 here, float64 there
    step = found.scales.float().repeat_interleave(size, 1)
    off = (found.weight() - torch.tensor(expected)).abs()
    assert (off < 1e-4 * step).float().mean() > 0.9 and bool((off < 1.001 * step).all())
    assert found.codes.dtype == torch.int8 and found.scales.dtype == getattr(torch, grid.scales)
    assert int(found.codes.min()) >= -(2 ** (grid.bits - 1)) and int(found.codes.max()) < 2 ** (grid.bits - 1)
    assert torch.equal(found.weight()[1], torch.zeros(24))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_zeros_stay_zeros(grid: Grid) -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(2)) * (torch.rand(6, 24) > 0.5)
    assert bool((round_to_nearest(weight, grid).weight()[weight == 0] == 0).all())


def test_a_finer_grid_errs_less() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    errors = [float((round_to_nearest(weight, Grid(bits=b, group=g)).weight() - weight).norm())
              for b, g in ((3, None), (4, None), (4, 64), (4, 16), (8, None), (8, 16))]
    assert errors[1] == errors[2] and errors[0] > errors[1] > errors[3] > errors[4] > errors[5]


def test_a_group_must_divide_a_row() -> None:
    with pytest.raises(ValueError, match="a row of 24 is no multiple of the group of 16"):
        round_to_nearest(torch.zeros(2, 24), Grid(group=16))


# --- GPTQ ------------------------------------------------------------------------------------------------------


def naive_gptq(weight: Tensor, hessian: Tensor, grid: Grid, damping: float, act_order: bool) -> Tensor:
    """Column by column with the inverse of what is left computed anew each time, in float64."""
    w, h = weight.double().clone(), hessian.double().clone()
    for i in range(len(h)):
        if h[i, i] == 0:
            h[i, i] = 1
    h += damping * h.diagonal().mean() * torch.eye(len(h))
    size = grid.group or w.shape[1]
    order = sorted(range(len(h)), key=lambda i: -float(h[i, i])) if act_order else list(range(len(h)))
    beforehand = [fit(w[:, s : s + size].float(), grid) for s in range(0, len(h), size)]
    result = torch.zeros_like(w)
    for step, column in enumerate(order):
        left = order[step:]
        inverse = torch.linalg.inv(h[left][:, left])
        if not act_order and column % size == 0:
            beforehand[column // size] = fit(w[:, column : column + size].float(), grid)
        scale, zero = beforehand[column // size]
        low, high = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
        shift = 0.0 if zero is None else zero.double()
        code = ((w[:, column] / scale.double()).round() if zero is None
                else (w[:, column] / scale.double() + shift).round()).clamp(low, high)
        result[:, column] = (code - shift) * scale.double()
        error = (w[:, column] - result[:, column]) / inverse[0, 0]
        w[:, left] -= torch.outer(error, inverse[0])
    return result


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", [Grid(bits=4, group=8), Grid(bits=3, group=None), Grid(bits=4, group=16,
                                                                                   symmetric=False)], ids=str)
def test_gptq_is_the_naive_one(grid: Grid, act_order: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    mix = torch.randn(48, 48, generator=generator)
    inputs = torch.randn(400, 48, generator=generator) @ mix
    inputs[:, 5] = 0  # an input that is never used
    weight = torch.randn(10, 48, generator=generator)
    found = gptq(weight, inputs.T @ inputs, grid, damping=0.01, act_order=act_order).weight()
    expected = naive_gptq(weight, inputs.T @ inputs, grid, 0.01, act_order).float()
    # float32 against float64: a weight in the middle of two numbers may go the other way, and takes its row along
    same = (found - expected).abs().amax(1) < 1e-5
    assert int(same.sum()) >= 9


def test_gptq_changes_outputs_less_than_rounding_to_the_nearest() -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(600, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    weight = torch.randn(32, 64, generator=generator)
    for grid in (Grid(bits=4, group=16), Grid(bits=3, group=16), Grid(bits=4, group=None, symmetric=False)):
        errors = [float((inputs @ (q.weight() - weight).T).norm()) for q in (
            gptq(weight, inputs.T @ inputs, grid), round_to_nearest(weight, grid))]
        assert errors[0] < 0.8 * errors[1]


def test_gptq_of_unrelated_inputs_is_rounding_to_the_nearest() -> None:
    """With H diagonal no column can make up for another's error."""
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(6))
    grid = Grid(bits=4, group=8)
    found, nearest = gptq(weight, torch.eye(32) * 7, grid), round_to_nearest(weight, grid)
    assert torch.equal(found.codes, nearest.codes) and torch.equal(found.scales, nearest.scales)


def test_gptq_says_when_the_text_says_too_little() -> None:
    one = torch.ones(1, 16)
    with pytest.raises(TrivetError, match="says too little"):
        gptq(torch.randn(4, 16), -(one.T @ one), Grid(group=8), damping=0)


# --- training through it -----------------------------------------------------------------------------------------


def test_training_through_a_quantization(tiny_model_folder) -> None:
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    weights = {n: m.weight.detach().clone() for n, m in linear_layers(model).items()}
    grid = Grid(bits=3, group=16)
    ids = torch.arange(12)[None]
    before = model(input_ids=ids).logits
    names = attach(model, grid)
    assert names == list(weights) and len(names) == 14
    after = model(input_ids=ids, labels=ids)
    assert not torch.allclose(before, after.logits)
    for name, layer in linear_layers(model).items():
        assert torch.equal(layer.weight, round_to_nearest(weights[name], grid).weight())
    after.loss.backward()
    gradients = {n: m.parametrizations.weight.original.grad for n, m in linear_layers(model).items()}
    # straight through: the gradient at the rounded weights, as it is
    plain = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    with torch.no_grad():
        for layer in linear_layers(plain).values():
            layer.weight.copy_(round_to_nearest(layer.weight, grid).weight())
    plain(input_ids=ids, labels=ids).loss.backward()
    for name, layer in linear_layers(plain).items():
        assert torch.equal(gradients[name], layer.weight.grad)
    detach(model)
    assert all(torch.equal(m.weight, weights[n]) for n, m in linear_layers(model).items())
    assert set(model.state_dict()) == set(plain.state_dict())
    assert torch.equal(model(input_ids=ids).logits, before)


def test_what_was_trained_is_what_rounding_saves(tiny_model_folder) -> None:
    """After some steps the layer computes with the very numbers that rounding its weights once gives."""
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    grid = Grid(bits=4, group=8, symmetric=False)
    attach(model, grid)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ids = torch.arange(12)[None]
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    computed = {n: m.weight.detach().clone() for n, m in linear_layers(model).items()}
    detach(model)
    for name, layer in linear_layers(model).items():
        found: Quantized = round_to_nearest(layer.weight, grid)
        assert torch.equal(found.weight(), computed[name])


def test_what_can_not_be_quantized_is_refused(tiny_model_folder, make_tiny, tmp_path) -> None:
    model = load_causal_lm(resolve(str(tiny_model_folder)), torch.float32, "cpu")
    with pytest.raises(TrivetError, match=r"q_proj: a row of 32 is no multiple(.|\n)*one of 32, 16, 8"):
        attach(model, Grid(group=24))
    gpt2 = load_causal_lm(resolve(str(make_tiny(tmp_path / "gpt2", "gpt2"))), torch.float32, "cpu")
    with pytest.raises(TrivetError, match="hold no Linear layers"):
        attach(gpt2, Grid(group=8))
