"""Text from strangers as harmless HTML: Markdown without raw HTML, an allow-list behind it, hidden characters shown.

Two walls, each enough alone: markdown-it-py with HTML off (it also refuses javascript:, vbscript:, file: and data:
links), then nh3 (ammonia) with a short list of tags. Images are not loaded: their Markdown stays text. Characters that
can't be seen, or that turn the writing direction around, are shown as small marks with their name, so that nobody
ranks what is not what it looks like. The page's Content-Security-Policy (security.py) is the third wall.

Not covered: letters of different scripts that look alike; LaTeX, which stays as typed.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

MARKDOWN_LIMIT = 20_000
"""Characters up to which a text is read as Markdown; a longer one is shown as it is (parsing time stays small)."""
SHOWN_LIMIT = 100_000
"""Characters of a text that the page shows; the rest stands behind a link."""

# Cf and Cc characters have no picture of their own; the fillers and the like are letters that show nothing.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]")
_SHORT = {
    "\u200b": "ZWSP", "\u200c": "ZWNJ", "\u200d": "ZWJ", "\u200e": "LRM", "\u200f": "RLM", "\u061c": "ALM",
    "\u202a": "LRE", "\u202b": "RLE", "\u202c": "PDF", "\u202d": "LRO", "\u202e": "RLO", "\u2066": "LRI",
    "\u2067": "RLI", "\u2068": "FSI", "\u2069": "PDI", "\u2060": "WJ", "\ufeff": "BOM", "\u00ad": "SHY",
}
_TAGS = {"p", "br", "hr", "h4", "h5", "h6", "em", "strong", "s", "blockquote", "code", "pre", "ol", "ul", "li", "a",
         "table", "thead", "tbody", "tr", "th", "td", "span"}


def _joins(text: str, at: int) -> bool:
    """Whether a joiner at this place is spelling (emoji sequences, Arabic and Indic letters), not hiding."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not before or not after:
        return False
    if text[at] == "\u200d" and (before == "\ufe0f" or unicodedata.category(before) in {"So", "Sk"}):
        return unicodedata.category(after) == "So"
    return all(unicodedata.category(c)[0] in "LM" and ord(c) > 0x0590 and unicodedata.category(c) != "Lu"
               for c in (before, after))


def mark_hidden(text: str) -> Markup:
    """Escaped text in which hidden and direction-turning characters are visible marks with their name."""
    parts: list[str] = []
    last = 0
    for found in _HIDDEN.finditer(text):
        at, char = found.start(), found[0]
        if char in "\u200c\u200d" and _joins(text, at):
            continue
        code = f"U+{ord(char):04X}"
        name = unicodedata.name(char, "control character")
        parts.append(str(escape(text[last:at])))
        parts.append(f'<span class="hidden-char" title="{code} {escape(name.lower())}">{_SHORT.get(char, code)}</span>')
        last = found.end()
    parts.append(str(escape(text[last:])))
    return Markup("".join(parts))


class _Renderer:
    """Render rules in which every piece of text passes `mark_hidden`, and headings stay below the page's own."""

    @staticmethod
    def text(_: Any, tokens: Sequence[Any], index: int, *_rest: Any) -> str:
        return str(mark_hidden(tokens[index].content))

    @staticmethod
    def code_inline(_: Any, tokens: Sequence[Any], index: int, *_rest: Any) -> str:
        return f"<code>{mark_hidden(tokens[index].content)}</code>"

    @staticmethod
    def code_block(_: Any, tokens: Sequence[Any], index: int, *_rest: Any) -> str:
        return f"<pre><code>{mark_hidden(tokens[index].content)}</code></pre>\n"

    @staticmethod
    def heading(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
        return str(self.renderToken(tokens, index, options, env))

    @staticmethod
    def link_open(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
        tokens[index].attrSet("title", str(tokens[index].attrGet("href")))  # where it leads, instead of what it says
        return str(self.renderToken(tokens, index, options, env))


@functools.cache
def _parser(breaks: bool) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": breaks}).enable(["table", "strikethrough"])
    parser.disable("image")
    for rule in ("text", "code_inline", "code_block", "link_open"):
        parser.add_render_rule(rule, getattr(_Renderer, rule))
    parser.add_render_rule("fence", _Renderer.code_block)
    parser.add_render_rule("heading_open", _Renderer.heading)
    parser.add_render_rule("heading_close", _Renderer.heading)
    return parser


@functools.cache
def _cleaner() -> nh3.Cleaner:
    return nh3.Cleaner(
        tags=_TAGS, clean_content_tags={"script", "style"},
        attributes={"a": {"href", "target", "title"}, "span": {"title"}},
        allowed_classes={"span": {"hidden-char"}}, url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow", set_tag_attribute_values={"a": {"target": "_blank"}},
        url_relative="deny")


@functools.lru_cache(maxsize=1024)
def to_html(text: str, breaks: bool = True) -> Markup:
    """Markdown as HTML that can do nothing. A text over MARKDOWN_LIMIT characters is shown as plain text.

    breaks: a line's end is a line's end, as people and models write; else only an empty line is, as authors do.
    """
    if len(text) > MARKDOWN_LIMIT:
        return plain(text)
    return Markup(_cleaner().clean(_parser(breaks).render(text)))


def plain(text: str) -> Markup:
    """Text as it was typed, in a block that keeps its lines."""
    return Markup('<pre class="plain">{}</pre>').format(mark_hidden(text))


@dataclass(frozen=True)
class Shown:
    """What a page shows of a text. `length` in characters; `cut`: the page shows only its beginning."""

    html: Markup
    length: int
    cut: bool


def shown(text: str, limit: int = SHOWN_LIMIT) -> Shown:
    """A text for a page, its first `limit` characters where it is longer."""
    if len(text) > limit:
        return Shown(plain(text[:limit]), len(text), True)
    return Shown(to_html(text), len(text), False)
