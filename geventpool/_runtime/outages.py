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

_MOST = 1000  # endpoints; of more, nothing is told
_FORGOTTEN_AFTER = 600.0  # seconds without a failed dial, if another one needs the place


@dataclass
class FailingDials:
    """An outage that began at *since*: how many dials have failed, the last one at *last*, and how
    many callers were turned away, whatever for."""

    since: float
    last: float = 0.0
    failed: int = 0
    turned_away: int = 0


class Outages:
    """Those that last, by the key of the bucket; so many at most."""

    def __init__(self) -> None:
        # The one whose last dial is longest ago comes first.
        self._lasting: dict[tuple[Any, ...], FailingDials] = {}

    def dial_failed(self, key: tuple[Any, ...], now: float) -> bool:
        """Count a dial that has failed; whether an outage begins with it, that can be kept."""
        lasting = self._lasting
        outage = lasting.pop(key, None)
        begins = outage is None
        if outage is None:
            if len(lasting) >= _MOST and not self._forget_one(now):
                return False  # else more than so many in turn would each begin with every dial
            outage = FailingDials(now)
        lasting[key] = outage
        outage.failed += 1
        outage.last = now
        return begins

    def _forget_one(self, now: float) -> bool:
        """Make room, if there is an endpoint that is dialed no more."""
        key, oldest = next(iter(self._lasting.items()))
        if now - oldest.last < _FORGOTTEN_AFTER:
            return False
        del self._lasting[key]
        return True

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
