"""What torchrun starts in the tests: `trivet` commands, one after the other, in the same processes.

    torchrun --nproc-per-node 2 several_processes.py FOLDER [--fail RANK]

FOLDER/commands.json holds lists of arguments. --fail: the update of that rank raises an error in the second step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trivet.cli import main


def fail_on(rank: int) -> None:
    """Let the second step of ppo fail on one rank."""
    from trivet.errors import TrivetError
    from trivet.policy import ppo

    right = ppo.update

    def wrong(*args, **kwargs):
        if args[7] == 2:
            raise TrivetError(f"planted on rank {rank}", mend="nothing")
        return right(*args, **kwargs)

    if int(os.environ["RANK"]) == rank:
        ppo.update = wrong


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    (folder / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    if "--fail" in sys.argv:
        fail_on(int(sys.argv[-1]))
    for arguments in json.loads((folder / "commands.json").read_text()):
        main(arguments)
