"""What a run has aligned: its policy, the reward that only looked on, and the prompts that it held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trivet.artifacts import Message, Prompt
from trivet.errors import TrivetError
from trivet.report.read import prompt_of, read_run
from trivet.runs import MODEL_FILES


@dataclass(frozen=True)
class Aligned:
    """Paths and prompts; the reward is None where the run has none that is still there."""

    policy: Path
    reward: Path | None
    looked_on: bool
    """The policy was not trained on this reward."""
    prompts: list[Prompt]


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, and no model's."""
    return path.is_dir() and not any((path / f).is_file() for f in MODEL_FILES) and \
        ((path / "ledger.jsonl").is_file() or (path / "recipe.yaml").is_file())


def aligned(folder: Path) -> Aligned:
    """The last policy of a run. Raises TrivetError for a run without a finished one."""
    run = read_run(folder)
    finished = [s for s in run.of("ppo") if s.artifact("policy") is not None]
    if not finished:
        raise TrivetError("this run has no finished policy", file=folder, field="model",
                          expected="a run with a step of the stage `ppo`",
                          mend="finish it by the same command, or give a model's folder")
    ppo = finished[-1]
    policy = ppo.artifact("policy")
    assert policy is not None
    second = run.behind(ppo.setting("evaluation", "reward"))
    trained = [s for spec in ppo.setting("reward") or [] if (s := run.behind(str(spec))) is not None]
    judge = second or (trained[0] if trained else None)
    first = next(iter(ppo.answers.values()), [])
    prompts = {prompt_of(row): Prompt(id=prompt_of(row), messages=[Message.model_validate(m) for m in row["messages"]])
               for row in first}
    return Aligned(policy, judge.artifact("reward") if judge is not None else None,
                   judge is not None and judge not in trained, list(prompts.values()))
