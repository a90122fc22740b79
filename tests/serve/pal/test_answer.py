"""Program-aided answers with a scripted model: finding the program, running, repairing, voting, falling back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scripted_chat import ScriptedChat
from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import Reply, Step
from trivet.serve.pal.answer import ProgramAided
from trivet.serve.pal.config import PalSettings
from trivet.serve.pal.program import completed, extract, normalised, told

GREEDY = Sampling(temperature=0)


def ask(model: ScriptedChat, *, sampling: Sampling = GREEDY, **settings: Any) -> tuple[Reply, list[Step]]:
    said: list[Step] = []
    way = ProgramAided(PalSettings(**settings))
    reply = asyncio.run(way.answer([Message(role="user", content="How many?")], model, sampling, say=said.append))
    assert list(reply.steps) == said
    return reply, said


def test_a_programs_result_is_the_answer_and_its_values_are_shown() -> None:
    model = ScriptedChat(["Sure:\n```python\na = 3\nb = a * 4\nanswer = b / 2\n```\nThat is it."])
    reply, steps = ask(model)
    assert reply.text == "The answer is 6." and reply.fell_back is None
    assert [s.kind for s in steps] == ["program"]
    assert steps[0].text == "a = 3  # a = 3\nb = a * 4  # b = 12\nanswer = b / 2  # answer = 6.0"
    assert steps[0].data["value"] == 6.0 and steps[0].data["lines"][1] == {"line": 2, "values": {"b": "12"}}
    assert reply.prompt_tokens == 10 and reply.tokens > 5
    # the examples are turns of a chat, and the question stands last
    roles = [m.role for m in model.asked[0]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] and len(roles) > 5
    assert "How many?" in model.asked[0][-1].content


@pytest.mark.parametrize(("reply", "program"), [
    ("```python\nx = 1\n```", "x = 1"),
    ("```\nx = 1\n```", "x = 1"),
    ("```py\nx = 1", "x = 1"),                                      # cut off, or stopped before the closing fence
    ("~~~python\nx = 1\n~~~", "x = 1"),
    ("```json\n{}\n```\n```python\nx = 2\n```", "x = 2"),            # another language's block is not it
    ("  ```python\n  x = 1\n  y = 2\n  ```", "x = 1\ny = 2"),         # in a list
    ("````python\ns = '```'\n````", "s = '```'"),
    ("x = 1\nanswer = x", "x = 1\nanswer = x"),                      # bare
    ("Here it is.\nimport math\nanswer = math.pi\nThis program computes the thing.", "import math\nanswer = math.pi"),
    ("def solution():\n    return 4", "def solution():\n    return 4"),
    ("The answer is 42.", None),
    ("", None),
    ("```\n```", None),
])
def test_extract(reply: str, program: str | None) -> None:
    assert extract(reply) == program


@pytest.mark.parametrize(("program", "last"), [
    ("answer = 3", "answer"),
    ("answer: int = 3", "answer"),
    ("x = 3\nif x:\n    answer = 4", "answer"),
    ("def solution():\n    answer = 4\n    return answer", "solution()"),
    ("def f():\n    answer = 4\nf() or 5", None),
    ("answer == 3", None),
    ("'answer = 3'", None),
    ("# answer = 3\n4", None),
    ("x = f(answer=3)\nx", None),
    ("((((", None),
    ("x = {answer: 3}\nif answer: 4", None),  # neither an annotation nor an assignment
    ("a = answer = 4\nprint(a)", "answer"),
    ("class Answer:\n    answer = 4\n5", None),
    ("x, answer = 4, 5\n6", "answer"),
    ("answer, x = 4, 5", "answer"),
    ("x = 1; answer = 4; x", "answer"),
    ("x = 3\nif x: answer = 4", "answer"),
    ("answer: int", None),
    ("if answer == 3: x = 4", None),
    ("answer = {\n'a': 1}", "answer"),
    ("f = lambda answer=3: answer\nf()", None),
])
def test_the_line_that_gives_the_result(program: str, last: str | None) -> None:
    assert completed(program) == (program if last is None else f"{program}\n{last}")


@pytest.mark.parametrize(("program", "text"), [
    ("answer = 0.1 + 0.2", "0.3"), ("answer = 7.0", "7"), ("answer = 10 > 3", "yes"), ("answer = [1, 2.5]", "1, 2.5"),
    ("answer = {'a': 1}", "a: 1"), ("2 + 3", "5"), ("print('x', 9)", "x 9"), ("def solution():\n    return 8", "8"),
    ("answer = 1e30", "1e+30"), ("answer = 10**2", "100"),
    ("import datetime\nanswer = datetime.date(2024, 2, 29)", "2024-02-29"),
])
def test_values_in_words(program: str, text: str) -> None:
    assert ask(ScriptedChat([f"```python\n{program}\n```"]))[0].text == f"The answer is {text}."


def test_values_that_mean_the_same_are_one() -> None:
    same = [5, 5.0, "5", "$5", " 5.00 ", 5.00000000001]
    assert len({normalised(v) for v in same}) == 1
    assert normalised("The Cat.") == normalised("the  cat") != normalised("the dog")
    assert normalised([1, 2.0]) == normalised([1.0, 2]) != normalised([2, 1])
    assert normalised(True) != normalised(1)
    assert normalised(10**20) != normalised(10**20 + 1)
    assert normalised(0.0) == normalised(-0.0) == normalised(0)
    assert normalised("3/4") == normalised(0.75) and normalised("1,200") == normalised(1200)
    assert normalised("03/04/2024") != normalised("04/03/2024")
    assert told(-0.0) == "0"


def test_most_votes_win() -> None:
    programs = ["answer = 1", "answer = 2", "answer = 2.0", "answer = 1/0"]
    reply, steps = ask(ScriptedChat([f"```\n{p}\n```" for p in programs]), samples=4)
    assert reply.text == "The answer is 2."
    vote = steps[-1]
    assert vote.kind == "check" and vote.title.startswith("2 of 3 programs that worked say 2")
    assert [(v["value"], v["programs"]) for v in vote.data["votes"]] == [(1, 1), (2, 2)]


def test_a_tie_goes_to_the_likelier_value_or_to_the_first() -> None:
    programs = ["answer = 1", "answer = 2", "answer = 3", "answer = 2 ", "answer = 1 "]
    replies = [f"```\n{p}\n```" for p in programs]
    assert ask(ScriptedChat(replies), samples=5)[0].text == "The answer is 1."
    model = ScriptedChat(replies, logp=lambda text: -1.0 if "2" in text else -2.0)
    reply, steps = ask(model, samples=5)
    assert reply.text == "The answer is 2." and steps[-1].data["tie"] == "probability"


def test_several_greedy_samples_are_drawn_at_a_temperature() -> None:
    model = ScriptedChat(["answer = 1"] * 3)
    ask(model, samples=3, temperature=0.5)
    assert model.samplings[0].temperature == 0.5
    model = ScriptedChat(["answer = 1"] * 3)
    ask(model, sampling=Sampling(temperature=0.9), samples=3)
    assert model.samplings[0].temperature == 0.9


def test_an_error_is_fed_back() -> None:
    model = ScriptedChat(["```python\nanswer = apples\n```", "```python\napples = 3\nanswer = apples\n```"])
    reply, steps = ask(model, repairs=1)
    assert reply.text == "The answer is 3." and reply.fell_back is None
    assert len(steps) == 2 and "NameError" in steps[0].title
    told_back = model.asked[1][-1].content
    assert "NameError" in told_back and "line 1" in told_back
    assert model.asked[1][-2].content == "```python\nanswer = apples\n```"


@pytest.mark.parametrize(("reply", "why"), [
    ("answer = 1 / 0", "ZeroDivisionError"),
    ("while True: pass", "it was ended after"),
    ("x = 1", "without assigning `answer`"),
    ("answer = float('nan')", "no answer"),
    ("I can't do that.", "holds no program"),
])
def test_where_no_program_works_words_answer_and_say_so(reply: str, why: str) -> None:
    model = ScriptedChat([reply, reply, reply, "It may be 4."])
    answer, steps = ask(model, repairs=2, limits={"seconds": 0.3})
    assert answer.text == "It may be 4." and answer.fell_back is not None
    assert why in answer.fell_back and "in 3 tries" in answer.fell_back
    assert steps[-1].kind == "note"
    # the words answer what was asked, not the request for a program
    assert [m.content for m in model.asked[-1]] == ["How many?"]


def test_without_a_sandbox_nothing_is_run_and_words_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivet.sandbox import run

    monkeypatch.setattr(run, "_tried", lambda name, user: "not here")
    answer, _ = ask(ScriptedChat(["answer = 2", "Two."]))
    assert answer.text == "Two." and "no sandbox works" in (answer.fell_back or "")


def test_a_conversation_keeps_its_system_turn_first_and_must_end_with_a_question() -> None:
    model = ScriptedChat(["answer = 2"])
    messages = [Message(role="system", content="Be brief."), Message(role="user", content="Hello"),
                Message(role="assistant", content="Hello!"), Message(role="user", content="1 + 1?")]
    asyncio.run(ProgramAided().answer(messages, model, GREEDY))
    asked = model.asked[0]
    assert asked[0].content == "Be brief." and [m.content for m in asked[-3:-1]] == ["Hello", "Hello!"]
    with pytest.raises(TrivetError, match="does not end with a question"):
        asyncio.run(ProgramAided().answer(messages[:3], model, GREEDY))
