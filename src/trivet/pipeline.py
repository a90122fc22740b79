"""`trivet run RECIPE`: several stages in order inside one run folder.

    name: demo                      # the run folder is runs/demo unless --out says otherwise
    variables: {data: ../data}      # ${data} below; --set data=PATH changes it
    steps:
      - name: pairs                 # its folder: runs/demo/pairs
        stage: pairs
        with: {input: "${starter.rankings}"}
      - name: reward
        stage: reward
        with: {preferences: "${pairs.train}", heldout: "${pairs.heldout}"}
    quick:                          # what --quick changes: counts only
      reward: {epochs: 0.1}

The whole recipe is checked before its first step starts. Finished steps are skipped, an interrupted one goes on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from trivet import __version__, ledger
from trivet.artifacts import atomic_write, write_json, write_rows
from trivet.config import EMBEDDED, StageConfig, fingerprint, load_yaml, validate, yaml_value
from trivet.errors import TrivetError
from trivet.judge.config import Judging
from trivet.runs import Summary, finished, input_hashes, recorded_fingerprint
from trivet.stages import STAGES, Stage, finish_stage, is_rank_0, run_stage

__all__ = ["Recipe", "RecipeOptions", "Step", "load_recipe", "run_recipe", "run_stage"]

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_CODE = re.compile(r"(?:[\d.]+\*)?([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)")


class RecipeOptions(BaseModel):
    """Options of `trivet run`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    recipe: str
    """A YAML file, or the name of a recipe that comes with Trivet."""
    out: Path | None = None
    """Run folder. Default: runs/NAME."""
    set: list[str] = []
    """Changes: STEP.SETTING=VALUE (such as ppo.stop.steps=20), or VARIABLE=VALUE."""
    quick: bool = False
    """The recipe's small counts: to see that all works, not for figures."""
    overwrite: bool = False
    """Do steps anew whose settings or inputs have changed since."""
    force: bool = False
    """Go on with a model that fails the capability check."""


class CompressOptions(BaseModel):
    """Options of `trivet compress`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    recipe: str = "compress"
    """A recipe whose last step is `tradeoff`: a YAML file, or the name of one that comes with Trivet."""
    model: str = EMBEDDED
    """What is made smaller: a model, or the folder of a run that aligned one. Of a run its policy is taken, with the
    reward that only looked on and the prompts that were held out, so that the table tells what is left of the
    alignment."""
    reward: str | None = None
    """The reward model that scores answers. Default: the run's, where `model` is one."""
    max_latency: float | None = Field(None, gt=0)
    """Choose among those that answer within so many seconds; see `trivet tradeoff --help`."""
    max_size: str | None = None
    """Choose among those of at most this size on the disk, such as 120MB."""
    max_quality_loss: float | None = Field(None, ge=0)
    """Choose among those that lose at most this against the source."""
    out: Path | None = None
    """Run folder. Default: runs/NAME."""
    set: list[str] = []
    """Changes: STEP.SETTING=VALUE, or VARIABLE=VALUE."""
    quick: bool = False
    """The recipe's small counts: to see that all works, not for figures."""
    overwrite: bool = False
    """Do steps anew whose settings or inputs have changed since."""


class Step(BaseModel):
    """One step of a recipe."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    stage: str
    settings: dict[str, Any] = Field(default={}, alias="with")


class Recipe(BaseModel):
    """A recipe, as read from YAML."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    about: str = ""
    variables: dict[str, str] = {}
    steps: list[Step] = Field(min_length=1)
    quick: dict[str, dict[str, Any]] = {}


def shipped() -> dict[str, Path]:
    """The recipes that come with Trivet, by name: in the wheel, or beside the sources."""
    here = Path(__file__).parent
    folder = here / "recipes" if (here / "recipes").is_dir() else here.parents[1] / "recipes"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def starter(name: str) -> str:
    """The path of a file of the starter set: prompts, completions, rankings, harmless."""
    path = Path(__file__).parent / "starter" / f"{name}.jsonl"
    if not path.is_file():
        raise TrivetError(f"the starter set has no {name!r}",
                          mend="use starter.prompts, .completions, .rankings or .harmless")
    return str(path)


def load_recipe(name: str) -> tuple[Recipe, Path, dict[tuple[Any, ...], int]]:
    """A recipe with its file and the lines of its keys. Raises TrivetError for one that does not fit."""
    known = shipped()
    file = known[name] if name in known and not os.path.isfile(name) else Path(name)
    if not os.path.isfile(file):
        raise TrivetError("there is no such recipe", file=file, field="recipe",
                          mend=f"give a YAML file, or one of: {', '.join(known)}")
    values, lines = load_yaml(file)
    recipe = validate(Recipe, values, file=file, lines=lines)
    names = [s.name for s in recipe.steps]
    for i, step in enumerate(recipe.steps):
        line = lines.get(("steps", i, "stage"))
        if step.stage not in STAGES:
            raise TrivetError(f"there is no stage {step.stage!r}", file=file, line=line, field="stage",
                              mend=f"use one of: {', '.join(STAGES)}")
        if step.name == "starter":
            raise TrivetError("a step can't be called 'starter': ${starter.…} is the starter set", file=file,
                              line=lines.get(("steps", i, "name")), field="name", mend="give it another name")
        if step.name in names[:i]:
            raise TrivetError(f"two steps are called {step.name!r}", file=file, line=line, field="name",
                              mend="give each step a name of its own")
    for step_name in recipe.quick:
        if step_name not in names:
            raise TrivetError(f"`quick` names a step {step_name!r} that is not there", file=file,
                              line=lines.get(("quick", step_name)), mend=f"the steps are: {', '.join(names)}")
    return recipe, file, lines


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merge(found[key], value) if both else value
    return found


def apply_changes(recipe: Recipe, changes: list[str]) -> Recipe:
    """`--set` on a recipe. Raises TrivetError for what names neither a step nor a variable."""
    steps = {s.name: s for s in recipe.steps}
    variables = dict(recipe.variables)
    for change in changes:
        key, equals, text = change.partition("=")
        name, *path = key.split(".")
        if not equals:
            raise TrivetError(f"{change!r} is no change", field="set", mend="write STEP.SETTING=VALUE")
        if not path and name in variables:
            variables[name] = text
        elif path and name in steps:
            nested: Any = yaml_value(text)
            for part in reversed(path):
                nested = {part: nested}
            steps[name] = steps[name].model_copy(update={"settings": merge(steps[name].settings, nested)})
        else:
            raise TrivetError(f"{key!r} is neither a step's setting nor a variable", field="set",
                              mend=f"steps: {', '.join(steps)}; variables: {', '.join(variables) or 'none'}")
    return recipe.model_copy(update={"steps": [steps[s.name] for s in recipe.steps], "variables": variables})


def resolve(value: Any, recipe: Recipe, before: list[str], out: Path, *, file: Path, line: int | None,
            strict: bool) -> Any:
    """A setting with its references replaced.

    strict: the steps it refers to have run and their artifacts are looked up; else a stand-in path is given,
    for checking. Raises TrivetError for a reference to what is not there.
    """
    if isinstance(value, dict):
        return {k: resolve(v, recipe, before, out, file=file, line=line, strict=strict) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, recipe, before, out, file=file, line=line, strict=strict) for v in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name = match[1]
        step, dot, kind = name.partition(".")
        if name in recipe.variables:
            return recipe.variables[name]
        if step == "starter" and dot:
            return starter(kind)
        if step not in before or not dot:
            raise TrivetError(f"the reference ${{{name}}} leads nowhere", file=file, line=line,
                              mend=f"use ${{STEP.ARTIFACT}} of an earlier step ({', '.join(before) or 'none yet'}), "
                              "${starter.…} or a variable")
        if not strict:
            known = STAGES[next(s.stage for s in recipe.steps if s.name == step)].artifacts
            if kind not in known:
                raise TrivetError(f"step {step!r} gives no artifact {kind!r}", file=file, line=line,
                                  mend=f"it gives: {', '.join(known)}")
            return str(out / step / kind)
        artifacts = (finished(out / step) or {}).get("artifacts", {})
        if kind not in artifacts:
            raise TrivetError(f"step {step!r} gave no artifact {kind!r}", file=file, line=line,
                              mend=f"it gives: {', '.join(artifacts)}")
        return str(out / step / artifacts[kind]["path"])

    return _REFERENCE.sub(one, value)


def configuration(step: Step, recipe: Recipe, before: list[str], out: Path, options: RecipeOptions, file: Path,
                  lines: dict[tuple[Any, ...], int], *, strict: bool) -> StageConfig:
    """The stage's configuration of a step. Raises TrivetError with file, line and field."""
    place = ("steps", [s.name for s in recipe.steps].index(step.name))
    settings = merge(step.settings, recipe.quick.get(step.name, {})) if options.quick else step.settings
    values = resolve(settings, recipe, before, out, file=file, line=lines.get((*place, "with")), strict=strict)
    kind = STAGES[step.stage].config_type()
    if options.force and "force" in kind.model_fields:
        values["force"] = True
    return validate(kind, values | {"out": str(out / step.name)}, file=file, lines=lines,
                    prefix=(*place, "with"), command=STAGES[step.stage].command)


def run_recipe(options: RecipeOptions) -> dict[str, Any]:
    """Run all steps; returns the figures of the run, which also stand in its summary.json.

    Raises TrivetError before anything starts where the recipe does not fit.
    """
    recipe, file, lines = load_recipe(options.recipe)
    recipe = apply_changes(recipe, options.set)
    out = options.out or _default_out(recipe, options.quick)
    before: list[str] = []
    for step in recipe.steps:
        config = configuration(step, recipe, before, out, options, file, lines, strict=False)
        before.append(step.name)
        for path in _code_paths(config):
            print(f"step {step.name} runs code: {path}")
    if is_rank_0():
        with atomic_write(out / "recipe.yaml") as kept:
            kept.write(f"# {file}, as run by trivet {__version__}{' --quick' if options.quick else ''}\n")
            yaml.safe_dump(recipe.model_dump(by_alias=True), kept, sort_keys=False, allow_unicode=True)
    summaries: dict[str, Summary] = {}
    before = []
    for number, step in enumerate(recipe.steps, 1):
        stage = STAGES[step.stage]
        config = configuration(step, recipe, before, out, options, file, lines, strict=True)
        before.append(step.name)
        print(f"\n[{number}/{len(recipe.steps)}] {step.name}", flush=True)
        if options.overwrite and _changed(stage, config):
            config = config.model_copy(update={"overwrite": True})
        summaries[step.name] = run_stage(stage, config)
        from trivet.report.terminal import print_summary

        print_summary(summaries[step.name], config.out)
        finish_stage(stage, config)  # may end the recipe with exit code 1: `fail_if` of evaluate, a gamed reward
    figures = run_figures(summaries, out)
    if not is_rank_0():
        return figures
    write_json(out / "summary.json", figures)
    from trivet.report.config import ReportConfig
    from trivet.report.page import write_report
    from trivet.report.terminal import print_figures

    page = write_report(ReportConfig(run=out))
    print_figures(figures, page)
    return figures


def run_compress(options: CompressOptions) -> dict[str, Any]:
    """Build the variants of a recipe and weigh them against one another; gives what `run_recipe` does.

    Raises TrivetError before anything starts for a recipe that does not end in `tradeoff`, and as `run_recipe` does.
    """
    recipe, file, lines = load_recipe(options.recipe)
    last = recipe.steps[-1]
    if last.stage != "tradeoff":
        raise TrivetError("this recipe does not end with the stage `tradeoff`", file=file, field="steps",
                          line=lines.get(("steps", len(recipe.steps) - 1, "stage")),
                          mend="end it so, or run it by `trivet run`")
    out = options.out or _default_out(recipe, options.quick)
    given = {"model": options.model} | ({"reward": options.reward} if options.reward is not None else {})
    from trivet.models.source import resolve
    from trivet.report.aligned import aligned, is_run

    if is_run(Path(options.model)):
        found = aligned(Path(options.model))
        given["model"] = str(found.policy)
        print(f"the policy of {options.model}: {found.policy}")
        if options.reward is None and found.reward is not None:
            given["reward"] = str(found.reward)
            print(f"its answers are scored by {found.reward}, " + (
                "which it was not trained on" if found.looked_on else "on which it was trained: what it lost is then "
                "more than what a reader would say it lost"))
        if found.prompts:
            given["prompts"] = str(out / "heldout.jsonl")
            if is_rank_0():
                write_rows(out / "heldout.jsonl", found.prompts)
    else:
        resolve(options.model)  # its faults, before any folder is made
    for name in given:
        if name not in recipe.variables:
            raise TrivetError(f"this recipe has no variable {name!r}", file=file, field="variables",
                              mend=f"add `{name}: …` under `variables`, and use ${{{name}}} in its steps")
    limits = {name: value for name in ("max_latency", "max_size", "max_quality_loss")
              if (value := getattr(options, name)) is not None}
    return run_recipe(RecipeOptions(
        recipe=options.recipe, out=out, quick=options.quick, overwrite=options.overwrite,
        set=[*(f"{k}={v}" for k, v in given.items()), *(f"{last.name}.{k}={v}" for k, v in limits.items()),
             *options.set]))


def _default_out(recipe: Recipe, quick: bool) -> Path:
    return Path("runs") / (recipe.name + ("-quick" if quick else ""))


def _changed(stage: Stage, config: StageConfig) -> bool:
    found = recorded_fingerprint(config.out)
    return found is not None and found != fingerprint(stage.name, config, input_hashes(config))


def _code_paths(config: StageConfig) -> list[str]:
    named = getattr(config, "reward", [])
    named = list(named) if isinstance(named, list) else [named] if named else []
    named += [part.by for _, part in config if isinstance(part, Judging) and part.by is not None]
    return [m[1] for m in map(_CODE.fullmatch, named) if m]


def run_figures(summaries: dict[str, Summary], out: Path) -> dict[str, Any]:
    """The figures a run is judged by, out of its steps' summaries; `seconds` and `steps` by step."""
    figures: dict[str, Any] = {"schema_version": 1, "trivet": __version__}
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries.values():
        by_stage.setdefault(summary.stage, []).append(summary.model_dump(mode="json"))
    # the first reward model is the one that trains the policy; later ones only look on
    for reward in by_stage.get("reward", [])[:1]:
        figures["reward_accuracy"] = reward["accuracy"]
        figures["length_baseline"] = max(
            (reward[k] for k in ("longer_wins", "shorter_wins") if reward[k]), key=lambda i: i["value"], default=None)
    for ppo in by_stage.get("ppo", [])[-1:]:
        for key in ("reward_before", "reward_after", "reward_gain", "second_reward_gain", "length_before",
                    "length_after", "length_gain", "kl", "stop", "tokens_per_second"):
            figures[key] = ppo[key]
        figures["guard"] = ppo.get("guard")
    figures["seconds"] = {name: s.seconds for name, s in summaries.items()}
    figures["steps"] = {name: s.stage for name, s in summaries.items()}
    figures["peak_memory_bytes"] = max((e.peak_memory_bytes for e in ledger.read(out / "ledger.jsonl")), default=0)
    return figures
