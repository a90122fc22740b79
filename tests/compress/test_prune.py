"""The stage `prune`: what it says is measured on what it saved, and what it saved loads anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trivet.artifacts import read_json
from trivet.cli import main
from trivet.compress.perplexity import perplexity
from trivet.compress.prune import PruneSummary
from trivet.compress.prune_config import PruneConfig
from trivet.compress.variant import read_variant
from trivet.config import EMBEDDED
from trivet.data.corpus import default_text, read_windows
from trivet.errors import TrivetError
from trivet.stages import STAGES, run_stage

SHORT = {"calibration": {"windows": 6, "length": 32}, "held_out": {"windows": 4, "length": 48},
         "device": {"threads": 1}}
METHODS = ["magnitude", "wanda", "sparsegpt", "depth", "width"]


def prune(model: Path, out: Path, method: str, **more: object) -> PruneSummary:
    settings = SHORT | {"depth": {"windows": 2, "layers": 1}} if method == "depth" else SHORT
    summary = run_stage(STAGES["prune"], PruneConfig(method=method, model=str(model), out=out, **settings | more))
    assert isinstance(summary, PruneSummary)
    return summary


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_a_model_that_loads_and_answers(method, tiny_model_folder, tmp_path) -> None:
    summary = prune(tiny_model_folder, tmp_path / "out", method)
    folder = tmp_path / "out" / "model"
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Is it red?", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None).shape[1] == ids.shape[1] + 4
    variant = read_variant(folder)
    assert (variant.method, variant.source, variant.notes) == (method, str(tiny_model_folder), [summary.note])
    assert variant.parameters == summary.parameters == sum(p.numel() for p in model.parameters())
    # what is said of it was measured on it
    text = read_windows(default_text("held-out"), tokenizer, 48, 4)
    assert summary.perplexity == pytest.approx(perplexity(model.eval(), text), rel=1e-3)
    source = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    assert summary.perplexity_before == pytest.approx(perplexity(source, text), rel=1e-3)
    smaller = method in {"depth", "width"}
    assert (summary.parameters < summary.parameters_before) == smaller == summary.note.startswith("really smaller")
    assert smaller or "neither smaller nor faster" in summary.note


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for n, t in load_file(folder / "model.safetensors").items() if ".layers." in n and t.dim() == 2}


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize(("zeros", "expected"), [({"sparsity": 0.3}, 0.3), ({"pattern": "2:4"}, 0.5),
                                                 ({"pattern": "4:8"}, 0.5)])
def test_the_zeros_are_in_the_file(method, zeros, expected, tiny_model_folder, tmp_path) -> None:
    summary = prune(tiny_model_folder, tmp_path / "out", method, zeros=zeros)
    found = matrices(tmp_path / "out" / "model")
    share = sum(int((t == 0).sum()) for t in found.values()) / sum(t.numel() for t in found.values())
    assert summary.sparsity == pytest.approx(share, abs=1e-6) == pytest.approx(expected, abs=0.02)
    for tensor in found.values():
        assert float((tensor == 0).float().mean()) == pytest.approx(expected, abs=0.03)
        if "pattern" in zeros:
            n, m = map(int, zeros["pattern"].split(":"))
            assert ((tensor == 0).view(len(tensor), -1, m).sum(-1) == n).all()
    if method != "sparsegpt":  # the weights that stay are the source's
        source = matrices(tiny_model_folder)
        assert all(torch.equal(t[t != 0], source[n][t != 0]) for n, t in found.items())


def test_chosen_layers_alone_are_pruned(tiny_model_folder, tmp_path) -> None:
    summary = prune(tiny_model_folder, tmp_path / "out", "wanda", zeros={"targets": ["up_proj", "down_proj"]})
    found, source = matrices(tmp_path / "out" / "model"), matrices(tiny_model_folder)
    for name, tensor in found.items():
        pruned = name.endswith(("up_proj.weight", "down_proj.weight"))
        assert float((tensor == 0).float().mean()) == (0.5 if pruned else 0.0)
        assert pruned or torch.equal(tensor, source[name])
    whole = sum(t.numel() for t in found.values())
    assert summary.sparsity == pytest.approx(2 * 2 * 32 * 64 * 0.5 / whole, abs=1e-6)


def test_the_whole_decides_not_the_size_of_a_batch(tiny_model_folder, tmp_path) -> None:
    first = prune(tiny_model_folder, tmp_path / "a", "wanda", batch_size=1)
    second = prune(tiny_model_folder, tmp_path / "b", "wanda", batch_size=6)
    assert first.perplexity == pytest.approx(second.perplexity, rel=1e-3)


def test_the_precision_of_the_source_is_kept_unless_told_otherwise(tiny_model_folder, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "half")
    for name, source, asked, expected in (("a", tmp_path / "half", "auto", torch.bfloat16),
                                          ("b", tmp_path / "half", "float32", torch.float32),
                                          ("c", tiny_model_folder, "auto", torch.float32),
                                          ("d", tiny_model_folder, "bfloat16", torch.bfloat16)):
        prune(source, tmp_path / name, "sparsegpt", dtype=asked)
        assert {t.dtype for t in load_file(tmp_path / name / "model" / "model.safetensors").values()} == {expected}


def test_what_was_removed_is_written_down(tiny_model_folder, tmp_path) -> None:
    prune(tiny_model_folder, tmp_path / "d", "depth")
    (removed,) = read_variant(tmp_path / "d" / "model").settings["removed"]
    assert removed["layer"] in {0, 1} and removed["loss_without"] > 0
    prune(tiny_model_folder, tmp_path / "w", "width", width={"channels": 0.5, "groups": 1})
    settings = read_variant(tmp_path / "w" / "model").settings
    assert settings["channels_removed"] == 32 and len(settings["channel_errors"]) == len(settings["group_errors"]) == 2
    config = read_json(tmp_path / "w" / "model" / "config.json")
    assert (config["intermediate_size"], config["num_key_value_heads"], config["num_attention_heads"]) == (32, 1, 2)


def test_one_after_the_other(tiny_model_folder, tmp_path) -> None:
    """A variant is a model like any other: what is said of the first stays said of the second."""
    prune(tiny_model_folder, tmp_path / "w", "width")
    prune(tmp_path / "w" / "model", tmp_path / "s", "wanda")
    variant = read_variant(tmp_path / "s" / "model")
    assert variant.source == str(tmp_path / "w" / "model") and len(variant.notes) == 2
    assert variant.notes[0].startswith("really smaller")


def test_an_adapter_is_merged_first(tiny_model_folder, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), LoraConfig(
        target_modules=["up_proj"], task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    prune(tmp_path / "adapter", tmp_path / "out", "magnitude", zeros={"sparsity": 0.01})
    merged, found = matrices(tiny_model_folder), matrices(tmp_path / "out" / "model")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged[name][found[name] != 0], found[name][found[name] != 0])


def test_one_file_for_both_texts_is_parted(tiny_model_folder, tmp_path, jsonl) -> None:
    texts = jsonl("texts.jsonl", [{"text": f"Sentence {i} is about red and green things of all kinds."}
                                  for i in range(60)])
    both = {"calibration": {"data": texts, "windows": 3, "length": 32}, "held_out": {"data": texts, "length": 32}}
    prune(tiny_model_folder, tmp_path / "out", "wanda", **both)
    # another seed draws other calibration text; what is measured on stays
    again = prune(tiny_model_folder, tmp_path / "again", "wanda", **both, seed=5)
    first = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert again.perplexity_before == first["perplexity_before"]


@pytest.mark.parametrize(("method", "more", "words"), [
    ("depth", {"depth": {"layers": 2, "windows": 2}}, "2 of the model's 2 blocks"),
    ("depth", {"depth": {"share": 0.1, "windows": 2}}, "0 of the model's 2 blocks"),
    ("width", {"width": {"groups": 2}}, "2 attention groups"),
    ("width", {"width": {"channels": 0.01}}, "less than one"),
    ("wanda", {"zeros": {"targets": ["up_porj"]}}, "'up_porj' fits no layer"),
    ("wanda", {"zeros": {"targets": []}}, "no layers are named"),
    ("wanda", {"zeros": {"sparsity": 0.01}}, "no weight of model.layers.0.self_attn.q_proj"),
    ("wanda", {"calibration": {"length": 600}}, "longer than the model's context of 256"),
])
def test_what_does_not_fit_the_model_is_refused_before_anything_is_written(
        method, more, words, tiny_model_folder, tmp_path) -> None:
    with pytest.raises(TrivetError, match=words):
        prune(tiny_model_folder, tmp_path / "out", method, **more)
    assert not (tmp_path / "out" / "model").exists()


def test_settings_of_another_method_are_refused() -> None:
    with pytest.raises(ValueError, match="no settings under `depth`"):
        PruneConfig(method="wanda", out=Path("x"), depth={"layers": 3})
    with pytest.raises(ValueError, match="leave sparsity out"):
        PruneConfig(method="wanda", out=Path("x"), zeros={"pattern": "2:4", "sparsity": 0.4})
    with pytest.raises(ValueError, match="leaves nothing out"):
        PruneConfig(method="width", out=Path("x"), width={"channels": 0})


def test_gpt2_can_t_be_pruned_here(make_tiny, tmp_path) -> None:
    with pytest.raises(TrivetError, match="hold no Linear layers"):
        prune(make_tiny(tmp_path / "gpt2", "gpt2"), tmp_path / "out", "wanda")


@pytest.mark.real_weights
def test_the_known_order_on_real_weights(tmp_path, capsys) -> None:
    """At half of the weights SparseGPT loses less than Wanda, and Wanda less than magnitude."""
    text = str(default_text("calibration"))  # one file for both, parted
    common = ["--model", EMBEDDED, "--calibration.data", text, "--calibration.windows", "12", "--calibration.length",
              "256", "--held-out.data", text, "--held-out.windows", "6", "--held-out.length", "256"]
    found = {}
    for method in METHODS[:3]:
        main(["prune", "--method", method, "--out", str(tmp_path / method), *common])
        found[method] = json.loads((tmp_path / method / "summary.json").read_text())
    dense = found["wanda"]["perplexity_before"]
    assert dense < found["sparsegpt"]["perplexity"] < found["wanda"]["perplexity"] < found["magnitude"]["perplexity"]
    assert all(abs(f["sparsity"] - 0.5) < 0.001 for f in found.values())
    assert found["sparsegpt"]["bytes"] == found["magnitude"]["bytes"]  # in the source's precision, and no smaller
