"""Malformed input to `trivet tradeoff` and `trivet compress`: cases of `bad_input.py`.

A place is bad_input's `Place`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Build = Callable[[Any], list[str]]
FAST = ["--speed.batches", "1", "--speed.prompts", "8", "--speed.new-tokens", "2", "--speed.rounds", "1",
        "--limit", "2", "--kl-tokens", "8", "--sampling.max-new-tokens", "2", "--device.threads", "1"]
STEPS = """\
name: small
variables: {model: m, reward: ""}
steps:
  - name: weigh
    stage: tradeoff
    with: {model: "${model}", reward: "${reward}", variants: ["${model}"]}
"""


def _weigh(p: Any, *more: str, variants: tuple[str, ...] | None = None) -> list[str]:
    """`trivet tradeoff` of two tiny models, briefly."""
    return ["--model", p.tiny, "--variants", *(variants or (str(p.shared.other),)), *FAST, "--out", p.out, *more]


def _variant(p: Any, **changed: Any) -> str:
    """A folder whose variant.json says something else; a value of None leaves a field out."""
    folder = p.copy(p.shared.other, "variant")
    size = (folder / "model.safetensors").stat().st_size
    known = {"schema_version": 1, "name": "v", "method": "rtn", "format": "safetensors", "source": p.tiny,
             "parameters": 10, "bytes": size, "bits_per_weight": 8.0} | changed
    (folder / "variant.json").write_text(json.dumps({k: v for k, v in known.items() if v is not None}))
    return str(folder)


def _source_that_does_not_load(p: Any) -> list[str]:
    folder = p.copy(p.shared.tiny, "fewer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    return _weigh(p, "--model", str(folder))


def _without_template(p: Any) -> list[str]:
    folder = p.copy(p.shared.tiny, "bare")
    (folder / "chat_template.jinja").unlink()
    return _weigh(p, "--model", str(folder))


def _recipe(p: Any, text: str, *more: str) -> list[str]:
    return [p.text("recipe.yaml", text), "--out", p.out, "--model", p.tiny, *more]


def _run_without_policy(p: Any) -> list[str]:
    folder = p.folder / "done"
    p.done("check", "--prompts", p.prompts, "--model", p.tiny, "--count", "2", "--force", "--device.threads", "1",
           "--sampling.max-new-tokens", "4", "--out", str(folder / "check"))
    return _recipe(p, STEPS, "--model", str(folder))


ROWS: list[tuple[str, str, Build, str]] = [
    ("tradeoff", "no variants", lambda p: ["--model", p.tiny, "--out", p.out], "variants"),
    ("tradeoff", "unknown option", lambda p: _weigh(p, "--nosuch", "3"), "see `trivet tradeoff --help`"),
    ("tradeoff", "unknown setting in YAML",
     lambda p: [*_weigh(p), "--config", p.text("t.yaml", "speed: {bathces: [1]}\n")], "t.yaml:1"),
    ("tradeoff", "a source that is not there", lambda p: _weigh(p, "--model", "no/such/model"), "there is no model"),
    ("tradeoff", "a variant that is not there", lambda p: _weigh(p, variants=("runs/no/such",)), "field 'variants'"),
    ("tradeoff", "a folder that is no model", lambda p: _weigh(p, variants=(p.make("empty"),)), "no model"),
    ("tradeoff", "an adapter as a variant", lambda p: _weigh(p, variants=(p.policy,)), "trivet models merge"),
    ("tradeoff", "a variant twice", lambda p: _weigh(p, variants=(str(p.shared.other),) * 2), "stands twice"),
    ("tradeoff", "torn weights of a variant",
     lambda p: _weigh(p, variants=(p.torn(p.shared.other, "model.safetensors"),)), "damaged"),
    ("tradeoff", "a variant.json that is no JSON",
     lambda p: _weigh(p, variants=(p.damaged(Path(_variant(p)), "variant.json", b'{"name": '),)), "variant.json"),
    ("tradeoff", "a variant.json that lacks its method", lambda p: _weigh(p, variants=(_variant(p, method=None),)),
     "field 'method'"),
    ("tradeoff", "a variant.json of other weights", lambda p: _weigh(p, variants=(_variant(p, bytes=7),)),
     "speaks of 7 bytes"),
    ("tradeoff", "a source that does not load", _source_that_does_not_load, "weights are not in the folder"),
    ("tradeoff", "a source without a chat template", _without_template, "no chat template"),
    ("tradeoff", "too few names", lambda p: _weigh(p, "--names", "a", "b"), "2 names for 1 variants"),
    ("tradeoff", "a name that is a path", lambda p: _weigh(p, "--names", "a/b"), "field 'names.0'"),
    ("tradeoff", "one name for two", lambda p: _weigh(p, "--names", "a", "a", variants=(str(p.shared.other), p.tiny)),
     "two variants have one name"),
    ("tradeoff", "no round", lambda p: _weigh(p, "--speed.rounds", "0"), "field 'speed.rounds'"),
    ("tradeoff", "one new token", lambda p: _weigh(p, "--speed.new-tokens", "1"), "field 'speed.new_tokens'"),
    ("tradeoff", "a batch of none", lambda p: _weigh(p, "--speed.batches", "0"), "field 'speed.batches.0'"),
    ("tradeoff", "a prompt length twice", lambda p: _weigh(p, "--speed.prompts", "8", "8"), "a number stands twice"),
    ("tradeoff", "no size", lambda p: _weigh(p, "--max-size", "small"), "is no size"),
    ("tradeoff", "a latency of 0", lambda p: _weigh(p, "--max-latency", "0"), "field 'max_latency'"),
    ("tradeoff", "a negative loss", lambda p: _weigh(p, "--max-quality-loss", "-1"), "field 'max_quality_loss'"),
    ("tradeoff", "a quality that is not measured", lambda p: _weigh(p, "--quality", "helpful.charm"),
     "quality can't be told by 'helpful.charm'"),
    ("tradeoff", "a quality without a better direction",
     lambda p: _weigh(p, "--suites", "prompts", "--quality", "capable.length"), "can't be told by 'capable.length'"),
    ("tradeoff", "unknown suite", lambda p: _weigh(p, "--suites", "refusal"), "did you mean 'refusals'?"),
    ("tradeoff", "the text as a suite", lambda p: _weigh(p, "--suites", "text"), "perplexity comes from anyway"),
    ("tradeoff", "a data folder that is not there", lambda p: _weigh(p, "--data", "nowhere"), "no such folder"),
    ("tradeoff", "a text that is not there", lambda p: _weigh(p, "--text", "nowhere.jsonl"), "no such file"),
    ("tradeoff", "an empty text", lambda p: _weigh(p, "--text", p.text("empty.txt", " \n")), "no text"),
    ("tradeoff", "rows without text", lambda p: _weigh(p, "--text", p.rows("rows.jsonl", [{"words": "a"}])),
     "rows.jsonl:1"),
    ("tradeoff", "a reward that is not there", lambda p: _weigh(p, "--reward", "runs/no/reward"), "there is no model"),
    ("tradeoff", "prompts that are not there",
     lambda p: _weigh(p, "--reward", p.reward, "--prompts", "nowhere.jsonl"), "no such file"),
    ("tradeoff", "a bad row of prompts",
     lambda p: _weigh(p, "--reward", p.reward, "--prompts", p.rows("bad.jsonl", [{"prompt": " "}])), "bad.jsonl:1"),
    ("tradeoff", "a share of no prompts", lambda p: _weigh(p, "--held-out", "0.5"), "none are given"),
    ("tradeoff", "a share too small",
     lambda p: _weigh(p, "--reward", p.reward, "--prompts", p.prompts, "--held-out", "1e-9"), "raise --held-out"),
    ("compress", "no such recipe", lambda p: ["nosuch", "--out", p.out], "there is no such recipe"),
    ("compress", "a recipe that weighs nothing",
     lambda p: _recipe(p, "name: a\nvariables: {model: m}\nsteps:\n  - {name: c, stage: check, with: {prompts: x}}\n"),
     "does not end with the stage `tradeoff`"),
    ("compress", "a recipe without a model", lambda p: _recipe(p, STEPS.replace("model: m, ", "")),
     "no variable 'model'"),
    ("compress", "a recipe without a reward",
     lambda p: _recipe(p, STEPS.replace(', reward: ""', ""), "--reward", p.reward), "no variable 'reward'"),
    ("compress", "a run without a policy", _run_without_policy, "no finished policy"),
    ("compress", "no size", lambda p: _recipe(p, STEPS, "--max-size", "tiny"), "is no size"),
    ("compress", "a model that is not there", lambda p: _recipe(p, STEPS, "--model", "no/such/model"),
     "there is no model"),
]


def cases(case: Any) -> list[Any]:
    """All as bad_input's `Case`, which is given: that module imports this one."""
    return [case(*row) for row in ROWS]
