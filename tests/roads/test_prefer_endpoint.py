"""AI preferences from an endpoint that answers and judges, killed on the way: nothing asked twice, all counted."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from endpoint_server import Endpoint, shown
from trivet.artifacts import Preference, read_rows
from trivet.ledger import read

PROMPTS = 60


class Model(Endpoint):
    """Writes by the request's seed, and judges: it likes the longer answer, and what stands first."""

    def _answer(self, body: dict[str, Any], said: str | None) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        if said is None and not prompt.startswith("You judge answers"):
            said = f"You said {prompt}{' so' * (body['seed'] % 97)}"
        return super()._answer(body, said)


def likes(prompt: str) -> dict[str, float]:
    gap = len(shown(prompt, "answer A")) - len(shown(prompt, "answer B"))
    p = min(max(0.6 + 0.001 * gap, 0.01), 0.99)
    return {"A": p, "B": 1 - p}


def command(url: str, prompts: Path, out: Path) -> list[str]:
    names = ["--target.by", url, "--target.model", "m", "--judge.by", url, "--judge.model", "m"]
    more = ["--principles", "2", "--sampling.max-new-tokens", "200", "--device.device", "cpu", "--device.threads", "1"]
    return [sys.executable, "-m", "trivet", "constitution", "prefer", "--prompts", str(prompts), *names, *more, "--out",
            str(out)]


def test_killed_while_it_writes_and_while_it_judges(tmp_path, jsonl) -> None:
    prompts = jsonl("prompts.jsonl", [{"id": f"q{i}", "prompt": f"Question {i}?"} for i in range(PROMPTS)])
    out, chance = tmp_path / "killed" / "prefer", random.Random(1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # 120 answers are written, then at most 60 pairs are judged by two principles in both orders
    stops = [chance.randint(10, 110), chance.randint(140, 330)]
    with Model(likes, work=0.01) as server:
        for stop in stops:
            with subprocess.Popen(command(server.url, prompts, out), stdout=subprocess.DEVNULL,
                                  env=environment) as process:
                while process.poll() is None and len(server.completed) < stop:
                    time.sleep(0.001)
                process.send_signal(signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL
            assert not (out / "preferences.jsonl").exists()
        subprocess.run(command(server.url, prompts, out), check=True, stdout=subprocess.DEVNULL, env=environment)
        seen, completed = list(server.ids), set(server.completed)
        asked = dict(zip(server.ids, (r["messages"][-1]["content"] + str(r.get("seed")) for r in server.requests),
                         strict=True))
        whole = tmp_path / "whole" / "prefer"
        subprocess.run(command(server.url, prompts, whole), check=True, stdout=subprocess.DEVNULL, env=environment)
    events = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    sent = {e["id"] for e in events if e["event"] == "sent"}
    lost = {e["id"] for e in events if e["event"] == "lost"}
    assert set(seen) <= sent and sent - set(seen) <= lost and len(lost) <= 8 * len(stops)
    (entry,) = read(tmp_path / "killed" / "ledger.jsonl")
    assert entry.endpoints["m"].requests == len(sent)
    # asked a second time was only what died with the process, before its answer was kept
    again = collections.Counter(asked[id] for id in completed - lost)
    assert max(again.values()) == 1
    for name in ("preferences.jsonl", "comparisons.jsonl", "completions.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    pairs = read_rows(out / "preferences.jsonl", Preference)
    assert len(pairs) > PROMPTS * 0.9 and all(len(p.chosen) > len(p.rejected) for p in pairs)
    summary = json.loads((out / "summary.json").read_text())
    assert abs(summary["prefers_first"]["value"] - 0.6) < 0.01 and summary["longer_wins"] == 1.0
