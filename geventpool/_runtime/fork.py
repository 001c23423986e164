"""What a forked child does with connections that are its parent's: nothing, for ever.

To drop one would run its finalizer, and that of many a driver says goodbye to the server, on the
socket that the parent goes on to use.  A mere ``subprocess.run()`` in a patched program forks in
Python, and would end the parent's sessions so.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.monkey import get_original

from geventpool._runtime.clock import get_ident
from geventpool._runtime.workers import leave_behind
from geventpool._scheduler.state import CHECKING, IN_USE, SALVAGING
from geventpool._util.forks import Fork

try:
    import ctypes
except ImportError:  # an interpreter built without it: then until the interpreter ends
    ctypes = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from geventpool._runtime.runtime import Runtime
    from geventpool._runtime.slots import PoolBucket

__all__ = ["identity_of", "leave_to_parent", "let_go"]

#: In a patched program that of ``os`` waits for the hub.
_close = get_original("os", "close")
_Socket = get_original("socket", "socket")
_kept: list[Any] = []


def identity_of(descriptor: int) -> tuple[int, int] | None:
    """What tells the file behind *descriptor* from the next one of that number; None if closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def leave_to_parent(conn: object, files: Iterable[tuple[int, Any]]) -> None:
    """See to it that this process neither finalizes *conn* nor reaches its server through it.

    The null device takes the place of each of its *files*, a descriptor and the identity of the
    file, if that still is the one.
    Called in a child, inside fork; does not switch, and calls nothing of the user's.
    """
    if ctypes is not None:
        # What only a variable of a module keeps would be finalized as the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))
    else:
        _kept.append(conn)
    for descriptor, identity in files:
        if identity is not None and identity_of(descriptor) == identity:
            _put_null_over(descriptor)


def _put_null_over(descriptor: int) -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        return  # no descriptor left
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        _close(null)


def let_go(runtime: Runtime, fork: Fork) -> None:
    """In a child: let go of everything in *runtime* that is the parent's, closing nothing.

    Runs inside fork, so it only drops references and leaves the rest to the child's hub, if it
    ever runs.  Greenlets of the parent that dialed, checked, salvaged or closed live on here as
    copies: they are killed before they touch the parent's sockets again.  Callers that wait keep
    their place: the child's own connections serve them.
    """
    if runtime.dead:
        return  # that of a thread that has ended: nothing of it runs, and its timers are gone
    # First of all: what is closed on a loop of libuv leaves its epoll at once, and that would still
    # be the parent's.
    if get_ident() == runtime.ident:
        # As gevent's own fork does.  After a raw one the hub would sleep on the parent's epoll,
        # and the first look-up of a name wait for threads that are not here.
        fork.once(gevent.reinit, runtime.hub)
    else:
        fork.attempt(runtime.loop.reinit)
    runtime.index.hangups.abandon()
    buckets = list(runtime.buckets)
    for bucket in buckets:
        _leave_connections(bucket)
    strays = runtime.dismiss_workers()
    owner = next((owner for bucket in buckets if (owner := bucket.last_owner) is not None), None)
    if owner is not None:
        for copy in strays:
            _silence(copy, owner._descriptors_in)
    for bucket in buckets:
        _forget(runtime, bucket)
    leave_behind(strays)
    if get_ident() == runtime.ident:  # of another thread, the loop may have been at its timers
        runtime.hub_lag.forget()
    runtime.loop.run_callback(runtime.revive)


def _silence(copy: Any, descriptors_in: Callable[[object], Iterable[int]]) -> None:
    """Keep the *copy* of a worker, which is about to be ended, from having last words for the
    parent's server: a driver's ``finally`` or finalizer says goodbye.

    What it was dialing, or has opened for a check or a salvage, no slot knows; its frames do.  What
    else they may have of sockets is the child's as well: one that listens, one of datagrams.
    """
    frame = copy.gr_frame
    while frame is not None:
        for thing in frame.f_locals.values():
            try:
                found = descriptors_in(thing)
            except BaseException:  # a user's, of whatever kind: all the rest is still to be done
                continue
            for descriptor in found:
                if _is_a_connection(descriptor):
                    _put_null_over(descriptor)
        frame = frame.f_back


def _is_a_connection(descriptor: int) -> bool:
    try:
        sock = _Socket(fileno=descriptor)
    except OSError:
        return False  # no socket, or gone
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        return sock.type == socket.SOCK_STREAM and not listens
    except OSError:
        return False
    finally:
        sock.detach()


def _forget(runtime: Runtime, bucket: PoolBucket) -> None:
    owner = bucket.owner()
    slots = list(bucket.slots)
    for slot in slots:
        slot.forked = True
        if owner is not None and slot.state is not IN_USE:
            owner.slots_by_id.pop(slot.ident, None)
    runtime.scheduler.forget_all(bucket)
    with warnings.catch_warnings():
        # Copies of the parent's sockets, closed here by the collector: as they should be.
        warnings.simplefilter("ignore", ResourceWarning)
        for slot in slots:
            slot.conn = slot.why_unusable = slot.broken_by = None
            slot.fds = ()
    bucket.reset_counters()
    bucket.postpone(False)
    runtime.timers.stop(bucket)
    bucket.recycled.clear()
    if owner is not None:
        owner.outages.forget()
    runtime.forget_if_empty(bucket)


def _leave_connections(bucket: PoolBucket) -> None:
    """Keep this process's copies of the parent's connections from ever saying anything.

    Sockets may be dropped: that closes the child's descriptor, and no more.  One that is being
    checked or salvaged is not: the copy of that is about to be ended, and may have last words.
    """
    owner = bucket.last_owner
    for slot in bucket.slots:
        conn = slot.conn
        if conn is None and slot.ref is not None:
            conn = slot.ref()  # a caller has it
        if conn is None:
            continue
        if slot.state in (CHECKING, SALVAGING) and not slot.identities:
            slot.identities = tuple(map(identity_of, slot.fds))
        if slot.identities or owner is None or not owner._is_socket(conn):
            leave_to_parent(conn, zip(slot.fds, slot.identities, strict=False))
