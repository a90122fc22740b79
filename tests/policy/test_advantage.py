"""Token rewards, GAE and whitening, each against a naive second implementation."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.policy.advantage import (
    estimate,
    gae,
    grpo,
    masked_mean,
    others_mean,
    reinforce_plus_plus,
    rloo,
    token_rewards,
    whiten,
)

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


# --- estimators without a critic ------------------------------------------------------------------------------


def some_rewards(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Six answers, three to a prompt, with rewards on every token."""
    mask = response_mask([5, 1, 3, 2, 5, 4])
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)), mask


def sums(rewards: torch.Tensor, mask: torch.Tensor) -> list[float]:
    return [sum(x for x, m in zip(row, known, strict=True) if m)
            for row, known in zip(rewards.tolist(), mask.tolist(), strict=True)]


def spread_over_tokens(values: list[float], mask: torch.Tensor) -> torch.Tensor:
    return torch.tensor([[v if m else 0.0 for m in known] for v, known in zip(values, mask.tolist(), strict=True)])


def test_rloo_leaves_the_answer_itself_out() -> None:
    rewards, mask = some_rewards()
    whole = sums(rewards, mask)
    expected = []
    for i, own in enumerate(whole):
        others = [whole[j] for j in range(len(whole)) if j // 3 == i // 3 and j != i]
        expected.append(own - sum(others) / len(others))
    torch.testing.assert_close(rloo(rewards, mask, 3), spread_over_tokens(expected, mask))


def test_grpo_is_in_deviations_of_the_group() -> None:
    import statistics

    rewards, mask = some_rewards()
    whole = sums(rewards, mask)
    expected = []
    for i, own in enumerate(whole):
        group = whole[i // 3 * 3 : i // 3 * 3 + 3]
        expected.append((own - statistics.fmean(group)) / statistics.stdev(group))
    torch.testing.assert_close(grpo(rewards, mask, 3), spread_over_tokens(expected, mask), atol=2e-5, rtol=2e-5)


def test_grpo_without_the_deviation_is_rloo_scaled() -> None:
    """What the docstring says of Dr. GRPO."""
    rewards, mask = some_rewards()
    whole = torch.tensor(sums(rewards, mask)).view(2, 3)
    above = (whole - whole.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(rloo(rewards, mask, 3) * (2 / 3), spread_over_tokens(above.tolist(), mask))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_whitens_the_reward_to_go(gamma: float) -> None:
    rewards, mask = some_rewards()
    togo = [[sum(gamma ** (u - t) * row[u] for u in range(t, n)) for t in range(n)]
            for row, n in zip(rewards.tolist(), mask.sum(1).tolist(), strict=True)]
    flat = [x for row in togo for x in row]
    mean = sum(flat) / len(flat)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
    found = reinforce_plus_plus(rewards, mask, gamma)
    for row, values in enumerate(togo):
        for t in range(5):
            expected = (values[t] - mean) / deviation if t < len(values) else 0.0
            assert found[row, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("padding", [1e6, -math.inf, NAN])
def test_nothing_of_the_padding_reaches_an_estimator(padding: float) -> None:
    rewards, mask = some_rewards()
    for estimator in ("rloo", "grpo", "reinforce++"):
        found, returns = estimate(estimator, with_padding(rewards, mask, padding), None, mask, answers=3, gamma=1.0,
                                  lam=0.95)
        clean, _ = estimate(estimator, rewards * mask, None, mask, answers=3, gamma=1.0, lam=0.95)
        assert returns is None and found.dtype == torch.float32 and not found.requires_grad
        assert torch.equal(found, clean)
        assert torch.equal(found[~mask], torch.zeros_like(found[~mask]))


@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
def test_a_group_of_equal_rewards_teaches_nothing(value: float) -> None:
    mask = torch.ones(8, 1, dtype=torch.bool)
    assert torch.equal(grpo(torch.full((8, 1), value), mask, 4), torch.zeros(8, 1))


def test_gae_through_the_dispatch_is_whitened_and_needs_values() -> None:
    rewards, mask = some_rewards()
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    found, returns = estimate("gae", rewards, values, mask, answers=1, gamma=0.9, lam=0.5)
    advantages, expected = gae(rewards, values, mask, 0.9, 0.5)
    assert torch.equal(found, whiten(advantages, mask))
    assert returns is not None and torch.equal(returns, expected)
    with pytest.raises(ValueError, match="needs a critic"):
        estimate("gae", rewards, None, mask, answers=1, gamma=1.0, lam=0.95)


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_estimators_refuse_what_is_no_group(estimator) -> None:
    rewards, mask = some_rewards()
    with pytest.raises(ValueError, match="no groups"):
        estimator(rewards, mask, 4)
    with pytest.raises(ValueError, match="no groups"):
        estimator(rewards, mask, 1)
    with pytest.raises(ValueError, match="shapes"):
        estimator(rewards[:, :3], mask, 3)
    with pytest.raises(ValueError, match="right-padded"):
        estimator(rewards[:, :3], torch.tensor([[True, False, True]] * 6), 3)
