"""Which stages there are: a name, where its configuration and its work are, and what it does, in a line.

Strings, so that `trivet --help` and a recipe's check load neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trivet.config import StageConfig
    from trivet.runs import Summary


@dataclass(frozen=True)
class Stage:
    """A command of the road. `config` and `work` are `module:name`."""

    name: str
    help: str
    config: str
    work: str
    summary: str
    artifacts: tuple[str, ...]
    """What it hands on, by the names that a recipe refers to."""
    trains: bool = False
    """Whether processes that torchrun started share its work; the work of any other stage is rank 0's."""
    typed: str = ""
    """What a person types, where that is not the name."""
    finish: str = ""
    """A function of the configuration, `module:name`, that follows at a terminal and in a recipe: it shows the result,
    and may end the program with an exit code of its own."""

    @property
    def command(self) -> str:
        """What follows `trivet` on the command line."""
        return self.typed or self.name

    def config_type(self) -> type[StageConfig]:
        """The configuration class; imports no torch."""
        found: type[StageConfig] = load(self.config)
        return found


STAGES = {s.name: s for s in (
    Stage("sample", "several answers of a model to each prompt", "trivet.generate.config:SampleConfig",
          "trivet.generate.sample:run", "trivet.generate.sample:SampleSummary", ("completions",)),
    Stage("pairs", "rankings or the field's formats become preference pairs",
          "trivet.feedback.config:PairsConfig", "trivet.feedback.pairs:run",
          "trivet.feedback.pairs:PairsSummary", ("train", "heldout", "rankings")),
    Stage("check", "can this model answer such prompts at all?", "trivet.evaluate.config:CheckConfig",
          "trivet.evaluate.capability:run", "trivet.evaluate.capability:CheckSummary", ("evidence",)),
    Stage("redteam", "attack a model, with prompts from files and grown from topics: how often does it go along?",
          "trivet.constitution.redteam_config:RedteamConfig", "trivet.constitution.redteam:run",
          "trivet.constitution.redteam:RedteamSummary",
          ("attacks", "train", "heldout", "answers", "scores", "questions", "results", "table"),
          typed="constitution redteam", finish="trivet.constitution.redteam_table:finish"),
    Stage("revise", "answers critiqued and revised by principles: data for sft",
          "trivet.constitution.revise_config:ReviseConfig", "trivet.constitution.revise:run",
          "trivet.constitution.revise:ReviseSummary", ("sft", "preferences", "traces", "results"),
          typed="constitution revise", finish="trivet.constitution.revise_table:finish"),
    Stage("sft", "fine-tune a model on answers", "trivet.policy.config:SFTConfig",
          "trivet.policy.sft:run", "trivet.policy.sft:SFTSummary", ("model",), trains=True),
    Stage("reward", "train a reward model on preference pairs", "trivet.reward.config:RewardConfig",
          "trivet.reward.train:run", "trivet.reward.train:RewardSummary", ("reward", "evaluation"), trains=True),
    Stage("audit", "does a reward prefer worse answers? Contrast sets, made by rule",
          "trivet.reward.config:AuditConfig", "trivet.reward.audit:run",
          "trivet.reward.audit:AuditSummary", ("audit", "pairs", "worst"), typed="reward audit",
          finish="trivet.reward.audit_table:finish"),
    Stage("score", "score answers with a reward model", "trivet.judge.config:ScoreConfig",
          "trivet.judge.score:run", "trivet.judge.score:ScoreSummary", ("scores",)),
    Stage("ppo", "align a model to a reward, with KL to the frozen reference",
          "trivet.policy.config:PPOConfig", "trivet.policy.ppo:run",
          "trivet.policy.ppo:PPOSummary", ("policy", "model"), trains=True),
    Stage("dpo", "align a model to preference pairs directly, without a reward model",
          "trivet.policy.dpo_config:DPOConfig", "trivet.policy.dpo:run",
          "trivet.policy.dpo:DPOSummary", ("policy", "model", "evaluation"), trains=True),
    Stage("distill", "a smaller student learns from a frozen teacher: soft labels and hard ones",
          "trivet.compress.distill_config:DistillConfig", "trivet.compress.distill:run",
          "trivet.compress.distill:DistillSummary", ("model", "logits", "evaluation"), trains=True),
    Stage("prefer", "preference pairs by AI feedback: a judge compares answers by principles",
          "trivet.constitution.prefer_config:PreferConfig", "trivet.constitution.prefer:run",
          "trivet.constitution.prefer:PreferSummary",
          ("preferences", "completions", "comparisons", "people", "agreement"), typed="constitution prefer"),
    Stage("prune", "remove weights, blocks, channels or heads of a model: what is smaller, and what it cost",
          "trivet.compress.prune_config:PruneConfig", "trivet.compress.prune:run",
          "trivet.compress.prune:PruneSummary", ("model",)),
    Stage("quantize", "weights as integers: 8, 4 or 3 bits, by rounding or GPTQ",
          "trivet.compress.quantize_config:QuantizeConfig", "trivet.compress.quantize:run",
          "trivet.compress.quantize:QuantizeSummary", ("model", "layers")),
    Stage("evaluate", "helpful, honest, harmless, still capable? One table, beside a base",
          "trivet.evaluate.config:EvaluateConfig", "trivet.evaluate.run:run",
          "trivet.evaluate.run:EvaluateSummary", ("results", "table"),
          finish="trivet.report.evaluation:finish"),
    Stage("tradeoff", "size, speed and quality of a model and of what was made of it; pick one by limits",
          "trivet.compress.tradeoff_config:TradeoffConfig", "trivet.compress.tradeoff:run",
          "trivet.compress.tradeoff:TradeoffSummary", ("results", "table"), finish="trivet.report.tradeoff:finish"),
)}


def load(path: str) -> Any:
    """The object named `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def finish_stage(stage: Stage, config: StageConfig) -> None:
    """What a stage does when its summary is printed, on rank 0. SystemExit where its result ends the program."""
    if stage.finish:
        at_rank_0(lambda: load(stage.finish)(config))


def run_stage(stage: Stage, config: StageConfig) -> Summary:
    """Run a stage in its folder: skipped if finished, resumed if interrupted."""
    from trivet.runs import execute

    work, kind = load(stage.work), load(stage.summary)
    if started_together():
        return _run_together(stage, config, work, kind)
    summary: Summary = execute(stage.name, config, work, kind)
    return summary


def started_together() -> bool:
    """Whether torchrun started this process beside others. Finds out without torch, which many stages don't need."""
    known = sys.modules.get("trivet.training.ranks")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or (known is not None and known.here().world > 1)


def is_rank_0() -> bool:
    """Whether this process writes and speaks: it is alone, or the first of those that torchrun started."""
    if not started_together():
        return True
    from trivet.training.ranks import join

    return join().main


def at_rank_0(work: Callable[[], None]) -> None:
    """Do what follows a stage on rank 0. Where it ends the program (SystemExit), all ranks end with its code."""
    code: str | int | None = None
    if is_rank_0():
        try:
            work()
        except SystemExit as stopped:
            code = stopped.code
    if started_together():
        from trivet.training.ranks import join

        code = join().broadcast(code)
    if code is not None:
        raise SystemExit(code)


def _run_together(stage: Stage, config: StageConfig, work: Any, kind: Any) -> Summary:
    """A stage by several processes: rank 0 opens the folder, decides whether there is work, and writes it all."""
    from trivet.runs import Run, execute
    from trivet.training.ranks import join

    ranks = join()
    called = False

    def share(config: Any, run: Any) -> Any:
        found = work(config, run)
        run.meter.beside(ranks.gather([run.meter.spent()])[1:])
        return found

    def call(config: Any, run: Any) -> Any:
        nonlocal called
        called = True
        ranks.broadcast(stage.trains)
        return share(config, run) if stage.trains else work(config, run)

    found: Any = None
    if ranks.main:
        found = execute(stage.name, config, call, kind)
        if not called:
            ranks.broadcast(False)
    elif ranks.broadcast(False):
        share(config, Run(config.out, writes=False))
    summary: Summary = ranks.broadcast(found)
    return summary
