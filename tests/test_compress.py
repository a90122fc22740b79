"""`trivet compress`: a recipe that builds variants and weighs them; of a run its policy, reward and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import WORDS
from trivet.cli import main
from trivet.compress import tradeoff, tradeoff_worker
from trivet.errors import TrivetError
from trivet.pipeline import RecipeOptions, apply_changes, configuration, load_recipe
from trivet.report.aligned import aligned, is_run

RECIPE = """\
name: small
variables: {model: m, reward: "", prompts: ""}
steps:
  - name: weigh
    stage: tradeoff
    with:
      model: "${model}"
      reward: "${reward}"
      prompts: "${prompts}"
      variants: ["%s"]
      limit: 2
      kl_tokens: 8
      speed: {batches: [1], prompts: [8], new_tokens: 2, rounds: 1}
      sampling: {max_new_tokens: 2}
      device: {threads: 1}
"""


def test_the_shipped_recipe_fits_with_and_without_quick(tmp_path: Path) -> None:
    for quick in (False, True):
        recipe, file, lines = load_recipe("compress")
        recipe = apply_changes(recipe, ["model=runs/demo/ppo/policy"])
        options, before = RecipeOptions(recipe="compress", quick=quick), []
        for step in recipe.steps:
            config = configuration(step, recipe, before, tmp_path, options, file, lines, strict=False)
            before.append(step.name)
        assert recipe.steps[-1].stage == "tradeoff"
        assert config.reward is None and config.prompts is None and config.model == "runs/demo/ppo/policy"
        assert len(config.variants) == len(config.names) == 8
        assert set(recipe.quick) == {s.name for s in recipe.steps}


def test_a_run_is_compressed_with_its_reward_and_its_prompts(make_tiny, tmp_path: Path, preference_files, jsonl,
                                                             monkeypatch, capsys) -> None:
    monkeypatch.setattr(tradeoff, "isolated",
                        lambda module, job, file: json.loads(json.dumps(tradeoff_worker.work(job))))
    tiny, run = make_tiny(tmp_path / "m"), tmp_path / "runs" / "demo"
    fast = ["--device.threads", "1", "--optimizer.lr", "1e-2"]
    for seed, name in enumerate(("reward", "second")):
        main(["reward", "--preferences", str(preference_files[0]), "--model", str(tiny), "--out", str(run / name),
              "--tune", "head", "--epochs", "0.1", "--calibration.answers", "2", "--seed", str(seed),
              "--calibration.sampling.max-new-tokens", "4", *fast])
    assert is_run(run) and not is_run(tiny)
    with pytest.raises(TrivetError, match="no finished policy"):
        aligned(run)
    prompts = jsonl("p.jsonl", [{"id": f"q{i}", "prompt": f"Question {i}: is {WORDS[i % 10]}?"} for i in range(12)])
    main(["ppo", "--prompts", str(prompts), "--model", str(tiny), "--reward", str(run / "reward" / "reward"),
          "--evaluation.reward", str(run / "second" / "reward"), "--evaluation.share", "0.4", "--no-check", "--rollout",
          "2", "--stop.steps", "1", "--sampling.max-new-tokens", "4", "--out", str(run / "ppo"), *fast])
    found = aligned(run)
    assert found.policy == run / "ppo" / "policy" and found.reward == run / "second" / "reward" and found.looked_on
    held = {json.loads(line)["id"].rpartition("/")[0]
            for line in next((run / "ppo" / "evaluations").glob("*.jsonl")).read_text().splitlines()}
    assert {p.id for p in found.prompts} == held and 0 < len(held) < 12
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE % tiny)
    out = tmp_path / "out"
    main(["compress", str(recipe), "--model", str(run), "--out", str(out), "--max-size", "1GB"])
    table = json.loads((out / "weigh" / "tradeoff.json").read_text())
    assert table["reward"] == str(run / "second" / "reward")
    assert any(m["key"] == "helpful.reward" for m in table["rows"][1]["measures"])
    answered = (out / "weigh" / "asked" / "01-m" / "answers" / "tradeoff.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in answered} <= held
    assert json.loads((out / "weigh" / "pick.json").read_text())["pick"]
    assert "which it was not trained on" in capsys.readouterr().out
    assert (out / "report.html").is_file()
