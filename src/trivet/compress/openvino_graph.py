"""A language model of Llama's form as an OpenVINO graph with its keys and values inside (a stateful model).

The graph is built here, operation by operation, from the weights: a trace of transformers' code would bring its masks
and caches along, and the tools that tidy such a trace up hold transformers back. The operations stand in the forms that
OpenVINO's CPU plugin fuses: RMS norm, rotary embeddings, attention with its cache, products with packed weights.

Inputs: input_ids [N, T] and position_ids [N, T]; attention_mask [N, P + T], 1 for real tokens, of the P kept and the T
new ones; beam_idx [N], which row of the kept keys and values each row goes on from (rows are copied and dropped by it);
logits_from [1], the first of the T places whose logits are wanted. Output: logits [N, T - logits_from, V], float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import Model, Node, PartialShape, Type
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from trivet.compress.grid import Quantized

_LOW = -65504.0
"""What hides a place from attention; finite, so that a row of padding alone gives numbers."""

Weight = Callable[[str], np.ndarray]
"""The values of a weight, float32, by its name in the model."""


@dataclass(frozen=True)
class Form:
    """The sizes of a model of Llama's form."""

    layers: int
    heads: int
    kv_heads: int
    size: int
    """Of a head."""
    epsilon: float
    frequencies: np.ndarray
    """By which each pair of a head's features turns, radians a place [size / 2]."""
    scaling: float
    """Factor of the rotary embeddings' cosines and sines."""
    tied: bool


def floating(name: str, values: np.ndarray, bits: int) -> Node:
    """A matrix as a node that gives it back in float32, stored in 32 or 16 bits under its name."""
    kind = np.float32 if bits == 32 else np.float16
    node = _named(op.constant(np.ascontiguousarray(values, kind)), f"{name}/values")
    return node if bits == 32 else op.convert(node, "f32")


def integers(name: str, found: Quantized, bits: int) -> Node:
    """A quantized matrix as a node that gives its numbers in float32: (code - zero) · scale, under its name.

    bits: 8 or 4. Scales are stored in float16 where that changes none of them.
    """
    rows, groups = found.scales.shape
    grouped, flat = groups > 1, (rows, found.codes.shape[1])
    codes = found.codes.cpu().numpy().reshape(rows, groups, -1) if grouped else found.codes.cpu().numpy()
    scales = found.scales.float().cpu().numpy()
    half = scales.astype(np.float16)
    kept: np.ndarray = half if np.array_equal(half.astype(np.float32), scales) else scales
    kind = "f16" if kept is half else "f32"
    if found.zeros is None:
        node = op.convert(_named(_packed(codes, Type.i4 if bits == 4 else Type.i8), f"{name}/codes"), kind)
    else:
        # with zero points the plugin wants integers from 0 on: both are moved up by half the range
        middle, stored = 1 << (bits - 1), Type.u4 if bits == 4 else Type.u8
        zeros = found.zeros.cpu().numpy()[..., None] if grouped else found.zeros.cpu().numpy()
        moved = [(x.astype(np.int16) + middle).astype(np.uint8) for x in (codes, zeros)]
        node = op.subtract(op.convert(_named(_packed(moved[0], stored), f"{name}/codes"), kind),
                           op.convert(_named(_packed(moved[1], stored), f"{name}/zero"), kind))
    node = op.multiply(node, _named(op.constant(kept[..., None] if grouped else kept), f"{name}/scale"))
    if grouped:
        node = op.reshape(node, op.constant(np.array(flat, np.int64)), False)
    return op.convert(node, "f32") if kept is half else node


def _named(node: Node, name: str) -> Node:
    node.set_friendly_name(name)
    return node


def _packed(values: np.ndarray, stored: Type) -> Node:
    if stored in (Type.i8, Type.u8):
        return op.constant(np.ascontiguousarray(values))
    flat = values.reshape(-1).astype(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    tensor = ov.Tensor(stored, ov.Shape(list(values.shape)))
    # the first of two stands in the low half; copied, since a constant made of numpy's memory would not keep it
    tensor.data.view(np.uint8)[:] = flat[0::2] | (flat[1::2] << 4)
    return ov.op.Constant(tensor)


def constants(graph: Model) -> dict[str, Any]:
    """The named constants of a graph, as `stored_matrix` reads them."""
    return {node.get_friendly_name(): node for node in graph.get_ops()
            if node.get_type_name() == "Constant" and "/" in node.get_friendly_name()}


def stored_matrix(found: dict[str, Any], name: str) -> np.ndarray:
    """The values [rows, columns] that a graph's constants stand for. Raises KeyError where there are none."""
    if (plain := found.get(f"{name}/values")) is not None:
        values: np.ndarray = plain.get_data().astype(np.float32)
        return values
    codes, scale = (_unpacked(found[f"{name}/{part}"]).astype(np.float32) for part in ("codes", "scale"))
    zero = found.get(f"{name}/zero")
    shifted = codes if zero is None else codes - _unpacked(zero).astype(np.float32)
    numbers: np.ndarray = (shifted * scale).reshape(codes.shape[0], -1)
    return numbers


def _unpacked(node: Any) -> np.ndarray:
    kind, shape = node.get_element_type(), tuple(node.get_output_shape(0))
    if kind not in (Type.i4, Type.u4):
        plain: np.ndarray = node.get_data()
        return plain
    packed = node.get_tensor_view().data.view(np.uint8)
    flat = np.stack([packed & 0x0F, packed >> 4], -1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
    if kind == Type.i4:
        flat = np.where(flat > 7, flat - 16, flat).astype(np.int8)
    return flat.reshape(shape)


def build(form: Form, weight: Weight, has: Callable[[str], bool], quantized: Mapping[str, Quantized], *,
          bits: int = 8, floats: int = 32) -> Model:
    """The graph of a model, its weights inside.

    weight: values by name. has: whether there is a weight of a name (biases). quantized: layers in integers, by their
    names, of so many bits; embedding and output layer, where they are among them, of 8. floats: bits of the other
    matrices. An embedding that is tied to the output layer is stored once.
    """
    ids = _input("input_ids", Type.i64, [-1, -1])
    mask = _input("attention_mask", Type.i64, [-1, -1])
    places = _input("position_ids", Type.i64, [-1, -1])
    beams = _input("beam_idx", Type.i32, [-1])
    first = _input("logits_from", Type.i64, [1])

    def matrix(layer: str) -> Node:
        name = f"{layer}.weight"
        if layer in quantized:
            return integers(name, quantized[layer], bits if layer.startswith("model.layers.") else 8)
        return floating(name, weight(name), floats)

    table = matrix("model.embed_tokens")
    hidden = op.gather(table, ids, _ints(0))
    rows = op.gather(op.shape_of(ids), _ints([0]), _ints(0))
    cos, sin = _rotary(form, places)
    hide = _mask(ids, mask)
    sinks: list[Any] = []

    def linear(states: Node, name: str) -> Node:
        found = op.matmul(states, matrix(name), False, True)
        return op.add(found, op.constant(weight(f"{name}.bias").reshape(1, 1, -1))) if has(f"{name}.bias") else found

    for layer in range(form.layers):
        at = f"model.layers.{layer}"
        states = _norm(hidden, weight(f"{at}.input_layernorm.weight"), form.epsilon)
        query = _turned(_split(linear(states, f"{at}.self_attn.q_proj"), form.heads, form.size), cos, sin, form.size)
        key = _turned(_split(linear(states, f"{at}.self_attn.k_proj"), form.kv_heads, form.size), cos, sin, form.size)
        value = _split(linear(states, f"{at}.self_attn.v_proj"), form.kv_heads, form.size)
        key = _kept(key, f"past_key_values.{layer}.key", rows, beams, form, sinks)
        value = _kept(value, f"past_key_values.{layer}.value", rows, beams, form, sinks)
        seen = op.scaled_dot_product_attention(query, _repeated(key, form), _repeated(value, form), hide, causal=False)
        joined = op.reshape(op.transpose(seen, _ints([0, 2, 1, 3])), _ints([0, 0, form.heads * form.size]), True)
        hidden = op.add(hidden, linear(joined, f"{at}.self_attn.o_proj"))
        states = _norm(hidden, weight(f"{at}.post_attention_layernorm.weight"), form.epsilon)
        gate = op.swish(linear(states, f"{at}.mlp.gate_proj"))
        hidden = op.add(hidden, linear(op.multiply(gate, linear(states, f"{at}.mlp.up_proj")), f"{at}.mlp.down_proj"))

    end = op.gather(op.shape_of(ids), _ints([1]), _ints(0))
    hidden = op.slice(hidden, first, end, _ints([1]), _ints([1]))
    hidden = _norm(hidden, weight("model.norm.weight"), form.epsilon)
    output = table if form.tied else matrix("lm_head")
    logits = op.matmul(hidden, output, False, True)
    logits.output(0).get_tensor().set_names({"logits"})
    return Model([op.result(logits)], sinks, [ids, mask, places, beams, first], "trivet")


def _input(name: str, kind: Type, shape: list[int]) -> Node:
    node = op.parameter(PartialShape(shape), kind, name)
    node.output(0).get_tensor().set_names({name})
    return node


def _ints(values: Any) -> Node:
    return op.constant(np.array(values, np.int64))


def _norm(states: Node, weight: np.ndarray, epsilon: float) -> Node:
    mean = op.reduce_mean(op.power(states, op.constant(np.float32(2))), _ints([-1]), True)
    scale = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(mean, op.constant(np.float32(epsilon)))))
    return op.multiply(op.multiply(states, scale), op.constant(weight.reshape(1, 1, -1).astype(np.float32)))


def _rotary(form: Form, places: Node) -> tuple[Node, Node]:
    """Cosines and sines [N, 1, T, size]; both halves of a head turn alike."""
    turns = op.multiply(op.unsqueeze(op.convert(places, "f32"), _ints([-1])),
                        op.constant(form.frequencies.reshape(1, 1, -1).astype(np.float32)))
    both = op.unsqueeze(op.concat([turns, turns], -1), _ints([1]))
    cos, sin = op.cos(both), op.sin(both)
    if form.scaling != 1:
        scaling = op.constant(np.float32(form.scaling))
        cos, sin = op.multiply(cos, scaling), op.multiply(sin, scaling)
    return cos, sin


def _split(states: Node, heads: int, size: int) -> Node:
    """[N, T, heads · size] → [N, heads, T, size]."""
    return op.transpose(op.reshape(states, _ints([0, 0, heads, size]), True), _ints([0, 2, 1, 3]))


def _turned(states: Node, cos: Node, sin: Node, size: int) -> Node:
    half, last = size // 2, np.iinfo(np.int64).max
    left = op.slice(states, _ints([0]), _ints([half]), _ints([1]), _ints([3]))
    right = op.slice(states, _ints([half]), _ints([last]), _ints([1]), _ints([3]))
    other = op.concat([op.multiply(right, op.constant(np.float32(-1))), left], -1)
    return op.add(op.multiply(states, cos), op.multiply(other, sin))


def _mask(ids: Node, mask: Node) -> Node:
    """What is added to attention scores [N, 1, T, P + T]: no token sees a later one or padding."""
    total = op.gather(op.shape_of(mask), _ints(1), _ints(0))
    new = op.gather(op.shape_of(ids), _ints(1), _ints(0))
    key = op.range(_ints(0), total, _ints(1), "i64")
    query = op.range(op.subtract(total, new), total, _ints(1), "i64")
    earlier = op.less_equal(op.unsqueeze(key, _ints([0])), op.unsqueeze(query, _ints([1])))
    real = op.unsqueeze(op.convert(mask, "boolean"), _ints([1, 2]))
    return op.select(op.logical_and(earlier, real), op.constant(np.float32(0)), op.constant(np.float32(_LOW)))


def _kept(new: Node, name: str, rows: Node, beams: Node, form: Form, sinks: list[Any]) -> Node:
    """Keys or values of all places so far [N, kv_heads, P + T, size]: kept ones, in the order of `beams`, and new."""
    info = VariableInfo()
    info.data_shape = PartialShape([-1, form.kv_heads, -1, form.size])
    info.data_type, info.variable_id = Type.f32, name
    variable = Variable(info)
    none = op.broadcast(op.constant(np.float32(0)), op.concat([rows, _ints([form.kv_heads, 0, form.size])], 0))
    past = op.gather(ov.opset6.read_value(none, variable), beams, _ints(0))
    both = op.concat([past, new], 2)
    sinks.append(ov.opset6.assign(both, variable))
    return both


def _repeated(states: Node, form: Form) -> Node:
    """Each key or value head once for every query head of its group."""
    groups = form.heads // form.kv_heads
    if groups == 1:
        return states
    shape = op.shape_of(states)
    wanted = op.concat([op.gather(shape, _ints([0, 1]), _ints(0)), _ints([groups]),
                        op.gather(shape, _ints([2, 3]), _ints(0))], 0)
    spread = op.broadcast(op.unsqueeze(states, _ints([2])), wanted, broadcast_spec="BIDIRECTIONAL")
    return op.reshape(spread, _ints([0, form.heads, -1, form.size]), True)
