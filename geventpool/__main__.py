"""``python -m geventpool COMMAND``: each command is a ``main(words)`` that returns its status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

__all__ = ["main"]

COMMANDS = {
    "demo": "demo",
    "top": "observe.top",
    "check": "observe.check",
    "dump": "observe.dump",
    "fleet": "fleet.terminal",
}
USAGE = """usage: python -m geventpool COMMAND [--help]

  demo    show a pool under load, and through an outage of its server
  top     watch the pools of a service, by its status page
  check   see what it is like to connect to a server from here
  dump    see who holds what in a running process, and where it is
  fleet   see which processes share a cap on connections, and how"""


def main(argv: Sequence[str] | None = None, **options: Any) -> int:
    """Run the command line *argv*; *options* are for the command.  Returns the exit status."""
    command, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(USAGE)
        return 0
    if command not in COMMANDS:
        print(f"{USAGE}\n\npython -m geventpool: no command {command!r}", file=sys.stderr)
        return 2
    run: Callable[..., int] = import_module(f"geventpool.{COMMANDS[command]}").main
    return run(words, **options)


if __name__ == "__main__":
    sys.exit(main())
