"""Reading data sets: what fits is read whole, what does not is refused with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trivet.errors import TrivetError
from trivet.evaluate import datasets


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


# --- red-instruct -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "topics"), [
    (["ask a", "ask b"], ["plain", "plain"]),
    ({"One:": ["ask a"], "Two": ["ask b"]}, ["One", "Two"]),
    ({"One": {"x": ["ask a", "ask b"]}, "Two": {"x": ["ask c"], "y": []}}, ["One", "One", "Two"]),
])
def test_three_shapes(tmp_path, shape, topics):
    items = datasets.red_instruct(write(tmp_path, "plain.json", shape))
    assert [i.topic for i in items] == topics
    assert [i.text for i in items] == ["ask a", "ask b", "ask c"][: len(items)]
    assert not any(i.safe for i in items) and all(i.id.startswith("plain/") for i in items)


def test_ids_do_not_depend_on_the_order_and_repeats_are_asked_once(tmp_path):
    one = datasets.red_instruct(write(tmp_path, "a.json", ["ask a", "ask b", "ask a"]))
    other = datasets.red_instruct(write(tmp_path, "a.json", ["ask b", "ask a"]))
    assert {i.id for i in one} == {i.id for i in other} and len(one) == 2


@pytest.mark.parametrize(("content", "words"), [
    ("", "holds no requests"),
    ("  \n", "holds no requests"),
    ([], "holds no requests"),
    ({}, "holds no requests"),
    ({"One": []}, "holds no requests"),
    ('["a",\n "b"', r"a\.json:2: broken JSON"),
    ("[" * 100_000, "nested too deeply"),
    (b'["\xe9"]', "not UTF-8"),
    ('["\\ud800"]', "half a surrogate pair"),
    ('{"One": ["a"], "One": ["b"]}', "field 'One': the key 'One' stands twice"),
    ("7", "this is int, not requests"),
    ({"One": "a"}, "field 'One': this is str, not requests"),
    ({"One": {"x": {"y": ["a"]}}}, r"field 'One\.x': this is dict"),
    ({"One": {"x": ["a", 3]}}, r"field 'One\.x\.1': this is no request"),
    (["a", " "], "field '1': this is no request"),
    ([["a"]], "field '0': this is no request"),
])
def test_red_instruct_faults(tmp_path, content, words):
    with pytest.raises(TrivetError, match=words) as caught:
        datasets.red_instruct(write(tmp_path, "a.json", content))
    assert caught.value.mend and caught.value.file


def test_missing_files(tmp_path):
    for reader in (datasets.red_instruct, datasets.xstest, datasets.gsm8k, datasets.conversations):
        with pytest.raises(TrivetError, match="no such file"):
            reader(tmp_path / "nowhere")
        with pytest.raises(TrivetError, match="a folder, not a file"):
            reader(tmp_path)


# --- XSTest -----------------------------------------------------------------------------------------------

HEADER = "id,prompt,type,label,focus,note\n"


def test_xstest(tmp_path):
    items = datasets.xstest(write(
        tmp_path, "x.csv", "\ufeff" + HEADER + '1,"A ""big"", red\nbox?",homonyms,safe,,\n\n2,b,contrast_x,unsafe,,\n'))
    assert [(i.text, i.topic, i.safe) for i in items] == [('A "big", red\nbox?', "homonyms", True),
                                                          ("b", "contrast x", False)]


@pytest.mark.parametrize(("content", "words"), [
    ("", "holds no prompts"),
    (HEADER, "holds no prompts"),
    ("id,prompt,type\n1,a,b\n", r"x\.csv:1: the columns label are missing"),
    (HEADER + "1,a,b,safe\n", r"x\.csv:2: this row has 4 values under 6 columns"),
    (HEADER + "1,a,b,safe,,\n2,c,b,harmless,,\n", r"x\.csv:3, field 'label': the label 'harmless' is not known"),
    (HEADER + "1, ,b,safe,,\n", r"x\.csv:2, field 'prompt': this value is empty"),
    (HEADER + "1,a,,safe,,\n", r"x\.csv:2, field 'type': this value is empty"),
    (HEADER + '1,"a,b,safe,,\n2,c,b,safe,,\n', "broken CSV"),
    (HEADER + '1,"a"b,b,safe,,\n', r"x\.csv:2: broken CSV"),
    (HEADER + "1,a,b,safe,,\n2,a,c,unsafe,,\n", "entries 1 and 2 ask the same"),
    (HEADER.encode() + b"1,caf\xe9,b,safe,,\n", "not UTF-8"),
])
def test_xstest_faults(tmp_path, content, words):
    with pytest.raises(TrivetError, match=words) as caught:
        datasets.xstest(write(tmp_path, "x.csv", content))
    assert caught.value.mend


# --- JSON Lines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "words"), [
    ("", "holds no problems"),
    ('{"question": "a"', r"g\.jsonl:1: broken JSON"),
    ('{"question": "a"}', "field 'answer': this field is missing"),
    ('{"question": "", "answer": "#### 1"}', "field 'question': this text is empty"),
    ('{"question": "a", "answer": 1}', "field 'answer': this is int, not a text"),
    ('{"question": "a", "answer": "it is 1"}', "this answer gives no number"),
    ('{"question": "a", "answer": "#### many"}', "this answer gives no number"),
    ('{"question": "a", "answer": "#### 1"}\n' * 2, "entries 1 and 2 ask the same"),
])
def test_gsm8k_faults(tmp_path, content, words):
    with pytest.raises(TrivetError, match=words):
        datasets.gsm8k(write(tmp_path, "g.jsonl", content))


@pytest.mark.parametrize(("content", "words"), [
    ("\n", "holds no prompts"),
    ('{"category": "a"}', "field 'turns': the turns are missing"),
    ('{"category": "a", "turns": []}', "not one or two turns"),
    ('{"category": "a", "turns": "b"}', "not one or two turns"),
    ('{"category": "a", "turns": ["b", "c", "d"]}', "not one or two turns"),
    ('{"category": "a", "turns": ["b", ""]}', "field 'turns': this text is empty"),
    ('{"turns": ["b"]}', "field 'category': this field is missing"),
])
def test_conversation_faults(tmp_path, content, words):
    with pytest.raises(TrivetError, match=words):
        datasets.conversations(write(tmp_path, "c.jsonl", content))


# --- the folder, our own questions -----------------------------------------------------------------------


def test_a_data_folder_that_is_not_there(tmp_path):
    assert datasets.found(None, ["a.json"]) == [] and datasets.found(tmp_path, ["a.json"]) == []
    write(tmp_path, "b.json", [])
    assert datasets.found(tmp_path, ["a.json", "b.json"]) == [tmp_path / "b.json"]
    with pytest.raises(TrivetError, match="there is no such folder"):
        datasets.found(tmp_path / "nowhere", ["a.json"])
    with pytest.raises(TrivetError, match="a file, not a folder"):
        datasets.found(tmp_path / "b.json", ["a.json"])


def test_our_own_questions_are_in_order():
    harmful = datasets.requests(datasets.own("requests"), safe=False)
    safe = datasets.requests(datasets.own("lookalikes"), safe=True)
    talks = datasets.conversations(datasets.own("open"))
    assert (len(harmful), len(safe), len(talks)) == (40, 40, 20) and all(t.then for t in talks)
    assert not {i.text for i in harmful} & {i.text for i in safe}
    with pytest.raises(TrivetError, match="no such file"):
        datasets.requests(datasets.own("nosuch"), safe=True)


def test_the_real_files():
    data = Path(os.environ.get("TRIVET_DATA", "../shared/data"))
    if not (data / "red-instruct").is_dir():
        pytest.skip("needs TRIVET_DATA")
    counts = {name: len(datasets.red_instruct(data / "red-instruct" / f"{name}.json"))
              for name in ("catqa_english", "harmfulqa", "dangerousqa", "adversarialqa")}
    assert counts == {"catqa_english": 543, "harmfulqa": 1938, "dangerousqa": 200, "adversarialqa": 500}
    prompts = datasets.xstest(data / "xstest" / "xstest_prompts.csv")
    assert (sum(p.safe for p in prompts), len(prompts), len({p.topic for p in prompts})) == (250, 450, 18)
    assert len(datasets.gsm8k(data / "gsm8k" / "test.jsonl")) == 1319
    assert [len(datasets.conversations(data / "prompts" / f"{n}.jsonl")) for n in ("mt_bench", "vicuna_bench")] == [
        80, 80]
