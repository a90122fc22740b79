"""Bradley–Terry, Davidson and Plackett–Luce with ties, as one penalised conditional logit. Numpy only.

In all three, someone chooses among alternatives whose log-odds are linear in the answers' log-strengths θ:

    Bradley–Terry    i: θ_i, j: θ_j                                             Bradley & Terry 1952
    Davidson         i: θ_i, j: θ_j, a tie: log ν + (θ_i + θ_j)/2               Davidson 1970
    Plackett–Luce    each set S of the answers left, the best of them tied:
    with ties        log δ_|S| + mean of θ over S, δ_1 = 1                      Turner et al. 2020, eq. 4

(the last one's choice among two answers is Davidson's with ν = δ_2, and its choices follow Firth, Kosmidis and
Turner 2019, the Davidson–Luce model). So one solver serves all: the mode of the posterior by damped Newton. The
log-posterior is strictly concave, so that the mode is unique.

The prior: each θ is normal around 0 with deviation `prior_sd`, each log ν or log δ with deviation `tie_sd`. It
keeps everything finite where one answer beats all others, and does what Laplace's rule of succession does: with
deviation 1 a single vote gives 0.66, three give 0.79. Each prompt has θ of its own; ν and δ are shared by all.

Not covered: labelers of differing reliability (see labelers.py), standard errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_SD = 1.0
TIE_SD = 3.0
MOST_ENTRIES = 50_000_000
"""Choices × alternatives × answers of a Plackett–Luce fit: 400 MB."""


@dataclass(frozen=True)
class Fit:
    """A posterior mode."""

    theta: Floats
    """Log-strengths, [P, K], mean 0 over the answers that were compared."""
    log_ties: Floats
    """log ν (Davidson), or log δ_2, log δ_3 … (Plackett–Luce); empty where the model has no ties."""


def fit_choices(
    prompt: Ints, features: Floats, tie: Ints, chosen: Ints, weight: Floats, prompts: int, ties: int,
    *, prior_sd: float = PRIOR_SD, tie_sd: float = TIE_SD,
) -> Fit:
    """The posterior mode of the model above, from E choices among at most M alternatives.

    - `prompt` [E]: whose θ the choice speaks of, below `prompts`.
    - `features` [E, M, K]: how much of each θ is in the log-odds of an alternative.
    - `tie` [E, M]: 0 no tie parameter in them, t the t-th of `ties`; -1: there is no such alternative.
    - `chosen` [E]: the alternative chosen. `weight` [E]: how often.

    Raises ValueError for deviations that are not positive.
    """
    if not (prior_sd > 0 and tie_sd > 0):
        raise ValueError(f"the deviations of the priors must be positive, not {prior_sd} and {tie_sd}")
    size = features.shape[2]
    whole = np.concatenate([features, (tie[..., None] == np.arange(1, ties + 1)).astype(float)], axis=2)
    absent = np.where(tie < 0, -np.inf, 0.0)
    rows = np.arange(len(prompt))
    theta, shared = np.zeros((prompts, size)), np.zeros(ties)

    def log_probabilities(theta: Floats, shared: Floats) -> Floats:
        both = np.concatenate([theta[prompt], np.broadcast_to(shared, (len(prompt), ties))], axis=1)
        scores = np.einsum("emk,ek->em", whole, both) + absent
        top = scores.max(axis=1, keepdims=True)
        result: Floats = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        return result

    def loss(theta: Floats, shared: Floats) -> float:
        fit = -(weight * log_probabilities(theta, shared)[rows, chosen]).sum()
        return float(fit + (theta**2).sum() / (2 * prior_sd**2) + (shared**2).sum() / (2 * tie_sd**2))

    current = loss(theta, shared)
    for _ in range(200):
        p = np.exp(log_probabilities(theta, shared))
        mean = np.einsum("em,emk->ek", p, whole)
        slope = weight[:, None] * (mean - whole[rows, chosen])
        curve = np.einsum("emk,em,eml->ekl", whole, weight[:, None] * p, whole, optimize=True)
        curve -= weight[:, None, None] * mean[:, :, None] * mean[:, None, :]
        gradient, hessian = np.zeros((prompts, size)), np.zeros((prompts, size, size))
        np.add.at(gradient, prompt, slope[:, :size])
        np.add.at(hessian, prompt, curve[:, :size, :size])
        gradient += theta / prior_sd**2
        hessian += np.eye(size) / prior_sd**2
        cross = np.zeros((prompts, size, ties))
        np.add.at(cross, prompt, curve[:, :size, size:])
        tie_gradient = slope[:, size:].sum(axis=0) + shared / tie_sd**2
        tie_hessian = curve[:, size:, size:].sum(axis=0) + np.eye(ties) / tie_sd**2
        # an arrow: every prompt's block meets the shared parameters only, which are eliminated first
        solved = np.linalg.solve(hessian, np.concatenate([gradient[..., None], cross], axis=2))
        to_gradient, to_cross = solved[..., 0], solved[..., 1:]
        tie_step = np.linalg.solve(tie_hessian - np.einsum("pkt,pku->tu", cross, to_cross),
                                   tie_gradient - np.einsum("pkt,pk->t", cross, to_gradient))
        step = to_gradient - to_cross @ tie_step
        decrement = float((gradient * step).sum() + tie_gradient @ tie_step)
        if decrement <= 1e-10 * (1.0 + abs(current)):  # the last step squares an error that is small by now
            return Fit(theta - step, shared - tie_step)
        scale = 1.0
        while (following := loss(theta - scale * step, shared - scale * tie_step)) > current - 0.25 * scale * decrement:
            scale /= 2
            if scale < 1e-8:  # what is left is rounding
                return Fit(theta, shared)
        theta, shared, current = theta - scale * step, shared - scale * tie_step, following
    raise ArithmeticError("the fit did not converge in 200 Newton steps")


def bradley_terry(wins: Floats, *, prior_sd: float = PRIOR_SD) -> Fit:
    """Bradley–Terry strengths from `wins` [P, K, K]: how often i beat j. Half a win each stands for a tie.

    Raises ValueError for a table of another shape, or with negative counts.
    """
    wins = _table(wins)
    prompt, i, j = np.nonzero(wins)
    features = np.zeros((len(prompt), 2, wins.shape[1]))
    rows = np.arange(len(prompt))
    features[rows, 0, i] = features[rows, 1, j] = 1.0
    none = np.zeros((len(prompt), 2), dtype=np.int64)
    return fit_choices(prompt, features, none, none[:, 0], wins[prompt, i, j], len(wins), 0, prior_sd=prior_sd)


def davidson(wins: Floats, ties: Floats, *, prior_sd: float = PRIOR_SD, tie_sd: float = TIE_SD) -> Fit:
    """Davidson strengths and log ν from `wins` [P, K, K] and `ties` [P, K, K], which counts a tie at (i, j), i < j.

    Raises ValueError for tables of another shape, negative counts, or ties below the diagonal.
    """
    wins, ties = _table(wins), _table(ties)
    if wins.shape != ties.shape or np.tril(ties).any():
        raise ValueError("ties must have the shape of wins, and stand above the diagonal only")
    won, tied = np.nonzero(wins), np.nonzero(ties)
    prompt, i, j = (np.concatenate([a, b]) for a, b in zip(won, tied, strict=True))
    features = np.zeros((len(prompt), 3, wins.shape[1]))
    rows = np.arange(len(prompt))
    features[rows, 0, i] = features[rows, 1, j] = 1.0
    features[rows, 2, i] = features[rows, 2, j] = 0.5
    chosen = np.repeat(np.array([0, 2]), [len(won[0]), len(tied[0])])
    return fit_choices(prompt, features, np.tile(np.array([0, 0, 1]), (len(prompt), 1)), chosen,
                       np.concatenate([wins[won], ties[tied]]), len(wins), 1, prior_sd=prior_sd, tie_sd=tie_sd)


def plackett_luce(
    prompt: Ints, ranks: Floats, prompts: int, *, prior_sd: float = PRIOR_SD, tie_sd: float = TIE_SD,
) -> Fit:
    """Plackett–Luce strengths, ties of any order, from R rankings.

    `prompt` [R] is below `prompts`; `ranks` [R, K]: smaller is better, equal is a tie, NaN was not shown, and
    inf has failed: it is left at every stage and never chosen, so that a ranking says nothing of the order of
    the failed. Ties of more answers than any that was seen are taken to be impossible.

    Raises ValueError where there are too many sets of answers that could tie.
    """
    size = ranks.shape[1]
    counts: dict[tuple[int, int, int], float] = {}
    for p, row in zip(prompt.tolist(), ranks, strict=True):
        for left, best in _stages(row):
            counts[p, left, best] = counts.get((p, left, best), 0.0) + 1.0
    widest = max((best.bit_count() for _, _, best in counts), default=1)
    number_of_sets = sum(math.comb(size, t) for t in range(1, widest + 1))
    if len(counts) * number_of_sets * size > MOST_ENTRIES:
        raise ValueError(f"ties of {widest} among {size} answers: {number_of_sets} sets are too many")
    sets = [sum(1 << k for k in part) for t in range(1, widest + 1) for part in combinations(range(size), t)]
    members = np.array([[s >> k & 1 for k in range(size)] for s in sets], dtype=np.float64).reshape(-1, size)
    sizes = members.sum(axis=1, keepdims=True)
    number = {s: k for k, s in enumerate(sets)}
    keys = np.array(list(counts), dtype=np.int64).reshape(-1, 3)
    possible = (np.array(sets, dtype=np.int64)[None] & ~keys[:, 1:2]) == 0
    return fit_choices(
        keys[:, 0], np.broadcast_to(members / sizes, (len(keys), *members.shape)),
        np.where(possible, sizes[:, 0].astype(np.int64) - 1, -1),
        np.array([number[s] for s in keys[:, 2].tolist()], dtype=np.int64), np.array(list(counts.values())),
        prompts, widest - 1, prior_sd=prior_sd, tie_sd=tie_sd)


def _stages(row: Floats) -> list[tuple[int, int]]:
    """(answers left, those of them chosen as the best) of each stage of a ranking, as sets of bits."""
    places = [k for k in range(len(row)) if not np.isnan(row[k])]
    left, stages = sum(1 << k for k in places), []
    for rank in sorted({row[k] for k in places if np.isfinite(row[k])}):
        best = sum(1 << k for k in places if row[k] == rank)
        if left.bit_count() > 1:
            stages.append((left, best))
        left &= ~best
    return stages


def _table(counts: Floats) -> Floats:
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 3 or table.shape[1] != table.shape[2]:
        raise ValueError(f"counts must be [P, K, K], not {table.shape}")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ValueError("counts must be finite and not negative")
    return table


def outcome_probabilities(theta_i: Floats, theta_j: Floats, log_tie: float | None) -> Floats:
    """P(i is better), P(tie), P(j is better), [..., 3], by Davidson's formula; log_tie None: no ties."""
    half = (np.asarray(theta_i) - np.asarray(theta_j)) / 2
    tie = np.full_like(half, -np.inf if log_tie is None else log_tie)
    scores = np.stack([half, tie, -half], axis=-1)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Floats = scores / scores.sum(axis=-1, keepdims=True)
    return result
