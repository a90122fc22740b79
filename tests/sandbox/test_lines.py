"""Programs with notes of what each line wrote."""

from __future__ import annotations

import ast

import pytest

from trivet.sandbox.base import Step
from trivet.sandbox.lines import LONGEST, noting, prelude, steps_from


def ran(code: str, count: int = 50) -> list[tuple[int, dict[str, str]]]:
    """The steps that a program notes when Python runs it."""
    names: dict[str, object] = {}
    exec(prelude(count), names)
    exec(noting(code), names)
    return [(s.line, s.values) for s in steps_from(names["_trivet_noted"], count)]


def test_each_line_shows_what_it_wrote() -> None:
    assert ran("a = 3\nb = a * 2  # twice\nb += 1; c = b\n") == [
        (1, {"a": "3"}), (2, {"b": "6"}), (3, {"b": "7"}), (3, {"c": "7"})]


def test_functions_loops_and_branches() -> None:
    code = ("def f(n):\n    total = 0\n    for i, x in enumerate(n):\n        total += x\n"
            "    if total > 2: big = True\n    else:\n        big = False\n    return big\nf([1, 2])")
    assert ran(code) == [(2, {"total": "0"}), (3, {"i": "0", "x": "1"}), (4, {"total": "1"}),
                         (3, {"i": "1", "x": "2"}), (4, {"total": "3"}), (5, {"big": "True"})]


@pytest.mark.parametrize(("line", "names"), [
    ("(a, *b), c = (1, 2), 3", ["a", "b", "c"]), ("a: int = 3", ["a"]), ("a = b = c = 2", ["a", "b", "c"]),
    ("d = {}; d['k'] = [x for x in range(2)]", ["d", "d"]), ("f = lambda x, y=1: x == y", ["f"]),
    ("a = (1 +\n     2)", ["a"]), ("[a, b] = 1, 2", ["a", "b"]), ("if True: a = 1", ["a"]),
    ("print(1, end='')", []), ("x = 3 if 1 == 1 else 4", ["x"]), ("a = dict(b=1)", ["a"]), ("assert 1 == 1", []),
    ("match = 3", ["match"]), ("import math as m", []), ("a = 'x = 1; y = 2'", ["a"]), ("a = 1;", ["a"]),
])
def test_names_that_a_statement_writes(line: str, names: list[str]) -> None:
    assert [n for _, values in ran(line) for n in values] == names


@pytest.mark.parametrize("code", [
    "def f(:\n", "x = (", "'''", "\tx\n  y", "x = 1 \\", "\x00", "if x:\nelse:\n y", "@a\nclass B:\n    x = 1\n",
    "async def f():\n    async with a as b:\n        x = await b\n    return x",
    "class A:\n    '''doc'''\n    x: int\n    y = 2\n",
    "match 1:\n    case 1: x = 2\n", "try:\n    x = 1\nexcept* E: pass\n", "x = f'{a=}'\n", "x = [\n1,\n# c\n2]\n",
])
def test_what_python_reads_it_still_reads(code: str) -> None:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        noting(code)  # it raises nothing
        return
    ast.parse(noting(code))


def test_line_numbers_stay() -> None:
    code = "a = 1\nfor i in [1]:\n    b = (2,\n         3)\n    c = 4\n1 / 0\n"
    assert len(noting(code).splitlines()) == len(code.splitlines())
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile(prelude(9) , "p", "exec") or "", names := {})
        exec(compile(noting(code), "q", "exec"), names)
    assert raised.traceback[-1].lineno + 1 == 6


def test_notes_are_bounded() -> None:
    steps = ran("for i in range(100):\n    x = 'y' * 1000\n", count=7)
    assert len(steps) == 7 and steps[1] == (2, {"x": "str of 1000"})
    assert ran("class A:\n    def __repr__(self): raise ValueError\na = A()\nb = 10 ** 9999") == [
        (3, {"a": "(A)"}), (4, {"b": "(int)"})]


@pytest.mark.parametrize("raw", [None, 3, [3], [(1,)], [("1", [])], [(True, [])], [(1, 2)]])
def test_notes_of_another_form_are_not_taken(raw: object) -> None:
    assert steps_from(raw, 5) == []
    assert steps_from([(1, [("a", "x" * 999), ("b", 3)])], 5) == [Step(1, {"a": "x" * LONGEST})]
