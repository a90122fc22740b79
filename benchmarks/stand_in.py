"""An endpoint that answers every chat completion after a fixed time, in a process of its own, for `endpoint_load.py`.

It speaks just enough HTTP/1.1 for that, on asyncio without a framework, so that thousands of requests a second cost it
little. `GET /stats` tells what it saw since the last `GET /reset`: requests, the mean and the most in flight between
the first request and the last answer. Its first line of output is its port.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time


class Seen:
    """Requests in flight over time."""

    def __init__(self) -> None:
        self.requests = self.flying = self.most = 0
        self.area = 0.0
        self.first = self.last = 0.0

    def change(self, by: int) -> None:
        now = time.monotonic()
        if self.requests == 0:
            self.first = self.last = now
        self.area += self.flying * (now - self.last)
        self.last = now
        self.flying += by
        self.requests += by > 0
        self.most = max(self.most, self.flying)

    def stats(self) -> dict[str, float]:
        seconds = self.last - self.first
        return {"requests": self.requests, "seconds": seconds, "most": self.most,
                "mean_in_flight": self.area / seconds if seconds else 0.0}


SEEN = Seen()


class Connection(asyncio.Protocol):
    """One client's connection; requests on it come one after another."""

    def __init__(self, delay: float, text: str) -> None:
        self.delay, self.buffer = delay, b""
        self.answer = _http(json.dumps({
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 60, "total_tokens": 110}}))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        global SEEN
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length:]
            if head.startswith(b"get /stats"):
                self.transport.write(_http(json.dumps(SEEN.stats())))
            elif head.startswith(b"get /reset"):
                SEEN = Seen()
                self.transport.write(_http("{}"))
            else:
                SEEN.change(1)
                asyncio.get_running_loop().call_later(self.delay, self.reply)

    def reply(self) -> None:
        SEEN.change(-1)
        if not self.transport.is_closing():
            self.transport.write(self.answer)


def _http(body: str) -> bytes:
    return (f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"
            ).encode()


async def main(delay: float, characters: int) -> None:
    text = ("A sentence of some length that says nothing in particular. " * (characters // 59 + 1))[:characters]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(delay, text), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), int(sys.argv[2])))
