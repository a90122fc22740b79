"""Malformed input to `trivet prune`: cases of benchmarks/bad_input.py, kept apart for their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Build = Callable[[Any], Sequence[str]]


def _given(p: Any, method: str, *more: str, model: str | None = None) -> list[str]:
    """`trivet prune` of a tiny model, briefly."""
    return ["--method", method, "--model", model or p.tiny, "--calibration.windows", "4", "--calibration.length", "16",
            "--held-out.windows", "2", "--held-out.length", "16", "--device.threads", "1", "--out", p.out, *more]


def _with(method: str, *more: str) -> Build:
    return lambda p: _given(p, method, *more)


def _of(folder: Callable[[Any], str], method: str = "wanda", *more: str) -> Build:
    return lambda p: _given(p, method, *more, model=folder(p))


def _text(rows: Sequence[Any], setting: str = "calibration") -> Build:
    return lambda p: _given(p, "wanda", f"--{setting}.data", p.rows("bad.jsonl", rows))


def _config(change: dict[str, Any]) -> Callable[[Any], str]:
    def build(p: Any) -> str:
        folder: Path = p.copy(p.shared.tiny, "changed")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        return str(folder)

    return build


def _torn_variant(p: Any) -> str:
    p.done("prune", *_given(p, "magnitude", "--out", str(p.folder / "first")))
    folder = p.folder / "first" / "model"
    (folder / "variant.json").write_text('{"schema_version": 1, "name": "first"}\n')
    return str(folder)


def cases(case: Callable[..., Any]) -> list[Any]:
    """Each as `case(command, name, build, words)`."""
    return [case("prune", *each) for each in (
        ("no method", lambda p: ["--model", p.tiny], "--method"),
        ("a method that is none", _with("obliterate"), "--method"),
        ("all weights", _with("wanda", "--zeros.sparsity", "1"), "field 'zeros.sparsity'"),
        ("no weights", _with("magnitude", "--zeros.sparsity", "0"), "field 'zeros.sparsity'"),
        ("a share that is no number", _with("magnitude", "--zeros.sparsity", "half"), "sparsity"),
        ("a share too small for a row", _with("wanda", "--zeros.sparsity", "0.001"), "each choice rounds down"),
        ("a pattern that is none", _with("wanda", "--zeros.pattern", "3:4"), "pattern"),
        ("a pattern and another share", _with("wanda", "--zeros.pattern", "2:4", "--zeros.sparsity", "0.7"),
         "leave sparsity out"),
        ("layers that are not there", _with("wanda", "--zeros.targets", "up_proj", "dwon_proj"),
         "'dwon_proj' fits no layer"),
        ("settings of another method", _with("wanda", "--depth.layers", "1"), "no settings under `depth`"),
        ("zeros for depth", _with("depth", "--zeros.sparsity", "0.3"), "no settings under `zeros`"),
        ("all blocks", _with("depth", "--depth.layers", "2"), "2 of the model's 2 blocks"),
        ("a share of less than one block", _with("depth", "--depth.share", "0.01"), "field 'depth.share'"),
        ("no block", _with("depth", "--depth.layers", "0"), "field 'depth.layers'"),
        ("more windows to rank by than there are", _with("depth", "--depth.windows", "9"), "raise the latter"),
        ("all channels", _with("width", "--width.channels", "1"), "field 'width.channels'"),
        ("less than one channel", _with("width", "--width.channels", "0.001"), "less than one"),
        ("all attention groups", _with("width", "--width.groups", "2"), "leave out 1 at most"),
        ("nothing to narrow", _with("width", "--width.channels", "0"), "leaves nothing out"),
        ("a number of heads that no loader takes", _of(
            lambda p: _config({"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 3})(p), "width"),
         "does not load"),
        ("blocks of another kind, for zeros", _of(lambda p: str(p.shared.gpt2), "sparsegpt"), "hold no Linear layers"),
        ("blocks of another kind, to cut", _of(lambda p: str(p.shared.gpt2), "depth"), "'gpt2' can't be cut"),
        ("a reward model", _of(lambda p: p.reward), "a reward model"),
        ("no model", _of(lambda p: str(p.folder / "nowhere" / "at" / "all")), "field 'model'"),
        ("a quantized model", _of(_config({"quantization_config": {"quant_method": "compressed-tensors"}})),
         "quantized"),
        ("a model quantized in a way that is not known",
         _of(_config({"quantization_config": {"quant_method": "awq"}})), "quantized by 'awq'"),
        ("weights cut off", _of(lambda p: p.torn(p.shared.tiny, "model.safetensors")), "does not load"),
        ("a source whose variant.json is damaged", _of(_torn_variant), "variant.json"),
        ("calibration text that is not there", lambda p: _given(p, "wanda", "--calibration.data", "nowhere.jsonl"),
         "no such file"),
        ("calibration text of no known form", _text([{"question": "Q", "answer": "A"}]), "none of the known forms"),
        ("calibration text without words", _text([{"text": " "}]), "no text in this row"),
        ("too little calibration text", _text([{"text": "Few words."}]), "--calibration.windows"),
        ("too little held-out text", _text([{"text": "Few words."}], "held-out"), "--held-out.windows"),
        ("windows longer than the context", _with("wanda", "--calibration.length", "300"), "context of 256"),
        ("held-out windows longer than the context", _with("wanda", "--held-out.length", "300"),
         "field 'held-out.length'"),
        ("calibration text in other bytes",
         lambda p: _given(p, "wanda", "--calibration.data", p.raw("a.txt", b"\xff\xfe\x00")), "not UTF-8"),
        ("no damping", _with("sparsegpt", "--zeros.damping", "0"), "field 'zeros.damping'"),
    )]
