"""`trivet label …`: what it prints, serving for real, a kill in the middle, files in and out."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from feedback.labelling.visitor import item
from trivet.artifacts import Ranking, read_rows, write_rows
from trivet.cli import main
from trivet.errors import TrivetError
from trivet.feedback.store import Store


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    write_rows(tmp_path / "completions.jsonl", [item(n) for n in range(6)])
    return tmp_path / "completions.jsonl"


class Serving:
    """`trivet label serve` as a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trivet", "label", "serve", *arguments], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("serving "):
                self.url = line.split()[1]
                break
        else:
            raise AssertionError("\n".join(self.lines))

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def wait_up(self) -> None:
        for _ in range(200):
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server is not up")

    def end(self, with_signal: int = signal.SIGINT) -> str:
        self.process.send_signal(with_signal)
        rest, _ = self.process.communicate(timeout=30)
        return rest


def test_first_start_kill_and_graceful_stop(tmp_path, completions) -> None:
    """The admin's link is printed until there is an admin; what was acknowledged survives kill -9; Ctrl-C ends well."""
    db = str(tmp_path / "labels.db")
    one = Serving(str(completions), "--db", db, "--port", "0", "--overlap", "2", "--title", "Round one")
    try:
        assert any("6 added" in line for line in one.lines)
        link = one.line()
        assert re.search(r"the admin's link, for one use: http://127.0.0.1:\d+/invite/\S+", link)
        one.wait_up()
        with httpx.Client(follow_redirects=True) as browser:
            page = browser.get(link.split()[-1]).text
            csrf = re.search(r'name="csrf" value="(\w+)"', page)
            assert csrf
            answer = browser.post(link.split()[-1], data={"csrf": csrf[1], "name": "Ada", "password": "a" * 12,
                                                          "again": "a" * 12})
            assert answer.url.path == "/admin" and "Round one" in answer.text
        with Store.open(db) as store:
            token = store.create_api_token(store.users()[0].id, "t", None)
        with httpx.Client(base_url=f"{one.url}/api/v1", headers={"Authorization": f"Bearer {token}"}) as api:
            work = api.post("/assignments/next").json()
            saved = api.post(f"/assignments/{work['id']}/judgment", json={"ranks": [1, 2, 2, None]})
            assert saved.status_code == 201
    finally:
        one.end(signal.SIGKILL)
    two = Serving(str(completions), "--db", db, "--port", "0")
    try:
        assert any("0 added, 6 were there already" in line for line in two.lines)
        two.wait_up()
        with httpx.Client(base_url=f"{two.url}/api/v1", headers={"Authorization": f"Bearer {token}"}) as api:
            assert [h["id"] for h in api.get("/history").json()] == [saved.json()["id"]]
            assert api.get("/settings").json()["overlap"] == 2, "a setting not given stays as it was"
    finally:
        rest = two.end()
    assert "stopped" in rest and "admin's link" not in rest and "Traceback" not in rest
    assert two.process.returncode == 0


def test_a_port_that_is_taken(tmp_path, completions) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stopped:
        main(["label", "serve", "--db", str(tmp_path / "l.db"), "--port", str(taken.getsockname()[1])])
    assert stopped.value.code == 2


@pytest.mark.parametrize("arguments", [
    ["label", "agreement", "nothing.db"], ["label", "invite", "nothing.db"],
    ["label", "export", "nothing.db", "--out", "x"],
    ["label", "dance"], ["label", "import", "missing.jsonl"], ["label", "serve", "--overlap", "0"],
    ["label", "serve", "--model", "no/such/folder", "--port", "0"],
    ["label", "serve", "--url", "label.example.org"], ["label", "serve", "missing.jsonl"],
])
def test_bad_input_is_told(arguments, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "to mend" in capsys.readouterr().err
    assert arguments[1] == "serve" or not list(tmp_path.glob("*.db")), "no store is made by mistake"


def test_files_in_and_out(tmp_path, completions, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["label", "import", str(completions)])
    assert "6 added" in capsys.readouterr().out
    ranks = [[1, 2, 2, None], [4, 3, 2, 1], [1, 1, 2, 3], [1, 2, 3, 4], [2, 1, None, None], [1, 2, 3, 4]]
    rows = [Ranking(**item(n).model_dump(), ranks=r, labeler=who)
            for who in ("Bo", "Cy") for n, r in enumerate(ranks)]
    write_rows(tmp_path / "rankings.jsonl", rows)
    main(["label", "import", "rankings.jsonl", "--format", "rankings"])
    write_rows(tmp_path / "gold.jsonl", [Ranking(**item(70).model_dump(), ranks=[1, 2, 3, 4], labeler="gold")])
    main(["label", "import", "gold.jsonl", "--format", "gold"])
    capsys.readouterr()
    main(["label", "agreement", "--json-file", "agreement.json"])
    out = capsys.readouterr().out
    assert "6 items, 2 labelers, 12 rankings" in out and "Krippendorff’s α" in out and "1.000" in out
    assert json.loads(Path("agreement.json").read_text())["alpha"]["value"] == pytest.approx(1.0)
    main(["label", "export", "--out", "out.jsonl"])
    again = read_rows("out.jsonl", Ranking)
    assert sorted((r.id, r.labeler, str(r.ranks)) for r in again) == sorted(
        (r.id, r.labeler, str(r.ranks)) for r in rows)
    for name in ("argilla", "label-studio"):
        main(["label", "export", "--out", f"{name}.json", "--format", name])
        main(["label", "import", f"{name}.json", "--format", name, "--db", f"{name}.db"])
        with Store.open(f"{name}.db") as store:
            assert len(store.rankings()) == 12, name
    main(["label", "invite", "--role", "admin", "--name", "Dee", "--url", "https://l.example/"])
    link = capsys.readouterr().out.splitlines()[-1]
    assert link.startswith("https://l.example/invite/")
    with Store.open("labels.db") as store:
        assert store.invitation(link.rpartition("/")[2]) == ("admin", "Dee")


def test_help_teaches_every_setting(capsys) -> None:
    from trivet.feedback.labelling.command import HELP

    main(["label", "--help"])
    assert "trivet label serve" in capsys.readouterr().out
    for name, (config, _, _) in HELP.items():
        with pytest.raises(SystemExit) as stopped:
            main(["label", name, "--help"])
        assert stopped.value.code == 0
        assert f"trivet label {name}" in capsys.readouterr().out
        for field, info in config.model_fields.items():
            assert info.description, f"{name}: {field} has no words"


@pytest.mark.parametrize("code", [
    "from trivet.cli import main; main(['--help'])", "from trivet.cli import main; main(['label', '--help'])",
    "import trivet.feedback.labelling.command", "import trivet",
])
def test_help_is_light(code) -> None:
    out = subprocess.run([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], check=True,
                         capture_output=True, text=True).stdout
    assert not set(out.splitlines()[-1].split()) & {"torch", "fastapi", "starlette", "sqlalchemy", "uvicorn", "httpx"}


def test_the_store_must_be_named_for_reading(tmp_path) -> None:
    from trivet.feedback.labelling.command import agreement
    from trivet.feedback.labelling.config import LabelAgreementConfig

    Store.open(tmp_path / "empty.db").close()
    with pytest.raises(TrivetError, match="no judgments"):
        agreement(LabelAgreementConfig(db=str(tmp_path / "empty.db")))
