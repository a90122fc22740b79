"""`transformers.Trainer` in our layout: atomic checkpoints, exact resume, metrics in metrics.jsonl.

Used by every supervised stage (sft, reward; later distill and recovery), each with its own loss and collator.
A loss is a sum divided by the number of items of the whole batch, so that gradient accumulation changes
nothing.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from trivet.config import Checkpointing, Optimizer, ReportTo
from trivet.errors import TrivetError
from trivet.runs import Run
from trivet.training import checkpoints
from trivet.training.device import Compute
from trivet.training.interrupt import Interruption, graceful
from trivet.training.progress import bar

WEIGHTS = "trainable.safetensors"


class _StopOnRequest(TrainerCallback):
    """Ends training after the step in which somebody asked for it, with a checkpoint."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.interruption.requested:
            control.should_save = control.should_training_stop = True
        return control


class StageTrainer(Trainer):
    """A Trainer whose loss is `loss_sum(model, batch) -> (sum, figures)` and whose batches count `items(batch)`."""

    def __init__(
        self, *, run: Run, loss_sum: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, dict[str, float]]],
        items: Callable[[dict[str, Any]], float], keep: int, threads: int, advance: Callable[..., None],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._stage_run, self._loss_sum, self._items = run, loss_sum, items
        self._keep, self._threads, self._advance = keep, threads, advance
        self._staging = ""
        self._figures: dict[str, float] = {}
        self.model_accepts_loss_kwargs = True  # the loss is already divided by the whole batch's items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        return torch.tensor(sum(self._items(b) for b in batch_samples), dtype=torch.float64)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        total, figures = self._loss_sum(model, inputs)
        items = float(num_items_in_batch)
        for key, value in figures.items():  # sums over the micro-batches of a step, as shares of its items
            self._figures[key] = self._figures.get(key, 0.0) + value / items
        return total / items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # the Trainer's own closing line (run time), which is not a step
        row: dict[str, Any] = {"step": self.state.global_step, "loss": logs["loss"],
                               "lr": logs.get("learning_rate"), "grad_norm": _number(logs.get("grad_norm"))}
        row |= self._figures | {"epoch": logs.get("epoch", self.state.epoch)}
        self._figures = {}
        if not math.isfinite(row["loss"]):
            raise TrivetError(f"the loss is {row['loss']} at step {row['step']}", field="optimizer.lr",
                              mend="lower the learning rate, or use --device.precision float32")
        self._stage_run.log("metrics", row)
        super().log({k: v for k, v in row.items() if isinstance(v, float)}, None)
        self._advance(1, note="  ".join(f"{k} {v:.3g}" for k, v in row.items()
                                        if k in {"loss", "accuracy"} and v is not None))

    # --- checkpoints in our layout ---

    def _get_output_dir(self, trial: Any) -> str:
        return self._staging

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in _trainable(self.model).items()},
                  os.path.join(output_dir, WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved, live = load_file(os.path.join(resume_from_checkpoint, WEIGHTS)), _trainable(self.model)
        if saved.keys() != live.keys():
            raise TrivetError("the checkpoint holds other parameters than this configuration trains",
                              file=resume_from_checkpoint, mend="start anew with --overwrite")
        with torch.no_grad():
            for name, tensor in saved.items():
                live[name].copy_(tensor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        found = {"metrics_offset": self._stage_run.offset("metrics"), "threads": self._threads}
        with checkpoints.saving(self._stage_run.path("checkpoints"), step, keep=self._keep,
                                facts=found) as folder:
            self._staging = str(folder)
            super()._save_checkpoint(model, trial)
            inner = folder / f"checkpoint-{step}"
            for file in inner.iterdir():
                file.rename(folder / file.name)
            inner.rmdir()


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def fit(
    *, what: str, run: Run, model: Any, data: Sequence[Any], collate: Callable[[list[Any]], dict[str, Any]],
    loss_sum: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, dict[str, float]]],
    items: Callable[[dict[str, Any]], float], epochs: float, batch: int, micro_batch: int | None,
    optimizer: Optimizer, checkpoint: Checkpointing, compute: Compute, seed: int, report_to: ReportTo,
) -> int:
    """Train `model` in place, resuming from the newest whole checkpoint; returns the number of steps.

    batch: rows a step; micro_batch: rows a pass (default: all). Raises KeyboardInterrupt after Ctrl-C, once
    the step is done and saved.
    """
    micro = min(micro_batch or batch, batch, len(data))
    accumulate = max(1, round(min(batch, len(data)) / micro))
    per_epoch = math.ceil(math.ceil(len(data) / micro) / accumulate)
    steps = max(1, math.ceil(per_epoch * epochs))
    folder = run.path("checkpoints")
    checkpoints.tidy(folder)
    start = checkpoints.latest(folder)
    run.cut("metrics", resumed_offset(start, compute.threads))
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path("tensorboard")))
    arguments = TrainingArguments(
        output_dir=str(folder / ".trainer"), max_steps=steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate, learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm,
        warmup_steps=round(optimizer.warmup * steps), lr_scheduler_type=names[optimizer.schedule],
        logging_steps=1, logging_nan_inf_filter=False, save_strategy="steps", save_steps=checkpoint.every,
        seed=seed, data_seed=seed, report_to=list(report_to), disable_tqdm=True,
        use_cpu=compute.device == "cpu", remove_unused_columns=False, dataloader_pin_memory=False,
        optim="adamw_torch", label_names=["labels"],
    )
    with graceful() as interruption, bar(what, steps) as advance:
        trainer = StageTrainer(
            run=run, loss_sum=loss_sum, items=items, keep=checkpoint.keep, threads=compute.threads,
            advance=advance, model=model, args=arguments, train_dataset=data, data_collator=collate,
            callbacks=[_StopOnRequest(interruption)])
        trainer.remove_callback(transformers.PrinterCallback)
        if start is not None:
            advance(checkpoints.step_of(start))
            print(f"going on from {start}", flush=True)
        model.train()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        shutil.rmtree(folder / ".trainer", ignore_errors=True)
        if interruption.requested and trainer.state.global_step < steps:
            raise KeyboardInterrupt
    model.eval()
    return steps


def resumed_offset(checkpoint: Path | None, threads: int) -> int:
    """Where metrics.jsonl is cut back to; says so when the number of threads has changed."""
    if checkpoint is None:
        return 0
    found = checkpoints.facts(checkpoint)
    if found["threads"] != threads:
        print(f"note: this run was begun with {found['threads']} threads and goes on with {threads}: results "
              f"will differ in the last bits (--device.threads {found['threads']} keeps them)", flush=True)
    return int(found["metrics_offset"])
