"""The contract of geventpool.contrib: each adapter, with a real server, on a bad day.

What is not slow runs at the server that all tests share, the rest at one of the tests' own, which
they restart and fill up.  An adapter is described in tests/support/adapters/.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import monkey
from gevent.pool import Group

from geventpool import Verdict
from geventpool.events import ConnectionFailed
from geventpool.testing import ChaosProxy
from support.adapters import ADAPTERS
from support.child import FORKS, Child
from support.contract import Adapter, Storm
from support.own_servers import OwnServer
from support.waiting import until

SIZE = 10
#: Right answers of each adapter, in one storm.
ANSWERS = 7000

patched = monkey.is_module_patched("socket")


def each(*methods: str) -> Any:
    """A test of each adapter that has these methods."""
    adapters = [adapter for adapter in ADAPTERS if adapter.has(*methods)]
    return pytest.mark.parametrize("adapter", adapters, ids=repr)


of_each_state = pytest.mark.parametrize(
    ("adapter", "state"),
    [(adapter, state) for adapter in ADAPTERS for state in adapter.states],
    ids=str,
)
#: What a client has to say of a user that forgets to close what it has opened.
careless = pytest.mark.filterwarnings(
    "ignore:.*deleted while still open:ResourceWarning",
    "ignore:Previous unbuffered result was left incomplete:UserWarning",
)


@pytest.fixture(autouse=True)
def cooperative(adapter: Adapter) -> None:
    if adapter.needs_patching and not patched:
        pytest.skip("the pool refuses: its client blocks unless gevent has patched it")


@pytest.fixture(scope="module")
def own_servers() -> Iterator[Callable[[Adapter], OwnServer]]:
    """That of an adapter, started when it is asked for first."""
    with ExitStack() as stack:

        @functools.cache
        def start(kind: type[OwnServer], options: tuple[str, ...]) -> OwnServer:
            return stack.enter_context(kind(*options))

        prepared = set()

        def of(adapter: Adapter) -> OwnServer:
            server = start(adapter.own_server, adapter.options)
            if server not in prepared:
                prepared.add(server)
                adapter.prepare(server)
            return server

        yield of


@pytest.fixture
def server(adapter: Adapter, own_servers: Callable[[Adapter], OwnServer]) -> OwnServer:
    return own_servers(adapter)


def ask(adapter: Adapter, pool: Any, token: str = "hello") -> str:
    with adapter.lease(pool) as conn:
        return adapter.ask(conn, token)


def sessions_of(adapter: Adapter, pool: Any) -> set[Any]:
    """Those of all its connections; each is asked, too, and answers right."""
    with ExitStack() as stack:
        conns = [stack.enter_context(adapter.lease(pool)) for _ in range(pool.size)]
        for number, conn in enumerate(conns):
            assert adapter.ask(conn, f"connection {number}") == f"connection {number}"
        return {adapter.session(conn) for conn in conns}


# Answers


def assert_weathered(storm: Storm) -> None:
    print(storm)
    assert storm.wrong == []
    assert storm.errors == {}
    assert min(storm.given_up, storm.silent, storm.killed, storm.troubles) > 0
    until(lambda: storm.pool.stats().in_use == 0)
    sessions_of(storm.adapter, storm.pool)


@each("ask")
def test_in_a_storm_everyone_gets_its_own_answer(adapter: Adapter) -> None:
    with adapter.pool(adapter.shared_address(), SIZE) as pool:
        storm = Storm(adapter, pool, greenlets=50, timeouts=0.3)
        storm.run(150)

        assert_weathered(storm)


@pytest.mark.slow
@each("ask")
def test_in_a_long_storm_everyone_gets_its_own_answer(adapter: Adapter, server: OwnServer) -> None:
    with adapter.pool(server.address, SIZE) as pool:
        storm = Storm(adapter, pool)
        storm.run(ANSWERS)

        assert_weathered(storm)
        assert storm.right >= ANSWERS
        # The server may still be at what was given up.
        until(lambda: len(adapter.sessions(server.address)) <= SIZE, "no session too many")
    until(lambda: not adapter.sessions(server.address), "no session")


@pytest.mark.slow
@pytest.mark.parametrize("silently", [False, True], ids=["raised", "silently"])
@each("busy")
def test_what_was_given_up_is_ended_at_the_server(
    adapter: Adapter, server: OwnServer, silently: bool
) -> None:
    with adapter.pool(server.address, 4) as pool:
        sessions_of(adapter, pool)
        for _ in range(6):
            try:
                with adapter.lease(pool) as conn, gevent.Timeout(0.05, False if silently else None):
                    adapter.ask(conn, "hello", 20.0)
            except gevent.Timeout:
                assert not silently
            assert ask(adapter, pool, "goodbye") == "goodbye"
        # MariaDB would find out by itself after 5 s.
        until(lambda: not adapter.busy(server.address), "the end of it", seconds=3)
        sessions_of(adapter, pool)
        until(lambda: len(adapter.sessions(server.address)) == 4)


# Servers on a bad day


@each("end_session")
def test_a_session_that_an_administrator_ends_is_never_handed_out(adapter: Adapter) -> None:
    address = adapter.shared_address()
    with adapter.pool(address, 3) as pool:
        old = sessions_of(adapter, pool)
        for session in old:
            adapter.end_session(address, session)
        until(lambda: pool.stats().opened == 6)

        assert old.isdisjoint(sessions_of(adapter, pool))


@each("end_session")
def test_one_that_is_ended_under_its_user_is_not_used_again(adapter: Adapter) -> None:
    address = adapter.shared_address()
    with adapter.pool(address, 1) as pool:
        with pytest.raises(adapter.lost), adapter.lease(pool) as conn:
            session = adapter.session(conn)
            adapter.end_session(address, session)
            adapter.ask(conn, "hello")
        with adapter.lease(pool) as conn:
            assert adapter.session(conn) != session
            assert adapter.ask(conn, "hello") == "hello"


@each("ask")
def test_a_server_that_is_away_at_the_start_is_no_matter_once_it_is_there(
    adapter: Adapter,
) -> None:
    with ChaosProxy(adapter.shared_address()) as proxy:
        proxy.refuse()
        with adapter.pool(proxy.address, 2, timeout=0.2) as pool:
            with pytest.raises(adapter.unavailable) as raised:
                ask(adapter, pool)
            assert raised.value.__cause__ is not None

            proxy.normal()
            pool.fill(timeout=10)
            assert ask(adapter, pool) == "hello"


@pytest.mark.slow
@each("ask")
def test_in_a_black_hole_a_caller_waits_no_longer_than_it_will(adapter: Adapter) -> None:
    with ChaosProxy(adapter.shared_address()) as proxy:
        pool = adapter.pool(
            proxy.address,
            3,
            keepalive=0.1,
            keepalive_timeout=0.2,
            connect_timeout=0.5,
            timeout=0.5,
        )
        with pool:
            old = sessions_of(adapter, pool)
            proxy.black_hole()
            began = time.monotonic()
            with pytest.raises((gevent.Timeout, *adapter.unavailable)):
                with gevent.Timeout(0.3):
                    ask(adapter, pool)
            assert time.monotonic() - began < 2
            closed = lambda: sum(pool.stats().closed.values())  # noqa: E731
            until(lambda: closed() >= 3, "the keepalive to find them dead")

            proxy.normal()
            pool.fill(timeout=20)
            assert old.isdisjoint(sessions_of(adapter, pool))


@pytest.mark.slow
@each("ask")
def test_a_server_may_be_restarted(adapter: Adapter, server: OwnServer) -> None:
    right, lost, stop = [], [], []

    def user(number: int) -> None:
        while not stop:
            token = f"{number} {len(right)}"
            try:
                right.append(ask(adapter, pool, token) == token)
            except (*adapter.unavailable, *adapter.lost) as error:
                lost.append(error)

    with adapter.pool(server.address, SIZE, timeout=1.0) as pool:
        pool.fill()
        users = Group()
        for number in range(20):
            users.spawn(user, number)
        until(lambda: len(right) > 100)
        server.restart()
        before = len(right)
        until(lambda: len(right) > before + 100, "answers after the restart")
        stop.append(True)
        users.join(timeout=20, raise_error=True)
        assert all(right)
        pool.fill(timeout=20)
        sessions_of(adapter, pool)


@pytest.mark.slow
@each("set_read_only", "write")
def test_once_a_primary_was_demoted_no_connection_is_used_again(
    adapter: Adapter, server: OwnServer
) -> None:
    def write() -> None:
        with adapter.lease(pool) as conn:
            adapter.write(conn)

    with adapter.pool(server.address, 3, plain=True) as pool:
        old = sessions_of(adapter, pool)
        write()
        adapter.set_read_only(server.address, True)
        try:
            with gevent.Timeout(10), pytest.raises(adapter.refusal):
                while True:  # the server may take a moment to have it known
                    write()
        finally:
            adapter.set_read_only(server.address, False)
        assert old.isdisjoint(sessions_of(adapter, pool))
        write()


@pytest.mark.slow
@each("prepare")
def test_with_fewer_clients_than_it_would_have_a_pool_serves_by_what_it_has(
    adapter: Adapter, server: OwnServer
) -> None:
    refusals: list[Exception] = []

    class Listener:
        def connection_failed(self, event: ConnectionFailed) -> None:
            refusals.append(event.error)

    with adapter.pool(
        server.address, adapter.most + 15, plain=True, timeout=20, listeners=[Listener()]
    ) as pool:
        storm = Storm(adapter, pool, greenlets=100, timeouts=0.0, kills=0.0)
        storm.run(1000)

        assert (storm.wrong, storm.errors) == ([], {})
        assert 0 < pool.stats().idle <= adapter.most
        assert {pool._classify_error(error) for error in refusals} == {Verdict.SERVER_FULL}


# What a user leaves behind


@careless
@of_each_state
def test_what_a_user_leaves_behind_never_reaches_the_next(adapter: Adapter, state: str) -> None:
    with adapter.pool(adapter.shared_address(), 1) as pool:
        with adapter.lease(pool) as conn:
            left = adapter.leave(state, conn)
        with adapter.lease(pool) as conn:
            assert not adapter.remains(state, conn)
            assert adapter.ask(conn, "hello") == "hello"
        del left


@careless
@of_each_state
def test_nor_does_what_it_leaves_behind_as_it_is_cut_short(adapter: Adapter, state: str) -> None:
    with adapter.pool(adapter.shared_address(), 1) as pool:
        with pytest.raises(gevent.Timeout), adapter.lease(pool) as conn:
            left = adapter.leave(state, conn)
            raise gevent.Timeout
        with adapter.lease(pool) as conn:
            assert not adapter.remains(state, conn)
            assert adapter.ask(conn, "hello") == "hello"
        del left


@each("set_variable", "variable")
def test_a_pool_that_is_told_to_forgets_what_was_set_in_a_session(adapter: Adapter) -> None:
    assert adapter.forgetful is not None
    with adapter.pool(adapter.shared_address(), 1, **adapter.forgetful) as pool:
        for _ in range(3):
            with adapter.lease(pool) as conn:
                session = adapter.session(conn)
                adapter.set_variable(conn)
                assert adapter.variable(conn)
            with adapter.lease(pool) as conn:
                assert not adapter.variable(conn)
                assert adapter.session(conn) == session


# Children


@each("session")
def test_a_child_process_is_nothing_to_the_sessions(adapter: Adapter) -> None:
    with adapter.pool(adapter.shared_address(), 3) as pool:
        old = sessions_of(adapter, pool)
        subprocess.run(["true"], check=True)

        assert sessions_of(adapter, pool) == old


@pytest.mark.slow
@FORKS
@each("session", "sessions")
def test_a_fork_has_sessions_of_its_own(
    adapter: Adapter, server: OwnServer, fork: Callable[[], int]
) -> None:
    seen = len(server.log())
    with adapter.pool(server.address, 3) as pool:
        old = sessions_of(adapter, pool)

        def in_the_child() -> Any:
            theirs = sessions_of(adapter, pool)
            pool.close()
            return sorted(theirs)

        for _ in range(3):
            theirs = set(Child(fork, in_the_child).result())
            assert len(theirs) == 3
            assert theirs.isdisjoint(old)
            assert sessions_of(adapter, pool) == old
        until(lambda: adapter.sessions(server.address) == old, "the sessions of this process")

    assert not re.findall(f"(?i).*(?:{adapter.protocol_errors}).*", server.log()[seen:])


# Growth


@pytest.mark.slow
@each("sessions")
def test_in_300_cycles_neither_sessions_nor_descriptors_grow(
    adapter: Adapter, server: OwnServer
) -> None:
    def cycle(number: int) -> None:
        try:
            with adapter.lease(pool) as conn, gevent.Timeout(0.005 if number % 3 == 0 else None):
                adapter.ask(conn, "hello", 0.5 if number % 3 == 0 else 0.0)
        except gevent.Timeout:
            cut_short.append(number)

    cut_short: list[int] = []
    with adapter.pool(server.address, 4) as pool:
        sessions_of(adapter, pool)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(300):
            cycle(number)
        sessions_of(adapter, pool)

        until(lambda: len(adapter.sessions(server.address)) == 4, "four sessions")
        until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor more")
    assert len(cut_short) > 50  # of 100: on a busy machine some answers come first
    until(lambda: not adapter.sessions(server.address), "no session")
