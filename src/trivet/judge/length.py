"""The win rate at equal length: judges like long answers, and a model that only writes more must not win by it.

A logistic model of the preference, logit P(the model's answer is better) = a + b·tanh(d / s), is fitted, where d is
by how much the model's answer is longer than the base's and s the deviation of d; read at d = 0 it says σ(a). This is
Dubois et al. 2024, 'Length-Controlled AlpacaEval', section 3, without its term for the difficulty of each
instruction, which needs the verdicts on many models. Labels may be soft (probabilities).

Not covered: a model whose answers are nearly all longer (or all shorter) than the base's. Then tanh(d / s) hardly
varies, the data can't tell length from quality, and the ridge shares the preference out between the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RIDGE = 0.01
"""Pull of both coefficients to 0, in items: it keeps the fit finite where every answer wins, and else is not seen."""
MAX_STEPS = 200
_BLOCK_ENTRIES = 1 << 18  # fits × items held at once, small enough to stay in the cache


def length_feature(difference: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """tanh(d / s) [N] of differences in length [N]; s is their weighted deviation.

    All zeros where the differences do not vary: length then explains nothing, and the plain win rate comes out.
    Raises ValueError for differences or weights that are not finite, weights below 0 or without sum.
    """
    d, w = _row(difference, "differences"), _weights(weights, np.shape(difference))
    mean = np.average(d, weights=w)
    deviation = float(np.sqrt(np.average((d - mean) ** 2, weights=w)))
    if deviation <= 1e-12 * float(np.abs(d).max(initial=0.0)) or deviation == 0.0:
        return np.zeros_like(d)
    found: Floats = np.tanh(d / deviation)
    return found


def fit_preference(p: ArrayLike, feature: ArrayLike, weights: ArrayLike | None = None, *,
                   ridge: float = RIDGE) -> Floats:
    """(a, b) [..., 2] of σ(a + b·feature), by maximum likelihood with a ridge, as many fits as there are leading axes.

    p [..., N]: probabilities that the model's answer is the better; feature [..., N]; weights [..., N]. They
    broadcast: weights [R, N] are R resamples (counts of each item), p and feature [R, N] are R relabelled tables.
    Swapping the models (p to 1 - p, feature to -feature) turns a to -a.

    Raises ValueError for p outside [0, 1], what is not finite, weights below 0 or without sum, a ridge that is not
    positive.
    """
    y, x = np.asarray(p, dtype=np.float64), np.asarray(feature, dtype=np.float64)
    if not (np.isfinite(y).all() and np.isfinite(x).all()) or (y.size and (y.min() < 0 or y.max() > 1)):
        raise ValueError("preferences must lie in [0, 1] and features be finite")
    if not ridge > 0:
        raise ValueError(f"the ridge must be positive, not {ridge}")
    w = _weights(weights, np.broadcast_shapes(y.shape, x.shape)[-1:] if weights is None else None)
    shape = np.broadcast_shapes(y.shape, x.shape, w.shape)
    lead, n = shape[:-1], shape[-1]
    rows = int(np.prod(lead, dtype=np.int64))
    flat = [np.broadcast_to(v, shape).reshape(rows, n) if v.ndim > 1 else v for v in (y, x, w)]
    found = np.empty((rows, 2))
    block = max(1, _BLOCK_ENTRIES // max(n, 1))
    for start in range(0, rows, block):
        part = [v[start : start + block] if v.ndim > 1 else v for v in flat]
        found[start : start + block] = _newton(*part, ridge=ridge, rows=min(block, rows - start))
    return found.reshape(*lead, 2)


def _newton(y: Floats, x: Floats, w: Floats, *, ridge: float, rows: int) -> Floats:
    """(a, b) [rows, 2]. Steps are cut to 2, which keeps Newton's method from overshooting where the curve is flat."""
    beta = np.zeros((rows, 2))
    xw = w * x
    xxw = xw * x
    total = np.broadcast_to(w.sum(-1), (rows,))
    for _ in range(MAX_STEPS):
        mean = 0.5 * (1.0 + np.tanh(0.5 * (beta[:, :1] + beta[:, 1:] * x)))
        miss, spread = y - mean, mean * (1.0 - mean)
        ga = (w * miss).sum(-1) - ridge * beta[:, 0]
        gb = (xw * miss).sum(-1) - ridge * beta[:, 1]
        haa, hab, hbb = (w * spread).sum(-1) + ridge, (xw * spread).sum(-1), (xxw * spread).sum(-1) + ridge
        det = haa * hbb - hab * hab
        step = np.stack([(hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det], axis=-1)
        beta += np.clip(step, -2.0, 2.0)
        if (np.abs(ga) + np.abs(gb) <= 1e-10 * total).all() or np.abs(step).max() < 1e-12:
            return beta
    raise ArithmeticError("the preference model did not converge")


def win_rates_at_equal_length(p: ArrayLike, feature: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """σ(a) of `fit_preference`: win rates [...] at no difference in length, for many resamples at once.

    `feature` is `length_feature` of the whole sample, held fixed over resamples and relabellings. Raises as
    `fit_preference` does.
    """
    found: Floats = 0.5 * (1.0 + np.tanh(0.5 * fit_preference(p, feature, weights)[..., 0]))
    return found


def length_controlled(p: ArrayLike, length_difference: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The win rate at no difference in length, in [0, 1]; 0.5 is nothing gained.

    p [N]: probability that the model's answer is the better; length_difference [N]: length of the model's answer
    less the base's, in tokens (any unit: it is standardised); weights [N], 1 each by default.

    Raises ValueError for no items, lengths that do not match, and as `length_feature` and `fit_preference` do.
    """
    y, d = _row(p, "preferences"), _row(length_difference, "differences")
    if y.shape != d.shape or not len(y):
        raise ValueError(f"preferences and differences must be of one length above 0: {y.shape} and {d.shape}")
    w = _weights(weights, y.shape)
    return float(win_rates_at_equal_length(y, length_feature(d, w), w))


def _row(values: ArrayLike, what: str) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{what} must be a flat row of finite numbers")
    return found


def _weights(weights: ArrayLike | None, shape: tuple[int, ...] | None) -> Floats:
    w = np.ones(shape or (1,)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(w).all() or (w < 0).any() or not (w.sum(-1) > 0).all():
        raise ValueError("weights must be finite, not negative, and have a sum above 0")
    return w
