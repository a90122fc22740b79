"""Programs that a model wrote, run where they can do no harm: `run_program(code, limits) -> Result`.

Tiers, tried in this order: Monty (an interpreter without a way out), bubblewrap (namespaces of the kernel), sandlock
(Landlock and seccomp). Where none works the program is refused: it is never run as a bare process.
"""

from trivet.sandbox.base import Limits, ProgramError, Result, Step
from trivet.sandbox.run import TIERS, availability, run_program, run_program_async

__all__ = ["TIERS", "Limits", "ProgramError", "Result", "Step", "availability", "run_program", "run_program_async"]
