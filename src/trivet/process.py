"""What a process of Trivet's is set up with before torch is there. No torch."""

from __future__ import annotations

import os


def huge_pages() -> None:
    """Let torch ask for large pages (2 MB) for its large tensors, unless the environment says otherwise.

    torch reads THP_MEM_ALLOC_ENABLE at its first allocation. Without it glibc keeps large freed tensors in its heap,
    where others of nearly their size don't fit: on Linux the update of a PPO step (16 answers of 48 tokens, LoRA,
    float32) peaked at 5.4 GB and takes 3.9 with it, and 6% less time. Elsewhere nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
