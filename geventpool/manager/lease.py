"""A managed connection for a while."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geventpool.manager.manager import ConnectionManager

__all__ = ["ManagedLease"]


class ManagedLease:
    """What ``manager.connection()`` returns: in a ``with`` it is a connection, for a while."""

    __slots__ = ("_arguments", "_entered", "_hold", "_manager", "_options", "_sock")

    def __init__(
        self, manager: ConnectionManager, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._arguments = arguments
        self._options = options
        self._entered = False

    def __enter__(self) -> Any:
        manager = self._manager
        if self._entered:
            raise RuntimeError(
                f"manager {manager.name!r}: this lease is in a with already; call connection() for"
                " each with"
            )
        self._entered = True  # also while it waits
        try:
            self._sock = sock = manager.get_connection(*self._arguments, **self._options)
            self._hold = manager._pool._hold_of(sock)
        except BaseException:
            self._entered = False
            raise
        return sock

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sock, self._sock = self._sock, None
        self._entered = False
        self._manager._end_lease(self._hold, sock, exc)
