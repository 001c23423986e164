"""A Watcher of a resolver that pushes looks when that says so, and at no other time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool.addresses import Address, AddressGroup
from geventpool.discovery import Watcher
from geventpool.discovery import watcher as module
from support.waiting import until

A, B, C = Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("10.0.0.3", 80)


class Subscription:
    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Pushing:
    """A resolver that pushes what the test writes."""

    def __init__(self, **groups: Any) -> None:
        self.groups = groups
        self.asked: list[str] = []
        self.subscriptions: weakref.WeakValueDictionary[str, Subscription]
        self.subscriptions = weakref.WeakValueDictionary()

    def resolve(self, name: str, /) -> AddressGroup:
        self.asked.append(name)
        return AddressGroup.of(*self.groups[name])

    def subscribe(self, name: str, wake: Callable[[], object], /) -> Subscription:
        subscription = self.subscriptions[name] = Subscription(wake)
        return subscription

    def push(self, name: str, *targets: Address) -> None:
        self.groups[name] = targets
        self.subscriptions[name].wake()


@pytest.fixture
def heard() -> list[Any]:
    return []


def watcher_of(resolver: Pushing, heard: list[Any], **settings: Any) -> Watcher:
    def on_change(name: str, added: Any, removed: Any, group: AddressGroup) -> None:
        heard.append((name, set(added), set(removed)))

    watcher = Watcher(resolver, on_change, **{"interval": 3600.0, "hold": 0.0, **settings})
    for name in resolver.groups:
        watcher.add(name, AddressGroup.of(*resolver.groups[name]))
    until(lambda: len(resolver.asked) == len(resolver.groups))
    resolver.asked.clear()
    return watcher


def test_what_is_pushed_is_told_at_once(heard: list[Any]) -> None:
    resolver = Pushing(web=[A, B])
    with watcher_of(resolver, heard):
        resolver.push("web", B, C)
        until(lambda: heard, seconds=5)
        assert heard == [("web", {C}, {A})]


def test_only_the_name_is_looked_at_that_is_pushed(heard: list[Any]) -> None:
    resolver = Pushing(web=[A], mail=[A], ftp=[A])
    with watcher_of(resolver, heard):
        resolver.push("mail", B)
        until(lambda: heard)
        assert set(resolver.asked) == {"mail"}


def test_nobody_is_asked_while_nothing_is_pushed(heard: list[Any]) -> None:
    resolver = Pushing(web=[A])
    with watcher_of(resolver, heard, interval=0.001):
        gevent.sleep(0.05)
        assert resolver.asked == []


def test_a_change_that_is_yet_to_hold_is_looked_at_again(heard: list[Any]) -> None:
    resolver = Pushing(web=[A])
    with watcher_of(resolver, heard, interval=0.01, hold=0.05):
        resolver.push("web", B)
        gevent.idle()
        assert not heard
        until(lambda: heard)
        assert heard == [("web", {B}, {A})]
        resolver.asked.clear()
        gevent.sleep(0.05)
        assert len(resolver.asked) <= 1  # that it is settled


def test_what_takes_long_to_say_is_told_when_it_is_there(
    heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Pushing):
        said = Event()

        def resolve(self, name: str, /) -> AddressGroup:
            self.said.wait()
            return super().resolve(name)

    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    resolver = Slow(web=[A])
    resolver.said.set()
    with watcher_of(resolver, heard, interval=0.01):
        resolver.said.clear()
        resolver.push("web", B)
        gevent.sleep(0.05)
        assert not heard
        resolver.said.set()
        until(lambda: heard)
        assert heard == [("web", {B}, {A})]


def test_many_pushes_are_one_look(heard: list[Any]) -> None:
    resolver = Pushing(web=[A])
    with watcher_of(resolver, heard):
        for _ in range(100):
            resolver.push("web", B)
            resolver.push("web", C)
        until(lambda: heard)
        assert heard == [("web", {C}, {A})]
        assert len(resolver.asked) == 1


def test_a_look_looks_at_every_name_pushed_or_not(heard: list[Any]) -> None:
    resolver = Pushing(web=[A], mail=[A])
    with watcher_of(resolver, heard) as watcher:
        watcher.look()
        assert sorted(resolver.asked) == ["mail", "web"]


def test_a_name_that_is_discarded_is_subscribed_to_no_longer(heard: list[Any]) -> None:
    resolver = Pushing(web=[A], mail=[A])
    with watcher_of(resolver, heard) as watcher:
        web, mail = resolver.subscriptions["web"], resolver.subscriptions["mail"]
        watcher.discard("web")
        assert (web.closed, mail.closed) == (True, False)
        watcher.close()
        assert mail.closed


def test_a_watcher_that_is_dropped_leaves_no_subscription(heard: list[Any]) -> None:
    resolver = Pushing(web=[A])
    watcher = watcher_of(resolver, heard)
    gevent.idle()
    del watcher
    gc.collect()
    until(lambda: not resolver.subscriptions)


def test_a_resolver_that_refuses_to_be_subscribed_to_says_so(heard: list[Any]) -> None:
    class Refusing(Pushing):
        def subscribe(self, name: str, wake: Callable[[], object], /) -> Subscription:
            raise OSError("closed")

    watcher = Watcher(Refusing(web=[A]), lambda *change: None)
    with pytest.raises(OSError, match="closed"):
        watcher.add("web", AddressGroup.of(A))
    watcher.close()
