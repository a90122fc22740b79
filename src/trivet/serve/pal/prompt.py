"""What a model is asked so that it writes a program: worked examples as turns of a chat, then the question.

The examples are our own. The instruction stands in each user turn and not in a system turn, since some chat templates
refuse one, and small models forget what stood far above.
"""

from __future__ import annotations

from collections.abc import Sequence

from trivet.artifacts import Message
from trivet.errors import TrivetError

INSTRUCTION = ("Write a Python program that computes the answer and assigns it to `answer`. "
               "Reply with the program alone.")

EXAMPLES: tuple[tuple[str, str], ...] = (
    ("A baker has 3 trays with 12 rolls each. She sells 20 rolls and throws 4 away. How many rolls are left?",
     "trays = 3\nrolls_per_tray = 12\nbaked = trays * rolls_per_tray\nsold = 20\nthrown_away = 4\n"
     "answer = baked - sold - thrown_away"),
    ("A coat costs 80 dollars. It is reduced by 25%, then 5 dollars of shipping are added. What is to be paid?",
     "price = 80\nreduced = price * (1 - 25 / 100)\nshipping = 5\nanswer = reduced + shipping"),
    ("Today is 02/27/2024. What is the date three days from now in MM/DD/YYYY?",
     "from datetime import date, timedelta\ntoday = date(2024, 2, 27)\nthen = today + timedelta(days=3)\n"
     "answer = then.strftime('%m/%d/%Y')"),
    ("A train leaves at 9:40 and arrives at 11:05. It covers 119 km. How fast is it in km per hour?",
     "minutes = (11 * 60 + 5) - (9 * 60 + 40)\nhours = minutes / 60\nkilometres = 119\nanswer = kilometres / hours"),
    ("Which of the words pear, banana and fig has the most letters?",
     "words = ['pear', 'banana', 'fig']\nanswer = max(words, key=len)"),
)


def asked(question: str) -> str:
    """A user's turn that wants a program."""
    return f"Question: {question}\n\n{INSTRUCTION}"


def fenced(program: str) -> str:
    """A program as the model's turn."""
    return f"```python\n{program}\n```"


def conversation(messages: Sequence[Message], examples: Sequence[tuple[str, str]] = EXAMPLES) -> list[Message]:
    """The turns that ask for a program: the system's, the examples, earlier turns, the question.

    Raises TrivetError where the conversation does not end with a person's turn.
    """
    if not messages or messages[-1].role != "user":
        raise TrivetError("the conversation does not end with a question", field="messages",
                          expected="a last message whose role is user", mend="send the question as the last message")
    first = [m for m in messages[:1] if m.role == "system"]
    shots = [Message(role=role, content=text) for question, program in examples
             for role, text in (("user", asked(question)), ("assistant", fenced(program)))]
    return [*first, *shots, *messages[len(first):-1], Message(role="user", content=asked(messages[-1].content))]


def repair(error: str) -> str:
    """What is said to a program that failed. error: of the sandbox, which ran it."""
    return (f"That program failed: {error}\n\nCorrect it. Reply with the whole program alone; it must assign the "
            "result to `answer`.")
