"""What a model is attacked with before any strategy is put on it: questions from files and from seed topics. No torch.

    *.jsonl, *.parquet   prompts: the last message is the question, what stands before it stays; the first tag is the
                         topic. Rows of an earlier run's attacks.jsonl are attacks already and taken as they are
    *.json               harmful requests in one of red-instruct's three shapes (evaluate/datasets.py)
    *.txt                a question on each line
    topics.yaml          seed topics: a name, and a few questions to begin with
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError, field_validator

from trivet.artifacts import Message, Prompt, read_error, read_rows, text_digest, text_id
from trivet.config import Part, config_error, load_yaml
from trivet.errors import TrivetError
from trivet.evaluate.datasets import red_instruct
from trivet.text.near import Distinct

SHIPPED = Path(__file__).with_name("topics.yaml")
"""The seed topics that are used where neither attacks nor topics are given: tame, and in our own words."""
STRATEGIES = ("direct", "paraphrase", "role-play", "multi-turn")
"""How a question is put. constitution/strategies.py says how."""
READS = (".jsonl", ".parquet", ".json", ".txt")
Source = Literal["file", "seed", "grown"]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@dataclass(frozen=True)
class Question:
    """What is asked for, as yet without a strategy."""

    id: str
    topic: str
    text: str
    source: Source
    before: tuple[Message, ...] = ()
    """The conversation in which it is asked."""
    subject: str | None = None
    """The topic in words that can be said to a model; None where it is only a file's name."""

    @property
    def whole(self) -> str:
        """All that is said, to find repeats by."""
        return "\n".join([*(m.content for m in self.before), self.text])


@dataclass(frozen=True)
class Attack:
    """A question with a strategy: what the target is asked."""

    id: str
    base: str
    """The id of its question; attacks of one question are not independent."""
    topic: str
    strategy: str
    source: Source
    question: str
    """What is asked for, in its first words."""
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> Prompt:
        """As a row of the artifact."""
        return Prompt(id=self.id, messages=list(self.messages), tags=[self.topic, self.strategy])


T = TypeVar("T", Question, Attack)


@dataclass
class Pool:
    """Questions and attacks without repeats, and how many repeats were left out."""

    questions: list[Question] = field(default_factory=list)
    attacks: list[Attack] = field(default_factory=list)
    """Made in an earlier run: no strategy is put on them."""
    repeats: Counter[str] = field(default_factory=Counter)
    """`exact` and `near`."""

    @property
    def topics(self) -> list[str]:
        """All topics, in the order of their first question."""
        return list(dict.fromkeys([*(q.topic for q in self.questions), *(a.topic for a in self.attacks)]))


# --- seed topics ------------------------------------------------------------------------------------------


class Topic(Part):
    """A kind of harm, and a few requests of it."""

    name: Text
    """What it is called in tables."""
    about: str = ""
    """What it is about, for the attacker."""
    seeds: list[Text] = Field(min_length=2)
    """Requests to begin with; they are asked, too."""


class Topics(Part):
    """A file of seed topics."""

    topics: list[Topic] = Field(min_length=1)

    @field_validator("topics")
    @classmethod
    def _names(cls, topics: list[Topic]) -> list[Topic]:
        names = Counter(t.name for t in topics)
        if doubled := next((n for n, count in names.items() if count > 1), None):
            raise ValueError(f"two topics are called {doubled!r}")
        return topics


def load_topics(path: Path | None = None) -> list[Topic]:
    """Seed topics from a YAML file; None: the shipped ones. Raises TrivetError with file, line and field."""
    file = SHIPPED if path is None else path
    values, lines = load_yaml(file)
    try:
        return Topics.model_validate(values).topics
    except ValidationError as error:
        fault = config_error(error, file=file, lines=lines)
        assert fault is not None
        what = {"missing": "this is missing", "extra_forbidden": "this is not known here"}.get(
            error.errors()[0]["type"], fault.what)
        raise TrivetError(what, file=file, line=fault.line, field=fault.field,
                          expected="topics: a list of {name, about, seeds}, each with two seeds or more",
                          mend=f"correct it; {SHIPPED.name} in Trivet's package shows the form") from None


def seeds(topics: Iterable[Topic]) -> list[Question]:
    """The questions that a file of topics begins with."""
    return [Question(f"seed/{text_id(text)[:12]}", t.name, text, "seed", subject=t.name)
            for t in topics for text in t.seeds]


# --- files ------------------------------------------------------------------------------------------------


def read_attacks(path: Path) -> tuple[list[Question], list[Attack]]:
    """The questions of a file, and the attacks that an earlier run made.

    Raises TrivetError for a form that is not known, and as the reader of each form does.
    """
    match path.suffix.lower():
        case ".jsonl" | ".parquet":
            return _prompts(read_rows(path, Prompt), path.stem)
        case ".json":
            found = red_instruct(path)
            return [Question(r.id, r.topic, r.text.strip(), "file", subject=None if r.topic == path.stem else r.topic)
                    for r in found], []
        case ".txt":
            return [Question(f"{path.stem}/{text_id(text)[:12]}", path.stem, text, "file")
                    for text in dict.fromkeys(_lines(path))], []
        case _:
            raise TrivetError("attacks can't be read from such a file", file=path, field="attacks",
                              expected=f"a name that ends in {', '.join(READS)}",
                              mend="rename it by its form: prompts as JSON Lines, requests as JSON, a question a line")


def _prompts(rows: Iterable[Prompt], stem: str) -> tuple[list[Question], list[Attack]]:
    questions, attacks = [], []
    for row in rows:
        topic = row.tags[0] if row.tags else stem
        text = row.messages[-1].content.strip()
        base, _, strategy = row.id.rpartition("/")
        if base and row.tags[1:2] == [strategy] and strategy in STRATEGIES:
            attacks.append(Attack(row.id, base, topic, strategy, "file", text, tuple(row.messages)))
        else:
            questions.append(Question(row.id, topic, text, "file", tuple(row.messages[:-1]),
                                      row.tags[0] if row.tags else None))
    return questions, attacks


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path,
                          mend="convert it: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT") from None
    except (OSError, ValueError) as error:
        raise read_error(error, path) from None
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise TrivetError("this file holds no questions", file=path, field="attacks", mend="write one on each line")
    return found


# --- all of them ------------------------------------------------------------------------------------------


def gather(files: Sequence[Path], begin: Iterable[Question], distinct: Distinct) -> Pool:
    """What the files hold, then the seeds, without repeats. The first of two alike stays, whatever their topics.

    distinct: keeps what is new, for more to be added later. Raises TrivetError for a file that does not fit, and an id
    that two questions or attacks have.
    """
    pool = Pool()
    read = [(path, *read_attacks(path)) for path in files]
    by_id: dict[str, Question | Attack] = {}
    for path, questions, attacks in read:
        items: list[Question | Attack] = [*questions, *attacks]
        for item in items:
            if item.id in by_id and by_id[item.id] != item:
                raise TrivetError(f"the id {item.id!r} stands in two files for different prompts", file=path,
                                  field="id", mend="give each prompt an id of its own, or leave `id` out")
            if item.id in by_id:
                pool.repeats["exact"] += 1
                continue
            by_id[item.id] = item
            if isinstance(item, Attack):
                pool.attacks.append(item)  # an earlier run left repeats out; two strategies may say nearly the same
            else:
                keep(item, pool, distinct)
    for question in begin:
        keep(question, pool, distinct)
    return pool


def keep(question: Question, pool: Pool, distinct: Distinct) -> bool:
    """Take a question into the pool unless it repeats one; whether it was new."""
    repeat = distinct.add(question.whole)
    if repeat is not None:
        pool.repeats[repeat.kind] += 1
        return False
    pool.questions.append(question)
    return True


def draw_evenly(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """At most `limit` of them, as many of each topic as can be, drawn by the seed; in the order given."""
    if limit is None or len(items) <= limit:
        return list(items)
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        by_topic[item.topic].append(i)
    rng = random.Random(seed)
    for places in by_topic.values():
        rng.shuffle(places)
    chosen: list[int] = []
    while len(chosen) < limit:
        for places in by_topic.values():
            if places and len(chosen) < limit:
                chosen.append(places.pop())
    return [items[i] for i in sorted(chosen)]


def split_topics(topics: Sequence[str], share: float, named: Sequence[str], seed: int) -> list[str]:
    """The topics that are held out: those named, else `share` of them, at least one, drawn by the seed.

    Whole topics, so that what is learned from one kind of attack is measured on others. Raises TrivetError for a name
    that is no topic, and where nothing would be left to train on.
    """
    if unknown := sorted(set(named) - set(topics)):
        raise TrivetError(f"there is no topic {unknown[0]!r}", field="held_out_topics",
                          mend=f"the topics are: {', '.join(topics)}")
    if named:
        found = set(named)
    else:
        count = max(1, round(share * len(topics))) if share > 0 else 0
        found = set(sorted(topics, key=lambda t: text_digest(f"{seed}:{t}"))[:count])
    if found and len(found) == len(topics):
        raise TrivetError(f"of {len(topics)} topic{'s' * (len(topics) > 1)} all would be held out", field="held_out",
                          mend="give attacks of more topics, hold fewer out, or none: --held-out 0")
    return [t for t in topics if t in found]
