"""What follows from what the runtime reports: how dials, checks, salvages and closes have ended."""

from __future__ import annotations

from geventpool._scheduler.arbiter import Arbiter
from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.state import (
    CHECKING,
    CLOSED,
    CLOSING,
    CONNECTING,
    IDLE,
    NEVER,
    OPEN,
    SALVAGING,
)
from geventpool.errors import Verdict
from geventpool.events import Reason

__all__ = ["Reports"]


class Reports:
    """The verbs of the runtime; ``Verbs`` adds those of callers and pools."""

    def __init__(self, ledger: Ledger, arbiter: Arbiter) -> None:
        self.ledger = ledger
        self.arbiter = arbiter
        self.outcomes = arbiter.outcomes
        self._reconcile = arbiter.reconcile

    def cancel_dial(self, slot: Slot, now: float) -> None:
        """Give up a dial that no caller wants any more."""
        if slot.state is CONNECTING:
            self.ledger.move(slot, CLOSED)
            self._reconcile(slot.bucket, now)

    def opened(self, slot: Slot, now: float) -> None:
        """The dial succeeded and ``slot.conn`` is set."""
        bucket = slot.bucket
        if slot.state is not CONNECTING:
            return
        if bucket.delay_control is not None and bucket.unserved <= bucket.coming:
            bucket.delay_control.is_fine(now)
        bucket.dials.opened(slot.since, now)
        slot.unverified = bucket.dials.failures > 0
        if bucket.max_lifetime is not None:
            slot.expires_at = now + bucket.max_lifetime
            early = 1.0 - bucket.jitter * bucket.rng.random()
            slot.retire_at = min(slot.retire_at, now + bucket.max_lifetime * early)
        slot.since = slot.checked_at = now
        self.ledger.update_fast_path_until(slot)
        self.ledger.make_idle(slot, now)
        self.outcomes.opened(bucket)
        reason = self.arbiter.reason_to_close(slot, now)  # as much can happen during a dial
        if reason is not None:
            self.ledger.begin_close(slot, reason)
        self._reconcile(bucket, now)

    def dial_failed(
        self, slot: Slot, error: BaseException, now: float, verdict: Verdict = Verdict.BROKEN
    ) -> None:
        """The dial failed: one dial at a time from now on, and after a pause, unless it was refused
        by a server that is full."""
        bucket = slot.bucket
        if slot.state is not CONNECTING:
            return
        killed = not isinstance(error, Exception)  # which says nothing about the server
        if not killed:
            bucket.dials.last_error = error
        bucket.dial_failed += 1
        self.ledger.move(slot, CLOSED)
        self.outcomes.dial_failed(bucket, error, verdict, slot.since, now)
        is_full = verdict is Verdict.SERVER_FULL
        if not is_full:
            self._record_failure(bucket, slot.since, now, longest=verdict is Verdict.FATAL)
        if bucket.fail_fast and bucket.waiters and not (killed or (is_full and bucket.open)):
            self.ledger.fail(bucket.waiters.oldest, error)
        self._reconcile(bucket, now)

    def peer_closed(self, slot: Slot, now: float) -> None:
        """The peer hung up: an idle slot is closed now, another as soon as it is not held."""
        if slot.state is IDLE:
            if not slot.uses:
                self._died_unused(slot, now)
            self.ledger.begin_close(slot, Reason.PEER_CLOSED)
            self._reconcile(slot.bucket, now)
        else:
            self.ledger.mark_for_closing(slot, Reason.PEER_CLOSED)

    def closed(self, slot: Slot, now: float) -> None:
        """The connection is closed: its place is free."""
        if slot.state is CLOSING:
            self.ledger.move(slot, CLOSED)
            self._reconcile(slot.bucket, now)

    def start_checks(self, bucket: Bucket, keepalive: float, now: float, at_once: bool) -> float:
        """Check those who need it of the slots idle for *keepalive* seconds; returns when to call
        again.  At most every other idle slot at a time, so that callers find one at hand, but all
        of them *at_once* if they are more likely dead than not."""
        most = max(1, (bucket.idle + bucket.checking) // 2) - bucket.checking
        if at_once:
            most = bucket.idle
        chosen: list[Slot] = []
        again = now + keepalive
        for slot in bucket.idle_slots():
            due = max(slot.since, slot.checked_at) + keepalive
            if due <= now and len(chosen) < most:
                chosen.append(slot)
            else:
                again = min(again, due)
        for slot in chosen:
            self.ledger.begin_check(slot)
        if chosen:
            bucket._idle.compact()  # they come back: no tombstone of theirs may stay
        return again

    def checked(self, slot: Slot, ok: bool, now: float) -> None:
        """The check is done; fit, the slot goes back where it was among the idle ones."""
        bucket = slot.bucket
        if slot.state is not CHECKING:
            return
        slot.checked_at = now
        fit = ok or bucket.closed
        reason = self.arbiter.reason_to_close(slot, now) if fit else Reason.KEEPALIVE
        if reason is not None:
            self.ledger.begin_close(slot, reason)
        else:
            self.ledger.make_idle(slot, now)
        self._reconcile(bucket, now)

    def salvaged(self, slot: Slot, ok: bool, now: float) -> None:
        """The salvage is done; fit, the slot goes to the oldest waiter, or lies idle."""
        if slot.state is not SALVAGING:
            return
        slot.since = slot.checked_at = now
        reason = self.arbiter.reason_to_close(slot, now)
        if not ok and not slot.bucket.closed and slot.close_reason is None:
            reason = Reason.SALVAGE
        if reason is not None:
            self.ledger.begin_close(slot, reason)
        else:
            self.ledger.make_idle(slot, now)
        self._reconcile(slot.bucket, now)

    def reap(self, bucket: Bucket, now: float) -> float:
        """Close what has been idle too long, have the old replaced; returns when to call again."""
        again = NEVER
        for slot in bucket.slots:
            if slot.state in OPEN:
                if slot.retire_at > now:
                    again = min(again, slot.retire_at)
                elif slot.state is IDLE:
                    bucket.retiring[slot] = None
                if slot.expires_at > now:
                    again = min(again, slot.expires_at)
        for slot in [slot for slot in bucket.retiring if slot.expires_at <= now]:
            if self.arbiter.may_retire(slot, now):
                self.ledger.begin_close(slot, slot.retire_for)
        if bucket.idle_timeout is not None:
            while bucket.open > bucket.min_kept and (oldest := bucket.longest_idle()):
                ends = oldest.since + bucket.idle_timeout
                if ends > now:
                    again = min(again, ends)
                    break
                self.ledger.begin_close(oldest, Reason.IDLE)
            again = min(again, self._replace_idle(bucket, bucket.idle_timeout, now))
        self._reconcile(bucket, now)
        return again

    def _replace_idle(self, bucket: Bucket, idle_timeout: float, now: float) -> float:
        """Have those of a fixed pool replaced that were idle too long.  Returns when the next one
        is due."""
        if bucket.open <= bucket.idle_spared or bucket.idle_spared >= bucket.min_kept:
            return NEVER
        slot: Slot
        for slot in bucket.idle_slots():  # the longest idle first
            if slot.since + idle_timeout > now:
                return slot.since + idle_timeout
            if slot.retire_at > now:
                slot.retire_at, slot.retire_for = now, Reason.IDLE
                self.ledger.update_fast_path_until(slot)
            bucket.retiring[slot] = None
        return NEVER

    def _record_failure(
        self, bucket: Bucket, begun: float, now: float, longest: bool = False
    ) -> None:
        """A dial failed, or its connection died unused: slow down."""
        if not bucket.closed and bucket.dials.failed(begun, now, longest):
            bucket.reconcile_at = bucket.retry_at
            self.ledger.effects.reconcile_later(bucket)

    def _died_unused(self, slot: Slot, now: float) -> None:
        """It was dead for its first user, or before: soon after the dial, that is a setback."""
        if now - slot.dialed_at <= slot.bucket.backoff.longest:
            self._record_failure(slot.bucket, slot.dialed_at, now)
