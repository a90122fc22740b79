"""The top k and a tail say of the whole what they should; stored and read again they still do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from trivet.compress.distill_config import LOGITS
from trivet.compress.divergence import divergence, soft_logps
from trivet.compress.soft_labels import Top, Whole, top_of
from trivet.compress.stored import StoredLogits, StoredRow, bytes_per_position, key_of, learned, store
from trivet.data.supervised import Example
from trivet.errors import TrivetError

ALL = slice(None)


def logits(seed: int, rows: int = 6, width: int = 11) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def top(teacher: torch.Tensor, k: int, temperature: float, tail: str = "bucket") -> Top:
    ids, logps, tails = top_of(teacher, k, [1.0, temperature])
    return Top(ids, logps, tails[:, 1], tail)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_with_all_tokens_it_is_the_whole(kind, temperature) -> None:
    teacher = logits(1)
    found = []
    for soft in (Whole(teacher, None), top(teacher, 11, temperature), top(teacher, 11, temperature, "drop")):
        student = logits(2).requires_grad_()
        loss = divergence(*soft.compared(ALL, student, temperature), kind).sum()
        loss.backward()
        found.append((loss.detach(), student.grad))
    for loss, slope in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slope, found[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_tail_is_exact_at_the_temperature(temperature) -> None:
    """What a softmax at T gives the other tokens is known, though they are not."""
    teacher = logits(1)
    ours, _ = top(teacher, 3, temperature).compared(ALL, logits(2), temperature)
    whole = torch.softmax(teacher.double() / temperature, -1)
    best = whole.topk(3).values
    torch.testing.assert_close(ours[:, :3].exp().double(), best, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours[:, 3].exp().double(), 1 - best.sum(-1), rtol=1e-4, atol=1e-6)


def test_without_the_tail_it_is_the_softmax_of_the_top_logits() -> None:
    teacher, student = logits(1), logits(2)
    ours, theirs = top(teacher, 4, 2.0, "drop").compared(ALL, student, 2.0)
    best = teacher.topk(4)
    torch.testing.assert_close(ours, torch.log_softmax(best.values / 2, -1))
    torch.testing.assert_close(theirs, torch.log_softmax(student.gather(-1, best.indices) / 2, -1))


@pytest.mark.parametrize("tail", ["bucket", "drop"])
def test_where_nothing_is_known_nothing_is_learned(tail) -> None:
    ids, logps, tails = top_of(logits(1), 3, [1.0])
    logps[2] = -torch.inf
    logps[4, 1:] = -torch.inf  # one token alone
    student = logits(2).requires_grad_()
    soft = Top(ids, logps, torch.where(torch.arange(6) == 2, 0.0, tails[:, 0]), tail)
    loss = divergence(*soft.compared(ALL, student, 1.0), "forward")
    loss.sum().backward()
    assert float(loss[2].detach()) == 0 and float(student.grad[2].abs().max()) == 0
    assert torch.isfinite(student.grad).all()
    if tail == "bucket":
        assert (student.grad[[0, 1, 3, 4, 5]].abs().amax(-1) > 0).all()


def test_a_vocabulary_padded_further_is_cut() -> None:
    teacher = torch.nn.functional.pad(logits(1), (0, 5), value=-20.0)
    ours, theirs = Whole(teacher, None).compared(ALL, logits(2), 1.0)
    assert ours.shape == theirs.shape == (6, 11)
    torch.testing.assert_close(ours, soft_logps(logits(1), 1.0))


# --- stored -------------------------------------------------------------------------------------------------------

EXAMPLES = [Example(tuple(range(i, i + 5)), (False, False, True, True, True)) for i in range(3)]


def rows(examples, k: int = 4, width: int = 500) -> list[StoredRow]:
    found = []
    for e in examples:
        ids, logps, tails = top_of(logits(e.ids[0], rows=learned(e), width=width), k, [1.0, 2.0])
        found.append(StoredRow(ids.numpy(), logps.numpy(), tails.numpy()))
    return found


def kept(folder, vocabulary: int = 500, examples=EXAMPLES):
    return store(folder, examples, rows, teacher="t", teacher_sha256="0" * 64, vocabulary=vocabulary,
                 vocabulary_sha256="v", top_k=4, temperatures=[1.0, 2.0], progress=lambda n: None)


@pytest.mark.parametrize("vocabulary", [500, 200_000])
def test_what_is_stored_is_read_again(tmp_path, vocabulary) -> None:
    index = kept(tmp_path / "logits", vocabulary)
    stored = StoredLogits(tmp_path / "logits")
    stored.require("v", 2.0, EXAMPLES)
    found = stored.read([EXAMPLES[2], EXAMPLES[0]], 2.0, "bucket", "cpu")
    expected = [np.concatenate(c) for c in zip(*rows([EXAMPLES[2], EXAMPLES[0]]), strict=True)]
    assert found.ids.tolist() == expected[0].tolist()
    np.testing.assert_allclose(found.logps.numpy(), expected[1], rtol=2**-11)
    np.testing.assert_allclose(found.tails.numpy(), expected[2][:, 1], rtol=1e-6)
    # bytes a token are what the file holds
    (shard,) = (tmp_path / "logits").glob("shard-*")
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    data = shard.stat().st_size - 8 - header - 3 * 32 - 4 * 8  # keys, starts
    assert data == index.positions * index.bytes_per_position
    assert index.bytes_per_position == bytes_per_position(vocabulary, 4, 2) == 4 * (4 if vocabulary == 500 else 6) + 8


def test_an_interrupted_store_goes_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trivet.compress.stored.ROWS", 1)
    calls: list[int] = []

    def counted(part):
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows(part)

    given = {"teacher": "t", "teacher_sha256": None, "vocabulary": 500, "vocabulary_sha256": "v", "top_k": 4,
             "temperatures": [1.0, 2.0], "progress": lambda n: None}
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "a", EXAMPLES, counted, **given)
    assert not (tmp_path / "a" / LOGITS).exists() and len(list((tmp_path / "a").glob("shard*"))) == 2
    store(tmp_path / "a", EXAMPLES, counted, **given)
    store(tmp_path / "b", EXAMPLES, rows, **given)
    assert len(calls) == 4
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()


def test_what_does_not_fit_is_said(tmp_path) -> None:
    kept(tmp_path / "logits")
    stored = StoredLogits(tmp_path / "logits")
    with pytest.raises(TrivetError, match="another vocabulary"):
        stored.require("other", 2.0, EXAMPLES)
    with pytest.raises(TrivetError, match="temperatures 1, 2, not for 4"):
        stored.require("v", 4.0, EXAMPLES)
    stored.require("v", None, EXAMPLES)
    with pytest.raises(TrivetError, match="don't know 1, the first of which is row 2"):
        stored.require("v", 2.0, [EXAMPLES[0], Example((9, 9, 9), (False, True, True))])
    (shard,) = (tmp_path / "logits").glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(TrivetError, match=r"not what logits\.json says"):
        StoredLogits(tmp_path / "logits")
    (tmp_path / "logits" / LOGITS).write_text(json.dumps({"teacher": "t"}))
    with pytest.raises(TrivetError, match="missing"):
        StoredLogits(tmp_path / "logits")


def test_the_key_knows_what_is_learned() -> None:
    one = Example((1, 2, 3), (False, True, True))
    assert key_of(one) != key_of(Example((1, 2, 3), (False, False, True)))
    assert key_of(one) == key_of(Example((1, 2, 3), (False, True, True)))
    assert math.prod(map(learned, [one, Example((1, 2), (True, True))])) == 2
