"""How each server is doing: is it up, how slow, how busy.

No I/O, no greenlets, and no clock: each call is told the time, *now*, in seconds of a clock that
never goes back.  Nothing here switches or calls user code, so nothing needs a lock.

The machinery, and where it is from:

* *Markdown*: some failures in a row mark a server down for a time that grows, jittered, with each
  markdown in a row (Finagle's FailureAccrualFactory); time spent up takes markdowns back one by
  one, and only a part of a tier is ever down (both Envoy's outlier detection).  Failures of what
  was under way together are one markdown, and only a probe that fails makes the next one longer.
* *Probe*: after that time one caller is let through, and what it finds decides for all (the
  "half-open" state of a circuit breaker; ProbeOpen and ProbeClosed in Finagle).
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

from geventpool._util.arguments import check_seconds
from geventpool._util.clock import monotonic
from geventpool._util.errors import text_of
from geventpool.addresses import AnyAddress
from geventpool.errors import MarkedDownError
from geventpool.manager.journal import Journal, Transition
from geventpool.manager.peak_ewma import PeakEwma
from geventpool.manager.policy import HealthPolicy

__all__ = ["Attempt", "ServerModel"]

State: TypeAlias = Literal["up", "down", "probing"]

#: The latency in seconds of a server that has not answered yet: more than any that has.
_UNKNOWN = 1e9

#: The share of its weight that a server starts with (Envoy's min_weight_percent).
_FIRST_SHARE = 0.1

#: Seconds after which a server that was not looked for may be forgotten.
_KEPT = 600.0


class ServerModel:
    """What is known of one server, an estimate: "server" is whatever answers at its *address*.

    *last_error* is the time of its last failure, or None, and *reason* says what that was.
    *active_connections* maps each socket that is open to it, idle or in use, to the time it was
    opened; weakly, it keeps none alive.  *dials* counts the connects, *refused* the callers that
    got no connection to any address of a group that it is in.
    """

    def __init__(
        self,
        address: AnyAddress,
        policy: HealthPolicy | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.address = address
        self.policy = HealthPolicy() if policy is None else policy
        self.dials = self.refused = 0
        self.last_error: float | None = None
        self.reason: str | None = None
        self.active_connections: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._latency = PeakEwma(self.policy.decay)
        self._numbers = itertools.count(1)
        self._outstanding: dict[int, float] = {}  # the number of an attempt, and when it began
        self._probe = 0  # the number of the attempt that has the right to probe
        self._probe_ends = 0.0
        self._failures = 0  # in a row, since it was up
        self._requests_fail = False  # some of those were failures of requests, not of connects
        self._markdowns = 0  # in a row
        self._down_until: float | None = None  # None: up
        self._by_hand = False
        self._up_since: float | None = None
        self._asked_for = -math.inf  # when anybody last looked for a server in a group it is in
        self._journal = Journal() if journal is None else journal
        self._down_since = 0.0
        self._dials_before = self._refused_before = 0  # it went down

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.address}"
            f" last_error={self.last_error} active_connections={len(self.active_connections)}>"
        )

    def sock_in_use(self, sock: object, now: float | None = None) -> None:
        """Note that *sock* is open to this server, since *now* (None: this moment)."""
        self.active_connections.setdefault(sock, monotonic() if now is None else now)

    # What can be seen.

    def state(self, now: float) -> State:
        """ "up", "down" (also when it is due, until a caller probes it), or "probing"."""
        if self._down_until is None:
            return "up"
        return "probing" if self._is_probed(now) else "down"

    @property
    def down_until(self) -> float | None:
        """When the next probe may be made; None if it is up, inf if only a hand ends that."""
        return self._down_until

    @property
    def outstanding(self) -> int:
        """The attempts that have not ended, since it last went down or came back."""
        return len(self._outstanding)

    def latency(self, now: float) -> float | None:
        """The peak-sensitive average of latencies in seconds; None if there was no answer yet.

        It is at least the age of the oldest attempt, as that is what its latency will be at least.
        """
        measured = self._latency.value(now)
        if measured is None or not self._outstanding:
            return measured
        return max(measured, now - min(self._outstanding.values()))

    def load(self, now: float, share: float = 1.0) -> float:
        """How little it should get one more request: its latency times (outstanding + 1).

        A server with twice the *share* of others bears twice the requests.  One that has never
        answered gets one request, and before it has answered no other if there is a choice.  There
        is none while it is to be probed: one caller has to.
        """
        if self._down_until is not None and self.admits(now):
            return 0.0
        latency = self.latency(now)
        if latency is None:
            latency = _UNKNOWN if self._outstanding else 0.0
        return latency * (len(self._outstanding) / share + 1.0)

    def share(self, now: float) -> float:
        """The part of its weight that counts: it grows to 1.0 after the server is new or back.

        It is new when it is asked this for the first time, and as long as it is down: a probe is
        a caller's request, too.
        """
        if self._up_since is None:
            self._up_since = now
        since = now - self._up_since if self._down_until is None else 0.0
        slow_start = self.policy.slow_start
        return 1.0 if since >= slow_start else max(_FIRST_SHARE, since / slow_start)

    def marked_down_error(self, now: float) -> MarkedDownError:
        """What to raise, or to keep, in the place of an attempt."""
        until = self._down_until
        why = self._why()
        wait = 0.0 if until is None else until - now
        when = "" if math.isinf(wait) else f" for {max(wait, 0.0):.1f} s more"
        if self._is_probed(now):
            when = ", and a caller is finding out whether it still is"
        message = f"{self.address} is marked down{why}{when}"
        return MarkedDownError(message, address=self.address, until=until)

    def changes_at(self, now: float) -> float:
        """When it may be due for a probe, without anything having happened to it."""
        times = (self._down_until or 0.0, self._probe_ends)
        return min((each for each in times if each > now), default=math.inf)

    # Who may use it.

    def admits(self, now: float) -> bool:
        """Would ``admit()`` let a caller through?"""
        until = self._down_until
        return until is None or (now >= until and not self._is_probed(now))

    def admit(self, now: float, *, panic: bool = False) -> Attempt | None:
        """Begin an attempt; None if the server is down, or is being probed by another caller.

        After a markdown the first one let through has the right to probe: no other is, until its
        attempt ends.  In a *panic* every caller is let through, but not where it was marked down by
        hand: who did that had a reason.
        """
        down = self._down_until is not None
        probe = down and self.admits(now)
        if down and not probe and (self._held_down(now) or not panic):
            return None
        attempt = Attempt(self, next(self._numbers), now, probe=probe, panic=down and not probe)
        self._outstanding[attempt._number] = now
        if probe:
            self._probe, self._probe_ends = attempt._number, now + self.policy.probe_timeout
            self._journal.version += 1
        return attempt

    # What is told of it.  An Attempt does; so may code that knows from elsewhere, as a health
    # check.

    def succeeded(self, now: float, latency: float | None = None) -> None:
        """It has answered, after *latency* seconds.  Unless marked down by hand, it is up now."""
        if self._held_down(now):
            return
        if self._down_until is not None:
            self._come_back(now)
        self._failures, self._requests_fail = 0, False
        if latency is not None:
            self._latency.observe(latency, now)

    def failed(
        self,
        now: float,
        error: BaseException | None = None,
        latency: float = 0.0,
        *,
        connecting: bool = False,
        probe: bool | None = None,
    ) -> None:
        """It has failed, after *latency* seconds, and not even to connect if *connecting*.

        If that was one failure too many it is down now.  If it was down already, it is so for
        longer if that was a *probe* (None: one that came when its time was over): that a server
        that is known to be down does not answer in between is no news.
        """
        down = self._down_until is not None
        if probe is None:
            probe = self._down_until is not None and now >= self._down_until
        self._note(now, error)
        if not connecting:
            self._latency.at_least(max(latency, self.policy.failure_latency), now)
        elif self._latency.value(now) is not None:  # else it would look as if it had answered
            # A refused connect costs its caller nothing, and the count sees to it.
            self._latency.at_least(latency, now)
        self._requests_fail |= not connecting
        if down:
            self._journal.version += 1  # it has failed last, of those that are down
            if probe and not self._held_down(now):
                self._mark_down(now)
            return
        self._failures += 1
        if self.policy.failures is not None and self._failures >= self.policy.failures:
            self._mark_down(now)

    def mark_down(self, now: float, seconds: float | None = None) -> None:
        """Use it for nothing for *seconds*, after which it is probed (None: until ``mark_up()``).

        No success and no panic ends that.
        """
        check_seconds("seconds", seconds, zero=True)
        self._enter(now, now + (math.inf if seconds is None else seconds), by_hand=True)

    def mark_up(self, now: float) -> None:
        """Take it for up, as new if it was down, and forget that it ever failed."""
        if self._down_until is not None:
            self._come_back(now)
        self._failures = self._markdowns = 0
        self._requests_fail = False

    # How it changes.

    def _note(self, now: float, error: BaseException | None) -> None:
        self.last_error = now
        # Not the error itself: its traceback would keep the frames of a caller alive.
        self.reason = None if error is None else f"{type(error).__name__}: {text_of(error)}"

    def _held_down(self, now: float) -> bool:
        return self._by_hand and self._down_until is not None and now < self._down_until

    def _is_probed(self, now: float) -> bool:
        return self._probe != 0 and now < self._probe_ends

    def _mark_down(self, now: float) -> None:
        if self._down_until is None and self._up_since is not None:
            quiet = (now - self._up_since) / self.policy.forget_after
            self._markdowns = max(self._markdowns - int(quiet), 0)
        self._markdowns += 1
        self._enter(now, now + self.policy.backoff.delay(self._markdowns))

    def _come_back(self, now: float) -> None:
        # What was measured when it failed would keep the requests away that now find it well.
        self._latency.forget()
        self._enter(now, None)
        self._up_since = now

    def _why(self) -> str:
        if self._by_hand:
            return " by hand"
        return f" after {self.reason}" if self.reason else ""

    def _enter(self, now: float, down_until: float | None, by_hand: bool = False) -> None:
        before, self._down_until, self._by_hand = self._down_until, down_until, by_hand
        self._journal.version += 1
        if before is None and down_until is not None:
            self._down_since = now
            self._dials_before, self._refused_before = self.dials, self.refused
            self._note_transition(down_until - now)
        elif before is not None and down_until is None:
            self._note_transition(now - self._down_since)
        self._failures = 0
        self._requests_fail &= down_until is not None
        self._probe = 0
        # What began before tells nothing of the server as it is now: of 50 requests on their way
        # when it went down, all fail, but it went down once; and some may hang for hours.
        self._outstanding.clear()

    def _note_transition(self, seconds: float) -> None:
        is_up = self._down_until is None
        meanwhile = self.dials - self._dials_before, self.refused - self._refused_before
        note = Transition(self.address, is_up, self._why(), seconds, *meanwhile)
        self._journal.transitions.append(note)

    def _is_forgettable(self, now: float) -> bool:
        used = self._outstanding or self.active_connections or self._held_down(now)
        last = max(self._asked_for, -math.inf if self.last_error is None else self.last_error)
        return not used and now - last >= _KEPT


class Attempt:
    """A caller's use of one server, from before the connect to the end of the request.

    It counts as outstanding until one of ``succeeded()``, ``failed()``, ``cancelled()`` ends it,
    or it is garbage-collected, or the server goes down or comes back: whatever was under way then
    tells nothing of the server as it is now.  What is told later does nothing.

    *probe*: while this lasts no other is let through, and how it ends decides for all.
    *panic*: it was let through although the server is down and no probe is due.
    """

    __slots__ = ("_connected", "_number", "began", "panic", "probe", "server")

    def __init__(
        self, server: ServerModel, number: int, now: float, *, probe: bool, panic: bool
    ) -> None:
        self.server = server
        self.began = now
        self.probe = probe
        self.panic = panic
        self._number = number
        self._connected = False

    def __del__(self) -> None:
        self._end()

    def __repr__(self) -> str:
        kind = " probe" if self.probe else " panic" if self.panic else ""
        return f"<{type(self).__name__} {self.address}{kind}{'' if self.pending else ' ended'}>"

    @property
    def address(self) -> AnyAddress:
        return self.server.address

    @property
    def pending(self) -> bool:
        """It has not ended."""
        return self._number in self.server._outstanding

    def connected(self, now: float, *, reused: bool = False) -> None:
        """There is a connection; what takes time from now on is the request.

        To have connected proves a server well that no caller could connect to, but not one whose
        requests failed; and *reused*, an idle connection taken from a pool, proves nothing.
        """
        if not self.pending:
            return
        server = self.server
        self._connected = True
        if not reused and not server._requests_fail:
            server.succeeded(now)
        self.began = server._outstanding[self._number] = now

    def succeeded(self, now: float, latency: float | None = None) -> None:
        """The server did what was wanted, in *latency* seconds (None: since it was connected)."""
        if self._end():
            self.server.succeeded(now, now - self.began if latency is None else latency)

    def failed(
        self, now: float, error: BaseException | None = None, latency: float | None = None
    ) -> None:
        """The server did not, or not within *latency* seconds (None: since it was connected).

        So does a request that ran into a time-out.
        """
        if self._end():
            took = now - self.began if latency is None else latency
            self.server.failed(now, error, took, connecting=not self._connected, probe=self.probe)

    def cancelled(self, now: float) -> None:
        """The caller was killed, or lost interest, which is not the server's fault.

        The right to probe goes back.  That there was no answer for so long is not forgotten.
        """
        if self._end():
            latency = self.server._latency
            if latency.value(now) is not None:  # else it would look as if it had answered
                latency.at_least(now - self.began, now)

    def _end(self) -> bool:
        server = self.server
        if server._outstanding.pop(self._number, None) is None:
            return False
        if server._probe == self._number:
            server._probe = 0
            server._journal.version += 1
        return True
