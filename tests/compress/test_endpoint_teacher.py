"""A teacher at an endpoint: its tokens as the student's, its probabilities, what is kept and what refused."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_tokenizer
from trivet.artifacts import Prompt
from trivet.compress.distill_config import DistillConfig
from trivet.compress.endpoint_teacher import KeptReply, Told, taught, token_numbers
from trivet.compress.stored import StoredLogits
from trivet.errors import TrivetError
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.stages import STAGES, run_stage


class Served:
    """A model behind /chat/completions that tells its log-probabilities, its tokens as bytes."""

    def __init__(self, folder: Path, *, tells: bool = True, foreign: bool = False) -> None:
        self.model = load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
        self.tokenizer = load_tokenizer(resolve(str(folder)))
        self.bytes = {number: raw for raw, number in token_numbers(self.tokenizer).items()}
        self.tells, self.foreign, self.requests = tells, foreign, list[dict[str, Any]]()
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    data = json.dumps(outer.reply(body)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> Served:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def told(self, number: int, logp: float) -> dict[str, Any]:
        raw = self.bytes[number]
        return {"token": "§" if self.foreign else raw.decode("utf-8", "replace"), "logprob": logp,
                "bytes": None if self.foreign else list(raw)}

    @torch.no_grad()
    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        content, finish = [], "length"
        for _ in range(body["max_tokens"]):
            logps = torch.log_softmax(self.model(torch.tensor([ids])).logits[0, -1], -1)
            best = logps.topk(body["top_logprobs"])
            token = int(best.indices[0])
            if token == self.tokenizer.eos_token_id:
                finish = "stop"
                break
            content.append(self.told(token, float(best.values[0])) | {"top_logprobs": [
                self.told(int(i), float(v)) for v, i in zip(best.values, best.indices, strict=True)]})
            ids.append(token)
        answer = b"".join(self.bytes[int(i)] for i in ids[len(ids) - len(content):]).decode("utf-8", "replace")
        return {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": answer},
                             "logprobs": {"content": content} if self.tells else None}],
                "usage": {"prompt_tokens": 1, "completion_tokens": len(content)}}


def distil(out: Path, url: str, student: Path, prompts: Path, **changes):
    given = {"out": out, "prompts": prompts, "teacher": {"by": url, "model": "m", "top_k": 5},
             "student": {"by": str(student)}, "temperature": 1.0, "device": {"threads": 1}, "epochs": 3, "batch": 4,
             "max_length": 64, "optimizer": {"lr": 1e-2}, "sampling": {"max_new_tokens": 8}} | changes
    return run_stage(STAGES["distill"], DistillConfig(**given))


def test_its_answers_and_probabilities_teach(tiny_model_folder, make_tiny, prompt_file, tmp_path) -> None:
    student = make_tiny(tmp_path / "student", seed=4)
    with Served(tiny_model_folder) as served:
        summary = distil(tmp_path / "out", served.url, student, prompt_file)
        assert len(served.requests) == 12 and served.requests[0]["top_logprobs"] == 5
        # nothing is asked for twice
        (tmp_path / "out/summary.json").unlink()
        distil(tmp_path / "out", served.url, student, prompt_file)
        assert len(served.requests) == 12
    rows = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["distillation_loss"] < rows[0]["distillation_loss"]
    assert summary.teacher_parameters is None and summary.stored_bytes_per_token == 5 * 4 + 4
    assert StoredLogits(tmp_path / "out/logits").index.teacher.startswith("m at http://127.0.0.1")


def test_what_it_tells_is_what_the_model_says(tiny_model_folder) -> None:
    """The positions and the tail, beside a pass of the same model."""
    served = Served(tiny_model_folder)
    served.server.server_close()
    tokenizer, prompt = served.tokenizer, Prompt(id="p", messages=[{"role": "user", "content": "Is it red?"}])
    reply = served.reply({"messages": [m.model_dump() for m in prompt.messages], "max_tokens": 6, "top_logprobs": 4})
    choice = reply["choices"][0]
    kept = KeptReply(key="k", prompt="p", ended=choice["finish_reason"] == "stop",
                     content=[Told.model_validate(e) for e in choice["logprobs"]["content"]])
    found = taught(kept, prompt, tokenizer, token_numbers(tokenizer), "m", 4)
    assert found is not None
    ids = torch.tensor([found.example.ids])
    with torch.no_grad():
        logps = torch.log_softmax(served.model(ids).logits[0], -1)
    start = found.example.written.index(True)
    for k in range(len(kept.content)):
        best = logps[start + k - 1].topk(4)
        assert found.soft.ids[k].tolist() == best.indices.tolist()
        np.testing.assert_allclose(found.soft.logps[k], best.values, rtol=1e-4)
        assert found.soft.tails[k, 0] == pytest.approx(math.log(1 - float(best.values.exp().sum())), rel=1e-3)


def test_an_end_that_is_not_told_is_a_hard_label_alone() -> None:
    tokenizer = make_tokenizer()
    prompt = Prompt(id="p", messages=[{"role": "user", "content": "Is it red?"}])
    content = [Told(token="r", logprob=-0.5, top_logprobs=[Told(token="r", logprob=-0.5)])]
    for ended, size in ((True, 2), (False, 1)):
        found = taught(KeptReply(key="k", prompt="p", ended=ended, content=content), prompt, tokenizer,
                       token_numbers(tokenizer), "m", 3)
        assert found is not None and sum(found.example.written) == size
        assert (found.example.ids[-1] == tokenizer.eos_token_id) == ended
        assert np.isfinite(found.soft.logps).any(-1).tolist() == [True, False][:size]
    nothing = KeptReply(key="k", prompt="p", ended=True, content=[])
    assert taught(nothing, prompt, tokenizer, token_numbers(tokenizer), "m", 3) is None


def test_tokens_are_known_by_their_bytes(tiny_model_folder) -> None:
    tokenizer = make_tokenizer()
    numbers = token_numbers(tokenizer)
    for text in ("rice with beans", "é ü", "\n\n"):
        for number in tokenizer(text)["input_ids"]:
            (raw,) = [r for r, n in numbers.items() if n == number]
            assert raw.decode("utf-8", "replace") == tokenizer.decode([number])
    assert numbers[b"<|end|>"] == tokenizer.eos_token_id


def test_an_endpoint_of_another_vocabulary_is_refused(tiny_model_folder, prompt_file, tmp_path) -> None:
    with Served(tiny_model_folder, foreign=True) as served, pytest.raises(TrivetError, match="no token of the student"):
        distil(tmp_path / "out", served.url, tiny_model_folder, prompt_file)


def test_an_endpoint_without_probabilities_is_refused(tiny_model_folder, prompt_file, tmp_path) -> None:
    with Served(tiny_model_folder, tells=False) as served, pytest.raises(TrivetError, match="tells no log-prob"):
        distil(tmp_path / "out", served.url, tiny_model_folder, prompt_file)
