"""Showing values line by line: a program is given calls that note what each line wrote.

A call is put at the end of the line that it belongs to, so that line numbers stay. It works on tokens: a program from a
model is never parsed in this process, since Python's own parser can be brought down by nesting.
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Sequence
from typing import Any

from trivet.sandbox.base import Step

NOTE = "_trivet_note"
NOTED = "_trivet_noted"
LONGEST = 200
"""Characters of a shown value."""

PRELUDE = f'''
{NOTED} = []
def {NOTE}(line, *pairs):
    if len({NOTED}) >= COUNT:
        return
    shown = []
    for place in range(0, len(pairs), 2):
        value = pairs[place + 1]
        kind = type(value).__name__
        try:
            if kind in ("list", "tuple", "dict", "set", "str", "bytes") and len(value) > {LONGEST}:
                text = kind + " of " + str(len(value))
            else:
                text = repr(value)
        except Exception:
            text = "(" + kind + ")"
        shown.append((pairs[place], text[:{LONGEST}]))
    {NOTED}.append((line, shown))
'''
"""Python that both Monty and CPython run before the program; COUNT is put in."""

_BLOCK = {"if", "elif", "else", "for", "while", "with", "try", "except", "finally", "def", "class", "async", "match",
          "case"}
_OPENING, _CLOSING = set("([{"), set(")]}")
_NO_CODE = {tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
Tokens = Sequence[tokenize.TokenInfo]


def prelude(count: int) -> str:
    """What notes at most `count` lines."""
    return PRELUDE.replace("COUNT", str(count))


def noting(code: str) -> str:
    """The program with calls that note what assignments wrote; unchanged where it can't be read as tokens."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError, RecursionError):
        return code
    lines = code.splitlines(keepends=True)
    calls: list[tuple[int, int, str]] = []
    logical: list[tokenize.TokenInfo] = []
    loop: list[str] = []
    for token in tokens:
        if token.type in _NO_CODE:
            continue
        if token.type != tokenize.NEWLINE:
            logical.append(token)
            continue
        if logical:
            header, body = _split_header(logical)
            if loop and not header and logical[0].string not in {"@", "global", "nonlocal"}:
                row, column = logical[0].start
                calls.append((row, column, f"{_call(row - 1, loop)}; "))
            loop = _loop_targets(header) if not body else []
            for statement in _statements(body):
                names = _targets(statement)
                if names:
                    row, column = statement[-1].end
                    calls.append((row, column, f"; {_call(statement[0].start[0], names)}"))
        logical = []
    for row, column, text in sorted(calls, reverse=True):
        if row <= len(lines):
            line = lines[row - 1]
            lines[row - 1] = line[:column] + text + line[column:]
    return "".join(lines)


def steps_from(raw: Any, count: int) -> list[Step]:
    """Steps from what a program noted. It may have written there itself: only the form that is ours is kept."""
    found: list[Step] = []
    for item in raw if isinstance(raw, list) else []:
        if len(found) == count:
            break
        if not (isinstance(item, tuple | list) and len(item) == 2 and type(item[0]) is int
                and isinstance(item[1], tuple | list)):
            continue
        pairs = [p for p in item[1] if isinstance(p, tuple | list) and len(p) == 2 and all(type(t) is str for t in p)]
        found.append(Step(item[0], {name[:LONGEST]: text[:LONGEST] for name, text in pairs[:50]}))
    return found


def _call(line: int, names: Sequence[str]) -> str:
    return f"{NOTE}({line}, {', '.join(f'{name!r}, {name}' for name in names)})"


def _split_header(logical: Tokens) -> tuple[Tokens, Tokens]:
    """`if x: y = 1` into the part up to the colon and what follows it on the line; no header for a simple statement."""
    first = logical[0].string
    if first not in _BLOCK or (first in {"match", "case"} and logical[-1].string != ":"):
        return [], logical
    depth = lambdas = 0
    for place, token in enumerate(logical):
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        if depth:
            continue
        if token.string == "lambda":
            lambdas += 1
        elif token.string == ":" and token.type == tokenize.OP:
            if not lambdas:
                return logical[:place + 1], logical[place + 1:]
            lambdas -= 1
    return logical, []


def _loop_targets(header: Tokens) -> list[str]:
    """The names that `for … in` writes."""
    if len(header) < 2 or header[0].string != "for":
        return []
    stop = next((i for i, t in enumerate(header) if t.string == "in"), 0)
    return _names(header[1:stop])


def _statements(body: Tokens) -> list[Tokens]:
    """Simple statements between semicolons."""
    found: list[list[tokenize.TokenInfo]] = [[]]
    depth = 0
    for token in body:
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        if token.string == ";" and not depth:
            found.append([])
        else:
            found[-1].append(token)
    return [s for s in found if s]


def _targets(statement: Tokens) -> list[str]:
    """The names that an assignment writes, in order; for `d[k] = v` the name `d`."""
    first = statement[0].string
    if keyword.iskeyword(first) or first == "@":
        return []
    depth, last = 0, None
    for place, token in enumerate(statement):
        depth += (token.string in _OPENING) - (token.string in _CLOSING)
        if token.string == "lambda" and not depth:  # what follows are its defaults
            break
        if not depth and token.type == tokenize.OP and token.string.endswith("=") \
                and token.string not in {"==", "!=", "<=", ">=", ":="}:
            last = place
    if last is None:
        return []
    left = list(statement[:last])
    colon = next((i for i, t in enumerate(left) if t.string == ":" and not _depth(left[:i])), None)
    return _names(left if colon is None else left[:colon])


def _depth(tokens: Tokens) -> int:
    return sum((t.string in _OPENING) - (t.string in _CLOSING) for t in tokens)


def _names(targets: Tokens) -> list[str]:
    """Names at the head of each target: of `(a, *b), c[i], d.e` the names a, b and c."""
    found: list[str] = []
    index: list[bool] = []
    """For each open bracket, whether it is an index or a call."""
    before = ","
    for place, token in enumerate(targets):
        if token.string in _OPENING:
            index.append(before not in {",", "=", "*", "("} | _OPENING)
        elif token.string in _CLOSING and index:
            index.pop()
        elif token.type == tokenize.NAME and before in {",", "=", "*"} | _OPENING and not any(index):
            after = targets[place + 1].string if place + 1 < len(targets) else ""
            if after not in {".", "("} and token.string not in found and token.string != "_":
                found.append(token.string)
        before = token.string
    return found
