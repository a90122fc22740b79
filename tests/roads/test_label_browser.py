"""The way of a ranking in a real browser: invitation, sign-in, keyboard, tie, F, undo, admin page, export; then
`pairs --from-labels` → `reward` → `ppo` on a tiny model, with no script in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trivet.artifacts import Completion, Completions, Message, Prompt, Ranking, read_rows, write_rows
from trivet.cli import main

pytestmark = pytest.mark.browser
ITEMS = 10


@pytest.fixture
def completions(tmp_path: Path) -> Path:
    words = ["red", "green", "blue", "warm", "cold"]
    write_rows(tmp_path / "prompts.jsonl", [
        Prompt(id=f"q{i}", messages=[Message(role="user", content=f"Question {i}: is it good?")])
        for i in range(ITEMS)])
    write_rows(tmp_path / "completions.jsonl", [
        Completions(id=f"q{i}", messages=[Message(role="user", content=f"Question {i}: is {words[i % 5]} good?")],
                    completions=[Completion(id=f"q{i}/{j}", text=" ".join(["yes"] * j + ["no"] * (3 - j)) +
                                            f" {words[(i + j) % 5]}") for j in range(4)])
        for i in range(ITEMS)])
    return tmp_path / "completions.jsonl"


class Project:
    """`trivet label serve` as a process, and the pages of those who work in it, which may report no fault."""

    def __init__(self, browser: Any, completions: Path, db: Path) -> None:
        self.browser, self.db, self.faults = browser, db, []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trivet", "label", "serve", str(completions), "--db", str(db), "--port", "0",
             "--overlap", "2", "--repeat-rate", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"})
        assert self.process.stdout is not None
        said = ""
        while "/invite/" not in said:
            line = self.process.stdout.readline()
            assert line, said
            said += line
            if line.startswith("serving"):
                self.url = line.split()[1]
        self.admin_link = said.split()[-1]

    def visitor(self, **settings: Any) -> Any:
        """A page in a browser profile of its own."""
        page = self.browser.new_context(**settings).new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.faults.append(str(e)))
        return page

    def join(self, link: str, name: str, **settings: Any) -> Any:
        """Use an invitation link in a fresh browser."""
        page = self.visitor(**settings)
        page.goto(link)
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password", exact=False).nth(0).fill("correct horse battery")
        page.get_by_label("Password, once more").fill("correct horse battery")
        page.get_by_role("button", name="Create account").click()
        page.wait_for_url(lambda url: "/invite/" not in url)
        return page

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=30)


def rank_by_yes(page: Any) -> list[str]:
    """Rank the open item by keyboard: more `yes` is better; the two in the middle tie, the last is F."""
    texts = page.locator(".card > .text").all_inner_texts()
    keys = {3: "1", 2: "2", 1: "2", 0: "f"}
    chosen = [keys[t.split().count("yes")] for t in texts]
    for key in chosen:
        page.keyboard.press(key)
    return chosen


def submit(page: Any) -> None:
    """Press Enter, and wait for the page that says it was saved."""
    page.keyboard.press("Enter")
    page.locator("[data-notice=saved]").wait_for()


def test_from_an_invitation_to_a_policy(browser, completions, tmp_path, tiny_model_folder) -> None:
    project = Project(browser, completions, tmp_path / "labels.db")
    try:
        _label(project, tmp_path)
    finally:
        project.end()
    assert project.faults == []

    main(["pairs", "--from-labels", str(tmp_path / "labels.db"), "--out", str(tmp_path / "pairs"), "--heldout", "0.3"])
    summary = json.loads((tmp_path / "pairs" / "summary.json").read_text())
    assert summary["prompts"] == ITEMS and summary["pairs"] > ITEMS
    lora = ["--lora.r", "2", "--device.device", "cpu", "--device.threads", "1"]
    main(["reward", "--preferences", str(tmp_path / "pairs" / "train.jsonl"), "--heldout",
          str(tmp_path / "pairs" / "heldout.jsonl"), "--model", str(tiny_model_folder), "--out",
          str(tmp_path / "reward"), "--epochs", "1", "--max-length", "96", "--calibration.answers", "2",
          "--calibration.sampling.max-new-tokens", "4", *lora])
    main(["ppo", "--prompts", str(completions.with_name("prompts.jsonl")), "--reward",
          str(tmp_path / "reward" / "reward"), "--model", str(tiny_model_folder), "--out", str(tmp_path / "ppo"),
          "--no-check", "--stop.steps", "1", "--rollout", "2", "--sampling.max-new-tokens", "4",
          "--evaluation.samples", "1", "--evaluation.share", "0.3", *lora])
    assert json.loads((tmp_path / "ppo" / "summary.json").read_text())["steps"] == 1


def _label(project: Project, tmp_path: Path) -> None:
    admin = project.join(project.admin_link, "Ada", accept_downloads=True)
    admin.wait_for_url("**/admin")
    links = []
    for _ in range(2):
        admin.get_by_role("link", name="People").click()
        admin.get_by_role("button", name="Make an invitation link").click()
        links.append(admin.locator("#fresh").input_value())
    bo = project.join(links[0], "Bo")
    bo.wait_for_url("**/label")

    # signing out and in
    bo.get_by_role("button", name="Sign out").click()
    bo.get_by_label("Name").fill("bo")
    bo.get_by_label("Password").fill("correct horse battery")
    bo.keyboard.press("Enter")
    bo.wait_for_url("**/label")

    # by keyboard alone: the first card is in focus; a tie and an F
    assert bo.evaluate("document.activeElement.dataset.letter") == "A"
    bo.keyboard.press("Enter")
    assert "No rank yet for A, B, C, D" in bo.locator("#error").inner_text()
    rank_by_yes(bo)
    order = bo.locator("#order").inner_text()
    assert " = " in order and "F: " in order and "still" not in order
    assert bo.locator("[data-rank=F] .chosen").inner_text() == "F"
    assert "tied" in bo.locator("[data-rank='2'] .chosen").first.inner_text()
    assert "rank" in bo.locator("#status").inner_text() or "F" in bo.locator("#status").inner_text(), "it is said aloud"
    bo.keyboard.press("k")
    bo.keyboard.press("?")
    assert bo.get_by_role("dialog").is_visible()
    bo.keyboard.press("Escape")

    # what was chosen survives a reload
    bo.reload()
    assert bo.locator("#order").inner_text() == order
    first = bo.locator(".conversation").inner_text()
    submit(bo)
    assert bo.locator(".conversation").inner_text() != first

    # undo: the same item again, its draft with it; then a note, and on
    bo.keyboard.press("u")
    bo.locator("[data-notice=undone]").wait_for()
    assert bo.locator(".conversation").inner_text() == first
    assert bo.locator("#order").inner_text() == order
    bo.keyboard.press("n")
    bo.keyboard.type("clear enough")
    bo.keyboard.press("Escape")
    submit(bo)
    for _ in range(ITEMS - 2):
        rank_by_yes(bo)
        submit(bo)
    rank_by_yes(bo)
    bo.keyboard.press("Enter")
    bo.get_by_text("Nothing for you right now").wait_for()
    bo.get_by_role("link", name="My answers").first.click()
    assert bo.locator(".entry").count() == ITEMS
    assert "note" in bo.locator(".entry").last.inner_text()

    _on_a_phone_without_a_script(project, links[1])

    # the admin: progress, agreement, who did what; the export
    admin.get_by_role("link", name="Overview").click()
    assert "100%" in admin.locator(".tile.big").inner_text()
    table = admin.locator("table").first.inner_text()
    assert "Bo" in table and "Cy" in table
    admin.get_by_role("link", name="Agreement").click()
    assert "Krippendorff" in admin.locator("table").first.inner_text()
    admin.get_by_role("link", name="Export").click()
    with admin.expect_download() as download:
        admin.get_by_role("link", name="rankings.jsonl").click()
    download.value.save_as(tmp_path / "rankings.jsonl")
    rows = read_rows(tmp_path / "rankings.jsonl", Ranking)
    assert len(rows) == 2 * ITEMS
    for row in rows:
        assert row.ranks == [None, 2, 2, 1], "by the file's order, whatever order was shown"
    notes = [r for r in rows if r.note]
    assert [r.note for r in notes] == ["clear enough"] and all((r.seconds or 0) > 0 for r in rows)


def _on_a_phone_without_a_script(project: Project, link: str) -> None:
    """The second labeler's browser runs no script: taps and plain forms do the same."""
    cy = project.join(link, "Cy", viewport={"width": 390, "height": 800}, java_script_enabled=False, has_touch=True)
    cy.wait_for_url("**/label")
    assert cy.get_by_text("How to rank").is_visible(), "instructions are in view"
    for _ in range(ITEMS):
        for index in range(4):
            count = cy.locator(".card > .text").nth(index).inner_text().split().count("yes")
            value = {3: "1", 2: "2", 1: "2", 0: "F"}[count]
            cy.locator(f"input[name=rank-{index}][value='{value}']").check()
        cy.locator("#submit").click()
        cy.locator("#main").wait_for()
    cy.get_by_text("All done").wait_for()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)])
def test_contrast_and_width(browser, completions, tmp_path, scheme: str, width: int) -> None:
    """Texts stand out from their ground by 4.5 : 1 (WCAG 2.2 AA), and no page is wider than the screen."""
    project = Project(browser, completions, tmp_path / "labels.db")
    try:
        page = project.join(project.admin_link, "Ada", color_scheme=scheme, viewport={"width": width, "height": 800})
        faults = []
        for path in ("/label", "/mine", "/admin", "/admin/people", "/admin/settings", "/account", "/api"):
            page.goto(project.url + path)
            if path == "/label":
                rank_by_yes(page) if width > 1000 else page.locator("input[name=rank-0]").first.check()
            faults += [f"{path}: {fault}" for fault in page.evaluate(CONTRAST)]
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        assert faults == []
    finally:
        project.end()
    assert project.faults == []


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { c: [r, g, b], a: a / 255 };
  };
  const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const ground = (element) => { for (let e = element; e; e = e.parentElement) {
    const found = rgb(getComputedStyle(e).backgroundColor);
    if (found.a > .99) return found.c; } return [255, 255, 255]; };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const box = element.getBoundingClientRect();
    if (!walker.currentNode.textContent.trim() || box.width < 3 || !element.checkVisibility()) continue;
    if (element.closest(".sr-only, .skip-link, noscript, #submit, [data-rank=F] > .text, kbd")) continue;
    const style = getComputedStyle(element);
    const a = light(rgb(style.color).c), b = light(ground(element));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const said = walker.currentNode.textContent.trim().slice(0, 30);
    if (ratio < 4.5) faults.push(`${ratio.toFixed(2)} ${element.tagName}.${element.className} ${said}`);
  }
  return [...new Set(faults)];
}"""
