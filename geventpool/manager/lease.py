"""A managed connection for a while."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geventpool.manager.manager import ConnectionManager

__all__ = ["ManagedLease"]


class ManagedLease:
    """What ``manager.connection()`` returns: in a ``with`` it is a connection, for a while."""

    __slots__ = ("_arguments", "_manager", "_options", "_sock", "_uses")

    def __init__(
        self, manager: ConnectionManager, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._arguments = arguments
        self._options = options

    def __enter__(self) -> Any:
        manager = self._manager
        self._sock = sock = manager.get_connection(*self._arguments, **self._options)
        self._uses = manager._pool.slots_by_id[id(sock)].uses
        return sock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sock, self._sock = self._sock, None
        self._manager._end_lease(sock, self._uses, exc)
