"""What every adapter of geventpool.contrib is held to, by one face for all: Adapter, and a storm.

A new adapter is described by a subclass of Adapter in ``tests/support/adapters/``, named in the
list there; ``tests/contrib/test_contract.py`` does the rest.  What a client or its server has not
got is left out by leaving the method as it is: there is no test of it then.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import gevent
from gevent.pool import Group

from geventpool import PoolTimeout
from support.own_servers import OwnServer
from support.servers import require_server

__all__ = ["Adapter", "Storm"]

Address = tuple[str, int]


class Adapter:
    """One adapter, its client, and its server.

    *conn* is always what a lease of the pool gives, *address* that of a server or of a proxy before
    it.  What administers a server uses a connection of its own, not one of a pool.
    """

    #: In the names of the tests.
    name: ClassVar[str]
    #: Whether the client stops the hub unless gevent has patched it: then the pool refuses.
    needs_patching: ClassVar[bool] = True
    #: The name of the server in support/servers.py, and what starts one of a test's own.
    server: ClassVar[str]
    own_server: ClassVar[type[OwnServer]]
    options: ClassVar[tuple[str, ...]] = ()  # of that one; so that it takes at most *most* clients
    most: ClassVar[int] = 0
    #: What a caller may get whose connection breaks in its hands.
    lost: ClassVar[tuple[type[Exception], ...]]
    #: What a caller may get for which there is no connection, with a cause.
    unavailable: ClassVar[tuple[type[Exception], ...]] = (PoolTimeout,)
    #: What ``write`` raises at a server that is read-only.
    refusal: ClassVar[type[Exception]] = Exception
    #: What a user may leave behind, for ``leave`` and ``remains``.
    states: ClassVar[tuple[str, ...]] = ()
    #: Settings of a pool whose connections forget their session on return.
    forgetful: ClassVar[Mapping[str, Any] | None] = None
    #: What the log of its own server says (a regular expression) of a client that broke the rules.
    protocol_errors: ClassVar[str] = r"protocol|invalid message"

    def __repr__(self) -> str:
        return self.name

    def has(self, *methods: str) -> bool:
        """Whether it has these."""
        return all(getattr(type(self), each) is not getattr(Adapter, each) for each in methods)

    def shared_address(self) -> Address:
        """That of the server that all tests share."""
        return require_server(self.server)

    # The pool

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        """A pool of that many connections; *plain*: of a user without rights, at an own server."""
        raise NotImplementedError

    def lease(self, pool: Any) -> AbstractContextManager[Any]:
        """A connection for the length of a ``with``."""
        return pool.get()  # type: ignore[no-any-return]

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        """Send *token* to the server, which sends it back after so many *seconds*."""
        raise NotImplementedError

    def session(self, conn: Any) -> Hashable:
        """What the server knows the connection by."""
        raise NotImplementedError

    # The server

    def prepare(self, server: OwnServer) -> None:
        """Make what the tests need of an own server, such as a user without rights."""

    def sessions(self, address: Address) -> set[Hashable]:
        """Of all clients but the one that asks."""
        raise NotImplementedError

    def end_session(self, address: Address, session: Hashable) -> None:
        """As an administrator does."""
        raise NotImplementedError

    def busy(self, address: Address) -> set[Hashable]:
        """The sessions in which a statement runs; not there: one that was given up may go on."""
        raise NotImplementedError

    def set_read_only(self, address: Address, on: bool) -> None:
        """Make an own server refuse writes, as a primary that was demoted does."""
        raise NotImplementedError

    def write(self, conn: Any) -> None:
        """Write something at an own server."""
        raise NotImplementedError

    # What users leave behind

    def leave(self, state: str, conn: Any) -> object:
        """Leave it in that state; what is returned is kept until the next user has looked."""
        raise NotImplementedError

    def remains(self, state: str, conn: Any) -> object:
        """What the next user sees of it: nothing, or something false."""
        raise NotImplementedError

    def set_variable(self, conn: Any) -> None:
        """Set something in the session."""
        raise NotImplementedError

    def variable(self, conn: Any) -> object:
        """What is set; something false in a new session."""
        raise NotImplementedError


class Trouble(Exception):
    """A user's own, which says nothing of a connection."""


class Storm:
    """Greenlets that ask, give up, raise and are killed; each compares what it gets with its own.

    A share of 15 % is under a Timeout of 0.5 to 60 ms, which half of them raise and the others end
    silently by, within the lease; of these every second one is slow, of the others 15 %.  5 % end
    in an exception of their own.  Meanwhile *kills* greenlets a second are killed wherever they
    are, and replaced.
    """

    SLOW = 0.03  # seconds that a slow answer takes

    def __init__(
        self,
        adapter: Adapter,
        pool: Any,
        *,
        greenlets: int = 200,
        kills: float = 60.0,
        timeouts: float = 0.15,
        seed: int = 1,
    ) -> None:
        self.adapter = adapter
        self.pool = pool
        self.greenlets = greenlets
        self.kills = kills
        self.timeouts = timeouts
        self.right = 0
        self.wrong: list[tuple[str, str]] = []
        self.errors: Counter[str] = Counter()
        self.given_up = self.silent = self.killed = self.troubles = 0
        self._wanted = 0
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._workers = Group()

    def run(self, answers: int, seconds: float = 100.0) -> None:
        """Go on until so many answers were right, or anything went wrong; at most *seconds*."""
        self._wanted = answers
        with gevent.Timeout(seconds):
            for _ in range(self.greenlets):
                self._workers.spawn(self._work)
            killer = gevent.spawn(self._kill)
            try:
                self._workers.join()
            finally:
                killer.kill()
                self._workers.kill()

    def __repr__(self) -> str:
        return (
            f"<Storm {self.right} right, {len(self.wrong)} wrong, {self.given_up} given up,"
            f" {self.silent} silently, {self.killed} killed, {self.troubles} raised,"
            f" errors: {dict(self.errors)}>"
        )

    def _work(self) -> None:
        while self.right < self._wanted and not self.wrong and not self.errors:
            try:
                self._request()
            except Exception as error:
                self.errors[f"{type(error).__name__}: {error}"] += 1

    def _request(self) -> None:
        token = f"{next(self._numbers)} {self._random.random()}"
        draw = self._random.random()
        # Those with a Timeout are slow more often, so that it strikes.
        slow = self._random.random() < (0.5 if draw < self.timeouts else 0.15)
        seconds = self.SLOW if slow else 0.0
        if draw < self.timeouts / 2:
            try:
                with gevent.Timeout(self._patience()):
                    self._ask(token, seconds)
            except gevent.Timeout:
                self.given_up += 1
        elif draw < self.timeouts:
            answer = None
            with self.adapter.lease(self.pool) as conn, gevent.Timeout(self._patience(), False):
                answer = self.adapter.ask(conn, token, seconds)
            if answer is None:
                self.silent += 1
            else:
                self._judge(token, answer)
        elif draw < self.timeouts + 0.05:
            try:
                with self.adapter.lease(self.pool) as conn:
                    self._judge(token, self.adapter.ask(conn, token, seconds))
                    raise Trouble
            except Trouble:
                self.troubles += 1
        else:
            self._ask(token, seconds)

    def _patience(self) -> float:
        return self._random.uniform(0.0005, 0.06)

    def _ask(self, token: str, seconds: float) -> None:
        with self.adapter.lease(self.pool) as conn:
            answer = self.adapter.ask(conn, token, seconds)
        self._judge(token, answer)

    def _judge(self, token: str, answer: str) -> None:
        if answer == token:
            self.right += 1
        else:
            self.wrong.append((token, answer))

    def _kill(self) -> None:
        while self.kills:
            gevent.sleep(1 / self.kills)
            workers = [each for each in self._workers if each.started]
            if workers:
                self._random.choice(workers).kill(block=False)
                self.killed += 1
                self._workers.spawn(self._work)
