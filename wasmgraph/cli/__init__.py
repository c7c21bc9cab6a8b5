"""The command line. Exit codes: 0 done, 1 worse, 2 bad usage or bad input, 3 a failure of wasmgraph.

Heavy imports stay inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from typing import Any, NoReturn

import click

from wasmgraph.cli import differences, graphs, verdicts
from wasmgraph.cli.terminal import echo
from wasmgraph.errors import WasmgraphError

_INTERRUPTED, _PIPE_CLOSED, _TERMINATED = 130, 141, 143


class _Commands(click.Group):
    """Ends every command with a message and an exit code, never with a traceback (but see --debug)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except BrokenPipeError:  # `… | head`; click would end with 1, which says "worse"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(_PIPE_CLOSED)
        except (KeyboardInterrupt, click.Abort):
            _end("interrupted", _INTERRUPTED)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            if isinstance(error, WasmgraphError):
                _end(f"error: {error}", error.exit_code)
            _end(
                f"internal error: {type(error).__name__}: {error}\n"
                "This is a fault of wasmgraph; `wasmgraph --debug …` shows where.",
                3,
            )


def _end(message: str, code: int) -> NoReturn:
    echo(message, to_stderr=True)
    sys.exit(code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
@click.version_option(package_name="wasmgraph")
def main(debug: bool, quiet: bool) -> None:
    """Compile neural networks, weights included, into single WebAssembly modules.

    \b
    wasmgraph fetch resnet50
    wasmgraph compile resnet50.onnx -o resnet50.wasm --target wasm32-simd128
    wasmgraph classify resnet50.wasm photo.jpg
    """
    if threading.current_thread() is threading.main_thread():  # temporary files are then removed, too
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    warnings.showwarning = lambda message, *_, **__: echo(f"warning: {message}", to_stderr=True)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a SHELL.

    Example: eval "$(wasmgraph completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "wasmgraph", "_WASMGRAPH_COMPLETE").source())


for _command in (
    completion,
    *(graphs.fetch, graphs.compile, graphs.run, graphs.classify, graphs.embed),
    *(graphs.inspect, graphs.profile),
    differences.diff,
    *(verdicts.report, verdicts.compare, verdicts.regress, verdicts.history),
):
    main.add_command(_command)
