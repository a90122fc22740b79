"""Windows of tokens: every form of text, nothing lost, nothing on both sides, and clear words where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from conftest import make_tokenizer
from trivet.data.corpus import default_text, part_of, read_texts, read_windows, text_ids
from trivet.errors import TrivetError


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


ROWS = [
    {"text": "Plain words."},
    {"messages": [{"role": "user", "content": "Q1?"}, {"role": "assistant", "content": "A1."}]},
    {"messages": [{"role": "user", "content": "Only asked?"}]},
    {"prompt": "Q2?", "completion": "A2."},
    {"prompt": [{"role": "user", "content": "Q3?"}], "chosen": "good", "rejected": "bad"},
    {"messages": [{"role": "user", "content": "Q4?"}], "completions": [{"text": "one"}, {"text": "two"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3"},
]


def test_every_form(jsonl, tokenizer) -> None:
    path = jsonl("all.jsonl", ROWS)
    written = [tokenizer.decode(text_ids(tokenizer, t)) for t in read_texts(path)]
    assert written == [
        "Plain words.", "<|user|>Q1?<|end|>\n<|assistant|>A1.<|end|>\n", "<|user|>Only asked?<|end|>\n<|assistant|>",
        "<|user|>Q2?<|end|>\n<|assistant|>A2.<|end|>\n", "<|user|>Q3?<|end|>\n<|assistant|>good<|end|>\n",
        "<|user|>Q4?<|end|>\n<|assistant|>one<|end|>\n", "<|user|>Q4?<|end|>\n<|assistant|>two<|end|>\n",
        "<|user|>Add.\n\n1 2<|end|>\n<|assistant|>3<|end|>\n"]
    assert [t.line for t in read_texts(path)] == [1, 2, 3, 4, 5, 6, 6, 7]


def test_windows_are_the_texts_end_to_end(jsonl, tokenizer) -> None:
    path = jsonl("a.jsonl", [{"text": f"Sentence number {i} of many."} for i in range(30)])
    windows = read_windows(path, tokenizer, 16, seed=3)
    assert all(w.shape == (16,) and w.dtype == torch.long for w in windows)
    text = tokenizer.decode(torch.cat(windows))
    pieces = text.split("<|end|>")
    assert len(set(pieces)) == len(pieces) and all(p.startswith("Sentence number") for p in pieces[:-1])
    again = read_windows(path, tokenizer, 16, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(windows, again, strict=True))
    assert not torch.equal(windows[0], read_windows(path, tokenizer, 16, seed=4)[0])
    # fewer are the first of all
    assert torch.equal(torch.stack(read_windows(path, tokenizer, 16, 2, seed=3)), torch.stack(windows[:2]))


def test_a_beginning_token_stands_before_each_text(jsonl) -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|user|>"
    path = jsonl("a.jsonl", [{"text": "Red."}, {"text": "<|user|>Red.<|end|>"}])
    ids = torch.cat(read_windows(path, tokenizer, 2)).tolist()
    assert tokenizer.decode(ids) == "<|user|>Red.<|end|><|user|>Red.<|end|>"


def test_a_text_never_stands_on_both_sides(jsonl, tokenizer) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Q{i}?"}], "completions": [{"text": "a"}, {"text": "b"}]}
            for i in range(200)]
    texts = read_texts(jsonl("a.jsonl", rows))
    train, held = part_of(texts, "train"), part_of(texts, "held-out")
    assert len(train) + len(held) == 400 and not {t.key for t in train} & {t.key for t in held}
    assert 40 < len(held) < 130 and part_of(texts, "all") == texts
    reordered = part_of(read_texts(jsonl("b.jsonl", rows[::-1])), "held-out")
    assert {t.key for t in reordered} == {t.key for t in held}


def test_one_long_text_is_parted_by_paragraphs(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph {i} is here." for i in range(100)))
    (whole,) = read_texts(path)
    train, held = (part_of([whole], p) for p in ("train", "held-out"))
    assert len(train) + len(held) == 100 and len(held) > 5 and not {t.key for t in train} & {t.key for t in held}
    windows = read_windows(path, tokenizer, 8)
    assert tokenizer.decode(torch.cat(windows)).startswith("Paragraph 0 is here.\n\nParagraph 1")


def test_what_comes_with_trivet_is_enough(tokenizer) -> None:
    assert len(read_windows(default_text("calibration"), tokenizer, 512)) >= 64
    assert len(read_windows(default_text("held-out"), tokenizer, 512)) >= 8
    assert not {t.key for t in read_texts(default_text("calibration"))} & {
        t.key for t in read_texts(default_text("held-out"))}


@pytest.mark.parametrize(("line", "words"), [
    ({"question": "Q?"}, r"(?s)a.jsonl:2.*none of the known forms.*question"),
    ({"text": "  "}, r"a.jsonl:2.*no text in this row"),
    ({"messages": [{"role": "user"}]}, r"a.jsonl:2, field 'messages.content'"),
    ({"prompt": "Q?", "completion": 3}, r"(?s)a.jsonl:2.*none of the known forms"),
    ({"messages": [{"role": "user", "content": "Q"}], "completions": ["a"]}, r"none of the known forms"),
])
def test_a_bad_row_is_named(line, words, jsonl) -> None:
    with pytest.raises(TrivetError, match=words):
        read_texts(jsonl("a.jsonl", [{"text": "Good."}, line]))


def test_too_little_text_is_said(jsonl, tokenizer, tmp_path: Path) -> None:
    path = jsonl("a.jsonl", [{"text": "A few words."}])
    with pytest.raises(TrivetError, match=r"0 windows of 512, not 3(?s:.*)--held-out.length"):
        read_windows(path, tokenizer, 512, 3, setting="held-out")
    with pytest.raises(TrivetError, match="the held-out part of this text has 0 tokens"):
        read_windows(path, tokenizer, 2, part="held-out", share=1e-9)
    for name, data, words in (("a.txt", b"", "no text in this file"), ("b.txt", b"\xff\xfe", "not UTF-8"),
                              ("c.jsonl", b"", "holds no rows")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(TrivetError, match=words):
            read_windows(tmp_path / name, tokenizer, 8)
    with pytest.raises(TrivetError, match="no such file"):
        read_windows(tmp_path / "none.txt", tokenizer, 8)


def test_a_refused_conversation_is_named(jsonl) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('two users') }}"
    with pytest.raises(TrivetError, match=r"a.jsonl:1.*two users"):
        read_windows(jsonl("a.jsonl", [{"prompt": "Q?"}]), tokenizer, 4)


def test_rows_are_json(tmp_path: Path, tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n{broken\n")
    with pytest.raises(TrivetError, match=r"a.jsonl:2.*broken JSON"):
        read_windows(path, tokenizer, 4)
