"""The page, the picture and the commands of an evaluation, from small folders written by hand."""

from __future__ import annotations

import json
import re
import shutil
import xml.dom.minidom
from pathlib import Path

import pytest

from evaluations import N, folder, made
from report.test_page import Page, stage
from trivet.artifacts import Completion, Completions, Message, write_rows
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.evaluate.config import EvaluateConfig
from trivet.report import evaluation_plots, plots
from trivet.report.config import ReportConfig
from trivet.report.evaluation import evaluate_command, finish, write_evaluation
from trivet.report.page import write_report

HOSTILE = "<script>alert('x')</script><img src=x onerror=y> & \x1b[31m https://evil.example/a.js"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes most of a page's time."""
    monkeypatch.setattr(plots, "svg", lambda figure, name, alt: "<svg></svg>")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """An evaluation beside its base, with its page and picture."""
    path = folder(tmp_path_factory.mktemp("evaluation") / "one", beside=True, attacks=0.9, nats=2.4, win=0.8,
                  answers="mine says")
    (path / "config.yaml").write_text("# trivet evaluate, as resolved\nmodel: mine\nagainst: base\n")
    write_evaluation(path)
    return path


def text(path: Path) -> str:
    return Page(path.read_text(encoding="utf-8")).text


def test_the_page_says_what_came_out(done: Path) -> None:
    said = text(done / "report.html")
    assert ("Of 7 measures tested against base, mine is better in 2 (answers better than the base's; the same at equal "
            "length), worse in 2 (harmful requests answered, by rule; perplexity). In the other 3 no difference was "
            "shown.") in said
    for leg in ("helpful", "honest", "harmless", "capable"):
        assert leg in said
    assert "▼ worse" in said and "▲ better" in said and "p = " in said
    assert "Holm's rule over 7 paired tests" in said and "trivet evaluate mine" in said and "against: base" in said
    assert "violence <b>" in said  # a topic, escaped


def test_the_page_is_one_file_without_network(done: Path) -> None:
    html = (done / "report.html").read_text()
    page = Page(html)
    assert not {t for t, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not any(k.startswith("on") or k in {"src", "srcset"} for _, a in page.tags for k in a)
    assert all(a["href"].startswith("#") for t, a in page.tags if t == "a")
    assert "prefers-color-scheme: dark" in html and "url(http" not in html
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, a in page.tags:
        if a.get("href", "").startswith("#"):
            assert a["href"][1:] in ids


def test_answers_stand_side_by_side_with_what_the_rules_said(done: Path) -> None:
    said = text(done / "report.html")
    part = said[said.index("Answers Both models'") : said.index("Do it again trivet")]
    scored = {kind: len(re.findall(rf"{kind} · (fraud|violence)", part)) for kind in ("told apart", "alike")}
    assert scored == {"told apart": 2, "alike": 2}
    first = part[part.index("told apart · ") :]
    base, mine = re.findall(r"harmful requests answered, by rule: (yes|no)", first)[:2]
    assert base != mine
    assert "the base says" in first and "mine says" in first and "Question" in first


def test_alone_there_is_no_word_of_a_base(tmp_path, undrawn) -> None:
    path = folder(tmp_path / "one", answers="mine says")
    said = text(write_evaluation(path))
    assert "beside no other model" in said and "Holm" not in said and "1 of 40" in said
    assert "the base says" not in said and said.count("mine says") == 8


def test_a_base_evaluated_before_gives_its_answers(tmp_path, undrawn) -> None:
    base = folder(tmp_path / "base", seed=2, answers="the earlier one says")
    mine = folder(tmp_path / "mine", beside=True, attacks=0.9, answers="mine says")
    shutil.rmtree(mine / "base")
    (mine / "config.yaml").write_text(f"model: mine\nagainst: {base}\n")
    assert "the earlier one says" in text(write_evaluation(mine))


def test_hostile_answers_stay_text(tmp_path, undrawn) -> None:
    path = folder(tmp_path / "one", answers="x", model=HOSTILE)
    write_rows(path / "answers" / "attacks.jsonl", [Completions(
        id="harmless-0", messages=[Message(role="user", content=HOSTILE)],
        completions=[Completion(id="a", text=HOSTILE)])])
    page = Page(write_evaluation(path).read_text())
    assert not {"script", "img"} & {t for t, _ in page.tags} and "alert('x')" in page.text
    assert "\x1b" not in page.html


def test_no_difference_is_said_as_that(tmp_path, undrawn) -> None:
    path = folder(tmp_path / "one", seed=2, beside=True)
    assert "No difference between mine and base was shown in any of 5 measures." in text(write_evaluation(path))


def test_a_torn_or_foreign_file_is_named(tmp_path, undrawn) -> None:
    path = folder(tmp_path / "one", answers="x")
    (path / "answers" / "attacks.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    with pytest.raises(TrivetError, match="not what the stage writes") as error:
        write_evaluation(path)
    assert error.value.file == path / "answers" / "attacks.jsonl" and not (path / "report.html").exists()


# --- the picture ----------------------------------------------------------------------------------------


def test_the_picture_shows_shares_and_relative_changes() -> None:
    results = made()
    above, below = evaluation_plots.shares([results]), evaluation_plots.relative([results])
    assert [d.leg for d in above] == ["helpful", "helpful", "honest", "honest", "harmless"]
    attacks = above[-1]
    line = results.line("harmless.attack_success")
    assert line is not None and (attacks.base, attacks.models, attacks.marks) == (line.base, (line.value,), ("▼",))
    loss = next(d for d in below if d.words.startswith("perplexity"))
    change = results.line("capable.perplexity")
    assert change is not None and change.base is not None and change.difference is not None and loss.models[0]
    assert loss.models[0].value == pytest.approx(change.difference.value / change.base.value)
    assert evaluation_plots.relative([made(base=None)]) == []
    assert "harmful requests answered, by rule ↓: " in evaluation_plots.alt([results])


def test_the_picture_is_a_file_of_its_own(done: Path) -> None:
    svg = (done / "evaluation.svg").read_text()
    root = xml.dom.minidom.parseString(svg).documentElement
    assert root.tagName == "svg" and root.getAttribute("xmlns") == "http://www.w3.org/2000/svg"
    for variable in set(re.findall(r"var\((--\w+)\)", svg)):
        assert f"{variable}:" in svg
    assert "harmful requests answered" in svg and "prefers-color-scheme: dark" in svg
    before = svg
    write_evaluation(done)
    assert (done / "evaluation.svg").read_text() == before


# --- the page of a run ----------------------------------------------------------------------------------


def test_the_runs_page_shows_an_evaluations_table(tmp_path, undrawn) -> None:
    run = tmp_path / "run"
    path = folder(run / "evaluate", beside=True, attacks=0.9, win=0.8)
    stage(path, "evaluate", "model: mine\n", {"model": "mine", "base": "base", "measures": {"capable.perplexity": {
        "value": 1.0, "low": 0.5, "high": 2.0, "n": 3}}})
    said = text(write_report(ReportConfig(run=run)))
    assert "harmful requests answered, by rule ↓" in said and "▼ worse" in said
    assert "capable.perplexity" not in said


# --- commands -------------------------------------------------------------------------------------------


def test_finish_prints_writes_and_passes(done: Path, capsys, undrawn) -> None:
    finish(EvaluateConfig(out=done, fail_if=["harmless.attack_success > 0.99"]))
    out = capsys.readouterr().out
    assert "harmful requests" in out and f"report: {done / 'report.html'}" in out


def test_finish_exits_with_1_when_a_condition_holds(done: Path, capsys, undrawn) -> None:
    with pytest.raises(SystemExit) as stopped:
        finish(EvaluateConfig(out=done, fail_if=["any worse", "harmless.attack_success > 0.3"]))
    assert stopped.value.code == 1
    failed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trivet: failed: ")]
    assert len(failed) == 3 and "harmless.attack_success > 0.3: it is " in failed[2]


def test_a_condition_that_can_not_be_checked_is_said_behind_the_table(tmp_path, capsys, undrawn) -> None:
    path = folder(tmp_path / "one")
    with pytest.raises(TrivetError, match="not among the measures"):
        finish(EvaluateConfig(out=path, fail_if=["capable.lm_eval.arc.acc > 0.3"]))
    assert "harmful requests" in capsys.readouterr().out and (path / "report.html").is_file()


def test_compare_from_the_command_line(tmp_path, capsys, undrawn) -> None:
    one, two = folder(tmp_path / "a", model="first"), folder(tmp_path / "b", seed=2, model="second", attacks=0.95)
    main(["evaluate", "compare", str(one), str(two), "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "first" in out and "second" in out and "▼" in out and str(tmp_path / "out" / "compare.html") in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "compare.html", "compare.json", "compare.md", "compare.svg"]
    said = text(tmp_path / "out" / "compare.html")
    assert "second is worse in 1 (harmful requests answered, by rule)" in said and "Both models'" not in said
    form = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert form["tables"][0]["measures"][0]["value"]["n"] == N


@pytest.mark.parametrize(("arguments", "why"), [
    (["compare"], "runs"), (["compare", "A"], "runs"), (["compare", "A", "nothing"], "no such folder"),
    (["compare", "A", "A"], "given twice"), (["compare", "A", "B", "--out", "A/results.json"], "a file stands"),
    (["suites", "more"], "takes no setting"),
])
def test_what_can_not_be_compared_ends_with_2(tmp_path, monkeypatch, capsys, arguments, why) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("A"))
    folder(Path("B"), seed=2)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and why in said.err + said.out and "to mend" in said.err


def test_suites_are_listed(capsys) -> None:
    evaluate_command(["suites"], lambda *a: None)
    out = capsys.readouterr().out
    assert "truthfulqa" in out and "own questions" in out and "harmless" in out
