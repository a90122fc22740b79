"""The command line: a command is looked up and its function called, nothing else happens here.

Heavy imports stay inside the chosen command; `trivet --help` loads neither torch nor tyro.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trivet import __version__
from trivet.errors import TrivetError
from trivet.process import huge_pages

ROAD = """\
Trivet: from people's rankings to an aligned language model.

usage: trivet COMMAND [--config FILE.yaml] [--setting value …]
       trivet COMMAND --help        every setting of a command, with its default

the road, a command each (reads files, writes a run folder, resumes when run again):
{stages}

around it:
  label        people rank completions in a web app: trivet label serve completions.jsonl
  run          all steps of a recipe in one run folder: trivet run quickstart
  compress     smaller forms of a model by a recipe, weighed in one table: trivet compress --model runs/demo
  report       the HTML page of a run folder: trivet report runs/demo
  ledger       what each step cost and what it bought, with a chart: trivet ledger runs/demo
  constitution principles in a file, checked and shown: trivet constitution check my.yaml
  guard        was the reward gamed? From the files of a run: trivet guard check runs/demo
  serve        a model behind OpenAI's interface, with a chat page: trivet serve runs/demo/ppo/policy
  ask          one question to a model, with a program where it wants one: trivet ask MODEL "…" --pal
  sandbox      a program that a model wrote, run where it can do no harm: trivet sandbox run FILE
  models       list, fetch and describe models: trivet models list

settings: defaults < YAML file < command line. A finished stage is not done twice; an interrupted one goes on.
options:  --version, --help, --debug (show a traceback)
"""


def help_text() -> str:
    """What `trivet --help` prints."""
    from trivet.stages import STAGES

    wide = max(12, *(len(s.command) for s in STAGES.values()))
    return ROAD.format(stages="\n".join(f"  {s.command:<{wide}} {s.help}" for s in STAGES.values()))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a condition of `evaluate --fail-if` holds, `reward audit` or `guard check
    --fail-if-hacked` calls a reward gamed, a program in `sandbox run` fails, or no variant keeps within the limits of
    `tradeoff`, 2 something for the user to mend, 130 interrupted."""
    huge_pages()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        with _together() as takes_part:
            if takes_part or arguments[:1] in (["run"], ["compress"]) or _is_stage(arguments):
                _dispatch(arguments)
    except TrivetError as error:
        if debug:
            raise
        print(f"trivet: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("\ntrivet: interrupted; run the same command again to go on from the last checkpoint",
              file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(141) from None


@contextmanager
def _together() -> Iterator[bool]:
    """Of processes that torchrun started: they end together, and whether this one takes part in every command.

    In stages and recipes all take part; any other command is rank 0's.
    """
    from trivet.stages import started_together

    if not started_together():
        yield True
        return
    from trivet.training.ranks import join

    ranks = join()
    with ranks.failing_together():
        yield ranks.main


def _is_stage(arguments: list[str]) -> bool:
    """Whether the command is a stage, by its name or by what a person types, such as `constitution revise`."""
    from trivet.stages import STAGES

    return arguments[:1] in [[name] for name in STAGES] \
        or arguments[:2] in [s.typed.split() for s in STAGES.values() if s.typed]


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(help_text(), end="")
        return
    command, rest = arguments[0], arguments[1:]
    if command in {"-V", "--version"}:
        print(f"trivet {__version__}")
        return
    from trivet.stages import STAGES, finish_stage, run_stage

    # such as `reward audit`
    command, rest = next(((s.name, arguments[2:]) for s in STAGES.values() if s.typed.split() == arguments[:2]),
                         (command, rest))
    if command == "evaluate" and rest[:1] in (["compare"], ["suites"]):
        from trivet.report.evaluation import evaluate_command

        evaluate_command(rest, parse)
    elif command == "ppo" and "--plan" in rest:
        from trivet.policy.plan_command import plan_command

        plan_command(rest, parse)
    elif command in STAGES:
        stage = STAGES[command]
        more = {"ppo": "; --plan prints memory and step time instead (trivet ppo --plan --help)",
                "reward": "; `trivet reward audit` asks afterwards what it wrongly prefers"}.get(command, "")
        config = parse(stage.config_type(), _named(command, rest),
                       stage.command, stage.help + more)
        summary = run_stage(stage, config)
        from trivet.report.terminal import print_summary

        print_summary(summary, config.out)
        finish_stage(stage, config)
    elif command == "run":
        from trivet.pipeline import RecipeOptions, run_recipe

        options = parse(RecipeOptions, _positional(rest, "recipe"), command, "run all steps of a recipe")
        run_recipe(options)
    elif command == "compress":
        from trivet.pipeline import CompressOptions, run_compress

        run_compress(parse(CompressOptions, _positional(rest, "recipe"), command,
                           "build smaller forms of a model by a recipe, and weigh them against one another"))
    elif command == "report":
        from trivet.report.config import ReportConfig
        from trivet.report.page import write_report

        chosen = parse(ReportConfig, _positional(rest, "run"), command, "write the HTML page of a run folder")
        with _records_of(chosen.run):
            print(f"report: {write_report(chosen)}")
    elif command == "ledger":
        from trivet.report.config import LedgerConfig
        from trivet.report.lifecycle import ledger_command

        asked = parse(LedgerConfig, _positional(rest, "run"), command, "what each stage of a run cost")
        with _records_of(asked.run):
            ledger_command(asked)
    elif command == "models":
        from trivet.models.command import models_command

        models_command(rest)
    elif command == "constitution":
        from trivet.constitution.command import constitution_command

        constitution_command(rest, [(s.command, s.help) for s in STAGES.values() if s.typed.startswith(f"{command} ")])
    elif command == "guard":
        from trivet.guard.check import guard_command

        guard_command(rest, parse)
    elif command == "sandbox":
        from trivet.sandbox.command import sandbox_command

        sandbox_command(rest, parse)
    elif command in {"serve", "ask"}:
        from trivet.serve.command import ask_command, serve_command

        (serve_command if command == "serve" else ask_command)(rest, parse)
    elif command == "label":
        from trivet.feedback.labelling.command import label_command

        label_command(rest, parse)
    else:
        import difflib

        known = [*STAGES, "label", "run", "compress", "report", "ledger", "constitution", "guard",
                 "sandbox", "serve", "ask", "models"]
        near = difflib.get_close_matches(command, known, 1)
        raise TrivetError(f"there is no command {command!r}",
                          mend=f"did you mean `trivet {near[0]}`?" if near else "see `trivet --help`")


@contextmanager
def _records_of(run: Path) -> Iterator[None]:
    """Raise TrivetError where a run's own record makes what reads it stumble."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TrivetError(f"a record of this run is not what its stage wrote ({type(error).__name__}: {error})",
                          file=run, mend="run the stage again whose file was changed (--debug shows where)"
                          ) from error


def _named(command: str, rest: list[str]) -> list[str]:
    """A stage's arguments with their names: `evaluate MODEL`, `tradeoff MODEL VARIANT …`."""
    if command == "evaluate":
        return _positional(rest, "model")
    if command != "tradeoff":
        return rest
    place = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    variants = ["--variants", *rest[1:place]] if place > 1 else []
    return _positional([*rest[:min(place, 1)], *variants, *rest[place:]], "model")


def _positional(rest: list[str], name: str) -> list[str]:
    """`trivet run FILE` is `trivet run --recipe FILE`."""
    return [f"--{name}", *rest] if rest and not rest[0].startswith("-") else rest


def parse(config: type[Any], arguments: list[str], command: str, help_line: str) -> Any:
    """A configuration from defaults, `--config FILE` and the command line, in rising precedence.

    Raises TrivetError naming file, line and field; SystemExit(2) for arguments that are not settings.
    """
    import tyro
    from pydantic import ValidationError

    from trivet.config import config_error, load_yaml

    _require_text(arguments)
    file, arguments = _take_config(arguments)
    values: dict[str, Any] = {}
    lines: dict[tuple[Any, ...], int] = {}
    if file is not None:
        values, lines = load_yaml(file)
        try:
            config.model_validate(values)
        except ValidationError as error:
            # what is missing, or does not go together, the command line may still mend
            fault = config_error(error, file=file, lines=lines, command=command, skip=("missing", "value_error"))
            if fault is not None:
                raise fault from None
    try:
        parsed = tyro.cli(config, args=arguments, prog=f"trivet {command}", default=_partial(config, values),
                          description=f"trivet {command}: {help_line}.", config=(tyro.conf.AvoidSubcommands,),
                          registry=_unvalidated())
    except SystemExit as stopped:
        if stopped.code:  # tyro has said in a frame what is wrong
            print(f"  to mend: see `trivet {command} --help`", file=sys.stderr)
        raise
    try:
        return config.model_validate(parsed.model_dump(warnings=False))
    except ValidationError as error:
        # the file's own faults were found above; what does not go together may stand in it
        between = error.errors()[0]["type"] == "value_error"
        fault = config_error(error, command=command, file=file if between else None, lines=lines if between else None)
        assert fault is not None
        raise fault from None


def _require_text(arguments: list[str]) -> None:
    """Raise TrivetError for an argument of bytes that are no text: nothing could be written about it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise TrivetError(f"the argument {argument!r} is not UTF-8 text",
                              mend="type it anew, or rename the file that it names") from None


def _unvalidated() -> Any:
    """The rule by which tyro fills a configuration without validating it: `parse` does, and words the faults."""
    from pydantic import BaseModel
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    registry = ConstructorRegistry()

    @registry.struct_rule
    def fill(info: StructTypeInfo) -> StructConstructorSpec | None:
        model: Any = info.type
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None

        def construct(**values: Any) -> BaseModel:
            return model.model_construct(**values)

        fields: list[tuple[str, Any]] = list(model.model_fields.items())
        return StructConstructorSpec(construct, tuple(
            StructFieldSpec(name, field.annotation, getattr(info.default, name), field.description)
            for name, field in fields))

    return registry


def _take_config(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Take `--config FILE` (or `--config=FILE`) out of the arguments."""
    rest: list[str] = []
    file: Path | None = None
    items = iter(arguments)
    for item in items:
        if item == "--config":
            value = next(items, None)
            if value is None or value.startswith("--"):
                raise TrivetError("--config wants a file", mend="give it: --config FILE.yaml")
            file = Path(value)
        elif item.startswith("--config="):
            file = Path(item.partition("=")[2])
        else:
            rest.append(item)
    return file, rest


def _partial(config: type[Any], values: dict[str, Any]) -> Any:
    """An instance holding `values` over the defaults; what is required and absent is left for tyro to ask."""
    import tyro
    from pydantic import BaseModel, TypeAdapter

    filled: dict[str, Any] = {}
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            base = field.get_default(call_default_factory=True)
            given = values.get(name) or {}
            start = base.model_dump() if isinstance(base, BaseModel) else {}
            filled[name] = _partial(kind, {**start, **given})
        elif name in values:
            filled[name] = TypeAdapter(field.annotation).validate_python(values[name])
        elif field.is_required():
            filled[name] = tyro.MISSING
        else:
            filled[name] = field.get_default(call_default_factory=True)
    return config.model_construct(**filled)
