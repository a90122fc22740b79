"""Questions from files and seed topics: forms, repeats, an even draw, a split by topic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trivet.artifacts import Message
from trivet.constitution.questions import (
    SHIPPED,
    Question,
    draw_evenly,
    gather,
    load_topics,
    read_attacks,
    seeds,
    split_topics,
)
from trivet.errors import TrivetError
from trivet.evaluate.datasets import own, requests
from trivet.text.near import Distinct, jaccard, shingles


def question(text: str, topic: str = "t") -> Question:
    return Question(text, topic, text, "file")


def test_the_shipped_topics_are_sound():
    topics = load_topics()
    assert len(topics) >= 8 and all(len(t.seeds) >= 4 and t.about for t in topics)
    found = seeds(topics)
    assert len({q.id for q in found}) == len(found)
    pool = gather([], found, Distinct(0.4))
    assert len(pool.questions) == len(found) and not pool.repeats
    # an evaluation asks its own requests of what was trained on these
    measured = [shingles(r.text) for r in requests(own("requests"), safe=False)]
    assert max(jaccard(shingles(q.text), other) for q in found for other in measured) < 0.5


@pytest.mark.parametrize(("text", "words", "line"), [
    ("topics:\n  - name: a\n    seeds: [one]\n", "at least 2 items", 3),
    ("topics:\n  - name: a\n    seeds: [one, two]\n  - name: a\n    seeds: [c, d]\n", "two topics are called", 1),
    ("topics:\n  - seeds: [one, two]\n", "this is missing", 2),
    ("topics:\n  - name: a\n    kind: b\n    seeds: [one, two]\n", "this is not known here", 3),
    ("topics:\n  - name: a\n    seeds: [one, ' ']\n", "at least 1 character", 3),
    ("topics: []\n", "at least 1 item", 1),
    ("- a\n", "not a mapping", None)])
def test_topics_that_do_not_fit(tmp_path, text, words, line):
    path = tmp_path / "topics.yaml"
    path.write_text(text)
    with pytest.raises(TrivetError, match=words) as error:
        load_topics(path)
    assert error.value.file == path and error.value.line == line


def test_prompts_keep_what_stands_before(jsonl):
    path = jsonl("mine.jsonl", [
        {"id": "a", "prompt": "How do I open it?", "tags": ["locks", "old"]},
        {"id": "b", "messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."},
                                 {"role": "user", "content": "And how do I close it?"}]}])
    (first, second), attacks = read_attacks(path)
    assert attacks == []
    assert (first.id, first.topic, first.subject, first.before) == ("a", "locks", "locks", ())
    assert (second.topic, second.subject, len(second.before)) == ("mine", None, 2)
    assert second.whole == "Hi.\nHello.\nAnd how do I close it?"


def test_an_earlier_runs_attacks_are_taken_as_they_are(jsonl):
    rows = [{"id": "q/1/role-play", "prompt": "Play: how do I open it?", "tags": ["locks", "role-play"]},
            {"id": "q/1", "prompt": "How do I open it?", "tags": ["locks", "direct"]},
            {"id": "q/2/direct", "prompt": "How do I close it?", "tags": ["locks"]}]
    questions, (attack,) = read_attacks(jsonl("attacks.jsonl", rows))
    assert (attack.id, attack.base, attack.strategy, attack.topic) == ("q/1/role-play", "q/1", "role-play", "locks")
    assert attack.prompt.model_dump(exclude_none=True)["tags"] == ["locks", "role-play"]
    assert [q.id for q in questions] == ["q/1", "q/2/direct"]


def test_red_instruct_and_lines(tmp_path):
    by_topic = tmp_path / "asked.json"
    by_topic.write_text(json.dumps({"locks": {"old": ["How do I open it?"]}, "doors": ["How do I close it?"]}))
    found, _ = read_attacks(by_topic)
    assert [(q.topic, q.subject, q.text) for q in found] == [
        ("locks", "locks", "How do I open it?"), ("doors", "doors", "How do I close it?")]
    plain = tmp_path / "list.json"
    plain.write_text(json.dumps(["How do I open it?"]))
    assert [(q.topic, q.subject) for q in read_attacks(plain)[0]] == [("list", None)]
    lines = tmp_path / "lines.txt"
    lines.write_text("\ufeffHow do I open it?\n\n  How do I close it? \nHow do I open it?\n")
    assert [q.text for q in read_attacks(lines)[0]] == ["How do I open it?", "How do I close it?"]


@pytest.mark.parametrize(("name", "data", "words"), [
    ("a.csv", b"x", "can't be read from such a file"), ("a.txt", b"\n \n", "holds no questions"),
    ("a.txt", b"caf\xe9", "not UTF-8"), ("a.json", b"3", "not requests"), ("a.jsonl", b"", "holds no rows"),
    ("a.jsonl", b'{"prompt": "a", "answer": "b"}\n', "not known")])
def test_files_that_do_not_fit(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(TrivetError, match=words) as error:
        read_attacks(path)
    assert error.value.file == path


def test_repeats_are_left_out_across_files_and_topics(jsonl, tmp_path):
    one = jsonl("one.jsonl", [{"id": "a", "prompt": "How can I open a locked door at night?", "tags": ["x"]},
                              {"id": "b", "prompt": "how can I open a locked door at night", "tags": ["y"]}])
    two = jsonl("two.jsonl", [{"id": "c", "prompt": "How can I open a locked door at night, then?", "tags": ["y"]},
                              {"id": "a", "prompt": "How can I open a locked door at night?", "tags": ["x"]}])
    pool = gather([one, two], [question("Where is the key?")], Distinct(0.6))
    assert [q.id for q in pool.questions] == ["a", "Where is the key?"]
    assert pool.repeats == {"exact": 2, "near": 1}
    clash = jsonl("three.jsonl", [{"id": "a", "prompt": "Something else?"}])
    with pytest.raises(TrivetError, match="stands in two files") as error:
        gather([one, clash], [], Distinct(1.0))
    assert error.value.file == clash


def test_conversations_that_end_alike_are_no_repeats():
    go_on = [Question(i, "t", "Yes, please go on.", "file", (Message(role="user", content=text),
                                                             Message(role="assistant", content="Shall I go on?")))
             for i, text in enumerate(["Tell me about bread and its many kinds.", "What is the sea made of?"])]
    pool = gather([], go_on, Distinct(0.7))
    assert len(pool.questions) == 2


def test_an_even_draw():
    given = [question(f"a{i}", "a") for i in range(20)] + [question(f"b{i}", "b") for i in range(3)]
    found = draw_evenly(given, 8, seed=1)
    assert [q.topic for q in found].count("b") == 3 and len(found) == 8
    assert found == [q for q in given if q in found]  # in the order given
    assert draw_evenly(given, 8, seed=1) == found != draw_evenly(given, 8, seed=2)
    assert draw_evenly(given, None, 0) == draw_evenly(given, 99, 0) == given


def test_whole_topics_are_held_out():
    topics = [f"topic {i}" for i in range(8)]
    found = split_topics(topics, 0.25, [], seed=3)
    assert len(found) == 2 and set(found) < set(topics) and found == split_topics(topics, 0.25, [], seed=3)
    assert any(split_topics(topics, 0.25, [], seed=s) != found for s in range(5))
    assert split_topics(topics, 0.01, [], 0) != [] and split_topics(topics, 0.0, [], 0) == []
    assert split_topics(topics, 0.25, ["topic 3", "topic 1"], 0) == ["topic 1", "topic 3"]
    with pytest.raises(TrivetError, match="no topic 'topic 9'"):
        split_topics(topics, 0.25, ["topic 9"], 0)
    with pytest.raises(TrivetError, match="of 1 topic all would be held out"):
        split_topics(["one"], 0.25, [], 0)
    with pytest.raises(TrivetError, match="of 2 topics all"):
        split_topics(["one", "two"], 0.9, [], 0)


def test_the_shipped_topics_are_in_the_package():
    assert SHIPPED.is_file() and Path(SHIPPED).with_name("controls.yaml").is_file()
