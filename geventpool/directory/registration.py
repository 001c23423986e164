"""What a program announces of itself in a directory: made, kept alive, made again, and removed."""

from __future__ import annotations

import atexit
import logging
import secrets
from typing import Any, Protocol

import gevent
import gevent.hub
from gevent import Timeout
from gevent.event import Event

from geventpool.addresses import Address
from geventpool.directory.member import check_name, member_of, write_member
from geventpool.directory.source import BACKOFF
from geventpool.errors import WrongHub
from geventpool.pools.extension import (
    Fork,
    check_number,
    check_seconds,
    forget_frames,
    in_child,
    log_safely,
)

__all__ = ["Entry", "EntryLost", "Registering", "Registration", "close_all"]

_log = logging.getLogger("geventpool.directory")

_LOOKS = 3  # in a lease: after one that gets no answer there is time for another try
_PATIENCE = 2.0  # seconds that a process that ends has for all that it has announced


class EntryLost(Exception):
    """The directory has not kept an entry."""


class Entry(Protocol):
    """An entry of a directory.  Each method raises any Exception, or a gevent.Timeout, within
    seconds if the directory does not answer; ``str()`` says which directory it is."""

    def announce(self) -> None:
        """Make it, whether or not it is there."""

    def keep(self) -> None:
        """Have it live for another lease.  Raises EntryLost if it is not there any more."""

    def withdraw(self) -> None:
        """Remove it, and close what leads to the directory."""


class Registration:
    """What ``register`` returns: a server that is announced until ``close()``, or until the process
    ends.  Then those of the main thread are removed; those of another are gone a lease later, if it
    has not closed them itself.

    It need not be held.  If it is lost, as the directory was away for longer than its lease, or was
    emptied, it is announced again; its loss and its return are on the log ``geventpool.directory``.
    In a forked child it is closed, and the parent's goes on.
    """

    def __init__(self, entry: Entry, name: str, address: Address, lease: float) -> None:
        self.name = name
        self.address = address
        self.lease = lease
        self.closed = False
        self.error: BaseException | None = None  # why it is not announced just now
        self._entry = entry
        self._announced = Event()
        self._hub: Any = gevent.get_hub()
        self._greenlet = gevent.spawn(self._keep)
        _all.add(self)

    @property
    def announced(self) -> bool:
        """Whether it stands in the directory, by what that has answered last."""
        return self._announced.is_set() and not self.closed

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is announced, for *timeout* seconds at most; whether it is by then."""
        check_seconds("timeout", timeout, zero=True)
        self._announced.wait(timeout)
        return self.announced

    def close(self, timeout: float = _PATIENCE) -> None:
        """Remove it from the directory: for a server that takes no more connections.

        Blocks for *timeout* seconds at most.  What the directory raises is logged: without it, the
        entry is gone a lease later.  Raises WrongHub, and changes nothing, in another thread than
        that which has made it.
        """
        check_seconds("timeout", timeout, none=False)
        if self.closed:
            return
        if self._hub is not gevent.get_hub():
            raise WrongHub(f"{self!r} is another thread's: close it there")
        self.closed = True
        _all.discard(self)
        self._greenlet.kill(block=False)
        # Apart: it is removed, too, if this caller is killed, or waits no longer.
        gevent.spawn(self._withdraw).join(timeout)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "announced" if self.announced else "not announced"
        return f"<{type(self).__name__} {self.name!r} {self.address} {state}, {self._entry}>"

    # Inside

    def _keep(self) -> None:
        """The greenlet of it."""
        failures = 0
        while True:
            try:
                self._entry.announce()
                self._succeeded()
                while True:
                    gevent.sleep(self.lease / _LOOKS)
                    self._entry.keep()
                    failures = 0
            except (Exception, Timeout) as error:
                self._failed(error)
            failures += 1
            gevent.sleep(BACKOFF.delay(failures))

    def _succeeded(self) -> None:
        lost, self.error = self.error, None
        self._announced.set()
        if lost is not None:
            text = "%r: %s is announced again at %s"
            log_safely(_log, logging.INFO, text, self.name, self.address, self._entry)

    def _failed(self, error: BaseException) -> None:
        forget_frames(error)
        lost, self.error = self.error, error
        self._announced.clear()
        if lost is None:
            text = "%r: %s is not announced at %s: %r; it is tried again"
            log_safely(_log, logging.WARNING, text, self.name, self.address, self._entry, error)

    def _withdraw(self) -> None:
        self._greenlet.join()
        try:
            self._entry.withdraw()
        except (Exception, Timeout) as error:
            text = "%r: %s was not removed at %s: %r; its lease will end"
            log_safely(_log, logging.WARNING, text, self.name, self.address, self._entry, error)

    def _forked(self, fork: Fork, hub: Any) -> None:
        self.closed = True
        if self._hub is hub:
            fork.once(gevent.reinit, hub)
            self._greenlet.kill(block=False)


class Registering:
    """What a resolver of a directory has, in which a program can announce itself, too."""

    def register(
        self, name: str, address: object, *, lease: float = 10.0, weight: float = 1.0
    ) -> Registration:
        """Announce that *address* serves *name*, until the registration is closed or the process
        ends (see Registration); one that is killed is gone from the directory *lease* later.

        *address* is one that others can reach, in any spelling of ``addresses.address``.  *lease*
        is 2 s or more.  *weight* is the server's share, as in an AddressGroup.  Does not block: it
        is announced in the background, and ``wait()`` waits for that.  It has a connection of its
        own, and goes on if this resolver is closed or dropped.

        Each registration has an entry of its own, so that several processes may serve one address:
        it is there as long as one of them is.

        Raises ValueError or TypeError for what can be no server of a service.
        """
        check_name(name)
        member = member_of(address)
        check_seconds("lease", lease, none=False)
        check_number("weight", weight)
        if lease < 2.0:
            raise ValueError(f"lease must be 2 s or more, not {lease!r}")
        held = write_member(member, weight)
        entry = self._entry(name, f"{member}-{secrets.token_hex(4)}", held, lease)
        return Registration(entry, name, member, lease)

    def _entry(self, name: str, entry: str, held: bytes, lease: float) -> Entry:
        """That of the service *name* which is called *entry*, and holds *held*."""
        raise NotImplementedError


_all: set[Registration] = set()


def close_all(timeout: float = _PATIENCE) -> None:
    """Remove all that this thread's hub has announced, at the same time: for the end of a process.
    Blocks for *timeout* seconds at most."""
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    ending = [each for each in list(_all) if each._hub is hub]
    gevent.joinall([gevent.spawn(each.close, timeout) for each in ending], timeout)


atexit.register(close_all)


@in_child
def _in_child(fork: Fork) -> None:
    hub: Any = gevent.hub._get_hub()  # type: ignore[attr-defined]
    parents = list(_all)
    _all.clear()
    for each in parents:
        each._forked(fork, hub)
