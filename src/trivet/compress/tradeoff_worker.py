"""A variant's own process: it is loaded and timed, or asked; or a reward model scores what all of them answered.

    python -m trivet.compress.tradeoff_worker JOB.json RESULT.json
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import Completions, atomic_folder, read_rows, write_rows
from trivet.compress import isolated, quality
from trivet.compress.speed import Passages, time_workloads
from trivet.compress.tradeoff_config import TradeoffConfig
from trivet.compress.tradeoff_plan import plan
from trivet.compress.tradeoff_results import REWARD
from trivet.errors import TrivetError
from trivet.evaluate.base import Score
from trivet.evaluate.subject import Subject, no_template
from trivet.generate.engines import compute_of, load_engine
from trivet.ledger import Meter, peak_memory
from trivet.models.merge import merge_policy
from trivet.models.source import resolve
from trivet.training.device import Compute, prepare, seed_all


def main(arguments: list[str]) -> None:
    """Do the job of a file."""
    isolated.answer(arguments, work)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """A job of tradeoff.py. Raises TrivetError for what a person can mend."""
    config, meter = TradeoffConfig.model_validate(job["config"]), Meter()
    # counting FLOPs takes time of torch's own, and of no other engine's: what is timed is not counted
    compute = prepare(config.device, None if job["task"] == "speed" else meter)
    if job["task"] in ("speed", "quality"):
        compute = compute_of(job["path"], compute)
    seed_all(config.seed)
    tasks = {"merge": _merge, "speed": _speed, "quality": _quality, "reward": _reward}
    try:
        found = tasks[job["task"]](job, config, compute, meter)
    finally:
        meter.close()
    return found | {"compute": compute.words, "spent": meter.spent().model_dump()}


def _merge(job: dict[str, Any], config: TradeoffConfig, compute: Compute, meter: Meter) -> dict[str, Any]:
    """An adapter merged into its base, as a folder that every engine loads."""
    with atomic_folder(job["folder"]) as folder:
        merge_policy(resolve(job["path"]), folder, "tradeoff")
    return {}


def _speed(job: dict[str, Any], config: TradeoffConfig, compute: Compute, meter: Meter) -> dict[str, Any]:
    """Seconds to load, seconds of every workload, and the memory that the process held."""
    began = time.perf_counter()
    with load_engine(job["path"], compute, field=job["field"], batch_size=max(config.speed.batches)) as loaded:
        ready = time.perf_counter() - began
        if loaded.plain_template and not config.plain_template:
            raise no_template(job["path"])  # nothing could be asked of it afterwards
        documents = plan(config, loaded.tokenizer).documents
        # another place of the text in every round, the same for all variants
        tokens = [i for d in documents for i in loaded.tokenizer(d.text, add_special_tokens=False)["input_ids"]]
        if not tokens:
            raise TrivetError("the text holds no tokens to make prompts of", file=config.text, field="text",
                              mend="give a text with words")
        turn = (job["round"] * 997) % len(tokens)
        times, absent = time_workloads(loaded, Passages([*tokens[turn:], *tokens[:turn]]), config.speed)
        gpu = torch.cuda.max_memory_allocated() if compute.device == "cuda" else 0
        memory = peak_memory()
    meter.count("generated", sum(w.batch * (1 + config.speed.new_tokens) for w in times))
    meter.count("prompt", sum(2 * w.batch * w.prompt for w in times))
    return {"load": ready, "memory": memory, "gpu_memory": gpu or None,
            "times": [asdict(w) | {"first": first, "whole": whole} for w, (first, whole) in times.items()],
            "absent": [asdict(w) | {"why": why} for w, why in absent.items()]}


def _quality(job: dict[str, Any], config: TradeoffConfig, compute: Compute, meter: Meter) -> dict[str, Any]:
    """Scores, answers and what is absent, into the job's folder."""
    with load_engine(job["path"], compute, field=job["field"], batch_size=config.batch_size) as loaded:
        subject = Subject(job["name"], Path(job["folder"]), compute, seed=config.seed, batch_size=config.batch_size,
                          plain_template=config.plain_template, count=meter.count, loaded=loaded)
        quality.measure(subject, loaded, config, plan(config, loaded.tokenizer), source=job["source"],
                        distributions=Path(job["distributions"]) if job["distributions"] else None)
    return {}


def _reward(job: dict[str, Any], config: TradeoffConfig, compute: Compute, meter: Meter) -> dict[str, Any]:
    """What the reward says of each variant's answers: reward.jsonl in its folder. Tells in which unit."""
    from trivet.judge.base import Sample
    from trivet.judge.scorer import load_model_reward

    assert config.reward is not None
    model = load_model_reward(config.reward, compute.trunk, compute.device, meter.count)
    for folder in map(Path, job["folders"]):
        rows = read_rows(folder / "answers" / f"{quality.ANSWERS}.jsonl", Completions)
        scores = model([Sample(r.id, tuple(r.messages), r.completions[0].text, r.reference, tuple(r.tags))
                        for r in rows])
        write_rows(folder / "reward.jsonl", [Score(measure=REWARD.key, id=r.id, group=r.id, value=s)
                                             for r, s in zip(rows, scores, strict=True)])
    return {"normalised": model.calibration is not None}


if __name__ == "__main__":
    main(sys.argv[1:])
