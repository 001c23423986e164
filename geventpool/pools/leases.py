"""The kinds of lease: what ``get`` returns, as its type, and by what the pool was told.

What all of them do, and the fast path, is in ``lease.py``.  That is compiled, and what is compiled
has no type parameters: they are added here.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from geventpool._runtime.introspection import remember_caller
from geventpool._runtime.slots import is_held
from geventpool._util.forks import forks_seen
from geventpool.errors import Verdict
from geventpool.events import Reason
from geventpool.pools import lease
from geventpool.pools.lease import ENTERED, assert_not_entered
from geventpool.pools.verdicts import mark_broken, verdict_on_use

__all__ = ["Lease", "LocalLease", "SharedConnection", "TrackedLease", "TrackedLocalLease"]

C = TypeVar("C")

if TYPE_CHECKING:

    class Lease(lease.Lease, Generic[C]):
        def __enter__(self) -> C: ...

else:
    Lease = lease.Lease


class TrackedLease(Lease[C]):
    """The lease of a pool that remembers where its connections were acquired, by the fast path,
    too."""

    __slots__ = ()

    def __enter__(self) -> C:
        conn = super().__enter__()
        remember_caller(self._slot)
        return conn


class SharedConnection(Generic[C]):
    """A connection that a greenlet has, and how many leases of it there are."""

    __slots__ = ("cut_by", "lease", "leases", "suspect")

    def __init__(self, lease: LocalLease[C]) -> None:
        self.lease = lease  # by which the connection was acquired
        self.leases = 1
        self.suspect = False  # an exception has left one of them
        self.cut_by: BaseException | None = None  # what has left one and cut its use short


class LocalLease(Lease[C]):
    """The lease of a ``greenlet_local`` pool: nested, it shares what the greenlet already has.

    The connection goes back when the last of those that share it is left, in whatever order.
    """

    __slots__ = ("_leases", "_shared")

    _shared: SharedConnection[C]

    def __enter__(self) -> C:
        assert_not_entered(self)
        key, leases = self._bucket.key, self._pool._leases_of_this_greenlet()
        shared = leases.get(key)
        if shared is not None and forks_seen and is_held((shared.lease._slot, shared.lease._use)):
            shared.leases += 1
            self._shared, self._bucket = shared, ENTERED
            return shared.lease._conn  # type: ignore[no-any-return]
        conn = super().__enter__()
        self._shared = leases[key] = SharedConnection(self)
        self._leases = leases  # those of the greenlet that entered it, in whichever it is left
        return conn

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shared = self._shared
        lease, slot = shared.lease, shared.lease._slot
        self._bucket = slot.bucket
        shared.leases -= 1
        if not shared.leases:
            if lease._leases.get(slot.bucket.key) is shared:
                del lease._leases[slot.bucket.key]
            if shared.suspect or exc is not None:
                cut_by, shared.cut_by = shared.cut_by, None
                try:
                    if cut_by is not None and (
                        exc is None or verdict_on_use(self._pool, exc) is Verdict.FINE
                    ):
                        exc = cut_by
                finally:  # a handler of the log may have been killed
                    lease._give_back(exc, suspect=True)
            else:
                Lease.__exit__(lease, None, None, None)
        elif exc is not None:
            shared.suspect = True
            # Another with may yet swallow it, but what it says is true all the same.
            if mark_broken(self._pool, (slot, lease._use), exc) is Reason.CUT_SHORT:
                shared.cut_by = exc


class TrackedLocalLease(LocalLease[C], TrackedLease[C]):
    """The same for a ``greenlet_local`` pool that tracks."""

    __slots__ = ()
