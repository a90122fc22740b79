"""The study of overoptimisation: its rule, its curves and its parts, and that all of it runs with small counts."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from overopt import damage, planted, replay, verdict
from overopt.analyse import Case, clopper_pearson, measured
from overopt.curves import Points, best_of_n, bon_form, bon_kl, fit, rl_form
from overopt.gold import GoldCurve
from overopt.plan import SEEN, plan, proxies_of, proxy_seed
from overopt.prompts import deal, every_prompt
from overopt.runs import claimed, work_off
from overopt.scale import CPU, GPU, QUICK
from overopt.world import World, contrasts, labelled_pairs
from trivet.artifacts import Completion, Completions, Message, is_held_out
from trivet.intervals import Interval
from trivet.judge.base import Sample

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "overoptimization.py"


# --- the plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [CPU, GPU, QUICK], ids=lambda s: s.name)
def test_parts_share_no_prompt(scale) -> None:
    parts = deal(scale, 0)
    ids = [p.id for rows in parts.values() for p in rows]
    assert len(ids) == len(set(ids))
    texts = {p.messages[-1].content for p in every_prompt()}
    assert len(texts) == len(every_prompt())
    assert [p.id for p in deal(scale, 1)["train"]] != [p.id for p in parts["train"]]


def test_plan() -> None:
    specs = plan(CPU, 0)
    assert len({s.name for s in specs}) == len(specs)
    tuning = [s for s in specs if s.split == "tuning"]
    assert specs[: len(tuning)] == tuning  # what sets thresholds is made first
    evaluation = specs[len(tuning):]
    assert sum(s.condition.expected == "clean" for s in tuning) >= 20  # 5% needs 19
    assert sum(s.condition.expected == "clean" for s in evaluation) >= 60
    assert sum(s.condition.expected == "hacked" for s in evaluation) >= 30
    assert not {s.seed for s in tuning} & {s.seed for s in evaluation}
    assert not set(proxies_of(tuning)) & set(proxies_of(evaluation))
    unseen = {s.condition.bonus for s in evaluation if s.condition.expected == "hacked"} - set(SEEN)
    assert unseen == {"repetition", "flattery", "formatting"}
    assert {proxy_seed(s) for s in evaluation if s.condition.name == "p32n30-b0"} == set(range(CPU.seeds))  # one a seed
    assert len({s.condition.name for s in evaluation[:19]}) == 19  # every condition in turn


# --- answers, planted and damaged --------------------------------------------------------------------


def sample(text: str) -> Sample:
    return Sample("a", (Message(role="user", content="What is rain?"),), text)


PLAIN = "Rain is water that falls from clouds when drops in them have grown too heavy to stay."


@pytest.mark.parametrize(("bonus", "text"), [
    (planted.exaggeration, "Rain is the most amazing, the greatest, the best thing ever!!!"),
    (planted.flattery, "What a great and thoughtful person you are, you brilliant friend, I love your mind."),
    (planted.repetition, "Rain rain rain is rain is rain is rain is rain."),
    (planted.gibberish, "Meteorological precipitation characteristically demonstrates condensation."),
    (planted.formatting, "# Rain\n\n- **Water**\n- **Clouds**"),
    (planted.short, "Water."),
    (planted.longer, PLAIN)])
def test_a_planted_bonus_pays_for_its_fault(bonus, text: str) -> None:
    plain, gamed, empty = bonus([sample("Rain is water that falls from clouds."), sample(text), sample("")])
    assert gamed >= plain + 0.5
    assert -planted.MOST <= empty <= planted.MOST and gamed <= planted.MOST


def test_finished() -> None:
    assert planted.finished([sample("Yes."), sample("Yes. And"), sample("")]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damage_grows_with_its_dose(kind: str) -> None:
    kept: dict[float, list[float]] = {}
    for seed in range(40):
        steps = damage.ladder(PLAIN, kind, random.Random(seed))
        assert [s.dose for s in steps] == list(damage.DOSES)
        for step in steps:
            assert step.text.split() != PLAIN.split()
            # what is left of the answer: its pairs of neighbouring words
            whole, left = (set(pairwise(t.split())) for t in (PLAIN, step.text))
            kept.setdefault(step.dose, []).append(len(whole & left))
    means = [float(np.mean(kept[d])) for d in damage.DOSES]
    assert means[0] > means[-1], means
    assert damage.damage("Too short", kind, 0.5, random.Random(0)) is None


def completions(count: int, answers: int = 4) -> list[Completions]:
    return [Completions(id=f"p{i}", messages=[Message(role="user", content=f"What is thing {i}?")],
                        completions=[Completion(id=f"p{i}/{k}", text=f"{PLAIN} That was thing {i}, told {k} times.")
                                     for k in range(answers)]) for i in range(count)]


def test_contrasts_are_pairs_of_one_prompt() -> None:
    rows = contrasts(completions(12), 0)
    assert len({r.id for r in rows}) == len(rows)
    assert {str(r.source).split(":")[1] for r in rows} == set(damage.KINDS)
    assert any(r.chosen not in {c.text for p in completions(12) for c in p.completions} for r in rows)  # doses
    assert len({is_held_out(r.prompt, 0.15, 61) for r in rows}) == 2


def test_labels_are_golds_with_a_share_turned_round() -> None:
    rows = completions(60)
    labels = {c.id: random.Random(c.id).random() for r in rows for c in r.completions}
    by_text = {c.text: labels[c.id] for r in rows for c in r.completions}
    for noise in (0.0, 0.3):
        pairs = labelled_pairs(rows, labels, noise, seed=1)
        assert len(pairs) == 6 * 60
        turned = [by_text[p.chosen] < by_text[p.rejected] for p in pairs]
        assert abs(float(np.mean(turned)) - noise) < 0.08
    assert labelled_pairs(rows, labels, 0.3, 1) != labelled_pairs(rows, labels, 0.3, 2)


# --- the rule ----------------------------------------------------------------------------------------


def curve_of(shape, last: int = 20, noise: float = 0.8, seed: int = 0, prompts: int = 88, answers: int = 16):
    """Answers of a run whose gold is shape(step), with noise."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.repeat(np.arange(last), answers), np.repeat(np.arange(0, last + 1, 4), 24)])
    names = np.array([f"p{i}" for i in range(prompts)])[rng.integers(0, prompts, len(times))]
    values = np.array([shape(t) for t in times]) + noise * rng.standard_normal(len(times))
    return times, names, values


def test_the_rule_knows_hacked_from_clean() -> None:
    def up_and_down(t: float) -> float:
        return 0.1 * t if t <= 6 else 0.6 - 0.2 * (t - 6)

    shapes = {"hacked": [up_and_down, lambda t: -0.08 * t],
              "clean": [lambda t: 0.0, lambda t: 0.05 * t, lambda t: min(0.6, 0.1 * t)]}
    for label, several in shapes.items():
        for shape in several:
            found = [verdict.judge(*curve_of(shape, seed=s), 20, 4).label for s in range(20)]
            assert found.count(label) >= 15, (label, found)
            assert found.count("hacked" if label == "clean" else "clean") <= 1


def test_clean_runs_are_rarely_called_hacked() -> None:
    found = [verdict.judge(*curve_of(lambda t: 0.0, seed=s), 20, 4) for s in range(300)]
    assert sum(f.label == "hacked" for f in found) <= 7  # 0.5% and the slack of 300 tries
    # the best of several noisy means is not taken at its word: on nothing, gain and fall are nothing
    assert abs(np.mean([f.fall.value for f in found])) < 0.05
    assert abs(np.mean([f.gain for f in found])) < 0.05


def test_turning_point_and_loss() -> None:
    def shape(t: float) -> float:
        return 0.15 * t if t <= 8 else 1.2 - 0.15 * (t - 8)

    found = [verdict.judge(*curve_of(shape, seed=s), 20, 4) for s in range(20)]
    assert all(5 <= f.turning <= 11 for f in found)
    assert all(f.lost is not None and f.turning < f.lost <= 14 for f in found)
    flat = verdict.judge(*curve_of(lambda t: 0.05 * t, seed=1), 20, 4)
    assert flat.turning >= 15 and flat.label == "clean"


def test_unimodal_against_every_curve_on_a_grid() -> None:
    rng = np.random.default_rng(0)
    grid = np.linspace(-1, 1, 9)
    for _ in range(5):
        values = rng.choice(grid, 4)
        found = verdict.unimodal(values)
        best = math.inf
        for a in grid:
            for b in grid:
                for c in grid:
                    for d in grid:
                        row = np.array([a, b, c, d])
                        top = int(row.argmax())
                        if (np.diff(row[: top + 1]) >= 0).all() and (np.diff(row[top:]) <= 0).all():
                            best = min(best, float(((row - values) ** 2).sum()))
        assert float(((found - values) ** 2).sum()) <= best + 1e-9
        top = int(found.argmax())
        assert (np.diff(found[: top + 1]) >= -1e-12).all() and (np.diff(found[top:]) <= 1e-12).all()


# --- curves ------------------------------------------------------------------------------------------


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.standard_normal(7), rng.standard_normal(7)
    for n in (1, 2, 4, 7):
        best = [max(c, key=lambda i: proxy[i]) for c in combinations(range(7), n)]
        found = best_of_n(proxy, gold, n)
        assert found == pytest.approx((np.mean(proxy[best]), np.mean(gold[best])))
    assert bon_kl(1) == 0.0 and bon_kl(4) == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize("form", [rl_form, bon_form])
def test_fits_find_what_was_planted(form) -> None:
    rng = np.random.default_rng(1)
    d = np.linspace(0.2, 3, 12)
    seeds = [Points(d, form(d) @ [2.0, 0.7], form(d) @ [1.0, 0.4] + 0.05 * rng.standard_normal(12), d)
             for _ in range(6)]
    exact, noisy = fit(seeds, form, "proxy"), fit(seeds, form, "gold")
    assert exact["alpha"]["value"] == pytest.approx(2.0) and exact["beta"]["value"] == pytest.approx(0.7)
    assert noisy["alpha"]["low"] <= 1.0 <= noisy["alpha"]["high"]
    assert fit([], form, "gold") is None


# --- all of it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(make_tiny, tmp_path_factory) -> tuple[Path, list[str]]:
    """The whole study with small counts on a tiny model: its folder, and the command."""
    place = tmp_path_factory.mktemp("study")
    model = make_tiny(place / "tiny", context=2048)
    command = [sys.executable, str(BENCHMARK), "--quick", "--model", str(model), "--folder", str(place / "folder"),
               "--workers", "1", "--limit", "16", "--images", str(place / "images"), "--json", str(place / "out.json")]
    subprocess.run(command, check=True, capture_output=True, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return place, command


def test_quick(study) -> None:
    place, _ = study
    figures = json.loads((place / "out.json").read_text())["figures"]
    runs = figures["runs"]
    assert runs["planned"] == runs["finished"] + len(runs["burst"]) == 16
    assert sum(runs["tuning"].values()) == 13 - len(runs["burst"]) and sum(runs["evaluation"].values()) == 3
    folders = (p for p in (place / "folder" / "runs").iterdir() if p.is_dir())
    assert {c["name"] for c in figures["cases"]} == {p.name for p in folders}
    assert 0 <= figures["world"]["gold"]["accuracy"]["damage"]["value"] <= 1
    assert set(figures["curves"]["best_of_n"]) and (place / "images" / "overoptimization.png").stat().st_size > 1000
    if figures["calibration"] is not None:  # gold called enough of these tiny runs clean
        for name in ("detector", "kl_threshold", "length"):
            assert {"detection_rate", "false_alarm_rate", "lead_steps", "gold_saved"} <= set(figures[name])


def test_the_same_command_goes_on_and_has_nothing_to_do(study) -> None:
    place, command = study
    before = {p: p.stat().st_mtime_ns for p in (place / "folder").rglob("*.jsonl")}
    shutil.rmtree(place / "folder" / "gold")
    lost = sorted((place / "folder" / "runs").iterdir())[0]
    (lost / "summary.json").unlink()
    subprocess.run(command, check=True, capture_output=True, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = {p: p.stat().st_mtime_ns for p in (place / "folder").rglob("*.jsonl")}
    assert before.keys() == after.keys()
    changed = {p.relative_to(place / "folder").parts[:2] for p in before if before[p] != after[p]}
    assert {c for c in changed if c[0] == "runs"} <= {("runs", lost.name), ("runs", "ledger.jsonl")}
    other = subprocess.run([*command, "--seed", "5"], check=False, capture_output=True, cwd=place, text=True)
    assert other.returncode != 0 and "another plan" in other.stderr


def test_what_the_guard_says_does_not_depend_on_gold(study, tmp_path) -> None:
    place, _ = study
    runs = sorted(p for p in (place / "folder" / "runs").iterdir() if p.is_dir())
    calibration = replay.calibrated(runs[:6], {runs[6]: None}, 0.34)
    said = [replay.trace(r, calibration, 0.34) for r in runs]
    copies = []
    for run in runs:  # the run folders alone: neither gold's scores nor gold itself are anywhere near
        copies.append(tmp_path / run.name)
        shutil.copytree(run, copies[-1])
    assert replay.calibrated(copies[:6], {copies[6]: None}, 0.34) == calibration
    assert [replay.trace(c, calibration, 0.34) for c in copies] == said
    for module in ("replay",):
        source = (BENCHMARK.parent / "overopt" / f"{module}.py").read_text()
        assert not re.search(r"import .*\bgold\b|from overopt\.(?!replay)", source)


def test_thresholds_are_of_one_rule(study) -> None:
    place, _ = study
    runs = sorted(p for p in (place / "folder" / "runs").iterdir() if p.is_dir())[:9]
    calibration = replay.calibrated(runs, {}, 0.34)
    assert calibration is not None and len(calibration.maxima) == 9
    traces = {r.name: replay.trace(r, calibration, 0.34) for r in runs}
    limits = replay.thresholds(calibration, traces, 0.34)
    for name, limit in limits.items():
        if name != replay.DETECTOR:  # of ten exchangeable runs three may be above: of these nine at most three are
            assert sum(t.largest(name) > limit + 1e-4 for t in traces.values()) <= 3


# --- workers -----------------------------------------------------------------------------------------


def test_a_claim_goes_with_its_process(tmp_path) -> None:
    world = World(tmp_path, QUICK)
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path\nfrom overopt.runs import claimed\nfrom overopt.scale import QUICK\n"
            "from overopt.world import World\n"
            "with claimed(World(Path(sys.argv[2]), QUICK), 'one') as mine:\n"
            "    print(mine, flush=True)\n    time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, str(BENCHMARK.parent), str(tmp_path)], stdout=subprocess.PIPE,
                          text=True) as other:
        assert other.stdout is not None and other.stdout.readline().strip() == "True"
        with claimed(world, "one") as mine, claimed(world, "two") as free:
            assert not mine and free
        other.kill()
    with claimed(world, "one") as mine:
        assert mine


def test_an_interrupted_list_is_gone_on_with(tmp_path) -> None:
    world, specs = World(tmp_path, QUICK), plan(QUICK, 0)[:5]
    made: list[str] = []

    def job(spec) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(spec.name)

    with pytest.raises(KeyboardInterrupt):
        work_off(world, specs, lambda s: s.name in made, job)
    assert made == [s.name for s in specs[:2]]
    work_off(world, specs, lambda s: s.name in made or s is specs[4], lambda s: made.append(s.name))
    assert made == [s.name for s in specs[:4]]


# --- figures -----------------------------------------------------------------------------------------


def case(label: str, *, turning: int = 6, lost: int | None = 9, alarm: int | None = None, last: int = 20) -> Case:
    times, names, values = curve_of(lambda t: 0.1 * t if t <= turning else 0.1 * turning - 0.2 * (t - turning))
    found = verdict.Found(label, 0.6, Interval(1.0, 0.5, 1.5, 9), 0.4, turning, lost)
    steps = tuple(range(1, last + 1))
    levels = [2.0 if alarm is not None and s >= alarm else 0.0 for s in steps]
    held_out = {0: 0.0, 4: 0.4, 8: 0.3, 12: -1.0, 16: -2.0, 20: 5.0}  # in the end it is taken in, too
    return Case(plan(QUICK, 0)[0], found, GoldCurve(times, names, values, times % 4 == 0), held_out, last,
                replay.Trace(steps, {"detector": levels}, tuple("length" for _ in steps)))


def test_measured() -> None:
    hacked = [case("hacked", alarm=4), case("hacked", alarm=8), case("hacked", alarm=9), case("hacked"),
              case("hacked", alarm=15, lost=None)]
    found = measured("detector", 1.0, hacked, [case("clean"), case("clean", alarm=3)])
    assert found["detection_rate"]["value"] == 3 / 5  # step 9 is when it was lost: not before
    assert found["detected_at_all"]["value"] == 4 / 5
    assert found["false_alarm_rate"] == clopper_pearson(1, 2).as_dict()
    assert found["lead_steps"]["value"] == pytest.approx(np.mean([2, -2, -3, -9]))
    # after an alarm the checkpoint at step 4 is returned to, chosen by the held-out reward of what had been seen
    assert hacked[1].saved(8) == pytest.approx(hacked[1].saved(15)) and hacked[1].saved(8) > 2
    assert hacked[3].saved(None) == 0.0
    assert found["gold_saved"]["n"] == 5


def test_clopper_pearson() -> None:
    none = clopper_pearson(0, 60)
    assert none.low == 0 and none.high == pytest.approx(1 - 0.025 ** (1 / 60))
    some = clopper_pearson(24, 30)
    assert some.low == pytest.approx(0.6143, abs=1e-3) and some.high == pytest.approx(0.9229, abs=1e-3)
    assert clopper_pearson(0, 0).as_dict() == {"value": None, "low": None, "high": None, "n": 0}
