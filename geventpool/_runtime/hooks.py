"""What the runtime needs of a pool: its settings, and the hooks, which get the bucket's key."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from geventpool._runtime.outages import Outages
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool.errors import Verdict
from geventpool.events import Reason

__all__ = ["PoolHooks"]


class PoolHooks(Protocol):
    """A pool, as the runtime sees it."""

    name: str
    log: logging.Logger
    listening: dict[str, tuple[Callable[[Any], object], ...]]
    connect_timeout: float | None
    keepalive: float | None
    keepalive_timeout: float
    salvage_timeout: float
    check_after: float | None
    max_waiting: int | None
    track: bool
    leak_threshold: float | None
    slots_by_id: dict[int, ConnectionSlot]  # id(connection) -> its slot
    maintenance: Any  # the runtime's: its keepalive and its reaper, None at first
    closed: bool  # by close()
    warned: set[str]  # what has been warned of, once
    outages: Outages
    _is_managed: bool
    has_is_alive: bool  # whether _is_alive is the user's own
    checks_on_checkout: bool  # whether a hand-out takes more than a probe
    has_reset: bool
    has_salvage: bool
    has_socket: bool
    socket_hook: str  # the name of the hook that says what carries the bytes
    _may_reconnect: bool

    def _all_buckets(self) -> Sequence[PoolBucket]: ...
    def _new_connection(self, *key: Any) -> Any: ...
    def _keepalive(self, *key_and_conn: Any) -> object: ...
    def _close_connection(self, *key_and_conn: Any) -> object: ...
    def _is_alive(self, *key_and_conn: Any) -> bool: ...
    def _socket(self, *key_and_conn: Any) -> Any: ...
    def _ask_socket(self, *key_and_conn: Any) -> Any: ...
    def _reset_connection(self, *key_and_conn: Any) -> object: ...
    def _verdict_on_dial(self, error: BaseException) -> Verdict: ...
    def _salvage_connection(self, *key_conn_and_error: Any) -> object: ...
    def _is_socket(self, conn: Any) -> bool: ...
    def _descriptors_in(self, thing: object) -> tuple[int, ...]: ...
    def _make_probe(self, conn: Any, ask: Callable[[Any], Any]) -> Any: ...
    def _reason_for(self, why: object) -> Reason: ...
    def _should_hint(self) -> bool: ...
