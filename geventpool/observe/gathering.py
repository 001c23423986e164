"""Asks all processes of a group for their snapshots, at the same time."""

from __future__ import annotations

import os
from typing import Any

import gevent

from geventpool.local_socket import ask, run_directory
from geventpool.observe.snapshot import snapshot
from geventpool.observe.worker_socket import Worker, group_here, sweep, workers

__all__ = ["gather"]


def gather(
    timeout: float = 1.0, *, group: int | None = None, **wanted: Any
) -> list[dict[str, Any]]:
    """The snapshot of every process of *group* (None: that of this process), by process id; what is
    *wanted* of it is what ``snapshot`` takes.

    One that does not answer within *timeout* seconds has *pools* None and a text in *error*: its
    hub is busy, or the process is stopped.  The socket of one that has ended is swept away.  Blocks
    for at most that long.
    """
    group = group_here() if group is None else group
    try:
        found = [each for each in workers(run_directory()) if each.group == group]
    except OSError:
        found = []  # no folder that can be trusted: only this process can be seen
    others = [each for each in found if each.pid != os.getpid()]
    asked = [gevent.spawn(_snapshot_of, each, timeout, wanted) for each in others]
    gevent.joinall(asked)
    answers = [greenlet.value for greenlet in asked if greenlet.value is not None]
    if group == group_here():
        answers.append({**snapshot(**wanted, pause=gevent.sleep), "error": None})
    return sorted(answers, key=lambda answer: int(answer["pid"]))


def _snapshot_of(worker: Worker, timeout: float, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """What it answers; None if it has ended."""
    try:
        return {**ask(worker.path, timeout, **wanted), "error": None}
    except (ConnectionRefusedError, FileNotFoundError):
        if sweep(worker):
            return None
        error = "it does not listen"
    except TimeoutError:
        error = f"it did not answer within {timeout:g} s"
    except (OSError, ValueError) as exc:
        error = f"it did not answer: {exc}"
    return {"pid": worker.pid, "time": None, "pools": None, "error": error}
