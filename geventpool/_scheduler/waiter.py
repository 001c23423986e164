"""A caller that waits: what it wants, and what becomes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geventpool._scheduler.state import NEVER

if TYPE_CHECKING:
    from geventpool._scheduler.model import Bucket

__all__ = ["Waiter"]


class Waiter:
    """A caller's place in line.  It ends with a slot or an error, never both."""

    __slots__ = (
        "bucket",
        "callback",
        "came",
        "deadline",
        "error",
        "expired",
        "requeued",
        "slot",
        "ticket",
        "useless_after",
        "wake_handle",
    )

    def __init__(
        self,
        bucket: Bucket,
        ticket: int,
        deadline: float | None,
        callback: Any,
        came: float = 0.0,
        useless_after: float = NEVER,
    ) -> None:
        until = NEVER if deadline is None else deadline
        self.begin(bucket, ticket, until, callback, came, useless_after)

    def begin(
        self,
        bucket: Bucket,
        ticket: int,
        deadline: float,
        callback: Any,
        came: float,
        useless_after: float,
    ) -> None:
        """What follows on its creation; *deadline*: NEVER for none."""
        self.bucket = bucket
        self.ticket = ticket  # from ``tickets``; kept when it has to go back in line
        self.deadline = deadline
        self.came = came  # when its caller did; kept as well
        self.useless_after = useless_after  # a connection that it gets later is of no use to it
        self.slot: Any = None  # a Slot, of its bucket's kind
        self.error: BaseException | None = None
        self.expired = False
        self.requeued = False  # in line again, near the front
        self.callback = callback  # whom to wake: the runtime's business
        self.wake_handle: Any = None

    @property
    def pending(self) -> bool:
        """Whether it still waits."""
        return self.slot is None and self.error is None and not self.expired
