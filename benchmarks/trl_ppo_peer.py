"""A PPO step by TRL 1.12.0 (`trl.experimental.ppo`), one whenever it is asked for. Runs in TRL's environment.

Its PPOTrainer is used as its own example script does it, and nothing of what it computes is changed: functions are
wrapped to read the clock. Two things are arranged. Answers get the lengths that the job names: no end token ends one,
and generation's own stopping criteria do (rows that have finished are padded, as after an end token). And the trainer's
data loader waits until a step is wanted.

Settings that are TRL's best on a machine with memory enough, beside those of the job: weights in the job's precision
(bfloat16 means weights, gradients and Adam's states in it; there is no float32 copy), no gradient checkpointing (its
default has it), torch's fused AdamW (its default), no logging, saving or sampling of its own between steps.

    phases  rollout     batch_generation: sampling; the log-probabilities of the samples are kept from here
            scoring     the reward model's passes
            update      from the first pass with a gradient to the trainer's log
            evaluate    what is left between rollout and update: reference and value passes, advantages
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from turns import Phases, forget_peak, hand_over, peak_memory


class Lengths(StoppingCriteria):
    """Ends row i after `lengths[i]` new tokens."""

    def __init__(self, lengths: torch.Tensor, start: int) -> None:
        self.lengths, self.start = lengths, start
        self.eos_token_id: list[int] = []  # generation pads finished rows where a criterion has this name

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """[N], true where a row is finished."""
        return self.lengths <= input_ids.shape[1] - self.start


def force_lengths(policy: Any, lengths: dict[tuple[int, ...], int]) -> None:
    """Give the policy's answers to these prompts these lengths."""
    generate = policy.generate

    def forced(*, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> Any:
        wanted = [lengths[tuple(ids[mask.bool()].tolist())] for ids, mask in zip(input_ids, attention_mask)]
        criterion = Lengths(torch.tensor(wanted, device=input_ids.device), input_ids.shape[1])
        return generate(input_ids=input_ids, attention_mask=attention_mask,
                        stopping_criteria=StoppingCriteriaList([criterion]), **kwargs)

    policy.generate = forced


class Steps:
    """The trainer's data loader; between two batches a step has ended, and the next waits until it is wanted."""

    def __init__(self, trainer: PPOTrainer, device: str) -> None:
        self.loader, self.device = trainer.dataloader, device
        self.phases, self.began, self.tokens = Phases(device), 0.0, 0
        self.update: tuple[float, float] | None = None
        trainer.dataloader = self
        self._read_the_clock(trainer)

    def _read_the_clock(self, trainer: PPOTrainer) -> None:
        generation, reward, forward = ppo_trainer.batch_generation, ppo_trainer.get_reward, ppo_trainer.forward
        log = trainer.log

        def batch_generation(model: Any, queries: torch.Tensor, size: int, pad: int, config: Any) -> Any:
            with self.phases("rollout"):
                found = generation(model, queries, size, pad, config)
            self.tokens = int((found[0][:, queries.shape[1]:] != pad).sum())
            return found

        def get_reward(model: Any, *args: Any) -> Any:
            if model is not trainer.reward_model:
                return reward(model, *args)
            with self.phases("scoring"):
                return reward(model, *args)

        def first_forward(model: Any, *args: Any) -> Any:
            if model is trainer.model and self.update is None:
                self.update = (self.phases.now(), 0.0)
            return forward(model, *args)

        def last(*args: Any, **kwargs: Any) -> Any:
            assert self.update is not None
            self.update = (self.update[0], self.phases.now())
            return log(*args, **kwargs)

        ppo_trainer.batch_generation, ppo_trainer.get_reward = batch_generation, get_reward
        ppo_trainer.forward, trainer.log = first_forward, last

    def __iter__(self) -> Iterator[Any]:
        said: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        for batch in self.loader:
            if self.update is not None:
                said = self._figures()
            else:
                forget_peak()
            hand_over(said)
            self.phases, self.update = Phases(self.device), None
            self.began = self.phases.now()
            yield batch

    def _figures(self) -> dict[str, Any]:
        assert self.update is not None
        total, phases = self.phases.now() - self.began, self.phases.seconds
        started, ended = self.update
        phases["evaluate"] = started - self.began - phases["rollout"] - phases["scoring"]
        phases["update"] = ended - started
        return {"seconds": total, "phases": phases, "tokens": self.tokens, "peak_bytes": peak_memory(self.device)}


def main(job: dict[str, Any]) -> None:
    """job: see ppo_step.job_of."""
    torch.set_num_threads(job["threads"])
    dtype, cuda = getattr(torch, job["precision"]), job["device"] == "cuda"
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    # not the end token: TRL finds an answer's end by its first padding token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(job["unused_token"])
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype) for _ in range(2))
    value, reward = (AutoModelForSequenceClassification.from_pretrained(job["reward_full"], dtype=dtype, num_labels=1)
                     for _ in range(2))
    policy.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = job["rows"]
    force_lengths(policy, {tuple(r["prompt"]): r["length"] for r in rows})
    args = PPOConfig(
        output_dir=str(Path(job["folder"]) / "trl"), use_cpu=not cuda, seed=job["seed"], report_to="none",
        per_device_train_batch_size=job["batch"], gradient_accumulation_steps=len(rows) // job["batch"],
        num_mini_batches=1, num_ppo_epochs=job["epochs"], total_episodes=len(rows) * 10**6,
        local_rollout_forward_batch_size=min(job["rollout_batch"], len(rows)),
        response_length=max(r["length"] for r in rows), temperature=job["temperature"], learning_rate=1e-6,
        lr_scheduler_type="constant", bf16=False, gradient_checkpointing=False, num_sample_generations=0,
        eval_strategy="no", save_strategy="no", logging_strategy="no", disable_tqdm=True)
    dataset = Dataset.from_dict({"input_ids": [r["prompt"] for r in rows]})
    trainer = PPOTrainer(args, tokenizer, policy, reference, reward, dataset, value)
    Steps(trainer, job["device"])
    trainer.train()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
