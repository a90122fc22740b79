"""The stage `sft`: fine-tuning on answers. Loss on the assistant's tokens only; packing that changes nothing."""

from __future__ import annotations

from typing import Any

import torch

from trivet.artifacts import Message, Prompt, atomic_folder
from trivet.data.chat import context_length, ensure_template, stop_token_ids
from trivet.data.supervised import pack_rows, read_conversations, tokenize
from trivet.errors import TrivetError
from trivet.evaluate.capability import assess, refuse
from trivet.evaluate.config import MAX_FAIL
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.models import lora
from trivet.models.checkpointing import checkpoint_blocks
from trivet.models.merge import save_merged
from trivet.models.reward_model import plain
from trivet.models.roles import no_dropout
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.policy.config import SFTConfig
from trivet.runs import Run, Summary
from trivet.training import shard
from trivet.training.device import Compute, prepare, seed_all
from trivet.training.trainer import fit
from trivet.training.written import IGNORED, collate, token_losses


class SFTSummary(Summary):
    """What came out."""

    steps: int
    conversations: int
    rows: int
    answer_tokens: int
    first_loss: float
    last_loss: float


def run(config: SFTConfig, run: Run) -> SFTSummary:
    """Fine-tune and write a model folder (float32, adapters merged). Resumes exactly.

    Raises TrivetError for data that does not fit and for a model that can't answer (see `check`).
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    conversations = read_conversations(config.data)
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if ensure_template(tokenizer):
        print("the model has no chat template; a plain User:/Assistant: one is used")
    base = _base(source, config, compute)
    context = context_length(base) or config.max_length
    if config.max_length > context:
        raise TrivetError(f"max_length is {config.max_length}, the model's context {context}", field="max_length",
                          mend=f"--max-length {context} at most")
    examples = tokenize(conversations, tokenizer, config.max_length, config.data)
    if config.check and not run.path("checkpoints").exists():
        _check(base, tokenizer, [c.messages for c in conversations], config)
    if config.tune != "full" and source.is_adapter:
        raise TrivetError("the model to tune must be a whole model, not an adapter", field="model",
                          file=source.folder, mend="tune=full merges it first, or name its base")
    model = _to_train(base, config)
    if config.checkpoint_activations:
        checkpoint_blocks(plain(model))
    rows = pack_rows(examples, config.max_length) if config.packing else [[e] for e in examples]

    def loss_sum(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        return token_losses(module, batch)[0], {}

    steps = fit(
        what="fine-tuning", run=run, model=model, data=rows,
        collate=lambda b: collate(b, tokenizer.pad_token_id), loss_sum=loss_sum,
        items=lambda b: float((b["labels"] != IGNORED).sum()), epochs=config.epochs, batch=config.batch,
        micro_batch=config.micro_batch, optimizer=config.optimizer, checkpoint=config.checkpoint,
        compute=compute, seed=config.seed, report_to=config.report_to,
        spread=shard.wanted(config.device, compute.device))
    run.meter.count("trained", round(sum(len(e.ids) for e in examples) * config.epochs))
    model = shard.rebuilt(model, lambda: _to_train(_base(source, config, compute), config))
    if not run.writes:
        return SFTSummary.of_rank_0()
    with atomic_folder(run.path("model")) as folder:
        save_merged(model, tokenizer, folder, config.model, "sft")
    run.artifact("model", run.path("model"))
    losses = [r["loss"] for r in run.rows("metrics")]
    return SFTSummary(steps=steps, conversations=len(examples), rows=len(rows),
                      answer_tokens=sum(sum(e.written) for e in examples), first_loss=losses[0],
                      last_loss=losses[-1])


def _base(source: ModelSource, config: SFTConfig, compute: Compute) -> Any:
    base = load_causal_lm(source, torch.float32 if config.tune == "full" else compute.trunk, compute.device)
    no_dropout(base)
    return base


def _to_train(base: Any, config: SFTConfig) -> Any:
    """The base itself, or with a new adapter that is to be trained."""
    if config.tune == "full":
        return base
    return lora.with_adapter(base, lora.lora_config(base, config.lora, "CAUSAL_LM"))


def _check(model: Any, tokenizer: Any, conversations: list[list[Message]], config: SFTConfig) -> None:
    prompts = [Prompt(id=f"row {i}", messages=m[: max(k for k, x in enumerate(m) if x.role == "assistant")])
               for i, m in enumerate(conversations[:12])]
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    assessment = assess(engine, tokenizer, prompts, Sampling(temperature=0.7, max_new_tokens=48), config.seed, MAX_FAIL,
                        context=context_length(model))
    if not assessment.verdict and not config.force:
        refuse(assessment)
