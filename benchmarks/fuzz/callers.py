"""What a caller does: each of the ways to have a connection, all other verbs, and misuse."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent

from benchmarks.fuzz.chaos import Trouble
from benchmarks.fuzz.children import well_in_child
from benchmarks.fuzz.subjects import Subject
from geventpool import Deadline, NotInUse, WrongHub

__all__ = ["Caller"]

Timeout: Any = gevent.Timeout  # whose stub knows no False


class Caller:
    """Does some of all that, and is struck meanwhile."""

    def __init__(self, subject: Subject, forks: bool) -> None:
        self.subject = subject
        self.chaos = subject.chaos
        self.dice = subject.chaos.dice
        self._forks = forks

    def run(self) -> None:
        """Do a few things, one after the other."""
        for _ in range(self.dice.randint(2, 8)):
            self.chaos.attempt(self._under_a_limit)
            self.subject.look()
            self.chaos.wander()

    def _under_a_limit(self) -> None:
        """Do one thing, in time or not."""
        seconds = self.dice.random() * 0.01
        draw = self.dice.random()
        if draw < 0.2:
            with Timeout(seconds, False):
                self._one_thing()
        elif draw < 0.4:
            with Deadline(seconds):
                self._one_thing()
        else:
            self._one_thing()

    def _one_thing(self) -> None:
        draw = self.dice.random()
        if draw < 0.7:
            uses = [self._in_with, self._in_with, self._in_finally, self._by_hand, self._caught]
            self.dice.choice([*uses, self._nested, self._forget])()
        elif draw < 0.92:
            self.dice.choice(self.subject.others())()
        elif draw < 0.998 or not self._forks:
            self.dice.choice([self._twice, self._foreign, self._of_another_thread, _look_around])()
        else:
            self._fork()

    def _timeout(self) -> dict[str, Any]:
        return self.dice.choice([{}, {}, {"timeout": 0}, {"timeout": 1}, {"timeout": 0.002}])

    # Ways to have a connection

    def _use(self, conn: Any, shared: bool = False) -> None:
        with self.chaos.holding(conn, shared):
            for _ in range(self.dice.randrange(3)):
                self.chaos.ask(conn)
                self.chaos.wander()
            if self.dice.random() < 0.05:
                self.chaos.cut(conn)
            self.chaos.trouble(0.05)

    def _in_with(self) -> None:
        with self.subject.get(**self._timeout()) as conn:
            self._use(conn)

    def _in_finally(self) -> None:
        conn = self.subject.acquire(**self._timeout())
        try:
            self._use(conn)
        finally:
            self.subject.release(conn)

    def _by_hand(self) -> None:
        conn = self.subject.acquire(**self._timeout())
        try:
            self._use(conn)
        except BaseException:
            self.subject.discard(conn)
            raise
        subject = self.subject
        self.dice.choice([subject.release, subject.release, subject.discard, subject.detach])(conn)

    def _caught(self) -> None:
        """The time limit is in the ``with``, which is left as if nothing had been."""
        with self.subject.get(**self._timeout()) as conn, self.chaos.holding(conn):
            seconds = None if conn in self.chaos.unwatched else self.dice.random() * 0.004
            with Timeout(seconds, False):
                self.chaos.ask(conn)

    def _nested(self) -> None:
        """A second one is wanted, or what ``greenlet_local`` lends again, or a deadlock's end."""
        with self.subject.get(timeout=0.02) as conn:
            with self.chaos.holding(conn), self.subject.get(timeout=0.02) as second:
                self._use(second, shared=True)

    def _forget(self) -> None:
        """A connection is never given back."""
        conn = self.subject.acquire(**self._timeout())
        self._use(conn)
        del conn
        if self.dice.random() < 0.1:
            gc.collect()

    # Misuse, of which nothing may come

    def _twice(self) -> None:
        """A lease is entered twice, a connection given back twice."""
        lease = self.subject.get(**self._timeout())
        with lease as conn:
            self._use(conn)
            try:
                lease.__enter__()
            except RuntimeError:
                pass
            else:
                raise AssertionError("a lease was entered twice")
        conn = self.subject.acquire(**self._timeout())
        self.subject.discard(conn)  # after a release, it might be another caller's by now
        self._expect(NotInUse, lambda: self.subject.release(conn))

    def _foreign(self) -> None:
        """Something is given back that never was of this pool."""
        for verb in (self.subject.release, self.subject.discard):
            self._expect(NotInUse, partial(verb, Trouble()))

    def _of_another_thread(self) -> None:
        """A greenlet of another hub asks."""

        def ask() -> None:
            self._expect(WrongHub, lambda: self.subject.acquire(timeout=0))

        gevent.get_hub().threadpool.apply(ask)

    def _expect(self, error: type[Exception], call: Callable[[], object]) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    # A fork

    def _fork(self) -> None:
        """The child has none of its parent's connections.  (It ends before a copy of another
        caller can go on in it, with what that has.)"""
        if not well_in_child(self._look_in_child):
            self.chaos.fault(AssertionError("a child has something of its parent's"))

    def _look_in_child(self) -> None:
        stats = self.subject.pool.stats()
        figures = stats.in_use, stats.idle, stats.checking, stats.closing, stats.acquired
        assert not any(figures), stats


def _look_around() -> None:
    """What looks at all pools there are."""
    from geventpool import observe, pools

    pools()
    observe.snapshot()
