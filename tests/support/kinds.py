"""Each kind of pool by one and the same face, for promises that all of them keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geventpool import ConnectionPool, EndpointPool

__all__ = ["KINDS", "MakePool", "OneEndpoint", "one_pool"]

MakePool = Callable[..., Any]


class OneEndpoint:
    """An EndpointPool, used for one endpoint as if it were a ConnectionPool."""

    def __init__(self, size: int, *, connect: Callable[[], Any], **settings: Any) -> None:
        settings.setdefault("min_idle", size)
        self.pool: EndpointPool[str, Any] = EndpointPool(
            max_size=size, total_max_size=size, connect=lambda endpoint: connect(), **settings
        )
        self.release = self.pool.release
        self.discard = self.pool.discard
        self.close = self.pool.close
        self.holders = self.pool.holders

    def get(self, **timeout: float | None) -> Any:
        return self.pool.get("here", **timeout)

    def acquire(self, **timeout: float | None) -> Any:
        return self.pool.acquire("here", **timeout)

    def execute(self, f: Callable[..., Any], *args: Any) -> Any:
        return self.pool.execute("here", f, *args)

    def stats(self) -> Any:
        return self.pool.stats()

    def fill(self) -> None:
        self.pool.fill("here")

    def __enter__(self) -> OneEndpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def one_pool(size: int, *, connect: Callable[[], Any], **settings: Any) -> ConnectionPool[Any]:
    return ConnectionPool(size, connect=connect, **settings)


#: By name, what makes one: ``make(size, connect=..., **settings that both know)``.
KINDS: dict[str, MakePool] = {"ConnectionPool": one_pool, "EndpointPool": OneEndpoint}
