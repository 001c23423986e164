"""Which slot a connection stands in, and who watches it."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from typing import Any, NamedTuple

from geventpool._runtime.fork import identity_of
from geventpool._runtime.hangups import HangupWatcher
from geventpool._runtime.hooks import PoolHooks
from geventpool._runtime.leaks import connection_ref
from geventpool._runtime.slots import ConnectionSlot, PoolBucket
from geventpool._scheduler.state import CLOSED, IN_USE
from geventpool.errors import NotInUse
from geventpool.events import Reason

__all__ = ["Carrier", "ConnectionIndex", "describe", "has_out"]


class Carrier(NamedTuple):
    """What the hooks say of what carries the bytes of a connection."""

    probe: Any = None
    fds: tuple[int, ...] = ()
    identities: tuple[Any, ...] = ()  # of those files, if the connection is no mere socket
    is_socket: bool = False


def describe(owner: PoolHooks, bucket: PoolBucket, conn: Any) -> Carrier:
    """Ask the hooks how *conn* is to be watched.  They may do anything."""
    ask: Callable[[Any], Any] = bucket.carriers_of
    if owner.has_socket and not bucket.key and _is_static(owner, "_socket"):
        ask = owner._socket  # which does not keep the pool: asked sooner
    probe = owner._make_probe(conn, ask)
    is_socket = owner._is_socket(conn)
    if probe is None:
        return Carrier(is_socket=is_socket)
    probe.forgive()  # a wait that the hook gave up, and got over, such as one for a greeting
    fds = probe.descriptors
    return Carrier(probe, fds, () if is_socket else tuple(map(identity_of, fds)), is_socket)


class ConnectionIndex:
    """The way from a connection to its slot; has each watched by the hub, and by the collector."""

    def __init__(
        self,
        hangups: HangupWatcher,
        when_collected: Callable[[Any], object],
        connected_anew: Callable[[ConnectionSlot], object],
    ) -> None:
        self.hangups = hangups
        self._connected_anew = connected_anew
        self._when_collected = when_collected  # one bound method for all, not one for each

    def register(self, owner: PoolHooks, slot: ConnectionSlot, conn: Any, carrier: Carrier) -> None:
        """Make *conn* the connection of *slot*, and have it watched.  Calls no hook."""
        slot.conn = conn
        slot.ident = id(conn)
        owner.slots_by_id[slot.ident] = slot
        slot.ref = connection_ref(slot, conn, self._when_collected)
        slot.why_unusable = probe = carrier.probe
        # The socket of a user's object may have been replaced: it is asked for that at each return.
        # And what can be salvaged should be soon: it is not left lying until the next hand-out.
        slot.looks_on_return = owner.has_reset or (
            probe is not None and (owner.has_salvage or not carrier.is_socket)
        )
        self._watch(slot, carrier.fds, carrier.identities)

    def _watch_anew(self, slot: ConnectionSlot) -> None:
        """Watch what its probe looks at now: its driver has connected."""
        self._unwatch(slot)
        fds = slot.why_unusable.descriptors
        self._watch(slot, fds, tuple(map(identity_of, fds)))

    def _watch(
        self, slot: ConnectionSlot, fds: tuple[int, ...], identities: tuple[Any, ...]
    ) -> None:
        slot.fds, slot.identities = fds, identities
        for fd in fds:
            self.hangups.watch(fd, slot)

    def _unwatch(self, slot: ConnectionSlot) -> None:
        for fd in slot.fds:
            self.hangups.unwatch(fd, slot)
        slot.fds = ()

    def forget(self, owner: PoolHooks | None, slot: ConnectionSlot) -> None:
        """Undo ``register``, before the connection is closed or let go."""
        self._unwatch(slot)
        slot.why_unusable = None
        if owner is not None:
            _forget_id(owner, slot)

    # Looking never switches, unless a hook does that must not

    def look(self, owner: PoolHooks, slot: ConnectionSlot, conn: Any) -> Reason | None:
        """Why *conn*, which a caller has used, is not to be used again, or None."""
        probe = slot.why_unusable
        why = None if probe is None else probe(conn)
        if not why:
            if probe is not None and slot.looks_on_return and not slot.fds:
                self._watch_anew(slot)  # its driver connects at the first use
            return None
        reason = self._judge(owner, slot, conn, why)
        if reason is None and (why := probe(conn)):
            reason = owner._reason_for(why)
        if reason is not None:
            # A hang-up looks like unread bytes; the hub may not have run since.
            self.hangups.poll()
        return slot.close_reason or reason

    def look_whose(self, owner: PoolHooks, slot: ConnectionSlot, conn: Any) -> Reason | None:
        """The same, but leaving unread what lies unread, and what became of the peer to others."""
        probe = slot.why_unusable
        if probe is None:
            return None
        if why := probe.why_gone(conn):
            return self._judge(owner, slot, conn, why)
        return Reason.CUT_SHORT if probe.cut_short else None

    def _judge(
        self, owner: PoolHooks, slot: ConnectionSlot, conn: Any, why: object
    ) -> Reason | None:
        """None: *why* is no reason, as a reconnect was to be expected; it is watched anew."""
        reason = owner._reason_for(why)
        if reason is not Reason.GONE or not owner._may_reconnect:
            return reason
        if not slot.why_unusable.rewatch(conn):
            return reason
        self._watch_anew(slot)
        self._connected_anew(slot)
        return None

    def look_for_a_reconnect(self, owner: PoolHooks, slot: ConnectionSlot, conn: Any) -> None:
        """The pool has had a hook use *conn*: if a hang-up was seen, it may be that of a socket
        that its driver has replaced."""
        if slot.close_reason is Reason.PEER_CLOSED and owner._may_reconnect:
            self.look_whose(owner, slot, conn)

    # Finding

    def search(self, owner: PoolHooks, conn: Any) -> ConnectionSlot:
        """The slot of *conn* that stands not where ``slots_by_id`` says; NotInUse if there is none.

        The same object may stand in several slots, if _new_connection returns it twice; and a
        tuple may have been taken apart and put together again.
        """
        slots = [slot for bucket in owner._all_buckets() for slot in bucket.slots]
        for slot in (*slots, *owner.slots_by_id.values()):
            if has_out(slot, conn):
                _forget_id(owner, slot)
                slot.ident = id(conn)
                owner.slots_by_id[slot.ident] = slot
                return slot
        raise NotInUse(
            f"pool {owner.name!r}: {conn!r} is not in use here: released twice, or not ours",
            pool=owner.name,
            connection=conn,
        )


def has_out(slot: ConnectionSlot, conn: Any) -> bool:
    """Whether a caller has *conn* of *slot*; perhaps since before a fork, as a copy."""
    if slot.state is IN_USE:
        return slot.conn is None and not slot.returning and slot.ref.is_for(conn)
    return slot.state is CLOSED and slot.forked and slot.ref.is_for(conn)


def _is_static(owner: PoolHooks, hook: str) -> bool:
    """Whether *hook* is a static method of its class.  A function that was set at the instance is
    none: it may know the pool."""
    return hook not in vars(owner) and isinstance(getattr_static(type(owner), hook), staticmethod)


def _forget_id(owner: PoolHooks, slot: ConnectionSlot) -> None:
    if owner.slots_by_id.get(slot.ident) is slot:
        del owner.slots_by_id[slot.ident]
