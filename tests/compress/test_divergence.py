"""Divergences against sums written out by hand, and what temperature does to them."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.compress.divergence import divergence, soft_logps, with_tail, without_tail

KINDS = ("forward", "reverse", "jsd")


def logits(rows: int = 5, width: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def naive(p: list[float], q: list[float], kind: str, beta: float) -> float:
    def kl(a: list[float], b: list[float]) -> float:
        return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def chances(row: torch.Tensor, temperature: float) -> list[float]:
    top = max(row.tolist())
    mass = [math.exp((x - top) / temperature) for x in row.tolist()]
    return [m / math.fsum(mass) for m in mass]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_each_is_its_sum(kind, temperature, beta) -> None:
    teacher, student = logits(seed=1), logits(seed=2)
    found = divergence(soft_logps(teacher, temperature), soft_logps(student, temperature), kind, beta)
    expected = [naive(chances(t, temperature), chances(s, temperature), kind, beta)
                for t, s in zip(teacher, student, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_are_no_loss_and_no_slope(kind) -> None:
    student = logits().requires_grad_()
    loss = divergence(soft_logps(logits(), 2.0), soft_logps(student, 2.0), kind).sum()
    loss.backward()
    assert abs(float(loss.detach())) < 1e-5
    assert float(student.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_times_t_squared_the_slope_does_not_vanish_with_t(kind) -> None:
    """Hinton et al., section 2.1: at a high T the gradient is 1/(N T²) of a difference of logits."""
    teacher = logits(seed=1) / 10
    slopes = []
    for temperature in (50.0, 100.0):
        student = (logits(seed=2) / 10).requires_grad_()
        loss = divergence(soft_logps(teacher, temperature), soft_logps(student, temperature), kind).sum()
        (loss * temperature**2).backward()
        slopes.append(student.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0.05, atol=1e-4)
    assert float(slopes[0].abs().max()) > 1e-3
    if kind == "forward":
        away = (logits(seed=2) - logits(seed=1)) / 10
        torch.testing.assert_close(slopes[1], ((away - away.mean(-1, keepdim=True)) / 7).to(slopes[1].dtype),
                                   rtol=0.05, atol=1e-3)


def test_the_slope_of_the_forward_loss_is_the_difference_of_the_softmaxes() -> None:
    teacher, student = logits(seed=1), logits(seed=2).requires_grad_()
    divergence(soft_logps(teacher, 2.0), soft_logps(student, 2.0), "forward").sum().backward()
    expected = (torch.softmax(student.detach() / 2, -1) - torch.softmax(teacher / 2, -1)) / 2
    torch.testing.assert_close(student.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_can_not_be_breaks_nothing(kind) -> None:
    teacher, student = logits(seed=1), logits(seed=2)
    teacher[:, 3] = student[:, 3] = -torch.inf
    student.requires_grad_()
    found = divergence(soft_logps(teacher, 2.0), soft_logps(student, 2.0), kind)
    found.sum().backward()
    without = [naive(*(chances(x[[0, 1, 2, 4, 5, 6]], 2.0) for x in pair), kind, 0.5)
               for pair in zip(teacher, student.detach(), strict=True)]
    assert found.tolist() == pytest.approx(without, rel=1e-5)
    assert torch.isfinite(student.grad).all()


def test_beta_must_mix_both() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        divergence(logits(), logits(), "jsd", 1.0)


def test_the_tail_is_everything_else() -> None:
    logps = soft_logps(logits(), 1.0)
    ids = torch.tensor([[2, 0, 0]] * 5)
    known = torch.tensor([[True, True, False]] * 5)
    whole = logps.exp()
    found = with_tail(logps, ids, known).exp()
    torch.testing.assert_close(found[:, :2], whole[:, [2, 0]])
    assert float(found[:, 2].abs().max()) == 0  # a place without a token
    torch.testing.assert_close(found[:, 3], 1 - whole[:, 0] - whole[:, 2])
    given = without_tail(logps, ids, known).exp()
    torch.testing.assert_close(given[:, :2], whole[:, [2, 0]] / whole[:, [2, 0]].sum(-1, keepdim=True))
    assert float(given[:, 2].abs().max()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bringing_tokens_together_loses_nothing_but_distance(kind) -> None:
    teacher, student = (soft_logps(logits(seed=s), 2.0) for s in (1, 2))
    ids = teacher.topk(3).indices
    known = torch.ones_like(ids, dtype=torch.bool)
    whole = divergence(teacher, student, kind)
    assert (divergence(with_tail(teacher, ids, known), with_tail(student, ids, known), kind) <= whole + 1e-6).all()
