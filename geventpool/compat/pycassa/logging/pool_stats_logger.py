"""StatsLogger: counts what happens."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

from geventpool.compat.pycassa._listeners import PoolListener, Told, level_of

__all__ = ["StatsLogger"]


def _counts(what: str, opened: int = 0) -> Told:
    def count(self: StatsLogger, dic: dict[str, Any]) -> None:
        outcome = "success" if level_of(dic) <= logging.INFO else "failure"
        self._count(what, outcome, opened)

    return count


class StatsLogger(PoolListener):
    """Counts what happens, in ``stats``; its *opened* is how many are checked out."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start again from zero."""
        with self.lock:
            self._stats: dict[str, Any] = {
                what: {"success": 0, "failure": 0} for what in ("created", "disposed")
            }
            self._stats["opened"] = {"current": 0, "max": 0}
            for what in ("checked_out", "checked_in", "recycled", "failed", "list", "at_max"):
                self._stats[what] = 0

    @property
    def stats(self) -> dict[str, Any]:
        """The counters as they are now; a copy."""
        with self.lock:
            return copy.deepcopy(self._stats)

    connection_created = _counts("created")
    connection_checked_out = _counts("checked_out", opened=1)
    connection_checked_in = _counts("checked_in", opened=-1)
    connection_disposed = _counts("disposed")
    connection_recycled = _counts("recycled")
    server_list_obtained = obtained_server_list = _counts("list")
    pool_at_max = _counts("at_max")

    def connection_failed(self, dic: dict[str, Any]) -> None:
        self._count("failed", opened=-1 if dic.get("in_use") else 0)
        if dic.get("server") is not None and dic.get("connection") is None:
            self._count("created", "failure")

    def _count(self, what: str, outcome: str = "success", opened: int = 0) -> None:
        with self.lock:
            if what in ("created", "disposed"):
                self._stats[what][outcome] += 1
            else:
                self._stats[what] += 1
            now = self._stats["opened"]
            now["current"] += opened
            now["max"] = max(now["max"], now["current"])
