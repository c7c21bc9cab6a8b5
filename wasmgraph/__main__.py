"""``wasmgraph``, and ``python -m wasmgraph``: obeys Ctrl-C from the first import on."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line."""
    try:
        from wasmgraph.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
