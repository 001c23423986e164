"""A program that used pycassa.pool has changed an import: what held still holds, and more.

P1 to P14 are the faults of pycassa 1.11.2; each test says what must hold instead.
"""

from __future__ import annotations

import gc
import logging
import pickle
import random
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from geventpool import Backoff, PoolClosed, Reason
from geventpool import ConnectionPool as GeventPool
from geventpool.compat.pycassa import (
    AllServersUnavailable,
    ConnectionPool,
    ConnectionWrapper,
    InvalidRequestError,
    MaximumRetryException,
    NoConnectionAvailable,
    PoolListener,
    PoolLogger,
    QueuePool,
    StatsLogger,
    _dialing,
)
from geventpool.compat.pycassa._listeners import EVENTS
from geventpool.events import ServerListObtained
from geventpool.testing import FakeClock
from support.servers import EchoServer, IdServer, closed_port
from support.strikes import PATIENCE, STRIKES, Stage, Strike
from support.waiting import until

SMALL_PAUSE = Backoff(first=0.001, longest=0.002)


class TimedOutException(Exception):
    """As a Thrift client has it: no OSError."""


class TApplicationException(Exception):
    """As a Thrift client has it."""


class Client:
    """A client of an IdServer, as Thrift's would be one of Cassandra."""

    def __init__(self, host: str, port: int, timeout: float | None) -> None:
        self.sock = gevent.socket.create_connection((host, port), timeout=timeout)
        self.timeout = timeout
        self.calls: list[Any] = []

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def login(self, credentials: Any) -> None:
        self.calls.append(("login", credentials))

    def set_keyspace(self, keyspace: str) -> None:
        self.calls.append(("set_keyspace", keyspace))

    def ask(self, question: str) -> str:
        self.sock.sendall(question.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("the server hung up")
            answer += data
        return answer[:-1].decode()

    def fail(self, error: BaseException) -> None:
        raise error


class Recorder:
    """A listener to everything, as users write them; *seen* is ``[(event, dict), ...]``."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "obtained_server_list":
            raise AttributeError(name)
        return lambda dic: self.seen.append((name, dic))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [dic for each, dic in self.seen if each == name]


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConnectionPool, "_pauses", SMALL_PAUSE)


@pytest.fixture
def server() -> Iterator[IdServer]:
    with IdServer() as server:
        yield server


def at(*servers: EchoServer) -> list[str]:
    return ["{}:{}".format(*server.address) for server in servers]


def make_pool(*servers: EchoServer, **settings: Any) -> ConnectionPool:
    settings.setdefault("client_factory", Client)
    settings.setdefault("retry_on", (OSError, EOFError, TimedOutException))
    settings.setdefault("discard_on", (TApplicationException,))
    settings.setdefault("timeout", 5.0)
    settings.setdefault("server_list", at(*servers))
    return ConnectionPool(settings.pop("keyspace", "Keyspace1"), **settings)


def assert_whole(pool: ConnectionPool, *servers: EchoServer) -> None:
    """All capacity is there, each connection works, and no server knows of one more."""
    stats = pool.stats()
    until(lambda: not pool.stats().connecting + pool.stats().closing, "rest")
    assert pool.checkedout() == 0, stats
    until(lambda: sum(s.open for s in servers) == pool.checkedin(), "no stray connection")
    maximum = pool.stats().maximum
    held: list[Any] = []

    def hold() -> None:  # each in its own greenlet: with use_threadlocal it is one per greenlet
        held.append(pool.get())

    gevent.joinall([gevent.spawn(hold) for _ in range(int(maximum))], timeout=PATIENCE)
    assert len({id(conn) for conn in held}) == maximum
    for number, conn in enumerate(held):
        assert conn.ask(f"whole {number}") == f"whole {number}"
        pool.put(conn)


# What is documented


def test_the_documented_example_works(server: IdServer) -> None:
    with make_pool(server, prefill=False) as pool:
        conn = pool.get()
        assert conn.ask("hello") == "hello"
        pool.put(conn)
        assert pool.execute("ask", "again") == "again"
        assert pool.checkedin() == server.opened == 1


def test_the_names_of_pycassa_are_there() -> None:
    assert QueuePool is ConnectionPool
    assert ConnectionPool.return_conn is ConnectionPool.put
    assert (ConnectionPool.pool_timeout, ConnectionPool.recycle) == (30, 10000)
    assert (ConnectionPool.max_retries, ConnectionPool.logging_name) == (5, None)


def test_positional_arguments_come_in_the_order_of_pycassa(server: IdServer) -> None:
    made: list[tuple[Any, ...]] = []

    def sockets(host: str, port: int) -> None: ...
    def transports(tsocket: Any, host: str, port: int) -> None: ...
    def factory(host: str, port: int, timeout: float, **extra: Any) -> Client:
        made.append((host, port, timeout, extra))
        return Client(host, port, timeout)

    who = {"username": "jsmith", "password": "havebadpass"}
    arguments = ("Keyspace1", at(server), who, 4.5, False, 1, True, sockets, transports)
    with ConnectionPool(*arguments, client_factory=factory) as pool:
        extra = {"socket_factory": sockets, "transport_factory": transports}
        assert made == [(*server.address, 4.5, extra)]
        conn = pool.get()
        assert conn.calls == [("login", who), ("set_keyspace", "Keyspace1")]
        assert conn.keyspace == "Keyspace1"
        assert str(conn) == f"<ConnectionWrapper Keyspace1@{conn.server}>"
        pool.put(conn)


def test_the_port_defaults_to_9160() -> None:
    seen: list[tuple[str, int]] = []

    def factory(host: str, port: int, timeout: float) -> Any:
        seen.append((host, port))
        raise OSError("not here")

    with make_pool(server_list=["a.test", "b.test:1"], client_factory=factory, prefill=False) as p:
        with pytest.raises(AllServersUnavailable):
            p.get()
    assert Counter(seen) == {("a.test", 9160): 2, ("b.test", 1): 2}


def test_the_factory_may_be_a_class_attribute_or_a_method(server: IdServer) -> None:
    class Mine(ConnectionPool):
        max_retries = 7

        def client_factory(self, host: str, port: int, timeout: Any) -> Client:
            return Client(host, port, timeout)

    with Mine(None, at(server), timeout=5.0) as pool:
        assert pool.execute("ask", "hello") == "hello"
        assert pool.max_retries == 7
        assert pool.execute(lambda conn: conn.calls) == []  # no keyspace, no credentials


@pytest.mark.parametrize("use_threadlocal", [True, False])
def test_a_greenlet_gets_the_one_it_has_with_use_threadlocal(
    server: IdServer, use_threadlocal: bool
) -> None:
    with make_pool(server, use_threadlocal=use_threadlocal) as pool:
        first, second = pool.get(), pool.get()
        other = gevent.spawn(pool.get).get()
        assert (first is second) is use_threadlocal
        assert other not in (first, second)
        assert pool.checkedout() == (2 if use_threadlocal else 3)
        for conn in {first, second, other}:
            pool.put(conn)
        assert pool.checkedout() == 0


def test_sizes_and_overflow_are_counted(server: IdServer) -> None:
    settings = {"pool_size": 2, "max_overflow": 1, "pool_timeout": 0, "use_threadlocal": False}
    with make_pool(server, **settings) as pool:
        assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 2, 0, 0)
        held = [pool.get() for _ in range(3)]
        assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 0, 3, 1)
        with pytest.raises(NoConnectionAvailable):
            pool.get()
        pool.max_overflow = -1
        held.append(pool.get())
        assert (pool.overflow(), pool.max_overflow) == (2, -1)
        for conn in held:
            pool.put(conn)
        assert (pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 0, 0)
        server.wait_open(2)


def test_attributes_may_be_set_later(server: IdServer) -> None:
    with make_pool(server, pool_size=1, use_threadlocal=False, recycle=-1) as pool:
        conn = pool.get()
        pool.pool_timeout = 0.01
        with pytest.raises(NoConnectionAvailable, match="after 0.01 seconds"):
            pool.get()
        pool.recycle = 1
        conn.ask("once")
        pool.put(conn)
        until(lambda: server.opened == 2)
        pool.max_retries = 0
        with pytest.raises(MaximumRetryException):
            pool.execute("fail", TimedOutException("late"))
        pool.timeout = 4.25
        assert pool.execute(lambda conn: conn.timeout) in (5.0, 4.25)
        pool.dispose()
        assert pool.execute(lambda conn: conn.timeout) == 4.25
        pool.logging_name = "renamed"
        recorder = Recorder()
        pool.add_listener(recorder)
        pool.execute("ask", "who")
        assert {dic["pool_id"] for _, dic in recorder.seen} == {"renamed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 0}, "pool_size must be at least 1"),
        ({"max_overflow": -2}, "max_overflow must be at least -1"),
        ({"pool_timeout": -2}, "pool_timeout must be 0 or more"),
        ({"max_retries": 1.5}, "max_retries must be a whole number"),
        ({"recycle": "no"}, "recycle must be a whole number"),
        ({"timeout": -1}, "timeout must be more than 0"),
        ({"server_list": "localhost:9160"}, "server_list must be a list"),
        ({"server_list": ["a:b:c:d"]}, "a:b:c:d"),
        ({"server_list": [("a", 1)]}, "server_list must hold texts"),
        ({"retry_on": OSError}, "retry_on must be a tuple"),
        ({"client_factory": None}, "client_factory must be given"),
        ({"listeners": [object()]}, "has none of the methods"),
        ({"listeners": [{"connection_lost": print}]}, "'connection_lost' is no event"),
        ({"listeners": [{"connection_created": 3}]}, "'connection_created' is no event"),
    ],
)
def test_a_bad_argument_is_named(server: IdServer, settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make_pool(server, **{"prefill": False, **settings})


def test_fill_opens_what_is_missing_and_counts_those_in_use(server: IdServer) -> None:
    with make_pool(server, prefill=False, pool_size=3) as pool:
        conn = pool.get()
        pool.fill()
        assert (pool.stats().opened, pool.checkedin(), pool.checkedout()) == (3, 2, 1)
        pool.put(conn)


def test_dispose_closes_the_idle_ones_and_the_pool_goes_on(server: IdServer) -> None:
    recorder = Recorder()
    with make_pool(server, pool_size=2, listeners=[recorder]) as pool:
        conn = pool.get()
        pool.dispose()
        server.wait_open(1)
        assert pool.checkedin() == 0
        assert conn.ask("still") == "still"
        pool.put(conn)
        assert pool.execute("ask", "usable") == "usable"
        assert server.opened == 2  # nothing was opened again behind the caller's back
        assert recorder.names.count("pool_disposed") == 1
        assert [d["message"] for d in recorder.of("connection_disposed")] == [
            f"Pool {id(pool)} is being disposed"
        ]


def test_servers_are_used_in_turn_in_a_random_order() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(IdServer()) for _ in range(3)]
        with make_pool(*servers, pool_size=6):
            for server in servers:
                server.wait_open(2)
        orders = set()
        for _ in range(50):
            with make_pool(*servers, prefill=False) as pool:
                assert sorted(pool.server_list) == sorted(at(*servers))
                orders.add(tuple(pool.server_list))
        assert len(orders) > 1


def test_a_function_may_give_the_servers_and_is_called_once_for_each_setting(
    server: IdServer,
) -> None:
    calls: list[int] = []

    def servers() -> list[str]:
        calls.append(1)
        return at(server)

    with make_pool(server_list=servers) as pool:
        pool.execute("ask", "hello")
        assert len(calls) == 1
        pool.set_server_list(servers)
        assert len(calls) == 2


def test_an_empty_server_list_is_said_at_once() -> None:
    with pytest.raises(AllServersUnavailable, match="server list is empty"):
        make_pool()


def test_each_server_is_tried_twice_before_all_are_said_to_be_unavailable() -> None:
    recorder = Recorder()
    with closed_port() as one, closed_port() as two:
        servers = ["{}:{}".format(*address) for address in (one, two)]
        with make_pool(server_list=servers, prefill=False, listeners=[recorder]) as pool:
            with pytest.raises(AllServersUnavailable, match="ConnectionRefusedError") as caught:
                pool.get()
    assert Counter(dic["server"] for dic in recorder.of("connection_failed")) == dict.fromkeys(
        servers, 2
    )
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_dead_server_is_passed_over(server: IdServer) -> None:
    with closed_port() as dead:
        with make_pool(server_list=["{}:{}".format(*dead), *at(server)], pool_size=4) as pool:
            server.wait_open(4)
            assert pool.checkedin() == 4


def test_all_that_wait_hear_that_all_servers_are_unavailable() -> None:
    with closed_port() as dead:
        with make_pool(
            server_list=["{}:{}".format(*dead)], prefill=False, pool_size=50, pool_timeout=-1
        ) as pool:
            heard: list[AllServersUnavailable] = []

            def call() -> None:
                with pytest.raises(AllServersUnavailable) as caught:
                    pool.get()
                heard.append(caught.value)

            gevent.joinall([gevent.spawn(call) for _ in range(50)], timeout=PATIENCE)
            assert len({id(error) for error in heard}) == 50
            assert pool.stats().dial_failed <= 5  # and it took no dial for each
            # The pool keeps its own, which must not take on the frames of who gets it.
            assert pool.stats().last_error not in heard


def test_what_is_no_failure_of_a_server_is_raised_as_it_is(server: IdServer) -> None:
    class AuthenticationException(Exception):
        pass

    class Locked(Client):
        def login(self, credentials: Any) -> None:
            raise AuthenticationException("wrong password")

    for prefill in (True, False):
        with pytest.raises(AuthenticationException):
            make_pool(server, client_factory=Locked, credentials={}, prefill=prefill).get()
    server.wait_open(0)


@pytest.mark.parametrize("layer", ["transport", "socket"])
def test_a_client_without_a_close_is_closed_by_what_is_below_it(
    server: IdServer, layer: str
) -> None:
    class Layer:
        pass

    class Framed(Layer):
        def __init__(self, sock: Any) -> None:
            self._trans = Layer()
            self._trans.sock = sock  # type: ignore[attr-defined]

        def close(self) -> None:
            self._trans.sock.close()  # type: ignore[attr-defined]

    def factory(host: str, port: int, timeout: Any) -> Any:
        client: Any = Layer()
        sock = gevent.socket.create_connection((host, port))
        if layer == "socket":
            client.sock = sock
        else:
            client._iprot = Layer()
            client._iprot.trans = Framed(sock)
        return client

    with make_pool(server, client_factory=factory, keyspace=None, pool_size=2) as pool:
        server.wait_open(2)
        pool.dispose()
        server.wait_open(0)
    # One that cannot even be prepared is closed, too, and what was wrong is told.
    with pytest.raises(AttributeError, match="set_keyspace"):
        make_pool(server, client_factory=factory)
    server.wait_open(0)


def test_a_login_that_takes_too_long_counts_as_a_failure(
    server: IdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Client):
        def __init__(self, *args: Any) -> None:
            tried.append(self)
            super().__init__(*args)

        def login(self, credentials: Any) -> None:
            Event().wait()

    tried: list[Client] = []
    with make_pool(server, client_factory=Hanging, credentials={}, prefill=False) as pool:
        monkeypatch.setattr(_dialing, "CONNECT_TIMEOUT", 0.05)  # not of all together, by now
        with pytest.raises(AllServersUnavailable, match="took longer than"):
            pool.get()
        assert len(tried) == 2
        server.wait_open(0)


def test_an_operation_is_tried_again_on_another_server() -> None:
    recorder = Recorder()
    with IdServer() as one, IdServer() as two, IdServer() as three:
        tried: list[str] = []

        class Picky(Client):
            def insert(self, key: str) -> str:
                tried.append("{}:{}".format(*self.sock.getpeername()))
                if len(tried) < 3:
                    raise TimedOutException("late")
                return self.ask(key)

        with make_pool(
            one, two, three, pool_size=9, client_factory=Picky, listeners=[recorder]
        ) as pool:
            conn = pool.get()
            assert conn.insert("a") == "a"
            assert conn.server == tried[-1]
            assert sorted(tried) == sorted(at(one, two, three))
            assert conn.info["request"] == {"method": "insert", "args": ("a",), "kwargs": {}}
            assert pool.checkedout() == 1
            pool.put(conn)
            failed = recorder.of("connection_failed")
            assert [dic["server"] for dic in failed] == tried[:2]
            assert all(isinstance(dic["error"], TimedOutException) for dic in failed)
            assert_whole(pool, one, two, three)


def test_another_server_is_dialed_where_all_that_is_idle_leads_to_the_one_that_failed() -> None:
    with IdServer() as one, IdServer() as two:
        with make_pool(one, two, pool_size=3, prefill=False) as pool:
            pool.set_server_list(at(one))
            pool.fill()
            pool.server_list.extend(at(two))
            pool.execute("ask", "warm")
            seen: list[str] = []
            conn = pool.get()

            def broken(question: str) -> str:
                seen.append(conn.server)
                raise TimedOutException

            conn._session.client.ask = broken
            assert conn.ask("hello") == "hello"
            assert (seen, conn.server) == (at(one), at(two)[0])
            pool.put(conn)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_no_more_retries_are_made_than_allowed(server: IdServer, max_retries: int) -> None:
    calls: list[int] = []

    class Failing(Client):
        def insert(self) -> None:
            calls.append(1)
            raise TimedOutException("late")

    with make_pool(server, client_factory=Failing, max_retries=max_retries) as pool:
        message = f"Retried {max_retries + 1} times. Last failure was TimedOutException: late"
        with pytest.raises(MaximumRetryException, match=message) as caught:
            pool.execute("insert")
        assert len(calls) == max_retries + 1
        assert isinstance(caught.value.__cause__, TimedOutException)
        assert_whole(pool, server)


def test_retries_may_be_unlimited_and_may_be_forbidden_for_a_call(server: IdServer) -> None:
    calls: list[int] = []

    class Failing(Client):
        def insert(self) -> str:
            calls.append(1)
            if len(calls) % 9:
                raise TimedOutException("late")
            return "done"

    with make_pool(server, client_factory=Failing, max_retries=-1) as pool:
        assert pool.execute("insert") == "done"
        assert len(calls) == 9
        conn = pool.get()
        with pytest.raises(MaximumRetryException):
            conn.insert(allow_retries=False)
        assert len(calls) == 10
        assert conn.insert() == "done"  # it takes another connection
        assert pool.checkedout() == 1
        pool.put(conn)
        assert_whole(pool, server)


def test_failures_count_until_a_success(server: IdServer) -> None:
    with make_pool(server, max_retries=1) as pool:
        conn = pool.get()
        with pytest.raises(MaximumRetryException, match="Retried 2 times"):
            conn.fail(TimedOutException())
        with pytest.raises(MaximumRetryException, match="Retried 3 times"):
            conn.fail(TimedOutException())
        conn.ask("a success")
        with pytest.raises(MaximumRetryException, match="Retried 2 times"):
            conn.fail(TimedOutException())
        pool.put(conn)
        assert_whole(pool, server)


def test_an_application_exception_costs_the_connection_and_is_not_retried(
    server: IdServer,
) -> None:
    with make_pool(server, pool_size=1) as pool:
        conn = pool.get()
        with pytest.raises(TApplicationException):
            conn.fail(TApplicationException("unknown method"))
        conn.return_to_pool()
        until(lambda: server.opened == 2)
        assert_whole(pool, server)


def test_another_exception_leaves_the_connection_usable(server: IdServer) -> None:
    with make_pool(server, pool_size=1) as pool:
        with pytest.raises(KeyError):
            pool.execute("fail", KeyError("not found"))
        assert pool.execute("ask", "hello") == "hello"
        assert server.opened == 1


def test_get_keyspace_description_maps_names_to_definitions(server: IdServer) -> None:
    class Named:
        def __init__(self, name: str, **more: Any) -> None:
            self.name = name
            self.__dict__.update(more)

    class Describing(Client):
        def describe_keyspace(self, keyspace: str) -> Any:
            columns = [Named("c1"), Named("c2")]
            return Named(keyspace, cf_defs=[Named(f"{keyspace}.cf", column_metadata=columns)])

    with make_pool(server, client_factory=Describing) as pool:
        conn = pool.get()
        found = conn.get_keyspace_description()
        assert list(found) == ["Keyspace1.cf"]
        assert len(found["Keyspace1.cf"].column_metadata) == 2
        found = conn.get_keyspace_description("other", use_dict_for_col_metadata=True)
        assert list(found["other.cf"].column_metadata) == ["c1", "c2"]
        pool.put(conn)


def test_a_wrapper_tells_about_itself(server: IdServer) -> None:
    before = time.time()
    with make_pool(server, pool_size=1) as pool:
        conn = pool.get()
        conn.ask("one")
        conn.ask("two")
        assert conn.server == at(server)[0]
        assert conn.operation_count == 2
        assert before - 1 <= conn.starttime <= time.time() + 1
        assert conn.info["request"]["method"] == "ask"
        assert conn.max_retries == 5
        conn.return_to_pool()
        again = pool.get()
        assert again is conn
        assert again.operation_count == 2
        pool.put(again)


def test_a_retry_leaves_idle_connections_open_where_there_is_one_to_another_server() -> None:
    with IdServer() as one, IdServer() as two:
        with make_pool(one, two, pool_size=6, use_threadlocal=False) as pool:
            for conn in sorted((pool.get() for _ in range(6)), key=lambda conn: conn.server):
                pool.put(conn)
            conn = pool.get()  # the first in line, and its siblings are next
            failing = conn.server

            def broken(question: str) -> str:
                raise TimedOutException

            conn._session.client.ask = broken
            assert conn.ask("hello") == "hello"
            assert conn.server != failing
            pool.put(conn)
            closed = {reason: n for reason, n in pool.stats().closed.items() if n}
            assert closed == {Reason.ERROR: 1}


def test_each_retry_waits_longer(server: IdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []

    class Noting(Backoff):
        def delay(self, failures: int) -> float:
            waited.append(failures)
            return 0

    with make_pool(server, max_retries=3) as pool:
        monkeypatch.setattr(ConnectionPool, "_pauses", Noting())
        with pytest.raises(MaximumRetryException):
            pool.execute("fail", TimedOutException())
    assert waited == [1, 2, 3]


def test_a_retry_waits_for_the_end_of_a_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class HangingUp(IdServer):
        hang_ups = 0

        def serve(self, sock: Any) -> None:
            if self.hang_ups:
                self.hang_ups -= 1
                sock.recv(1)  # and what comes with the FIN is nothing but that
                return
            super().serve(sock)

    monkeypatch.setattr(ConnectionPool, "_pauses", Backoff(first=0.05, longest=0.05, jitter=0))
    with HangingUp() as server:
        server.stop()
        with make_pool(server, pool_size=1, prefill=False) as pool:
            with pytest.raises(AllServersUnavailable):
                pool.execute("ask", "hello")
            server.start()
            until(lambda: answers(pool))
            pool.dispose()
            server.wait_open(0)
            server.hang_ups = 3
            monkeypatch.setattr(ConnectionPool, "_pauses", SMALL_PAUSE)
            assert pool.execute("ask", "again") == "again"


def answers(pool: ConnectionPool) -> bool:
    try:
        return bool(pool.execute("ask", "hello") == "hello")
    except AllServersUnavailable:
        return False


# Exceptions, pickling, warnings, logs


@pytest.mark.parametrize(
    "cls",
    [AllServersUnavailable, InvalidRequestError, MaximumRetryException, NoConnectionAvailable],
)
def test_exceptions_pickle_and_are_no_oserrors(cls: type[Exception]) -> None:
    error = pickle.loads(pickle.dumps(cls("why")))

    assert type(error) is cls
    assert str(error) == "why"
    assert not isinstance(error, OSError)  # an `except socket.error` did not catch it


def test_nothing_warns_and_nothing_is_printed(
    server: IdServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "libuv only supports millisecond", UserWarning)
        with make_pool(server, max_retries=0) as pool, pytest.raises(MaximumRetryException):
            pool.execute("fail", OSError("broken"))
        with closed_port() as dead, pytest.raises(AllServersUnavailable):
            make_pool(server_list=["{}:{}".format(*dead)])
    assert capfd.readouterr().err == ""


def test_the_pool_logs_to_pycassa_pool(server: IdServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pycassa.pool")
    with make_pool(server, pool_size=1, recycle=1, logging_name="mine") as pool:
        conn = pool.get()
        named = f"Connection {id(conn)} ({conn.server})"
        conn.ask("x")
        pool.put(conn)
        until(lambda: "being recycled" in caplog.text)
        pool.dispose()
    said = [r.getMessage() for r in caplog.records if r.name == "pycassa.pool"]
    assert f"{named} opened for pool mine" in said
    assert f"{named} was checked out from pool mine" in said
    assert f"{named} was checked in to pool mine" in said
    assert f"{named} was closed; pool mine, reason: recyling connection" in said
    assert any(
        text.startswith(f"{named} is being recycled in pool mine after 1 op") for text in said
    )
    assert f"Server list obtained for pool mine: {at(server)}" in said
    assert "Pool mine was disposed" in said


# Listeners


def test_listeners_are_objects_or_dicts_and_hear_in_order(server: IdServer) -> None:
    recorder, heard = Recorder(), []
    settings = {"pool_size": 1, "logging_name": "mine"}
    listeners = [recorder, {"connection_checked_in": heard.append}]
    with make_pool(server, listeners=listeners, **settings) as pool:
        pool.execute("ask", "hello")
        assert recorder.names == [
            "server_list_obtained",
            "connection_created",
            "connection_checked_out",
            "connection_checked_in",
        ]
        assert all(dic["pool_id"] == "mine" for _, dic in recorder.seen)
        assert {dic["level"] for _, dic in recorder.seen} == {"debug"}
        assert heard == recorder.of("connection_checked_in")
        assert isinstance(heard[0]["connection"], ConnectionWrapper)
        assert [type(each) for each in pool.listeners] == [PoolLogger, Recorder, dict]


def test_a_surplus_connection_is_checked_in_and_then_disposed_of(server: IdServer) -> None:
    recorder = Recorder()
    settings = {"pool_size": 1, "max_overflow": 1, "use_threadlocal": False}
    with make_pool(server, listeners=[recorder], **settings) as pool:
        one, two = pool.get(), pool.get()
        pool.put(one)
        pool.put(two)
        until(lambda: recorder.of("connection_disposed"))
        names = recorder.names
        assert names.count("connection_checked_in") == 2
        assert names[-1] == "connection_disposed"
        assert recorder.seen[-1][1]["message"] == "pool is already full"


def test_a_created_listener_may_use_the_connection_before_anybody_else(server: IdServer) -> None:
    answers: list[str] = []

    def set_up(dic: dict[str, Any]) -> None:
        answers.append(dic["connection"].ask("set up"))

    with make_pool(server, pool_size=2, listeners=[{"connection_created": set_up}]) as pool:
        assert answers == ["set up"] * 2
        assert_whole(pool, server)


def test_a_connection_that_broke_while_a_listener_set_it_up_is_handed_to_no_caller(
    server: IdServer,
) -> None:
    seen: list[ConnectionWrapper] = []

    def set_up(dic: dict[str, Any]) -> None:
        seen.append(dic["connection"])
        if len(seen) == 1:
            seen[0].fail(OSError("broken"))

    with make_pool(server, pool_size=1, listeners=[{"connection_created": set_up}]) as pool:
        server.wait_until(lambda: server.opened == 2)
        assert pool.get() is seen[1]
        pool.put(seen[1])
        assert_whole(pool, server)


def test_a_recycled_connection_names_its_successor(server: IdServer) -> None:
    recorder = Recorder()
    with make_pool(server, pool_size=2, recycle=2, listeners=[recorder]) as pool:
        worn = pool.get()
        worn.ask("1")
        worn.ask("2")
        pool.put(worn)
        until(lambda: recorder.of("connection_recycled"))
        event = recorder.of("connection_recycled")[0]
        assert event["old_conn"] is worn
        assert event["new_conn"].operation_count == 0
        assert_whole(pool, server)


# What was wrong with pycassa


def test_p1_a_reply_to_a_request_that_was_cut_short_reaches_no_caller(server: IdServer) -> None:
    server.late_share, server.late_by = 1.0, 0.05
    with make_pool(server, pool_size=1) as pool:
        with gevent.Timeout(0.01, False):
            pool.execute("ask", "first")
        server.late_share = 0
        assert pool.execute("ask", "second") == "second"
        conn = pool.get()
        server.late_share = 1.0
        with gevent.Timeout(0.01, False):
            conn.ask("third")
        server.late_share = 0
        assert conn.ask("fourth") == "fourth"  # it takes another connection
        pool.put(conn)
        assert_whole(pool, server)


def test_p2_a_caller_that_waits_is_served_when_a_connection_dies(server: IdServer) -> None:
    with make_pool(server, pool_size=1, pool_timeout=PATIENCE) as pool:
        conn = pool.get()
        waiter = gevent.spawn(pool.get)
        until(lambda: pool.stats().waiting)
        with pytest.raises(MaximumRetryException):
            conn.fail(OSError("broken"), allow_retries=False)
        served = waiter.get(timeout=PATIENCE / 4)
        assert served.ask("hello") == "hello"
        pool.put(served)


def test_p3_put_returns_the_connection_it_is_given_whichever_thread_calls_it(
    server: IdServer,
) -> None:
    with make_pool(server, pool_size=2) as pool:
        mine = pool.get()
        theirs = gevent.spawn(pool.get).get()
        pool.put(theirs)
        assert pool.checkedout() == 1
        assert pool.get() is mine
        gevent.spawn(pool.put, mine).get()
        assert pool.checkedout() == 0


def test_p3_a_connection_put_back_by_another_greenlet_is_not_got_again_as_ones_own(
    server: IdServer,
) -> None:
    with make_pool(server, pool_size=1, pool_timeout=0) as pool:
        mine = pool.get()
        gevent.spawn(pool.put, mine).get()
        done = Event()

        def hold() -> None:
            conn = pool.get()
            done.wait()
            pool.put(conn)

        holder = gevent.spawn(hold)
        gevent.sleep(0)
        assert pool.checkedout() == 1
        with pytest.raises(NoConnectionAvailable):
            pool.get()
        done.set()
        holder.get()


def test_p3_execute_leaves_alone_what_its_greenlet_holds(server: IdServer) -> None:
    with make_pool(server, pool_size=1, pool_timeout=0) as pool:
        conn = pool.get()
        assert pool.execute("ask", "nested") == "nested"
        assert pool.checkedout() == 1
        assert pool.get() is conn
        pool.put(conn)
        assert pool.checkedout() == 0


@pytest.mark.parametrize("use_threadlocal", [True, False])
@pytest.mark.parametrize("how", ["wrapper", "socket"])
def test_p4_a_closed_connection_that_is_put_back_costs_no_capacity(
    server: IdServer, use_threadlocal: bool, how: str
) -> None:
    stats = StatsLogger()
    settings = {"pool_size": 1, "use_threadlocal": use_threadlocal, "listeners": [stats]}
    with make_pool(server, **settings) as pool:
        conn = pool.get()
        conn.close() if how == "wrapper" else conn.sock.close()
        pool.put(conn)
        assert stats.stats["opened"]["current"] == 0
        again = pool.get()
        assert again is not conn
        assert again.ask("hello") == "hello"
        again.close()
        if use_threadlocal:
            assert pool.get() is not again  # nor is a closed one the greenlet's own
            pool.put(pool.get())
        else:
            pool.put(again)
        assert_whole(pool, server)


def test_p5_an_idle_connection_is_used_before_another_is_opened(server: IdServer) -> None:
    with make_pool(server, pool_size=5, prefill=False) as pool:
        for _ in range(5):
            pool.execute("ask", "hello")
        assert server.opened == 1
        with closed_port() as dead:
            pool.server_list[:] = ["{}:{}".format(*dead), *at(server)]
            assert pool.execute("ask", "idle") == "idle"  # no dial is needed, so none can fail
        assert pool.stats().dialed == 1


def test_p6_recycling_at_put_neither_waits_nor_raises(server: IdServer) -> None:
    with make_pool(server, pool_size=1, recycle=1) as pool:
        conn = pool.get()
        conn.ask("worn")
        with closed_port() as dead:
            pool.server_list[:] = ["{}:{}".format(*dead)]
            pool.put(conn)
            server.wait_open(0)
            assert pool.checkedout() == 0
        pool.set_server_list(at(server))
        until(lambda: pool.checkedin() == 1)
        assert_whole(pool, server)


def test_p6_a_connection_is_recycled_after_exactly_that_many_operations(
    server: IdServer,
) -> None:
    with make_pool(server, pool_size=1, recycle=3) as pool:
        opened = []
        for number in range(7):
            pool.execute("ask", str(number))
            until(lambda: pool.checkedin() == 1)
            opened.append(server.opened)
        assert opened == [1, 1, 2, 2, 2, 3, 3]


def test_p7_others_are_served_while_fill_connects(server: IdServer) -> None:
    ready = Event()

    def factory(host: str, port: int, timeout: Any) -> Client:
        if server.opened:
            ready.wait()
        return Client(host, port, timeout)

    with make_pool(server, pool_size=3, prefill=False, client_factory=factory) as pool:
        pool.execute("ask", "one is open")
        filler = gevent.spawn(pool.fill)
        until(lambda: pool.stats().connecting)
        assert pool.execute("ask", "served") == "served"
        assert not filler.ready()
        ready.set()
        filler.get()
        assert pool.checkedin() == 3


def test_p7_a_prefill_that_fails_leaves_nothing_open(server: IdServer) -> None:
    calls: list[int] = []

    def factory(host: str, port: int, timeout: Any) -> Client:
        calls.append(1)
        if len(calls) > 2:
            raise OSError("no more")
        return Client(host, port, timeout)

    with pytest.raises(AllServersUnavailable):
        make_pool(server, pool_size=5, client_factory=factory)
    server.wait_opened(1)
    server.wait_open(0)


def test_a_fill_that_fails_leaves_the_pool_as_it_was() -> None:
    with closed_port() as dead, FakeClock() as clock:
        with make_pool(server_list=["{}:{}".format(*dead)], prefill=False) as pool:
            with pytest.raises(AllServersUnavailable):
                pool.fill()
            dialed = pool.stats().dialed
            clock.advance(60)  # the longest pause between dials is over
            gevent.idle()
            assert pool.stats().dialed == dialed


def test_p8_what_a_listener_raises_is_logged_and_costs_nothing(
    server: IdServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(dic: dict[str, Any]) -> None:
        raise RuntimeError("a listener fails")

    everything = dict.fromkeys(EVENTS, fail)
    with make_pool(server, pool_size=1, listeners=[everything], recycle=1) as pool:
        for _ in range(3):
            assert pool.execute("ask", "hello") == "hello"
        with pytest.raises(MaximumRetryException):
            pool.execute("fail", OSError(), allow_retries=False)
        assert_whole(pool, server)
    assert "a listener fails" in caplog.text


def test_p9_either_spelling_of_the_server_list_event_is_heard_once(server: IdServer) -> None:
    documented: list[Any] = []
    coded: list[Any] = []

    class Both(PoolListener):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def server_list_obtained(self, dic: dict[str, Any]) -> None:
            self.heard.append(dic["server_list"])

        obtained_server_list = server_list_obtained

    both = Both()
    listeners = [
        {"server_list_obtained": documented.append},
        {"obtained_server_list": coded.append},
        both,
    ]
    with make_pool(server, listeners=listeners, prefill=False):
        assert [dic["server_list"] for dic in documented] == [at(server)]
        assert documented == coded
        assert both.heard == [at(server)]


def test_p9_a_listener_of_geventpool_s_own_hears_of_the_server_list_too(server: IdServer) -> None:
    events: list[ServerListObtained] = []

    class Own:
        def server_list_obtained(self, event: ServerListObtained) -> None:
            events.append(event)

    with make_pool(server, prefill=False) as pool:
        GeventPool.add_listener(pool, Own())
        pool.set_server_list(at(server))

    assert events == [ServerListObtained(pool, tuple(at(server)))]


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_p10_the_stats_come_out_even(server: IdServer) -> None:
    stats = StatsLogger()
    settings = {"pool_size": 2, "max_overflow": 1, "use_threadlocal": False, "max_retries": 0}
    with make_pool(server, listeners=[stats], **settings) as pool:
        held = [pool.get() for _ in range(3)]
        assert stats.stats["opened"] == {"current": 3, "max": 3}
        with pytest.raises(MaximumRetryException):
            held[0].fail(OSError())
        with pytest.raises(gevent.Timeout):
            held[1].fail(gevent.Timeout())
        held = held[2:]
        pool.put(held.pop())
        gc.collect()
        assert stats.stats["opened"] == {"current": 0, "max": 3}
        pool.get()  # and forget it
        until(lambda: stats.stats["opened"]["current"] == 0)
        found = stats.stats
        assert (found["checked_out"], found["checked_in"], found["failed"]) == (4, 1, 3)
        found["failed"] = 99
        assert stats.stats["failed"] == 3  # it was a copy
    with closed_port() as dead:
        stats = StatsLogger()
        with pytest.raises(AllServersUnavailable):
            make_pool(server_list=["{}:{}".format(*dead)], listeners=[stats])
        assert stats.stats["created"] == {"success": 0, "failure": 2}
        stats.reset()
        assert stats.stats["failed"] == 0


def test_p10_stats_may_be_fed_by_hand() -> None:
    stats = StatsLogger()
    stats.connection_created({"level": "info"})
    stats.connection_created({"level": "warn"})
    stats.connection_checked_out({})
    stats.connection_checked_out({})
    stats.connection_checked_in({})
    stats.connection_disposed({"level": "error"})
    stats.connection_recycled({})
    stats.connection_failed({})
    stats.obtained_server_list({})
    stats.pool_at_max({})
    assert stats.stats == {
        "created": {"success": 1, "failure": 1},
        "checked_out": 2,
        "checked_in": 1,
        "opened": {"current": 1, "max": 2},
        "disposed": {"success": 0, "failure": 1},
        "recycled": 1,
        "failed": 1,
        "list": 1,
        "at_max": 1,
    }


def test_p11_the_pause_between_retries_is_capped_and_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    pauses = [[ConnectionPool._pauses.delay(n) for n in range(1, 13)] for _ in range(2)]

    assert max(map(max, pauses)) <= 0.5
    assert pauses[0] != pauses[1]


def test_p11_a_retry_passes_over_the_siblings_of_the_one_that_broke() -> None:
    with IdServer() as bad, IdServer() as good:
        asked: list[str] = []

        class Dying(Client):
            def ask(self, question: str) -> str:
                asked.append("{}:{}".format(*self.sock.getpeername()))
                if asked[-1] == at(bad)[0]:
                    raise ConnectionResetError("its server is ill")
                return super().ask(question)

        with make_pool(bad, good, pool_size=10, client_factory=Dying, max_retries=1) as pool:
            for _ in range(10):
                asked.clear()
                assert pool.execute("ask", "hello") == "hello"
                assert len(asked) <= 2


def test_p12_dispose_is_not_close_and_close_is(server: IdServer) -> None:
    pool = make_pool(server, pool_size=2)
    conn = pool.get()
    pool.dispose()
    conn.ask("still mine")
    pool.close(timeout=0)
    server.wait_open(1)  # that of the calling greenlet is left to it
    pool.put(conn)
    server.wait_open(0)
    with pytest.raises(PoolClosed):
        pool.get()


def test_p12_connections_to_servers_no_longer_listed_go() -> None:
    with IdServer() as old, IdServer() as new:
        with make_pool(old, pool_size=2) as pool:
            conn = pool.get()
            pool.set_server_list(at(new))
            old.wait_open(1)
            new.wait_open(1)
            assert conn.ask("still") == "still"
            pool.put(conn)
            old.wait_open(0)
            new.wait_open(2)


def test_p13_an_unknown_parameter_is_an_error(server: IdServer) -> None:
    with pytest.raises(TypeError, match="max_retires"):
        make_pool(server, max_retires=0)


def test_p13_the_message_is_fit_to_read(server: IdServer) -> None:
    settings = {"pool_size": 1, "max_overflow": 1, "use_threadlocal": False, "pool_timeout": 0}
    with make_pool(server, **settings) as pool:
        held = [pool.get(), pool.get()]
        text = "ConnectionPool limit of size 1 overflow 1 reached, unable to obtain connection"
        with pytest.raises(NoConnectionAvailable, match=text + " after 0 seconds"):
            pool.get()
        for conn in held:
            pool.put(conn)


def test_p14_after_a_retry_one_wrapper_alone_leads_to_the_connection(server: IdServer) -> None:
    recorder = Recorder()
    with make_pool(server, pool_size=1, use_threadlocal=False, listeners=[recorder]) as pool:
        conn = pool.get()
        conn.sock.close()
        assert conn.ask("retried") == "retried"
        orphan = recorder.of("connection_created")[-1]["connection"]
        assert orphan is not conn
        with pytest.raises(InvalidRequestError):
            orphan.ask("not mine")
        pool.put(conn)
        assert pool.checkedout() == 0
        with pytest.raises(InvalidRequestError):
            conn.ask("no longer mine")
        assert pool.get() is orphan
        pool.put(orphan)


# Misuse


def test_a_connection_returned_twice_is_an_error_without_use_threadlocal(
    server: IdServer,
) -> None:
    with make_pool(server, use_threadlocal=False) as pool:
        conn = pool.get()
        pool.put(conn)
        with pytest.raises(InvalidRequestError, match="returned twice"):
            conn.return_to_pool()
        assert pool.checkedout() == 0
        pool.dispose()
        server.wait_open(0)
        pool.put(conn)  # a closed one is ignored, as ever


def test_a_connection_returned_twice_is_ignored_with_use_threadlocal(server: IdServer) -> None:
    with make_pool(server, pool_size=1) as pool:
        conn = pool.get()
        conn.return_to_pool()
        conn.return_to_pool()
        assert (pool.checkedout(), pool.checkedin()) == (0, 1)


@pytest.mark.parametrize("strange", [None, "conn"])
def test_what_is_no_connection_of_the_pool_cannot_be_put(server: IdServer, strange: Any) -> None:
    with make_pool(server) as pool, make_pool(server) as other:
        with pytest.raises(InvalidRequestError, match="none of its connections"):
            pool.put(strange)
        conn = other.get()
        with pytest.raises(InvalidRequestError, match="none of its connections"):
            pool.put(conn)
        other.put(conn)


# At the limit


def test_a_caller_is_told_of_the_limit_before_it_waits(server: IdServer) -> None:
    for pool_timeout in (0, 0.01):
        recorder = Recorder()
        settings = {"pool_size": 1, "pool_timeout": pool_timeout, "use_threadlocal": False}
        with make_pool(server, listeners=[recorder], **settings) as pool:
            conn = pool.get()
            with pytest.raises(NoConnectionAvailable):
                pool.get()
            assert [dic["pool_max"] for dic in recorder.of("pool_at_max")] == [1]
            pool.put(conn)


def test_with_pool_timeout_0_a_connection_is_opened_all_the_same(server: IdServer) -> None:
    with make_pool(server, pool_timeout=0, prefill=False) as pool:
        assert pool.execute("ask", "hello") == "hello"


def test_a_pool_at_its_limit_waits_for_ever_with_pool_timeout_minus_1(server: IdServer) -> None:
    with make_pool(server, pool_size=1, pool_timeout=-1) as pool:
        conn = pool.get()
        waiter = gevent.spawn(pool.get)
        until(lambda: pool.stats().waiting)
        pool.put(conn)
        assert waiter.get(timeout=PATIENCE) is conn
        pool.put(conn)


# What is alive and whose it is


def test_a_connection_whose_server_hung_up_is_not_handed_out(server: IdServer) -> None:
    with make_pool(server, pool_size=2, max_retries=0) as pool:
        server.wait_open(2)
        server.fin_all()
        assert pool.execute("ask", "hello") == "hello"


class Opaque:
    """A client whose socket is not to be found; it has a descriptor, or not even that."""

    def __init__(self, host: str, port: int, timeout: float | None) -> None:
        self.inner = Client(host, port, timeout)

    def __getattr__(self, name: str) -> Any:
        if name in ("ask", "fail", "close", "set_keyspace"):
            return getattr(self.inner, name)
        raise AttributeError(name)

    def send(self) -> None:
        self.inner.sock.sendall(b"nobody reads the answer\n")
        gevent.socket.wait_read(self.inner.fileno(), timeout=PATIENCE)
        raise KeyError("and it has failed")


class Described(Opaque):
    def fileno(self) -> int:
        return self.inner.fileno()


def test_unread_bytes_are_found_at_put(server: IdServer) -> None:
    with make_pool(server, pool_size=1, client_factory=Described) as pool:
        conn = pool.get()
        with pytest.raises(KeyError):
            conn.send()
        pool.put(conn)
        assert pool.stats().closed[Reason.UNREAD] == 1
        assert pool.execute("ask", "mine") == "mine"


def test_a_closed_client_without_a_descriptor_is_not_handed_out_again(server: IdServer) -> None:
    with make_pool(server, pool_size=1, client_factory=Opaque) as pool:
        conn = pool.get()
        conn.close()
        pool.put(conn)
        assert pool.stats().closed[Reason.DISCARDED] == 1
        assert pool.execute("ask", "hello") == "hello"


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("use_threadlocal", [True, False])
def test_a_connection_that_a_dead_greenlet_held_comes_back(
    server: IdServer, use_threadlocal: bool
) -> None:
    with make_pool(server, pool_size=1, use_threadlocal=use_threadlocal) as pool:
        gevent.spawn(pool.get).join()
        gc.collect()
        until(lambda: pool.checkedout() == 0)
        assert_whole(pool, server)


def test_a_greenlet_that_keeps_no_reference_still_holds_what_it_got(server: IdServer) -> None:
    with make_pool(server, pool_size=1) as pool:
        first = id(pool.get())
        gc.collect()
        gevent.sleep(0)
        assert id(pool.get()) == first
        assert pool.checkedout() == 1
        pool.put(pool.get())


def test_a_dropped_pool_is_collected_and_its_connections_closed(server: IdServer) -> None:
    pool = make_pool(server)
    pool.execute("ask", "hello")
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    server.wait_open(0)
    assert gone() is None


# Nothing is lost, whatever strikes


@contextmanager
def two_servers() -> Iterator[tuple[IdServer, IdServer]]:
    with IdServer(late_share=0.2, late_by=0.01) as one, IdServer(late_share=0.2, seed=1) as two:
        yield one, two


@pytest.mark.parametrize("use_threadlocal", [True, False])
def test_kills_timeouts_and_failures_lose_nothing(use_threadlocal: bool) -> None:
    dice = random.Random(4)
    with two_servers() as servers:
        settings = {"pool_size": 4, "max_overflow": 2, "recycle": 7}
        with make_pool(*servers, use_threadlocal=use_threadlocal, **settings) as pool:
            wrong: list[Any] = []

            def work(name: int) -> None:
                for number in range(20):
                    question = f"{name}.{number}"
                    try:
                        with gevent.Timeout(dice.choice([0.005, 1.0, 1.0])):
                            conn = pool.get()
                            try:
                                answer = conn.ask(question)
                            finally:
                                conn.return_to_pool()
                            if answer != question:
                                wrong.append((question, answer))
                    except (gevent.Timeout, MaximumRetryException):
                        pass

            workers = [gevent.spawn(work, name) for name in range(20)]
            while not all(worker.ready() for worker in workers):
                gevent.sleep(0.005)
                what = dice.random()
                if what < 0.1:
                    dice.choice(servers).rst_all()
                elif what < 0.2:
                    dice.choice(workers).kill(block=False)
            assert not wrong
            del workers, work
            gc.collect()
            assert_whole(pool, *servers)
            assert max(server.peak for server in servers) <= 6


@pytest.mark.parametrize("strike", STRIKES, ids=repr)
def test_a_caller_struck_at_any_switch_loses_nothing(strike: Strike) -> None:
    """A get, an operation that is retried, and the put, each switch of them struck in turn."""
    reached, nth = True, 0
    while reached:
        nth += 1
        stage = Stage("caller", strike, nth)
        with IdServer() as server:
            yielding = {"connection_checked_out": lambda dic: gevent.sleep(0)}
            yielding["connection_checked_in"] = lambda dic: gevent.sleep(0)
            yielding["connection_failed"] = lambda dic: gevent.sleep(0)
            pool = make_pool(server, pool_size=1, listeners=[yielding])
            failures: list[int] = []

            def scenario(stage: Stage, pool: Any = pool, failures: Any = failures) -> None:
                def act() -> None:
                    conn = pool.get()
                    try:
                        if not failures:
                            failures.append(1)
                            conn.sock.close()
                        conn.ask("hello")
                    finally:
                        conn.return_to_pool()

                stage.pools.append(pool)
                stage._armed = True
                stage.act(act)

            stage.play(scenario)
            reached = stage.switches >= nth
            assert_whole(pool, server)
            pool.close()
        assert nth < 100
    assert nth > 5


# A real Thrift client


@pytest.fixture
def thrift(tmp_path: Any) -> Iterator[Any]:
    """The service of tests with a real client: its module, its server, and a client factory."""
    thriftpy2 = pytest.importorskip("thriftpy2")
    from thriftpy2.protocol import TBinaryProtocol
    from thriftpy2.thrift import TClient, TProcessor
    from thriftpy2.transport import TFramedTransport, TSocket

    path = tmp_path / "ping.thrift"
    path.write_text(_PING)
    ping = thriftpy2.load(str(path), module_name="ping_thrift")

    class Handler:
        keyspaces: tuple[str, ...] = ()
        late = 0

        def set_keyspace(self, keyspace: str) -> None:
            self.keyspaces += (keyspace,)

        def ping(self, text: str) -> str:
            if self.late:
                self.late -= 1
                raise ping.TimedOutException()
            return text

    class ThriftServer(EchoServer):
        handler = Handler()

        def serve(self, sock: Any) -> None:
            protocol = TBinaryProtocol(TFramedTransport(TSocket(sock=sock)))
            processor = TProcessor(ping.Ping, self.handler)
            try:
                while True:
                    processor.process(protocol, protocol)
            except thriftpy2.transport.TTransportException:
                pass  # it hung up

    def factory(host: str, port: int, timeout: float | None) -> Any:
        sock = gevent.socket.create_connection((host, port), timeout=timeout)
        return TClient(ping.Ping, TBinaryProtocol(TFramedTransport(TSocket(sock=sock))))

    with ThriftServer() as server:
        settings = {
            "client_factory": staticmethod(factory),
            "retry_on": (OSError, EOFError, thriftpy2.transport.TTransportException),
        }
        settings["retry_on"] += (ping.TimedOutException,)
        yield server, type("ThriftPool", (ConnectionPool,), settings)


_PING = """
exception TimedOutException {}
service Ping {
    void set_keyspace(1: string keyspace),
    string ping(1: string text) throws (1: TimedOutException toe),
}
"""


def test_a_real_thrift_client_is_pooled(thrift: Any) -> None:
    server, pool_class = thrift
    with pool_class("Keyspace1", at(server), pool_size=3, timeout=5.0) as pool:
        assert server.handler.keyspaces == ("Keyspace1",) * 3
        assert pool.execute("ping", "hello") == "hello"
        server.handler.late = 2
        conn = pool.get()
        assert conn.ping("retried") == "retried"
        pool.put(conn)
        assert pool.stats().closed[Reason.ERROR] == 2


def test_a_real_thrift_client_whose_server_hung_up_is_not_handed_out(thrift: Any) -> None:
    server, pool_class = thrift
    with pool_class(None, at(server), pool_size=2, timeout=5.0, max_retries=0) as pool:
        server.wait_open(2)
        server.fin_all()
        assert pool.execute("ping", "hello") == "hello"
        conn = pool.get()
        server.wait_open(2)
        server.rst_all()
        with pytest.raises(MaximumRetryException):
            conn.ping("broken")
        pool.put(conn)
        assert pool.checkedout() == 0


def test_a_real_thrift_client_that_was_closed_is_noticed_at_put(thrift: Any) -> None:
    server, pool_class = thrift
    with pool_class(None, at(server), pool_size=1, timeout=5.0) as pool:
        conn = pool.get()
        conn._session.client.close()
        pool.put(conn)
        assert pool.execute("ping", "hello") == "hello"
        assert server.opened == 2
