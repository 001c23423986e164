"""A program that used generic-connection-pool has changed an import: what held holds, and more.

D1 to D16 are the faults of generic-connection-pool 0.8.1; each test says what must hold instead.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import ipaddress
import json
import logging
import pickle
import random
import socket as stdlib_socket
import ssl
import subprocess
import sys
import textwrap
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest
from gevent import GreenletExit
from gevent.event import Event

from geventpool import Backoff, NotInUse, PoolClosed, PoolError, PoolTimeout, Verdict
from geventpool._runtime import closer
from geventpool.compat import generic_connection_pool as face
from geventpool.compat.generic_connection_pool import (
    BaseConnectionManager,
    BaseConnectionPool,
    BaseError,
    ConnectionNotAcquired,
    ConnectionPool,
    ConnectionPoolClosedError,
    ConnectionPoolIsFull,
    ConnectionPoolNotFound,
    SocketAlivenessCheckingMixin,
    SslSocketConnectionManager,
    TcpSocketConnectionManager,
    TcpStreamConnectionManager,
    UnixSocketConnectionManager,
    UnixSocketStreamConnectionManager,
)
from geventpool.sockets import look_up
from geventpool.testing import FakeClock
from support import ROOT
from support.certificates import Certificates
from support.servers import EchoServer, IdServer, ask, closed_port
from support.waiting import until

LOCALHOST = ipaddress.IPv4Address("127.0.0.1")


class Conn:
    """A connection of a Manager; must not be compared, and cannot be hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"<Conn {self.number}>"

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared")


class Manager(BaseConnectionManager[Any, Conn]):
    """Creates Conns, takes a note of all it is told in *told*, and knows what is *open*.

    A method whose name is in *acts* calls what it finds there first.  Closing is finished even if
    it is struck.
    """

    def __init__(self, **acts: Callable[[], object]) -> None:
        self.acts = acts
        self.told: list[tuple[str, int]] = []
        self.open: list[int] = []
        self.peak = 0
        self.created = 0

    def create(self, endpoint: Any, timeout: float | None = None) -> Conn:
        self._act("create")
        self.created += 1
        self.open.append(self.created)
        self.peak = max(self.peak, len(self.open))
        self.told.append(("create", self.created))
        return Conn(self.created)

    def dispose(self, endpoint: Any, conn: Conn, timeout: float | None = None) -> None:
        try:
            self._act("dispose")
        finally:
            self.open.remove(conn.number)
            self.told.append(("dispose", conn.number))

    def _act(self, what: str) -> Any:
        return self.acts.get(what, lambda: None)()


class Hooked(Manager):
    """Overrides what may be overridden."""

    def check_aliveness(self, endpoint: Any, conn: Conn, timeout: float | None = None) -> bool:
        self.told.append(("check", conn.number))
        return self._act("check") is not False

    def on_acquire(self, endpoint: Any, conn: Conn) -> None:
        self.told.append(("acquire", conn.number))
        self._act("acquire")

    def on_release(self, endpoint: Any, conn: Conn) -> None:
        self.told.append(("release", conn.number))
        self._act("release")

    def on_connection_dead(self, endpoint: Any, conn: Conn) -> None:
        self.told.append(("dead", conn.number))
        self._act("dead")


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def is_whole(pool: ConnectionPool[Any, Any], size: int, endpoint: Any = "a") -> None:
    """Fail unless *size* connections can be had, and no more."""
    __tracebackhide__ = True
    held = [pool.acquire(endpoint, timeout=10) for _ in range(size)]
    with pytest.raises(TimeoutError):
        pool.acquire(endpoint, timeout=0.01)
    for conn in held:
        pool.release(conn, endpoint)
    assert pool.get_endpoint_pool_size(endpoint, acquired=True) == 0


@pytest.fixture
def server() -> Iterator[IdServer]:
    with IdServer() as server:
        yield server


def endpoint_of(server: EchoServer) -> Any:
    return LOCALHOST, server.address[1]


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[IdServer]:
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(certificates.certificate), str(certificates.key))
    with IdServer(ssl_context=context) as server:
        yield server


@pytest.fixture
def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates.authority))


# The names, the errors, the classes


@pytest.mark.parametrize(
    "path",
    [
        "BaseConnectionPool",
        "common.BaseConnectionPool",
        "exceptions.ConnectionPoolIsFull",
        "threading.ConnectionPool",
        "threading.BaseConnectionManager",
        "asyncio.ConnectionPool",
        "contrib.socket.TcpSocketConnectionManager",
        "contrib.socket.SslSocketAlivenessCheckingMixin",
        "contrib.unix.CheckSocketAlivenessMixin",
        "contrib.socket_async.TcpStreamConnectionManager",
        "contrib.socket_async.StreamAlivenessCheckingMixin",
        "contrib.unix_async.UnixSocketStreamConnectionManager",
    ],
)
def test_the_names_of_the_old_submodules_are_attributes(path: str) -> None:
    found: Any = face
    for name in path.split("."):
        found = getattr(found, name)

    assert found is getattr(face, path.rpartition(".")[2])


@pytest.mark.parametrize(
    ("call", "signature"),
    [
        (
            ConnectionPool.__init__,
            "connection_manager acquire_timeout=None background_collector=False"
            " dispose_batch_size=0 dispose_timeout=None min_idle=1 max_size=10 settings",
        ),
        (
            BaseConnectionPool.__init__,
            "idle_timeout=60.0 max_lifetime=3600.0 min_idle=1 max_size=10 total_max_size=100"
            " settings",
        ),
        (ConnectionPool.connection, "endpoint timeout=None"),
        (ConnectionPool.acquire, "endpoint timeout=None"),
        (ConnectionPool.close, "timeout=None"),
        (ConnectionPool.get_endpoint_pool_size, "endpoint acquired=None"),
        (BaseConnectionManager.create, "endpoint timeout=None"),
        (BaseConnectionManager.dispose, "endpoint conn timeout=None"),
        (BaseConnectionManager.check_aliveness, "endpoint conn timeout=None"),
        (BaseConnectionManager.on_acquire, "endpoint conn"),
        (SslSocketConnectionManager.__init__, "ssl"),
        (TcpStreamConnectionManager.__init__, "ssl=None"),
    ],
)
def test_signatures_and_defaults_are_the_documented_ones(
    call: Callable[..., Any], signature: str
) -> None:
    parameters = list(inspect.signature(call).parameters.values())[1:]
    described = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]

    assert " ".join(described) == signature


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (BaseError, [Exception]),
        (ConnectionPoolClosedError, [BaseError, PoolClosed]),
        (ConnectionPoolIsFull, [BaseError, PoolError]),
        (ConnectionPoolNotFound, [BaseError, NotInUse]),
        (ConnectionNotAcquired, [NotInUse, AssertionError, RuntimeError]),
    ],
)
def test_the_errors_are_made_caught_and_pickled_as_before(
    error: type[Exception], bases: list[type[Exception]]
) -> None:
    assert isinstance(pickle.loads(pickle.dumps(error())), error)
    assert str(pickle.loads(pickle.dumps(error("why")))) == "why"
    assert all(issubclass(error, base) for base in bases)


def test_an_error_that_a_pool_has_raised_can_be_pickled() -> None:
    pool = ConnectionPool[str, Conn](Manager())
    pool.close()
    with pytest.raises(ConnectionPoolClosedError) as caught:
        pool.acquire("a")

    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value) != ""


@pytest.mark.parametrize(
    "manager",
    [
        TcpSocketConnectionManager(),
        UnixSocketConnectionManager(),
        TcpStreamConnectionManager(),
        UnixSocketStreamConnectionManager(),
    ],
)
def test_managers_without_a_context_can_be_pickled(manager: Any) -> None:
    assert type(pickle.loads(pickle.dumps(manager))) is type(manager)


def test_pools_and_managers_can_be_subclassed_and_subscripted() -> None:
    class MyPool(ConnectionPool[str, Conn]):
        def acquire(self, endpoint: str, timeout: float | None = None) -> Conn:
            acquired.append(endpoint)
            return super().acquire(endpoint, timeout)

    class Half(BaseConnectionManager[str, Conn]):
        def create(self, endpoint: str, timeout: float | None = None) -> Conn:
            raise NotImplementedError

    acquired: list[str] = []
    with MyPool(Manager(), max_size=2) as pool:
        conn = pool.acquire("a")
        pool.release(conn, "a")
    for cls in (face.SslSocketAlivenessCheckingMixin, face.StreamAlivenessCheckingMixin):
        assert cls[str] is not None  # type: ignore[index]

    assert acquired == ["a"]
    assert isinstance(pool, BaseConnectionPool)
    assert type(ConnectionPool[str, Conn](Manager())) is ConnectionPool
    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


def test_it_is_imported_and_used_without_a_warning() -> None:
    program = """
import ipaddress
import gevent.server
from geventpool.compat.generic_connection_pool import ConnectionPool, TcpSocketConnectionManager

server = gevent.server.StreamServer(("127.0.0.1", 0), lambda sock, _: sock.sendall(sock.recv(9)))
server.start()
pool = ConnectionPool(TcpSocketConnectionManager(), background_collector=True)
with pool.connection((ipaddress.ip_address("127.0.0.1"), server.server_port), timeout=5) as sock:
    sock.sendall(b"hello")
    print(sock.recv(9).decode())
pool.close()
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_the_limits_are_properties() -> None:
    with ConnectionPool[str, Conn](
        Manager(), idle_timeout=1.5, max_lifetime=3, min_idle=2, max_size=3, total_max_size=4
    ) as pool:
        limits = (pool.idle_timeout, pool.max_lifetime, pool.min_idle, pool.max_size)

        assert (*limits, pool.total_max_size) == (1.5, 3, 2, 3, 4)
        assert (pool.is_full, pool.get_size(), pool.get_endpoint_pool_size("a")) == (False, 0, 0)
        held = [pool.acquire(endpoint) for endpoint in "aaab"]
        pool.release(held.pop(), "b")
        assert (pool.is_full, pool.get_size()) == (True, 4)
        sizes = [pool.get_endpoint_pool_size("a", acquired) for acquired in (None, True, False)]
        assert sizes == [3, 3, 0]
        assert pool.get_endpoint_pool_size("b", acquired=False) == 1
        for conn in held:
            pool.release(conn, "a")


@pytest.mark.parametrize(
    "settings",
    [
        {"min_idle": 3, "max_size": 2},
        {"max_size": 101},
        {"idle_timeout": 2.0, "max_lifetime": 1.0},
    ],
)
def test_limits_that_contradict_each_other_are_refused_as_before(settings: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="can't be greater than"):
        ConnectionPool[str, Conn](Manager(), **settings)


@pytest.mark.parametrize("bad", [{"max_sise": 3}, {"greenlet_local": True}])
def test_a_setting_that_does_not_exist_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(bad))):
        ConnectionPool[str, Conn](Manager(), **bad)


@pytest.mark.parametrize("endless", [1e10, float("inf")])
def test_a_limit_of_time_may_be_endless(endless: float) -> None:
    with ConnectionPool[str, Conn](Manager(), idle_timeout=endless, max_lifetime=endless) as pool:
        with pool.connection("a"):
            pass
        assert pool.idle_timeout == endless


def test_without_any_idle_time_extra_connections_are_not_kept() -> None:
    manager = Manager()
    with ConnectionPool[str, Conn](manager, idle_timeout=0, min_idle=0) as pool:
        with pool.connection("a"):
            pass
        assert (manager.open, pool.get_size()) == ([], 0)


class Numbers:
    """Creates objects, and takes a note of which it disposes of: for either library's pool."""

    def __init__(self) -> None:
        self.created: list[object] = []
        self.disposed: list[int] = []

    def create(self, endpoint: Any, timeout: float | None = None) -> object:
        self.created.append(object())
        return self.created[-1]

    def dispose(self, endpoint: Any, conn: object, timeout: float | None = None) -> None:
        self.disposed.append(self.created.index(conn))


@pytest.fixture
def original() -> Any:
    return pytest.importorskip("generic_connection_pool.threading")


def acts_of(module: Any, endpoints: str, **limits: Any) -> list[Any]:
    """What a pool of *module* does when connections to *endpoints* are taken together, given back
    in another order, and then taken one by one."""
    manager = type("Manager", (Numbers, module.BaseConnectionManager), {})()
    pool = module.ConnectionPool(manager, max_size=5, **limits)
    held = [(pool.acquire(endpoint), endpoint) for endpoint in endpoints]
    acts: list[Any] = []
    for turn in (2, 0, 3, 1):
        pool.release(*held[turn])
        acts.append((list(manager.disposed), pool.get_size()))
    for _ in range(6):
        with pool.connection(endpoints[-1]) as conn:
            acts.append(manager.created.index(conn))
        acts.append((list(manager.disposed), pool.get_size()))
    pool.close()
    return acts


@pytest.mark.parametrize("endpoints", ["aaaa", "abab"])
@pytest.mark.parametrize("min_idle", [0, 1, 2, 3, 4])
def test_without_any_idle_time_it_disposes_on_release_as_the_original_does(
    original: Any, min_idle: int, endpoints: str
) -> None:
    limits = {"idle_timeout": 0, "min_idle": min_idle}

    assert acts_of(face.threading, endpoints, **limits) == acts_of(original, endpoints, **limits)


def test_what_is_kept_is_handed_out_in_turn_as_by_the_original(original: Any) -> None:
    ours = acts_of(face.threading, "aaaa", min_idle=4)

    assert ours == acts_of(original, "aaaa", min_idle=4)
    assert ours[4::2] == [2, 0, 3, 1, 2, 0]


def test_the_longest_idle_is_handed_out_first_whatever_there_is() -> None:
    with ConnectionPool[str, Conn](Manager(), min_idle=0) as pool:
        held = [pool.acquire("a") for _ in range(3)]
        for conn in reversed(held):
            pool.release(conn)
        assert [pool.acquire("a").number for _ in held] == [3, 2, 1]
        for conn in held:
            pool.release(conn)


def test_a_release_that_disposes_waits_until_that_is_done() -> None:
    manager = Manager(dispose=lambda: gevent.sleep(0.05))
    with ConnectionPool[str, Conn](manager, idle_timeout=0, min_idle=0) as pool:
        pool.release(pool.acquire("a"), "a")
        assert (manager.open, pool.get_size()) == ([], 0)


@pytest.mark.parametrize("end", [gevent.Timeout, GreenletExit, KeyboardInterrupt])
def test_a_release_that_is_ended_as_it_disposes_leaves_the_pool_whole(
    end: type[BaseException],
) -> None:
    begun, go_on = Event(), Event()

    def dispose() -> None:
        begun.set()
        go_on.wait()

    with ConnectionPool[str, Conn](
        Manager(dispose=dispose), idle_timeout=0, min_idle=0, max_size=2
    ) as pool:
        conn = pool.acquire("a")
        ended: list[BaseException] = []

        def release() -> None:
            with pytest.raises(end) as raised:
                pool.release(conn, "a")
            ended.append(raised.value)

        releaser = gevent.spawn(release)
        begun.wait()
        releaser.kill(end)
        assert len(ended) == 1
        go_on.set()
        is_whole(pool, 2)
        assert pool.get_size() == 0


def test_what_is_given_back_in_a_hub_callback_is_disposed_of_soon() -> None:
    manager = Manager()

    def use() -> Iterator[None]:
        with pool.connection("a"):
            yield

    with ConnectionPool[str, Conn](manager, idle_timeout=0, min_idle=0) as pool:
        using = use()
        next(using)
        gevent.get_hub().loop.run_callback(next, using, None)
        until(lambda: not manager.open)


def test_a_caller_in_line_gets_what_is_given_back_and_nothing_is_disposed_of() -> None:
    manager = Manager()
    with ConnectionPool[str, Conn](manager, idle_timeout=0, min_idle=0, max_size=1) as pool:
        conn = pool.acquire("a")
        waiter = gevent.spawn(pool.acquire, "a")
        gevent.idle()
        pool.release(conn, "a")
        assert waiter.get(timeout=5) is conn
        assert manager.open == [1]
        pool.release(conn, "a")
        assert manager.open == []


# What a manager is asked and told


def test_hooks_are_called_in_the_documented_order() -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager) as pool:
        for _ in range(2):
            with pool.connection("a") as conn:
                manager.told.append(("use", conn.number))

    first = [("create", 1), ("acquire", 1), ("use", 1), ("release", 1)]
    second = [("check", 1), ("acquire", 1), ("use", 1), ("release", 1)]
    assert manager.told == [*first, *second, ("dispose", 1)]


@pytest.mark.parametrize("how", ["raises", "is struck", "is released in its body", "at close"])
def test_each_on_acquire_is_followed_by_one_on_release(how: str) -> None:
    manager = Hooked()
    pool = ConnectionPool[str, Conn](manager)
    if how == "raises":
        with pytest.raises(OSError, match="broken"):
            with pool.connection("a"):
                raise OSError("broken")
    elif how == "is struck":
        holding = Event()

        def hold() -> None:
            with pool.connection("a"):
                holding.set()
                Event().wait()

        holder = gevent.spawn(hold)
        assert holding.wait(10)
        holder.kill()
    elif how == "is released in its body":
        with pool.connection("a") as conn:
            pool.release(conn, "a")
    else:
        conn = pool.acquire("a")
        gevent.spawn(pool.close, 0).join()
    pool.close()

    assert manager.told == [("create", 1), ("acquire", 1), ("release", 1), ("dispose", 1)]


def test_what_goes_from_hand_to_hand_is_checked_too() -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        with pool.connection("a"):
            waiter = gevent.spawn(pool.acquire, "a")
            until(lambda: pool.stats().waiting)
            manager.acts["check"] = lambda: False
        second = waiter.get(timeout=10)
        pool.release(second, "a")

    assert second.number == 2
    assert ("dead", 1) in manager.told


class _Own:
    """Managers in all the shapes that duck typing allows."""

    def __init__(self) -> None:
        self.timeouts: list[Any] = []

    def create(self, endpoint: str) -> Conn:
        return Conn(1)

    def dispose(self, endpoint: str, conn: Conn) -> None:
        pass

    def check_aliveness(self, endpoint: str, conn: Conn) -> bool:
        return True

    def on_acquire(self, endpoint: str, conn: Conn) -> None:
        pass

    on_release = on_connection_dead = on_acquire


class _ByKeyword(_Own):
    def create(self, endpoint: str, *, timeout: float | None = None) -> Conn:  # type: ignore
        self.timeouts.append(timeout)
        return Conn(1)

    def dispose(self, endpoint: str, conn: Conn, **options: Any) -> None:  # type: ignore
        self.timeouts.append(options["timeout"])

    def check_aliveness(self, endpoint: str, conn: Conn, _: Any = None) -> bool:  # type: ignore
        self.timeouts.append(_)
        return True


@pytest.mark.parametrize(
    ("make", "timeouts"), [(_Own, []), (_ByKeyword, [10.0, 5.0, 2.0])], ids=["without", "with"]
)
def test_a_manager_may_take_timeouts_or_not(make: type[_Own], timeouts: list[float]) -> None:
    manager: Any = make()
    with ConnectionPool[str, Conn](manager, dispose_timeout=2.0) as pool:
        for _ in range(2):
            with pool.connection("a"):
                pass

    assert manager.timeouts == timeouts


def test_a_manager_with_async_methods_is_refused() -> None:
    class Async(Manager):
        async def create(self, endpoint: Any) -> Conn:  # type: ignore[override]
            return Conn(1)

    with pytest.raises(TypeError, match="needs no event loop"):
        ConnectionPool[str, Conn](Async())


def test_the_error_of_create_reaches_the_caller_as_it_is() -> None:
    class LoginFailed(Exception):
        pass

    error = LoginFailed("wrong password")
    manager = Manager(create=raising(error))
    with ConnectionPool[str, Conn](manager) as pool:
        with pytest.raises(LoginFailed, match="wrong password"):
            pool.acquire("a", timeout=10)
        manager.acts.clear()
        with pool.connection("a", timeout=10) as conn:
            assert conn.number == 1


def test_a_create_that_takes_too_long_ends_in_a_timeout_error() -> None:
    manager = Manager(create=Event().wait)
    with ConnectionPool[str, Conn](manager, connect_timeout=0.02) as pool:
        with pytest.raises(TimeoutError) as caught:
            pool.acquire("a")
        assert not isinstance(caught.value, PoolTimeout)
        until(lambda: pool.get_size() == 0)


def test_acquire_timeout_is_the_default_and_none_means_the_default() -> None:
    with ConnectionPool[str, Conn](Manager(), acquire_timeout=0.02, max_size=1) as pool:
        with pool.connection("a", timeout=10):
            for timeout in (None, 0, -1.5):
                with pytest.raises(TimeoutError):
                    pool.acquire("a", timeout=timeout)
                with pytest.raises(TimeoutError), pool.connection("a", timeout):
                    pass


@pytest.mark.slow
def test_callers_of_a_server_that_is_away_are_told_one_after_the_other_and_soon() -> None:
    manager = Manager(create=raising(ConnectionRefusedError("away")))
    # What the back-off of other pools would take at the very least, half of each wait.
    slow = sum(Backoff(jitter=0).delay(failures) for failures in range(1, 20)) / 2
    with ConnectionPool[str, Conn](manager) as pool:
        began = monotonic()
        callers = [gevent.spawn(_outcome, pool) for _ in range(20)]
        gevent.joinall(callers, timeout=60)

        assert {caller.value for caller in callers} == {"ConnectionRefusedError"}
        assert monotonic() - began < slow


def test_no_caller_that_waits_sees_the_error_of_a_dial_that_another_was_told_of() -> None:
    errors = iter([ConnectionRefusedError("no"), None])

    def fail_once() -> None:
        gevent.sleep(0.01)
        if (error := next(errors, None)) is not None:
            raise error

    with ConnectionPool[str, Conn](Manager(create=fail_once), max_size=2) as pool:
        callers = [gevent.spawn(_outcome, pool) for _ in range(3)]
        gevent.joinall(callers, timeout=10)

    assert [caller.value for caller in callers] == ["ConnectionRefusedError", "served", "served"]


def _outcome(pool: ConnectionPool[Any, Any]) -> str:
    try:
        with pool.connection("a"):
            return "served"
    except Exception as error:
        return type(error).__name__


# D1, D2: cancellation loses nothing


@pytest.mark.parametrize("exc_class", [GreenletExit, gevent.Timeout])
@pytest.mark.parametrize("where", ["create", "check", "acquire", "dispose", "release"])
def test_d1_d2_a_caller_struck_in_a_hook_loses_no_capacity(
    where: str, exc_class: type[BaseException]
) -> None:
    reached, blocked = Event(), Event()
    manager = Hooked()

    def block() -> None:
        reached.set()
        blocked.wait()

    def use() -> None:
        with pool.connection("a"):
            pass

    with ConnectionPool[str, Conn](manager, max_size=1, dispose_timeout=0.05) as pool:
        if where != "create":
            use()
        if where == "dispose":
            manager.acts["check"] = lambda: False
        manager.acts[where] = block
        victim = gevent.spawn(_swallowing, use)
        assert reached.wait(10)
        victim.kill(exc_class)
        manager.acts.clear()
        blocked.set()
        is_whole(pool, 1)
        assert pool.get_size() == 1
    assert manager.peak == 1
    assert manager.open == []


@pytest.mark.parametrize("passes", range(1, 30))
@pytest.mark.parametrize("exc_class", [GreenletExit, gevent.Timeout])
def test_a_greenlet_struck_at_any_pass_of_the_loop_leaves_the_pool_whole(
    passes: int, exc_class: type[BaseException]
) -> None:
    def give_way() -> None:
        gevent.sleep(0)

    names = ("create", "dispose", "check", "acquire", "release", "dead")
    manager = Hooked(**dict.fromkeys(names, give_way))

    def act() -> None:
        with pool.connection("a"):
            gevent.sleep(0)
        conn = pool.acquire("a")
        pool.release(conn, "a")
        manager.acts["check"] = lambda: gevent.sleep(0) or False
        with pool.connection("a"):
            manager.acts["check"] = give_way
        with pool.connection("b"):
            pool.dispose()

    with ConnectionPool[str, Conn](manager, max_size=1, total_max_size=1) as pool:
        actor = gevent.spawn(_swallowing, act)
        for _ in range(passes):
            gevent.sleep(0)
        actor.kill(exc_class)
        manager.acts["check"] = give_way
        is_whole(pool, 1)
        is_whole(pool, 1, "b")
    counts = Counter(what for what, _ in manager.told)
    assert counts["create"] == counts["dispose"]
    assert manager.peak == 1


def _swallowing(action: Callable[[], object]) -> None:
    try:
        action()
    except gevent.Timeout:
        pass


# D3 and D4: every waiter is served


def test_d3_a_waiter_killed_as_it_is_handed_a_connection_leaves_it_to_the_next() -> None:
    with ConnectionPool[str, Conn](Manager(), max_size=1) as pool:
        conn = pool.acquire("a")
        first, second = (gevent.spawn(pool.acquire, "a") for _ in range(2))
        until(lambda: pool.stats().waiting == 2)
        first.kill(block=False)  # it will strike between the hand-over and its waking up
        pool.release(conn, "a")
        assert pool.stats().waiting == 1

        assert second.get(timeout=10) is conn
        pool.release(conn, "a")
        assert pool.get_endpoint_pool_size("a", acquired=True) == 0


@pytest.mark.parametrize("wanted", ["a", "b"])
def test_d4_a_release_serves_who_waits_for_the_total_limit(wanted: str) -> None:
    manager = Manager()
    with ConnectionPool[str, Conn](manager, max_size=2, total_max_size=2) as pool:
        held = [pool.acquire("a"), pool.acquire("c" if wanted == "a" else "a")]
        waiter = gevent.spawn(pool.acquire, wanted, 10)
        until(lambda: pool.stats().waiting)
        pool.release(held[0], "a")

        conn = waiter.get(timeout=5)
        assert conn.number == (1 if wanted == "a" else 3)
        pool.release(conn, wanted)
        pool.release(held[1])
        assert manager.peak == 2


def test_the_total_limit_holds_and_the_idle_of_others_make_room() -> None:
    manager = Manager(create=gevent.sleep, dispose=gevent.sleep)
    with ConnectionPool[str, Conn](manager, max_size=2, total_max_size=3) as pool:
        users = [gevent.spawn(_outcome_at, pool, e) for e in "abcdefgh" * 5]
        gevent.joinall(users, timeout=30)

        assert [user.value for user in users] == ["served"] * 40
        assert manager.peak == 3


def _outcome_at(pool: ConnectionPool[Any, Any], endpoint: str) -> str:
    with pool.connection(endpoint, timeout=20):
        gevent.sleep(0)
        return "served"


# D5 and D6: the end


def test_d5_close_wakes_who_waits_and_closes_what_is_held_when_its_time_is_up() -> None:
    manager = Manager()
    pool = ConnectionPool[str, Conn](manager, max_size=1)
    holding, done = Event(), Event()

    def hold() -> str:
        with pool.connection("a"):
            holding.set()
            done.wait()
        return "ended well"

    holder = gevent.spawn(hold)
    holding.wait()
    waiter = gevent.spawn(_outcome, pool)
    until(lambda: pool.stats().waiting)
    pool.close(timeout=0.05)

    assert waiter.get(timeout=10) == "ConnectionPoolClosedError"
    assert manager.open == []
    assert pool.get_size() == 0
    done.set()
    assert holder.get(timeout=5) == "ended well"
    pool.close(timeout=-1)


def test_d5_close_without_a_timeout_waits_for_the_last_release() -> None:
    manager = Manager()
    pool = ConnectionPool[str, Conn](manager)
    conn = pool.acquire("a")
    closer = gevent.spawn(pool.close)
    until(lambda: pool.closed)
    assert not closer.ready()
    pool.release(conn, "a")
    closer.get(timeout=10)

    assert manager.open == []


@pytest.mark.parametrize("timeout", [None, 0])
def test_d6_a_release_after_close_raises_nothing(timeout: float | None) -> None:
    manager = Hooked()
    pool = ConnectionPool[str, Conn](manager)
    conn = pool.acquire("a")
    with pool.connection("b"):
        pool.close(timeout)
        pool.release(conn, "a")
        with pytest.raises(ConnectionPoolClosedError, match="is closed"):
            pool.acquire("a")
    pool.close()

    assert manager.open == []


def test_d6_a_release_of_what_was_closed_under_its_holder_raises_nothing() -> None:
    manager = Hooked()
    pool = ConnectionPool[str, Conn](manager)
    conn = pool.acquire("a")
    gevent.spawn(pool.close, 0).join()
    assert manager.open == []

    pool.release(conn, "a")


# D7, D8, D16: what is dead or too old


def test_d7_a_connection_found_dead_is_told_of_and_disposed_of() -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager) as pool:
        with pool.connection("a"):
            pass
        del manager.told[:]
        manager.acts["check"] = lambda: False
        with pool.connection("a") as conn:
            assert conn.number == 2
        assert manager.told[:2] == [("check", 1), ("dead", 1)]
        assert ("dispose", 1) in manager.told


def test_an_on_connection_dead_that_raises_harms_no_other() -> None:
    manager = Hooked(dead=raising(ValueError("too sad")))
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        with pool.connection("a"):
            pass
        manager.acts["check"] = lambda: False
        with pool.connection("a", timeout=5) as conn:
            assert conn.number == 2
        assert manager.told.count(("dead", 1)) == 1


@pytest.mark.parametrize("raised", [ValueError("what?"), gevent.Timeout()])
def test_a_check_that_raises_makes_room_for_another_connection(raised: BaseException) -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager) as pool:
        with pool.connection("a"):
            pass
        manager.acts["check"] = raising(raised)
        if isinstance(raised, Exception):
            with pool.connection("a") as conn:
                assert conn.number == 2
        else:
            with pytest.raises(gevent.Timeout):
                pool.acquire("a")
        until(lambda: ("dispose", 1) in manager.told)


def test_a_check_takes_no_longer_than_its_caller_has_time() -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        with pool.connection("a"):
            pass
        manager.acts["check"] = Event().wait
        manager.acts["create"] = Event().wait  # else a new one might be there in the last moment
        began = monotonic()
        with pytest.raises(TimeoutError):
            pool.acquire("a", timeout=0.05)
        assert monotonic() - began < 2


@pytest.mark.parametrize(
    ("idle_timeout", "max_lifetime", "pauses"),
    [(60, 3600, [60]), (50, 60, [30, 30])],
    ids=["idle_timeout", "max_lifetime"],
)
def test_d8_d16_what_is_past_its_time_is_disposed_of_without_a_release_and_not_handed_out(
    idle_timeout: float, max_lifetime: float, pauses: list[float]
) -> None:
    manager = Manager()
    spans = {"idle_timeout": idle_timeout, "max_lifetime": max_lifetime}
    with FakeClock() as clock, ConnectionPool[str, Conn](manager, min_idle=0, **spans) as pool:
        for pause in pauses:
            with pool.connection("a") as conn:
                assert conn.number == 1
            clock.advance(pause)  # and nothing runs that could dispose of it
        with pool.connection("a") as conn:
            assert conn.number == 2
        until(lambda: manager.open == [2])
        clock.advance(60)
        until(lambda: not manager.open)


def test_min_idle_is_spared_by_the_idle_timeout() -> None:
    manager = Manager()
    with (
        FakeClock() as clock,
        ConnectionPool[str, Conn](manager, min_idle=2, idle_timeout=60) as pool,
    ):
        for conn in [pool.acquire("a") for _ in range(4)]:
            pool.release(conn, "a")
        clock.advance(60)
        until(lambda: len(manager.open) == 2)
        for _ in range(3):
            clock.advance(60)
            gevent.idle()
        assert len(manager.open) == 2


# D9, D10: sockets


def test_d9_a_unix_socket_is_used_twice_without_a_wait(tmp_path: Path) -> None:
    path = tmp_path / "server"
    with IdServer(path=path) as server:
        with ConnectionPool[Path, Any](UnixSocketConnectionManager()) as pool:
            for question in ("one", "two"):
                with gevent.Timeout(5), pool.connection(path) as sock:
                    assert ask(sock, question) == question
            assert server.opened == 1
            assert UnixSocketConnectionManager().check_aliveness(path, sock)


def test_a_tcp_socket_is_used_again_unless_the_server_has_hung_up(server: IdServer) -> None:
    class Watching(TcpSocketConnectionManager):
        def on_connection_dead(self, endpoint: Any, conn: Any) -> None:
            dead.append(endpoint)

    dead: list[Any] = []
    endpoint = endpoint_of(server)
    with ConnectionPool[Any, Any](Watching()) as pool:
        for question in ("one", "two"):
            with pool.connection(endpoint) as sock:
                assert ask(sock, question) == question
        assert server.opened == 1
        server.fin_all()
        with pool.connection(endpoint) as sock:
            assert ask(sock, "three") == "three"
        assert server.opened == 2
        until(lambda: dead)
    assert dead == [endpoint]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_d10_a_tls_socket_whose_server_said_goodbye_is_not_handed_out(
    tls_server: IdServer, trusting: ssl.SSLContext, version: str
) -> None:
    trusting.maximum_version = getattr(ssl.TLSVersion, version)
    manager = SslSocketConnectionManager(trusting)
    endpoint = ("localhost", tls_server.address[1])
    with ConnectionPool[Any, Any](manager) as pool:
        for question in ("one", "two"):
            with pool.connection(endpoint, timeout=10) as sock:
                assert ask(sock, question) == question
                assert sock.version() == version.replace("_", ".")
        assert tls_server.opened == 1  # session tickets have not spoiled it
        assert manager.check_aliveness(endpoint, sock)
        tls_server.fin_all()
        assert not manager.check_aliveness(endpoint, sock)
        with pool.connection(endpoint, timeout=10) as sock:
            assert ask(sock, "three") == "three"


def test_d10_a_tls_handshake_that_fails_leaves_no_socket_open(tls_server: IdServer) -> None:
    with ConnectionPool[Any, Any](SslSocketConnectionManager(ssl.create_default_context())) as pool:
        with pytest.raises(ssl.SSLCertVerificationError):
            pool.acquire(("localhost", tls_server.address[1]), timeout=10)
        tls_server.wait_open(0)


@pytest.mark.parametrize("kind", ["tcp", "tls", "stream"])
def test_d10_a_server_that_does_not_answer_is_a_timeout_error(
    kind: str, trusting: ssl.SSLContext
) -> None:
    with stdlib_socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        filling = [gevent.spawn(gevent.socket.create_connection, ("127.0.0.1", port), 5)]
        gevent.joinall(filling, timeout=5)
        filling += [gevent.spawn(_try_to_connect, port) for _ in range(2)]
        gevent.idle()
        manager, endpoint = {
            "tcp": (TcpSocketConnectionManager(), (LOCALHOST, port)),
            "tls": (SslSocketConnectionManager(trusting), ("localhost", port)),
            "stream": (TcpStreamConnectionManager(trusting), ("localhost", port)),
        }[kind]
        began = monotonic()
        with pytest.raises(TimeoutError):
            manager.create(endpoint, timeout=0.05)  # type: ignore[attr-defined]
        assert monotonic() - began < 4
        gevent.killall(filling)
        filling[0].value.close()


def _try_to_connect(port: int) -> None:
    with gevent.socket.socket() as sock:
        sock.connect(("127.0.0.1", port))
        Event().wait()


def test_a_refused_connection_is_refused_by_every_manager(trusting: ssl.SSLContext) -> None:
    with closed_port() as (_, port):
        _assert_refused(port, trusting)


def test_a_name_with_several_addresses_raises_the_error_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def two_addresses(host: str, port: int, *args: Any) -> Any:
        return [
            (stdlib_socket.AF_INET, stdlib_socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port))
            for n in (1, 2)
        ]

    monkeypatch.setattr(look_up, "getaddrinfo", two_addresses)
    with closed_port() as (_, port), pytest.raises(ConnectionRefusedError):
        TcpStreamConnectionManager().create(("twice.test", port), timeout=5)


def test_new_sockets_have_the_program_s_default_timeout(server: IdServer) -> None:
    stdlib_socket.setdefaulttimeout(7.5)
    try:
        sock = TcpSocketConnectionManager().create(endpoint_of(server))
    finally:
        stdlib_socket.setdefaulttimeout(None)
    with sock:
        assert sock.gettimeout() == 7.5


def _assert_refused(port: int, trusting: ssl.SSLContext) -> None:
    for manager, endpoint in (
        (TcpSocketConnectionManager(), (LOCALHOST, port)),
        (SslSocketConnectionManager(trusting), ("localhost", port)),
        (TcpStreamConnectionManager(), ("localhost", port)),
    ):
        with pytest.raises(ConnectionRefusedError):
            manager.create(endpoint, timeout=5)  # type: ignore[attr-defined]
        with ConnectionPool[Any, Any](manager) as pool, pytest.raises(ConnectionRefusedError):
            pool.acquire(endpoint)


def test_unread_bytes_are_read_by_no_caller(server: IdServer) -> None:
    manager = TcpSocketConnectionManager()
    endpoint = endpoint_of(server)
    with ConnectionPool[Any, Any](manager) as pool:
        with pool.connection(endpoint) as sock:
            sock.sendall(b"stale\n")
            assert sock.recv(6, stdlib_socket.MSG_PEEK)
            assert not manager.check_aliveness(endpoint, sock)
        with pool.connection(endpoint) as sock:
            assert ask(sock, "fresh") == "fresh"


def test_a_manager_made_of_a_mix_in_is_not_asked_at_each_hand_out(server: IdServer) -> None:
    class Mine(SocketAlivenessCheckingMixin[Any], BaseConnectionManager[Any, Any]):
        def create(self, endpoint: Any, timeout: float | None = None) -> Any:
            return gevent.socket.create_connection(endpoint, timeout)

        def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
            conn.close()

    with ConnectionPool[Any, Any](Mine()) as pool:
        assert pool.check_after is None
        for _ in range(2):
            with pool.connection(server.address) as sock:
                assert ask(sock, "hello") == "hello"
        server.rst_all()
        with pool.connection(server.address) as sock:
            assert ask(sock, "hello") == "hello"
    assert server.opened == 2


# D11 to D13: giving back


def test_d11_a_connection_whose_on_release_failed_is_disposed_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = Hooked(release=raising(RuntimeError("not reset")))
    with ConnectionPool[str, Conn](manager) as pool:
        with pool.connection("a"):
            pass
        until(lambda: manager.open == [])
        del manager.acts["release"]
        with pool.connection("a") as conn:
            assert conn.number == 2
    assert "not reset" in caplog.text
    assert manager.told.count(("release", 1)) == 1


@pytest.mark.parametrize("error", [RuntimeError("no"), gevent.Timeout()])
def test_what_on_acquire_raises_is_raised_and_its_connection_disposed_of(
    error: BaseException,
) -> None:
    manager = Hooked(acquire=raising(error))
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        with pytest.raises(type(error)) as caught:
            pool.acquire("a")
        assert caught.value is error
        with pytest.raises(type(error)), pool.connection("a"):
            pytest.fail("entered")
        del manager.acts["acquire"]
        is_whole(pool, 1)
    assert ("release", 1) not in manager.told


@pytest.mark.parametrize("error", [AssertionError, RuntimeError, NotInUse])
def test_d12_a_second_release_is_refused_and_harms_nothing(error: type[Exception]) -> None:
    with ConnectionPool[str, Conn](Manager(), max_size=1) as pool:
        conn = pool.acquire("a")
        pool.release(conn, "a")
        with pytest.raises(error, match="released twice, or not ours"):
            pool.release(conn, "a")
        with pytest.raises(error):
            pool.release(Conn(7), "a")
        is_whole(pool, 1)


def test_d12_a_release_to_another_endpoint_is_refused_and_loses_nothing() -> None:
    with ConnectionPool[str, Conn](Manager(), max_size=1) as pool:
        conn = pool.acquire("a")
        with pool.connection("c"):
            pass
        for wrong in "bc":
            with pytest.raises(ConnectionPoolNotFound, match=f"to 'a', not to '{wrong}'"):
                pool.release(conn, wrong)
        assert pool.get_endpoint_pool_size("a", acquired=True) == 1
        pool.release(conn, "a")
        is_whole(pool, 1)


def test_d13_a_release_does_not_wait_until_others_are_disposed_of() -> None:
    blocked = Event()
    manager = Manager(dispose=blocked.wait)
    with ConnectionPool[str, Conn](manager, min_idle=0, idle_timeout=0.01) as pool:
        first, second = pool.acquire("a"), pool.acquire("b")
        pool.release(first, "a")
        until(lambda: pool.stats().closing)
        with gevent.Timeout(5):
            pool.release(second, "b")
        blocked.set()


def test_a_dispose_that_hangs_or_fails_gives_its_place_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for act in (Event().wait, raising(RuntimeError("stuck"))):
        manager = Manager(dispose=act)
        with ConnectionPool[str, Conn](manager, max_size=1, dispose_timeout=0.02) as pool:
            pool.discard(pool.acquire("a"))
            with pool.connection("a", timeout=5) as conn:
                assert conn.number == 2
            manager.acts.clear()
    failed = [r for r in caplog.records if r.name == "generic_connection_pool.threading"]
    assert [record.levelno for record in failed] == [logging.ERROR] * 2


def test_an_on_release_that_hangs_as_well_as_dispose_gives_the_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (face.threading.pool, closer):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.05)
    manager = Hooked(release=Event().wait, dispose=Event().wait)
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        pool.discard(pool.acquire("a"))
        conn = pool.acquire("a", timeout=5)
        assert conn.number == 2
        manager.acts.clear()
        pool.release(conn, "a")


def test_a_socket_whose_dispose_failed_is_closed_all_the_same(server: IdServer) -> None:
    class Careless(TcpSocketConnectionManager):
        def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
            raise RuntimeError("forgotten")

    with ConnectionPool[Any, Any](Careless()) as pool:
        with pool.connection(endpoint_of(server)) as sock:
            pass
    assert sock.fileno() == -1


# D14, D15: nothing stays


def test_d14_a_program_ends_without_closing_its_pool() -> None:
    program = """
from geventpool.compat.generic_connection_pool import BaseConnectionManager, ConnectionPool

class Manager(BaseConnectionManager):
    def create(self, endpoint): return object()
    def dispose(self, endpoint, conn): pass

pool = ConnectionPool(Manager(), background_collector=True)
with pool.connection("a"):
    print("used")
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout, done.stderr) == (0, "used\n", "")


def test_d14_a_pool_that_is_not_used_any_more_is_collected_and_its_connections_disposed_of() -> (
    None
):
    manager = Hooked()
    pool = ConnectionPool[str, Conn](manager, background_collector=True)
    with pool.connection("a"):
        pass
    reference = weakref.ref(pool)
    del pool
    gc.collect()
    until(lambda: not manager.open)
    gc.collect()

    assert reference() is None


def test_d15_an_endpoint_that_cannot_be_reached_leaves_no_trace() -> None:
    manager = Manager(create=raising(OSError("no such host")))
    with ConnectionPool[int, Conn](manager) as pool:
        for endpoint in range(100):
            with pytest.raises(OSError, match="no such host"):
                pool.acquire(endpoint)
        until(lambda: not pool.endpoints())


def test_a_forgotten_connection_gives_its_place_back() -> None:
    manager = Hooked()
    with ConnectionPool[str, Conn](manager, max_size=1) as pool:
        pool.acquire("a")
        gc.collect()
        conn = pool.acquire("a", timeout=10)
        assert conn.number == 2
        pool.release(conn, "a")


# No caller reads another's reply


@pytest.mark.parametrize("how", ["with", "try"])
@pytest.mark.parametrize("exc_class", [gevent.Timeout, GreenletExit])
def test_no_caller_reads_the_reply_to_a_request_that_was_cut_short(
    how: str, exc_class: type[BaseException]
) -> None:
    def use(question: str) -> str:
        if how == "with":
            with pool.connection(endpoint) as sock:
                return ask(sock, question)
        sock = pool.acquire(endpoint)
        try:
            return ask(sock, question)
        finally:
            pool.release(sock, endpoint)

    with IdServer(late_share=1, late_by=0.2) as server:
        endpoint = endpoint_of(server)
        with ConnectionPool[Any, Any](TcpSocketConnectionManager(), max_size=1) as pool:
            user = gevent.spawn(_swallowing, lambda: use("first"))
            until(lambda: server.requests)
            user.kill(exc_class)
            server.late_share = 0
            assert use("second") == "second"
            assert server.opened == 2


def test_a_release_after_an_exception_that_says_nothing_of_the_connection_keeps_it() -> None:
    manager = Manager()
    with ConnectionPool[str, Conn](manager) as pool:
        conn = pool.acquire("a")
        with pytest.raises(ValueError):
            try:
                raise ValueError
            finally:
                pool.release(conn, "a")
        with pytest.raises(ValueError), pool.connection("a"):
            raise ValueError
    assert manager.created == 1


def test_timeouts_and_kills_lose_no_capacity_and_harm_no_other() -> None:
    answers: Counter[str] = Counter()

    def use(number: int) -> None:
        dice = random.Random(number)  # its own: no luck depends on which is faster
        for turn in range(10):
            question = f"{number}-{turn}"
            endpoint = dice.choice(endpoints)
            patience = dice.choice([0.0, 0.002, 0.02, 30])
            try:
                with gevent.Timeout(patience):
                    if dice.random() < 0.5:
                        with pool.connection(endpoint) as sock:
                            answer = ask(sock, question)
                    else:
                        sock = pool.acquire(endpoint)
                        try:
                            answer = ask(sock, question)
                        finally:
                            pool.release(sock, endpoint)
                assert answer == question
                answers["right"] += 1
            except gevent.Timeout:
                assert patience < 30
                answers["late"] += 1

    class Counted(TcpSocketConnectionManager):
        open = peak = balance = 0

        def create(self, endpoint: Any, timeout: float | None = None) -> Any:
            sock = super().create(endpoint, timeout)
            Counted.open += 1
            Counted.peak = max(self.peak, self.open)
            return sock

        def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
            super().dispose(endpoint, conn, timeout)
            Counted.open -= 1

        def on_acquire(self, endpoint: Any, conn: Any) -> None:
            Counted.balance += 1

        def on_release(self, endpoint: Any, conn: Any) -> None:
            Counted.balance -= 1

    with (
        IdServer(late_share=0.2, late_by=0.01, seed=3) as one,
        IdServer(late_share=0.2, late_by=0.01, seed=5) as other,
    ):
        endpoints = [endpoint_of(one), endpoint_of(other)]
        with ConnectionPool[Any, Any](Counted(), max_size=3, total_max_size=4) as pool:
            users = [gevent.spawn(use, number) for number in range(40)]
            for user in random.Random(4).sample(users, 15):
                gevent.sleep(0.002)
                user.kill(block=False)
            gevent.joinall(users, raise_error=True, timeout=60)

            assert answers["right"] > 50
            assert answers["late"] > 20
            until(lambda: pool.stats().closing == 0)
            is_whole(pool, 3, endpoints[0])
            assert Counted.peak <= 4
    assert (Counted.open, Counted.balance) == (0, 0)


# Streams


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_a_stream_is_a_pair_of_buffered_files(
    kind: str, tmp_path: Path, trusting: ssl.SSLContext, request: pytest.FixtureRequest
) -> None:
    manager: Any
    if kind == "unix":
        server = request.enclosing = IdServer(path=tmp_path / "server")  # type: ignore
        server.start()
        request.addfinalizer(server.stop)
        endpoint: Any = tmp_path / "server"
        manager = UnixSocketStreamConnectionManager()
    else:
        server = request.getfixturevalue("tls_server" if kind == "tls" else "server")
        endpoint = ("localhost" if kind == "tls" else "127.0.0.1", server.address[1])
        manager = TcpStreamConnectionManager(ssl=trusting if kind == "tls" else None)
    with ConnectionPool[Any, Any](manager) as pool:
        for question in (b"one\n", b"two\n"):
            with pool.connection(endpoint, timeout=10) as (reader, writer):
                writer.write(question)  # and no flush: it is on its way
                assert reader.readline() == question
                writer.writelines([b"three\n", b"four\n"])
                writer.flush()
                assert reader.read(6) == b"three\n"
                assert reader.readline() == b"four\n"
        assert server.opened == 1
        assert manager.check_aliveness(endpoint, (reader, writer))
        server.fin_all()
        assert not manager.check_aliveness(endpoint, (reader, writer))
        with pool.connection(endpoint, timeout=10) as (reader, writer):
            writer.write(b"five\n")
            assert reader.readline() == b"five\n"
        assert server.opened == 2
    assert reader.sock.fileno() == -1
    server.wait_open(0)


def test_a_stream_taken_apart_is_given_back_put_together(server: IdServer) -> None:
    with ConnectionPool[Any, Any](TcpStreamConnectionManager()) as pool:
        reader, writer = pool.acquire(server.address)
        pool.release((reader, writer), server.address)
        with pytest.raises(ConnectionNotAcquired):
            pool.release((reader, writer), server.address)
        with pool.connection(server.address) as (again, _):
            assert again is reader


def test_a_stream_that_was_forgotten_gives_its_place_back(server: IdServer) -> None:
    with ConnectionPool[Any, Any](TcpStreamConnectionManager(), max_size=1) as pool:
        for keep in range(2):
            held = [pool.acquire(server.address, timeout=5)[keep]]
            gc.collect()
            gevent.idle()
            assert pool.get_endpoint_pool_size(server.address, acquired=True) == 1
            with pytest.warns(ResourceWarning):
                held.clear()
            until(lambda: pool.get_size() == 0)
        with pool.connection(server.address, timeout=5) as (reader, writer):
            writer.write(b"hello\n")
            assert reader.readline() == b"hello\n"
        server.wait_open(1)


def test_what_is_left_of_a_stream_is_closed_by_force(server: IdServer) -> None:
    for keep in range(2):
        pool = ConnectionPool[Any, Any](TcpStreamConnectionManager())
        part = pool.acquire(server.address, timeout=5)[keep]
        gc.collect()
        gevent.spawn(pool.close, timeout=0).join(5)
        assert part.sock.fileno() == -1
    server.wait_open(0)


def test_on_release_is_called_for_a_stream_that_was_put_together_again(server: IdServer) -> None:
    class Manager(TcpStreamConnectionManager):
        def on_release(self, endpoint: Any, conn: Any) -> None:
            released.append(conn)

    released: list[Any] = []
    with ConnectionPool[Any, Any](Manager()) as pool:
        for _ in range(3):
            reader, writer = pool.acquire(server.address)
            pool.release((reader, writer))
    assert released == [(reader, writer)] * 3


def test_one_endpoint_may_be_none_as_before(server: IdServer) -> None:
    class Manager(BaseConnectionManager[None, Any]):
        def create(self, endpoint: None, timeout: float | None = None) -> Any:
            assert endpoint is None
            return gevent.socket.create_connection(server.address, timeout)

        def dispose(self, endpoint: None, conn: Any, timeout: float | None = None) -> None:
            conn.close()

    with ConnectionPool[None, Any](Manager()) as pool:
        with pool.connection(None) as conn:
            assert pool.get_endpoint_pool_size(None, acquired=True) == 1
            conn.sendall(b"hello\n")
            assert conn.recv(100) == b"hello\n"
        pool.release(pool.acquire(None), None)
        pool.release(pool.acquire(endpoint=None), endpoint=None)
        assert pool.get_endpoint_pool_size(None) == 1


def test_what_lies_unread_in_the_buffer_of_a_stream_is_read_by_no_caller(server: IdServer) -> None:
    with ConnectionPool[Any, Any](TcpStreamConnectionManager()) as pool:
        with pool.connection(server.address) as (reader, writer):
            writer.write(b"one\ntwo\n")
            assert reader.readline() == b"one\n"
            assert reader.peek() == b"two\n"
        with pool.connection(server.address) as (reader, writer):
            writer.write(b"three\n")
            assert reader.readline() == b"three\n"


def test_what_a_write_cut_short_has_left_is_not_sent_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(EchoServer):
        def serve(self, sock: Any) -> None:
            Event().wait()

    for module in (face.threading.pool, closer):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT", 60)
    path, manager = tmp_path / "server", UnixSocketStreamConnectionManager()
    with Deaf(path=path), ConnectionPool[Any, Any](manager) as pool:
        with pytest.raises(gevent.Timeout):
            with pool.connection(path) as (_, writer), gevent.Timeout(0.1):
                while True:
                    writer.write(b"x" * 8000)
        until(lambda: pool.get_size() == 0)  # it does not wait for a listener


def test_no_event_loop_is_needed_nor_made(server: IdServer) -> None:
    with ConnectionPool[Any, Any](TcpStreamConnectionManager()) as pool:
        with pool.connection(server.address) as (reader, writer):
            writer.write(b"hello\n")
            assert reader.readline() == b"hello\n"
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


# Against the original

_PROGRAM = """
import gevent.monkey
gevent.monkey.patch_all()
import importlib, ipaddress, json, socket, sys, time
import gevent

library, port = sys.argv[1], int(sys.argv[2])
if library == "geventpool":
    from geventpool.compat import generic_connection_pool as gcp
    threading = contrib = gcp
else:
    import generic_connection_pool as gcp
    threading = importlib.import_module("generic_connection_pool.threading")
    contrib = importlib.import_module("generic_connection_pool.contrib.socket")

seen, told = [], []

class Manager(contrib.TcpSocketConnectionManager):
    def create(self, endpoint, timeout=None):
        if endpoint == "broken":
            raise LookupError("broken")
        told.append("create")
        return super().create(endpoint, timeout=timeout)
    def dispose(self, endpoint, conn, timeout=None):
        told.append("dispose")
        super().dispose(endpoint, conn, timeout=timeout)
    def check_aliveness(self, endpoint, conn, timeout=None):
        told.append("check")
        return super().check_aliveness(endpoint, conn, timeout=timeout)
    def on_acquire(self, endpoint, conn):
        told.append("acquire")
    def on_release(self, endpoint, conn):
        told.append("release")
    def on_connection_dead(self, endpoint, conn):
        told.append("dead")

def catch(call, *args, **kwargs):
    try:
        result = call(*args, **kwargs)
        seen.append(None if result is None else "fine")
        return result
    except Exception as error:
        names = ["TimeoutError", "AssertionError", "LookupError", "ConnectionRefusedError"]
        names += ["ConnectionPoolClosedError"]
        seen.append([c.__name__ for c in type(error).__mro__ if c.__name__ in names])

def look():
    sizes = [pool.get_endpoint_pool_size(one, acquired) for acquired in (None, True, False)]
    seen.append([pool.get_size(), pool.is_full, *sizes])

one = (ipaddress.ip_address("127.0.0.1"), port)
nobody = (ipaddress.ip_address("127.0.0.1"), 1)
pool = threading.ConnectionPool[tuple, socket.socket](
    Manager(), acquire_timeout=5, idle_timeout=30.0, min_idle=1, max_size=2, total_max_size=3,
)
seen.append([pool.idle_timeout, pool.max_lifetime, pool.min_idle, pool.max_size,
             pool.total_max_size, isinstance(pool, gcp.BaseConnectionPool)])
look()
with pool.connection(one) as sock:
    sock.sendall(b"hello\\n")
    seen.append(sock.recv(6).decode())
    look()
look()
first = pool.acquire(one)
second = pool.acquire(endpoint=one, timeout=5.0)
seen.append(first is sock)
look()
catch(pool.acquire, one, timeout=0.05)
catch(pool.acquire, one, 0)
waiter = gevent.spawn(pool.acquire, one)
gevent.idle()
pool.release(second, endpoint=one)
seen.append(waiter.get(timeout=5) is second)
pool.release(first, one)
pool.release(second, one)
count = len(told)
catch(pool.release, second, one)
del told[count:]  # the original calls on_release before it refuses
look()
try:
    with pool.connection(one):
        raise ValueError
except ValueError:
    look()
catch(pool.acquire, "broken")
catch(pool.acquire, nobody)
seen.append(pool.get_endpoint_pool_size("never seen"))
catch(threading.ConnectionPool, Manager(), min_idle=5, max_size=2)
catch(pool.close)
look()
catch(pool.acquire, one)
seen.append(sorted(told))
print(json.dumps(seen))
"""


def test_a_patched_program_sees_the_same_as_with_the_original(tmp_path: Path) -> None:
    pytest.importorskip("generic_connection_pool")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(_PROGRAM))

    with IdServer() as server:
        ours, theirs = (_run(program, name, server) for name in ("geventpool", "original"))

    assert ours == theirs


def _run(program: Path, library: str, server: IdServer) -> Any:
    from gevent import subprocess as cooperative

    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = cooperative.run(
        [sys.executable, str(program), library, str(server.address[1])],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_manager_of_the_original_serves_as_it_is(server: IdServer) -> None:
    original = pytest.importorskip("generic_connection_pool.threading")

    class Theirs(original.BaseConnectionManager):  # type: ignore[misc, name-defined]
        def create(self, endpoint: Any, timeout: float | None = None) -> Any:
            return gevent.socket.create_connection(endpoint, timeout)

        def dispose(self, endpoint: Any, conn: Any, timeout: float | None = None) -> None:
            conn.close()

    with ConnectionPool[Any, Any](Theirs()) as pool:
        for _ in range(2):
            with pool.connection(server.address) as sock:
                assert ask(sock, "hello") == "hello"
    assert server.opened == 1


@pytest.mark.parametrize("by_with", [True, False])
def test_a_wrong_server_has_all_connections_to_that_endpoint_replaced(by_with: bool) -> None:
    class Moved(Exception):
        pass

    class Knows(ConnectionPool[str, Conn]):
        def _classify_error(self, error: Exception) -> Verdict:
            return Verdict.WRONG_SERVER if isinstance(error, Moved) else Verdict.FINE

    manager = Manager()
    with Knows(manager, min_idle=3, max_size=3) as pool:
        for conn in [pool.acquire("here") for _ in range(3)]:
            pool.release(conn, "here")
        with pytest.raises(Moved):
            if by_with:
                with pool.connection("here"):
                    raise Moved
            conn = pool.acquire("here")
            try:
                raise Moved
            finally:
                pool.release(conn, "here")
        until(lambda: not manager.open)
