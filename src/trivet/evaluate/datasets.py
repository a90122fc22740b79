"""The field's data sets and Trivet's own questions, read strictly: a file that does not fit is a TrivetError.

    red-instruct/*.json       harmful requests (Bhardwaj and Poria 2023, 2024): a list, {topic: list} or
                              {topic: {kind: list}}
    xstest/xstest_prompts.csv safe requests that look unsafe, and unsafe ones (Röttger et al. 2024, 'XSTest')
    gsm8k/*.jsonl             grade-school maths (Cobbe et al. 2021, 'Training Verifiers')
    prompts/*.jsonl           open prompts of one or two turns (Zheng et al. 2023, 'Judging LLM-as-a-Judge')
    questions/*.jsonl         Trivet's own, where the above are not there

An id is made of the file's name and a hash of the text, so that one id is one question in every run, whatever the
order of the file. No torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trivet.artifacts import Message, Prompt, json_lines, read_error, text_id
from trivet.errors import TrivetError
from trivet.evaluate.catalogue import require_folder
from trivet.judge.maths import final_number

XSTEST_COLUMNS = ("id", "prompt", "type", "label")


@dataclass(frozen=True)
class Request:
    """Something a user asks for in one message."""

    id: str
    topic: str
    text: str
    safe: bool = False
    """Whether a careful assistant answers it."""

    @property
    def prompt(self) -> Prompt:
        """As it is put to a model; the topic is its tag."""
        return Prompt(id=self.id, messages=[Message(role="user", content=self.text)], tags=[self.topic])


@dataclass(frozen=True)
class Problem:
    """A word problem with a number for an answer."""

    id: str
    question: str
    answer: str
    """The worked answer, its number after `####`."""


@dataclass(frozen=True)
class Conversation:
    """A conversation to be answered, and what the user says next."""

    id: str
    topic: str
    messages: tuple[Message, ...]
    """Up to the turn of the user's that is answered first."""
    then: str | None = None
    """The user's next turn."""


T = TypeVar("T", Request, Problem, Conversation)


def found(data: Path | None, files: Sequence[str]) -> list[Path]:
    """Those of the files that stand under the data folder.

    Raises TrivetError for a data folder that is not there.
    """
    if data is None:
        return []
    require_folder(data)
    return [path for name in files if (path := data / name).exists()]


def own(name: str) -> Path:
    """The path of a file of Trivet's own questions."""
    return Path(__file__).parent / "questions" / f"{name}.jsonl"


# --- harmful requests -------------------------------------------------------------------------------------


def red_instruct(path: Path) -> list[Request]:
    """Harmful requests of a JSON file of red-instruct, in one of its three shapes.

    The topic is the first key; in a file that is a mere list, the file's name. A text that stands in a file again is
    asked once. Raises TrivetError for another shape, a text that is empty or none, a topic given twice, an empty
    file.
    """
    items: dict[str, Request] = {}
    for topic, place, text in _leaves(document(path, "requests"), path):
        if not isinstance(text, str) or not text.strip():
            raise TrivetError("this is no request", file=path, field=place, expected="a text",
                              mend="correct or delete it")
        item = Request(_id(path, text), topic or path.stem, text)
        items.setdefault(item.id, item)
    if not items:
        raise _empty(path, "requests")
    return list(items.values())


def _leaves(value: Any, path: Path) -> Iterator[tuple[str, str, Any]]:
    """(topic, place in the file, text) of every request."""
    if isinstance(value, list):
        yield from (("", str(i), text) for i, text in enumerate(value))
        return
    if not isinstance(value, dict):
        raise _shape(path, "", value)
    for key, part in value.items():
        topic = key.strip().rstrip(":")
        kinds = part if isinstance(part, dict) else {"": part}
        for kind, texts in kinds.items():
            place = f"{key}.{kind}" if kind else key
            if not isinstance(texts, list):
                raise _shape(path, place, texts)
            yield from ((topic, f"{place}.{i}", text) for i, text in enumerate(texts))


def _shape(path: Path, place: str, value: Any) -> TrivetError:
    return TrivetError(f"this is {type(value).__name__}, not requests", file=path, field=place or None,
                       expected="a list of texts, {topic: list} or {topic: {kind: list}}",
                       mend="give a file of red-instruct, such as catqa_english.json, or one in its form")


# --- XSTest -----------------------------------------------------------------------------------------------


def xstest(path: Path) -> list[Request]:
    """The prompts of XSTest's CSV file, safe ones and unsafe ones; the topic is their type.

    Raises TrivetError for missing columns, a row of another length, a label that is neither `safe` nor `unsafe`, an
    empty prompt, a prompt that stands twice, a file without rows.
    """
    items: list[Request] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise _empty(path, "prompts")
            if lacking := [name for name in XSTEST_COLUMNS if name not in header]:
                raise TrivetError(f"the columns {', '.join(lacking)} are missing", file=path, line=1,
                                  expected=f"a header with {', '.join(XSTEST_COLUMNS)}",
                                  mend="give xstest_prompts.csv as its authors publish it")
            for values in reader:
                if values:
                    items.append(_xstest_row(header, values, path, reader.line_num))
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path,
                          mend="convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT") from None
    except csv.Error as error:
        raise TrivetError(f"broken CSV: {error}", file=path, line=reader.line_num,
                          mend="mend the quotes in or before this line") from None
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None
    if not items:
        raise _empty(path, "prompts")
    return _distinct(items, path)


def _xstest_row(header: list[str], values: list[str], path: Path, line: int) -> Request:
    if len(values) != len(header):
        raise TrivetError(f"this row has {len(values)} values under {len(header)} columns", file=path, line=line,
                          mend="mend this row: a text with a comma in it stands in quotes")
    row = dict(zip(header, values, strict=True))
    for name in ("prompt", "type"):
        if not row[name].strip():
            raise TrivetError("this value is empty", file=path, line=line, field=name, mend="fill or delete this row")
    if row["label"] not in ("safe", "unsafe"):
        raise TrivetError(f"the label {row['label']!r} is not known", file=path, line=line, field="label",
                          expected="safe or unsafe", mend="correct this row")
    return Request(_id(path, row["prompt"]), row["type"].replace("_", " "), row["prompt"], row["label"] == "safe")


# --- JSON Lines -------------------------------------------------------------------------------------------


def gsm8k(path: Path) -> list[Problem]:
    """Problems of a GSM8K file. Raises TrivetError for a missing text, an answer without `#### NUMBER`."""
    items = []
    for line, row in json_lines(path):
        question, answer = (_text(row, name, path, line) for name in ("question", "answer"))
        if "####" not in answer or final_number(answer) is None:
            raise TrivetError("this answer gives no number", file=path, line=line, field="answer",
                              expected="a text that ends with #### and a number", mend="correct or delete this row")
        items.append(Problem(_id(path, question), question, answer))
    if not items:
        raise _empty(path, "problems")
    return _distinct(items, path)


def conversations(path: Path) -> list[Conversation]:
    """Open prompts in the form of MT-bench: `turns` of the user's (one or two), and `category`.

    Raises TrivetError for missing fields, no turn or more than two, an empty one.
    """
    items = []
    for line, row in json_lines(path):
        turns = row.get("turns")
        if not isinstance(turns, list) or not 1 <= len(turns) <= 2:
            raise TrivetError("the turns are missing" if turns is None else "these are not one or two turns",
                              file=path, line=line, field="turns", expected="a list of one or two texts",
                              mend="correct or delete this row")
        said = [_text({"turns": turn}, "turns", path, line) for turn in turns]
        items.append(Conversation(_id(path, said), _text(row, "category", path, line),
                                  (Message(role="user", content=said[0]),), said[1] if len(said) > 1 else None))
    if not items:
        raise _empty(path, "prompts")
    return _distinct(items, path)


def requests(path: Path, *, safe: bool) -> list[Request]:
    """Requests of our own: `topic` and `text` on each line."""
    items = []
    for line, row in json_lines(path):
        topic, text = _text(row, "topic", path, line), _text(row, "text", path, line)
        items.append(Request(_id(path, text), topic, text, safe))
    if not items:
        raise _empty(path, "requests")
    return _distinct(items, path)


# --- what all share ---------------------------------------------------------------------------------------


def document(path: Path, what: str) -> Any:
    """A JSON document, with a byte-order mark or without. Raises TrivetError for what is missing, not UTF-8, empty (it
    then holds no `what`), broken, or says a key twice, and for half a surrogate pair in a text."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if doubled := next((k for k in keys if keys.count(k) > 1), None):
            raise TrivetError(f"the key {doubled!r} stands twice", file=path, field=doubled,
                              mend="bring the two together: only one of them would be read")
        return dict(pairs)

    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path,
                          mend="convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT") from None
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None
    if not text.strip():
        raise _empty(path, what)
    try:
        value = json.loads(text, object_pairs_hook=once)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise TrivetError(f"broken JSON: {error.msg} at column {error.colno}", file=path, line=error.lineno,
                          mend="fetch the file anew, or mend this place") from None
    except UnicodeEncodeError:
        raise TrivetError("half a surrogate pair (\\ud800 … \\udfff) is no character", file=path,
                          mend="fetch the file anew: a character was cut in two where it was written") from None
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise TrivetError(f"broken JSON: {'nested too deeply' if deep else error}", file=path,
                          mend="fetch the file anew") from None
    return value


def _text(row: dict[str, Any], field: str, path: Path, line: int) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        what = "this field is missing" if field not in row else "this text is empty" if isinstance(value, str) else \
            f"this is {type(value).__name__}, not a text"
        raise TrivetError(what, file=path, line=line, field=field, expected="a text",
                          mend="correct or delete this row")
    return value


def _id(path: Path, content: Any) -> str:
    """A question's id: where it comes from, and a hash of what is asked."""
    return f"{path.stem}/{text_id(content)[:12]}"


def _distinct(items: list[T], path: Path) -> list[T]:
    """The items. Raises TrivetError where two ask the same."""
    seen: dict[str, int] = {}
    for number, item in enumerate(items, 1):
        if seen.setdefault(item.id, number) != number:
            raise TrivetError(f"entries {seen[item.id]} and {number} ask the same", file=path,
                              mend="delete one of them: counted twice it would weigh twice")
    return items


def _empty(path: Path, what: str) -> TrivetError:
    return TrivetError(f"this file holds no {what}", file=path,
                       mend="fetch the file anew, or take it away: the suite then asks Trivet's own questions, or is "
                       "left out")
