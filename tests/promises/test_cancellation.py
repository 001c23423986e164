"""Promise 1: a cancellation, at any switch point whatever, loses nothing and goes on.

Each scenario is played once for each moment at which a greenlet of it gives way to others, and is
struck there: by a Timeout, a kill or a KeyboardInterrupt; before anything else runs, or behind what
is queued already.  Then it is counted: every slot, every connection, every neighbour in line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event

from geventpool import (
    ConnectionPool,
    Deadline,
    Limit,
    PoolDeadlock,
    PoolTimeout,
    Reason,
    SocketFactory,
)
from geventpool._runtime.workers import Worker
from support.servers import EchoServer
from support.strikes import (
    PATIENCE,
    STRIKES,
    Connection,
    Server,
    Stage,
    Strike,
    YieldingListener,
    YieldingPool,
    assert_whole,
    come_to_rest,
    look_whole,
    play_for_each_point,
)

SCENARIOS: list[Any] = []
POOL_SCENARIOS: list[Callable[[Stage], None]] = []


def scenario(
    points: int, pool_idle: bool = False
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    """*points*: at how many moments the caller gives way to others, when nothing strikes it.

    *pool_idle*: the greenlets of the pool have nothing to do, so there is nothing else to strike.
    """

    def add(play: Callable[[Stage], None]) -> Callable[[Stage], None]:
        SCENARIOS.append(pytest.param(play, points, id=play.__name__))
        if not pool_idle:
            POOL_SCENARIOS.append(play)
        return play

    return add


class ResettingPool(YieldingPool):
    def _reset_connection(self, conn: Connection) -> None:
        gevent.sleep(0)


class SalvagingPool(ResettingPool):
    def _salvage_connection(self, conn: Connection, error: BaseException | None) -> None:
        gevent.sleep(0)
        gevent.sleep(0)


def take_turns(stage: Stage, pool: Any) -> None:
    """The caller waits, a neighbour behind it, until the only connection comes back."""
    conn = pool.acquire()
    stage.act(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))
    gevent.idle()
    pool.release(conn)


@scenario(points=0, pool_idle=True)
def acquire_from_idle(stage: Stage) -> None:
    pool = stage.pool(1)
    stage.act(lambda: pool.release(pool.acquire()))


@scenario(points=1, pool_idle=True)
def wait_for_a_release(stage: Stage) -> None:
    take_turns(stage, stage.pool(1))


@scenario(points=1)
def wait_for_a_dial(stage: Stage) -> None:
    pool = stage.pool(2, min_size=0, filled=False)
    stage.act(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=1)
def wait_for_the_dial_of_a_fixed_pool(stage: Stage) -> None:
    pool = stage.pool(2, filled=False)
    stage.act(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=1)
def wait_for_a_dial_after_a_discard(stage: Stage) -> None:
    pool = stage.pool(1)
    conn = pool.acquire()
    stage.act(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))
    gevent.idle()
    pool.discard(conn)


@scenario(points=1, pool_idle=True)
def wait_without_a_deadline(stage: Stage) -> None:
    pool = stage.pool(1)
    conn = pool.acquire()
    stage.act(lambda: pool.release(pool.acquire(timeout=None)))
    stage.neighbour(lambda: pool.release(pool.acquire(timeout=None)))
    gevent.idle()
    pool.release(conn)


@scenario(points=1, pool_idle=True)
def wait_in_vain(stage: Stage) -> None:
    pool = stage.pool(1)

    def act() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.002)

    with pool.get():
        stage.act(act).join()


@scenario(points=1, pool_idle=True)
def wait_in_vain_under_a_deadline(stage: Stage) -> None:
    pool = stage.pool(1)

    def act() -> None:
        with pytest.raises(PoolTimeout), Deadline(0.05):
            pool.acquire()

    with pool.get():
        stage.act(act).join()


@scenario(points=2, pool_idle=True)
def wait_twice_under_deadlines(stage: Stage) -> None:
    pool = stage.pool(2)
    taken, taken_too = pool.acquire(), pool.acquire()

    def act() -> None:
        with Deadline(PATIENCE), pool.get(), Deadline(PATIENCE):
            pool.release(pool.acquire())

    stage.act(act)
    stage.neighbour(lambda: pool.release(pool.acquire()))
    gevent.idle()
    pool.release(taken)
    gevent.idle()
    pool.release(taken_too)


@scenario(points=1, pool_idle=True)
def a_deadlock_of_its_own_making(stage: Stage) -> None:
    pool = stage.pool(1)

    def act() -> None:
        with pytest.raises(PoolDeadlock), pool.get():
            pool.acquire()

    stage.act(act)
    gevent.idle()
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=3, pool_idle=True)
def wait_in_vain_and_tell_a_listener(stage: Stage) -> None:
    pool = stage.pool(1, listeners=[YieldingListener()])

    def act() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.002)

    with pool.get():
        stage.act(act).join()


@scenario(points=5, pool_idle=True)
def wait_for_a_release_with_a_listener_and_a_reset(stage: Stage) -> None:
    take_turns(stage, stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()]))


@scenario(points=1, pool_idle=True)
def check_before_the_hand_out(stage: Stage) -> None:
    pool = stage.pool(1, check_after=0)
    stage.act(lambda: pool.release(pool.acquire()))


@scenario(points=3)
def checks_before_the_hand_out_that_fail(stage: Stage) -> None:
    pool = stage.pool(2, check_after=0)
    pool.failing_checks = 2
    stage.act(lambda: pool.release(pool.acquire()))


@scenario(points=1)
def wait_for_a_place_in_a_shared_limit(stage: Stage) -> None:
    limit = Limit(2)
    full = stage.pool(2, min_size=0, limits=[limit])
    pool = stage.pool(2, min_size=0, limits=[limit], filled=False)
    held = full.acquire()  # the other one, idle, is closed to make room
    stage.act(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))
    stage.neighbour(lambda: full.release(full.acquire()))
    gevent.idle()
    full.release(held)


@scenario(points=1, pool_idle=True)
def a_with_that_is_left_in_good_order(stage: Stage) -> None:
    pool = stage.pool(1)

    def act() -> None:
        with pool.get():
            gevent.sleep(0)

    stage.act(act)
    stage.neighbour(act)


@scenario(points=4, pool_idle=True)
def a_with_whose_hooks_give_way(stage: Stage) -> None:
    pool = stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()])

    def act() -> None:
        with pool.get():
            gevent.sleep(0)

    stage.act(act)
    stage.neighbour(act)


@scenario(points=4, pool_idle=True)
def a_with_that_is_left_by_a_harmless_exception(stage: Stage) -> None:
    pool = stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()])

    def act() -> None:
        with pytest.raises(ValueError), pool.get():
            gevent.sleep(0)
            raise ValueError

    stage.act(act)
    stage.neighbour(act)


@scenario(points=3)
def a_with_that_is_left_by_a_broken_connection(stage: Stage) -> None:
    pool = stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()])

    def act() -> None:
        with pytest.raises(ConnectionResetError), pool.get():
            gevent.sleep(0)
            raise ConnectionResetError

    stage.act(act)
    stage.neighbour(act)


@scenario(points=1)
def a_with_that_is_left_by_a_timeout_and_salvaged(stage: Stage) -> None:
    pool = stage.pool(1, cls=SalvagingPool, listeners=[YieldingListener()])

    def act() -> None:
        mine = gevent.Timeout()
        try:
            with pool.get():
                raise mine
        except gevent.Timeout as error:
            if error is not mine:
                raise

    stage.act(act)
    stage.neighbour(act)
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=1, pool_idle=True)
def a_with_in_a_with_of_a_greenlet_local_pool(stage: Stage) -> None:
    pool = stage.pool(1, greenlet_local=True)

    def act() -> None:
        with pool.get() as outer, pool.get() as inner:
            assert inner is outer
            gevent.sleep(0)

    stage.act(act)
    stage.neighbour(act)


@scenario(points=4, pool_idle=True)
def execute(stage: Stage) -> None:
    pool = stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()])
    stage.act(lambda: pool.execute(lambda conn: gevent.sleep(0)))
    stage.neighbour(lambda: pool.execute(lambda conn: gevent.sleep(0)))


@scenario(points=1)
def discard(stage: Stage) -> None:
    pool = stage.pool(1, cls=ResettingPool, listeners=[YieldingListener()])
    stage.act(lambda: pool.discard(pool.acquire()))
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=2)
def detach(stage: Stage) -> None:
    pool = stage.pool(1, listeners=[YieldingListener()])

    def act() -> None:
        conn = pool.acquire()
        conn.close()  # first, as its place is another's as soon as it is detached
        pool.detach(conn)

    # What has been acquired is the caller's to give back, wherever it is struck afterwards.
    stage.act(act)
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=2)
def fill(stage: Stage) -> None:
    pool = stage.pool(3, min_size=0, filled=False)
    stage.act(pool.fill)
    stage.neighbour(pool.fill)


@scenario(points=1)
def dispose(stage: Stage) -> None:
    pool = stage.pool(2, listeners=[YieldingListener()])
    stage.act(pool.dispose)
    stage.neighbour(lambda: pool.release(pool.acquire()))


@scenario(points=2)
def close_while_connections_are_out(stage: Stage) -> None:
    pool = stage.pool(2)
    held = pool.acquire()
    stage.act(pool.close)
    gevent.idle()
    stage.neighbour(pool.close)
    gevent.idle()
    pool.release(held)


@scenario(points=3)
def close_by_force(stage: Stage) -> None:
    pool = stage.pool(2, listeners=[YieldingListener()])
    pool.acquire()
    stage.act(lambda: pool.close(timeout=0)).join()
    pool.close(timeout=0)


@scenario(points=0)
def drain_and_resize(stage: Stage) -> None:
    pool = stage.pool(2, listeners=[YieldingListener()])

    def act() -> None:
        pool.drain()
        pool.resize(3)

    stage.act(act).join()
    come_to_rest(pool)
    stage.neighbour(lambda: pool.release(pool.acquire()))


def watch(stage: Stage, condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, in a greenlet which takes no part."""

    def look() -> None:
        with gevent.Timeout(PATIENCE):
            while not condition():
                gevent.idle()

    stage.neighbour(look).join()


def prefill(stage: Stage) -> None:
    pool = stage.pool(5, filled=False, listeners=[YieldingListener()])
    watch(stage, lambda: pool.stats().idle == 5)


def keepalive(stage: Stage) -> None:
    pool = stage.pool(3, keepalive=0.001, listeners=[YieldingListener()])
    checked, opened = pool.stats().checked, stage.server.opened
    watch(stage, lambda: pool.stats().checked >= checked + 4)
    pool.failing_checks = 1
    watch(stage, lambda: stage.server.opened > opened)


def salvage(stage: Stage) -> None:
    pool = stage.pool(2, cls=SalvagingPool, listeners=[YieldingListener()])
    for _ in range(3):
        try:
            with pool.get():
                raise gevent.Timeout
        except gevent.Timeout:
            gevent.idle()
    watch(stage, lambda: pool.stats().idle == 2)


def expire(stage: Stage) -> None:
    listeners = [YieldingListener()]
    stage.pool(2, filled=False, max_lifetime=0.003, jitter=0.5, listeners=listeners)
    watch(stage, lambda: stage.server.opened >= 6)


def idle_out(stage: Stage) -> None:
    pool = stage.pool(3, min_size=1, idle_timeout=0.002, listeners=[YieldingListener()])
    watch(stage, lambda: pool.stats().idle == 1)


def drain(stage: Stage) -> None:
    pool = stage.pool(3, listeners=[YieldingListener()])
    before = set(stage.server.open)
    pool.drain()
    watch(stage, lambda: not before & stage.server.open)


def lose(stage: Stage) -> None:
    pool = stage.pool(2, listeners=[YieldingListener()])
    for _ in range(2):
        stage.server.open.discard(pool.acquire())  # and forget it: its collection gives it back
    watch(stage, lambda: pool.stats().closed[Reason.LOST] == 2)


def dial_in_spite_of_failures(stage: Stage) -> None:
    class Failing(YieldingPool):
        def _new_connection(self) -> Connection:
            conn = super()._new_connection()
            if conn.number % 2:
                conn.close()
                raise OSError("not now")
            return conn

    pool = stage.pool(3, cls=Failing, filled=False, listeners=[YieldingListener()])
    stage.neighbour(lambda: pool.release(pool.acquire()))
    watch(stage, lambda: pool.stats().idle == 3)


POOL_SCENARIOS += [
    prefill,
    keepalive,
    salvage,
    expire,
    idle_out,
    drain,
    lose,
    dial_in_spite_of_failures,
]


@pytest.mark.parametrize("strike", STRIKES, ids=repr)
@pytest.mark.parametrize(("play", "points"), SCENARIOS)
def test_a_caller_may_be_cancelled_wherever_it_gives_way(
    play: Callable[[Stage], None], points: int, strike: Strike, hub_errors: list[BaseException]
) -> None:
    found = play_for_each_point(play, "caller", strike, hub_errors)

    assert found == points


@pytest.mark.slow
@pytest.mark.parametrize("strike", [s for s in STRIKES if s.how != "by a timer"], ids=repr)
@pytest.mark.parametrize("play", POOL_SCENARIOS)
def test_a_greenlet_of_the_pool_may_be_cancelled_wherever_it_gives_way(
    play: Callable[[Stage], None], strike: Strike, hub_errors: list[BaseException]
) -> None:
    found = play_for_each_point(play, "pool", strike, hub_errors)

    assert found > 0


@pytest.mark.parametrize("play", POOL_SCENARIOS)
def test_a_greenlet_of_the_pool_may_be_killed_before_it_begins(
    play: Callable[[Stage], None],
) -> None:
    for nth in range(1, 1000):
        stage = Stage(nth_spawn=nth)
        stage.play(play)
        look_whole(stage)
        if stage.spawns < nth:
            break

    assert nth > 1


# The hand-over and the throw in the same loop pass


def outcome_of(action: Callable[[], object]) -> Any:
    """Start *action* in a greenlet, whose value is what was raised in it, or None."""

    def run() -> BaseException | None:
        try:
            action()
        except BaseException as exc:
            return exc
        return None

    greenlet: Any = gevent.Greenlet(run)
    greenlet.start()
    return greenlet


CANCELLATIONS = [GreenletExit, KeyboardInterrupt, gevent.Timeout]


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
def test_a_waiter_killed_just_before_its_connection_comes_passes_it_on(
    exc_class: type[BaseException],
) -> None:
    server = Server()
    pool = YieldingPool(server, 1)
    conn = pool.acquire()

    def wait_and_then_wait_for_something_else() -> None:
        try:
            pool.release(pool.acquire())
        finally:
            gevent.sleep(0.001)  # nothing may wake it from this but its own timer

    waiter = outcome_of(wait_and_then_wait_for_something_else)
    neighbour = outcome_of(lambda: pool.release(pool.acquire()))
    gevent.idle()

    waiter.kill(exc_class, block=False)
    pool.release(conn)  # handed over now to one that never wakes for it
    assert pool.stats().waiting == 1

    assert type(waiter.get(timeout=PATIENCE)) is exc_class
    assert neighbour.get(timeout=PATIENCE) is None
    assert pool.stats().abandoned == 1
    assert server.opened == 1
    assert_whole(pool, server)


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
def test_a_waiter_killed_just_after_its_connection_came_is_struck_while_it_holds_it(
    exc_class: type[BaseException],
) -> None:
    server = Server()
    pool = YieldingPool(server, 1)
    conn = pool.acquire()

    def hold() -> None:
        with pool.get():
            gevent.sleep(PATIENCE)

    waiter = outcome_of(hold)
    neighbour = outcome_of(lambda: pool.release(pool.acquire()))
    gevent.idle()

    pool.release(conn)
    waiter.kill(exc_class, block=False)

    assert type(waiter.get(timeout=PATIENCE)) is exc_class
    assert neighbour.get(timeout=PATIENCE) is None
    assert pool.stats().closed[Reason.ERROR] == 1
    assert_whole(pool, server)


def test_a_waiter_whose_timeout_overtakes_its_connection_passes_it_on() -> None:
    server = Server()
    pool = YieldingPool(server, 1)
    pool.fill()

    def wait_a_little() -> None:
        with gevent.Timeout(0.001):
            pool.release(pool.acquire())

    def burn() -> None:
        until = time.perf_counter() + 0.0001
        while time.perf_counter() < until:
            pass

    overtaken = 0
    for _ in range(20):
        conn = pool.acquire()
        waiter = outcome_of(wait_a_little)
        neighbour = outcome_of(lambda: pool.release(pool.acquire()))
        gevent.sleep(0)
        for _ in range(200):  # more than the 5 ms after which gevent looks at its timers
            gevent.get_hub().loop.run_callback(burn)
        pool.release(conn)
        if pool.stats().waiting == 1:  # it is the waiter's by now
            overtaken += waiter.get(timeout=PATIENCE) is not None
        assert neighbour.get(timeout=PATIENCE) is None

    assert overtaken > 0
    assert server.opened == 1
    assert_whole(pool, server)


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
def test_a_waiter_killed_in_the_pass_in_which_its_dial_succeeds_leaves_the_connection(
    exc_class: type[BaseException],
) -> None:
    server = Server()
    door = Event()

    def connect() -> Connection:
        door.wait()
        return Connection(server)

    pool = ConnectionPool(1, min_size=0, connect=connect)
    waiter = outcome_of(lambda: pool.release(pool.acquire()))
    gevent.idle()

    door.set()
    waiter.kill(exc_class, block=False)  # after the dialer goes on, before the waiter does

    assert type(waiter.get(timeout=PATIENCE)) is exc_class
    assert server.opened == 1
    assert_whole(pool, server)


@pytest.mark.parametrize("exc_class", CANCELLATIONS)
def test_what_a_cancelled_fill_wanted_is_wanted_no_more(exc_class: type[BaseException]) -> None:
    server = Server()
    pool = YieldingPool(server, 3, min_size=0)
    filler = outcome_of(pool.fill)
    gevent.sleep(0)

    filler.kill(exc_class)
    come_to_rest(pool)
    pool.dispose()
    come_to_rest(pool)

    assert not server.open
    assert_whole(pool, server)


# What goes on when a greenlet of the pool does not


def test_a_dialer_killed_before_it_began_is_replaced_while_all_others_hang() -> None:
    hanging = [ConnectionPool(1, connect=lambda: gevent.sleep(PATIENCE)) for _ in range(3)]
    gevent.idle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "spawn", _stillborn)
        pool = YieldingPool(Server(), 1)

    pool.fill(timeout=PATIENCE / 2)

    for each in (pool, *hanging):
        each.close()


def _stillborn(*args: Any) -> Any:
    greenlet: Any = Worker(*args)
    greenlet.start()
    greenlet.kill(block=False)
    return greenlet


def test_closing_a_pool_does_not_hurt_the_dial_of_another() -> None:
    server = Server()
    door = Event()
    closing = ConnectionPool(1, connect=lambda: door.wait() and Connection(server))
    gevent.idle()  # it is dialing

    door.set()  # its dialer is about to go on, and then it dials for the other
    other = YieldingPool(server, 1)
    closing.close()
    other.fill()

    assert other.stats().dialed == 1
    assert other.stats().dial_failed == 0
    assert_whole(other, server)


def test_a_timeout_that_a_close_hook_lets_out_is_only_logged() -> None:
    class Careless(YieldingPool):
        def _close_connection(self, conn: Connection) -> None:
            conn.close()
            raise gevent.Timeout

    server = Server()
    pool = Careless(server, 2)
    pool.discard(pool.acquire())

    assert_whole(pool, server)


# The same with sockets


def use_a_socket(stage: Stage, echo: EchoServer, filled: bool) -> None:
    class SocketPool(YieldingPool):
        _new_connection = staticmethod(SocketFactory(echo.address))  # type: ignore[assignment]
        _close_connection = ConnectionPool._close_connection  # type: ignore[assignment]

        def _reset_connection(self, conn: Any) -> None:
            ask(conn)

    pool = stage.pool(2, cls=SocketPool, min_size=0, filled=filled, listeners=[YieldingListener()])

    def act() -> None:
        with pool.get() as sock:
            ask(sock)

    if filled and stage.victim == "pool":
        echo.fin_all()  # so that it has something to do: to close, to tell, to dial
    stage.act(act)
    for _ in range(3):
        stage.neighbour(act)


def ask(sock: Any) -> None:
    sock.sendall(b"are you there?")
    assert sock.recv(100) == b"are you there?"


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("victim", ["caller", "pool"])
@pytest.mark.parametrize("strike", [s for s in STRIKES if s.how != "by a timer"], ids=repr)
def test_no_socket_is_lost_wherever_a_greenlet_is_cancelled(
    strike: Strike, victim: str, filled: bool, hub_errors: list[BaseException]
) -> None:
    for nth in range(1, 1000):
        with EchoServer() as echo:
            stage = Stage(victim, strike, nth)
            stage.play(lambda stage: use_a_socket(stage, echo, filled))

            [pool] = stage.pools
            come_to_rest(pool)
            echo.wait_open(pool.stats().idle, PATIENCE)
            held = [pool.acquire() for _ in range(2)]
            assert len(set(map(id, held))) == 2
            echo.wait_open(2, PATIENCE)
            for sock in held:
                ask(sock)
                pool.release(sock)
            pool.close()
            echo.wait_open(0, PATIENCE)
            assert echo.peak <= 2
        assert not [e for e in hub_errors if not isinstance(e, strike.exc_class)]
        hub_errors.clear()
        if stage.switches < nth:
            break

    assert nth > 3
