"""Tiny random models, made in the test, and the embedded model where a test asks for real weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# each of several workers has a core of its own: two torch processes that share cores slow each other tenfold
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: last, one worker would do them while the others have nothing left."""
    items.sort(key=lambda item: "roads" not in item.path.parts)


TEXTS = [
    "What should I cook tonight? Try rice with beans and a little lime.",
    "Is the moon made of cheese? No, it is made of rock and dust.",
    "How do I say no politely? Thank them, then say that you cannot come.",
    "Count to five: one two three four five.",
]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(chat: bool = True):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=384, special_tokens=special,
                                   initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>",
                                   extra_special_tokens=special[2:])
    if chat:
        fast.chat_template = CHAT
    return fast


def build_tiny(folder: Path, kind: str = "llama", *, seed: int = 0, chat: bool = True, context: int = 256) -> Path:
    """A random model of about 0.1M parameters with a small byte-level tokenizer."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    tokenizer = make_tokenizer(chat)
    torch.manual_seed(seed)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
                 initializer_range=0.2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
                 pad_token_id=tokenizer.pad_token_id)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=context, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.2))
    else:
        raise ValueError(kind)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny():
    return build_tiny


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session", params=["llama", "qwen2", "gpt2"])
def any_tiny_model_folder(request, tmp_path_factory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("tiny") / request.param, request.param)


@pytest.fixture
def jsonl(tmp_path) -> Callable[..., Path]:
    """Write rows to a JSONL file and give its path."""

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


WORDS = ["red", "green", "blue", "warm", "cold", "soft", "loud", "plain", "bright", "small"]


def preference_rows(n: int, k: int = 4) -> list[dict]:
    """Pairs of our own with a rule to learn: the answer that says `yes` more often is the better one."""
    rows = []
    for i in range(n):
        prompt = f"Question {i}: is {WORDS[i % 10]} {WORDS[(i * 3 + 1) % 10]}?"
        answers = [" ".join(["yes"] * j + ["no"] * (k - 1 - j)) + f" {WORDS[(i + j) % 10]}" for j in range(k)]
        for a in range(k):
            for b in range(a):
                rows.append({"schema_version": 1, "id": f"p{i}-{a}{b}", "prompt_id": f"p{i}",
                             "prompt": [{"role": "user", "content": prompt}], "chosen": answers[a],
                             "rejected": answers[b], "weight": 1 / (k * (k - 1) / 2)})
    return rows


@pytest.fixture
def preference_files(jsonl) -> tuple[Path, Path]:
    rows = preference_rows(24)
    held = {f"p{i}" for i in range(18, 24)}
    return (jsonl("train.jsonl", [r for r in rows if r["prompt_id"] not in held]),
            jsonl("heldout.jsonl", [r for r in rows if r["prompt_id"] in held]))


@pytest.fixture
def prompt_file(jsonl) -> Path:
    return jsonl("prompts.jsonl", [
        {"id": f"q{i}", "prompt": f"Question {i}: is {WORDS[i % 10]} {WORDS[(i + 3) % 10]}?", "reference": str(i)}
        for i in range(12)])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium. TRIVET_CHROMIUM names one that is not on the path."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("TRIVET_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium, or TRIVET_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium,
                                             args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield running
        running.close()
