"""Continuous batching behind the event loop: the answers of `generate`, room for those who wait, and leaving."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from conftest import make_tokenizer
from trivet.artifacts import Message
from trivet.config import Device
from trivet.errors import TrivetError
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.generate.sample import text_of
from trivet.generate.stops import cut
from trivet.serve.batching import QueueFull, Stopping
from trivet.serve.local import LocalChatModel, open_chat
from trivet.serve.pieces import Pieces
from trivet.training.device import prepare

CPU = prepare(Device(device="cpu", threads=1))
QUESTIONS = ["What should I cook tonight?", "Count to five.", "Is the moon made of cheese?", "Why?", "How do I say no?"]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=16)


def ask(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_answers_are_those_of_generate_however_many_ask(tiny_model_folder: Path) -> None:
    async def together(width: int) -> list[list[str]]:
        model = await open_chat(tiny_model_folder, CPU, width=width)
        try:
            found = await asyncio.gather(*(model.draw(ask(q), SAMPLING, n=2, seed=k)
                                           for k, q in enumerate(QUESTIONS)))
            return [[d.text for d in drawn] for drawn in found]
        finally:
            await model.close()

    with load_engine(tiny_model_folder, CPU) as loaded:
        tokenizer = loaded.tokenizer
        prompts = [tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False,
                                                           add_generation_prompt=True))["input_ids"]
                   for q in QUESTIONS]
        made = loaded.engine.generate(prompts, SAMPLING, n=2, seeds=list(range(len(QUESTIONS))))
        expected = [[text_of(tokenizer, g) for g in group] for group in made]
    assert asyncio.run(together(3)) == expected
    assert asyncio.run(together(32)) == expected


def test_requests_with_settings_of_their_own_share_steps(tiny_model_folder: Path) -> None:
    samplings = [Sampling(temperature=0, max_new_tokens=5), Sampling(temperature=1, top_k=3, max_new_tokens=9),
                 Sampling(temperature=0.7, top_p=0.5, max_new_tokens=7)]

    async def run() -> tuple[list[str], list[str]]:
        model = await open_chat(tiny_model_folder, CPU)
        alone = [(await model.draw(ask("Count."), s, seed=4))[0].text for s in samplings]
        side = await asyncio.gather(*(model.draw(ask("Count."), s, seed=4) for s in samplings))
        await model.close()
        return alone, [d[0].text for d in side]

    alone, side = asyncio.run(run())
    assert alone == side


def test_who_leaves_frees_the_place(tiny_model_folder: Path) -> None:
    told: dict[str, float] = {}

    def tell(what: str, amount: float) -> None:
        told[what] = told.get(what, 0) + amount

    async def run() -> None:
        model = await open_chat(tiny_model_folder, CPU, width=1, tell=tell)
        model.loaded.stops = frozenset()  # each answer is as long as its limit
        prompt = model.prompt(ask("Count."))
        async with aclosing(model.stream(prompt, Sampling(max_new_tokens=200))) as pieces:
            async for _ in pieces:
                waiting = asyncio.create_task(model.draw(ask("Why?"), SAMPLING))
                await asyncio.sleep(0.05)
                assert not waiting.done() and model.batcher.waiting == 1
                break
        assert (await asyncio.wait_for(waiting, 10))[0].tokens == 16
        assert model.batcher.working == 0
        lost = asyncio.create_task(model.draw(ask("Why?"), Sampling(max_new_tokens=200)))
        await asyncio.sleep(0.05)
        lost.cancel()
        assert (await asyncio.wait_for(model.draw(ask("Why?"), SAMPLING), 10))[0].tokens == 16
        await model.close()

    asyncio.run(run())
    assert told["cancelled"] == 2 and told["tokens"] < 300


def test_a_full_queue_and_a_stopping_server_refuse(tiny_model_folder: Path) -> None:
    async def run() -> None:
        model = await open_chat(tiny_model_folder, CPU, width=1, queue=2)
        model.loaded.stops = frozenset()
        long = Sampling(max_new_tokens=150)
        asked = [asyncio.create_task(model.draw(ask("Why?"), long))]
        while not model.batcher.working:
            await asyncio.sleep(0.005)
        asked += [asyncio.create_task(model.draw(ask("Why?"), long)) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull, match="2 requests are waiting"):
            await model.draw(ask("Why?"), SAMPLING)
        closing = asyncio.create_task(model.close(30))
        await asyncio.sleep(0)
        with pytest.raises(Stopping):
            await model.draw(ask("Why?"), SAMPLING)
        assert [d[0].tokens for d in await asyncio.gather(*asked)] == [150] * 3, "what was taken is finished"
        await closing

    asyncio.run(run())


def test_closing_ends_what_takes_too_long(tiny_model_folder: Path) -> None:
    async def run() -> None:
        model = await open_chat(tiny_model_folder, CPU, width=1)
        model.loaded.stops = frozenset()
        asked = [asyncio.create_task(model.draw(ask("Why?"), Sampling(max_new_tokens=200))) for _ in range(8)]
        await asyncio.sleep(0.02)
        await model.close(0.0)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(f, Stopping) for f in found)

    asyncio.run(run())


def test_a_prompt_without_room_is_refused_and_others_go_on(tiny_model_folder: Path) -> None:
    async def run() -> None:
        model = await open_chat(tiny_model_folder, CPU)
        with pytest.raises(TrivetError, match="has room for 256"):
            await model.draw(ask("word " * 400), SAMPLING)
        assert (await model.draw(ask("Count."), SAMPLING.model_copy(update={"max_new_tokens": 5000})))[0].tokens <= 256
        await model.close()

    asyncio.run(run())


def test_a_step_that_fails_is_told_and_the_next_request_is_answered(tiny_model_folder: Path) -> None:
    async def run() -> None:
        model = await open_chat(tiny_model_folder, CPU)
        stepper, step = model.batcher.stepper, model.batcher.stepper.step
        model.loaded.stops = frozenset()

        def broken(tokens):
            stepper.step = step
            raise RuntimeError("out of memory")

        stepper.step = broken
        with pytest.raises(TrivetError, match=r"the model failed.*out of memory"):
            await model.draw(ask("Why?"), SAMPLING)
        assert (await model.draw(ask("Why?"), SAMPLING))[0].tokens == 16
        enter = stepper.enter

        def refused(*given):
            stepper.enter = enter
            raise RuntimeError("no room")

        stepper.enter = refused
        with pytest.raises(TrivetError, match=r"the model failed.*no room"):
            await model.draw(ask("Why?"), SAMPLING, n=3)
        assert (await model.draw(ask("Why?"), SAMPLING))[0].tokens == 16
        await model.close()

    asyncio.run(run())


def test_more_answers_than_rows_come_all_and_differ(tiny_model_folder: Path) -> None:
    async def run() -> list[str]:
        model = await open_chat(tiny_model_folder, CPU, width=2)
        found = await model.draw(ask("Why?"), SAMPLING, n=5, seed=3)
        await model.close()
        return [d.text for d in found]

    assert len(set(asyncio.run(run()))) == 5


def test_scores_are_the_engines(tiny_model_folder: Path) -> None:
    async def run() -> tuple[list[float], list[float]]:
        model: LocalChatModel = await open_chat(tiny_model_folder, CPU)
        drawing = asyncio.create_task(model.draw(ask("Why?"), SAMPLING))
        found = await model.score(ask("Count."), ["one two", "cheese"])
        prompt = model.prompt(ask("Count."))
        expected = [sum(s) for s in model.loaded.engine.score([prompt] * 2, [model.encode("one two"),
                                                                             model.encode("cheese")])]
        await drawing
        await model.close()
        return found, expected

    found, expected = asyncio.run(run())
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("text", ["Grüße aus Köln, 東京 and 🙂🙃!", "one STOP two", "a ST b STO c", "  spaced  "])
def test_pieces_add_up_to_the_text(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for stop in ([], ["STOP"], ["東"], ["zzz", " b ST"]):
        pieces, shown = Pieces(tokenizer, stop), ""
        for token in ids:
            shown += pieces.add(token)
            assert "�" not in shown
            assert text.startswith(shown) and not any(s in shown for s in stop)
        shown += pieces.end()
        assert shown == cut(text, stop)
        assert shown.strip() == text_of(tokenizer, Generated(tuple(ids), (), True), stop)
