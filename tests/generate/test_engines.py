"""One call for every engine: what it loads, what it refuses, and that engines say the same of the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from trivet.artifacts import Message
from trivet.data.chat import prompt_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.training.device import Compute

CPU = Compute("cpu", torch.float32, 1)
QUESTIONS = ["What should I cook tonight?", "Count to five.", "Is the moon made of cheese, and if so of which?"]


def ids(tokenizer) -> list[list[int]]:
    return [prompt_ids(tokenizer, [Message(role="user", content=q)]) for q in QUESTIONS]


def test_a_plain_folder_is_decoded_by_torch(any_tiny_model_folder: Path) -> None:
    with load_engine(any_tiny_model_folder, CPU) as loaded:
        assert loaded.format == "safetensors" and loaded.context == 256 and not loaded.plain_template
        model = AutoModelForCausalLM.from_pretrained(any_tiny_model_folder).eval()
        (prompt, *_) = ids(loaded.tokenizer)
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8,
                             attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
        ((answer,),) = loaded.engine.generate([prompt], Sampling(temperature=0, max_new_tokens=8), n=1, seeds=[0])
        assert list(answer.token_ids) == out[0, len(prompt):].tolist()
        expected = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
        found = loaded.engine.distribution(prompt)
        assert found.shape == expected.shape and found.dtype == "float32"
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)
        (scored,) = loaded.engine.score([prompt[:3]], [prompt[3:]])
        assert scored == pytest.approx([float(found[k - 1, prompt[k]]) for k in range(3, len(prompt))], abs=1e-4)


def test_a_model_without_a_template_gets_the_plain_one(make_tiny, tmp_path: Path) -> None:
    with load_engine(make_tiny(tmp_path / "m", chat=False), CPU) as loaded:
        assert loaded.plain_template and loaded.tokenizer.chat_template


def test_errors_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match="no such folder") as caught:
        load_engine(tmp_path / "nothing", CPU, field="variants.2")
    assert caught.value.field == "variants.2"


def test_weights_beside_an_export_are_what_is_loaded(make_tiny, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "m")
    (folder / "other.gguf").write_bytes(b"GGUF")
    with load_engine(folder, CPU) as loaded:
        assert loaded.format == "safetensors"


@pytest.mark.parametrize("kind", ["gguf", "openvino"])
def test_sample_takes_an_export_and_says_what_its_source_says(kind: str, tiny_model_folder: Path, prompt_file: Path,
                                                              tmp_path: Path) -> None:
    """In float32, by the command: the same answers to the same seeds."""
    from trivet.cli import main
    from trivet.compress.gguf_export import export_gguf
    from trivet.compress.openvino_export import export_openvino
    from trivet.models.source import resolve

    export = tmp_path / "export"
    if kind == "gguf":
        export_gguf(resolve(str(tiny_model_folder)), export, "F32")
    else:
        export_openvino(resolve(str(tiny_model_folder)), export, 32)
    texts = []
    for name, model in (("plain", tiny_model_folder), ("exported", export)):
        main(["sample", "--prompts", str(prompt_file), "--model", str(model), "--completions", "2", "--out",
              str(tmp_path / name), "--sampling.max-new-tokens", "8", "--device.threads", "1", "--limit", "4"])
        rows = [json.loads(line) for line in (tmp_path / name / "completions.jsonl").read_text().splitlines()]
        texts.append([c["text"] for row in rows for c in row["completions"]])
    assert texts[0] == texts[1] and len(texts[0]) == 8
