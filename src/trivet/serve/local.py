"""A model in this process as a `ChatModel`: many conversations at once, through continuous batching."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.errors import TrivetError
from trivet.generate.base import LoadedEngine
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.generate.stepping import ROOM, make_stepper
from trivet.serve.answering import Called, Drawn, Observed, Turn
from trivet.serve.batching import Batcher, Job, Token
from trivet.serve.pieces import Pieces
from trivet.serve.tool_calls import knows_tools, read_calls, render

if TYPE_CHECKING:
    from trivet.training.device import Compute


@dataclass(frozen=True)
class Piece:
    """Something more of an answer."""

    answer: int
    text: str
    """What may be shown now; often empty."""
    token: Token
    tokens: int
    """Of the answer so far."""


class LocalChatModel:
    """See ChatModel. Made by `open_chat`, in the event loop that uses it."""

    def __init__(self, name: str, loaded: LoadedEngine, *, width: int = 32, room: int = ROOM, queue: int = 128,
                 tell: Callable[[str, float], None] = lambda what, amount: None) -> None:
        """name: what it is called in requests. width, room: see make_stepper. queue: requests that may wait. tell: see
        Batcher. Raises TrivetError where there is no memory for the room.
        """
        self.name, self.loaded = name, loaded
        self.tokenizer = loaded.tokenizer
        self.native_tools = knows_tools(self.tokenizer)
        self.scores = loaded.engine.capabilities.score
        stepper = make_stepper(loaded, width=width, room=room)
        self.longest = stepper.longest
        """Tokens of a prompt and its answer at most."""
        self.batcher = Batcher(loaded, stepper, queue=queue, tell=tell)

    def prompt(self, messages: Sequence[Turn], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """A conversation as token ids. Raises TrivetError for tools where the template knows none."""
        if not self.native_tools and (tools or any(isinstance(t, Called | Observed) for t in messages)):
            raise TrivetError("this model's chat template knows no tools", field="tools",
                              mend="leave tools out, or serve a model whose template has them; the server's own agent "
                              "needs no such template")
        return self.encode(render(self.tokenizer, messages, tools))

    def encode(self, text: str) -> list[int]:
        """A text as token ids, special tokens read as such and none added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids as text, special tokens shown."""
        return str(self.tokenizer.decode(list(tokens)))

    async def stream(self, prompt: Sequence[int], sampling: Sampling, *, n: int = 1, seed: int = 0,
                     logprobs: int | None = None) -> AsyncGenerator[Piece, None]:
        """n answers as they grow, a piece a token. Leaving the iteration frees their places at once.

        logprobs: see Job. Raises QueueFull, Stopping, and TrivetError for a prompt without room for its answer, or
        where the model fails. Close it (contextlib.aclosing) when leaving early.
        """
        job = Job(prompt, sampling, n, seed, logprobs)
        texts = [Pieces(self.tokenizer, sampling.stop) for _ in range(n)]
        self.batcher.submit(job)
        left = n
        try:
            while left:
                event = await job.events.get()
                if isinstance(event, TrivetError):
                    raise event
                text = texts[event.answer]
                piece = text.add(event.id)
                if event.finished:
                    left -= 1
                    piece += text.end()
                yield Piece(event.answer, piece, event, len(text.tokens))
        finally:
            if left:
                self.batcher.leave(job)

    async def draw(self, messages: Sequence[Turn], sampling: Sampling, *, n: int = 1, seed: int = 0,
                   tools: Sequence[dict[str, Any]] = ()) -> list[Drawn]:
        """See ChatModel. Where the context has less room than `max_new_tokens`, answers may be as long as it has."""
        prompt = self.prompt(messages, tools)
        sampling = self.bounded(prompt, sampling)
        texts, ends, counts = [""] * n, [False] * n, [0] * n
        async with aclosing(self.stream(prompt, sampling, n=n, seed=seed)) as pieces:
            async for piece in pieces:
                texts[piece.answer] += piece.text
                ends[piece.answer], counts[piece.answer] = piece.token.ended, piece.tokens
        names = [t["function"]["name"] for t in tools]
        found = []
        for k, text in enumerate(texts):
            words, calls = read_calls(text, names, f"call_{secrets.token_hex(6)}_") if names else (text, ())
            found.append(Drawn(words.strip(), ends[k], len(prompt), counts[k], calls))
        return found

    def bounded(self, prompt: Sequence[int], sampling: Sampling) -> Sampling:
        """The sampling with no more new tokens than there is room for. Raises TrivetError where there is none."""
        room = self.longest - len(prompt)
        if room < 1:
            raise TrivetError(f"the prompt has {len(prompt)} tokens, the model has room for {self.longest}",
                              field="messages", mend="shorten the conversation")
        return sampling if sampling.max_new_tokens <= room else sampling.model_copy(update={"max_new_tokens": room})

    async def score(self, messages: Sequence[Turn], answers: Sequence[str]) -> list[float]:
        """See ChatModel. Answers are tokenized apart from the prompt; the end token is not scored.

        Raises TrivetError for an answer without tokens, and for one that does not fit the context.
        """
        prompt = self.prompt(messages)
        ids = [self.encode(a) for a in answers]
        if not all(ids):
            raise TrivetError("an answer to be scored has no tokens", field="answers", mend="give it some text")
        if (longest := len(prompt) + max(map(len, ids))) > (self.loaded.context or longest):
            raise TrivetError(f"a prompt with its answer has {longest} tokens, the model's context is "
                              f"{self.loaded.context}", field="messages", mend="shorten it")
        return await self.batcher.score(prompt, ids)

    async def close(self, seconds: float = 30.0) -> None:
        """Finish what is under way, for at most so many seconds; then give the memory back."""
        await self.batcher.close(seconds)
        self.loaded.close()


async def open_chat(name: str | Path, compute: Compute, *, called: str | None = None, width: int = 32,
                    room: int = ROOM, queue: int = 128,
                    tell: Callable[[str, float], None] = lambda what, amount: None) -> LocalChatModel:
    """A model in this process. Close it when done: `await model.close()`.

    name: what `load_engine` takes. called: its name in requests. Default: the folder's or file's own. Raises
    TrivetError for a model that does not load.
    """
    loaded = load_engine(name, compute, batch_size=width)
    try:
        return LocalChatModel(called or served_name(str(name)), loaded, width=width, room=room, queue=queue, tell=tell)
    except BaseException:
        loaded.close()
        raise


def served_name(name: str) -> str:
    """What a model is called when it is served: a hub id as it is, of a path the last parts that name a run."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    parts = [p for p in path.resolve().with_suffix("" if path.is_file() else path.suffix).parts[-3:]
             if p not in {"/", "runs", "policy", "model"}]
    return "-".join(parts[-2:]) or path.name
