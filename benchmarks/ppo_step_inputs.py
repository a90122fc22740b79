"""What ppo_step.py gives to both sides: prompts with the lengths of their answers, and reward models."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peers import ROOT
from trivet.artifacts import Prompt, read_json, read_rows
from trivet.config import EMBEDDED, LoRA
from trivet.data.chat import ensure_template, prompt_ids
from trivet.errors import TrivetError
from trivet.models import lora
from trivet.models.reward_model import head_of, trainable_reward_model
from trivet.models.source import ModelSource, load_tokenizer, resolve

PROMPTS = ROOT / "src" / "trivet" / "starter" / "prompts.jsonl"
LENGTHS = Path(__file__).parent / "answer_lengths.json"
WORKLOADS = ("equal_lengths", "real_lengths")


@dataclass(frozen=True)
class Workload:
    """What both sides do in a step. rows: {"prompt": token ids, "length": of the answer, "id", "messages"}."""

    name: str
    prompts: Path
    """The rows as a prompts file."""
    rows: list[dict[str, Any]]
    epochs: int
    kept: bool
    """All sides stay loaded, and make a step before the first round. Else each step is a new process's first: where
    steps are long a first one would cost more than it tells, and the sides together more memory than there is."""

    @property
    def lengths(self) -> list[tuple[int, int]]:
        return [(len(r["prompt"]), r["length"]) for r in self.rows]

    def facts(self) -> dict[str, Any]:
        """Published beside the figures."""
        def spread(values: Sequence[int]) -> dict[str, Any]:
            return {"least": min(values), "mean": round(statistics.fmean(values), 1), "largest": max(values),
                    "mean_over_largest": round(statistics.fmean(values) / max(values), 3)}

        prompts, answers = zip(*self.lengths, strict=True)
        return {"prompts": len(self.rows), "prompt_tokens": spread(prompts), "answer_tokens": spread(answers),
                "ppo_epochs": self.epochs, "minibatches": 1}


def inputs(folder: Path, chosen: argparse.Namespace, device: str) -> tuple[dict[str, Any], list[Workload], Any]:
    """(what every job holds, the chosen workloads, the model's configuration); files go into `folder`."""
    from transformers import AutoConfig

    source = resolve(_tiny(folder) if chosen.quick and not chosen.model else chosen.model or EMBEDDED)
    if source.is_adapter:
        raise TrivetError("an adapter is no model that all weights of can be trained", field="--model",
                          mend="name its base, or merge it: trivet models merge")
    tokenizer = load_tokenizer(source)
    ensure_template(tokenizer)
    prompts = read_rows(chosen.data or PROMPTS, Prompt)
    workloads = _workloads(prompts, tokenizer, chosen, device, folder)
    used = {r["id"] for w in workloads for r in w.rows}
    heldout = next((p for p in prompts if p.id not in used), None)
    if heldout is None:
        raise TrivetError("a prompt more is needed than the workloads take", file=chosen.data, field="--data",
                          mend="give a file with more prompts")
    full, adapter = _rewards(folder, source, tokenizer)
    (folder / "heldout.jsonl").write_text(heldout.model_dump_json() + "\n")
    job = {"folder": str(folder), "model": str(source.folder), "reward_full": str(full), "device": device,
           "reward_adapter": str(adapter), "heldout": str(folder / "heldout.jsonl"),
           "unused_token": _unused(tokenizer, [r["prompt"] for w in workloads for r in w.rows])}
    for workload in workloads:
        workload.prompts.write_text("".join(json.dumps({"id": f"{r['id']}/{i}", "messages": r["messages"]}) + "\n"
                                            for i, r in enumerate(workload.rows)))
    return job, workloads, AutoConfig.from_pretrained(source.folder)


def _workloads(prompts: Sequence[Prompt], tokenizer: Any, chosen: argparse.Namespace,
               device: str, folder: Path) -> list[Workload]:
    """The chosen workloads. No two prompts are equal, since the engine would read them once."""
    tokens = [prompt_ids(tokenizer, p.messages) for p in prompts]
    distinct = list({tuple(t): (p, t) for p, t in zip(prompts, tokens, strict=True)}.values())
    times, count, new = (4, 64, 128) if device == "cuda" else (1, 16, 48)
    answers = read_json(LENGTHS)["answers"]
    if chosen.quick:
        times, count, new, answers = 1, 4, 4, [answers[0] | {"length": n} for n in (2, 3, 5, 8)]
    if len(distinct) <= max(count, len(answers)):
        raise TrivetError(f"{len(distinct)} distinct prompts are too few", file=chosen.data, field="--data",
                          expected=f"more than {max(count, len(answers))}", mend="give a file with more prompts")

    def rows(pairs: Sequence[tuple[Prompt, list[int]]], lengths: Sequence[int]) -> list[dict[str, Any]]:
        found = []
        for copy in range(times):
            for (p, _), length in zip(pairs, lengths, strict=True):
                messages = [m.model_dump() for m in p.messages]
                if copy:  # a GPU's batch is larger than the file: the same prompts, numbered
                    messages[0]["content"] = f"{copy + 1}. {messages[0]['content']}"
                found.append({"id": p.id, "messages": messages, "length": length,
                              "prompt": prompt_ids(tokenizer, Prompt(id=p.id, messages=messages).messages)})
        return found

    middle = statistics.median(len(t) for _, t in distinct)
    alike = sorted(distinct, key=lambda pair: abs(len(pair[1]) - middle))[:count]
    if chosen.data or chosen.quick:  # other prompts: spread over their file, which may be ordered by kind
        mixed = [distinct[i * len(distinct) // len(answers)] for i in range(len(answers))]
    else:
        by_id = {p.id: (p, t) for p, t in distinct}
        mixed = [by_id[a["id"]] for a in answers]
    # at real lengths one pass over the rollout, as InstructGPT did: with more the update alone would decide
    found = [Workload("equal_lengths", folder / "equal_lengths.jsonl", rows(alike, [new] * count),
                      chosen.epochs or 2, kept=True),
             Workload("real_lengths", folder / "real_lengths.jsonl", rows(mixed, [a["length"] for a in answers]),
                      chosen.epochs or 1, kept=device == "cuda")]
    return [w for w in found if w.name in chosen.only]


def _rewards(folder: Path, source: ModelSource, tokenizer: Any) -> tuple[Path, Path]:
    """(a whole reward model, an adapter on the policy's base), as `trivet reward` writes them, with random heads."""
    full, adapter = folder / "reward-full", folder / "reward-adapter"
    for target, adapters in ((full, None), (adapter, LoRA())):
        model, _ = trainable_reward_model(source, torch.float32, "cpu", adapters)
        torch.manual_seed(0)
        torch.nn.init.normal_(head_of(model).weight, std=0.02)  # type: ignore[arg-type]
        if adapters is None:
            model.save_pretrained(target)
        else:
            lora.save_adapter(model, "default", target, source, {"role": "reward", "trivet_pool": "last"})
        tokenizer.save_pretrained(target)
    return full, adapter


def _unused(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> int:
    """A special token that no prompt holds and that ends nothing: TRL's padding must be told from what is drawn."""
    seen = {i for p in prompts for i in p} | {tokenizer.eos_token_id}
    found = [i for i, t in tokenizer.added_tokens_decoder.items() if t.special and i not in seen]
    if not found:
        raise TrivetError("the model's tokenizer has no special token to spare, which TRL needs for padding",
                          field="--model", mend="add one to the tokenizer")
    return int(max(found))


def _tiny(folder: Path) -> str:
    """A random model of 0.1M parameters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import build_tiny

    return str(build_tiny(folder / "tiny"))
