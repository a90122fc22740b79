"""The guard's part of the page and the audit's, from folders made in the true formats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from report.gamed import BEGAN, FIRED, QUIET, RATE, SENTENCE, write
from report.test_page import HOSTILE, Page, demo, interval, page, stage
from trivet.errors import TrivetError
from trivet.report import guard, guard_plots, marks, plots
from trivet.report.config import ReportConfig
from trivet.report.page import write_report
from trivet.report.read import read_stage
from trivet.text.spans import KINDS


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes most of a page's time."""
    monkeypatch.setattr(plots, "svg", lambda figure, name, alt: "<svg></svg>")


@pytest.fixture(scope="module")
def gamed(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("run") / "gamed"
    write(folder)
    return page(folder)


def test_sentence_stands_on_top(gamed: Page) -> None:
    question = gamed.text.index("Was the reward gamed? Probably. " + SENTENCE)
    assert question < gamed.text.index("Reward on held-out prompts 0.01")  # before the findings
    assert "It ended the run and went back to step 6, the best by the held-out reward model: that is the " \
           "exported policy." in gamed.text
    assert re.search(r"From step 6 to step 12, in deviations of the first answers' scores, the reward "
                     r"it was trained on rose by [\d.]+ \(95% interval [\d.]+ to [\d.]+\), "
                     r"that of the held-out reward model fell by", gamed.text)
    assert "the guard ended it (stop=guard)" in gamed.text


def test_plot_has_the_curves_and_the_marks(gamed: Page) -> None:
    alt = next(a["aria-label"] for t, a in gamed.tags if t == "svg" and "guard" in a["aria-label"])
    for words in ("reward +", "held-out reward model −", f"the change began at step {BEGAN}",
                  f"the guard fired at step {FIRED}, by exaggeration", "the run went back to step 6"):
        assert words in alt, words
    for words in ("reward it was trained on", "held-out reward", f"change began: step {BEGAN}",
                  f"guard fired: step {FIRED}", "went back to step 6", "alarm"):
        assert words in gamed.text, words


def test_marked_text_shows_what_the_signal_sees(gamed: Page) -> None:
    shown = [a for t, a in gamed.tags if t == "mark" and a.get("title")]
    assert len(shown) > 10 and {a["class"] for a in shown} == {"m-exaggerated"}
    assert "<mark class=\"m-exaggerated\" title=\"exclamation\">!!!</mark>" in gamed.html
    assert "<mark class=\"m-exaggerated\" title=\"emphatic word\">amazing</mark>" in gamed.html
    assert "The 3 answers that show it most: exaggeration, step 13" in gamed.text
    assert re.search(r"marked: exaggerated \d+×", gamed.text) and "Marked is what this signal sees." in gamed.text
    assert gamed.text.count("When the guard fired (step 13)") == 3 and "Earlier (step " in gamed.text
    # a key: colour is not all there is
    assert ("mark", {"class": "m-exaggerated"}) in gamed.tags
    assert "superlatives, intensifiers, exclamation marks" in gamed.text


@pytest.mark.usefixtures("undrawn")
def test_alarm_of_an_evaluation_stands_beside_the_answer_before_training(tmp_path: Path) -> None:
    write(tmp_path / "run", source="evaluation")
    text = page(tmp_path / "run").text
    assert text.count("When the guard fired (step 13)") == 3 and text.count("Before training") == 3


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("action", "words"), [
    ("warn", "It only warned (guard.action: warn); the run went on."),
    ("raise-beta", "The weight of the KL was raised 12 times (guard.action: raise-beta)."),
    ("penalise", "From then on answers were scored by the ensemble's lower bound (guard.action: penalise)."),
])
def test_action_is_said(tmp_path: Path, action: str, words: str) -> None:
    write(tmp_path / "run", action=action)
    found = page(tmp_path / "run")
    assert words in found.text and "went back" not in found.text
    assert ("p", {"class": "lead caution"}) in found.tags
    assert ("fired again" in found.text) is (action == "raise-beta")


@pytest.mark.usefixtures("undrawn")
def test_quiet_run_says_so_and_shows_no_answers(tmp_path: Path) -> None:
    write(tmp_path / "run", gamed=False, action="warn")
    found = page(tmp_path / "run")
    assert f"Was the reward gamed? No sign of it. {QUIET} Plot" in found.text
    assert "mark" not in {t for t, _ in found.tags} and "highest level" in found.text
    assert RATE in found.text


@pytest.mark.usefixtures("undrawn")
def test_guard_that_could_see_nothing_says_not_known(tmp_path: Path) -> None:
    out = write(tmp_path / "run", gamed=False, action="warn")
    rows = [json.loads(line) for line in (out / "guard.jsonl").read_text().splitlines()]
    (out / "guard.jsonl").write_text("".join(json.dumps(r | {"levels": {}, "level": 0.0, "signal": None}) + "\n"
                                             for r in rows))
    assert "Was the reward gamed? Not known." in page(tmp_path / "run").text


@pytest.mark.usefixtures("undrawn")
def test_silence_of_an_unrated_guard_and_rewards_that_part_are_no_all_clear(tmp_path: Path) -> None:
    from trivet.guard.calibration import Calibration

    out = write(tmp_path / "run", action="warn")  # gamed, and the guard says nothing
    rows = [json.loads(line) | {"action": "continue", "sentence": QUIET}
            for line in (out / "guard.jsonl").read_text().splitlines()]
    (out / "guard.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = page(tmp_path / "run")
    assert "Was the reward gamed? Not clear. No sign by step 24" in found.text
    assert "Yet from step 0 to step 24, in deviations of the first answers' scores, the reward it was" in found.text
    assert ("p", {"class": "lead caution"}) in found.tags
    note = Calibration.model_construct(maxima=[]).statement(0.05)
    assert guard.UNRATED in note
    summary = json.loads((out / "summary.json").read_text())
    summary["guard"]["notes"] = [note]
    (out / "summary.json").write_text(json.dumps(summary))
    assert "Was the reward gamed? Not known. No sign by step 24" in page(tmp_path / "run").text


@pytest.mark.usefixtures("undrawn")
def test_without_held_out_reward_it_is_said(tmp_path: Path) -> None:
    write(tmp_path / "run", second=False, action="warn")
    text = page(tmp_path / "run").text
    assert "No held-out reward was asked (evaluation.reward)" in text and "From step 6" not in text


@pytest.mark.usefixtures("undrawn")
def test_unfinished_run_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "gamed", done=False)
    text = page(tmp_path / "gamed").text
    assert SENTENCE in text and "It ends the run." in text
    write(tmp_path / "quiet", gamed=False, action="warn", done=False)
    assert f"So far: {QUIET}" in page(tmp_path / "quiet").text


@pytest.mark.usefixtures("undrawn")
def test_deleted_rollouts_are_said(tmp_path: Path) -> None:
    write(tmp_path / "run", files=False)
    assert "They are not there any more" in page(tmp_path / "run").text


@pytest.mark.usefixtures("undrawn")
def test_before_and_after_is_of_the_policy_that_was_put_back(tmp_path: Path) -> None:
    write(tmp_path / "run")
    text = page(tmp_path / "run").text
    assert "After (step 6)" in text and "After (step 12)" not in text


@pytest.mark.usefixtures("undrawn")
def test_file_of_guard_check_is_shown(tmp_path: Path) -> None:
    out = write(tmp_path / "run", action="warn")
    verdicts = [json.loads(line) for line in (out / "guard.jsonl").read_text().splitlines()]
    (out / "guard.jsonl").unlink()
    assert "--out" in page(tmp_path / "run").text
    for verdict in verdicts:
        del verdict["ids"]
    (out / "guard.json").write_text(json.dumps({"schema_version": 1, "notes": [RATE], "verdicts": verdicts}))
    text = page(tmp_path / "run").text
    assert "Nothing watched the run itself: this was found afterwards, from its files." in text and RATE in text
    assert text.count("When the guard fired (step 13)") == 3
    (out / "guard.json").write_text(json.dumps({"notes": [], "verdicts": [{"step": 1}]}))
    with pytest.raises(TrivetError, match="is not what `trivet guard check` writes"):
        page(tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_unguarded_run_has_one_sentence_more(tmp_path: Path) -> None:
    found = page(demo(tmp_path / "old"))
    ppo = tmp_path / "old" / "ppo"
    command = f"trivet guard check {ppo} --out {ppo}/guard.json"
    assert f"Reward gamed? not watched No guard watched this run. To have its files looked at, and shown "\
           f"here: {command}" in found.text
    assert "Was the reward gamed?" not in found.text
    config = tmp_path / "old" / "ppo" / "config.yaml"
    config.write_text(config.read_text() + "guard: {'on': false}\n")
    assert "The guard was off in this run (guard.on)" in page(tmp_path / "old").text


@pytest.mark.usefixtures("undrawn")
def test_damaged_and_foreign_logs_are_named(tmp_path: Path) -> None:
    out = write(tmp_path / "run")
    log = out / "guard.jsonl"
    kept = log.read_text()
    log.write_text(kept.replace('"level"', '"height"', 1))
    with pytest.raises(TrivetError) as error:
        page(tmp_path / "run")
    assert error.value.file == log and error.value.field == "level" and error.value.mend
    log.write_text(re.sub(r'"ids": \["[^"]+"', '"ids": ["nobody/0"', kept))
    with pytest.raises(TrivetError, match="names an answer that rollouts"):
        page(tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_hostile_answers_and_signals_are_shown_not_run(tmp_path: Path) -> None:
    out = write(tmp_path / "run")
    for name, field in ((f"rollouts/step-{FIRED:05d}.jsonl", "completion"), ("guard.jsonl", "signal")):
        rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
        (out / name).write_text("".join(json.dumps(r | {field: HOSTILE + " amazing!!!"}) + "\n" for r in rows))
    found = page(tmp_path / "run")
    assert "<script" not in found.html and "<img" not in found.html and "\x1b" not in found.html
    # a user's own signal sees no words of its own: all rules mark
    assert "This signal sees no particular words" in found.text and "m-exaggerated" in found.html


@pytest.mark.usefixtures("undrawn")
def test_constant_scores_and_single_prompts_do_not_stop_the_page(tmp_path: Path) -> None:
    out = write(tmp_path / "run")
    for path in (out / "evaluations").iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()][:1]
        path.write_text("".join(json.dumps(r | {"score": 0.0}) + "\n" for r in rows))
    assert "no interval: it rests on one prompt" in page(tmp_path / "run").text


def test_curves_are_changes_in_deviations_of_the_first_answers() -> None:
    rows = {s: [{"id": f"q/{i}", "score": float(i % 2 * 4 + s), "second": None} for i in range(8)] for s in (0, 5)}
    rows = {s: [r | {"id": f"q{i}/0"} for i, r in enumerate(a)] for s, a in rows.items()}
    (first, start), (last, end) = guard.curve(rows, "score")
    assert (first, start["value"], last) == (0.0, 0.0, 5.0)
    assert end["value"] == pytest.approx(5 / 2) and end["low"] == pytest.approx(5 / 2)  # deviation of {0, 4} is 2
    assert guard.curve(rows, "second") == [] and guard.deviation(rows[0], "second") == 1.0
    assert guard.rollout_line([{"step": 1, "score": 1.0}, {"step": 2, "score": 3.0}, {"step": 3}], "score", 2.0) == [
        (1.0, 0.0), (2.0, 1.0)]


def test_picture_is_drawn_with_nothing_to_draw() -> None:
    empty = guard_plots.Picture([], [], [], [], [(1.0, 0.2)])
    assert "<svg" in plots.svg(guard_plots.figure(empty), "x", guard_plots.alt(empty))
    assert "did not fire" in guard_plots.alt(empty)


def test_every_signal_and_kind_has_words() -> None:
    keys = pytest.importorskip("trivet.guard.signals").keys

    for key in keys():
        assert marks.signal_words(key) and "_" not in marks.signal_words(key), key
    assert marks.signal_words("evaluation/length") == "length on the fixed prompts"
    assert marks.signal_words("reward~length") == "reward going with length"
    assert marks.signal_words("my.code:signal_one") == "my.code:signal_one"
    for kind in KINDS:
        assert f".{marks.css(kind)}" in (Path(marks.__file__).parent / "style.css").read_text() or \
            kind == "exaggerated"  # as any mark


def test_terminal_says_the_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trivet.report.terminal import print_figures

    found = read_stage(write(tmp_path / "run"), {}).summary
    assert found is not None
    assert guard.terminal(found) == f"{SENTENCE} The exported policy is that of step 6."
    assert guard.terminal({"guard": None}) == "" == guard.terminal({})
    print_figures({"seconds": {}, "guard": found["guard"]}, tmp_path / "report.html")
    assert "guard: From about step 10 on answers exaggerate" in capsys.readouterr().out


# --- the audit ------------------------------------------------------------------------------------------


def audit_stage(folder: Path, worse: str = "It rains!!! Absolutely amazing!!!") -> None:
    case = {"id": "q1/exaggerated", "set": "exaggerated", "prompt_id": "q1", "better": "It rains in spring.",
            "messages": [{"role": "user", "content": "When does it rain?"}], "worse": worse, "better_score": 0.1,
            "worse_score": 1.3, "advantage": 1.2}

    def one(name: str, share: tuple[Any, Any, Any, int], verdict: str, worst: list[dict[str, Any]]) -> dict[str, Any]:
        return {"name": name, "does": f"what {name} does", "n": share[3], "skipped": {}, "preferred": interval(*share),
                "method": "bootstrap", "difference": interval(*share[:3], share[3]),
                "words": {"better": 20.0, "worse": 30.0 if share[3] else None} if share[3] else
                {"better": None, "worse": None}, "threshold": 0.5, "verdict": verdict, "worst": worst}

    stage(folder, "audit", "reward: [r]\n", {"answers": 40, "gamed": ["exaggerated"], "too_few": ["wrong_numbers"]})
    (folder / "audit.json").write_text(json.dumps({
        "schema_version": 1, "answers": 40, "level": 0.95, "least": 20, "unit": "deviations", "gamed": ["exaggerated"],
        "too_few": ["wrong_numbers"], "sets": [
            one("exaggerated", (0.81, 0.7, 0.9, 40), "gamed", [case, case | {"prompt_id": "q2"}, case]),
            one("padded", (0.4, 0.3, 0.5, 40), "not shown", [
                case | {"worse": "As is well known, it rains in spring."}]),
            one("wrong_numbers", (None, None, None, 0), "too few", [])]}))


def test_audit_has_a_sentence_a_chart_a_table_and_both_texts(tmp_path: Path) -> None:
    audit_stage(tmp_path / "run" / "audit")
    write(tmp_path / "run", gamed=False, action="warn")
    found = page(tmp_path / "run")
    for words in (
        "The reward prefers worse text in 1 of 2 contrast sets: exaggerated (81% of the time).",
        "Too few answers to speak of wrong_numbers. A policy trained on it", "81% [70%, 90%]", "1 of 2 gamed",
        "1.50", "the worse text leads by 1.20", "Worse, and preferred", "1 more", "what padded does",
    ):
        assert words in found.text, words
    assert '<mark class="m-exaggerated" title="exclamation">!!!</mark>' in found.html
    assert '<mark class="m-added" title="not in the better text">As is well known</mark>' in found.html
    assert any("exaggerated 81%, 95% interval 70% to 90%, gamed" in a.get("aria-label", "") for _, a in found.tags)


@pytest.mark.usefixtures("undrawn")
def test_audit_alone_and_hostile(tmp_path: Path) -> None:
    audit_stage(tmp_path / "audit", worse=HOSTILE)
    found = page(tmp_path / "audit")
    assert found.text.count("The reward prefers worse text in 1 of 2") == 2  # the headline and its line
    assert "<script" not in found.html and "<img" not in found.html and "\x1b" not in found.html
    (tmp_path / "audit" / "audit.json").write_text("{}")
    with pytest.raises(TrivetError):
        write_report(ReportConfig(run=tmp_path / "audit"))
