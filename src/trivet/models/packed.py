"""Passes without padding: the tokens of several sequences in one row, a prompt that some of them share only once.

All of a decoder but its attention works token by token, and so on no padding here. Attention alone lays the row out
again as one sequence a line, padded on the right, where no real token looks at padding and no mask is needed; a
shared prompt stands there in each of its lines. Grouped heads go to the kernel as they are, without copies.

Whether a model bears it is found out by trying, since models differ in what they hand their attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trivet.models.output_layer import backbone

NAME = "trivet"
"""Of this attention among transformers' own."""

OTHER_WINDOWS = ("window_size", "attention_chunk_size", "attention_window")
"""Settings of models that look back no further than this, and don't tell their attention by `sliding_window`."""

CAUSAL_KERNEL = 256
"""From this length on a CPU's kernel gains from skipping the upper half; below, from a mask that it need not make."""


@dataclass(frozen=True)
class Lines:
    """How a row of N tokens lies in L lines of width W, for attention.

    places [L, W]: the number in the row of each token of each line (0 behind a line's end: no real token looks there);
    home [N]: where in the L·W places each token's own output stands; again, to: the further places where tokens of a
    shared prompt stand, and which tokens they are.
    """

    places: Tensor
    home: Tensor
    again: Tensor
    to: Tensor

    @cached_property
    def plain(self) -> bool:
        """Lines of one length that share nothing: the row is them, one after the other."""
        return self.places.numel() == len(self.home)

    @cached_property
    def causal(self) -> Tensor:
        """[W, W] true where a token looks."""
        width = self.places.shape[1]
        return torch.ones((width, width), dtype=torch.bool, device=self.places.device).tril_()


class _Spread(torch.autograd.Function):
    """[N, F] → [L·W, F]. Written out because autograd's own backward of an index is far slower on a CPU."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, lines: Lines) -> Tensor:
        ctx.lines = lines
        return row.index_select(0, lines.places.flatten())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        lines: Lines = ctx.lines
        found = grads[0].index_select(0, lines.home)
        if len(lines.to):
            found.index_add_(0, lines.to, grads[0].index_select(0, lines.again))
        return found, None


class _Gather(torch.autograd.Function):
    """[L·W, F] → [N, F]: of a shared prompt the first line's output."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, lines: Lines) -> Tensor:
        ctx.lines, ctx.shape = lines, places.shape
        return places.index_select(0, lines.home)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0].new_zeros(ctx.shape).index_copy_(0, ctx.lines.home, grads[0]), None


def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
              lines: Lines | None = None, dropout: float = 0.0, scaling: float | None = None,
              **kwargs: Any) -> tuple[Tensor, None]:
    """transformers' attention interface: with `lines` (handed to the model as a keyword) over a packed row, else sdpa.

    query [1, H, N, D], key and value [1, K, N, D] → [1, N, H, D]. Raises NotImplementedError for a packed row in a
    model whose attention is more than a scaled softmax.
    """
    if lines is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                      **kwargs)
    if strange := [k for k in ("softcap", "s_aux", "position_bias") if kwargs.get(k) is not None]:
        raise NotImplementedError(f"attention with {', '.join(strange)} over a packed row")
    count, width = lines.places.shape

    def laid_out(x: Tensor) -> Tensor:
        row = x.transpose(1, 2).reshape(x.shape[2], -1)
        if not lines.plain:
            row = _Spread.apply(row, lines)
        return row.view(count, width, x.shape[1], -1).transpose(1, 2)

    window = kwargs.get("sliding_window")
    mask: Tensor | None = None
    if window is not None and window < width:
        mask = lines.causal.triu(1 - window)
    elif query.device.type == "cpu" and width < CAUSAL_KERNEL:
        mask = lines.causal
    q, k, v = laid_out(query), laid_out(key), laid_out(value)
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        # a CPU's kernel takes up to four times as long on them, backward above all, and is less exact
        q, k, v = q.float(), k.float(), v.float()
    found = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    row = found.to(query.dtype).transpose(1, 2).reshape(count * width, -1)
    if not lines.plain:
        row = _Gather.apply(row, lines)
    return row.view(1, -1, query.shape[1], value.shape[-1]), None


def packed_inputs(ids: Tensor, position_ids: Tensor, lines: Lines) -> dict[str, Any]:
    """What a model is called with for a pass over a packed row; ids, position_ids [1, N]. See `bears_packing`."""
    # a mask of four dimensions is handed on as it is: none is made
    nothing = torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=ids.device)
    return {"input_ids": ids, "attention_mask": nothing, "position_ids": position_ids, "use_cache": False,
            "lines": lines}


def packed_states(model: Any, ids: Tensor, position_ids: Tensor, lines: Lines) -> Tensor:
    """The decoder's last hidden states [N, H] of a packed row."""
    found: Tensor = backbone(model)(**packed_inputs(ids, position_ids, lines)).last_hidden_state
    return found[0]


def bears_packing(model: Any) -> bool:
    """Whether `packed_states` of this model are those of padded passes. Found out once a model, by trying."""
    known = getattr(model, "_trivet_packs", None)
    if known is None:
        known = model._trivet_packs = _packs(model)
    return bool(known)


@torch.no_grad()
def _packs(model: Any) -> bool:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    if config._attn_implementation != "sdpa":
        return False
    # a look-back that is longer than the trial would not show, and its mask is not handed on
    if any(getattr(config.get_text_config(), name, None) is not None for name in OTHER_WINDOWS):
        return False
    device = model.device
    token = torch.arange(6, device=device)[None] % config.get_text_config().vocab_size
    # two answers to a prompt of two, and a row of its own behind them, longer than the others
    ids = token[:, [0, 1, 2, 3, 4, 5, 4, 3, 2]]
    lines = Lines(places=torch.tensor([[0, 1, 2, 3], [0, 1, 4, 0], [5, 6, 7, 8]], device=device),
                  home=torch.tensor([0, 1, 2, 3, 6, 8, 9, 10, 11], device=device),
                  again=torch.tensor([4, 5], device=device), to=torch.tensor([0, 1], device=device))
    positions = torch.tensor([[0, 1, 2, 3, 2, 0, 1, 2, 3]], device=device)
    alone = [backbone(model)(input_ids=ids[:, row], use_cache=False).last_hidden_state[0]
             for row in ([0, 1, 2, 3], [0, 1, 4], [5, 6, 7, 8])]
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        found = packed_states(model, ids, positions, lines)
        close = 1e-4 if found.dtype == torch.float32 else 5e-2
        good = torch.allclose(torch.cat([found[:4], found[[0, 1, 4]], found[5:]]).float(), torch.cat(alone).float(),
                              rtol=close, atol=close * float(torch.cat(alone).abs().max()))
    except Exception:  # whatever a model says to it: padded passes serve every model
        good = False
    if not good:
        config._attn_implementation = "sdpa"
    return good
