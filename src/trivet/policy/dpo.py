"""The stage `dpo`: direct preference optimization (Rafailov et al. 2023) on the pairs a reward model would learn from.

All answers to a prompt are one batch element, whose prompt is forwarded once. The reference's log-probabilities are
computed once, before the first step, when policy and reference are still the same weights; they are kept in the run
folder, so no second model is ever in memory. Log-probabilities are at temperature 1, as in the papers.

Not covered: KL from samples of the trained policy (`trivet evaluate --against` compares the two).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trivet.artifacts import Preference, atomic_folder, first_turn, read_rows, write_json
from trivet.data.chat import context_length, ensure_template
from trivet.errors import TrivetError
from trivet.intervals import bootstrap_mean, paired_bootstrap
from trivet.models import lora
from trivet.models.merge import merge_policy
from trivet.models.output_layer import backbone, plain_output_layer
from trivet.models.reward_model import Group, by_tokens, pack, plain
from trivet.models.roles import no_dropout
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.policy.dpo_config import DPOConfig
from trivet.policy.loss import logps_from_logits
from trivet.policy.preference_loss import answer_sums, log_ratios, preference_losses
from trivet.policy.vocabulary import linear_logps
from trivet.reward.evaluate import evaluate_pairs
from trivet.reward.metrics import pair_correct
from trivet.reward.train import Element, decided, elements, refuse_overlap
from trivet.runs import Run, Summary
from trivet.training import shard
from trivet.training.device import Compute, prepare, seed_all
from trivet.training.progress import bar
from trivet.training.ranks import here
from trivet.training.trainer import fit

CHUNK_TOKENS = 1024  # padded tokens that are forwarded at once


class DPOSummary(Summary):
    """What came out. Intervals are 95%, by bootstrap over prompts, on held-out prompts.

    An answer's implicit reward is beta times its log-ratio of policy to reference; `accuracy` is the share of pairs
    in which the better answer has the higher one (before training all are 0: one half). `likelihood_accuracy` asks
    which answer the model itself finds likelier.
    """

    steps: int
    train_pairs: int
    train_prompts: int
    left_out_too_long: int
    first_loss: float
    last_loss: float
    heldout_pairs: int = 0
    accuracy: dict[str, Any] | None = None
    accuracy_minus_length_baseline: dict[str, Any] | None = None
    length_controlled_accuracy: dict[str, Any] | None = None
    likelihood_accuracy_before: dict[str, Any] | None = None
    likelihood_accuracy_after: dict[str, Any] | None = None
    likelihood_accuracy_gain: dict[str, Any] | None = None
    reward_margin: dict[str, Any] | None = None
    better_log_ratio: dict[str, Any] | None = None
    """Nats by which the better answers became likelier (below 0: less likely, which DPO does not forbid)."""
    worse_log_ratio: dict[str, Any] | None = None


@dataclass(frozen=True)
class Compared:
    """A prompt with its answers and pairs, and the reference's log-probability of each answer."""

    element: Element
    reference: tuple[float, ...]


def chunks_of(groups: Sequence[Group], pad: int, dtype: torch.dtype, device: Any) -> list[dict[str, torch.Tensor]]:
    """Packed passes over groups in rising length; answers count through all of them in order.

    Beside what `pack` gives: `sources` and `targets` [M], where in the flattened row each answer token is predicted
    and stands; `owner` [M], its answer.
    """
    found = []
    for part in by_tokens([(g, None) for g in groups], CHUNK_TOKENS):
        packed = pack([g for g, _ in part], pad, dtype, device)
        owners = packed["owners"]
        width = owners.shape[1]
        before = torch.nn.functional.pad(owners[:, :-1], (1, 0), value=-1)
        places = torch.arange(width, device=owners.device).expand_as(owners)
        # an answer's first token is predicted where the prompt ends, the others by the token before them
        prompt_end = (owners >= 0).int().argmax(dim=1, keepdim=True) - 1
        rows = torch.arange(len(owners), device=owners.device)[:, None] * width
        sources = torch.where(before == owners, places - 1, prompt_end) + rows
        chosen = owners >= 0
        packed |= {"sources": sources[chosen], "targets": (places + rows)[chosen], "owner": owners[chosen]}
        found.append(packed)
    return found


def packed_logps(model: Any, packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each answer after its prompt in nats, summed over its tokens, [answers] float32."""
    inputs = {k: packed[k] for k in ("input_ids", "attention_mask", "position_ids")}
    tokens = packed["input_ids"].flatten()[packed["targets"]]
    layer = plain_output_layer(model)
    if layer is None:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[packed["sources"]]
        logps = logps_from_logits(logits, tokens, 1.0)
    else:
        hidden = backbone(model)(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        logps, _ = linear_logps(hidden[packed["sources"]], layer, tokens, 1.0)
    return answer_sums(logps, packed["owner"], len(packed["rows"]))


@torch.no_grad()
def all_logps(model: Any, data: Sequence[Element], pad: int, what: str) -> list[tuple[float, ...]]:
    """The log-probability of every answer of every element; the ranks share the work."""
    share = here().deal(data)
    found: dict[int, tuple[float, ...]] = {}
    order = sorted(range(len(share)), key=lambda i: len(share[i].group))
    with bar(what, len(share)) as advance:
        for part in by_tokens([(share[i].group, i) for i in order], CHUNK_TOKENS):
            (packed,) = chunks_of([g for g, _ in part], pad, model.dtype, model.device)
            values = iter(packed_logps(model, packed).tolist())
            found |= {i: tuple(next(values) for _ in group.answers) for group, i in part}
            advance(len(part))
    return here().gather([found[i] for i in range(len(share))])


def collate(batch: Sequence[Compared], pad: int, dtype: torch.dtype) -> dict[str, Any]:
    """A batch as packed `chunks`, the `reference` [A] and `lengths` [A] of its answers, and its pairs [P]."""
    batch = sorted(batch, key=lambda c: len(c.element.group))
    columns: list[list[Any]] = [[] for _ in range(4)]
    base = 0
    for compared in batch:
        for chosen, rejected, label, weight, _, tie in compared.element.pairs:
            for column, value in zip(columns, (base + chosen, base + rejected, 0.5 if tie else label, weight),
                                     strict=True):
                column.append(value)
        base += len(compared.reference)
    return {
        "chunks": chunks_of([c.element.group for c in batch], pad, dtype, "cpu"),
        "reference": torch.tensor([r for c in batch for r in c.reference]),
        "lengths": torch.tensor([float(len(a)) for c in batch for a in c.element.group.answers]),
        "chosen": torch.tensor(columns[0]), "rejected": torch.tensor(columns[1]),
        "label": torch.tensor(columns[2]), "weight": torch.tensor(columns[3]),
    }


def pair_figures(logps: torch.Tensor, batch: dict[str, Any], config: DPOConfig
                 ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(losses [P], figures [P] without gradient) of a collated batch from its answers' log-probabilities [A]."""
    ratios = log_ratios(logps, batch["reference"], batch["lengths"] if config.averaged else None)
    chosen, rejected = ratios[batch["chosen"]], ratios[batch["rejected"]]
    losses = preference_losses(chosen - rejected, batch["label"], kind=config.loss, beta=config.strength,
                               label_smoothing=config.label_smoothing)
    with torch.no_grad():
        # a label below one half says that `rejected` is the better one
        towards = (chosen - rejected) * torch.where(batch["label"] < 0.5, -1.0, 1.0)
        return losses, {"accuracy": (towards > 0).float() + 0.5 * (towards == 0).float(),
                        "margin": config.strength * (chosen - rejected), "reward_chosen": config.strength * chosen,
                        "reward_rejected": config.strength * rejected}


def run(config: DPOConfig, run: Run) -> DPOSummary:
    """Train, evaluate on held-out prompts, save the policy as `ppo` does. Resumes exactly.

    Raises TrivetError where training and held-out pairs share a first turn, and for input that does not fit.
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    train = read_rows(config.preferences, Preference)
    heldout = read_rows(config.heldout, Preference) if config.heldout else []
    refuse_overlap(train, heldout, config.heldout)
    source = resolve(config.model)
    if source.is_adapter and config.tune != "full":
        raise TrivetError("the policy must start from a whole model, not an adapter", field="model",
                          file=source.folder, mend="tune=full merges it first, or name its base")
    tokenizer = load_tokenizer(source)
    if ensure_template(tokenizer):
        print("the model has no chat template; a plain User:/Assistant: one is used")
    model = _to_train(source, config, compute)
    context = context_length(plain(model))
    data, left_out = elements(train, tokenizer, config.max_length, context, config.preferences)
    held: list[Element] = []
    if config.heldout:
        heldout = decided(heldout, tokenizer, config.max_length, context, config.heldout)
        held, _ = elements(heldout, tokenizer, config.max_length, context, config.heldout)
    pad, dtype = tokenizer.pad_token_id, plain(model).dtype
    tokens = sum(len(e.group) for e in data)
    reference = _reference(model, [*data, *held], pad, run)
    compared = [Compared(e, r) for e, r in zip(data, reference[: len(data)], strict=True)]
    spread = shard.wanted(config.device, compute.device)

    def loss_sum(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        logps = torch.cat([packed_logps(plain(module), chunk) for chunk in batch["chunks"]])
        losses, figures = pair_figures(logps, batch, config)
        loss = (losses * batch["weight"]).sum()
        if spread:
            loss = loss + shard.idle_passes(len(batch["chunks"]),
                                            lambda: packed_logps(plain(module), batch["chunks"][0]))
        return loss, {k: float((v * batch["weight"]).sum()) for k, v in figures.items()}

    steps = fit(
        what="direct preferences", run=run, model=model, data=compared,
        collate=lambda b: collate(b, pad, dtype), loss_sum=loss_sum, items=lambda b: float(b["weight"].sum()),
        epochs=config.epochs, batch=config.batch, micro_batch=config.micro_batch, optimizer=config.optimizer,
        checkpoint=config.checkpoint, compute=compute, seed=config.seed, report_to=config.report_to, spread=spread)
    run.meter.count("trained", round(tokens * config.epochs))
    with shard.whole(model):
        figures = _evaluate(model, heldout, held, reference[len(data) :], pad, config, run) if held else {}
    model = shard.rebuilt(model, lambda: _to_train(source, config, compute))
    if not run.writes:
        return DPOSummary.of_rank_0()
    _save(model, tokenizer, source, steps, config, run)
    losses = [r["loss"] for r in run.rows("metrics")]
    return DPOSummary(steps=steps, train_pairs=len(train) - left_out, train_prompts=len(data),
                      left_out_too_long=left_out, first_loss=losses[0], last_loss=losses[-1], **figures)


def _to_train(source: ModelSource, config: DPOConfig, compute: Compute) -> Any:
    """The policy before training: the reference, with a new adapter that changes nothing yet or as it is."""
    full = config.tune == "full"
    model = load_causal_lm(source, torch.float32 if full else compute.trunk, compute.device)
    no_dropout(model)
    plain_output_layer(model)  # found out now, not inside a pass
    if full:
        return model
    return lora.with_adapter(model, lora.lora_config(model, config.lora, "CAUSAL_LM"))


def _reference(model: Any, data: list[Element], pad: int, run: Run) -> list[tuple[float, ...]]:
    """The reference's log-probabilities of all answers: those kept by an interrupted run, or made now and kept.

    The untrained policy is the reference, so this comes before any checkpoint is loaded.
    """
    path = Path(run.path("reference.safetensors"))
    counts = [len(e.group.answers) for e in data]
    if not here().broadcast(path.is_file()):
        found = all_logps(plain(model), data, pad, "reference")
        run.meter.count("scored", sum(len(e.group) for e in data))
        if here().main:
            temporary = path.with_suffix(".tmp")
            save_file({"logps": torch.tensor([v for values in found for v in values])}, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        return found
    try:
        flat = load_file(path)["logps"].tolist()
    except Exception as error:  # safetensors raises its own kinds for torn files
        raise TrivetError(f"the reference's log-probabilities do not load: {error}", file=path,
                          mend="do this run anew with --overwrite") from None
    places = np.cumsum([0, *counts]).tolist()
    return [tuple(flat[a:b]) for a, b in itertools.pairwise(places)]


def _evaluate(model: Any, rows: list[Preference], held: list[Element], reference: list[tuple[float, ...]], pad: int,
              config: DPOConfig, run: Run) -> dict[str, Any]:
    """Figures on held-out pairs, those of the summary; evaluation.json has more of them."""
    after = all_logps(plain(model), held, pad, "held-out pairs")
    run.meter.count("scored", sum(len(e.group) for e in held))
    turns = {r.prompt_id: first_turn(r.prompt) for r in rows}  # in the order of `held`
    groups: list[str] = []
    table: dict[str, list[tuple[float, float]]] = {"before": [], "after": [], "ratio": [], "tokens": []}
    for element, ref, new, turn in zip(held, reference, after, turns.values(), strict=True):
        lengths = [len(a) for a in element.group.answers]
        ratios = [(n - r) / (size if config.averaged else 1) for n, r, size in zip(new, ref, lengths, strict=True)]
        for chosen, rejected, label, *_ in element.pairs:
            better, worse = (chosen, rejected) if label > 0.5 else (rejected, chosen)
            groups.append(turn)
            for name, values in (("before", ref), ("after", new), ("ratio", ratios), ("tokens", lengths)):
                table[name].append((values[better], values[worse]))
    column = {name: np.array(values, dtype=np.float64) for name, values in table.items()}
    rewards, size = config.strength * column["ratio"], column["tokens"].astype(int)
    found = evaluate_pairs(rewards[:, 0].tolist(), rewards[:, 1].tolist(), size[:, 0].tolist(), size[:, 1].tolist(),
                           groups, seed=config.seed)
    before, now = (pair_correct(column[k][:, 0] - column[k][:, 1]) for k in ("before", "after"))
    moved = column["after"] - column["before"]
    seed = config.seed
    figures = {
        "likelihood_accuracy_before": bootstrap_mean(before, groups, seed=seed).as_dict(),
        "likelihood_accuracy_after": bootstrap_mean(now, groups, seed=seed).as_dict(),
        "likelihood_accuracy_gain": paired_bootstrap(now, before, groups, seed=seed).as_dict(),
        "reward_margin": bootstrap_mean(rewards[:, 0] - rewards[:, 1], groups, seed=seed).as_dict(),
        "better_log_ratio": bootstrap_mean(moved[:, 0], groups, seed=seed).as_dict(),
        "worse_log_ratio": bootstrap_mean(moved[:, 1], groups, seed=seed).as_dict(),
    }
    if run.writes:
        write_json(run.path("evaluation.json"), found.to_dict() | figures)
    run.artifact("evaluation", run.path("evaluation.json"))
    return {k: v for k, v in found.summary().items() if k in DPOSummary.model_fields} | figures


def _save(model: Any, tokenizer: Any, source: ModelSource, steps: int, config: DPOConfig, run: Run) -> None:
    """The policy in the form that `ppo` writes: an adapter folder, or a whole model in float32."""
    facts = {"stage": "dpo", "steps": steps}
    with atomic_folder(run.path("policy")) as folder:
        if config.tune == "lora":
            lora.save_adapter(model, "default", folder, source, {"role": "policy", **facts})
        else:
            model.save_pretrained(folder)
            write_json(folder / "trivet_model.json", {"schema_version": 1, "from": source.name, **facts})
        tokenizer.save_pretrained(folder)
    run.artifact("policy", run.path("policy"))
    if config.merge:
        with atomic_folder(run.path("model")) as folder:
            merge_policy(ModelSource(config.model, run.path("policy")), folder, "dpo")
        run.artifact("model", run.path("model"))
