"""A program in a model's reply: finding it, running it, and what value it stands for."""

from __future__ import annotations

import io
import math
import re
import textwrap
import tokenize
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from trivet.sandbox import Result, run_program_async
from trivet.serve.pal.config import PalSettings

NAME = "answer"
"""The name that a program is asked to write its result to."""
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(\w*)[^\n]*$", re.MULTILINE)
_PYTHON = {"", "python", "python3", "py", "tool_code"}
_STARTS = re.compile(r"(from|import|def|class|for|while|if|print)\b|[A-Za-z_]\w*(\s*,\s*[A-Za-z_]\w*)*\s*[+\-*/]?=[^=]")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?([eE][-+]?\d+)?|[-+]?\.\d+")
_BLOCK = {"if", "elif", "else", "for", "while", "with", "try", "except", "finally"}
_ASSIGNS = {"=", "+=", "-=", "*=", "/=", "//=", "%=", "**="}
LONGEST = 2000
"""Characters of a value in an answer's sentence."""


@dataclass(frozen=True)
class Ran:
    """A program that was run."""

    program: str
    result: Result | None
    """None where there was no program to run."""
    value: Any = None
    """What it answers; JSON. None where it answers nothing."""
    failed: str | None = None
    """Why it answers nothing."""


def extract(reply: str) -> str | None:
    """The program in a reply: the first fenced block of Python, closed or not; else lines that look like a program from
    the first such line on; None where there is neither."""
    opening = None
    for fence in _FENCE.finditer(reply):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            if opening[2].lower() in _PYTHON and (block := reply[opening.end():fence.start()]).strip():
                return textwrap.dedent(block).strip("\n")
            opening = None
    if opening is not None and opening[2].lower() in _PYTHON:
        return textwrap.dedent(reply[opening.end():]).strip("\n") or None
    lines = reply.strip("\n").splitlines()
    start = next((i for i, line in enumerate(lines) if _STARTS.match(line)), None)
    if start is None:
        return None
    # words after the program are no part of it: a line at the margin that is no code ends it
    end = next((i for i in range(start + 1, len(lines)) if _is_prose(lines[i])), len(lines))
    return "\n".join(lines[start:end]).strip("\n")


def _is_prose(line: str) -> bool:
    """A line at the margin of several plain words in a row."""
    return re.match(r"[A-Z][a-z']*[,:]? ([a-z']+[,:]? ){2,}", line) is not None


def completed(program: str) -> str:
    """The program with a last line that gives its result: `answer` where the program writes it at its top, a call of
    `solution` where it defines that (the form of PAL's own prompts); unchanged otherwise, so that an expression in its
    last line counts. Read as tokens: what a model wrote is never parsed in this process."""
    inside, writes, defines, depth = False, False, False, 0
    words: list[str] = []
    """Of the statement so far, what stands in no bracket."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(program).readline):
            if token.type in (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT):
                continue
            if token.type == tokenize.NEWLINE:
                words = []
                continue
            if not words and not depth and token.start[1] == 0:
                inside = token.string in {"def", "class", "async", "@"}
                margin = True
            elif not words:
                margin = False
            depth += token.type == tokenize.OP and (token.string in "([{") - (token.string in ")]}")
            defines = defines or (words == ["def"] and margin and token.string == "solution")
            if token.type == tokenize.OP and not depth:
                if token.string in _ASSIGNS and NAME in words and not inside and "lambda" not in words:
                    writes = True
                elif token.string == ";" or (token.string == ":" and words and words[0] in _BLOCK):
                    words = [""]  # the next statement, on the same line
                    continue
            words.append("(" if depth else token.string)
    except (tokenize.TokenError, SyntaxError, RecursionError):
        return program  # the sandbox says what is wrong with it
    if writes:
        return f"{program}\n{NAME}"
    return f"{program}\nsolution()" if defines else program


async def run(reply: str, settings: PalSettings) -> Ran:
    """Run the program in a reply. Raises TrivetError where no sandbox works on this machine."""
    program = extract(reply)
    if program is None:
        return Ran("", None, failed="the reply holds no program")
    result = await run_program_async(completed(program), settings.limits, steps=settings.shown, tiers=settings.tiers)
    if not result.ok:
        return Ran(program, result, failed=str(result.error) if result.error is not None else result.status)
    value = result.value
    if value is None and result.stdout.strip():  # it printed its answer
        value = _said(result.stdout.strip().splitlines()[-1].strip()[:LONGEST])
    if value is None:
        return Ran(program, result, failed=f"the program ended without assigning `{NAME}`")
    if value in ("nan", "inf", "-inf", "") or value == [] or value == {}:
        return Ran(program, result, failed=f"the program's answer is {value!r}, which is no answer")
    return Ran(program, result, value)


def _said(line: str) -> Any:
    """What a printed line answers: the one number in it ("The total is 391."), else the line."""
    numbers = [m[0].rstrip(",") for m in _NUMBER.finditer(line)]
    if len(line.split()) < 3 or len(numbers) != 1 or (found := number_of(numbers[0])) is None:
        return line
    return int(found) if found == int(found) and abs(found) < 1e15 else found


def number_of(value: Any) -> float | None:
    """The number that a value is, or whose text it is (`$1,200.50`, `25%`, `3/4`); None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if not isinstance(value, str):
        return None
    text = value.strip().lstrip("$€£").rstrip("%").strip()
    if _NUMBER.fullmatch(text):
        found = float(text.replace(",", ""))
        return found if math.isfinite(found) else None
    if re.fullmatch(r"-?\d{1,15}/\d{1,15}", text):
        try:
            return float(Fraction(text))
        except (ZeroDivisionError, OverflowError):
            return None
    return None


def normalised(value: Any) -> Hashable:
    """What two values share that mean the same: 5, 5.0 and '$5'; numbers to 9 digits; texts without case and edges."""
    if isinstance(value, int) and not isinstance(value, bool):
        return ("number", f"{value:d}") if value.bit_length() > 50 else ("number", f"{float(value):.9g}")
    if (number := number_of(value)) is not None:
        return ("number", f"{number + 0.0:.9g}" if number else "0")
    if isinstance(value, str):
        return ("text", " ".join(value.split()).strip(" .").casefold())
    if isinstance(value, list):
        return ("list", *(normalised(item) for item in value))
    if isinstance(value, dict):
        return ("dict", *sorted((str(k), repr(normalised(v))) for k, v in value.items()))
    return ("other", repr(value))


def told(value: Any) -> str:
    """A value in the words of an answer: no trailing zeros, no noise of binary fractions, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == int(value) and abs(value) < 1e15:
            return str(int(value))
        return f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(map(told, value))[:LONGEST]
    if isinstance(value, dict):
        return ", ".join(f"{k}: {told(v)}" for k, v in value.items())[:LONGEST]
    return str(value)[:LONGEST]


def annotated(ran: Ran) -> str:
    """The program with what its lines wrote beside them: of a line that ran often, the first and the last value."""
    lines = ran.program.splitlines()
    seen: dict[int, list[str]] = {}
    for step in ran.result.steps if ran.result is not None else []:
        seen.setdefault(step.line, []).append(", ".join(f"{name} = {text}" for name, text in step.values.items()))
    for number, values in seen.items():
        if 1 <= number <= len(lines):
            shown = values[0] if len(values) == 1 else f"{values[0]} … {values[-1]} ({len(values)} times)"
            lines[number - 1] += f"  # {shown}"
    return "\n".join(lines)
