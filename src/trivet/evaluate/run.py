"""The stage `evaluate`: every suite asked of a model, and of the base beside it; one table with intervals and tests.

    OUT/model/answers/SUITE.jsonl   what the model answered
        model/scores/SUITE.jsonl    what each item says of each measure; its presence says that the suite is finished
        base/…                      the same of the base, unless it was evaluated before
        pairs.jsonl                 what the judge says of both models' answers
        results.json, table.md      the table
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet.artifacts import Completions, atomic_write, read_rows, write_rows
from trivet.errors import TrivetError
from trivet.evaluate import results, thresholds
from trivet.evaluate.base import Measure, Score
from trivet.evaluate.catalogue import Suite, chosen, draw
from trivet.evaluate.config import EvaluateConfig
from trivet.evaluate.subject import SPEED, Subject
from trivet.evaluate.suites import prompts
from trivet.judge.ask import Judged, make_judge
from trivet.runs import Run, Summary
from trivet.training.device import Compute, prepare

SPEED_MEASURE = Measure("speed", "capable", "speed of answering on this machine", "higher", share=False,
                        unit="tokens/s", tested=False)
