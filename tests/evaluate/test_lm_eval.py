"""lm-evaluation-harness on local tasks: Trivet's scores are the library's own. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from conftest import build_tiny
from trivet.errors import TrivetError
from trivet.evaluate import lm_eval
from trivet.evaluate.lm_eval import check, read_metric, tasks
from trivet.evaluate.subject import Subject
from trivet.training.device import Compute

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval")
QUESTIONS = [
    {"question": "Which is warmer?", "choices": ["steam", "ice", "cold water"], "answer": 0},
    {"question": "Which is round?", "choices": ["a brick", "a ball"], "answer": 1},
    {"question": "How many are two and one?", "choices": ["three", "threes", "four"], "answer": 0},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: What can fly?\\nA: a bird\\n\\nQ: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
"""
GENERATING = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs:
  until: []
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
"""


def task(folder: Path, name: str, text: str = TASK) -> str:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    (folder / f"{name}.yaml").write_text(text.format(name=name, data=data))
    return str(folder / f"{name}.yaml")


@pytest.fixture
def subject(tmp_path, monkeypatch) -> Subject:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return Subject(str(build_tiny(tmp_path / "m")), tmp_path / "r", Compute("cpu", torch.float32, 1), seed=0)


@installed
def test_scores_are_the_librarys_own(tmp_path, subject) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    path = task(tmp_path, "trivet_warm")
    measures, scores = tasks(subject, [path])
    assert [(m.key, m.better, m.kind, m.share) for m in measures] == [
        ("capable.lm_eval.trivet_warm.acc", "higher", "mean", True),
        ("capable.lm_eval.trivet_warm.acc_norm", "higher", "mean", True)]
    manager = TaskManager(include_defaults=False)
    own = simple_evaluate(HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, backend="causal", batch_size=2),
                          tasks=[path], task_manager=manager, bootstrap_iters=0)
    for name in ("acc", "acc_norm"):
        expected = {f"trivet_warm:{s['doc_id']}": float(s[name]) for s in own["samples"]["trivet_warm"]}
        assert {s.id: s.value for s in scores if s.measure.endswith(f".{name}")} == expected
    given = lm_eval._shared_prefixes(subject, 2)
    with_ours = simple_evaluate(given, tasks=[path], task_manager=manager, bootstrap_iters=0)
    for one, other in zip(with_ours["samples"]["trivet_warm"], own["samples"]["trivet_warm"], strict=True):
        for (mine, greedy), (theirs, their_greedy) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            assert float(mine) == pytest.approx(float(theirs), abs=1e-4)
            assert greedy == their_greedy


@installed
def test_perplexities_and_limit(tmp_path, subject) -> None:
    path = task(tmp_path, "trivet_rolling", ROLLING)
    measures, scores = tasks(subject, [path], limit=2)
    kinds = {m.name: (m.kind, m.better) for m in measures}
    assert kinds == {"lm_eval.trivet_rolling.word_perplexity": ("exp", "lower"),
                     "lm_eval.trivet_rolling.bits_per_byte": ("mean", "lower")}
    assert len(scores) == 4
    for score in scores:
        words = QUESTIONS[int(score.id.split(":")[1])]["question"]
        assert score.weight == (len(words.split()) if "word" in score.measure else len(words.encode()))


@installed
def test_tokens_of_tasks_that_generate_are_counted(tmp_path, subject, monkeypatch) -> None:
    counted, rows = Counter(), []
    subject.count = lambda kind, tokens: counted.update({kind: tokens})
    generate = subject.model.generate

    def watched(**how):
        rows.append((how["input_ids"], how["attention_mask"], made := generate(**how)))
        return made

    monkeypatch.setattr(subject.model, "generate", watched)
    tasks(subject, [task(tmp_path, "trivet_saying", GENERATING)], batch_size=2)
    assert len(rows) == 2  # three questions
    assert counted["prompt"] == sum(int(mask.sum()) for _, mask, _ in rows)
    assert counted["prompt"] < sum(ids.numel() for ids, _, _ in rows)  # padding is not counted
    assert 3 <= counted["generated"] <= sum(made[:, ids.shape[1]:].numel() for ids, _, made in rows) <= 3 * 6


def test_a_generated_row_ends_with_its_end() -> None:
    assert lm_eval._length([5, 6, 2, 2, 2], frozenset({2, 9})) == 3
    assert lm_eval._length([5, 6, 7], frozenset({2})) == 3 and lm_eval._length([5], frozenset()) == 1


@installed
@pytest.mark.parametrize(("text", "what"), [
    ("dataset_path: json\n", "names no task|can't load"),
    ("task: [\n", "can't load"),
    (TASK.replace("data_files: {{test: {data}}}", "data_files: {{test: nowhere.jsonl}}"), "can't load"),
    (TASK.replace("{{{{choices}}}}", "{{{{nothing.at.all}}}}"), "fails on|can't load"),
])
def test_broken_tasks_are_said(tmp_path, subject, text, what) -> None:
    with pytest.raises(TrivetError, match=what):
        tasks(subject, [task(tmp_path, "trivet_broken", text)])


@installed
def test_data_out_of_reach_are_said_soon(tmp_path, subject, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    text = TASK.replace("dataset_path: json", "dataset_path: nobody/nowhere").replace(
        "dataset_kwargs:\n  data_files: {{test: {data}}}\n", "")
    start = time.monotonic()
    with pytest.raises(TrivetError, match="can't load"):
        tasks(subject, [task(tmp_path, "trivet_far", text)])
    assert time.monotonic() - start < 20


@installed
def test_unknown_tasks_are_refused_without_a_model(tmp_path) -> None:
    with pytest.raises(TrivetError, match="no task 'truthfulqa_mc9'") as caught:
        check(["truthfulqa_mc9"])
    assert "truthfulqa_mc1" in str(caught.value)
    with pytest.raises(TrivetError, match="no such file"):
        check([str(tmp_path / "nothing.yaml")])


def test_a_missing_library_is_said(monkeypatch) -> None:
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    with pytest.raises(TrivetError, match="not installed") as caught:
        check(["arc_easy"])
    assert "pip install 'trivet[lm-eval]'" in caught.value.mend


def test_metrics_are_read_by_what_comes_out() -> None:
    assert read_metric({0: 1.0, 1: 0}, 0.5) == ("mean", {0: (1.0, 1.0), 1: (0.0, 1.0)})
    assert read_metric({0: True, 1: True, 2: False}, 2 / 3)[0] == "mean"
    pairs = {0: (-6.0, 3), 1: (-2.0, 1)}
    kind, rows = read_metric(pairs, math.exp(8 / 4))
    assert kind == "exp" and rows == {0: (2.0, 3.0), 1: (2.0, 1.0)}
    kind, rows = read_metric(pairs, 2 / math.log(2))
    assert kind == "mean" and rows[0] == (pytest.approx(2 / math.log(2)), 3.0)
    for values, figure in (({0: 0.5}, 0.7), ({0: "text"}, 0.5), ({0: [1, 2, 3]}, 2), ({}, 0.0), ({0: 1.0}, None),
                           ({0: float("nan")}, float("nan")), ({0: (1.0, 0)}, 1.0)):
        assert read_metric(values, figure) is None
