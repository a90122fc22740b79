"""Writers: texts in the order of the asks, kept as they come, and none of them written twice."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from trivet.artifacts import Message
from trivet.config import Device
from trivet.data.chat import prompt_ids, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling, Writing
from trivet.generate.torch_engine import TorchEngine
from trivet.generate.writing import Ask, Written, check_writer, make_writer
from trivet.training.device import prepare

HOT = Sampling(max_new_tokens=12)


def ask(text: str, id: str | None = None, number: int = 0) -> Ask:
    return Ask(id or text, (Message(role="user", content=text),), number)


ASKS = [ask("Count."), ask("What should I cook tonight, and how?"), ask("Count.", "again", 1), ask("Moon?")]


@pytest.fixture
def compute():
    return prepare(Device(device="cpu", precision="float32"))


def local(folder, tmp_path, compute, seed: int = 0, **more):
    return make_writer(Writing(by=str(folder)), compute, seed=seed, folder=tmp_path, field="target", **more)


def test_texts_come_in_order_and_are_kept(tiny_model_folder, tmp_path, compute) -> None:
    counted: dict[str, int] = {}
    writer = local(tiny_model_folder, tmp_path, compute,
                   count=lambda kind, n: counted.update({kind: counted.get(kind, 0) + n}))
    taken: list[tuple[int, Written]] = []
    found = writer(ASKS, HOT, take=lambda i, w: taken.append((i, w)))
    assert dict(taken) == dict(enumerate(found)) and len(taken) == 4
    assert found[0] != found[2]  # another number, another text
    assert all(w.tokens is not None and 1 <= w.tokens <= 12 for w in found)
    assert counted["generated"] == sum(w.tokens or 0 for w in found) and counted["prompt"] > 0
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert {(r["ask"], r["text"]) for r in rows} == {(a.id, w.text) for a, w in zip(ASKS, found, strict=True)}

    again = local(tiny_model_folder, tmp_path, compute, loaded=writer.loaded)
    again.source.write = None  # nothing is asked: it would break
    assert again(ASKS[::-1], HOT) == found[::-1]


def test_a_text_depends_on_what_is_asked_alone(tiny_model_folder, make_tiny, tmp_path, compute) -> None:
    first = local(tiny_model_folder, tmp_path / "a", compute)
    found = first(ASKS, HOT)
    one = local(tiny_model_folder, tmp_path / "b", compute)
    # alone, by another id, in another order
    assert one([ask("Moon?", "other id")], HOT) == [found[3]]
    assert one(ASKS[::-1], HOT) == found[::-1]
    for other in (local(tiny_model_folder, tmp_path / "a", compute, seed=1),
                  local(make_tiny(tmp_path / "m", seed=3), tmp_path / "a", compute)):
        assert other(ASKS, HOT) != found
    assert len(first.texts) == 4 and first(ASKS, HOT.model_copy(update={"temperature": 0.5})) != found
    assert len(first.texts) == 8 and len(local(tiny_model_folder, tmp_path / "a", compute).texts) == 16


def test_a_text_may_begin_with_given_words(tiny_model_folder, tmp_path, compute) -> None:
    counted: dict[str, int] = {}
    writer = local(tiny_model_folder, tmp_path, compute,
                   count=lambda kind, n: counted.update({kind: counted.get(kind, 0) + n}))
    plain, begun = writer([ask("Count."), replace(ask("Count."), begun="One, two,")], HOT)
    assert begun.text.startswith("One, two,") and not plain.text.startswith("One")
    assert begun.tokens is not None and begun.tokens <= 12  # the given words are not written
    tokenizer = writer.loaded[writer.name][1]
    lengths = [len(tokenizer.apply_chat_template([{"role": "user", "content": "Count."}], add_generation_prompt=True,
                                                 return_dict=False)), len(tokenizer.encode("One, two,"))]
    assert counted["prompt"] == 2 * lengths[0] + lengths[1]
    # what follows is what the model says after these very tokens
    model = writer.loaded[writer.name][0]
    ids = [*prompt_ids(tokenizer, ask("Count.").messages), *tokenizer.encode("One, two,")]
    greedy = HOT.model_copy(update={"temperature": 0.0})
    engine = TorchEngine(model, tokenizer.pad_token_id, stop_token_ids(model, tokenizer))
    ((direct,),) = engine.generate([ids], greedy, n=1, seeds=[0])
    (begun,) = writer([replace(ask("Count."), begun="One, two,")], greedy)
    assert begun.text == "One, two," + tokenizer.decode(direct.token_ids, skip_special_tokens=True).rstrip()


def test_what_is_alike_is_written_once(tiny_model_folder, tmp_path, compute) -> None:
    writer = local(tiny_model_folder, tmp_path, compute)
    taken = []
    found = writer([ask("Count.", str(i)) for i in range(5)], HOT, take=lambda i, w: taken.append(i))
    assert len(set(found)) == 1 == len(writer.texts) and taken == [0, 1, 2, 3, 4]


def test_an_interrupted_run_loses_no_finished_text(tiny_model_folder, tmp_path, compute) -> None:
    asks = [ask(f"Question {i}?") for i in range(9)]
    whole = local(tiny_model_folder, tmp_path / "whole", compute)(asks, HOT)
    writer = local(tiny_model_folder, tmp_path / "part", compute)
    came = []

    def stop_at_three(i: int, written: Written) -> None:
        came.append(i)
        if len(came) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer(asks, HOT, take=stop_at_three)
    writer = local(tiny_model_folder, tmp_path / "part", compute)
    assert len(writer.texts) == 3
    wrote: list[int] = []
    write = writer.source.write
    writer.source.write = lambda asks, *rest: (wrote.append(len(asks)), write(asks, *rest))
    taken: list[int] = []
    assert writer(asks, HOT, take=lambda i, w: taken.append(i)) == whole
    assert wrote == [6] and sorted(taken[:3]) == sorted(came)  # kept ones first


def test_many_asks_go_by_in_chunks(tiny_model_folder, tmp_path, compute, monkeypatch) -> None:
    asks = [ask(f"Question {i}?") for i in range(7)]
    whole = local(tiny_model_folder, tmp_path / "a", compute)(asks, HOT)
    monkeypatch.setattr("trivet.generate.local_writer.CHUNK", 3)
    assert local(tiny_model_folder, tmp_path / "b", compute)(asks, HOT) == whole


def test_stop_strings_cut_the_text(tiny_model_folder, tmp_path, compute) -> None:
    writer = local(tiny_model_folder, tmp_path, compute)
    (plain,) = writer([ask("Count.")], Sampling(max_new_tokens=12, temperature=0))
    stop = plain.text[3]
    (cut,) = writer([ask("Count.")], Sampling(max_new_tokens=12, temperature=0, stop=[stop]))
    assert cut.text == plain.text.split(stop)[0].strip() and cut.ended


def test_an_ask_that_does_not_fit_is_named_before_anything_is_written(tiny_model_folder, tmp_path, compute) -> None:
    writer = local(tiny_model_folder, tmp_path, compute)
    with pytest.raises(TrivetError, match=r"'too long' has .* tokens") as caught:
        writer([ask("Count."), ask("word " * 300, "too long")], HOT)
    assert caught.value.field == "target.by" and len(writer.texts) == 0


@pytest.mark.parametrize(("settings", "words"), [
    ({}, "nothing is named"), ({"by": " "}, "nothing is named"), ({"by": "./nowhere"}, "no model"),
    ({"by": "math:sqrt"}, "no model"),
])
def test_settings_that_name_no_writer(settings, words, tmp_path) -> None:
    with pytest.raises(TrivetError, match=words) as caught:
        check_writer(Writing(**settings), field="critic")
    assert caught.value.field == "critic.by"
    with pytest.raises(TrivetError, match=words):
        make_writer(Writing(**settings), None, seed=0, folder=tmp_path / "new", field="critic")
    assert not (tmp_path / "new").exists()


def test_no_torch_before_a_model_is_loaded(tiny_model_folder) -> None:
    code = ("import sys; from trivet.generate.config import Writing; from trivet.generate.writing import check_writer; "
            f"check_writer(Writing(by={str(tiny_model_folder)!r}), field='target'); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
