"""Labelers weighed by their reliability: Dawid–Skene and MACE on pairwise choices, through crowd-kit.

A task is a pair of answers, its classes are: the first is better, a tie, the second is better. Which answer of a
pair is called the first is arbitrary, so every choice enters twice, once each way round: a labeler's confusions
are then the same in both directions, and no result depends on the order of the answers. A both-F pair is no
choice (see choices.py).

Not covered: prompts of differing difficulty; that the choices of one ranking hang together (both models take a
labeler's choices to be independent given the truth, which makes their probabilities too sure of themselves).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trivet.feedback.choices import Choices, Floats, Ints

ROUNDS = 100


def dawid_skene(choices: Choices, labelers: int, known: Mapping[int, int] | None = None) -> tuple[Floats, Floats]:
    """(probabilities of (first, tie, second) for each pair, [pairs, 3]; reliability of each labeler, [labelers]).

    The EM algorithm of Dawid & Skene 1979 as crowd-kit has it. `known` gives the truth of some pairs (1, 0,
    -1), from which reliabilities are learnt, too. A labeler's reliability is the mean, over their
    choices, of the probability that the choice is the true one (the diagonal of their confusions, weighed by how
    often each truth came before them); NaN for a labeler without a choice.
    """
    import pandas as pd
    from crowdkit.aggregation.classification.dawid_skene import DawidSkene

    tasks, workers, labels = _both_ways(choices)
    data = pd.DataFrame({"task": tasks, "worker": workers, "label": labels})
    seen = set(labels.tolist())
    truth = {2 * pair + way: 1 - (choice if way == 0 else -choice)
             for pair, choice in (known or {}).items() for way in (0, 1)}
    # a truth that nobody chose has no column in crowd-kit's tables
    given = pd.Series({t: label for t, label in truth.items() if label in seen}, dtype="int64")
    model = DawidSkene(n_iter=ROUNDS, tol=1e-7).fit(data, true_labels=given if len(given) else None)
    assert model.probas_ is not None
    probabilities = model.probas_.reindex(index=range(2 * choices.pairs), columns=range(3), fill_value=0.0).to_numpy()
    return _fold(probabilities), mean_by(workers, probabilities[tasks, labels], labelers)


def mace(choices: Choices, labelers: int, *, seed: int = 0) -> tuple[Floats, Floats]:
    """(probabilities of (first, tie, second) for each pair, [pairs, 3]; competence of each labeler, [labelers]).

    Hovy et al. 2013 as crowd-kit has it, by variational Bayes: a labeler knows the truth with the probability
    called competence, and else answers by a habit of their own. NaN for a labeler without a choice.
    """
    import pandas as pd
    from crowdkit.aggregation.classification.mace import MACE

    tasks, workers, labels = _both_ways(choices)
    # crowd-kit (1.4.2) numbers labelers and classes by their first appearance and then sorts them by name in its
    # expected counts of habits; numbers in order of first appearance make the two agree
    columns, names = {}, {}
    for key, values in (("task", tasks), ("worker", workers), ("label", labels)):
        columns[key], names[key] = pd.factorize(values)
    # its restarts all begin at one random state, so that one is as good as ten
    model = MACE(n_restarts=1, n_iter=ROUNDS, random_state=seed).fit(pd.DataFrame(columns))
    assert model.probas_ is not None
    found = model.probas_.sort_index().to_numpy()
    probabilities = np.zeros((2 * choices.pairs, 3))
    probabilities[np.ix_(names["task"], names["label"])] = found[:, np.argsort(model.probas_.columns)]
    competence = np.full(labelers, np.nan)
    competence[names["worker"]] = model.spamming_[:, 1] / model.spamming_.sum(axis=1)
    return _fold(probabilities), competence


def _both_ways(choices: Choices) -> tuple[Ints, Ints, Ints]:
    """(task, labeler, class) of each choice and of its mirror image; classes 0 first, 1 tie, 2 second."""
    tasks = np.concatenate([2 * choices.pair, 2 * choices.pair + 1])
    labels = np.concatenate([1 - choices.choice, 1 + choices.choice])
    return tasks, np.tile(choices.labeler, 2), labels


def _fold(probabilities: NDArray[np.float64]) -> Floats:
    """The mean of both ways round, [pairs, 3] from [2 pairs, 3]."""
    result: Floats = (probabilities[0::2] + probabilities[1::2, ::-1]) / 2
    return result


def mean_by(labeler: Ints, values: Floats, labelers: int) -> Floats:
    """The mean of `values` by labeler, [labelers]; NaN where there are none."""
    counts = np.bincount(labeler, minlength=labelers)
    with np.errstate(invalid="ignore"):
        result: Floats = np.bincount(labeler, weights=values, minlength=labelers) / counts
    return result
