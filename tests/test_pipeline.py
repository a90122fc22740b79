"""Recipes: checked whole before anything starts, run in order, skipped when finished."""

from __future__ import annotations

import json

import pytest
import yaml

from trivet.errors import TrivetError
from trivet.pipeline import RecipeOptions, apply_changes, load_recipe, merge, run_recipe, shipped


@pytest.fixture
def recipe(tmp_path, tiny_model_folder, jsonl):
    """A whole road on a tiny model: rankings, two reward models, PPO."""
    from conftest import preference_rows

    pairs = jsonl("pairs.jsonl", preference_rows(30))
    prompts = jsonl("prompts.jsonl", [{"id": f"p{i}", "messages": r["prompt"]} for i, r in
                                      enumerate(preference_rows(30, k=2))])
    small = {"model": str(tiny_model_folder), "device": {"threads": 1}}
    reward = small | {"heldout": "${pairs.heldout}", "optimizer": {"lr": 0.01},
                      "calibration": {"answers": 6, "sampling": {"temperature": 0.7, "max_new_tokens": 8}}}
    values = {
        "name": "tiny", "variables": {"pairs": str(pairs)},
        "steps": [
            {"name": "pairs", "stage": "pairs", "with": {"input": "${pairs}", "heldout": 0.25}},
            {"name": "halves", "stage": "pairs", "with": {"input": "${pairs.train}", "heldout": 0.4, "seed": 1}},
            {"name": "reward", "stage": "reward", "with": reward | {"preferences": "${halves.train}"}},
            {"name": "second", "stage": "reward", "with": reward | {"preferences": "${halves.heldout}"}},
            {"name": "ppo", "stage": "ppo", "with": small | {
                "prompts": str(prompts), "reward": ["${reward.reward}"], "check": False, "rollout": 4,
                "sampling": {"max_new_tokens": 8}, "stop": {"steps": 3},
                "evaluation": {"share": 0.25, "every": 2, "reward": "${second.reward}"}}},
        ],
        "quick": {"ppo": {"stop": {"steps": 1}}},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_a_recipe_runs_and_is_not_run_twice(recipe, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    figures = run_recipe(RecipeOptions(recipe=str(recipe), out=out))
    for key in ("reward_accuracy", "reward_before", "reward_after", "reward_gain", "second_reward_gain"):
        assert set(figures[key]) == {"value", "low", "high", "n"}
    assert figures["stop"] == "steps"
    assert list(figures["seconds"]) == ["pairs", "halves", "reward", "second", "ppo"]
    assert json.loads((out / "summary.json").read_text()) == figures
    assert (out / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    again = run_recipe(RecipeOptions(recipe=str(recipe), out=out))
    assert capsys.readouterr().out.count("nothing to do") == 5
    assert again == figures


def test_a_changed_step_is_refused_until_told(recipe, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    run_recipe(RecipeOptions(recipe=str(recipe), out=out, quick=True))
    change = ["ppo.clip=0.3"]
    with pytest.raises(TrivetError, match="clip differs"):
        run_recipe(RecipeOptions(recipe=str(recipe), out=out, quick=True, set=change))
    capsys.readouterr()
    run_recipe(RecipeOptions(recipe=str(recipe), out=out, quick=True, set=change, overwrite=True))
    assert capsys.readouterr().out.count("nothing to do") == 4


@pytest.mark.parametrize(("change", "words"), [
    (lambda v: v["steps"][2].update(stage="rewards"), "no stage"),
    (lambda v: v["steps"][1].update(name="pairs"), "two steps"),
    (lambda v: v["steps"][0]["with"].update(input="${ppo.policy}"), "leads nowhere"),
    (lambda v: v["steps"][2]["with"].update(preferences="${nope}"), "leads nowhere"),
    (lambda v: v["steps"][2]["with"].update(preferences="${halves.trains}"), "it gives: train, heldout"),
    (lambda v: v["steps"][4]["with"].update(clop=0.2), "not known"),
    (lambda v: v["steps"][4]["with"]["stop"].update(steps=-1), "greater than"),
    (lambda v: v.update(quick={"nope": {}}), "names a step"),
    (lambda v: v.update(steps=[]), "at least 1"),
])
def test_a_recipe_is_checked_before_anything_starts(recipe, tmp_path, change, words) -> None:
    values = yaml.safe_load(recipe.read_text())
    change(values)
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(TrivetError, match=words) as error:
        run_recipe(RecipeOptions(recipe=str(recipe), out=tmp_path / "run"))
    assert error.value.line is not None
    assert not (tmp_path / "run").exists()


def test_changes(recipe) -> None:
    loaded, _, _ = load_recipe(str(recipe))
    changed = apply_changes(loaded, ["ppo.stop.steps=7", "pairs=elsewhere.jsonl"])
    assert changed.steps[4].settings["stop"]["steps"] == 7
    assert changed.variables["pairs"] == "elsewhere.jsonl"
    with pytest.raises(TrivetError, match="neither"):
        apply_changes(loaded, ["nope.x=1"])
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_code_in_a_recipe_is_named_before_it_runs(recipe, tmp_path, capsys) -> None:
    options = RecipeOptions(recipe=str(recipe), out=tmp_path / "run", set=["ppo.reward=[no_such:thing]"])
    with pytest.raises(TrivetError, match="can't be imported"):
        run_recipe(options)
    out = capsys.readouterr().out
    assert out.index("step ppo runs code: no_such:thing") < out.index("[1/5]")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_fit(name, tmp_path) -> None:
    """Every shipped YAML is checked here; tests/roads runs them."""
    from trivet.pipeline import configuration

    recipe, file, lines = load_recipe(name)
    for quick in (False, True):
        before: list[str] = []
        for step in recipe.steps:
            options = RecipeOptions(recipe=name, quick=quick)
            configuration(step, recipe, before, tmp_path, options, file, lines, strict=False)
            before.append(step.name)


def test_all_ranks_end_with_the_code_of_rank_0(monkeypatch) -> None:
    from trivet import stages
    from trivet.training import ranks

    class Other(ranks.Ranks):
        rank, world = 1, 2

        def broadcast(self, value):
            assert value is None
            return 1

    monkeypatch.setattr(ranks, "_here", Other())
    with pytest.raises(SystemExit) as stopped:
        stages.at_rank_0(lambda: pytest.fail("this is rank 0's to do"))
    assert stopped.value.code == 1
