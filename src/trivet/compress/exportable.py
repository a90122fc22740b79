"""Which models can be written for a runtime of their own (GGUF, OpenVINO): Llama's form, whole attention, SiLU."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trivet.errors import TrivetError


def require_form(config: Any, kinds: Collection[str], *, written: str, by: str) -> None:
    """Raise TrivetError for a model that is none of `kinds`, or computes what the runtime does not.

    written: `as GGUF`. by: who computes there, for messages.
    """
    if config.model_type not in kinds:
        raise TrivetError(f"a model of the kind {config.model_type!r} can't be written {written} here",
                          field="model", expected=", ".join(kinds),
                          mend="choose another format, such as compressed-tensors")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True):
        raise TrivetError(f"its attention sees the last {window} tokens only, which {by} does not do",
                          field="sliding_window", mend="choose another format")
    if config.hidden_act != "silu":
        raise TrivetError(f"its activation is {config.hidden_act!r}, {by} computes silu for such models",
                          field="hidden_act", mend="choose another format")


def head_dim(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
