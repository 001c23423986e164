"""Whether who would have to wait is sent away, as no dial of the bucket succeeds."""

from __future__ import annotations

from geventpool._scheduler.state import AT_ONCE, NEVER
from geventpool._util.errors import text_of
from geventpool.errors import PoolDown

__all__ = ["Outage"]

_PROBED_FOR = 60.0  # seconds after its last caller for which one of many is probed


class Outage:
    """It begins when nothing was open and every dial has failed for *after* seconds (None: never),
    or with a dial whose error was fatal; the first dial that succeeds ends it."""

    __slots__ = (
        "after",
        "asked_at",
        "began",
        "dials",
        "failing_since",
        "fatal",
        "probing",
    )

    def __init__(self, after: float | None) -> None:
        self.after = after
        self.forget()

    def forget(self) -> None:
        """There is none, and no dial has failed."""
        self.failing_since = NEVER  # nothing is open since then, and every dial fails
        self.began = NEVER  # callers are sent away since then
        self.fatal: BaseException | None = None  # what they get, if it is that
        self.asked_at = AT_ONCE  # when the last one came
        self.probing = False  # whether it is dialed, wanted or not
        self.dials = 0  # that failed meanwhile

    @property
    def on(self) -> bool:
        """Whether callers are sent away."""
        return self.began < NEVER

    @property
    def begins_at(self) -> float:
        """When it begins if no dial succeeds before; NEVER if it has begun, or will not."""
        if self.after is None or self.began < NEVER:
            return NEVER
        return self.failing_since + self.after

    def begin(self, now: float, fatal: BaseException | None = None) -> None:
        """Callers are sent away from now on."""
        self.began = self.asked_at = now
        self.failing_since = min(self.failing_since, now)
        self.fatal = fatal
        self.probing = True

    def note_dialing(self, failing: bool, now: float) -> None:
        """Note whether nothing is open and dials are made, in vain so far."""
        if not failing:
            self.failing_since = NEVER
            self.dials = 0
        elif self.failing_since == NEVER:
            self.failing_since = now

    def look_who_asks(self, waiting: bool, transient: bool, now: float) -> None:
        """Go on probing; but not, for one of many, when no caller has come for long."""
        if waiting:
            self.asked_at = now
        self.probing = not transient or now - self.asked_at < _PROBED_FOR

    def error(
        self, pool: str, cause: BaseException | None, retry_after: float, now: float
    ) -> BaseException:
        """What a caller gets."""
        if self.fatal is not None:
            return self.fatal
        down_for = now - self.failing_since
        why = "" if cause is None else f"; last dial: {type(cause).__name__}: {text_of(cause)}"
        text = f"pool {pool!r}: nothing is open and every dial has failed for {down_for:.3f} s"
        error = PoolDown(text + why, pool=pool, down_for=down_for, retry_after=retry_after)
        error.__cause__ = cause
        return error
