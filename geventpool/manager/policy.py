"""When a server is taken for down, and how it comes back: what a program may set."""

from __future__ import annotations

from dataclasses import dataclass, field

from geventpool._util.arguments import check_seconds, check_share, check_whole
from geventpool.backoff import Backoff

__all__ = ["HealthPolicy"]


@dataclass(frozen=True)
class HealthPolicy:
    """When a server is taken for down, for how long, and how it comes back.  Times in seconds.

    *failures* in a row mark it down (None: only ``mark_down()`` does) for the delay that *backoff*
    has for that many markdowns in a row.  Each *forget_after* that it was up in between takes one
    of them away.  Then one caller probes it; a probe that has not ended after *probe_timeout* does
    not keep a second one out.

    At most the share *max_down* of a tier is left out as down (rounded down, but one if there are
    more).  What is down beyond that, failed longest ago, is tried like what is up, as the rest
    might not bear the load of all.  That is not for a tier of which nothing is up: then the next
    one is used.

    A server that is new or back starts with a tenth of its share, and has all of it after
    *slow_start* (0: at once).  For "p2c": what was measured fades by the factor e in *decay*, and
    a failed request counts as an answer after at least *failure_latency*: failing fast earns no
    traffic.
    """

    failures: int | None = 3
    backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0, factor=2.0, longest=60.0))
    forget_after: float = 30.0
    probe_timeout: float = 30.0
    max_down: float = 0.5
    slow_start: float = 10.0
    decay: float = 10.0
    failure_latency: float = 1.0

    def __post_init__(self) -> None:
        if self.failures is not None:
            check_whole("failures", self.failures, least=1)
        if not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not {self.backoff!r}")
        for name in ("forget_after", "probe_timeout", "decay"):
            check_seconds(name, getattr(self, name), none=False)
        for name in ("slow_start", "failure_latency"):
            check_seconds(name, getattr(self, name), zero=True, none=False)
        check_share("max_down", self.max_down)
