"""How large the study is: on a CPU, on a GPU, and for a test that it works. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from trivet.config import EMBEDDED


@dataclass(frozen=True)
class Scale:
    """Counts of the study. What is not said here is the same at every scale."""

    name: str
    model: str = EMBEDDED
    # answers
    tokens: int = 16
    temperature: float = 0.7
    # prompts of each part (overopt/prompts.py)
    train_prompts: int = 64
    evaluation_prompts: int = 20
    proxy_prompts: int = 330
    heldout_prompts: int = 120
    gold_prompts: int = 100
    test_prompts: int = 60
    labelled: int = 4
    """Answers to each labelled prompt: six pairs."""
    pool: int = 32
    """Answers of the reference to each prompt of the policy: its mean gold, and best of n."""
    # reward models
    gold_blocks: int | None = 16
    """Blocks of the model that gold stands on; None: all. Proxies stand on fewer: less is known to them."""
    proxy_blocks: int | None = 10
    gold_layers: int | None = 8
    """Blocks that gold's adapters adapt."""
    hh_pairs: int = 400
    hh_tokens: int = 192
    gold_epochs: float = 2.0
    # runs
    steps: int = 16
    rollout: int = 16
    answers: int = 4
    every: int = 4
    """Steps between evaluations."""
    last_layers: int | None = 6
    device: str = "cpu"
    # how many runs (overopt/plan.py)
    seeds: int = 7
    """Of each of Gao's curves, and of each planted hack in evaluation."""
    clean_seeds: int = 9
    tuning_clean: int = 6
    tuning_hacked: int = 3
    false_alarms: float = 0.05


CPU = Scale("cpu")
GPU = Scale("gpu", tokens=48, train_prompts=96, evaluation_prompts=32, proxy_prompts=330, pool=64, gold_blocks=None,
            proxy_blocks=16, gold_layers=None, hh_pairs=1600, hh_tokens=512, steps=60, rollout=64, last_layers=None,
            every=5, device="cuda", seeds=10, clean_seeds=12, tuning_clean=8, tuning_hacked=5)
QUICK = Scale("quick", tokens=6, train_prompts=8, evaluation_prompts=4, proxy_prompts=10, heldout_prompts=6,
              gold_prompts=6, test_prompts=6, labelled=3, pool=4, gold_blocks=2, proxy_blocks=1, gold_layers=1,
              hh_pairs=0, gold_epochs=1.0, steps=2, rollout=4, answers=2, every=1, last_layers=1, seeds=1,
              clean_seeds=1, tuning_clean=1, tuning_hacked=1, false_alarms=0.34)
SCALES = {s.name: s for s in (CPU, GPU, QUICK)}
