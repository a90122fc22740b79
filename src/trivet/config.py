"""What the configurations of all stages share, and how they are read.

Precedence: defaults < YAML < command line. Unknown keys fail. No torch here: `trivet ppo --help` and a
recipe's check load none. Each stage's own configuration stands in the torch-free config.py of its package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trivet.errors import TrivetError

EMBEDDED = "smollm2-135m-instruct"


class Part(BaseModel):
    """A group of settings inside a stage's configuration."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)


class StageConfig(Part):
    """What every stage's configuration has."""

    #: fields that name files or folders the stage reads; their contents enter the fingerprint
    input_fields: ClassVar[tuple[str, ...]] = ()
    #: fields (`name`, or `part.name`) that do not change the result, so that changing them does not make the run
    #: another one
    not_in_fingerprint: ClassVar[tuple[str, ...]] = ("out", "overwrite", "report_to")

    out: Path
    """Folder of this stage's run; holds config.yaml, metrics.jsonl, summary.json, checkpoints/."""
    overwrite: bool = False
    """Delete what another configuration left in the folder, and begin anew."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every random generator of this stage."""

    def input_contents(self) -> dict[str, str]:
        """The hash of each input that is neither a file nor a folder, such as a database: it makes a run this run."""
        return {}


class Device(Part):
    """Where and how precisely to compute."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: a GPU if there is one, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen trunk. auto: bfloat16 on a GPU, float32 on a CPU. What is trained is always float32."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of a process; recorded, since their number changes the bits. Default: its share of the cores."""
    shard: Literal["auto", "none", "full"] = "auto"
    """Of several processes (torchrun): whether each holds a share of the weights (FSDP2). auto: full on GPUs only."""


class LoRA(Part):
    """Low-rank adapters on the linear layers of the trunk (Hu et al. 2021)."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / r."""
    targets: list[str] | Literal["attention", "all-linear"] = "all-linear"
    """Which layers: a name, or the ends of module names, such as q_proj v_proj."""
    last_layers: int | None = Field(None, ge=1)
    """Adapt only the last N blocks: backward stops there, which is faster. Default: all."""


class Optimizer(Part):
    """AdamW."""

    lr: float = Field(1e-4, gt=0, le=10)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls after the warm-up."""


class Checkpointing(Part):
    """Saving, so that an interruption loses little."""

    every: int = Field(25, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """How many complete checkpoints to keep."""


def _installed(names: list[str]) -> list[str]:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'trivet[{name}]'")
    return names


ReportTo = Annotated[list[Literal["tensorboard", "wandb"]], AfterValidator(_installed)]
C = TypeVar("C", bound=BaseModel)


# --- YAML --------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """With YAML 1.2's booleans, true and false: `on` may be a field's name, and `no` a word."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {  # those of SafeLoader, which stay as they are
    first: [(tag, pattern) for tag, pattern in known if tag != _BOOL]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(_BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load_yaml(path: str | Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """A YAML mapping, and the line on which each of its keys stands: {("kl", "coef"): 7, …}."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TrivetError("no such file", file=path, mend="check the path of the YAML file") from None
    except UnicodeDecodeError:
        raise TrivetError("this is not UTF-8 text", file=path, mend="save it as UTF-8") from None
    except OSError as error:
        raise TrivetError(f"cannot be read: {error.strerror}", file=path, mend="give a YAML file") from None
    try:
        root = yaml.compose(text, Loader=_Loader)
        value = yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise TrivetError("broken YAML: nested too deeply", file=path, mend="check the brackets") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise TrivetError(
            f"broken YAML: {getattr(error, 'problem', None) or error}",
            file=path, line=mark.line + 1 if mark else None,
            mend="check indentation (spaces, no tabs), colons and quotes" + (" near this line" if mark else ""),
        ) from None
    except Exception as error:  # for a date that is none or a !!tag that does not fit, PyYAML raises anything
        raise TrivetError(f"broken YAML: a value is not of its kind ({error})", file=path,
                          mend="put dates and words with ! into quotes") from None
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        raise TrivetError(
            f"this holds a {type(value).__name__}, not a mapping", file=path,
            expected="lines of the form `key: value`", mend="see recipes/ for examples",
        )
    lines: dict[tuple[Any, ...], int] = {}

    def walk(node: yaml.Node, place: tuple[Any, ...], above: tuple[yaml.Node, ...]) -> None:
        if node in above:
            raise TrivetError("this holds itself", file=path, line=lines[place], mend="write it out without the alias")
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                line, inner = key.start_mark.line + 1, (*place, key.value)
                if inner in lines and key.value != "<<":
                    raise TrivetError(f"{key.value!r} stands here for the second time, first on line {lines[inner]}",
                                      file=path, line=line, mend="keep one of the two")
                lines[inner] = line
                walk(child, inner, (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                lines[(*place, index)] = child.start_mark.line + 1
                walk(child, (*place, index), (*above, node))

    if root is not None:
        walk(root, (), ())
    return value, lines


def yaml_value(text: str) -> Any:
    """A setting typed on the command line: what YAML reads in it, and where it reads nothing sound, the text itself."""
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str)  # refuses what holds itself
    except Exception:  # PyYAML raises anything for a date or a !!tag that does not fit
        return text
    return value


def dump_yaml(config: BaseModel) -> str:
    """A configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_error(
    error: ValidationError,
    *,
    file: Path | None = None,
    lines: dict[tuple[Any, ...], int] | None = None,
    prefix: tuple[Any, ...] = (),
    command: str | None = None,
    skip: Collection[str] = (),
) -> TrivetError | None:
    """The first fault of a configuration as an error a person can mend. skip: types of faults to pass over."""
    for fault in error.errors():
        if fault["type"] in skip:
            continue
        # pydantic adds the branch of a union to the place; it is no part of the field's name
        place = tuple(p for p in fault["loc"] if isinstance(p, int) or str(p).isidentifier())
        field = ".".join(str(p) for p in place) or None
        line = None
        for cut in range(len(place), -1, -1):
            line = line or (lines or {}).get((*prefix, *place[:cut]))
        what = fault["msg"].removeprefix("Value error, ")
        mend = f"see `trivet {command} --help` for every setting" if command else "correct this setting"
        if fault["type"] == "extra_forbidden":
            what = "this setting is not known"
        elif fault["type"] == "missing":
            what = "this setting is required"
            mend = f"give it: --{(field or '').replace('_', '-')} … (or in the YAML file)"
        elif "input" in fault and not isinstance(fault["input"], dict):
            what = f"{what} (got {fault['input']!r})"
        return TrivetError(what, file=file, line=line, field=field, mend=mend)
    return None


def validate(config: type[C], values: dict[str, Any], **where: Any) -> C:
    """`config` from a mapping; TrivetError with file, line and field when it does not fit."""
    try:
        return config.model_validate(values)
    except ValidationError as error:
        mended = config_error(error, **where)
        assert mended is not None
        raise mended from None


def fingerprint(stage: str, config: StageConfig, inputs: dict[str, str]) -> str:
    """What makes a run the same run: stage, settings that change the result, contents of its inputs."""
    left_out: dict[str, Any] = dict.fromkeys(config.input_fields, True)
    for name in config.not_in_fingerprint:
        part, _, setting = name.partition(".")
        if setting:
            left_out.setdefault(part, {})[setting] = True
        else:
            left_out[part] = True
    settings = config.model_dump(mode="json", exclude=left_out)
    data = json.dumps({"stage": stage, "settings": settings, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(data.encode()).hexdigest()
