"""llama.cpp's C interface (`llama.h`), out of the wheel `xllamacpp`, by ctypes.

The wheel's own Python interface is a server: it can neither score given answers nor tell a whole distribution. Its
library exports all of `llama.h`, though, and no other wheel found on PyPI did so without a compiler or a newer glibc.
A C structure's layout may change from one version to the next, and nothing would say so: the versions whose layout was
compared with the header are listed here, and the library's own defaults are read back when it is loaded.
"""

from __future__ import annotations

import ctypes as c
import importlib.metadata
import importlib.util
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from trivet.errors import TrivetError

KNOWN = ("2026.10.11549",)
"""Versions of xllamacpp whose structures are those below."""
F32, F16 = 0, 1
"""Of ggml_type: what keys and values may be kept in."""
READ = 512
"""Tokens that are read in one call, and so rows of logits that are held at once."""
INSTALL = "pip install 'trivet[llama-cpp]'"

_said: deque[str] = deque(maxlen=20)
_log_type = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_WARNING, _ERROR = 3, 4


@_log_type
def _log(level: int, text: bytes, _: object) -> None:
    if level in (_WARNING, _ERROR):
        _said.append(text.decode(errors="replace").strip())


class ModelParams(c.Structure):
    """llama_model_params."""

    _fields_ = [
        ("devices", c.c_void_p), ("tensor_buft_overrides", c.c_void_p), ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int), ("load_mode", c.c_int), ("lazy_mode", c.c_int), ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p), ("progress_callback", c.c_void_p), ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p), ("vocab_only", c.c_bool), ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool), ("no_host", c.c_bool), ("no_alloc", c.c_bool), ("load_mtp", c.c_bool),
    ]


class ContextParams(c.Structure):
    """llama_context_params."""

    _fields_ = [
        ("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32), ("n_outputs_max", c.c_uint32), ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32), ("n_threads_batch", c.c_int32), ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int), ("pooling_type", c.c_int), ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int), ("rope_freq_base", c.c_float), ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float), ("yarn_attn_factor", c.c_float), ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float), ("yarn_orig_ctx", c.c_uint32), ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p), ("cb_eval_user_data", c.c_void_p), ("type_k", c.c_int), ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t), ("abort_callback", c.c_void_p), ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool), ("offload_kqv", c.c_bool), ("no_perf", c.c_bool), ("op_offload", c.c_bool),
        ("swa_full", c.c_bool), ("kv_unified", c.c_bool), ("samplers", c.c_void_p), ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    ]


class Batch(c.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", c.c_int32), ("token", c.POINTER(c.c_int32)), ("embd", c.c_void_p), ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)), ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_log_type, c.c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, ModelParams]),
    "llama_model_free": (None, [c.c_void_p]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_model_n_ctx_train": (c.c_int32, [c.c_void_p]),
    "llama_model_ftype": (c.c_int, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_eos": (c.c_int32, [c.c_void_p]),
    "llama_vocab_eot": (c.c_int32, [c.c_void_p]),
    "llama_tokenize": (c.c_int32, [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool,
                                   c.c_bool]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, ContextParams]),
    "llama_free": (None, [c.c_void_p]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_memory_seq_rm": (c.c_bool, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32]),
    "llama_memory_seq_cp": (None, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [c.c_void_p]),
    "ggml_quantize_chunk": (c.c_size_t, [c.c_int, c.POINTER(c.c_float), c.c_void_p, c.c_int64, c.c_int64, c.c_int64,
                                         c.c_void_p]),
    "ggml_row_size": (c.c_size_t, [c.c_int, c.c_int64]),
}


def installed() -> bool:
    """Whether the runtime is there at all."""
    return importlib.util.find_spec("xllamacpp") is not None


@lru_cache(maxsize=1)
def library() -> c.CDLL:
    """The loaded library. Raises TrivetError where it is not installed, or of a version that is not known."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        raise TrivetError("llama.cpp is not installed, which GGUF files need", field="model", mend=INSTALL)
    version = importlib.metadata.version("xllamacpp")
    if version not in KNOWN:
        raise TrivetError(f"xllamacpp {version} is not known here: its structures may be laid out otherwise",
                          field="model", expected=f"xllamacpp {', '.join(KNOWN)}", mend=INSTALL)
    file = Path(found.submodule_search_locations[0]) / "xllamacpp.abi3.so"
    try:
        loaded = c.CDLL(str(file))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise TrivetError(f"llama.cpp does not load: {error}", file=file, field="model", mend=INSTALL) from None
    loaded.llama_log_set(_log, None)
    loaded.llama_backend_init()
    context, model = loaded.llama_context_default_params(), loaded.llama_model_default_params()
    seen = (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max, context.type_k, context.type_v,
            context.no_perf, model.main_gpu, model.vocab_only, model.use_extra_bufts)
    if seen != (512, 2048, 512, 1, F16, F16, True, 0, False, True):
        raise TrivetError(f"llama.cpp's structures are laid out otherwise than its version {version} should", file=file,
                          field="model", mend=f"install it anew: {INSTALL} --force-reinstall")
    return loaded


def complaint() -> str:
    """What llama.cpp said last, to be put into a message; forgotten then."""
    said = " / ".join(dict.fromkeys(line for line in _said if line))
    _said.clear()
    return said[:300] or "it does not say why"


class Model:
    """A GGUF file that is loaded, on the CPU."""

    def __init__(self, file: Path, *, vocab_only: bool = False) -> None:
        """Raises TrivetError for a file that does not load."""
        self.library = library()
        params = self.library.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only = 0, vocab_only
        _said.clear()
        self.pointer: int | None = self.library.llama_model_load_from_file(str(file).encode(), params)
        if self.pointer is None:
            raise TrivetError(f"llama.cpp does not load this file: {complaint()}", file=file, field="model",
                              mend="export or fetch it anew; trivet quantize writes files that load")
        self.vocab = self.library.llama_model_get_vocab(self.pointer)
        self.tokens = int(self.library.llama_vocab_n_tokens(self.vocab))
        self.context = int(self.library.llama_model_n_ctx_train(self.pointer))

    @property
    def is_float32(self) -> bool:
        """Whether the file says that all its weights are float32."""
        return int(self.library.llama_model_ftype(self.pointer)) & 1023 == 0  # above: guessed, not said

    @property
    def ends(self) -> frozenset[int]:
        """The file's end tokens: of a text, and of a turn."""
        found = (self.library.llama_vocab_eos(self.vocab), self.library.llama_vocab_eot(self.vocab))
        return frozenset(int(i) for i in found if i >= 0)

    def tokenize(self, text: str) -> list[int]:
        """Token ids by the file's own tokenizer, special tokens read as such, none added."""
        data = text.encode()
        room = (c.c_int32 * (len(data) + 8))()
        count = self.library.llama_tokenize(self.vocab, data, len(data), room, len(room), False, True)
        if count < 0:
            raise ValueError(f"llama_tokenize wants room for {-count} tokens")
        return list(room[:count])

    def close(self) -> None:
        """Free it. Its contexts must be closed before."""
        if self.pointer is not None:
            self.library.llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """Keys and values of several sequences, and the passes that fill them."""

    def __init__(self, model: Model, places: int, sequences: int, *, threads: int, kept: int) -> None:
        """places: tokens that all sequences may hold together. kept: F32 or F16, what keys and values are kept in.

        Raises TrivetError where it can't be made (memory).
        """
        self.library, self.vocabulary = model.library, model.tokens
        params = self.library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = places, sequences, READ, READ
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = kept
        if kept == F32:
            params.flash_attn_type = 0  # its fused attention rounds to float16 on the way
        params.kv_unified = True  # sequences share places: a prompt is copied by naming its places, not by moving them
        _said.clear()
        self.pointer: int | None = self.library.llama_init_from_model(model.pointer, params)
        if self.pointer is None:
            raise TrivetError(f"llama.cpp makes no room for {places} tokens: {complaint()}", field="model",
                              mend="lower the batch size or --sampling.max-new-tokens")
        self.memory = self.library.llama_get_memory(self.pointer)
        self._tokens, self._places = (c.c_int32 * READ)(), (c.c_int32 * READ)()
        self._ids, self._one = (c.c_int32 * READ)(), (c.c_int32 * READ)(*[1] * READ)
        pointers = [c.cast(c.byref(self._ids, 4 * k), c.POINTER(c.c_int32)) for k in range(READ)]
        self._id_pointers = (c.POINTER(c.c_int32) * READ)(*pointers)
        self._wanted = (c.c_int8 * READ)()

    def decode(self, tokens: Sequence[int], places: Sequence[int], sequences: Sequence[int],
               wanted: Sequence[bool]) -> np.ndarray:
        """Put tokens, READ at most, at their places in their sequences; logits [K, V] of the K wanted ones.

        The array is llama.cpp's own memory, good until the next call, and may be written to.
        """
        count = len(tokens)
        self._tokens[:count], self._places[:count] = list(tokens), list(places)
        self._ids[:count], self._wanted[:count] = list(sequences), [int(w) for w in wanted]
        batch = Batch(count, self._tokens, None, self._places, self._one, self._id_pointers, self._wanted)
        if code := self.library.llama_decode(self.pointer, batch):
            raise TrivetError(f"llama.cpp breaks off with code {code}: {complaint()}", field="model",
                              mend="lower the batch size or --sampling.max-new-tokens")
        rows = sum(self._wanted[:count])
        if not rows:
            return np.empty((0, self.vocabulary), np.float32)
        return np.ctypeslib.as_array(self.library.llama_get_logits(self.pointer), (rows, self.vocabulary))

    def read(self, tokens: Sequence[int], sequence: int, wanted_from: int) -> list[np.ndarray]:
        """Put a text into an empty sequence; copies of the logits from token number `wanted_from` on, in parts."""
        found = []
        for start in range(0, len(tokens), READ):
            part = range(start, min(start + READ, len(tokens)))
            logits = self.decode([tokens[i] for i in part], part, [sequence] * len(part),
                                 [i >= wanted_from for i in part])
            if len(logits):
                found.append(logits.copy())
        return found

    def copy(self, source: int, target: int) -> None:
        """Let a sequence begin as another is."""
        self.library.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def remove(self, sequence: int) -> None:
        """Empty a sequence."""
        self.library.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def clear(self) -> None:
        """Empty all sequences."""
        self.library.llama_memory_clear(self.memory, False)

    def close(self) -> None:
        """Free it."""
        if self.pointer is not None:
            self.library.llama_free(self.pointer)
            self.pointer = None
