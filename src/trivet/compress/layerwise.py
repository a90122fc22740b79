"""A model changed block by block on calibration text, in bounded memory.

Each block's Linear layers are changed knowing what comes into them, and the next block is given what the changed one
makes of it: so later layers answer for the errors of earlier ones (Frantar & Alistarh 2023, 'SparseGPT', section 3;
GPTQ and Wanda go the same way). In memory are the model, one hidden state a token, and the statistics of one block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trivet.errors import TrivetError
from trivet.models.lower import blocks, forwards_replaced, shareable_blocks
from trivet.models.output_layer import backbone


@dataclass
class InputStatistics:
    """What came into a Linear layer, over all tokens of the calibration text. x is the input of one token, [in].

    Layers that are given one input (query, key, value; gate, up) share one of these: it is to be read, not changed.
    """

    tokens: int
    squares: Tensor
    """[in] float32: the sum of x², each input's squared norm."""
    gram: Tensor | None
    """[in, in] float32: the sum of x xᵀ; None where it was not asked for."""


Change = Callable[[str, nn.Linear, InputStatistics], None]
"""Changes a layer's weight in place, told its name in the model and what came into it."""


def block_linears(model: nn.Module) -> list[dict[str, nn.Linear]]:
    """The Linear layers of each block, by their names in the model.

    Raises TrivetError for a model whose blocks can't be run one by one, or hold none (GPT-2's are of another kind).
    """
    found = blocks(model)
    if found is None:
        raise TrivetError(f"{type(model).__name__} keeps its blocks in no list", field="model",
                          mend="give a model of another architecture, such as Llama's")
    names = {id(module): name for name, module in model.named_modules()}
    linears = [{names[id(m)]: m for m in block.modules() if isinstance(m, nn.Linear)} for block in found]
    if not all(linears):
        raise TrivetError(f"the blocks of {type(model).__name__} hold no Linear layers", field="model",
                          mend="give a model of another architecture, such as Llama's")
    return linears


@torch.no_grad()
def change_layerwise(model: nn.Module, windows: Sequence[Tensor], change: Change, *, gram: bool,
                     wanted: Callable[[str], bool] = lambda name: True, batch_size: int = 8,
                     progress: Callable[[int], None] | None = None) -> None:
    """Give every wanted Linear layer of every block, with what comes into it, to `change`; in place.

    windows: token ids, [T] each. gram: whether the full second moment is wanted, or the squared norms alone. wanted:
    told a layer's name. progress: told of each block. Within a block all layers see the inputs that the unchanged
    block makes of what the changed blocks before it give.

    Raises TrivetError for a model whose blocks can't be run one by one, and for a layer that the text never reaches.
    """
    layers = block_linears(model)
    if shareable_blocks(model, lambda name, parameter: False) < len(layers):
        raise TrivetError(f"the blocks of {type(model).__name__} hand on more than a hidden state", field="model",
                          mend="give a model of another architecture, such as Llama's")
    batches = _batches(windows, batch_size)
    states, settings = _block_inputs(model, batches)
    found = blocks(model)
    assert found is not None
    for number, (block, linears) in enumerate(zip(found, layers, strict=True)):
        gather = _Gather({name: m for name, m in linears.items() if wanted(name)}, gram)
        if gather.layers:
            with gather.on():
                for state, given in zip(states, settings, strict=True):
                    block(state, **given[number])
                    gather.between()
            for name, layer in gather.layers.items():
                if name not in gather.statistics:
                    raise TrivetError(f"no token of the calibration text reaches {name}", field="calibration",
                                      mend="give more or other text")
                change(name, layer, gather.statistics[name])
        if number + 1 < len(layers):
            for index, given in enumerate(settings):
                states[index] = block(states[index], **given[number])
        if progress is not None:
            progress(1)


def _batches(windows: Sequence[Tensor], size: int) -> list[Tensor]:
    """Windows of one length that follow one another as [N, T], N at most `size`."""
    return [torch.stack(group[start : start + size])
            for _, same in itertools.groupby(windows, len) for group in [list(same)]
            for start in range(0, len(group), size)]


class _Recorded(nn.Module):
    """In a block's place: notes what it is given and passes the hidden state on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Tensor, dict[str, Any]]] = []

    def forward(self, hidden: Tensor, **settings: Any) -> Tensor:
        self.given.append((hidden, settings))
        return hidden


def _block_inputs(model: nn.Module, batches: Sequence[Tensor]) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """For each batch the hidden state before the first block, and for each batch and block what else it is given.

    (positions, masks: shared between the blocks, but not by all models the same for all of them)
    """
    found = blocks(model)
    assert found is not None
    device = next(model.parameters()).device
    stand_ins = [_Recorded() for _ in found]
    with forwards_replaced(list(found), [stand_in.forward for stand_in in stand_ins]):
        for batch in batches:
            backbone(model)(input_ids=batch.to(device), use_cache=False)
    return [hidden for hidden, _ in stand_ins[0].given], [
        [stand_in.given[index][1] for stand_in in stand_ins] for index in range(len(batches))]


@dataclass
class _Gather:
    """Sums up what comes into Linear layers. Those that are given one and the same tensor share its sums."""

    layers: dict[str, nn.Linear]
    gram: bool
    statistics: dict[str, InputStatistics] = field(default_factory=dict)
    _seen: list[tuple[Tensor, str]] = field(default_factory=list)

    @contextmanager
    def on(self) -> Iterator[None]:
        hooks = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def between(self) -> None:
        """Forget the tensors of the batch that was run."""
        self._seen.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def take(module: nn.Module, args: tuple[Any, ...]) -> None:
            leader = next((other for tensor, other in self._seen if tensor is args[0]), None)
            if leader is None:
                self._seen.append((args[0], name))
                self._add(name, args[0])
            else:
                self.statistics[name] = self.statistics[leader]

        return take

    def _add(self, name: str, given: Tensor) -> None:
        x = given.detach().reshape(-1, given.shape[-1]).float()
        if name not in self.statistics:
            size = x.shape[-1]
            self.statistics[name] = InputStatistics(
                0, x.new_zeros(size), x.new_zeros(size, size) if self.gram else None)
        found = self.statistics[name]
        found.tokens += len(x)
        if found.gram is None:
            found.squares += x.square().sum(0)
        else:
            found.gram.addmm_(x.T, x)
            found.squares = found.gram.diagonal()
