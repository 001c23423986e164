"""The seam: what an adapter may use of a pool, and its callers have no need of.

An adapter is a subclass of ConnectionPool or EndpointPool that gives it another face: the API of
another library, or that of a client.  (The manager is one, too.)  It uses the public verbs, the
hooks, and what stands in this file; never ``_runtime``, ``_scheduler``, a bucket or a slot.  What
changes in there changes in here, and the adapters stay as they are.

What a method here says on switching: *does not switch* means that no other greenlet runs before it
returns, so what was looked at before still holds.  *May switch* means that it may also be left by a
Timeout or a kill; the pool is whole then, and whether its work was done is said there.  *key* is
the endpoint in an EndpointPool, and nothing in a ConnectionPool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from geventpool._runtime import refusals
from geventpool._runtime.fields import PoolFields
from geventpool._runtime.runtime import CLOSE_TIMEOUT, Runtime
from geventpool._runtime.slots import ConnectionSlot, Hold, PoolBucket, hold_of, is_held
from geventpool._scheduler.state import CLOSING, IN_USE
from geventpool._util.arguments import (
    check_callable,
    check_number,
    check_seconds,
    check_text,
    check_whole,
)
from geventpool._util.clock import monotonic
from geventpool._util.errors import copy_of, forget_frames
from geventpool._util.forks import Fork, in_child
from geventpool._util.log import log_safely
from geventpool.events import PoolEvent, Reason
from geventpool.pools.lease import DEFAULT, take_back
from geventpool.pools.verdicts import end_use
from geventpool.sockets import Probe

__all__ = [
    "CLOSE_TIMEOUT",
    "DEFAULT",
    "Facts",
    "Fork",
    "Hold",
    "PoolExtension",
    "Standing",
    "check_callable",
    "check_number",
    "check_seconds",
    "check_text",
    "check_whole",
    "copy_of",
    "forget_frames",
    "in_child",
    "log_safely",
]

C = TypeVar("C")


class Facts(NamedTuple):
    """What the pool knows of one of its connections."""

    endpoint: Any  # where it leads; None in a ConnectionPool
    uses: int  # how often it was handed out, this time included
    #: Seconds that it was idle before this hand-out; 0.0: it was handed on at once.  True in the
    #: hooks that look at it before that, ``_is_alive`` and ``_keepalive``; a hand-out without a
    #: look does not note it, and later it may be that of an earlier one.
    idled: float
    close_reason: Reason | None  # why it is closed as soon as it is back, or None
    fd: int | None  # the descriptor that is watched, or the first of several


class Standing(NamedTuple):
    """How a ConnectionPool stands, or one endpoint of an EndpointPool; all 0 if it has nothing."""

    size: int = 0
    min_size: int = 0
    max_overflow: float = 0
    maximum: float = 0
    total: int = 0  # connections, those being opened or closed included
    open: int = 0
    in_use: int = 0
    idle: int = 0
    connecting: int = 0
    waiting: int = 0
    failing: bool = False  # the last dial failed, or its connection died unused
    retry_in: float = 0.0  # seconds until the next dial may begin
    last_error: BaseException | None = None  # None after a dial that succeeded


class PoolExtension(PoolFields, Generic[C]):
    """What every pool has for its subclasses in other folders."""

    # The pool's, which has this for a base.
    _runtime: Runtime
    slots_by_id: dict[int, ConnectionSlot]

    #: What it is called after if it is given no name; None: its own class.
    _named_after: type | None = None

    def _all_buckets(self) -> Sequence[PoolBucket]:
        raise NotImplementedError

    def _bucket_of(self, *key: Any) -> PoolBucket | None:
        """The bucket of *key*; None if that endpoint has nothing."""
        raise NotImplementedError

    def _assert_usable_here(self) -> None:
        """Raise WrongHub in another thread than the pool's, and an error in a hub callback.

        For verbs of the adapter's own that look before they act: the verbs of the pool, and those
        below that change something, see to it themselves.  Does not switch.
        """
        owner: Any = self
        self._runtime.assert_usable_here(owner)

    # A connection that a caller has

    def _hold_of(self, conn: C) -> Hold:
        """The hold on *conn*, which a caller has: what ``_checkin`` and ``_discard`` take.

        Take it before anything that may switch, and give it to them after: should the caller have
        given *conn* back meanwhile, and another have got it, the hold is no good any more, and they
        do nothing.  Raises NotInUse if no caller has *conn*.  Does not switch.
        """
        owner: Any = self
        return self._runtime.desk.find(owner, conn)

    def _is_held(self, hold: Hold) -> bool:
        """Whether that caller still has it: it was not given back since, nor taken away by
        ``close(timeout)``, nor is it one that the parent of this process has.  Does not switch."""
        return is_held(hold)

    def _checkin(self, hold: Hold, conn: C, suspect: bool = False) -> None:
        """Take back *conn*, which is fit for use; *suspect*: unless bytes lie unread on it.

        It goes to the oldest waiter, or lies idle, or is closed in the background.  Nothing happens
        if the hold is no good any more.  May switch in ``_reset_connection`` and in listeners; left
        by an exception, *conn* is not the caller's any more: it was closed, or is back.
        """
        owner: Any = self
        if not suspect:
            take_back(owner, hold, conn)
        elif is_held(hold):
            self._runtime.desk.checkin(owner, hold, conn, suspect)

    def _discard(
        self, hold: Hold, conn: C, reason: Reason, error: BaseException | None = None
    ) -> None:
        """Take back *conn*, which is closed in the background, for *reason*.

        *error* is what broke it, for the listeners.  Nothing happens if the hold is no good any
        more.  May switch in listeners; the connection is gone by then.
        """
        owner: Any = self
        if is_held(hold):
            self._runtime.desk.discard(owner, hold, conn, reason, error)

    def _end_use(self, hold: Hold, conn: C, exc: BaseException) -> None:
        """Take back *conn* after *exc* has left its use, by the verdict of ``_classify_error``: as
        ``_checkin``, suspect, or as ``_discard``, with what follows for the other connections.
        May switch; nothing happens if the hold is no good any more."""
        owner: Any = self
        if is_held(hold):
            end_use(owner, hold, conn, exc)

    def _facts_of(self, conn: C) -> Facts | None:
        """What the pool knows of *conn*; None if it is none of its own (any more).

        For hooks above all, which get no more than the connection.  Does not switch.
        """
        slot = self.slots_by_id.get(id(conn))
        if slot is None:
            return None
        fd = slot.fds[0] if slot.fds else None
        return Facts(slot.bucket.endpoint, slot.uses, slot.idled, slot.close_reason, fd)

    def _count_refusal(self, error: BaseException) -> None:
        """Count, in ``stats()``, a caller that gets *error* and no connection: for what a pool is a
        part of (``_is_managed``), as the pool itself does not then.  Does not switch."""
        owner: Any = self
        refusals.count(owner, owner._past, error)

    # The connections that are idle, and all together

    def _idle_connections(self, *key: Any) -> tuple[C, ...]:
        """What is idle now, the longest idle first.  Does not switch; touch nothing of it that
        does, as it may be a caller's by then."""
        bucket = self._bucket_of(*key)
        return () if bucket is None else tuple(slot.conn for slot in bucket.idle_slots())

    def _held_connections(self) -> tuple[C, ...]:
        """What callers have now.  Does not switch."""
        slots = [slot for bucket in self._all_buckets() for slot in list(bucket.slots)]
        held = (slot.ref() for slot in slots if slot.state is IN_USE)
        return tuple(conn for conn in held if conn is not None)

    def _evict_idle(
        self,
        where: Callable[[C], object],
        reason: Reason,
        timeout: float = 0.0,
        most: int | None = None,
        key: tuple[Any, ...] | None = None,
    ) -> int:
        """Close the idle connections for which *where* is true, *most* of them (None: all), the
        longest idle first; *key*: only those of ``(endpoint,)``.

        Returns how many; with a *timeout* once they are closed, or after so many seconds.  They are
        chosen first and closed then: one that a caller got meanwhile, as *where* switched, is left
        alone.  What *where* raises is raised, and nothing is closed.  Without a *timeout* it does
        not switch, if *where* does not; left by an exception while it waits, they are being closed.
        """
        self._assert_usable_here()
        runtime = self._runtime
        buckets = self._all_buckets() if key is None else (self._bucket_of(*key),)
        idle = [
            (slot, slot.uses, slot.conn)
            for bucket in buckets
            if bucket is not None
            for slot in bucket.idle_slots()
        ]
        idle.sort(key=lambda each: each[0].since)
        chosen = [(slot, uses) for slot, uses, conn in idle if where(conn)][:most]
        now = monotonic()
        closing = [
            slot
            for slot, uses in chosen
            if slot.uses == uses and runtime.scheduler.dismiss(slot, reason, now)
        ]
        for slot in closing if timeout > 0 else ():
            while slot.state is CLOSING:
                if not runtime.wait_for_change(slot.bucket, now + timeout):
                    return len(closing)
        return len(closing)

    def _prefill(self, count: int, timeout: float | None, *key: Any) -> None:
        """Open *count* connections, one after the other, and leave them idle.

        Switches, for at most *timeout* seconds (None: as long as it takes).  Raises what a dial
        raised if *fail_fast* is set, and else PoolTimeout; then, as after a Timeout or a kill,
        those that it has opened are discarded.  In an EndpointPool *key* must have connections or
        callers.
        """
        owner: Any = self
        bucket = self._bucket_of(*key)
        if bucket is None:
            raise ValueError(f"key must be an endpoint with connections or callers, not {key!r}")
        runtime = self._runtime
        opened: list[tuple[Hold, C]] = []
        ends_at = None if timeout is None else monotonic() + timeout
        try:
            while len(opened) < count:
                left = None if ends_at is None else max(ends_at - monotonic(), 0.0)
                slot, conn = runtime.desk.acquire(owner, bucket, left)
                opened.append((hold_of(slot), conn))
        except BaseException:
            for hold, conn in opened:
                self._discard(hold, conn, Reason.DISCARDED)
            raise
        for hold, conn in opened:
            if is_held(hold):
                runtime.desk.return_unused(hold, conn)

    def _standing(self, *key: Any) -> Standing:
        """How things stand.  Does not switch, and costs about 1 µs."""
        bucket = self._bucket_of(*key)
        if bucket is None:
            return Standing()
        failing = bucket.failing
        return Standing(
            bucket.size,
            bucket.min_size,
            bucket.max_overflow,
            bucket.maximum,
            len(bucket.slots),
            bucket.open,
            bucket.in_use,
            bucket.idle,
            bucket.connecting,
            len(bucket.waiters),
            failing,
            max(bucket.retry_at - monotonic(), 0.0) if failing else 0.0,
            bucket.last_error,
        )

    def _fail_when_down(self, on: bool, *key: Any) -> None:
        """Have all in line get the error of a dial that fails from now on, and who comes during the
        back-off, too; or not any more.  Does not switch."""
        if (bucket := self._bucket_of(*key)) is not None:
            bucket.refuse_while_down(on)

    def _dial_was_killed(self, error: BaseException, *key: Any) -> None:
        """Have who waits get *error*: for a ``_new_connection`` that a kill is about to leave, as
        that is not theirs.  Does not switch."""
        if (bucket := self._bucket_of(*key)) is not None:
            bucket.note_error(error)

    # Resets

    def _needs_reset(self, conn: C) -> bool:
        """Whether ``_reset_connection`` has anything to do for *conn*, whose use has ended in good
        order.  For an adapter to override beside that hook, if it can tell without asking the
        server: what needs none goes to the next caller at once.

        Must not switch, and counts as true if it raises.  A subclass that overrides the other hook
        alone has it called at each return.
        """
        return True

    def _can_tell_what_needs_reset(self) -> bool:
        """Whether ``_needs_reset`` speaks for this very ``_reset_connection``."""
        for each in (self, *type(self).__mro__):
            if "_needs_reset" in vars(each):
                return each is not PoolExtension
            if "_reset_connection" in vars(each):
                return False
        return False

    # Hang-ups, listeners, the log

    def _make_probe(self, conn: C, ask: Callable[[Any], Any]) -> Probe | None:
        """What looks at *conn*, just opened, on return and before a hand-out; None: nothing.

        To be wrapped by an adapter whose client knows more than its socket tells: called with
        *conn*, the probe returns why that is not to be used again (something false: it is), and
        ``sockets.CUT_SHORT`` if a reply is due still, so that it is salvaged.  On return its
        ``untouched(conn)`` is asked first: where that is true, it is not called before the next
        hand-out.  It passes on all else, must not switch, and does not keep *conn* alive.  By
        ``ask(conn)`` it asks the hook ``_socket``.
        """
        raise NotImplementedError

    def _poll_hangups(self) -> None:
        """Learn of the peers that have hung up by now, though the hub has not run since.

        For ``_is_alive``: afterwards ``_facts_of(conn).close_reason`` is true to this moment.  Does
        not switch.
        """
        self._runtime.index.hangups.poll()

    def _notify(self, event: PoolEvent) -> None:
        """Notify the listeners of *event*, by the method of that name: ``server_list_obtained`` of
        ServerListObtained.  What they raise is logged.  May switch, if a listener does."""
        owner: Any = self
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
        self._runtime.notifier.notify(owner, name, event)

    def _log(self, level: int, text: str, *args: Any, exc_info: Any = None) -> None:
        """Log a line to the pool's logger, its name in front.  What a handler raises is printed.
        May switch, if a handler does."""
        owner: Any = self
        self._runtime.notifier.log(owner, level, text, *args, exc_info=exc_info)
