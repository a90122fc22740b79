"""results.json: figures and verdicts from scores, and what reading it back refuses; the table in its two forms."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

import evaluations
from evaluations import ATTACKS, LENGTH, LOSS, MEASURES, RIGHT, SPEED, WIN, made, scores
from trivet.artifacts import write_rows
from trivet.errors import TrivetError
from trivet.evaluate import statistics, table
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.results import build, read, read_score_file, read_scores, write


def test_verdicts_come_from_holm_over_the_table() -> None:
    found = made()
    verdicts = {m.key: m.verdict for m in found.measures}
    assert verdicts == {
        "helpful.win_rate": "better", "helpful.win_rate_length_controlled": "better", "honest.plain_facts": "same",
        "honest.calibration_error": "same", "harmless.attack_success": "worse",
        "harmless.attack_agreement": "untested", "capable.perplexity": "worse", "capable.length": "same",
        "capable.speed": "untested"}
    tested = [m for m in found.measures if m.p_holm is not None]
    assert found.family == len(tested) == 7
    ps = [m.difference.p for m in tested if m.difference]
    assert [m.p_holm for m in tested] == pytest.approx(statistics.holm(ps))


def test_figures_are_those_of_the_statistics() -> None:
    mine, base = scores(1, attacks=0.9), scores(2)
    line = build(model="a", base="b", measures=MEASURES, scores=mine, base_scores=base, seed=3).line(ATTACKS.key)
    own, other = ([s for s in x if s.measure == ATTACKS.key] for x in (mine, base))
    assert line is not None and line.base is not None and line.difference is not None
    assert line.value.model_dump() == statistics.estimate(ATTACKS, own, 3).as_dict()
    assert line.base.model_dump() == statistics.estimate(ATTACKS, other, 3).as_dict()
    assert line.difference.model_dump() == statistics.difference(ATTACKS, own, other, 3)._asdict()
    assert set(line.topics) == {"fraud", "violence <b>"} == set(line.base_topics)
    assert line.topics["fraud"].value == statistics.estimate(ATTACKS, [s for s in own if s.topic == "fraud"]).value


def test_a_test_that_could_not_reach_the_level_has_no_adjusted_p_and_shows_no_difference() -> None:
    def rows(*values: int) -> list[Score]:
        return [Score(measure=RIGHT.key, id=str(i), group=str(i), value=v) for i, v in enumerate(values)]

    found = build(model="a", base="b", measures=[RIGHT], scores=rows(1, 1, 1, 0), base_scores=rows(0, 0, 0, 0))
    line = found.measures[0]
    assert line.difference is not None and (line.difference.p, line.difference.least) == (0.125, 0.125)
    assert (line.p_holm, line.verdict, found.family) == (None, "same", 0)
    text = table.markdown([found])
    assert "over 0 paired tests" in text and "too few items differ to show one" in text and "Not tested" not in text


def test_a_change_without_a_good_direction_is_only_a_change() -> None:
    found = build(model="a", base="b", measures=[LENGTH], scores=[s for s in scores(1, length=60)
                                                                  if s.measure == LENGTH.key],
                  base_scores=[s for s in scores(2) if s.measure == LENGTH.key])
    assert found.measures[0].verdict == "changed"


def test_perplexities_per_token_of_two_tokenizers_are_not_compared() -> None:
    bits = Measure("bits_per_byte", "capable", "bits for each byte", "lower", share=False)

    def rows(measure: Measure, tokens: int, more: float) -> list[Score]:
        return [Score(measure=measure.key, id=str(i), group=str(i), value=2 + more + i / 10, weight=tokens + i)
                for i in range(20)]

    mine, base = ([s for m in (LOSS, bits) for s in rows(m, tokens if m is LOSS else 400, more)]
                  for tokens, more in ((120, 0.5), (100, 0.0)))
    found = build(model="a", base="b", measures=[LOSS, bits], scores=mine, base_scores=base)
    perplexity, per_byte = found.measures
    assert perplexity.base is not None and perplexity.difference is None and perplexity.verdict == "untested"
    assert per_byte.verdict == "worse" and found.family == 1
    assert len(found.notes) == 1 and found.notes[0].startswith("perplexity: not compared between a and b, whose token")
    alike = build(model="a", base="b", measures=[LOSS], scores=rows(LOSS, 100, 0.5), base_scores=rows(LOSS, 100, 0))
    assert alike.measures[0].verdict == "worse" and alike.notes == []
    # items that only one was asked say nothing of the tokenizer
    other = [s.model_copy(update={"id": f"x{s.id}", "group": f"x{s.id}"}) for s in rows(LOSS, 70, 0)]
    fewer = build(model="a", base="b", measures=[LOSS], scores=rows(LOSS, 100, 0.5), base_scores=rows(LOSS, 100, 0)[:10]
                  + other)
    assert fewer.measures[0].verdict == "worse" and fewer.notes == []


def test_items_that_are_not_the_same_in_two_runs_are_not_paired() -> None:
    def rows(*values: float) -> list[Score]:
        return [Score(measure=SPEED.key, id=str(i), group=str(i), value=v) for i, v in enumerate(values)]

    found = build(model="a", base="b", measures=[SPEED], scores=rows(9, 9, 10), base_scores=rows(5, 4, 5))
    line = found.measures[0]
    assert line.base is not None and (line.value.value, line.base.value) == pytest.approx((28 / 3, 14 / 3))
    assert line.difference is None and line.verdict == "untested" and not line.paired and found.notes == []
    row = next(r for r in table.markdown([found]).splitlines() if r.startswith("| speed"))
    assert row.split(" | ")[3] == "–"


def test_speeds_of_another_machine_are_noted() -> None:
    found = made(base_machine="another, 4 cores")
    assert found.notes == [f"Speeds are of different machines (another, 4 cores; {found.machine})."]
    assert made(base_machine=found.machine).notes == made().notes == []
    without = build(model="a", base="b", measures=[RIGHT], scores=[s for s in scores(1) if s.measure == RIGHT.key],
                    base_scores=[s for s in scores(2) if s.measure == RIGHT.key], base_machine="another")
    assert without.notes == []


def test_without_a_base_nothing_is_tested() -> None:
    found = made(base=None)
    assert {m.verdict for m in found.measures} == {"untested"} and found.family == 0
    assert WIN.key not in {m.key for m in found.measures}
    assert all(m.base is None and m.difference is None for m in found.measures)


def test_what_was_not_measured_is_not_in_the_table_and_unknown_scores_are_refused() -> None:
    found = build(model="a", measures=MEASURES, scores=[s for s in scores(1) if s.measure == RIGHT.key])
    assert [m.key for m in found.measures] == [RIGHT.key]
    with pytest.raises(ValueError, match=r"not given: honest.other"):
        build(model="a", measures=MEASURES, scores=[Score(measure="honest.other", id="1", group="1", value=1)])
    with pytest.raises(ValueError, match="two measures of one key"):
        build(model="a", measures=[RIGHT, RIGHT], scores=[])
    with pytest.raises(ValueError, match="go together"):
        build(model="a", base="b", measures=[RIGHT], scores=[])


def test_a_figure_that_is_not_defined_is_none_in_the_file(tmp_path) -> None:
    kappa = Measure("k", "honest", "agreement", "higher", "kappa", share=False)
    rows = [Score(measure=kappa.key, id=str(i), group=str(i), value=1, other=1) for i in range(4)]
    found = build(model="a", base="b", measures=[kappa], scores=rows, base_scores=rows)
    line = found.measures[0]
    assert line.value.value is None and line.verdict == "untested" and line.p_holm is None
    assert "NaN" not in write(tmp_path, found).read_text()
    assert "not defined" in table.markdown([read(tmp_path)])


def test_written_and_read_back(tmp_path) -> None:
    found = made(data={"a.csv": "0" * 64}, notes=["a note"])
    path = write(tmp_path, found)
    assert read(tmp_path) == read(path) == found
    form = json.loads(path.read_text())
    line = next(m for m in form["measures"] if m["key"] == "harmless.attack_success")
    assert form["schema_version"] == 1 and form["model"] == "mine" and form["base"] == "base"
    assert line["verdict"] == "worse" and line["share"] is True and line["better"] == "lower"
    assert set(line["value"]) == {"value", "low", "high", "n"} and {"p", "n"} <= set(line["difference"])


@pytest.mark.parametrize(("change", "why", "field"), [
    (lambda v: v | {"schema_version": 9}, "schema_version 1, the file says 9", "schema_version"),
    (lambda v: {k: x for k, x in v.items() if k != "measures"}, "is missing", "measures"),
    (lambda v: v | {"seed": "one"}, "not what `trivet evaluate` writes", "seed"),
    (lambda v: v | {"measures": [v["measures"][0] | {"verdict": "fine"}]}, "not what", "measures.0.verdict"),
])
def test_a_damaged_file_is_named(tmp_path, change, why: str, field: str) -> None:
    path = write(tmp_path, made())
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(TrivetError, match=why) as error:
        read(tmp_path)
    assert error.value.file == path and error.value.field == field


def test_what_is_no_evaluation(tmp_path) -> None:
    with pytest.raises(TrivetError, match="no such folder"):
        read(tmp_path / "nothing")
    with pytest.raises(TrivetError, match="no finished evaluation"):
        read(tmp_path)
    with pytest.raises(TrivetError, match="no scores"):
        read_scores(tmp_path)


def test_scores_repeat_an_item_by_measure_but_not_within_one(tmp_path) -> None:
    rows = scores(1)
    write_rows(tmp_path / "scores" / "all.jsonl", rows)
    assert read_scores(tmp_path) == rows
    path = tmp_path / "scores" / "all.jsonl"
    path.write_text(path.read_text() + rows[0].model_dump_json() + "\n")
    with pytest.raises(TrivetError, match="stands twice") as error:
        read_score_file(path)
    assert error.value.line == len(rows) + 1
    path.write_text('{"measure": "a.b", "id": "1"}\n')
    with pytest.raises(TrivetError, match="missing") as error:
        read_score_file(path)
    assert error.value.line == 1 and error.value.field == "group"


# --- the table ------------------------------------------------------------------------------------------


def test_markdown_has_a_section_a_leg_and_marks_what_is_significant() -> None:
    text = table.markdown([made()])
    places = [text.index(f"### {leg}") for leg in ("helpful", "honest", "harmless", "capable")]
    assert places == sorted(places)
    row = next(line for line in text.splitlines() if line.startswith("| harmful requests answered"))
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert cells[0] == "harmful requests answered, by rule ↓" and cells[4] == "40"
    assert cells[3].startswith("**+") and cells[3].endswith("▼**") and "%" in cells[1]
    heads = [line for line in text.splitlines() if line.startswith("| measure")]
    assert heads == ["| measure | base | mine | change | n |"] * 4
    for row in text.splitlines():
        if row.startswith("|"):
            assert row.count("|") - row.count("\\|") == 6
    assert "Holm's rule over 7 paired tests" in text and "gsm8k (it reads" in text and "significant at 5%" in text
    assert "Not tested: rule and grader agree (Cohen's κ), speed of answering." in text
    assert "    trivet evaluate mine" in text


def test_one_model_alone_has_one_column() -> None:
    text = table.markdown([made(base=None)])
    assert "| measure | mine | n |" in text and "Holm" not in text and "▲" not in text


def test_hostile_names_stay_in_their_cell() -> None:
    text = table.markdown([made(model="a|b<script>*c*\nd")])
    head = next(line for line in text.splitlines() if line.startswith("| measure"))
    assert "a\\|b\\<script\\>\\*c\\* d" in head


def test_the_terminals_table_says_the_same(capsys) -> None:
    console = Console(width=140, force_terminal=False)
    console.print(table.rich_table([made(model="[red]runs/x[/red]")]))
    text = capsys.readouterr().out
    assert "[red]runs/x[/red]" in text and "harmful requests answered, by rule ↓" in text and "▼" in text
    assert all(leg in text for leg in ("helpful", "honest", "harmless", "capable"))


@pytest.mark.parametrize(("value", "share", "sign", "said"), [
    (0.3125, True, False, "31.2%"), (0.0, True, True, "0.0%"), (-0.02, True, True, "−2.0%"),
    (0.5, False, False, "0.500"), (12.345, False, True, "+12.35"), (123.45, False, False, "123.5"),
    (12345.6, False, False, "12,346"),
    (-0.0001, False, True, "0.000"),
])
def test_figures_in_words(value: float, share: bool, sign: bool, said: str) -> None:
    from trivet.evaluate.results import Change, Figure

    line = made().measures[0].model_copy(update={"share": share})
    found = Change(value=value, low=None, high=None, n=1, p=1, least=1) if sign else \
        Figure(value=value, low=None, high=None, n=1)
    assert table.figure(found, line) == said


def test_fixture_folders_are_evaluations(tmp_path) -> None:
    path = evaluations.folder(tmp_path / "one", beside=True, win=0.7, answers="I can say")
    assert {s.measure for s in read_scores(path)} <= {m.key for m in read(path).measures}
