"""vLLM's CPU build serves what `quantize` packs, and computes with the numbers that were written: `make vllm` first."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch

import peers
from trivet.cli import main
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from vllm_server import vllm_server

MODEL = "smollm2-135m-instruct"
pytestmark = [pytest.mark.vllm, pytest.mark.real_weights, pytest.mark.timeout(1800),
              pytest.mark.skipif(not peers.available("vllm"), reason="no vLLM here: make vllm")]
TEXT = ("The moon is a ball of rock and dust. It goes around the Earth in about twenty-seven days, and always shows it "
        "the same side. People walked on it for the first time in 1969, and brought stones home with them.")


def logps(folder: str | Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of a text's tokens but its first, in this process in float32."""
    model = load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
    with torch.no_grad():
        told = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1], -1)
    return told.gather(1, torch.tensor(ids)[1:, None])[:, 0]


@pytest.mark.parametrize("asked", [
    ["--bits", "4", "--group", "64"],
    ["--bits", "4", "--group", "32", "--no-symmetric"],
], ids=["4 bits", "4 bits with zero points"])
def test_vllm_computes_with_the_numbers_that_were_written(asked: list[str], tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    main(["quantize", "--model", MODEL, "--format", "compressed-tensors", "--held-out.windows", "1",
          "--held-out.length", "64", "--out", str(tmp_path / "out"), *asked])
    folder = tmp_path / "out" / "model"
    ids = load_tokenizer(resolve(MODEL))(TEXT)["input_ids"]
    with vllm_server(peers.environment("vllm"), folder, tmp_path / "log", "--served-model-name", "small",
                     dtype="bfloat16", context=512) as server:
        answer = httpx.post(f"{server.url}/v1/completions", timeout=120, json={
            "model": "small", "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})
    told = answer.raise_for_status().json()["choices"][0]["prompt_logprobs"][1:]
    theirs = torch.tensor([place[str(token)]["logprob"] for place, token in zip(told, ids[1:], strict=True)])
    ours, source = logps(folder, ids), logps(MODEL, ids)
    # bfloat16 there, float32 here: what is left is far less than what rounding the weights did
    assert float((theirs - ours).abs().mean()) < 0.06, json.dumps([theirs.tolist(), ours.tolist()])
    assert float((theirs - ours).abs().mean()) < 0.3 * float((theirs - source).abs().mean())
