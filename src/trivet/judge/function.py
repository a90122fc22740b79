"""A function of the user's as a judge: `package.module:function`."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trivet.artifacts import sha256_file
from trivet.errors import TrivetError
from trivet.judge.ask import call, kind_of
from trivet.judge.cache import Keep, gather
from trivet.judge.cases import Case
from trivet.judge.config import Judging
from trivet.judge.rewards import load_function

CHUNK = 64  # cases a call: what an interruption costs at most


class FunctionJudge:
    """Cases in, probabilities out, by a function; what it gives is checked.

    Its verdicts are kept under the sha256 of the file it stands in: they are asked anew when that file changes, but
    not when a module that it imports does.
    """

    grades, symmetric, sees_ids, reads_criterion = True, False, True, True

    def __init__(self, spec: str, function: Callable[..., Any], field: str = "judge") -> None:
        self.name, self.function, self.field = spec, function, field

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """None for a function without a source file, such as a built-in one."""
        file = source_file(self.function)
        return None if file is None else {"kind": "function", "spec": self.name, "source": sha256_file(file)}

    def ask(self, cases: Sequence[Case], keep: Keep) -> None:
        """See Asking. Raises TrivetError where the function raises, or gives anything but probabilities."""
        for start in range(0, len(cases), CHUNK):
            part = cases[start : start + CHUNK]
            keep(list(enumerate(call(self._guarded, part, self.name, field=self.field), start)))

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        """See Judge."""
        return gather(self, cases)

    def _guarded(self, cases: Sequence[Case]) -> Any:
        try:
            return self.function(cases)
        except TrivetError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise TrivetError(f"{self.name} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})",
                              field=self.field, mend="mend the function (--debug shows the traceback)") from error


def source_file(function: Callable[..., Any]) -> Path | None:
    """The file in which a function stands, None where it stands in none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:  # an object with __call__: its class stands in a file
        try:
            file = inspect.getsourcefile(type(function))
        except TypeError:
            return None
    return Path(file) if file is not None and Path(file).is_file() else None


def function_sources(**judges: Judging) -> dict[str, str]:
    """The sha256 of the file in which a judge's function stands, as `FIELD.source`; for a stage's fingerprint.

    judges: settings by field. Those that name no function, or one without a file, give nothing. Raises TrivetError
    for a function that can't be imported.
    """
    found = {}
    for field, settings in judges.items():
        if settings.by is not None and kind_of(settings.by) == "function":
            file = source_file(load_function(settings.by, field=f"{field}.by"))
            if file is not None:
                found[f"{field}.source"] = sha256_file(file)
    return found
