"""Text that comes from models and files, made harmless for where it is shown."""

from __future__ import annotations

import re

from rich.markup import escape

# Control characters, of which a terminal might take orders; half characters, which no file takes.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What Markdown, HTML and GitHub read something into: links, mentions, tables, tags.
_MARKDOWN = {character: f"&#{ord(character)};" for character in "&<>|@`*_[]\\~#!"}


def terminal(text: str) -> str:
    """For rich: no markup, no control characters."""
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))


def markdown(text: str) -> str:
    """For Markdown, on one line: shown as it is, linking to nothing, notifying nobody."""
    plain = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    escaped = "".join(_MARKDOWN.get(character, character) for character in plain)
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")
