"""The guard's part of the page in a real browser: it fits a phone, and its marks can be seen in light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from report.gamed import write
from trivet.report.config import ReportConfig
from trivet.report.page import write_report

pytestmark = pytest.mark.browser


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.1)."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_marks_can_be_read_and_the_page_fits(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    write(tmp_path / "run")
    path = write_report(ReportConfig(run=tmp_path / "run"))
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(path.as_uri())
    assert not faults
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    mark = page.locator("#guard article mark").first
    assert mark.get_attribute("title")
    ink, paper, line = mark.evaluate(
        "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor, s.textDecorationLine]; }")
    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5 and line == "underline"
    page.get_by_role("link", name="Plot and marked answers").click()
    assert page.locator("#guard figure svg").is_visible()
