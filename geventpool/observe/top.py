"""``python -m geventpool top URL``: the pools of a service in a terminal, each second.

What it shows is what the status page at URL says in pools.json.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from geventpool.observe.rendering import number, seconds
from geventpool.observe.trouble import BAD, WARNING, WELL, Trouble, troubles

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["main"]

PROGRAM = "python -m geventpool top"
_PERIOD = 1.0
_STYLES = {WELL: "green", WARNING: "yellow", BAD: "bold red"}


class Row(NamedTuple):
    """A pool, or a worker that does not answer."""

    worker: int
    name: str
    level: str
    words: str
    stats: dict[str, Any]
    wait: float  # seconds, of the last second
    served: float  # callers a second


class Order(NamedTuple):
    """What a key sorts by."""

    title: str
    value: Callable[[Row], Any]


_LEVELS = (BAD, WARNING, WELL)
ORDERS = {
    "t": Order("trouble", lambda row: (_LEVELS.index(row.level), row.name)),
    "n": Order("name", lambda row: (row.name, row.worker)),
    "u": Order("in use", lambda row: -row.stats.get("in_use", -1)),
    "w": Order("waiting", lambda row: -row.stats.get("waiting", -1)),
    "l": Order("longest wait", lambda row: -row.wait),
    "s": Order("served", lambda row: -row.served),
}


def main(words: Sequence[str]) -> int:
    """Run the command line *words*; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Shows the pools of a service each second, by its status page.",
        epilog="Keys: q ends; "
        + "; ".join(f"{key} sorts by {order.title}" for key, order in ORDERS.items())
        + ". Exit status: 0, or 1 if the page could not be had, 2 for a wrong command line.",
    )
    parser.add_argument(
        "url", metavar="URL", help="of the status page, http://localhost:8000/-/pools/"
    )
    parser.add_argument("--once", action="store_true", help="show it once, also without a terminal")
    parser.add_argument("--sort", choices=ORDERS, default="t", help="see the keys (default: t)")
    options = parser.parse_args(words)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"the URL of a status page, not {options.url!r}")
    try:
        from rich.console import Console
    except ImportError:
        print(f"{PROGRAM}: this needs rich: pip install 'geventpool[cli]'", file=sys.stderr)
        return 1
    console = Console()
    try:
        if options.once or not console.is_terminal:
            console.print(_table(list(_rows(_fetch(options.url))), options.sort))
        else:
            _show(console, options.url, options.sort)
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: {options.url}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _fetch(url: str) -> dict[str, Any]:
    """What pools.json says.  Raises OSError or ValueError."""
    base = url.partition("?")[0].removesuffix("pools.json").rstrip("/")
    asked = f"{base}/pools.json?holders=none&history=1"
    with urllib.request.urlopen(asked, timeout=5.0) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def _rows(shown: dict[str, Any]) -> Iterator[Row]:
    for worker in shown["workers"]:
        if worker["pools"] is None:
            yield Row(worker["pid"], "", BAD, f"silent: {worker['error']}", {}, 0.0, 0.0)
        for pool in worker["pools"] or ():
            found = troubles(pool) or [Trouble(WELL, "all well", "")]
            minute = pool["history"]["minute"]
            wait, served = (minute[name][-1:] for name in ("wait", "served"))
            yield Row(
                worker["pid"],
                pool["name"],
                found[0].level,
                ", ".join(each.word for each in found),
                pool["stats"],
                *(sum(wait), sum(served)),
            )


def _table(rows: list[Row], sort: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    order = ORDERS[sort]
    table = Table(title=f"{len(rows)} pools, by {order.title}", title_justify="left", box=None)
    for title in ("worker", "pool", "state"):
        table.add_column(title, overflow="fold" if title == "pool" else "ellipsis")
    for title in ("in use", "of", "idle", "waiting", "wait", "a second"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in sorted(rows, key=order.value):
        figures = [number(row.stats[name]) for name in _SHOWN] if row.stats else [""] * len(_SHOWN)
        table.add_row(
            str(row.worker),
            Text(row.name),  # as text: rich would take what is in brackets for markup
            Text(row.words, style=_STYLES[row.level]),
            *figures,
            seconds(row.wait) if row.stats else "",
            f"{row.served:,.0f}" if row.stats else "",
        )
    return table


_SHOWN = ("in_use", "maximum", "idle", "waiting")


def _show(console: Console, url: str, sort: str) -> None:
    """Show it until q is pressed."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    shown = _fetch(url)  # if it is not there at all, that is an error; later, a word on the screen
    notice = Text("")
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            table = _table(list(_rows(shown)), sort)
            help_line = Text(
                "q ends; sort: " + ", ".join(f"{k} {o.title}" for k, o in ORDERS.items())
            )
            live.update(Group(table, notice, help_line), refresh=True)
            key = pressed(_PERIOD)
            if key == "q":
                return
            sort = key if key in ORDERS else sort
            try:
                shown, notice = _fetch(url), Text("")
            except (OSError, ValueError) as error:
                notice = Text(f"No answer: {error}", style=_STYLES[BAD])


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key, and returns it or an empty text."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield _key
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_key(patience: float) -> str:
    time.sleep(patience)
    return ""


def _key(patience: float) -> str:
    ready = select.select([sys.stdin], [], [], patience)[0]
    return sys.stdin.read(1) if ready else ""
