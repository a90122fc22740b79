"""Conditions on which `trivet evaluate` ends with exit code 1, for CI pipelines.

    KEY > 0.3            the figure is above 0.3 (also >=, <, <=; shares may be written 30%)
    KEY worse            significantly worse than the base: Holm's rule over the table, at the table's level
    KEY worse by 0.05    worse than the base by more than 0.05, by the figures themselves, significant or not
    any worse            any measure is significantly worse than the base

Figures are in the units of results.json: shares from 0 to 1, a win rate's distance is from 0.5. A condition that
can't be checked is an error and never passes.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trivet.errors import TrivetError
from trivet.evaluate.base import Measure
from trivet.evaluate.results import Line, Results
from trivet.evaluate.table import figure

ANY = "any"
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?"
_FORMS = re.compile(rf"(?P<key>[^\s<>=]+)\s*(?:(?P<op>[<>]=?)\s*(?P<limit>{_NUMBER})|"
                    rf"(?P<worse>worse)(?:\s+by\s+(?P<by>{_NUMBER}))?)")
_EXPECTED = "KEY > NUMBER (or >=, <, <=), KEY worse, KEY worse by NUMBER, or any worse"
_FIELD = "fail_if"


@dataclass(frozen=True)
class Condition:
    """A condition as read. With `op` it is on the figure; without, on the comparison with the base."""

    text: str
    key: str
    op: str | None = None
    number: float | None = None
    """The limit of the figure, or of how much worse; None: significance decides."""


def parse(conditions: Sequence[str], measures: Sequence[Measure] | None = None, *, beside: bool = True,
          absent: Mapping[str, str] | None = None) -> list[Condition]:
    """Conditions, read and checked: `measures` are those that can be measured (None: not known yet).

    beside: there is a base to be worse than. absent: measures that there won't be, with the reason. Measures of
    lm-eval's tasks are known only once they were run, and are not checked here. Raises TrivetError for a condition that
    is none, an unknown or absent measure, a share beyond 1, `worse` without a base or of a measure in which neither
    direction is the better one.
    """
    found = [_read(text) for text in conditions]
    known = {m.key: m for m in measures or ()}
    for condition in found:
        if condition.op is None and not beside:
            raise TrivetError(f"{condition.text!r} compares with a base, and there is none", field=_FIELD,
                              mend="give the base with --against, or a condition on the figure itself: KEY > NUMBER")
        if measures is None or condition.key == ANY or ".lm_eval." in condition.key:
            continue
        if absent and condition.key in absent:
            raise TrivetError(f"{condition.text!r}: {condition.key} will not be measured: {absent[condition.key]}",
                              field=_FIELD, mend="give what it takes, or leave the condition out")
        if condition.key not in known:
            raise _unknown(condition, list(known))
        _fits(condition, known[condition.key])
    return found


def violations(results: Results, conditions: Sequence[str]) -> list[str]:
    """Those of the conditions that hold, each with the figure in words; none: all is well.

    A figure that could not be computed counts as a violation. Raises TrivetError as `parse` does, and for a measure
    that is not in the results.
    """
    broken = []
    for condition in parse(conditions, beside=results.base is not None):
        lines = results.measures if condition.key == ANY else [_line(results, condition)]
        for line in lines:
            said = _violated(condition, line)
            if said is not None:
                broken.append(f"{condition.text}: {line.key} {said}" if condition.key == ANY else
                              f"{condition.text}: {said}")
    return broken


def _read(text: str) -> Condition:
    match = _FORMS.fullmatch(text.strip())
    if match is None or (match["key"] == ANY and (match["op"] or match["by"])):
        raise TrivetError(f"{text!r} is no condition", field=_FIELD, expected=_EXPECTED,
                          mend="write it in quotes, such as --fail-if 'harmless.attack_success > 0.3'")
    number = match["limit"] or match["by"]
    condition = Condition(text, match["key"], match["op"], None if number is None else
                          float(number.rstrip("%")) / (100 if number.endswith("%") else 1))
    if condition.op is None and condition.number is not None and condition.number < 0:
        raise TrivetError(f"{text!r}: how much worse is a number from 0", field=_FIELD, mend="leave the minus out")
    return condition


def _fits(condition: Condition, measure: Measure | Line) -> None:
    """Raise TrivetError for a condition that this measure can't meet or break."""
    if measure.share and condition.number is not None and abs(condition.number) > 1:
        raise TrivetError(f"{condition.text!r}: {measure.key} is a share from 0 to 1", field=_FIELD,
                          mend=f"write {condition.number / 100:g} for {condition.number:g}%")
    if condition.op is None and measure.better == "neither":
        raise TrivetError(f"{condition.text!r}: of {measure.key} neither direction is the better one", field=_FIELD,
                          mend=f"set a limit on the figure: {measure.key} > NUMBER")
    if condition.op is None and condition.number is None and not measure.tested:
        raise TrivetError(f"{condition.text!r}: {measure.key} is not tested, so it is never significantly worse",
                          field=_FIELD, mend=f"say by how much: {measure.key} worse by NUMBER")


def _line(results: Results, condition: Condition) -> Line:
    line = results.line(condition.key)
    if line is None:
        raise _unknown(condition, [m.key for m in results.measures])
    _fits(condition, line)
    return line


def _unknown(condition: Condition, keys: Sequence[str]) -> TrivetError:
    near = difflib.get_close_matches(condition.key, keys, 3, 0.5) or \
        [k for k in keys if condition.key in k.split(".")[1:]]
    return TrivetError(f"{condition.text!r}: {condition.key!r} is not among the measures of this evaluation",
                       field=_FIELD, expected=", ".join(keys) or "no measure at all",
                       mend=f"did you mean {' or '.join(near)}?" if near else
                       "take one of these, or run the suite that measures it")


def _violated(condition: Condition, line: Line) -> str | None:
    """Why the condition holds, None where it does not."""
    if condition.op is not None:
        assert condition.number is not None
        if line.value.value is None:
            return "the figure could not be computed"
        return f"it is {figure(line.value, line)}" if _OPERATORS[condition.op](line.value.value, condition.number) \
            else None
    change = line.difference
    if condition.number is None:
        if line.verdict != "worse" or change is None:
            untested = condition.key != ANY and line.verdict == "untested"
            return "it could not be compared with the base" if untested else None
        return f"changed by {figure(change, line)}, p = {line.p_holm:.2g} after Holm's rule"
    if change is None or change.value is None:
        return "it could not be compared with the base"
    loss = -change.value if line.better == "higher" else change.value
    return f"changed by {figure(change, line)}" if loss > condition.number else None
