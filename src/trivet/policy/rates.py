"""What this machine does, measured in a few seconds: products, reading of weights, a block's passes, decode steps.

The blocks are Llama blocks of the model's own sizes with random weights (of a smaller one's, where a block has more
than 100 million weights), run by the code that a step runs: PEFT's adapters, `linear_logps`, the in-process engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from trivet.artifacts import Message, Prompt
from trivet.config import LoRA
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.ledger import machine
from trivet.models import lora
from trivet.models.masters import Masters
from trivet.models.packed import bears_packing, packed_states
from trivet.policy.plan import Rates, Shape
from trivet.policy.rollout import make_rollout, micro_batch
from trivet.policy.vocabulary import linear_logps
from trivet.training.device import Compute

LARGEST = 10**8
"""Weights of a block that is measured as it is."""
STEPS = 12
"""Tokens that are decoded to find the seconds of a step."""
WORDS = 256
"""Of the vocabulary of the blocks that are measured; the output layer is measured by itself."""


def measure(shape: Shape, compute: Compute, adapters: LoRA | None, rows: int, micro: int, prompt: int,
            response: int) -> Rates:
    """The rates of this machine at the sizes of a plan. rows: of a rollout; micro: of a micro-batch.

    adapters: LoRA, or None where all weights are trained. compute.trunk: in what the passes compute, either way.
    """
    runtime = psutil.Process().memory_info().rss
    width, dtype = (shape.hidden, shape.intermediate), compute.trunk
    vocabulary, shape = shape.vocabulary, _llama(shape)
    if shape.matrices > LARGEST:
        shape = Shape("llama", 2, 2048, 32, 8, 64, 5632, WORDS, True, None)
    matmul = _matmul(width, dtype, compute)
    update, forward = _passes(shape, compute, adapters, micro, prompt + response, matmul)
    step, block = _decode(shape, compute, adapters, rows, prompt)
    bandwidth = _bandwidth(dtype, compute)
    roofline = max(rows * (2 * shape.matrices + 4 * shape.query * (prompt + STEPS)) / matmul,
                   shape.matrices * dtype.itemsize / bandwidth)
    return Rates(
        source=f"measured here: {machine()}, {compute.threads} threads, torch {torch.__version__}"
        + (f", {torch.cuda.get_device_name()}" if compute.device == "cuda" else ""),
        precision=str(dtype).removeprefix("torch."), matmul=matmul, bandwidth=bandwidth, forward=forward, update=update,
        head=_head(shape.hidden, vocabulary, compute, adapters is None, micro * response, matmul),
        decode_block=max(0.0, block - roofline), decode_step=step,
        runtime_bytes=runtime if compute.device == "cpu" else None)


def _seconds(work: Callable[[], Any], device: str, least: float = 0.3, most: int = 20) -> float:
    """The least of some repetitions: what else the machine does only adds."""
    times: list[float] = []
    work()
    while len(times) < 2 or (sum(times) < least and len(times) < most):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _matmul(width: tuple[int, int], dtype: torch.dtype, compute: Compute) -> float:
    """FLOP/s of a product of the MLP's sizes, for as many rows as fill the device."""
    rows = 1024 if compute.device == "cpu" else 16384
    inputs, outputs = (max(512, min(w, 16384)) for w in width)
    a = torch.randn(rows, inputs, device=compute.device).to(dtype)
    b = torch.randn(outputs, inputs, device=compute.device).to(dtype)
    return 2 * rows * inputs * outputs / _seconds(lambda: a @ b.T, compute.device)


def _bandwidth(dtype: torch.dtype, compute: Compute) -> float:
    """Bytes/s at which a matrix too large for any cache is read, once, by a product with a vector."""
    rows = 2**13 if compute.device == "cpu" else 2**16
    a = torch.randn(rows, 8192, device=compute.device, dtype=dtype)
    b = torch.randn(8192, device=compute.device, dtype=dtype)
    return a.numel() * a.element_size() / _seconds(lambda: a @ b, compute.device)


def _model(shape: Shape, layers: int, dtype: torch.dtype, device: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, vocab_size=WORDS,
        max_position_embeddings=2**17, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        pad_token_id=None)
    with torch.device(device):
        model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def _learning(shape: Shape, layers: int, compute: Compute, adapters: LoRA | None) -> tuple[Any, int]:
    """(blocks as a run has them, parameters of an adapter in each): float32 adapters on a frozen trunk, or, where all
    weights are trained, copies in compute.trunk of float32 weights."""
    if adapters is None:
        model = _model(shape, layers, torch.float32, compute.device)
        if compute.trunk != torch.float32:
            Masters(model, compute.trunk)  # held by the hooks that hand the gradients on
        return model, 0
    from peft import get_peft_model

    every = adapters.model_copy(update={"last_layers": None, "targets": "all-linear"})
    model = _model(shape, layers, compute.trunk, compute.device)
    model = get_peft_model(model, lora.lora_config(model, every, "CAUSAL_LM")).get_base_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model, shape.adapter(every)


def _passes(shape: Shape, compute: Compute, adapters: LoRA | None, micro: int, length: int,
            matmul: float) -> tuple[float, float]:
    """Shares of `matmul` of (forward and backward, forward) of two blocks over a micro-batch."""
    model, low_rank = _learning(shape, 2, compute, adapters)
    asked = [Prompt(id=str(i), messages=[Message(role="user", content="?")]) for i in range(micro)]
    ids = [[(7 * i + k) % WORDS for k in range(length)] for i in range(micro)]  # no two prompts are one
    rollout = make_rollout(asked, [row[:-1] for row in ids], [Generated((row[-1],), (0.0,), False) for row in ids],
                           [""] * micro)
    packed = micro_batch(rollout, range(micro), 0, compute.device).packed

    def forward() -> Any:
        return packed_states(model, packed.ids, packed.position_ids, packed.lines)

    def both() -> None:
        forward().float().sum().backward()
        model.zero_grad(set_to_none=True)

    bears_packing(model)  # found out before it is timed
    tokens, attention = micro * length * 2, 4 * shape.query * length
    ahead = tokens * (2 * shape.matrices + attention + 2 * low_rank)
    back = tokens * (2 * shape.matrices * (1 if adapters else 2) + 2.5 * attention + 4 * low_rank)
    update = (ahead + back) / _seconds(both, compute.device) / matmul
    with torch.no_grad():
        return update, ahead / _seconds(forward, compute.device) / matmul


def _llama(shape: Shape) -> Shape:
    """The Llama block that stands for a block of another kind."""
    return Shape("llama", 2, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim, shape.intermediate, WORDS, True,
                 None)


def _decode(shape: Shape, compute: Compute, adapters: LoRA | None, rows: int, prompt: int) -> tuple[float, float]:
    """Seconds of a decode step (without blocks, of each block), by the engine on one block and on three."""
    prompts = [[(7 * i + k) % WORDS for k in range(prompt)] for i in range(rows)]
    seconds = {}
    for layers in (1, 3):
        engine = TorchEngine(_learning(shape, layers, compute, adapters)[0], 0, frozenset(), batch_size=rows)

        def generate(count: int, engine: TorchEngine = engine) -> float:
            def work() -> None:
                engine.generate(prompts, Sampling(temperature=1.0, max_new_tokens=count), n=1, seeds=range(rows))

            return _seconds(work, compute.device, least=0.0)

        # two lengths: what the prompt costs falls out of the difference
        seconds[layers] = (generate(STEPS) - generate(STEPS // 3)) / (STEPS - STEPS // 3)
    block = max(0.0, seconds[3] - seconds[1]) / 2
    return max(0.0, seconds[1] - block), block


def _head(hidden_size: int, vocabulary: int, compute: Compute, full: bool, tokens: int, matmul: float) -> float:
    """Share of `matmul` of the output layer: log-probabilities, entropy, and their gradient."""
    tokens = min(tokens, 512)
    dtype = compute.trunk
    layer = torch.nn.Linear(hidden_size, vocabulary, bias=False, dtype=dtype, device=compute.device)
    layer.requires_grad_(full)
    hidden = torch.randn(tokens, hidden_size, device=compute.device, dtype=dtype, requires_grad=True)
    chosen = torch.arange(tokens, device=compute.device) % vocabulary

    def work() -> None:
        linear_logps(hidden, layer, chosen, 0.7, entropy=True)[0].sum().backward()

    flops = (4 if full else 2) * 2 * tokens * hidden_size * vocabulary
    return flops / _seconds(work, compute.device) / matmul
