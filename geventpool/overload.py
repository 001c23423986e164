"""What a pool does when more is asked of it than it can serve."""

from __future__ import annotations

from dataclasses import dataclass

from geventpool._util.arguments import check_seconds

__all__ = ["CoDel"]


@dataclass(frozen=True)
class CoDel:
    """Controlled delay: what a pool's *overload* may be.  It keeps the line of callers short.

    A burst makes callers wait, and is over soon.  Under more load than can be served they wait ever
    longer, until each gets its connection when its own time is nearly over, and none is of use.
    The two differ in the *least* wait over an *interval* (seconds).  If that was above *target*
    (seconds) for two of them on end, or for one when the next caller has waited for most of an
    interval already, the line is slow; whether it still is, is seen an interval later.  While it is
    slow, a caller whose turn comes after more than twice *target* is sent away with PoolOverloaded,
    and the next one is looked at; so are, several times in an interval, those that wait while
    nothing comes back.  Those that are served are served in the order in which they came.

    A line that was empty for a moment, or in which each caller had a dial of its own under way, is
    not slow: a caller that came then had nobody to wait for.  So a pool that keeps up is never
    taken for one that does not, however long its requests take.

    Choose *interval* as about the time that your callers have, and *target* as a tenth of it; it
    cannot be longer than *interval*.  From K. Nichols and V. Jacobson, "Controlled Delay Active
    Queue Management" (RFC 8289, 2018), as the pool of Elixir's db_connection has it.
    """

    target: float = 0.1
    interval: float = 1.0

    def __post_init__(self) -> None:
        for name in ("target", "interval"):
            check_seconds(name, getattr(self, name), none=False)
        if self.target > self.interval:
            raise ValueError(
                f"target ({self.target!r} s) is longer than interval ({self.interval!r} s)"
            )
