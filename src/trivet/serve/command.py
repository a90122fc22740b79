"""`trivet serve MODEL` and `trivet ask MODEL QUESTION`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from trivet.artifacts import Message
from trivet.errors import TrivetError
from trivet.generate.config import is_endpoint
from trivet.serve.answering import Step, Way
from trivet.serve.config import AskConfig, ServeConfig, Ways

Parse = Callable[[type[Any], list[str], str, str], Any]
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve_command(arguments: list[str], parse: Parse) -> None:
    """Run `trivet serve` until it is stopped. Raises TrivetError."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    config = parse(ServeConfig, arguments, "serve", "a model behind OpenAI's interface, with a chat page")
    asyncio.run(serve(config))


def ask_command(arguments: list[str], parse: Parse) -> None:
    """Run `trivet ask`: prints the answer, and on standard error what happens on the way. Raises TrivetError."""
    words = []
    while arguments and not arguments[0].startswith("-"):
        words.append(arguments[0])
        arguments = arguments[1:]
    if len(words) > 2:
        raise TrivetError("more than a model and a question", field="question", expected="MODEL QUESTION",
                          mend='put the question in quotes: trivet ask MODEL "How many …?"')
    named = ["--question", words[-1]] if words else []
    named += ["--model", words[0]] if len(words) == 2 else []
    config = parse(AskConfig, [*named, *arguments], "ask", "one question to a model, by its words or a program")
    asyncio.run(ask(config))


def ways_of(config: Ways) -> dict[str, Way]:
    """The ways that the settings turn on, by their names in requests."""
    found: dict[str, Way] = {}
    if config.pal:
        from trivet.serve.pal.answer import ProgramAided, Words
        from trivet.serve.pal.router import Routed

        found["programs"] = ProgramAided(config.programs)
        found["auto"] = Routed(found["programs"], Words())
    return found


async def ask(config: AskConfig) -> None:
    """Answer one question, and print it. Raises TrivetError."""
    from trivet.serve.local import open_chat
    from trivet.serve.pal.answer import Words
    from trivet.training.device import prepare

    ways = ways_of(config)
    way = ways.get("auto") or Words()
    messages = [Message(role="system", content=config.system)] if config.system else []
    messages.append(Message(role="user", content=config.question))

    def say(step: Step) -> None:
        if config.steps and not config.json_output:
            print(f"[{step.kind}] {step.title}", *(f"    {line}" for line in step.text.splitlines()), sep="\n",
                  file=sys.stderr, flush=True)

    model = await open_chat(config.model, prepare(config.device), width=max(1, config.programs.samples))
    try:
        reply = await way.answer(messages, model, config.sampling, seed=config.seed, say=say)
    finally:
        await model.close(0)
    if config.json_output:
        print(json.dumps(dataclasses.asdict(reply), indent=2, ensure_ascii=False))
        return
    print(reply.text)
    if reply.fell_back:
        print(f"(in words: {reply.fell_back})", file=sys.stderr)


async def serve(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM: then nothing new is taken, and what is under way has `grace` seconds.

    Raises TrivetError for a model that does not load, an address that is taken, or one beyond this machine without
    keys.
    """
    import uvicorn

    from trivet.serve.app import Server, create_app
    from trivet.serve.limits import Door, read_keys
    from trivet.serve.metrics import Log, Metrics

    keys = read_keys(config.keys)
    local = config.host in LOCAL
    if not (local or keys or config.open):
        raise TrivetError(f"{config.host} can be reached from other machines, and no keys are set", field="keys",
                          mend="give --keys FILE (one key a line), or --open where anyone may ask")
    listening = _listen(config.host, config.port)
    log_file = None
    try:
        if config.log is not None:
            try:
                log_file = config.log.open("a", encoding="utf-8")
            except OSError as error:
                raise TrivetError(f"the log can't be written ({error.strerror})", file=config.log, field="log",
                                  mend="name a file in a folder that exists") from None
        figures: list[Metrics] = []

        def tell(what: str, amount: float) -> None:
            if figures:
                figures[0].tell(what, amount)

        async with _model(config, tell) as (served, waiting, working, alive):
            figures.append(Metrics(waiting, working))
            door = Door(keys, rate=config.rate, most_bytes=config.most_bytes,
                        hosts=[*LOCAL, "[::1]", *config.hosts] if local else None)
            server = Server(served, ways_of(config), door, figures[0], Log(log_file, texts=config.log_texts),
                            config.sampling, config.seconds, alive)
            host, port = listening.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
            print(f"models: {', '.join(server.models)}\nserving http://{shown}:{port} (chat page; clients: "
                  f"http://{shown}:{port}/v1; Ctrl-C stops)", flush=True)
            running = _unsignalled(uvicorn.Config(
                create_app(server), log_level="warning", access_log=False, server_header=False, lifespan="off",
                timeout_graceful_shutdown=max(1, round(config.grace)), h11_max_incomplete_event_size=65_536))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, running.handle_exit, number, None)
            await running.serve(sockets=[listening])
        print("stopped")
    finally:
        listening.close()
        if log_file is not None:
            log_file.close()


@asynccontextmanager
async def _model(config: ServeConfig, tell: Callable[[str, float], None]) -> AsyncGenerator[Any, None]:
    """(what is served, how many wait, how many answers are at work, whether it lives)."""
    if is_endpoint(config.model):
        from trivet.serve.proxy import open_upstream

        upstream = await open_upstream(config.model, config.model_name, os.environ.get(config.key),
                                       seconds=config.seconds)
        try:
            yield upstream, lambda: 0, lambda: 0, lambda: True
        finally:
            await upstream.close()
        return
    from trivet.serve.local import open_chat
    from trivet.serve.openai_api import LocalApi
    from trivet.training.device import prepare

    model = await open_chat(config.model, prepare(config.device), called=config.model_name, width=config.width,
                            room=config.room, queue=config.queue, tell=tell)
    batcher = model.batcher
    try:
        yield (LocalApi(model), lambda: batcher.waiting, lambda: batcher.working, lambda: batcher.alive)
    finally:
        await model.close(1.0)


def _unsignalled(config: Any) -> Any:
    """A uvicorn server that leaves signals to its caller: raised anew, they would end the loop before the model is
    closed."""
    import uvicorn

    class Unsignalled(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    return Unsignalled(config)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises TrivetError where the address is taken or not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise TrivetError(f"cannot listen on {host} port {port}: {error.strerror or error}", field="port",
                          mend="choose another --port (0 takes a free one) or --host") from None
    return listening
