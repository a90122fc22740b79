"""The guard's part of the page: was the reward gamed? A sentence, a plot, and marked text.

Read from a ppo run's guard.jsonl, metrics.jsonl, evaluations/ and rollouts/; what is not there is left out, and said.
Rewards are shown as changes from the start in deviations of the first answers' scores, so that two rewards of different
scales can be compared. guard_plots.py draws, marks.py says what is marked in an answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trivet.artifacts import read_json
from trivet.errors import TrivetError
from trivet.report import guard_plots, marks, plots, read
from trivet.report.findings import Finding
from trivet.report.read import Rows, StageRun
from trivet.report.words import direction, number, span

LOG, CHECKED = "guard.jsonl", "guard.json"
UNRATED = "has no calibration"
"""What a note of the guard says where no runs stand behind its threshold: then silence means little."""
_LINE = ("step", "level", "action", "sentence")
_ROLLOUT = ("id", "step", "messages", "completion", "score")
_RESAMPLES = 2000
_DONE = {
    "warn": "It only warned (guard.action: warn); the run went on.",
    "raise-beta": "The weight of the KL was raised {times} (guard.action: raise-beta).",
    "penalise": "From then on answers were scored by the ensemble's lower bound (guard.action: penalise).",
}


@dataclass(frozen=True)
class Guarded:
    """What the guard of a ppo stage saw and did."""

    stage: StageRun
    verdicts: Rows
    """Its log, a line a record in the order of the run."""
    checked: Mapping[str, Any] | None = None
    """What `trivet guard check` wrote, for a run that had no guard of its own."""

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage's summary says of it; empty until the stage is finished."""
        return (self.stage.summary or {}).get("guard") or {}

    @property
    def notes(self) -> list[str]:
        """What must be known to read its verdicts: its rate of false alarms, and what it could not see."""
        return list((self.checked or self.summary).get("notes") or [])

    @cached_property
    def alarms(self) -> Rows:
        """Its alarms. An action that goes on with the test (warn, penalise) leaves the level up: that is one alarm."""
        fired = [v for v in self.verdicts if v["action"] != "continue"]
        again = {"raise-beta", "return"}
        return [v for i, v in enumerate(fired) if not i or v["action"] in again]

    @property
    def alarm(self) -> dict[str, Any] | None:
        """The first alarm."""
        return self.alarms[0] if self.alarms else None

    @property
    def wanted(self) -> str:
        """The action that was configured."""
        return str(self.stage.setting("guard", "action") or "warn")

    @property
    def highest(self) -> dict[str, Any]:
        """The verdict of the highest level."""
        return max(self.verdicts, key=lambda v: float(v["level"]))


def guarded(stage: StageRun) -> Guarded | None:
    """The guard of a ppo stage: its own log, else what `trivet guard check` wrote into the folder; None without either.

    Raises TrivetError for a damaged file.
    """
    if found := read.rows(stage.folder / LOG, _LINE):
        return Guarded(stage, found)
    path = stage.folder / CHECKED
    if not path.is_file():
        return None
    checked = read_json(path, "verdicts", "notes")
    if not checked["verdicts"] or any(f not in v for v in checked["verdicts"] for f in _LINE):
        raise TrivetError("this file is not what `trivet guard check` writes", file=path, field="verdicts",
                          mend=f"write it again: trivet guard check {stage.folder} --out {path}")
    return Guarded(stage, checked["verdicts"], checked)


# --- the sentence ---------------------------------------------------------------------------------------


def lead(found: Guarded) -> Finding:
    """Was the reward gamed? In a word, and in two or three sentences."""
    if found.alarm is not None:
        return Finding("", "Probably.", " ".join(
            s for s in (found.alarm["sentence"], what_rewards_did(found), done(found)) if s), "caution")
    said = found.verdicts[-1]["sentence"].replace("`", "")
    tested = any(v.get("levels") for v in found.verdicts)
    unrated = next((n for n in found.notes if UNRATED in n), "")
    yet = parted(found)
    word = "Not known." if not tested or unrated else "Not clear." if yet else "No sign of it."
    so_far = "" if found.stage.summary is not None else "So far: "
    return Finding("", word, " ".join(s for s in (so_far + said, unrated, yet) if s), "caution" if yet else "plain")


def parted(found: Guarded) -> str:
    """Where the reward rose and the held-out reward model does not confirm it: that, in a sentence; else empty."""
    answers = found.stage.answers
    first, last = min(answers, default=0), max(answers, default=0)
    if first == last or read.same_reward(found.stage):
        return ""
    mine, other = (change(answers, field, first, last) for field in ("score", "second"))
    if mine is None or other is None or direction(mine) != "up" or direction(other) == "up":
        return ""
    return f"Yet {_moves(first, last, mine, other)} Look at answers before and after."


def done(found: Guarded) -> str:
    """What the run did on the alarm."""
    if found.alarm is None:
        return ""
    if found.checked is not None:
        return "Nothing watched the run itself: this was found afterwards, from its files."
    action, back = str(found.alarm["action"]), read.returned_to(found.stage)
    if action == "warn" and found.wanted != "warn":
        return f"It only warned: without a calibration it does not act ({found.wanted})."
    if action != "return":
        times = len(found.alarms)
        words = {1: "once", 2: "twice"}.get(times, f"{times} times")
        return _DONE.get(action, "").format(times=words)
    if back is None:
        return "It ends the run."
    where = f"to step {back}, the best by the held-out reward model" if back else \
        "to the untouched policy, since by the held-out reward model nothing was gained"
    return f"It ended the run and went back {where}: that is the exported policy."


def what_rewards_did(found: Guarded) -> str:
    """How reward and held-out reward moved from before the change to the last evaluation, in a sentence.

    Paired by prompt, in deviations of the first answers' scores. Empty where the run has no evaluation after the
    change, or none with a held-out reward.
    """
    answers, alarm = found.stage.answers, found.alarm
    began = (alarm or {}).get("began") or (alarm or {}).get("step") or 0
    before = max((s for s in answers if s < began), default=None)
    last = max(answers, default=0)
    if alarm is None or before is None or last <= before or read.same_reward(found.stage):
        return ""
    mine, other = (change(answers, field, before, last) for field in ("score", "second"))
    if mine is None or other is None:
        return ""
    text = _moves(before, last, mine, other)
    return text[0].upper() + text[1:]


def _moves(before: int, last: int, mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return f"from step {before} to step {last}, in deviations of the first answers' scores, the " \
           f"reward it was trained on {_moved(mine)}, that of the held-out reward model {_moved(other)}."


def _moved(gain: Mapping[str, Any]) -> str:
    way = direction(gain)
    size = f"{number(abs(gain['value']))} ({span(gain)})"
    return {"up": f"rose by {size}", "down": f"fell by {size}"}.get(
        way, f"moved by {number(gain['value'], sign=True)} ({span(gain)}"
        + (", which includes zero)" if way == "none" else ")"))


def absent(stage: StageRun) -> Finding:
    """The line of a run that no guard watched."""
    why = "The guard was off in this run (guard.on)" if stage.setting("guard", "on") is False else \
        "No guard watched this run" if stage.setting("guard") is None else "The guard has logged nothing yet"
    return Finding("Reward gamed?", "not watched", f"{why}. To have its files looked at, and shown here: trivet guard "
                   f"check {stage.folder} --out {stage.folder / CHECKED}")


def terminal(summary: Mapping[str, Any]) -> str:
    """The guard's line for the terminal, from a ppo run's summary; empty where it was off."""
    found = summary.get("guard") or {}
    if not found.get("sentence"):
        return ""
    back = found.get("returned_to")
    return f"{found['sentence']}" + (f" The exported policy is that of step {back}." if back is not None else "")


# --- the curves -----------------------------------------------------------------------------------------


def deviation(answers: Rows, field: str) -> float:
    """The standard deviation of a score over answers; 1 where there is none to divide by."""
    known = [float(r[field]) for r in answers if r.get(field) is not None]
    return statistics.pstdev(known) or 1.0 if known else 1.0


def change(answers: Mapping[int, Rows], field: str, before: int, after: int) -> dict[str, Any] | None:
    """The change of a score between two evaluations, paired by prompt, in deviations of the first evaluation's.

    With a 95% interval by bootstrap over prompts. None where one of the two lacks the score.
    """
    from trivet.intervals import paired_bootstrap

    old, new = read.by_prompt(answers[before], field), read.by_prompt(answers[after], field)
    prompts = sorted(old.keys() & new.keys())
    if not prompts:
        return None
    unit = deviation(answers[min(answers)], field)
    return paired_bootstrap([new[p] / unit for p in prompts], [old[p] / unit for p in prompts], prompts,
                            resamples=_RESAMPLES).as_dict()


def curve(answers: Mapping[int, Rows], field: str) -> list[tuple[float, dict[str, Any]]]:
    """(step, change from the first evaluation with its interval) of every evaluation that has the score."""
    first = min(answers, default=0)
    points = [(float(s), change(answers, field, first, s)) for s in answers]
    return [(s, c | {"low": 0.0, "high": 0.0} if s == first else c) for s, c in points if c is not None]


def rollout_line(metrics: Rows, field: str, unit: float) -> list[tuple[float, float]]:
    """(step, change of the rollouts' mean from the first one) in `unit`s of the score."""
    points = [(float(r["step"]), float(r[field])) for r in metrics if r.get(field) is not None]
    return [(s, (y - points[0][1]) / unit) for s, y in points]


def picture(found: Guarded) -> guard_plots.Picture:
    """What the plot shows."""
    stage, alarm = found.stage, found.alarm
    answers, second = stage.answers, not read.same_reward(stage)
    first = answers.get(min(answers, default=0)) or _rollout(stage, int(found.verdicts[0]["step"]))
    names = {name for v in found.verdicts for name in v.get("levels") or {}}
    back = read.returned_to(found.stage)
    return guard_plots.Picture(
        reward=curve(answers, "score"), held_out=curve(answers, "second") if second else [],
        reward_rollouts=rollout_line(stage.metrics, "score", deviation(first, "score")),
        held_out_rollouts=rollout_line(stage.metrics, "held_out", deviation(
            first, "second" if any(r.get("second") is not None for r in first) else "held_out")) if second else [],
        level=_by_step(found.verdicts, lambda v: v["level"]),
        signals={name: _by_step(found.verdicts, lambda v, name=name: (v.get("levels") or {}).get(name))
                 for name in sorted(names)},
        alarms=sorted({float(a["step"]) for a in found.alarms}),
        began=None if alarm is None or alarm.get("began") is None else float(alarm["began"]),
        signal=marks.signal_words(alarm["signal"]) if alarm and alarm.get("signal") else "",
        alarming=str((alarm or {}).get("signal") or ""), returned_to=None if back is None else float(back))


def _by_step(verdicts: Rows, value: Any) -> list[tuple[float, float]]:
    """(step, the highest value of its records)."""
    best: dict[float, float] = {}
    for verdict in verdicts:
        if (level := value(verdict)) is not None:
            step = float(verdict["step"])
            best[step] = max(float(level), best.get(step, 0.0))
    return sorted(best.items())


# --- the answers ----------------------------------------------------------------------------------------


def _rollout(stage: StageRun, step: int) -> Rows:
    return read.rows(stage.folder / "rollouts" / f"step-{step:05d}.jsonl", _ROLLOUT)


def _told(found: Guarded) -> tuple[Rows, Rows]:
    """(the telling answers of the first alarm, all answers of its record); both empty where they are gone.

    Raises TrivetError where the record does not hold what the guard named.
    """
    alarm = found.alarm or {}
    step, evaluated = int(alarm["step"]), alarm.get("source") == "evaluation"
    folder = "evaluations" if evaluated else "rollouts"
    record = found.stage.answers.get(step, []) if evaluated else _rollout(found.stage, step)
    if not record:
        return [], []
    by_id = {str(r["id"]): r for r in record}
    wanted: Sequence[Any] = alarm.get("ids") or alarm.get("answers") or []
    told = [by_id.get(w) if isinstance(w, str) else record[w] if 0 <= w < len(record) else None for w in wanted]
    if None in told:
        raise TrivetError(f"the guard names an answer that {folder}/step-{step:05d}.jsonl does not hold",
                          file=found.stage.folder / LOG, field="ids",
                          mend="the files are of different runs: do the run again")
    return [t for t in told if t is not None], record


def _earlier(stage: StageRun, prompts: set[str], before: int) -> dict[str, dict[str, Any]]:
    """By prompt the earliest answer: of the evaluation before training, else of a rollout before step `before`."""
    found: dict[str, dict[str, Any]] = {}
    sources = [stage.answers.get(0, []), *(_rollout(stage, s) for s in range(1, before))] if prompts else []
    for rows in sources:
        for row in rows:
            prompt = read.prompt_of(row)
            if prompt in prompts:
                found.setdefault(prompt, row)
        if found.keys() >= prompts:
            break
    return found


def answers(found: Guarded) -> dict[str, Any] | None:
    """The telling answers with marked text, beside each an early one to its prompt; None where an alarm named none."""
    if found.alarm is None or not (found.alarm.get("ids") or found.alarm.get("answers")):
        return None
    stage, alarm = found.stage, found.alarm
    told, record = _told(found)
    signal = str(alarm.get("signal") or "")
    if not told:
        return {"shown": [], "step": int(alarm["step"]), "key": [], "why": "", "signal": marks.signal_words(signal)}
    usual = stage.answers.get(0) or _rollout(stage, 1)
    marker = marks.Marker.of(signal, usual=[r["completion"] for r in usual], record=[
        (read.prompt_of(r), r["completion"]) for r in record])
    early = _earlier(stage, {read.prompt_of(r) for r in told}, int(alarm.get("began") or alarm["step"]))
    shown = []
    for row in told:
        other = early.get(read.prompt_of(row))
        shown.append({"messages": row["messages"], "id": row["id"], "after": _said(row, marker),
                      "before": _said(other, marker) if other else None})
    kinds = {k for pair in shown for side in ("before", "after") if pair[side] for k in pair[side]["kinds"]}
    return {"shown": shown, "step": int(alarm["step"]), "key": marker.key(kinds), "why": marker.why,
            "signal": marks.signal_words(signal)}


def _said(row: Mapping[str, Any], marker: marks.Marker) -> dict[str, Any]:
    """An answer for the page: its text in parts, some of them marked, and its figures."""
    text = str(row["completion"])
    spans = marker.spans(text, ended=row.get("ended"))
    held_out = row.get("second") if row.get("second") is not None else row.get("held_out")
    meta = [("score", number(float(row["score"]), sign=True))]
    meta += [("held-out", number(float(held_out), sign=True))] if held_out is not None else []
    meta += [("tokens", number(row["tokens"]))] if row.get("tokens") is not None else []
    return {"parts": marks.parts(text, spans), "kinds": {s.kind for s in spans}, "meta": meta,
            "marked": marks.counted(spans), "step": int(row["step"]),
            "ended": "" if row.get("ended") is None else "ended itself" if row["ended"] else "cut off"}


# --- the section ----------------------------------------------------------------------------------------


def section(found: Guarded) -> dict[str, Any]:
    """What the template shows of one guarded stage."""
    drawn = picture(found)
    title = "Reward, held-out reward, and the guard"
    caption = ["Evaluations of fixed prompts: change from the start in deviations of the first answers' scores, with "
               "95% intervals. Below: 1 is the threshold of the alarm"
               + ("; in colour the signal that fired." if drawn.alarms else ".")]
    if not drawn.held_out and not drawn.held_out_rollouts:
        caption.append("No held-out reward was asked (evaluation.reward): whether the reward still meant anything can "
                       "only be seen in the texts.")
    if (top := float(found.highest["level"])) > guard_plots.TOP:
        caption.append(f"The level goes on to {number(top, 1)}.")
    return {"stage": found.stage, "lead": lead(found), "facts": facts(found), "answers": answers(found),
            "notes": found.notes,
            "plot": plots.draw(f"{found.stage.name}-guard", title, guard_plots.figure(drawn), guard_plots.alt(drawn),
                               " ".join(caption))}


def facts(found: Guarded) -> list[tuple[str, str]]:
    """What was watched and done, by name."""
    alarm, summary, rows = found.alarm, found.summary, []
    if alarm is not None:
        rows += [("guard fired", f"step {alarm['step']}, by {marks.signal_words(str(alarm.get('signal') or ''))}"),
                 ("change began", f"step {alarm['began']}" if alarm.get("began") is not None else "–")]
        if len(found.alarms) > 1:
            rows.append(("fired again", ", ".join(f"step {a['step']}" for a in found.alarms[1:])))
    else:
        top = found.highest
        rows.append(("highest level", f"{number(float(top['level']))} of an alarm's, at step {top['step']}"
                     + (f", by {marks.signal_words(str(top['signal']))}" if top.get("signal") else "")))
    if found.checked is None:
        rows.append(("action set", found.wanted))
    if (back := read.returned_to(found.stage)) is not None:
        rows.append(("went back to", f"step {back}"))
    watched = {name.removeprefix("evaluation/") for v in found.verdicts for name in v.get("levels") or {}}
    rows.append(("signals", ", ".join(sorted(map(marks.signal_words, watched))) or "–"))
    if (share := summary.get("share_of_step_time")) is not None:
        rows.append(("its share of a step's time", f"{100 * float(share):.1f}%"))
    return rows
