"""TruthfulQA's multiple choice by Trivet and by lm-evaluation-harness: the same items, model, torch, process.

The peer gets an environment of its own (.venv-lm-eval, see peers.py), and there both sides run with one loaded model,
turn about. Timed is what lies between the items in memory and the scores: wording, tokens, passes. Left out: loading
the model and the task, reading the data. The peer runs its own tasks truthfulqa_mc1 and truthfulqa_mc2 at the batch
size that was fastest in a trial.

    ratio_lm_eval                   the peer's seconds over Trivet's: median, least and largest of the rounds
    agreement                       share of questions with the same verdict in MC1
    mc1_abs_error, mc2_abs_error    difference of the two means
    logp_max_abs_error              largest difference of a choice's log-probability (float32: both round)
    mc_max_abs_error                Trivet's MC1 and MC2 against a plain forward pass for each choice, both in float64:
                                    the largest difference of a question's figure
    float32                         the same, of Trivet's and the peer's float32 figures against those in float64

    python benchmarks/lm_eval_peer.py [--quick] [--json FILE]
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers import environment

ROOT = Path(__file__).parents[1]
SIZES = {"quick": {"items": 4, "rounds": 1, "exact": 1, "batches": [8]},
         "full": {"items": 30, "rounds": 3, "exact": 6, "batches": [1, 4, 16, 64]}}


def compare_with_lm_eval(quick: bool, seed: int = 0, data: Path | None = None) -> dict[str, Any]:
    """The figures of this file's head. Needs the data set (`data`, or TRIVET_DATA) and, once, a package index."""
    data = (data or Path(os.environ.get("TRIVET_DATA", ROOT.parent / "shared" / "data"))).resolve()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        job = {**SIZES["quick" if quick else "full"], "data": str(data), "seed": seed, "folder": folder,
               "result": str(result)}
        subprocess.run([str(environment("lm-eval")), str(Path(__file__).resolve()), "--worker", json.dumps(job)],
                       check=True, cwd=folder, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}",
                                        "HF_DATASETS_CACHE": folder, "HF_HUB_OFFLINE": "1",
                                        "TOKENIZERS_PARALLELISM": "true"})
        figures: dict[str, Any] = json.loads(result.read_text())
    return figures


# --- in the peer's environment -----------------------------------------------------------------------------


def peer_tasks(items: Sequence[Any], folder: str) -> Any:
    """The library's own two tasks, on these items."""
    import lm_eval.tasks

    def targets(choices: Sequence[tuple[str, bool]]) -> dict[str, Any]:
        return {"choices": [c for c, _ in choices], "labels": [int(true) for _, true in choices]}

    path = Path(folder) / "items.jsonl"
    path.write_text("".join(json.dumps({"question": i.question, "mc1_targets": targets(i.mc1),
                                        "mc2_targets": targets(i.mc2)}) + "\n" for i in items))
    named = []
    for name in ("mc1", "mc2"):
        named.append(str(Path(folder) / f"{name}.yaml"))
        own = Path(lm_eval.tasks.__file__).parent / "truthfulqa" / f"truthfulqa_{name}.yaml"
        Path(named[-1]).write_text(f"include: {own}\ntask: truthfulqa_{name}\ndataset_path: json\ndataset_name: null\n"
                                   f"dataset_kwargs: {{data_files: {{validation: {path}}}}}\n")
    return lm_eval.tasks.TaskManager(include_defaults=False).load(named)


def by_peer(subject: Any, loaded: Any, batch_size: int, limit: int | None = None) -> tuple[float, dict[str, Any]]:
    """(seconds, the library's result)."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, backend="causal", batch_size=batch_size)
    start = time.perf_counter()
    found = evaluate(model, loaded, bootstrap_iters=0, limit=limit)
    return time.perf_counter() - start, found


def by_trivet(subject: Any, items: Sequence[Any], config: Any) -> tuple[float, dict[str, dict[str, float]]]:
    """(seconds, {measure: {item: value}})."""
    from trivet.evaluate.suites.truthfulqa import run

    start = time.perf_counter()
    scores = run(subject, items, config)
    seconds = time.perf_counter() - start
    return seconds, {name: {s.id: s.value for s in scores if s.measure == f"honest.{name}"} for name in ("mc1", "mc2")}


def plainly(subject: Any, item: Any) -> tuple[float, float]:
    """(MC1, MC2) of a question from one forward pass for each choice: nothing shared with what is measured."""
    import torch

    from trivet.evaluate.suites.truthfulqa import prompt_of

    logp = {}
    start = len(subject.tokenizer(prompt_of(item.question))["input_ids"])
    for choice in item.choices:
        ids = subject.tokenizer(f"{prompt_of(item.question)} {choice}")["input_ids"]
        with torch.no_grad():
            logps = torch.log_softmax(subject.model(torch.tensor([ids])).logits[0].double(), -1)
        logp[choice] = sum(logps[i - 1, ids[i]].item() for i in range(start, len(ids)))
    best = max((c for c, _ in item.mc1), key=lambda c: logp[c])
    mass = torch.tensor([logp[c] for c, _ in item.mc2], dtype=torch.float64).softmax(0)
    return float(dict(item.mc1)[best]), mass[torch.tensor([true for _, true in item.mc2])].sum().item()


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Both sides in this process."""
    import logging

    import torch

    from trivet.config import EMBEDDED, Device
    from trivet.evaluate.catalogue import draw
    from trivet.evaluate.config import EvaluateConfig
    from trivet.evaluate.subject import Subject
    from trivet.evaluate.suites.truthfulqa import prompt_of, read
    from trivet.generate.choices import fork_of, score_forks
    from trivet.training.device import Compute, prepare

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    compute = prepare(Device(device="cpu", precision="float32"))
    config = EvaluateConfig(data=Path(job["data"]))
    items = draw(read(config), job["items"], job["seed"])
    subject = Subject(EMBEDDED, Path(job["folder"]), compute, seed=0)
    loaded = peer_tasks(items, job["folder"])
    trial = {b: by_peer(subject, loaded, b, limit=2)[0] for b in job["batches"]} if len(job["batches"]) > 1 else {}
    batch_size = min(trial, key=lambda b: trial[b]) if trial else job["batches"][0]
    by_trivet(subject, items[:2], config)  # warm, as the trial made the peer
    ours, theirs = [], []
    for _ in range(job["rounds"]):
        seconds, mine = by_trivet(subject, items, config)
        ours.append(seconds)
        seconds, found = by_peer(subject, loaded, batch_size)
        theirs.append(seconds)
    samples = {name: sorted(found["samples"][f"truthfulqa_{name}"], key=lambda s: s["doc_id"])
               for name in ("mc1", "mc2")}
    peer = {name: {i.id: float(s["acc"]) for i, s in zip(items, rows, strict=True)} for name, rows in samples.items()}
    logps = score_forks(subject.model, [fork_of(subject.tokenizer, prompt_of(i.question), [f" {c}" for c in i.choices])
                                        for i in items])
    gaps = []
    for item, found_logps, sample in zip(items, logps, samples["mc2"], strict=True):
        of = {c: s.logp for c, s in zip(item.choices, found_logps, strict=True)}
        gaps += [abs(of[c] - float(p)) for (c, _), (p, _) in zip(item.mc2, sample["filtered_resps"], strict=True)]

    def gap(one: dict[str, Any], other: dict[str, Any], ids: Sequence[str]) -> float:
        return max(abs(one[name][i] - other[name][i]) for name in ("mc1", "mc2") for i in ids)

    ids, mean = [i.id for i in items], statistics.fmean
    chosen = items[: job["exact"]]
    del subject.model
    exact = Subject(EMBEDDED, Path(job["folder"]), Compute("cpu", torch.float64, compute.threads), seed=0)
    plain = {i.id: plainly(exact, i) for i in chosen}
    truth = {name: {i: pair[k] for i, pair in plain.items()} for k, name in enumerate(("mc1", "mc2"))}
    _, double = by_trivet(exact, chosen, config)
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    return {
        "ratio_lm_eval": {"value": statistics.median(theirs) / statistics.median(ours), "least": min(ratios),
                          "largest": max(ratios), "rounds": len(ratios)},
        "seconds": {"trivet": statistics.median(ours), "lm_eval": statistics.median(theirs)},
        "items": len(items), "choices": sum(len(i.mc1) + len(i.mc2) for i in items), "batch_size": batch_size,
        "trial_seconds": {str(b): round(s, 2) for b, s in trial.items()},
        "agreement": mean(mine["mc1"][i] == peer["mc1"][i] for i in ids),
        "mc1_abs_error": abs(mean(mine["mc1"].values()) - mean(peer["mc1"].values())),
        "mc2_abs_error": abs(mean(mine["mc2"].values()) - mean(peer["mc2"].values())),
        "mc2_item_max_abs_error": max(abs(mine["mc2"][i] - peer["mc2"][i]) for i in ids),
        "logp_max_abs_error": max(gaps),
        "mc_max_abs_error": gap(double, truth, list(plain)),
        "float32": {"trivet": gap(mine, truth, list(plain)), "lm_eval": gap(peer, truth, list(plain))},
        "exact_items": len(plain), "threads": compute.threads, "lm_eval": importlib.metadata.version("lm_eval"),
    }


def main() -> None:
    from common import load_average, options, report

    chosen = options(__doc__.splitlines()[0])
    load = load_average()
    report("lm_eval_peer", compare_with_lm_eval(chosen.quick, chosen.seed), chosen, load=load)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        given = json.loads(sys.argv[2])
        Path(given["result"]).write_text(json.dumps(work(given)))
    else:
        main()
