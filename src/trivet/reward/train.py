"""The stage `reward`: a Bradley–Terry model of people's preferences over a decoder.

InstructGPT's arrangement (Ouyang et al. 2022, section 3.5): all K completions of a prompt are one batch
element, each forwarded once an epoch; here the prompt is forwarded once for all of them, too.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trivet.artifacts import Completions, Message, Preference, atomic_folder, first_turn, read_rows, write_json
from trivet.data.chat import context_length, dialogue_ids, prompt_ids, require_room, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.sample import prompt_seed, text_of
from trivet.generate.torch_engine import TorchEngine
from trivet.judge.calibration import Calibration
from trivet.models import lora
from trivet.models.lower import LowerBlocks, shareable_blocks
from trivet.models.output_layer import backbone
from trivet.models.reward_model import (
    Group,
    RewardModel,
    as_scorer,
    by_tokens,
    head_of,
    pack,
    packed_scores,
    plain,
    trainable_reward_model,
)
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve, weights_sha256
from trivet.reward.config import RewardConfig
from trivet.reward.evaluate import Evaluation, evaluate_pairs
from trivet.reward.loss import bradley_terry_loss, centering_loss, davidson_loss
from trivet.runs import Run, Summary
from trivet.training import shard
from trivet.training.device import Compute, prepare, seed_all
from trivet.training.progress import bar
from trivet.training.trainer import fit


class RewardSummary(Summary):
    """What came out. Intervals are 95%, by bootstrap over prompts; accuracies are on held-out prompts."""

    steps: int
    train_pairs: int
    train_prompts: int
    left_out_too_long: int
    heldout_pairs: int = 0
    accuracy: dict[str, Any] | None = None
    longer_wins: dict[str, Any] | None = None
    shorter_wins: dict[str, Any] | None = None
    accuracy_minus_length_baseline: dict[str, Any] | None = None
    length_controlled_accuracy: dict[str, Any] | None = None
    expected_calibration_error: float | None = None
    reference_mean: float
    reference_std: float


@dataclass(frozen=True)
class Element:
    """One batch element: a prompt's completions and the pairs among them, by index."""

    group: Group
    pairs: tuple[tuple[int, int, float, float, float, bool], ...]
    """(chosen, rejected, label, weight, margin, tie)"""
    states: torch.Tensor | None = None
    """[tokens, H]: what the frozen blocks make of the group, where it is kept."""

    @property
    def weight(self) -> float:
        return sum(p[3] for p in self.pairs)


def elements(
    rows: list[Preference], tokenizer: Any, limit: int | None, context: int | None, file: Path
) -> tuple[list[Element], int]:
    """Pairs gathered by prompt; each different completion once. Returns also how many pairs were left out.

    Raises TrivetError for a dialogue longer than the context where no `limit` says to leave such out.
    """
    by_prompt: dict[str, list[Preference]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    found: list[Element] = []
    left_out = 0
    for members in by_prompt.values():
        messages = members[0].prompt
        texts: dict[str, tuple[int, ...]] = {}
        start = 0
        for row in members:
            for text in (row.chosen, row.rejected):
                if text not in texts:
                    ids, start = dialogue_ids(tokenizer, messages, text.strip())
                    texts[text] = tuple(ids)
        most = min(x for x in (limit, context, 2**31) if x is not None)
        kept = [r for r in members if max(len(texts[r.chosen]), len(texts[r.rejected])) <= most]
        if len(kept) < len(members) and limit is None:
            raise _too_long(next(r.id for r in members if r not in kept), context, file)
        left_out += len(members) - len(kept)
        if not kept:
            continue
        used = {text: i for i, text in enumerate(
            dict.fromkeys(t for r in kept for t in (r.chosen, r.rejected)))}
        prompt = texts[kept[0].chosen][:start]
        found.append(Element(
            Group(tuple(prompt), tuple(texts[t][start:] for t in used)),
            tuple((used[r.chosen], used[r.rejected], r.label, r.weight, r.margin, r.tie) for r in kept)))
    if not found:
        raise TrivetError(f"no pair is left: all are longer than {limit} tokens", file=file, field="max_length",
                          mend="raise --max-length, or leave it out")
    return found, left_out


def decided(rows: list[Preference], tokenizer: Any, limit: int | None, context: int | None,
            file: Path) -> list[Preference]:
    """The held-out pairs to evaluate on: neither tied nor longer than `limit`.

    Raises TrivetError for one longer than the context where no `limit` says to leave such out, and for none left.
    """
    most = min(x for x in (limit, context, 2**31) if x is not None)
    kept = []
    for row in rows:
        longest = max(len(dialogue_ids(tokenizer, row.prompt, t.strip())[0]) for t in (row.chosen, row.rejected))
        if longest > most and limit is None:
            raise _too_long(row.id, context, file)
        if longest <= most and not row.tie and row.label != 0.5:
            kept.append(row)
    if not kept:
        raise TrivetError("no held-out pair is left to evaluate on: all are tied, or longer than --max-length",
                          file=file, field="heldout", mend="give other held-out pairs, or none")
    return kept


def _too_long(pair: str, context: int | None, file: Path) -> TrivetError:
    return TrivetError(f"pair {pair!r} is longer than the model's context of {context} tokens", file=file,
                       field="prompt", mend=f"shorten it, or leave such pairs out with --max-length {context}")


CHUNK_TOKENS = 1024  # padded tokens that are forwarded at once


def collate(batch: list[Element], pad: int, dtype: torch.dtype) -> dict[str, Any]:
    """A batch of elements as tensors: `chunks` of like length, so that a long dialogue does not pad a short one,
    and pairs, whose indices count through all answers of all chunks in order."""
    batch = sorted(batch, key=lambda e: len(e.group))
    chunks = [_chunk([e for _, e in part], pad, dtype)
              for part in by_tokens([(e.group, e) for e in batch], CHUNK_TOKENS)]
    columns: list[list[Any]] = [[] for _ in range(6)]
    base = 0
    for element in batch:
        for chosen, rejected, *rest in element.pairs:
            for column, value in zip(columns, (base + chosen, base + rejected, *rest), strict=True):
                column.append(value)
        base += len(element.group.answers)
    names = ("chosen", "rejected", "label", "weight", "margin", "tie")
    kinds = (torch.long, torch.long, torch.float32, torch.float32, torch.float32, torch.bool)
    return {"chunks": chunks} | {n: torch.tensor(c, dtype=k) for n, c, k in zip(names, columns, kinds, strict=True)}


def _chunk(part: list[Element], pad: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    packed = pack([e.group for e in part], pad, dtype, "cpu")
    states = [e.states for e in part if e.states is not None]
    if states:
        packed["states"] = nn.utils.rnn.pad_sequence(states, batch_first=True)
    return packed


@torch.no_grad()
def keep_states(data: list[Element], model: Any, count: int, pad: int) -> list[Element]:
    """The elements, each with what the first `count` blocks make of it: computed once for all epochs."""
    inner, found = plain(model), []
    with bar("frozen blocks", len(data)) as advance:
        for element in data:
            packed = pack([element.group], pad, inner.dtype, inner.device)
            lower = LowerBlocks(count)
            with lower.on(inner):
                backbone(inner)(input_ids=packed["input_ids"], attention_mask=packed["attention_mask"],
                                position_ids=packed["position_ids"], use_cache=False)
            assert lower.hidden is not None
            found.append(replace(element, states=lower.hidden[0].cpu()))
            advance()
    return found


def pair_loss(scores: torch.Tensor, batch: dict[str, Any], config: RewardConfig,
              log_nu: torch.Tensor | None) -> torch.Tensor:
    """The loss of a batch, a mean over pairs by weight."""
    pairs = (scores, batch["chosen"], batch["rejected"])
    if log_nu is not None:
        loss = davidson_loss(*pairs, batch["tie"], log_nu, label=batch["label"], weight=batch["weight"])
    else:
        loss = bradley_terry_loss(
            *pairs, label=batch["label"], weight=batch["weight"],
            margin=batch["margin"] if config.margin else None, label_smoothing=config.label_smoothing)
    if config.centering:
        loss = loss + config.centering * centering_loss(*pairs, weight=batch["weight"])
    return loss


def run(config: RewardConfig, run: Run) -> RewardSummary:
    """Train, evaluate on held-out prompts, calibrate on the reference's own answers, save.

    Raises TrivetError where training and held-out pairs share a first turn, and for input that does not fit.
    """
    compute = prepare(config.device, run.meter)
    seed_all(config.seed)
    train = read_rows(config.preferences, Preference)
    heldout = read_rows(config.heldout, Preference) if config.heldout else []
    refuse_overlap(train, heldout, config.heldout)
    source = resolve(config.model)
    if source.is_adapter:
        raise TrivetError("the trunk of a reward model must be a whole model, not an adapter", field="model",
                          file=source.folder, mend="name the adapter's base model")

    def build() -> tuple[Any, Any]:
        return trainable_reward_model(source, compute.trunk, compute.device,
                                      config.lora if config.tune == "lora" else None,
                                      head_only=config.tune == "head")

    model, tokenizer = build()
    context = context_length(plain(model))
    data, left_out = elements(train, tokenizer, config.max_length, context, config.preferences)
    # what follows the training is looked at before it
    heldout = decided(heldout, tokenizer, config.max_length, context, config.heldout) if config.heldout else []
    reference = _reference_rows(config)
    if reference is None:
        chosen = _calibration_prompts(train, config)
        require_room([len(prompt_ids(tokenizer, p)) for p in chosen.values()],
                     config.calibration.sampling.max_new_tokens, context, file=config.preferences, ids=list(chosen),
                     setting="calibration.sampling.max-new-tokens")
    log_nu: nn.Parameter | None = None
    if config.loss == "davidson":
        log_nu = nn.Parameter(torch.zeros((), device=compute.device))
        model.register_parameter("log_nu", log_nu)
    elif any(r.tie for r in train):
        raise TrivetError("these pairs hold declared ties, which Bradley–Terry has no place for", field="loss",
                          file=config.preferences, mend="use --loss davidson, or `trivet pairs` without --keep-ties")
    dtype = plain(model).dtype

    prompts, tokens = len(data), sum(len(e.group) for e in data)
    size = tokens * plain(model).config.get_text_config().hidden_size * dtype.itemsize
    frozen = 0
    if config.tune != "full" and config.epochs > 1 and size <= config.keep_states * 1e9:
        frozen = shareable_blocks(plain(model), lambda _, parameter: parameter.requires_grad)
    if frozen:
        data = keep_states(data, model, frozen, tokenizer.pad_token_id)

    def loss_sum(module: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        decoder, head = backbone(plain(module)), head_of(module)
        parts = []
        for chunk in batch["chunks"]:
            known = LowerBlocks(frozen, chunk["states"]).on(plain(module)) if "states" in chunk else nullcontext()
            with known:
                parts.append(packed_scores(decoder, head, chunk, config.pool))
        scores = torch.cat(parts)
        weight = batch["weight"].sum()
        with torch.no_grad():
            diff = scores[batch["chosen"]] - scores[batch["rejected"]]
            right = ((diff > 0).float() + 0.5 * (diff == 0).float()) * batch["weight"]
        loss = pair_loss(scores, batch, config, log_nu) * weight
        if spread:
            loss = loss + shard.idle_passes(
                len(parts), lambda: packed_scores(decoder, head, batch["chunks"][0], config.pool))
        return loss, {"accuracy": float(right.sum())}

    spread = shard.wanted(config.device, compute.device)
    steps = fit(
        what="reward model", run=run, model=model, data=data,
        collate=lambda b: collate(b, tokenizer.pad_token_id, dtype), loss_sum=loss_sum,
        items=lambda b: float(b["weight"].sum()), epochs=config.epochs, batch=config.batch,
        micro_batch=config.micro_batch, optimizer=config.optimizer, checkpoint=config.checkpoint,
        compute=compute, seed=config.seed, report_to=config.report_to, spread=spread)
    del data
    gc.collect()  # the Trainer holds the kept states in a cycle; the memory is needed for what follows
    run.meter.count("trained", round(tokens * config.epochs))
    model = shard.rebuilt(model, lambda: build()[0])
    if not run.writes:
        return RewardSummary.of_rank_0()
    scorer = as_scorer(model, tokenizer, source, config.pool)
    evaluation = _evaluate(scorer, heldout, config, run) if heldout else None
    calibration, facts = _calibrate(scorer, train, reference, config, source, compute, run)
    folder = _save(model, tokenizer, source, calibration, facts, config, run)
    run.artifact("reward", folder)
    figures = evaluation.summary() if evaluation else {}
    return RewardSummary(
        steps=steps, train_pairs=len(train) - left_out, train_prompts=prompts, left_out_too_long=left_out,
        reference_mean=calibration.mean, reference_std=calibration.std, **figures)


def refuse_overlap(train: list[Preference], heldout: list[Preference], file: Path | None) -> None:
    """Raise TrivetError where held-out pairs, of `file`, begin with a turn that training pairs begin with."""
    seen = {first_turn(r.prompt).strip() for r in train}
    shared = [r.id for r in heldout if first_turn(r.prompt).strip() in seen]
    if shared:
        raise TrivetError(
            f"{len(shared)} held-out pairs begin with a turn that training pairs begin with, too "
            f"(the first: {shared[0]!r})", file=file, field="prompt",
            mend="split by prompt: `trivet pairs --heldout 0.2` does")


def _evaluate(scorer: RewardModel, heldout: list[Preference], config: RewardConfig, run: Run) -> Evaluation:
    dialogues: list[tuple[list[Message], str]] = []
    for row in heldout:
        # a soft label below one half says that `rejected` is the better one
        better, worse = (row.chosen, row.rejected) if row.label > 0.5 else (row.rejected, row.chosen)
        dialogues += [(row.prompt, better), (row.prompt, worse)]
    scores = scorer.score(dialogues, count=run.meter.count)
    lengths = [len(scorer.token_ids(m, t)[1]) for m, t in dialogues]
    evaluation = evaluate_pairs(scores[::2], scores[1::2], lengths[::2], lengths[1::2],
                                [first_turn(r.prompt) for r in heldout], seed=config.seed)
    write_json(run.path("evaluation.json"), evaluation.to_dict())
    run.artifact("evaluation", run.path("evaluation.json"))
    return evaluation


def _reference_rows(config: RewardConfig) -> list[Completions] | None:
    """The reference's answers that were given, if any. Raises TrivetError for another model's."""
    file = config.calibration.completions
    if file is None:
        return None
    rows = read_rows(file, Completions)
    models = {c.model for r in rows for c in r.completions}
    if models != {config.model}:
        raise TrivetError(
            f"these answers are of {', '.join(map(str, sorted(models, key=str)))}, not of the reference "
            f"{config.model}", file=file, field="calibration.completions",
            mend="sample from the reference (`trivet sample`), or leave the setting out")
    return rows


def _calibration_prompts(train: list[Preference], config: RewardConfig) -> dict[str, list[Message]]:
    """The prompts, by id, that the reference answers for the calibration."""
    prompts = {r.prompt_id: r.prompt for r in train}
    most = config.calibration.answers
    return {i: prompts[i] for i in sorted(prompts)[:: max(1, len(prompts) // most)][:most]}


def _calibrate(
    scorer: RewardModel, train: list[Preference], rows: list[Completions] | None, config: RewardConfig,
    source: ModelSource, compute: Compute, run: Run,
) -> tuple[Calibration, dict[str, Any]]:
    """Fit the calibration on answers of the base model itself, which will be PPO's reference: those given, or new."""
    settings = config.calibration
    if rows is not None:
        # round by round: the first answer of every prompt, then the second …
        rounds = max(len(r.completions) for r in rows)
        dialogues = [(r.messages, r.completions[k].text) for k in range(rounds) for r in rows
                     if k < len(r.completions)][: settings.answers]
        sampling: dict[str, Any] | None = rows[0].completions[0].sampling
    else:
        chosen = _calibration_prompts(train, config)
        tokenizer = load_tokenizer(source)
        tokenizer.chat_template = scorer.tokenizer.chat_template
        model = load_causal_lm(source, compute.trunk, compute.device)
        engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer),
                             tokenizer=tokenizer)
        ids = [prompt_ids(tokenizer, p) for p in chosen.values()]
        answers = engine.generate(ids, settings.sampling, n=1, seeds=[prompt_seed(config.seed, i) for i in chosen])
        run.meter.count("prompt", sum(map(len, ids)))
        run.meter.count("generated", sum(len(g.token_ids) for a in answers for g in a))
        dialogues = [(p, text_of(tokenizer, a[0], settings.sampling.stop))
                     for p, a in zip(chosen.values(), answers, strict=True)]
        sampling = settings.sampling.model_dump()
    try:
        calibration = Calibration.fit(scorer.score(dialogues, count=run.meter.count))
    except ValueError as error:
        raise TrivetError(f"the scores can't be calibrated: {error}", field="calibration",
                          mend="give more reference answers, or train the reward model longer") from None
    return calibration, {"reference": config.model, "reference_sha256": weights_sha256(source.folder),
                         "sampling": sampling}


def _save(model: Any, tokenizer: Any, source: ModelSource, calibration: Calibration, facts: dict[str, Any],
          config: RewardConfig, run: Run) -> Path:
    with atomic_folder(run.path("reward")) as folder:
        if config.tune != "full":
            lora.save_adapter(model, "default", folder, source, {"role": "reward", "trivet_pool": config.pool})
        else:
            model.config.trivet_pool = config.pool
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "calibration.json", {"schema_version": 1, **facts, **calibration.to_dict()})
    return run.path("reward")
