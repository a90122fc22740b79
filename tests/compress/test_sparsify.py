"""Which weights go and what the others become, against computations that know nothing of the fast ones."""

from __future__ import annotations

import pytest
import torch

from trivet.compress.inverse_hessian import damped, inverse_factor
from trivet.compress.sparsify import (
    magnitude_mask,
    smallest,
    smallest_by_pattern,
    sparsegpt,
    taken,
    wanda_mask,
)


def data(out: int = 6, columns: int = 16, tokens: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(W, X): inputs that depend on one another, so that one can stand in for another."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    return (torch.randn(out, columns, generator=generator),
            torch.randn(tokens, columns, generator=generator) @ mix)


def error(weight, other, x) -> float:
    return float(((weight - other).double() @ x.double().T).square().sum())


def hessian(x: torch.Tensor, damping: float = 0.01) -> torch.Tensor:
    h = x.double().T @ x.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)


@pytest.mark.parametrize("share", [0.07, 0.29, 0.5, 0.58, 0.9])
@pytest.mark.parametrize("shape", [(10, 10), (1280, 1280), (5120, 1280), (7, 3)])
def test_a_share_of_n_does_not_depend_on_the_order_of_a_product(share, shape) -> None:
    out, columns = shape
    assert taken(share, out * columns) == round(share * 100) * out * columns // 100


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_magnitude_takes_the_smallest_of_the_layer(share) -> None:
    weight, _ = data()
    mask = magnitude_mask(weight, share)
    order = sorted(abs(float(v)) for v in weight.flatten())
    assert int(mask.sum()) == int(share * 96)
    assert sorted(abs(float(v)) for v in weight[mask]) == order[: int(share * 96)]


def test_wanda_takes_the_smallest_products_of_each_row() -> None:
    weight, x = data()
    mask = wanda_mask(weight, x.square().sum(0), 0.4)
    for i in range(6):
        scores = {j: abs(float(weight[i, j])) * sum(float(v) ** 2 for v in x[:, j]) ** 0.5 for j in range(16)}
        assert set(mask[i].nonzero().flatten().tolist()) == set(sorted(scores, key=scores.__getitem__)[:6])


@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 4)])
def test_a_pattern_holds_in_every_group(pattern) -> None:
    weight, x = data()
    for mask in (magnitude_mask(weight, 0.5, pattern), wanda_mask(weight, x.square().sum(0), 0.5, pattern),
                 sparsegpt(weight, x.T @ x, 0.5, pattern, block=8) == 0):
        assert (mask.view(6, -1, pattern[1]).sum(-1) == pattern[0]).all()
    groups = weight.abs().view(-1, pattern[1])
    kept = magnitude_mask(weight, 0.5, pattern).view(-1, pattern[1])
    assert (groups.masked_fill(~kept, -1).amax(1) <= groups.masked_fill(kept, 9e9).amin(1)).all()


def test_equal_scores_are_taken_in_order_and_no_more_than_asked() -> None:
    assert smallest(torch.ones(2, 4), 0.5).flatten().tolist() == [True] * 4 + [False] * 4
    assert smallest_by_pattern(torch.ones(1, 4), (2, 4)).tolist() == [[True, True, False, False]]
    with pytest.raises(ValueError, match="rows of 6 weights"):
        smallest_by_pattern(torch.ones(2, 6), (2, 4))
    with pytest.raises(ValueError, match="rows of 6 weights"):
        sparsegpt(torch.ones(2, 6), torch.eye(6), 0.5, (2, 4))


def naive_sparsegpt(weight, x, share, pattern=None, damping=0.01, block=128) -> torch.Tensor:
    """Algorithm 1 of the paper without its trick: every inverse is computed anew, weight after weight."""
    w, h = weight.double().clone(), hessian(x, damping)
    rows, columns = w.shape
    chosen: set[tuple[int, int]] = set()
    for j in range(columns):
        inverse = torch.linalg.inv(h[j:, j:])

        def costs(span: range, now: torch.Tensor = w) -> dict[tuple[int, int], float]:
            return {(r, c): float(now[r, c] ** 2 / torch.linalg.inv(h[c:, c:])[0, 0])
                    for c in span for r in range(rows)}

        if pattern is None and j % block == 0:
            found = costs(range(j, min(j + block, columns)))
            chosen |= set(sorted(found, key=found.__getitem__)[: int(share * len(found))])
        if pattern is not None and j % pattern[1] == 0:
            found = costs(range(j, j + pattern[1]))
            for r in range(rows):
                of_row = {k: v for k, v in found.items() if k[0] == r}
                chosen |= set(sorted(of_row, key=of_row.__getitem__)[: pattern[0]])
        for r in range(rows):
            if (r, j) in chosen:
                w[r, j:] -= w[r, j] / inverse[0, 0] * inverse[0]
                w[r, j] = 0.0
    return w.float()


@pytest.mark.parametrize(("share", "pattern", "block"), [
    (0.5, None, 128), (0.5, None, 5), (0.3, None, 16), (0.5, (2, 4), 8), (0.5, (4, 8), 128), (0.5, (2, 4), 6)])
def test_sparsegpt_is_the_paper_s_algorithm(share, pattern, block) -> None:
    weight, x = data()
    fast = sparsegpt(weight, x.T @ x, share, pattern, block=block)
    slow = naive_sparsegpt(weight, x, share, pattern, block=block)
    assert torch.equal(fast == 0, slow == 0)
    assert torch.allclose(fast, slow, atol=1e-3)


def test_sparsegpt_is_exact_where_what_goes_stands_first() -> None:
    """Optimal brain surgeon, solved directly: the weights that stay, fitted by least squares to all that is known."""
    _, x = data()
    weight = torch.cat([torch.full((3, 5), 1e-4) * torch.randn(3, 5), 5 + torch.rand(3, 11)], 1)
    weight[:, :5] += 0.01  # small, but not nothing
    fast = sparsegpt(weight, x.T @ x, 5 / 16)
    assert (fast[:, :5] == 0).all()
    h = hessian(x)
    # minimise (w' − w) H (w' − w)ᵀ over w' whose first five are zero: H_KK (w'_K − w_K) = H_KZ w_Z
    exact = weight[:, 5:].double() + torch.linalg.solve(h[5:, 5:], h[5:, :5] @ weight[:, :5].double().T).T
    assert torch.allclose(fast[:, 5:].double(), exact, atol=1e-4)


def test_the_order_of_the_methods_on_inputs_that_depend_on_one_another() -> None:
    for seed in range(3):
        weight, x = data(32, 64, 400, seed)
        x[:, ::4] *= 6  # some inputs are large: magnitude does not know
        gram = x.T @ x
        errors = [error(weight, sparsegpt(weight, gram, 0.5), x),
                  error(weight, weight.masked_fill(wanda_mask(weight, gram.diagonal(), 0.5), 0), x),
                  error(weight, weight.masked_fill(magnitude_mask(weight, 0.5), 0), x)]
        assert errors == sorted(errors) and errors[0] < 0.9 * errors[1]


def test_the_factor_holds_the_inverses_of_all_that_is_left() -> None:
    _, x = data()
    h, dead = damped(x.T @ x, 0.01)
    upper = inverse_factor(h).float()
    for j in (0, 3, 15):
        inverse = torch.linalg.inv(hessian(x)[j:, j:])
        assert torch.allclose(upper[j, j].double() ** 2, inverse[0, 0], rtol=1e-5)
        assert torch.allclose((upper[j, j:] / upper[j, j]).double(), inverse[0] / inverse[0, 0], atol=1e-5)
    assert not dead.any()


def test_inputs_that_are_always_zero_lose_their_weights() -> None:
    weight, x = data()
    x[:, [2, 9]] = 0.0
    found = sparsegpt(weight, x.T @ x, 0.5)
    assert (found[:, [2, 9]] == 0).all() and int((found == 0).sum()) == 48


def test_the_precision_of_the_weight_stays_and_the_weight_too() -> None:
    weight, x = data()
    half = weight.bfloat16()
    kept = half.clone()
    assert sparsegpt(half, x.T @ x, 0.5).dtype == torch.bfloat16 and torch.equal(half, kept)
