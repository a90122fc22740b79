"""Pairwise losses, each against a naive loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from trivet.reward.loss import bradley_terry_loss, centering_loss, davidson_loss

# Four completions of one prompt and two of another; each score serves several pairs.
CHOSEN = torch.tensor([0, 0, 0, 1, 1, 5])
REJECTED = torch.tensor([1, 2, 3, 2, 3, 4])
TIE = torch.tensor([False, True, False, False, True, False])
PAIRS = 6
Loss = Callable[[torch.Tensor], torch.Tensor]


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [6], labels, weights and margins [6]."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2.0 * torch.randn(6, generator=generator)
    label, weight, margin = torch.rand(3, PAIRS, generator=generator)
    return scores, label, weight + 0.1, margin


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@pytest.mark.parametrize("use_label", [False, True])
@pytest.mark.parametrize("use_weight", [False, True])
@pytest.mark.parametrize("use_margin", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bradley_terry_matches_a_loop(
    use_label: bool, use_weight: bool, use_margin: bool, smoothing: float
) -> None:
    scores, label, weight, margin = draw()
    total = weights = 0.0
    for i in range(PAIRS):
        difference = scores[CHOSEN[i]].item() - scores[REJECTED[i]].item()
        difference -= margin[i].item() if use_margin else 0.0
        target = label[i].item() if use_label else 1.0
        target = (1 - smoothing) * target + smoothing * (1 - target)
        loss = -target * math.log(sigmoid(difference)) - (1 - target) * math.log(sigmoid(-difference))
        w = weight[i].item() if use_weight else 1.0
        total, weights = total + w * loss, weights + w
    actual = bradley_terry_loss(
        scores,
        CHOSEN,
        REJECTED,
        label=label if use_label else None,
        weight=weight if use_weight else None,
        margin=margin if use_margin else None,
        label_smoothing=smoothing,
    )
    assert actual.shape == ()
    assert actual.item() == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize("use_label", [False, True])
@pytest.mark.parametrize("use_weight", [False, True])
def test_davidson_matches_a_loop(use_label: bool, use_weight: bool) -> None:
    scores, label, weight, _ = draw()
    nu = 0.7
    total = weights = 0.0
    for i in range(PAIRS):
        a, b = math.exp(scores[CHOSEN[i]].item()), math.exp(scores[REJECTED[i]].item())
        level = a + b + nu * math.sqrt(a * b)
        target = label[i].item() if use_label else 1.0
        if TIE[i]:
            loss = -math.log(nu * math.sqrt(a * b) / level)
        else:
            loss = -target * math.log(a / level) - (1 - target) * math.log(b / level)
        w = weight[i].item() if use_weight else 1.0
        total, weights = total + w * loss, weights + w
    actual = davidson_loss(
        scores,
        CHOSEN,
        REJECTED,
        TIE,
        torch.tensor(math.log(nu)),
        label=label if use_label else None,
        weight=weight if use_weight else None,
    )
    assert actual.item() == pytest.approx(total / weights, rel=1e-5)


@pytest.mark.parametrize("use_weight", [False, True])
def test_centering_matches_a_loop(use_weight: bool) -> None:
    scores, _, weight, _ = draw()
    total = weights = 0.0
    for i in range(PAIRS):
        w = weight[i].item() if use_weight else 1.0
        total += w * (scores[CHOSEN[i]].item() + scores[REJECTED[i]].item()) ** 2
        weights += w
    actual = centering_loss(scores, CHOSEN, REJECTED, weight if use_weight else None)
    assert actual.item() == pytest.approx(total / weights, rel=1e-5)


def test_davidson_without_ties_becomes_bradley_terry() -> None:
    scores, label, weight, _ = draw()
    never = torch.zeros(PAIRS, dtype=torch.bool)
    davidson = davidson_loss(scores, CHOSEN, REJECTED, never, -1e4, label=label, weight=weight)
    torch.testing.assert_close(
        davidson, bradley_terry_loss(scores, CHOSEN, REJECTED, label=label, weight=weight)
    )


def test_davidson_learns_how_often_ties_happen() -> None:
    """For equal scores the likelihood is greatest where ν / (2 + ν) is the share of ties."""
    log_nu = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_nu], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = davidson_loss(torch.zeros(6), CHOSEN, REJECTED, TIE, log_nu)
        loss.backward()
        return loss

    optimizer.step(closure)
    nu = log_nu.exp().item()
    assert nu / (2 + nu) == pytest.approx(2 / 6, abs=1e-3)


LOSSES: list[Loss] = [
    lambda s: bradley_terry_loss(s, CHOSEN, REJECTED, label=torch.full((PAIRS,), 0.3), label_smoothing=0.1),
    lambda s: davidson_loss(s, CHOSEN, REJECTED, TIE, 0.0, label=torch.full((PAIRS,), 0.3)),
    lambda s: centering_loss(s, CHOSEN, REJECTED),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_huge_scores_stay_finite(loss: Loss, dtype: torch.dtype) -> None:
    scores = torch.tensor([1e4, -1e4, 1e4, 0.0, -1e4, 1e4], dtype=dtype, requires_grad=True)
    value = loss(scores)
    value.backward()
    assert value.dtype == torch.float32 and torch.isfinite(value)
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_huge_scores_keep_the_digits_of_their_difference() -> None:
    scores = torch.tensor([10_000.5, 10_000.0])
    expected = -math.log(sigmoid(0.5))
    one, two = torch.tensor([0]), torch.tensor([1])
    assert bradley_terry_loss(scores, one, two).item() == pytest.approx(expected, rel=1e-5)
    davidson = davidson_loss(scores, one, two, torch.tensor([False]), -1e4)
    assert davidson.item() == pytest.approx(expected, rel=1e-5)


def test_swapping_a_pair_swaps_label_and_margin() -> None:
    scores, label, weight, margin = draw()
    torch.testing.assert_close(
        bradley_terry_loss(scores, CHOSEN, REJECTED, label=label, weight=weight, margin=margin),
        bradley_terry_loss(scores, REJECTED, CHOSEN, label=1 - label, weight=weight, margin=-margin),
    )


def test_a_shared_score_gathers_the_gradient_of_all_its_pairs() -> None:
    scores = torch.zeros(6, requires_grad=True)
    bradley_terry_loss(scores, CHOSEN, REJECTED).backward()
    assert scores.grad is not None
    # At equal scores each pair pulls its two scores by ½ / P.
    wins = torch.tensor([3.0, 2.0 - 1.0, -2.0, -2.0, -1.0, 1.0])
    torch.testing.assert_close(scores.grad, -wins / (2 * PAIRS))


def test_a_pair_of_weight_zero_is_as_if_absent() -> None:
    scores, _, weight, _ = draw()
    weight = weight.clone()
    weight[-1] = 0.0
    torch.testing.assert_close(
        bradley_terry_loss(scores, CHOSEN, REJECTED, weight=weight),
        bradley_terry_loss(scores, CHOSEN[:-1], REJECTED[:-1], weight=weight[:-1]),
    )


def test_bad_arguments_are_refused() -> None:
    scores = torch.zeros(6)
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="no pairs"):
        bradley_terry_loss(scores, none, none)
    with pytest.raises(ValueError, match="flat"):
        bradley_terry_loss(scores.unsqueeze(1), CHOSEN, REJECTED)
    with pytest.raises(ValueError, match="rejected"):
        centering_loss(scores, CHOSEN, REJECTED[:-1])
    with pytest.raises(ValueError, match="weights"):
        bradley_terry_loss(scores, CHOSEN, REJECTED, weight=torch.zeros(PAIRS))
    with pytest.raises(ValueError, match="margin"):
        bradley_terry_loss(scores, CHOSEN, REJECTED, margin=torch.zeros(PAIRS, 1))
    with pytest.raises(ValueError, match="label_smoothing"):
        bradley_terry_loss(scores, CHOSEN, REJECTED, label_smoothing=0.5)
    with pytest.raises(ValueError, match="tie"):
        davidson_loss(scores, CHOSEN, REJECTED, TIE.float(), 0.0)
