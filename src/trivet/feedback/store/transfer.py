"""Rankings in and out: our own form, the field's preference form, Argilla, Label Studio."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from trivet.artifacts import Completion, Preference, Ranking, atomic_write, write_json, write_rows
from trivet.data.importers import read_preferences
from trivet.errors import TrivetError
from trivet.feedback.store.argilla import read_argilla, to_argilla
from trivet.feedback.store.label_studio import read_label_studio, to_label_studio
from trivet.feedback.store.store import Store

__all__ = ["Format", "export", "read", "read_argilla", "read_label_studio", "read_own", "read_preference"]

Format = Literal["rankings", "preference", "argilla", "label_studio"]


def read(path: str | Path, format: Format) -> list[Ranking]:
    """The rankings of a file in one of the formats. Raises TrivetError naming file, line and field."""
    readers: dict[str, Callable[[str | Path], list[Ranking]]] = {
        "rankings": read_own, "preference": read_preference, "argilla": read_argilla,
        "label_studio": read_label_studio}
    return readers[_known(format)](path)


def read_own(path: str | Path) -> list[Ranking]:
    """Rankings (JSON Lines or Parquet): our own, or `prompt`, `responses`, `ranks`. Raises TrivetError."""
    found = read_preferences(path, "ranked").rankings
    for ranking in found:
        if len(ranking.completions) < 2:
            raise TrivetError(f"the prompt {ranking.id!r} has one answer only", file=path, field="completions",
                              mend="give at least two answers a prompt")
    return found


def read_preference(path: str | Path) -> list[Ranking]:
    """Pairs (`prompt`, `chosen`, `rejected`; hh-rlhf) as rankings of two answers by their `source`, or the file's name.

    Raises TrivetError, also for a pair whose label is neither 1 nor a tie: that is no one labeler's ranking.
    """
    path, result = Path(path), []
    for pair in read_preferences(path, "auto", keep_ties=True).pairs:
        if pair.label != 1.0 and not pair.tie:
            raise TrivetError(f"the pair {pair.id!r} has the label {pair.label:g}, which is no one labeler's",
                              file=path, field="label",
                              mend="give it to `trivet pairs` as it is, or the rankings behind it")
        result.append(Ranking(
            id=pair.id, messages=pair.prompt, ranks=[1, 1 if pair.tie else 2], labeler=pair.source or path.stem,
            completions=[Completion(id="chosen", text=pair.chosen), Completion(id="rejected", text=pair.rejected)]))
    if not result:
        raise TrivetError("this file gives no pair", file=path, mend="give a file of rankings or pairs")
    return result


def export(store: Store, path: str | Path, format: Format, *, by: int | None = None) -> int:
    """Write all rankings of the store, atomically; how many rankings, or pairs, it holds.

    rankings: one row a labeler and prompt. preference: pairs in the field's form, labelers merged by their votes.
    Raises TrivetError when there is nothing to write, or it cannot be written.
    """
    path, rankings = Path(path), store.rankings(include=("label", "live"))
    _known(format)
    if not rankings:
        raise TrivetError("there is no ranking to export yet", mend="label some prompts first")
    count = len(rankings)
    if format == "rankings":
        write_rows(path, rankings)
    elif format == "preference":
        from trivet.feedback.pairs import ranked_pairs

        pairs = ranked_pairs(rankings, keep_ties=True).pairs
        count = len(pairs)
        with atomic_write(path) as file:
            for pair in pairs:
                file.write(json.dumps(_preference(pair), ensure_ascii=False) + "\n")
    else:
        write_json(path, to_argilla(rankings) if format == "argilla" else to_label_studio(rankings))
    store.record(by, "export", format=format, rows=count)
    return count


def _preference(pair: Preference) -> dict[str, Any]:
    """A pair in the form that preference trainers read: lists of messages, and our further fields beside them."""
    answers = {name: [{"role": "assistant", "content": text}]
               for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))}
    more = pair.model_dump(mode="json", include={"id", "prompt_id", "label", "weight", "margin", "tie", "source"})
    return {"prompt": [m.model_dump() for m in pair.prompt], **answers, **more}


def _known(format: str) -> str:
    if format not in get_args(Format):
        raise TrivetError(f"there is no format {format!r}", field="format",
                          mend=f"give one of {', '.join(get_args(Format))}")
    return format
