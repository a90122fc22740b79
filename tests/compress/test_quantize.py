"""The stage `quantize`: what is written is what was computed, in every form, and is measured on the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trivet.cli import main
from trivet.compress.compared import compare
from trivet.compress.fake_quant import linear_layers
from trivet.compress.grid import round_to_nearest
from trivet.compress.perplexity import perplexity
from trivet.compress.quantize import TOKEN
from trivet.compress.quantize_config import Grid
from trivet.compress.variant import read_variant
from trivet.models.source import load_causal_lm, resolve

TEXT = [{"text": f"Question {i}: is the moon made of cheese? No, it is made of rock and dust, {i} times."}
        for i in range(60)]
BRIEF = ["--group", "16", "--held-out.windows", "3", "--held-out.length", "32", "--calibration.windows", "8",
         "--calibration.length", "32", "--device.threads", "1"]


@pytest.fixture
def quantize(tiny_model_folder: Path, tmp_path: Path, jsonl):
    """Run the stage on a tiny model; its folder and its summary."""
    text = str(jsonl("text.jsonl", TEXT))

    def run(*more: str, model: Path = tiny_model_folder, out: str = "out") -> tuple[Path, dict]:
        main(["quantize", "--model", str(model), "--calibration.data", text, "--held-out.data", text, "--out",
              str(tmp_path / out), *BRIEF, *more])
        return tmp_path / out / "model", json.loads((tmp_path / out / "summary.json").read_text())

    return run


def load(folder: Path | str):
    return load_causal_lm(resolve(str(folder)), torch.float32, "cpu")


def weights(model) -> dict[str, torch.Tensor]:
    return {n: m.weight.detach().clone() for n, m in linear_layers(model).items()}


GRIDS = [(b, g, s) for b in (4, 8) for g in ("16", "None") for s in (True, False)]


@pytest.mark.parametrize(("bits", "group", "symmetric"), GRIDS)
def test_both_forms_hold_the_same_numbers(quantize, tiny_model_folder, bits, group, symmetric) -> None:
    pytest.importorskip("compressed_tensors")
    asked = ["--bits", str(bits), "--group", group, "--symmetric" if symmetric else "--no-symmetric"]
    plain, said = quantize(*asked, out="plain")
    packed, said_packed = quantize(*asked, "--format", "compressed-tensors", out="packed")
    grid = Grid(bits=bits, group=None if group == "None" else 16, symmetric=symmetric)
    expected = {n: round_to_nearest(w, grid).weight() for n, w in weights(load(tiny_model_folder)).items()}
    for folder in (plain, packed):
        found = weights(load(folder))
        assert all(torch.equal(found[n], expected[n]) for n in expected) and found.keys() == expected.keys()
    # embeddings and norms are bfloat16 in the packed form, and the only difference
    assert said_packed["perplexity"] == pytest.approx(said["perplexity"], rel=0.02)
    variant, reference = read_variant(packed), read_variant(plain)
    assert variant.parameters == reference.parameters == said["parameters"]
    assert variant.sparsity == reference.sparsity
    assert variant.bytes < 0.6 * reference.bytes and "the file is not smaller" in reference.notes[0]
    assert any("GPUs alone" in n for n in variant.notes) == (bits == 8)


def test_an_unpacked_model_is_an_ordinary_one(quantize, tmp_path, tiny_model_folder) -> None:
    pytest.importorskip("compressed_tensors")
    packed, _ = quantize("--format", "compressed-tensors")
    model = load(packed)
    original = load(tiny_model_folder)
    assert set(model.state_dict()) == set(original.state_dict())
    assert all(type(m) is torch.nn.Linear and "forward" not in vars(m) for m in linear_layers(model).values())
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_transformers_alone_loads_the_packed_form(quantize) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    packed, _ = quantize("--format", "compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, load(packed)(input_ids=ids).logits, atol=1e-5)


def test_rounded_inputs(quantize) -> None:
    """Integers on both sides: the saved form says so, and the model computes with rounded inputs."""
    pytest.importorskip("compressed_tensors")
    asked = ["--bits", "8", "--group", "None", "--format", "compressed-tensors"]
    packed, _ = quantize(*asked, "--activations", "8", out="a8")
    plain, _ = quantize(*asked, out="w8")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        rounded, exact = (load(f)(input_ids=ids).logits for f in (packed, plain))
    assert not torch.equal(rounded, exact)
    assert float((rounded - exact).norm() / exact.norm()) < 0.05
    assert load_file(packed / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    assert config["config_groups"]["group_0"]["input_activations"]["dynamic"] is True


def test_gptq_is_nearer_to_the_source_than_rounding(quantize, tiny_model_folder) -> None:
    found = {method: quantize("--method", method, "--bits", "3", *more, out=f"{method}{len(more)}")[1]
             for method, more in (("rtn", []), ("gptq", []))}
    ordered = quantize("--method", "gptq", "--bits", "3", "--act-order", out="ordered")[1]
    assert found["gptq"]["kl"]["value"] < 0.9 * found["rtn"]["kl"]["value"]
    assert ordered["kl"]["value"] < 0.9 * found["rtn"]["kl"]["value"]
    # further from the weights, nearer in what they do
    assert found["gptq"]["weight_error"] > found["rtn"]["weight_error"]


def test_embeddings_at_8_bits_and_what_is_tied_to_them(quantize, tiny_model_folder, tmp_path, capsys) -> None:
    original = load(tiny_model_folder)
    assert original.lm_head.weight is not original.model.embed_tokens.weight
    folder, said = quantize("--embeddings", "8", "--head", "8")
    found = load(folder)
    for name in ("model.embed_tokens", "lm_head"):
        assert torch.equal(found.get_submodule(name).weight,
                           round_to_nearest(original.get_submodule(name).weight, TOKEN).weight())
    assert 0.9 < said["quantized_share"] < 1
    original.config.tie_word_embeddings = True
    original.tie_weights()
    original.save_pretrained(tmp_path / "tied")
    for file in tiny_model_folder.glob("*token*"):
        (tmp_path / "tied" / file.name).write_bytes(file.read_bytes())
    folder, _ = quantize("--embeddings", "8", model=tmp_path / "tied", out="tied-out")
    found = load(folder)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(found.lm_head.weight, round_to_nearest(original.lm_head.weight, TOKEN).weight())
    assert any("tied" in note for note in read_variant(folder).notes)
    with pytest.raises(SystemExit) as stopped:
        quantize("--head", "8", model=tmp_path / "tied", out="head")
    assert stopped.value.code == 2 and "its embedding (tied)" in capsys.readouterr().err


def test_an_adapter_is_merged_and_a_quantized_model_refused(quantize, tiny_model_folder, tmp_path, capsys) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load(tiny_model_folder), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM",
                                                                 init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
    adapted.save_pretrained(tmp_path / "adapter")
    folder, _ = quantize("--bits", "8", model=tmp_path / "adapter")
    merged = weights(load(tmp_path / "adapter"))
    grid = Grid(bits=8, group=16)
    assert all(torch.equal(w, round_to_nearest(merged[n], grid).weight()) for n, w in weights(load(folder)).items())
    assert read_variant(folder).source == str(tmp_path / "adapter")
    packed, _ = quantize("--format", "compressed-tensors", out="packed")
    with pytest.raises(SystemExit):
        quantize(model=packed, out="again")
    assert "quantized already" in capsys.readouterr().err


def told(model):
    """What an engine tells of a text."""
    def distribution(ids):
        with torch.no_grad():
            return torch.log_softmax(model(input_ids=torch.tensor([list(ids)])).logits[0].float(), -1).numpy()

    return distribution


def test_outputs_compared_by_hand(tiny_model_folder, make_tiny, tmp_path) -> None:
    source, other = load(tiny_model_folder), load(make_tiny(tmp_path / "other", seed=3))
    windows = [torch.arange(10), torch.arange(30, 37)]
    found = compare(told(source), told(other), windows)
    kl = same = tokens = 0.0
    with torch.no_grad():
        for window in windows:
            for place in range(len(window) - 1):
                p, q = (torch.softmax(m(input_ids=window[None, : place + 1]).logits[0, -1].double(), -1)
                        for m in (source, other))
                kl += float((p * (p / q).log()).sum())
                same += float(p.argmax() == q.argmax())
                tokens += 1
    assert found.kl.value == pytest.approx(kl / tokens, rel=1e-4) and found.kl.n == 2
    assert found.agreement.value == pytest.approx(same / tokens)
    assert found.perplexity == pytest.approx(perplexity(other, windows), rel=1e-5)
    assert found.source_perplexity == pytest.approx(perplexity(source, windows), rel=1e-5)
    itself = compare(told(source), told(source), windows)
    assert itself.kl.value == pytest.approx(0, abs=1e-9) and itself.agreement.value == 1 and itself.log_ratio.value == 0


def test_the_forms_of_other_runtimes(quantize) -> None:
    """By their exporters, and compared by their own engines."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("openvino")
    plain = quantize("--bits", "8", "--group", "None", out="plain")[1]
    for more, method, settings in (
            (["--format", "gguf", "--type", "Q8_0", "--group", "64"], "gguf", {"type": "Q8_0", "embeddings": "8"}),
            (["--format", "openvino", "--bits", "8", "--group", "None"], "openvino", {"bits": 8, "embeddings": "8"})):
        folder, said = quantize(*more, out=method)
        variant = read_variant(folder)
        assert (variant.method, variant.format, variant.settings) == (method, method, settings)
        assert variant.parameters == plain["parameters"]
        assert said["source_perplexity"] == pytest.approx(plain["source_perplexity"], rel=1e-4)
        assert said["kl"]["value"] < 0.02 and said["perplexity"] == pytest.approx(said["source_perplexity"], rel=0.05)
        assert said["quantized_share"] is None


@pytest.mark.real_weights
def test_gptq_beats_rounding_at_four_bits_on_real_weights(tmp_path) -> None:
    """In groups of 64 around zero: the embedded model's own old grid has groups of 32 with a minimum each."""
    found = {}
    for method in ("rtn", "gptq"):
        main(["quantize", "--method", method, "--bits", "4", "--group", "64", "--calibration.windows", "12",
              "--calibration.length", "256", "--held-out.windows", "4", "--held-out.length", "256",
              "--out", str(tmp_path / method)])
        found[method] = json.loads((tmp_path / method / "summary.json").read_text())
        assert any("dequantized from 4 bits" in note for note in found[method]["notes"])
    assert found["gptq"]["perplexity"] < found["rtn"]["perplexity"]
    assert found["gptq"]["kl"]["high"] < found["rtn"]["kl"]["low"]


@pytest.mark.parametrize("form", ["gguf", "openvino"])
def test_what_was_rounded_is_not_rounded_again_by_another_runtime(quantize, tmp_path, capsys, form) -> None:
    rounded, _ = quantize(out="rounded")
    with pytest.raises(SystemExit) as ended:
        quantize("--format", form, *([] if form == "gguf" else ["--bits", "8"]), "--group", "64", model=rounded,
                 out="again")
    assert ended.value.code == 2 and not (tmp_path / "again/model").exists()
    said = capsys.readouterr().err
    assert "rounded already (rtn-4-g16)" in said and "give the model it was made of" in said


def test_settings_of_gptq_are_refused_without_it(quantize, capsys) -> None:
    for asked in (["--act-order"], ["--damping", "0.1"]):
        with pytest.raises(SystemExit) as ended:
            quantize(*asked)
        assert ended.value.code == 2 and "--method gptq" in capsys.readouterr().err
