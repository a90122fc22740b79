"""Every vote a soft label: the pairs of ranked answers, those of several labelers of a prompt merged.

The plainest of the ways in `aggregation.py`, and the one whose weights the others follow. No numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

from trivet.artifacts import Preference, Ranking, text_id
from trivet.data.importers import Imported


def ranked_pairs(rankings: Sequence[Ranking], keep_ties: bool = False) -> Imported:
    """The pairs of ranked answers, those of several labelers of a prompt merged.

    A better rank beats a worse one, F (null) loses to all that did not fail, F and F give nothing, nor do equal
    texts. Equal ranks are a tie: nothing, or with `keep_ties` a pair of its own with tie=true. A ranking's
    votes weigh 1 / (the number of pairs it gave), so that each ranking weighs 1 however many answers it has.

    The votes on one pair of answers are merged: `chosen` is the side with more weight, `label` its share,
    `weight` the sum divided by the number of the prompt's labelers. An even split says as little as a tie:
    dropped, or with `keep_ties` written with label 0.5 (and tie=false: nobody declared one).
    """
    result = Imported()
    by_prompt: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_prompt.setdefault(ranking.id, []).append(ranking)
    for group in by_prompt.values():
        _merge(group, keep_ties, result)
    return result


def _votes(ranking: Ranking, keep_ties: bool, result: Imported) -> list[tuple[int, int, bool]]:
    """(winner, loser, tie) by place in the ranking's completions; what gives no pair is counted."""
    if len(ranking.completions) == 1:
        result.skipped["one answer only"] += 1
    votes = []
    for i, first in enumerate(ranking.completions):
        for j in range(i + 1, len(ranking.completions)):
            a, b = ranking.ranks[i], ranking.ranks[j]
            if first.text.strip() == ranking.completions[j].text.strip():
                result.skipped["the two answers are equal"] += 1
            elif a is None and b is None:
                result.skipped["both failed"] += 1
            elif a == b:
                result.ties += 1
                if keep_ties:
                    votes.append((i, j, True))
                else:
                    result.skipped["tie"] += 1
            elif b is None or (a is not None and a < b):
                votes.append((i, j, False))
            else:
                votes.append((j, i, False))
    return votes


def _merge(group: Sequence[Ranking], keep_ties: bool, result: Imported) -> None:
    """Add the merged pairs of one prompt, `group` being its rankings, one a labeler."""
    texts: dict[str, str] = {}
    # (answers in the order in which they were first seen, tie) → weight for the first and for the second
    weights: dict[tuple[str, str, bool], list[float]] = {}
    voters: dict[tuple[str, str, bool], list[str]] = {}
    for ranking in group:
        for completion in ranking.completions:
            texts.setdefault(completion.id, completion.text)
        place = {name: number for number, name in enumerate(texts)}
        votes = _votes(ranking, keep_ties, result)
        for winner, loser, tie in votes:
            ids = [ranking.completions[k].id for k in (winner, loser)]
            first, second = sorted(ids, key=place.__getitem__)
            key = (first, second, tie)
            weights.setdefault(key, [0.0, 0.0])[ids[0] != first] += 1.0 / len(votes)
            voters.setdefault(key, []).append(ranking.labeler)
    prompt = group[0]
    for (first, second, tie), (for_first, for_second) in weights.items():
        total = for_first + for_second
        even = not tie and abs(for_first - for_second) <= 1e-9 * total
        if even and not keep_ties:
            result.skipped["labelers split evenly"] += 1
            continue
        chosen, rejected = (first, second) if for_first >= for_second or even else (second, first)
        result.pairs.append(Preference(
            # the id names the two answers, whoever won: it stays when another labeler turns the majority
            id=text_id([prompt.id, first, second, tie]), prompt_id=prompt.id, prompt=prompt.messages,
            chosen=texts[chosen], rejected=texts[rejected],
            label=0.5 if tie or even else max(for_first, for_second) / total, tie=tie,
            weight=total / len(group), source=f"labelers: {', '.join(voters[first, second, tie])}"))
