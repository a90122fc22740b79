"""Rankings in and out, in our own form and in others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trivet.artifacts import Ranking, read_rows
from trivet.data.importers import read_preferences
from trivet.errors import TrivetError
from trivet.feedback.store import transfer

# As `dataset.records.to_json()` of Argilla 2 writes: values in order, a response by question.
ARGILLA = {
    "id": "rec-1", "fields": {"instruction": "Name a colour.", "response-1": "Red.", "response-2": "Blue, say."},
    "metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": "6f1c",
    "responses": {"preference": [{"value": ["response-2", "response-1"], "user_id": "u-1"},
                                 {"value": ["response-1", "response-2"], "user_id": "u-2"}],
                  "comment": [{"value": "fine", "user_id": "u-1"}]}}
# As the server's API, and Argilla 1, write: a response by user, ranks with ties.
ARGILLA_1 = {
    "id": "rec-2", "fields": {"prompt": "Name a fruit.", "answer_a": "Fig.", "answer_b": "Plum.", "answer_c": "Mud."},
    "responses": [
        {"user_id": "u-1", "status": "submitted", "values": {"ranking": {"value": [
            {"value": "answer_b", "rank": 1}, {"value": "answer_a", "rank": 1}, {"value": "answer_c", "rank": 3}]}}},
        {"user_id": "u-2", "status": "draft", "values": {"ranking": {"value": [{"value": "answer_a", "rank": 1}]}}}]}
# As the project's JSON export writes, with the labels of the documentation's Ranker example.
LABEL_STUDIO: dict[str, Any] = {
    "id": 7, "data": {"prompt": "Name a colour.", "items": [
        {"id": "mdn", "title": "Answer", "body": "Red."}, {"id": "wiki", "body": "Blue."},
        {"id": "blog", "body": "Mud."}]},
    "annotations": [
        {"id": 1, "completed_by": {"id": 3, "email": "ann@example.org", "first_name": "", "last_name": ""},
         "was_cancelled": False, "lead_time": 12.5, "result": [
             {"from_name": "rank", "to_name": "results", "type": "ranker",
              "value": {"ranker": {"rank": ["wiki", "mdn", "blog"]}}}]},
        {"id": 2, "completed_by": 4, "was_cancelled": False, "lead_time": 3.0, "result": [
            {"from_name": "t", "to_name": "x", "type": "textarea", "value": {"text": ["hm"]}},
            {"from_name": "rank", "to_name": "results", "type": "ranker",
             "value": {"ranker": {"1": ["wiki", "mdn"], "2": [], "F": ["blog"], "_": []}}}]},
        {"id": 3, "completed_by": 5, "was_cancelled": True, "result": []}],
    "predictions": []}


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_argilla_2(tmp_path: Path) -> None:
    first, second = transfer.read_argilla(write(tmp_path / "a.json", [ARGILLA]))
    assert (first.id, first.messages[0].content) == ("rec-1", "Name a colour.")
    assert (first.labeler, first.ranks) == ("u-1", [2, 1])
    assert [(c.id, c.text) for c in first.completions] == [("response-1", "Red."), ("response-2", "Blue, say.")]
    assert (second.labeler, second.ranks) == ("u-2", [1, 2])


def test_argilla_1_with_ties_as_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ARGILLA_1) + "\n")
    found = transfer.read_argilla(tmp_path / "a.jsonl")
    assert [(r.labeler, r.ranks) for r in found] == [("u-1", [1, 1, 3])]  # the draft is left out


def test_argilla_options_are_named_like_fields(tmp_path: Path) -> None:
    loose = json.loads(json.dumps(ARGILLA).replace('["response-2", "response-1"]', '["Response 2", "response_1"]'))
    assert transfer.read_argilla(write(tmp_path / "a.json", [loose]))[0].ranks == [2, 1]


def test_label_studio(tmp_path: Path) -> None:
    first, second = transfer.read_label_studio(write(tmp_path / "l.json", [LABEL_STUDIO]))
    assert (first.id, first.labeler, first.ranks, first.seconds) == ("7", "ann@example.org", [2, 1, 3], 12.5)
    assert [(c.id, c.text) for c in first.completions] == [("mdn", "Red."), ("wiki", "Blue."), ("blog", "Mud.")]
    assert (second.labeler, second.ranks) == ("annotator 4", [1, 1, None])


def changed(value: Any, *path: Any, to: Any) -> Any:
    """A copy of `value` with another value at `path`; to=...: with nothing there."""
    value = json.loads(json.dumps(value))
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return value


RANKER = ("annotations", 0, "result", 0, "value", "ranker")


@pytest.mark.parametrize("format, record, words, field", [
    ("argilla", changed(ARGILLA, "fields", to=...), "missing or no object", "[0].fields"),
    ("argilla", changed(ARGILLA, "responses", to={}), "no ranking", None),
    ("argilla", changed(ARGILLA, "responses", to="x"), "no object", "[0].responses"),
    ("argilla", changed(ARGILLA, "responses", "comment", to=[3]), "no response", "[0].responses.comment"),
    ("argilla", changed(ARGILLA, "responses", to={"ranking": [{"value": ["x"], "user_id": "u"}]}), "none of the record",
     "[0].responses.ranking"),
    ("argilla", changed(ARGILLA, "fields", "response-1", to=7), "int, not a text", "[0].fields.response-1"),
    ("argilla", changed(ARGILLA, "fields", "instruction", to=None), "holds the prompt", "[0].fields"),
    ("argilla", changed(ARGILLA, "responses", "preference", 0, "value", to=["response-1", "response-1"]), "twice",
     "[0].responses.preference"),
    ("argilla", changed(ARGILLA_1, "responses", 0, "values", "ranking", "value", 0, "rank", to=0), "no rank",
     "[0].responses.ranking"),
    ("label_studio", changed(LABEL_STUDIO, "data", to=...), "missing", "[0].data"),
    ("label_studio", changed(LABEL_STUDIO, "annotations", to=...), "missing", "[0].annotations"),
    ("label_studio", changed(LABEL_STUDIO, "annotations", to=[]), "no ranking", None),
    ("label_studio", changed(LABEL_STUDIO, "data", "items", to=[]), "lists of items", "[0].data"),
    ("label_studio", changed(LABEL_STUDIO, "data", "items", 0, to={"id": "mdn"}), "no text", "[0].data.items[0]"),
    ("label_studio", changed(LABEL_STUDIO, "data", "prompt", to=...), "holds the prompt", "[0].data"),
    ("label_studio", changed(LABEL_STUDIO, *RANKER, to={"rank": ["wiki", "mdn"]}), "'blog' is not ranked",
     "[0].annotations[0].result"),
    ("label_studio", changed(LABEL_STUDIO, *RANKER, to={"rank": ["wiki", "mdn", "x"]}), "none of the items",
     "[0].annotations[0].result"),
    ("label_studio", changed(LABEL_STUDIO, *RANKER, to={"best": ["wiki"], "ads": ["mdn", "blog"]}), "says no rank",
     "[0].annotations[0].result.value.ranker"),
    ("label_studio", changed(LABEL_STUDIO, *RANKER, to={"_": ["mdn"], "1": ["wiki", "blog"]}), "in no bucket",
     "[0].annotations[0].result.value.ranker"),
    ("label_studio", changed(LABEL_STUDIO, *RANKER, to="x"), "no ranking", "[0].annotations[0].result.value.ranker"),
])
def test_bad_records_say_where(tmp_path: Path, format: Any, record: Any, words: str, field: str | None) -> None:
    file = write(tmp_path / "bad.json", [record])
    with pytest.raises(TrivetError, match=words) as fault:
        transfer.read(file, format)
    assert (fault.value.file, fault.value.field) == (file, field)
    (tmp_path / "bad.jsonl").write_text("\n" + json.dumps(record) + "\n")
    with pytest.raises(TrivetError, match=words) as fault:
        transfer.read(tmp_path / "bad.jsonl", format)
    assert fault.value.line == (2 if field else None) and fault.value.field == (field and field.removeprefix("[0]."))


@pytest.mark.parametrize("content, words", [
    (b"[{]", "broken JSON"), (b'[{"id": 1}, 3]', "int, not a record"), (b'["\xff"]', "not UTF-8"),
    (b"{", "broken JSON"), (b"[]", "0 records"), (b"[" * 100_000, "nested too deeply"),
])
@pytest.mark.parametrize("format", ["argilla", "label_studio"])
def test_bad_files(tmp_path: Path, format: Any, content: bytes, words: str) -> None:
    if content.startswith(b"[{\"id") and format == "label_studio":
        content = content.replace(b'{"id": 1}', b'{"id": 1, "data": {}, "annotations": []}')
    elif content.startswith(b"[{\"id"):
        content = content.replace(b'{"id": 1}', b'{"id": 1, "fields": {"prompt": "x"}}')
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(TrivetError, match=words) as fault:
        transfer.read(tmp_path / "bad.json", format)
    assert fault.value.file == tmp_path / "bad.json"


def test_missing_file_and_unknown_format(tmp_path: Path, store) -> None:
    with pytest.raises(TrivetError, match="no such file"):
        transfer.read(tmp_path / "none.json", "argilla")
    for work in (lambda: transfer.read(tmp_path / "x", "csv"), lambda: transfer.export(store, tmp_path / "x", "csv")):
        with pytest.raises(TrivetError, match="no format 'csv'"):
            work()
    with pytest.raises(TrivetError, match="no ranking to export"):
        transfer.export(store, tmp_path / "x", "rankings")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def labeled(team, make_rows):
    """Three labelers with ties and F on prompts of one and of several turns."""
    rows = make_rows(4, k=4)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"},
             {"role": "user", "content": "So?"}]
    rows[1] = rows[1].model_validate({**rows[1].model_dump(), "messages": turns})
    team.store.add_completions(rows)
    for n, name in enumerate(("Ann Smith", "Bob", "Çid=1")):
        user = team.person(name)
        for given in iter(lambda user=user: team.store.next_assignment(user.id), None):
            team.submit(given, [[1, 2, 2, None], [4, 3, 1, 2], [None, 1, None, 1]][(n + given.item_id) % 3],
                        note="why" if n else None)
    return team.store


@pytest.mark.parametrize("format", ["rankings", "argilla", "label_studio"])
def test_what_goes_out_comes_in_again(labeled, tmp_path: Path, format: Any) -> None:
    assert transfer.export(labeled, tmp_path / "out.jsonl", format, by=None) == 12
    back = transfer.read(tmp_path / "out.jsonl", format)
    assert {(r.id, r.labeler, str(r.messages), str([c.text for c in r.completions]), str(r.ranks)) for r in back} == \
        {(r.id, r.labeler, str(r.messages), str([c.text for c in r.completions]), str(r.ranks))
         for r in labeled.rankings()}
    assert labeled.audit(1)[0].detail == {"format": format, "rows": 12}


def test_export_of_rankings_is_the_artifact(labeled, tmp_path: Path) -> None:
    transfer.export(labeled, tmp_path / "r.jsonl", "rankings")
    assert read_rows(tmp_path / "r.jsonl", Ranking) == labeled.rankings()


def test_argilla_export_is_what_argilla_reads(labeled, tmp_path: Path) -> None:
    transfer.export(labeled, tmp_path / "a.json", "argilla")
    for record in json.loads((tmp_path / "a.json").read_text()):
        assert set(record) == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
        for response in record["responses"]["ranking"]:
            assert sorted(response["value"]) == ["answer-1", "answer-2", "answer-3", "answer-4"]
            assert len(response["user_id"]) == 36
    chosen = next(r for r in labeled.rankings() if r.ranks == [None, 1, None, 1])
    record = next(r for r in json.loads((tmp_path / "a.json").read_text()) if r["id"] == chosen.id)
    assert ["answer-2", "answer-4", "answer-1", "answer-3"] in [r["value"] for r in record["responses"]["ranking"]]


def test_export_of_pairs_is_read_by_the_stage(labeled, tmp_path: Path) -> None:
    count = transfer.export(labeled, tmp_path / "p.jsonl", "preference")
    row = json.loads((tmp_path / "p.jsonl").read_text().splitlines()[0])
    assert [m["role"] for m in (row["prompt"][-1], row["chosen"][0], row["rejected"][0])] == \
        ["user", "assistant", "assistant"]
    read = read_preferences(tmp_path / "p.jsonl", "auto", keep_ties=True)
    assert len(read.pairs) == count > 12 and not read.skipped


def test_pairs_come_in_as_rankings_of_two(store, tmp_path: Path) -> None:
    rows = [{"prompt": "Q1", "chosen": "yes", "rejected": "no", "source": "Zoe"},
            {"prompt": [{"role": "user", "content": "Q2"}], "chosen": "a", "rejected": "b", "tie": True, "label": 0.5}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = transfer.read(tmp_path / "pairs.jsonl", "preference")
    assert [(r.labeler, r.ranks) for r in found] == [("Zoe", [1, 2]), ("pairs", [1, 1])]
    assert store.add_rankings(found).added == 2
    (tmp_path / "soft.jsonl").write_text(json.dumps({**rows[0], "label": 0.7}) + "\n")
    with pytest.raises(TrivetError, match="no one labeler's"):
        transfer.read(tmp_path / "soft.jsonl", "preference")


def test_one_answer_is_no_ranking(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": "Q", "completions": [{"id": f"c{k}", "text": f"{k}"} for k in range(n)],
             "ranks": list(range(1, n + 1)), "labeler": "Zoe"} for n in (2, 1)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(TrivetError, match="one answer only"):
        transfer.read(tmp_path / "r.jsonl", "rankings")
