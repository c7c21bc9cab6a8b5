"""What the commands share: the terminal they speak to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """Tell what is being done, apart from the output."""
    click.echo(f"{text} …", err=True)


def console() -> Console:
    """The terminal; wide enough for tables where output is not one."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = 160
    return made
