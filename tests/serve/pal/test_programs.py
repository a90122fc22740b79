"""100 programs of our own, with targets worked out apart from them, run through the sandbox as a model's reply is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from trivet.serve.pal.config import PalSettings
from trivet.serve.pal.program import Ran, normalised, run
from trivet.serve.pal.prompt import EXAMPLES, fenced

FILE = Path(__file__).with_name("programs.jsonl")


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def ran(programs: list[str]) -> list[Ran]:
    async def every() -> list[Ran]:
        return [await run(fenced(p), PalSettings()) for p in programs]

    return asyncio.run(every())


def test_a_hundred_programs_give_their_targets() -> None:
    items = rows()
    assert len(items) == 100 == len({r["id"] for r in items}) and len({r["kind"] for r in items}) == 8
    found = ran([r["program"] for r in items])
    wrong = {r["id"]: (f.value, f.failed) for r, f in zip(items, found, strict=True)
             if f.failed is not None or normalised(f.value) != normalised(r["target"])}
    assert wrong == {}


def test_a_wrong_target_is_noticed() -> None:
    item = rows()[0]
    assert normalised(ran([item["program"]])[0].value) != normalised(item["target"] + 1)


def test_the_examples_of_the_prompt_run() -> None:
    values = [f.value for f in ran([program for _, program in EXAMPLES])]
    assert values == [12, 65.0, "03/01/2024", 84.0, "banana"]
