"""StaticResolver, FileResolver, and the Watcher who tells of changes (DNS: test_dns_resolver)."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from hypothesis import given
from hypothesis import strategies as st

from geventpool import resolver as module
from geventpool.addresses import Address, AddressGroup, Resolver, UnixAddress
from geventpool.errors import NameNotFound
from geventpool.resolver import FileResolver, StaticResolver, Watcher

A, B, C = Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("10.0.0.3", 80)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# Static


def test_a_static_resolver_knows_its_groups() -> None:
    group = AddressGroup.of("10.0.0.1:80")
    resolver: Resolver = StaticResolver({"web": group, "db": [[(9, A), (1, B)], [(1, C)]]})

    assert resolver.resolve("web") is group
    assert resolver.resolve("db") == AddressGroup([[(9, A), (1, B)], [(1, C)]])


def test_an_alias_leads_to_a_name_or_an_address_through_any_number_of_others() -> None:
    aliases = {
        "a": "b",
        "b": "c",
        "c": "web",
        "d": "e",
        "e": "10.0.0.3:80",
        "f": ("10.0.0.3", 80),
        "g": Path("/run/x.sock"),
        "h": "unix:/run/x.sock",
    }
    resolver = StaticResolver({"web": AddressGroup.of(A, B)}, aliases)

    for name in "a", "b", "c":
        assert resolver.resolve(name) is resolver.resolve("web")
    for name in "d", "e", "f":
        assert resolver.resolve(name) == AddressGroup.of(C)
    for name in "g", "h":
        assert resolver.resolve(name) == AddressGroup.of(UnixAddress("/run/x.sock"))


def test_an_alias_goes_before_a_group_of_the_same_name() -> None:
    resolver = StaticResolver({"web": AddressGroup.of(A)}, {"web": B})

    assert resolver.resolve("web") == AddressGroup.of(B)


@pytest.mark.parametrize("loop", [{"a": "a"}, {"a": "b", "b": "c", "c": "a"}, {"x": "a", "a": "a"}])
def test_aliases_that_go_round_are_an_error_at_construction(loop: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="aliases go round in a circle: .*a -> .*a"):
        StaticResolver({"web": AddressGroup.of(A)}, loop)


@pytest.mark.parametrize("target", ["nowhere", None, ("host", 0), 80])
def test_an_alias_that_leads_nowhere_is_an_error_at_construction(target: Any) -> None:
    with pytest.raises(ValueError, match="aliases lead nowhere: x -> "):
        StaticResolver({}, {"x": target})


def test_a_name_that_a_static_resolver_does_not_have_is_not_found() -> None:
    resolver = StaticResolver({"web": AddressGroup.of(A)}, {"www": "web"})

    with pytest.raises(NameNotFound, match="'db' was not found") as caught:
        resolver.resolve("db")
    assert caught.value.name == "db"
    assert caught.value.tried == ("groups: web", "aliases: www")


def test_a_static_resolver_without_names_is_one(  # seed: an empty dict was taken for None
) -> None:
    with pytest.raises(NameNotFound, match="groups: none"):
        StaticResolver({}).resolve("db")


def test_an_empty_group_is_an_error_at_construction() -> None:
    with pytest.raises(ValueError):
        StaticResolver({"web": []})


# A file


JSON = {
    "web": ["10.0.0.1:80", "10.0.0.2:80"],
    "db": [[[9, "10.0.0.1:80"], "10.0.0.2:80"], ["10.0.0.3:80"]],
}
TOML = """
web = ["10.0.0.1:80", "10.0.0.2:80"]
db = [[[9, "10.0.0.1:80"], "10.0.0.2:80"],
      ["10.0.0.3:80"]]  # if all else fails
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(JSON))
    return path


def replace(path: Path, text: str | bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.rename(path)


@pytest.mark.parametrize(
    "suffix",
    [
        ".json",
        pytest.param(
            ".toml", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
        ),
    ],
)
def test_a_file_has_names_with_addresses_or_tiers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"names{suffix}"
    path.write_text(json.dumps(JSON) if suffix == ".json" else TOML)
    resolver: Resolver = FileResolver(path)

    assert resolver.resolve("web") == AddressGroup.of(A, B)
    assert resolver.resolve("db") == AddressGroup([[(9, A), (1, B)], [(1, C)]])
    with pytest.raises(NameNotFound) as caught:
        resolver.resolve("mail")
    assert caught.value.name == "mail"
    assert caught.value.tried == (f"{path}: names: db, web",)


def test_toml_without_a_parser_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "tomllib", "tomli":
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ImportError, match="pip install tomli"):
        FileResolver(tmp_path / "names.toml")


def test_a_changed_file_is_read_again_at_most_once_in_an_interval(path: Path, clock: Clock) -> None:
    resolver = FileResolver(path, interval=5, clock=clock)
    replace(path, '{"web": ["10.0.0.3:80"]}')
    clock.now += 4.9
    assert resolver.resolve("web") == AddressGroup.of(A, B)
    clock.now += 0.2

    assert resolver.resolve("web") == AddressGroup.of(C)
    replace(path, '{"web": ["10.0.0.1:80"]}')
    clock.now += 4.9
    assert resolver.resolve("web") == AddressGroup.of(C)


def test_a_file_that_has_not_changed_is_not_read(path: Path, clock: Clock) -> None:
    resolver = FileResolver(path, clock=clock)
    found = resolver.resolve("web")
    clock.now += 10

    assert resolver.resolve("web") is found


@pytest.mark.parametrize("what", ["time", "size", "inode"])
def test_each_of_time_size_and_inode_tells_of_a_change(path: Path, clock: Clock, what: str) -> None:
    old = '{"web": ["10.0.0.1:80"]}'
    new = old.replace(".1:", ".30:" if what == "size" else ".3:")
    replace(path, old)
    resolver = FileResolver(path, clock=clock)
    stat = path.stat()
    if what == "inode":
        keep = path.with_suffix(".kept")
        path.rename(keep)  # else the number may be used again
        replace(path, new)
    else:
        path.write_text(new)
    if what != "time":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    clock.now += 10

    assert resolver.resolve("web").addresses <= {C, Address("10.0.0.30", 80)}


BROKEN = [
    "{",
    "[]",
    "\xff".encode("latin-1"),
    "[" * 100_000,
    '{"web": []}',
    '{"web": "10.0.0.1:80"}',
    '{"web": [80]}',
    '{"web": ["10.0.0.1"]}',
    '{"web": [[9, "10.0.0.1:80"]]}',
    '{"web": [[[-1, "10.0.0.1:80"]]]}',
    '{"web": [[[NaN, "10.0.0.1:80"]]]}',
    '{"web": [[[true, "10.0.0.1:80"]]]}',
    '{"web": [[]]}',
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    resolver = FileResolver(path, interval=1, clock=clock)
    replace(path, text)
    for _ in range(3):
        clock.now += 2
        assert resolver.resolve("web") == AddressGroup.of(A, B)

    (warning,) = warnings(caplog)
    assert warning.startswith(str(path))
    replace(path, text)  # another version, no better
    clock.now += 2
    assert resolver.resolve("web") == AddressGroup.of(A, B)
    assert len(warnings(caplog)) == 2
    replace(path, '{"web": ["10.0.0.3:80"]}')
    clock.now += 2
    assert resolver.resolve("web") == AddressGroup.of(C)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_broken_from_the_start_is_an_error(path: Path, text: str | bytes) -> None:
    replace(path, text)

    with pytest.raises(ValueError, match=f"^{path}: "):
        FileResolver(path)


def test_a_file_that_has_gone_keeps_what_it_said_and_may_come_back(
    path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    resolver = FileResolver(path, clock=clock)
    text = path.read_text().replace("10.0.0.1", "10.0.0.9")
    path.unlink()
    for _ in range(3):
        clock.now += 2
        assert resolver.resolve("web") == AddressGroup.of(A, B)
    assert len(warnings(caplog)) == 1
    replace(path, text)
    clock.now += 2

    assert resolver.resolve("web") == AddressGroup.of("10.0.0.9:80", B)


def test_a_log_handler_that_raises_does_not_break_the_resolver(
    path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log today")

    resolver = FileResolver(path, clock=clock)
    handler = Broken()
    module._log.addHandler(handler)
    try:
        replace(path, "{")
        clock.now += 2
        assert resolver.resolve("web") == AddressGroup.of(A, B)
    finally:
        module._log.removeHandler(handler)
    assert "no log today" in capsys.readouterr().err


def test_a_file_that_is_not_there_or_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileResolver(tmp_path / "names.json")
    with pytest.raises(ValueError, match=r"path must end in \.json or \.toml, not '\.yaml'"):
        FileResolver(tmp_path / "names.yaml")
    with pytest.raises(ValueError, match="interval must be"):
        FileResolver(tmp_path / "names.json", interval=-1)


# The watcher


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

    def __init__(self, names: Names, clock: Clock, hold: float = 5.0) -> None:
        self.names = names
        self.ear = Ear()
        self.clock = clock
        self.watcher = Watcher(names, self.ear.on_change, interval=3600, hold=hold, clock=clock)
        self.watcher.add("web")
        self.after(0)

    def after(self, seconds: float) -> list[tuple[str, set[Any], set[Any], AddressGroup]]:
        """What is told at a look so many seconds later."""
        self.clock.now += seconds
        before = len(self.ear.heard)
        with gevent.Timeout(10):
            self.watcher.look()
        return self.ear.heard[before:]


@pytest.fixture
def stage(clock: Clock) -> Any:
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
    for failure in NameNotFound("gone"), OSError("away"), ValueError("what"), gevent.Timeout(1):
        stage.names.groups["web"] = failure
        assert stage.after(10) == []
        assert stage.after(10) == []
    stage.names.groups["web"] = [A, B]
    assert stage.after(10) == []


def test_the_last_address_stays_until_another_has_held(stage: Stage) -> None:
    stage.names.groups["web"] = [A]
    stage.after(1)
    stage.after(5)
    for step in range(6):
        stage.names.groups["web"] = [C] if step % 2 else [B]
        assert stage.after(4) == []

    assert stage.after(6) == [("web", {C}, {A}, AddressGroup.of(C))]


def test_with_hold_0_a_change_is_told_at_the_first_look(clock: Clock) -> None:
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


def test_a_name_discarded_while_it_is_looked_up_is_not_told(clock: Clock) -> None:
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

    records = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(records) == 2
    assert "'web'" in records[0].getMessage()
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is trouble


def test_a_watcher_looks_by_itself_at_every_interval() -> None:
    names = Names(web=[A])
    told = Event()
    with Watcher(names, lambda *change: told.set(), interval=0.002, hold=0.004) as watcher:
        watcher.add("web")
        watcher.look()
        names.groups["web"] = [B]

        assert told.wait(10)


def test_a_dropped_owner_is_collected_and_the_greenlet_ends(clock: Clock) -> None:
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


def test_a_dropped_watcher_is_collected_and_its_greenlet_ends(clock: Clock) -> None:
    stage = Stage(Names(web=[A]), clock)
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


def test_an_owner_that_holds_its_watcher_goes_without_the_collector(clock: Clock) -> None:
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


def test_a_plain_function_is_held(clock: Clock) -> None:
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


def test_close_ends_a_look_up_that_does_not(clock: Clock) -> None:
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


def test_close_does_not_cut_short_what_on_change_does(clock: Clock) -> None:
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


def test_on_change_may_add_discard_and_close_but_not_look(clock: Clock) -> None:
    def on_change(*change: Any) -> None:
        watcher.add("db")
        watcher.discard("web")
        with pytest.raises(RuntimeError, match="in the way"):
            watcher.look()
        watcher.close()
        done.append(change)

    done: list[Any] = []
    names = Names(web=[A])
    watcher = Watcher(names, on_change, interval=3600, hold=0)
    watcher.add("web")
    watcher.look()
    names.groups["web"] = [B]
    watcher.look()
    assert watcher._greenlet is not None
    watcher._greenlet.join(10)

    assert len(done) == 1
    assert watcher._greenlet.ready()


def test_a_killed_watcher_comes_back_with_the_next_name(stage: Stage) -> None:
    assert stage.watcher._greenlet is not None
    stage.watcher._greenlet.kill()
    assert stage.after(1) == []
    stage.watcher.add("db")
    stage.names.groups["web"] = [C]
    stage.after(1)

    assert [name for name, *_ in stage.after(5)] == ["web"]


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


def test_resolvers_and_watchers_say_what_they_are(path: Path, stage: Stage) -> None:
    assert repr(StaticResolver({"web": [[(1, A)]]}, {"www": "web"})) == "<StaticResolver 2 names>"
    assert repr(FileResolver(path)) == f"<FileResolver '{path}' 2 names>"
    assert repr(stage.watcher).startswith("<Watcher 1 names, ")
