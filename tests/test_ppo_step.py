"""benchmarks/ppo_step.py: it runs, on tiny counts, and its formulas count what torch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arithmetic import Decoder, Work, needed
from trivet.training.flops import counting
from turns import Worker, WorkerEnded

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def test_operations_of_a_pass_and_of_training(tiny) -> None:
    shape, length = Decoder.of(tiny.config), 7
    ids = torch.arange(length)[None]
    with counting() as counter:
        tiny(input_ids=ids, use_cache=False).logits.sum().backward()
    whole = 4 * shape.layers * shape.heads * shape.head * length**2  # kernels count the keys no query sees, too
    assert counter.forward == shape.linear(length) + shape.output(length) + whole
    passed = shape.linear(length) + shape.output(length)
    # twice forward, but for the first block's inputs, whose gradient the embeddings take; attention: five products
    assert counter.backward == 2 * passed + whole // 4 * 10


def test_operations_of_a_step(tiny) -> None:
    shape = Decoder.of(tiny.config)
    work = Work([(5, 3), (4, 2)], epochs=2, live=False)
    states = shape.linear(12) + shape.attention(7) + shape.attention(5)
    policy = states + shape.output(5)
    full = needed(shape, work, tune="full", critic="separate")
    assert full["rollout"] == policy and full["evaluate"] == 2 * policy + states
    assert full["update"] == 2 * 3 * (policy + states)
    assert full["scoring"] == shape.linear(14) + shape.attention(8) + shape.attention(6)
    assert needed(shape, work, tune="full", critic="separate", old_from_rollout=True)["evaluate"] == policy + states
    live = needed(shape, Work(work.lengths, 2, live=True), tune="full", critic="separate")
    assert live["update"] == full["update"] - policy and live["evaluate"] == full["evaluate"]
    lora = needed(shape, work, tune="lora", critic="head")
    attended = shape.attention(7) + shape.attention(5)
    assert lora["update"] == 2 * (2 * policy + attended + 3 * shape.adapters(12, 16))


def test_runs_and_draws(tmp_path) -> None:
    found, image = tmp_path / "found.json", tmp_path / "found.png"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ppo_step.py"), "--quick", "--only", "real_lengths", "--sides", "same_work",
         "default", "--threads", "1", "--json", str(found), "--plot", str(image)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")})
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())["figures"]
    assert figures["real_lengths"]["answer_tokens"]["largest"] == 8 and image.stat().st_size > 0
    measured = figures["real_lengths"]["measured"]
    assert "--only real_lengths" in measured["command"] and measured["threads"] == 1 and measured["quick"]
    assert {"date", "load_before", "quiet", "versions", "machine", "device", "model"} <= set(measured)
    # another run of the other workload leaves its word about where it comes from alone
    whole = json.loads(found.read_text())
    whole["figures"]["real_lengths"]["measured"] |= {"date": "2001-01-01", "load_before": 7.0, "quiet": False}
    found.write_text(json.dumps(whole))
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "ppo_step.py"), "--quick", "--only", "equal_lengths", "--sides", "default",
         "--threads", "1", "--json", str(found)], capture_output=True, check=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")})
    again = json.loads(found.read_text())
    assert again["figures"]["real_lengths"]["measured"]["date"] == "2001-01-01" and not again["quiet"]
    assert "--only equal_lengths" in again["figures"]["equal_lengths"]["measured"]["command"]
    for side in ("same_work", "default"):
        phases = figures["phases"]["real_lengths"][side]
        assert all(phases[p]["seconds"] > 0 for p in ("rollout", "evaluate", "scoring", "update"))
        assert figures["peak_memory_mb"]["real_lengths"][side] > 0


def test_says_what_can_not_be(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "ppo_step.py"), "--quick", "--peer-env", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")})
    assert done.returncode == 2 and "--peer-env" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("end", "memory"), [
    ("raise SystemExit('OutOfMemoryError: of all things')", True), ("raise SystemExit('of all things')", False),
    ("sys.stderr.write('of all things'); sys.stderr.flush(); os.kill(os.getpid(), 9)", True)])
def test_a_side_that_dies_says_why(end, memory) -> None:
    program = f"import os, sys, turns; turns.hand_over({{}}); {end}"
    with Worker([sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(BENCHMARKS)}) as worker:
        assert worker.listen() == {}
        with pytest.raises(WorkerEnded, match="of all things") as died:
            worker.turn()
    assert died.value.out_of_memory is memory
