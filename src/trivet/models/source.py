"""Where a model comes from: a folder, the embedded default, or a hub id; and loading it.

A hub that can't be reached is found out in seconds, not after minutes of retries. `trust_remote_code` is off.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.artifacts import read_json, sha256_file
from trivet.config import EMBEDDED
from trivet.errors import TrivetError
from trivet.models.embedded import cache_folder, fetch_embedded
from trivet.models.formats import RUNTIMES, quantized_by, runtime_format
from trivet.models.unpacked import load_unpacked, require_library

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB_SECONDS = 5.0


@dataclass(frozen=True)
class ModelSource:
    """A model on this machine. `name` is what the user said, `folder` where it stands."""

    name: str
    folder: Path

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()


def resolve(name: str) -> ModelSource:
    """The folder of a model named by a path, `smollm2-135m-instruct`, or a hub id (fetched if need be).

    Raises TrivetError for a folder that holds no model, and when the hub can't be reached.
    """
    if name == EMBEDDED:
        return ModelSource(name, fetch_embedded(say=lambda text: print(text, flush=True)))
    path = Path(name).expanduser()
    if name and os.path.exists(path):
        if path.is_file() and path.suffix == ".gguf":
            return ModelSource(name, path.parent)
        if not path.is_dir():
            raise TrivetError("a file, not a model folder", file=path, field="model",
                              mend="give the folder that holds config.json")
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")) and \
                runtime_format(path) is None:
            raise TrivetError(
                "this folder is no model: neither config.json nor adapter_config.json in it",
                file=path, field="model",
                mend="give a folder saved by save_pretrained, such as runs/…/model")
        return ModelSource(name, path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise TrivetError(
            f"there is no model {name!r}: no such folder, and not a hub id of the form owner/name",
            field="model", mend=f"give a model folder, a hub id, or {EMBEDDED}")
    return ModelSource(name, _from_hub(name))


def _from_hub(name: str) -> Path:
    """A snapshot of a hub model. From the local cache where it is whole there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    with contextlib.suppress(LocalEntryNotFoundError, HFValidationError):
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
    require_hub(name)
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # a hub, or a proxy in front of it, can answer anything
        raise TrivetError(f"the hub does not give {name!r}: {_short(error)}", field="model",
                          mend="check the id, and `hf auth login` for a gated model") from error


def require_hub(name: str) -> None:
    """Raise TrivetError within seconds where the model hub can't be reached."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes"}:
        raise TrivetError(f"{name!r} is not in the local hub cache and HF_HUB_OFFLINE is set", field="model",
                          mend=f"unset HF_HUB_OFFLINE, or give a folder or {EMBEDDED}")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    reasons = []

    def ask() -> None:
        try:
            httpx.head(endpoint, timeout=HUB_SECONDS)
            reasons.append("")
        except httpx.HTTPError as error:
            reasons.append(type(error).__name__)

    # in a thread: looking up a name heeds no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    reason = reasons[0] if reasons else f"no answer in {HUB_SECONDS:g} s"
    if reason:
        raise TrivetError(
            f"{name!r} is no folder here, and the hub {endpoint} can't be reached ({reason})", field="model",
            mend=f"check the path or the network, or use the embedded model: --model {EMBEDDED}")


def load_tokenizer(source: ModelSource, *, inside: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder (of its base, where the folder is an adapter without one).

    inside: the GGUF file of the folder that holds it.
    """
    from transformers import AutoTokenizer

    folder = source.folder
    if source.is_adapter and not (folder / "tokenizer_config.json").is_file():
        folder = adapter_base(source).folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **{"gguf_file": inside} if inside else {})
    except Exception as error:  # as with models, a damaged folder raises anything
        raise TrivetError(f"the tokenizer does not load: {_short(error)}", file=folder, field="model",
                          mend="put tokenizer.json and tokenizer_config.json into the folder") from None
    if tokenizer.eos_token_id is None:
        raise TrivetError("the tokenizer has no end token", file=folder, field="model",
                          mend="set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        # masks are never derived from the padding token, so that any token serves
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(source: ModelSource, dtype: torch.dtype, device: str, *, four_bit: bool = False) -> PreTrainedModel:
    """A decoder-only model in evaluation mode (dropout off). An adapter folder is merged into its base.

    four_bit: hold the weights of linear layers in four bits (`models/four_bit.py`), and compute in `dtype`.

    Raises TrivetError for a folder that holds another kind of model, or a damaged one.
    """
    if source.is_adapter:
        from peft import PeftModel

        if read_json(source.folder / "adapter_config.json").get("task_type") == "SEQ_CLS":
            raise _no_answers(source, "a reward model")
        base = load_causal_lm(adapter_base(source), dtype, device)
        try:
            model = PeftModel.from_pretrained(base, source.folder).merge_and_unload()
        except Exception as error:
            raise TrivetError(f"the adapter does not load: {_short(error)}", file=source.folder, field="model",
                              mend="give an adapter folder, whole, that fits its base") from error
        return model.eval()
    if (form := runtime_format(source.folder)) is not None:
        raise TrivetError(f"this is an export to {form}: {RUNTIMES[form]} answers with it, and nothing else can be "
                          "done with it here", file=source.folder, field="model",
                          expected="a model folder with safetensors weights",
                          mend="give the model that it was made of" + _made_of(source.folder))
    from transformers import AutoModelForCausalLM

    # transformers would load these, too: without their heads, or looking ahead
    for ending, what in (("ForSequenceClassification", "a reward model or classifier"), ("MaskedLM", "no decoder")):
        if any(name.endswith(ending) for name in _architectures(source)):
            raise _no_answers(source, what)
    if four_bit:
        from trivet.models.four_bit import quantization

        return _load(AutoModelForCausalLM, source, dtype, device, device_map={"": device},
                     quantization_config=quantization(dtype, device))
    if quantized_by(source.folder) == "compressed-tensors":
        require_library(source.folder)
        return load_unpacked(lambda: _load(AutoModelForCausalLM, source, dtype, device))
    return _load(AutoModelForCausalLM, source, dtype, device)


def _made_of(folder: Path) -> str:
    """The source that a variant names, for a message."""
    file = folder / "variant.json"
    named = read_json(file).get("source") if file.is_file() else None
    return f": {named}" if named else ""


def _architectures(source: ModelSource) -> list[str]:
    found = read_json(source.folder / "config.json").get("architectures")
    return [str(name) for name in found] if isinstance(found, list) else []


def _no_answers(source: ModelSource, what: str) -> TrivetError:
    return TrivetError(f"this is {what}, it can't answer", file=source.folder, field="model",
                       expected="a decoder-only language model", mend="give the model that is to answer")


def _load(auto: Any, source: ModelSource, dtype: torch.dtype, device: str, *, new: tuple[str, ...] = (),
          **more: Any) -> Any:
    """new: weights that the folder need not hold. Without the others a model would be random, in silence."""
    try:
        model, found = auto.from_pretrained(source.folder, dtype=dtype, output_loading_info=True, **more)
    except Exception as error:
        # Loaders of damaged folders raise anything (OSError, ValueError, SafetensorError, KeyError …)
        raise TrivetError(f"the model does not load: {_short(error)}", file=source.folder, field="model",
                          mend="give a decoder-only model saved by save_pretrained (config.json and "
                          "model.safetensors, whole)") from error
    if missing := sorted(set(found["missing_keys"]) - set(new)):
        raise TrivetError(f"the model does not load: {len(missing)} of its weights are not in the folder, such as "
                          f"{missing[0]}", file=source.folder, field="model",
                          mend="give a folder whose config.json and weights belong together")
    return model.eval() if "quantization_config" in more else model.to(device).eval()


def load_sequence_classifier(source: ModelSource, dtype: torch.dtype, device: str) -> Any:
    """A model with a one-number head (a reward model), whole, in evaluation mode."""
    from transformers import AutoModelForSequenceClassification

    new = () if any("SequenceClassification" in name for name in _architectures(source)) else ("score.weight",)
    return _load(AutoModelForSequenceClassification, source, dtype, device, new=new, num_labels=1)


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


# --- adapters and the weights they stand on ------------------------------------------------------------


def weights_sha256(folder: Path) -> str:
    """One sha256 over a model's weight files, in order of name; remembered by size and time of change."""
    files = sorted(f for ending in ("safetensors", "bin", "gguf") for f in folder.glob(f"*.{ending}"))
    if not files:
        raise TrivetError("no weights (*.safetensors) in this folder", file=folder, mend="give a model folder")
    key = hashlib.sha256(json.dumps(
        [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]).encode()).hexdigest()
    note = cache_folder() / "hashes" / key
    if note.is_file() and len(found := note.read_text()) == 64:
        return found
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    with contextlib.suppress(OSError):  # the note only saves time
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest.hexdigest())
        os.replace(temporary, note)
    return digest.hexdigest()


def adapter_base(source: ModelSource) -> ModelSource:
    """The base of an adapter folder, its weights checked against the sha256 that the adapter recorded."""
    config = read_json(source.folder / "adapter_config.json")
    name = config.get("base_model_name_or_path")
    if not name:
        raise TrivetError("the adapter names no base model", file=source.folder / "adapter_config.json",
                          field="base_model_name_or_path", mend="write the base's folder or id there")
    base = resolve(name)
    mark = source.folder / "trivet_adapter.json"
    if mark.is_file():
        wanted, found = read_json(mark, "base_sha256")["base_sha256"], weights_sha256(base.folder)
        if wanted != found:
            raise TrivetError(
                f"the adapter was trained on other weights (sha256 {wanted[:12]}…) than {name} has now "
                f"({found[:12]}…)", file=source.folder,
                mend="give it the base it was trained on, or train it again on this one")
    return base


def model_identity(source: ModelSource, tokenizer: Any) -> dict[str, Any]:
    """What a local model's texts and verdicts depend on: its weights, its base's, and its chat template."""
    found = {"weights": weights_sha256(source.folder),
             "template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()}
    if source.is_adapter:
        found["base"] = weights_sha256(adapter_base(source).folder)
    return found


def describe(name: str) -> dict[str, Any]:
    """What is known of a model without loading its weights."""
    source = resolve(name)
    base = adapter_base(source) if source.is_adapter else source
    config = read_json(base.folder / "config.json")
    text = config.get("text_config") or config
    files = sorted(source.folder.glob("*.safetensors"))
    known = {
        "name": name, "folder": str(source.folder),
        "kind": "adapter" if source.is_adapter else "model",
        "base": str(base.name) if source.is_adapter else None,
        "architecture": (config.get("architectures") or [None])[0],
        "layers": text.get("num_hidden_layers") or text.get("n_layer"),
        "hidden_size": text.get("hidden_size") or text.get("n_embd"),
        "vocabulary": text.get("vocab_size"),
        "context": text.get("max_position_embeddings") or text.get("n_positions"),
        "parameters": sum(_tensor_elements(f) for f in files),
        "bytes": sum(f.stat().st_size for f in files),
        "weights_sha256": weights_sha256(source.folder),
    }
    return {k: v for k, v in known.items() if v is not None}


def _tensor_elements(file: Path) -> int:
    """Elements in a safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrivetError(f"these weights are damaged: {error}", file=file,
                          mend="save or fetch the model anew") from None
