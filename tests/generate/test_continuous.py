"""Continuous batching: answers don't depend on batch size or neighbours, models that don't bear it say so, strings end
answers, limits hold, and the draw follows the distribution over a real vocabulary's width."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from trivet.errors import TrivetError
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.decoding import StaticDecoding, decoding, shared_prefix
from trivet.generate.sample import text_of
from trivet.generate.sampling import invert, sample, sampling_logps
from trivet.generate.static_cache import Prefix, SlotCache
from trivet.generate.torch_engine import TorchEngine

VOCABULARY = 97
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, pad_token_id=0)
# what each is decoded by, for rows of up to 60 tokens
ROADS = {"llama": "lean", "qwen2": "lean", "qwen3": "static", "gemma2": "static", "gpt2": "static",
         "mistral, window 64": "lean", "mistral, window 8": "own", "bloom": "own", "gpt-neo": "own"}


def model_of(kind: str, dtype: torch.dtype = torch.float64):
    """Tiny and random; in float64, where rounding decides no token, except for BLOOM: transformers' one gives NaN for
    rows padded on the left there, since it makes float32 of a mask of float64's least number."""
    import transformers as t

    torch.manual_seed(0)
    made = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHAPE)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SHAPE)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SHAPE, head_dim=8)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**SHAPE, head_dim=8, sliding_window=64)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4,
                                                       n_positions=256, initializer_range=0.2)),
        "mistral, window 64": lambda: t.MistralForCausalLM(t.MistralConfig(**SHAPE, sliding_window=64)),
        "mistral, window 8": lambda: t.MistralForCausalLM(t.MistralConfig(**SHAPE, sliding_window=8)),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4,
                                                          initializer_range=0.2)),
        "gpt-neo": lambda: t.GPTNeoForCausalLM(t.GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, window_size=8,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=256, initializer_range=0.2)),
    }[kind]()
    return made.to(torch.float32 if kind == "bloom" else dtype).eval()


def prompts_of(count: int, shared: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(count)
    start = torch.randint(2, VOCABULARY, (shared,), generator=g).tolist()
    return [start + torch.randint(2, VOCABULARY, (3 + 5 * k % 17,), generator=g).tolist() for k in range(count)]


def ids_of(answers: list[list[Generated]]) -> list[list[tuple[int, ...]]]:
    return [[g.token_ids for g in group] for group in answers]


@pytest.mark.parametrize("kind", ROADS)
def test_every_model_by_its_road_as_generate_does(kind, capsys) -> None:
    """Greedy, ragged prompts, more answers than rows at work, two answers a prompt; token for token."""
    model, prompts = model_of(kind), prompts_of(7, shared=5)
    road = decoding(model, 0, 60)
    assert ("own" if isinstance(road, str) else "lean" if road.lean else "static") == ROADS[kind]
    engine = TorchEngine(model, 0, frozenset({1, 5}), batch_size=3)
    for _ in range(2):
        ours = engine.generate(prompts, Sampling(temperature=0, max_new_tokens=20), n=2, seeds=range(7))
    for prompt, answers in zip(prompts, ours, strict=True):
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=[1, 5],
                             attention_mask=torch.ones(1, len(prompt), dtype=torch.long), pad_token_id=0)
        expected = tuple(out[0, len(prompt):].tolist())
        assert [g.token_ids for g in answers] == [expected] * 2
        assert answers[0].ended == (expected[-1] in {1, 5})
    # no road is left in silence, and it is said once
    assert capsys.readouterr().out.count("decoded on its own cache") == (ROADS[kind] == "own")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_answers_do_not_depend_on_batch_size_or_order(kind) -> None:
    """Tokens are the same; log-probabilities, too, and those of a full pass (norms are float32 in any model)."""
    model, prompts, sampling = model_of(kind), prompts_of(6), Sampling(temperature=0.9, max_new_tokens=18)
    stops = frozenset(range(2, 12))  # so that rows leave and others enter
    expected = TorchEngine(model, 0, stops, batch_size=100).generate(prompts, sampling, n=3, seeds=range(6))
    assert len({len(g.token_ids) for group in expected for g in group}) > 4
    for size in (1, 2, 5):
        told: list[int] = []
        engine = TorchEngine(model, 0, stops, batch_size=size, progress=told.append)
        backwards = engine.generate(prompts[::-1], sampling, n=3, seeds=list(range(6))[::-1])[::-1]
        assert ids_of(backwards) == ids_of(expected)
        assert sum(told) == 18
        for a, b in zip((g for x in backwards for g in x), (g for x in expected for g in x), strict=True):
            assert a.logps == pytest.approx(b.logps, abs=2e-5)
    flat = [g for group in expected for g in group]
    scored = engine.score([p for p in prompts for _ in range(3)], [g.token_ids for g in flat], 0.9)
    for g, logps in zip(flat, scored, strict=True):
        assert g.logps == pytest.approx(logps, abs=2e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_under_adapters_and_with_them_off(dtype, bias) -> None:
    """The lean step takes in what LoRA adds, in its own precision, and leaves it out where it is disabled."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(model_of("qwen2" if bias else "llama", dtype), LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "o_proj", "down_proj", "gate_proj"], lora_alpha=32))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model, prompts, sampling = peft.get_base_model().eval(), prompts_of(4), Sampling(temperature=0, max_new_tokens=12)

    def answers() -> list[list[tuple[int, ...]]]:
        road = decoding(model, 0, 60)
        assert isinstance(road, StaticDecoding) and road.lean is not None
        found = TorchEngine(model, 0, frozenset(), batch_size=3).generate(prompts, sampling, n=1, seeds=[0] * 4)
        for prompt, group in zip(prompts, found, strict=True):
            ids = torch.tensor([[*prompt, *group[0].token_ids]])
            greedy = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].argmax(-1)
            assert group[0].token_ids == tuple(greedy.tolist())
        return ids_of(found)

    adapted = answers()
    with peft.disable_adapter():
        assert answers() != adapted
    assert answers() == adapted


def test_limits_by_prompt() -> None:
    model, prompts = model_of("llama"), prompts_of(5)
    engine = TorchEngine(model, 0, frozenset(), batch_size=2)
    found = engine.generate(prompts, Sampling(max_new_tokens=99), n=2, seeds=range(5), limits=[3, 1, 9, 4, 2])
    assert [[len(g.token_ids) for g in group] for group in found] == [[k, k] for k in (3, 1, 9, 4, 2)]
    assert not any(g.ended for group in found for g in group)
    assert engine.generate([], Sampling(), n=2, seeds=[]) == []


@pytest.fixture
def talker(tiny_model_folder):
    return (AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float64).eval(),
            AutoTokenizer.from_pretrained(tiny_model_folder))


def test_stop_strings_end_an_answer_and_are_cut_off(talker) -> None:
    """A string that spans tokens, and one of two: what comes before it is what the answer without it says."""
    model, tokenizer = talker
    prompts, sampling = [tokenizer("Count to five.")["input_ids"], tokenizer("Is it?")["input_ids"]], Sampling(
        temperature=0.8, max_new_tokens=40)
    engine = TorchEngine(model, tokenizer.pad_token_id, frozenset(), tokenizer=tokenizer)
    (free,), (other,) = engine.generate(prompts, sampling, n=1, seeds=[3, 4])
    text = tokenizer.decode(free.token_ids, skip_special_tokens=True)
    # begins inside one token and ends inside another
    stop = next(s for k in range(6, 20) if (s := tokenizer.decode(free.token_ids[k : k + 3])[1:-1]).isascii()
                and len(s) > 2 and not set(s) & set("�<|>"))
    stopping = sampling.model_copy(update={"stop": ["never said at all", stop]})
    (found,), (same,) = engine.generate(prompts, stopping, n=1, seeds=[3, 4])
    assert found.ended and len(found.token_ids) < len(free.token_ids)
    assert found.token_ids == free.token_ids[: len(found.token_ids)]
    assert stop in tokenizer.decode(found.token_ids, skip_special_tokens=True)
    assert stop not in tokenizer.decode(found.token_ids[:-1], skip_special_tokens=True)
    assert text_of(tokenizer, found, stopping.stop) == text[: text.index(stop)].strip()
    if stop not in tokenizer.decode(other.token_ids, skip_special_tokens=True):
        assert same == other
    with pytest.raises(TrivetError, match="need a tokenizer"):
        TorchEngine(model, 0, frozenset()).generate(prompts, stopping, n=1, seeds=[3, 4])
    with pytest.raises(ValidationError):
        Sampling(stop=[""])


def test_inversion_is_exact() -> None:
    """Against the running sum in float64 of every token; a vocabulary that isn't whole blocks; masses far apart."""
    g = torch.Generator().manual_seed(0)
    for vocabulary in (12, 256, 1000, 49_152):
        weights = (torch.randn(64, vocabulary, generator=g) * 4).exp()
        weights[:, ::3] = 0
        uniform = torch.rand(64, dtype=torch.float64, generator=g)
        uniform[0], uniform[1] = 0.0, 1 - 2**-53
        token, mass, total = invert(weights, uniform)
        running = weights.double().cumsum(-1)
        assert torch.allclose(total, running[:, -1], rtol=1e-6)
        assert (mass > 0).all()
        # the token's share of the distribution function holds the uniform, but for float32's sums inside a block
        upper = running.gather(-1, token[:, None])[:, 0] / running[:, -1]
        lower = upper - mass.double() / running[:, -1]
        assert ((lower - 1e-6 <= uniform) & (uniform <= upper + 1e-6)).all()


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.7), Sampling(temperature=1.3, top_p=0.8),
                                      Sampling(temperature=0.7, top_k=7)], ids=["plain", "top-p", "top-k"])
def test_sampling_follows_the_distribution(sampling) -> None:
    """Chi-square at a level of 0.1%, over 600 tokens of which rare ones are taken together."""
    count = 50_000
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(2)) * 2
    logps = sampling_logps(logits, sampling)[0]
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn, told = sample(logits.repeat(count, 1), sampling, uniform)
    expected = logps.double().exp() * count
    seen = torch.bincount(torch.tensor(drawn), minlength=600).double()
    assert (seen[expected == 0] == 0).all()
    often = expected >= 10
    seen, expected = (torch.cat([x[often], x[~often].sum().clamp(min=1e-9)[None]]) for x in (seen, expected))
    from scipy.stats import chi2

    keep = expected > 1
    assert float(((seen - expected) ** 2 / expected)[keep].sum()) < chi2.ppf(0.999, int(keep.sum()) - 1)
    assert told[:50] == pytest.approx(logps[torch.tensor(drawn[:50])].tolist(), abs=1e-5)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(TrivetError, match="no numbers"):
        sample(torch.full((2, 5), torch.nan), Sampling(), torch.tensor([0.5, 0.5]))


def test_what_prompts_begin_with_is_read_once() -> None:
    assert shared_prefix([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 5, 9]]) == 5
    assert shared_prefix([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]) == 4
    assert shared_prefix([[1, 2, 3], [4, 2, 3]]) == 0
    assert shared_prefix([[1, 2, 3, 4, 5]]) == 0


def test_a_row_that_leaves_gives_its_place_to_the_last() -> None:
    def prefix(length: int, value: float) -> Prefix:
        return Prefix([torch.full((1, length, 2), value)], [torch.full((1, length, 2), -value)], torch.zeros(3))

    cache = SlotCache(prefix(2, 1.0), 3, 10)
    for length, value in ((2, 1.0), (3, 2.0), (4, 3.0)):
        cache.enter(prefix(length, value))
    cache.leave(0)
    assert cache.lengths == [4, 3]
    cache.require(100)
    assert cache.capacity == 128
    positions, mask = cache.begin()
    assert positions.tolist() == [4, 3] and mask.shape == (2, 1, 1, 16)
    keys, values = cache.write(0, torch.full((2, 1, 2), 7.0), torch.full((2, 1, 2), 8.0))
    assert keys[0, 0, :5, 0].tolist() == [3, 3, 3, 3, 7] and values[1, 0, :4, 1].tolist() == [-2, -2, -2, 8]
    assert (mask[0, 0, 0, :5] == 0).all() and (mask[0, 0, 0, 5:] < -1e30).all()
