"""Smaller models out of larger ones: whole blocks left out, feed-forward channels and attention groups cut away.

What comes back is an ordinary model of the same class with another configuration, so that the folder it is saved to
loads in plain `AutoModelForCausalLM` and in every other loader. For that all blocks keep one size, and heads theirs:
what is cut of attention is a key/value head together with the query heads that share it. Tied embeddings stay tied.

Known are decoders laid out as Llama is (`KNOWN`); any other is refused by name, not guessed at.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trivet.errors import TrivetError

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""`model_type` of the configurations whose blocks are known: `self_attn.{q,k,v,o}_proj`, `mlp.{gate,up,down}_proj`."""
PER_LAYER = ("layer_types", "no_rope_layers")
"""Lists in a configuration that hold one entry a block."""
_BLOCK = re.compile(r"^(model\.layers\.)(\d+)(\..+)$")


@dataclass(frozen=True)
class Sizes:
    """What can be cut of a model, as its configuration says."""

    layers: int
    channels: int
    """Width of the feed-forward part, of every block."""
    groups: int
    """Key/value heads; each is shared by `heads // groups` query heads."""
    heads: int
    head_dim: int


def sizes(model: Any) -> Sizes:
    """The sizes of a model. Raises TrivetError for an architecture that is not known."""
    config = model.config
    if config.model_type not in KNOWN:
        raise TrivetError(f"models of the architecture {config.model_type!r} can't be cut smaller", field="model",
                          expected=f"one of: {', '.join(KNOWN)}",
                          mend="give such a model; single weights can be pruned in others too (magnitude, wanda, "
                          "sparsegpt)")
    heads = int(config.num_attention_heads)
    return Sizes(layers=int(config.num_hidden_layers), channels=int(config.intermediate_size),
                 groups=int(config.num_key_value_heads or heads), heads=heads,
                 head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads))


def drop_layers(model: Any, keep: Sequence[int]) -> Any:
    """A new model of the blocks `keep` alone, in their order. The weights are copies.

    keep: indices of blocks, rising. Raises TrivetError for an unknown architecture, ValueError for indices that are not
    rising or not there.
    """
    found = sizes(model)
    _require_rising(keep, found.layers, "blocks")
    place = {old: new for new, old in enumerate(keep)}

    def name(key: str) -> str | None:
        block = _BLOCK.match(key)
        if block is None:
            return key
        old = int(block[2])
        return f"{block[1]}{place[old]}{block[3]}" if old in place else None

    settings: dict[str, Any] = {"num_hidden_layers": len(keep)}
    for each in PER_LAYER:
        if (entries := getattr(model.config, each, None)) is not None:
            settings[each] = [entries[i] for i in keep]
    state = {new: tensor for key, tensor in model.state_dict().items() if (new := name(key)) is not None}
    return _rebuilt(model, settings, state)


def evenly_spaced(layers: int, count: int) -> list[int]:
    """`count` of `layers` blocks, evenly spaced, first and last among them (as DistilBERT's student is started).

    Raises ValueError where count is not between 1 and layers. One block alone is the first.
    """
    if not 1 <= count <= layers:
        raise ValueError(f"{count} of {layers} blocks")
    return [0] if count == 1 else [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def keep_channels(model: Any, keep: Sequence[Sequence[int]]) -> Any:
    """A new model with the feed-forward channels `keep[i]` of each block i alone. The weights are copies.

    keep: for each block indices of channels, rising, in every block the same number. Raises TrivetError for an unknown
    architecture, ValueError for indices that don't fit.
    """
    found = sizes(model)
    count = _require_equal(keep, found.layers, found.channels, "channels")
    rows = [torch.tensor(list(k)) for k in keep]

    def cut(block: int, part: str, tensor: Tensor) -> Tensor:
        if part.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
            return tensor[rows[block].to(tensor.device)]
        if part == "mlp.down_proj.weight":
            return tensor[:, rows[block].to(tensor.device)]
        return tensor

    return _rebuilt(model, {"intermediate_size": count}, _cut_blocks(model, cut))


def keep_groups(model: Any, keep: Sequence[Sequence[int]]) -> Any:
    """A new model with the attention groups `keep[i]` of each block i alone: key/value heads and their query heads.

    keep: for each block indices of key/value heads, rising, in every block the same number; the size of a head stays,
    and the configuration says it (`head_dim`). The weights are copies. Raises TrivetError for an unknown architecture
    and for a number of heads with which its configuration can't be loaded, ValueError for indices that don't fit.
    """
    found = sizes(model)
    count = _require_equal(keep, found.layers, found.groups, "attention groups")
    each = found.heads // found.groups
    wide = [group_columns(k, found.head_dim * each) for k in keep]
    narrow = [group_columns(k, found.head_dim) for k in keep]

    def cut(block: int, part: str, tensor: Tensor) -> Tensor:
        if part.startswith("self_attn.q_proj."):
            return tensor[wide[block].to(tensor.device)]
        if part.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
            return tensor[narrow[block].to(tensor.device)]
        if part == "self_attn.o_proj.weight":
            return tensor[:, wide[block].to(tensor.device)]
        return tensor

    return _rebuilt(model, _group_settings(found, count), _cut_blocks(model, cut))


def require_groups(model: Any, count: int) -> None:
    """Raise TrivetError where a model of so many attention groups could not be loaded."""
    _configured(model, _group_settings(sizes(model), count))


def _group_settings(found: Sizes, count: int) -> dict[str, int]:
    return {"num_key_value_heads": count, "num_attention_heads": count * (found.heads // found.groups),
            "head_dim": found.head_dim}


def group_columns(groups: Sequence[int], width: int) -> Tensor:
    """Indices of the columns of `groups`, each of which has `width` of them side by side: [len(groups) * width]."""
    return (torch.tensor(list(groups))[:, None] * width + torch.arange(width)).flatten()


def _cut_blocks(model: Any, cut: Callable[[int, str, Tensor], Tensor]) -> dict[str, Tensor]:
    state = {}
    for key, tensor in model.state_dict().items():
        block = _BLOCK.match(key)
        state[key] = tensor if block is None else cut(int(block[2]), block[3][1:], tensor)
    return state


def _rebuilt(model: Any, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
    """A model of the same class, with `settings` in its configuration and `state` copied into it."""
    from transformers.initialization import no_init_weights

    config = _configured(model, settings)
    first = next(model.parameters())
    with no_init_weights():  # every weight comes from `state`
        smaller = type(model)._from_config(config, dtype=first.dtype)
    smaller.tie_weights()  # which no_init_weights leaves out as well
    smaller.load_state_dict(dict(state), strict=True)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(first.device).train(model.training)


def _configured(model: Any, settings: Mapping[str, Any]) -> Any:
    config = copy.deepcopy(model.config)
    for name, value in settings.items():
        setattr(config, name, value)
    try:
        config.validate()  # what a loader will ask of the saved configuration
    except Exception as error:  # it raises its own kind, around any other
        raise TrivetError(f"with these sizes the model can't be loaded: {str(error).strip().splitlines()[-1].strip()}",
                          field="model", mend="cut another number of attention groups") from error
    return config


def _require_rising(keep: Sequence[int], count: int, what: str) -> None:
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= count:
        raise ValueError(f"{list(keep)} are not rising indices of {count} {what}")


def _require_equal(keep: Sequence[Sequence[int]], layers: int, count: int, what: str) -> int:
    """How many of `what` each block keeps."""
    if len(keep) != layers:
        raise ValueError(f"what to keep is given for {len(keep)} blocks, there are {layers}")
    for chosen in keep:
        _require_rising(chosen, count, what)
    if len({len(chosen) for chosen in keep}) > 1:
        raise ValueError(f"blocks keep different numbers of {what}: an ordinary configuration has one for all")
    return len(keep[0])
