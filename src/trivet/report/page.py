"""`trivet report`: the HTML page of a run. One file, no network; read.py reads, plots.py draws, template.html lays out.

findings.py writes the headline, words.py says figures in words; here are the sections.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet import __version__
from trivet.artifacts import atomic_write, read_json
from trivet.report import audit, guard, lifecycle, lifecycle_chart, plots, read, tradeoff
from trivet.report.config import ReportConfig
from trivet.report.findings import Finding, accuracy_finding, findings, lead
from trivet.report.read import RunFolder, StageRun
from trivet.report.words import duration, number, percent, span, unit
from trivet.stages import STAGES

if TYPE_CHECKING:
    import jinja2

SHOWN, FOLDED = 12, 300
"""Prompts shown side by side, and how many more at most in the folded part."""
_HIDDEN = {"schema_version", "fingerprint", "artifacts", "stage", "seconds"}
_STOPS = {
    "steps": "the number of steps was reached", "episodes": "the number of answers was reached",
    "seconds": "the time was used up", "reward": "the target reward was reached",
    "kl": "the KL budget was spent", "plateau": "the reward on held-out prompts no longer rose",
    "guard": "the guard ended it",
}


def write_report(config: ReportConfig) -> Path:
    """Write the page of a run folder, or of one stage's folder, and return its path.

    Stages that are not finished are shown as far as they are. Raises TrivetError for a folder that holds no run,
    and for a damaged file in it.
    """
    run = read.read_run(config.run)
    html = environment().get_template("template.html").render(**context(run))
    path = config.out or config.run / "report.html"
    with atomic_write(path) as file:
        file.write(html)
    return path


def environment() -> jinja2.Environment:
    """The templates of this package; what is filled in is escaped and made safe for HTML."""
    import jinja2

    return jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        finalize=lambda v: plots.clean(v) if isinstance(v, str) and not hasattr(v, "__html__") else v,
        loader=jinja2.FileSystemLoader(Path(__file__).parent))


def context(run: RunFolder) -> dict[str, Any]:
    """What the template shows."""
    # the headline is about the last policy that has been compared with its reference
    policies = run.of("ppo")[::-1]
    ppo = next((s for s in policies if read.ppo_figures(s)), policies[0] if policies else None)
    figures = read.ppo_figures(ppo) if ppo else {}
    judges = read.judges(run, ppo)
    watched = {s.name: found for s in run.of("ppo") if (found := guard.guarded(s))}
    audited = {s.name: told for s in run.of("audit") if (told := audit.audit(s)) is not None}
    weighed = {s.name: shown for s in run.of("tradeoff") if (shown := tradeoff.tradeoff(s)) is not None}
    alone = next(iter(audited.values())) if audited and run.single else None
    return {
        "run": run, "version": __version__,
        "findings": [*findings(run, ppo, figures, judges), *_looked_at(run, watched, audited),
                     *(tradeoff.finding(s, weighed[s.name]) for s in run.stages if s.name in weighed)],
        "lead": audit.lead(alone) if alone else lead(run, ppo, figures),
        "rewards": [_reward_section(run, s, role) for s, role in judges],
        "gamed": guard.lead(watched[ppo.name]) if ppo is not None and ppo.name in watched else None,
        "guards": [guard.section(g) for g in watched.values()], "headline": ppo.name if ppo is not None else "",
        "audits": [audit.section(s, audited[s.name], run.single) for s in run.stages if s.name in audited],
        "tradeoffs": [tradeoff.section(s, weighed[s.name]) for s in run.stages if s.name in weighed],
        "policies": [_ppo_section(s) for s in run.of("ppo")], "answers": _answers(ppo) if ppo else None,
        "cost": _cost(run), "commands": {s.name: _command(s) for s in run.stages}, "seconds": duration,
        "others": [_other(s) for s in run.stages if s.stage not in {"reward", "ppo"}
                   and s.name not in audited | weighed],
        "machines": sorted({s.cost.machine for s in run.stages if s.cost}),
        "total": duration(sum(s.seconds for s in run.stages)),
    }


def _looked_at(run: RunFolder, watched: Mapping[str, guard.Guarded], audited: Mapping[str, Any]) -> list[Finding]:
    """The lines of audits, and of policies that no guard watched; a guard's own word stands above all lines."""
    return [*(audit.finding(s, audited[s.name]) for s in run.stages if s.name in audited),
            *(guard.absent(s) for s in run.of("ppo") if s.name not in watched)]


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
                  f"Line chart of reward by step; on held-out prompts {ends}.",
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
              "kl_coef": "KL coefficient", "ptx_loss": "Loss on earlier data (ptx)"}
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
            "finding": accuracy_finding(stage, role) if figures.get("accuracy") else None}


def _answers(ppo: StageRun) -> dict[str, Any] | None:
    """Answers before and after, side by side: some spread over the ranking by gain, the rest folded."""
    found = ppo.answers
    last = read.exported_step(ppo)
    both = read.side_by_side(found[0], found[last]) if last and {0, last} <= found.keys() else []
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
    """The table of stages, the chart of the run's life, and PPO's phases."""
    found = lifecycle.build(run)
    cells = lifecycle.columns(found.stages)
    table: list[dict[str, Any]] = [
        {"stage": s, "cells": [c[place] for c in cells.values()],
         "tokens": ", ".join(f"{k} {v:,}" for k, v in s.cost.tokens.items()) if s.cost else "",
         "attempts": s.cost.attempts if s.cost else s.state.get("attempts", 1),
         "started": s.cost.started if s.cost else "–"}
        for place, s in enumerate(run.stages)]
    life = plots.draw("lifecycle", "What each phase cost, and what it bought", lifecycle_chart.figure(found),
                      lifecycle_chart.alt(found), " ".join(f"{n[0].upper()}{n[1:]}." for n in found.notes)) \
        if len(found.phases) > 1 else None
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
    return {"rows": table, "heads": list(cells), "plot": chart, "life": life, "phases": phases,
            "again": any(r["attempts"] > 1 for r in table)}


def _other(stage: StageRun) -> dict[str, Any]:
    """A stage without a section of its own: its figures, its loss, a check's evidence, an evaluation's table."""
    loss = _pairs(stage.metrics, "loss")
    table = _evaluation(stage.folder) if stage.stage == "evaluate" and stage.summary is not None else None
    path = stage.artifact("evidence")
    return {"stage": stage, "help": STAGES[stage.stage].help if stage.stage in STAGES else "",
            "figures": _figures({k: v for k, v in (stage.summary or {}).items() if not table or k != "measures"}),
            "table": table,
            "evidence": read.rows(path, ("answer", "reasons")) if path else [],
            "plot": plots.draw(f"{stage.name}-loss", "Loss", plots.curve(loss, "loss"),
                          f"Line chart of the loss: {_ends(loss, 3)}.") if loss else None}


def _evaluation(folder: Path) -> dict[str, Any]:
    """The table of a finished evaluation."""
    from trivet.evaluate.results import read as read_results
    from trivet.report.evaluation import shown_table

    return shown_table([read_results(folder)])


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
