"""What a student learns from: whose tokenizer, which answers, and who says what of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivet.artifacts import Message, Prompt, read_rows
from trivet.compress.distill_config import DistillConfig
from trivet.compress.endpoint_teacher import TOP, ask_teacher, taught, token_numbers
from trivet.compress.stored import StoredLogits, StoredRow, key_of, store
from trivet.compress.students import parameters
from trivet.compress.teachers import ModelTeacher, StoredTeacher, Teacher, soft_rows
from trivet.compress.vocabulary import require_same_vocabulary, vocabulary_sha256
from trivet.data.chat import chat_text, context_length, ensure_template, prompt_ids, require_room
from trivet.data.supervised import Conversation, Example, read_examples, tokenize
from trivet.errors import TrivetError
from trivet.generate.endpoint import Endpoints
from trivet.generate.writing import Ask, Written, check_writer, make_writer
from trivet.models.source import ModelSource, load_causal_lm, load_tokenizer, resolve, weights_sha256
from trivet.runs import Run
from trivet.training.device import Compute
from trivet.training.progress import bar
from trivet.training.ranks import here

KEPT = "what it has written is kept"


@dataclass
class Lessons:
    """All that training needs but the student itself."""

    tokenizer: Any
    examples: list[Example]
    heldout: list[Example]
    basis: ModelSource
    """What the student is made of."""
    source: ModelSource
    """What the student is a smaller form of: the teacher, where it is a model here, else the basis."""
    teacher: Teacher | None
    """None: hard labels alone."""
    model: Any | None
    """The teacher's model, where it is in memory."""
    teacher_parameters: int | None
    bytes_per_token: int | None
    """Of stored logits."""


def prepare_lessons(config: DistillConfig, compute: Compute, run: Run) -> Lessons:
    """Read the data, let the teacher answer what has no answers, store its logits where that is asked for.

    Raises TrivetError for different vocabularies, data that does not fit, and whatever a teacher can't do.
    """
    local = _resolved(config.teacher.by, "teacher.by") if config.teacher.by and not config.endpoint else None
    if config.endpoint:
        check_writer(config.teacher, field="teacher")
    basis = _resolved(config.student.by, "student.by") if config.student.by else local
    assert basis is not None  # the configuration sees to it
    tokenizer: Any = load_tokenizer(basis)
    if local is not None:
        tokenizer = _shared_tokenizer(local, basis, tokenizer)
    if ensure_template(tokenizer):
        print("the model has no chat template; a plain User:/Assistant: one is used")
    given = [] if config.data is None else read_examples(config.data, tokenizer, config.max_length,
                                                         setting="max-length")
    heldout = [] if config.heldout is None else read_examples(config.heldout, tokenizer, config.max_length,
                                                              setting="max-length")
    prompts = [] if config.prompts is None else read_rows(config.prompts, Prompt, limit=config.limit)
    _refuse_overlap(given, heldout, config.heldout)
    if config.endpoint:
        return _from_endpoint(config, prompts, heldout, tokenizer, basis, run)
    if local is None:
        return _from_stored(config, given, heldout, tokenizer, basis)
    model = load_causal_lm(local, compute.trunk, compute.device)
    context = context_length(model)
    if context is not None and config.max_length > context:
        raise TrivetError(f"max_length is {config.max_length}, the teacher's context {context}", field="max_length",
                          mend=f"--max-length {context} at most")
    found = Lessons(tokenizer, given, heldout, basis, local, None, model, parameters(model), None)
    if prompts:
        found.examples = [*given, *_answered(config, prompts, found, compute, run)]
        _refuse_overlap(found.examples, heldout, config.heldout)
    if config.teacher.top_k is not None:
        _store(config, found, local, run)
    elif config.alpha:
        found.teacher = ModelTeacher(model)
    elif not heldout:
        found.model = None  # nobody asks it anything more
    return found


def _resolved(name: str, field: str) -> ModelSource:
    try:
        return resolve(name)
    except TrivetError as error:
        raise TrivetError(**error.said | {"field": field}) from None


def _shared_tokenizer(teacher: ModelSource, basis: ModelSource, own: Any) -> Any:
    """The tokenizer for both: the teacher's, whose chat template its soft labels are good for."""
    theirs = load_tokenizer(teacher)
    require_same_vocabulary(theirs, own, teacher.name, basis.name)
    if theirs.chat_template is None:
        return own
    if own.chat_template not in (None, theirs.chat_template):
        print("the student's chat template is not the teacher's: it learns, and is saved with, the teacher's")
    return theirs


def _refuse_overlap(train: Sequence[Example], heldout: Sequence[Example], file: Path | None) -> None:
    """Raise TrivetError for a held-out row that is trained on, be it with another answer."""
    seen = {question(e) for e in train}
    shared = [i for i, e in enumerate(heldout) if question(e) in seen]
    if shared:
        raise TrivetError(f"{len(shared)} held-out rows begin as rows to train on do (the first: row {shared[0] + 1})",
                          file=file, field="heldout", mend="split the data by prompt")


def question(example: Example) -> tuple[int, ...]:
    """The tokens before the first that is to learn; of plain text, where all are, all of them."""
    start = example.written.index(True) if True in example.written else len(example.ids)
    return example.ids[:start] or example.ids


# --- a model here -------------------------------------------------------------------------------------------------


def _answered(config: DistillConfig, prompts: Sequence[Prompt], lessons: Lessons, compute: Compute, run: Run
              ) -> list[Example]:
    """Prompts with the teacher's answers; one that is cut off at its length has no end to learn."""
    ids = [prompt_ids(lessons.tokenizer, p.messages) for p in prompts]
    room = min(config.max_length, context_length(lessons.model) or config.max_length)
    require_room([len(i) for i in ids], config.sampling.max_new_tokens, room, file=config.prompts,
                 ids=[p.id for p in prompts])

    def write() -> list[Written]:
        assert config.teacher.by is not None
        writer = make_writer(config.teacher, compute, seed=config.seed, folder=run.path("teacher"), field="teacher",
                             count=run.meter.count, loaded={config.teacher.by: (lessons.model, lessons.tokenizer)})
        return writer([Ask(p.id, tuple(p.messages)) for p in prompts], config.sampling)

    texts = here().broadcast(write() if here().main else None)
    assert texts is not None
    return with_answers(lessons.tokenizer, prompts, texts, config)


def with_answers(tokenizer: Any, prompts: Sequence[Prompt], texts: Sequence[Written], config: DistillConfig
                 ) -> list[Example]:
    """Examples of prompts and answers to them; empty answers are left out, and how many there were is said."""
    found: list[Example] = []
    empty = 0
    for number, (prompt, written) in enumerate(zip(prompts, texts, strict=True), 1):
        if not written.text.strip():
            empty += 1
        elif written.ended:
            turns = [*prompt.messages, Message(role="assistant", content=written.text)]
            assert config.prompts is not None
            found += tokenize([Conversation(number, turns, True)], tokenizer, config.max_length, config.prompts)
        else:
            # the template would close it with an end that the teacher did not write
            head = chat_text(tokenizer, prompt.messages, open_answer=True)
            before = tokenizer(head, add_special_tokens=False)["input_ids"]
            answer = tokenizer(written.text, add_special_tokens=False)["input_ids"]
            ids = [*before, *answer][: config.max_length]
            found.append(Example(tuple(ids), (False,) * len(before) + (True,) * (len(ids) - len(before))))
    if empty:
        print(f"the teacher gave no text for {empty} of {len(prompts)} prompts: they are left out", flush=True)
    _require_some(found, config)
    return found


def _require_some(examples: Sequence[Example], config: DistillConfig) -> None:
    if not examples:
        raise TrivetError("the teacher answered nothing to any prompt", file=config.prompts, field="teacher",
                          mend="give other prompts, or a teacher that answers them")


def _store(config: DistillConfig, lessons: Lessons, source: ModelSource, run: Run) -> None:
    """Store the teacher's top k, and let it go where nothing else needs it."""
    model, pad, k = lessons.model, int(lessons.tokenizer.pad_token_id), config.teacher.top_k
    assert model is not None and k is not None
    vocabulary = int(model.config.get_text_config().vocab_size)
    if k > vocabulary:
        raise TrivetError(f"{k} tokens are to be kept of a vocabulary of {vocabulary}", field="teacher.top_k",
                          mend=f"give a number up to {vocabulary}, or leave it out for whole distributions")
    temperatures = list(dict.fromkeys([1.0, config.temperature]))

    def soft(part: Sequence[Example]) -> list[StoredRow]:
        return soft_rows(model, part, pad, k, temperatures, told=lambda n: run.meter.count("scored", n))

    _written_once(config, lessons, soft, run, teacher=source.name, teacher_sha256=weights_sha256(source.folder),
                  vocabulary=vocabulary, k=k, temperatures=temperatures)
    if not lessons.heldout:  # else it is asked again when the student is compared with it
        lessons.model = None


def _written_once(config: DistillConfig, lessons: Lessons, soft: Any, run: Run, *, teacher: str,
                  teacher_sha256: str | None, vocabulary: int, k: int, temperatures: list[float]) -> None:
    """Store soft labels by rank 0, declare them, and let them teach."""
    folder = run.path("logits")
    if here().main:
        with bar("store logits", len(lessons.examples)) as progress:
            index = store(folder, lessons.examples, soft, teacher=teacher, teacher_sha256=teacher_sha256,
                          vocabulary=vocabulary, vocabulary_sha256=vocabulary_sha256(lessons.tokenizer), top_k=k,
                          temperatures=temperatures, progress=progress)
        size = sum((folder / name).stat().st_size for name in index.shards)
        print(f"stored the {k} most probable tokens of {index.positions:,} positions: {index.bytes_per_position} bytes "
              f"a position, {size / 1e6:.1f} MB", flush=True)
    here().barrier()
    run.artifact("logits", folder)
    _teach(config, lessons, StoredLogits(folder))


def _teach(config: DistillConfig, lessons: Lessons, logits: StoredLogits) -> None:
    lessons.bytes_per_token = logits.index.bytes_per_position
    if config.alpha and not config.store_only:
        bucket = config.teacher.tail == "bucket"
        logits.require(vocabulary_sha256(lessons.tokenizer), config.temperature if bucket else None, lessons.examples)
        lessons.teacher = StoredTeacher(logits, config.temperature, config.teacher.tail)


# --- what was stored, and an endpoint -----------------------------------------------------------------------------


def _from_stored(config: DistillConfig, examples: list[Example], heldout: list[Example], tokenizer: Any,
                 basis: ModelSource) -> Lessons:
    assert config.teacher.stored is not None
    found = Lessons(tokenizer, examples, heldout, basis, basis, None, None, None, None)
    _teach(config, found, StoredLogits(config.teacher.stored))
    return found


def _from_endpoint(config: DistillConfig, prompts: list[Prompt], heldout: list[Example], tokenizer: Any,
                   basis: ModelSource, run: Run) -> Lessons:
    assert config.teacher.by is not None and config.teacher.model is not None
    ids = [prompt_ids(tokenizer, p.messages) for p in prompts]
    require_room([len(i) for i in ids], config.sampling.max_new_tokens + 1, config.max_length, file=config.prompts,
                 ids=[p.id for p in prompts])
    k = config.teacher.top_k or TOP
    client = Endpoints.of(run).client(config.teacher.by, config.teacher.model, config.teacher, field="teacher",
                                      kept=KEPT)
    replies = here().broadcast(ask_teacher(client, prompts, config.sampling, run.path("teacher"), k=k,
                                           seed=config.seed) if here().main else None)
    assert replies is not None
    numbers = token_numbers(tokenizer)
    lessons = [taught(r, p, tokenizer, numbers, client.name, k) for r, p in zip(replies, prompts, strict=True)]
    good = {key_of(t.example): t for t in lessons if t is not None}
    if len(good) < len(prompts):
        print(f"{len(prompts) - len(good)} of {len(prompts)} prompts have no answer of their own: they are left out",
              flush=True)
    examples = [t.example for t in good.values()]
    _require_some(examples, config)
    _refuse_overlap(examples, heldout, config.heldout)
    found = Lessons(tokenizer, examples, heldout, basis, basis, None, None, None, None)
    _written_once(config, found, lambda part: [good[key_of(e)].soft for e in part], run, teacher=client.name,
                  teacher_sha256=None, vocabulary=len(tokenizer), k=k, temperatures=[1.0])
    return found
