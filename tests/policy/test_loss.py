"""PPO's losses, each against a naive loop, and the details that are commonly wrong."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch

from trivet.policy.kl import KLEstimator, kl_estimate
from trivet.policy.loss import (
    PolicyStats,
    entropy_from_logits,
    importance_weights,
    kl_loss,
    logps_from_logits,
    mismatch_kl,
    policy_loss,
    value_loss,
)

NAN = float("nan")
LENGTHS = [7, 1, 4, 6]


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """A minibatch whose padding is NaN, so that any leak shows."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1)
    old_logps = -2.0 * torch.rand(4, 7, generator=generator)
    drawn = {
        "old_logps": old_logps,
        "logps": old_logps + 0.3 * torch.randn(4, 7, generator=generator),
        "ref_logps": old_logps + 0.3 * torch.randn(4, 7, generator=generator),
        "advantages": torch.randn(4, 7, generator=generator),
        "values": torch.randn(4, 7, generator=generator),
        "old_values": torch.randn(4, 7, generator=generator),
        "returns": torch.randn(4, 7, generator=generator),
    }
    return {name: torch.where(mask, x, NAN) for name, x in drawn.items()} | {"mask": mask}


def real_tokens(data: dict[str, torch.Tensor]) -> list[dict[str, float]]:
    return [
        {name: data[name][b, t].item() for name in data if name != "mask"}
        for b, length in enumerate(LENGTHS)
        for t in range(length)
    ]


def test_policy_loss_matches_a_loop() -> None:
    data = batch()
    total, clipped_tokens, kl, ratios = 0.0, 0, 0.0, []
    for token in real_tokens(data):
        ratio = math.exp(token["logps"] - token["old_logps"])
        plain = -token["advantages"] * ratio
        clipped = -token["advantages"] * min(max(ratio, 0.8), 1.2)
        total += max(plain, clipped)
        clipped_tokens += clipped > plain
        kl += (ratio - 1) - math.log(ratio)
        ratios.append(ratio)
    n = len(ratios)
    loss, stats = policy_loss(
        data["logps"], data["old_logps"], data["advantages"], data["mask"], clip=0.2, denominator=n
    )
    assert 0 < clipped_tokens < n
    assert loss.item() == pytest.approx(total / n, rel=1e-5)
    assert stats.clip_fraction.item() == pytest.approx(clipped_tokens / n)
    assert stats.approx_kl.item() == pytest.approx(kl / n, rel=1e-4)
    assert stats.ratio_mean.item() == pytest.approx(sum(ratios) / n, rel=1e-5)
    assert stats.ratio_max_deviation.item() == pytest.approx(max(abs(r - 1) for r in ratios), rel=1e-4)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [(0.5, 1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (-0.5, -1.0, False), (0.0, 1.0, True)],
)
def test_the_clip_stops_only_steps_that_go_further_out(
    log_ratio: float, advantage: float, moves: bool
) -> None:
    logps = torch.tensor([[log_ratio]], requires_grad=True)
    one = torch.ones(1, 1)
    loss, stats = policy_loss(logps, 0.0 * one, advantage * one, one.bool(), clip=0.2, denominator=1)
    loss.backward()
    assert logps.grad is not None
    expected = -advantage * math.exp(log_ratio) if moves else 0.0
    assert logps.grad.item() == pytest.approx(expected)
    assert stats.clip_fraction.item() == float(not moves)


def test_detail_4_the_ratio_of_equal_policies_is_exactly_one() -> None:
    data = batch()
    _, stats = policy_loss(
        data["old_logps"], data["old_logps"], data["advantages"], data["mask"], clip=0.2, denominator=18
    )
    assert stats.ratio_max_deviation.item() == 0.0
    assert stats.ratio_mean.item() == 1.0
    assert stats.approx_kl.item() == 0.0
    assert stats.clip_fraction.item() == 0.0


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_loss_matches_a_loop(clip: float | None) -> None:
    data = batch()
    total, clipped_tokens = 0.0, 0
    tokens = real_tokens(data)
    for token in tokens:
        plain = (token["values"] - token["returns"]) ** 2
        clipped = plain
        if clip is not None:
            held = token["old_values"] + min(max(token["values"] - token["old_values"], -clip), clip)
            clipped = (held - token["returns"]) ** 2
            clipped_tokens += abs(token["values"] - token["old_values"]) > clip and clipped > plain
        total += 0.5 * max(plain, clipped)
    loss, fraction = value_loss(
        data["values"], data["old_values"], data["returns"], data["mask"], clip=clip, denominator=len(tokens)
    )
    assert loss.item() == pytest.approx(total / len(tokens), rel=1e-5)
    assert fraction.item() == pytest.approx(clipped_tokens / len(tokens))
    assert (clipped_tokens > 0) == (clip is not None)


@pytest.mark.parametrize(
    ("value", "returned", "gradient"),
    [
        (1.5, 2.0, 0.0),  # already more than the clip from its old value, on the way to the return: stop
        (1.5, -1.0, 2.5),  # moved away from the return: it may come back
        (0.1, 2.0, -1.9),  # within the clip of its old value, far from the return: goes on
    ],
)
def test_detail_9_values_are_clipped_around_the_old_values(
    value: float, returned: float, gradient: float
) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    one = torch.ones(1, 1)
    loss, _ = value_loss(values, 0.0 * one, returned * one, one.bool(), clip=0.2, denominator=1)
    loss.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_loss_matches_a_loop(estimator: KLEstimator) -> None:
    data = batch()
    total = 0.0
    for token in real_tokens(data):
        d = token["logps"] - token["ref_logps"]
        total += d * d / 2 if estimator == "k2" else math.exp(-d) - 1 + d
    loss = kl_loss(data["logps"], data["ref_logps"], data["mask"], estimator, denominator=18)
    assert loss.item() == pytest.approx(total / 18, rel=1e-4)


def all_losses(
    logps: torch.Tensor, values: torch.Tensor, data: dict[str, torch.Tensor], rows: slice, denominator: float
) -> tuple[torch.Tensor, PolicyStats, torch.Tensor]:
    part = {name: x[rows] for name, x in data.items()}
    policy, stats = policy_loss(
        logps[rows], part["old_logps"], part["advantages"], part["mask"], 0.2, denominator
    )
    critic, fraction = value_loss(
        values[rows], part["old_values"], part["returns"], part["mask"], 0.2, denominator
    )
    kl = kl_loss(logps[rows], part["ref_logps"], part["mask"], "k3", denominator)
    return policy + 0.5 * critic + 0.1 * kl, stats, fraction


@pytest.mark.parametrize("splits", [[1, 1, 1, 1], [3, 1], [2, 2]])
def test_detail_10_micro_batches_change_nothing(splits: list[int]) -> None:
    data = batch()
    denominator = float(data["mask"].sum())

    def accumulate(sizes: list[int]) -> tuple[float, PolicyStats, float, torch.Tensor, torch.Tensor]:
        logps = data["logps"].clone().requires_grad_()
        values = data["values"].clone().requires_grad_()
        total, fraction, start = 0.0, 0.0, 0
        parts = []
        for size in sizes:
            rows = slice(start, start + size)
            loss, stats, clipped = all_losses(logps, values, data, rows, denominator)
            loss.backward()
            total, fraction, start = total + loss.item(), fraction + clipped.item(), start + size
            parts.append(stats)
        assert logps.grad is not None and values.grad is not None
        return total, reduce(PolicyStats.merge, parts), fraction, logps.grad, values.grad

    whole, split = accumulate([4]), accumulate(splits)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    assert split[2] == pytest.approx(whole[2])
    for name in ("clip_fraction", "approx_kl", "ratio_mean", "ratio_max_deviation"):
        torch.testing.assert_close(getattr(split[1], name), getattr(whole[1], name))
    torch.testing.assert_close(split[3], whole[3])
    torch.testing.assert_close(split[4], whole[4])


def test_detail_10_a_mean_of_micro_batch_means_would_be_another_loss() -> None:
    data = batch()
    rows = [slice(b, b + 1) for b in range(4)]
    whole = all_losses(data["logps"], data["values"], data, slice(0, 4), 18)[0].item()
    means = [
        all_losses(data["logps"], data["values"], data, row, n)[0].item()
        for row, n in zip(rows, LENGTHS, strict=True)
    ]
    assert abs(sum(means) / 4 - whole) > 0.01


def test_padding_gets_no_gradient() -> None:
    data = batch()
    logps, values = data["logps"].clone().requires_grad_(), data["values"].clone().requires_grad_()
    all_losses(logps, values, data, slice(0, 4), 18.0)[0].backward()
    for x in (logps, values):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert torch.equal(x.grad[~data["mask"]], torch.zeros(28 - 18))


def test_only_the_new_pass_gets_a_gradient_and_statistics_are_detached() -> None:
    data = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in batch().items()}
    loss, stats, fraction = all_losses(data["logps"], data["values"], data, slice(0, 4), 18)
    loss.backward()
    assert data["logps"].grad is not None and data["values"].grad is not None
    for name in ("old_logps", "advantages", "ref_logps", "old_values", "returns"):
        assert data[name].grad is None
    assert not any(x.requires_grad for x in (*vars(stats).values(), fraction))


def test_detail_11_k1_in_the_loss_is_refused() -> None:
    data = batch()
    with pytest.raises(ValueError, match="expectation"):
        kl_loss(data["logps"], data["ref_logps"], data["mask"], "k1", denominator=18)


def test_detail_11_the_gradient_of_k1_has_expectation_zero() -> None:
    """Exact expectation of each estimator's gradient under the policy, over a vocabulary of 20."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, generator=generator, dtype=torch.float64, requires_grad=True)
    ref_logps = torch.randn(20, generator=generator, dtype=torch.float64).log_softmax(0)

    def gradient(objective: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(objective, logits)[0]

    def expected_gradient(estimator: KLEstimator) -> torch.Tensor:
        logps = logits.log_softmax(0)
        # The sampling probabilities are detached: the sampled tokens are data by the time of the loss.
        return gradient((logps.detach().exp() * kl_estimate(logps, ref_logps, estimator)).sum())

    logps = logits.log_softmax(0)
    reverse = gradient((logps.exp() * (logps - ref_logps)).sum())
    forward = gradient((ref_logps.exp() * (ref_logps - logits.log_softmax(0))).sum())
    assert reverse.abs().max() > 0.05
    assert expected_gradient("k1").abs().max() < 1e-6
    torch.testing.assert_close(expected_gradient("k2"), reverse, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(expected_gradient("k3"), forward, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_logps_and_entropy_match_a_loop(temperature: float) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 3.0 * torch.randn(2, 3, 11, generator=generator)
    tokens = torch.randint(0, 11, (2, 3), generator=generator)
    logps = logps_from_logits(logits, tokens, temperature)
    entropy = entropy_from_logits(logits, temperature)
    for b in range(2):
        for t in range(3):
            weights = [math.exp(x / temperature) for x in logits[b, t].tolist()]
            probabilities = [w / sum(weights) for w in weights]
            assert logps[b, t].item() == pytest.approx(math.log(probabilities[tokens[b, t]]), abs=1e-5)
            expected = -sum(p * math.log(p) for p in probabilities)
            assert entropy[b, t].item() == pytest.approx(expected, abs=1e-5)


def test_detail_2_temperature_is_divided_in_float32() -> None:
    logits = torch.tensor([[[100.0, 99.0]]], dtype=torch.bfloat16)
    logps = logps_from_logits(logits, torch.tensor([[1]]), temperature=0.7)
    assert logps.dtype == torch.float32
    assert logps.item() == pytest.approx(-math.log1p(math.exp(1 / 0.7)), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        logps_from_logits(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature)
    with pytest.raises(ValueError, match="temperature"):
        entropy_from_logits(torch.zeros(1, 1, 2), temperature)


def test_entropy_of_a_vocabulary_with_excluded_tokens() -> None:
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    entropy = entropy_from_logits(logits)
    entropy.sum().backward()
    assert entropy.item() == pytest.approx(math.log(2))
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_detail_13_importance_weights_are_truncated_and_detached() -> None:
    mask = torch.tensor([[True, True, True, False]])
    logps = torch.tensor([[-1.0, -0.5, -3.0, NAN]], requires_grad=True)
    behaviour = torch.tensor([[-1.0, -4.0, -2.0, 0.0]])
    weights = importance_weights(logps, behaviour, mask, cap=2.0)
    assert weights.tolist()[0] == pytest.approx([1.0, 2.0, math.exp(-1.0), 0.0])
    assert not weights.requires_grad
    with pytest.raises(ValueError, match="cap"):
        importance_weights(logps, behaviour, mask, cap=0.5)


def test_detail_13_mismatch_is_measured_from_the_engine_that_sampled() -> None:
    """Over all tokens of a vocabulary, weighted by the behaviour's probabilities, it is the exact KL."""
    generator = torch.Generator().manual_seed(5)
    behaviour, logps = torch.randn(2, 30, generator=generator).log_softmax(-1)
    every_token = torch.ones(30, 1, dtype=torch.bool)
    per_token = mismatch_kl(logps.unsqueeze(1), behaviour.unsqueeze(1), every_token)
    exact = (behaviour.exp() * (behaviour - logps)).sum()
    assert per_token.shape == (30,)
    assert (behaviour.exp() * per_token).sum().item() == pytest.approx(exact.item(), rel=1e-4)
    assert torch.equal(mismatch_kl(logps[None], logps[None], torch.ones(1, 30)), torch.zeros(1))


def test_bad_arguments_are_refused() -> None:
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="shapes"):
        policy_loss(x, x, torch.zeros(2, 1), mask, clip=0.2, denominator=6)
    with pytest.raises(ValueError, match="clip"):
        policy_loss(x, x, x, mask, clip=0.0, denominator=6)
    with pytest.raises(ValueError, match="denominator"):
        policy_loss(x, x, x, mask, clip=0.2, denominator=torch.tensor(0))
    with pytest.raises(ValueError, match="shapes"):
        value_loss(x, x, torch.zeros(2), mask, clip=0.2, denominator=6)
    with pytest.raises(ValueError, match="clip"):
        value_loss(x, x, x, mask, clip=-0.1, denominator=6)
    with pytest.raises(ValueError, match="tokens"):
        logps_from_logits(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long), 1.0)
