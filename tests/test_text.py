from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from wasmgraph.text import markdown, terminal


@given(st.text(st.characters(exclude_categories=())))
def test_a_terminal_gets_no_orders(text: str) -> None:
    out = io.StringIO()
    Console(file=out, width=10_000).print(terminal(text), soft_wrap=True)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in out.getvalue())
    out.getvalue().encode()


def test_markup_is_text() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(terminal("[bold]x[/] \x1b[31mred"))
    assert out.getvalue() == "[bold]x[/] �[31mred\n"


@pytest.mark.parametrize(
    "text",
    ["@everyone", "http://evil", "<script>", "a|b", "# t", "`c`", "[l](u)", "![i](u)", "*b*", "x\n# y"],
)
def test_markdown_reads_nothing_into_it(text: str) -> None:
    shown = markdown(text)
    assert "\n" not in shown
    assert not set(shown.replace("&#", "")) & set("<>|@`*_[]\\~#!")
    assert "://" not in shown
