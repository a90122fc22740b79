"""Finished evaluations side by side: what is shared, what is refused."""

from __future__ import annotations

import json

import pytest

from evaluations import ATTACKS, LENGTH, LOSS, folder, scores
from trivet.artifacts import write_rows
from trivet.errors import TrivetError
from trivet.evaluate import statistics, table
from trivet.evaluate.base import Score
from trivet.evaluate.compare import check_out, compare, write
from trivet.evaluate.results import build, read
from trivet.evaluate.results import write as write_results
from trivet.evaluate.suites import prompts


def test_the_first_is_the_base_and_holms_family_spans_all_tables(tmp_path) -> None:
    runs = [folder(tmp_path / "a", seed=1, model="first"), folder(tmp_path / "b", seed=2, model="second", attacks=0.95),
            folder(tmp_path / "c", seed=3, model="third")]
    tables = compare(runs)
    assert [(t.base, t.model) for t in tables] == [("first", "second"), ("first", "third")]
    lines = [t.line(ATTACKS.key) for t in tables]
    assert [line.verdict for line in lines if line] == ["worse", "same"]
    assert tables[0].family == tables[1].family == 10
    found = [m.p_holm for t in tables for m in t.measures if m.p_holm is not None]
    ps = [m.difference.p for t in tables for m in t.measures if m.p_holm is not None and m.difference]
    assert found == pytest.approx(statistics.holm(ps))
    text = table.markdown(tables)
    assert "| measure | first | second | third | n |" in text and "10 paired tests" in text
    # speed is not scored item by item: it is shown as it was found, and not tested
    assert "speed of answering (tokens/s) | 500.0 | 500.0 | 500.0" in text


def test_perplexities_of_another_tokenizer_are_shown_and_not_tested(tmp_path) -> None:
    runs = [folder(tmp_path / name, seed=i, model=name) for i, name in enumerate("abc")]
    path = runs[1] / "scores" / "text.jsonl"
    write_rows(path, [s.model_copy(update={"weight": 120.0}) if s.measure == LOSS.key else s for s in scores(1)
                      if s.measure in (LOSS.key, LENGTH.key)])
    tables = compare(runs)
    lines = [t.line(LOSS.key) for t in tables]
    assert [line.verdict for line in lines if line] == ["untested", "same"]
    assert [len(t.notes) for t in tables] == [1, 0] and "between b and a" in tables[0].notes[0]
    assert table.markdown(tables).count("between b and a") == 1


def test_columns_rest_on_shared_items_alone(tmp_path) -> None:
    one, two = folder(tmp_path / "a", seed=1), folder(tmp_path / "b", seed=2, n=25)
    line = compare([one, two])[0].line(ATTACKS.key)
    assert line is not None and line.base is not None and line.difference is not None
    assert (line.value.n, line.base.n, line.difference.n) == (25, 25, 25)
    cut = [s for s in scores(1) if s.measure == ATTACKS.key and int(s.id.split("-")[1]) < 25]
    assert line.base.value == pytest.approx(sum(s.value for s in cut) / 25)


def test_win_rates_and_what_only_one_has_are_left_out_with_the_reason(tmp_path) -> None:
    one, two = folder(tmp_path / "a", beside=True, win=0.8), folder(tmp_path / "b", seed=2)
    (two / "scores" / "text.jsonl").unlink()
    found = compare([one, two])[0]
    assert found.left_out["helpful.win_rate"] == "of pairs with each run's own base"
    assert found.left_out["capable.perplexity"] == "not in b"
    assert found.line("helpful.win_rate") is None and found.line("capable.perplexity") is None


def test_all_that_a_judge_says_of_pairs_is_left_out(tmp_path) -> None:
    runs = [folder(tmp_path / name, seed=i) for i, name in enumerate("ab", 1)]
    for run in runs:
        rows = [Score(measure=m.key, id=f"p{i}", group=f"p{i}", value=i % 2) for m in (prompts.FIRST, prompts.FLIPS)
                for i in range(9)]
        write_rows(run / "scores" / "pairs.jsonl", rows)
        form = read(run)
        judged = build(model="mine", base="base", measures=prompts.PAIRS, scores=rows, base_scores=[])
        write_results(run, form.model_copy(update={"measures": [*form.measures, *judged.measures]}))
    found = compare(runs)[0]
    for m in (prompts.FIRST, prompts.FLIPS):
        assert found.left_out[m.key] == "of pairs with each run's own base" and found.line(m.key) is None
    assert prompts.FLIPS.words not in table.markdown([found]).split("Left out")[0]


def test_the_seed_shown_is_the_runs(tmp_path) -> None:
    runs = [folder(tmp_path / name, seed=i, run_seed=7) for i, name in enumerate("abc", 1)]
    form = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps(form | {"machine": "another"}))
    found = compare(runs, seed=3)
    assert [t.seed for t in found] == [7, 7] and found[0].machine == "another" != found[1].machine
    assert found[1].line(LOSS.key) != compare(runs, seed=4)[1].line(LOSS.key)  # of the intervals


def test_runs_of_one_model_are_called_by_their_folders(tmp_path) -> None:
    one, two = folder(tmp_path / "a"), folder(tmp_path / "b", seed=2)
    assert (compare([one, two])[0].base, compare([one, two])[0].model) == (str(one), str(two))


def test_what_differs_is_said(tmp_path) -> None:
    one, two = folder(tmp_path / "a", model="x"), folder(tmp_path / "b", seed=2, model="y", run_seed=7)
    form = json.loads((two / "results.json").read_text())
    form["settings"]["sampling"]["temperature"] = 1.0
    form["machine"] = "another"
    (two / "results.json").write_text(json.dumps(form))
    notes = compare([one, two])[0].notes
    assert notes[:2] == ["With care: seed differs (x: 0; y: 7).",
                         "With care: sampling differs (x: temperature 0.7; y: temperature 1.0)."]
    assert notes[2].startswith("Speeds are of different machines")


def test_runs_that_share_no_item_are_refused_with_their_seeds(tmp_path) -> None:
    one, two = folder(tmp_path / "a"), folder(tmp_path / "b", run_seed=7, rename="other-")
    with pytest.raises(TrivetError, match="share no item") as error:
        compare([one, two])
    assert "seed 0" in str(error.value) and "seed 7" in str(error.value) and "--seed" in str(error.value)


def test_other_data_are_refused(tmp_path) -> None:
    one = folder(tmp_path / "a", data={"x.csv": "1", "y.csv": "2"})
    with pytest.raises(TrivetError, match=r"read another y\.csv than"):
        compare([one, folder(tmp_path / "b", data={"x.csv": "1", "y.csv": "3"})])
    assert compare([one, folder(tmp_path / "c", data={"x.csv": "1"})])


def test_items_that_were_grouped_in_another_way_are_refused(tmp_path) -> None:
    one, two = folder(tmp_path / "a"), folder(tmp_path / "b")
    path = two / "scores" / "attacks.jsonl"
    write_rows(path, [s.model_copy(update={"group": "all"}) for s in scores(1) if s.measure.startswith("harmless")])
    with pytest.raises(TrivetError, match="belongs to 'all' here"):
        compare([one, two])


def test_bad_folders(tmp_path) -> None:
    one = folder(tmp_path / "a")
    with pytest.raises(TrivetError, match="given twice"):
        compare([one, tmp_path / "x" / ".." / "a"])
    with pytest.raises(TrivetError, match="no such folder"):
        compare([one, tmp_path / "nothing"])
    with pytest.raises(TrivetError, match="two folders or more"):
        compare([one])
    with pytest.raises(TrivetError, match="a file stands"):
        check_out(one / "results.json")


def test_files(tmp_path) -> None:
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", seed=2)]
    tables = compare(runs, command="trivet evaluate compare a b")
    write(tmp_path / "out", tables, runs)
    form = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert form["schema_version"] == 1 and form["runs"] == [str(r) for r in runs]
    assert [t["model"] for t in form["tables"]] == [str(runs[1])]
    assert "trivet evaluate compare a b" in (tmp_path / "out" / "compare.md").read_text()
