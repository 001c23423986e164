"""A time limit that everybody sees: ``with Deadline(1.0):``.

A gevent.Timeout strikes, and until then nobody knows of it.  A Deadline strikes just so; but pools,
sockets and retries also see what is left of it: see ``_util/deadlines.py``.
"""

from __future__ import annotations

import math
from typing import Any

import gevent
from gevent import get_hub, getcurrent

from geventpool._util import deadlines
from geventpool._util.clock import monotonic
from geventpool._util.deadlines import Bound

__all__ = ["Deadline"]


class Deadline(gevent.Timeout):
    """A ``gevent.Timeout`` that pools, sockets and retries of this library see coming.

        with geventpool.Deadline(1.0):
            with pool.get() as conn:
                ...

    The arguments, ``start_new`` and all else are those of ``gevent.Timeout``: after *seconds* it
    raises itself, or *exception*, in the greenlet that has started it; with ``False`` for
    *exception* the ``with`` ends silently; *seconds* None means that it never strikes.  Until it is
    left (or closed, or cancelled), that greenlet, and no other, is under it.  Deadlines may be
    nested: the one that strikes first counts.  One that has struck goes on counting as past until
    it is left: close what ``start_new`` returned.

    What is done meanwhile in that greenlet takes what is left of it, a moment less (a hundredth of
    its length, 2 to 5 ms; a tenth if that is less), if that is less than its own time limit:

    - ``get()``, ``acquire()`` and the rest of a pool's verbs that lend a connection, *check_after*
      included.  A pool hands nothing to a caller that has less left than nine in ten uses of its
      connections take (as far as it knows; half of the Deadline's length counts as enough): it
      gets PoolTimeout at once, at the moment at which it comes to that, and another caller has its
      place.
    - ``@retry``: there is no attempt, and no wait for one, that would begin after it.
    - SocketFactory and ConnectionManager: the time is shared out among the addresses, and the error
      says what it was spent on.

    A plain ``gevent.Timeout`` is seen by none of them: it strikes.  Raises TypeError or ValueError
    if *seconds* is no number; less than 0 counts as 0.
    """

    def __init__(
        self,
        seconds: float | None = None,
        exception: Any = None,
        ref: bool = True,
        priority: int = -1,
        _one_shot: bool = False,
    ) -> None:
        if seconds is not None:
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                raise TypeError(f"seconds must be a number or None, not {seconds!r}")
            if math.isnan(seconds):
                raise ValueError(f"seconds must be a number or None, not {seconds!r}")
            # What never ends has no timer: libuv's could not be set to that.
            seconds = None if seconds == math.inf else max(seconds, 0)
        super().__init__(seconds, exception, ref, priority, _one_shot)  # type: ignore[call-arg]
        self._under: tuple[Any, Bound] | None = None  # which greenlet is under it, until when

    def start(self) -> None:
        """Begin to count: the current greenlet is under it from now on."""
        super().start()
        self._leave()  # it has struck before, and is started anew
        if self.seconds is not None:
            self._under = getcurrent(), Bound(monotonic() + self.seconds, self.seconds)
            deadlines.begin(*self._under)

    def cancel(self) -> None:
        """Count no more; it may be started again."""
        self._leave()
        super().cancel()

    def close(self) -> None:
        """Count no more, ever."""
        self._leave()
        super().close()

    def _leave(self) -> None:
        under, self._under = self._under, None
        if under is not None:
            deadlines.end(*under)

    def _on_expiration(self, prev_greenlet: Any, ex: Any) -> None:
        # gevent's hook for subclasses.  What gave up a moment before has been told so in this very
        # pass of the loop, if that was late: its greenlet runs first, and may leave in time.
        if prev_greenlet.dead:
            # It was never closed, and nobody will: libuv's loop would not survive a timer that is
            # dropped.
            self.close()
        else:
            get_hub().loop.run_callback(self._strike, self._under, ex)

    def _strike(self, under: tuple[Any, Bound] | None, ex: Any) -> None:
        if under is not None and self._under is under and not under[0].dead:
            under[0].throw(ex)
