"""The terminal, shared by all commands. Results go to standard output, progress to standard error.
``--quiet`` turns progress off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from wasmgraph.text import plain

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def echo(text: object, to_stderr: bool = False) -> None:
    """Print a line. Text from models and files cannot control the terminal."""
    click.echo(plain(str(text)), err=to_stderr)


def _is_quiet() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get("quiet"))


def say(text: str) -> None:
    """Report what is being done."""
    if not _is_quiet():
        echo(f"{text} …", to_stderr=True)


def note(text: str) -> None:
    """Report what was done."""
    if not _is_quiet():
        echo(text, to_stderr=True)


def console() -> Console:
    """The terminal; where output is not a terminal, wide enough for tables."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:  # rich would end with 1, which says "worse"
            raise BrokenPipeError

    made = Terminal()
    if not made.is_terminal:
        made.width = 160
    return made


@contextmanager
def progress(total: float, what: str) -> Iterator[Callable[[float], None]]:
    """A bar with the remaining time, on a terminal. Yields a function that is called with the share
    done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    shown = screen.is_terminal and not _is_quiet()
    with Progress(*columns, console=screen, transient=True, disable=not shown) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
