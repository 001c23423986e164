"""The uses of sockets that are under way, and what is said of them."""

from __future__ import annotations

from typing import Any, cast

from gevent import getcurrent

from geventpool.errors import NotInUse
from geventpool.manager.socket_pool import SocketPool
from geventpool.manager.use import Use, blames_server
from geventpool.pools.extension import Hold
from geventpool.sockets.monitored import MonitoredSocket

__all__ = ["Uses"]


class Uses:
    """Finds the use of a socket of *pool*; a failure may close the connections to its server."""

    def __init__(self, pool: SocketPool) -> None:
        self._pool = pool

    def held(self, sock: Any) -> MonitoredSocket | None:
        """The socket in *sock*, which must be in use."""
        self._pool._assert_usable_here()
        self._pool._hold_of(sock)
        return self._pool.socket_of(sock)

    def failed(self, use: Use, error: BaseException | None) -> None:
        """Say so of *use*: if its server is down now, its connections are closed."""
        use.failed(error)
        server = use.attempt.server
        if use.counts and server.down_until is not None:
            self._pool.drain_address(server.address)

    def of(self, monitored: MonitoredSocket) -> Use:
        """The use that is under way; NotInUse if *monitored* is another greenlet's."""
        if monitored.use is None:  # what its listeners are told of, a greenlet has not got yet
            monitored.use = self._pool.coming_uses.get(getcurrent())
        if monitored.use is None:
            message = f"pool {self._pool.name!r}: {monitored!r} is another greenlet's"
            raise NotInUse(message, pool=self._pool.name, connection=monitored)
        return cast("Use", monitored.use)

    def returned(self, monitored: MonitoredSocket) -> None:
        """It goes back in good order: its server did well, unless that was reported otherwise."""
        use = self.end(monitored)
        if use.outcome is None:
            use.succeeded()

    def end_by(self, hold: Hold, sock: Any, exc: BaseException) -> None:
        """End the use of *sock*, whose ``with`` *exc* has left: the server has failed, if that says
        so and it was not reported."""
        monitored = self._pool.socket_of(sock)
        if monitored is not None:
            use = self.end(monitored)
            if blames_server(exc) and use.outcome is not False:
                self.failed(use, exc)
            else:
                use.cancelled()
        self._pool._end_use(hold, sock, exc)

    def end(self, monitored: MonitoredSocket) -> Use:
        """The use of a socket that goes back: what is said of it later is of the next one."""
        use = self.of(monitored)
        monitored.use = None
        return use
