"""Completions that want to do harm are shown, and do none."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from feedback.labelling.visitor import item
from trivet.feedback.labelling.markdown import MARKDOWN_LIMIT, SHOWN_LIMIT, mark_hidden, shown, to_html

ATTACKS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg/onload=alert(1)>", "<b onclick=alert(1)>x</b>",
    "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](java\nscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](\x01javascript:alert(1))", "[x](data:text/html;base64,PHNjcmlwdD4=)", "[x](vbscript:x)", "[x](file:///etc/passwd)",
    "<javascript:alert(1)>", "![x](http://evil.example/track.png)", "![x](data:image/svg+xml;base64,AAAA)",
    "[x]: javascript:alert(1)\n\n[x]", "[x](//evil.example)", "[x](/sign-out)", "<a href='javascript:alert(1)'>x</a>",
    "<iframe src=//evil.example></iframe>", "<style>*{display:none}</style>", "<base href=//evil.example>",
    "<form action=//evil.example><input name=csrf>", "</article></form></main><script src=//evil.example></script>",
    "`<script>alert(1)</script>`", "```html\n<script>alert(1)</script>\n```", "```\"><script>alert(1)</script>\n```",
    "[x](http://a.example \"><script>alert(1)</script>)", "[\"><img src=x onerror=alert(1)>](http://a.example)",
    "http://a.example/\"onmouseover=alert(1)", "<https://a.example/\"onclick=alert(1)>", "{{ 7 * 7 }} {% raw %}",
    "<!--><script>alert(1)</script>-->", "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<span class=hidden-char title=x>RLO</span>", "&lt;script&gt;alert(1)&lt;/script&gt;", "\x00<scr\x00ipt>alert(1)",
    "| a |\n|---|\n| <img src=x onerror=alert(1)> |", "> <script>\n> alert(1)", "<details open ontoggle=alert(1)>",
]
TAGS = {"p", "br", "hr", "h4", "h5", "h6", "em", "strong", "s", "blockquote", "code", "pre", "ol", "ul", "li", "a",
        "table", "thead", "tbody", "tr", "th", "td", "span"}


class Collect(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def parsed(html: str) -> list[tuple[str, dict[str, str | None]]]:
    found = Collect()
    found.feed(html)
    return found.tags


@pytest.mark.parametrize("text", ATTACKS)
def test_only_harmless_html_comes_out(text: str) -> None:
    for html in (to_html(text), shown(text).html, to_html(text, breaks=False)):
        for tag, attributes in parsed(html):
            assert tag in TAGS, (tag, html)
            allowed = {"a": {"href", "title", "target", "rel"}, "span": {"class", "title"}}.get(tag, set())
            if tag in {"td", "th"}:
                allowed = {"align"}
            if tag == "pre":
                allowed = {"class"}
            assert set(attributes) <= allowed, html
            if tag == "a" and "href" in attributes:
                assert re.match(r"(https?://|mailto:)", attributes["href"] or ""), html
                assert attributes["rel"] == "noopener noreferrer nofollow"
                assert attributes["title"] == attributes["href"], "it says where it leads"


@pytest.mark.parametrize("text", ATTACKS)
def test_a_whole_page_with_it_has_only_our_own_scripts(store, visitor, text: str) -> None:
    row = item(0, prompt=f"Question {text}", **{f"text{j}": text for j in range(4)})
    store.add_completions([row])
    store.change_settings(None, instructions=text, title=text.replace("\x00", "") or "x")
    ours = parsed(visitor("Cy").get("/instructions").text)
    page = visitor("Bo").get("/label").text
    tags = parsed(page)
    assert [a.get("src", "").split("?")[0] for t, a in tags if t == "script"] == ["/static/app.js"]
    for tag, attributes in tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        assert tag not in {"iframe", "object", "embed", "base", "style", "svg", "math"}
        for name in ("href", "src", "action", "formaction"):
            assert not re.match(r"\s*(javascript|data|vbscript|file):", attributes.get(name) or "", re.I)
    assert len([t for t, _ in tags if t == "form"]) == 3, "no form was opened or closed by the text"
    assert ours


def test_what_it_says_can_still_be_read() -> None:
    assert to_html("<script>alert(1)</script>") == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"
    html = to_html("# Title\n\n**b** and `x < y`\n\n```py\nif a < b:\n    pass\n```\n- one\n- two\n\n"
                   "|a|b|\n|-|-|\n|1|2|")
    assert "<h4>Title</h4>" in html and "<code>x &lt; y</code>" in html and "if a &lt; b:\n    pass" in html
    assert "<li>one</li>" in html and "<td>1</td>" in html


@pytest.mark.parametrize(("char", "name"), [
    ("\u202e", "RLO"), ("\u202d", "LRO"), ("\u2066", "LRI"), ("\u2069", "PDI"), ("\u200b", "ZWSP"), ("\u200e", "LRM"),
    ("\u200f", "RLM"), ("\u061c", "ALM"), ("\ufeff", "BOM"), ("\u00ad", "SHY"), ("\u2060", "WJ"), ("\x1b", "U+001B"),
    ("\u2028", "U+2028"), ("\U000e0041", "U+E0041"), ("\u3164", "U+3164"), ("\u200d", "ZWJ"), ("\x7f", "U+007F"),
])
@pytest.mark.parametrize("frame", ["a{}b", "**a{}b**", "`a{}b`", "```\na{}b\n```", "[a{}b](http://x.example)", "# a{}b",
                                   "    a{}b"])
def test_hidden_characters_are_visible(char: str, name: str, frame: str) -> None:
    html = to_html(frame.format(char))
    assert char not in html
    assert re.search(rf'<span title="[^"]+" class="hidden-char">{re.escape(name)}</span>'
                     rf'|<span class="hidden-char" title="[^"]+">{re.escape(name)}</span>', html), html


def test_bidi_in_a_link_is_not_in_its_attributes() -> None:
    html = to_html("[a](http://x.example/\u202egnp.exe 'tip\u202e')")
    assert "\u202e" not in html and "%E2%80%AE" in html


def test_writing_that_needs_joiners_stays_whole() -> None:
    for text in ("\U0001F468\u200d\U0001F469\u200d\U0001F467", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
                 "\u2764\ufe0f", "\u05e9\u05dc\u05d5\u05dd", "\u0915\u094d\u200d\u0937"):
        assert mark_hidden(text) == text


def test_joiners_between_latin_letters_do_not() -> None:
    assert "ZWJ" in mark_hidden("pass\u200dword") and "ZWNJ" in mark_hidden("pass\u200cword")


def test_a_megabyte(store, visitor) -> None:
    """Shown in part, whole behind a link as plain text, and the page stays small."""
    big = ("<b>[x](javascript:1)\u202e " * 60_000)[:1_000_000]
    store.add_completions([item(0, text0=big, text1="x" * 1_000_000, text2="[" * MARKDOWN_LIMIT, text3="fine")])
    bo = visitor("Bo")
    page = bo.get("/label")
    assert page.status_code == 200 and len(page.content) < 2_500_000
    assert page.text.count("The whole text, 1,000,000 characters") == 2
    tags = parsed(page.text)
    assert not any(t == "b" for t, _ in tags)
    links = [a["href"] for t, a in tags if t == "a" and "/answer/" in (a.get("href") or "")]
    texts = {bo.client.get(str(path)).text for path in links}
    assert texts == {big, "x" * 1_000_000}
    answer = bo.client.get(str(links[0]))
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["x-content-type-options"] == "nosniff"
    bo.page = page.text
    assert bo.rank("1", "2", "3", "F").status_code == 200


def test_limits_are_where_they_are_said() -> None:
    assert "<strong>" in shown("**b**").html
    assert "<strong>" not in shown("**b**" + "x" * MARKDOWN_LIMIT).html
    assert not shown("x" * SHOWN_LIMIT).cut and shown("x" * (SHOWN_LIMIT + 1)).cut


def test_surrogates_and_odd_characters_reach_the_page(store, visitor) -> None:
    store.add_completions([item(0, text0="a\x00b", text1="\ud7ff\ue000", text2="\U0010ffff", text3="e\u0301" * 50)])
    assert visitor("Bo").get("/label").status_code == 200


def test_hostile_names_and_notes(store, visitor, ids) -> None:
    store.add_completions([item(0)])
    evil = "<script>alert(1)</script>"
    store.create_user(evil, "labeler", kind="ai")
    bo = visitor("Bo")
    bo.get("/label")
    bo.rank("1", "2", "3", "4", note=evil)
    store.change_settings(None, overlap=1)
    ada = visitor("Ada")
    for path in ("/admin", "/admin/people", "/admin/disputed", "/admin/log", "/admin/agreement"):
        page = ada.get(path)
        assert page.status_code == 200 and "<script>alert" not in page.text, path
