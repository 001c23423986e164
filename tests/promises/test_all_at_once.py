"""All that sends callers away, and all that brings connections back, on at once and under fire.

Two pools over real sockets share a limit.  Their callers are killed, timed out aloud and silently,
and under Deadlines; the server hangs up, goes away and comes back, is full, is the wrong one, says
no for good, and answers late; meanwhile the pools are resized, drained and disposed of.  Then all
that calms down, and everything has to be there.

A failure tells its seed: ``GEVENTPOOL_TORTURE_SEED=<seed>`` plays that round alone, many times.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
import pytest

from geventpool import (
    Backoff,
    CoDel,
    ConnectionPool,
    Deadline,
    Limit,
    PoolUnavailable,
    SocketFactory,
    Verdict,
)
from geventpool._scheduler import ceiling
from support.servers import IdServer, ask
from support.strikes import PATIENCE, come_to_rest
from support.torture import torture

SIZE, PLACES = 4, 6
CALLERS = 30
SECONDS = 1.0  # of fire
numbers = itertools.count()


class Full(Exception):
    pass


class Refused(Exception):
    pass


class WrongServer(Exception):
    pass


VERDICTS = {
    Full: Verdict.SERVER_FULL,
    Refused: Verdict.FATAL,
    WrongServer: Verdict.WRONG_SERVER,
}


class Pool(ConnectionPool[Any]):
    """With every feature that there is; *unlucky* is how often a dial fails."""

    def __init__(self, server: IdServer, dice: random.Random, limit: Limit) -> None:
        self.open_socket = SocketFactory(server.address)
        self.dice = dice
        self.unlucky = 0.1
        self.salvages = 0
        super().__init__(
            SIZE,
            min_size=dice.randrange(2),
            max_overflow=dice.randrange(2),
            limits=[limit],
            backoff=Backoff(first=0.001, longest=0.01),
            overload=CoDel(target=0.005, interval=0.05),
            down_after=0.03,
            check_after=dice.choice([None, 0.01]),
            keepalive=dice.choice([None, 0.02]),
            max_uses=dice.choice([None, 20]),
            fail_fast=dice.random() < 0.3,
            salvage_timeout=0.05,
        )

    def _new_connection(self) -> Any:
        if self.dice.random() < self.unlucky:
            raise self.dice.choice([OSError, OSError, Full, Refused])("no")
        return self.open_socket()

    def _classify_error(self, error: Exception) -> Verdict:
        return VERDICTS.get(type(error), super()._classify_error(error))

    def _keepalive(self, sock: Any) -> None:
        assert ask(sock, "still there?") == "still there?"

    def _salvage_connection(self, sock: Any, error: BaseException | None) -> None:
        self.salvages += 1
        marker = f"salvage {next(numbers)}\n".encode()
        sock.sendall(marker)
        answer = b""
        while not answer.endswith(marker):
            data = sock.recv(65536)
            if not data:
                raise ConnectionResetError("the server hung up")
            answer += data


class Fire:
    """Callers of *pools*, and all that happens to them."""

    def __init__(self, server: IdServer, pools: list[Pool], dice: random.Random) -> None:
        self.server, self.pools, self.dice = server, pools, dice
        self.count: Counter[str] = Counter()
        self.ends = monotonic() + SECONDS

    def play(self) -> None:
        callers = [gevent.spawn(self._call) for _ in range(CALLERS)]
        while monotonic() < self.ends:
            gevent.sleep(self.dice.random() * 0.01)
            place = self.dice.randrange(CALLERS)
            callers[place].kill(block=False)
            callers.append(callers[place])
            callers[place] = gevent.spawn(self._call)
            self._strike()
        gevent.joinall(callers, timeout=PATIENCE)
        for caller in callers:
            assert caller.ready(), f"a caller hangs: {self.pools}"
            caller.get()

    def _call(self) -> None:
        while monotonic() < self.ends:
            with suppress(PoolUnavailable, OSError, EOFError, gevent.Timeout, *VERDICTS):
                self._use(self.dice.choice(self.pools))
            gevent.sleep(self.dice.choice([0, 0.001]))

    def _use(self, pool: Pool) -> None:
        seconds = self.dice.random() * 0.03
        manner = self.dice.choice(["patient", "silent", "aloud", "deadline", "all in one"])
        if manner == "patient":
            with pool.get(timeout=seconds) as sock:
                self._ask(sock)
        elif manner == "silent":
            with pool.get() as sock:
                with gevent.Timeout(seconds, False):
                    self._ask(sock)
                self.count["cut short"] += 1
        elif manner == "aloud":
            with pool.get() as sock, gevent.Timeout(seconds):
                self._ask(sock)
        else:
            exception = False if manner == "all in one" else None
            with Deadline(seconds, exception), pool.get(timeout=0.02) as sock:
                self._ask(sock)

    def _ask(self, sock: Any) -> None:
        if self.dice.random() < 0.01:
            raise WrongServer
        question = f"number {next(numbers)}"
        answer = ask(sock, question)
        self.count["right" if answer == question else "wrong"] += 1

    def _strike(self) -> None:
        pool, dice = self.dice.choice(self.pools), self.dice
        what = dice.randrange(40)
        if what == 0:
            self.server.stop()
            gevent.sleep(dice.random() * 0.1)
            self.server.start()
        elif what == 1:
            dice.choice([self.server.fin_all, self.server.rst_all])()
        elif what == 2:
            pool.resize(dice.randint(1, SIZE), min_size=dice.randrange(2))
        elif what == 3:
            pool.drain(over=dice.choice([0, 0.05]))
        elif what == 4:
            pool.dispose()
        elif what == 5:
            pool._bucket.shared[0].maximum = dice.randint(2, PLACES)


def look_whole(server: IdServer, pools: list[Pool], limit: Limit) -> None:
    """All places are there, each with a connection that answers, and the books are right."""
    for pool in pools:
        pool.resize(SIZE, min_size=0)
    limit.maximum = PLACES
    come_to_rest(*pools)
    for pool in pools:
        held = []
        while len(held) < SIZE:
            with suppress(PoolUnavailable, *VERDICTS):  # until it has seen that the server is back
                held.append(pool.acquire(timeout=PATIENCE))
        assert len({sock.fileno() for sock in held}) == SIZE
        assert limit.used <= PLACES
        for sock in held:
            assert ask(sock, f"last {id(sock)}") == f"last {id(sock)}"
            pool.release(sock)
        come_to_rest(*pools)
    assert limit.used == sum(len(pool._bucket.slots) for pool in pools)
    assert not any(limit._queue or limit._claims or limit._ripe or limit._demand for _ in pools)
    for pool in pools:
        pool.close(timeout=PATIENCE)
        assert not pool._bucket.slots
        assert not pool._bucket.waiters
    assert limit.used == 0
    server.wait_open(0, PATIENCE)


@pytest.mark.slow
def test_everything_at_once_costs_no_place_and_no_caller_gets_another_s_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceiling, "PEACE", 0.05)  # a server is full for a moment, not for seconds
    total: Counter[str] = Counter()

    def play(dice: random.Random) -> None:
        with IdServer(late_share=0.1, late_by=0.01, seed=dice.randrange(1000)) as server:
            limit = Limit(PLACES)
            pools = [Pool(server, dice, limit) for _ in range(2)]
            fire = Fire(server, pools, dice)
            fire.play()
            assert fire.count["wrong"] == 0
            total.update(fire.count)
            server.late_share = 0.0
            for pool in pools:
                pool.unlucky = 0.0
                stats = pool.stats()
                total.update(shed=stats.shed, down=stats.refused_down)
                total.update(salvages=pool.salvages, dials=pool._bucket.dial_failed)
            look_whole(server, pools, limit)

    torture(3, play, lanes=1)

    assert "books" not in caplog.text
    print(dict(total))
    for what in ("right", "shed", "down", "salvages", "dials"):
        assert total[what] > 0, f"nothing was tried: {total}"
