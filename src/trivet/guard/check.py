"""`trivet guard check RUN` and `trivet guard calibrate RUN…`: the guard on the files of finished runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet.artifacts import SCHEMA_VERSION, write_json
from trivet.errors import TrivetError
from trivet.guard import read
from trivet.guard.base import StepRecord, Verdict
from trivet.guard.calibration import Calibration, Trace, fit, require_enough, save, trace
from trivet.guard.config import CalibrateConfig, CheckConfig, GuardConfig
from trivet.guard.guard import Guard, load_signals
from trivet.guard.signals import kind_of

USAGE = """\
usage: trivet guard check RUN [--calibration FILE] [--fail-if-hacked] [--out FILE.json]
                                       was the reward gamed in this run? From its files alone
       trivet guard calibrate RUN … --out FILE [--hacked RUN …] [--false-alarms 0.05]
                                       a threshold from runs that were not gamed

RUN is a folder with rollouts/*.jsonl, of `trivet ppo` or of another trainer in the same form. `trivet guard COMMAND
--help` shows every setting; docs/guides/guard.md says what the signals see and what the rate means.
"""
Parse = Callable[[type[Any], list[str], str, str], Any]
SHOWN = 12
"""Signals in the printed table; the JSON file has all."""


def guard_command(arguments: list[str], parse: Parse) -> None:
    """Run a `guard` command; prints its answer.

    parse: the command line's own reader of configurations (cli.parse). Raises TrivetError; SystemExit(1) for
    --fail-if-hacked on an alarm.
    """
    match arguments:
        case [] | ["-h"] | ["--help"]:
            print(USAGE, end="")
        case ["check", *rest]:
            rest = ["--run", *rest] if rest and not rest[0].startswith("-") else rest
            config = parse(CheckConfig, rest, "guard check", "was the reward gamed in this run?")
            found = check(config)
            show(found)
            if config.fail_if_hacked and found.alarm is not None:
                raise SystemExit(1)
        case ["calibrate", *rest]:
            rest = ["--clean", *rest] if rest and not rest[0].startswith("-") else rest
            chosen = parse(CalibrateConfig, rest, "guard calibrate", "a threshold from runs that were not gamed")
            show_calibration(calibrate(chosen), chosen)
        case _:
            raise TrivetError(f"`trivet guard {' '.join(arguments)}` is not understood",
                              mend="see `trivet guard --help`")


# --- check --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """What the guard makes of a whole run."""

    folder: Path
    records: list[StepRecord]
    verdicts: list[Verdict]
    """One a record."""
    effects: list[dict[str, float]]
    """Each signal's shift at each record."""
    notes: list[str]
    unavailable: dict[str, str]

    @property
    def alarm(self) -> int | None:
        """The place of the first record with an alarm."""
        return next((i for i, v in enumerate(self.verdicts) if v.alarm), None)

    @property
    def sentence(self) -> str:
        """Of the first alarm, else of the last record."""
        place = self.alarm
        return self.verdicts[-1 if place is None else place].sentence

    def peaks(self) -> list[dict[str, Any]]:
        """Each tested signal at its highest level: the signal, level, step and effect; the highest first."""
        best: dict[str, dict[str, Any]] = {}
        for verdict, effects in zip(self.verdicts, self.effects, strict=True):
            for key, level in verdict.levels.items():
                if key not in best or level > best[key]["level"]:
                    best[key] = {"signal": key, "level": level, "step": verdict.step, "effect": effects.get(key),
                                 "unit": kind_of(key).unit, "what": kind_of(key).why}
        return sorted(best.values(), key=lambda row: -row["level"])

    def answers(self) -> list[dict[str, Any]]:
        """The telling answers of the first alarm."""
        if self.alarm is None:
            return []
        record, verdict = self.records[self.alarm], self.verdicts[self.alarm]
        return [{"id": record.samples[i].id, "step": record.step, "source": record.source,
                 "messages": [m.model_dump() for m in record.samples[i].messages],
                 "completion": record.samples[i].completion, "score": record.scores[i]} for i in verdict.answers]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        alarm = None if self.alarm is None else self.verdicts[self.alarm].to_dict()
        return {"schema_version": SCHEMA_VERSION, "run": str(self.folder), "alarm": alarm, "sentence": self.sentence,
                "answers": self.answers(), "notes": self.notes, "unavailable": self.unavailable,
                "signals": self.peaks(),
                "verdicts": [{"source": r.source, **v.to_dict()}
                             for r, v in zip(self.records, self.verdicts, strict=True)]}


def check(config: CheckConfig) -> Checked:
    """Show a guard the records of a finished run; writes `config.out` if it is named.

    Raises TrivetError for a folder without rollouts, rows that do not fit, a calibration that can't be used.
    """
    guard = Guard(GuardConfig(calibration=config.calibration, false_alarms=config.false_alarms,
                              signals=config.signals))
    folder = read.run_folder(config.run)
    records = read.read_records(folder)
    verdicts, effects = [], []
    for record in records:
        verdicts.append(guard.observe(record))
        effects.append(guard.effects)
    found = Checked(folder, records, verdicts, effects, guard.notes(), guard.unavailable())
    if config.out is not None:
        write_json(config.out, found.to_dict())
    return found


def show(found: Checked) -> None:
    """The table of signals, the sentence, the answers, the notes."""
    from rich.markup import escape
    from rich.table import Table

    from trivet.training.progress import console

    table = Table(title=f"signals of {escape(str(found.folder))}", title_justify="left", pad_edge=False)
    wide = console.width >= 110
    for name in ("signal", "highest level", "at step", "shift", *(["what it is"] if wide else [])):
        table.add_column(name, justify="right" if name in ("highest level", "at step") else "left", no_wrap=True)
    for row in found.peaks()[:SHOWN]:
        shift = "" if row["effect"] is None else f"{row['effect']:+.2f} {row['unit']}"
        table.add_row(escape(row["signal"]), f"{row['level']:.2f}", str(row["step"]), shift,
                      *([escape(row["what"])] if wide else []))
    console.print(table)
    console.print(escape(f"{'ALARM. ' if found.alarm is not None else ''}{found.sentence}"), soft_wrap=True)
    for answer in found.answers():
        text = " ".join(answer["completion"].split())
        console.print(escape(f"  step {answer['step']}, reward {answer['score']:+.2f}: "
                             f"{text[:200]}{'…' if len(text) > 200 else ''}"), soft_wrap=True)
    for note in found.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


# --- calibrate ----------------------------------------------------------------------------------------


def calibrate(config: CalibrateConfig) -> Calibration:
    """Make a calibration from runs and write it. Raises TrivetError before anything is written."""
    require_enough(len(config.clean), bool(config.hacked), config.false_alarms)
    folders = [read.run_folder(p) for p in (*config.clean, *config.hacked)]
    _refuse_twins(folders)
    own = load_signals(config.signals)
    traces = [_trace(folder, own) for folder in folders]
    seen: dict[str, Path] = {}
    for folder, run in zip(folders, traces, strict=True):
        other = seen.setdefault(run.facts["rollouts_sha256"], folder)
        if other != folder:
            raise TrivetError(f"the same answers as in {other}", file=folder, mend="give each run once: twins make "
                              "the threshold look surer than it is")
    n = len(config.clean)
    found = fit(traces[:n], traces[n:], false_alarms=config.false_alarms,
                note=f"{n} clean and {len(config.hacked)} hacked runs by `trivet guard calibrate`")
    found.made["differing_settings"] = _differing(folders[:n])
    save(found, config.out)
    return found


def show_calibration(found: Calibration, config: CalibrateConfig) -> None:
    """What it was made from, what it chose, and what it may be used for."""
    print(f"calibration: {config.out}")
    print(f"clean runs for the threshold: {len(found.maxima)}, for floors, drifts and the choice of signals: "
          f"{len(config.clean) - len(found.maxima)}")
    print("records a run: " + ", ".join(f"{n} {source}s" for source, n in found.horizon.items()))
    for row in found.made["selection"]:
        print(f"  + {row['signal']}: {row['detected']:.0%} of the hacked runs detected, alarm at {row['alarm_at']:.0%} "
              "of the run on average")
    if found.made["left_out"]:
        print(f"left out, since not all clean runs have them: {', '.join(found.made['left_out'])}")
    if found.made["differing_settings"]:
        print("the clean runs differ in their settings, and the rate holds for such a mixture: "
              + ", ".join(found.made["differing_settings"]))
    print(found.statement(config.false_alarms))


def _trace(folder: Path, own: dict[str, Any]) -> Trace:
    records = read.read_records(folder)
    facts = read.facts(folder) | {"steps": max(r.step for r in records), "answers": sum(map(len, records))}
    return trace(str(folder), records, own, facts=facts)


def _refuse_twins(folders: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise TrivetError("this run is named twice", file=folder, mend="give each run once, as clean or as hacked")
        seen.add(folder.resolve())


def _differing(folders: Sequence[Path]) -> list[str]:
    """Settings in which runs differ, those left aside that may: seed and folder."""
    every = [read.settings_of(f) for f in folders]
    names = sorted({name for settings in every for name in settings} - {"seed", "out", "overwrite", "report_to"})
    return [n for n in names if any(s.get(n) != every[0].get(n) for s in every)]
