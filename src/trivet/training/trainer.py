"""`transformers.Trainer` in our layout: atomic checkpoints, exact resume, metrics in metrics.jsonl.

Used by every supervised stage (sft, reward, dpo, distill), each with its own loss and collator.
A loss is a sum divided by the number of items of the whole batch, so that gradient accumulation and the number of
ranks change nothing. Of several ranks each runs a Trainer that believes itself alone: it draws the batch that all
draw, and is given its share of it; what must be common is summed here (training/ranks.py, training/shard.py).
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
from transformers import Trainer, TrainerCallback, TrainingArguments

from trivet.config import Checkpointing, Optimizer, ReportTo
from trivet.errors import TrivetError
from trivet.models.reward_model import plain
from trivet.runs import Run
from trivet.training import checkpoints, shard, tensors
from trivet.training.device import Compute
from trivet.training.interrupt import Interruption, graceful
from trivet.training.progress import bar
from trivet.training.ranks import here

Collate = Callable[[list[Any]], dict[str, Any]]
Prepare = Callable[[Any, int, list[dict[str, Any]]], None]
SHARE = "share_of_this_rank"
"""In a batch of one rank among several: 1, or 0 where there were too few rows for it."""


class _StopOnRequest(TrainerCallback):
    """Ends training after the step in which somebody asked for it, with a checkpoint."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption, self.stopped = interruption, False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.stopped = here().any(self.interruption.requested)
        if self.stopped:
            control.should_save = control.should_training_stop = True
        return control


class StageTrainer(Trainer):
    """A Trainer whose loss is `loss_sum(model, batch) -> (sum, figures)` and whose batches count `items(batch)`."""

    def __init__(
        self, *, run: Run, loss_sum: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, dict[str, float]]],
        items: Callable[[dict[str, Any]], float], keep: int, threads: int, advance: Callable[..., None],
        prepare: Prepare | None = None, **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._stage_run, self._loss_sum, self._items = run, loss_sum, items
        self._keep, self._threads, self._advance, self._prepare = keep, threads, advance, prepare
        self._figures: dict[str, float] = {}
        self.model_accepts_loss_kwargs = True  # the loss is already divided by the whole batch's items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if self._prepare is not None:
            # here, since batches are drawn ahead of the step that takes them: only now the weights are this step's
            self._prepare(self.model, self.state.global_step, batch_samples)
        (items,) = here().total(sum(self._items(b) * b.get(SHARE, 1.0) for b in batch_samples))
        return torch.tensor(items, dtype=torch.float64)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False,
                     num_items_in_batch: Any = None) -> Any:
        share = inputs.pop(SHARE, 1.0)
        total, figures = self._loss_sum(model, inputs)
        if not share:  # a pass for the others' sake, who wait for this rank's part of the weights
            total, figures = total * 0.0, dict.fromkeys(figures, 0.0)
        items = float(num_items_in_batch)
        for key, value in figures.items():  # sums over the micro-batches of a step, as shares of its items
            self._figures[key] = self._figures.get(key, 0.0) + value / items
        return total / items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" not in logs:
            return  # the Trainer's own closing line (run time), which is not a step
        # each rank's part of the batch's loss and figures, together
        loss, *figures = here().total(logs["loss"], *self._figures.values())
        self._figures = dict(zip(self._figures, figures, strict=True))
        row: dict[str, Any] = {"step": self.state.global_step, "loss": loss,
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

    def _clip_grad_norm(self, model: Any) -> Any:
        if here().world == 1:
            return super()._clip_grad_norm(model)
        return shard.clip_gradients(_trainable(model).values(), self.args.max_grad_norm)

    # --- checkpoints in our layout ---

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors.restore_weights(Path(resume_from_checkpoint), _trainable(self.model))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        tensors.restore(Path(checkpoint), _trainable(self.model), self.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        found = {"metrics_offset": self._stage_run.offset("metrics"), "threads": self._threads}
        with checkpoints.saving(self._stage_run.path("checkpoints"), step, keep=self._keep,
                                facts=found) as folder:
            assert self.optimizer is not None and self.lr_scheduler is not None
            tensors.save(folder, _trainable(self.model), self.optimizer)
            if here().main:
                torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
                self._save_rng_state(str(folder))
                self.state.save_to_json(str(folder / "trainer_state.json"))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def _shared_out(collate: Collate) -> Collate:
    """Of each batch that the Trainer draws, this rank's rows; where there are none, a row that counts for nothing."""
    if here().world == 1:
        return collate

    def share(rows: list[Any]) -> dict[str, Any]:
        mine = here().deal(rows)
        return collate(mine or rows[:1]) | {SHARE: float(bool(mine))}

    return share


def _passes(micro: int, batch: int, world: int) -> tuple[int, int]:
    """(rows of all ranks a pass, passes a step): a step takes the rows that one process alone would take."""
    rows = micro * max(1, round(batch / micro))
    accumulate = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= micro * world)
    return rows // accumulate, accumulate


def on_one_device(arguments: TrainingArguments) -> None:
    """Of several GPUs that this process sees, let the Trainer take this rank's alone.

    Left to itself it takes the first, and spreads each batch over all by nn.DataParallel: it believes itself alone, as
    ranks are shared out here.
    """
    if arguments.device.type != "cuda":
        return
    device = torch.device("cuda", here().local % torch.cuda.device_count())
    torch.cuda.set_device(device)  # making the arguments has set the first one
    arguments._n_gpu = 1
    arguments.__dict__["_setup_devices"] = device  # what its property `device` has kept


def fit(
    *, what: str, run: Run, model: Any, data: Sequence[Any], collate: Collate,
    loss_sum: Callable[[Any, dict[str, Any]], tuple[torch.Tensor, dict[str, float]]],
    items: Callable[[dict[str, Any]], float], epochs: float, batch: int, micro_batch: int | None,
    optimizer: Optimizer, checkpoint: Checkpointing, compute: Compute, seed: int, report_to: ReportTo,
    spread: bool = False, prepare: Prepare | None = None,
) -> int:
    """Train `model` in place, resuming from the newest whole checkpoint; returns the number of steps.

    batch: rows a step, of all ranks; micro_batch: rows a pass of one rank (default: all). spread: over the ranks
    (FSDP2), from then on; see `shard.rebuilt`. prepare: given the model, the number of steps done and this rank's
    batches of the next one, which it may change, before their items are counted. Raises KeyboardInterrupt after
    Ctrl-C, once the step is done and saved.
    """
    if spread and not shard.shard(plain(model), compute.device):
        print("note: this model keeps its blocks in no list: each process holds it whole")
    micro, accumulate = _passes(min(micro_batch or batch, batch, len(data)), min(batch, len(data)), here().world)
    per_epoch = math.ceil(math.ceil(len(data) / micro) / accumulate)
    steps = max(1, math.ceil(per_epoch * epochs))
    folder = run.path("checkpoints")
    start = checkpoints.begin(folder)
    run.cut("metrics", resumed_offset(start, compute.threads))
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path("tensorboard")))
    arguments = TrainingArguments(
        output_dir=str(folder / ".trainer"), max_steps=steps, per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate, learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay, max_grad_norm=optimizer.max_grad_norm,
        warmup_steps=round(optimizer.warmup * steps), lr_scheduler_type=names[optimizer.schedule],
        logging_steps=1, logging_nan_inf_filter=False, save_strategy="steps", save_steps=checkpoint.every,
        seed=seed, data_seed=seed, report_to=list(report_to) if run.writes else [], disable_tqdm=True,
        use_cpu=compute.device == "cpu", remove_unused_columns=False, dataloader_pin_memory=False,
        optim="adamw_torch", label_names=["labels"],
    )
    on_one_device(arguments)
    with graceful() as interruption, bar(what, steps) as advance:
        stop = _StopOnRequest(interruption)
        trainer = StageTrainer(
            run=run, loss_sum=loss_sum, items=items, keep=checkpoint.keep, threads=compute.threads,
            advance=advance, model=model, args=arguments, train_dataset=data, data_collator=_shared_out(collate),
            callbacks=[stop], prepare=prepare)
        trainer.remove_callback(transformers.PrinterCallback)
        if start is not None:
            advance(checkpoints.step_of(start))
            print(f"going on from {start}", flush=True)
        model.train()
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        shutil.rmtree(folder / ".trainer", ignore_errors=True)
        if stop.stopped and trainer.state.global_step < steps:
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
    if found["ranks"] != here().world:
        print(f"note: this run was begun with {found['ranks']} processes and goes on with {here().world}: results will "
              "differ in the last bits", flush=True)
    return int(found["metrics_offset"])
