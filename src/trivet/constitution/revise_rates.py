"""How many revisions pass, what stops the others, and the end of a run where too few do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trivet.constitution.critique import Item
from trivet.constitution.gates import GATES, Gate
from trivet.constitution.traces import Revision
from trivet.errors import TrivetError
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.statistics import estimate

EXAMPLES = 3
SHOWN = 160
"""Characters of an example."""
MEND: dict[Gate, str] = {
    "empty": "look at the target's answers: does it speak with this chat template?",
    "cut_off": "raise --sampling.max-new-tokens",
    "broken": "lower --sampling.temperature, or take a larger target",
    "copy": "raise --gates.similarity or --samples, or take a larger reviser (--critic.by, --reviser critic)",
    "echo": "lower --few-shot, raise --gates.echo, or take a larger reviser (--critic.by, --reviser critic)",
    "talks_of_itself": "word the constitution's revision requests so that they ask for an answer alone, or give more "
                       "--few-shot dialogues",
    "refusal": "give more --samples, or check the tags of the prompts",
    "worse": "give more --samples, check the judge (docs/judges.md), or lower --gates.better",
}


def all_revisions(items: Sequence[Item]) -> list[tuple[str, Revision]]:
    """(prompt's id, revision) of all rounds."""
    return [(item.prompt.id, revision) for item in items for r in item.rounds for revision in r.revisions]


def results(items: Sequence[Item], rounds: int, seed: int) -> dict[str, Any]:
    """revise.json: shares with intervals over prompts, by gate, round and principle."""
    rows = all_revisions(items)
    judged = [(id, r.better) for id, r in rows if r.better is not None]
    both = [(id, r.given, r.swapped) for id, r in rows if r.given is not None and r.swapped is not None]
    return {
        "prompts": len(items), "without_answer": sum(not item.rounds for item in items), "revisions": len(rows),
        "first_ended": _share([(i.prompt.id, i.first.ended) for i in items], seed),
        "revised": _share([(i.prompt.id, i.final is not None) for i in items], seed),
        "passed": _share([(id, not r.stopped_by) for id, r in rows], seed),
        "gates": {gate: _share([(id, gate in r.stopped_by) for id, r in rows], seed) for gate in GATES},
        "rounds": [_round(items, number, seed) for number in range(1, rounds + 1)],
        "principles": _principles(items),
        "similarity": _share([(id, r.similarity) for id, r in rows], seed),
        "judged": {
            "asked": len(judged), "better": _share(judged, seed),
            # of the answer that stands first, whichever that is: 0.5 without a preference for places
            "prefers_first": _share([(id, (given + 1 - swapped) / 2) for id, given, swapped in both], seed),
            "flips": _share([(id, (given >= 0.5) != (swapped >= 0.5)) for id, given, swapped in both], seed)},
    }


def _round(items: Sequence[Item], number: int, seed: int) -> dict[str, Any]:
    there = [(i.prompt.id, i.rounds[number - 1]) for i in items if len(i.rounds) >= number]
    stopped = Counter(gate for _, r in there for revision in r.revisions for gate in revision.stopped_by)
    return {"round": number, "taken": _share([(id, r.taken is not None) for id, r in there], seed),
            "without_critique": sum(r.critique is None for _, r in there),
            "revisions": sum(len(r.revisions) for _, r in there), "stopped_by": {g: stopped[g] for g in GATES}}


def _principles(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    drawn, taken = Counter[str](), Counter[str]()
    for item in items:
        for r in item.rounds:
            drawn[r.principle] += 1
            taken[r.principle] += r.taken is not None
    return {name: {"drawn": drawn[name], "taken": taken[name]} for name in sorted(drawn)}


def _share(rows: Sequence[tuple[str, Any]], seed: int) -> dict[str, Any]:
    """The mean of values in [0, 1] with its interval over prompts; None where there are none.

    Of what is yes or no Wilson's, with n after the variance by prompts (evaluate/statistics.py): a bootstrap of a gate
    that stopped nothing would be sure of it.
    """
    if not rows:
        return {"value": None, "low": None, "high": None, "n": 0}
    measure = Measure("share", "harmless", "", "neither")
    return estimate(measure, [Score(measure=measure.key, id=str(i), group=id, value=float(value))
                              for i, (id, value) in enumerate(rows)], seed).as_dict()


# --- too few ----------------------------------------------------------------------------------------------


def require_survivors(items: Sequence[Item], least: float, file: Path) -> None:
    """Raise TrivetError where fewer than a share of the prompts came out with a revision: which gate, and examples."""
    survivors = sum(item.final is not None for item in items)
    if survivors and survivors >= least * len(items):
        return
    rows = all_revisions(items)
    stopped = Counter(gate for _, r in rows for gate in r.stopped_by)
    lines = [f"{survivors} of {len(items)} prompts came out with a revision that passes; gates.survive asks for "
             f"{least:.0%}, and for one"]
    unanswered = [item for item in items if not item.rounds]
    if unanswered:
        lines.append(f"  {len(unanswered)} prompts got an answer without a letter, which is not revised")
    mend, examples = MEND["empty"], [(item.prompt.id, item.first.text) for item in unanswered]
    if stopped:
        ((gate, count),) = stopped.most_common(1)
        lines.append(f"  the gate `{gate}` stopped {count} of {len(rows)} revisions; the others: "
                     + (", ".join(f"{g} {n}" for g, n in stopped.most_common()[1:]) or "none"))
        mend = f"{MEND[gate]}; the traces show each text"
        examples = [(id, r.text) for id, r in rows if gate in r.stopped_by]
    lines += [f"  {id}: {_short(text)!r}" for id, text in examples[:EXAMPLES]]
    raise TrivetError("\n".join(lines), file=file, field="gates.survive", mend=mend)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
