"""What stands in variant.json is what the files say: bytes, parameters, zeros; and no other model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trivet.compress.measured import measured_parameters, measured_sparsity
from trivet.compress.variant import FILE, read_variant, write_variant
from trivet.errors import TrivetError
from trivet.models.formats import detect_format
from trivet.models.source import load_causal_lm, resolve


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def rewrite(folder: Path, change) -> None:
    """The weights of a folder, changed tensor by tensor."""
    weights = load_file(folder / "model.safetensors")
    save_file({n: change(n, w) for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_model_without_a_record_is_a_source_and_measured(any_tiny_model_folder: Path) -> None:
    found = read_variant(any_tiny_model_folder)
    model = load_causal_lm(resolve(str(any_tiny_model_folder)), torch.float32, "cpu")
    assert found.method == "source" and found.format == "safetensors"
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes == (any_tiny_model_folder / "model.safetensors").stat().st_size
    assert 32 < found.bits_per_weight < 36  # float32 and a header
    assert found.sparsity == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zeros_are_counted_in_the_matrices_of_the_blocks_alone(folder: Path, dtype) -> None:
    total = zeros = 0

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        nonlocal total, zeros
        weight = weight.to(dtype)
        if ".layers." not in name or weight.ndim < 2:
            return torch.zeros_like(weight)  # embeddings and norms: not counted
        weight[:, ::3] = 0.0
        weight[:, ::6] = -0.0
        total, zeros = total + weight.numel(), zeros + int((weight == 0).sum())
        return weight

    rewrite(folder, change)
    assert measured_sparsity(folder) == zeros / total > 0.3


def test_written_and_read_again(folder: Path, tiny_model_folder: Path) -> None:
    source = resolve(str(tiny_model_folder))
    written = write_variant(folder, name="half", method="magnitude", source=source, settings={"sparsity": 0.5},
                            notes=["zeros in a dense file: neither smaller nor faster"])
    assert read_variant(folder) == written
    assert written.source == str(tiny_model_folder) and len(written.source_sha256 or "") == 64
    # what is made of it keeps what was said of it, once
    again = write_variant(folder, name="q", method="rtn", source=resolve(str(folder)), settings={},
                          notes=[written.notes[0], "another"])
    assert again.notes == [written.notes[0], "another"]


def test_packed_weights_count_by_their_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"model.layers.0.mlp.up_proj.weight_packed": torch.zeros(64, 4, dtype=torch.int32),
               "model.layers.0.mlp.up_proj.weight_scale": torch.zeros(64, 1),
               "model.layers.0.mlp.up_proj.weight_shape": torch.tensor([64, 32]),
               "model.layers.0.mlp.down_proj.weight": torch.zeros(32, 64, dtype=torch.int8),
               "model.layers.0.mlp.down_proj.weight_scale": torch.zeros(32, 1),
               "model.norm.weight": torch.zeros(32)}, folder / "model.safetensors")
    assert detect_format(folder) == "compressed-tensors"
    assert measured_parameters(folder, "compressed-tensors") == 64 * 32 + 32 * 64 + 32


def test_gguf_is_measured_by_its_own_header(tmp_path: Path) -> None:
    import gguf
    import numpy

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("a.weight", numpy.zeros((8, 32), numpy.float32))
    eight = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("b.weight", gguf.quants.quantize(numpy.ones((4, 64), numpy.float32), eight), raw_dtype=eight)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = read_variant(tmp_path / "m.gguf")
    assert found == read_variant(tmp_path).model_copy(update={"name": "m.gguf", "source": str(tmp_path / "m.gguf")})
    assert found.format == "gguf" and found.parameters == 8 * 32 + 4 * 64 and found.sparsity is None
    shutil.copy(tmp_path / "m.gguf", tmp_path / "n.gguf")
    with pytest.raises(TrivetError, match="several GGUF files"):
        read_variant(tmp_path)


def test_openvino_needs_its_record(tmp_path: Path, tiny_model_folder: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    (tmp_path / "openvino_model.bin").write_bytes(bytes(1000))
    with pytest.raises(TrivetError, match="does not say how many parameters"):
        read_variant(tmp_path)
    written = write_variant(tmp_path, name="ov", method="openvino", source=resolve(str(tiny_model_folder)),
                            settings={}, parameters=900, sparsity=0.25)
    assert read_variant(tmp_path) == written
    assert written.bytes == 1006 and written.sparsity == 0.25 and written.bits_per_weight == 1006 * 8 / 900


def test_a_record_of_other_weights_is_refused(folder: Path, tiny_model_folder: Path) -> None:
    write_variant(folder, name="x", method="magnitude", source=resolve(str(tiny_model_folder)), settings={})
    rewrite(folder, lambda _, w: w.half())
    with pytest.raises(TrivetError, match=r"variant\.json speaks of \d+ bytes of safetensors, beside it stand \d+"):
        read_variant(folder)


@pytest.mark.parametrize(("text", "words"), [
    ("{", "broken JSON"), ("[]", "this holds a list"), ('{"name": "x"}', "this field is missing"),
    ('{"name": "x", "colour": 1}', "not known|missing")])
def test_a_damaged_record_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(TrivetError, match=words):
        read_variant(folder)


@pytest.mark.parametrize("cut", [3, 100, -10])
def test_damaged_weights_are_refused(folder: Path, cut: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(TrivetError, match="these weights are damaged"):
        read_variant(folder)


def test_what_is_no_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(TrivetError, match="this folder is no model"):
        read_variant(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(TrivetError, match="quantized by 'gptq'"):
        read_variant(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(TrivetError, match="an adapter has no weights of its own"):
        read_variant(folder)
