"""What becomes of a bucket and its callers while its server is away, refuses for good, or is full.

Decides when an ``Outage`` begins and ends, and whom it sends away; where the ``Ceiling`` is.  The
arbiter asks at the beginning and at the end of a reconcile, for a bucket that is in *trouble*.

*A caller is sent away* only while the next dial comes by itself: one is under way, or a back-off
runs.  If it is due and a limit has no place for it, who comes waits, as ever, for that place: no
place to dial is not down, and the pool would otherwise never learn that its server is back.
"""

from __future__ import annotations

from collections.abc import Callable

from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.state import NEVER
from geventpool.errors import Verdict

__all__ = ["DialOutcomes"]


class DialOutcomes:
    """Says who is sent away because of what dials have come to."""

    def __init__(self, ledger: Ledger, probe: Callable[[Bucket, float], None]) -> None:
        self._ledger = ledger
        self._probe = probe  # dials, where there is a place, what the bucket lacks

    # What dials come to

    def dial_failed(
        self, bucket: Bucket, error: BaseException, verdict: Verdict, begun: float, now: float
    ) -> None:
        """A dial begun at *begun* has failed, and its slot is closed."""
        if bucket.closed:
            return
        outage = bucket.outage
        outage.dials += 1
        if verdict is Verdict.SERVER_FULL:
            bucket.ceiling.lower(bucket.open + bucket.connecting, error, now)
            self._ledger.set_maximum(bucket)
            bucket.dials.server_is_full(begun)
            if outage.on and outage.fatal is None:
                self._end(bucket)
        elif verdict is Verdict.FATAL:
            if outage.on:
                outage.fatal = error
            else:
                self._begin(bucket, now, error)
        if verdict in (Verdict.SERVER_FULL, Verdict.FATAL) or outage.after is not None:
            bucket.set_troubled(True)

    def opened(self, bucket: Bucket) -> None:
        """A dial has succeeded, and its slot is open."""
        if bucket.outage.on and not bucket.closed:
            self._end(bucket)
        bucket.outage.forget()

    # What a reconcile begins and ends with

    def send_away(self, bucket: Bucket, now: float) -> None:
        """Begin the outage if it is time, probe, and send away who waits."""
        if bucket.closed:
            return
        outage = bucket.outage
        if bucket.ceiling.on:
            bucket.ceiling.rise(bucket.maximum, now)
            self._ledger.set_maximum(bucket)
        if now >= outage.begins_at and _is_dialing(bucket, now):
            self._begin(bucket, now)
        if not outage.on:
            return
        outage.look_who_asks(bool(bucket.waiters), bucket.transient, now)
        if not (bucket.connecting or bucket.coming) and now >= bucket.retry_at:
            self._probe(bucket, now)
            if bucket.open and bucket.own.full and not bucket.connecting:
                self._end(bucket)  # all that it may have is open: no dial would ever end it
                return
        if bucket.waiters and (error := self._error(bucket, now)) is not None:
            for waiter in list(bucket.waiters):
                self._ledger.fail(waiter, error)

    def look_ahead(self, bucket: Bucket, now: float) -> None:
        """See to it that the bucket is looked at again in time."""
        if bucket.closed:
            return
        outage = bucket.outage
        if outage.after is not None and not outage.on:
            # (That connections die unused is another matter: dials do succeed.)
            failing = outage.dials > 0 and not bucket.open and _is_dialing(bucket, now)
            outage.note_dialing(failing, now)
        may_go_down = outage.after is not None and bucket.failing
        if not (outage.on or bucket.ceiling.on or may_go_down):
            bucket.set_troubled(False)
        at = bucket.retry_at if bucket.retry_at > now else NEVER
        at = min(at, max(outage.begins_at, now))
        if bucket.ceiling.on and _wants_more(bucket):
            at = min(at, bucket.ceiling.rises_at)
        if at < NEVER and not now < bucket.reconcile_at <= at:
            bucket.reconcile_at = at
            self._ledger.effects.reconcile_later(bucket)

    # A caller that does not stand in line

    def refusal(self, bucket: Bucket, now: float) -> BaseException | None:
        """What a caller gets instead of a wait, or None."""
        if bucket.closed or not bucket.outage.on:
            return None
        error = self._error(bucket, now)
        if error is not None:
            bucket.outage.asked_at = now
        return error

    # Inside

    def _begin(self, bucket: Bucket, now: float, fatal: BaseException | None = None) -> None:
        bucket.outage.begin(now, fatal)
        self._ledger.effects.went_down(bucket)

    def _end(self, bucket: Bucket) -> None:
        bucket.outage.forget()
        self._ledger.effects.came_back(bucket)

    def _error(self, bucket: Bucket, now: float) -> BaseException | None:
        retry_after = bucket.retry_at - now
        if bucket.connecting:
            retry_after = bucket.backoff.longest  # at most, after the one that is under way
        elif retry_after <= 0:
            return None
        return bucket.outage.error(bucket.name, bucket.last_error, retry_after, now)


def _is_dialing(bucket: Bucket, now: float) -> bool:
    """Whether dials are made.  When none is wanted, or has a place, nothing is known either."""
    return bool(bucket.connecting or bucket.coming) or now < bucket.retry_at


def _wants_more(bucket: Bucket) -> bool:
    """Whether a dial would begin if the server had room; one of many has to be remembered, too."""
    if bucket.next_unserved < NEVER or bucket.missing > bucket.connecting:
        return True
    return bucket.transient and not bucket.slots
