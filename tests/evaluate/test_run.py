"""The stage `evaluate` from end to end on tiny models: files, resuming, comparing with what is there already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trivet.cli import main
from trivet.errors import TrivetError
from trivet.evaluate import results
from trivet.evaluate.catalogue import SUITES, chosen, draw
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.run import plan

FAST = ["--limit", "4", "--sampling.max-new-tokens", "4", "--device.threads", "1"]
OWN = [name for name, suite in SUITES.items() if suite.own]


@pytest.fixture(scope="module")
def two_models(make_tiny, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two")
    return make_tiny(folder / "one", seed=0, context=2048), make_tiny(folder / "two", seed=1, context=2048)


@pytest.fixture(scope="module")
def evaluated(two_models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "base"
    main(["evaluate", str(two_models[0]), "--out", str(out), *FAST])
    return out


def test_one_model(evaluated, two_models) -> None:
    found = results.read(evaluated)
    assert list(found.suites) == OWN and found.base is None
    keys = {m.key for m in found.measures}
    for name in OWN:
        assert (evaluated / "scores" / f"{name}.jsonl").is_file()
        assert keys & {m.key for m in SUITES[name].measures}
    assert set(SUITES) - set(OWN) <= set(found.left_out)
    for m in found.measures:
        assert m.value.n > 0 and m.difference is None and m.verdict == "untested"
        assert m.value.value is None or m.value.low is None or m.value.low <= m.value.value <= m.value.high
    assert {m.leg for m in found.measures} == {"helpful", "honest", "harmless", "capable"}
    speed = found.line("capable.speed")
    assert speed is not None and speed.value.value > 0
    for name in ("table.md", "report.html", "evaluation.svg"):
        assert (evaluated / name).stat().st_size > 0
    for name in ("table.md", "report.html"):
        assert "questions were asked in: prompts, attacks, refusals, text" in (evaluated / name).read_text()
    (entry,) = [json.loads(x) for x in (evaluated.parent / "ledger.jsonl").read_text().splitlines()]
    assert entry["stage"] == "evaluate" and entry["tokens"]["generated"] > 0


def test_against_an_evaluation_is_against_its_model(evaluated, two_models, tmp_path) -> None:
    """The base's answers are taken from its evaluation, and are what asking it again would give."""
    judge = ["--judge.by", "builtins:len"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(two_models[1]), "--against", str(evaluated), "--out", str(tmp_path / "no"), *FAST,
              *judge])
    main(["evaluate", str(two_models[1]), "--against", str(evaluated), "--out", str(tmp_path / "a"), *FAST])
    main(["evaluate", str(two_models[1]), "--against", str(two_models[0]), "--out", str(tmp_path / "b"), *FAST])
    a, b = results.read(tmp_path / "a"), results.read(tmp_path / "b")
    assert a.base == b.base == str(two_models[0])
    assert not (tmp_path / "a" / "base").exists()
    without = [[m for m in r.measures if m.key != "capable.speed"] for r in (a, b)]
    assert without[0] == without[1]
    assert all(m.difference is not None for m in without[0] if m.tested)
    assert a.line("capable.bits_per_byte").verdict in {"better", "worse", "same"}


def test_a_model_against_itself_is_the_same(evaluated, two_models, tmp_path) -> None:
    main(["evaluate", str(two_models[0]), "--against", str(evaluated), "--out", str(tmp_path / "same"), *FAST])
    found = results.read(tmp_path / "same")
    assert {m.verdict for m in found.measures} <= {"same", "untested"}
    assert all(m.difference.value == 0 for m in found.measures if m.tested)


def always_first(cases):
    """A judge who prefers what stands first."""
    return [1.0] * len(cases)


def longer(cases):
    """A judge who prefers the longer answer; of one answer, says no."""
    return [0.0 if len(c.answers) == 1 else 0.5 + 0.5 * ((a := len(c.answers[0])) > (b := len(c.answers[1])))
            - 0.5 * (a < b) for c in cases]


def test_both_orders_take_away_a_preference_for_the_first(evaluated, two_models, tmp_path, monkeypatch) -> None:
    (tmp_path / "judges.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    main(["evaluate", str(two_models[1]), "--against", str(two_models[0]), "--suites", "prompts", "refusals",
          "--judge.by", "judges:always_first", "--grader.by", "judges:longer", "--out", str(tmp_path / "out"), *FAST])
    found = results.read(tmp_path / "out")
    assert found.line("helpful.win_rate").value.value == 0.5
    assert found.line("helpful.win_rate_length_controlled").value.value == pytest.approx(0.5)
    assert found.line("harmless.over_refusal_judged").value.value == 0
    assert "helpful.win_rate" not in found.left_out


@pytest.mark.parametrize("moment", [0.02, 0.3, 1.0])
def test_kill_and_go_on(evaluated, two_models, tmp_path, moment) -> None:
    """Killed with -9 as answers come in; run again it ends with the same scores."""
    out = tmp_path / "killed"
    words = ["evaluate", str(two_models[0]), "--out", str(out), *FAST]
    process = subprocess.Popen([sys.executable, "-m", "trivet", *words], stdout=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 120
    while not list(out.glob("answers/*.jsonl")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    main(words)
    for path in (evaluated / "scores").glob("*.jsonl"):
        assert (out / "scores" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_evaluation_of_other_questions_is_refused(evaluated, two_models, tmp_path) -> None:
    for change in (["--limit", "3"], ["--seed", "1"], ["--sampling.temperature", "0.5"]):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", str(two_models[1]), "--against", str(evaluated), "--out", str(tmp_path / "x"), *FAST,
                  *change])
        assert stopped.value.code == 2


def test_fail_if_ends_with_1(evaluated, two_models, tmp_path, capsys) -> None:
    words = ["evaluate", str(two_models[0]), "--suites", "text", "--out", str(tmp_path / "out"), *FAST]
    main([*words, "--fail-if", "capable.perplexity < 1"])
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--fail-if", "capable.perplexity > 1"])
    assert stopped.value.code == 1
    assert "capable.perplexity > 1" in capsys.readouterr().err


def test_a_plan_says_what_is_left_out_and_draws_by_the_seed(tmp_path) -> None:
    made = plan(EvaluateConfig(limit=5))
    assert set(made.items) == set(OWN) and all(len(i) == 5 for i in made.items.values())
    assert "truthfulqa" in made.left_out
    again, other = plan(EvaluateConfig(limit=5)), plan(EvaluateConfig(limit=5, seed=1))
    assert made.items == again.items != other.items
    with pytest.raises(TrivetError, match=r"did you mean"):
        chosen(["unknwon"], None)
    with pytest.raises(TrivetError, match="gsm8k"):
        chosen(["gsm8k"], tmp_path)
    assert draw([*range(10)], 3, 0) == sorted(draw([*range(10)], 3, 0))


def test_lm_eval_is_named_where_it_is_missing(two_models, tmp_path, monkeypatch, capsys) -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm-eval is installed here")
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(two_models[0]), "--lm-eval", "arc_easy", "--out", str(tmp_path / "x"), *FAST])
    assert stopped.value.code == 2 and "trivet[lm-eval]" in capsys.readouterr().err
