"""Perplexity and bits per byte: every token once, and the same text costs the same bits however it is cut."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from conftest import build_tiny
from trivet.errors import TrivetError
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import Subject
from trivet.evaluate.suites import text
from trivet.evaluate.suites.text import MEASURES, Document, read, run, windows
from trivet.training.device import Compute


def subject_of(folder: Path, run_folder: Path) -> Subject:
    return Subject(str(folder), run_folder, Compute("cpu", torch.float32, 1), seed=0)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 11, 12, 13, 40])
def test_every_token_is_scored_once_behind_what_came_before(length) -> None:
    ids = list(range(100, 100 + length))
    cut = windows(ids, 5, 8)
    assert [t for fork in cut for t in fork.continuations[0]] == ids
    assert cut[0].prompt == (5,)
    scored = 0
    for fork in cut:
        whole = [*fork.prompt, *fork.continuations[0]]
        assert len(whole) <= 8
        assert [5, *ids][:scored + 1][-len(fork.prompt):] == list(fork.prompt)
        scored += len(fork.continuations[0])
    assert all(len(fork.prompt) >= 4 for fork in cut[1:])


def test_figures_equal_a_plain_computation(any_tiny_model_folder, tmp_path) -> None:
    subject = subject_of(any_tiny_model_folder, tmp_path)
    documents = [Document("a", "Rice with beans and a little lime."), Document("b", "Grüße an alle, ütterly ok")]
    scores = {(s.measure, s.id): s for s in run(subject, documents, EvaluateConfig())}
    assert {m for m, _ in scores} == {m.key for m in MEASURES}
    for document in documents:
        ids = [subject.tokenizer.eos_token_id, *subject.tokenizer(document.text)["input_ids"]]
        with torch.no_grad():
            loss = subject.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
        tokens, size = len(ids) - 1, len(document.text.encode("utf-8"))
        nats, bits = scores["capable.perplexity", document.id], scores["capable.bits_per_byte", document.id]
        assert (nats.weight, bits.weight) == (tokens, size)
        assert nats.value == pytest.approx(loss, rel=1e-5)
        assert bits.value * size * math.log(2) == pytest.approx(loss * tokens, rel=1e-5)


class Letters:
    """A tokenizer of one token for `width` letters."""

    bos_token_id, eos_token_id = 0, 0

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, words: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [1 + i % 3 for i in range(0, len(words), self.width)]}


def test_bits_per_byte_do_not_depend_on_the_tokenizer(tiny_model_folder, tmp_path) -> None:
    """A model that gives each of 2^k tokens the same probability: k bits a token, k / width bits a byte."""
    subject = subject_of(tiny_model_folder, tmp_path)
    vocabulary = len(subject.tokenizer)
    for parameter in subject.model.parameters():
        torch.nn.init.zeros_(parameter)
    documents = [Document("a", "x" * 24), Document("b", "y" * 60)]
    for width in (1, 4):
        subject.tokenizer = Letters(width)
        scores = run(subject, documents, EvaluateConfig())
        for s in scores:
            expected = math.log(vocabulary) if s.measure.endswith("perplexity") else math.log2(vocabulary) / width
            assert s.value == pytest.approx(expected, rel=1e-6)


def test_long_documents_are_read_in_windows(tmp_path) -> None:
    """A model whose context is a fraction of the text, and one for which it is not, agree on a short-sighted model."""
    subject = subject_of(build_tiny(tmp_path / "m", context=32), tmp_path / "r")
    words = "One two three four five. " * 20
    scores = {s.measure: s for s in run(subject, [Document("a", words)], EvaluateConfig())}
    tokens = len(subject.tokenizer(words)["input_ids"])
    assert tokens > 100 and scores["capable.perplexity"].weight == tokens
    ids, total = subject.tokenizer(words)["input_ids"], 0.0
    for i in range(tokens):
        # window k scores 16 tokens, and looks back as far as 32 together allow
        end = 31 if i < 31 else min(31 + 16 * ((i - 31) // 16 + 1), tokens)
        seen = [subject.tokenizer.eos_token_id, *ids[:i]] if i < 31 else ids[end - 32 : i]
        with torch.no_grad():
            total -= torch.log_softmax(subject.model(torch.tensor([seen])).logits[0, -1], -1)[ids[i]].item()
    assert scores["capable.perplexity"].value == pytest.approx(total / tokens, rel=1e-5)


def test_own_prose() -> None:
    documents = read(EvaluateConfig())
    assert len(documents) == 40 and len({d.id for d in documents}) == 40
    assert len({d.text[:20] for d in documents}) == 40
    assert all(60 <= len(d.text.split()) <= 120 for d in documents)


def seed_tasks(folder: Path, rows: list[dict]) -> EvaluateConfig:
    path = folder / text.FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return EvaluateConfig(data=folder)


TASK = {"id": "t", "instruction": "Name a colour.", "instances": [{"input": "", "output": "Green"}]}


def test_tasks_become_documents(tmp_path) -> None:
    other = {"instruction": "Add. ", "instances": [{"input": "1, 2", "output": "3"}]}
    found = [d.text for d in read(seed_tasks(tmp_path, [TASK, other]))]
    assert found == ["Name a colour.\n\nGreen", "Add.\n\n1, 2\n\n3"]


@pytest.mark.parametrize(("rows", "what", "line"), [
    ([], "no tasks", None),
    ([TASK, {"instruction": "x"}], "without an instance", 2),
    ([{**TASK, "instances": []}], "without an instance", 1),
    ([{**TASK, "instances": [{"input": "", "output": 3}]}], "no text", 1),
    ([{**TASK, "instruction": None}], "no text", 1),
    ([{"instruction": " ", "instances": [{"input": "", "output": ""}]}], "without words", 1),
    ([TASK, TASK], "twice", None),
])
def test_bad_files_say_where(tmp_path, rows, what, line) -> None:
    with pytest.raises(TrivetError, match=what) as caught:
        read(seed_tasks(tmp_path, rows))
    assert caught.value.line == line


def test_the_real_file_reads(tmp_path) -> None:
    folder = Path(os.environ.get("TRIVET_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not (folder / text.FILE).is_file():
        pytest.skip(f"needs TRIVET_DATA with {text.FILE}")
    assert len(read(EvaluateConfig(data=folder))) == 175
