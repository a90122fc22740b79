"""32 labelers at once on 500 items with overlap 3, over HTTP against the real app, which is killed twice on the way.

For SQLite and for PostgreSQL: `python -m trivet label serve` runs; every labeler asks for the next item, thinks for 1 s
on average (people take half a minute), judges it, and goes on until nothing is left. After a third and after two
thirds of the judgments the server is killed (`kill -9`) and started again; a labeler whose request was cut off repeats
it with the same request id, as the app's own page does. Then the database is compared with what was acknowledged:

    acknowledged    judgments whose 201 reached the labeler
    lost            of these, the ones that the database does not hold as they were
    doubled         judgments more than one a request, or a labeler and item
    over_overlap    items with more than 3 judgments
    under_overlap   items with fewer, at the end
    submit_p95_ms   of the requests that were answered, from sending to the answer (submit_p50_ms, next_p95_ms too);
                    without those under way while the server was down or starting
    saturated       all of these for a second run, kills and all, in which nobody thinks: 32 requests are always at work

    python benchmarks/labelling.py [--quick] [--json FILE]
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from common import load_average, options, report
from postgres import Cluster, free_port
from trivet.feedback.store import Store

OVERLAP, ANSWERS, KILLS = 3, 4, 2
WORDS = ["a", "trivet", "is", "stand", "with", "three", "legs", "which", "keeps", "hot", "pot", "off", "table"]


@dataclass
class Size:
    """labelers at once on items, thinking for so many seconds on average."""

    labelers: int
    items: int
    think: float


def completions(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` prompts with four answers of some hundred characters."""
    chance = random.Random(seed)
    return [{"schema_version": 1, "id": f"p{i}", "messages": [{"role": "user", "content": f"Question {i}?"}],
             "completions": [{"id": f"c{j}", "text": " ".join(chance.choices(WORDS, k=chance.randint(20, 120)))}
                             for j in range(ANSWERS)]} for i in range(count)]


class Server:
    """The real app in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.port = folder, url, free_port()
        self.lives = 0
        #: times at which the server was killed, and at which it answered again
        self.down: list[tuple[float, float]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.lives += 1
        with (self.folder / f"server-{self.lives}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trivet", "label", "serve", str(self.folder / "completions.jsonl"),
                 "--db", self.url, "--port", str(self.port)], stdout=log, stderr=log)
        until = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / f"server-{self.lives}.log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def kill_and_restart(self) -> None:
        killed = time.monotonic()
        self.kill()
        self.start()
        self.down.append((killed, time.monotonic()))


@dataclass
class Told:
    """What the labelers saw, together."""

    acknowledged: list[tuple[int, int, str, list[int | None]]] = field(default_factory=list)
    """(judgment, assignment, request id, ranks in the order shown)"""
    submits: list[tuple[float, float]] = field(default_factory=list)
    """(sent, answered)"""
    nexts: list[tuple[float, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)


class Labeler(threading.Thread):
    """One labeler at the REST API, as stubborn as the app's page."""

    def __init__(self, port: int, token: str, seed: int, told: Told, think: float) -> None:
        super().__init__(daemon=True)
        self.port, self.told, self.think = port, told, think
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.chance = random.Random(seed)
        self.connection: http.client.HTTPConnection | None = None
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while self._label():
                pass
        except BaseException as error:
            self.fault = error

    def _send(self, path: str, body: Any, times: list[tuple[float, float]]) -> tuple[int, Any]:
        """(status, answer); goes on asking while the server is down."""
        until = time.monotonic() + 180
        while True:
            sent = time.monotonic()
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                self.connection.request("POST", f"/api/v1{path}", json.dumps(body), self.headers)
                answer = self.connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                self.connection = None
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
                continue
            if answer.status >= 500:  # not acknowledged: ask again
                self.told.refused[str(answer.status)] += 1
                time.sleep(0.1)
                continue
            times.append((sent, time.monotonic()))
            return answer.status, json.loads(data) if data else None

    def _label(self) -> bool:
        status, work = self._send("/assignments/next", None, self.told.nexts)
        if status == 204:
            return False
        if status != 200:
            raise RuntimeError(f"next: {status} {work}")
        if self.think:
            time.sleep(self.chance.expovariate(1 / self.think))
        ranks = [self.chance.choice([1, 2, 3, 4, None]) for _ in work["answers"]]
        verdict = {"ranks": ranks, "seconds": 1.0, "request_id": str(uuid.uuid4())}
        status, saved = self._send(f"/assignments/{work['id']}/judgment", verdict, self.told.submits)
        if status == 201:
            self.told.acknowledged.append((saved["id"], saved["assignment_id"], verdict["request_id"], ranks))
        else:
            self.told.refused[str(status)] += 1
        return True


def run(url: str, size: Size, *, seed: int, think: float) -> dict[str, Any]:
    """One run from an empty database to its last judgment; its figures."""
    items, kills = size.items, KILLS
    with tempfile.TemporaryDirectory(prefix="trivet-labelling-") as name:
        folder = Path(name)
        (folder / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in completions(items, seed)))
        url = url or str(folder / "labels.db")
        with Store.open(url) as store:
            store.change_settings(None, overlap=OVERLAP, repeat_rate=0.0, gold_rate=0.0, seed=seed)
            users = [store.create_user(f"labeler {k}", "labeler", kind="ai") for k in range(size.labelers)]
            tokens = [store.create_api_token(user.id, "benchmark", None) for user in users]
        server, told = Server(folder, url), Told()
        server.start()
        began = time.monotonic()
        try:
            labelers = [Labeler(server.port, token, seed + k, told, think) for k, token in enumerate(tokens)]
            for labeler in labelers:
                labeler.start()
            for number in range(1, kills + 1):
                while len(told.acknowledged) < number * items * OVERLAP // (kills + 1) and any(
                        labeler.is_alive() for labeler in labelers):
                    time.sleep(0.01)
                server.kill_and_restart()
            for labeler in labelers:
                labeler.join()
                if labeler.fault is not None:
                    raise labeler.fault
        finally:
            server.kill()
        seconds = time.monotonic() - began - sum(up - down for down, up in server.down)
        figures = compare(url, told, items) | latencies(told, server)
        return figures | {"kills": len(server.down), "judgments_per_second": round(len(told.acknowledged) / seconds, 1),
                          "server_errors": sum(n for status, n in told.refused.items() if status >= "500"),
                          "refused": sum(n for status, n in told.refused.items() if status < "500")}


def compare(url: str, told: Told, items: int) -> dict[str, float]:
    """What was acknowledged, beside what the database holds."""
    with Store.open(url) as store:
        rows = store.read(lambda c: c.execute(text(
            "SELECT j.id, j.assignment_id, j.request_id, j.user_id, j.item_id FROM judgments j WHERE j.kind = 'judge'"
        )).all())
        held = store.read(lambda c: c.execute(text(
            "SELECT item_id, count(*) FROM assignments WHERE purpose = 'label' AND state IN ('leased', 'done') "
            "GROUP BY item_id")).all())
        kept = {row.id: (row.assignment_id, row.request_id) for row in rows}
        shown: dict[int, list[int | None]] = {}
        for user in {row.user_id for row in rows}:
            for judgment in store.history(user, limit=10**6):
                given = store.assignment(judgment.assignment_id, user)
                assert given is not None and judgment.ranks is not None
                shown[judgment.id] = [judgment.ranks[position] for position in given.shown_order]
        rankings = Counter(ranking.id for ranking in store.rankings())
    return {
        "acknowledged": len({number for number, *_ in told.acknowledged}),
        "lost": sum(kept.get(number) != (assignment, request) or shown.get(number) != ranks
                    for number, assignment, request, ranks in told.acknowledged),
        "doubled": (len(rows) - len({(row.user_id, row.request_id) for row in rows}))
        + (len(rows) - len({(row.user_id, row.item_id) for row in rows}))
        + (len(told.acknowledged) - len({number for number, *_ in told.acknowledged})),
        "over_overlap": sum(count > OVERLAP for _, count in held) + sum(n > OVERLAP for n in rankings.values()),
        "under_overlap": items - sum(n >= OVERLAP for n in rankings.values())}


def latencies(told: Told, server: Server) -> dict[str, float]:
    """Quantiles in milliseconds of what was asked while the server ran."""
    def quantile(times: list[tuple[float, float]], share: float) -> float:
        spans = sorted(answered - sent for sent, answered in times
                       if not any(sent < up and answered > down for down, up in server.down))
        return round(1000 * spans[min(len(spans) - 1, int(share * len(spans)))], 1)

    return {"submit_p50_ms": quantile(told.submits, 0.5), "submit_p95_ms": quantile(told.submits, 0.95),
            "next_p95_ms": quantile(told.nexts, 0.95)}


@contextmanager
def databases() -> Iterator[dict[str, list[str]]]:
    """Addresses of two empty databases of each kind; '' is a new file."""
    with Cluster(durable=True) as cluster:
        yield {"sqlite": ["", ""], "postgresql": [cluster.new_database(), cluster.new_database()]}


def main() -> None:
    chosen = options(__doc__.splitlines()[0])
    size = Size(6, 20, 0.1) if chosen.quick else Size(32, 500, 1.0)
    load = load_average()
    figures: dict[str, Any] = {}
    with databases() as addresses:
        for name, (first, second) in addresses.items():
            figures[name] = run(first, size, seed=chosen.seed, think=size.think)
            figures[name]["saturated"] = run(second, size, seed=chosen.seed, think=0.0)
    figures["labelers"], figures["items"], figures["overlap"] = size.labelers, size.items, OVERLAP
    figures["think_seconds"], figures["cpus"] = size.think, os.cpu_count()
    report("labelling", figures, chosen, load=load)


if __name__ == "__main__":
    main()
