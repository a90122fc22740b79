"""`trivet report`: the HTML page of a run. One file, no network; read.py reads, plots.py draws, template.html lays out.

Here stand the words. A gain by the reward that the policy was trained on proves little, so the second reward model,
the distance and the length always stand beside it, and an interval that includes zero is called by its name.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet import __version__
from trivet.artifacts import atomic_write, read_json
from trivet.report import plots, read
from trivet.report.config import ReportConfig
from trivet.report.read import RunFolder, StageRun
from trivet.stages import STAGES

SHOWN, FOLDED = 12, 300
"""Prompts shown side by side, and how many more at most in the folded part."""
_HIDDEN = {"schema_version", "fingerprint", "artifacts", "stage", "seconds"}
_STOPS = {
    "steps": "the number of steps was reached", "episodes": "the number of answers was reached",
    "seconds": "the time was used up", "reward": "the target reward was reached",
    "kl": "the KL budget was spent", "plateau": "the held-out reward no longer rose",
    "guard": "the guard ended it",
}


@dataclass(frozen=True)
class Finding:
    """A line of the headline. tone: good, plain or caution."""

    term: str
    figure: str
    text: str
    tone: str = "plain"


def write_report(config: ReportConfig) -> Path:
    """Write the page of a run folder, or of one stage's folder, and return its path.

    Stages that are not finished are shown as far as they are. Raises TrivetError for a folder that holds no run,
    and for a damaged file in it.
    """
    import jinja2

    run = read.read_run(config.run)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        finalize=lambda v: plots.clean(v) if isinstance(v, str) and not hasattr(v, "__html__") else v,
        loader=jinja2.FileSystemLoader(Path(__file__).parent))
    html = environment.get_template("template.html").render(**context(run))
    path = config.out or config.run / "report.html"
    with atomic_write(path) as file:
        file.write(html)
    return path


def context(run: RunFolder) -> dict[str, Any]:
    """What the template shows."""
    # the headline is about the last policy that has been compared with its reference
    policies = run.of("ppo")[::-1]
    ppo = next((s for s in policies if read.ppo_figures(s)), policies[0] if policies else None)
    figures = read.ppo_figures(ppo) if ppo else {}
    judges = read.judges(run, ppo)
    return {
        "run": run, "version": __version__, "findings": findings(run, ppo, figures, judges),
        "lead": lead(run, ppo, figures), "rewards": [_reward_section(run, s, role) for s, role in judges],
        "policies": [_ppo_section(s) for s in run.of("ppo")], "answers": _answers(ppo) if ppo else None,
        "cost": _cost(run), "others": [_other(s) for s in run.stages if s.stage not in {"reward", "ppo"}],
        "commands": {s.name: _command(s) for s in run.stages}, "seconds": duration,
        "machines": sorted({s.cost["machine"] for s in run.stages if s.cost}),
        "total": duration(sum(s.seconds for s in run.stages)),
    }


# --- figures in words ---------------------------------------------------------------------------------


def number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """A figure with a true minus sign; thousands apart; `–` for what is not known."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:+,}" if sign else f"{value:,}"
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    return (text if float(text.replace(",", "")) else text.lstrip("+-")).replace("-", "−")


def percent(value: float | None) -> str:
    """A share, in whole percent."""
    return "–" if value is None else f"{100 * value:.0f}%"


def span(found: Mapping[str, Any], digits: int = 2, *, share: bool = False) -> str:
    """A 95% interval in words."""
    if found.get("low") is None or found.get("high") is None:
        return "no interval: it rests on one prompt"
    low, high = ((percent(v) if share else number(v, digits)) for v in (found["low"], found["high"]))
    return f"95% interval {low} to {high}"


def duration(seconds: float) -> str:
    """A time for people: 1.5 s, 4 min 14 s, 2 h 5 min."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def direction(gain: Mapping[str, Any] | None) -> str:
    """up, down, or none where the interval includes zero; unknown where there is no interval."""
    if not gain or gain.get("low") is None or gain.get("high") is None:
        return "unknown"
    return "up" if gain["low"] > 0 else "down" if gain["high"] < 0 else "none"


def unit(ppo: StageRun) -> str:
    """What rewards are measured in."""
    return "points" if ppo.setting("normalise") is False else "deviations"


# --- the headline -------------------------------------------------------------------------------------


def lead(run: RunFolder, ppo: StageRun | None, figures: Mapping[str, Any]) -> Finding:
    """Did it get better? In one or two sentences."""
    if ppo is None or not figures.get("reward_gain"):
        rewards = [s for s in run.of("reward") if s.summary and s.summary.get("accuracy")]
        if ppo is None and not run.unfinished and rewards:
            found = _accuracy(rewards[0], "")
            return Finding("", "", f"The reward model: {found.text[0].lower()}{found.text[1:]}", found.tone)
        done = len(run.stages) - len(run.unfinished)
        text = f"{done} of {len(run.stages)} stages finished." if not run.single else \
            "This stage is not finished." if run.unfinished else "This stage is finished."
        return Finding("", "", f"{text} No policy has been compared with its reference here, so nothing can be said "
                       "yet of whether a model got better.", "caution" if run.unfinished else "plain")
    gain, second = figures["reward_gain"], figures.get("second_reward_gain")
    way, other = direction(gain), direction(second)
    size = f"{number(abs(gain['value']))} {unit(ppo)} ({span(gain)})"
    text = "" if ppo.summary is not None else f"So far, after {figures['steps']} steps. "
    text += {
        "up": f"Held-out reward rose by {size}.", "down": f"It got worse: held-out reward fell by {size}.",
        "none": f"No clear change: held-out reward moved by {number(gain['value'], sign=True)} {unit(ppo)} "
                f"({span(gain)}), and this interval includes zero.",
        "unknown": f"Held-out reward moved by {number(gain['value'], sign=True)} {unit(ppo)} ({span(gain)}).",
    }[way]
    if second is None or read.same_reward(ppo):
        return Finding("", "", f"{text} That is the reward it was trained on, and no other one looked on: by itself "
                       "this does not show that the answers got better.", "caution")
    verb, end = {"up": "rose, too", "down": "fell, too"}.get(other if way == other else "", "moved"), "."
    if other == "none":
        against = second["value"] * gain["value"] < 0
        verb = "sees none, either" if way == "none" else "points the other way" if against else "does not confirm it"
        end = ", an interval that includes zero."
    elif way != other and "unknown" not in {way, other}:
        verb = "did move" if way == "none" else "says the opposite"
    elif way == other == "up":
        verb = "agrees"
    return Finding("", "", f"{text} {_second_name(run, ppo)}, which the policy was not trained on, {verb}: "
                   f"{number(second['value'], sign=True)} ({span(second)}){end}",
                   "good" if way == other == "up" else "caution")


def _second_name(run: RunFolder, ppo: StageRun) -> str:
    return "A second reward model" if run.behind(ppo.setting("evaluation", "reward")) else "A second reward"


def findings(run: RunFolder, ppo: StageRun | None, figures: Mapping[str, Any],
             judges: list[tuple[StageRun, str]]) -> list[Finding]:
    """The lines under the lead, each a figure and what it means."""
    found = [Finding("Not finished", s.name, f"The stage {s.stage} has no summary yet: {s.progress()}. It is still "
                     "at work or was interrupted; the same command goes on where it stopped.", "caution")
             for s in run.unfinished]
    if not run.single and run.summary is None and not run.unfinished:
        found.append(Finding("The run", "no summary", "Each stage below is finished, the run as a whole is not: its "
                             "recipe was interrupted between two steps, or the stages were run one by one.", "caution"))
    for check in run.of("check"):
        if check.summary and check.summary.get("capable") is False:
            found.append(Finding("Capability", "failed", "The model failed the capability check and the run went on by "
                                 "--force: expect little of what follows.", "caution"))
    if ppo is not None and figures.get("reward_gain"):
        found += [_reward_finding(figures), _second_finding(run, ppo, figures), _distance(ppo, figures),
                  _length(ppo, figures, judges)]
    for stage, role in judges:
        if stage.summary and stage.summary.get("accuracy"):
            found.append(_accuracy(stage, role, len(judges) > 1))
    slow = sorted(run.stages, key=lambda s: -s.seconds)[:3]
    found.append(Finding("Time", duration(sum(s.seconds for s in run.stages)), "In all; "
                         + ", ".join(f"{s.name} {duration(s.seconds)}" for s in slow) + "." if len(run.stages) > 1
                         else "Wall clock, interruptions not counted."))
    return found


def _reward_finding(figures: Mapping[str, Any]) -> Finding:
    gain, way = figures["reward_gain"], direction(figures["reward_gain"])
    text = f"Gain {number(gain['value'], sign=True)} ({span(gain)}), paired over {gain['n']} held-out prompts. "
    text += "The interval includes zero: this run does not show a change. " if way == "none" else ""
    text += "Below about ten prompts such an interval is too narrow. " if gain["n"] < 10 else ""
    if way == "up":
        text += "This is the very figure that PPO pushes up: a rise is what is to be expected, and no proof."
    return Finding("Held-out reward", _change(figures, "reward"), text, "plain" if way == "up" else "caution")


def _second_finding(run: RunFolder, ppo: StageRun, figures: Mapping[str, Any]) -> Finding:
    gain = figures.get("second_reward_gain")
    if gain is None or read.same_reward(ppo):
        why = "No second reward was given" if gain is None else "The second reward is one it was trained on"
        return Finding("Second opinion", "none", f"{why} (evaluation.reward): nothing here tells a better answer from "
                       "one that only pleases the reward.", "caution")
    first = next((s for s in map(run.behind, ppo.setting("reward") or []) if s), None)
    second = run.behind(ppo.setting("evaluation", "reward"))
    shared = read.shared_prompts(first, second) if first and second else None
    text = {None: f"{_second_name(run, ppo)}, only looked at.",
            0: "By a reward model trained on other prompts, only looked at."}.get(
        shared, f"By a second reward model, only looked at; {shared} of its training prompts are the first one's, too.")
    way, other = direction(figures["reward_gain"]), direction(gain)
    text += f" Gain {number(gain['value'], sign=True)} ({span(gain)}), in its own scale."
    if {way, other} == {"up", "down"} or (way == "up" and gain["value"] < 0):
        text += " It points the other way than the first: the policy may have learned to please that one."
    if other == "none":
        text += " The interval includes zero: it does not confirm a change."
    return Finding("Second opinion", _change(figures, "second_reward"), text,
                   "good" if way == other == "up" else "caution")


def _distance(ppo: StageRun, figures: Mapping[str, Any]) -> Finding:
    kl, budget = float(figures["kl"]), ppo.setting("stop", "kl")
    text = "KL of the policy to its reference: the log-ratio summed over an answer, mean over held-out answers. "
    if budget is None:
        return Finding("Distance", f"{number(kl)} nats", text + "No budget was set (stop.kl).")
    over = kl > budget
    text += f"{'Over' if over else 'Within'} the budget of {budget:g} nats" + (
        " that stop.kl sets; it is looked at on training rollouts, before each update." if over else ".")
    return Finding("Distance", f"{number(kl)} nats", text, "caution" if over else "plain")


def _length(ppo: StageRun, figures: Mapping[str, Any], judges: list[tuple[StageRun, str]]) -> Finding:
    gain, way = figures["length_gain"], direction(figures["length_gain"])
    moved = {"up": "Answers got longer", "down": "Answers got shorter",
             "none": "No clear change in length (the interval includes zero)", "unknown": "Change in length"}[way]
    text, tone = f"{moved}: {number(gain['value'], 1, sign=True)} tokens ({span(gain, 1)}). ", "plain"
    if ppo.answers:
        last = ppo.answers[max(ppo.answers)]
        share, limit = read.mean(last, "ended"), ppo.setting("sampling", "max_new_tokens")
        text += f"{percent(share)} ended by themselves"
        text += f", the rest were cut off at {limit} tokens. " if limit and share < 1 else ". "
    wins = (judges[0][0].summary or {}).get("longer_wins" if way == "up" else "shorter_wins") if judges else None
    if way in {"up", "down"} and wins and wins["value"] > 0.5:
        text += (f"Among the reward model's held-out pairs the {'longer' if way == 'up' else 'shorter'} answer wins in "
                 f"{percent(wins['value'])}: a part of the gain may be length alone.")
        tone = "caution"
    return Finding("Length", f"{_change(figures, 'length', 1)} tokens", text.strip(), tone)


def _accuracy(stage: StageRun, role: str, named: bool = False) -> Finding:
    figures = stage.summary or {}
    accuracy, longer, shorter = figures["accuracy"], figures.get("longer_wins"), figures.get("shorter_wins")
    rules = [(n, i) for n, i in (("the longer wins", longer), ("the shorter wins", shorter)) if i]
    text = f"{role.capitalize()}. " if named and role else ""
    text += f"Right on {percent(accuracy['value'])} of held-out pairs ({span(accuracy, share=True)}). "
    tone = "plain"
    if rules:
        rule, best = max(rules, key=lambda r: r[1]["value"])
        over = figures.get("accuracy_minus_length_baseline")
        text += f"The best rule by length alone, “{rule}”: {percent(best['value'])}. "
        if over and direction(over) != "up":
            text, tone = text + "It is not clearly better than that rule: the interval of the difference includes " \
                "zero." if direction(over) == "none" else text + "It is not better than that rule.", "caution"
        elif over:
            text += f"The difference, {number(100 * over['value'], 1, sign=True)} points, excludes zero."
    if accuracy.get("low") is not None and accuracy["low"] <= 0.5:
        text, tone = f"{text} It can't be told from a coin on these pairs.", "caution"
    return Finding(f"Reward model “{stage.name}”" if named else "Reward model", percent(accuracy["value"]), text, tone)


def _change(figures: Mapping[str, Any], name: str, digits: int = 2) -> str:
    before, after = figures.get(f"{name}_before") or {}, figures.get(f"{name}_after") or {}
    return f"{number(before.get('value'), digits)} → {number(after.get('value'), digits)}"


# --- the sections -------------------------------------------------------------------------------------


def _pairs(metrics: read.Rows, key: str) -> list[tuple[float, float]]:
    return [(r["step"], r[key]) for r in metrics if r.get(key) is not None and "step" in r]


def _ends(points: list[tuple[float, float]], digits: int = 2) -> str:
    """The two ends of a curve, for those who can't see it."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    return f"from {number(y0, digits)} at step {x0:g} to {number(y1, digits)} at step {x1:g}"


def _ppo_section(stage: StageRun) -> dict[str, Any]:
    answers, rows, name, words = stage.answers, stage.metrics, stage.name, unit(stage)
    rewards = [(s, i) for s, a in answers.items() if (i := read.mean_interval(a, "score"))]
    seconds = [(s, i) for s, a in answers.items() if (i := read.mean_interval(a, "second"))]
    lengths = [(s, i) for s, a in answers.items() if (i := read.mean_interval(a, "tokens"))]
    far = {s: read.mean(a, "kl") for s, a in answers.items()}
    score, kl = _pairs(rows, "score"), _pairs(rows, "kl")
    drawn: list[plots.Plot] = []
    if rows or rewards:
        ends = _ends([(s, i["value"]) for s, i in rewards]) if rewards else "not evaluated yet"
        drawn += [
            plots.draw(f"{name}-reward", "Reward by step", plots.reward_by_step(score, rewards, seconds, words),
                  f"Line chart of reward by step; held-out reward {ends}.",
                  "Bars are 95% intervals over prompts. Rollouts of a step are drawn before its update, from training "
                  "prompts." + (" The second reward is in its own scale." if seconds else "")),
            plots.draw(f"{name}-kl", "Distance from the reference by step", plots.kl_by_step(
                kl, list(far.items()), stage.setting("stop", "kl"),
                stage.setting("kl", "target") if stage.setting("kl", "adaptive") else None),
                f"Line chart of KL by step; {f'in training {_ends(kl)}' if kl else 'no step yet'}, nats."),
            plots.draw(f"{name}-frontier", "Reward against √KL", plots.reward_by_distance(
                [(r["kl"], r["score"]) for r in rows if "kl" in r and "score" in r],
                [(far[s], s, i) for s, i in rewards], [(far[s], s, i) for s, i in seconds], words),
                "Reward against the square root of KL, a dot an evaluation, with its step.",
                "What each unit of distance bought. Where the second reward turns down while the first rises, the "
                "policy is over-optimised (Gao et al. 2023)."),
            plots.draw(f"{name}-length", "Length, and share that ended by itself", plots.length_by_step(
                [(r["step"], r["length"], r["ended"]) for r in rows if {"step", "length", "ended"} <= r.keys()],
                [(s, i, read.mean(answers[s], "ended")) for s, i in lengths]),
                "Two line charts by step: tokens an answer, and the share of answers that the model ended itself."),
        ]
    labels = {"clip_fraction": "Clip fraction", "entropy": "Entropy, nats a token", "approx_kl": "KL of the update",
              "value_explained": "Critic: variance explained", "grad_norm": "Gradient norm",
              "kl_coef": "KL coefficient"}
    small = [plots.draw(f"{name}-{key}", label, plots.small_curve(points),
                        f"Line chart of {label}: {_ends(points, 3)}.")
             for key, label in labels.items() if (points := _pairs(rows, key))
             and (key != "kl_coef" or len({y for _, y in points}) > 1)]
    found = stage.summary or {}
    ended = f"Ended after {found['steps']:,} steps and {found['episodes']:,} answers: " \
            f"{_STOPS.get(found['stop'], found['stop'])} (stop={found['stop']})." if found.get("stop") else \
            f"Not finished: {stage.progress()}."
    firsts = [abs(y) for _, y in _pairs(rows, "ratio_first")]
    return {"stage": stage, "plots": drawn, "small": small, "ended": ended, "unit": words,
            "reward": ", ".join(map(str, stage.setting("reward") or [])),
            "ratio": f"{max(firsts):.2g}" if firsts else None}


def _reward_section(run: RunFolder, stage: StageRun, role: str) -> dict[str, Any]:
    figures, drawn, notes = stage.summary or {}, [], []
    path = stage.artifact("evaluation") or stage.folder / "evaluation.json"
    evaluation = read_json(path) if path.is_file() else {}
    if figures.get("accuracy"):
        lines = [(label, figures[key], own) for label, key, own in (
            ("reward model", "accuracy", True), ("… length controlled", "length_controlled_accuracy", True),
            ("the longer wins", "longer_wins", False), ("the shorter wins", "shorter_wins", False))
            if figures.get(key)]
        drawn.append(plots.draw(
            f"{stage.name}-accuracy", "Accuracy beside rules by length", plots.accuracies(lines),
            "Dot chart: " + "; ".join(f"{n} {percent(i['value'])}, {span(i, share=True)}" for n, i, _ in lines),
            "Length controlled: mean of the accuracy where the better answer is the longer one and where it is the "
            "shorter one, so that a model that only looks at length gets 50%."))
    bins = evaluation.get("reliability") or []
    error = figures.get("expected_calibration_error")
    if any(b["count"] for b in bins):
        full = [b for b in bins if b["count"]]
        lean = sum(b["count"] * (b["accuracy"] - b["confidence"]) for b in full)
        drawn.append(plots.draw(
            f"{stage.name}-reliability", "Reliability", plots.reliability(bins),
            "Reliability diagram: " + "; ".join(
                f"says {percent(b['confidence'])}, right {percent(b['accuracy'])}, {b['count']} pairs" for b in full),
            f"Expected calibration error {number(error, 3)}. On the whole it is "
            + ("right more often than it says." if lean > 0 else "surer than it is right.")))
    calibration = (stage.artifact("reward") or stage.folder / "reward") / "calibration.json"
    if calibration.is_file():
        facts = read_json(calibration)
        scores, mean, std = facts["reference_scores"], facts["mean"], facts["std"]
        drawn.append(plots.draw(
            f"{stage.name}-calibration", "Scores of the reference's answers", plots.reference_scores(scores, mean, std),
            f"Histogram of {len(scores)} raw scores, mean {number(mean, 3)}, deviation {number(std, 3)}.",
            f"{len(scores)} answers: mean {number(mean, 3)}, deviation {number(std, 3)}. Rewards are measured from "
            "here: 0 is this mean, 1 this deviation."))
    if loss := _pairs(stage.metrics, "loss"):
        drawn.append(plots.draw(f"{stage.name}-loss", "Training loss", plots.curve(loss, "loss"),
                           f"Line chart of the training loss: {_ends(loss, 3)}."))
    if stage.summary is None:
        notes.append(f"Not finished: {stage.progress()}.")
    elif not figures.get("accuracy"):
        notes.append("No held-out pairs were given: how good it is, is not known.")
    return {"stage": stage, "role": role, "plots": drawn, "notes": notes, "figures": _figures(figures),
            "finding": _accuracy(stage, role) if figures.get("accuracy") else None}


def _answers(ppo: StageRun) -> dict[str, Any] | None:
    """Answers before and after, side by side: some spread over the ranking by gain, the rest folded."""
    found = ppo.answers
    last = max(found, default=0)
    both = read.side_by_side(found[0], found[last]) if last and 0 in found else []
    if not both:
        return None
    chosen = read.spread(len(both), SHOWN)
    rest = [pair for i, pair in enumerate(both) if i not in set(chosen)]
    return {
        "step": last, "shown": [both[i] for i in chosen], "rest": rest[:FOLDED], "left_out": len(rest[FOLDED:]),
        "count": len(both), "file": f"evaluations/step-{last:05d}.jsonl", "number": number, "unit": unit(ppo),
        "plot": plots.draw(
            f"{ppo.name}-gains", "Gain by prompt", plots.gains([p["gain"] for p in both], chosen, unit(ppo)),
            f"Bar chart of the gain of {len(both)} prompts in falling order, from {number(both[0]['gain'])} to "
            f"{number(both[-1]['gain'])}.", "One bar a prompt, by these two answers; in colour: those shown below."),
        "rose": sum(p["gain"] > 0 for p in both), "fell": sum(p["gain"] < 0 for p in both),
    }


def _cost(run: RunFolder) -> dict[str, Any]:
    """The table of stages, and PPO's phases."""
    table = [{"stage": s, "time": duration(s.seconds), "cpu": duration(s.cost["cpu_seconds"]) if s.cost else "–",
              "tokens": ", ".join(f"{k} {v:,}" for k, v in s.cost["tokens"].items()) if s.cost else "",
              "memory": f"{s.cost['peak_memory_bytes'] / 2**30:.2f} GiB" if s.cost else "–",
              "attempts": (s.cost or s.state).get("attempts", 1), "started": s.cost["started"] if s.cost else "–"}
             for s in run.stages]
    timed = [(s.name, s.seconds, s.summary is not None) for s in run.stages]
    chart = plots.draw("cost", "Wall-clock time", plots.durations(timed), "Bar chart: " + "; ".join(
        f"{n} {duration(t)}" for n, t, _ in timed)) if len(timed) > 1 else None
    phases = []
    for stage in run.of("ppo"):
        tokens, spent = read.phases(stage)
        if not spent:
            continue
        rest = stage.seconds - sum(spent.values())
        total, known = max(sum(spent.values()), stage.seconds) or 1.0, set(spent)
        spent |= {"everything else": rest} if rest > 0 else {}
        phases.append({"stage": stage, "tokens": tokens, "rows": [
            (n, duration(t), percent(t / total), f"{tokens / t:,.0f}" if n in known and t > 0 else "–")
            for n, t in spent.items()],
            "plot": plots.draw(f"{stage.name}-phases", f"Phases of {stage.name}", plots.durations(
                [(n, t, n in known) for n, t in spent.items()]),
                "Bar chart: " + "; ".join(f"{n} {duration(t)}" for n, t in spent.items()))})
    return {"rows": table, "plot": chart, "phases": phases, "again": any(r["attempts"] > 1 for r in table)}


def _other(stage: StageRun) -> dict[str, Any]:
    """A stage without a section of its own: its figures, its loss, the evidence of a check."""
    loss = _pairs(stage.metrics, "loss")
    path = stage.artifact("evidence")
    return {"stage": stage, "help": STAGES[stage.stage].help if stage.stage in STAGES else "",
            "figures": _figures(stage.summary or {}),
            "evidence": read.rows(path, ("answer", "reasons")) if path else [],
            "plot": plots.draw(f"{stage.name}-loss", "Loss", plots.curve(loss, "loss"),
                          f"Line chart of the loss: {_ends(loss, 3)}.") if loss else None}


def _figures(summary: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A summary's figures as (name, words), nested ones by their path."""
    found: list[tuple[str, str]] = []
    for key, value in summary.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if (not prefix and key in _HIDDEN) or value is None:
            continue
        if isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys():
            found.append((name, f"{number(value['value'], 3)} ({span(value, 3)}; n = {value.get('n', '–')})"))
        elif isinstance(value, Mapping):
            found += _figures(value, f"{name}: ")
        elif isinstance(value, list):
            found.append((name, f"{len(value):,} entries"))
        else:
            found.append((name, number(value, 4) if isinstance(value, (int, float)) else str(value)))
    return found


def _command(stage: StageRun) -> str:
    """The command that does a stage again, elsewhere."""
    return shlex.join(["trivet", stage.stage, "--config", str(stage.folder / "config.yaml"), "--out",
                       f"runs/again/{stage.name}"])
