"""`trivet ppo --plan` at the terminal: the question, the tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import yaml

from trivet.artifacts import atomic_write
from trivet.errors import TrivetError
from trivet.policy.config import PlanConfig
from trivet.policy.plan import (
    SERVED,
    Phase,
    Rates,
    Shape,
    can_spread,
    compute_precision,
    read_rates,
    read_shape,
    step_time,
)
from trivet.policy.plan_memory import Need, memory, peak

HELP = "memory of each role and the time of a step, for a model and a number of devices; nothing is trained"


def plan_command(arguments: list[str], parse: Callable[..., Any]) -> None:
    """Answer `trivet ppo --plan …`. Raises TrivetError as `parse`, `read_shape` and `read_rates` do."""
    config: PlanConfig = parse(PlanConfig, [a for a in arguments if a != "--plan"], "ppo", HELP)
    shape, found, needs, phases = plan(config)
    if config.plan.save_rates is not None and found is not None:
        with atomic_write(config.plan.save_rates) as file:
            file.write("# Measured by `trivet ppo --plan --plan.save-rates FILE`; give the machine another name.\n")
            file.write(yaml.safe_dump({"measured": asdict(found)}, sort_keys=False, allow_unicode=True))
    if config.plan.as_json:
        print(json.dumps(as_dict(config, shape, found, needs, phases), indent=2))
    else:
        _show(config, shape, found, needs, phases)


def plan(config: PlanConfig) -> tuple[Shape, Rates | None, list[Need], list[Phase]]:
    """(shape, rates, memory, phases). No rates and no phases where there is nothing here to measure."""
    asked = config.plan
    shape = read_shape(config.model)
    prompt, response = asked.prompt_tokens, asked.response_tokens or config.sampling.max_new_tokens
    if shape.context is not None and prompt + response > shape.context:
        raise TrivetError(f"{prompt} + {response} tokens are more than the model's context of {shape.context}",
                          field="plan.prompt-tokens", mend="shorten the prompts or the answers")
    found, precision = _rates(config, shape, prompt, response)
    needs = memory(shape, config, precision, prompt, response, None if found is None else found.runtime_bytes)
    return shape, found, needs, [] if found is None else step_time(shape, config, found, prompt, response)


def _rates(config: PlanConfig, shape: Shape, prompt: int, response: int) -> tuple[Rates | None, str]:
    """(rates, precision of the trunk)."""
    asked, precision = config.plan, config.device.precision
    if asked.machine != "here":
        found = read_rates(asked.machine, asked.rates)
        if precision not in ("auto", found.precision):
            raise TrivetError(f"the rates of {asked.machine} were measured with a trunk in {found.precision}, not "
                              f"{precision}", field="device.precision", file=asked.rates,
                              mend="leave --device.precision out, or give rates measured with it")
        return found, found.precision
    from dataclasses import replace

    import torch

    from trivet.policy.rates import measure
    from trivet.training.device import prepare

    if asked.gpus and not torch.cuda.is_available():
        if asked.save_rates is not None:
            raise TrivetError("there is no GPU here whose rates could be saved", field="plan.save-rates",
                              mend="run it on the machine with the GPUs, or leave --plan.gpus out")
        return None, "bfloat16" if precision == "auto" else precision
    compute = prepare(config.device)
    devices = max(1, asked.gpus)
    share = -(-config.rollout // devices)
    adapters = config.lora if config.tune == "lora" else None
    trunk = str(compute.trunk).removeprefix("torch.")
    used = replace(compute, trunk=getattr(torch, compute_precision(config, trunk)))
    return measure(shape, used, adapters, min(64, share), min(config.micro_batch, share), prompt, response), trunk


def as_dict(config: PlanConfig, shape: Shape, rates: Rates | None, needs: list[Need],
            phases: list[Phase]) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds, FLOPs."""
    return {
        "schema_version": 1, "model": config.model, "parameters": shape.parameters, "gpus": config.plan.gpus,
        "rates": None if rates is None else asdict(rates), "memory": [asdict(n) for n in needs],
        "peak_bytes": {"whole": peak(needs, False), "sharded": peak(needs, True)},
        "phases": [asdict(p) for p in phases], "step_seconds": sum(p.seconds for p in phases) if phases else None,
        "lower_bound": any(p.bound for p in phases)}


def _show(config: PlanConfig, shape: Shape, rates: Rates | None, needs: list[Need], phases: list[Phase]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, devices = Console(), config.plan.gpus
    response = config.plan.response_tokens or config.sampling.max_new_tokens
    console.print(f"{config.model}: {shape.parameters / 1e6:,.1f} million parameters, {shape.layers} blocks; "
                  f"{config.rollout} answers a step, {config.plan.prompt_tokens} + {response} tokens each; tune "
                  f"{config.tune}, advantage {config.advantage}", soft_wrap=True, markup=False)
    table = Table(title=f"memory on each of {devices} GPUs" if devices > 1 else "memory", title_justify="left")
    table.add_column("what")
    table.add_column("when")
    columns = 2 if can_spread(config) else 1
    for head in ("whole copies", "FSDP")[:columns]:
        table.add_column(head if devices > 1 else "size", justify="right")
    for need in needs:
        sizes = (need.whole, need.sharded)[:columns]
        table.add_row(need.what, need.when, *map(_bytes, sizes))
    table.add_section()
    table.add_row("peak", "", *(_bytes(peak(needs, s)) for s in (False, True)[:columns]))
    console.print(table)
    if devices > 1 and columns == 1:
        console.print("No FSDP: weights of four bits, and those that a server is handed, are not spread.")
    if config.generate == "vllm":
        console.print("Rollouts by a server are not covered: neither its memory and time nor handing it the weights.",
                      soft_wrap=True)
    if rates is None:
        console.print("no time: there is no GPU here to measure. Name a measured machine (--plan.machine), or run this "
                      f"on that machine with --plan.gpus {devices} --plan.save-rates FILE.", soft_wrap=True)
        return
    table = Table(title="time of a step", title_justify="left")
    for head in ("phase", "seconds", "share", "TFLOP on each device"):
        table.add_column(head, justify="left" if head == "phase" else "right")
    total = sum(p.seconds for p in phases)
    for phase in phases:
        table.add_row(phase.name, *(("–", "", "") if phase.name == SERVED else (
            f"{'≥ ' if phase.bound else ''}{phase.seconds:.3g}", f"{phase.seconds / total:.0%}",
            f"{phase.flops / 1e12:.3g}")))
    table.add_section()
    bound = any(p.bound for p in phases)
    table.add_row("step", f"{'≥ ' if bound else ''}{total:.3g}", "", f"{sum(p.flops for p in phases) / 1e12:.3g}")
    console.print(table)
    reads = f", weights read at {rates.bandwidth / 1e9:,.1f} GB/s" if rates.bandwidth else ""
    console.print(f"rates: {rates.source}; products {rates.matmul / 1e9:,.0f} GFLOP/s in {rates.precision}{reads}. "
                  "Traffic between devices is not counted.", soft_wrap=True, markup=False)
    missing = [p for p in phases if p.bound and p.name != SERVED]
    if missing and config.four_bit:
        console.print("≥: unpacking four bits takes time that is not counted.")
    elif missing and compute_precision(config, rates.precision) != rates.precision:
        console.print("≥: weights that FSDP spreads are trained in float32, of which these are not the rates.")
    elif missing:
        console.print("≥: rates are missing that would make it longer (--plan.save-rates on that machine measures "
                      "them).", soft_wrap=True)


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
