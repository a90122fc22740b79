"""Settings of the stages `check` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from trivet.artifacts import sha256_file
from trivet.config import EMBEDDED, Device, StageConfig
from trivet.generate.config import Sampling
from trivet.judge.config import Judging

MAX_FAIL = 0.34  # largest share of answers that may fail; `sft` and `ppo` ask with it, too


class CheckConfig(StageConfig):
    """Can this model answer such prompts at all? Refused if not, with its answers as evidence."""

    input_fields: ClassVar[tuple[str, ...]] = ("prompts", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "force")

    out: Path = Path("runs/check")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts as JSON Lines: `messages`, or plain `prompt`."""
    model: str = EMBEDDED
    """A model folder, an adapter folder, a hub id, or the embedded default."""
    count: int = Field(12, ge=1)
    """How many of the prompts it has to answer, drawn by the seed."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=64)
    """How answers are drawn."""
    max_fail: float = Field(MAX_FAIL, ge=0, le=1)
    """Largest share of the answers that may fail (empty, looping, gibberish, off-language)."""
    force: bool = False
    """Go on with a model that fails; the verdict is written down all the same."""
    device: Device = Device()
    """Where to compute."""


class EvaluateConfig(StageConfig):
    """Helpful, honest, harmless, still capable: one table, beside a base where one is given."""

    input_fields: ClassVar[tuple[str, ...]] = ("model", "against", "judge.by", "grader.by")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", "data", "fail_if", *(f"{part}.{name}" for part in ("judge", "grader")
                                                               for name in Judging.only_how))

    out: Path = Path("runs/evaluate")
    """Folder of this stage's run."""
    model: str = EMBEDDED
    """The model to evaluate: a folder, an adapter folder, a hub id, or the embedded default."""
    against: str | None = None
    """The base to compare it with, question by question: a model, or the folder of a finished evaluation of one."""
    data: Path | None = None
    """A folder of the field's data sets (docs/guides/evaluate.md lists its files). Where they are not there, suites
    that have questions of their own ask those, and others are left out; the table says which."""
    suites: list[str] = ["standard"]
    """Which suites to run: their names, or `standard` for all. `trivet evaluate suites` lists them."""
    limit: int | None = Field(None, ge=1)
    """At most N items of each suite, drawn by the seed, be that less or more than its standard count, which is the
    default."""
    full: bool = False
    """All items of every data set instead of the standard counts: hours on a CPU."""
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=64)
    """How answers are drawn; `instructions`, `prompts` and `gsm8k` get twice as many tokens."""
    judge: Judging = Judging()
    """What compares the model's answers with the base's."""
    grader: Judging = Judging()
    """What says of one answer whether it is harmful or refuses. Default: the judge, where it can."""
    lm_eval: list[str] = []
    """Tasks of lm-evaluation-harness to run as well, where it (pip install 'trivet[lm-eval]') and its data are."""
    fail_if: list[str] = []
    """Conditions under which the command ends with exit code 1, such as 'harmless.attack_success > 0.3' or
    'capable.perplexity worse'. For CI pipelines."""
    plain_template: bool = False
    """Go on with a model that has no chat template, in a plain User:/Assistant: form."""
    batch_size: int = Field(64, ge=1)
    """Answers generated side by side: it changes the last bits, and so, now and then, an answer."""
    device: Device = Device()
    """Where to compute."""

    def input_contents(self) -> dict[str, str]:
        """The hashes of the data files that the suites read, of the evaluation it is compared with, of YAML files of
        tasks, and of the files in which a judge's or grader's function stands.

        Raises TrivetError as `catalogue.chosen` does, and for a function that can't be imported.
        """
        from trivet.evaluate.catalogue import chosen, data_files
        from trivet.judge.function import function_sources

        files = data_files(chosen(self.suites, self.data)[0], self.data)
        found = {f"data.{f.name}": sha256_file(f) for f in files}
        if self.against is not None and (results := Path(self.against) / "results.json").is_file():
            found["against"] = sha256_file(results)
        for name in self.lm_eval:
            if name.endswith((".yaml", ".yml")) and (path := Path(name).expanduser()).is_file():
                found[f"lm_eval.{name}"] = sha256_file(path)
        return found | function_sources(judge=self.judge, grader=self.grader)
