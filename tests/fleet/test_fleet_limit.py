"""FleetLimit: pools of several hubs or processes that share one cap, and a store that goes away."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, NotInUse, PoolTimeout, SocketFactory, Verdict
from geventpool.fleet import FleetLimit, MemoryStore
from geventpool.fleet.limit import fleets, release_all
from geventpool.fleet.share import Grant, Report
from geventpool.observe import snapshot
from geventpool.observe.metrics import families
from geventpool.observe.rendering import worker_head
from geventpool.testing import EchoServer, FakeClock
from support.child import FORKS, Child
from support.waiting import until


class Away(OSError):
    """The store cannot be reached."""


class Store(MemoryStore):
    """One that may be away, and remembers who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.reports: list[Report] = []
        self.released: list[str] = []

    def renew(self, report: Report) -> Grant:
        self.reports.append(report)
        if self.away:
            raise Away("no route to the store")
        return super().renew(report)

    def release(self, name: str, id: str) -> None:
        if self.away:
            raise Away("no route to the store")
        self.released.append(id)
        super().release(name, id)


@pytest.fixture
def store() -> Store:
    """One that has learnt already."""
    made = Store()
    made.renew(Report("db", 10, "first", 0, 0, 0, 0, lease=0.001))
    gevent.sleep(0.002)
    made.release("db", "first")
    made.reports.clear()
    made.released.clear()
    return made


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


class Process:
    """What a process of the fleet has: a limit, and a pool under it."""

    def __init__(self, server: EchoServer, store: Any, size: int = 10, **more: Any) -> None:
        self.held: list[Any] = []
        self.limit = FleetLimit(10, store=store, name="db", **more)
        self.pool = ConnectionPool(
            size, min_size=0, connect=SocketFactory(server.address), limits=[self.limit], timeout=20
        )

    def hold(self, count: int) -> list[Any]:
        for _ in range(count):
            self.held.append(self.pool.acquire())
        return self.held

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for conn in self.held:
            with suppress(NotInUse):
                self.pool.release(conn)
        self.pool.close(0)
        self.limit.close()


def test_a_process_alone_may_have_all_that_it_wants(server: EchoServer, store: Store) -> None:
    with Process(server, store) as process:
        held = process.hold(10)
        assert process.limit.maximum == 10
        for conn in held:
            process.pool.release(conn)


def test_nothing_is_opened_before_the_store_has_answered(server: EchoServer, store: Store) -> None:
    with Process(server, store) as process:
        assert process.limit.maximum == 0
        with pytest.raises(PoolTimeout):
            process.pool.acquire(timeout=0)
        process.pool.release(process.pool.acquire())
        assert store.reports


def test_the_cap_holds_while_shares_move_to_who_needs_them(
    server: EchoServer, store: Store
) -> None:
    with Process(server, store) as one, Process(server, store) as other:
        held = one.hold(9)  # one place is the other's floor
        waiting = [gevent.spawn(other.pool.acquire) for _ in range(10)]
        until(lambda: one.limit.maximum == 5)
        for conn in held:
            assert server.open <= 10
            one.pool.release(conn)
            gevent.sleep(0.01)
        until(lambda: sum(each.ready() for each in waiting) == 9)
        assert server.open <= 10
        one.pool.dispose()
        # One would like some to spare for half a minute; what the other needs comes first.
        until(lambda: (one.limit.maximum, other.limit.maximum) == (1, 9))
        for each in waiting:
            other.pool.release(each.get())


def test_idle_connections_beyond_the_share_are_closed_at_once(
    server: EchoServer, store: Store
) -> None:
    with Process(server, store) as one, Process(server, store) as other:
        for conn in one.hold(9):
            one.pool.release(conn)
        assert server.open == 9
        held = [gevent.spawn(other.pool.acquire) for _ in range(5)]
        gevent.joinall(held, timeout=20)
        assert all(each.ready() for each in held)
        assert server.open <= 10


def test_a_handler_of_the_log_that_raises_does_not_end_the_renewals(
    server: EchoServer, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("no room for the log")

    log, broken = logging.getLogger("geventpool.fleet"), Broken(logging.WARNING)
    log.addHandler(broken)
    try:
        store.away = True
        with Process(server, store) as process:
            process.hold(1)  # its floor
            until(lambda: "no room for the log" in capsys.readouterr().err)
            store.away = False
            process.hold(2)
    finally:
        log.removeHandler(broken)


def test_with_the_store_away_at_the_start_each_has_its_floor(
    server: EchoServer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.away = True
    with Process(server, store, floor=2) as process:
        process.hold(2)
        assert process.limit.maximum == 2
        assert "the store does not answer: Away('no route to the store')" in caplog.text
        store.away = False
        with caplog.at_level(logging.INFO, "geventpool.fleet"):
            process.hold(1)
            assert "the store is back after" in caplog.text
        assert caplog.text.count("does not answer") == 1


@pytest.mark.parametrize(("on_loss", "left"), [("floor", 1), ("keep", 10), ("stop", 0)])
def test_a_share_holds_to_the_end_of_its_lease_and_then_what_was_agreed(
    server: EchoServer, store: Store, on_loss: str, left: int
) -> None:
    with FakeClock() as clock, Process(server, store, on_loss=on_loss) as process:
        for conn in process.hold(10):
            process.pool.release(conn)
        store.away = True
        until(lambda: process.limit.lost_at is not None)
        clock.advance(5.0)
        gevent.sleep(0.3)
        assert process.limit.maximum == 10
        clock.advance(10.0)
        until(lambda: process.limit.maximum == left)
        until(lambda: server.open <= left)


def test_a_process_that_was_stopped_past_its_lease_dials_nothing_on_it(
    server: EchoServer, store: Store
) -> None:
    with FakeClock() as clock, Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        until(lambda: process.limit.maximum > 1)
        store.away = True
        clock.advance(60.0)  # as after SIGSTOP: no timer has fired yet
        held = gevent.spawn(process.hold, 2)
        gevent.sleep(0)
        until(lambda: process.limit.maximum == 1)
        assert server.opened <= 2
        assert not held.ready()
        held.kill()


def test_a_full_server_halves_the_share_and_marks_nothing_down(
    server: EchoServer, store: Store
) -> None:
    class Full(OSError):
        pass

    class Pool(ConnectionPool[Any]):
        full = False

        def _new_connection(self) -> Any:
            if self.full:
                raise Full("too many clients")
            return SocketFactory(server.address)()

        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.SERVER_FULL if isinstance(error, Full) else Verdict.BROKEN

    limit = FleetLimit(10, store=store, name="db")
    with Pool(10, min_size=0, limits=[limit], timeout=20) as pool:
        held = [pool.acquire() for _ in range(6)]
        until(lambda: limit.maximum > 6)
        pool.full = True
        waiting = gevent.spawn(pool.acquire)
        until(lambda: limit.maximum == 3)
        limit.server_full()  # so was another dial that had begun by then
        pool.full = False
        for conn in held:
            pool.release(conn)
        pool.release(waiting.get(timeout=20))
        assert limit.maximum == 3
    limit.close()


def test_a_limit_that_is_closed_gives_its_share_back_and_opens_nothing_more(
    server: EchoServer, store: Store
) -> None:
    with Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        process.limit.close()
        assert store.released == [process.limit.id]
        server.wait_open(0)
        with pytest.raises(PoolTimeout):
            process.pool.acquire(timeout=0.01)
        process.limit.close()
        assert store.released == [process.limit.id]


def test_all_shares_of_a_worker_are_given_back_at_once(server: EchoServer, store: Store) -> None:
    with ExitStack() as stack:
        both = [stack.enter_context(Process(server, store)) for _ in range(2)]
        release_all()
        assert sorted(store.released) == sorted(each.limit.id for each in both)


def test_a_store_that_is_away_at_the_end_is_only_logged(
    server: EchoServer, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        store.away = True
    assert "the share was not given back" in caplog.text


def test_one_that_is_dropped_is_collected_and_asks_no_more(store: Store) -> None:
    limit = FleetLimit(10, store=store, name="db")
    until(lambda: store.reports)
    reference = weakref.ref(limit)
    greenlet = limit._greenlet
    del limit
    gc.collect()
    until(lambda: reference() is None)
    greenlet.join(timeout=20)
    assert greenlet.ready()


def test_what_is_wanted_grows_at_once_and_shrinks_by_the_median_of_half_a_minute(
    server: EchoServer, store: Store
) -> None:
    with FakeClock() as clock, Process(server, store) as process:
        assert process.limit.wants == 1
        held = process.hold(8)
        assert process.limit.wants == 10
        process.limit.renew()
        for conn in held:
            process.pool.release(conn)
        for _ in range(5):
            clock.advance(1.0)
            process.limit.renew()
        assert process.limit.wants < 10
        clock.advance(31.0)
        assert process.limit.wants == 1


@FORKS
def test_a_child_has_a_share_of_its_own(
    server: EchoServer, store: Store, fork: Callable[[], int]
) -> None:
    with Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        parent = process.limit.id

        def in_child() -> list[Any]:
            before = process.limit.maximum
            process.pool.acquire(timeout=20)
            return [before, process.limit.id, process.limit.maximum, process.limit.place]

        before, id, after, place = Child(fork, in_child).result()
        assert before == 0
        assert id != parent == process.limit.id
        assert after >= 1
        assert (process.limit.place, place) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"cap": 0}, "cap"),
        ({"floor": 11}, "floor"),
        ({"floor": -1}, "floor"),
        ({"weight": 0}, "weight"),
        ({"lease": 1.0}, "lease"),
        ({"on_loss": "panic"}, "on_loss"),
        ({"name": ""}, "name"),
        ({"store": object()}, "store"),
    ],
)
def test_what_is_wrong_is_said_by_its_name(store: Store, wrong: dict[str, Any], text: str) -> None:
    settings: dict[str, Any] = {"cap": 10, "store": store, "name": "db", **wrong}
    with pytest.raises((TypeError, ValueError), match=text):
        FleetLimit(settings.pop("cap"), **settings)


def test_what_a_process_knows_of_its_caps_is_in_its_snapshot(
    server: EchoServer, store: Store
) -> None:
    with Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        store.away = True
        until(lambda: process.limit.lost_at is not None)
        (found,) = [each for each in snapshot()["fleets"] if each["lost_for"] is not None]
        share = process.limit.maximum
    assert found.pop("lost_for") >= 0
    assert found.pop("age") > 0
    assert found.pop("wants") >= 1
    assert found == {
        "name": "db",
        "cap": 10,
        "share": share,
        "used": 1,
        "needs": 0,
        "members": 1,
        "last_error": "Away: no route to the store",
    }
    assert process.limit not in fleets()


def test_the_metrics_and_the_page_have_a_cap_that_is_shared(
    server: EchoServer, store: Store
) -> None:
    with Process(server, store) as process:
        process.pool.release(process.pool.acquire())
        process.limit.renew()
        seen = snapshot()
        seen["fleets"] = [each for each in seen["fleets"] if each["used"]]
    metrics = {family.name: [each[2] for each in family.samples()] for family in families([seen])}
    assert metrics["geventpool_fleet_cap"] == [10]
    assert metrics["geventpool_fleet_used"] == [1]
    assert metrics["geventpool_fleet_members"] == [1]
    assert metrics["geventpool_fleet_wants"] == [seen["fleets"][0]["wants"]]
    assert metrics["geventpool_fleet_store_up"] == [1]
    (age,) = metrics["geventpool_fleet_age_seconds"]
    assert 0 <= age < 60
    head = worker_head(seen)
    assert "Caps shared with other processes" in head
    assert "<td>db</td>" in head
    assert '"col">age<' in head
    assert "answers" in head


def test_what_the_store_knows_of_a_process_grows_old_while_it_is_away(
    server: EchoServer, store: Store
) -> None:
    store.away = True
    with Process(server, store) as process:
        assert process.limit.stats().age is None
        store.away = False
        process.limit.renew()
        store.away = True
        known = process.limit.stats().age
        assert known is not None
        until(lambda: (process.limit.stats().age or 0) > known + 0.05)
        with pytest.raises(Away):
            process.limit.renew()
        assert (process.limit.stats().age or 0) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("on_loss", ["floor", "keep", "stop"])
def test_one_that_got_nothing_has_its_floor_a_lease_after_the_store_is_lost(
    server: EchoServer, store: Store, on_loss: Any
) -> None:
    with Process(server, store, lease=2.0) as one:
        one.hold(10)
        with Process(server, store, lease=2.0, on_loss=on_loss) as other:
            until(lambda: other.limit.members == 2)
            assert other.limit.maximum == 0  # all is held by the one
            store.away = True
            until(lambda: other.limit.lost_at is not None)
            lost_at = other.limit.lost_at
            assert lost_at is not None
            while time.monotonic() < lost_at + 1.9:
                assert other.limit.maximum == 0
                gevent.sleep(0.01)
            if on_loss == "stop":
                gevent.sleep(1.5)
                assert other.limit.maximum == 0
            else:
                until(lambda: other.limit.maximum == 1)
                other.pool.release(other.pool.acquire())
