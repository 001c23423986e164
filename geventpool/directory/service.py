"""One name that is watched: what is known of it, whom that concerns, the greenlet that watches."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import gevent
from gevent import Timeout
from gevent.event import Event

from geventpool.backoff import Backoff
from geventpool.directory.roster import Roster
from geventpool.directory.source import Members, NameUnclear, Source
from geventpool.errors import ConnectError
from geventpool.pools.extension import forget_frames, log_safely

__all__ = ["Service", "Subscription", "keep_watching"]

_log = logging.getLogger("geventpool.directory")


class Subscription:
    """While it is held, and not closed, ``wake()`` is called after each change of one name."""

    def __init__(self, service: Service, wake: Callable[[], object]) -> None:
        self.wake = wake
        self._service = service
        service.subscriptions.add(self)

    def close(self) -> None:
        """Call no more.  Does not block."""
        self._service.subscriptions.discard(self)


class Service:
    """One name, and what is known of it; held by the greenlet that watches it, too."""

    def __init__(self, name: str, roster: Roster) -> None:
        self.name = name
        self.roster = roster
        self.news = Event()  # there was an answer, or a failure
        self.error: BaseException | None = None  # None while the directory answers
        self.asked_at = 0.0
        self.subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self.greenlet: gevent.Greenlet[..., None] | None = None
        self.callers = 0  # that wait for its first answer

    @property
    def in_use(self) -> bool:
        """Whether a caller waits for it just now, or has subscribed to it."""
        return bool(self.callers or self.subscriptions)

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        self.callers += 1
        try:
            yield
        finally:
            self.callers -= 1

    def learn(self, members: Members, now: float) -> bool:
        """The directory has answered.  Whether that has emptied the service."""
        was_emptied = self.roster.is_emptied
        self.error = None
        changed = self.roster.update(members, now)
        self.news.set()
        if changed:
            for each in list(self.subscriptions):
                each.wake()
        return self.roster.is_emptied and not was_emptied

    def fail(self, error: BaseException) -> bool:
        """The directory is away, or the name is unclear to it, or it is not watched any more.
        Whether that is news: what was wrong before, if anything, was of the other kind."""
        forget_frames(error)
        before, self.error = self.error, error
        self.news.set()
        was_unclear = isinstance(before, NameUnclear)
        return before is None or was_unclear is not isinstance(error, NameUnclear)

    @property
    def outlook(self) -> str:
        """What that means to callers."""
        return "its last addresses serve on" if self.roster.is_known else "it is not known"

    def end(self) -> None:
        """Watch it no longer."""
        if self.greenlet is not None and self.greenlet is not gevent.getcurrent():
            self.greenlet.kill(block=False)
        self.fail(ConnectError("it is watched no longer"))


def keep_watching(
    source: Source, service: Service, backoff: Backoff, clock: Callable[[], float]
) -> None:
    """The greenlet of a service.  It does not hold the resolver, which ends it."""
    failures = 0
    while True:
        began = clock()
        try:
            with closing(source.watch(service.name)) as answers:
                for answer in answers:
                    _take(answer, source, service, clock())
            error: BaseException = EOFError("the watch has ended")
        except (Exception, Timeout) as caught:
            error = caught
        # One that has lasted has not failed with those before it.
        failures = 1 if clock() - began > backoff.longest else failures + 1
        if service.fail(error):
            text = f"%r: %s does not answer: %r; {service.outlook}"
            _say(logging.WARNING, text, service.name, source, error)
        del error
        gevent.sleep(backoff.delay(failures))


def _take(answer: Members | NameUnclear, source: Source, service: Service, now: float) -> None:
    """The directory has answered."""
    lost = service.error
    if isinstance(answer, NameUnclear):
        if service.fail(answer):
            text = f"%r: %s has answered that %s; {service.outlook}"
            _say(logging.WARNING, text, service.name, source, answer)
        return
    emptied = service.learn(answer, now)
    if isinstance(lost, NameUnclear):
        _say(logging.INFO, "%r: %s knows its servers by now", service.name, source)
    elif lost is not None:
        _say(logging.INFO, "%r: %s is back", service.name, source)
    if emptied:
        last = "its last serve on" if service.roster.keep_emptied else "it is not found"
        text = f"%r: %s has no server of it any more; {last}"
        _say(logging.WARNING, text, service.name, source)


def _say(level: int, text: str, *args: object) -> None:
    log_safely(_log, level, text, *args)
