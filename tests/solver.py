"""Writes an answer that obeys all constraints of an instruction: shows that there is one. Knows no check."""

from __future__ import annotations

import json

from trivet.evaluate.instructions import Instruction

POOL = ("red", "hat", "sun", "tea", "old", "dish", "lake", "moth", "oak", "den", "rain", "wave", "fig")


def solve(item: Instruction) -> str:
    """An answer, built from the constraints' families and values."""
    want = {c.family: c.values for c in item.constraints}
    if "choice" in want:
        return want["choice"][-1]
    banned = want.get("no letter", ("",))[0]
    excluded = want.get("exclude", ("",))[0]
    filler = next(w for w in POOL if (not banned or banned not in w) and w != excluded)
    extra = [w for f, times in (("include", 1), ("include twice", 2)) if f in want for w in want[f] * times]
    extra += [f"[{filler}]"] * want.get("brackets", (0,))[0]
    extra += [f"*{filler}*"] * want.get("stars", (0,))[0]
    extra += [filler.upper()] * want.get("capitals", (0,))[0]
    extra += [filler] * want.get("words at least", (0,))[0]

    if "json" in want:
        text = json.dumps({key: " ".join([filler, *extra]) for key in want["json"]})
        return text.lower() if "lower case" in want else text

    units = [filler] * max(want.get(f, (0,))[0] for f in ("sentences", "paragraphs", "bullets", "numbered", "sections"))
    units = units or [filler] * (2 if "two answers" in want else 1)
    units[0] = " ".join([units[0], *extra])
    if "two answers" in want:
        units[1] = filler if extra else f"{filler} {filler}"
    if "start" in want and not want.keys() & {"bullets", "numbered"}:
        units[0] = f"{want['start'][0]} {units[0]}"
    last = "?" if "question" in want else "."
    units = [f"{u[0].upper()}{u[1:]}{last if i == len(units) - 1 else '.'}" for i, u in enumerate(units)]

    if "bullets" in want:
        text = "\n".join(f"- {u}" for u in units)
    elif "numbered" in want:
        text = "\n".join(f"{i}. {u}" for i, u in enumerate(units, 1))
    elif "sections" in want:
        text = "\n".join(f"Section {i}\n{u}" for i, u in enumerate(units, 1))
    elif "two answers" in want:
        text = "\n******\n".join(units)
    else:
        text = " ".join(units)
    if "paragraphs" in want:
        text = "\n\n".join(units)
    if "start" in want and want.keys() & {"bullets", "numbered"}:
        text = f"{want['start'][0]}\n{text}"
    if "title" in want:
        text = f"<<{filler}>>\n{text}"
    if "repeat" in want:
        text = f"{item.request}\n{text}"
    if "end" in want:
        text += f" {want['end'][0]}"
    if "postscript" in want:
        text += f"\nP.S. {filler}."
    if "quotes" in want:
        text = f'"{text}"'
    return text.lower() if "lower case" in want else text.upper() if "upper case" in want else text
