"""``python -m geventpool fleet URL NAME``: the processes of a cap, as the store has them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from geventpool.fleet.share import Record

__all__ = ["main", "table"]

_HEADINGS = ("process", "share", "used", "needs", "wants", "floor", "generation", "age", "")


def main(words: Sequence[str]) -> int:
    """Run the command line *words*; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m geventpool fleet",
        description="Shows the processes that share a cap: what each may have, has open, and wants,"
        " and how many seconds ago it said so.",
        epilog="Exit status: 0, or 1 if nothing is known of that name, or 2 if the store does not"
        " answer.",
    )
    parser.add_argument("url", help="of the Redis where the shares are: redis://host:port/database")
    parser.add_argument("name", help="of the FleetLimit")
    options = parser.parse_args(words)
    try:
        from geventpool.fleet.redis import RedisError, RedisStore
    except ImportError:
        parser.error("needs redis-py: pip install geventpool[redis]")
    try:
        now, records = RedisStore(options.url).records(options.name)
    except (RedisError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if not records:
        print(f"{parser.prog}: nothing is known of {options.name!r} there", file=sys.stderr)
        return 1
    print(table(records, now))
    return 0


def table(records: Mapping[str, Record], now: float) -> str:
    """The *records* of a cap at the time *now* of its store, and their sum, as lines of text."""
    rows = [_HEADINGS, *(_row(id, each, now) for id, each in sorted(records.items()))]
    live = [each for each in records.values() if now < each.expires]
    counted = sum(each.counted(now) for each in records.values())
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    used = sum(each.used for each in live)
    said = f"{len(live)} processes, {used} connections used, {counted} counted under the cap"
    return "\n".join([*lines, said])


def _row(id: str, each: Record, now: float) -> tuple[str, ...]:
    age = now - (each.expires - each.lease)
    numbers = (each.share, each.used, each.needs, each.wants, each.floor, each.generation)
    gone = "" if now < each.expires else "gone"
    return (id, *map(str, numbers), f"{age:.1f} s", gone)
