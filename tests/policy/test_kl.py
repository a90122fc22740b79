"""KL estimators against their definitions and the exact divergence; the coefficient's controllers."""

from __future__ import annotations

import math

import pytest
import torch

from trivet.policy.kl import AdaptiveKL, FixedKL, KLController, KLEstimator, kl_estimate, sequence_kl


def naive(estimator: str, logp: float, ref_logp: float) -> float:
    ratio = math.exp(ref_logp) / math.exp(logp)
    return {"k1": -math.log(ratio), "k2": math.log(ratio) ** 2 / 2, "k3": ratio - 1 - math.log(ratio)}[
        estimator
    ]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimators_match_their_definition(estimator: KLEstimator) -> None:
    generator = torch.Generator().manual_seed(0)
    logps, ref_logps = -3.0 * torch.rand(2, 4, 6, generator=generator)
    estimate = kl_estimate(logps, ref_logps, estimator)
    for b in range(4):
        for t in range(6):
            expected = naive(estimator, logps[b, t].item(), ref_logps[b, t].item())
            assert estimate[b, t].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("estimator", "bias"), [("k1", 1e-5), ("k2", 0.02), ("k3", 1e-5)])
def test_expectation_under_the_policy_is_the_kl(estimator: KLEstimator, bias: float) -> None:
    """The expectation is exact: each token of the vocabulary weighted by its probability."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(50, generator=generator)
    logps = logits.log_softmax(0)
    ref_logps = (logits + 0.3 * torch.randn(50, generator=generator)).log_softmax(0)
    exact = torch.nn.functional.kl_div(ref_logps, logps, log_target=True, reduction="sum").item()
    expectation = (logps.exp() * kl_estimate(logps, ref_logps, estimator)).sum().item()
    assert exact > 0.01
    assert expectation == pytest.approx(exact, rel=0.2 if estimator == "k2" else 1e-3, abs=bias)


def test_k3_keeps_the_digits_of_a_small_difference() -> None:
    d = 1e-4
    estimate = kl_estimate(torch.tensor([d]), torch.tensor([0.0]), "k3").item()
    assert estimate == pytest.approx(d * d / 2, rel=1e-2)


def test_sequence_kl_sums_real_tokens_only() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logps = torch.tensor([[-1.0, -2.0, float("nan")], [-0.5, 9.0, float("inf")]])
    ref_logps = torch.tensor([[-1.5, -1.0, 0.0], [-2.0, 0.0, float("inf")]])
    assert sequence_kl(logps, ref_logps, mask).tolist() == pytest.approx([0.5 - 1.0, 1.5])
    assert sequence_kl(logps, ref_logps, mask, "k2").tolist() == pytest.approx([0.125 + 0.5, 1.125])


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(x, x, "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shapes"):
        kl_estimate(x, torch.zeros(2, 1), "k1")


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1.0 + 0.1 * 0.05), (60.0, 1.0 + 0.2 * 0.05), (0.0, 1.0 - 0.2 * 0.05), (-3.0, 0.99)],
)
def test_adaptive_coefficient_follows_the_clipped_error(kl: float, factor: float) -> None:
    controller = AdaptiveKL(coef=0.15, target=6.0, horizon=10_000)
    updated = controller.update(kl, episodes=500)
    assert updated.coef == pytest.approx(0.15 * factor)
    assert (updated.target, updated.horizon) == (6.0, 10_000)
    assert controller.coef == 0.15  # the old one is unchanged: a resumed run starts from what was saved


def test_adaptive_coefficient_never_reaches_zero() -> None:
    with pytest.raises(ValueError, match="horizon"):
        AdaptiveKL(coef=0.1, target=6.0, horizon=100).update(kl=7.0, episodes=500)
    assert AdaptiveKL(coef=0.1, target=6.0, horizon=100).update(kl=0.0, episodes=499).coef > 0
    with pytest.raises(ValueError, match="finite"):
        AdaptiveKL(coef=0.1, target=6.0, horizon=100).update(kl=math.nan, episodes=1)


@pytest.mark.parametrize(("field", "value"), [("coef", 0.0), ("target", -1.0), ("horizon", math.nan)])
def test_adaptive_settings_are_positive(field: str, value: float) -> None:
    settings = {"coef": 0.1, "target": 6.0, "horizon": 100.0} | {field: value}
    with pytest.raises(ValueError, match=field):
        AdaptiveKL(**settings)


def test_fixed_coefficient_has_the_same_interface() -> None:
    controllers: list[KLController] = [FixedKL(0.05), AdaptiveKL(0.05, 6.0, 1000.0)]
    fixed, adaptive = (controller.update(kl=60.0, episodes=10) for controller in controllers)
    assert fixed is controllers[0]
    assert adaptive.coef > 0.05
    assert FixedKL(0.0).coef == 0.0
    with pytest.raises(ValueError, match="coef"):
        FixedKL(-0.1)
