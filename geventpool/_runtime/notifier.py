"""Tells the listeners of a pool and its log; whatever they do, the pool is whole."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent import getcurrent
from gevent.hub import Hub

from geventpool import events
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.introspection import outermost_first
from geventpool._runtime.slots import PoolBucket
from geventpool._runtime.workers import WorkerGroup
from geventpool._util.log import log_safely
from geventpool.events import Reason

__all__ = ["Notifier"]

# A program that has set up no logging gets no lines of ours on its stderr.
logging.getLogger("geventpool").addHandler(logging.NullHandler())


_OVERLOADED = (
    "%d connections were closed within 10 s because a Timeout cut their use short, while %d callers"
    " wait in line: those that are served have waited until their time is over, and the places of"
    " the connections are spent on dials. Cures: overload=CoDel() keeps the line short; in a with"
    " geventpool.Deadline callers are given nothing they have no time for; a _salvage_connection"
    " hook keeps the connections (said once)"
)


class Notifier:
    """Calls listeners and log handlers: both may switch, so the books come first."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.make_workers()

    def make_workers(self) -> None:
        """Begin with none, as in a forked child."""
        self.workers = WorkerGroup(self._notify_now, 1)

    def notify(self, owner: PoolHooks, what: str, event: Any) -> None:
        """Notify the listeners of *owner* (from the hub: later); what they raise is logged."""
        if what not in owner.listening:
            return
        if getcurrent() is self._hub:
            self.workers.put((owner, what, event))
            return
        for listener in owner.listening.get(what, ()):
            try:
                listener(event)
            except Exception:
                self.log(owner, logging.ERROR, "%r failed", listener, exc_info=True)

    def disposed(
        self,
        owner: PoolHooks,
        bucket: PoolBucket,
        conn: Any,
        reason: Reason,
        error: BaseException | None = None,
    ) -> None:
        """A connection is not the pool's any more."""
        if "connection_disposed" in owner.listening:
            event = events.ConnectionDisposed(owner, conn, reason, error, endpoint=bucket.endpoint)
            self.notify(owner, "connection_disposed", event)

    def lost(self, owner: PoolHooks, event: events.ConnectionLost) -> None:
        """Say, a little later, that a connection was collected and never released."""
        self.workers.put((owner, "connection_lost", event))

    def nested(self, owner: PoolHooks, where: Any, now_at: Any) -> None:
        """Say, a little later, that a greenlet waits for a second connection, and where it is."""
        self.workers.put((owner, "nested", (where, now_at)))

    def mended(self, owner: PoolHooks, what: str) -> None:
        """Log, a little later, what was wrong with the books and has been set right."""
        self.workers.put((owner, "mended", what))

    def overloaded(self, owner: PoolHooks, lost: int, waiting: int) -> None:
        """Log, a little later, that so many connections were lost to Timeouts lately, while
        callers waited."""
        self.workers.put((owner, "overloaded", (lost, waiting)))

    def log(
        self, owner: PoolHooks, level: int, text: str, *args: Any, exc_info: Any = None
    ) -> None:
        """Log a line that begins with the name of the pool (from the hub: later)."""
        if getcurrent() is self._hub:
            exc_info = sys.exc_info() if exc_info is True else exc_info
            self.workers.put((owner, "log", (level, text, args, exc_info)))
        elif owner.log.isEnabledFor(level):
            log_safely(owner.log, level, "pool %r: " + text, owner.name, *args, exc_info=exc_info)

    def _notify_now(self, item: tuple[PoolHooks, str, Any]) -> Callable[[], object] | None:
        """Log it, in order; what is returned is called with others going on meanwhile, as a
        listener may wait."""
        owner, what, event = item
        if what == "log":
            level, text, args, exc_info = event
            self.log(owner, level, text, *args, exc_info=exc_info)
        if what == "mended":
            text = "the books were wrong, as something was cut short, and are right again: %s"
            self.log(owner, logging.WARNING, text, event)
        if what == "nested":
            where, now_at = event
            self.log(
                owner,
                logging.WARNING,
                "a greenlet that holds a connection waits in line for another one of the same pool:"
                " if all do so at once, they wait for ever.  It got the first%s\nIt waits at\n%s",
                f" at\n{outermost_first(where)}" if where else ": track=True tells where.",
                outermost_first(now_at),
            )
        if what == "overloaded":
            self.log(owner, logging.WARNING, _OVERLOADED, *event)
        if what == "connection_lost":
            self.log(
                owner,
                logging.WARNING,
                "a connection was never released and has been garbage collected, %.3f s after it"
                " was acquired%s",
                event.used,
                f" at\n{event.where}" if event.where else " (track=True tells where)",
            )
        if what == "connection_held_long":
            self._log_held_long(owner, event)
        return partial(self.notify, owner, what, event) if what in owner.listening else None

    def _log_held_long(self, owner: PoolHooks, event: events.ConnectionHeldLong) -> None:
        now_at = f"\nIt is now at\n{event.stack}" if event.stack else ""
        self.log(
            owner,
            logging.WARNING,
            "%sa connection has been held for %.3f s by %s.%s%s",
            _where(event),
            event.age,
            "a greenlet that has ended" if event.greenlet is None else event.greenlet,
            f"  It was acquired at\n{event.where}" if event.where else "",
            now_at if event.where else now_at + "(track=True tells where it was acquired)",
        )


def _where(event: events.PoolEvent) -> str:
    return "" if event.endpoint is None else f"{event.endpoint}: "
