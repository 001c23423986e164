"""How many connections a server that is full has room for, as far as is known."""

from __future__ import annotations

from geventpool._scheduler.state import NEVER

__all__ = ["PEACE", "Ceiling"]

PEACE = 1.0  # seconds after which one more is asked for
_KEPT = 60.0  # seconds of peace after which the server counts as one with room


class Ceiling:
    """A server that said it is full is asked for no more connections than are open then, and for
    one more after each second in which it has not said so again."""

    __slots__ = ("_full_at", "_raised_at", "error", "most")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Know of none."""
        self.most: float = NEVER
        self._raised_at = self._full_at = NEVER
        self.error: BaseException | None = None  # what the server said

    @property
    def on(self) -> bool:
        """Whether it is known to be full."""
        return self.most < NEVER

    @property
    def rises_at(self) -> float:
        """When one more may be asked for."""
        return self._raised_at + PEACE

    def lower(self, count: int, error: BaseException, now: float) -> None:
        """The server has refused one more than *count*, with *error*."""
        self.most = count
        self.error = error
        self._raised_at = self._full_at = now

    def rise(self, maximum: float, now: float) -> None:
        """Add what the time since has earned; above *maximum* it is of no use any more."""
        if now - self._full_at >= _KEPT:
            self.forget()
            return
        # By the very sum that ``rises_at`` is: a difference, rounded, may say that it is too early.
        while now >= self.rises_at:
            self.most += 1
            self._raised_at += PEACE
        if self.most >= maximum:
            self.forget()
