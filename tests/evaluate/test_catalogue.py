"""Drawing items: by the seed, over all topics, and a smaller draw is part of a larger one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trivet.errors import TrivetError
from trivet.evaluate.catalogue import SUITES, chosen, draw, notes
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.run import plan


@dataclass(frozen=True)
class Item:
    id: str
    topic: str


@dataclass(frozen=True)
class Bare:
    id: str


ITEMS = [Item(f"{topic}{i}", topic) for topic, n in (("large", 80), ("small", 2), ("middle", 10)) for i in range(n)]


@pytest.mark.parametrize(("size", "counts"), [
    (3, [1, 1, 1]), (6, [2, 2, 2]), (12, [5, 2, 5]), (30, [18, 2, 10]), (92, [80, 2, 10])])
def test_a_draw_covers_topics(size, counts):
    drawn = draw(ITEMS, size, 0)
    assert [sum(i.topic == t for i in drawn) for t in ("large", "small", "middle")] == counts
    assert drawn == sorted(drawn, key=ITEMS.index)


def test_a_draw_grows_with_its_size_and_depends_on_the_seed():
    assert set(draw(ITEMS, 6, 0)) < set(draw(ITEMS, 7, 0)) < set(draw(ITEMS, 30, 0))
    assert draw(ITEMS, 6, 0) != draw(ITEMS, 6, 1)
    assert draw(ITEMS, None, 0) == draw(ITEMS, 99, 0) == ITEMS


def test_items_without_topics_are_drawn_alike():
    items = [Bare(str(i)) for i in range(10)]
    times = [sum(item in draw(items, 3, seed) for seed in range(1000)) for item in items]
    assert all(240 < n < 360 for n in times)  # 300 are expected; the deviation is 14.5


@pytest.mark.parametrize("size", [20, 100])
def test_the_unknown_suite_asks_as_many_controls_as_others(size):
    from trivet.evaluate.config import EvaluateConfig
    from trivet.evaluate.suites import unknown

    for seed in range(3):
        kinds = [item.kind for item in draw(unknown.read(EvaluateConfig()), size, seed)]
        assert kinds.count("known") == size / 2
        counts = [kinds.count(k) for k in ("private", "future", "premise", "invented", "context")]
        assert max(counts) - min(counts) <= 1, counts


def test_which_suites_are_run(tmp_path):
    own = [s.name for s in SUITES.values() if s.own]
    found, left_out = chosen(["standard"], None)
    assert [s.name for s in found] == own and set(left_out) == set(SUITES) - set(own)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").touch()
    found, left_out = chosen(["standard"], tmp_path)
    assert {s.name for s in found} == {*own, "gsm8k"} and "truthfulqa/mc_task.json" in left_out["truthfulqa"]
    with pytest.raises(TrivetError, match="give their folder by --data"):
        chosen(["gsm8k"], None)
    with pytest.raises(TrivetError, match="did you mean 'attacks'"):
        chosen(["atacks"], None)


def test_what_is_asked_for_want_of_data_is_said(tmp_path):
    suites = chosen(["standard"], None)[0]
    assert notes(suites, None) == [
        "Without --data, Trivet's own questions were asked in: prompts, attacks, refusals, text."]
    assert notes([SUITES["unknown"]], None) == [] == notes([SUITES["unknown"]], tmp_path)
    (tmp_path / "red-instruct").mkdir()
    (tmp_path / "red-instruct" / "harmfulqa.json").touch()
    assert notes([SUITES["refusals"], SUITES["attacks"]], tmp_path) == [
        f"refusals: xstest/xstest_prompts.csv is not in {tmp_path}: own questions were asked.",
        f"attacks: of its files only red-instruct/harmfulqa.json is in {tmp_path}."]
    for file in SUITES["attacks"].data:
        (tmp_path / file).touch()
    assert notes([SUITES["attacks"]], tmp_path) == []


def test_a_data_folder_that_is_none_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, why in (("nowhere", "no such folder"), ("file", "a file, not a folder")):
        with pytest.raises(TrivetError, match=why) as error:
            plan(EvaluateConfig(suites=["text"], data=tmp_path / name))
        assert error.value.field == "data" and error.value.file == tmp_path / name


def test_a_limit_takes_the_place_of_the_standard_count():
    name, standard = "instructions", SUITES["instructions"].standard
    counts = {limit: len(plan(EvaluateConfig(suites=[name], limit=limit)).items[name])
              for limit in (None, standard - 1, standard + 7)}
    assert counts == {None: standard, standard - 1: standard - 1, standard + 7: standard + 7}
    everything = len(plan(EvaluateConfig(suites=["text"], full=True)).items["text"])
    assert len(plan(EvaluateConfig(suites=["text"], limit=10_000)).items["text"]) == everything
