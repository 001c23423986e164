"""PoolListener: what pycassa's listeners are told, made of what those of geventpool are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from geventpool import events
from geventpool.errors import ConnectError
from geventpool.events import Reason

__all__ = ["EVENTS", "SPELLINGS", "EventTranslator", "PoolListener", "Told", "level_of"]


class PoolListener:
    """Told, with one dict each, what happens in a pool.  Any of its methods will do.

    ``connection_created`` (before anybody gets it: it may be set up), ``connection_checked_out``,
    ``connection_checked_in``, ``connection_disposed`` (closed, unless it has failed),
    ``connection_failed`` (a server could not be connected to, or a connection broke),
    ``connection_recycled`` (replaced after *recycle* operations), ``pool_at_max`` (a caller found
    all taken), ``pool_disposed`` (or closed), and ``server_list_obtained`` or, as the code of
    pycassa spelled it, ``obtained_server_list``.

    Each dict has *pool_id*, *level* and what pycassa documents for the event.  In that of a
    ``connection_failed`` there is also *in_use*, true if it was checked out.
    """


Told = Callable[[Any, dict[str, Any]], None]
SPELLINGS = ("server_list_obtained", "obtained_server_list")
EVENTS = {
    f"connection_{what}": f"connection_{what}"
    for what in ("created", "checked_out", "checked_in", "disposed", "failed", "recycled")
}
EVENTS.update(pool_at_max="pool_at_max", pool_disposed="pool_disposed")
EVENTS.update(dict.fromkeys(SPELLINGS, SPELLINGS[0]))
for _name in EVENTS:
    setattr(PoolListener, _name, lambda self, dic: None)


class EventTranslator(events.PoolListener):
    """Makes pycassa's events of the runtime's own."""

    def connection_disposed(self, event: events.ConnectionDisposed) -> None:
        if event.reason is not Reason.ERROR:  # that it has failed is told already
            message = {
                Reason.SURPLUS: "pool is already full",
                Reason.WORN_OUT: "recyling connection",
                Reason.DISPOSED: f"Pool {id(event.pool)} is being disposed",
            }.get(event.reason, str(event.reason))
            _tell(event, "connection_disposed", connection=event.connection, message=message)

    def connection_recycled(self, event: events.ConnectionRecycled) -> None:
        old, new = event.old_connection, event.new_connection
        _tell(event, "connection_recycled", old_conn=old, new_conn=new)

    def connection_lost(self, event: events.ConnectionLost) -> None:
        error = ConnectError("a connection was garbage collected without having been put back")
        fields = {"error": error, "server": None, "connection": None, "in_use": True}
        _tell(event, "connection_failed", "info", **fields)

    def pool_disposed(self, event: events.PoolDisposed) -> None:
        _tell(event, "pool_disposed", "info")

    def server_list_obtained(self, event: events.ServerListObtained) -> None:
        _tell(event, "server_list_obtained", server_list=list(event.servers))

    def pool_at_max(self, event: events.PoolAtMax) -> None:
        _tell(event, "pool_at_max", "info", pool_max=event.maximum)


def _tell(event: events.PoolEvent, what: str, level: str = "debug", **fields: Any) -> None:
    event.pool._tell(what, level, **fields)


def level_of(dic: dict[str, Any]) -> int:
    level: int = getattr(logging, dic.get("level", "info").upper())  # WARN is one
    return level
