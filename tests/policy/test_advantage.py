"""Token rewards, GAE and whitening, each against a naive second implementation."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.policy.advantage import gae, masked_mean, others_mean, token_rewards, whiten

LENGTHS = [5, 1, 3]
NAN = float("nan")


def response_mask(lengths: list[int] = LENGTHS, width: int = 5) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def with_padding(x: torch.Tensor, mask: torch.Tensor, padding: float) -> torch.Tensor:
    return torch.where(mask, x, padding)


def naive_gae(
    rewards: list[list[float]], values: list[list[float]], lengths: list[int], gamma: float, lam: float
) -> list[list[float]]:
    """Equation 16 as a double sum, each row cut to its own length."""
    advantages = []
    for row, (r, v, n) in enumerate(zip(rewards, values, lengths, strict=True)):
        after = [*v[1:n], 0.0]
        deltas = [r[t] + gamma * after[t] - v[t] for t in range(n)]
        advantages.append(
            [sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, n)) for t in range(n)]
            + [0.0] * (len(rewards[row]) - n)
        )
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 1.0)])
def test_gae_is_the_sum_of_discounted_errors(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = response_mask()
    rewards, values = torch.randn(2, 3, 5, generator=generator)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = torch.tensor(naive_gae(rewards.tolist(), values.tolist(), LENGTHS, gamma, lam))
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, (expected + values) * mask)


def test_gae_with_lambda_and_gamma_one_is_the_reward_to_go() -> None:
    mask = response_mask([3, 2], 3)
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    values = torch.tensor([[0.3, -0.2, 0.9], [7.0, 8.0, 0.0]])
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[6.0, 5.0, 3.0], [9.0, 5.0, 0.0]]))


@pytest.mark.parametrize("padding", [1e6, -math.inf, NAN])
def test_nothing_of_the_padding_reaches_gae(padding: float) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = response_mask()
    rewards, values = torch.randn(2, 3, 5, generator=generator)
    clean = gae(rewards * mask, values * mask, mask)
    dirty = gae(with_padding(rewards, mask, padding), with_padding(values, mask, padding), mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b[~mask], torch.zeros_like(b[~mask]))


def test_gae_is_float32_without_gradient_and_zero_for_an_empty_row() -> None:
    mask = response_mask([2, 0], 3)
    values = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    advantages, returns = gae(torch.ones(2, 3, dtype=torch.bfloat16), values, mask.long())
    assert advantages.dtype == returns.dtype == torch.float32
    assert not advantages.requires_grad and not returns.requires_grad
    assert torch.equal(advantages[1], torch.zeros(3))


def test_gae_refuses_what_would_leak() -> None:
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="right-padded"):
        gae(x, x, torch.tensor([[True, False, True]]))
    with pytest.raises(ValueError, match="right-padded"):
        gae(x, x, torch.tensor([[False, True, True]]))
    with pytest.raises(ValueError, match="shapes"):
        gae(x, torch.zeros(1, 1), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="lam"):
        gae(x, x, torch.ones(1, 3, dtype=torch.bool), lam=1.5)


@pytest.mark.parametrize("padding", [0.0, 50.0, NAN])
def test_detail_6_the_score_lands_on_the_last_real_token(padding: float) -> None:
    mask = response_mask()
    scores = torch.tensor([2.0, -1.0, 0.5])
    kl = with_padding(torch.arange(15.0).reshape(3, 5), mask, padding)
    rewards = token_rewards(scores, kl, mask, kl_coef=0.1)
    for row, length in enumerate(LENGTHS):
        for t in range(5):
            expected = -0.1 * kl[row, t].item() if t < length else 0.0
            if t == length - 1:
                expected += scores[row].item()
            assert rewards[row, t].item() == pytest.approx(expected, abs=1e-6)


def test_token_rewards_without_kl_hold_the_score_alone() -> None:
    rewards = token_rewards(torch.tensor([2.0, 3.0]), None, response_mask([2, 3], 4), kl_coef=0.1)
    assert rewards.tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]


def test_a_row_without_tokens_has_no_place_for_its_score() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        token_rewards(torch.zeros(2), None, response_mask([2, 0], 3), kl_coef=0.1)
    with pytest.raises(ValueError, match="scores"):
        token_rewards(torch.zeros(2, 1), None, response_mask([2, 1], 3), kl_coef=0.1)


def test_masked_mean_counts_real_entries_only() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    x = torch.tensor([[1.0, NAN], [2.0, 6.0]])
    assert masked_mean(x, mask).item() == 3.0
    with pytest.raises(ValueError, match="empty"):
        masked_mean(x, torch.zeros_like(mask))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_whitening_is_over_the_whole_batch(scale: float) -> None:
    mask = response_mask()
    x = scale * (torch.randn(3, 5, generator=torch.Generator().manual_seed(2)) + 3.0)
    white = whiten(with_padding(x, mask, NAN), mask)
    numbers = [x[row, t].item() for row, n in enumerate(LENGTHS) for t in range(n)]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))
    for row, length in enumerate(LENGTHS):
        for t in range(5):
            expected = (x[row, t].item() - mean) / deviation if t < length else 0.0
            assert white[row, t].item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("lengths", [[1, 0], [3, 2], [700, 300]])
@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
def test_whitening_what_does_not_vary_gives_zero(lengths: list[int], value: float) -> None:
    """A thousand equal numbers have a mean that is off by a rounding error: it is not to be blown up."""
    mask = response_mask(lengths, max(lengths))
    x = torch.full(mask.shape, value)
    assert torch.equal(whiten(x, mask), torch.zeros_like(x))


def test_the_baseline_is_the_mean_of_the_others() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 4.0])
    assert others_mean(scores, 3).tolist() == pytest.approx([4.0, 3.5, 1.5, 2.0, 1.5, -0.5])
    assert others_mean(torch.tensor([3.0, 5.0]), 2).tolist() == [5.0, 3.0]


def test_the_baseline_takes_out_what_the_prompt_does_to_all_its_answers() -> None:
    scores, prompt = torch.randn(8), torch.tensor([100.0, -7.0]).repeat_interleave(4)
    left = scores - others_mean(scores, 4)
    assert (scores + prompt - others_mean(scores + prompt, 4)).tolist() == pytest.approx(left.tolist(), abs=1e-4)


@pytest.mark.parametrize(("count", "answers"), [(4, 1), (5, 2)])
def test_a_baseline_needs_whole_groups_of_two(count: int, answers: int) -> None:
    with pytest.raises(ValueError, match="no groups"):
        others_mean(torch.zeros(count), answers)
