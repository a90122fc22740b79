"""`trivet constitution check FILE` and `trivet constitution show [FILE]`. The stages have a module each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trivet.artifacts import atomic_write
from trivet.constitution.principles import SHIPPED, Constitution, load_constitution
from trivet.errors import TrivetError

USAGE = """\
usage: trivet constitution check FILE                 is this file a sound constitution? Its hash, and how often each
                                                      principle is drawn
       trivet constitution show [FILE]                its principles in full (without FILE: the shipped one)
       trivet constitution show --out FILE.yaml       a copy of the shipped one, to be changed
{stages}

docs/guides/constitution.md says how to write one. `trivet constitution COMMAND --help` shows every setting of a stage.
"""


def constitution_command(arguments: list[str], stages: Sequence[tuple[str, str]] = ()) -> None:
    """Run a `constitution` command that is no stage; prints its answer. Raises TrivetError.

    stages: command and help of the stages that go by this name, for the usage.
    """
    match arguments:
        case [] | ["-h" | "--help"] | [_, "-h" | "--help"]:
            rows = [f"       trivet {command} …".ljust(54) + words for command, words in stages]
            print(USAGE.format(stages="\n".join(rows)), end="")
        case ["check", name] if not name.startswith("-"):
            print("\n".join(told(load_constitution(Path(name)))))
        case ["show"]:
            print("\n".join(in_full(load_constitution())))
        case ["show", "--out", name]:
            copy_shipped(Path(name))
            print(f"constitution: {name}")
        case ["show", name] if not name.startswith("-"):
            print("\n".join(in_full(load_constitution(Path(name)))))
        case _:
            raise TrivetError(f"`trivet constitution {' '.join(arguments)}` is not understood",
                              mend="see `trivet constitution --help`")


def told(constitution: Constitution) -> list[str]:
    """A constitution in lines: name, hash, the share of draws of each principle."""
    whole = sum(p.weight for p in constitution.principles)
    wide = max(len(p.name) for p in constitution.principles)
    return [f"constitution {constitution.name}: {constitution.about}".rstrip(": "),
            f"sha256 {constitution.sha256}",
            f"{len(constitution.principles)} principles, {len(constitution.few_shot)} few-shot dialogues",
            *(f"  {p.name:<{wide}}  {p.weight / whole:6.1%} of the draws" for p in constitution.principles)]


def in_full(constitution: Constitution) -> list[str]:
    """Everything that it asks of critics, revisers and judges, in lines."""
    lines = told(constitution)[:3]
    for p in constitution.principles:
        lines += ["", f"{p.name} (weight {p.weight:g})", f"  critique:   {p.critique}", f"  revision:   {p.revision}",
                  f"  preference: {p.preference}"]
    for shot in constitution.few_shot:
        lines += ["", f"few-shot dialogue, by {shot.principle}", f"  prompt:     {shot.prompt}",
                  f"  response:   {shot.response}", f"  critique:   {shot.critique}", f"  revision:   {shot.revision}"]
    return lines


def copy_shipped(path: Path) -> None:
    """Copy the shipped file, comments and all. Raises TrivetError for a file that is there already."""
    if path.exists():
        raise TrivetError("this file is there already, and it is not replaced", file=path,
                          mend="choose another name, or delete it first")
    with atomic_write(path) as file:
        file.write(SHIPPED.read_text(encoding="utf-8"))
