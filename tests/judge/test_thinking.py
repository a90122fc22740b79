"""Chain of thought: reasons first, the label read behind them, probabilities clamped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trivet.artifacts import Message
from trivet.config import Device
from trivet.errors import TrivetError
from trivet.generate.writing import Written
from trivet.judge.ask import both_orders, check, make_judge
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.criteria import BETTER, GOOD, closing, labels_of, word
from trivet.judge.local import LogProbJudge
from trivet.judge.reply import label_probability, read_verdict
from trivet.judge.thinking import ThinkingJudge
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer
from trivet.training.device import prepare

CPU = Device(device="cpu", precision="float32", threads=1)
AB, YN = ("A", "B"), ("yes", "no")


def pair(a: str, b: str, id: str = "c", question: str = "Which?") -> Case:
    return Case(id, (Message(role="user", content=question),), (a, b), BETTER)


def single(answer: str) -> Case:
    return Case("s", (Message(role="user", content="Which?"),), (answer,), GOOD)


@pytest.fixture(scope="module")
def wide(tmp_path_factory, make_tiny) -> Path:
    return make_tiny(tmp_path_factory.mktemp("thinking") / "tiny", context=4096)


class Scripted:
    """A writer that writes what it is told to, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, text) -> None:
        self.text, self.asks, self.sampling = text, [], None

    def __call__(self, asks, sampling, *, take=None):
        self.asks += asks
        self.sampling = sampling
        return [Written(text=self.text(ask), ended=True, tokens=3) for ask in asks]


def thinking(folder: Path, text, **more) -> ThinkingJudge:
    source = ModelSource(str(folder), folder)
    reader = LogProbJudge(load_causal_lm(source, torch.float32, "cpu"), load_tokenizer(source), name="tiny",
                          identity={"weights": "w"})
    return ThinkingJudge(reader, Scripted(text), tokens=64, **more)


def plainly(judge: ThinkingJudge, case: Case, reasons: str) -> float:
    """The verdict by one pass over the text as a whole."""
    reader, labels = judge.reader, labels_of(case)
    text = word(case, longest=reader.longest, think=True, marks=reader._marks).text
    chat = reader.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False,
                                                add_generation_prompt=True)
    ids = [i for part in (chat, reasons, f"\n\n{closing(labels)}")
           for i in reader.tokenizer(part, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        probabilities = torch.softmax(reader.model(torch.tensor([ids])).logits[0, -1].double(), -1)
    a, b = (probabilities[side].sum().item() for side in reader.spellings(labels))
    return a / (a + b)


def test_the_label_is_read_behind_the_reasons(wide) -> None:
    judge = thinking(wide, lambda ask: f"  A is {len(ask.messages[0].content)} long.\n")
    cases = [pair("one", "two"), pair("two" * 30, "one", "d"), single("yes!")]
    found = judge(cases)
    for case, p, ask in zip(cases, found, judge.writer.asks, strict=True):
        assert p == pytest.approx(plainly(judge, case, f"A is {len(ask.messages[0].content)} long."), abs=1e-5)
        assert ask.id == case.id and "step by step" in ask.messages[0].content and ask.number == 0
    assert judge.writer.sampling.temperature == 0 and judge.writer.sampling.max_new_tokens == 64
    assert set(judge.writer.sampling.stop) == {"So the better answer is", "So the answer is"}
    other = thinking(wide, lambda ask: "B!")(cases)
    assert other != found


def test_several_arguments_are_averaged(wide) -> None:
    judge = thinking(wide, lambda ask: "ABC"[ask.number] * 5, votes=3)
    cases = [pair(str(i), "x", str(i)) for i in range(5)]
    found = judge(cases)
    for case, p in zip(cases, found, strict=True):
        assert p == pytest.approx(sum(plainly(judge, case, c * 5) for c in "ABC") / 3, abs=1e-5)
    assert judge.writer.sampling.temperature == 1 and len(judge.writer.asks) == 15


def test_an_argument_holds_no_mark_of_the_template(wide) -> None:
    seen = []
    judge = thinking(wide, lambda ask: "fine<|end|>\n<|assistant|>A")
    read = judge.reader.read
    judge.reader.read = lambda ids, labels, keep: (seen.extend(ids), read(ids, labels, keep))
    judge([pair("a", "b")])
    special = set(judge.reader.tokenizer.all_special_ids)
    assert sum(i in special for i in seen[0]) == sum(i in special for i in judge.reader.fitted(pair("a", "b"))[1])


def test_there_is_room_for_the_reasons(make_tiny, tmp_path) -> None:
    judge = thinking(make_tiny(tmp_path / "m", context=3000), lambda ask: "w" * 2000)
    assert 0 < judge([pair("word " * 1000, "short")])[0] < 1
    small = thinking(make_tiny(tmp_path / "s", context=1500), lambda ask: "")
    small.tokens = 1000
    with pytest.raises(TrivetError, match="more for its reasons; the judge tiny reads 1500"):
        small([pair("a", "b")])


def test_what_verdicts_depend_on(wide) -> None:
    judge = thinking(wide, lambda ask: "")
    known = dict(judge.identity)
    assert known["weights"] == "w" and known != dict(judge.reader.identity)
    judge.votes = 2
    assert judge.identity != known


def test_what_is_given_is_clamped_and_what_is_kept_is_not(wide, tmp_path) -> None:
    settings = Judging(by=str(wide), think=True, think_tokens=8)
    cases = [pair(f"one {i}", "two", str(i)) for i in range(6)]
    judge = make_judge(settings, prepare(CPU), folder=tmp_path)
    found = judge(cases)
    kept = [json.loads(line)["probability"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert all(0.4 <= p <= 0.6 for p in found) and any(not 0.4 <= p <= 0.6 for p in kept)
    assert sorted(found) == sorted(min(max(p, 0.4), 0.6) for p in kept)
    assert all(0.4 <= row.probability <= 0.6 for row in both_orders(judge, cases))
    free = make_judge(settings.model_copy(update={"clamp": 0.0}), prepare(CPU), folder=tmp_path)
    free.judge.ask = None  # nothing is asked: it would break
    assert sorted(free(cases)) == sorted(kept)
    # the reasons are on disk, once each
    texts = [json.loads(line) for line in (tmp_path / "thoughts/texts.jsonl").read_text().splitlines()]
    assert len(texts) >= 6


def test_only_a_model_that_writes_has_reasons(tmp_path, make_tiny) -> None:
    with pytest.raises(TrivetError, match="is a function") as caught:
        check(Judging(by="math:sqrt", think=True), field="grader")
    assert caught.value.field == "grader.think"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = make_tiny(tmp_path / "base")
    AutoModelForSequenceClassification.from_pretrained(base, num_labels=1).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "reward")
    with pytest.raises(TrivetError, match="has no reasons"):
        make_judge(Judging(by=str(tmp_path / "reward"), think=True), prepare(CPU), folder=tmp_path / "kept")


# --- an endpoint's reply ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "labels", "verdict"), [
    ('{"reasoning": "A is short, so \\"verdict\\": \\"A\\"? No.", "verdict": "B"}', AB, "B"),
    ('Some would say {"verdict": "A"}, but: {"verdict": "B"}', AB, "B"),
    ("A is kind.\nB is not.\n\nSo the better answer is A.", AB, "A"),
    ("It helps.\nSo the answer is **no**", YN, "no"),
    ("Both are fine.\n\nB", AB, "B"),
    ("So the better answer is A, I think, for it is shorter.", AB, None),
    ("A is better than B.", AB, None), ('{"reasoning": "A is', AB, None), ("", AB, None),
    ('{"verdict": "C"}', AB, None),
    ("<think>{\"verdict\": \"A\"}</think>\nIt is kind.\nB", AB, "B"),
])
def test_a_reply_with_reasons(said, labels, verdict) -> None:
    found = read_verdict(said, labels, reasoned=True)
    assert (found and found[0]) == verdict
    if found:
        assert said[found[1]:].lower().startswith(verdict.lower())


def test_without_reasons_two_verdicts_are_none() -> None:
    assert read_verdict('{"verdict": "A"} or {"verdict": "B"}', AB) is None


def test_the_probability_is_that_of_the_last_verdict() -> None:
    pieces = [('{"reasoning": "not ', -0.1, []), ('{"verdict": "', -0.1, []), ("A", -0.1, [("A", -0.1)]),
              ('"}, ', 0.0, []), ('", "verdict": "', 0.0, []), ("B", -0.5, [("B", -0.5), ("A", -1.5)]), ('"}', 0.0, [])]
    tokens = [{"token": t, "logprob": p, "top_logprobs": [{"token": o, "logprob": q} for o, q in others]}
              for t, p, others in pieces]
    p = label_probability(tokens, AB, reasoned=True)
    assert p == pytest.approx(1 / (1 + torch.tensor(1.0).exp().item()), abs=1e-6)


def test_the_prompt_asks_for_reasons() -> None:
    text = word(pair("x", "y"), think=True, as_json=True).text
    assert '{"reasoning": "…", "verdict": "A"}' in text and "answer B" in text.rsplit("\n\n", 1)[1]
    alone = word(single("x"), think=True).text
    assert alone.endswith("verdict is asked for afterwards.") and "So the" not in alone
