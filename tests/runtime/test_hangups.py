"""The hang-up watcher: every hang-up is noticed, once, by nothing else, and without a call per
checkout."""

from __future__ import annotations

import fcntl
import os
import resource
import socket as stdlib_socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import pytest
from gevent import monkey
from gevent.event import Event

from geventpool import ConnectionPool, Reason, SocketFactory
from geventpool._runtime.hangups import HangupWatcher
from geventpool._runtime.runtime import Runtime
from support.servers import EchoServer
from support.waiting import until

socketpair = monkey.get_original("socket", "socketpair")
fork = monkey.get_original("os", "fork")
waitpid = monkey.get_original("os", "waitpid")
close_now = monkey.get_original("os", "close")  # of a patched program, os.close waits for the hub

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="epoll is a thing of Linux"
)


@pytest.fixture
def told() -> list[Any]:
    """The tokens of which the hang-up watcher has told."""
    return []


@pytest.fixture
def hangups(told: list[Any]) -> Iterator[HangupWatcher]:
    made = HangupWatcher(gevent.get_hub(), told.append)
    yield made
    made.abandon()


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = socketpair()
    with ours, theirs:
        yield ours, theirs


# What it notices


def tcp_pair(family: int = stdlib_socket.AF_INET) -> tuple[Any, Any]:
    with stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        ours = stdlib_socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def close(theirs: Any) -> None:
    close_now(theirs.detach())


def reset(theirs: Any) -> None:
    linger = struct.pack("ii", 1, 0)
    theirs.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_LINGER, linger)
    close(theirs)


def half_close(theirs: Any) -> None:
    theirs.shutdown(stdlib_socket.SHUT_WR)


def send_and_close(theirs: Any) -> None:
    theirs.sendall(b"goodbye")
    close(theirs)


@pytest.mark.parametrize("make_pair", [tcp_pair, socketpair], ids=["TCP", "Unix"])
@pytest.mark.parametrize("hang_up", [close, reset, half_close, send_and_close])
def test_a_hang_up_is_told_of_once(
    hangups: HangupWatcher,
    told: list[Any],
    make_pair: Callable[[], tuple[Any, Any]],
    hang_up: Callable[[Any], None],
) -> None:
    ours, theirs = make_pair()
    with ours, theirs:
        assert hangups.watch(ours.fileno(), "ours")
        gevent.idle()
        assert told == []

        hang_up(theirs)
        until(lambda: told)
        gevent.idle()

        assert told == ["ours"]


def test_data_does_not_wake_it(
    hangups: HangupWatcher, told: list[Any], pair: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = HangupWatcher.poll
    monkeypatch.setattr(HangupWatcher, "poll", lambda self: (looks.append(1), look(self)))
    ours, theirs = pair
    hangups.watch(ours.fileno(), "ours")
    gevent.idle()
    looks.clear()
    for _ in range(10):
        theirs.sendall(b"data")
        gevent.idle()
        ours.recv(100)

    assert (told, looks) == ([], [])


def test_ones_own_half_close_is_no_hang_up(
    hangups: HangupWatcher, told: list[Any], pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    hangups.watch(ours.fileno(), "ours")
    ours.shutdown(stdlib_socket.SHUT_WR)
    gevent.idle()
    assert told == []

    close(theirs)
    until(lambda: told)

    assert told == ["ours"]


def test_a_hang_up_from_before_the_watch_is_told_of(
    hangups: HangupWatcher, told: list[Any], pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    close(theirs)
    hangups.watch(ours.fileno(), "ours")
    until(lambda: told)

    assert told == ["ours"]


def test_thousands_of_hang_ups_at_once_are_all_told_of(
    hangups: HangupWatcher, told: list[Any]
) -> None:
    pairs = [socketpair() for _ in range(1500)]
    for number, (ours, _) in enumerate(pairs):
        hangups.watch(ours.fileno(), number)
    for _, theirs in pairs:
        theirs.close()
    until(lambda: len(told) >= 1500)
    for ours, _ in pairs:
        ours.close()

    assert sorted(told) == list(range(1500))


def test_a_descriptor_beyond_1024_is_watched(
    hangups: HangupWatcher, told: list[Any], pair: tuple[Any, Any]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft <= 3000 and hard != resource.RLIM_INFINITY and hard <= 3000:
        pytest.skip("no such descriptor may be opened here")
    if soft <= 3000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4000, hard))
    ours, theirs = pair
    high = stdlib_socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 3000))
    with high:
        assert hangups.watch(high.fileno(), "high")
        close(theirs)
        until(lambda: told)

        assert told == ["high"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_cannot_be_watched_is_refused(hangups: HangupWatcher) -> None:
    with open(__file__, "rb") as regular_file:
        assert not hangups.watch(regular_file.fileno(), "a file")
        closed = regular_file.fileno()
    assert not hangups.watch(closed, "closed")


# Whom it tells of


def assert_told_of_nothing(hangups: HangupWatcher, told: list[Any]) -> None:
    """Whatever it could tell of has come when a later hang-up, of our own, has been told of."""
    ours, theirs = socketpair()
    with ours, theirs:
        hangups.watch(ours.fileno(), "the last")
        close(theirs)
        until(lambda: "the last" in told)
        hangups.unwatch(ours.fileno(), "the last")

    assert told == ["the last"]
    told.clear()


def test_nothing_is_told_of_what_is_unwatched(
    hangups: HangupWatcher, told: list[Any], pair: tuple[Any, Any]
) -> None:
    ours, theirs = pair
    hangups.watch(ours.fileno(), "ours")
    hangups.unwatch(ours.fileno(), "ours")
    close(theirs)
    assert_told_of_nothing(hangups, told)

    with pytest.raises(FileNotFoundError):
        hangups._epoll.modify(ours.fileno(), 0)


def socketpair_with_number(number: int) -> tuple[Any, Any]:
    """A pair of sockets, the first with this descriptor, which is free."""
    ours, theirs = socketpair()
    if ours.fileno() == number:
        return ours, theirs
    os.dup2(ours.fileno(), number)
    ours.close()
    return stdlib_socket.socket(fileno=number), theirs


def test_to_unwatch_late_does_not_touch_the_next_owner_of_the_number(
    hangups: HangupWatcher, told: list[Any]
) -> None:
    """As when a connection was collected, and its number taken before the pool heard of it."""
    first, first_peer = socketpair()
    number = first.fileno()
    hangups.watch(number, "first")
    first.close()
    second, second_peer = socketpair_with_number(number)
    with second, first_peer:
        hangups.watch(number, "second")
        hangups.unwatch(number, "first")
        second_peer.close()
        until(lambda: told)

        assert told == ["second"]


def test_a_duplicate_of_a_closed_connection_does_not_speak_for_the_next_of_its_number(
    hangups: HangupWatcher, told: list[Any]
) -> None:
    """Its user closed it behind the pool's back; a copy, as in a forked child, lives on."""
    first, first_peer = socketpair()
    copy, number = first.dup(), first.fileno()
    hangups.watch(number, "first")
    first.close()
    second, second_peer = socketpair_with_number(number)
    with copy, second:
        hangups.watch(number, "second")
        first_peer.close()
        assert_told_of_nothing(hangups, told)

        second_peer.close()
        until(lambda: told)
        assert told == ["second"]


def test_a_connection_is_unwatched_before_it_is_closed() -> None:
    class Closes:
        def __init__(self) -> None:
            self.sock, self.peer = socketpair()

        def fileno(self) -> int:
            return int(self.sock.fileno())

        def close(self) -> None:
            watched_at_close.append(self.fileno() in hangups._tokens)
            self.sock.close()
            self.peer.close()

    watched_at_close: list[bool] = []
    hangups = Runtime.of_this_thread().index.hangups
    with ConnectionPool(2, connect=Closes) as pool:
        pool.fill()
        conn = pool.acquire()
        assert conn.fileno() in hangups._tokens
        pool.discard(conn)
        with pytest.raises(OSError):
            with pool.get():
                raise OSError
        pool.fill()

    assert watched_at_close == [False] * 4


def test_a_detached_connection_is_not_watched_any_more() -> None:
    with EchoServer() as server:
        hangups = Runtime.of_this_thread().index.hangups
        with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
            conn = pool.acquire()
            assert conn.fileno() in hangups._tokens
            pool.detach(conn)
            assert hangups._tokens.get(conn.fileno()) is None
            conn.close()


def test_a_connection_with_the_number_of_a_closed_one_is_watched_like_any_other() -> None:
    with EchoServer() as server:
        with ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
            numbers: list[int] = []
            for round_ in range(1, 6):
                pool.fill()
                server.wait_opened(round_)
                with pool.get() as conn:
                    numbers.append(conn.fileno())
                    gevent.idle()
                server.fin_all()
                until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == round_)  # noqa: B023

            assert len(set(numbers)) < len(numbers)  # some number came again


# When


def test_a_request_woken_in_the_same_pass_of_the_hub_sees_the_death(
    hangups: HangupWatcher, told: list[Any]
) -> None:
    loop: Any = gevent.get_hub().loop
    if loop.MINPRI == loop.MAXPRI:
        pytest.skip("this event loop knows no priorities")
    seen: list[list[Any]] = []

    def request(sock: Any) -> None:
        sock.recv(1)
        seen.append(list(told))

    for number in range(100):
        idle, idle_peer = socketpair()
        busy, busy_peer = gevent.socket.socketpair()
        if number % 2:
            hangups.watch(idle.fileno(), number)
        greenlet = gevent.spawn(request, busy)
        gevent.idle()
        if not number % 2:
            hangups.watch(idle.fileno(), number)
            gevent.idle()
        del told[:]
        # Both happen before the hub polls again.
        if number // 2 % 2:
            idle_peer.close()
        busy_peer.sendall(b"!")
        idle_peer.close()
        greenlet.join()
        for sock in (idle, busy, busy_peer):
            sock.close()

        assert seen[-1] == [number]


def test_one_who_comes_in_the_pass_of_the_death_is_not_given_the_dead_connection() -> None:
    """The connection is no socket, so nothing but the hang-up watcher can tell."""
    loop: Any = gevent.get_hub().loop
    if loop.MINPRI == loop.MAXPRI:
        pytest.skip("this event loop knows no priorities")

    class Client:
        def __init__(self) -> None:
            self.sock, self.peer = socketpair()

        def fileno(self) -> int:
            return int(self.sock.fileno())

        def close(self) -> None:
            self.sock.close()
            self.peer.close()

    def request() -> Any:
        busy.recv(1)
        with pool.get() as conn:
            return conn

    busy, busy_peer = gevent.socket.socketpair()
    with busy, busy_peer, ConnectionPool(2, connect=Client) as pool:
        for _ in range(50):
            pool.fill()
            with pool.get() as first, pool.get() as second:
                pass
            greenlet = gevent.spawn(request)
            gevent.idle()
            busy_peer.sendall(b"!")
            first.peer.close()

            assert greenlet.get(timeout=10) is second


# What it costs


class Counted:
    """An epoll that counts the calls it gets."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._epoll, name)


def test_a_checkout_makes_no_call_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hangups = Runtime.of_this_thread().index.hangups
    with EchoServer() as server:
        with ConnectionPool(5, connect=SocketFactory(server.address)) as pool:
            pool.fill()
            for conn in [pool.acquire() for _ in range(5)]:
                pool.release(conn)
            counted = Counted(hangups._epoll)
            monkeypatch.setattr(hangups, "_epoll", counted)

            for _ in range(1000):
                with pool.get():
                    pass
            for _ in range(100):
                pool.release(pool.acquire())
            turns = [gevent.spawn(pool.execute, lambda _: gevent.sleep(0)) for _ in range(100)]
            gevent.joinall(turns, raise_error=True)
            calls = list(counted.calls)
            monkeypatch.undo()

    assert calls == []


def test_a_connection_without_a_descriptor_makes_no_call_at_all() -> None:
    with ConnectionPool(3, connect=object) as pool:
        pool.fill()
        with pool.get():
            pass

        assert all(slot.fds == () and slot.why_unusable is None for slot in pool._bucket.slots)


def test_all_the_pools_of_a_hub_share_one() -> None:
    with ConnectionPool(1, connect=object) as one, ConnectionPool(1, connect=object) as other:
        assert one._runtime.index.hangups is other._runtime.index.hangups


def test_it_does_not_keep_a_program_alive() -> None:
    program = """if True:
        import gevent
        import gevent.socket
        from geventpool import ConnectionPool

        class Pool(ConnectionPool):
            def _new_connection(self):
                ours, self.theirs = gevent.socket.socketpair()
                return ours

            def _keepalive(self, conn):
                pass

        pool = Pool(1, keepalive=30, max_lifetime=3600, idle_timeout=60)
        pool.fill()
        gevent.wait()
        print("done", pool.stats().idle)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout, done.stderr) == ("done 1\n", "")


# Fork


def test_a_child_that_abandons_it_takes_nothing_from_the_parent(
    hangups: HangupWatcher, told: list[Any]
) -> None:
    pairs = [socketpair() for _ in range(10)]
    for number, (ours, _) in enumerate(pairs):
        hangups.watch(ours.fileno(), number)
    pid = fork()
    if not pid:
        try:
            hangups.abandon()
            for number, (ours, _) in enumerate(pairs):
                hangups.unwatch(ours.fileno(), number)
                ours.close()
                hangups.watch(pairs[0][1].fileno(), number)
        finally:
            os._exit(0)
    _reap(pid)
    for _, theirs in pairs:
        theirs.close()
    until(lambda: len(told) >= 10)

    assert sorted(told) == list(range(10))
    for ours, _ in pairs:
        ours.close()


def test_a_child_has_one_of_its_own(hangups: HangupWatcher, told: list[Any]) -> None:
    ours, theirs = socketpair()
    hangups.watch(ours.fileno(), "the parent's")
    report, write_end = os.pipe()
    pid = fork()
    if not pid:
        try:
            hangups.abandon()
            mine, my_peer = socketpair()
            hangups.watch(mine.fileno(), "the child's")
            my_peer.close()
            until(lambda: told)
            os.write(write_end, repr(told).encode())
        finally:
            os._exit(0)
    close_now(write_end)
    _reap(pid)
    with open(report, "rb") as file:
        told_in_child = file.read().decode()
    gevent.idle()

    assert told_in_child == repr(["the child's"])
    assert told == []
    ours.close()
    theirs.close()


def test_a_child_of_the_pools_leaves_the_parent_its_news() -> None:
    """With the pool's own watcher, abandoned by the fork itself."""
    event = Event()

    class Ears:
        def peer_closed(self, _: Any) -> None:
            event.set()

    peers: list[Any] = []

    def connect() -> Any:
        ours, theirs = gevent.socket.socketpair()
        peers.append(theirs)
        return ours

    with ConnectionPool(1, connect=connect, listeners=[Ears()]) as pool:
        pool.fill()
        pid = fork()
        if not pid:
            try:
                gevent.sleep(0.05)
            finally:
                os._exit(0)
        _reap(pid)
        assert not event.is_set()
        peers[0].close()

        assert event.wait(5)
    for peer in peers:
        peer.close()


def _reap(pid: int) -> None:
    """Wait for a child that ends by itself."""
    try:
        waitpid(pid, 0)
    except ChildProcessError:
        pass  # gevent's own watcher was quicker
