"""Smaller models: they load as any other does, and compute what the larger one does without what was cut."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from shapes import KINDS, make
from trivet.errors import TrivetError
from trivet.models.surgery import KNOWN, drop_layers, evenly_spaced, keep_channels, keep_groups, sizes

IDS = torch.arange(3, 27)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_every_known_architecture_is_tried_here() -> None:
    assert set(KINDS) == set(KNOWN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_blocks_is_the_model_whose_blocks_pass_on(kind, tmp_path) -> None:
    model = make(kind)
    for name in ("layer_types", "no_rope_layers"):  # each block stays what it was, wherever it comes to stand
        if getattr(model.config, name, None) is not None and name == "no_rope_layers":
            assert len(set(getattr(model.config, name))) == 2
    smaller = drop_layers(model, [0, 2, 3])
    model.model.layers[1].forward = lambda hidden, **_: hidden
    assert torch.equal(logits(model), logits(smaller))
    smaller.save_pretrained(tmp_path)
    loaded, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert loaded.config.num_hidden_layers == 3 and torch.equal(logits(loaded), logits(smaller))
    # with a cache, each block has a place of its own in it
    said = [m.generate(IDS[:, :6], max_new_tokens=8, do_sample=False, use_cache=c, eos_token_id=None)
            for m, c in ((loaded, True), (smaller, False))]
    assert torch.equal(*said)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_channels_is_the_model_with_zeros_there(kind, tmp_path) -> None:
    model = make(kind, **({"mlp_bias": True} if kind == "llama" else {}))
    keep = [sorted(torch.randperm(40, generator=torch.Generator().manual_seed(i))[:24].tolist()) for i in range(4)]
    smaller = keep_channels(model, keep)
    with torch.no_grad():
        for block, kept in zip(model.model.layers, keep, strict=True):
            gone = [c for c in range(40) if c not in kept]
            block.mlp.down_proj.weight[:, gone] = 0.0
    assert torch.allclose(logits(model), logits(smaller), atol=1e-5)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.intermediate_size == 24 and torch.equal(logits(loaded), logits(smaller))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_groups_is_the_model_with_zeros_there(kind, tmp_path) -> None:
    model = make(kind, **({"attention_bias": True} if kind == "llama" else {}))
    keep = [[0, 2], [1, 2], [0, 1], [0, 2]]
    smaller = keep_groups(model, keep)
    with torch.no_grad():
        for block, kept in zip(model.model.layers, keep, strict=True):
            (gone,) = {0, 1, 2} - set(kept)
            block.self_attn.o_proj.weight[:, gone * 16 : gone * 16 + 16] = 0.0
    assert torch.allclose(logits(model), logits(smaller), atol=1e-5)
    smaller.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sizes(loaded).head_dim == 8 and sizes(loaded).heads == 4 and sizes(loaded).groups == 2
    assert torch.equal(logits(loaded), logits(smaller))


def test_a_group_is_a_key_head_with_the_query_heads_that_share_it() -> None:
    """Attention by its definition, one query head after the other, of the smaller model's own weights."""
    model = keep_groups(make(), [[0, 2]] * 4)
    layer = model.model.layers[0].self_attn
    hidden = torch.randn(1, 5, 48)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(5)[None])
    with torch.no_grad():
        queries, keys = (proj(hidden).view(1, 5, -1, 8).transpose(1, 2) for proj in (layer.q_proj, layer.k_proj))
        queries, keys = apply_rotary_pos_emb(queries, keys, cos, sin)
        values = layer.v_proj(hidden).view(1, 5, -1, 8).transpose(1, 2)
        heads = []
        for head in range(4):
            scores = queries[0, head] @ keys[0, head // 2].T / 8**0.5
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ values[0, head // 2])
        expected = torch.cat(heads, -1) @ layer.o_proj.weight.T
        mask = torch.full((5, 5), -torch.inf).triu(1)[None, None]
        given = layer(hidden, position_embeddings=(cos, sin), attention_mask=mask)[0]
    assert torch.allclose(given[0], expected, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_the_source_untouched(tied, tmp_path) -> None:
    model = make(tied=tied)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for smaller in (drop_layers(model, [0, 3]), keep_channels(model, [range(20)] * 4), keep_groups(model, [[1]] * 4)):
        shared = smaller.lm_head.weight.data_ptr() == smaller.model.embed_tokens.weight.data_ptr()
        assert shared == tied == smaller.config.tie_word_embeddings
        assert not smaller.training and smaller.generation_config.eos_token_id == 1
        with torch.no_grad():
            for parameter in smaller.parameters():
                parameter.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.config.num_hidden_layers == 4 and model.config.intermediate_size == 40


def test_the_precision_stays() -> None:
    assert {p.dtype for p in drop_layers(make().bfloat16(), [1]).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("layers", "count", "expected"), [
    (30, 1, [0]), (30, 2, [0, 29]), (4, 4, [0, 1, 2, 3]), (5, 3, [0, 2, 4]), (12, 6, [0, 2, 4, 7, 9, 11])])
def test_evenly_spaced(layers, count, expected) -> None:
    assert evenly_spaced(layers, count) == expected


def test_evenly_spaced_never_doubles() -> None:
    for layers in range(1, 40):
        for count in range(2, layers + 1):
            found = evenly_spaced(layers, count)
            assert len(set(found)) == count and (found[0], found[-1]) == (0, layers - 1)


def test_what_does_not_fit_is_refused() -> None:
    model = make()
    with pytest.raises(TrivetError, match=r"(?s)'gpt2' can't be cut.*llama"):
        drop_layers(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16)), [0])
    for keep in ([], [1, 0], [0, 0], [4], [-1]):
        with pytest.raises(ValueError, match="rising"):
            drop_layers(model, keep)
    with pytest.raises(ValueError, match="one for all"):
        keep_channels(model, [[0], [0, 1], [0], [0]])
    with pytest.raises(ValueError, match="for 1 blocks"):
        keep_groups(model, [[0]])
    with pytest.raises(ValueError, match="5 of 4"):
        evenly_spaced(4, 5)


def test_a_number_of_heads_that_no_loader_takes_is_refused() -> None:
    """Llama's configuration wants a hidden size that the number of heads divides, whatever the size of a head."""
    model = make(hidden_size=64, num_attention_heads=8, num_key_value_heads=8)
    with pytest.raises(TrivetError, match=r"(?s)64.*5.*another number"):
        keep_groups(model, [range(5)] * 4)
