"""PoolLogger: logs what happens."""

from __future__ import annotations

import logging
from typing import Any

from geventpool.compat.pycassa._listeners import PoolListener, Told, level_of

__all__ = ["PoolLogger", "pool_log"]


def _logs(text: str) -> Told:
    def log(self: PoolLogger, dic: dict[str, Any]) -> None:
        if self.logger.isEnabledFor(level := level_of(dic)):
            names = {
                f"{key}_name": _named(dic, key) for key in ("connection", "old_conn", "new_conn")
            }
            self.logger.log(level, "%s", text.format_map({**dic, **names}))

    return log


class PoolLogger(PoolListener):
    """Logs what happens to the logger ``pycassa.pool``, as every pool has it do."""

    def __init__(self) -> None:
        self.logger = pool_log()

    connection_created = _logs("Connection {connection_name} opened for pool {pool_id}")
    connection_checked_out = _logs(
        "Connection {connection_name} was checked out from pool {pool_id}"
    )
    connection_checked_in = _logs("Connection {connection_name} was checked in to pool {pool_id}")
    connection_disposed = _logs(
        "Connection {connection_name} was closed; pool {pool_id}, reason: {message}"
    )
    connection_recycled = _logs(
        "Connection {old_conn_name} is being recycled in pool {pool_id} after"
        " {old_conn.operation_count} operations; it is replaced by connection {new_conn_name}"
    )
    connection_failed = _logs("Connection {connection_name} in pool {pool_id} failed: {error}")
    server_list_obtained = obtained_server_list = _logs(
        "Server list obtained for pool {pool_id}: {server_list}"
    )
    pool_disposed = _logs("Pool {pool_id} was disposed")
    pool_at_max = _logs(
        "Pool {pool_id} had a checkout request but was already at its max size ({pool_max})"
    )


def _named(dic: dict[str, Any], key: str) -> str:
    conn = dic.get(key)
    return f"{id(conn)} ({conn.server})" if conn is not None else f"to {dic.get('server')}"


def pool_log() -> logging.Logger:
    """The logger of pycassa's pools: silent unless the program gives it a handler."""
    root = logging.getLogger("pycassa")
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    if root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    return root.getChild("pool")
