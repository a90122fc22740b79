"""Simulated labelers with planted reliabilities, for tests and benchmarks: labels that are nobody's opinion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trivet.artifacts import Ranking

TIE_GAP = 0.15
F_BELOW = -1.5


def noise_of(accuracy: float) -> float:
    """The noise at which a labeler decides a pair rightly with this probability, ties aside.

    Quality and noise are normal, so that the perceived and the true difference correlate by ρ = 1/√(1 + noise²),
    and their signs agree with probability ½ + arcsin(ρ)/π.
    """
    rho = math.sin(math.pi * (accuracy - 0.5))
    return math.sqrt(1 / rho**2 - 1)


def simulate(
    accuracies: Sequence[float], items: int, overlap: int, seed: int, *, completions: int = 4, ties: bool = True,
) -> tuple[list[Ranking], dict[str, np.ndarray]]:
    """(rankings, true quality of each item's completions by prompt id).

    A completion's quality is standard normal; a labeler perceives it with noise, ties neighbours closer than
    TIE_GAP deviations of what they perceive, and fails what lies below F_BELOW of them (with ties=False
    neither). Each item goes to `overlap` labelers, who are called in turn from a shuffled deck, so that all
    judge about as many.
    """
    rng = np.random.default_rng(seed)
    noise = [noise_of(a) for a in accuracies]
    rankings: list[Ranking] = []
    truth: dict[str, np.ndarray] = {}
    deck: list[int] = []
    for number in range(items):
        quality = rng.normal(size=completions)
        truth[f"p{number}"] = quality
        chosen: list[int] = []
        while len(chosen) < overlap:
            deck = deck or rng.permutation(len(accuracies)).tolist()
            name = next((k for k in deck if k not in chosen), None)
            if name is None:
                deck += rng.permutation(len(accuracies)).tolist()
                continue
            deck.remove(name)
            chosen.append(name)
        for labeler in chosen:
            seen = (quality + noise[labeler] * rng.normal(size=completions)) / math.hypot(1, noise[labeler])
            rankings.append(Ranking.model_validate({
                "id": f"p{number}", "messages": [{"role": "user", "content": f"Question {number}?"}],
                "completions": [{"id": f"p{number}/{k}", "text": f"answer {k}"} for k in range(completions)],
                "ranks": ranks_of(seen, ties), "labeler": f"labeler {labeler:02}"}))
    return rankings, truth


def ranks_of(seen: np.ndarray, ties: bool = True) -> list[int | None]:
    """What a labeler types who perceives these qualities."""
    ranks: list[int | None] = [None] * len(seen)
    rank = 0
    before = math.inf
    for k in np.argsort(-seen).tolist():
        if ties and seen[k] < F_BELOW:
            continue
        rank += not (ties and before - seen[k] < TIE_GAP)
        ranks[k], before = rank, float(seen[k])
    return ranks
