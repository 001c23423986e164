"""What the scheduler asks of the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool._scheduler.limit import Limit
    from geventpool._scheduler.model import Waiter

__all__ = ["Effects"]


class Effects(Protocol):
    """What the scheduler asks for.  Each only schedules: it may neither switch nor call back.
    A slot is of its bucket's kind."""

    def start_dial(self, slot: Any) -> None:
        """Dial; then call ``opened`` or ``dial_failed``."""

    def start_close(self, slot: Any, reason: Reason) -> None:
        """Close the connection; then call ``closed``."""

    def start_check(self, slot: Any) -> None:
        """Run the keepalive; then call ``checked``."""

    def wake(self, callback: Any, waiter: Waiter) -> Any:
        """Have ``callback(waiter)`` called soon, to let the waiter look at what it has got.  What
        is returned is kept as ``waiter.wake_handle``."""

    def reconcile_later(self, bucket: Any) -> None:
        """Call ``reconcile`` at ``bucket.retry_at``."""

    def reconcile_limit_later(self, limit: Limit) -> None:
        """Call ``reconcile_limit`` soon, with the time (this one from any thread)."""
