"""Text from models and files, made harmless for the place where it is shown."""

from __future__ import annotations

import re

# Control characters, which could control a terminal; lone surrogates, which cannot be written.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Characters with a meaning in Markdown, HTML or GitHub: links, mentions, tables, tags.
_MARKDOWN = {character: f"&#{ord(character)};" for character in "&<>|@`*_[]\\~#!"}


def plain(text: str) -> str:
    """Text without control characters; line breaks and tabs stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def terminal(text: str) -> str:
    """For rich: no markup, no control characters."""
    from rich.markup import escape

    return escape(plain(text))


def markdown(text: str) -> str:
    """For Markdown, on one line: shown literally, without links or mentions."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in plain(" ".join(text.split())))
    return escaped.replace("://", "&#58;//").replace("www.", "www&#46;")
