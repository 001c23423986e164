"""A scheduler by itself: its effects are noted, its clock is set by hand, its steps are counted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geventpool import _scheduler
from geventpool._scheduler.limit import Limit
from geventpool._scheduler.model import Bucket, Slot
from geventpool._scheduler.scheduler import Scheduler
from geventpool._scheduler.state import NEVER
from geventpool._scheduler.waiter import Waiter
from geventpool._util import heap
from geventpool.backoff import Backoff
from geventpool.events import Reason

__all__ = ["HERE", "REFUSED", "Notes", "Steps", "World", "assert_flat"]

HERE = 7  # the thread whose fast path it is
REFUSED = OSError("refused")
#: The files whose lines are counted.
DECIDING = {heap.__file__, *map(str, Path(_scheduler.__file__).parent.glob("*.py"))}


class Notes:
    """Effects that note what is asked for; the tests carry it out when they like."""

    def __init__(self) -> None:
        self.dials: list[Slot] = []
        self.closes: list[Slot] = []
        self.checks: list[Slot] = []
        self.salvages: list[Slot] = []
        self.woken: list[Waiter] = []
        self.reasons: list[Reason] = []
        self.retries: list[float] = []
        self.down: list[Bucket] = []
        self.back: list[Bucket] = []
        self.looks: dict[Bucket, float] = {}
        self.limits: list[Limit] = []
        self.gone: list[Waiter] = []  # their greenlets are
        self.adrift: list[Slot] = []  # no caller has their connection, nor is about to
        self.mendings: list[str] = []
        self.catching_up = 0

    def start_dial(self, slot: Slot) -> None:
        self.dials.append(slot)

    def start_close(self, slot: Slot, reason: Reason) -> None:
        self.closes.append(slot)
        self.reasons.append(reason)

    def start_check(self, slot: Slot) -> None:
        self.checks.append(slot)

    def start_salvage(self, slot: Slot) -> None:
        self.salvages.append(slot)

    def wake(self, callback: object, waiter: Waiter) -> str:
        self.woken.append(waiter)
        return "woken"

    def reconcile_later(self, bucket: Bucket) -> None:
        self.retries.append(bucket.reconcile_at)

    def went_down(self, bucket: Bucket) -> None:
        self.down.append(bucket)

    def came_back(self, bucket: Bucket) -> None:
        self.back.append(bucket)

    def look_later(self, bucket: Bucket, at: float) -> None:
        self.looks[bucket] = min(at, self.looks.get(bucket, at))

    def reconcile_limit_later(self, limit: Limit) -> None:
        self.limits.append(limit)

    def catch_up_later(self) -> None:
        self.catching_up += 1

    def at_work_on(self) -> list[Slot]:
        return self.dials + self.closes + self.checks + self.salvages

    def has_out(self, slot: Slot) -> bool:
        return slot not in self.adrift

    def waits(self, waiter: Waiter) -> bool:
        return waiter not in self.gone

    def mended(self, bucket: Bucket, what: str) -> None:
        self.mendings.append(what)


class World:
    """A scheduler, its effects, a clock that is set by hand, and shorthands for what callers do."""

    def __init__(self) -> None:
        self.now = 100.0
        self.notes = Notes()
        self.scheduler = Scheduler(self.notes)

    def bucket(self, size: int, min_size: int = 0, *, name: str = "b", **settings: Any) -> Bucket:
        settings.setdefault("backoff", Backoff(first=1.0, longest=8.0, jitter=0.0))
        bucket = Bucket(name, size=size, min_size=min_size, **settings)
        bucket.fast_path_thread = HERE
        self.scheduler.add(bucket, self.now)
        return bucket

    def full(self, size: int, **settings: Any) -> Bucket:
        """A fixed pool with all its connections open and idle."""
        bucket = self.bucket(size, size, **settings)
        self.open_all()
        assert bucket.idle == size
        return bucket

    def open_all(self) -> None:
        while self.notes.dials:
            self.open_one()

    def open_one(self) -> Slot:
        slot = self.notes.dials.pop(0)
        self.scheduler.opened(slot, self.now)
        return slot

    def fail_one(self) -> None:
        self.scheduler.dial_failed(self.notes.dials.pop(0), REFUSED, self.now)

    def close_all(self) -> None:
        while self.notes.closes:
            self.scheduler.closed(self.notes.closes.pop(0), self.now)

    def checkout(self, bucket: Bucket) -> Slot:
        """What a caller gets who finds something idle."""
        slot = self.scheduler.try_checkout(bucket, self.now)
        assert slot is not None
        slot.handed_out(self.now)
        return slot

    def enqueue(
        self,
        bucket: Bucket,
        timeout: float | None = None,
        ticket: int = 0,
        useless_after: float = NEVER,
        came: float | None = None,
    ) -> Waiter:
        deadline = None if timeout is None else self.now + timeout
        ticket_drawn = ticket or next(self.scheduler.tickets)
        came = self.now if came is None else came
        waiter = Waiter(bucket, ticket_drawn, deadline, None, came, useless_after)
        self.scheduler.enqueue(waiter, self.now, requeued=ticket > 0)
        return waiter

    def release(self, *slots: Slot) -> None:
        for slot in slots:
            self.scheduler.release(slot, self.now)

    def discard(self, slot: Slot, reason: Reason = Reason.DISCARDED) -> None:
        self.scheduler.discard(slot, reason, self.now)

    def salvage(self, slot: Slot) -> None:
        self.scheduler.salvage(slot, self.now)

    def end_salvage(self, ok: bool) -> Slot:
        slot = self.notes.salvages.pop(0)
        self.scheduler.salvaged(slot, ok, self.now)
        return slot

    def pass_time(self, seconds: float) -> None:
        """Let it pass; lines are looked at when that was asked for."""
        ends = self.now + seconds
        while due := [bucket for bucket, at in self.notes.looks.items() if at <= ends]:
            bucket = min(due, key=self.notes.looks.__getitem__)
            self.now = max(self.now, self.notes.looks.pop(bucket))
            self.scheduler.look_at_line(bucket, self.now)
        self.now = ends

    def reconcile(self, bucket: Bucket) -> None:
        self.scheduler.reconcile(bucket, self.now)


class Steps:
    """Counts the lines of the scheduler that are run, its comprehensions' turns included."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, call: Callable[[], object]) -> int:
        self.count = 0
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(before)
        return self.count

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in DECIDING:
            return None
        self.count += 1
        return self._trace


def assert_flat(cost: Callable[[int], int], small: int = 20, factor: int = 20) -> None:
    """The steps do not grow with the number: a few more are forgiven."""
    few, many = cost(small), cost(small * factor)
    assert few > 0
    assert many <= 1.2 * few + 5, f"{few} steps at {small}, {many} at {small * factor}"
