"""A decode step of models in Llama's form (Llama, Qwen2, Mistral, SmolLM …) with little around its matrix products.

Activations stand as columns [features, rows]: a product with a weight [out, in] is then W·X, which oneDNN and MKL do
up to a fifth faster for some ten to sixty rows than X·Wᵀ. Around the products a block makes a quarter fewer operations
than transformers' modules. The weights are read where the modules keep them, adapters included.

Whether a model is of this form its modules' names and kinds say; whether the step then says what the model says, is
tried (decoding.py), since names don't tell how heads are turned or states scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trivet.generate.static_cache import SlotCache
from trivet.models.lower import blocks
from trivet.models.output_layer import backbone, plain_output_layer

Product = Callable[[Tensor, Tensor | None], Tensor]
"""(columns [in, N], where to put the result) -> [out, N]"""

FEW = 6
"""From 2 to so many rows X·Wᵀ is the faster one: on two cores a step of 2 rows took 51 ms, and takes 34."""

_FORM = {
    "": {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


class OtherForm(ValueError):
    """A model whose modules don't bear the names of Llama's."""


class LeanStep:
    """One more token for every row of a cache.

    Raises OtherForm for a model that doesn't look like Llama, other ValueErrors and AttributeError for one that looks
    like it and is something else.
    """

    def __init__(self, model: Any) -> None:
        body, output = backbone(model), plain_output_layer(model)
        found = blocks(model)
        if found is None or _children(body) != {"embed_tokens", "layers", "norm", "rotary_emb"} or any(
                _children(_part(block, name)) != children for block in found for name, children in _FORM.items()):
            raise OtherForm("not of Llama's form")
        if output is None:
            raise ValueError("its output layer is more than a product")
        if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
            raise ValueError("its modules have hooks")
        if type(body.embed_tokens) is not nn.Embedding:
            raise ValueError("its embeddings are changed")
        self.embed, self.rotary, self.output = body.embed_tokens, body.rotary_emb, output
        self.norm = _norm(body.norm)
        self.blocks = [_Block(block, layer) for layer, block in enumerate(found)]

    def __call__(self, cache: SlotCache, tokens: Sequence[int]) -> Tensor:
        """Logits [N, V]."""
        positions, mask = cache.begin()
        ids = torch.tensor(tokens, device=positions.device)
        hidden = self.embed(ids)
        cos, sin = (x[:, 0, : x.shape[-1] // 2].t().contiguous()  # [size / 2, N]: both halves turn alike
                    for x in self.rotary(hidden.unsqueeze(1), positions.unsqueeze(-1)))
        columns = hidden.t().contiguous()
        for block in self.blocks:
            columns = block(columns, cache, cos, sin, mask)
        return nn.functional.linear(self.norm(columns).t().contiguous(), self.output.weight, self.output.bias)


class _Block:
    def __init__(self, block: Any, layer: int) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.layer, self.size, self.scaling = layer, int(attention.head_dim), attention.scaling
        self.before, self.between = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        self.q, self.k, self.v, self.o = (_product(getattr(attention, f"{x}_proj")) for x in "qkvo")
        self.gate, self.up, self.down = (_product(getattr(mlp, f"{x}_proj")) for x in ("gate", "up", "down"))
        self.activation = mlp.act_fn
        self.q_rows, self.kv_rows = attention.q_proj.out_features, attention.k_proj.out_features
        self.heads, self.kv_heads = self.q_rows // self.size, self.kv_rows // self.size

    def __call__(self, columns: Tensor, cache: SlotCache, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, size, q, kv = columns.shape[1], self.size, self.q_rows, self.kv_rows
        states = self.before(columns)
        qkv = columns.new_empty(q + 2 * kv, rows)
        self.q(states, qkv[:q])
        self.k(states, qkv[q : q + kv])
        self.v(states, qkv[q + kv :])
        halves = qkv[: q + kv].view(-1, 2, size // 2, rows)
        turned = halves * cos
        turned[:, 0].addcmul_(halves[:, 1], sin, value=-1)
        turned[:, 1].addcmul_(halves[:, 0], sin)
        # rows to the front; queries of a group are further queries of its one key head, so that nothing is repeated
        by_row = turned.view(q + kv, rows).t().contiguous()
        query = by_row[:, :q].view(rows, self.kv_heads, -1, size)
        keys, values = cache.write(self.layer, by_row[:, q:].view(rows, -1, size),
                                   qkv[q + kv :].t().view(rows, -1, size))
        seen = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling)
        columns = columns + self.o(seen.reshape(rows, -1).t(), None)
        states = self.between(columns)
        inner = self.activation(self.gate(states, None)).mul_(self.up(states, None))
        return columns.add_(self.down(inner, None))


def _part(block: Any, name: str) -> Any:
    return getattr(block, name, None) if name else block


def _children(module: Any) -> set[str]:
    return set() if module is None else set(dict(module.named_children()))


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """RMSNorm over the columns of [features, N], in float32."""
    if not type(module).__name__.endswith("RMSNorm") or set(dict(module.named_parameters())) != {"weight"}:
        raise ValueError("its norms are not RMSNorm")
    weight, epsilon = module.weight.unsqueeze(-1), module.variance_epsilon

    def norm(columns: Tensor) -> Tensor:
        wide = columns.float()
        scale = (wide * wide).mean(0).add_(epsilon).rsqrt_()
        return (wide * scale).to(columns.dtype).mul_(weight)

    return norm


def _product(module: Any) -> Product:
    """W·X of a linear layer, and of one with LoRA adapters that are at work.

    What they add is computed in the trunk's precision, as models/lora_linear.py does; they are cast once, here.
    """
    adapters: list[tuple[Tensor, Tensor, float]] = []
    if type(module) is not nn.Linear:
        from peft.tuners.lora import Linear

        from trivet.models.lora_linear import FusedLinear

        if type(module) not in (Linear, FusedLinear) or module.merged or type(module.base_layer) is not nn.Linear:
            raise ValueError(f"a linear layer is a {type(getattr(module, 'base_layer', module)).__name__}")
        dtype = module.base_layer.weight.dtype
        for name in () if module.disable_adapters else module.active_adapters:
            if name in module.lora_variant or (name in module.lora_A and module.lora_B[name].bias is not None):
                raise ValueError("its adapters are not plain LoRA")
            if name in module.lora_A:
                adapters.append((module.lora_A[name].weight.to(dtype), module.lora_B[name].weight.to(dtype),
                                 module.scaling[name]))
        module = module.base_layer
    weight, bias = module.weight, None if module.bias is None else module.bias.unsqueeze(-1)

    def product(columns: Tensor, out: Tensor | None) -> Tensor:
        if 1 < columns.shape[1] <= FEW:
            few = nn.functional.linear(columns.t().contiguous(), weight).t()
            few = few if bias is None else few.add_(bias)
            out = few if out is None else out.copy_(few)
        elif bias is None:
            out = torch.mm(weight, columns, out=out)
        else:
            out = torch.addmm(bias, weight, columns, out=out)
        for a, b, scale in adapters:
            torch.addmm(out, b, torch.mm(a, columns), alpha=scale, out=out)
        return out

    return product
