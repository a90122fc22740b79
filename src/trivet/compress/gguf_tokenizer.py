"""A tokenizer as llama.cpp's files hold it: byte-level byte-pair encoding, as most open models have it today."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trivet.errors import TrivetError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
_SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
UNKNOWN = "default"
"""llama.cpp's own way of splitting, where it has none that is known to be the model's."""
PROBES = (
    "What is 1,234 + 56789? It's 58,023, I'd say.", "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.",
    "def f(x):\n    return x  # a tab\tand   spaces\n\n\n",
    "これは日本語です。 Привет, мир! 🙂👍", "  leading and trailing  ",
    "don't WE'LL they've 3.14 10^6 a_b-c/d\\e <b>&amp;</b>",
)
"""Texts that tokenizers split in different ways: digits, apostrophes, white space, other scripts."""


@dataclass(frozen=True)
class FileTokenizer:
    """The parts of a byte-level tokenizer."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    """How text is split before pairs are merged, by llama.cpp's name."""


def file_tokenizer(tokenizer: Any, vocabulary: int) -> FileTokenizer:
    """A tokenizer's parts. vocabulary: rows of the model's embeddings, which may be more than tokens.

    Raises TrivetError for one that is no byte-level BPE.
    """
    from gguf import TokenType

    backend = getattr(tokenizer, "backend_tokenizer", None)
    data = json.loads(backend.to_str()) if backend is not None else {}
    model, decoder = data.get("model") or {}, data.get("decoder") or {}
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(decoder) or model.get("byte_fallback"):
        kind = f"{type(tokenizer).__name__}, {model.get('type', 'no tokenizer.json')}"
        raise TrivetError(f"this tokenizer ({kind}) can't be put into a GGUF file here", field="model",
                          expected="a byte-level BPE tokenizer",
                          mend="choose another format, such as openvino")
    tokens = [f"[PAD{i}]" for i in range(vocabulary)]
    types = [int(TokenType.UNUSED)] * vocabulary
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, int(TokenType.NORMAL)
    for added in data["added_tokens"]:
        if added["id"] >= vocabulary:
            continue  # the model has no embedding of it: it can't be read anyway
        known = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(known)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return FileTokenizer(tokens, types, merges, _pre(data.get("pre_tokenizer") or {}))


def _pre(found: dict[str, Any]) -> str:
    parts = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    kinds = [p.get("type") for p in parts]
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return UNKNOWN
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and last.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        return _SPLITS.get(str(parts[0].get("pattern", {}).get("Regex")), UNKNOWN)
    return UNKNOWN


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, vocabulary: int) -> FileTokenizer:
    """Put a tokenizer and its chat template into a file's header. Raises TrivetError as `file_tokenizer` does."""
    parts = file_tokenizer(tokenizer, vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(parts.pre)
    writer.add_token_list(parts.tokens)
    writer.add_token_types(parts.types)
    writer.add_token_merges(parts.merges)
    for add, number in ((writer.add_bos_token_id, tokenizer.bos_token_id),
                        (writer.add_eos_token_id, tokenizer.eos_token_id),
                        (writer.add_unk_token_id, tokenizer.unk_token_id),
                        (writer.add_pad_token_id, tokenizer.pad_token_id)):
        if number is not None and number < vocabulary:
            add(int(number))
    probe = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(probe) and probe[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    return parts
