"""``python -m geventpool COMMAND``: each command is a ``main(words)`` that returns its status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from geventpool import demo

__all__ = ["main"]

COMMANDS: dict[str, Callable[..., int]] = {"demo": demo.main}
USAGE = """usage: python -m geventpool COMMAND [--help]

  demo    show a pool under load, and through an outage of its server"""


def main(argv: Sequence[str] | None = None, **options: Any) -> int:
    """Run the command line *argv*; *options* are for the command.  Returns the exit status."""
    command, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\n\npython -m geventpool: no command {command!r}", file=sys.stderr)
        return 2
    return COMMANDS[command](words, **options)


if __name__ == "__main__":
    sys.exit(main())
