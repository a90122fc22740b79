"""Rewards to audit, and held-out pairs to audit them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOPICS = ["rivers", "violins", "bread", "maps", "clocks", "bees", "glass", "paper", "winds", "salt", "ships", "ink"]
CALLS: list[int] = []
"""How many samples each call of `likes_length` had."""
FAIL_AT: list[int] = []
"""Ctrl-C comes in this call."""


def likes_length(samples: Sequence[Any]) -> list[float]:
    """A reward that is gamed by every word more."""
    CALLS.append(len(samples))
    if FAIL_AT and len(CALLS) == FAIL_AT[0]:
        raise KeyboardInterrupt
    return [float(len(s.completion.split())) for s in samples]


def knows(samples: Sequence[Any]) -> list[float]:
    """A reward that knows the one right answer: whatever differs is worse."""
    return [float(s.completion == good(s.messages[-1].content.split()[3].strip("?"))) for s in samples]


def constant(samples: Sequence[Any]) -> list[float]:
    """A reward to which all is one."""
    return [0.0] * len(samples)


def good(topic: str) -> str:
    """A good answer, to which every rule applies."""
    return (f"There are about 12 kinds of {topic} that people know well. Some of them were found as early as 1710, and "
            f"the others came later. You can see the best ones in a museum of the town, where they are kept with care.")


def pairs(n: int = 36) -> list[dict[str, Any]]:
    """Held-out pairs: a good answer, and one that is none."""
    rows = []
    for i in range(n):
        topic = f"{TOPICS[i % 12]}{'' if i < 12 else i // 12}"
        rows.append({"id": f"p{i}", "prompt_id": f"p{i}",
                     "prompt": [{"role": "user", "content": f"What is there {topic}? Tell me of it."}],
                     "chosen": good(topic), "rejected": "I have no idea."})
    return rows
