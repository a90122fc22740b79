"""Floating-point operations, counted while they are done: every matrix product that Python asks torch for.

    C = A·B with C [m, n] and inner length k                       2·m·n·k, whatever stands around it (batches, heads)
    a linear layer over t tokens, output layer included            2·t·in·out
    attention's two products, s queries, t keys, h heads of d      2·h·s·t·d (scores) + 2·h·s·t·d (values)
    backward of a product                                          as much for each operand that needs a gradient
    backward of a fused attention kernel                           five products: it makes the scores once more

Backward is counted when it is done, not foreseen: a graph that is thrown away costs nothing. Whatever is computed
while gradients are made is `backward`, so what gradient checkpointing or policy/vocabulary.py compute again is
there. Masked attention is counted whole, as kernels do it and as torch.utils.flop_counter counts it, which is what
tests/training/test_flops.py holds this against.

How: torch's entry points for products (F.linear, matmul, `@`, F.scaled_dot_product_attention …) are wrapped while
somebody counts. What the model computes is untouched. It costs 0.7 µs a linear layer, 0.2 ms of a decode step of the
embedded model, which takes 49 ms on one core; a TorchFunctionMode, which sees each of its 2,150 calls, costs 5.6 ms,
and FlopCounterMode more.

Not covered: elementwise work (norms, activations, softmax, the optimizer), as is the field's custom; convolutions;
einsum of three operands and more; kernels from outside torch (flash-attn's own), and compiled models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_in_backward = torch._C._current_graph_task_id  # -1 outside of a backward pass


class FlopCounter:
    """What was counted so far. Counts between `start` and `stop`; several may count at once."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def start(self) -> None:
        """Begin to count, or go on."""
        if not _counting:
            _wrap_all()
        if self not in _counting:
            _counting.append(self)

    def stop(self) -> None:
        """Count no more. The last one to stop leaves torch as it was."""
        if self in _counting:
            _counting.remove(self)
            if not _counting:
                _unwrap_all()


@contextmanager
def counting() -> Iterator[FlopCounter]:
    """Count what is done inside the block."""
    counter = FlopCounter()
    counter.start()
    try:
        yield counter
    finally:
        counter.stop()


_counting: list[FlopCounter] = []
_originals: list[tuple[Any, str, Any, bool]] = []


def _add(out: Tensor, amount: int, products: int) -> None:
    """Count a product of `amount`; and, when its backward pass is done, `products` of the same size."""
    if _in_backward() == -1:
        for counter in _counting:
            counter.forward += amount
    else:
        for counter in _counting:
            counter.backward += amount
    if products and out.requires_grad and out.grad_fn is not None:
        out.grad_fn.register_prehook(_Backward(amount * products))


class _Backward:
    """What an operation's backward pass costs, told when it is done."""

    __slots__ = ("amount",)

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, gradients: Any) -> None:
        for counter in _counting:
            counter.backward += self.amount


def _needing(*operands: Tensor) -> int:
    return sum(x.requires_grad for x in operands)


def _operands(first: int, names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that stand at `first` and behind it, or come by name; fewer, where a call has another form."""
    found = [args[i] if len(args) > i else kwargs.get(name) for i, name in enumerate(names, first)]
    return [x for x in found if isinstance(x, Tensor)]


def _linear(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = original(input, weight, bias)
        _add(out, 2 * out.numel() * weight.shape[-1], _needing(input, weight) if out.requires_grad else 0)
        return out

    return linear


def _product(names: tuple[str, str], first: int) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Products a·b whose operands stand at `first` and behind it, or come by name."""

    def wrap(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def product(*args: Any, **kwargs: Any) -> Tensor:
            out = original(*args, **kwargs)
            found = _operands(first, names, args, kwargs)
            if isinstance(out, Tensor) and len(found) == 2:  # `@` with something else gives NotImplemented
                _add(out, 2 * out.numel() * found[0].shape[-1], _needing(*found))
            return out

        return product

    return wrap


def _attention(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
        out = original(*args, **kwargs)
        query, key, value = _operands(0, ("query", "key", "value"), args, kwargs)
        products = query.numel() // query.shape[-1] * key.shape[-2]  # one number of the score matrices
        scores, values = 2 * products * query.shape[-1], 2 * products * value.shape[-1]
        _add(out, scores + values, 0)
        if out.requires_grad and out.grad_fn is not None:
            if _is_fused(out.grad_fn):
                amount = 3 * scores + 2 * values
            else:
                amount = scores * _needing(query, key) + values * (value.requires_grad + bool(_needing(query, key)))
            out.grad_fn.register_prehook(_Backward(amount))
        return out

    return scaled_dot_product_attention


def _is_fused(node: Any) -> bool:
    """Whether an attention's backward pass is a kernel of its own; on a GPU it may stand behind a slice."""
    following = [n for n, _ in node.next_functions if n is not None]
    return any(type(n).__name__.startswith("ScaledDotProduct") for n in (node, *following))


def _einsum(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def einsum(*args: Any) -> Tensor:
        out = original(*args)
        operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        if isinstance(args[0], str) and len(operands) == 2:
            _add(out, 2 * _einsum_size(args[0], operands), _needing(*operands))
        return out

    return einsum


def _einsum_size(equation: str, operands: Sequence[Tensor]) -> int:
    """The product of the sizes of all indices of two operands, an ellipsis among them."""
    sizes: dict[str, int] = {}
    for term, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        head, dots, tail = term.partition("...")
        more = range(operand.dim() - len(head) - len(tail)) if dots else range(0)
        # dimensions of an ellipsis are counted from its end, since it broadcasts
        names = [*head, *(f".{len(more) - i}" for i in more), *tail]
        for name, size in zip(names, operand.shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    found = 1
    for size in sizes.values():
        found *= size
    return found


_matmul, _add_product = _product(("input", "other"), 0), _product(("batch1", "batch2"), 1)
_WRAPPERS: tuple[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]], ...] = (
    (functional, "linear", _linear),
    (functional, "scaled_dot_product_attention", _attention),
    *((functional, n, _product(("mat_a", "mat_b"), 0)) for n in ("grouped_mm",) if hasattr(functional, n)),
    *((torch, n, _product(("self", "mat2"), 0)) for n in ("_grouped_mm",) if hasattr(torch, n)),
    (torch, "einsum", _einsum),
    (torch, "matmul", _matmul),
    (torch, "mm", _product(("input", "mat2"), 0)),
    (torch, "bmm", _product(("input", "mat2"), 0)),
    (torch, "addmm", _product(("mat1", "mat2"), 1)),
    (torch, "baddbmm", _add_product),
    (Tensor, "__matmul__", _matmul),
    (Tensor, "matmul", _product(("self", "other"), 0)),
    (Tensor, "mm", _product(("self", "mat2"), 0)),
    (Tensor, "bmm", _product(("self", "mat2"), 0)),
    (Tensor, "addmm", _product(("mat1", "mat2"), 1)),
    (Tensor, "baddbmm", _add_product),
)


def _wrap_all() -> None:
    for owner, name, wrapper in _WRAPPERS:
        original = getattr(owner, name)
        _originals.append((owner, name, original, name in vars(owner)))
        setattr(owner, name, functools.wraps(original)(wrapper(original)))


def _unwrap_all() -> None:
    while _originals:
        owner, name, original, own = _originals.pop()
        if own:
            setattr(owner, name, original)
        else:  # inherited from torch's C class, and to be so again
            delattr(owner, name)
