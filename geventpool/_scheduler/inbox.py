"""One verb at a time, whatever calls, and books that are whole when the next begins.

*One at a time.*  Nothing in here switches, so between two switches of the caller every change is
whole, and it needs no lock.  But a finalizer, a signal handler or the collector, as it ends a
generator in a ``with``, may call a verb from within another, between any two lines: what comes
while the scheduler is at work is put aside and done after that, and the fast path is shut meanwhile
(``busy`` is its flag, too).

*States are the truth.*  A KeyboardInterrupt or a RecursionError may cut a verb short, also between
any two lines.  Before the next one the books are set right by an ``Audit``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from geventpool._scheduler.arbiter import Arbiter
from geventpool._scheduler.audit import Audit
from geventpool._scheduler.ledger import Ledger
from geventpool._scheduler.model import Bucket

__all__ = ["AT_WORK", "CUT_SHORT", "FREE", "Inbox"]

FREE, AT_WORK, CUT_SHORT = False, 1, 2  # False is what the fast path tests soonest


class Inbox:
    """Carries out verbs, one after the other: ``_do``."""

    def __init__(self, ledger: Ledger, arbiter: Arbiter) -> None:
        self.effects = ledger.effects
        self.ledger = ledger
        self.arbiter = arbiter
        self.busy: int = FREE
        self._audit = Audit(ledger)
        self._buckets: WeakSet[Bucket] = WeakSet()
        self._unsettled = False  # whether an audit was made and not all was reconciled after it
        self._put_aside: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def _do(self, verb: Callable[..., Any], *args: Any) -> Any:
        """Carry out *verb* now; None if the scheduler is at work, and it is done after that (one
        that has an answer is not: it says that there is nothing to be had now)."""
        if self.busy and not self._is_free(args[0]):
            self._put_aside.append((verb, args))
            self._catch_up_soon()
            return None
        try:
            self.busy = AT_WORK
            result = verb(*args)
            self.busy = FREE
        except BaseException:
            self.busy = CUT_SHORT
            self._catch_up_soon()
            raise
        if self._put_aside:
            self._work_off()
        return result

    def _is_free(self, thing: object) -> bool:
        """Whether a verb about *thing* may begin: after an audit, if one was cut short."""
        if self.busy == AT_WORK:
            return False
        self._audit.of(self._buckets, but=thing)
        self._unsettled = True
        self.busy = FREE
        self._catch_up_soon()
        return True

    def _catch_up_soon(self) -> None:
        try:
            self.effects.catch_up_later()
        except Exception:  # no room on the stack for that: then the next verb does
            return

    def _work_off(self) -> None:
        """Do what came while the scheduler was at work."""
        while self._put_aside and self.busy == FREE:
            verb, args = self._put_aside.popleft()
            try:
                self._do(verb, *args)
            except Exception:  # none of its business who is at work now; an audit follows
                return

    def catch_up(self, now: float) -> None:
        """Do what was put aside, and set right what was cut short.  Called from the hub, where no
        verb can be at work: one that seems to be has been cut short at its very end."""
        if self.busy:
            self.busy = CUT_SHORT
            self._is_free(None)
        if self._unsettled:
            self._unsettled = False
            for bucket in list(self._buckets):
                self._do(self.arbiter.reconcile, bucket, now)
        self._work_off()

    def audit(self, bucket: Bucket, now: float) -> None:
        """Recount *bucket* from its slots, and its limits from theirs, and set right what is wrong
        (for once a minute)."""
        self._do(self._recount, bucket, now)

    def _recount(self, bucket: Bucket, now: float) -> None:
        self._audit.of([bucket], now)
        self.arbiter.reconcile(bucket, now)
