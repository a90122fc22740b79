"""`trivet ledger`, from run folders written by hand: no model, no training."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from trivet.cli import main
from trivet.errors import TrivetError
from trivet.evaluate import results
from trivet.ledger import Calls, Entry, Labelling, append
from trivet.report import lifecycle, lifecycle_chart
from trivet.report.bought import evaluated
from trivet.report.config import ReportConfig
from trivet.report.lifecycle import Item, build, columns, phase_of, scaled
from trivet.report.page import write_report
from trivet.report.prices import Prices, read_prices
from trivet.report.read import read_run
from trivet.stages import STAGES
from trivet.training.progress import console


def interval(value: float, low: float, high: float, n: int = 12) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def write(folder: Path, kind: str, summary: dict[str, Any] | None, *, config: str = "", state: dict[str, Any] | None
          = None, **entry: Any) -> None:
    """What `runs.execute` leaves in a stage's folder; without a summary it is not finished."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"# trivet {kind}, as resolved\nout: {folder}\n{config}")
    (folder / ".state.json").write_text(json.dumps(
        {"stage": kind, "fingerprint": "f", "seconds": 30.0, "attempts": 1} | (state or {})))
    if summary is None:
        return
    made = {"artifacts": {}, "stage": kind, "fingerprint": "f", "seconds": entry.get("seconds", 60.0)}
    (folder / "summary.json").write_text(json.dumps(made | summary))
    values = {"name": folder.name, "stage": kind, "started": "2026-01-02T03:04:05Z", "seconds": 60.0,
              "cpu_seconds": 100.0, "peak_memory_bytes": 2**30, "machine": "a small machine"} | entry
    append(folder.parent / "ledger.jsonl", Entry.model_validate(values))


def line(key: str, value: float, base: float | None, verdict: str = "same", p: float | None = 0.5,
         better: str = "higher") -> dict[str, Any]:
    change = None if base is None else interval(value - base, -0.1, 0.1) | {"p": p, "least": 0.001}
    return {"key": key, "leg": key.split(".")[0], "words": "words", "better": better, "kind": "mean", "share": True,
            "unit": "", "tested": True, "value": interval(value, value - 0.1, value + 0.1),
            "base": None if base is None else interval(base, base - 0.1, base + 0.1), "difference": change,
            "p_holm": p, "verdict": verdict, "topics": {}, "base_topics": {}}


def evaluation(folder: Path, model: str, base: str | None, lines: list[dict[str, Any]], **entry: Any) -> None:
    measures = {m["key"]: m["value"] for m in lines}
    write(folder, "evaluate", {"model": model, "base": base, "measures": measures}, **entry)
    found = results.Results.model_validate({
        "trivet": "0", "machine": "m", "model": model, "base": base, "command": "", "seed": 0, "level": 0.05,
        "family": len(lines), "suites": {}, "left_out": {}, "notes": [], "data": {}, "settings": {}, "seconds": 1.0,
        "measures": lines})
    results.write(folder, found)


RANKED = Labelling(people_seconds=600, people_rankings=20, ai_seconds=8, ai_rankings=4, untimed=2, source="abc")


@pytest.fixture
def road(tmp_path) -> Path:
    """A run with all phases but one: every stage finished."""
    run = tmp_path / "road"
    write(run / "sample", "sample", {"prompts": 20, "completions": 80}, tokens={"prompt": 400, "generated": 1600},
          flops={"forward": 4 * 10**12, "backward": 0})
    write(run / "pairs", "pairs", {"pairs": 90, "prompts": 20}, labelling=RANKED)
    write(run / "again", "pairs", {"pairs": 90, "prompts": 20}, labelling=RANKED)
    write(run / "reward", "reward", {"accuracy": interval(0.67, 0.6, 0.74), "longer_wins": interval(0.56, 0.5, 0.6)},
          flops={"forward": 10**13, "backward": 2 * 10**13})
    write(run / "ppo", "ppo", {
        "reward_gain": interval(0.22, 0.07, 0.38), "kl": 4.0, "length_gain": interval(1, -1, 2),
        "reward_before": interval(0, -0.1, 0.1), "reward_after": interval(0.22, 0.1, 0.3),
        "steps": 3, "stop": "steps", "episodes": 9,
        "artifacts": {"policy": {"path": "policy", "sha256": "0"}}}, seconds=3600.0, gpu_seconds=1800.0,
          flops={"forward": 5 * 10**13, "backward": 10**14}, energy_joules=7200.0, energy_sources=["GPU"])
    (run / "ppo" / "policy").mkdir()
    evaluation(run / "evaluate", str(run / "ppo" / "policy"), "base-model", [
        line("harmless.attack_success", 0.22, 0.31, "better", 0.01, "lower"),
        line("capable.fluent", 0.8, 0.9, "worse", 0.02), line("honest.mc1", 0.3, 0.3)],
        endpoints={"big": Calls(requests=10, input_tokens=2_000_000, output_tokens=100_000)})
    return run


def by_name(items: Any) -> dict[str, Item]:
    return {i.name: i for i in items}


def test_stages_fall_into_the_phases_of_a_models_life(road) -> None:
    found = build(read_run(road))
    assert [(p.name, p.seconds) for p in found.phases] == [
        ("prompt", 60), ("rank", 120), ("reward", 60), ("PPO", 3600), ("evaluate", 60)]
    assert found.total.seconds == 3900 and found.total.flops == 4 * 10**12 + 3 * 10**13 + 15 * 10**13
    assert by_name(found.phases)["PPO"].flops == 15 * 10**13
    assert all(phase_of(stage) != "other" for stage in STAGES)
    assert phase_of("quantize") == "compress" and phase_of("something-new") == "other"


def test_what_a_stage_bought_is_what_its_model_is_evaluated_to(road) -> None:
    found = by_name(build(read_run(road)).stages)
    assert "1 better: harmless.attack_success" in found["ppo"].bought
    assert "1 worse: capable.fluent" in found["ppo"].bought
    assert "1 of 3 measures as before" in found["ppo"].bought and "base-model" in found["ppo"].bought
    assert found["reward"].bought == "unseen pairs right 67% [60%, 74%]; by length alone 56%"
    assert found["sample"].bought == "80 answers to 20 prompts"
    assert found["evaluate"].bought.startswith("3 measures of ")


def test_without_an_evaluation_a_stage_says_its_own_gain(road) -> None:
    import shutil

    shutil.rmtree(road / "evaluate")
    assert by_name(build(read_run(road)).stages)["ppo"].bought == "reward on held-out prompts +0.22 [0.07, 0.38]"


def test_an_evaluation_outside_of_the_run_finds_the_stage_that_made_its_model(road, tmp_path) -> None:
    (road / "evaluate" / "results.json").rename(tmp_path / "results.json")
    assert by_name(build(read_run(road)).stages)["ppo"].bought.startswith("reward on held-out prompts")
    assert "1 better" in by_name(build(read_run(road), more=[tmp_path]).stages)["ppo"].bought
    # of a model that the run did not make: said, but nobody's
    value = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(value | {"model": "somebody/elses"}))
    found = build(read_run(road), more=[tmp_path])
    assert by_name(found.stages)["ppo"].bought.startswith("reward on held-out prompts")
    assert any("1 better" in note for note in found.notes)


def test_an_evaluation_of_another_model_beside_no_base_is_said(road, tmp_path) -> None:
    other = tmp_path / "elsewhere" / "other"
    evaluation(other, "somebody/elses", None, [line("honest.mc1", 0.3, None, "untested", None)])
    notes = build(read_run(road), more=[other]).notes
    assert [n for n in notes if "somebody/elses" in n] == [
        "no stage here made somebody/elses: 1 measures of somebody/elses, beside no base"]
    # the same of the run's own evaluations
    evaluation(road / "before", "base-model", None, [line("honest.mc1", 0.3, None, "untested", None)])
    assert any(n.startswith("no stage here made base-model: ") for n in build(read_run(road)).notes)


def test_an_evaluation_that_is_named_twice_is_said_once(road, tmp_path, monkeypatch) -> None:
    (tmp_path / "link").symlink_to(road)
    monkeypatch.chdir(tmp_path)
    more = [Path("road/evaluate"), road / "evaluate", tmp_path / "link" / "evaluate"]
    assert by_name(build(read_run(road), more=more).stages)["ppo"].bought.count("attack_success") == 1


def test_an_evaluation_beside_no_base_does_not_hide_what_the_stage_gained(road) -> None:
    evaluation(road / "alone", str(road / "ppo" / "policy"), None, [line("honest.mc1", 0.3, None, "untested", None)])
    assert "1 better" in by_name(build(read_run(road)).stages)["ppo"].bought
    (road / "evaluate" / "results.json").unlink()
    said = by_name(build(read_run(road)).stages)["ppo"].bought
    assert said == "reward on held-out prompts +0.22 [0.07, 0.38]; 1 measures of ppo/policy, beside no base"


def test_a_run_that_was_moved_still_knows_its_models(road, tmp_path) -> None:
    road.rename(tmp_path / "elsewhere")
    assert "1 better" in by_name(build(read_run(tmp_path / "elsewhere")).stages)["ppo"].bought


def test_whose_a_model_is(road, monkeypatch) -> None:
    (road / "reward" / "reward").mkdir()
    path = road / "reward" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"artifacts": {"reward": {"path": "reward"}}}))
    run = read_run(road)
    for spec, name in ((road / "ppo" / "policy", "ppo"), (road / "reward" / "reward", "reward"),
                       (road / "ppo", None), ("a/policy", None), ("", None), (None, None)):
        stage = run.maker(None if spec is None else str(spec))
        assert (stage and stage.name) == name
    assert run.behind(f"0.5*{road}/reward/reward").name == "reward"
    assert run.behind(str(road / "ppo" / "policy")) is None  # no reward model
    # of a run that was moved, read from inside of a stage's folder
    was = str(road / "ppo" / "policy")
    road.rename(road.with_name("elsewhere"))
    monkeypatch.chdir(road.with_name("elsewhere") / "ppo")
    assert read_run(Path(".")).maker(was).name == "ppo"


def test_many_changes_are_counted_and_the_surest_named() -> None:
    lines = [line(f"honest.m{i}", 0.5, 0.4, "better", 0.01 * i) for i in range(5)]
    found = results.Results.model_validate({
        "trivet": "0", "machine": "m", "model": "a", "base": "b", "command": "", "seed": 0, "level": 0.05,
        "family": 5, "suites": {}, "left_out": {}, "notes": [], "data": {}, "settings": {}, "seconds": 1.0,
        "measures": lines})
    words = evaluated(found)
    assert "5 better: honest.m0" in words and "honest.m2" in words and "honest.m3" not in words
    assert "and 2 more" in words
    assert "none of 2 measures differs" in evaluated(found.model_copy(update={
        "measures": [m.model_copy(update={"verdict": "same"}) for m in found.measures[:2]]}))
    assert "beside no base" in evaluated(found.model_copy(update={"base": None}))


def test_peoples_time_is_counted_once_however_many_stages_read_the_rankings(road) -> None:
    found = build(read_run(road))
    assert (found.total.people_seconds, found.total.rankings, found.total.ai_seconds) == (600, 20, 8)
    assert by_name(found.stages)["again"].people_seconds is None
    assert any("counted once" in n for n in found.notes) and any("2 of the 24" in n for n in found.notes)


def test_rankings_without_times_are_no_zero_minutes(road) -> None:
    path = road / "ledger.jsonl"
    path.write_text(path.read_text().replace('"people_seconds": 600.0', '"people_seconds": 0.0')
                    .replace('"untimed": 2', '"untimed": 24'))
    assert build(read_run(road)).total.people_seconds is None


def test_the_label_store_stands_in_for_the_rankings(road) -> None:
    found = build(read_run(road), labels=Labelling(people_seconds=7200, people_rankings=99, ai_rankings=3, source="x"))
    assert found.total.people_seconds == 7200
    label = by_name(found.stages)["label"]
    assert label.phase == "rank" and label.bought == "99 rankings by people, 3 by AI labelers"


def test_the_label_store_is_read(road, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(console, "_width", 200)  # COLUMNS is not read anew in every order of tests
    from simulated import simulate
    from trivet.feedback.store import Store

    rows, _ = simulate([0.9, 0.8, 0.7], 4, 3, seed=0)
    with Store.open(tmp_path / "labels.db") as store:
        store.add_rankings([r.model_copy(update={"seconds": 15.0}) for r in rows])
    main(["ledger", str(road), "--labels", str(tmp_path / "labels.db")])
    assert "3 min 0 s" in capsys.readouterr().out


# --- prices -----------------------------------------------------------------------------------------------


def test_costs_by_the_price_table(road, tmp_path) -> None:
    (tmp_path / "prices.yaml").write_text("currency: EUR\nmachine_hour: 2\ngpu_hour: 10\nperson_hour: 30\n"
                                          "endpoints:\n  big: {input: 3, output: 12}\n")
    found = build(read_run(road), prices=read_prices(tmp_path / "prices.yaml"))
    cost = {i.name: i.cost for i in found.stages}
    assert cost["ppo"] == pytest.approx(2 * 1 + 10 * 0.5)
    assert cost["pairs"] == pytest.approx(2 / 60 + 30 / 6)
    assert cost["again"] == pytest.approx(2 / 60)
    assert cost["evaluate"] == pytest.approx(2 / 60 + 3 * 2 + 12 * 0.1)
    assert found.total.cost == pytest.approx(sum(c for c in cost.values() if c is not None))
    assert not any("no price" in n for n in found.notes)


def test_what_has_no_price_is_in_no_cost(road) -> None:
    found = build(read_run(road), prices=Prices(person_hour=6))
    assert found.total.cost == pytest.approx(1.0)
    assert any("no price for big" in n for n in found.notes)
    assert build(read_run(road)).total.cost is None


def test_an_endpoint_that_told_no_tokens_has_no_cost(road) -> None:
    path = road / "ledger.jsonl"
    path.write_text(path.read_text().replace('"input_tokens": 2000000, "output_tokens": 100000',
                                             '"input_tokens": 0, "output_tokens": 0'))
    found = build(read_run(road), prices=Prices.model_validate({"endpoints": {"big": {"input": 3, "output": 12}}}))
    assert by_name(found.stages)["evaluate"].cost is None and found.total.cost is None
    assert any("big told no tokens" in n for n in found.notes)


def test_what_nothing_priced_went_into_has_no_cost(road) -> None:
    found = build(read_run(road), prices=Prices.model_validate({"endpoints": {"big": {"input": 3, "output": 12}}}))
    cost = {i.name: i.cost for i in found.stages}
    assert cost == dict.fromkeys(cost) | {"evaluate": pytest.approx(7.2)}
    shown = columns(found.stages)["cost"]
    assert shown.count("–") == len(shown) - 1
    assert {p.name: p.cost for p in found.phases}["PPO"] is None
    # an hour of the machine costs nothing where people label, and a price of 0 is a price
    labels = Labelling(people_seconds=60, people_rankings=1, source="x")
    free = by_name(build(read_run(road), prices=Prices(machine_hour=0), labels=labels).stages)
    assert (free["label"].cost, free["ppo"].cost) == (None, 0.0)


@pytest.mark.parametrize("store", [False, True])
def test_people_whose_time_nobody_took_cost_something_unknown(road, store) -> None:
    path = road / "ledger.jsonl"
    path.write_text(path.read_text().replace('"people_seconds": 600.0', '"people_seconds": 0.0')
                    .replace('"untimed": 2', '"untimed": 20'))
    labels = Labelling(people_rankings=20, untimed=20, source="store") if store else None
    found = build(read_run(road), prices=Prices(person_hour=6), labels=labels)
    assert found.total.cost is None
    name = "the label store" if store else "pairs"
    assert any(f"rankings of {name} say no time: what they cost is not known" in n for n in found.notes)
    assert by_name(build(read_run(road), prices=Prices(person_hour=6, machine_hour=2)).stages)["pairs"].cost == \
        pytest.approx(2 / 60)


# --- shown ------------------------------------------------------------------------------------------------


def test_the_command_prints_the_tables_and_writes_the_chart(road, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(console, "_width", 250)  # COLUMNS is not read anew in every order of tests
    prices = tmp_path / "p.yaml"
    prices.write_text("machine_hour: 2\ncurrency: EUR\n")
    main(["ledger", str(road), "--prices", str(prices)])
    out = " ".join(capsys.readouterr().out.split())
    for words in ("ppo", "150 T", "10 min 0 s", "30 min 0 s", "2 Wh", "EUR", "attack_success", "in all", "note: ",
                  "AI labelers", "10 requests", "1.6 k"):
        assert words in out, words
    text = (road / "lifecycle.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    for phase in ("prompt", "rank", "reward", "PPO", "evaluate", "people's time", "what it bought", "FLOPs", "energy"):
        assert phase in words, phase
    assert "var(" not in text and "#a1b2c" not in text
    main(["ledger", str(road), "--out", str(tmp_path / "other.svg")])
    assert (tmp_path / "other.svg").is_file()


def test_the_same_figures_give_the_same_chart(road) -> None:
    found = build(read_run(road))
    one, two = (lifecycle_chart.alone(lifecycle_chart.figure(found), lifecycle_chart.alt(found)) for _ in range(2))
    assert one == two and "PPO 1 h 0 min" in lifecycle_chart.alt(found)


def test_hostile_names_stay_text(road) -> None:
    (road / "ppo").rename(road / "ppo<script>&\x1b[31m")
    found = build(read_run(road))
    assert "<script>" not in lifecycle_chart.alone(lifecycle_chart.figure(found), lifecycle_chart.alt(found))


def test_an_unfinished_stage_shows_what_it_spent_so_far(road) -> None:
    spent = {"seconds": 30.0, "cpu_seconds": 55.0, "flops": {"forward": 7, "backward": 2}, "tokens": {"generated": 5}}
    write(road / "late", "sft", None, state={"spent": spent, "attempts": 2})
    item = by_name(build(read_run(road)).stages)["late"]
    assert (item.finished, item.seconds, item.flops, item.tokens_out, item.attempts) == (False, 30.0, 9, 5, 2)
    assert by_name(build(read_run(road)).phases)["fine-tune"].finished is False


def test_one_stages_folder_and_an_old_ledger(road, capsys) -> None:
    old = {"schema_version": 1, "name": "ppo", "stage": "ppo", "started": "2026-01-02T03:04:05Z", "seconds": 61.0,
           "cpu_seconds": 100.0, "peak_memory_bytes": 2**30, "tokens": {"generated": 12}, "attempts": 1, "machine": "m"}
    (road / "ledger.jsonl").write_text(json.dumps(old) + "\n")
    main(["ledger", str(road / "ppo")])
    out = capsys.readouterr().out
    assert "1 min 1 s" in out and "FLOPs" not in out and "sample" not in out
    assert (road / "ppo" / "lifecycle.svg").is_file()


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    assert list(columns([Item("a", "rank", seconds=3.0)])) == ["time"]
    assert columns([Item("a", "b", flops=0), Item("c", "d", flops=10**15)])["FLOPs"] == ["0", "1 P"]


@pytest.mark.parametrize(("value", "words"), [
    (0, "0"), (999, "999"), (1234, "1.23 k"), (5e12, "5 T"), (2.5e18, "2.5 E")])
def test_large_numbers(value, words) -> None:
    assert scaled(value, "") == words
    assert scaled(1500, "Wh") == "1.5 kWh"


def test_the_report_shows_the_same(road) -> None:
    html = write_report(ReportConfig(run=road)).read_text()
    assert "What each phase cost, and what it bought" in html
    assert ">150 T<" in html and ">2 Wh<" in html and ">30 min 0 s<" in html
    assert "counted once" in html


def test_a_damaged_ledger_is_refused_before_anything_is_written(road) -> None:
    path = road / "ledger.jsonl"
    path.write_text(path.read_text() + '{"name": "x"}\n')
    with pytest.raises(TrivetError, match="no entry of a ledger"):
        lifecycle.ledger_command(lifecycle.LedgerConfig(run=road))
    assert not (road / "lifecycle.svg").exists()
    with pytest.raises(TrivetError, match="no entry of a ledger"):
        write_report(ReportConfig(run=road))


def test_a_letter_that_is_torn_is_read_by_all_alike(road) -> None:
    path = road / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"name": "\xe2\x82\n')
    assert read_run(road).stages[0].cost.machine == "a small machine"
