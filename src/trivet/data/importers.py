"""The field's formats of preference data become pairs. Pure functions of rows; `read_preferences` reads.

    hh          {"chosen": "\\n\\nHuman: …\\n\\nAssistant: …", "rejected": …}   hh-rlhf: two whole dialogues
    preference  {"prompt": …, "chosen": …, "rejected": …}                    text, or lists of messages
                {"chosen": [messages], "rejected": [messages]}               two conversations with one prompt
    ranked      {"messages" or "prompt": …, "completions": […], "ranks": […]}   K answers ranked, 1 is best

What can't be a pair (equal answers, ties …) is skipped and counted by reason; a malformed row is a TrivetError
that names file, line and field. In every pair `chosen` is the side with at least half of the probability.

Not covered: ratings by points (UltraFeedback's raw form), unpaired thumbs up or down, tool calls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trivet.artifacts import Message, Preference, Ranking, json_lines, parquet_rows, row_error, text_id
from trivet.errors import TrivetError

_TURN = re.compile(r"(?:\A\s*|\n[ \t]*\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MESSAGES = TypeAdapter(list[Message])
KNOWN = ("ranked: `messages` (or `prompt`), `completions`, `ranks`; hh: `chosen` and `rejected`, whole dialogues "
         "of Human: and Assistant: turns; preference: `prompt`, `chosen`, `rejected`, or `chosen` and `rejected` "
         "as lists of messages that begin alike")


class Skip(Exception):
    """A well-formed row that gives no pair, and why."""


@dataclass
class Imported:
    """What a file gave: its pairs, and how many comparisons gave none, by reason."""

    pairs: list[Preference] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    """Ranked answers, which are compared across labelers before they are pairs."""
    skipped: Counter[str] = field(default_factory=Counter)
    ties: int = 0
    """Comparisons that a labeler declared a tie, kept or not."""


# --- two answers a row --------------------------------------------------------------------------------


def hh_messages(text: str, name: str | None = None) -> list[Message]:
    """The turns of an hh-rlhf dialogue: markers stand at the start or after a blank line, nowhere else.

    Turns of one speaker in a row become one message. Raises TrivetError, for the field `name`, where the text
    does not begin with a marker.
    """
    marks = list(_TURN.finditer(text))
    if not marks or marks[0].start() != 0:
        raise TrivetError("this text is no dialogue: it does not begin with Human: or Assistant:", field=name,
                          expected="a text such as '\\n\\nHuman: …\\n\\nAssistant: …'",
                          mend="give the answers' prompt in a field `prompt`, or mend this row")
    messages: list[Message] = []
    for mark, after in zip(marks, [*marks[1:], None]):
        role = _ROLES[mark.group(1)]
        content = text[mark.end() : after.start() if after else None].strip()
        if messages and messages[-1].role == role:
            content = f"{messages.pop().content}\n\n{content}".strip()
        messages.append(Message.model_validate({"role": role, "content": content}))
    return messages


def pair_of_conversations(chosen: Sequence[Message], rejected: Sequence[Message], **more: Any) -> Preference:
    """The pair of two whole conversations that differ in the last answer alone.

    `more` are further fields of the Preference. Raises Skip where there is no such pair.
    """
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Skip("no answer at the end")
    if list(chosen[:-1]) != list(rejected[:-1]):
        raise Skip("the conversations differ before the last answer")
    prompt = list(chosen[:-1])
    if not prompt or prompt[-1].role != "user":
        raise Skip("no user's turn before the answer")
    good, bad = chosen[-1].content, rejected[-1].content
    if not good.strip() or not bad.strip():
        raise Skip("an answer is empty")
    if good.strip() == bad.strip():
        raise Skip("the two answers are equal")
    more = {"id": text_id([prompt, good, bad]), "prompt_id": text_id(prompt)} | more
    return Preference(prompt=prompt, chosen=good, rejected=bad, **more)


def hh_pair(row: Mapping[str, Any]) -> Preference:
    """A pair of two hh-rlhf dialogues. Raises Skip, and TrivetError for a text that is no dialogue."""
    chosen, rejected = (hh_messages(_text(row, name), name) for name in ("chosen", "rejected"))
    return pair_of_conversations(chosen, rejected, source="hh")


def preference_pair(row: Mapping[str, Any]) -> Preference:
    """A pair of the field's `prompt`/`chosen`/`rejected` form; our own Preference rows pass as they are.

    The prompt is a text, a dialogue in Human:/Assistant: form, or a list of messages. The answers are texts, or
    lists of messages: the answer alone, or the whole conversation (then `prompt` may be absent). Optional:
    `id`, `prompt_id`, `label`, `weight`, `margin`, `tie`, `source`; other fields are ignored.
    Raises Skip; TrivetError or pydantic's ValidationError for a malformed row.
    """
    if "schema_version" in row:
        return Preference.model_validate(row)
    prompt = _prompt_messages(row.get("prompt"))
    chosen, rejected = (_conversation(row, name, prompt) for name in ("chosen", "rejected"))
    more = {k: row[k] for k in ("label", "weight", "margin", "tie", "source") if row.get(k) is not None}
    more |= {k: str(row[k]) for k in ("id", "prompt_id") if row.get(k) is not None}
    return pair_of_conversations(chosen, rejected, **more)


def _conversation(row: Mapping[str, Any], name: str, prompt: list[Message]) -> list[Message]:
    """The whole conversation of one side: the prompt's messages and the answer."""
    value = row.get(name)
    if isinstance(value, list):
        messages = _messages(name, value)
        if messages[: len(prompt)] == prompt:
            return messages
        if messages[0].role == "assistant":
            return [*prompt, *messages]
        raise TrivetError("this conversation does not begin with the messages of `prompt`", field=name,
                          mend="give the answer's message alone, or leave `prompt` out")
    answer = _text(row, name)
    if not prompt:
        raise TrivetError("the answers are given without their prompt", field="prompt",
                          expected="a text or a list of messages",
                          mend="add the field `prompt` to every row")
    return [*prompt, Message(role="assistant", content=answer)]


def _prompt_messages(value: Any) -> list[Message]:
    """The messages of a prompt; none for a prompt that is absent."""
    if value is None:
        return []
    if isinstance(value, list):
        return _messages("prompt", value)
    if not isinstance(value, str) or not value.strip():
        raise TrivetError("this is no prompt", field="prompt", expected="a text or a list of messages",
                          mend="mend this row")
    if re.match(r"\s*Human:", value) and value.rstrip().endswith("\n\nAssistant:"):
        return hh_messages(value)[:-1]
    return [Message(role="user", content=value)]


def _messages(name: str, value: Any) -> list[Message]:
    """A list of messages, validated; TrivetError names the field."""
    try:
        messages = _MESSAGES.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrivetError(first["msg"], field=".".join(map(str, (name, *first["loc"]))),
                          expected='messages such as {"role": "user", "content": "…"}; roles are system, user, '
                          "assistant", mend="mend this row") from None
    if not messages:
        raise TrivetError("this list of messages is empty", field=name, mend="mend or delete this row")
    return messages


def _text(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise TrivetError("this field is missing", field=name, expected="a text", mend="add it to this row")
    if not isinstance(row[name], str):
        raise TrivetError(f"this is {type(row[name]).__name__}, not a text", field=name, expected="a text",
                          mend="mend this row; all rows of a file have one form")
    return str(row[name])


def majority_first(pair: Preference) -> Preference:
    """The same pair with the more probable winner as `chosen` (a label of 0.3 becomes 0.7 the other way)."""
    if pair.label >= 0.5:
        return pair
    return pair.model_copy(update={
        "chosen": pair.rejected, "rejected": pair.chosen, "label": 1.0 - pair.label, "margin": -pair.margin})


# --- K ranked answers ---------------------------------------------------------------------------------


def field_ranking(row: Mapping[str, Any], line: int) -> Ranking:
    """A Ranking of our own form, or of `prompt`, `completions`/`responses` (texts), `ranks`/`rankings`.

    Rows without `labeler` count as one labeler each. Raises TrivetError or pydantic's ValidationError.
    """
    data = dict(row)
    for ours, theirs in (("completions", "responses"), ("ranks", "rankings")):
        if ours not in data and theirs in data:
            data[ours] = data.pop(theirs)
    if "messages" not in data and isinstance(data.get("prompt"), list):
        data["messages"] = data.pop("prompt")
    answers = data.get("completions")
    if isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers):
        # another labeler may have seen the same texts in another order: the text gives the id
        seen: Counter[str] = Counter()
        data["completions"] = []
        for text in answers:
            seen[text] += 1
            data["completions"].append({"id": text_id([text, seen[text]]), "text": text})
        data.setdefault("labeler", f"row {line}")
        data = {k: v for k, v in data.items() if k in Ranking.model_fields or k in ("prompt", "text")}
    return Ranking.model_validate(data)


def add_ranking(ranking: Ranking, earlier: dict[str, list[Ranking]]) -> None:
    """Add a ranking to those of its prompt. Raises TrivetError where it does not go together with them."""
    group = earlier.setdefault(ranking.id, [])
    texts = {c.id: c.text for r in group for c in r.completions}
    if any(r.labeler == ranking.labeler for r in group):
        raise TrivetError(f"{ranking.labeler!r} ranked the prompt {ranking.id!r} twice", field="labeler",
                          mend="keep one of the two rows, or give each labeler a name of their own")
    if group and group[0].messages != ranking.messages:
        raise TrivetError(f"the id {ranking.id!r} stood for another prompt before", field="id",
                          mend="give each prompt an id of its own")
    for completion in ranking.completions:
        if texts.get(completion.id, completion.text) != completion.text:
            raise TrivetError(f"the completion {completion.id!r} had another text before", field="completions",
                              mend="give each answer of a prompt an id of its own, the same for all labelers")
    group.append(ranking)


# --- files --------------------------------------------------------------------------------------------


def detect(row: Mapping[str, Any]) -> str:
    """The format of a file by its first row. Raises TrivetError listing the known ones."""
    keys = row.keys()
    answers = row.get("completions", row.get("responses"))
    if answers is not None:
        if keys & {"ranks", "rankings"}:
            return "ranked"
        if isinstance(answers, list) and len(answers) == 1:
            raise one_answer_only()
        raise TrivetError("these answers are not ranked", field="ranks", expected="a list of ranks, 1 is best, "
                          "equal is a tie, null is F", mend="rank them first: add `ranks` and `labeler` to each row")
    if {"chosen", "rejected"} <= keys:
        chosen = row["chosen"]
        if row.get("prompt") is not None or "schema_version" in row or isinstance(chosen, list):
            return "preference"
        if isinstance(chosen, str) and re.match(r"\s*(Human|Assistant):", chosen):
            return "hh"
        raise TrivetError("the answers are given without their prompt", field="prompt", expected=KNOWN,
                          mend="add the field `prompt` to every row")
    raise TrivetError(f"no known format of preference data: this row has {', '.join(sorted(keys)) or 'no fields'}",
                      expected=KNOWN, mend="rename the fields, or say which format it is with --format")


def one_answer_only() -> TrivetError:
    """There is only one answer a prompt."""
    return TrivetError("one answer a prompt can't be compared: at least two are needed", field="completions",
                       mend="sample several, such as `trivet sample --completions 4`, and rank those")


def read_preferences(path: str | Path, format: str = "auto", keep_ties: bool = False) -> Imported:
    """The pairs, or the rankings, of a file (JSON Lines, or Parquet by its ending).

    Raises TrivetError with file, line and field for a malformed row, a file without rows, an unknown format, an
    id that stands twice, rankings of one prompt that do not go together, and a single answer to every prompt.
    """
    path = Path(path)
    result = Imported()
    rankings: dict[str, list[Ranking]] = {}
    lines: dict[str, int] = {}
    line = 0
    for line, row in _rows(path):
        try:
            format = detect(row) if format == "auto" else format
            if format == "ranked":
                add_ranking(field_ranking(row, line), rankings)
            else:
                _add_pair(hh_pair(row) if format == "hh" else preference_pair(row), "id" in row, lines, line,
                          keep_ties, result)
        except Skip as reason:
            result.skipped[str(reason)] += 1
        except ValidationError as error:
            raise row_error(error, Ranking if format == "ranked" else Preference, path, line) from None
        except TrivetError as error:
            raise _located(error, path, line) from None
    result.rankings = [ranking for group in rankings.values() for ranking in group]
    if line == 0:
        raise TrivetError("this file holds no rows", file=path, mend="give a file of rankings or pairs")
    if result.rankings and all(len(r.completions) == 1 for r in result.rankings):
        raise _located(one_answer_only(), path, None)
    return result


def _add_pair(pair: Preference, named: bool, lines: dict[str, int], line: int, keep_ties: bool,
              result: Imported) -> None:
    """Add a pair, unless it is a tie or stood before; `lines` holds where each id stood, `named`: it was given.

    Raises Skip, and TrivetError where two rows have one id.
    """
    result.ties += pair.tie
    if pair.tie and not keep_ties:
        raise Skip("tie")
    if pair.id in lines:
        if not named:
            raise Skip("the same pair again")
        raise TrivetError(f"the id {pair.id!r} stands twice, first on line {lines[pair.id]}", field="id",
                          mend="give each row an id of its own, or leave `id` out")
    lines[pair.id] = line
    result.pairs.append(majority_first(pair))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return parquet_rows(path) if path.suffix == ".parquet" else json_lines(path)


def _located(error: TrivetError, file: Path, line: int | None) -> TrivetError:
    """The same error, saying where."""
    return TrivetError(error.what, mend=error.mend, file=file, line=line, field=error.field,
                       expected=error.expected)
