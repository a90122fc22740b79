"""What a run folder holds, read for the report. Reads only: no torch, nothing is computed that costs anything.

Not covered: folders of other layouts, and checkpoints.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from trivet import ledger
from trivet.artifacts import first_turn, read_json
from trivet.errors import TrivetError
from trivet.ledger import Entry
from trivet.runs import finished

Rows = list[dict[str, Any]]
ANSWER = ("id", "step", "messages", "completion", "score", "kl", "tokens", "ended")
_RESAMPLES = 2000


@dataclass(frozen=True)
class StageRun:
    """One stage's folder. `summary` is None until the stage is finished."""

    name: str
    stage: str
    folder: Path
    summary: dict[str, Any] | None
    config: dict[str, Any]
    config_text: str
    metrics: Rows
    state: dict[str, Any]
    cost: Entry | None
    """Its line of the ledger."""

    @property
    def seconds(self) -> float:
        """Wall-clock time so far."""
        return self.cost.seconds if self.cost else float((self.summary or self.state).get("seconds", 0.0))

    @property
    def fingerprint(self) -> str:
        return str((self.summary or self.state).get("fingerprint", ""))

    def setting(self, *place: str) -> Any:
        """A setting of the resolved configuration, None where there is none."""
        found: Any = self.config
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def artifact(self, kind: str) -> Path | None:
        """The path of an artifact that is still there."""
        known = (self.summary or {}).get("artifacts", {}).get(kind)
        path = self.folder / known["path"] if known else None
        return path if path is not None and path.exists() else None

    @cached_property
    def answers(self) -> dict[int, Rows]:
        """The answers to the fixed prompts, by the step of the evaluation (of a ppo stage)."""
        found: dict[int, Rows] = {}
        for path in sorted((self.folder / "evaluations").glob("step-*.jsonl")):
            if answers := rows(path, ANSWER):
                found[int(answers[0]["step"])] = answers
        return dict(sorted(found.items()))

    def progress(self) -> str:
        """How far an unfinished stage is, in words."""
        if not self.metrics:
            return "no step is logged yet"
        last = self.metrics[-1]
        done = f"step {last.get('step', len(self.metrics))}"
        if self.stage == "ppo":
            total = self.setting("stop", "steps")
            return f"{done} of at most {total}" if total else done
        epochs = self.setting("epochs")
        return f"{done}, epoch {last['epoch']:.2g} of {epochs:g}" if "epoch" in last and epochs else done


@dataclass(frozen=True)
class RunFolder:
    """A run: its stages in order. `single`: the folder is one stage's own."""

    folder: Path
    stages: tuple[StageRun, ...]
    summary: dict[str, Any] | None
    single: bool

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def unfinished(self) -> list[StageRun]:
        return [s for s in self.stages if s.summary is None]

    def of(self, stage: str) -> list[StageRun]:
        """The stages of a kind."""
        return [s for s in self.stages if s.stage == stage]

    def maker(self, model: str | None) -> StageRun | None:
        """The stage that made what stands at a path; None where no stage of this run did."""
        path = Path(model or "")
        homes = {Path(str(s.setting("out"))).parent for s in self.stages if s.setting("out")}
        for stage in self.stages if model else ():
            for known in (stage.summary or {}).get("artifacts", {}).values():
                made = (stage.folder / known["path"]).absolute()
                # after the run folder was moved its paths still agree among themselves
                moved = path.parts[-2:] == made.parts[-2:] and path.parent.parent in homes
                if moved or path.resolve() == made.resolve():
                    return stage
        return None

    def behind(self, spec: str | None) -> StageRun | None:
        """The reward stage of this run whose reward model, which is still there, a setting names."""
        stage = self.maker((spec or "").rpartition("*")[2])
        return stage if stage is not None and stage.stage == "reward" and stage.artifact("reward") else None


def read_run(folder: Path) -> RunFolder:
    """The run, or the one stage, in a folder. Raises TrivetError for a folder that holds none."""
    if not folder.exists():
        raise TrivetError("there is no such folder", file=folder, field="run",
                          mend="give a run folder, such as runs/demo, or one stage's folder in it")
    if not folder.is_dir():
        raise TrivetError("this is a file, not a run folder", file=folder, field="run",
                          mend=f"give the folder: {folder.parent}")
    if stage_name(folder) is not None:
        costs = {e.name: e for e in ledger.read(folder.resolve().parent / "ledger.jsonl")}
        return RunFolder(folder, (read_stage(folder, costs),), None, single=True)
    costs = {e.name: e for e in ledger.read(folder / "ledger.jsonl")}
    found = {p.name for p in folder.iterdir() if p.is_dir() and stage_name(p) is not None}
    if not found:
        raise TrivetError(
            "this folder holds no run of Trivet", file=folder, field="run",
            mend="give a folder that `trivet run` or a stage has written: it holds step folders with config.yaml "
            "and, once finished, summary.json")
    summary = finished(folder)
    steps = (summary or {}).get("steps")
    # the recipe's order where it is known, then the order of finishing, then what is not finished
    known = dict.fromkeys([*(steps if isinstance(steps, dict) else ()), *costs, *sorted(found)])
    return RunFolder(folder, tuple(read_stage(folder / n, costs) for n in known if n in found), summary, single=False)


def stage_name(folder: Path) -> str | None:
    """Which stage a folder belongs to, None where it is no stage's."""
    for name in ("summary.json", ".state.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            if isinstance(found, dict) and isinstance(found.get("stage"), str):
                return str(found["stage"])
    config = folder / "config.yaml"
    if config.is_file():
        words = config.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].replace(",", "").split()
        if words[:2] == ["#", "trivet"] and words[-2:] == ["as", "resolved"]:
            return words[2]
    return None


def read_stage(folder: Path, costs: dict[str, Entry]) -> StageRun:
    """One stage's folder; whatever is not there yet is empty."""
    text, state = "", {}
    if (folder / "config.yaml").is_file():
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    if (folder / ".state.json").is_file():
        state = read_json(folder / ".state.json")
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise TrivetError(f"broken YAML: {getattr(error, 'problem', error)}", file=folder / "config.yaml",
                          mend="this file is the stage's own record: run the stage again") from None
    summary, name = finished(folder), folder.resolve().name
    return StageRun(
        name=name, stage=stage_name(folder) or "", folder=folder, summary=summary,
        config=config if isinstance(config, dict) else {}, config_text=text, metrics=rows(folder / "metrics.jsonl"),
        state=state, cost=costs.get(name) if summary is not None else None)


def rows(path: Path, needed: Sequence[str] = ()) -> Rows:
    """The objects of a log; empty where there is no file. A torn last line, an interrupted write, is left out.

    Raises TrivetError for any other line that is no JSON object or lacks a field of `needed`.
    """
    if not path.is_file():
        return []
    found: Rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise TrivetError(f"broken JSON: {error.msg}", file=path, line=number,
                              mend="delete this line, or run the stage again") from None
        lacking = [f for f in needed if f not in value] if isinstance(value, dict) else ["an object"]
        if lacking:
            raise TrivetError("this line is not what the stage writes", file=path, line=number, field=lacking[0],
                              expected=f"an object with {', '.join(needed) or 'figures'}",
                              mend="delete this line, or run the stage again")
        found.append(value)
    return found


def phases(stage: StageRun) -> tuple[int, dict[str, float]]:
    """Response tokens of a ppo stage's rollouts, and seconds by phase, over all its steps."""
    logged = rows(stage.folder / "timing.jsonl")
    names = dict.fromkeys(k for r in logged for k in r if k not in {"step", "tokens"})
    return sum(r.get("tokens", 0) for r in logged), {n: sum(r.get(n, 0.0) for r in logged) for n in names}


def judges(run: RunFolder, ppo: StageRun | None) -> list[tuple[StageRun, str]]:
    """Reward stages with their part in the run, those that train the policy first."""
    trains = [run.behind(s) for s in (ppo.setting("reward") or [])] if ppo else []
    looks = run.behind(ppo.setting("evaluation", "reward")) if ppo else None
    found = [(s, "trains the policy" if s in trains else "only looks on" if s is looks else "")
             for s in run.of("reward")]
    return sorted(found, key=lambda pair: ("trains the policy", "", "only looks on").index(pair[1]))


def same_reward(ppo: StageRun) -> bool:
    """Whether the second reward is one that the policy was trained on."""
    second = ppo.setting("evaluation", "reward")
    return second is not None and str(second).rpartition("*")[2] in {
        str(s).rpartition("*")[2] for s in ppo.setting("reward") or []}


# --- the answers to the fixed prompts -------------------------------------------------------------------


def prompt_of(row: dict[str, Any]) -> str:
    """The prompt's id of an answer: its own is `prompt/j`."""
    return str(row["id"]).rpartition("/")[0] or str(row["id"])


def by_prompt(answers: Rows, field: str) -> dict[str, float]:
    """Means of a figure by prompt."""
    groups: dict[str, list[float]] = {}
    for row in answers:
        if row.get(field) is not None:
            groups.setdefault(prompt_of(row), []).append(float(row[field]))
    return {k: statistics.fmean(v) for k, v in groups.items()}


def mean_interval(answers: Rows, field: str) -> dict[str, Any] | None:
    """The mean of a figure with its 95% interval over prompts; None where no answer has it."""
    from trivet.intervals import bootstrap_mean

    values = by_prompt(answers, field)
    if not values:
        return None
    return bootstrap_mean(list(values.values()), list(values), resamples=_RESAMPLES).as_dict()


def compare(before: Rows, after: Rows) -> dict[str, Any]:
    """The figures of PPO's summary (gains paired by prompt), for a run that has not written its own yet."""
    from trivet.intervals import paired_bootstrap

    figures: dict[str, Any] = {}
    for name, field in (("reward", "score"), ("second_reward", "second"), ("length", "tokens")):
        old, new = by_prompt(before, field), by_prompt(after, field)
        prompts = sorted(old.keys() & new.keys())
        if not prompts:
            continue
        kept = set(prompts)
        figures[f"{name}_before"] = mean_interval([r for r in before if prompt_of(r) in kept], field)
        figures[f"{name}_after"] = mean_interval([r for r in after if prompt_of(r) in kept], field)
        figures[f"{name}_gain"] = paired_bootstrap(
            [new[p] for p in prompts], [old[p] for p in prompts], prompts, resamples=_RESAMPLES).as_dict()
    figures["kl"] = statistics.fmean(float(r["kl"]) for r in after)
    return figures


def mean(answers: Rows, field: str) -> float:
    """The mean of a figure over answers."""
    return statistics.fmean(float(r[field]) for r in answers)


def ppo_figures(ppo: StageRun) -> dict[str, Any]:
    """The summary's figures; of an unfinished run those of its latest evaluation, if it is not the first."""
    if ppo.summary is not None:
        return ppo.summary
    last = max(ppo.answers, default=0)
    return compare(ppo.answers[0], ppo.answers[last]) | {"steps": last} if last and 0 in ppo.answers else {}


def returned_to(ppo: StageRun) -> int | None:
    """The step whose policy the guard put back; None where it did not."""
    back = ((ppo.summary or {}).get("guard") or {}).get("returned_to")
    return None if back is None else int(back)


def exported_step(ppo: StageRun) -> int:
    """The step of the policy that the run's figures are of: the last one evaluated, unless the guard went back."""
    back = returned_to(ppo)
    return max(ppo.answers, default=0) if back is None else back


def side_by_side(before: Rows, after: Rows) -> Rows:
    """First answers before and after, one a prompt, by falling gain of these two answers (ties by id)."""
    first: dict[str, dict[str, Any]] = {}
    for row in before:
        first.setdefault(prompt_of(row), row)
    last: dict[str, dict[str, Any]] = {}
    for row in after:
        last.setdefault(prompt_of(row), row)
    both = [{"id": p, "messages": first[p]["messages"], "before": first[p], "after": last[p],
             "gain": float(last[p]["score"]) - float(first[p]["score"])} for p in first.keys() & last.keys()]
    both.sort(key=lambda pair: (-pair["gain"], pair["id"]))
    return [pair | {"rank": rank} for rank, pair in enumerate(both, 1)]


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` places at equal steps through `count`, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def shared_prompts(one: StageRun, other: StageRun) -> int | None:
    """How many first turns the training pairs of two reward models share; None where that can't be seen."""
    turns = []
    for stage in (one, other):
        path = Path(str(stage.setting("preferences")))
        if path.suffix != ".jsonl" or not path.is_file():
            path = stage.folder.parent / Path(*path.parts[-2:])  # the run folder was moved
        if path.suffix != ".jsonl" or not path.is_file():
            return None
        turns.append({_first_turn(r["prompt"]) for r in rows(path, ("prompt",))})
    return len(turns[0] & turns[1])


def _first_turn(messages: list[dict[str, str]]) -> str:
    from trivet.artifacts import Message

    return first_turn([Message(role="user" if m.get("role") == "user" else "assistant",
                               content=str(m.get("content", ""))) for m in messages]).strip()
