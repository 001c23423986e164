"""The outages of one pool, as it tells of them: once as one begins, and once as it ends.

An outage of an endpoint lasts from the first dial that fails to the first that succeeds.  It is
kept here and not with the bucket, which comes and goes with its callers: they may come once a
minute, and each dial fails.  (Whether callers are sent away meanwhile is another matter, and the
scheduler's: see ``_scheduler/outage.py``.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["FailingDials", "Outages"]

_MOST = 1000  # endpoints; of more, the oldest outages are forgotten


@dataclass
class FailingDials:
    """An outage that began at *since*: how many dials have failed, and how many callers were turned
    away, whatever for."""

    since: float
    failed: int = 0
    turned_away: int = 0


class Outages:
    """Those that last, by the key of the bucket."""

    def __init__(self) -> None:
        self._lasting: dict[tuple[Any, ...], FailingDials] = {}

    def dial_failed(self, key: tuple[Any, ...], now: float) -> bool:
        """Count a dial that has failed; whether an outage begins with it."""
        lasting = self._lasting
        begins = key not in lasting
        if begins:
            lasting[key] = FailingDials(now)
            if len(lasting) > _MOST:
                del lasting[next(iter(lasting))]
        lasting[key].failed += 1
        return begins

    def turned_away(self, key: tuple[Any, ...]) -> None:
        """Count a caller that has got no connection."""
        if self._lasting and (lasting := self._lasting.get(key)) is not None:
            lasting.turned_away += 1

    def so_far(self, key: tuple[Any, ...], now: float) -> FailingDials:
        """What has come of it by now."""
        return self._lasting.get(key) or FailingDials(now)

    def ended(self, key: tuple[Any, ...]) -> FailingDials | None:
        """A dial has succeeded: what it has come to, if there was one."""
        return self._lasting.pop(key, None) if self._lasting else None

    def forget(self) -> None:
        """Begin without any, as in a forked child."""
        self._lasting.clear()
