"""`pairs` from a label database, through its own door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from simulated import simulate
from trivet import ledger
from trivet.artifacts import Completions, Preference, Ranking, read_rows
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.feedback.aggregation import METHODS, aggregate, preferences
from trivet.feedback.config import PairsConfig
from trivet.feedback.labels import database_file, labelling_time, read_labels
from trivet.feedback.pairs import PairsSummary, run
from trivet.feedback.store import Store
from trivet.runs import execute


@pytest.fixture
def labelled(tmp_path) -> tuple[Path, list[Ranking]]:
    """A database of three labelers' judgments on forty items, and the judgments."""
    rows, _ = simulate([0.9, 0.8, 0.7], 40, 3, seed=0)
    with Store.open(tmp_path / "labels.db") as store:
        assert store.add_rankings(rows).added == len(rows)
    return tmp_path / "labels.db", rows


def go(out: Path, database: object, **settings) -> PairsSummary:
    return execute("pairs", PairsConfig(out=out, from_labels=str(database), **settings), run, PairsSummary)


def by_id(pairs) -> dict[str, tuple]:
    return {p.id: (p.chosen, p.label, pytest.approx(p.weight), p.source) for p in pairs}


@pytest.mark.parametrize("method", METHODS)
def test_a_database_gives_what_its_rankings_give(labelled, tmp_path, method, jsonl) -> None:
    database, rows = labelled
    summary = go(tmp_path / "run", database, method=method)
    written = [*read_rows(tmp_path / "run" / "train.jsonl", Preference),
               *read_rows(tmp_path / "run" / "heldout.jsonl", Preference)]
    expected = preferences(aggregate(rows, method))
    assert by_id(written) == by_id(expected.pairs)
    assert (summary.method, summary.rankings, summary.labelers, summary.prompts) == (method, 120, 3, 40)
    assert summary.reliability.keys() == {"labeler 00", "labeler 01", "labeler 02"}
    assert summary.agreement["alpha"]["value"] > 0.3 and summary.agreement["leave_one_out"]["n"] == 40
    merged = read_rows(tmp_path / "run" / "rankings.jsonl", Ranking)
    assert len(merged) == 40 and merged[0].labeler.startswith(f"{method}: labeler 0")
    # --input takes the same method
    file = jsonl("rankings.jsonl", [r.model_dump(mode="json") for r in rows])
    main(["pairs", "--input", str(file), "--method", method, "--out", str(tmp_path / "file")])
    assert by_id(read_rows(tmp_path / "file" / "train.jsonl", Preference)) == by_id(
        read_rows(tmp_path / "run" / "train.jsonl", Preference))


def test_the_command_line(labelled, tmp_path, capsys) -> None:
    main(["pairs", "--from-labels", f"sqlite:///{labelled[0]}", "--method", "davidson", "--keep-ties",
          "--out", str(tmp_path / "run")])
    assert any(p.tie for p in read_rows(tmp_path / "run" / "train.jsonl", Preference))
    assert "pairs done" in capsys.readouterr().out


def test_what_the_labels_say_makes_the_run(labelled, tmp_path, capsys) -> None:
    """Reading the database changes nothing; a new judgment does."""
    database, rows = labelled
    go(tmp_path / "run", database)
    go(tmp_path / "run", database)
    assert "finished before" in capsys.readouterr().out
    with Store.open(database) as store:
        assert store.add_rankings([rows[0].model_copy(update={"labeler": "new"})]).added == 1
    with pytest.raises(TrivetError, match="other settings or inputs"):
        go(tmp_path / "run", database)
    assert go(tmp_path / "run", database, overwrite=True).labelers == 4


def test_rounds_adjudications_repeats_and_gold(tmp_path, capsys) -> None:
    rows, _ = simulate([0.9, 0.6], 30, 2, seed=1, ties=False)
    with Store.open(tmp_path / "labels.db") as store:
        store.change_settings(None, overlap=2, gold_rate=0.0, repeat_rate=0.0)
        admin = store.create_user("eve", "admin").id
        store.add_rankings(rows[:40], by=admin)
        store.add_rankings(rows[40:], by=admin, round=2)
        item = store.disputed(1)[0]
        assignment = store.adjudication_assignment(item.item_id, admin)
        store.submit(assignment.id, admin, [4, 3, 2, 1], seconds=1.0, request_id="a")
    found = read_labels(str(tmp_path / "labels.db"))
    assert len(found.rankings) == 60 and [r.ranks for r in found.adjudications] == [[4, 3, 2, 1]]
    assert go(tmp_path / "two", tmp_path / "labels.db", rounds=[2], heldout=0).prompts == 10
    assert go(tmp_path / "plain", tmp_path / "labels.db", heldout=0).adjudicated == 0
    assert "1 adjudications are not used" in capsys.readouterr().out
    summary = go(tmp_path / "with", tmp_path / "labels.db", heldout=0, adjudications=True, method="majority")
    assert summary.adjudicated == 1
    decided = [p for p in read_rows(tmp_path / "with" / "train.jsonl", Preference) if p.source == "adjudicated: eve"]
    assert len(decided) == 6 and {p.prompt_id for p in decided} == {found.adjudications[0].id}


def test_undone_and_edited_judgments(tmp_path) -> None:
    row = Completions.model_validate({"id": "p", "prompt": "Which?", "completions": [
        {"id": "a", "text": "one"}, {"id": "b", "text": "two"}]})
    with Store.open(tmp_path / "labels.db") as store:
        store.change_settings(None, overlap=2, gold_rate=0.0, repeat_rate=0.0)
        store.add_completions([row])
        ann, bob = (store.create_user(n, "labeler").id for n in ("ann", "bob"))
        for user in (ann, bob):
            store.submit(store.next_assignment(user).id, user, [1, 2], seconds=1.0, request_id="1")
        store.undo(ann, "2")
        done = store.history(bob)[0]
        store.edit(done.assignment_id, bob, [2, 1], seconds=1.0, request_id="3")
    (found,) = read_labels(str(tmp_path / "labels.db")).rankings
    assert (found.labeler, found.ranks) == ("bob", [2, 1])


def test_a_password_is_not_written_down(monkeypatch) -> None:
    config = PairsConfig(from_labels="postgresql+psycopg://trivet:secret@host:5432/labels")
    assert yaml.safe_load(json.dumps(config.model_dump(mode="json")))["from_labels"] == \
        "postgresql+psycopg://trivet:***@host:5432/labels"
    assert config.from_labels.endswith("trivet:secret@host:5432/labels")


def test_database_file() -> None:
    assert database_file("a/labels.db") == database_file("sqlite:///a/labels.db") == Path("a/labels.db")
    assert database_file("sqlite:////tmp/labels.db") == Path("/tmp/labels.db")
    assert database_file("postgresql+psycopg://host/name") is None


# --- refused ------------------------------------------------------------------------------------------------


def test_a_database_that_is_not_there_is_not_made(tmp_path) -> None:
    for url in (str(tmp_path / "no.db"), f"sqlite:///{tmp_path}/no.db"):
        with pytest.raises(TrivetError, match="no such label database"):
            go(tmp_path / "run", url)
    assert not (tmp_path / "no.db").exists()


def test_a_database_without_a_judgment(tmp_path, labelled) -> None:
    Store.open(tmp_path / "empty.db").close()
    with pytest.raises(TrivetError, match="holds no judgment"):
        go(tmp_path / "run", tmp_path / "empty.db")
    with pytest.raises(TrivetError, match="no judgment of the rounds 7"):
        go(tmp_path / "run", labelled[0], rounds=[7])


def test_a_file_that_is_no_database(tmp_path) -> None:
    (tmp_path / "labels.db").write_text("not a database at all, but long enough to look at\n" * 50)
    with pytest.raises(TrivetError):
        go(tmp_path / "run", tmp_path / "labels.db")


def test_a_database_in_the_run_folder(tmp_path) -> None:
    with pytest.raises(ValueError, match="may clear"):
        PairsConfig(out=tmp_path / "run", from_labels=str(tmp_path / "run" / "labels.db"))


@pytest.mark.parametrize(("arguments", "says"), [
    (["--from-labels", "DB", "--method", "best"], "best"),
    (["--from-labels", "DB", "--input", "DB"], "one of the two"),
    ([], "one of the two"),
    (["--input", "PAIRS", "--method", "mace"], "nothing for mace to aggregate"),
    (["--input", "PAIRS", "--adjudications"], "go with --from-labels"),
    (["--from-labels", "DB", "--format", "hh"], "a database of labels holds rankings"),
])
def test_the_command_line_refuses(labelled, tmp_path, preference_files, capsys, arguments, says) -> None:
    names = {"DB": str(labelled[0]), "PAIRS": str(preference_files[0])}
    with pytest.raises(SystemExit) as stopped:
        main(["pairs", *(names.get(a, a) for a in arguments), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_ledger_says_how_long_people_took_and_ai_labelers_apart(tmp_path) -> None:
    rows = [Completions.model_validate({
        "id": f"p{i}", "messages": [{"role": "user", "content": f"Question {i}?"}],
        "completions": [{"id": f"{j}", "text": f"answer {j}"} for j in range(2)]}) for i in range(8)]
    with Store.open(tmp_path / "labels.db") as store:
        store.change_settings(None, gold_rate=0.0, repeat_rate=0.0, overlap=2)
        store.add_completions(rows)
        ann = store.create_user("ann", "labeler")
        robot = store.create_user("robot", "labeler", kind="ai")
        for user, seconds in ((ann, 30.0), (robot, 2.0)):
            for number in range(8):
                given = store.next_assignment(user.id)
                assert given is not None
                taken = seconds if number else 0.0  # one of each without a time
                store.submit(given.id, user.id, [1, 2], seconds=taken, request_id=f"{user.id}-{number}")
        last = given
        store.edit(last.id, robot.id, [2, 1], seconds=5.0, request_id="again")
    go(tmp_path / "run", tmp_path / "labels.db", heldout=0.3)
    (entry,) = ledger.read(tmp_path / "ledger.jsonl")
    assert entry.labelling is not None
    assert (entry.people_seconds, entry.labelling.people_rankings) == (210.0, 8)
    assert (entry.labelling.ai_seconds, entry.labelling.ai_rankings, entry.labelling.untimed) == (17.0, 8, 2)
    whole = labelling_time(str(tmp_path / "labels.db"))  # what was corrected took its time as well
    assert (whole.people_seconds, whole.ai_seconds, whole.ai_rankings) == (210.0, 19.0, 9)


def test_equal_rankings_are_told_to_be_equal(labelled, tmp_path, jsonl) -> None:
    """Two stages that read the same rankings: the ledger counts the time once."""
    _, rows = labelled
    file = jsonl("rankings.jsonl", [r.model_dump(mode="json") for r in rows])
    for name, source, more in (("a", ["--input", str(file)], []), ("b", ["--input", str(file)], ["--seed", "3"]),
                               ("c", ["--input", str(jsonl("few.jsonl", [r.model_dump(mode="json")
                                                                         for r in rows[:60]]))], [])):
        main(["pairs", *source, *more, "--out", str(tmp_path / name)])
    a, b, c = (e.labelling.source for e in ledger.read(tmp_path / "ledger.jsonl") if e.labelling)
    assert a == b != c


def test_the_time_of_a_database_that_is_not_there(tmp_path) -> None:
    with pytest.raises(TrivetError, match="no such label database"):
        labelling_time(str(tmp_path / "nothing.db"))
