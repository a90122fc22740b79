"""Rollouts beside `transformers.generate` and vLLM's CPU build: the same prompts, lengths and weights, turn about.

    python benchmarks/rollout.py --json benchmarks/results/rollout.json

64 prompts of the starter set with fixed lengths (`benchmarks/data/rollout_lengths.jsonl`; the mean is 0.4 of the
longest, 128), drawn at temperature 0.7. Only tokens that were asked for count. All rounds run in one process for
Trivet and `generate` (the same model object) and one, which waits between its turns, for vLLM.

`generate` gets the 64 rows as one batch padded on the left, and a stopping criterion by row: finished rows stay, as
they do there. vLLM gets token ids, gives no text and no log-probabilities back, and forgets prompts between rounds
but not inside one. Trivet returns log-probabilities.

Every side runs in each precision, and `generate` with whichever of its two caches a trial finds faster.
`ratio_generate` and `ratio_vllm` compare each side's own best precision (`best` names them); `…_equal_precision` are
the ratios at Trivet's best, and `by_precision` has them all. `fraction_of_matmul_bound` is the time of the matrix
products alone, at the row counts of these prompts and steps, in whichever of the two layouts is the faster, over
Trivet's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

import peers
from common import load_average, options, report
from reward_training import median
from trivet.artifacts import Message
from trivet.config import EMBEDDED, Device
from trivet.data.chat import ensure_template, prompt_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.decoding import shared_prefix
from trivet.generate.torch_engine import TorchEngine
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve
from trivet.training.device import prepare

HERE = Path(__file__).parent
LIST = HERE / "data" / "rollout_lengths.jsonl"
TEMPERATURE = 0.7
CACHES = ("dynamic", "static")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each side, after one that warms up")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (default: all cores)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch-size", type=int, default=64, help="rows at work at once: Trivet's, vLLM's")
    parser.add_argument("--generate-cache", choices=CACHES, nargs="+", default=list(CACHES),
                        help="of several the faster is taken, by a round of each before")
    parser.add_argument("--peer-env", type=Path, help="vLLM's environment, or its python")
    parser.add_argument("--no-vllm", action="store_true", help="leave vLLM out")


class Work:
    """What every side does in a round."""

    def __init__(self, source: ModelSource, count: int, longest: int) -> None:
        tokenizer = load_tokenizer(source)
        ensure_template(tokenizer)
        rows = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()][:count]
        self.prompts = [prompt_ids(tokenizer, [Message(**m) for m in r["messages"]]) for r in rows]
        self.lengths = [min(r["new_tokens"], longest) for r in rows]
        self.pad = tokenizer.pad_token_id

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def trivet_side(model: Any, work: Work, batch_size: int) -> Callable[[int], float]:
    engine = TorchEngine(model, work.pad, frozenset(), batch_size=batch_size)
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=max(work.lengths))

    def once(seed: int) -> float:
        began = time.perf_counter()
        answers = engine.generate(work.prompts, sampling, n=1, limits=work.lengths,
                                  seeds=[seed * 1000 + i for i in range(len(work.prompts))])
        took = time.perf_counter() - began
        assert [len(a[0].token_ids) for a in answers] == work.lengths
        return took

    return once


def generate_side(model: Any, work: Work, cache: str) -> Callable[[int], float]:
    """All rows as one batch. Finished ones stay in it: that is what `generate` does."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    width, device = max(map(len, work.prompts)), model.device
    ids = torch.full((len(work.prompts), width), work.pad)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(work.prompts):
        ids[i, width - len(prompt):] = torch.tensor(prompt)
        mask[i, width - len(prompt):] = 1
    ids, mask, wanted = ids.to(device), mask.to(device), torch.tensor(work.lengths, device=device)

    class Lengths(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return input_ids.shape[1] - width >= wanted

    more = {"cache_implementation": "static"} if cache == "static" else {}

    def once(seed: int) -> float:
        torch.manual_seed(seed)
        began = time.perf_counter()
        with torch.no_grad():
            out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
                                 max_new_tokens=max(work.lengths), eos_token_id=None, pad_token_id=work.pad,
                                 stopping_criteria=StoppingCriteriaList([Lengths()]), **more)
        took = time.perf_counter() - began
        assert out.shape[1] == width + max(work.lengths)
        return took

    return once


def best_generate(model: Any, work: Work, caches: Sequence[str],
                  seed: int) -> tuple[Callable[[int], float], dict[str, Any]]:
    """(`generate` with the faster cache, what was tried): each has a call to warm up, then one that counts."""
    sides = {cache: generate_side(model, work, cache) for cache in caches}
    if len(sides) == 1:
        return sides[caches[0]], {"cache": caches[0]}
    seconds: dict[str, float] = {}
    for cache, once in sides.items():
        once(seed)
        seconds[cache] = once(seed)
        print(f"generate, {cache} cache: {work.tokens / seconds[cache]:.1f} tok/s", flush=True)
    best = min(seconds, key=lambda cache: seconds[cache])
    return sides[best], {"cache": best, "tried_tokens_per_second": {c: work.tokens / s for c, s in seconds.items()}}


class VllmSide:
    """vLLM in a process of its own, which loads once and then answers for timed rounds."""

    def __init__(self, python: Path, folder: Path, precision: str, work: Work, threads: int, rows: int) -> None:
        told = {"model": str(folder), "dtype": precision, "prompts": work.prompts, "lengths": work.lengths,
                "temperature": TEMPERATURE, "threads": threads, "rows": rows,
                "context": max(map(len, work.prompts)) + max(work.lengths) + 16}
        self._process = subprocess.Popen([str(python), str(HERE / "rollout_vllm_peer.py")], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)
        self._ask(told)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # a process that died says so by its exit code, below
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ROLLOUT "):
                answer: dict[str, Any] = json.loads(line.removeprefix("ROLLOUT "))
                return answer
        raise TrivetError(f"vLLM's process ended with exit code {self._process.wait()}",
                          mend="read what it says above; --no-vllm leaves it out")

    def __call__(self, seed: int) -> float:
        return float(self._ask({"seed": seed})["seconds"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@torch.no_grad()
def matmul_bound(model: Any, work: Work, repeats: int) -> float:
    """Seconds of the matrix products alone: prompts (what all begin with, once) and each decode step's rows."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    output = model.get_output_embeddings().weight
    body = [w for w in weights if w is not output]
    shared = shared_prefix(work.prompts)
    prompt_tokens = shared + sum(len(p) - shared for p in work.prompts)
    at_work = [sum(n > step for n in work.lengths) for step in range(1, max(work.lengths))]

    def seconds(chosen: Sequence[torch.Tensor], rows: int) -> float:
        inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w) for w in chosen}
        columns = {k: x.t().contiguous() for k, x in inputs.items()}
        times = []
        for _ in range(repeats):
            for product in (lambda w: nn.functional.linear(inputs[w.shape[1]], w),
                            lambda w: torch.mm(w, columns[w.shape[1]])):
                _wait(model)
                began = time.perf_counter()
                for w in chosen:
                    product(w)
                _wait(model)
                times.append(time.perf_counter() - began)
        return min(times)

    grid = sorted({1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128} & set(range(len(work.lengths))) | {len(work.lengths)})
    measured = {rows: seconds([*body, output], rows) for rows in grid}

    def step(rows: int) -> float:
        above = next(g for g in grid if g >= rows)
        below = max((g for g in grid if g <= rows), default=above)
        share = (rows - below) / (above - below) if above > below else 0.0
        return measured[below] + share * (measured[above] - measured[below])

    return seconds(body, prompt_tokens) + seconds([output], len(work.prompts)) + sum(map(step, filter(None, at_work)))


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def ratio(theirs: Sequence[float], ours: Sequence[float], seed: int) -> dict[str, float | int | None]:
    """The median of the rounds' ratios, with its bootstrap interval over rounds (of the same number, where the sides'
    precisions differ, but minutes apart)."""
    return median([a / b for a, b in zip(theirs, ours, strict=True)], seed).as_dict()


def figures(chosen: argparse.Namespace) -> dict[str, Any]:
    """Time the sides in each precision."""
    rounds = 1 if chosen.quick else chosen.rounds
    source = resolve(chosen.model)
    work = Work(source, 6 if chosen.quick else 10**6, 12 if chosen.quick else 10**6)
    threads = prepare(Device(threads=chosen.threads, device=chosen.device)).threads
    python = None if chosen.no_vllm else peers.environment("vllm", chosen.peer_env)
    by_precision: dict[str, Any] = {}
    seconds: dict[str, dict[str, list[float]]] = {}
    for precision in chosen.precision:
        model = load_causal_lm(source, getattr(torch, precision), chosen.device).requires_grad_(False)
        generate, cache = best_generate(model, work, list(dict.fromkeys(chosen.generate_cache)), chosen.seed)
        sides: dict[str, Callable[[int], float]] = {
            "trivet": trivet_side(model, work, chosen.batch_size), "generate": generate}
        vllm = VllmSide(python, source.folder, precision, work, threads, chosen.batch_size) if python else None
        if vllm is not None:
            sides["vllm"] = vllm
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name in (list(sides), list(reversed(sides)))[number % 2]:
                took = sides[name](chosen.seed + number)
                if number:  # the first round warms up
                    times[name].append(took)
                print(f"{precision} round {number} {name}: {work.tokens / took:.1f} tok/s", flush=True)
        if vllm is not None:
            vllm.close()
        bound = matmul_bound(model, work, 1 if chosen.quick else 5)
        seconds[precision] = times
        by_precision[precision] = {
            **{f"ratio_{name}": ratio(times[name], times["trivet"], chosen.seed) for name in sides if name != "trivet"},
            "tokens_per_second": {name: work.tokens / statistics.median(t) for name, t in times.items()},
            "generate": cache, "matmul_bound_tokens_per_second": work.tokens / bound,
            "fraction_of_matmul_bound": bound / statistics.median(times["trivet"])}
    middle = {p: {name: statistics.median(t) for name, t in times.items()} for p, times in seconds.items()}
    best = {name: min(middle, key=lambda p: middle[p][name]) for name in next(iter(middle.values()))}
    ours = seconds[best["trivet"]]["trivet"]
    main = by_precision[best["trivet"]]
    peers_of = [name for name in best if name != "trivet"]
    return {
        "best": best | {"generate_cache": by_precision[best["generate"]]["generate"]["cache"]},
        "threads": threads, "device": chosen.device, "rows": chosen.batch_size,
        "prompts": len(work.prompts), "prompt_tokens": sum(map(len, work.prompts)), "tokens": work.tokens,
        "mean_over_longest": work.tokens / len(work.lengths) / max(work.lengths),
        "ratio_vllm": None,
        **{f"ratio_{name}": ratio(seconds[best[name]][name], ours, chosen.seed) for name in peers_of},
        **{f"ratio_{name}_equal_precision": main[f"ratio_{name}"] for name in peers_of},
        "tokens_per_second": main["tokens_per_second"]["trivet"],
        "fraction_of_matmul_bound": main["fraction_of_matmul_bound"],
        "by_precision": by_precision}


def main() -> None:
    chosen = options(__doc__ or "", arguments)
    load = load_average()
    report("rollout", figures(chosen), chosen, load=load)


if __name__ == "__main__":
    main()
