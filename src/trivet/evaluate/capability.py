"""The capability check: a model too weak for the prompts is refused before anyone spends hours on aligning it.

The model answers a handful of the prompts, and each answer is judged by rule (trivet/text/rules.py): it fails if
it is empty, ends in a loop, is gibberish, or is in another script than the prompt. A model that never ends an
answer fails as a whole.

Not covered: whether an answer is right or to the point, and the wrong language in the right script. The check
finds models that can't speak (untrained, broken on conversion, quantized to death), not mediocre ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from trivet.artifacts import Prompt, Row, read_rows, write_rows
from trivet.data.chat import context_length, ensure_template, prompt_ids, require_room, stop_token_ids
from trivet.errors import TrivetError
from trivet.evaluate.config import CheckConfig
from trivet.generate.base import Engine, Generated
from trivet.generate.config import Sampling
from trivet.generate.sample import text_of
from trivet.generate.torch_engine import TorchEngine
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.runs import Run, Summary
from trivet.text.rules import gibberish, loops, off_script, word_salad
from trivet.training.device import prepare

GIBBERISH = 0.15
"""Share of words that are none from which an answer is gibberish: people's answers (hh-rlhf) reach it in 3 of
10,000, answers of the embedded model at temperature 1 in none of 180."""
STOP_PROMPTS = 4
"""Greedy answers that may show that a model can stop."""
STOP_TOKENS = 256
"""The longest of them, in tokens, unless the answers themselves may be longer."""


class Evidence(Row):
    """One answer of the check and what is wrong with it."""

    id: str
    prompt: str
    """The user's last message."""
    answer: str
    reasons: list[str] = []
    """'empty', 'looping', 'gibberish', 'off-language', 'never stopping'; none: nothing is wrong."""
    ended: bool
    tokens: int
    stop_test: bool = False
    """A long greedy answer that had to show whether the model can stop, and is not judged otherwise."""


@dataclass(frozen=True)
class Assessment:
    """What the check found. `verdict` is True for a model that may be aligned."""

    verdict: bool
    share_failed: float
    """Of the sampled answers."""
    never_stops: bool
    max_fail: float
    evidence: tuple[Evidence, ...]

    @property
    def reasons(self) -> Counter[str]:
        """How many of the sampled answers fail for what."""
        return Counter(reason for row in self.evidence if not row.stop_test for reason in row.reasons)

    @property
    def words(self) -> str:
        """The finding in a line, such as `9 of 12 answers fail (gibberish 7, empty 2), it never stops`."""
        judged = [row for row in self.evidence if not row.stop_test]
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        return (f"{sum(bool(row.reasons) for row in judged)} of {len(judged)} answers fail"
                f"{f' ({reasons})' if reasons else ''}{', and it never stops' if self.never_stops else ''}")


class CheckSummary(Summary):
    """What the stage found."""

    capable: bool
    share_failed: float
    never_stops: bool
    answers: int
    reasons: dict[str, int]
    """How many sampled answers failed for what."""
    forced: bool
    """The model failed, and `force` went on."""


def judge_answer(prompt_text: str, answer: str, ended: bool) -> list[str]:
    """What is wrong with an answer: of 'empty', 'looping', 'gibberish', 'off-language'; nothing: []. By rule alone.

    `ended`: the model ended the answer itself. A cut-off answer's torn last word is not held against it.
    """
    if not any(map(str.isalnum, answer)):
        # a row of symbols is no answer either, but where it goes on and on, that is the better word for it
        return ["looping"] if loops(answer) else ["empty"]
    judged = answer if ended or len(answer.split()) < 2 else answer.rsplit(maxsplit=1)[0]
    reasons = []
    if loops(answer):
        reasons.append("looping")
    if gibberish(judged) >= GIBBERISH or word_salad(judged):
        reasons.append("gibberish")
    if off_script(judged, prompt_text):
        reasons.append("off-language")
    return reasons


def draw_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` of the prompts (all, where there are fewer), drawn without replacement."""
    return random.Random(seed).sample(list(prompts), min(count, len(prompts)))


def assess(
    engine: Engine, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling, seed: int, max_fail: float,
    *, context: int | None = None,
) -> Assessment:
    """Let a model answer each of the prompts once, and judge the answers.

    It fails if more than `max_fail` of the answers fail, or if it never stops: no answer that is otherwise in
    order ended itself, and of up to four greedy ones, each of four times max_new_tokens (at most 256, unless
    max_new_tokens is more), none does either. `context`: the model's longest sequence; greedy answers stay in it.
    The tokenizer must have a chat template. Raises TrivetError for no prompts, or one longer than the context.
    """
    if not prompts:
        raise TrivetError("no prompt to check the model with", field="prompts", mend="give at least one prompt")
    ids = [prompt_ids(tokenizer, p.messages) for p in prompts]
    require_room([len(i) for i in ids], sampling.max_new_tokens, context, file=None, ids=[p.id for p in prompts])
    answers = engine.generate(ids, sampling, n=1, seeds=[seed + i for i in range(len(ids))])
    evidence = [_evidence(p, a[0], tokenizer, sampling) for p, a in zip(prompts, answers, strict=True)]
    for row in evidence:
        row.reasons = judge_answer(row.prompt, row.answer, row.ended)
    failed = sum(bool(row.reasons) for row in evidence) / len(evidence)
    never_stops = False
    if not any(row.ended and not row.reasons for row in evidence):
        greedy = _greedy(engine, tokenizer, prompts[:STOP_PROMPTS], ids[:STOP_PROMPTS], sampling, context)
        never_stops = not any(row.ended for row in greedy)
        for row in greedy:
            row.reasons = ["never stopping"] if never_stops else []
        evidence += greedy
    return Assessment(verdict=failed <= max_fail and not never_stops, share_failed=failed, never_stops=never_stops,
                      max_fail=max_fail, evidence=tuple(evidence))


def _greedy(engine: Engine, tokenizer: Any, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]],
            sampling: Sampling, context: int | None) -> list[Evidence]:
    """Long greedy answers, whose only question is whether they end."""
    budget = max(sampling.max_new_tokens, min(4 * sampling.max_new_tokens, STOP_TOKENS))
    if context is not None:
        budget = min(budget, context - max(map(len, ids)))
    greedy = Sampling(temperature=0, max_new_tokens=budget, stop=sampling.stop)
    answers = engine.generate(ids, greedy, n=1, seeds=[0] * len(ids))
    return [_evidence(p, a[0], tokenizer, greedy, stop_test=True) for p, a in zip(prompts, answers, strict=True)]


def _evidence(prompt: Prompt, generated: Generated, tokenizer: Any, sampling: Sampling,
              stop_test: bool = False) -> Evidence:
    """An answer that nothing was said of yet."""
    return Evidence(
        id=f"{prompt.id}/stop" if stop_test else prompt.id, prompt=prompt.messages[-1].content,
        answer=text_of(tokenizer, generated, sampling.stop),
        ended=generated.ended, tokens=len(generated.token_ids), stop_test=stop_test)


# --- the verdict --------------------------------------------------------------------------------------


def refuse(assessment: Assessment) -> NoReturn:
    """Raise a TrivetError that shows up to four of the answers and what is wrong with them."""
    bad = [row for row in assessment.evidence if row.reasons]
    # where both kinds are there, show some of each
    bad.sort(key=lambda row: row.stop_test)
    shown = bad[:3] + bad[-1:] if len(bad) > 4 else bad
    lines = [f"\n  prompt: {_short(row.prompt)}\n  answer: {_short(row.answer) or '(nothing)'}"
             f"\n          ↑ {', '.join(row.reasons)}" for row in shown]
    mend = "start from an instruction-tuned model that can answer such prompts, or teach this one by `trivet sft`"
    if assessment.never_stops and assessment.share_failed <= assessment.max_fail:
        mend += "; if its answers are meant to be long, raise --sampling.max-new-tokens"
    raise TrivetError(
        f"this model can't answer such prompts: {assessment.words}{''.join(lines)}", field="model",
        expected=f"at most {assessment.max_fail:.0%} of the answers empty, looping, gibberish or off-language, "
        "and some that end", mend=f"{mend}; --force goes on all the same")


def _short(text: str, width: int = 100) -> str:
    """A text on one line, cut to `width` characters, what no terminal should be sent made visible."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= width else line[: width - 1] + "…"


def run(config: CheckConfig, run: Run) -> CheckSummary:
    """Check config.model on `count` of the prompts; the answers go to evidence.jsonl, whatever the verdict.

    Raises TrivetError, with evidence, for a model that fails, unless config.force; for a prompt longer than the
    context.
    """
    compute = prepare(config.device, run.meter)
    prompts = draw_prompts(read_rows(config.prompts, Prompt), config.count, config.seed)
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if ensure_template(tokenizer):
        print("the model has no chat template; a plain User:/Assistant: one is used")
    model = load_causal_lm(source, compute.trunk, compute.device)
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer), tokenizer=tokenizer)
    print(f"{config.model} answers {len(prompts)} of the prompts", flush=True)
    found = assess(engine, tokenizer, prompts, config.sampling, config.seed, config.max_fail,
                   context=context_length(model))
    lengths = [len(prompt_ids(tokenizer, p.messages)) for p in prompts]
    again = sum(row.stop_test for row in found.evidence)  # the first ones, to see whether the model can stop
    run.meter.count("prompt", sum(lengths) + sum(lengths[:again]))
    run.meter.count("generated", sum(row.tokens for row in found.evidence))
    write_rows(run.path("evidence.jsonl"), found.evidence)
    run.artifact("evidence", run.path("evidence.jsonl"))
    if not found.verdict:
        if not config.force:
            refuse(found)
        print(f"this model can't answer such prompts: {found.words}; going on all the same (--force)")
    return CheckSummary(
        capable=found.verdict, share_failed=round(found.share_failed, 4), never_stops=found.never_stops,
        answers=sum(not row.stop_test for row in found.evidence), reasons=dict(found.reasons),
        forced=not found.verdict)
