"""The pictures of docs/guides/labelling.md and serve.md, taken in a real browser from the starter set.

    python docs/screenshots.py [OUT]        default: docs/images; needs Chromium

The labelers' rankings are those of the starter set, some perturbed, so that something is in dispute.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import sync_playwright

from trivet.artifacts import Completions, Ranking, read_rows
from trivet.feedback.labelling.app import create_app
from trivet.feedback.store import Store

ROOT = Path(__file__).parents[1]
STARTER = ROOT / "src/trivet/starter"
PASSWORD = "four words in a row"


def fill(store: Store) -> None:
    """The starter set, three labelers at different speeds, an AI labeler, gold items."""
    store.change_settings(None, title="Starter set, round 1", gold_rate=0.15, repeat_rate=0.1)
    store.add_completions(read_rows(STARTER / "completions.jsonl", Completions))
    known: dict[str, list[Ranking]] = {}
    for row in read_rows(STARTER / "rankings.jsonl", Ranking):
        known.setdefault(row.id, []).append(row)
    store.add_gold([rows[0] for rows in list(known.values())[::30]])
    store.create_user("Ada", "admin", password=PASSWORD)
    rng = random.Random(0)
    for reader, (name, kind, count, noise) in enumerate((("Noor", "person", 150, 0.0), ("Mateo", "person", 110, 0.1),
                                                         ("Ingrid", "person", 70, 0.3), ("reader-1", "ai", 60, 0.0))):
        user = store.create_user(name, "labeler", kind=kind, password=PASSWORD if kind == "person" else None)
        for n in range(count):
            given = store.next_assignment(user.id)
            if given is None:
                break
            ranks = known[given.prompt_id][reader % 3].ranks
            if rng.random() < noise:
                ranks = [None if r is None else rng.randint(1, 4) for r in ranks]
            seconds = 4.0 if kind == "ai" else rng.lognormvariate(3.5 + 0.2 * reader, 0.5)
            store.submit(given.id, user.id, ranks, seconds=seconds, request_id=f"{name}-{n}")


def main(out: Path) -> None:
    """Take all pictures."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "labels.db") as store:
        fill(store)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(store), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=os.environ.get("TRIVET_CHROMIUM") or shutil.which("chromium"),
                args=["--no-sandbox"] if os.geteuid() == 0 else [])
            take(browser, f"http://127.0.0.1:{listening.getsockname()[1]}", out)
            chat(browser, out)
            browser.close()
        server.should_exit = True
        thread.join(10)


def take(browser: Any, url: str, out: Path) -> None:
    """The pictures, one by one."""
    def visitor(name: str, **settings: Any) -> Any:
        page = browser.new_context(**settings).new_page()
        page.goto(f"{url}/sign-in")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda address: "/sign-in" not in address)
        return page

    wide = {"width": 1440, "height": 900}
    for scheme in ("light", "dark"):
        page = visitor("Noor", viewport=wide, color_scheme=scheme)
        page.goto(f"{url}/label")
        for key in "212f":
            page.keyboard.press(key)
        page.keyboard.press("k")
        page.screenshot(path=out / f"label-item-{scheme}.png")
    page = visitor("Mateo", viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True,
                   has_touch=True)
    page.goto(f"{url}/label")
    page.locator("input[name=rank-0][value='2']").check()
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=out / "label-phone.png")
    page = visitor("Ada", viewport=wide)
    page.goto(f"{url}/admin")
    page.wait_for_timeout(3000)
    page.goto(f"{url}/admin")
    page.screenshot(path=out / "label-admin.png")
    page.goto(f"{url}/admin/disputed")
    page.get_by_role("button", name="Decide").first.click()
    page.locator("#judgment").wait_for()
    page.screenshot(path=out / "label-adjudicate.png")


def chat(browser: Any, out: Path) -> None:
    """The chat page: a question in words, and one that a program answers."""
    process = subprocess.Popen([sys.executable, "-m", "trivet", "serve", "--pal", "--port", "0",
                                "--sampling.temperature", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = next(found[1] for line in process.stdout if (found := re.search(r"serving (http://\S+)", line)))
        page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        page.goto(url)
        page.locator("#model option").nth(2).wait_for(state="attached")
        for place, (way, question) in enumerate((
                ("smollm2-135m-instruct", "What is the capital of France, and what is it known for?"),
                ("smollm2-135m-instruct:programs", "What is 17 times 23?"))):
            page.select_option("#model", way)
            page.fill("#question", question)
            page.keyboard.press("Enter")
            page.locator(".answer").nth(place).locator(".foot").wait_for(timeout=120_000)
        page.screenshot(path=out / "chat.png", full_page=True)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images")
