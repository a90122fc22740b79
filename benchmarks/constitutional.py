"""What the constitutional recipe does: fewer harmful answers, at what price, by which judge (Bai et al. 2022).

Runs recipes/constitutional.yaml, then measures what it made with judges that took no part in it: attack success on
held-out topics by rule and by a reader, over-refusal on XSTest by rule, answers to ordinary prompts by a reward model
of other people's judgements (PandaLM). And it asks each kind of judge about pairs that people judged.

    python benchmarks/constitutional.py --data ../shared/data [--json FILE] [--images DIR] [--quick]
        [--only recipe judges helpful reading analyse] [--folder DIR] [--readings FILE]

Everything stands in one folder, and the same command goes on where it was interrupted. `reading` writes answers before
and after in one shuffled file without saying which is which; what a reader says of them is read from --readings: JSON,
by id true where the answer helps with something harmful.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from common import load_average, options, report

PARTS = ("recipe", "judges", "helpful", "reading", "analyse")
RECIPE = Path(__file__).parents[1] / "recipes" / "constitutional.yaml"
READ = 200
"""Answers that are read one by one, half of them of each model."""
BASE = "smollm2-135m-instruct"


def own_options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark has beside the others' options."""
    parser.add_argument("--folder", type=Path, default=Path("runs/constitutional"), help="where everything is kept")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="these parts alone")
    parser.add_argument("--images", type=Path, help="draw the calibration plot into this folder")
    parser.add_argument("--readings", type=Path, help="what a reader said of the answers in reading.jsonl")


def main() -> None:
    """All parts in order, each of what is missing."""
    chosen = options(__doc__ or "", own_options)
    load = load_average()
    folder = chosen.folder.resolve()
    if "recipe" in chosen.only:
        run_recipe(chosen, folder)
    if "judges" in chosen.only:
        ask_judges(chosen, folder)
    if "helpful" in chosen.only:
        compare_help(chosen, folder)
    if "reading" in chosen.only:
        write_reading(folder, chosen.seed, 8 if chosen.quick else READ)
    if "analyse" in chosen.only:
        from constitutional_figures import draw_calibration, figures

        found = figures(folder, chosen.readings)
        if chosen.images:
            draw_calibration(folder, chosen.images / "constitutional_calibration.png")
        report("constitutional", found, chosen, load=load)


def run_recipe(chosen: argparse.Namespace, folder: Path) -> None:
    """The recipe as shipped."""
    from trivet.pipeline import RecipeOptions, run_recipe

    run_recipe(RecipeOptions(recipe=str(RECIPE), out=folder / "recipe", set=[f"data={chosen.data.resolve()}"],
                             quick=chosen.quick))


def stage(name: str, out: Path, **settings: Any) -> Path:
    """Run one stage into its folder, unless it is there; gives the folder."""
    from trivet.stages import STAGES, run_stage

    found = STAGES[name]
    run_stage(found, found.config_type().model_validate({"out": out, **settings}))
    return out


def ask_judges(chosen: argparse.Namespace, folder: Path) -> None:
    """Each kind of judge beside people, on pairs of hh-harmless that the reward model did not learn from. The reward
    model itself was asked within the recipe."""
    human = folder / "recipe" / "people" / "heldout.jsonl"
    for name, count, judge in (
            ("log_probability", 200, {"by": BASE}),
            ("thinking", 60, {"by": BASE, "think": True, "think_tokens": 96})):
        stage("prefer", folder / "judges" / name, human=human, limit=4 if chosen.quick else count, judge=judge,
              combine="log-odds", seed=chosen.seed)


def compare_help(chosen: argparse.Namespace, folder: Path) -> None:
    """A reward model of PandaLM's judgements, which took no part before, compares answers to ordinary prompts."""
    pairs = pandalm(chosen.data / "pandalm" / "judgments.jsonl", folder / "pandalm.jsonl")
    if chosen.quick:
        pairs = shortened(pairs, 12)
    split = stage("pairs", folder / "helpful" / "pairs", input=pairs, heldout=0.25)
    judge = stage("reward", folder / "helpful" / "judge", preferences=split / "train.jsonl",
                  heldout=split / "heldout.jsonl", pool="mean", max_length=512, optimizer={"lr": 5e-4},
                  lora={"r": 16, "alpha": 32, "last_layers": 10}, seed=chosen.seed,
                  calibration={"answers": 4 if chosen.quick else 64})
    policy = json.loads((folder / "recipe" / "ppo" / "summary.json").read_text())["artifacts"]["model"]["path"]
    stage("evaluate", folder / "helpful" / "evaluate", model=str(folder / "recipe" / "ppo" / policy), against=BASE,
          suites=["prompts"], data=chosen.data.resolve(), limit=4 if chosen.quick else 160, seed=chosen.seed,
          judge={"by": str(judge / "reward")}, sampling={"temperature": 0.7, "max_new_tokens": 64})


def pandalm(source: Path, target: Path) -> Path:
    """PandaLM's judgements as preference pairs: the label is the share of the three annotators, a tie half a vote."""
    from trivet.artifacts import Preference, json_lines, write_rows

    rows = []
    for line, row in json_lines(source):
        asked = row["instruction"] + (f"\n\n{row['input']}" if row["input"].strip() else "")
        votes = [{0: 0.5, 1: 1.0, 2: 0.0}[row[f"annotator{k}"]] for k in (1, 2, 3)]
        first = sum(votes) / 3
        if first == 0.5 or row["response1"].strip() == row["response2"].strip():
            continue
        answers = [row["response1"], row["response2"]]
        chosen, rejected = answers if first > 0.5 else answers[::-1]
        if not chosen.strip() or not rejected.strip():
            continue
        prompt = hashlib.sha256(asked.encode()).hexdigest()[:16]
        rows.append(Preference(id=f"pandalm-{line}", prompt_id=prompt, prompt=[{"role": "user", "content": asked}],
                               chosen=chosen, rejected=rejected, label=max(first, 1 - first), source="pandalm"))
    write_rows(target, rows)
    return target


def shortened(path: Path, count: int) -> Path:
    """The first rows of a JSONL file, beside it."""
    short = path.with_name(f"{path.stem}-{count}.jsonl")
    short.write_text("".join(path.read_text().splitlines(keepends=True)[:count]))
    return short


def write_reading(folder: Path, seed: int, count: int) -> None:
    """reading.jsonl: as many answers of each model to held-out attacks, in an order and under ids that tell nothing."""
    from constitutional_figures import held_out_answers

    before, after = held_out_answers(folder)
    asked = sorted(before, key=lambda attack: _blind(seed, attack))[: count // 2]
    rows = [{"id": _blind(seed, f"{side}/{attack}"), "prompt": answers[attack].messages[-1].content,
             "answer": answers[attack].completions[0].text}
            for side, answers in (("before", before), ("after", after)) for attack in asked]
    keys = {_blind(seed, f"{side}/{attack}"): [side, attack] for side in ("before", "after") for attack in asked}
    (folder / "reading.jsonl").write_text("".join(json.dumps(r) + "\n" for r in sorted(rows, key=lambda r: r["id"])))
    (folder / "reading_key.json").write_text(json.dumps(keys, indent=1) + "\n")


def _blind(seed: int, what: str) -> str:
    return hashlib.sha256(f"{seed}\0{what}".encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
