"""GGUF: the file says what the model says, in llama.cpp too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from conftest import build_tiny, make_tokenizer
from exports import CPU, LLAMA3, TEXT, build, largest_difference
from trivet.compress.gguf_export import export_gguf, interleaved, llama3_factors, more_bits
from trivet.compress.gguf_tokenizer import PROBES, file_tokenizer
from trivet.errors import TrivetError
from trivet.generate import llama_cpp
from trivet.generate.config import Sampling
from trivet.generate.engines import compute_of, load_engine
from trivet.models.source import ModelSource, load_tokenizer, resolve
from trivet.training.device import Compute


def exported(model: Path, folder: Path, kind: Any = "F32", **settings: Any) -> Path:
    export_gguf(ModelSource(str(model), model), folder, kind, **settings)
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_float32_file_continues_as_the_model_does(kind: str, tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m", kind)
    folder = exported(model, tmp_path / "g")
    assert largest_difference(model, folder) < 1e-5
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with load_engine(folder, CPU, batch_size=3) as loaded:
        assert (loaded.format, loaded.context) == ("gguf", 256)
        prompts = [loaded.tokenizer(t)["input_ids"] for t in (TEXT, "Is the moon", "Count to five: one two")]
        answers = loaded.engine.generate(prompts, Sampling(temperature=0, max_new_tokens=24), n=2, seeds=[0, 1, 2])
        for prompt, (answer, again) in zip(prompts, answers, strict=True):
            out = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24,
                                 attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
            assert list(answer.token_ids) == out[0, len(prompt):].tolist() == list(again.token_ids)


@pytest.mark.parametrize("changes", [
    {"rope_parameters": LLAMA3}, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},  # narrowed: heads · size is not the width
    {"tie_word_embeddings": True}, {"attention_bias": True},
], ids=["llama3", "linear", "narrow", "tied", "biases"])
def test_every_shape_is_the_same_model(changes: dict[str, Any], tmp_path: Path) -> None:
    model = build(tmp_path / "m", **changes)
    assert largest_difference(model, exported(model, tmp_path / "g")) < 1e-5


def test_samples_are_those_of_the_torch_engine_whatever_the_batch(tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m")
    folder = exported(model, tmp_path / "g")
    sampling = Sampling(temperature=0.8, top_k=40, max_new_tokens=16)
    with load_engine(model, CPU) as torch_side, load_engine(folder, CPU, batch_size=2) as small, \
            load_engine(folder, CPU, batch_size=16) as large:
        prompts = [small.tokenizer(t)["input_ids"] for t in (TEXT, "Is the moon", TEXT[:9])]
        told: list[int] = []
        small.engine.progress = told.append
        found = [x.engine.generate(prompts, sampling, n=3, seeds=[5, 6, 7]) for x in (torch_side, small, large)]
        tokens = [[[g.token_ids for g in group] for group in side] for side in found]
        assert tokens[0] == tokens[1] == tokens[2] and sum(told) == 9
        for ours, theirs in zip(found[0], found[1], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert b.logps == pytest.approx(a.logps, abs=1e-3) and a.ended == b.ended
        answers = [group[0].token_ids for group in found[0]]
        for a, b in zip(torch_side.engine.score(prompts, answers, 0.7), small.engine.score(prompts, answers, 0.7),
                        strict=True):
            assert b == pytest.approx(a, abs=1e-3)


def test_stop_tokens_and_stop_strings_end_answers(tmp_path: Path) -> None:
    folder = exported(build_tiny(tmp_path / "m"), tmp_path / "g")
    with load_engine(folder, CPU, batch_size=4) as loaded:
        prompt = loaded.tokenizer(TEXT)["input_ids"]
        loaded.engine.stops = frozenset(range(0, 300, 5))
        (group,) = loaded.engine.generate([prompt], Sampling(max_new_tokens=40), n=9, seeds=[3])
        assert len({len(g.token_ids) for g in group}) > 2
        for g in group:
            assert g.ended == (g.token_ids[-1] in loaded.engine.stops)
            assert not set(g.token_ids[:-1]) & loaded.engine.stops
        loaded.engine.stops = frozenset()
        (group,) = loaded.engine.generate([prompt], Sampling(max_new_tokens=40, stop=["e"]), n=6, seeds=[3])
        ended = [loaded.tokenizer.decode(g.token_ids) for g in group if g.ended]
        assert ended and all("e" in text for text in ended)
        with pytest.raises(TrivetError, match="no tokens"):
            loaded.engine.generate([[]], Sampling(), n=1, seeds=[0])


def test_a_text_longer_than_one_reading_is_read_in_parts(tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m", context=2048)
    folder = exported(model, tmp_path / "g")
    with load_engine(model, CPU) as ours, load_engine(folder, CPU) as theirs:
        ids = (ours.tokenizer(TEXT)["input_ids"] * 80)[: 2 * llama_cpp.READ + 7]
        assert np.abs(np.exp(ours.engine.distribution(ids)) - np.exp(theirs.engine.distribution(ids))).max() < 1e-4


@pytest.mark.parametrize(("kind", "bits", "error"), [("Q8_0", 8.5, 0.01), ("Q4_0", 4.5, 0.15), ("Q5_1", 6.0, 0.08)])
def test_weights_come_back_within_their_step(kind: Any, bits: float, error: float, tmp_path: Path) -> None:
    model = build(tmp_path / "m")
    found = export_gguf(resolve(str(model)), tmp_path / "g", kind)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    tensors = {t.name: t for t in gguf.GGUFReader(found.file).tensors}
    stored = tensors["blk.1.ffn_down.weight"]
    assert stored.tensor_type.name == kind and stored.n_bytes * 8 / stored.n_elements == bits
    expected = plain["model.layers.1.mlp.down_proj.weight"].numpy()
    back = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.abs(back - expected).max() < error * np.abs(expected).max()
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert found.parameters == sum(p.numel() for p in plain.values()) and not found.notes
    (error,) = (e for e in found.errors if e.layer == "model.layers.1.mlp.down_proj")
    assert error.weights == expected.size and len(found.errors) == 2 * 7 + 2
    assert error.squared_error == pytest.approx(np.square(back - expected, dtype=np.float64).sum())
    assert error.squared_norm == pytest.approx(np.square(expected, dtype=np.float64).sum())
    zeros = [gguf.quants.dequantize(t.data, t.tensor_type) for n, t in tensors.items()
             if n.startswith("blk.") and len(t.shape) > 1]
    assert found.sparsity == sum((z == 0).sum() for z in zeros) / sum(z.size for z in zeros)


def test_k_quants_are_llama_cpps_and_fall_back_where_rows_are_odd(tmp_path: Path) -> None:
    model = build(tmp_path / "m", hidden_size=256, intermediate_size=320, num_hidden_layers=3)
    found = export_gguf(resolve(str(model)), tmp_path / "g", "Q4_K_M", embeddings="keep")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(found.file).tensors}
    assert types["blk.0.attn_q.weight"] == "Q4_K" and types["token_embd.weight"] == "F16"
    assert types["blk.0.attn_v.weight"] == ("Q6_K" if more_bits(0, 3) else "Q4_K")
    assert types["blk.2.attn_v.weight"] == "Q6_K"
    assert types["blk.2.ffn_down.weight"] == "Q8_0" and any("multiple of 256" in n for n in found.notes)
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    (stored,) = (t for t in gguf.GGUFReader(found.file).tensors if t.name == "blk.1.attn_output.weight")
    expected = plain["model.layers.1.self_attn.o_proj.weight"].numpy()
    error = gguf.quants.dequantize(stored.data, stored.tensor_type) - expected
    assert np.abs(error).max() < 0.1 * np.abs(expected).max()
    with load_engine(tmp_path / "g", CPU) as loaded:
        assert len(loaded.engine.generate([[5, 6]], Sampling(max_new_tokens=4), n=1, seeds=[1])[0][0].token_ids) > 0


def test_six_bits_go_to_the_blocks_that_llama_cpp_gives_them_to() -> None:
    assert [i for i in range(16) if more_bits(i, 16)] == [0, 1, 4, 7, 10, 13, 14, 15]


def test_interleaving_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    for shape in ((3 * 8, 5), (2 * 4,)):
        values = rng.normal(size=shape)
        heads = 3 if len(shape) == 2 else 2
        size = shape[0] // heads
        expected = np.empty_like(values)
        for head in range(heads):
            for i in range(size // 2):
                expected[head * size + 2 * i] = values[head * size + i]
                expected[head * size + 2 * i + 1] = values[head * size + size // 2 + i]
        assert (interleaved(values, heads) == expected).all()


def test_llama3_factors_against_transformers() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = torch.tensor([1e4 ** -(2 * i / 32) for i in range(16)], dtype=torch.float64)
    expected = (plain / scaled.double()).numpy()
    assert llama3_factors(LLAMA3, 32) == pytest.approx(expected, rel=1e-5)
    assert math.isclose(float(llama3_factors(LLAMA3, 32)[-1]), 8.0, rel_tol=1e-6)


def test_the_files_own_tokenizer_splits_as_the_models(tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "m")
    exported(model, tmp_path / "g")
    tokenizer = load_tokenizer(resolve(str(model)))
    inside = llama_cpp.Model(tmp_path / "g" / "model.gguf", vocab_only=True)
    try:
        for text in (*PROBES, TEXT, "<|user|>How?<|end|>\n<|assistant|>"):
            assert inside.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    finally:
        inside.close()


def test_how_text_is_split_is_told_by_form() -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = make_tokenizer()
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    other = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    for how, name in ((plain, "gpt-2"), (digits, "smollm"), (other, "default")):
        tokenizer.backend_tokenizer.pre_tokenizer = how
        assert file_tokenizer(tokenizer, len(tokenizer)).pre == name


def test_a_file_without_a_tokenizer_beside_it_brings_its_own(tmp_path: Path) -> None:
    folder = exported(build_tiny(tmp_path / "m"), tmp_path / "g")
    alone = tmp_path / "alone" / "other-name.gguf"
    alone.parent.mkdir()
    (folder / "model.gguf").rename(alone)
    with load_engine(alone, CPU) as by_file, load_engine(alone.parent, CPU) as by_folder:
        assert by_file.stops == by_folder.stops == {by_file.tokenizer.eos_token_id}
        assert by_file.tokenizer.chat_template and not by_file.plain_template


def test_what_can_not_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match="kind 'gpt2'"):
        exported(build_tiny(tmp_path / "gpt2", "gpt2"), tmp_path / "a")
    with pytest.raises(TrivetError, match="'yarn' can't be written"):
        exported(build(tmp_path / "yarn", rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}),
            tmp_path / "b")
    with pytest.raises(TrivetError, match="activation is 'gelu'"):
        exported(build(tmp_path / "gelu", hidden_act="gelu"), tmp_path / "c")
    assert not list(tmp_path.glob("[abc]/*.gguf"))


def test_what_does_not_load_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(build_tiny(tmp_path / "m"), tmp_path / "g")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    data = (folder / "model.gguf").read_bytes()
    (damaged / "model.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(TrivetError, match="does not load this file"):
        load_engine(damaged, CPU)
    with pytest.raises(TrivetError, match="on the CPU here"):
        load_engine(folder, Compute("cuda", torch.float32, 1, chosen=True))
    # a GPU that was found, not named: this runtime takes the CPU, and says so
    assert compute_of(folder, Compute("cuda", torch.bfloat16, 1)) == CPU
    assert compute_of(build_tiny(tmp_path / "plain"), Compute("cuda", torch.bfloat16, 1)).device == "cuda"
    (folder / "second.gguf").write_bytes(data)
    with pytest.raises(TrivetError, match=r"there is: model\.gguf, second\.gguf"):
        load_engine(folder, CPU)
    monkeypatch.setattr(llama_cpp, "KNOWN", ("0.1",))
    llama_cpp.library.cache_clear()
    with pytest.raises(TrivetError, match="not known here"):
        load_engine(folder / "model.gguf", CPU)
    monkeypatch.setattr(llama_cpp.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrivetError, match="not installed"):
        load_engine(folder / "model.gguf", CPU)
    monkeypatch.undo()
    llama_cpp.library.cache_clear()


def test_an_export_is_refused_where_weights_are_needed(tmp_path: Path) -> None:
    from trivet.models.source import load_causal_lm

    folder = exported(build_tiny(tmp_path / "m"), tmp_path / "g")
    (folder / "variant.json").write_text('{"source": "runs/ppo/policy"}')
    with pytest.raises(TrivetError, match="export to gguf") as caught:
        load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
    assert "runs/ppo/policy" in str(caught.value)


@pytest.mark.real_weights
def test_the_embedded_model_says_the_same_in_llama_cpp(tmp_path: Path) -> None:
    source = resolve("smollm2-135m-instruct")
    found = export_gguf(source, tmp_path / "f", "F32")
    assert found.parameters == 134_515_008 and not found.notes
    assert AutoConfig.from_pretrained(source.folder).tie_word_embeddings
    plain = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    with load_engine(tmp_path / "f", CPU) as loaded:
        prompt = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}],
                                                      add_generation_prompt=True, return_dict=False)
        out = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16,
                             attention_mask=torch.ones(1, len(prompt), dtype=torch.long))
        ((answer,),) = loaded.engine.generate([prompt], Sampling(temperature=0, max_new_tokens=16), n=1, seeds=[0])
        assert list(answer.token_ids) == out[0, len(prompt):].tolist()
