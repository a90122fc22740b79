"""Several files become one: counts, an order drawn by the seed, pairs of a prompt together, and clear refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest

from trivet.artifacts import Preference, Prompt, read_rows
from trivet.data.mix import MixSummary, run
from trivet.data.mix_config import MixConfig
from trivet.errors import TrivetError
from trivet.runs import execute


def prompts(name: str, n: int) -> list[dict]:
    return [{"id": f"{name}{i}", "messages": [{"role": "user", "content": f"{name} {i}?"}], "tags": [name]}
            for i in range(n)]


def pairs(name: str, n: int, each: int = 2) -> list[dict]:
    return [{"id": f"{name}{i}/{k}", "prompt_id": f"{name}{i}", "prompt": [{"role": "user", "content": f"{name} {i}?"}],
             "chosen": f"good {k}",
             "rejected": "bad"} for i in range(n) for k in range(each)]


def mixed(out, inputs, **settings):
    config = MixConfig(out=out, inputs=inputs, **settings)
    return execute("mix", config, run, MixSummary), out / "mixed.jsonl"


def test_all_prompts_of_all_files_once(tmp_path, jsonl) -> None:
    a, b = jsonl("a.jsonl", prompts("a", 7)), jsonl("b.jsonl", prompts("b", 5))
    summary, file = mixed(tmp_path / "out", [a, b])
    rows = read_rows(file, Prompt)
    assert sorted(r.id for r in rows) == sorted([f"a{i}" for i in range(7)] + [f"b{i}" for i in range(5)])
    assert [r.tags[0] for r in rows] != ["a"] * 7 + ["b"] * 5, "the files' rows must stand among one another"
    assert (summary.rows, summary.prompts, summary.taken) == (12, 12, {str(a): 7, str(b): 5})


def test_take_and_seed_decide_which(tmp_path, jsonl) -> None:
    a, b = jsonl("a.jsonl", prompts("a", 30)), jsonl("b.jsonl", prompts("b", 30))

    def ids(out: str, seed: int) -> list[str]:
        return [r.id for r in read_rows(mixed(tmp_path / out, [a, b], take=[4, 9], seed=seed)[1], Prompt)]

    first = ids("one", 0)
    assert sum(i.startswith("a") for i in first) == 4 and len(first) == 13
    assert ids("two", 0) == first
    assert set(ids("three", 1)) != set(first)


def test_pairs_of_a_prompt_stay_together_and_count_once(tmp_path, jsonl) -> None:
    a, b = jsonl("a.jsonl", pairs("a", 6, each=3)), jsonl("b.jsonl", pairs("b", 6))
    summary, file = mixed(tmp_path / "out", [a, b], take=[2, 5])
    rows = read_rows(file, Preference)
    ids = [r.prompt_id for r in rows]
    assert (summary.prompts, summary.rows, len(rows)) == (7, 2 * 3 + 5 * 2, 16)
    changes = sum(x != y for x, y in pairwise(ids))
    assert changes == summary.prompts - 1, "a prompt's pairs lie apart"


def test_kinds_do_not_mix(tmp_path, jsonl) -> None:
    a, b = jsonl("a.jsonl", prompts("a", 2)), jsonl("b.jsonl", pairs("b", 2))
    with pytest.raises(TrivetError, match="preference pairs") as error:
        mixed(tmp_path / "out", [a, b])
    assert error.value.file == b and error.value.field == "inputs"


def test_an_id_in_two_files_is_refused(tmp_path, jsonl) -> None:
    a, b = jsonl("a.jsonl", prompts("a", 3)), jsonl("b.jsonl", prompts("a", 1))
    with pytest.raises(TrivetError, match="'a0' stands in") as error:
        mixed(tmp_path / "out", [a, b])
    assert error.value.file == b and not (tmp_path / "out" / "mixed.jsonl").exists()


def test_a_prompt_id_for_two_prompts_is_refused(tmp_path, jsonl) -> None:
    other = [{**row, "id": "x" + row["id"],
              "prompt": [{"role": "user", "content": "Another?"}]} for row in pairs("a", 1)]
    with pytest.raises(TrivetError, match="another prompt"):
        mixed(tmp_path / "out", [jsonl("a.jsonl", pairs("a", 2)), jsonl("b.jsonl", other)])
