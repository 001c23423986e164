"""What became of the promises: judged by the figures of a run, and by nothing else."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from geventpool.errors import PoolError
from geventpool.events import PoolStats

__all__ = ["BUSY", "Figures", "Verdict", "judge"]

# The promises that have a figure.
MOST_DIALS, MOST_DIALS_PER_SECOND = 6, 2  # 12 in 3 s: the pauses grow to 0.5 to 1 s
RECOVERY = 1.2  # seconds from the server's return to the first reply ...
EVERYBODY = 0.3  # ... and from there to the last greenlet's
SLOWEST = 5  # times the median wait

BUSY = 0.1  # seconds that this process may be late, and is told of if it is more


@dataclass
class Figures:
    """What was counted and measured; moments are on the monotonic clock, math.inf for never."""

    connections: int
    own_server: bool  # one that the demo may take away
    interrupted: bool = False
    worked: bool = False  # as far as there were greenlets at work
    began_at: float = 0.0
    ended_at: float = 0.0
    # What became of the requests.
    answered: int = 0
    wrong: int = 0
    cut_short: int = 0
    late: int = 0
    left_the_line: int = 0
    refusals: list[PoolError] = field(default_factory=list)
    # How long they waited, in a calm time.
    waits: array[float] = field(default_factory=lambda: array("d"))
    longest_hold: float = 0.0
    lag: float = 0.0  # by how much this process was late at worst, as the machine was busy
    # The outage.
    died_at: float = math.inf
    back_at: float = math.inf
    first_reply_at: float = math.inf
    last_reply_at: float = math.inf
    failed_dials: int = 0
    opened_in_vain: int = 0
    unserved: set[int] = field(default_factory=set)
    # The end.
    remains: PoolStats | None = None

    @property
    def is_server_there(self) -> bool:
        """Whether it was never away, or is back."""
        return self.died_at == math.inf or self.back_at < math.inf

    @property
    def everybody_at(self) -> float:
        """When the last greenlet was served after the outage."""
        return math.inf if self.unserved else self.last_reply_at


@dataclass(frozen=True)
class Verdict:
    """A row of the table; *kept* is None where nothing is promised."""

    label: str
    figure: str
    remark: str
    kept: bool | None = None
    complaint: str = ""


def judge(figures: Figures) -> Iterator[Verdict]:
    """The rows of the table: what there is to count, and what became of each promise."""
    yield from _judge_requests(figures)
    if figures.own_server:
        yield _judge_cuts(figures)
    yield _judge_waits(figures)
    if figures.died_at < math.inf:
        yield from _judge_outage(figures)
    if figures.refusals:
        yield Verdict(
            "callers sent away",
            f"{len(figures.refusals):,}",
            "must be 0",
            kept=False,
            complaint=f"The pool did not serve everybody: {figures.refusals[0]}",
        )
    if figures.remains is not None:
        yield _judge_remains(figures, figures.remains)


def _judge_requests(figures: Figures) -> Iterator[Verdict]:
    ran = figures.ended_at - figures.began_at
    if figures.died_at < math.inf:
        ran -= min(figures.first_reply_at, figures.ended_at) - figures.died_at
    yield Verdict(
        "requests answered",
        f"{figures.answered:,}",
        f"{figures.answered / ran:,.0f} a second" if figures.worked else "",
        kept=None if figures.answered or figures.interrupted else False,
        complaint="No request was ever answered.",
    )
    yield Verdict(
        "given up by gevent.Timeout",
        f"{figures.late + figures.left_the_line:,}",
        f"{figures.late:,} with the reply due, {figures.left_the_line:,} in line",
    )
    yield Verdict(
        "wrong replies",
        f"{figures.wrong:,}",
        "must be 0",
        kept=not figures.wrong,
        complaint=f"{figures.wrong:,} requests were given the reply to another request.",
    )


def _judge_remains(figures: Figures, left: PoolStats) -> Verdict:
    expected = figures.connections if figures.is_server_there else 0
    whole = left.idle == expected and not left.in_use and not left.waiting
    return Verdict(
        "all killed, connections idle",
        f"{left.idle} of {expected}" if expected else f"{left.idle}",
        f"{left.in_use} in use, {left.waiting} waiting",
        kept=whole,
        complaint=f"All greenlets are dead, and of {expected} connections {left.idle} are idle,"
        f" {left.in_use} in use, and {left.waiting} callers waiting.",
    )


def _judge_cuts(figures: Figures) -> Verdict:
    most = figures.connections + figures.opened_in_vain if figures.died_at < math.inf else 0
    return Verdict(
        "cut short by the server's end",
        f"{figures.cut_short:,}",
        f"at most {most}, one per connection" if most else "must be 0",
        kept=figures.cut_short <= most,
        complaint=f"{figures.cut_short:,} requests were cut short: connections that were dead"
        " already have been handed out.",
    )


def _judge_waits(figures: Figures) -> Verdict:
    median = statistics.median(figures.waits) if figures.waits else 0.0
    slowest = max(figures.waits, default=0.0)
    # A request that holds its connection for long delays everybody behind it: that is fair.
    most = SLOWEST * median + figures.longest_hold + figures.lag
    times = f"{slowest / median:.1f} times" if median else "no multiple of"
    return Verdict(
        "slowest wait for a connection",
        _ms(slowest),
        f"{times} the median, {_ms(median)}",
        kept=slowest <= most,
        complaint=f"A caller waited {_ms(slowest)} for a connection.  {SLOWEST} times the"
        f" median is {_ms(SLOWEST * median)}, and no caller held one for longer than"
        f" {_ms(figures.longest_hold)}.",
    )


def _judge_outage(figures: Figures) -> Iterator[Verdict]:
    away = min(figures.back_at, figures.ended_at) - figures.died_at
    most_dials = int(MOST_DIALS + MOST_DIALS_PER_SECOND * away)
    yield Verdict(
        "dials while the server was away",
        f"{figures.failed_dials:,}",
        f"in {away:.1f} s, at most {most_dials}",
        kept=figures.failed_dials <= most_dials,
        complaint=f"The server, away for {away:.1f} s, was dialed {figures.failed_dials:,} times.",
    )
    if figures.back_at == math.inf:
        return  # interrupted meanwhile
    for label, reply_at, most in (
        ("time to recover: the first reply", figures.first_reply_at, RECOVERY),
        ("a reply for everybody", figures.everybody_at, RECOVERY + EVERYBODY),
    ):
        took = reply_at - figures.back_at
        if took == math.inf and figures.interrupted:
            return
        says = f"{took:.2f} s" if took < math.inf else "never"
        busy = f", and {figures.lag:.1f} s as the machine is busy" if figures.lag > BUSY else ""
        yield Verdict(
            label,
            says,
            f"at most {most:.1f} s{busy}",
            kept=took <= most + figures.lag,
            complaint=f"After the server's return, {label}: {says}.",
        )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
