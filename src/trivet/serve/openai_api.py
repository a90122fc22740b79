"""OpenAI's chat and completion requests, answered by a model in this process and the ways that stand on it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.serve.answering import Reply, Step, Way
from trivet.serve.app import Call, Server
from trivet.serve.local import LocalChatModel, Piece
from trivet.serve.requests import ChatRequest, CompletionRequest, read
from trivet.serve.tool_calls import may_call, read_calls
from trivet.serve.wire import DONE, Head, Logprobs, calls_json, event, reason, reply_json, step_json, usage


class LocalApi:
    """See app.Served."""

    def __init__(self, model: LocalChatModel) -> None:
        self.model, self.name = model, model.name

    async def answer_chat(self, server: Server, body: bytes, call: Call) -> Response:
        """See Served."""
        request: ChatRequest = read(ChatRequest, body)
        way = server.way(request.model)
        if way is not None:
            return await answer_by_way(server, way, self.model, request, call)
        tools = [t.model_dump(exclude_none=True) for t in request.tools or ()] if request.tool_choice != "none" else []
        turns = request.turns()
        prompt = self.model.prompt(turns, tools)
        sampling = _bounded(self.model, prompt, request.sampling(server.sampling), request.limit)
        call.clock.prompt_tokens = len(prompt)
        call.texts["messages"] = [t.model_dump(exclude_none=True) for t in request.messages]
        n, top = request.n or 1, (request.top_logprobs or 0) if request.logprobs else None
        pieces = self.model.stream(prompt, sampling, n=n, seed=_seed(request.seed), logprobs=top)
        answers = [_Answer(self.model, [t["function"]["name"] for t in tools]) for _ in range(n)]
        if request.stream:
            return server.streamed(call, self._chat_events(server, request, call, pieces, answers, len(prompt)))

        async def all_of_it() -> dict[str, Any]:
            async with aclosing(pieces):
                async for piece in pieces:
                    call.clock.token(server.metrics)
                    answers[piece.answer].add(piece)
            call.clock.tokens = sum(a.tokens for a in answers)
            call.texts["answers"] = [a.text for a in answers]
            return Head("chatcmpl", "chat.completion", request.model).part(
                [a.choice(k) for k, a in enumerate(answers)], usage=usage(len(prompt), call.clock.tokens),
                system_fingerprint=None)

        return JSONResponse(await server.whole(call, all_of_it()))

    async def _chat_events(self, server: Server, request: ChatRequest, call: Call,
                           pieces: AsyncGenerator[Piece, None], answers: Sequence[_Answer],
                           prompt_tokens: int) -> AsyncGenerator[bytes, None]:
        head = Head("chatcmpl", "chat.completion.chunk", request.model)
        none = {"usage": None} if request.with_usage else {}
        started: set[int] = set()
        async with aclosing(pieces):
            async for piece in pieces:
                call.clock.token(server.metrics)
                answer = answers[piece.answer]
                delta, logprobs, finish = answer.add(piece)
                call.clock.tokens = sum(a.tokens for a in answers)
                if piece.answer not in started:
                    started.add(piece.answer)
                    yield event(head.part([_chunk(piece.answer, {"role": "assistant", "content": ""}, None, None)],
                                          **none))
                if delta or logprobs:
                    yield event(head.part([_chunk(piece.answer, delta, logprobs, None)], **none))
                if finish is not None:
                    yield event(head.part([_chunk(piece.answer, {}, None, finish)], **none))
        call.texts["answers"] = [a.text for a in answers]
        if request.with_usage:
            yield event(head.part([], usage=usage(prompt_tokens, call.clock.tokens)))
        yield DONE

    async def answer_text(self, server: Server, body: bytes, call: Call) -> Response:
        """See Served."""
        request: CompletionRequest = read(CompletionRequest, body)
        if server.way(request.model) is not None:
            raise TrivetError("this name answers conversations alone", field="model",
                              mend=f"ask /v1/chat/completions, or take {self.name}")
        prompts = [self._ids(p, k) for k, p in enumerate(request.prompts)]
        wanted = request.sampling(server.sampling)
        samplings = [_bounded(self.model, p, wanted, request.limit) for p in prompts]
        n, seed = request.n or 1, _seed(request.seed)
        prompt_tokens = call.clock.prompt_tokens = sum(map(len, prompts))
        call.texts["prompts"] = list(request.prompts)
        logprobs = [Logprobs(self.model.tokenizer, self.model.loaded.stops) for _ in range(n * len(prompts))]
        texts = [""] * (n * len(prompts))
        reasons: list[str | None] = [None] * len(texts)
        echoes = [p if isinstance(p, str) else self.model.decode(p) for p in request.prompts] if request.echo else []
        pieces = _merged([self.model.stream(p, s, n=n, seed=seed + k, logprobs=request.logprobs)
                          for k, (p, s) in enumerate(zip(prompts, samplings, strict=True))], n)
        counts = [0] * len(texts)

        async def choices() -> AsyncGenerator[tuple[int, str, str | None], None]:
            async with aclosing(pieces):
                async for place, piece in pieces:
                    call.clock.token(server.metrics)
                    counts[place] = piece.tokens
                    call.clock.tokens = sum(counts)
                    logprobs[place].add(piece.token)
                    text = piece.text
                    if piece.tokens == 1 and echoes:
                        text = echoes[place // n] + text
                    texts[place] += text
                    reasons[place] = reason(piece.token)
                    yield place, text, reasons[place]

        async def events() -> AsyncGenerator[bytes, None]:
            head = Head("cmpl", "text_completion", request.model)
            none = {"usage": None} if request.with_usage else {}
            async with aclosing(choices()) as found:
                async for place, text, finish in found:
                    told = logprobs[place].take_old()
                    if text or told or finish:
                        yield event(head.part([{"index": place, "text": text, "logprobs": told,
                                                "finish_reason": finish}], **none))
            if request.with_usage:
                yield event(head.part([], usage=usage(prompt_tokens, call.clock.tokens)))
            yield DONE

        if request.stream:
            return server.streamed(call, events())

        async def all_of_it() -> dict[str, Any]:
            async with aclosing(choices()) as found:
                async for _ in found:
                    pass
            return Head("cmpl", "text_completion", request.model).part(
                [{"index": k, "text": text, "logprobs": logprobs[k].take_old(), "finish_reason": reasons[k]}
                 for k, text in enumerate(texts)], usage=usage(prompt_tokens, call.clock.tokens))

        return JSONResponse(await server.whole(call, all_of_it()))

    def _ids(self, prompt: str | list[int], place: int) -> list[int]:
        if isinstance(prompt, str):
            return self.model.encode(prompt)
        size = len(self.model.tokenizer)
        if any(i < 0 or i >= size for i in prompt):
            raise TrivetError("a token id is not in the model's vocabulary", field=f"prompt.{place}",
                              expected=f"0 to {size - 1}", mend="make the ids by this model's tokenizer")
        return prompt


class _Answer:
    """One answer of a chat as it grows: its text, or the calls that it turns out to be."""

    def __init__(self, model: LocalChatModel, tools: Sequence[str]) -> None:
        self.tools = tools
        self.text = ""
        self.tokens = 0
        self.calls: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.logprobs = Logprobs(model.tokenizer, model.loaded.stops)
        self._told: list[Any] = []
        self._held = ""
        self._words = not tools

    def add(self, piece: Piece) -> tuple[dict[str, Any], dict[str, Any] | None, str | None]:
        """A piece more: (what a chunk says, log-probabilities, why it ended)."""
        self.tokens = piece.tokens
        self.logprobs.add(piece.token)
        told = self.logprobs.take()
        self._told += told["content"] if told else []
        self.reason = reason(piece.token)
        delta: dict[str, Any] = {}
        text, self._held = self._held + piece.text, ""
        if not self._words and not may_call(text):
            self._words = True  # but a marked call may still follow the words
        if self.tools and self.reason is not None:
            text, calls = read_calls(self.text + text, self.tools, f"call_{secrets.token_hex(6)}_")
            if calls:
                self.calls, self.reason = calls_json(calls, numbered=False), "tool_calls"
                delta["tool_calls"] = calls_json(calls, numbered=True)
                text = "" if self.text else text
            else:
                text = text[len(self.text):]
        elif not self._words or (self.tools and "<tool_call>" in self.text + text):
            self._held, text = text, ""
        if text:
            self.text += text
            delta["content"] = text
        return delta, told, self.reason

    def choice(self, index: int) -> dict[str, Any]:
        """The whole of it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text or (None if self.calls else ""),
                                   "refusal": None}
        if self.calls:
            message["tool_calls"] = self.calls
        return {"index": index, "message": message, "finish_reason": self.reason,
                "logprobs": {"content": self._told, "refusal": None} if self._told else None}


def _chunk(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _seed(seed: int | None) -> int:
    return secrets.randbits(40) if seed is None else seed % 2**62


def _bounded(model: LocalChatModel, prompt: Sequence[int], sampling: Sampling, asked: int | None) -> Sampling:
    """No more new tokens than there is room for, unless so many were asked for: that is refused when it enters."""
    return sampling if asked is not None else model.bounded(prompt, sampling)


async def _merged(streams: Sequence[AsyncGenerator[Piece, None]], n: int) -> AsyncGenerator[tuple[int, Piece], None]:
    """Pieces of several streams as they come, with their answers' numbers. A failure of one ends all."""
    queue: asyncio.Queue[tuple[int, Piece] | TrivetError | None] = asyncio.Queue()

    async def follow(number: int, stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    queue.put_nowait((number * n + piece.answer, piece))
            queue.put_nowait(None)
        except TrivetError as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(follow(k, stream)) for k, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, TrivetError):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer_by_way(server: Server, way: Way, model: Any, request: ChatRequest, call: Call) -> Response:
    """A chat's answer by a way: steps as they happen where the request asks for them, then the reply."""
    for name, given in (("n", (request.n or 1) > 1), ("tools", request.tools), ("logprobs", request.logprobs)):
        if given:
            raise TrivetError(f"{request.model} takes no {name}", field=name,
                              mend=f"leave it out, or ask {server.model.name}")
    turns = request.turns()
    messages = [t for t in turns if isinstance(t, Message)]
    if len(messages) < len(turns) or messages[-1].role != "user":
        raise TrivetError(f"{request.model} takes a conversation of words that ends with a question", field="messages",
                          mend="send the question as the last message, and no tool's turns")
    sampling, seed = request.sampling(server.sampling), _seed(request.seed)
    call.texts["messages"] = [t.model_dump(exclude_none=True) for t in request.messages]

    def settle(reply: Reply) -> Reply:
        call.clock.prompt_tokens, call.clock.tokens = reply.prompt_tokens, reply.tokens
        call.texts["answers"] = [reply.text]
        return reply

    if not request.stream:
        reply = settle(await server.whole(call, way.answer(messages, model, sampling, seed=seed)))
        choice = {"index": 0, "message": {"role": "assistant", "content": reply.text, "refusal": None},
                  "finish_reason": "stop", "logprobs": None}
        return JSONResponse(Head("chatcmpl", "chat.completion", request.model).part(
            [choice], usage=usage(reply.prompt_tokens, reply.tokens), trivet=reply_json(reply)))

    async def events() -> AsyncGenerator[bytes, None]:
        head = Head("chatcmpl", "chat.completion.chunk", request.model)
        none = {"usage": None} if request.with_usage else {}
        said: asyncio.Queue[Step | None] = asyncio.Queue()
        task = asyncio.ensure_future(way.answer(messages, model, sampling, seed=seed, say=said.put_nowait))
        task.add_done_callback(lambda _: said.put_nowait(None))
        try:
            yield event(head.part([_chunk(0, {"role": "assistant", "content": ""}, None, None)], **none))
            while (step := await said.get()) is not None:
                if request.steps:
                    yield event(head.part([], trivet={"step": step_json(step)}, **none))
            reply = settle(task.result())
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        call.clock.token(server.metrics)
        yield event(head.part([_chunk(0, {"content": reply.text}, None, None)],
                              trivet=reply_json(reply, steps=False), **none))
        yield event(head.part([_chunk(0, {}, None, "stop")], **none))
        if request.with_usage:
            yield event(head.part([], usage=usage(reply.prompt_tokens, reply.tokens)))
        yield DONE

    return server.streamed(call, events())
