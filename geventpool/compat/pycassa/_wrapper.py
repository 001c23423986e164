"""ConnectionWrapper: what callers get, with the methods of a client, which it retries."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from time import time
from typing import TYPE_CHECKING, Any

import gevent

from geventpool.compat.pycassa._client import close, socket_of
from geventpool.compat.pycassa._errors import InvalidRequestError, MaximumRetryException

if TYPE_CHECKING:
    from geventpool.compat.pycassa.pool import ConnectionPool

__all__ = ["ConnectionWrapper", "Session"]


@dataclass
class Session:
    """An open client, and what is known of it."""

    client: Any
    server: str
    starttime: float = field(default_factory=time)
    info: dict[str, Any] = field(default_factory=dict)
    operation_count: int = 0
    closed: bool = False  # by its holder
    suspect: bool = False  # one of its methods has raised
    socket: Any = None  # what has the descriptor

    def __post_init__(self) -> None:
        self.socket = socket_of(self.client)


class ConnectionWrapper:
    """A connection of a ConnectionPool: it has the client's methods, and retries them.

    Only ``ConnectionPool.get()`` makes these.  A method that raises one of the pool's *retry_on*
    loses its connection; after a pause it is called again, on one to another server where there is
    one.  With ``allow_retries=False`` it is not.

    A method raises MaximumRetryException after more than *max_retries* failures since the last
    success (-1: never), InvalidRequestError if the wrapper was given back, what ``get()`` raises
    if it needs another connection and there is none, and what the client raises otherwise.
    """

    server = property(attrgetter("_session.server"), doc="The server it is connected to.")
    starttime = property(attrgetter("_session.starttime"), doc="When it was opened, wall clock.")
    info = property(attrgetter("_session.info"), doc="``info['request']`` is the last call.")
    operation_count = property(attrgetter("_session.operation_count"), doc="Calls so far.")

    def __init__(self, pool: ConnectionPool, max_retries: int, server: str, client: Any) -> None:
        self.max_retries = max_retries
        self.keyspace = pool.keyspace
        self._home = weakref.ref(pool)
        self._pool: ConnectionPool | None = None  # while it is checked out
        self._own = self._session = Session(client, server)
        self._stand_in: ConnectionWrapper | None = None  # after a retry: whose session it has
        self._opening = True  # listeners may set it up; no caller has it yet
        self._lost = False  # checked out, but what it had has broken
        self._uses = self._retries = 0
        self._tried: set[str] = set()  # the servers that have failed since the last success

    def return_to_pool(self) -> None:
        """Return this to the pool, as ``ConnectionPool.put()`` does."""
        if (home := self._home()) is not None:  # it lives as long as this is checked out
            home.put(self)

    def close(self) -> None:
        """Close the client.  Its place is free once this is put back."""
        if self._pool is not None:
            self._session.closed = True
            close(self._session.client)

    def get_keyspace_description(
        self, keyspace: str | None = None, use_dict_for_col_metadata: bool = False
    ) -> dict[str, Any]:
        """Return ``{column family name: CfDef}``; their column metadata as a dict, if wanted."""
        found = self.describe_keyspace(self.keyspace if keyspace is None else keyspace).cf_defs
        for each in found if use_dict_for_col_metadata else ():
            each.column_metadata = {datum.name: datum for datum in each.column_metadata}
        return {each.name: each for each in found}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._session.client, name)
        return partial(self._call, name) if callable(value) else value

    def __str__(self) -> str:
        return f"<ConnectionWrapper {self.keyspace}@{self.server}>"

    def _call(self, method: str, /, *args: Any, allow_retries: bool = True, **kwargs: Any) -> Any:
        while True:
            pool = self._pool
            if pool is None and not self._opening:
                raise InvalidRequestError(f"{self} is back in the pool: too late for {method}()")
            if pool is not None and self._lost:
                pool._replace(self)
            session = self._session
            session.operation_count += 1
            session.info["request"] = {"method": method, "args": args, "kwargs": kwargs}
            try:
                result = getattr(session.client, method)(*args, **kwargs)
                self._retries = 0
                self._tried.clear()
                return result
            except BaseException as error:
                session.suspect = True
                if pool is None or not pool._breaks(error):
                    raise
                pool._lose(self, error)
                if not pool._may_retry(error):
                    raise
                self._retries += 1
                self._tried.add(session.server)
                if not allow_retries or -1 < self.max_retries < self._retries:
                    raise MaximumRetryException(
                        f"Retried {self._retries} times. Last failure was"
                        f" {type(error).__name__}: {error}"
                    ) from error
            gevent.sleep(pool._pauses.delay(self._retries))
