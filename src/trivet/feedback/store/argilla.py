"""Argilla: the JSON of `dataset.records.to_json()` (Argilla 2), or of feedback records (Argilla 1).

    [{"id": …, "fields": {"prompt": …, "answer-1": …, "answer-2": …}, "metadata": {…}, "suggestions": {},
      "responses": {"ranking": [{"value": ["answer-2", "answer-1"], "user_id": "…"}]}, "vectors": {}}]

A ranking's values name the fields with the answers. Argilla 2 exports them in order, without their ranks, so that
ties are lost there; Argilla 1, and the server's API, give {"value": …, "rank": …}. What Trivet writes is the form
of Argilla 2, and holds the ranks with ties and F in `metadata.trivet_ranks`, from where Trivet reads them again.
Format: https://docs.argilla.io/latest/reference/argilla/records/records/ (read 2026-11).
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import Ranking, text_id
from trivet.feedback.store.documents import Fault, find_prompt, make_ranking, read_records

QUESTION = "ranking"
RANKS = "trivet_ranks"


def read_argilla(path: str | Path) -> list[Ranking]:
    """The submitted rankings of an Argilla export; a labeler is Argilla's user id.

    Raises TrivetError naming file, line (of JSON Lines) and field.
    """
    return read_records(Path(path), "Argilla", _read)


def _read(record: dict[str, Any]) -> list[Ranking]:
    fields = record.get("fields")
    if not isinstance(fields, dict) or not fields:
        raise Fault("this field is missing or no object", "fields", "export with dataset.records.to_json(PATH)")
    answers = list(_responses(record))
    own = (record.get("metadata") or {}).get(RANKS)
    result = []
    for question, value, user, status in answers:
        place = f"responses.{question}"
        if status not in {None, "submitted"}:
            continue
        if not isinstance(value, list) or not value:
            continue  # another kind of question: a text, a label, a rating
        pairs = [_option(option, place, number) for number, option in enumerate(value, 1)]
        if any(name is None for name, _ in pairs):
            continue
        places = {_plain(name): name for name in fields}
        options: list[tuple[str, int | None]] = []
        for name, rank in pairs:
            if _plain(str(name)) not in places:
                if len(answers) > 1 and question != QUESTION:
                    options = []
                    break  # a question with several labels is no ranking
                raise Fault(f"the ranked value {name!r} is none of the record's fields ({', '.join(fields)})", place,
                            "give the values of the ranking question the names of the fields with the answers")
            options.append((places[_plain(str(name))], rank))
        if not options:
            continue
        result.append(_ranking(record, fields, options, user, place, own))
    return result


def _ranking(record: dict[str, Any], fields: dict[str, Any], options: Sequence[tuple[str, int | None]], user: str,
             place: str, own: Any) -> Ranking:
    ranks = dict(options)
    if len(ranks) != len(options):
        raise Fault("a value is ranked twice", place, "correct this record")
    names = [name for name in fields if name in ranks]  # the order of the fields, the same for all labelers
    for name in names:
        if not isinstance(fields[name], str):
            raise Fault(f"this is {type(fields[name]).__name__}, not a text", f"fields.{name}",
                        "give the answer's text")
    messages = find_prompt({k: v for k, v in fields.items() if v is not None}, "fields.", names)
    labeler, given = user, [ranks[name] for name in names]
    for line in own if isinstance(own, list) else []:
        known, _, listed = str(line).rpartition("=")
        if str(user_id(known)) == user:
            try:
                labeler, given = known, [None if r == "F" else int(r) for r in listed.split(",")]
            except ValueError:
                raise Fault(f"{line!r} are no ranks", f"metadata.{RANKS}", "write NAME=1,2,2,F") from None
    return make_ranking({
        "id": str(record.get("id") or text_id([m.model_dump() for m in messages])),
        "messages": messages, "completions": [{"id": name, "text": fields[name]} for name in names], "ranks": given,
        "labeler": labeler}, place)


def _responses(record: dict[str, Any]) -> Any:
    """(question, value, user, status) of both forms of `responses`."""
    responses = record.get("responses") or {}
    if isinstance(responses, dict):  # Argilla 2: by question
        for question, given in responses.items():
            for one in given if isinstance(given, list) else []:
                if not isinstance(one, dict):
                    raise Fault("this is no response", f"responses.{question}", "export the file again")
                yield question, one.get("value"), str(one.get("user_id") or "argilla"), one.get("status")
    elif isinstance(responses, list):  # Argilla 1 and the API: by user
        for one in responses:
            values = one.get("values") if isinstance(one, dict) else None
            if not isinstance(values, dict):
                raise Fault("this is no response", "responses", "export the file again")
            for question, given in values.items():
                yield (question, given.get("value") if isinstance(given, dict) else given,
                       str(one.get("user_id") or "argilla"), one.get("status"))
    else:
        raise Fault("this is no object", "responses", "export the file again")


def _option(option: Any, place: str, number: int) -> tuple[str | None, int | None]:
    if isinstance(option, str):
        return option, number
    if isinstance(option, dict) and isinstance(option.get("value"), str):
        rank = option.get("rank", number)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise Fault(f"{rank!r} is no rank", place, "ranks are integers from 1")
        return option["value"], rank
    return None, None  # a span or the like


def _plain(name: str) -> str:
    """What `response-1`, `response_1` and `Response 1` share."""
    return re.sub(r"[\W_]+", "", name.casefold())


def user_id(name: str) -> uuid.UUID:
    """The id under which a labeler goes out: Argilla knows its users by UUID."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"trivet:labeler:{name}")


def to_argilla(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Records as `Dataset.records.from_json` reads them, one a prompt."""
    groups: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        groups[ranking.id].append(ranking)
    result = []
    for prompt_id, group in groups.items():
        first = group[0]
        names = [f"answer-{number}" for number in range(1, len(first.completions) + 1)]
        single = len(first.messages) == 1
        prompt: Any = first.messages[0].content if single else [m.model_dump() for m in first.messages]
        responses, ranks = [], []
        for ranking in group:
            keys = [float("inf") if r is None else r for r in ranking.ranks]
            order = sorted(range(len(keys)), key=lambda k: keys[k])
            responses.append({"value": [names[k] for k in order], "user_id": str(user_id(ranking.labeler))})
            listed = ",".join("F" if r is None else str(r) for r in ranking.ranks)
            ranks.append(f"{ranking.labeler}={listed}")
        result.append({
            "id": prompt_id,
            "fields": {"prompt": prompt} | {n: c.text for n, c in zip(names, first.completions, strict=True)},
            "metadata": {RANKS: ranks}, "suggestions": {}, "responses": {QUESTION: responses}, "vectors": {}})
    return result
