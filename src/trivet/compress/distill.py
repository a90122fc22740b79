"""The stage `distill`: a smaller student learns from a frozen teacher.

Hinton, Vinyals & Dean 2015, *Distilling the knowledge in a neural network*, section 2; Sanh et al. 2019, *DistilBERT*,
for the student that begins from the teacher's own blocks. What is learned from is made ready in `lessons.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trivet.artifacts import atomic_folder, write_json
from trivet.compress import fake_quant
from trivet.compress.distill_config import DistillConfig
from trivet.compress.fidelity import compare, figures
from trivet.compress.lessons import Lessons, prepare_lessons
from trivet.compress.loss import summed_losses
from trivet.compress.on_policy import OnPolicy, TrainRow, prompt_of, tensors
from trivet.compress.recovery import keep_zeros, require_zeros
from trivet.compress.soft_labels import output_states
from trivet.compress.students import make_student, parameters
from trivet.compress.variant import Variant, write_variant
from trivet.data.chat import context_length, stop_token_ids
from trivet.data.supervised import Example, pack_rows
from trivet.errors import TrivetError
from trivet.models.checkpointing import checkpoint_blocks
from trivet.models.merge import save_merged
from trivet.models.output_layer import plain_output_layer
from trivet.models.reward_model import plain
from trivet.models.roles import no_dropout
from trivet.models.source import ModelSource
from trivet.runs import Run, Summary
from trivet.training import shard
from trivet.training.device import Compute, prepare, seed_all
from trivet.training.trainer import fit
from trivet.training.written import IGNORED

Figures = dict[str, Any]


class DistillSummary(Summary):
    """What came out. Losses are means a token of the first and the last step, in nats."""

    conversations: int
    rows: int = 0
    answer_tokens: int
    steps: int = 0
    student_parameters: int | None = None
    teacher_parameters: int | None = None
    """None of an endpoint and of stored logits."""
    share_of_parameters: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    last_distillation_loss: float | None = None
    last_student_loss: float | None = None
    stored_bytes_per_token: int | None = None
    sparsity: float | None = None
    """Share of zeros in the blocks' matrices, measured on the saved file."""
    bits_per_weight: float | None = None
    heldout_loss_before: Figures | None = None
    heldout_loss_after: Figures | None = None
    heldout_kl_before: Figures | None = None
    heldout_kl_after: Figures | None = None
    kept: Figures | None = None
    """On held-out text: the student's next-token accuracy over the teacher's."""


def run(config: DistillConfig, run: Run) -> DistillSummary:
    """Train a student and write it as a model folder with variant.json. Resumes exactly.

    Raises TrivetError for teacher and student of different vocabularies, and for data that does not fit.
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    lessons = prepare_lessons(config, compute, run)
    counts = {"conversations": len(lessons.examples), "answer_tokens": sum(sum(e.written) for e in lessons.examples),
              "stored_bytes_per_token": lessons.bytes_per_token}
    if config.store_only:
        return DistillSummary(**counts) if run.writes else DistillSummary.of_rank_0()
    student = _student(config, lessons.basis, compute)
    _require_context(config, student)
    size = parameters(student)
    masks = keep_zeros(student) if config.keep_zeros else {}
    if config.quantize.on:
        fake_quant.attach(student, config.quantize, "quantize.group")
        if masks:  # the weights that learn have other names now, and are the same
            masks = _renamed(masks, student)
    before = _evaluate(student, lessons, config)  # of what is to be quantized, rounded
    rows, steps = _train(student, lessons, config, compute, run)
    with shard.whole(student):
        after = _evaluate(student, lessons, config)
    student = shard.rebuilt(student, lambda: _student(config, lessons.basis, compute))
    if not run.writes:
        return DistillSummary.of_rank_0()
    require_zeros(student, masks)
    if config.quantize.on:
        fake_quant.detach(student)
    variant = _save(student, lessons, config, steps, run)
    if after:
        write_json(run.path("evaluation.json"), {"before": before, "after": after})
        run.artifact("evaluation", run.path("evaluation.json"))
    log = run.rows("metrics")
    return DistillSummary(
        **counts, rows=rows, steps=steps, student_parameters=size, teacher_parameters=lessons.teacher_parameters,
        share_of_parameters=None if lessons.teacher_parameters is None else round(size / lessons.teacher_parameters, 4),
        first_loss=log[0]["loss"], last_loss=log[-1]["loss"],
        last_distillation_loss=log[-1].get("distillation_loss"), last_student_loss=log[-1]["student_loss"],
        sparsity=variant.sparsity, bits_per_weight=variant.bits_per_weight, kept=after.get("kept"),
        heldout_loss_before=before.get("loss"), heldout_loss_after=after.get("loss"),
        heldout_kl_before=before.get("kl"), heldout_kl_after=after.get("kl"))


def _student(config: DistillConfig, basis: ModelSource, compute: Compute) -> Any:
    model = make_student(config.student, basis, compute.device, seed=config.seed)
    no_dropout(model)
    plain_output_layer(model)  # found out now, not inside a pass
    return model


def _require_context(config: DistillConfig, student: Any) -> None:
    context = context_length(student)
    if context is not None and config.max_length > context:
        raise TrivetError(f"max_length is {config.max_length}, the student's context {context}", field="max_length",
                          mend=f"--max-length {context} at most")


def _renamed(masks: dict[str, torch.Tensor], student: Any) -> dict[str, torch.Tensor]:
    """Masks by the names that parametrized weights have."""
    known = dict(student.named_parameters())

    def name(old: str) -> str:
        layer, _, last = old.rpartition(".")
        return old if old in known else f"{layer}.parametrizations.{last}.original"

    return {name(old): mask for old, mask in masks.items()}


# --- training -----------------------------------------------------------------------------------------------------


def rows_of(examples: list[Example], config: DistillConfig) -> list[TrainRow]:
    """Examples as rows of a step: packed, but for rows whose answer is to be written anew.

    Raises TrivetError for an on-policy share of data without prompts.
    """
    if config.on_policy:
        # room for one token of the student's at least
        bare = next((i for i, e in enumerate(examples)
                     if not 0 < len(prompt_of(e)) < config.max_length), None)
        if bare is not None:
            raise TrivetError(f"row {bare + 1} has no prompt that leaves room for an answer in {config.max_length} "
                              "tokens", field="on_policy", expected="conversations, or prompts",
                              mend="leave on_policy out for plain text, or raise --max-length")
    packed = pack_rows(examples, config.max_length) if config.packing and not config.on_policy \
        else [[e] for e in examples]
    return [TrainRow(i, tuple(row)) for i, row in enumerate(packed)]


def _train(student: Any, lessons: Lessons, config: DistillConfig, compute: Compute, run: Run) -> tuple[int, int]:
    """(rows, steps) of training `student` in place."""
    rows = rows_of(lessons.examples, config)
    pad = int(lessons.tokenizer.pad_token_id)
    if config.checkpoint_activations:
        checkpoint_blocks(student)
    spread = shard.wanted(config.device, compute.device)
    if spread and (config.keep_zeros or config.quantize.on):
        raise TrivetError("zeros and quantization are kept on whole weights, not on shares of them",
                          field="device.shard", mend="set --device.shard none")

    def loss_sum(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        model = plain(module)
        layer = plain_output_layer(model)
        chosen = batch["labels"][:, 1:] != IGNORED
        hard = batch["hard"][:, None].expand_as(chosen)[chosen]
        soft = lessons.teacher.soft(batch, chosen) if lessons.teacher is not None else None
        distilled, wrong = summed_losses(output_states(model, layer, batch, chosen), layer,
                                         batch["labels"][:, 1:][chosen], hard, soft, config)
        told = {"distillation_loss": float(distilled.detach())} if soft is not None else {}
        told["student_loss"] = float(wrong.detach())
        if config.on_policy:
            told["on_policy"] = float((~hard).sum())
        return config.alpha * distilled + (1 - config.alpha) * wrong, told

    prepare_step = OnPolicy(
        run, share=config.on_policy, sampling=config.sampling, stops=stop_token_ids(student, lessons.tokenizer),
        pad=pad, tokenizer=lessons.tokenizer, seed=config.seed, max_length=config.max_length,
    ) if config.on_policy else None
    steps = fit(
        what="distillation", run=run, model=student, data=rows, collate=lambda b: tensors(b, pad), loss_sum=loss_sum,
        items=lambda b: float((b["labels"][:, 1:] != IGNORED).sum()), epochs=config.epochs, batch=config.batch,
        micro_batch=config.micro_batch, optimizer=config.optimizer, checkpoint=config.checkpoint, compute=compute,
        seed=config.seed, report_to=config.report_to, spread=spread, prepare=prepare_step)
    tokens = round(sum(len(e.ids) for e in lessons.examples) * config.epochs)
    run.meter.count("trained", tokens)
    if lessons.model is not None and lessons.teacher is not None:
        run.meter.count("scored", tokens)
    return len(rows), steps


# --- what came of it ----------------------------------------------------------------------------------------------


def _evaluate(student: Any, lessons: Lessons, config: DistillConfig) -> Figures:
    """Figures on held-out text, beside the teacher where it is a model here; none without held-out text."""
    if not lessons.heldout:
        return {}
    teacher = lessons.model
    rows = compare(plain(student), teacher, lessons.heldout, int(lessons.tokenizer.pad_token_id))
    found = figures(rows, with_teacher=teacher is not None, seed=config.seed)
    return {name: interval.as_dict() for name, interval in found.items()}


def _save(student: Any, lessons: Lessons, config: DistillConfig, steps: int, run: Run) -> Variant:
    with atomic_folder(run.path("model")) as folder:
        save_merged(student, lessons.tokenizer, folder, lessons.source.name, "distill")
        variant = write_variant(folder, name=_name(config), method="distill", source=lessons.source,
                                settings=_settings(config) | {"steps": steps}, notes=_notes(config))
    run.artifact("model", run.path("model"))
    return variant


def _name(config: DistillConfig) -> str:
    """What tables call the student: its run's folder, as in `runs/compress/student`."""
    return Path(config.out).resolve().name


def _settings(config: DistillConfig) -> dict[str, Any]:
    names = {"alpha", "temperature", "kind", "beta", "on_policy", "keep_zeros", "epochs", "seed"}
    if config.quantize.on:
        names.add("quantize")
    return config.model_dump(mode="json", include=names) | {
        "teacher": config.teacher.by or str(config.teacher.stored), "top_k": config.teacher.top_k,
        "student": config.student.model_dump(mode="json", exclude_none=True)}


def _notes(config: DistillConfig) -> list[str]:
    if not config.quantize.on:
        return []
    grid = config.quantize
    return [f"trained through {grid.bits}-bit rounding, saved unrounded: quantize it on the same grid (method rtn, "
            f"group {grid.group}, {'symmetric' if grid.symmetric else 'asymmetric'})"]
