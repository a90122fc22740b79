"""A reward model: a decoder's hidden states of an answer through a one-number head.

It is kept in the field's own form (sequence classification with one label): a whole model folder, or a PEFT
adapter with its `score` head, so that other programs load it too. `calibration.json` beside it places its
scores among those of the reference model's own answers. The field's form reads the last token; a model that
reads the mean over the answer (`pool: mean`) says so in its folder, and other programs would read it wrongly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import nn

from trivet.artifacts import Message, read_json
from trivet.config import LoRA
from trivet.data.chat import context_length, dialogue_ids, ensure_template
from trivet.errors import TrivetError
from trivet.models import lora
from trivet.models.output_layer import backbone
from trivet.models.roles import Roles, no_dropout
from trivet.models.source import ModelSource, adapter_base, load_sequence_classifier, load_tokenizer

T = TypeVar("T")
Pool = Literal["last", "mean"]
"""What of an answer the head reads: the state of its last token, or the mean over its tokens."""


@dataclass(frozen=True)
class Group:
    """A prompt and the answers to it, in token ids: one batch element, whose prompt is forwarded once."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


def pack(groups: Sequence[Group], pad: int, dtype: torch.dtype, device: Any) -> dict[str, torch.Tensor]:
    """Groups as rows `prompt, answer 1, …, answer K`, in which no answer sees another.

    Returns input_ids [N, T], position_ids [N, T] (every answer goes on where the prompt ended), an additive
    attention_mask [N, 1, T, T], `rows`, `ends` [total answers]: where each answer's last token stands, and
    `owners` [N, T]: the number of the answer that a token belongs to, -1 for prompts and padding.
    A causal decoder gives each answer the hidden states it would have alone after its prompt.
    """
    width = max(map(len, groups))
    ids = torch.full((len(groups), width), pad, dtype=torch.long)
    place = torch.zeros((len(groups), width), dtype=torch.long)
    part = torch.full((len(groups), width), -1, dtype=torch.long)  # 0 prompt, k the k-th answer, -1 padding
    owners = torch.full((len(groups), width), -1, dtype=torch.long)
    rows: list[int] = []
    ends: list[int] = []
    for i, group in enumerate(groups):
        start = len(group.prompt)
        ids[i, :start] = torch.tensor(group.prompt)
        place[i, :start] = torch.arange(start)
        part[i, :start] = 0
        for k, answer in enumerate(group.answers, 1):
            end = start + len(answer)
            ids[i, start:end] = torch.tensor(answer)
            place[i, start:end] = torch.arange(len(group.prompt), len(group.prompt) + len(answer))
            part[i, start:end] = k
            owners[i, start:end] = len(rows)
            rows.append(i)
            ends.append(end - 1)
            start = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    sees = causal & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))
    mask = torch.full((len(groups), 1, width, width), torch.finfo(dtype).min, dtype=dtype)
    mask.masked_fill_(sees[:, None], 0.0)  # padding sees padding: a row that sees nothing would be NaN
    packed = {"input_ids": ids, "position_ids": place, "attention_mask": mask, "owners": owners,
              "rows": torch.tensor(rows), "ends": torch.tensor(ends)}
    return {k: v.to(device) for k, v in packed.items()}


def packed_scores(decoder: Any, head: nn.Module, packed: dict[str, torch.Tensor], pool: Pool) -> torch.Tensor:
    """Scores [total answers], float32: the head on what `pool` says of each answer's hidden states."""
    hidden = decoder(input_ids=packed["input_ids"], attention_mask=packed["attention_mask"],
                     position_ids=packed["position_ids"], use_cache=False).last_hidden_state
    if pool == "last":
        return head(hidden[packed["rows"], packed["ends"]].float()).squeeze(-1)
    owners = packed["owners"].flatten()
    chosen = owners >= 0
    sums = torch.zeros(len(packed["rows"]), hidden.shape[-1], device=hidden.device)
    sums = sums.index_add(0, owners[chosen], hidden.flatten(0, 1)[chosen].float())
    counts = torch.bincount(owners[chosen], minlength=len(sums)).clamp(min=1)  # an empty answer: a state of zeros
    return head(sums / counts[:, None]).squeeze(-1)


BATCH_TOKENS = 4096  # padded tokens a pass of a reward model


class RewardModel:
    """Text in, raw scores out (logits of the Bradley–Terry model). It reads text, never token ids (detail 7)."""

    def __init__(
        self, tokenizer: Any, head: nn.Module, use: Callable[[], contextlib.AbstractContextManager[Any]],
        *, context: int | None, source: ModelSource, parameters: int, pool: Pool,
    ) -> None:
        self.tokenizer, self.head, self._use, self.pool = tokenizer, head, use, pool
        self.context, self.source, self.parameters = context, source, parameters

    def token_ids(self, messages: Sequence[Message], answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(prompt, answer) in the reward model's own vocabulary.

        Raises TrivetError where together they are longer than the context.
        """
        ids, start = dialogue_ids(self.tokenizer, messages, answer.strip())
        if self.context is not None and len(ids) > self.context:
            raise TrivetError(
                f"a dialogue of {len(ids)} tokens is longer than the reward model's context of "
                f"{self.context}", field="messages", mend="shorten the prompt or the answer")
        return tuple(ids[:start]), tuple(ids[start:])

    @torch.no_grad()
    def score(self, dialogues: Sequence[tuple[Sequence[Message], str]], *, batch_tokens: int = BATCH_TOKENS,
              count: Callable[[str, int], None] | None = None) -> list[float]:
        """Raw scores of (messages, answer) pairs. Answers to one prompt share its pass.

        batch_tokens: padded tokens a pass at most. count: told how many tokens were `scored`.
        """
        by_prompt: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for index, (messages, answer) in enumerate(dialogues):
            prompt, ids = self.token_ids(messages, answer)
            by_prompt.setdefault(prompt, []).append((index, ids))
        groups: list[tuple[Group, list[int]]] = []
        for prompt, members in by_prompt.items():
            for start in range(0, len(members), MAX_ANSWERS):
                part = members[start : start + MAX_ANSWERS]
                groups.append((Group(prompt, tuple(a for _, a in part)), [i for i, _ in part]))
        groups.sort(key=lambda g: len(g[0]))
        if count is not None:
            count("scored", sum(len(g) for g, _ in groups))
        scores = [0.0] * len(dialogues)
        with self._use() as model:
            for batch in by_tokens(groups, batch_tokens):
                packed = pack([g for g, _ in batch], self.tokenizer.pad_token_id, model.dtype, model.device)
                found = packed_scores(backbone(model), self.head, packed, self.pool).tolist()
                for index, value in zip((i for _, members in batch for i in members), found, strict=True):
                    scores[index] = value
        return scores


MAX_ANSWERS = 16  # answers in one row: its attention grows with the square of its length


def by_tokens(groups: Sequence[tuple[Group, T]], limit: int) -> Iterator[list[tuple[Group, T]]]:
    """Cut groups (in rising length) into batches whose padded size stays within `limit` tokens."""
    batch: list[tuple[Group, T]] = []
    for item in groups:
        if batch and len(item[0]) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def trainable_reward_model(
    source: ModelSource, dtype: torch.dtype, device: str, adapters: LoRA | None, *, head_only: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) to train: sequence classification, one label, its head at zero, dropout off.

    adapters: LoRA over a trunk in `dtype`; None trains all weights in float32. head_only: the head alone learns;
    it is an adapter, too, whose LoRA part in the last block stays zero, so that it is saved and loaded alike.
    """
    tokenizer = load_tokenizer(source)
    ensure_template(tokenizer)
    if head_only:
        adapters = LoRA(r=1, alpha=1, targets="attention", last_layers=1)
    model = load_sequence_classifier(source, torch.float32 if adapters is None else dtype, device)
    model.config.pad_token_id = tokenizer.pad_token_id
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise TrivetError(f"{type(model).__name__} has no `score` layer", field="model",
                          mend="use a decoder-only model (Llama, Qwen, Mistral, GPT-2 … kinds)")
    nn.init.zeros_(model.score.weight)
    model.score.float()
    no_dropout(model)
    if adapters is None:
        return model, tokenizer
    config = lora.lora_config(model, adapters, "SEQ_CLS")
    config.modules_to_save = ["score"]
    model = lora.with_adapter(model, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(not head_only or "score" in name)
    return model, tokenizer


def plain(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> nn.Module:
    """The scoring head, the trained copy where PEFT keeps one."""
    head = plain(model).score
    return head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head


def pool_of(source: ModelSource) -> Pool:
    """What of an answer a saved reward model reads, as its folder says; the field's form reads the last token.

    Raises TrivetError for a folder that says something else.
    """
    file = source.folder / ("trivet_adapter.json" if source.is_adapter else "config.json")
    pool = read_json(file).get("trivet_pool", "last") if file.is_file() else "last"
    if pool not in get_args(Pool):
        raise TrivetError(f"{pool!r} is no way to read an answer", file=file, field="trivet_pool",
                          expected=" or ".join(get_args(Pool)), mend="train the reward model again")
    return cast(Pool, pool)


def as_scorer(model: Any, tokenizer: Any, source: ModelSource, pool: Pool) -> RewardModel:
    """A loaded sequence classifier (PEFT-wrapped or plain) as a RewardModel."""
    inner = plain(model)
    return RewardModel(
        tokenizer, head_of(model), lambda: contextlib.nullcontext(inner), context=context_length(inner),
        source=source, parameters=sum(p.numel() for p in inner.parameters()), pool=pool)


def is_reward_folder(source: ModelSource) -> bool:
    """Whether a folder is a reward model: an adapter with a head, or a sequence classifier."""
    if source.is_adapter:
        return read_json(source.folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
    names = read_json(source.folder / "config.json").get("architectures") or []
    return any("SequenceClassification" in n for n in names)


def load_reward_model(source: ModelSource, dtype: torch.dtype, device: str) -> RewardModel:
    """A reward model from its folder, with weights of its own.

    Raises TrivetError where the folder is no reward model.
    """
    _require_reward(source)
    tokenizer = load_tokenizer(source)
    ensure_template(tokenizer)
    base = adapter_base(source) if source.is_adapter else source
    model = load_sequence_classifier(base, dtype, device)
    if source.is_adapter:
        from peft import PeftModel

        head_weight(source)  # a damaged adapter is found out here, in words
        model = PeftModel.from_pretrained(model, str(source.folder)).eval()
    no_dropout(model)
    model.requires_grad_(False)
    head_of(model).float()
    return as_scorer(model, tokenizer, source, pool_of(source))


def head_weight(source: ModelSource) -> torch.Tensor:
    """The head in a reward adapter's folder. Raises TrivetError for an adapter that is damaged or has none."""
    for name, tensor in lora.adapter_tensors(source.folder).items():
        if name.endswith("score.weight"):
            return tensor
    raise TrivetError("this adapter has no `score` head", file=source.folder, field="reward",
                      mend="give a folder written by `trivet reward`")


def _require_reward(source: ModelSource) -> None:
    if not is_reward_folder(source):
        raise TrivetError("this folder is no reward model", file=source.folder, field="reward",
                          expected="a folder written by `trivet reward`, or a sequence classifier with one label",
                          mend="train one: trivet reward --preferences FILE")


def reward_on_trunk(roles: Roles, role: str, source: ModelSource, device: str) -> RewardModel:
    """A reward model whose adapter is already loaded on the roles' trunk; only its head is new memory."""
    _require_reward(source)
    weight = head_weight(source)
    head = nn.Linear(weight.shape[1], 1, bias=False, dtype=torch.float32, device=device)
    head.weight.data.copy_(weight)
    head.requires_grad_(False)
    tokenizer = load_tokenizer(source)
    ensure_template(tokenizer)
    with roles.model(role) as model:
        context, parameters = context_length(model), sum(p.numel() for p in model.parameters())
    return RewardModel(tokenizer, head, lambda: roles.model(role), context=context, source=source,
                       parameters=parameters, pool=pool_of(source))
