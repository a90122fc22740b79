"""OpenVINO: the graph says what the model says, whatever the batch, and its files hold what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import build_tiny, make_tokenizer
from exports import CPU, LLAMA3, TEXT, build, largest_difference
from trivet.compress.fake_quant import linear_layers
from trivet.compress.grid import round_to_nearest
from trivet.compress.openvino_export import export_openvino, write_openvino
from trivet.compress.openvino_graph import constants, stored_matrix
from trivet.compress.quantize_config import Grid
from trivet.errors import TrivetError
from trivet.generate import openvino_engine
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.models.source import load_causal_lm, resolve
from trivet.training.device import Compute


def exported(model: Path, folder: Path, bits: Any = 32, **settings: Any) -> Path:
    export_openvino(resolve(str(model)), folder, bits, **settings)
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_float32_graph_continues_as_the_model_does(kind: str, tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m", kind)
    folder = exported(model, tmp_path / "o")
    assert largest_difference(model, folder) < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with load_engine(folder, CPU, batch_size=4) as loaded:
        assert (loaded.format, loaded.context) == ("openvino", 256)
        prompts = [loaded.tokenizer(t)["input_ids"] for t in (TEXT, "Is the moon", "Count to five: one two")]
        answers = loaded.engine.generate(prompts, Sampling(temperature=0, max_new_tokens=24), n=2, seeds=[0, 1, 2])
        for prompt, (answer, again) in zip(prompts, answers, strict=True):
            out = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24,
                                 attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
            assert list(answer.token_ids) == out[0, len(prompt):].tolist() == list(again.token_ids)


@pytest.mark.parametrize("changes", [
    {"rope_parameters": LLAMA3}, {"num_key_value_heads": 4}, {"tie_word_embeddings": True}, {"attention_bias": True},
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},  # narrowed: heads · size is not the width
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0,
                         "original_max_position_embeddings": 128}},
], ids=["llama3", "no groups", "tied", "biases", "narrow", "yarn"])
def test_every_shape_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    model = build(tmp_path / "m", **changes)
    assert largest_difference(model, exported(model, tmp_path / "o")) < 1e-5


def test_samples_are_those_of_the_torch_engine_whatever_the_batch(tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m")
    folder = exported(model, tmp_path / "o")
    sampling = Sampling(temperature=0.8, top_k=40, max_new_tokens=16)
    with load_engine(model, CPU) as torch_side, load_engine(folder, CPU, batch_size=2) as small, \
            load_engine(folder, CPU, batch_size=16) as large:
        # many stop tokens, so that rows end at different times and leave
        for side in (torch_side, small, large):
            side.engine.stops = frozenset(range(0, 370, 9))
        prompts = [small.tokenizer(t)["input_ids"] for t in (TEXT, "Is the moon", TEXT[:9])]
        told: list[int] = []
        large.engine.progress = told.append
        found = [x.engine.generate(prompts, sampling, n=4, seeds=[5, 6, 7]) for x in (torch_side, small, large)]
        tokens = [[[g.token_ids for g in group] for group in side] for side in found]
        assert tokens[0] == tokens[1] == tokens[2] and sum(told) == 12
        assert len({len(t) for group in tokens[0] for t in group}) > 2
        for ours, theirs in zip(found[0], found[2], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert b.logps == pytest.approx(a.logps, abs=1e-3) and a.ended == b.ended
        answers = [group[0].token_ids for group in found[0]]
        for a, b in zip(torch_side.engine.score(prompts, answers, 0.7), small.engine.score(prompts, answers, 0.7),
                        strict=True):
            assert b == pytest.approx(a, abs=1e-3)
        with pytest.raises(TrivetError, match="no tokens"):
            large.engine.generate([[]], sampling, n=1, seeds=[0])


@pytest.mark.parametrize(("bits", "symmetric", "stored"), [(8, True, 8), (4, True, 4), (4, False, 4)])
def test_the_files_hold_codes_of_the_weights(bits: Any, symmetric: bool, stored: int, tmp_path: Path) -> None:
    model = build(tmp_path / "m", tie_word_embeddings=True, hidden_size=64, intermediate_size=96)
    found = export_openvino(resolve(str(model)), tmp_path / "o", bits, group=32, symmetric=symmetric)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    graph = ov.Core().read_model(found.file)
    kept = constants(graph)
    zeros = elements = 0
    for name, values in plain.items():
        if values.ndim == 2 and name.startswith("model.layers."):
            back = stored_matrix(kept, name)
            groups = kept[f"{name}/scale"].get_output_shape(0)
            assert list(groups) == [values.shape[0], *([values.shape[1] // 32] if bits == 4 else []), 1]
            assert kept[f"{name}/codes"].get_element_type().bitwidth == stored
            step = values.abs().max().item() / (2 ** (bits - 1) - 1)
            assert np.abs(back - values.numpy()).max() <= 1.01 * step
            zeros, elements = zeros + int((back == 0).sum()), elements + back.size
    assert found.sparsity == zeros / elements
    assert "lm_head.weight/codes" not in kept and "model.embed_tokens.weight/codes" in kept
    assert found.parameters == sum(v.numel() for n, v in plain.items() if n != "lm_head.weight")
    # OpenVINO computes with them what numpy computes with them
    changed = load_causal_lm(resolve(str(model)), torch.float32, "cpu")
    with torch.no_grad():
        for name, value in changed.named_parameters():
            if value.ndim == 2:
                value.copy_(torch.from_numpy(stored_matrix(kept, name)))
    with load_engine(tmp_path / "o", CPU) as loaded:
        ids = loaded.tokenizer(TEXT)["input_ids"]
        expected = changed(input_ids=torch.tensor([ids])).logits[0].softmax(-1).detach().numpy()
        assert np.abs(np.exp(loaded.engine.distribution(ids)) - expected).max() < 0.02


@pytest.mark.parametrize("scales", ["bfloat16", "float32"])
@pytest.mark.parametrize("group", [16, None])
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (4, False), (4, True)])
def test_any_grid_is_stored_as_it_was_computed(scales: Any, group: int | None, bits: Any, symmetric: bool,
                                               tmp_path: Path) -> None:
    model: Any = load_causal_lm(resolve(str(build_tiny(tmp_path / "m"))), torch.float32, "cpu")
    grid = Grid(bits=bits, group=group, symmetric=symmetric, scales=scales)
    quantized = {name: round_to_nearest(layer.weight, grid) for name, layer in linear_layers(model).items()}
    tokenizer = make_tokenizer()
    found = write_openvino(model, tokenizer, tmp_path / "o", quantized, bits=bits)
    kept = constants(ov.Core().read_model(found.file))
    for name, expected in quantized.items():
        assert np.array_equal(stored_matrix(kept, f"{name}.weight"), expected.weight().numpy())
        assert kept[f"{name}.weight/codes"].get_element_type().bitwidth == bits
    with torch.no_grad():
        for name, layer in linear_layers(model).items():
            layer.weight.copy_(quantized[name].weight())
    with load_engine(tmp_path / "o", CPU) as loaded:
        ids = loaded.tokenizer(TEXT)["input_ids"]
        expected = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1).detach().numpy()
        assert np.abs(np.exp(loaded.engine.distribution(ids)) - expected).max() < 0.02


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    """A pruned model's zeros are on every grid, and are counted on the file."""
    model = build(tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if value.ndim == 2 and name.startswith("model.layers."):
                value[:, ::2] = 0
    plain.save_pretrained(model)
    for bits, symmetric in ((8, True), (4, True), (4, False), (16, True)):
        found = export_openvino(resolve(str(model)), tmp_path / f"o{bits}{symmetric}", bits, group=16,  # type: ignore
                                symmetric=symmetric)
        assert 0.5 <= found.sparsity < 0.65


def test_rows_that_are_no_multiple_of_the_group_have_one_scale_and_it_is_said(tmp_path: Path) -> None:
    model = build(tmp_path / "m", intermediate_size=72)
    found = export_openvino(resolve(str(model)), tmp_path / "o", 4, group=32)
    assert found.notes == ("2 of its matrices have rows that are no multiple of 32 long: one scale for each row",)
    assert largest_difference(model, tmp_path / "o") < 0.3


def test_four_bits_without_groups_have_a_scale_for_each_row(tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m")
    found = export_openvino(resolve(str(model)), tmp_path / "o", 4, group=None)
    kept = constants(ov.Core().read_model(found.file))
    assert list(kept["model.layers.0.mlp.down_proj.weight/scale"].get_output_shape(0)) == [32, 1] and not found.notes


def test_what_can_not_be_exported_or_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrivetError, match="kind 'gpt2'"):
        exported(build_tiny(tmp_path / "gpt2", "gpt2"), tmp_path / "a")
    with pytest.raises(TrivetError, match="activation is 'gelu'"):
        exported(build(tmp_path / "gelu", hidden_act="gelu"), tmp_path / "b")
    with pytest.raises(TrivetError, match="depend on the length"):
        exported(build(tmp_path / "dynamic", rope_parameters={
            "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), tmp_path / "c")
    assert not list(tmp_path.glob("[abc]/openvino*"))
    folder = exported(build_tiny(tmp_path / "m"), tmp_path / "o")
    with pytest.raises(TrivetError, match="on the CPU here"):
        load_engine(folder, Compute("cuda", torch.float32, 1, chosen=True))
    with pytest.raises(TrivetError, match="export to openvino"):
        load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
    weights = folder / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(TrivetError, match="OpenVINO does not load this model"):
        load_engine(folder, CPU)
    (folder / "openvino_model.xml").write_text("<no graph>")
    with pytest.raises(TrivetError, match="OpenVINO does not load this model"):
        load_engine(folder, CPU)
    ids = ov.opset13.parameter([1, 2], name="ids")
    ids.output(0).get_tensor().set_names({"ids"})
    ov.save_model(ov.Model([ov.opset13.abs(ids)], [ids]), folder / "openvino_model.xml")
    with pytest.raises(TrivetError, match=r"takes other inputs \(ids\)"):
        load_engine(folder, CPU)
    monkeypatch.setattr(openvino_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrivetError, match="not installed"):
        load_engine(folder, CPU)


@pytest.mark.real_weights
def test_the_embedded_model_in_eight_bits_says_nearly_the_same(tmp_path: Path) -> None:
    source = resolve("smollm2-135m-instruct")
    found = export_openvino(source, tmp_path / "o", 8)
    assert found.parameters == 134_515_008
    assert 8.0 < found.file.with_suffix(".bin").stat().st_size * 8 / found.parameters < 8.1
    with load_engine(tmp_path / "o", CPU) as loaded, load_engine("smollm2-135m-instruct", CPU) as plain:
        ids = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                                   add_generation_prompt=True, return_dict=False)
        ours, theirs = (x.engine.distribution(ids) for x in (loaded, plain))
        assert (np.exp(theirs) * (theirs - ours)).sum(-1).mean() < 0.03
        # not all: after the question "The …" and "L'Étoile …" are 0.1 nats apart
        assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > 0.8
