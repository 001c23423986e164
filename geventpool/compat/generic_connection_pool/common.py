"""What the limits of a pool are, and what it connects to."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

from geventpool.pools import EndpointPool

__all__ = ["BaseConnectionPool", "ConnectionT", "EndpointT"]


EndpointT = TypeVar("EndpointT", bound=Hashable)
ConnectionT = TypeVar("ConnectionT")


class BaseConnectionPool(EndpointPool[EndpointT, ConnectionT], Generic[EndpointT, ConnectionT]):
    """The limits of a pool: see ConnectionPool."""

    def __init__(
        self,
        *,
        idle_timeout: float = 60.0,
        max_lifetime: float = 3600.0,
        min_idle: int = 1,
        max_size: int = 10,
        total_max_size: int = 100,
        **settings: Any,
    ) -> None:
        assert min_idle <= max_size, "min_idle can't be greater than max_size"
        assert max_size <= total_max_size, "max_size can't be greater than total_max_size"
        assert idle_timeout <= max_lifetime, "idle_timeout can't be greater than max_lifetime"
        self._idle_timeout = idle_timeout
        self._max_lifetime = max_lifetime
        super().__init__(
            idle_timeout=_span(idle_timeout),
            max_lifetime=_span(max_lifetime),
            min_idle=min_idle,
            max_size=max_size,
            total_max_size=total_max_size,
            **settings,
        )

    @property
    def idle_timeout(self) -> float:
        """Seconds after which an unused connection is closed, *min_idle* per endpoint excepted."""
        return self._idle_timeout

    @property
    def max_lifetime(self) -> float:
        """Seconds after which any connection is closed."""
        return self._max_lifetime

    @property
    def min_idle(self) -> int:
        """How many connections of each endpoint *idle_timeout* spares."""
        return self._min_idle

    @property
    def is_full(self) -> bool:
        """Whether there are *total_max_size* connections."""
        return self._total.full

    def get_size(self) -> int:
        """How many connections there are, those being opened or closed too."""
        return self.size


def _span(seconds: float) -> float | None:
    """What an EndpointPool takes for it: None for no bound, and not 0."""
    return None if seconds > 1e9 else seconds or 0.01
