"""The stage `pairs`: rankings or the field's formats become preference pairs, split by prompt.

Rankings come from a file or from the database of `trivet label`; how several labelers' become one is `method`
(aggregation.py). Pairs of the field's other formats pass as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import Preference, Row, is_held_out, write_rows
from trivet.data.importers import Imported, read_preferences
from trivet.errors import TrivetError
from trivet.feedback.config import PairsConfig
from trivet.feedback.labels import Labels, database_file, read_labels
from trivet.feedback.votes import ranked_pairs
from trivet.runs import Run, Summary

__all__ = ["PairsSummary", "length_wins", "ranked_pairs", "run", "split"]


class PairsSummary(Summary):
    """Counts of the stage."""

    pairs: int
    prompts: int
    train_pairs: int
    heldout_pairs: int
    train_prompts: int
    heldout_prompts: int
    ties: int
    """Comparisons that a labeler declared a tie, kept or not."""
    skipped: dict[str, int]
    """Comparisons that gave no pair, by reason."""
    skipped_total: int
    longer_wins: float
    """Share of all decided pairs whose chosen answer is the longer one, in characters."""
    shorter_wins: float
    method: str | None = None
    """How rankings were aggregated; None where the input was pairs."""
    rankings: int = 0
    labelers: int = 0
    adjudicated: int = 0
    """Prompts that an adjudication decided."""
    reliability: dict[str, float] = {}
    """By labeler; what it is depends on the method (see `aggregation.Aggregated`)."""
    agreement: dict[str, Any] | None = None
    """How far the labelers agree (`agreement.AgreementReport`), where two of them ranked one prompt."""


def run(config: PairsConfig, run: Run) -> PairsSummary:
    """Convert config.input, or what the database says, into train.jsonl and heldout.jsonl; rankings.jsonl beside
    them holds the aggregated rankings, where there were rankings.

    Raises TrivetError for malformed rows, a database that is not there or empty, an input that gives no pair, a
    method without rankings, and for a split with an empty side.
    """
    place: str | Path | None
    said: dict[str, Any] = {}
    if config.from_labels is not None:
        found = read_labels(config.from_labels, config.rounds)
        place = database_file(config.from_labels) or "the label database"
        if found.adjudications and not config.adjudications:
            print(f"note: {len(found.adjudications)} adjudications are not used; --adjudications lets them decide")
        result, said = _from_rankings(found, config)
        run.meter.labelling = found.time()
    else:
        assert config.input is not None
        place = config.input
        result = read_preferences(config.input, config.format, config.keep_ties)
        if result.rankings:
            given = Labels(result.rankings, [], [], [])
            run.meter.labelling = given.time()
            result, said = _from_rankings(given, config)
        elif config.method != "votes":
            raise TrivetError(f"this file holds pairs, not rankings: there is nothing for {config.method} to aggregate",
                              file=place, field="method", mend="leave --method out, or give rankings")
    pairs = result.pairs
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in result.skipped.most_common())
        what = "this file gives" if config.from_labels is None else "these labels give"
        raise TrivetError(f"{what} no pair ({reasons})", file=place,
                          mend="a pair needs a prompt and two different answers, one of them preferred")
    train, heldout = split(pairs, config.heldout, config.seed)
    if not train or (config.heldout > 0 and not heldout):
        prompts = len({p.prompt_id for p in pairs})
        raise TrivetError(
            f"the split leaves no {'held-out' if train else 'training'} pair ({prompts} prompts, "
            f"{config.heldout:g} of them to be held out)", file=place, field="heldout",
            mend="give more prompts, another --heldout or another --seed, or --heldout 0 to keep none apart")
    written: tuple[tuple[str, Sequence[Row]], ...] = (
        ("train", train), ("heldout", heldout), ("rankings", result.rankings))
    for name, rows in written:
        if rows:
            write_rows(run.path(f"{name}.jsonl"), rows)
            run.artifact(name, run.path(f"{name}.jsonl"))
    longer, shorter = length_wins(pairs)
    return PairsSummary(
        pairs=len(pairs), prompts=_prompts(pairs), train_pairs=len(train), heldout_pairs=len(heldout),
        train_prompts=_prompts(train), heldout_prompts=_prompts(heldout), ties=result.ties,
        skipped=dict(result.skipped), skipped_total=result.skipped.total(),
        longer_wins=round(longer, 4), shorter_wins=round(shorter, 4), **said)


def _from_rankings(labels: Labels, config: PairsConfig) -> tuple[Imported, dict[str, Any]]:
    """(the pairs, and the aggregated rankings; what the summary says of the labels)."""
    from trivet.feedback import agreement
    from trivet.feedback.aggregation import aggregate, preferences

    rankings = labels.rankings
    decisive = labels.adjudications if config.adjudications else []
    aggregated = aggregate(rankings, config.method, adjudications=decisive, seed=config.seed)
    agreed = agreement.report(rankings, seed=config.seed, repeats=labels.repeats, gold=labels.gold).figures() \
        if len({r.id for r in rankings}) < len(rankings) else None
    result = preferences(aggregated, config.keep_ties)
    result.rankings = aggregated.rankings
    return result, {
        "method": config.method, "rankings": len(rankings), "labelers": len({r.labeler for r in rankings}),
        "adjudicated": len({r.id for r in decisive}), "agreement": agreed,
        "reliability": {name: round(value, 4) for name, value in aggregated.reliability.items()}}


def split(pairs: Sequence[Preference], heldout: float, seed: int) -> tuple[list[Preference], list[Preference]]:
    """(training pairs, held-out pairs): conversations with one first turn stay on one side."""
    sides: tuple[list[Preference], list[Preference]] = ([], [])
    for pair in pairs:
        sides[is_held_out(pair.prompt, heldout, seed)].append(pair)
    return sides


def length_wins(pairs: Sequence[Preference]) -> tuple[float, float]:
    """Shares of the decided pairs whose chosen answer is the longer and the shorter one, in characters.

    Equal lengths count for neither; pairs with label 0.5 are left out. (0, 0) where no pair is decided.
    """
    gaps = [len(p.chosen) - len(p.rejected) for p in pairs if p.label != 0.5]
    if not gaps:
        return 0.0, 0.0
    return sum(gap > 0 for gap in gaps) / len(gaps), sum(gap < 0 for gap in gaps) / len(gaps)


def _prompts(pairs: Sequence[Preference]) -> int:
    return len({pair.prompt_id for pair in pairs})
