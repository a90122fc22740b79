"""A second round: the aligned model answers anew, only its answers are labelled, and both rounds train on.

Tiny random models and simulated labelers; every step is a command, with no script in between.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from trivet.artifacts import Completions, Preference, read_json, read_rows
from trivet.cli import main
from trivet.feedback.store import Store
from trivet.models.source import resolve, weights_sha256

WORDS = ["red", "green", "blue", "warm", "cold", "soft", "loud", "plain", "bright", "small"]
FAST = ["--device.threads", "1"]
SAMPLING = ["--sampling.temperature", "1.0", "--sampling.max-new-tokens", "10"]
PEOPLE = {"ann": 0.3, "bob": 0.6, "cat": 1.5}


def liking(text: str) -> float:
    """What the labelers like, with noise of their own: vowels, and few other letters."""
    return sum(c in "aeiou" for c in text) - 0.2 * len(text)


def label(database: Path, completions: Path, number: int, seed: int) -> set[int]:
    """The simulated labelers work until there is nothing left; the items that they were given."""
    rng, seen = random.Random(seed), set()
    with Store.open(database) as store:
        if number == 1:
            store.change_settings(None, overlap=2, gold_rate=0.0, repeat_rate=0.0)
            for name in PEOPLE:
                store.create_user(name, "labeler")
        added = store.add_completions(read_rows(completions, Completions), round=number)
        assert added.present == 0
        users = {u.name: u.id for u in store.users()}
        busy = list(PEOPLE)
        while busy:
            for name in list(busy):
                work = store.next_assignment(users[name])
                if work is None:
                    busy.remove(name)
                    continue
                seen.add(work.item_id)
                scores = [liking(c.text) + PEOPLE[name] * rng.gauss(0, 1) for c in work.completions]
                ranks = [1 + sum(other > own + 0.3 for other in scores) for own in scores]
                store.submit(work.id, users[name], ranks, seconds=1.0, request_id=f"{number}-{work.id}")
        progress = store.progress()
        assert progress.done == progress.needed
        assert len(seen) == added.added
    return seen


def align(out: Path, model: str, prompts: Path, pairs: Path, capsys) -> dict:
    """`reward` and `ppo` on a model; the summary of `ppo`."""
    main(["reward", "--preferences", str(pairs / "train.jsonl"), "--heldout", str(pairs / "heldout.jsonl"),
          "--model", model, "--out", str(out / "reward"), "--epochs", "6", "--optimizer.lr", "1e-2", *FAST,
          "--calibration.answers", "24", "--calibration.sampling.temperature", "1.0",
          "--calibration.sampling.max-new-tokens", "10"])
    capsys.readouterr()
    main(["ppo", "--prompts", str(prompts), "--model", model, "--reward", str(out / "reward" / "reward"), "--merge",
          "--out", str(out / "ppo"), "--no-check", "--stop.steps", "20", "--rollout", "32", "--optimizer.lr", "1e-2",
          "--evaluation.samples", "4", "--missing-end-penalty", "0", "--kl.coef", "0.03", *SAMPLING, *FAST])
    assert "shared by reference (adapters off), policy, reward" in capsys.readouterr().out
    mark = read_json(out / "ppo" / "policy" / "trivet_adapter.json")
    assert mark["base_sha256"] == weights_sha256(resolve(model).folder), "the reference is the model it started from"
    return json.loads((out / "ppo" / "summary.json").read_text())


@pytest.fixture
def prompts(jsonl) -> Path:
    return jsonl("prompts.jsonl", [{"id": f"q{i}", "prompt": f"Question {i}: is {WORDS[i % 10]} {WORDS[i // 7]}?"}
                                   for i in range(64)])


def test_a_second_round(prompts, tiny_model_folder, tmp_path, capsys) -> None:
    database = tmp_path / "labels.db"
    model, liked, items, summaries = str(tiny_model_folder), [], [], []
    for number in (1, 2):
        out = tmp_path / f"round{number}"
        main(["sample", "--prompts", str(prompts), "--model", model, "--completions", "4", "--out",
              str(out / "sample"), *SAMPLING, *FAST])
        answers = read_rows(out / "sample" / "completions.jsonl", Completions)
        liked.append(sum(liking(c.text) for r in answers for c in r.completions) / (4 * len(answers)))
        items.append(label(database, out / "sample" / "completions.jsonl", number, seed=number))
        main(["pairs", "--from-labels", str(database), "--method", "dawid-skene", "--out", str(out / "pairs")])
        summaries.append(json.loads((out / "pairs" / "summary.json").read_text()))
        ended = align(out, model, prompts, out / "pairs", capsys)
        assert ended["steps"] == 20
        model = str(out / "ppo" / "model")
        assert not resolve(model).is_adapter
    assert not items[0] & items[1], "nobody is asked about the first round again"
    assert summaries[0]["rankings"] == 128 and summaries[1]["rankings"] == 256, "both rounds train the second model"
    pairs = [*read_rows(tmp_path / "round2" / "pairs" / "train.jsonl", Preference),
             *read_rows(tmp_path / "round2" / "pairs" / "heldout.jsonl", Preference)]
    assert len({p.prompt_id for p in pairs}) > 100
    # one prompt's answers of both rounds stay on one side of the split
    texts = [{p.prompt[0].content for p in read_rows(tmp_path / "round2" / "pairs" / f"{s}.jsonl", Preference)}
             for s in ("train", "heldout")]
    assert texts[0].isdisjoint(texts[1])
    # the least careful labeler is found out
    reliability = summaries[1]["reliability"]
    assert min(reliability, key=reliability.get) == "cat"
    main(["sample", "--prompts", str(prompts), "--model", model, "--completions", "4", "--out",
          str(tmp_path / "last"), *SAMPLING, *FAST])
    answers = read_rows(tmp_path / "last" / "completions.jsonl", Completions)
    liked.append(sum(liking(c.text) for r in answers for c in r.completions) / (4 * len(answers)))
    assert liked[0] < liked[1] < liked[2], "what the labelers like grows from round to round"
