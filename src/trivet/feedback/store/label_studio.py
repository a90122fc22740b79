"""Label Studio: the JSON export of a project with the Ranker tag over a List.

    [{"id": 7, "data": {"prompt": …, "items": [{"id": "a", "body": …}, {"id": "b", "body": …}]},
      "annotations": [{"completed_by": {"email": …}, "was_cancelled": false, "lead_time": 12.5,
        "result": [{"from_name": "rank", "to_name": "answers", "type": "ranker",
                    "value": {"ranker": {"rank": ["b", "a"]}}}]}]}]

Without buckets a ranking is one list, best first, and knows no ties. With buckets named 1, 2, … and F it does: that
is what Trivet writes. Buckets of other names have no order and are refused.
Format: https://labelstud.io/tags/ranker and https://labelstud.io/guide/task_format (read 2026-11).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import Message, Ranking, text_id
from trivet.feedback.store.documents import Fault, find_prompt, make_ranking, read_records

#: where the items that are in no bucket stand
UNSORTED = "_"
TEXTS = ("body", "text", "html", "title")


def read_label_studio(path: str | Path) -> list[Ranking]:
    """The rankings of a Label Studio export; a labeler is the annotator's address, or `annotator N`.

    Raises TrivetError naming file, line (of JSON Lines) and field.
    """
    return read_records(Path(path), "Label Studio", _read)


def _read(task: dict[str, Any]) -> list[Ranking]:
    data, annotations = task.get("data"), task.get("annotations")
    if not isinstance(data, dict):
        raise Fault("this field is missing or no object", "data", "export as JSON (not JSON-MIN or CSV)")
    if not isinstance(annotations, list):
        raise Fault("this field is missing or no list", "annotations", "export as JSON (not JSON-MIN or CSV)")
    result = []
    for number, annotation in enumerate(annotations):
        place = f"annotations[{number}]"
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise Fault("this is no annotation with a result", place, "export the file again")
        if annotation.get("was_cancelled"):
            continue
        for part in annotation["result"]:
            if isinstance(part, dict) and part.get("type") == "ranker":
                result.append(_ranking(task, data, annotation, part, f"{place}.result"))
    return result


def _ranking(task: dict[str, Any], data: dict[str, Any], annotation: dict[str, Any], part: dict[str, Any],
             place: str) -> Ranking:
    name, items = _items(data)
    value = part.get("value")
    ranker = value.get("ranker") if isinstance(value, dict) else None
    ranks = _ranks(ranker, place)
    unknown = [key for key in ranks if key not in items]
    missing = [key for key in items if key not in ranks]
    if unknown:
        raise Fault(f"{unknown[0]!r} is none of the items of data.{name}", place, "correct this task")
    if missing:
        raise Fault(f"the item {missing[0]!r} is not ranked", place, "delete this annotation, or rank every item")
    messages = _messages(data, name)
    prompt_id = data.get("prompt_id") or task.get("id") or text_id([m.model_dump() for m in messages])
    return make_ranking({
        "id": str(prompt_id), "messages": messages,
        "completions": [{"id": key, "text": text} for key, text in items.items()],
        "ranks": [ranks[key] for key in items], "labeler": _labeler(annotation.get("completed_by")),
        "seconds": annotation.get("lead_time"), "note": part.get("meta", {}).get("note")}, place)


def _items(data: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """(name, texts by id) of the list that was ranked: the one list of objects with ids."""
    lists = [name for name, value in data.items() if isinstance(value, list) and value
             and all(isinstance(one, dict) and "id" in one for one in value)]
    if len(lists) != 1:
        raise Fault(f"{len(lists) or 'no'} lists of items with ids in {', '.join(data) or 'nothing'}", "data",
                    'the ranked List wants one, such as "items": [{"id": "a", "body": "…"}]')
    items: dict[str, str] = {}
    for number, one in enumerate(data[lists[0]]):
        text = next((one[name] for name in TEXTS if isinstance(one.get(name), str)), None)
        if text is None:
            raise Fault("this item has no text", f"data.{lists[0]}[{number}]", f"give it one of {', '.join(TEXTS)}")
        if str(one["id"]) in items:
            raise Fault(f"the id {one['id']!r} stands twice", f"data.{lists[0]}[{number}]", "give each its own")
        items[str(one["id"])] = text
    return lists[0], items


def _ranks(ranker: Any, place: str) -> dict[str, int | None]:
    if isinstance(ranker, list):  # as older versions wrote it
        ranker = {"rank": ranker}
    if not isinstance(ranker, dict) or not all(isinstance(ids, list) for ids in ranker.values()):
        raise Fault("this is no ranking", f"{place}.value.ranker", "export the file again")
    filled = {name: [str(key) for key in ids] for name, ids in ranker.items() if ids}
    pairs: list[tuple[str, int | None]] = []
    buckets = set(ranker) - {UNSORTED}
    if len(buckets) == 1 and set(filled) == buckets and not _is_rank(next(iter(buckets))):
        pairs = [(key, rank) for rank, key in enumerate(next(iter(filled.values())), 1)]
    else:
        for name, ids in filled.items():
            if name == UNSORTED:
                raise Fault(f"the item {ids[0]!r} is in no bucket", f"{place}.value.ranker",
                            "delete this annotation, or rank every item")
            if not _is_rank(name):
                raise Fault(f"the bucket {name!r} says no rank", f"{place}.value.ranker",
                            "name the buckets 1, 2, … and F, or rank without buckets")
            pairs += [(key, None if name.upper() in {"F", "FAIL"} else int(name)) for key in ids]
    if len(dict(pairs)) != len(pairs):
        raise Fault("an item is ranked twice", f"{place}.value.ranker", "correct this annotation")
    return dict(pairs)


def _is_rank(name: str) -> bool:
    return name.upper() in {"F", "FAIL"} or (name.isascii() and name.isdecimal() and int(name) >= 1)


def _messages(data: dict[str, Any], items: str) -> list[Message]:
    return find_prompt({k: v for k, v in data.items() if k not in {items, "prompt_id"}}, "data.", ())


def _labeler(by: Any) -> str:
    if isinstance(by, dict):
        names = (by.get("email"), f"{by.get('first_name') or ''} {by.get('last_name') or ''}".strip(), by.get("id"))
        by = next((name for name in names if name), None)
    return by if isinstance(by, str) else f"annotator {by}" if by is not None else "annotator"


def to_label_studio(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Tasks as Label Studio exports and imports them, one a prompt, ranks as buckets 1, 2, … and F."""
    groups: dict[str, list[Ranking]] = defaultdict(list)
    for ranking in rankings:
        groups[ranking.id].append(ranking)
    people = {name: number for number, name in enumerate(dict.fromkeys(r.labeler for r in rankings), 1)}
    tasks = []
    for number, (prompt_id, group) in enumerate(groups.items(), 1):
        first = group[0]
        data: dict[str, Any] = {"prompt_id": prompt_id}
        if len(first.messages) == 1:
            data["prompt"] = first.messages[0].content
        else:
            data["messages"] = [m.model_dump() for m in first.messages]
        data["items"] = [{"id": c.id, "title": f"Answer {k}", "body": c.text}
                         for k, c in enumerate(first.completions, 1)]
        buckets = [str(rank) for rank in range(1, len(first.completions) + 1)] + ["F"]
        annotations = []
        for ranking in group:
            ranker: dict[str, list[str]] = {name: [] for name in buckets}
            for completion, rank in zip(ranking.completions, ranking.ranks, strict=True):
                ranker.setdefault("F" if rank is None else str(rank), []).append(completion.id)
            annotations.append({
                "completed_by": {"id": people[ranking.labeler], "email": ranking.labeler, "first_name": "",
                                 "last_name": ""},
                "was_cancelled": False, "ground_truth": False, "lead_time": ranking.seconds,
                "result": [{"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": ranker}}
                           | ({"meta": {"note": ranking.note}} if ranking.note else {})]})
        tasks.append({"id": number, "data": data, "annotations": annotations, "predictions": []})
    return tasks
