"""GSM8K: the number decides."""

from __future__ import annotations

import json

import pytest

from saying import Saying
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.suites import gsm8k


@pytest.fixture
def config(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    rows = [{"question": f"A box holds {n} pens. How many pens do two boxes hold?",
             "answer": f"Two boxes hold {n}+{n} pens.\n#### {2 * n:,}"} for n in (4, 700)]
    (tmp_path / "gsm8k" / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return EvaluateConfig(data=tmp_path)


@pytest.mark.parametrize(("answer", "values"), [
    ("It is easy.\n#### 8", [1.0, 0.0]),
    ("They hold 1400.", [0.0, 1.0]),
    ("#### 1,400 and not 8", [0.0, 1.0]),
    ("I don't know.", [0.0, 0.0]),
    ("", [0.0, 0.0]),
])
def test_the_number_decides(config, answer, values):
    items = gsm8k.read(config)
    subject = Saying(answer)
    scores = gsm8k.run(subject, items, config)
    assert [s.value for s in scores] == values
    assert [s.id for s in scores] == [i.id for i in items] and {s.measure for s in scores} == {"capable.gsm8k"}
    assert [(suite, tokens) for suite, _, tokens in subject.asked] == [("gsm8k", 128)] * 2
    text = subject.asked[0][1].messages[0].content
    assert text.startswith(items[0].question) and "####" in text and subject.asked[0][1].reference == "8"


def test_without_data_there_is_none():
    assert gsm8k.read(EvaluateConfig()) == []
