"""Which slot a connection stands in, and who watches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from geventpool._runtime.fork import identity_of
from geventpool._runtime.hangups import HangupWatcher
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.leaks import connection_ref
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.state import CLOSED, IN_USE
from geventpool.errors import NotInUse

__all__ = ["UNWATCHED", "ConnectionIndex", "Descriptor", "describe"]


#: What the hooks say of a connection that carries its bytes through a descriptor: that, the
#: identity of the file, if it is no socket, and what says why it is unusable.
Descriptor: TypeAlias = "tuple[int | None, tuple[int, int] | None, Callable[[], object] | None]"
UNWATCHED: Descriptor = None, None, None


def describe(owner: PoolHooks, bucket: PoolBucket, conn: Any) -> Descriptor:
    """Ask the hooks how *conn* is to be watched.  They may do anything."""
    fd = owner._fileno(*bucket.key, conn)
    if fd is not None and not (isinstance(fd, int) and fd >= 0):
        raise ValueError(f"no file descriptor: {fd!r}")
    identity = None if fd is None or owner._is_socket(conn) else identity_of(fd)
    return fd, identity, None if owner.has_is_alive else owner._make_probe(conn)


class ConnectionIndex:
    """The way from a connection to its slot; has each watched by the hub, and by the collector."""

    def __init__(self, hangups: HangupWatcher, when_collected: Callable[[Any], object]) -> None:
        self.hangups = hangups
        self._when_collected = when_collected  # one bound method for all, not one for each

    def register(
        self, owner: PoolHooks, slot: ConnectionSlot, conn: Any, descriptor: Descriptor
    ) -> None:
        """Make *conn* the connection of *slot*, and have it watched.  Calls no hook."""
        slot.conn = conn
        slot.ident = id(conn)
        owner.slots_by_id[slot.ident] = slot
        slot.ref = connection_ref(slot, conn, self._when_collected)
        slot.fd, slot.identity, slot.why_unusable = descriptor
        fd = slot.fd
        if fd is not None and not self.hangups.watch(fd, slot):
            if self.hangups.unsupported and slot.why_unusable is None:
                slot.why_unusable = owner._make_descriptor_probe(fd)  # at each hand-out instead

    def forget(self, owner: PoolHooks | None, slot: ConnectionSlot) -> None:
        """Undo ``register``, before the connection is closed or let go."""
        if slot.fd is not None:
            self.hangups.unwatch(slot.fd, slot)
            slot.fd = None
        slot.why_unusable = None
        if owner is not None:
            _forget_id(owner, slot)

    def find(self, owner: PoolHooks, conn: Any) -> ConnectionSlot | None:
        """The slot of *conn*, which a caller has, looked up in no time; None if it takes longer."""
        slot = owner.slots_by_id.get(id(conn))
        return slot if slot is not None and _has_out(slot, conn) else None

    def search(self, owner: PoolHooks, conn: Any) -> ConnectionSlot:
        """The slot of *conn* after ``find`` was in vain; NotInUse if there is none.

        The same object may stand in several slots, if _new_connection returns it twice; and a
        tuple may have been taken apart and put together again.
        """
        slots = [slot for bucket in owner._all_buckets() for slot in bucket.slots]
        for slot in (*slots, *owner.slots_by_id.values()):
            if _has_out(slot, conn):
                _forget_id(owner, slot)
                slot.ident = id(conn)
                owner.slots_by_id[slot.ident] = slot
                return slot
        raise NotInUse(
            f"pool {owner.name!r}: {conn!r} is not in use here: released twice, or not ours",
            pool=owner.name,
            connection=conn,
        )


def _has_out(slot: ConnectionSlot, conn: Any) -> bool:
    """Whether a caller has *conn* of *slot*; perhaps since before a fork, as a copy."""
    if slot.state is IN_USE:
        return slot.conn is None and not slot.returning and slot.ref.is_for(conn)
    return slot.state is CLOSED and slot.forked and slot.ref.is_for(conn)


def _forget_id(owner: PoolHooks, slot: ConnectionSlot) -> None:
    if owner.slots_by_id.get(slot.ident) is slot:
        del owner.slots_by_id[slot.ident]
