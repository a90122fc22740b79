"""A PPO step by Trivet, one whenever it is asked for: the stage `ppo` as it is, its `_step` waiting for its turn.

Nothing of what it computes is changed: answers get the lengths that the job names through the engine's own limits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.process import huge_pages

huge_pages()  # as the command line does, before torch allocates anything

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from trivet.policy import ppo, setup
from trivet.policy.config import PPOConfig
from trivet.runs import Run
from trivet.training.device import prepare
from turns import Phases, forget_peak, hand_over, peak_memory

FOREVER = 10**9


class ForcedLengths:
    """An engine whose answers to these prompts have these lengths: no token ends one."""

    def __init__(self, engine: Any, lengths: dict[tuple[int, ...], int]) -> None:
        self.engine, self.lengths = engine, lengths
        engine.stops = frozenset()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Any, *, n: int, seeds: Sequence[int]) -> Any:
        """See Engine.generate."""
        limits = [self.lengths.get(tuple(p), 1) for p in prompts]  # 1: the one prompt of the evaluation
        return self.engine.generate(prompts, sampling, n=n, seeds=seeds, limits=limits)


def config_of(job: dict[str, Any]) -> PPOConfig:
    """The stage's settings: its defaults but for what both sides share, and for what would come between steps."""
    rows = job["rows"]
    given: dict[str, Any] = {"micro_batch": job["micro_batch"]} if job["micro_batch"] else {}
    return PPOConfig.model_validate({
        "out": Path(job["folder"]) / job["side"], "prompts": job["prompts"], "model": job["model"],
        "reward": [job["reward_full" if job["tune"] == "full" else "reward_adapter"]],
        "tune": job["tune"], "critic": job["critic"], "rollout": len(rows), "epochs": job["epochs"],
        "optimizer": {"lr": 1e-6 if job["tune"] == "full" else 1e-4, "schedule": "constant", "warmup": 0.0},
        "sampling": {"temperature": job["temperature"], "max_new_tokens": max(r["length"] for r in rows)},
        "missing_end_penalty": 0.0, "normalise": False, "check": False, "stop": {"steps": FOREVER},
        "evaluation": {"prompts": job["heldout"], "every": FOREVER, "samples": 1}, "checkpoint": {"every": FOREVER},
        "device": {"device": job["device"], "precision": job["precision"], "threads": job["threads"]},
        "seed": job["seed"], **given})


def main(job: dict[str, Any]) -> None:
    """job: see ppo_step.job_of."""
    config = config_of(job)
    run = Run(config.out)
    lengths = {tuple(r["prompt"]): r["length"] for r in job["rows"]}
    engine_of, step = setup.Setup.engine, ppo._step
    compute = prepare(config.device)
    said = {"torch": torch.__version__, "threads": compute.threads, "trunk": str(compute.trunk),
            "micro_batch": config.micro_batch}

    def engine(*args: Any, **kwargs: Any) -> ForcedLengths:
        return ForcedLengths(engine_of(*args, **kwargs), lengths)

    def in_turn(*args: Any, **kwargs: Any) -> Any:
        nonlocal said
        if "seconds" not in said:
            forget_peak()
        hand_over(said)
        phases = Phases(compute.device)
        with phases("all"):
            found = step(*args, **kwargs)
        timing = run.rows("timing")[-1]
        said = {"seconds": phases.seconds["all"], "tokens": timing.pop("tokens"),
                "phases": {k: v for k, v in timing.items() if k != "step"}, "peak_bytes": peak_memory(compute.device)}
        return found

    setup.Setup.engine, ppo._step = engine, in_turn  # type: ignore[method-assign,assignment]
    if compute.device == "cuda":  # else the optimizer's kernels would be waited for after the update's clock
        register_optimizer_step_post_hook(lambda *_: torch.cuda.synchronize())
    ppo.run(config, run)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
