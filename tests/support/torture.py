"""Forty callers let loose on pools, and struck at random; each round has a seed of its own."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from typing import Any

import gevent

from geventpool import Backoff
from support.strikes import PATIENCE, Connection, Server

__all__ = ["BACKOFF", "Round", "keepalive_with_luck", "open_with_luck", "torture"]

SEED = os.environ.get("GEVENTPOOL_TORTURE_SEED")
CALLERS = 40
BACKOFF = Backoff(first=0.0002, longest=0.001)


def open_with_luck(server: Server, dice: random.Random) -> Connection:
    """A dial that takes a while, and fails one time in ten."""
    for _ in range(dice.randrange(4)):
        gevent.sleep(0)
    if dice.random() < 0.2:
        gevent.sleep(dice.random() * 0.001)
    if dice.random() < 0.1:
        raise OSError("not now")
    return Connection(server)


def keepalive_with_luck(dice: random.Random) -> None:
    """A keepalive that gives way, and fails one time in ten."""
    gevent.sleep(0)
    if dice.random() < 0.1:
        raise OSError("no sign of life")


class Round:
    """Lets forty callers loose on *pools*, which may have *most* connections out together."""

    def __init__(self, pools: list[Any], dice: random.Random, most: int) -> None:
        self.pools = pools
        self.dice = dice
        self.most = most
        self.out = 0
        self.served = 0

    def play(self) -> None:
        victims, lucky = [], []
        for number in range(CALLERS):
            fate = self.dice.choice(["left alone", "timed out", "killed"])
            greenlet: Any = gevent.Greenlet(self._call, number, fate)
            (victims if fate == "killed" else lucky).append(greenlet)
            greenlet.start()
        for victim in victims:
            gevent.sleep(self.dice.choice([0, 0, 0, self.dice.random() * 0.0005]))
            victim.kill(block=False)
        gevent.joinall([*victims, *lucky], timeout=PATIENCE)
        for greenlet in (*victims, *lucky):
            assert greenlet.ready(), f"{greenlet} hangs: {self.pools}"
        for greenlet in lucky:
            greenlet.get()  # no error for a caller left alone

    def _call(self, number: int, fate: str) -> None:
        if self.dice.random() < 0.5:
            gevent.sleep(0)
        pool = self.dice.choice(self.pools)
        timer = gevent.Timeout(self.dice.random() * 0.003 if fate == "timed out" else None)
        timer.start()
        try:
            for _ in range(self.dice.randrange(1, 4)):
                self._use(pool)
        except gevent.Timeout as timeout:
            if timeout is not timer:
                raise
        finally:
            timer.close()

    def _use(self, pool: Any) -> None:
        manner = self.dice.choice(["with", "with", "with", "by hand", "value", "broken"])
        try:
            if manner == "by hand":
                self._by_hand(pool)
                return
            with pool.get() as conn:
                self._hold(conn)
                if manner == "value":
                    raise ValueError
                if manner == "broken":
                    raise ConnectionResetError
        except (ValueError, ConnectionResetError):
            pass

    def _by_hand(self, pool: Any) -> None:
        conn = pool.acquire()
        try:
            self._hold(conn)
        except BaseException:
            pool.discard(conn)
            raise
        last = self.dice.choice([pool.release, pool.release, pool.discard, pool.detach])
        if last == pool.detach:
            conn.close()  # first, as its place is another's as soon as it is detached
        last(conn)

    def _hold(self, conn: Any) -> None:
        assert not conn.held, "two callers have the same connection"
        conn.held = True
        self.out += 1
        self.served += 1
        try:
            assert self.out <= self.most
            for _ in range(self.dice.randrange(3)):
                gevent.sleep(0)
                self._count()
            if self.dice.random() < 0.1:
                gevent.sleep(self.dice.random() * 0.001)
        finally:
            self.out -= 1
            conn.held = False

    def _count(self) -> None:
        buckets = [pool._bucket for pool in self.pools]  # stats() takes longer
        counted = sum(bucket.open + bucket.connecting + bucket.closing for bucket in buckets)
        assert counted <= self.most, f"{counted} counted: {self.pools}"


def seeds(rounds: int) -> Iterable[int]:
    return range(rounds) if SEED is None else [int(SEED)] * 100


def torture(rounds: int, play: Callable[[random.Random], object], lanes: int = 10) -> None:
    """Call *play* with the dice of each seed, *lanes* of them side by side.

    A failure tells all the seeds that failed, up to the fifth.
    """
    __tracebackhide__ = True
    waiting = iter(seeds(rounds))
    failed: dict[int, BaseException] = {}
    played = 0

    def go_on() -> None:
        nonlocal played
        for seed in waiting:
            try:
                play(random.Random(seed))
                played += 1
            except BaseException as error:
                failed[seed] = error
            if len(failed) >= 5:
                break

    greenlets: list[Any] = [gevent.Greenlet(go_on) for _ in range(lanes)]
    for greenlet in greenlets:
        greenlet.start()
    gevent.joinall(greenlets)
    if failed:
        first = next(iter(failed.values()))
        raise AssertionError(f"failing seeds: {sorted(failed)}; the first: {first!r}") from first
    assert played == rounds or SEED is not None
