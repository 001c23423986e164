"""``python -m geventpool dump PID``: who holds what in a running process, and where it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from geventpool.local_socket import ask, run_directory
from geventpool.observe.worker_socket import is_running, workers

__all__ = ["main", "report"]

PROGRAM = "python -m geventpool dump"
_LATE = 0.1  # seconds that a timer is late: worth a line


def main(words: Sequence[str]) -> int:
    """Run the command line *words*; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Asks a running process of yours for its pools, for who holds a connection, and"
        " where each of these greenlets is just now.  It answers if it called"
        " geventpool.observe.listen(), as the hooks of geventpool.gunicorn do.",
        epilog="Exit status: 0 if it answered, 1 if not, 2 for a wrong command line.",
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process id of the worker")
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds to wait for it (default: 5)"
    )
    options = parser.parse_args(words)
    try:
        found = {each.pid: each for each in workers(run_directory()) if is_running(each)}
        if options.pid not in found:
            running = ", ".join(map(str, found)) or "none"
            print(f"{PROGRAM}: {options.pid} does not listen; who does: {running}", file=sys.stderr)
            return 1
        answer = ask(found[options.pid].path, options.timeout)
    except (OSError, ValueError) as error:
        print(f"{PROGRAM}: {options.pid}: {error}", file=sys.stderr)
        return 1
    for line in report(answer):
        print(line)
    return 0


def report(snapshot: dict[str, Any]) -> Iterator[str]:
    """The lines of a report on a process."""
    yield f"process {snapshot['pid']}: {len(snapshot['pools'])} pools"
    for pool in snapshot["pools"]:
        yield ""
        yield from _pool(pool)


def _pool(pool: dict[str, Any]) -> Iterator[str]:
    stats = pool["stats"]
    yield (
        f"{pool['kind']} {pool['name']!r}: {stats['in_use']} in use, {stats['idle']} idle,"
        f" {stats['connecting']} connecting, {stats['waiting']} waiting"
    )
    if stats["hub_lag"] >= _LATE:
        yield (
            f"  timers fire up to {stats['hub_lag']:.3f} s late: a greenlet computes, or blocks the"
            " thread"
        )
    if stats["last_error"]:
        yield f"  last dial error: {stats['last_error']}"
    for server in pool["addresses"]:
        why = f": {server['reason']}" if server["reason"] else ""
        yield f"  server {server['address']} is {server['state']}{why}"
    for holder in pool["holders"]:
        where = f" of {holder['endpoint']}" if holder["endpoint"] else ""
        yield f"  held for {holder['age']:.3f} s{where} by {holder['greenlet'] or 'none: it ended'}"
        for title, stack in (("acquired at", holder["where"]), ("now at", holder["stack"])):
            if stack:
                yield f"    {title}:"
                yield from ("    " + line for line in stack.rstrip().splitlines())
