"""What a model answered is kept, and an interruption anywhere changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trivet.artifacts import Message, Prompt
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.evaluate import subject as module
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import SPEED, Subject, speeds
from trivet.generate.base import Capabilities
from trivet.generate.choices import Fork
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.training.device import Compute

PROMPTS = [Prompt(id=f"p{i}", messages=[Message(role="user", content="what is it " * (1 + i * 5 % 7))])
           for i in range(7)]
LATER = [Prompt(id=f"q{i}", messages=[Message(role="user", content="and this? " * (1 + i % 2))]) for i in range(3)]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=3)


@pytest.fixture(scope="module")
def tiny(make_tiny, tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("subject") / "m")


@pytest.fixture
def ask(tiny, tmp_path, monkeypatch):
    """Answers to both lists of prompts in a folder, three prompts a chunk, two side by side."""
    monkeypatch.setattr(module, "CHUNK", 3)

    def answer(folder: Path) -> Path:
        subject = Subject(str(tiny), folder, Compute("cpu", torch.float32, 1), seed=0, batch_size=2)
        found = subject.answer("s", PROMPTS, SAMPLING), subject.answer("s", LATER, SAMPLING)
        assert [[r.id for r in rows] for rows in found] == [[p.id for p in PROMPTS], [p.id for p in LATER]]
        return folder / "answers" / "s.jsonl"

    return answer


def test_a_tear_at_any_place_changes_nothing(ask, tmp_path) -> None:
    """Cut at every line's end and amid every line; asked again, the file is what it was, byte for byte."""
    path = ask(tmp_path / "r")
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    starts = [0, *ends[:-1]]
    assert len(ends) == len(PROMPTS) + len(LATER)
    for cut in [0, *ends, *((a + b) // 2 for a, b in zip(starts, ends, strict=True)), *(e - 1 for e in ends)]:
        path.write_bytes(whole[:cut])
        ask(tmp_path / "r")
        assert path.read_bytes() == whole, cut


def test_only_whole_chunks_are_taken_as_they_are(ask, tmp_path) -> None:
    """Five answers of two chunks: the second chunk is asked again as a whole, in its own batches."""
    path = ask(tmp_path / "r")
    lines = path.read_bytes().splitlines(keepends=True)
    asked = []
    original = module.completed

    def spy(prompt, *rest):
        asked.append(prompt.id)
        return original(prompt, *rest)

    path.write_bytes(b"".join(lines[:5]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "completed", spy)
        ask(tmp_path / "r")
    assert asked == ["p3", "p4", "p5", "p6", "q0", "q1", "q2"]


@pytest.mark.parametrize(("damage", "why"), [
    (lambda lines: [lines[0], b'{"id": "p1"}\n', *lines[2:]], "this field is missing"),
    (lambda lines: [lines[0], b"{\n", *lines[2:]], "broken JSON"),
    (lambda lines: [lines[0], lines[0], *lines[1:]], "stands twice"),
    (lambda lines: [lines[0], b"{\n"], "broken JSON"),
])
def test_other_damage_is_named_and_left_alone(ask, tmp_path, damage, why) -> None:
    path = ask(tmp_path / "r")
    damaged = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(damaged)
    with pytest.raises(TrivetError, match=why) as error:
        ask(tmp_path / "r")
    assert error.value.file == path and error.value.line == 2 and path.read_bytes() == damaged


def test_a_torn_line_of_speeds_is_passed_over_and_cut(ask, tmp_path) -> None:
    folder = tmp_path / "r"
    ask(folder)
    path = folder / SPEED
    before = speeds(folder)
    assert len(before) == 4 and {r["suite"] for r in before} == {"s"}
    path.write_text(path.read_text() + '{"suite": "s", "tok')
    assert speeds(folder) == before
    (folder / "answers" / "s.jsonl").unlink()
    ask(folder)
    assert len(speeds(folder)) == 8 and all(json.loads(line) for line in path.read_text().splitlines())
    path.write_text("{}\n")
    with pytest.raises(TrivetError, match="damaged"):
        speeds(folder)


def test_another_batch_size_is_another_evaluation(tiny, tmp_path, capsys) -> None:
    assert "batch_size" not in EvaluateConfig.not_in_fingerprint
    words = ["evaluate", str(tiny), "--suites", "text", "--limit", "2", "--device.threads", "1", "--out",
             str(tmp_path / "out")]
    main(words)
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--batch-size", "3"])
    assert stopped.value.code == 2 and "batch_size differs" in capsys.readouterr().err


class Foreign:
    """An engine that shows no torch model: what llama.cpp and OpenVINO are to a subject."""

    def __init__(self, engine, capabilities: Capabilities) -> None:
        self._engine, self.capabilities = engine, capabilities
        self.generate, self.score = engine.generate, engine.score
        self.stops, self.batch_size, self.progress = engine.stops, 2, None
        self.model = object()  # as llama.cpp names its own


def test_any_engine_can_be_the_subject(tiny, tmp_path) -> None:
    """Answers, and log-probabilities of text, are those of the subject that torch loaded itself."""
    compute = Compute("cpu", torch.float32, 1)
    own = Subject(str(tiny), tmp_path / "own", compute, seed=0, batch_size=2)
    loaded = load_engine(tiny, compute, batch_size=2)
    loaded.engine = Foreign(loaded.engine, Capabilities(logps=True, score=True))
    other = Subject(str(tiny), tmp_path / "other", compute, seed=0, loaded=loaded)
    assert other.model is None and other.context == own.context == 256
    assert [r.completions[0].text for r in other.answer("s", PROMPTS, SAMPLING)] == [
        r.completions[0].text for r in own.answer("s", PROMPTS, SAMPLING)]
    forks = [Fork((5, 6, 7), ((8, 9), (8, 10, 11))), Fork((12,), ((13, 14),))]
    said: list[int] = []
    found = other.logps(forks, said.append)
    assert said == [1, 1]
    for mine, theirs in zip(found, own.logps(forks), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    with pytest.raises(TrivetError, match="longer than"):
        other.logps([Fork(tuple(range(5, 255)), (tuple(range(5, 20)),))])


def test_an_engine_that_cannot_score_says_so(tiny, tmp_path) -> None:
    loaded = load_engine(tiny, Compute("cpu", torch.float32, 1))
    loaded.engine = Foreign(loaded.engine, Capabilities(logps=False, score=False))
    subject = Subject("variant", tmp_path / "r", Compute("cpu", torch.float32, 1), seed=0, loaded=loaded)
    with pytest.raises(TrivetError, match="no log-probabilities"):
        subject.logps([Fork((5,), ((6,),))])


def test_a_loaded_model_without_a_template_is_refused_too(make_tiny, tmp_path) -> None:
    loaded = load_engine(make_tiny(tmp_path / "m", chat=False), Compute("cpu", torch.float32, 1))
    for plain in (False, True):
        if plain:
            Subject("v", tmp_path / "r", Compute("cpu", torch.float32, 1), seed=0, loaded=loaded, plain_template=True)
        else:
            with pytest.raises(TrivetError, match="no chat template"):
                Subject("v", tmp_path / "r", Compute("cpu", torch.float32, 1), seed=0, loaded=loaded)
