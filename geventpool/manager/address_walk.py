"""One call for a connection: from address to address, until one can be connected to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent

from geventpool._util.clock import monotonic
from geventpool._util.errors import about
from geventpool._util.time_shares import part_of
from geventpool.addresses import AddressGroup, AnyAddress, is_host_name
from geventpool.errors import (
    ConnectError,
    MultiConnectFailure,
    OutOfSockets,
    PoolOverloaded,
    PoolTimeout,
)
from geventpool.manager.balancing import ServerModelDirectory
from geventpool.manager.health import Attempt
from geventpool.manager.names import Target
from geventpool.manager.socket_pool import DialError, Endpoint, SocketPool
from geventpool.manager.use import Use
from geventpool.sockets.happy_eyeballs import STAGGER

__all__ = ["AddressWalk"]

_IMPATIENT = 0.1  # a caller that waited less has learnt nothing about the server
_FRESH = 0.05  # seconds for which a ranking of servers is good
_NO_ROOM = (OutOfSockets, PoolOverloaded)  # which is no failure of a server


class _Turn(NamedTuple):
    """An address has its turn, of so many *seconds*, until *ends_at*.  One that *decides_nothing*
    if it passes in vain leaves that to its dial."""

    attempt: Attempt
    seconds: float
    ends_at: float
    decides_nothing: bool


class AddressWalk:
    """One call of get_connection: from address to address until one can be connected to."""

    def __init__(
        self,
        servers: ServerModelDirectory,
        pool: SocketPool,
        found: Target,
        endpoint_at: Callable[[AnyAddress], Endpoint],
        ends_at: float,
        read_timeout: float | None,
        refresh: Callable[[], AddressGroup | None],
    ) -> None:
        self.servers, self.pool = servers, pool
        self.name, self.group, _, self.info = found
        self.endpoint_at = endpoint_at
        self.ends_at, self.read_timeout = ends_at, read_timeout
        self.refresh = refresh
        self.racing: deque[_Turn] = deque()  # those that may yet win
        self.failed = False  # a server could not be connected to
        self.tried: set[AnyAddress] = set()
        self.errors: list[tuple[AnyAddress, BaseException]] = []

    def run(self) -> Any:
        """A connection; raises what all the addresses came to."""
        for again in range(1 + self.info.max_connect_retry):
            if again and not self._pause(again):
                break
            self.tried.clear()
            conn = self._try_all()
            if conn is None and self._have_moved():
                conn = self._try_all()
            if conn is not None:
                return conn
        error = self._failure()
        self.pool._count_refusal(error)
        raise error

    def _try_all(self) -> Any:
        try:
            for turn in self._turns():
                conn = self._try_address(turn)
                if conn is not None:
                    return conn
            while self.racing:
                conn = self._try_address(self.racing.popleft())
                if conn is not None:
                    return conn
            return None
        finally:
            while self.racing:  # lost, which is no failure; the dials go on, and tell if they fail
                self._leave(self.racing.popleft().attempt)

    def _leave(self, attempt: Attempt) -> None:
        """Wait no longer for a dial whose end is to decide."""
        counts = self.info.transient_markdown_enabled
        self.pool.leave_dial(self.endpoint_at(attempt.address), attempt if counts else None)

    def _have_moved(self) -> bool:
        """Whether the name leads to other addresses by now, none of those known being of use."""
        if not self.failed:
            return False
        group = self.refresh()
        if group is None or group.addresses <= self.group.addresses:
            return False
        self.group = group
        return True

    def _turns(self) -> Iterator[_Turn]:
        """One for each address, the best of those left first.

        Which that is changes as others make attempts; but to rank them anew at each step would be a
        million looks at a thousand addresses of which none answers.
        """
        while True:
            now = monotonic()
            stale_at = now + _FRESH
            if now < self.ends_at:
                stale_at = min(stale_at, self.ends_at)
            else:
                self._pass_over_what_is_not_open(now)
            is_first = True
            for server, usable in self.servers.ranked(self.group, now, self.tried):
                if usable and not is_first and not server.admits(monotonic()):
                    break  # perhaps it has gone down since
                attempt = server.admit(monotonic(), panic=True)
                if attempt is not None:
                    self.tried.add(server.address)
                    yield self._turn(attempt, brief=usable and (attempt.panic or attempt.probe))
                    is_first = False
                    if monotonic() >= stale_at:
                        break
            else:
                return

    def _pass_over_what_is_not_open(self, now: float) -> None:
        """Nothing is left of the time, and only what lies idle can be had."""
        if len(self.group.addresses) == 1:
            return  # it has an error of its own
        for each in sorted(self.group.addresses.difference(self.tried), key=str):
            if not self.pool.has_idle(self.endpoint_at(each)):
                self.tried.add(each)
                server = self.servers[each]
                error: OSError = PoolTimeout(f"{each}: no time was left", pool=self.pool.name)
                if server.down_until is not None:
                    error = server.marked_down_error(now)
                self.errors.append((each, error))

    def _try_address(self, turn: _Turn) -> Any:
        """A connection to one address; None if there is none, and ``errors`` says why, or if it is
        still racing."""
        attempt = turn.attempt
        endpoint = self.endpoint_at(attempt.address)
        patience = max_wait = round(max(turn.ends_at - monotonic(), 0.0), 3)
        if self.group.raced and (self.racing or self._others):
            max_wait = min(STAGGER, patience)
        failed: BaseException
        blamed = self.info.transient_markdown_enabled
        use = Use(attempt, blamed, self.pool.failed_dials(attempt.server))
        try:
            self.pool.factory(endpoint)  # what can be told now need not cost a dial
            slot, conn = self._acquire(endpoint, max_wait, use)
        except _NO_ROOM as error:
            failed, blamed = error, False
        except PoolTimeout as error:
            if max_wait < patience:
                self.racing.append(turn)
                return None
            failed = error
            if progress := self.pool.factory(endpoint).progress():
                error.args = (f"{error}; {progress}",)
            now = monotonic()
            # Refused before its time: a Deadline leaves it too little for a use.
            refused = now < turn.ends_at - 0.001 and now - attempt.began < _IMPATIENT
            if refused or turn.seconds < min(_IMPATIENT, self._most):
                blamed = False
            elif not turn.decides_nothing:
                self.pool.leave_dial(endpoint, None)
        except DialError as error:
            failed = error.cause_for_caller()
            blamed = blamed and error.claim_blame()
        except ConnectError as error:  # what it connected to has hung up at once, several times
            failed = error
        except BaseException:  # and no other OSError is the server's: see DialError
            attempt.cancelled(monotonic())
            raise
        else:
            self._hand_out(conn, use, fresh=slot.uses == 1)
            return conn
        self._note_failure(turn, failed, blamed)
        return None

    def _note_failure(self, turn: _Turn, failed: BaseException, blamed: bool) -> None:
        self.failed |= not isinstance(failed, _NO_ROOM)
        self.errors.append((turn.attempt.address, failed.with_traceback(None)))
        if turn.decides_nothing and isinstance(failed, PoolTimeout):
            self._leave(turn.attempt)
        elif blamed:
            turn.attempt.failed(monotonic(), failed)
        else:
            turn.attempt.cancelled(monotonic())

    def _acquire(self, endpoint: Endpoint, max_wait: float, use: Use) -> tuple[Any, Any]:
        """As the pool's; its listeners may say meanwhile how the *use* to come went."""
        if not self.pool.listening:
            return self.pool._acquire(endpoint, max_wait)
        me, coming_uses = gevent.getcurrent(), self.pool.coming_uses
        coming_uses[me] = use
        try:
            return self.pool._acquire(endpoint, max_wait)
        finally:
            del coming_uses[me]

    def _hand_out(self, conn: Any, use: Use, fresh: bool) -> None:
        use.attempt.connected(monotonic(), reused=not fresh)
        monitored = self.pool.socket_of(conn)
        if monitored is not None:
            monitored.new_sock = fresh
            monitored.use = use
            monitored.settimeout(self.read_timeout)
            if monitored.detached and callable(set_timeout := getattr(conn, "settimeout", None)):
                set_timeout(self.read_timeout)

    @property
    def _most(self) -> float:
        """Seconds for one address at most."""
        return self.info.connect_timeout_ms / 1000.0

    @property
    def _others(self) -> int:
        """How many addresses were not tried yet."""
        return max(len(self.group.addresses) - len(self.tried), 0)

    def _turn(self, attempt: Attempt, brief: bool) -> _Turn:
        """A part of what is left of the time, so that there is some for the others; *brief*: not
        much of it, for one that is known to be down and used all the same.

        Once nothing is left, only what lies idle can be had.
        """
        now = monotonic()
        left = max(self.ends_at - now, 0.0)
        seconds = min(left if self.group.raced else part_of(left, 1 + self._others), self._most)
        brief = brief and self._others > 0 and STAGGER < seconds
        if brief:
            seconds = STAGGER
        # Of a host that may yet have to be looked up, nothing was learnt either.
        decides_nothing = brief or is_host_name(attempt.address)
        return _Turn(attempt, seconds, now + seconds, decides_nothing)

    def _pause(self, again: int) -> bool:
        """Wait a moment before all are tried again; False if there is no time for that."""
        seconds = min(0.05 * 2 ** min(again - 1, 9), 1.0)
        if monotonic() + seconds >= self.ends_at:
            return False
        gevent.sleep(seconds)
        return True

    def _failure(self) -> BaseException:
        """What all the addresses came to."""
        now = monotonic()
        for each in sorted(self.group.addresses.difference(self.tried), key=str):
            self.errors.append((each, self.servers[each].marked_down_error(now)))
        for each in self.group.addresses:
            self.servers[each].refused += 1
        errors, self.errors = self.errors, []
        last = errors[-1][1]
        if len(self.group.addresses) == 1 or all(isinstance(e, _NO_ROOM) for _, e in errors):
            return last
        shown = "; ".join(about(each, error) for each, error in errors[:5])
        more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
        message = f"{self.name}: no connection to any of {len(self.group.addresses)} addresses"
        return MultiConnectFailure(f"{message}: {shown}{more}", errors=errors)
