"""Promises 1, 4 and 10 under fire: greenlets that are timed out and killed at random, for long.

Each round has a seed of its own and a fresh pool, so that a failure names the round that did it:
``GEVENTPOOL_TORTURE_SEED=<seed> pytest tests/promises/test_torture.py`` plays that round alone,
many times.
"""

from __future__ import annotations

import random
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, Limit, SocketFactory
from support.servers import EchoServer
from support.strikes import (
    PATIENCE,
    Connection,
    Server,
    YieldingListener,
    YieldingPool,
    assert_whole,
    assert_whole_together,
    come_to_rest,
)
from support.torture import BACKOFF, Round, keepalive_with_luck, open_with_luck, torture

CONNECTIONS = 4


class TorturedPool(YieldingPool):
    """Opening takes a while, and fails one time in ten."""

    def __init__(self, server: Server, size: int, dice: random.Random, **settings: Any) -> None:
        self.dice = dice
        super().__init__(server, size, backoff=BACKOFF, timeout=PATIENCE, **settings)

    def _new_connection(self) -> Connection:
        return open_with_luck(self.server, self.dice)

    def _keepalive(self, conn: Connection) -> None:
        keepalive_with_luck(self.dice)


class ResettingPool(TorturedPool):
    def _reset_connection(self, conn: Connection) -> None:
        gevent.sleep(0)
        if self.dice.random() < 0.1:
            raise OSError("cannot be reset")


@pytest.mark.slow
def test_four_connections_survive_forty_greenlets_timed_out_and_killed_at_random() -> None:
    def play(dice: random.Random) -> None:
        server = Server()
        pool = TorturedPool(server, CONNECTIONS, dice)
        Round([pool], dice, CONNECTIONS).play()
        assert_whole(pool, server)

    torture(1000, play)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "most"),
    [
        pytest.param({"min_size": 0}, 4, id="elastic"),
        pytest.param({"min_size": 1, "max_overflow": 2}, 6, id="overflow"),
        pytest.param({"max_overflow": 2, "order": "lifo", "strict": True}, 6, id="strict"),
        pytest.param({"cls": ResettingPool}, 4, id="reset"),
        pytest.param({"cls": ResettingPool, "listeners": [YieldingListener()]}, 4, id="listener"),
        pytest.param({"check_after": 0.0}, 4, id="check_after"),
        pytest.param({"keepalive": 0.0005}, 4, id="keepalive"),
        pytest.param({"max_uses": 3, "max_lifetime": 0.004, "jitter": 0.5}, 4, id="wear"),
        pytest.param({"min_size": 0, "idle_timeout": 0.0005}, 4, id="idle_timeout"),
    ],
)
def test_every_kind_of_pool_survives(settings: dict[str, Any], most: int) -> None:
    cls = settings.get("cls", TorturedPool)
    rest = {key: value for key, value in settings.items() if key != "cls"}

    def play(dice: random.Random) -> None:
        server = Server()
        pool = cls(server, CONNECTIONS, dice, **rest)
        Round([pool], dice, most).play()
        assert_whole(pool, server)

    torture(100, play)


@pytest.mark.slow
@pytest.mark.parametrize("least", [0, 1, 2])
def test_two_pools_that_share_a_limit_survive(least: int) -> None:
    def play(dice: random.Random) -> None:
        server = Server()
        limit = Limit(CONNECTIONS)
        pools = [
            TorturedPool(server, CONNECTIONS, dice, min_size=least, limits=[limit])
            for _ in range(2)
        ]
        Round(pools, dice, CONNECTIONS).play()
        if least == 0:
            assert_whole_together(pools, server, CONNECTIONS)
        come_to_rest(*pools)
        assert limit.used == len(server.open) == sum(pool.stats().idle for pool in pools)
        assert server.peak <= CONNECTIONS
        for pool in pools:
            pool.close()
        assert limit.used == len(server.open) == 0

    torture(200, play)


@pytest.mark.slow
def test_sockets_survive() -> None:
    class Socket:
        """A socket that notices two callers at once."""

        def __init__(self, sock: Any) -> None:
            self.sock = sock
            self.held = False
            self.fileno = sock.fileno
            self.close = sock.close

    class SocketRound(Round):
        def _hold(self, conn: Any) -> None:
            super()._hold(conn)
            request = b"%d\n" % self.served
            conn.sock.sendall(request)
            assert conn.sock.recv(100) == request

    with EchoServer() as echo:
        open_socket = SocketFactory(echo.address)

        def play(dice: random.Random) -> None:
            pool = ConnectionPool(
                CONNECTIONS, connect=lambda: Socket(open_socket()), backoff=BACKOFF
            )
            SocketRound([pool], dice, CONNECTIONS).play()
            come_to_rest(pool)
            echo.wait_open(CONNECTIONS, PATIENCE)
            held = [pool.acquire(PATIENCE) for _ in range(CONNECTIONS)]
            assert len(set(map(id, held))) == CONNECTIONS
            for conn in held:
                conn.sock.sendall(b"whole\n")
                assert conn.sock.recv(100) == b"whole\n"
                pool.release(conn)
            pool.close()
            echo.wait_open(0, PATIENCE)

        torture(40, play, lanes=1)

    assert echo.peak <= CONNECTIONS
