"""What readers of other tools' exports share: one JSON array or JSON Lines, and errors that say where."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trivet.artifacts import Message, Ranking, json_lines, read_error
from trivet.errors import TrivetError

_MESSAGES = TypeAdapter(list[Message])
#: names that people give to the field with the prompt
PROMPTS = ("messages", "prompt", "instruction", "question", "chat", "conversation", "context", "input", "query", "text")


class Fault(Exception):
    """Something wrong in a record: (what, field inside the record, how to mend it)."""

    def __init__(self, what: str, field: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.field, self.mend = what, field, mend


def records(path: Path) -> Iterator[tuple[int, bool, dict[str, Any]]]:
    """(number, whether it is a line's, record) of a JSON array or of JSON Lines.

    Raises TrivetError for what is neither, and for a file without records.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(64).lstrip()[:1]
            file.seek(0)
            values = json.load(file) if start == "[" else None
    except json.JSONDecodeError as error:
        raise TrivetError(f"broken JSON: {error.msg} at column {error.colno}", file=path, line=error.lineno,
                          mend="export it again: the file seems torn") from None
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path, mend="export it again as JSON") from None
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None
    except RecursionError:
        raise TrivetError("broken JSON: nested too deeply", file=path, mend="export it again") from None
    if values is None:
        yield from ((line, True, value) for line, value in json_lines(path))
        return
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise TrivetError(f"this is {type(value).__name__}, not a record", file=path, field=f"[{number - 1}]",
                              expected="an array of objects", mend="export it again as JSON")
        yield number, False, value


def read_records(path: Path, tool: str, read: Callable[[dict[str, Any]], Sequence[Ranking]]) -> list[Ranking]:
    """The rankings of all records. A Fault becomes a TrivetError that names file, line and field.

    Raises TrivetError, too, for a file without rankings and for a labeler who ranked one prompt twice.
    """
    found: list[Ranking] = []
    seen: set[tuple[str, str]] = set()
    count = 0
    for number, is_line, record in records(path):
        count += 1
        place = "" if is_line else f"[{number - 1}]."
        try:
            rankings = read(record)
        except Fault as fault:
            raise TrivetError(fault.what, file=path, line=number if is_line else None, field=place + fault.field,
                              mend=fault.mend) from None
        for ranking in rankings:
            if (ranking.id, ranking.labeler) in seen:
                raise TrivetError(f"{ranking.labeler!r} ranked the prompt {ranking.id!r} twice", file=path,
                                  line=number if is_line else None, field=f"{place}id",
                                  mend="keep one of the two records")
            seen.add((ranking.id, ranking.labeler))
            found.append(ranking)
    if not found:
        raise TrivetError(f"this file holds {count} records and no ranking that was submitted", file=path,
                          mend=f"export {tool}'s records together with their answers")
    return found


def make_ranking(values: dict[str, Any], field: str) -> Ranking:
    """A Ranking. Raises Fault where the values are no ranking."""
    try:
        return Ranking.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Fault(first["msg"].removeprefix("Value error, ") + (f" ({place})" if place else ""), field,
                    "correct this record") from None


def find_prompt(fields: dict[str, Any], place: str, others: Sequence[str]) -> list[Message]:
    """The prompt among a record's fields: one with a usual name, else the only text that is none of `others`.

    Raises Fault.
    """
    names = [name for name in PROMPTS if fields.get(name) and name not in others]
    left = [name for name, value in fields.items() if name not in others and isinstance(value, str) and value.strip()]
    if not names and len(left) != 1:
        raise Fault(f"which of {', '.join(fields) or 'no field'} holds the prompt?", place.rstrip("."),
                    "name it `prompt`")
    name = names[0] if names else left[0]
    value = fields[name]
    if isinstance(value, str):
        return [Message(role="user", content=value)]
    try:
        return _MESSAGES.validate_python(value)
    except ValidationError as error:
        raise Fault(error.errors()[0]["msg"], f"{place}{name}",
                    'give a text, or messages such as {"role": "user", "content": "…"}') from None
