"""The stage `prefer`: AI preferences from principles, resumed without a second question, measured on people's pairs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from trivet.artifacts import Preference, read_rows
from trivet.cli import main
from trivet.config import Device
from trivet.constitution.prefer import PreferSummary
from trivet.constitution.prefer_config import PreferConfig
from trivet.constitution.principles import load_constitution
from trivet.data.importers import read_preferences
from trivet.errors import TrivetError
from trivet.generate.config import Sampling, Writing
from trivet.judge.config import Judging
from trivet.runs import execute
from trivet.stages import STAGES, load

CPU = Device(device="cpu", precision="float32", threads=1)
SOURCE = '''
asked = []
fails_after = None
def longer(cases):  # thinks more of the longer answer, and leans to what stands first
    asked.extend(cases)
    if fails_after is not None and len(asked) > fails_after:
        raise OSError("gone")
    return [min(max(0.75 + 0.1 * (len(c.answers[0]) - len(c.answers[1])), 0.0), 1.0) for c in cases]
def even(cases):
    return [0.5] * len(cases)
'''


@pytest.fixture
def judges(tmp_path, monkeypatch) -> str:
    name = f"prefer_judges_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def prefer(**settings) -> PreferSummary:
    stage = STAGES["prefer"]
    config = PreferConfig(device=CPU, **settings)
    found: PreferSummary = execute("prefer", config, load(stage.work), load(stage.summary), say=lambda words: None)
    return found


def answers(jsonl, n: int = 12) -> Path:
    return jsonl("completions.jsonl", [
        {"id": f"q{i}", "prompt": f"Question {i}?", "completions": [
            {"id": f"q{i}/{j}", "text": f"answer {i}" + "x" * j} for j in range(3)]} for i in range(n)])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_get_soft_labels_by_principle(judges, jsonl, tmp_path) -> None:
    out = tmp_path / "out"
    summary = prefer(completions=answers(jsonl), judge=Judging(by=f"{judges}:longer"), pairs=2, principles=3, out=out)
    shipped = load_constitution()
    preferences = read_rows(out / "preferences.jsonl", Preference)
    assert summary.pairs == summary.kept == len(preferences) == 24 and summary.prompts == 12
    assert summary.constitution == shipped.sha256 and summary.longer_wins == 1.0
    assert sum(summary.principles.values()) == 72 and set(summary.principles) <= {p.name for p in shipped.principles}
    for p in preferences:
        assert len(p.chosen) > len(p.rejected) and 0.5 < p.label < 0.8 and p.weight == 0.5
        assert p.source == f"{judges}:longer by {shipped.name} {shipped.sha256}"
    # 0.75 for the one shown first, in either order; and nothing is left of it
    assert summary.prefers_first["value"] == pytest.approx(0.75)
    assert summary.prefers_first_after["low"] < 0.5 < summary.prefers_first_after["high"]
    assert summary.flips["value"] == 1.0 and summary.agreement is None
    comparisons = rows(out / "comparisons.jsonl")
    assert len(comparisons) == 24 and all(r["constitution"] == shipped.sha256 and r["kept"] for r in comparisons)
    assert all(len(r["said"]) == 3 and len({s["principle"] for s in r["said"]}) == 3 for r in comparisons)
    # `pairs` splits it like any other preferences
    assert len(read_preferences(out / "preferences.jsonl").pairs) == 24
    assert {"preferences", "comparisons"} == set(summary.artifacts)


def test_an_interrupted_run_asks_nothing_twice(judges, jsonl, tmp_path) -> None:
    out, module = tmp_path / "out", judges
    settings = dict(completions=answers(jsonl, 40), judge=Judging(by=f"{module}:longer"), pairs=3, out=out)
    __import__(module)
    sys.modules[module].fails_after = 100
    with pytest.raises(TrivetError, match="gone"):
        prefer(**settings)
    assert not (out / "preferences.jsonl").exists()
    sys.modules[module].fails_after = None
    before = len(sys.modules[module].asked)
    done = prefer(**settings)
    assert done.pairs == 120 and len(sys.modules[module].asked) == before + 240 - 64
    whole = prefer(**(settings | {"out": tmp_path / "other"}))
    assert (out / "preferences.jsonl").read_bytes() == (tmp_path / "other/preferences.jsonl").read_bytes()
    assert whole.prefers_first == done.prefers_first


def test_unsure_pairs_are_left_out(judges, jsonl, tmp_path) -> None:
    out = tmp_path / "out"
    # answers differ by one or two letters: labels of 0.6 and 0.7
    summary = prefer(completions=answers(jsonl), judge=Judging(by=f"{judges}:longer"), pairs=3, keep=0.15, out=out)
    labels = [r["label"] for r in rows(out / "preferences.jsonl")]
    assert summary.pairs == 36 and summary.kept == 12 and labels == pytest.approx([0.7] * 12)
    assert summary.left_out == {"nearer to 0.5 than 0.15": 24}
    assert [r["kept"] for r in rows(out / "comparisons.jsonl")].count(True) == 12
    assert {r["weight"] for r in rows(out / "preferences.jsonl")} == {1.0}
    with pytest.raises(TrivetError, match="no pair is left"):
        prefer(completions=answers(jsonl), judge=Judging(by=f"{judges}:even"), keep=0.1, out=tmp_path / "none")


def test_people_are_asked_about_alone(judges, jsonl, tmp_path) -> None:
    human = jsonl("hh.jsonl", [
        {k: f"\n\nHuman: Question {i}?\n\nAssistant: {'x' * n} {i}" for k, n in
         (("chosen", 5 if i % 4 else 2), ("rejected", 3))} for i in range(80)])
    out = tmp_path / "out"
    summary = prefer(human=human, judge=Judging(by=f"{judges}:longer"), out=out)
    found = json.loads((out / "agreement.json").read_text())
    assert summary.pairs == 0 and not (out / "preferences.jsonl").exists()
    assert found["pairs"] == 80 and found["agreement"]["value"] == pytest.approx(0.75) == found["longer"]["value"]
    assert found["agreement"]["low"] < 0.75 < found["agreement"]["high"]
    assert found["position"]["before"]["value"] == pytest.approx(0.75) and summary.agreement == found["agreement"]
    assert sum(r["pairs"] for r in found["reliability"]) == 80 and found["constitution"] == summary.constitution
    assert len(rows(out / "people.jsonl")) == 80 and set(summary.artifacts) == {"people", "agreement"}
    fewer = prefer(human=human, limit=30, judge=Judging(by=f"{judges}:longer"), out=tmp_path / "fewer")
    assert fewer.agreement["n"] == 30


@pytest.fixture(scope="module")
def wide(tmp_path_factory, make_tiny) -> Path:
    return make_tiny(tmp_path_factory.mktemp("prefer") / "tiny", context=8192)


def test_a_model_answers_and_judges_itself(wide, prompt_file, tmp_path, monkeypatch) -> None:
    loads = []
    from trivet.generate import local_writer
    from trivet.judge import local

    real = local.load_causal_lm
    for module in (local, local_writer):
        monkeypatch.setattr(module, "load_causal_lm", lambda *a, **k: loads.append(1) or real(*a, **k))
    out = tmp_path / "out"
    settings = dict(prompts=prompt_file, limit=6, target=Writing(by=str(wide)), judge=Judging(by=str(wide)), out=out,
                    sampling=Sampling(max_new_tokens=8), combine="log-odds")
    summary = prefer(**settings)
    assert summary.pairs == 6 and len(loads) == 1
    assert {"completions", "preferences", "comparisons"} == set(summary.artifacts)
    first = (out / "preferences.jsonl").read_bytes()
    texts = [c["text"] for r in rows(out / "completions.jsonl") for c in r["completions"]]
    assert len(texts) == 12 and len(set(texts)) > 6
    prefer(**settings, overwrite=True)
    assert (out / "preferences.jsonl").read_bytes() == first


def test_reasons_come_first_and_are_clamped(wide, prompt_file, tmp_path) -> None:
    out = tmp_path / "out"
    prefer(prompts=prompt_file, limit=3, target=Writing(by=str(wide)), out=out, sampling=Sampling(max_new_tokens=8),
           judge=Judging(by=str(wide), think=True, think_tokens=8))
    assert all(0.5 <= r["label"] <= 0.6 for r in rows(out / "preferences.jsonl"))
    assert len(rows(out / "judge/verdicts.jsonl")) == 6 and list((out / "judge/thoughts").iterdir())


@pytest.mark.parametrize(("settings", "words"), [
    (dict(), "nothing to compare"), (dict(prompts="a", completions="b"), "one of the two"),
    (dict(prompts="a", judge=Judging()), "name what compares"),
    (dict(prompts="a", judge=Judging(by="m", both_orders=False)), "always asked in both orders"),
    (dict(prompts="a", pairs=2), "2 answers make 1 pairs"),
])
def test_settings_that_do_not_go_together(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        PreferConfig(**({"judge": Judging(by="m")} | settings))


def test_faults_are_found_before_a_model_is_loaded(judges, jsonl, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trivet.constitution.prefer.prepare", None)
    given = dict(completions=answers(jsonl), judge=Judging(by=f"{judges}:longer"), out=tmp_path / "out")
    with pytest.raises(TrivetError, match="principles a pair are asked for"):
        prefer(**given, principles=500)
    with pytest.raises(TrivetError, match="can't be imported"):
        prefer(**(given | {"judge": Judging(by=f"{judges}:none")}))
    with pytest.raises(TrivetError, match="one answer a prompt can't be compared"):
        prefer(**(given | {"completions": jsonl("one.jsonl", [
            {"id": "q", "prompt": "?", "completions": [{"id": "a", "text": "one"}]}])}))


def test_a_fuller_budget_is_no_other_run(judges) -> None:
    from trivet.config import fingerprint

    def mark(**judge):
        return fingerprint("prefer", PreferConfig(prompts="p", judge=Judging(by="http://h/v1", model="m", **judge)), {})

    assert mark() == mark(requests=9, concurrency=2) != mark(think=True)


def test_the_command(judges, jsonl, tmp_path, capsys) -> None:
    main(["constitution", "prefer", "--completions", str(answers(jsonl)), "--judge.by", f"{judges}:longer", "--out",
          str(tmp_path / "out"), "--device.device", "cpu", "--device.threads", "1"])
    said = capsys.readouterr().out
    assert "prefers first" in said and "preferences.jsonl" in said


def test_no_rule_for_refusals_takes_part() -> None:
    """What measures refusals must have no hand in the labels."""
    import subprocess

    code = ("import trivet.constitution.prefer, trivet.judge.ask, trivet.judge.thinking, sys; "
            "sys.exit('trivet.text.manner' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_hands_the_pairs_on(judges, jsonl, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "feedback.yaml"
    recipe.write_text(f"""\
name: feedback
steps:
  - name: ai
    stage: prefer
    with: {{completions: {answers(jsonl, 30)}, judge: {{by: "{judges}:longer"}}, pairs: 2, device: {{device: cpu}}}}
  - name: pairs
    stage: pairs
    with: {{input: "${{ai.preferences}}"}}
""")
    main(["run", str(recipe), "--out", str(tmp_path / "run")])
    parts = [read_rows(tmp_path / f"run/pairs/{side}.jsonl", Preference) for side in ("train", "heldout")]
    assert sum(map(len, parts)) == 60 and all(p.source and p.label < 1 for part in parts for p in part)


def test_the_shipped_principles_are_part_of_what_a_run_is_found_by(tmp_path: Path) -> None:
    config = PreferConfig(prompts=tmp_path / "prompts.jsonl", judge=Judging(by="http://127.0.0.1:1/v1", model="m"))
    assert config.input_contents() == {"constitution": load_constitution(None).sha256}
