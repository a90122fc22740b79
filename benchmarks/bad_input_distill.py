"""Malformed input to `trivet distill`: cases of benchmarks/bad_input.py, kept apart for their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Build = Callable[[Any], Sequence[str]]


def _given(p: Any, *more: str, student: Sequence[str] = ("--student.layers", "1"), data: bool = True) -> list[str]:
    """`trivet distill` on good data, briefly."""
    return [*(["--data", p.chats] if data else []), "--teacher.by", p.tiny, *student, "--max-length", "64",
            "--device.threads", "1", "--optimizer.lr", "1e-2", "--out", p.out, *more]


def _with(*more: str, **changes: Any) -> Build:
    return lambda p: _given(p, *more, **changes)


def _sizes(text: str) -> Build:
    return lambda p: _given(p, student=["--student.sizes", p.text("sizes.yaml", text)])


def _student(folder: Callable[[Any], str]) -> Build:
    return lambda p: _given(p, student=["--student.by", folder(p)])


def _rows(*rows: dict[str, Any], more: Sequence[str] = ()) -> Build:
    return lambda p: _given(p, "--data", p.rows("bad.jsonl", rows), *more)


def _other_vocabulary(p: Any) -> str:
    folder: Path = p.copy(p.shared.tiny, "other-words")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, two = sorted(words, key=words.get)[100:102]
    words[one], words[two] = words[two], words[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder)


def _stored(p: Any, k: int = 4) -> Path:
    """A folder of stored logits of the good data at temperatures 1 and 2."""
    p.done("distill", *_given(p, "--teacher.top-k", str(k), "--store-only", "--out", str(p.folder / "stored")))
    return Path(p.folder / "stored" / "logits")


def _from_stored(change: Callable[[Path], None] = lambda f: None, *more: str, data: str | None = None) -> Build:
    def build(p: Any) -> list[str]:
        folder = _stored(p)
        change(folder)
        text = p.chats if data is None else p.rows("other.jsonl", [{"prompt": data, "completion": "yes"}])
        return ["--data", text, "--teacher.stored", str(folder), "--student.by", p.tiny, "--max-length", "64",
                "--device.threads", "1", "--out", p.out, *more]

    return build


def _tear(folder: Path) -> None:
    (shard,) = folder.glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:200])


def _endpoint(url: Callable[[Any], str], *more: str) -> Build:
    return lambda p: ["--prompts", p.prompts, "--teacher.by", url(p), "--teacher.model", "m", "--student.by", p.tiny,
                      "--temperature", "1", "--max-length", "128", "--sampling.max-new-tokens", "8",
                      "--teacher.retries", "0", "--device.threads", "1", "--out", p.out, *more]


def _served(body: dict[str, Any]) -> Callable[[Any], str]:
    return lambda p: p.serve(200, json.dumps(body)) + "/v1"


def _reply(logprobs: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "yes"}, "logprobs": logprobs}]}


def cases(case: Callable[..., Any]) -> list[Any]:
    """The cases. case: the class `Case`, handed in since bad_input.py is a program, too."""
    def distill(name: str, build: Build, words: str, **more: Any) -> Any:
        return case("distill", name, build, words, **more)

    return [
        # what does not go together
        distill("no teacher", lambda p: ["--data", p.chats, "--student.layers", "1"], "one of the two"),
        distill("two teachers", _with("--teacher.stored", "logits"), "one of the two"),
        distill("no student", _with(student=()), "nothing is said of the student"),
        distill("nothing to learn from", _with(data=False), "set data, prompts, or both"),
        distill("a student of layers and sizes", _with("--student.sizes", "s.yaml"), "set one of the two"),
        distill("alpha above 1", _with("--alpha", "1.5"), "field 'alpha'"),
        distill("temperature below 1", _with("--temperature", "0.5"), "field 'temperature'"),
        distill("an unknown divergence", _with("--kind", "hellinger"), "hellinger"),
        distill("beta 1", _with("--kind", "jsd", "--beta", "1"), "field 'beta'"),
        distill("on policy without a teacher's weight", _with("--on-policy", "0.5", "--alpha", "0"), "raise alpha"),
        distill("on policy with stored logits", _with("--on-policy", "0.5", "--teacher.top-k", "4"),
                "can't be stored beforehand"),
        distill("storing nothing", _with("--store-only"), "Set teacher.top_k"),
        distill("stored logits without weight", _with("--teacher.top-k", "4", "--alpha", "0"), "have no weight"),
        distill("zeros of random weights", lambda p: _given(p, "--keep-zeros", student=[
            "--student.sizes", p.text("sizes.yaml", "num_hidden_layers: 1\n")]), "no zeros to keep"),
        distill("spread zeros", _with("--keep-zeros", "--device.shard", "full"), "set none"),
        distill("bits that there are not", _with("--quantize.on", "--quantize.bits", "5"), "quantize.bits"),
        distill("a limit of nothing", _with("--limit", "2"), "it counts prompts"),
        distill("beta of no mixture", _with("--beta", "0.3"), "set kind: jsd"),
        distill("a grid that is not used", _with("--quantize.bits", "3"), "set quantize.on"),
        distill("a tail of whole distributions", _with("--teacher.tail", "drop"), "set teacher.top_k"),
        # data
        distill("an empty answer", _rows({"prompt": "a", "completion": " "}), "does not end with an answer"),
        distill("a conversation longer than max_length", _rows({"prompt": "a", "completion": "yes " * 200}),
                "raise --max-length"),
        distill("texts among conversations", _rows({"text": "a"}, {"prompt": "a", "completion": "b"}),
                "keep the forms in files apart"),
        distill("max_length beyond the context", _with("--max-length", "4096"), "--max-length 256 at most",
                untrained=True),
        distill("held out what is trained on", lambda p: _given(p, "--heldout", p.chats), "split the data by prompt",
                untrained=True),
        distill("plain text on policy", lambda p: _given(p, "--data", p.text("a.txt", "word " * 99), "--on-policy",
                                                         "0.5"), "has no prompt", untrained=True),
        distill("prompts without room for an answer", lambda p: _given(
            p, "--prompts", p.prompts, "--sampling.max-new-tokens", "60", data=False), "lower --sampling.max-new"),
        # students
        distill("another vocabulary", _student(_other_vocabulary), "2 of 379 numbers stand for different tokens",
                untrained=True),
        distill("a teacher that is not there", _with("--teacher.by", "./nowhere"), "field 'teacher.by'"),
        distill("a student that is not there", _student(lambda p: "./nowhere"), "field 'student.by'"),
        distill("torn weights of a student", _student(lambda p: p.torn(p.shared.tiny, "model.safetensors")),
                "does not load"),
        distill("a reward model as the teacher", lambda p: _given(p, "--teacher.by", p.reward), "it can't answer"),
        distill("more layers than there are", _with(student=["--student.layers", "9"]), "from 1 to 2", untrained=True),
        distill("layers of an unknown architecture", lambda p: _given(p, "--teacher.by", str(p.shared.gpt2)),
                "can't be cut smaller", untrained=True),
        distill("sizes that are not there", _with(student=["--student.sizes", "nowhere.yaml"]), "no such file"),
        distill("a misspelt size", _sizes("hiden_size: 16\n"), "sizes.yaml:1, field 'hiden_size'", untrained=True),
        distill("another number of words", _sizes("num_hidden_layers: 1\nvocab_size: 7\n"),
                "sizes.yaml:2, field 'vocab_size'", untrained=True),
        distill("a size that is none", _sizes("hidden_size: large\n"), "a whole number from 1", untrained=True),
        distill("sizes that do not fit", _sizes("num_attention_heads: 4\nnum_key_value_heads: 3\n"),
                "no model of these sizes", untrained=True),
        distill("broken YAML of sizes", _sizes("hidden_size: [\n"), "broken YAML"),
        distill("no zeros to keep", lambda p: _given(p, "--keep-zeros", student=["--student.by", p.tiny]),
                "give a pruned model", untrained=True),
        distill("a group that divides no row", _with("--quantize.on", "--quantize.group", "48"),
                "field 'quantize.group'", untrained=True),
        # stored logits
        distill("more tokens than the vocabulary has", _with("--teacher.top-k", "5000"), "a vocabulary of 379"),
        distill("a folder without logits", lambda p: ["--data", p.chats, "--teacher.stored", p.make("empty"),
                                                      "--student.by", p.tiny], "there are no stored logits"),
        distill("stored logits without a student", lambda p: ["--data", p.chats, "--teacher.stored", p.make("empty"),
                                                              "--student.layers", "1"], "student.by"),
        distill("logits in the run folder", lambda p: [
            "--data", p.chats, "--teacher.stored", p.make("out/logits"), "--student.by", p.tiny, "--out", p.out],
            "which the stage would fill or clear"),
        distill("torn logits", _from_stored(_tear), "copy the folder whole", untrained=True),
        distill("an index of something else", _from_stored(lambda f: (f / "logits.json").write_text("{}") and None),
                "this field is missing"),
        distill("logits of another temperature", _from_stored(lambda f: None, "--temperature", "4"),
                "stored for temperatures 1, 2, not for 4", untrained=True),
        distill("logits of other data", _from_stored(data="Is it warm?"), "don't know 1", untrained=True),
        # endpoints
        distill("an endpoint that is to read", lambda p: [*_endpoint(lambda p: p.nobody())(p), "--data", p.chats],
                "set prompts"),
        distill("an endpoint at temperature 2", _endpoint(lambda p: p.nobody(), "--temperature", "2"),
                "teacher.tail: drop"),
        distill("more than endpoints tell", _endpoint(lambda p: p.nobody(), "--teacher.top-k", "50"), "20 at most"),
        distill("an endpoint without a model's name", lambda p: [
            "--prompts", p.prompts, "--teacher.by", "http://localhost:1/v1", "--student.by", p.tiny, "--temperature",
            "1"], "--teacher.model NAME"),
        distill("nobody at the endpoint", _endpoint(lambda p: p.nobody()), "does not answer", seconds=20),
        distill("an endpoint without log-probabilities", _endpoint(_served(_reply(None))),
                "tells no log-probabilities"),
        distill("log-probabilities of another form", _endpoint(_served(_reply({"content": [{"text": "yes"}]}))),
                "of another form"),
        distill("an endpoint of another vocabulary", _endpoint(_served(_reply({"content": [
            {"token": "qüx", "logprob": -0.1, "top_logprobs": []}]}))), "no token of the student"),
    ]
