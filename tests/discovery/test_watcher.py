"""The Watcher, who tells of changes."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from geventpool.addresses import Address, AddressGroup
from geventpool.discovery import Watcher
from geventpool.discovery import watcher as module
from geventpool.errors import NameNotFound
from geventpool.testing import FakeClock

A, B, C = Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("10.0.0.3", 80)


class Names:
    """A resolver whose answers the test decides."""

    def __init__(self, **groups: Any) -> None:
        self.groups = groups
        self.asked: list[str] = []

    def resolve(self, name: str, /) -> AddressGroup:
        self.asked.append(name)
        found = self.groups.get(name, NameNotFound(f"no {name}", name=name))
        if isinstance(found, BaseException):
            raise found
        return found if isinstance(found, AddressGroup) else AddressGroup.of(*found)


class Ear:
    """Who is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, set[Any], set[Any], AddressGroup]] = []
        self.greenlets: set[Any] = set()
        self.trouble: BaseException | None = None

    def on_change(self, name: str, added: Any, removed: Any, group: AddressGroup) -> None:
        assert isinstance(added, frozenset)
        assert isinstance(removed, frozenset)
        self.heard.append((name, set(added), set(removed), group))
        self.greenlets.add(gevent.getcurrent())
        if self.trouble is not None:
            raise self.trouble


class Stage:
    """A watcher of "web" that looks when the test says so, an hour later by itself."""

    def __init__(self, names: Names, clock: FakeClock, hold: float = 5.0) -> None:
        self.names = names
        self.ear = Ear()
        self.clock = clock
        self.watcher = Watcher(names, self.ear.on_change, interval=3600, hold=hold, clock=clock)
        self.watcher.add("web")
        self.after(0)

    def after(self, seconds: float) -> list[tuple[str, set[Any], set[Any], AddressGroup]]:
        """What is told at a look so many seconds later."""
        self.clock.advance(seconds)
        before = len(self.ear.heard)
        with gevent.Timeout(10):
            self.watcher.look()
        return self.ear.heard[before:]


@pytest.fixture
def stage(clock: FakeClock) -> Any:
    stage = Stage(Names(web=[A, B]), clock)
    yield stage
    stage.watcher.close()


def test_what_is_found_first_is_no_change(stage: Stage) -> None:
    assert stage.after(10) == []


def test_a_change_is_told_once_it_has_held(stage: Stage) -> None:
    stage.names.groups["web"] = [B, C]

    assert stage.after(1) == []
    assert stage.after(4.9) == []
    assert stage.after(0.2) == [("web", {C}, {A}, AddressGroup.of(B, C))]
    assert stage.after(100) == []


def test_what_comes_and_goes_is_never_told(stage: Stage) -> None:
    for _ in range(20):
        stage.names.groups["web"] = [A, B, C]
        assert stage.after(4) == []
        stage.names.groups["web"] = [A, B]
        assert stage.after(4) == []
        stage.names.groups["web"] = [A]
        assert stage.after(4) == []
        stage.names.groups["web"] = [A, B]
        assert stage.after(4) == []


def test_one_that_flaps_holds_up_no_other(stage: Stage) -> None:
    told = []
    for step in range(10):
        stage.names.groups["web"] = [A, C] if step % 2 else [A, B, C]
        told += stage.after(2)

    assert [(added, removed) for _, added, removed, _ in told] == [({C}, set())]
    assert told[0][3].addresses == {A, B, C}  # with the one that was never told to have gone


def test_the_group_told_is_what_was_told_of_its_addresses(stage: Stage) -> None:
    stage.names.groups["web"] = AddressGroup([[(1, A)], [(2, C)]])  # B has gone
    stage.after(1)
    stage.names.groups["web"] = AddressGroup([[(1, A)], [(2, C)], [(3, B)]])  # it is elsewhere
    (told,) = stage.after(5)

    assert told[1:3] == ({C}, set())
    assert told[3] == AddressGroup([[(1, A), (1, B)], [(2, C)]])
    (told,) = stage.after(5)
    assert told[1:] == (set(), set(), AddressGroup([[(1, A)], [(2, C)], [(3, B)]]))


def test_a_change_of_weights_is_told_without_addresses(stage: Stage) -> None:
    heavier = AddressGroup([[(9, A), (1, B)]])
    stage.names.groups["web"] = heavier
    stage.after(1)

    assert stage.after(5) == [("web", set(), set(), heavier)]


def test_a_failed_look_up_removes_nothing(stage: Stage) -> None:
    for failure in NameNotFound("gone"), OSError("away"), ValueError("what"), gevent.Timeout():
        stage.names.groups["web"] = failure
        assert stage.after(10) == []
        assert stage.after(10) == []
    stage.names.groups["web"] = [A, B]
    assert stage.after(10) == []


@pytest.mark.parametrize("rubbish", [None, [A], "10.0.0.1:80"])
def test_what_is_no_address_group_ends_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture, rubbish: Any
) -> None:
    """As a resolver of the program's own may answer."""
    caplog.set_level(logging.DEBUG, "geventpool.watcher")
    stage.names.resolve = lambda name: rubbish  # type: ignore[method-assign]
    stage.watcher.add("db")
    assert stage.after(10) == []
    assert "watching 'web'" in caplog.text
    del stage.names.resolve
    stage.names.groups["web"] = [C]
    stage.after(1)

    assert stage.after(5) == [("web", {C}, {A, B}, AddressGroup.of(C))]


def test_the_last_address_stays_until_another_has_held(stage: Stage) -> None:
    stage.names.groups["web"] = [A]
    stage.after(1)
    stage.after(5)
    for step in range(6):
        stage.names.groups["web"] = [C] if step % 2 else [B]
        assert stage.after(4) == []

    assert stage.after(6) == [("web", {C}, {A}, AddressGroup.of(C))]


def test_with_hold_0_a_change_is_told_at_the_first_look(clock: FakeClock) -> None:
    stage = Stage(Names(web=[A]), clock, hold=0)
    stage.names.groups["web"] = [B]

    assert stage.after(0) == [("web", {B}, {A}, AddressGroup.of(B))]
    stage.watcher.close()


def test_what_the_caller_knew_may_be_given(stage: Stage) -> None:
    stage.names.groups["db"] = [B]
    stage.watcher.add("db", AddressGroup.of(A))
    stage.after(0)

    assert stage.after(5) == [("db", {B}, {A}, AddressGroup.of(B))]


def test_a_name_that_comes_later_is_watched_from_then_on(stage: Stage) -> None:
    stage.watcher.add("db")
    stage.after(1)
    stage.names.groups["db"] = [A]
    stage.after(10)
    stage.names.groups["db"] = [B]
    stage.after(1)

    assert stage.after(5) == [("db", {B}, {A}, AddressGroup.of(B))]


def test_one_greenlet_watches_all_names_and_tells(stage: Stage) -> None:
    for number in range(100):
        stage.names.groups[f"name{number}"] = [A]
        stage.watcher.add(f"name{number}")
    stage.after(0)
    before = stage.watcher._greenlet
    for number in range(100):
        stage.names.groups[f"name{number}"] = [B]
    stage.after(1)

    assert len(stage.after(5)) == 100
    assert stage.ear.greenlets == {before}
    assert gevent.getcurrent() not in stage.ear.greenlets


def test_a_discarded_name_is_not_asked_for(stage: Stage) -> None:
    stage.watcher.discard("web")
    stage.watcher.discard("never watched")
    stage.names.asked.clear()
    stage.names.groups["web"] = [C]

    assert stage.after(1) == stage.after(10) == []
    assert stage.names.asked == []


def test_a_name_discarded_while_it_is_looked_up_is_not_told(clock: FakeClock) -> None:
    class Slow(Names):
        def resolve(self, name: str, /) -> AddressGroup:
            asked.set()
            go_on.wait()
            return super().resolve(name)

    asked, go_on = Event(), Event()
    ear = Ear()
    watcher = Watcher(Slow(web=[B]), ear.on_change, interval=3600, hold=0, clock=clock)
    watcher.add("web", AddressGroup.of(A))
    looking = gevent.spawn(watcher.look)
    assert asked.wait(10)
    watcher.discard("web")
    go_on.set()
    looking.get(timeout=10)
    watcher.close()

    assert ear.heard == []


@pytest.mark.parametrize("trouble", [RuntimeError("mine"), gevent.Timeout(1)])
def test_what_on_change_raises_is_logged_and_ends_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture, trouble: BaseException
) -> None:
    stage.ear.trouble = trouble
    stage.names.groups["web"] = [C]
    stage.after(1)
    assert len(stage.after(5)) == 1
    stage.names.groups["web"] = [A]
    stage.after(1)
    assert len(stage.after(5)) == 1

    records = [r for r in caplog.records if r.name == "geventpool.watcher"]
    assert [r.levelname for r in records] == ["ERROR", "ERROR"]
    assert "'web'" in records[0].getMessage()
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is trouble


def test_a_log_handler_that_raises_ends_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log today")

    log, handler = logging.getLogger("geventpool.watcher"), Broken()
    log.addHandler(handler)
    try:
        stage.ear.trouble = RuntimeError("mine")
        stage.names.groups["web"] = [C]
        stage.after(1)
        assert len(stage.after(5)) == 1
    finally:
        log.removeHandler(handler)
    stage.names.groups["web"] = [A]
    stage.after(1)

    assert len(stage.after(5)) == 1
    assert "no log today" in capsys.readouterr().err


def test_on_change_may_give_way_to_others(clock: FakeClock) -> None:
    """And what others do to the watcher meanwhile is done when it goes on."""

    def on_change(name: str, *change: Any) -> None:
        began.set()
        go_on.wait()
        told.append(name)

    began, go_on = Event(), Event()
    told: list[str] = []
    names = Names(web=[B], db=[B], late=[B])
    with Watcher(names, on_change, interval=3600, hold=0, clock=clock) as watcher:
        for name in "web", "db":
            watcher.add(name, AddressGroup.of(A))
        assert began.wait(10)
        watcher.discard("db")
        watcher.add("late", AddressGroup.of(A))
        looking = gevent.spawn(watcher.look)
        gevent.sleep(0)
        go_on.set()
        looking.get(timeout=10)

    assert told == ["web", "late"]


def test_a_watcher_looks_by_itself_at_every_interval() -> None:
    names = Names(web=[A])
    told = Event()
    with Watcher(names, lambda *change: told.set(), interval=0.002, hold=0.004) as watcher:
        watcher.add("web")
        watcher.look()
        names.groups["web"] = [B]

        assert told.wait(10)


def test_a_dropped_owner_is_collected_and_the_greenlet_ends(clock: FakeClock) -> None:
    stage = Stage(Names(web=[A]), clock)
    watcher = stage.watcher
    greenlet = watcher._greenlet
    owner = weakref.ref(stage.ear)
    stage.ear = None  # type: ignore[assignment]
    gc.collect()

    assert owner() is None
    assert greenlet is not None
    greenlet.join(10)
    assert greenlet.ready()
    assert watcher.closed


def test_a_dropped_watcher_is_collected_and_its_greenlet_ends(clock: FakeClock) -> None:
    stage = Stage(Names(web=[A]), clock)
    stage.watcher.look()  # its greenlet is at rest then
    greenlet = stage.watcher._greenlet
    watcher = weakref.ref(stage.watcher)
    ear = stage.ear
    del stage
    gc.collect()

    assert watcher() is None
    assert greenlet is not None
    greenlet.join(10)
    assert greenlet.ready()
    assert ear.heard == []


def test_an_owner_that_holds_its_watcher_goes_without_the_collector(clock: FakeClock) -> None:
    class Owner:
        def __init__(self) -> None:
            self.watcher = Watcher(Names(web=[A]), self.on_change, interval=3600)
            self.watcher.add("web")

        def on_change(self, *change: Any) -> None: ...

    owner = Owner()
    owner.watcher.look()
    greenlet = owner.watcher._greenlet
    gevent.sleep(0)
    reference = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert reference() is None
    finally:
        gc.enable()
    assert greenlet is not None
    greenlet.join(10)
    assert greenlet.ready()


def test_a_plain_function_is_held(clock: FakeClock) -> None:
    told = []
    names = Names(web=[A])
    watcher = Watcher(names, lambda *change: told.append(change), interval=3600, hold=0)
    watcher.add("web")
    watcher.look()
    gc.collect()
    names.groups["web"] = [B]
    watcher.look()
    watcher.close()

    assert told == [("web", {B}, {A}, AddressGroup.of(B))]


def test_a_closed_watcher_tells_nothing_and_takes_no_name(stage: Stage) -> None:
    greenlet = stage.watcher._greenlet
    stage.watcher.close()
    stage.watcher.close()
    assert greenlet is not None
    greenlet.join(10)

    assert greenlet.ready()
    assert stage.after(10) == []
    with pytest.raises(RuntimeError, match="closed"):
        stage.watcher.add("db")


def test_close_ends_a_look_up_that_does_not(clock: FakeClock) -> None:
    class Stuck(Names):
        def resolve(self, name: str, /) -> AddressGroup:
            asked.set()
            Event().wait()
            raise AssertionError

    asked = Event()
    watcher = Watcher(Stuck(), lambda *change: None)
    watcher.add("web")
    waiting = gevent.spawn(watcher.look)
    assert asked.wait(10)
    gevent.sleep(0)
    watcher.close()
    waiting.join(10)

    assert waiting.ready()
    assert watcher._greenlet is not None
    watcher._greenlet.join(10)
    assert watcher._greenlet.ready()


def test_close_does_not_cut_short_what_on_change_does(clock: FakeClock) -> None:
    def on_change(*change: Any) -> None:
        began.set()
        go_on.wait()
        done.append(change)

    began, go_on = Event(), Event()
    done: list[Any] = []
    names = Names(web=[A])
    watcher = Watcher(names, on_change, interval=3600, hold=0)
    watcher.add("web")
    watcher.look()
    names.groups["web"] = [B]
    gevent.spawn(watcher.look)
    assert began.wait(10)
    watcher.close()
    gevent.idle()
    go_on.set()
    assert watcher._greenlet is not None
    watcher._greenlet.join(10)

    assert len(done) == 1


def test_on_change_may_add_discard_and_close_but_not_look(clock: FakeClock) -> None:
    def on_change(*change: Any) -> None:
        told.append(change)
        watcher.add("db")
        watcher.discard("web")
        with pytest.raises(RuntimeError, match="in the way"):
            watcher.look()
        watcher.close()

    told: list[Any] = []
    watcher = Watcher(Names(web=[B], mail=[B]), on_change, interval=3600, hold=0, clock=clock)
    for name in "web", "mail":
        watcher.add(name, AddressGroup.of(A))
    watcher.look()
    assert watcher._greenlet is not None
    watcher._greenlet.join(10)

    assert len(told) == 1  # and nothing of "mail"
    assert watcher._greenlet.successful()


@pytest.mark.parametrize("how", ["add", "look"])
def test_a_killed_watcher_comes_back_with_the_next_name_or_look(stage: Stage, how: str) -> None:
    killed = stage.watcher._greenlet
    assert killed is not None
    killed.kill()
    if how == "add":
        stage.watcher.add("db")
    else:
        stage.watcher.look()
    assert stage.watcher._greenlet is not killed
    stage.names.groups["web"] = [C]
    stage.after(1)

    assert [name for name, *_ in stage.after(5)] == ["web"]


@pytest.mark.parametrize("when", ["before it begins", "in a look-up", "in on_change", "at rest"])
def test_who_waits_for_a_look_waits_no_longer_than_the_watcher_lives(
    when: str, clock: FakeClock
) -> None:
    class Slow(Names):
        def resolve(self, name: str, /) -> AddressGroup:
            if when == "in a look-up":
                reached.set()
                Event().wait()
            return super().resolve(name)

    def on_change(*change: Any) -> None:
        reached.set()
        Event().wait()

    reached = Event()
    names = Slow(web=[B])
    watcher = Watcher(names, on_change, interval=3600, hold=0, clock=clock)
    if when == "at rest":
        watcher.add("web")
        watcher.look()
        reached.set()
    elif when == "before it begins":
        watcher.add("web")
        reached.set()
    else:
        watcher.add("web", AddressGroup.of(A))
    waiting = [gevent.spawn(watcher.look) for _ in range(3)]
    assert reached.wait(10)
    late = gevent.spawn(watcher.look)
    if when.startswith("in"):
        gevent.sleep(0)  # it waits for the round after this one
    assert watcher._greenlet is not None
    watcher._greenlet.kill()
    gevent.joinall([*waiting, late], timeout=10)

    assert all(each.successful() for each in [*waiting, late])
    watcher.close()


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from([A, B, C])), st.sampled_from([0.5, 2.0, 6.0])),
        max_size=30,
    )
)
def test_who_follows_what_is_told_always_has_the_group_told(
    steps: list[tuple[set[Address], float]],
) -> None:
    """And what is told is only what has been there, or gone, at every look of *hold* seconds."""
    watched = module._Watched(module._placements(AddressGroup.of(A)))
    followed: set[Any] = {A}
    now = 0.0
    history: list[tuple[float, set[Address]]] = []
    for seen, pause in steps:
        now += pause
        if not seen:
            continue  # a look-up that failed
        history.append((now, seen))
        change = watched.changed(AddressGroup.of(*sorted(seen)), now, 5.0)
        if change is None:
            continue
        added, removed, group = change
        followed = (followed | added) - removed
        assert followed == group.addresses
        for each in added | removed:
            since = next(
                (t for t, names in reversed(history) if (each in names) != (each in added)),
                history[0][0] - 1,
            )
            first = next(t for t, _ in history if t > since)
            assert now - first >= 5.0


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"resolver": None}, TypeError, "resolver"),
        ({"on_change": None}, TypeError, "on_change"),
        ({"interval": 0}, ValueError, "interval"),
        ({"hold": -1}, ValueError, "hold"),
        ({"hold": None}, TypeError, "hold"),
    ],
)
def test_a_bad_argument_of_a_watcher_is_named(
    settings: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=f"^{named} must "):
        Watcher(**{"resolver": Names(), "on_change": print, **settings})


def test_a_watcher_says_what_it_is(stage: Stage) -> None:
    assert repr(stage.watcher).startswith("<Watcher 1 names, ")
    stage.watcher.close()
    assert repr(stage.watcher).startswith("<Watcher closed, ")
