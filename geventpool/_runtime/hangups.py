"""One edge-triggered epoll per hub that knows which peers have hung up.

Every pooled connection with a file descriptor is registered once, for EPOLLRDHUP only, in a
secondary epoll that the hub itself watches.  A FIN, a reset or a death by TCP keepalive is
reported in the very loop pass in which the hub learns of it, before greenlets woken in that pass
run (the watcher has the highest priority); a checkout costs no system call.  Data does not wake
it, and unread TLS session tickets are not mistaken for a death.

Must never be done here: call close or anything that switches.  On a platform without epoll nothing
is watched and ``watch`` returns False.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

from gevent import monkey
from gevent.hub import Hub

__all__ = ["HangupWatcher", "peer_of"]

_MOST_EVENTS = 1024
_READ = 1  # for a watcher


class HangupWatcher:
    """Tells *hung_up* the token of every watched descriptor whose peer has gone."""

    def __init__(self, hub: Hub, hung_up: Callable[[Any], None]) -> None:
        self._hub = hub
        self._hung_up = hung_up
        self._tokens: dict[int, Any] = {}
        self._epoll: Any = None
        self._watcher: Any = None

    def watch(self, fd: int, token: Any) -> bool:
        """Watch *fd* from now on; False if that cannot be done for this kind of file."""
        if self._epoll is None and not self._start():
            return False
        mask = select.EPOLLRDHUP | select.EPOLLET
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            # The number was used before by a file that is still open elsewhere.
            self._epoll.modify(fd, mask)
        except OSError:  # a regular file (EPERM), or closed already (EBADF)
            return False
        self._tokens[fd] = token
        return True

    @property
    def unsupported(self) -> bool:
        """After a ``watch`` in vain: whether that was for want of epoll, and not the file."""
        return self._epoll is None

    def unwatch(self, fd: int, token: Any) -> None:
        """Forget *fd*.  Call it before the descriptor is closed: closed first, a duplicate of it
        would keep the registration alive, and it would speak for the next file of that number."""
        if self._tokens.get(fd) is not token:
            return  # the number is another connection's by now
        del self._tokens[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed already: the kernel has forgotten it

    def poll(self) -> None:
        """Tell of those that have hung up since the last poll.  The hub polls when there is news;
        what cannot wait for the hub may poll, too."""
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0, _MOST_EVENTS):
            token = self._tokens.get(fd)
            # Asked again, as the news may be of an earlier file of that number, which its user
            # closed and another, perhaps a forked child, still has open.
            if token is not None and _has_hung_up(fd):
                self._hung_up(token)

    def abandon(self) -> None:
        """After a fork: let go of the epoll, which is the parent's.  Closing our copy of its
        descriptor is safe; unregistering anything from it would be felt by the parent."""
        self._tokens.clear()
        if self._epoll is not None:
            self._watcher.close()
            self._epoll.close()
            self._epoll = self._watcher = None

    def _start(self) -> bool:
        try:
            # patch_all() takes it out of select; of descriptors there may be none left.
            self._epoll = monkey.get_original("select", "epoll")()
        except (AttributeError, OSError):
            return False
        self._watcher = _unreferenced(self._hub.loop, self._epoll.fileno())
        self._watcher.start(self.poll)
        return True


def peer_of(sock: Any) -> str | None:
    """Where *sock* leads, as text; None if it does not say any more."""
    try:
        peer = sock.getpeername()
    except (OSError, ValueError):
        return None
    return ":".join(map(str, peer[:2])) if isinstance(peer, tuple) else str(peer)


def _unreferenced(loop: Any, fd: int) -> Any:
    """A watcher of *fd*, where nothing else watches it, that keeps no program alive."""
    if type(loop).__module__ != "gevent.libuv.loop":
        return loop.io(fd, _READ, ref=False, priority=loop.MAXPRI)
    # There loop.io() makes one handle for all that ask for a descriptor of that number, and does
    # not heed ref.
    from gevent.libuv.watcher import io

    return io(loop, fd, _READ, ref=False)


def _has_hung_up(fd: int) -> bool:
    poll = monkey.get_original("select", "poll")()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))
