"""The chat page in a real browser: an answer that streams, a program's steps, stopping, a key, the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from served import serving

pytestmark = pytest.mark.browser
NARROW = {"width": 380, "height": 700}


@pytest.mark.real_weights
def test_a_conversation_with_the_embedded_model(browser: Any) -> None:
    with serving("smollm2-135m-instruct", "--pal", "--sampling.temperature", "0") as server:
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("#model option >> nth=2", state="attached")
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("What is the capital of France?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer .foot", timeout=60_000)
        first = page.inner_text(".answer .words")
        assert "Paris" in first
        page.locator("#send").wait_for()
        page.keyboard.type("Say that again in one word.")
        page.keyboard.press("Enter")
        page.wait_for_selector(".answer >> nth=1 >> .foot", timeout=60_000)
        assert page.locator(".user").count() == 2
        prompts = [line for line in server.said if '"prompt_tokens"' in line]
        assert len(prompts) >= 2, "the second question took the first turn along"

        page.locator("#send").wait_for()
        page.select_option("#model", "smollm2-135m-instruct:programs")
        page.fill("#question", "What is 17 times 23?")
        page.click("#send")
        page.wait_for_selector(".answer >> nth=2 >> .foot", timeout=60_000)
        last = page.locator(".answer").nth(2)
        assert "391" in last.locator(".words").inner_text()
        assert last.locator(".steps .kind").all_inner_texts() == ["program"]
        assert "391" in last.locator(".steps pre").inner_text(), "the program is shown with its values"

        page.locator("#send").wait_for()
        page.click("#fresh")
        page.select_option("#model", "smollm2-135m-instruct")
        page.fill("#question", "Write a long story about a cat. <img src=x onerror=alert(1)>")
        page.click("#send")
        page.locator(".answer .words", has_text="cat").wait_for(timeout=60_000)
        page.click("#stop")
        page.locator(".answer .note", has_text="Stopped").wait_for()
        assert page.locator("#log img").count() == 0, "what people write is shown, not run"
        page.set_viewport_size(NARROW)
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        page.click("#fresh")
        assert page.locator(".turn").count() == 0 and page.is_visible("#empty")
        assert not problems, problems
        page.close()


def test_a_key_is_asked_for_and_errors_are_told(browser: Any, tiny_model_folder: Path) -> None:
    with serving(tiny_model_folder, "--model-name", "tiny", "--rate", "2",
                 TRIVET_SERVE_KEYS="0123456789abcdef") as server:
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector("#door:not([hidden])")
        page.fill("#key", "0123456789abcdef")
        page.keyboard.press("Tab")
        page.wait_for_selector("#model option", state="attached")
        for number in range(3):
            page.fill("#question", f"Question {number}")
            page.click("#send")
            page.wait_for_selector("#send:not([hidden])", timeout=30_000)
            page.wait_for_timeout(200)
        assert "more than 2 requests a minute" in page.inner_text("#error")
        assert page.input_value("#question") == "Question 2", "what was asked is not lost"
        page.close()
