"""`run_program`: what comes back from each tier, and who is asked when."""

from __future__ import annotations

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from trivet.cli import main
from trivet.errors import TrivetError
from trivet.sandbox import TIERS, Limits, Result, availability, run_program, run_program_async
from trivet.sandbox import run as module
from trivet.sandbox.base import MAX_CODE
from trivet.sandbox.bubblewrap import Bubblewrap
from trivet.sandbox.inner import plain
from trivet.sandbox.sandlock import Sandlock

PROGRAM = """\
def solution():
    money = 23
    for price in (3, 4):
        money -= price
    return money

answer = solution()
print("it is", answer)
answer * 2
"""


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    why = availability(name)[name]
    if why is not None:
        pytest.skip(f"{name}: {why}")
    return name


def test_a_program_and_its_lines(tier: str) -> None:
    result = run_program(PROGRAM, steps=20, tiers=[tier])
    assert (result.status, result.tier, result.stdout) == ("ok", tier, "it is 16\n")
    assert (result.value, result.shown) == (32, "32")
    assert [(s.line, s.values) for s in result.steps] == [
        (2, {"money": "23"}), (3, {"price": "3"}), (4, {"money": "20"}), (3, {"price": "4"}), (4, {"money": "16"}),
        (7, {"answer": "16"})]
    assert result.error is None and result.seconds > 0 and (result.memory or 0) > 1
    assert run_program(PROGRAM, tiers=[tier]).steps == []


def test_an_error_has_its_line_and_the_lines_before_it(tier: str) -> None:
    result = run_program("a = 1\n\ndef f():\n    return a / 0\n\nb = f()", steps=9, tiers=[tier])
    assert result.status == "error" and result.error is not None
    assert (result.error.type, result.error.line) == ("ZeroDivisionError", 4)
    assert [s.line for s in result.steps] == [1]
    syntax = run_program("a = 1\nb = = 2", steps=9, tiers=[tier])
    assert syntax.error is not None and (syntax.error.type, syntax.error.line) == ("SyntaxError", 2)


@pytest.mark.parametrize(("code", "value"), [
    ("6 * 7", 42), ("0.1 + 0.2", 0.1 + 0.2), ("'a\\u00e9'", "aé"), ("[1, (2, 3)]", [1, [2, 3]]),
    ("{'a': {1: 2}}", {"a": {"1": 2}}),
    ("x = 3", None), ("None", None), ("True", True), ("float('inf')", "inf"), ("10 ** 5000", "int of 16610 bits"),
    ("[0] * 30_000", "list of 30000"), ("'x' * 20_000", "x" * 10_000), ("", None), ("# nothing", None),
])
def test_values(tier: str, code: str, value: Any) -> None:
    result = run_program(code, tiers=[tier])
    assert result.ok and result.value == value, result
    json.dumps(result.as_dict())


def test_limits_have_their_names(tier: str) -> None:
    limits = Limits(seconds=0.5, memory=64, output=100)
    assert run_program("while True: pass", limits, tiers=[tier]).status == "time"
    assert run_program("x = [0] * 10 ** 9", limits, tiers=[tier]).status == "memory"
    long = run_program("print('x' * 1000)", limits, tiers=[tier])
    assert long.status == "output" and len(long.stdout) <= 100 and long.error is not None


def test_many_at_once(tier: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        codes = [f"print({i})\n{i} * 2" for i in range(12)]
        results = list(pool.map(lambda c: run_program(c, Limits(seconds=60), tiers=[tier]), codes))
    assert [(r.stdout, r.value) for r in results] == [(f"{i}\n", i * 2) for i in range(12)]


def test_the_event_loop_goes_on(tier: str) -> None:
    async def both() -> tuple[list[Result], int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.01)
        beside = asyncio.create_task(turn())
        code = "n = 0\nfor i in range(2_000_000):\n    n += i\nn"
        found = await asyncio.gather(*(run_program_async(code, Limits(seconds=60), tiers=[tier]) for _ in range(3)))
        beside.cancel()
        return found, turns
    found, turns = asyncio.run(both())
    assert [r.value for r in found] == [1999999000000] * 3 and turns > 3


def test_monty_answers_first_and_passes_on_what_it_does_not_know() -> None:
    assert run_program("1 + 1").tier == "monty"
    if availability("bubblewrap")["bubblewrap"] is None:
        result = run_program("import statistics\nstatistics.median([3, 1, 2])")
        assert (result.tier, result.value) == ("bubblewrap", 2) and "statistics" in result.passed_on["monty"]
    wrong = run_program("1 / 0")
    assert wrong.tier == "monty" and wrong.passed_on == {}  # Python would say the same


def test_monty_alone_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bubblewrap, "missing", lambda self: "not here")
    monkeypatch.setattr(Sandlock, "missing", lambda self: "nor here")
    module._tried.cache_clear()
    try:
        refused = run_program("import statistics")
        assert refused.status == "refused" and "bubblewrap: not here" in str(refused.error)
        assert run_program("undefined + 1").status == "error"
        with pytest.raises(TrivetError, match="no sandbox works on this machine"):
            run_program("1", tiers=["bubblewrap", "sandlock"])
    finally:
        module._tried.cache_clear()


def test_a_tier_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Bubblewrap, code: str, limits: Limits, steps: int) -> Result:
        raise OSError("no room")
    assert availability("bubblewrap") and availability("sandlock")
    monkeypatch.setattr(Bubblewrap, "run", broken)
    if availability("sandlock")["sandlock"] is None and availability("bubblewrap")["bubblewrap"] is None:
        result = run_program("import statistics\n3")
        assert result.tier == "sandlock" and result.passed_on["bubblewrap"] == "no room"


def test_what_is_no_program_is_refused() -> None:
    assert run_program("x" * (MAX_CODE + 1)).status == "refused"
    assert run_program("x = '\udcff'").status == "refused"
    with pytest.raises(TrivetError, match="there is no tier 'docker'"):
        run_program("1", tiers=["docker"])


def test_packages_are_seen_where_they_are_named() -> None:
    if availability("bubblewrap")["bubblewrap"] is not None:
        pytest.skip("needs bubblewrap")
    code = "from sympy import symbols, solve\nx = symbols('x')\nsolve(2 * x - 10, x)[0]"
    assert run_program(code, Limits(seconds=60, memory=1024)).status == "error"
    result = run_program(code, Limits(seconds=60, memory=1024, packages=("sympy", "mpmath")))
    assert (result.tier, result.value) == ("bubblewrap", "5"), result
    numbers = "import numpy\nint(numpy.arange(4).sum())"
    assert run_program(numbers, Limits(seconds=60, memory=2048, packages=("numpy",)), tiers=["bubblewrap"]).value == 6
    with pytest.raises(TrivetError, match="'nosuch' is not installed"):
        run_program(code, Limits(packages=("nosuch",)))


def test_processes_where_they_are_allowed() -> None:
    code = ("import os\nr, w = os.pipe()\npid = os.fork()\nif pid == 0:\n    os.write(w, b'child')\n    os._exit(0)\n"
            "os.waitpid(pid, 0)\nos.read(r, 10).decode()")
    for name in ("bubblewrap", "sandlock"):
        if availability(name)[name] is None:
            assert run_program(code, Limits(processes=2), tiers=[name]).value == "child"
            assert run_program(code, tiers=[name]).status == "error"


@pytest.mark.parametrize("name", ["bubblewrap", "sandlock"])
def test_what_ends_the_caller_ends_the_program(name: str) -> None:
    """Even kill -9 of the process that called leaves nothing behind."""
    if availability(name)[name] is not None:
        pytest.skip(f"{name} does not work here")
    token = f"token-{os.getpid()}-{name}"
    code = ("from trivet.sandbox import confined, run_program, Limits\nreal = confined.source()\n"
            f"confined.source = lambda: real + '\\n# {token}\\n'\n"
            f"run_program('while True: pass', Limits(seconds=50), tiers=['{name}'])")

    def alive() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and any(token in w and "def confine" in w
                                                                    for w in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    import subprocess
    import sys

    caller = subprocess.Popen([sys.executable, "-c", code])
    _until(lambda: len(alive()) >= 2)
    caller.kill()
    caller.wait()
    try:
        _until(lambda: not alive())
    finally:
        for process in alive():
            process.kill()


def _until(condition: Any, seconds: float = 40) -> None:
    for _ in range(int(seconds * 10)):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def test_a_value_of_any_form_is_told() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    wide: list[Any] = [1]
    for _ in range(60):
        wide = [wide, wide]

    class Bad:
        def __str__(self) -> str:
            raise ValueError
    for value in (deep, wide, Bad(), float("nan"), {1: Bad(), "x": {2}}, "\udcff", 10 ** 10 ** 4, [10 ** 5000]):
        data, shown = plain(value)
        assert len(json.dumps(data)) < 2_000_000 and len(shown) <= 10_000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.py"
    file.write_text(PROGRAM)
    main(["sandbox", "run", str(file), "--steps", "2"])
    out = capsys.readouterr().out
    assert out.startswith("it is 16\n") and "line 2  money = 23" in out and "= 32" in out and "(monty, " in out
    file.write_text("1 / 0")
    with pytest.raises(SystemExit) as stopped:
        main(["sandbox", "run", str(file), "--json-output"])
    assert stopped.value.code == 1 and json.loads(capsys.readouterr().out)["error"]["type"] == "ZeroDivisionError"
    main(["sandbox", "check"])
    assert capsys.readouterr().out.startswith("monty       works")
