"""What the scheduler asks of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, Protocol

from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._scheduler.limit import Limit
    from geventpool._scheduler.waiter import Waiter

__all__ = ["Effects"]


class Effects(Protocol):
    """What the scheduler asks for.  Each only schedules: it may neither switch nor call back.
    A slot is of its bucket's kind, and so is a bucket."""

    def start_dial(self, slot: Any) -> None:
        """Dial; then call ``opened`` or ``dial_failed``."""

    def start_close(self, slot: Any, reason: Reason) -> None:
        """Close the connection; then call ``closed``."""

    def start_check(self, slot: Any) -> None:
        """Run the keepalive; then call ``checked``."""

    def start_salvage(self, slot: Any) -> None:
        """Try to bring the connection back into step; then call ``salvaged``."""

    def wake(self, callback: Any, waiter: Waiter) -> Any:
        """Have ``callback(waiter)`` called soon, to let the waiter look at what it has got.  What
        is returned is kept as ``waiter.wake_handle``."""

    def reconcile_later(self, bucket: Any) -> None:
        """Call ``reconcile`` at ``bucket.reconcile_at``; what was asked for before is void."""

    def look_later(self, bucket: Any, at: float) -> None:
        """Call ``look_at_line`` at *at*, or before it if that is to come anyway."""

    def reconcile_limit_later(self, limit: Limit) -> None:
        """Call ``reconcile_limit`` soon, with the time (this one from any thread)."""

    def went_down(self, bucket: Any) -> None:
        """Say that who would have to wait is sent away from now on."""

    def came_back(self, bucket: Any) -> None:
        """Say that this is over."""

    @property
    def catch_up_later(self) -> Callable[[], object]:
        """Called, it has ``catch_up`` called soon, from the hub, with the time."""

    # For an audit: what there is to be seen outside of the books.

    def at_work_on(self) -> Container[Any]:
        """The slots that a greenlet dials, closes, checks, salvages or looks at, or is about to."""

    def has_out(self, slot: Any) -> bool:
        """Whether a caller has the connection of *slot*, or had it and has lost it."""

    def waits(self, waiter: Waiter) -> bool:
        """Whether the greenlet of *waiter* still waits for what it gets."""

    def mended(self, bucket: Any, what: str) -> None:
        """Say that the books of *bucket* were wrong and are right again."""
