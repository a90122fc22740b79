"""Kill each training stage with `kill -9` at random moments, run it again, and compare with an uninterrupted run.

Equal means: metrics.jsonl, evaluation.jsonl, guard.jsonl, every rollout and evaluation file and every final weight,
byte for byte. On tiny random models, so that many kills take minutes. `tests/training/test_resume.py` does the same at
a few fixed moments.

    python benchmarks/resume.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from common import load_average, options, report
from conftest import WORDS, build_tiny, preference_rows

COMPARED = ("metrics.jsonl", "evaluation.jsonl", "guard.jsonl", "rollouts/*.jsonl", "evaluations/*.jsonl",
            "model/*.safetensors", "reward/*.safetensors", "reward/calibration.json", "policy/*.safetensors",
            "evaluation.json", "logits/*", "teacher/texts.jsonl")


def fixtures(folder: Path) -> dict[str, list[str]]:
    """A tiny model and data in `folder`; the command line of each stage, less --out."""
    folder.mkdir(parents=True, exist_ok=True)
    model = build_tiny(folder / "tiny")
    rows = preference_rows(24)

    def write(name: str, values: list[dict[str, Any]]) -> str:
        path = folder / name
        path.write_text("".join(json.dumps(v) + "\n" for v in values))
        return str(path)

    train = write("train.jsonl", [r for r in rows if int(r["prompt_id"][1:]) < 18])
    heldout = write("heldout.jsonl", [r for r in rows if int(r["prompt_id"][1:]) >= 18])
    chats = write("chats.jsonl", [{"prompt": f"Say {w} {v}.", "completion": f"{w} and {v}"}
                                  for w in WORDS for v in WORDS[:6]])
    talks = write("talks.jsonl", [{"prompt": f"Tell {w}!", "completion": f"{w} or not"} for w in WORDS[:4]])
    prompts = write("prompts.jsonl", [{"id": f"q{i}", "prompt": f"Is {WORDS[i % 10]} {WORDS[(i + 3) % 10]} {i}?"}
                                      for i in range(30)])
    (folder / "rewards.py").write_text(
        "def vowels(samples):\n    return [sum(c in 'aeiou' for c in s.completion) / 4 for s in samples]\n")
    common = ["--model", str(model), "--device.threads", "1", "--checkpoint.every", "3"]
    return {
        "sft": ["sft", "--data", chats, *common, "--epochs", "3", "--batch", "2", "--max-length", "128",
                "--no-check", "--optimizer.lr", "1e-2"],
        "reward": ["reward", "--preferences", train, "--heldout", heldout, *common, "--epochs", "4", "--batch", "4",
                   "--optimizer.lr", "1e-2", "--calibration.answers", "6",
                   "--calibration.sampling.max-new-tokens", "8", "--pool", "mean", "--lora.last-layers", "1"],
        "ppo": ["ppo", "--prompts", prompts, *common, "--reward", "rewards:vowels", "--no-check", "--stop.steps", "14",
                "--rollout", "8", "--micro-batch", "4", "--minibatches", "2", "--sampling.max-new-tokens", "10",
                "--evaluation.every", "4", "--optimizer.lr", "1e-2", "--kl.adaptive", "--kl.horizon", "100",
                "--lora.last-layers", "1", "--answers", "2", "--prompt-baseline"],
        "dpo": ["dpo", "--preferences", train, "--heldout", heldout, *common, "--epochs", "4", "--batch", "4",
                "--optimizer.lr", "1e-2", "--label-smoothing", "0.1"],
        "distill": ["distill", "--data", chats, "--heldout", talks, "--teacher.by", str(model), "--student.layers", "1",
                    *common[2:], "--epochs", "2", "--batch", "6", "--micro-batch", "3", "--max-length", "64",
                    "--optimizer.lr", "1e-2", "--on-policy", "0.5", "--sampling.max-new-tokens", "6"],
        "distill-stored": ["distill", "--prompts", prompts, "--teacher.by", str(model), "--teacher.top-k", "8",
                           "--student.by", str(model), *common[2:], "--epochs", "6", "--batch", "4", "--max-length",
                           "64", "--optimizer.lr", "1e-2", "--sampling.max-new-tokens", "6", "--quantize.on",
                           "--quantize.group", "32", "--no-packing"],
        "grpo": ["ppo", "--prompts", prompts, *common, "--reward", "rewards:vowels", "--no-check", "--stop.steps", "14",
                 "--rollout", "8", "--micro-batch", "4", "--sampling.max-new-tokens", "10", "--evaluation.every", "4",
                 "--optimizer.lr", "1e-2", "--advantage", "grpo", "--answers", "4",
                 "--ptx.data", chats, "--ptx.batch", "3", "--ptx.max-length", "128"],
    }


_SERVER = multiprocessing.get_context("forkserver")
# imported once, in a process that every stage is then forked from: a start takes a tenth of a second
_SERVER.set_forkserver_preload(["trivet.cli", "trivet.policy.ppo", "trivet.policy.sft", "trivet.policy.dpo",
                                "trivet.compress.distill",
                                "trivet.reward.train", "peft", "transformers.models.llama.modeling_llama"])


def _child(arguments: list[str], folder: str, log: str) -> None:
    """Run a stage in this process, its output in `log`."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from trivet.cli import main as trivet

    code = 0
    try:
        trivet(arguments)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    sys.stdout.flush()
    os._exit(code)


class Stage:
    """A stage in a process of its own."""

    def __init__(self, arguments: list[str], out: Path, folder: Path) -> None:
        self.log = folder / f"{out.name}.log"
        self.process = _SERVER.Process(target=_child, args=([*arguments, "--out", str(out)], str(folder),
                                                            str(self.log)))
        self.process.start()

    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int | None, str]:
        """(exit code, output), once it has ended."""
        self.process.join(600)
        return self.process.exitcode, self.log.read_text() if self.log.exists() else ""


def finish(arguments: list[str], out: Path, folder: Path) -> None:
    """Run a stage to its end. Raises RuntimeError with its output where it fails."""
    code, output = Stage(arguments, out, folder).wait()
    if code != 0:
        raise RuntimeError(f"{arguments[0]} failed:\n{output}")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_when(arguments: list[str], out: Path, folder: Path, ready: Callable[[Path], bool], delay: float) -> bool:
    """Start a stage and `kill -9` it `delay` seconds after `ready(out)`; False where it ended before that."""
    stage = Stage(arguments, out, folder)
    while not ready(out):
        if not stage.running():
            return False
        time.sleep(0.001)
    time.sleep(delay)
    if not stage.running():
        return False
    stage.send(signal.SIGKILL)
    return stage.wait()[0] == -signal.SIGKILL


def differing(one: Path, other: Path) -> list[str]:
    """The compared files that are not equal byte for byte, or that only one side has."""
    names = sorted({str(p.relative_to(root)) for root in (one, other) for pattern in COMPARED
                    for p in root.glob(pattern)})
    if not names:
        return ["nothing to compare"]
    return [n for n in names if not ((one / n).is_file() and (other / n).is_file()
                                     and (one / n).read_bytes() == (other / n).read_bytes())]


def main() -> None:
    chosen = options(__doc__ or "")
    load = load_average()
    kills = 2 if chosen.quick else 20
    rng = random.Random(chosen.seed)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for stage, arguments in fixtures(folder).items():
            whole = folder / f"{stage}-whole"
            finish(arguments, whole, folder)
            steps = lines(whole / "metrics.jsonl")
            done = equal = 0
            while done < kills:
                out = folder / f"{stage}-{done}"
                # a moment anywhere between the start of the process and its end
                row, delay = rng.randint(-1, steps), rng.uniform(0, 0.25)
                struck = kill_when(arguments, out, folder, lambda o, r=row: lines(o / "metrics.jsonl") >= r, delay)
                finish(arguments, out, folder)
                if not struck:
                    shutil.rmtree(out)
                    continue  # it had ended already: not a kill
                done += 1
                bad = differing(whole, out)
                equal += not bad
                print(f"{stage}: kill {done} after row {row} + {delay:.2f} s: "
                      + ("equal" if not bad else f"DIFFERS in {', '.join(bad)}"), flush=True)
            figures[stage] = {"kills": done, "bit_equal": equal, "steps": steps}
    report("resume", figures, chosen, load=load)


if __name__ == "__main__":
    main()
