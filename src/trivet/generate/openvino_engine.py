"""OpenVINO as an engine: exported graphs on the CPU.

Rows are made in fixed batches, since all rows of the graph's own cache are of one length: prompts stand behind padding
on the left, a prompt is read once for all its answers, and rows that are finished leave where that pays. Logits come
back from every step and tokens are drawn here, so that seeds, top-k, top-p and log-probabilities mean what they mean
everywhere else.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trivet.artifacts import read_json
from trivet.errors import TrivetError
from trivet.generate.base import Capabilities, Generated, LoadedEngine
from trivet.generate.config import Sampling
from trivet.generate.rows import Row, begin, by_prompt, draw_rows
from trivet.generate.stops import StopStrings
from trivet.models.formats import OPENVINO_FILE, configured_ends
from trivet.models.source import ModelSource, load_tokenizer

if TYPE_CHECKING:
    from trivet.training.device import Compute

INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx", "logits_from"}
LEAVE = 0.75
"""Rows leave when no more than this share of the batch is at work: each new width makes OpenVINO plan its passes
anew."""


class OpenVINOEngine:
    """Generates with a compiled graph of compress/openvino_graph.py."""

    capabilities = Capabilities(logps=True, score=True, distribution=True)

    def __init__(self, compiled: Any, stops: frozenset[int], *, batch_size: int = 32, tokenizer: Any = None,
                 progress: Callable[[int], None] | None = None) -> None:
        """compiled: an openvino.CompiledModel. stops: tokens that end an answer. tokenizer: needed for stop strings
        only.
        """
        self.request: Any = compiled.create_infer_request()
        self.stops, self.batch_size = stops, batch_size
        self.tokenizer, self.progress = tokenizer, progress

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, n: int, seeds: Sequence[int],
        limits: Sequence[int] | None = None,
    ) -> list[list[Generated]]:
        """See Engine.generate. limits: for each prompt, in place of sampling.max_new_tokens.

        Raises TrivetError for an empty prompt, and for stop strings without a tokenizer.
        """
        strings = StopStrings(self.tokenizer, sampling.stop)
        rows = begin(prompts, n, seeds, [sampling.max_new_tokens] * len(prompts) if limits is None else limits)
        for start in range(0, len(rows), self.batch_size):
            for done in self._batch(prompts, rows[start : start + self.batch_size], sampling, strings):
                if self.progress is not None and done:
                    self.progress(len(done))
        return by_prompt(rows, len(prompts))

    def _batch(self, prompts: Sequence[Sequence[int]], rows: list[Row], sampling: Sampling,
               strings: StopStrings) -> Iterator[list[Row]]:
        """Make rows side by side; tells after each step which were finished in it."""
        chosen = list(dict.fromkeys(r.prompt for r in rows))
        width = max(len(prompts[i]) for i in chosen)
        ids = np.zeros((len(chosen), width), np.int64)
        mask = np.zeros_like(ids)
        for k, i in enumerate(chosen):
            ids[k, width - len(prompts[i]) :], mask[k, width - len(prompts[i]) :] = prompts[i], 1
        self.request.reset_state()
        logits = self.logits(ids, mask, np.maximum(mask.cumsum(-1) - 1, 0), np.arange(len(chosen)), width - 1)
        # which row of what is kept each row goes on from: of its prompt's at first
        beams = np.array([chosen.index(r.prompt) for r in rows])
        logits, mask, alive = logits[beams], mask[beams], rows
        while True:
            running = [k for k, r in enumerate(alive) if not r.finished]
            draw_rows([alive[k] for k in running], torch.from_numpy(logits[running, -1]), sampling, self.stops, strings)
            yield [alive[k] for k in running if alive[k].finished]
            still = [k for k in running if not alive[k].finished]
            if not still:
                return
            if len(still) <= LEAVE * len(alive):
                alive, mask, beams = [alive[k] for k in still], mask[still], beams[still]
            places = mask.sum(-1, keepdims=True)
            mask = np.concatenate([mask, np.ones((len(alive), 1), np.int64)], -1)
            logits = self.logits(np.array([[r.tokens[-1]] for r in alive]), mask, places, beams, 0)
            beams = np.arange(len(alive))

    def logits(self, ids: np.ndarray, mask: np.ndarray, places: np.ndarray, beams: np.ndarray,
              logits_from: int) -> np.ndarray:
        """Logits [N, T - logits_from, V]; OpenVINO's own memory, good until the next pass."""
        self.request.infer({"input_ids": ids.astype(np.int64), "attention_mask": mask,
                            "position_ids": places.astype(np.int64), "beam_idx": beams.astype(np.int32),
                            "logits_from": np.array([logits_from], np.int64)}, share_inputs=True)
        found: np.ndarray = self.request.get_output_tensor(0).data
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]],
              temperature: float = 1.0) -> list[list[float]]:
        """See Engine.score."""
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            logps = self._read([*prompt, *answer][:-1], len(prompt) - 1, temperature)
            places = torch.tensor(list(answer), dtype=torch.long).unsqueeze(-1)
            scored: list[float] = logps.gather(-1, places).squeeze(-1).tolist()
            found.append(scored)
        return found

    def distribution(self, text: Sequence[int]) -> np.ndarray:
        """See LocalEngine.distribution."""
        found: np.ndarray = self._read(text, 0, 1.0).numpy()
        return found

    def _read(self, text: Sequence[int], wanted_from: int, temperature: float) -> torch.Tensor:
        """Log-probabilities [K, V] after each token from number `wanted_from` on."""
        self.request.reset_state()
        ids = np.array([list(text)], np.int64)
        logits = self.logits(ids, np.ones_like(ids), np.arange(len(text))[None], np.zeros(1), wanted_from)
        return torch.log_softmax(torch.from_numpy(logits[0]) / temperature, -1)

    def close(self) -> None:
        """See LocalEngine.close."""
        self.request = None


def load_openvino(folder: Path, compute: Compute, batch_size: int) -> LoadedEngine:
    """The engine for an exported folder.

    Raises TrivetError where another device than the CPU was named, files that do not load or were not exported
    here, and where OpenVINO is not installed.
    """
    compute = compute.on_cpu("OpenVINO")
    if importlib.util.find_spec("openvino") is None:
        raise TrivetError("OpenVINO is not installed, which this model needs", file=folder, field="model",
                          mend="pip install 'trivet[openvino]'")
    import openvino as ov

    file = folder / OPENVINO_FILE
    tokenizer: Any = load_tokenizer(ModelSource(str(folder), folder))
    config = read_json(folder / "config.json")
    try:
        core = ov.Core()
        graph = core.read_model(file)
        found = {name for port in graph.inputs for name in port.get_names()}
        if not found >= INPUTS:
            raise TrivetError(f"this graph takes other inputs ({', '.join(sorted(found))})", file=file, field="model",
                              expected=", ".join(sorted(INPUTS)), mend="export the model by trivet quantize")
        compiled = core.compile_model(graph, "CPU", _settings(graph, compute.threads))
    except RuntimeError as error:
        raise TrivetError(f"OpenVINO does not load this model: {_short(error)}", file=file, field="model",
                          mend="export it anew by trivet quantize") from None
    stops = frozenset({int(tokenizer.eos_token_id)}) | (configured_ends(folder) or frozenset())
    engine = OpenVINOEngine(compiled, stops, batch_size=batch_size, tokenizer=tokenizer)
    return LoadedEngine(engine, tokenizer, "openvino", config.get("max_position_embeddings"), stops)


def _settings(graph: Any, threads: int) -> dict[str, Any]:
    """How the CPU plugin is to compute. Weights in floating point: exactly, in float32; codes: activations and kept
    keys and values may be rounded, too, which is where most of its speed is."""
    integer = any(node.get_friendly_name().endswith("/codes") for node in graph.get_ops())
    exact = {} if integer else {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False, **exact}


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
