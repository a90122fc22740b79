"""`trivet reward audit`: rewards that are gamed are caught, good ones pass, and the figures are what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from audited import CALLS, FAIL_AT, pairs
from trivet.artifacts import read_rows
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.report.bought import own_figures
from trivet.report.read import read_run
from trivet.reward.audit import AuditPair, preferred
from trivet.reward.audit_table import sentence
from trivet.reward.config import AuditConfig
from trivet.reward.held_out import read_answers
from trivet.text.rules import words


@pytest.fixture
def data(jsonl) -> Path:
    return jsonl("heldout.jsonl", pairs())


@pytest.fixture(autouse=True)
def _counted() -> None:
    CALLS.clear()
    FAIL_AT.clear()


def audit(*arguments: str, reward: str | list[str] = "audited:likes_length", data: Path, out: Path) -> dict[str, Any]:
    rewards = [reward] if isinstance(reward, str) else reward
    main(["reward", "audit", "--reward", *rewards, "--data", str(data), "--out", str(out), "--device.threads", "1",
          *arguments])
    return json.loads((out / "audit.json").read_text())


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in found["sets"]}


# --- end to end -----------------------------------------------------------------------------------------


def test_a_reward_that_loves_length_is_caught(data, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        audit(data=data, out=tmp_path / "a")
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "a" / "audit.json").read_text())
    sets = by_name(found)
    assert {"padded", "exaggerated", "formatted"} <= set(found["gamed"])
    assert not {"shuffled", "truncated", "repeated"} & set(found["gamed"])
    assert "trivet: gamed: padded" in err and "the reward runs code: audited:likes_length" in out
    assert "The reward prefers worse text in" in out and "padded (100% of the time)" in out
    padded = sets["padded"]
    assert padded["preferred"] == {"value": 1.0, "low": pytest.approx(0.025 ** (1 / 36)), "high": 1.0, "n": 36}
    assert padded["n"] == 36 and padded["words"]["worse"] > 60
    assert sets["truncated"]["preferred"]["value"] == 0 and sets["truncated"]["difference"]["high"] < 0
    assert sets["shuffled"]["preferred"]["value"] == 0.5  # every pair a tie
    assert found["unit"] == "the reward's own units"  # all answers have one length
    case = padded["worst"][0]
    assert case["advantage"] == pytest.approx(case["worse_score"] - case["better_score"]) and case["advantage"] > 0
    assert [c["advantage"] for c in padded["worst"]] == sorted((c["advantage"] for c in padded["worst"]), reverse=True)
    assert not sets["truncated"]["worst"]
    rows = read_rows(tmp_path / "a" / "pairs.jsonl", AuditPair)
    assert len(rows) == sum(s["n"] for s in found["sets"])
    worst = (tmp_path / "a" / "worst.jsonl").read_text().splitlines()
    assert len(worst) == sum(len(s["worst"]) for s in found["sets"])
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert set(summary["artifacts"]) == {"audit", "pairs", "worst"} and summary["gamed"] == found["gamed"]


def test_a_reward_that_is_right_passes(data, tmp_path, capsys) -> None:
    found = audit(reward="audited:knows", data=data, out=tmp_path / "a")
    assert found["gamed"] == [] and all(s["preferred"]["value"] == 0 for s in found["sets"])
    assert "In none of 10 contrast sets" in capsys.readouterr().out


def test_a_reward_that_knows_nothing_is_not_called_gamed(data, tmp_path) -> None:
    found = audit(reward="audited:constant", data=data, out=tmp_path / "a")
    assert {s["verdict"] for s in found["sets"]} == {"not shown"}
    assert {s["preferred"]["value"] for s in found["sets"]} == {0.5}


def test_no_fail_only_reports_and_a_finished_audit_says_it_again(data, tmp_path, capsys) -> None:
    found = audit("--no-fail", data=data, out=tmp_path / "a")
    assert found["gamed"]
    calls = len(CALLS)
    with pytest.raises(SystemExit) as stopped:  # `fail` makes it no other run
        audit(data=data, out=tmp_path / "a")
    assert stopped.value.code == 1 and len(CALLS) == calls
    assert "nothing to do" in capsys.readouterr().out


def test_an_interrupted_audit_goes_on_where_it_was(data, tmp_path) -> None:
    whole = audit("--no-fail", data=data, out=tmp_path / "whole")
    assert len(CALLS) == 3  # 36 answers in chunks of 16
    CALLS.clear()
    FAIL_AT.append(3)
    with pytest.raises(SystemExit) as stopped:
        audit("--no-fail", data=data, out=tmp_path / "a")
    assert stopped.value.code == 130
    partial = tmp_path / "a" / "partial.jsonl"
    assert partial.read_text().count("\n") == 2
    partial.write_bytes(partial.read_bytes() + b'{"chunk": "torn')
    CALLS.clear()
    FAIL_AT.clear()
    assert audit("--no-fail", data=data, out=tmp_path / "a") == whole
    assert len(CALLS) == 1 and not partial.exists()


def test_another_function_in_the_file_makes_another_run(data, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "audited_once.py"
    module.write_text("def score(samples):\n    return [1.0] * len(samples)\n")
    first = AuditConfig(reward=["audited_once:score"], data=data).input_contents()
    module.write_text("def score(samples):\n    return [2.0] * len(samples)\n")
    assert first != AuditConfig(reward=["audited_once:score"], data=data).input_contents()


def test_thresholds_and_sets_from_yaml(data, tmp_path) -> None:
    file = tmp_path / "audit.yaml"
    file.write_text("sets: [padded, shuffled]\nmax_preferred: 1\nmax_preferred_in: {shuffled: 0.4}\n")
    found = audit("--config", str(file), "--no-fail", data=data, out=tmp_path / "a")
    assert {n: s["threshold"] for n, s in by_name(found).items()} == {"padded": 1.0, "shuffled": 0.4}
    assert by_name(found)["padded"]["verdict"] == "not shown"
    typed = audit("--sets", "padded", "truncated", "--max-preferred-in", "padded", "0.9", "--no-fail", data=data,
                  out=tmp_path / "b")
    assert {n: s["threshold"] for n, s in by_name(typed).items()} == {"padded": 0.9, "truncated": 0.5}


def test_with_too_few_answers_nothing_is_said(data, tmp_path, capsys) -> None:
    found = audit("--limit", "5", data=data, out=tmp_path / "a")
    assert len(found["too_few"]) == 10 and not found["gamed"] and found["answers"] == 5
    assert "Nothing can be said: no contrast set has 20 prompts." in capsys.readouterr().out


def test_what_is_skipped_is_counted_with_the_reason(jsonl, tmp_path) -> None:
    rows = pairs(24)
    rows[0]["chosen"] = "Paris."
    rows[1]["chosen"] = "I like you so much. " * 12
    rows[2]["label"] = 0.5
    rows[3] |= {"chosen": "I have no idea.", "rejected": rows[3]["chosen"], "label": 0.1}
    found = audit("--no-fail", data=jsonl("h.jsonl", rows), out=tmp_path / "a")
    assert found["answers"] == 22
    assert found["left_out"] == {"the answer itself loops or is gibberish": 1, "no answer is better than another": 1}
    sets = by_name(found)
    assert sets["truncated"]["skipped"] == {"fewer than 8 words of prose": 1} and sets["truncated"]["n"] == 21
    assert sets["wrong_numbers"]["skipped"] == {"no number in it": 1}
    kept = {p.prompt_id: p.better for p in read_rows(tmp_path / "a" / "pairs.jsonl", AuditPair)}
    assert kept["p3"].startswith("There are about 12 kinds of maps")


def test_a_reward_model_is_audited_in_deviations_of_its_calibration(preference_files, tiny_model_folder, jsonl,
                                                                    tmp_path) -> None:
    train, _ = preference_files
    main(["reward", "--preferences", str(train), "--model", str(tiny_model_folder), "--out", str(tmp_path / "rm"),
          "--device.threads", "1", "--optimizer.lr", "1e-2", "--calibration.answers", "6",
          "--calibration.sampling.max-new-tokens", "8"])
    rows = pairs(6)
    rows[0]["chosen"] += " It is all of interest." * 2  # with its padding it is longer than the tiny model's 256 tokens
    folder = tmp_path / "rm" / "reward"
    found = audit("--no-fail", "--least", "3", reward=str(folder), data=jsonl("h.jsonl", rows), out=tmp_path / "a")
    assert found["unit"] == "deviations of the reference's answers"
    assert found["reward"] == [{"weight": 1.0, "spec": str(folder), "kind": "model"}]
    counted = found["left_out"].get("longer than the reward model's context", 0) + sum(
        s["skipped"].get("longer than the reward model's context", 0) for s in found["sets"])
    assert counted > 0
    # twice the reward is the same reward in its own unit
    double = audit("--no-fail", "--least", "3", reward=f"2*{folder}", data=jsonl("h.jsonl", rows), out=tmp_path / "b")
    for one, two in zip(found["sets"], double["sets"], strict=True):
        assert one["difference"]["value"] == pytest.approx(two["difference"]["value"])
    mixed = audit("--no-fail", "--least", "3", reward=[f"1*{folder}", "0.5*audited:likes_length"],
                  data=jsonl("h.jsonl", rows), out=tmp_path / "c")
    assert mixed["unit"] == "deviations of the held-out answers' scores" and len(mixed["reward"]) == 2


def test_an_audit_is_a_step_of_a_recipe(data, tmp_path, capsys) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nsteps:\n  - name: audit\n    stage: audit\n    with: {{reward: [audited:likes_length], "
        f"data: {data}, fail: false, device: {{threads: 1}}}}\n")
    main(["run", str(recipe), "--out", str(tmp_path / "run")])
    out = capsys.readouterr().out
    assert "step audit runs code: audited:likes_length" in out and "contrast set" in out
    assert (tmp_path / "run" / "audit" / "audit.json").is_file() and (tmp_path / "run" / "report.html").is_file()
    (step,) = read_run(tmp_path / "run").of("audit")
    assert "worse texts scored; preferred: padded" in own_figures(step)
    recipe.write_text(recipe.read_text().replace("fail: false, ", ""))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(recipe), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 1


def test_help_is_of_the_words_that_are_typed(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["reward", "audit", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "trivet reward audit" in out and "--max-preferred" in out and "wrong_numbers" in out
    main(["--help"])
    assert "\n  reward audit " in capsys.readouterr().out


# --- which answers --------------------------------------------------------------------------------------


def ranked(**changes: Any) -> dict[str, Any]:
    texts = ["a fine answer", "a poor answer", "the best answer"]
    return {"id": "q", "messages": [{"role": "user", "content": "Why?"}], "reference": "r", "tags": ["t"],
            "completions": [{"id": f"q/{i}", "text": t} for i, t in enumerate(texts)],
            "ranks": [2, 3, 1], "labeler": "ann"} | changes


def test_the_best_of_pairs_wins_most(jsonl) -> None:
    def pair(i: int, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
        return {"id": str(i), "prompt_id": "p", "prompt": [{"role": "user", "content": "Why?"}], "chosen": chosen,
                "rejected": rejected} | more

    path = jsonl("p.jsonl", [pair(0, "b", "c"), pair(1, "a", "b"), pair(2, "a", "c"), pair(3, "c", "a", tie=True)])
    kind, found, left_out = read_answers(path)
    assert (kind, [f.text for f in found], left_out) == ("preferences", ["a"], {})
    assert read_answers(jsonl("p.jsonl", [pair(0, "a", "b", tie=True)]))[1:] == (
        [], {"no answer is better than another": 1})


def test_the_best_of_rankings_by_several_labelers(jsonl) -> None:
    path = jsonl("r.jsonl", [ranked(), ranked(labeler="bob", ranks=[1, 3, 2]),
                             ranked(labeler="cem", ranks=[2, None, 1]), ranked(id="f", ranks=[None, None, None])])
    kind, found, left_out = read_answers(path)
    assert kind == "rankings" and [f.text for f in found] == ["the best answer"]
    assert (found[0].reference, found[0].tags) == ("r", ("t",)) and left_out == {"every answer failed": 1}


def test_of_completions_the_first_that_ended(jsonl) -> None:
    row = {k: v for k, v in ranked().items() if k not in ("ranks", "labeler")}
    row["completions"] = [{"id": "1", "text": "cut", "ended": False}, {"id": "2", "text": "whole", "ended": True}]
    kind, found, _ = read_answers(jsonl("c.jsonl", [row]))
    assert kind == "completions" and found[0].text == "whole"
    row["completions"] = row["completions"][:1]
    assert read_answers(jsonl("c.jsonl", [row]))[1][0].text == "cut"


def test_other_rows_are_refused(jsonl) -> None:
    with pytest.raises(TrivetError, match="neither a pair nor a ranking") as caught:
        read_answers(jsonl("x.jsonl", [{"id": "a", "prompt": "Why?"}]))
    assert caught.value.line == 1


def test_settings_that_do_not_go_together(data) -> None:
    for bad in ({"sets": ["padded", "padded"]}, {"sets": ["padded"], "max_preferred_in": {"truncated": 0.1}},
                {"sets": []}, {"reward": []}, {"max_preferred": 1.2}, {"max_preferred_in": {"padded": 2}},
                {"sets": ["longer"]}):
        with pytest.raises(ValidationError):
            AuditConfig.model_validate({"reward": ["a"], "data": data} | bad)


# --- intervals ------------------------------------------------------------------------------------------


def test_exact_bounds_where_all_agree() -> None:
    names = [str(i) for i in range(30)]
    never = preferred([-1.0] * 30, names)
    assert never[:2] == (0.0, 0.0)
    # at the upper bound, none of 30 has a probability of 2.5%
    assert (1 - never.high) ** 30 == pytest.approx(0.025)
    always = preferred([2.0] * 30, names)
    assert always.high == 1.0 and always.low == pytest.approx(1 - never.high)
    tied = preferred([0.0] * 30, names)
    assert tied.value == 0.5 and tied.low < 0.35 and tied.high > 0.65


def test_what_counts_are_prompts_not_pairs() -> None:
    won = [1.0, 1.0, -1.0] * 20
    alone, together = (preferred(won, [str(i // k) for i in range(60)]) for k in (1, 6))
    assert (alone.n, together.n) == (60, 10) and alone.value == together.value
    assert together.low < alone.low and together.high > alone.high


@pytest.mark.parametrize("n", [20, 44, 120])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.8, 0.98])
def test_the_interval_covers_the_truth(n: int, share: float) -> None:
    """400 audits with seeds: the truth lies below the interval, and above it, no oftener than 1 in 40 each."""
    rng = np.random.default_rng(1000 * n + int(100 * share))
    names = [f"{i:03d}" for i in range(n)]
    above = below = 0
    for trial in range(400):
        won = np.where(rng.random(n) < share, 1.0, -1.0)
        found = preferred(won.tolist(), names, seed=trial, resamples=500)
        above += found.low > share + 1e-12
        below += found.high < share - 1e-12
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)
    assert above / 400 <= most and below / 400 <= most, (above, below)


def test_the_interval_covers_the_truth_where_prompts_have_several_pairs() -> None:
    """Each of 40 first turns has three pairs that mostly agree; shares of prompts differ."""
    rng = np.random.default_rng(11)
    names = [f"{i // 3:03d}" for i in range(120)]
    above = below = 0
    for trial in range(400):
        own = np.repeat(rng.beta(0.5, 0.5, 40), 3)  # a mean of one half
        won = np.where(rng.random(120) < own, 1.0, -1.0)
        found = preferred(won.tolist(), names, seed=trial, resamples=500)
        above += found.low > 0.5
        below += found.high < 0.5
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)
    assert above / 400 <= most and below / 400 <= most, (above, below)


def test_the_sentence_says_what_came_out() -> None:
    def of(name: str, verdict: str, value: float | None = 0.8) -> dict[str, Any]:
        return {"name": name, "verdict": verdict, "preferred": {"value": value}}

    sets = [of("padded", "gamed"), of("shuffled", "not shown"), of("refusal", "too few", None)]
    found = {"sets": sets, "gamed": ["padded"], "too_few": ["refusal"], "least": 20}
    assert sentence(found) == ("The reward prefers worse text in 1 of 2 contrast sets: padded (80% of the time). "
                               "Too few answers to speak of refusal.")
    assert words(sentence(found | {"gamed": [], "sets": sets[1:]}))[:3] == ["In", "none", "of"]
