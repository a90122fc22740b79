"""TRL's RewardTrainer on pairs that come as token ids, a step at a time: run by reward_training.py in TRL's own
environment. Trivet is not imported here.

    python trl_reward_peer.py '{"model": …, "pairs": FILE, "steps": …, …}'      see reward_training.job
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import RewardConfig, RewardTrainer

from turns import Stopwatch, hand_over, last_words, peak_memory


class TurnByTurn(TrainerCallback):
    """Sleeps after each optimizer step until the next one is asked for."""

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        found = self.watch.stop() | {"step": state.global_step, "peak_memory": peak_memory()}
        if hand_over(found) == "end":
            control.should_training_stop = True
        self.watch.start()


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    pairs = json.loads(Path(job["pairs"]).read_text())
    rows = Dataset.from_list([p | {"length": max(len(p["chosen_ids"]), len(p["rejected_ids"]))} for p in pairs])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForSequenceClassification.from_pretrained(
        job["model"], num_labels=1, dtype=getattr(torch, job["precision"]))
    adapters = None
    if job["tune"] == "lora":
        from peft import LoraConfig

        adapters = LoraConfig(r=job["r"], lora_alpha=job["alpha"], lora_dropout=0.0, bias="none", task_type="SEQ_CLS",
                              target_modules="all-linear", modules_to_save=["score"])
    size = job["micro_batch"]
    arguments = RewardConfig(
        output_dir=job["save"] + ".trainer", per_device_train_batch_size=size,
        gradient_accumulation_steps=job["batch"] // size, max_steps=job["steps"], learning_rate=job["lr"],
        lr_scheduler_type="cosine", warmup_steps=round(0.05 * job["steps"]), max_length=job["max_length"],
        train_sampling_strategy="group_by_length" if job["grouped"] else "random", length_column_name="length",
        remove_unused_columns=False, center_rewards_coefficient=job["centering"], bf16=False,
        gradient_checkpointing=False, save_strategy="no", report_to=[], disable_tqdm=True, seed=job["seed"],
        use_cpu=True, dataloader_pin_memory=False)
    trainer = RewardTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer,
                            peft_config=adapters, callbacks=[TurnByTurn()])
    trainer.train()
    trainer.save_model(job["save"])
    tokenizer.save_pretrained(job["save"])
    last_words({"saved": job["save"]})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
