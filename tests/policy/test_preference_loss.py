"""Losses of direct preference optimization: known values, a naive second implementation, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.policy.preference_loss import answer_sums, log_ratios, preference_losses

KINDS = ("sigmoid", "ipo")


def naive(h: float, label: float, kind: str, beta: float, smoothing: float) -> float:
    """Pair by pair, in plain numbers."""
    wins = (1 - smoothing) * label + smoothing * (1 - label)

    def sure(x: float) -> float:
        return math.log(1 + math.exp(-beta * x)) if kind == "sigmoid" else (x - 1 / (2 * beta)) ** 2

    return wins * sure(h) + (1 - wins) * sure(-h)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_beside_a_naive_implementation(kind: str, beta: float, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    margins = 4 * torch.randn(16, generator=generator)
    labels = torch.rand(16, generator=generator)
    found = preference_losses(margins, labels, kind=kind, beta=beta, label_smoothing=smoothing)
    expected = [naive(h, p, kind, beta, smoothing) for h, p in zip(margins.tolist(), labels.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_values_that_the_formulas_give() -> None:
    sure = torch.ones(3)
    h = torch.tensor([0.0, 10.0, -10.0])
    found = preference_losses(h, sure, kind="sigmoid", beta=0.1).tolist()
    assert found == pytest.approx([math.log(2), 0.31326169, 1.31326169])
    # IPO: nothing left to gain at a margin of 1 / (2 beta), and beyond it the loss rises again
    assert preference_losses(torch.tensor([5.0, 0.0, 10.0]), sure, kind="ipo", beta=0.1).tolist() == [0.0, 25.0, 25.0]


def test_the_gradient_of_equation_7() -> None:
    """Minus beta times the probability that the implicit reward gives to the wrong order."""
    h = torch.tensor([0.0, 2.0, -3.0], requires_grad=True)
    preference_losses(h, torch.ones(3), kind="sigmoid", beta=0.5).sum().backward()
    assert h.grad.tolist() == pytest.approx((-0.5 * torch.sigmoid(-0.5 * h.detach())).tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_pair_is_the_same_pair(kind: str) -> None:
    h, label = torch.tensor([0.7, -2.0]), torch.tensor([1.0, 0.8])
    one = preference_losses(h, label, kind=kind, beta=0.3, label_smoothing=0.1)
    torch.testing.assert_close(one, preference_losses(-h, 1 - label, kind=kind, beta=0.3, label_smoothing=0.1))


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_conservative_dpo_is_least_where_the_label_noise_is_believed(smoothing: float) -> None:
    h = torch.linspace(-20, 20, 4001)
    losses = preference_losses(h, torch.ones_like(h), kind="sigmoid", beta=1.0, label_smoothing=smoothing)
    assert float(torch.sigmoid(h[losses.argmin()])) == pytest.approx(1 - smoothing, abs=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_finite_far_out(kind: str) -> None:
    h = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = preference_losses(h, torch.tensor([1.0, 0.3]), kind=kind, beta=1.0).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(h.grad).all()


def test_a_tie_pulls_back_to_the_reference() -> None:
    for kind in KINDS:
        h = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
        preference_losses(h, torch.full((3,), 0.5), kind=kind, beta=0.5).sum().backward()
        assert h.grad[0] < 0 and h.grad[1] == 0 and h.grad[2] > 0


def test_log_ratios_as_sums_and_a_token() -> None:
    logps, reference = torch.tensor([-4.0, -6.0], requires_grad=True), torch.tensor([-5.0, -3.0])
    assert log_ratios(logps, reference).tolist() == [1.0, -3.0]
    assert log_ratios(logps, reference, torch.tensor([2.0, 6.0])).tolist() == [0.5, -0.5]
    with pytest.raises(ValueError, match="one entry an answer"):
        log_ratios(logps, reference[:1])
    with pytest.raises(ValueError, match="lengths"):
        log_ratios(logps, reference, torch.ones(3))


def test_sums_by_answer() -> None:
    assert answer_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 3).tolist() == [5.0, 0.0, 2.0]


def test_what_does_not_fit_is_refused() -> None:
    x = torch.zeros(2)
    for given, what in (({"beta": 0.0}, "beta"), ({"label_smoothing": 0.5}, "label_smoothing"), ({"kind": "x"}, "'x'")):
        with pytest.raises(ValueError, match=what):
            preference_losses(x, x, **({"kind": "sigmoid", "beta": 0.1} | given))
    with pytest.raises(ValueError, match="must both"):
        preference_losses(x, torch.zeros(1), kind="ipo", beta=0.1)
