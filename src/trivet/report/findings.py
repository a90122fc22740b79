"""The headline of a run: did it get better, by whose word, how far did it go, what may have fooled us, what it took.

A gain by the reward that the policy was trained on proves little, so the second reward model, the distance and the
length always stand beside it, and an interval that includes zero is called by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trivet.report import read
from trivet.report.read import RunFolder, StageRun
from trivet.report.words import direction, duration, number, percent, span, unit


@dataclass(frozen=True)
class Finding:
    """A line of the headline. tone: good, plain or caution."""

    term: str
    figure: str
    text: str
    tone: str = "plain"


def lead(run: RunFolder, ppo: StageRun | None, figures: Mapping[str, Any]) -> Finding:
    """Did it get better? In one or two sentences."""
    if ppo is None or not figures.get("reward_gain"):
        rewards = [s for s in run.of("reward") if s.summary and s.summary.get("accuracy")]
        if ppo is None and not run.unfinished and rewards:
            found = accuracy_finding(rewards[0], "")
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
        "up": f"Reward on held-out prompts rose by {size}.",
        "down": f"It got worse: reward on held-out prompts fell by {size}.",
        "none": f"No clear change: reward on held-out prompts moved by {number(gain['value'], sign=True)} {unit(ppo)} "
                f"({span(gain)}), and this interval includes zero.",
        "unknown": f"Reward on held-out prompts moved by {number(gain['value'], sign=True)} {unit(ppo)} "
                   f"({span(gain)}).",
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
            found.append(accuracy_finding(stage, role, len(judges) > 1))
    agreed = next((s.summary["agreement"] for s in run.of("pairs") if s.summary and s.summary.get("agreement")), None)
    if agreed:
        found += labelers(agreed, [s.summary["accuracy"] for s, _ in judges if s.summary and s.summary.get("accuracy")])
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
    tone = "plain" if way == "up" else "caution"
    return Finding("Reward on held-out prompts", _change(figures, "reward"), text, tone)


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
    if last := ppo.answers.get(read.exported_step(ppo)):
        share, limit = read.mean(last, "ended"), ppo.setting("sampling", "max_new_tokens")
        text += f"{percent(share)} ended by themselves"
        text += f", the rest were cut off at {limit} tokens. " if limit and share < 1 else ". "
    wins = (judges[0][0].summary or {}).get("longer_wins" if way == "up" else "shorter_wins") if judges else None
    if way in {"up", "down"} and wins and wins["value"] > 0.5:
        text += (f"Among the reward model's held-out pairs the {'longer' if way == 'up' else 'shorter'} answer wins in "
                 f"{percent(wins['value'])}: a part of the gain may be length alone.")
        tone = "caution"
    return Finding("Length", f"{_change(figures, 'length', 1)} tokens", text.strip(), tone)


def accuracy_finding(stage: StageRun, role: str, named: bool = False) -> Finding:
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
        if over and direction(over) in {"none", "down"}:
            text, tone = text + "It is not clearly better than that rule: the interval of the difference includes " \
                "zero." if direction(over) == "none" else text + "It is not better than that rule.", "caution"
        elif over and direction(over) == "up":
            text += f"The difference, {number(100 * over['value'], 1, sign=True)} points, excludes zero."
    if accuracy.get("low") is not None and accuracy["low"] <= 0.5:
        word = "can't be told from" if accuracy["high"] >= 0.5 else "is worse than"
        text, tone = f"{text} It {word} a coin on these pairs.", "caution"
    return Finding(f"Reward model “{stage.name}”" if named else "Reward model", percent(accuracy["value"]), text, tone)


def labelers(agreed: Mapping[str, Any], accuracies: list[Mapping[str, Any]]) -> list[Finding]:
    """How far the labelers agree, and what that leaves for a reward model to reach. Empty where nothing is known."""
    alpha, ceiling = agreed.get("alpha"), agreed.get("leave_one_out")
    if alpha is None:
        return []
    text = f"{agreed['labelers']} labelers, {agreed['rankings']} rankings: Krippendorff's α {span(alpha)}. "
    low = alpha["value"] < 0.5
    if low:
        text += "Below 0.5: mend the prompts or the instructions before you train on these. "
    if ceiling:
        text += f"One labeler is right by the others on {percent(ceiling['value'])} of pairs "
        text += f"({span(ceiling, share=True)}): a reward model that is as good as one labeler reaches that"
        best = max((a["value"] for a in accuracies), default=None)
        text += "." if best is None else f"; the best one here reaches {percent(best)}."
    return [Finding("Agreement of labelers", f"α {number(alpha['value'])}", text.strip(),
                    "caution" if low else "plain")]


def _change(figures: Mapping[str, Any], name: str, digits: int = 2) -> str:
    before, after = figures.get(f"{name}_before") or {}, figures.get(f"{name}_after") or {}
    return f"{number(before.get('value'), digits)} → {number(after.get('value'), digits)}"
