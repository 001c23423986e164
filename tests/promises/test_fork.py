"""Fork is silent: a child opens its own connections and never touches the parent's (promise 8).

The server runs in a process of its own: of one in this process, every child would have a copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.os
import gevent.socket
import pytest
from gevent import monkey
from gevent.event import Event

from geventpool import (
    Backoff,
    ConnectionPool,
    DnsResolver,
    Limit,
    PoolTimeout,
    Reason,
    SocketFactory,
)
from geventpool._runtime import fork as forking
from geventpool._runtime import runtime as runtimes
from support import LIBUV, ROOT, TESTS
from support.child import FORKS, Child, close_now, raw_fork
from support.servers import Driver, Pulse, ask
from support.threads import Thread
from support.waiting import until

raw_sleep = monkey.get_original("time", "sleep")
raw_socket = monkey.get_original("socket", "socket")
raw_select = monkey.get_original("select", "select")

SERVER = """if True:
    import itertools
    import sys

    sys.path.insert(0, sys.argv[1])
    import gevent
    from support.servers import EchoServer

    class Server(EchoServer):
        # "who": the number of the connection; "open": how many are open, the asking one excepted;
        # "hang up": close them; "hold": answer nothing until "go on" comes over another one

        def serve(self, sock):
            number = next(numbers)
            unread = b""
            while data := sock.recv(65536):
                *lines, unread = (unread + data).split(b"\\n")
                for line in lines:
                    answer = line
                    if line == b"who":
                        answer = b"%d" % number
                    elif line == b"open":
                        answer = b"%d" % (self.open - 1)
                    elif line == b"hang up":
                        me = gevent.getcurrent()
                        for greenlet in [g for g in self._sockets if g is not me]:
                            greenlet.kill()
                    elif line == b"hold":
                        go_on.clear()
                        held.set()
                        go_on.wait()
                    elif line == b"wait for a hold":
                        held.wait()
                        held.clear()
                    elif line == b"go on":
                        go_on.set()
                    sock.sendall(answer + b"\\n")

    go_on, held = gevent.event.Event(), gevent.event.Event()
    numbers = itertools.count(1)
    server = Server()
    server.start()
    print(server.address[1], flush=True)
    gevent.get_hub().threadpool.apply(sys.stdin.read)  # to the end of the one who started it
"""


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(TESTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield "127.0.0.1", int(process.stdout.readline())
    process.stdin.close()
    process.stdout.close()
    process.terminate()
    process.wait()


def tell(server: tuple[str, int], order: str) -> str:
    """Say something to the server over a connection of no pool."""
    sock = gevent.socket.create_connection(server)
    try:
        return ask(sock, order)
    finally:
        sock.close()


def who(pool: ConnectionPool[Any]) -> int:
    """The server's number of the connection that the pool hands out."""
    with pool.get() as conn:
        return int(ask(conn, "who"))


def all_of(pool: ConnectionPool[Any]) -> list[int]:
    """The server's number of each connection of a fixed pool."""
    pool.fill()
    conns = [pool.acquire() for _ in range(pool.size)]
    try:
        return [int(ask(conn, "who")) for conn in conns]
    finally:
        for conn in conns:
            pool.release(conn)


@FORKS
def test_a_child_has_a_full_pool_of_its_own_and_the_parent_keeps_its_connections(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    with ConnectionPool(5, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        child = Child(fork, lambda: all_of(pool))
        during = [all_of(pool) for _ in range(20)]
        in_child = child.result()
        after = all_of(pool)

        assert len(set(in_child)) == 5
        assert not set(in_child) & set(before)
        assert {tuple(sorted(numbers)) for numbers in during} == {tuple(sorted(before))}
        assert sorted(after) == sorted(before)
        assert pool.stats().dialed == 5


@FORKS
def test_a_child_that_uses_the_pool_at_once_waits_for_nothing(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    """Not for its hub to learn of the fork, nor for threads of the resolver that are not there."""

    def in_child() -> float:
        began = monotonic()
        with Pulse() as pulse, pool.get() as conn:
            ask(conn, "hello")
        return monotonic() - began - pulse.missed

    with ConnectionPool(1, connect=SocketFactory(server, connect_timeout=20)) as pool:
        pool.fill()

        assert Child(fork, in_child).result() < 3.0


@FORKS
def test_requests_of_the_parent_and_of_a_child_get_their_own_replies_at_the_same_time(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def load(whose: str) -> int:
        def client(number: int) -> int:
            right = 0
            for count in range(50):
                question = f"{whose} {number} {count}"
                with pool.get() as conn:
                    right += ask(conn, question) == question
            return right

        clients = [gevent.spawn(client, number) for number in range(10)]
        return sum(each.get(timeout=30) for each in clients)

    with ConnectionPool(4, connect=SocketFactory(server)) as pool:
        pool.fill()
        child = Child(fork, lambda: load("child"))
        in_parent = load("parent")

        assert child.result() == 500
        assert in_parent == 500
        assert load("parent again") == 500


@FORKS
def test_the_counters_of_a_child_start_at_zero(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def look() -> dict[str, Any]:
        stats = pool.stats()
        return {
            "acquired": stats.acquired,
            "released": stats.released,
            "dialed": stats.dialed,
            "opened": stats.opened,
            "open": stats.in_use + stats.idle + stats.connecting + stats.closing,
            "closed": sum(stats.closed.values()),
            "used": stats.use.count,
            "holders": len(pool.holders()),
        }

    with ConnectionPool(3, connect=SocketFactory(server)) as pool:
        all_of(pool)
        with pytest.raises(OSError), pool.get():
            raise OSError
        with pool.get():
            child = Child(fork, look)
            in_child = child.result()
        in_parent = look()

    assert in_child == dict.fromkeys(in_child, 0)
    assert in_parent["acquired"] == 5
    assert in_parent["closed"] == 1


@FORKS
def test_a_connection_in_use_at_the_fork_stays_the_parents(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    """Its holder's copy in the child leaves the ``with``, or discards it, to no effect at all."""

    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        acquired = pool.acquire()
        lease = pool.get()
        held = lease.__enter__()

        def in_child() -> list[Any]:
            lease.__exit__(None, None, None)
            pool.discard(acquired)
            with pytest.raises(gevent.Timeout), pool.get():
                raise gevent.Timeout
            numbers = all_of(pool)
            return [numbers, pool.stats().in_use]

        held.sendall(b"first half, ")
        numbers, in_use = Child(fork, in_child).result()
        assert ask(held, "second half") == "first half, second half"
        assert ask(acquired, "hello") == "hello"
        lease.__exit__(None, None, None)
        pool.release(acquired)

        assert not set(numbers) & set(before)
        assert in_use == 0
        assert sorted(all_of(pool)) == sorted(before)


@FORKS
def test_a_tuple_in_use_at_the_fork_that_was_taken_apart_stays_the_parents(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    class Pairs(ConnectionPool[tuple[Any, Any]]):
        def _new_connection(self) -> tuple[Any, Any]:
            sock = SocketFactory(server)()
            return sock, sock.makefile("rb")

        def _close_connection(self, conn: tuple[Any, Any]) -> None:
            for each in conn:
                each.close()

    with Pairs(1) as pool:
        sock, file = pool.acquire()

        def in_child() -> list[Any]:
            pool.release((sock, file))
            with pool.get() as (own, _):
                return [own is sock, pool.stats().in_use]

        assert Child(fork, in_child).result() == [False, 1]
        assert ask(sock, "hello") == "hello"
        pool.release((sock, file))
        assert pool.stats().idle == 1


@FORKS
def test_a_connection_the_parent_was_dialing_at_the_fork_is_finished_by_the_parent_alone(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def connect() -> Any:
        sock = gevent.socket.create_connection(server)
        if os.getpid() == parent:
            answers.append(ask(sock, "hold"))  # a log-in that takes its time
        return sock

    def in_child() -> list[Any]:
        numbers = [who(pool), who(pool)]
        tell(server, "go on")  # the parent's dial goes on; its copy here would take the answer
        gevent.sleep(0.05)
        return [*numbers, answers]

    parent = os.getpid()
    answers: list[str] = []
    with ConnectionPool(1, connect=connect) as pool:
        tell(server, "wait for a hold")
        assert pool.stats().connecting == 1
        child = Child(fork, in_child)
        first, second, answers_in_child = child.result()

        assert first == second
        assert answers_in_child == []
        assert who(pool) != first
        assert answers == ["hold"]
        assert pool.stats().dialed == 1


@FORKS
@pytest.mark.parametrize("by", ["a finalizer", "a finalizer, and a fileno()", "a handler"])
def test_a_dial_that_is_ended_in_a_child_says_no_goodbye_on_the_parents_connection(
    server: tuple[str, int], fork: Callable[[], int], by: str
) -> None:
    """The server answers each line; a goodbye of the child would be answered to the parent."""

    def connect() -> Driver:
        driver = Driver(server, with_fileno="fileno" in by)
        try:
            if os.getpid() == parent:
                answers.append(driver.ask("hold"))  # a log-in that takes its time
        except BaseException:
            if by == "a handler":
                driver._sock.sendall(b"goodbye\n")
            raise
        return driver

    def in_child() -> None:
        with pool.get() as conn:
            conn.ask("hello")
        tell(server, "go on")

    parent = os.getpid()
    answers: list[str] = []
    with ConnectionPool(1, connect=connect) as pool:
        tell(server, "wait for a hold")
        Child(fork, in_child).result()

        with pool.get() as conn:
            answers.append(conn.ask("after"))
        assert answers == ["hold", "after"]
        assert pool.stats().dialed == 1


@FORKS
def test_what_a_dial_that_is_ended_in_a_child_has_of_sockets_of_other_kinds_stays_open(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    """One that listens, as of a server that forks its workers, and one of datagrams."""
    listening, datagrams = raw_socket(), raw_socket(type=gevent.socket.SOCK_DGRAM)
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    def connect() -> Driver:
        driver, others = Driver(server, with_fileno=False), (listening, datagrams)
        acceptor, statistics = others
        if os.getpid() == parent:
            driver.ask("hold")
        del acceptor, statistics
        return driver

    def in_child() -> list[str]:
        with pool.get() as conn:
            conn.ask("hello")
        tell(server, "go on")
        datagrams.connect(listening.getsockname())
        return [listening.getsockname()[0], datagrams.getpeername()[0]]

    parent = os.getpid()
    with listening, datagrams, ConnectionPool(1, connect=connect) as pool:
        tell(server, "wait for a hold")
        assert Child(fork, in_child).result() == ["127.0.0.1", "127.0.0.1"]


def test_what_raises_a_timeout_as_it_is_asked_for_its_descriptor_hides_no_other() -> None:
    class Rude:
        def fileno(self) -> int:
            raise gevent.Timeout

    sock, peer = gevent.socket.socketpair()

    def work(rude: Rude, sock: Any) -> None:
        Event().wait()

    with sock, peer:
        worker = gevent.spawn(work, Rude(), sock)
        gevent.sleep(0)
        forking._silence(worker, ConnectionPool._descriptors_in)
        worker.kill()
        assert os.fstat(sock.fileno()).st_rdev == os.stat(os.devnull).st_rdev


@FORKS
def test_a_connection_the_parent_was_checking_at_the_fork_is_checked_by_the_parent_alone(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            return gevent.socket.create_connection(server)

        def _keepalive(self, conn: Any) -> None:
            if os.getpid() == parent and not answers:
                answers.append(ask(conn, "hold"))

    def in_child() -> list[Any]:
        number = who(pool)
        tell(server, "go on")  # the parent's check goes on; its copy here would take the answer
        gevent.sleep(0.05)
        return [number, answers]

    parent = os.getpid()
    answers: list[str] = []
    with Pool(1, keepalive=0.01, keepalive_timeout=30) as pool:
        before = who(pool)
        tell(server, "wait for a hold")
        assert pool.stats().checking == 1
        number, answers_in_child = Child(fork, in_child).result()
        until(lambda: answers)

        assert who(pool) == before
        assert number != before
        assert (answers, answers_in_child) == (["hold"], [])


@FORKS
def test_a_connection_the_parent_was_salvaging_at_the_fork_is_salvaged_by_the_parent_alone(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            return gevent.socket.create_connection(server)

        def _salvage_connection(self, conn: Any, error: BaseException | None) -> None:
            try:
                answers.append(ask(conn, "hold"))
            except Exception as exc:
                answers.append(repr(exc))  # it has gone on, in vain
            finally:
                if os.getpid() != parent:
                    conn.sendall(b"last words\n")

    def in_child() -> list[Any]:
        numbers = [who(pool), who(pool)]
        tell(server, "go on")  # the parent's salvage goes on; its copy here would take the answer
        gevent.sleep(0.05)
        stats = pool.stats()
        return [*numbers, answers, stats.salvaging, stats.salvaged, stats.salvage_failed]

    parent = os.getpid()
    answers: list[str] = []
    with Pool(1, salvage_timeout=30) as pool:
        before = who(pool)
        with pytest.raises(gevent.Timeout), pool.get():
            raise gevent.Timeout
        tell(server, "wait for a hold")
        assert pool.stats().salvaging == 1
        number, again, *in_the_child = Child(fork, in_child).result()
        until(lambda: answers)

        assert who(pool) == before
        assert (number != before, again) == (True, number)
        assert answers == ["hold"]
        assert in_the_child == [[], 0, 0, 0]
        assert pool.stats().salvaged == 1


def fork_with_a_reply_pending(
    server: tuple[str, int], fork: Callable[[], int], function: Callable[[], Any]
) -> Child:
    """Fork in the very pass of the loop in which the reply has come to the one that asked to
    hold."""

    def let_it_reply() -> None:
        with raw_socket() as control:
            control.connect(server)
            control.sendall(b"go on\n")
            control.recv(100)
            raw_sleep(0.05)  # the reply comes, and the timer is due, while the hub does not run

    tell(server, "wait for a hold")
    hub = gevent.get_hub()
    with hub.loop.timer(0.001) as timer:
        gevent.spawn(let_it_reply)
        hub.wait(timer)
        # Where timers come first, the reply is still in the kernel: there the loop finds it next.
        assert hub.loop.pendingcnt or LIBUV, "no event is pending"
        child = Child(fork, function)
    # If the parent went on, it would read the reply first.
    raw_select([child.report], [], [], 30)
    return child


@FORKS
def test_a_dial_whose_reply_is_pending_at_the_fork_does_not_go_on_in_the_child(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def connect() -> Any:
        sock = gevent.socket.create_connection(server)
        if os.getpid() == parent:
            sock.sendall(b"hold\n")
            sock.recv(100)
            if os.getpid() != parent:
                steps.append("went on")
        return sock

    def in_child() -> list[Any]:
        who(pool)
        return steps

    parent = os.getpid()
    steps: list[str] = []
    with ConnectionPool(1, connect=connect) as pool:
        assert fork_with_a_reply_pending(server, fork, in_child).result() == []
        who(pool)
        assert pool.stats().dialed == 1


@FORKS
@pytest.mark.parametrize("what", ["keepalive", "close"])
def test_a_check_or_close_whose_reply_is_pending_at_the_fork_does_not_go_on_in_the_child(
    server: tuple[str, int], fork: Callable[[], int], what: str
) -> None:
    class Pool(ConnectionPool[Any]):
        asked = False

        def _new_connection(self) -> Any:
            return gevent.socket.create_connection(server)

        def _keepalive(self, conn: Any) -> None:
            if what == "keepalive":
                self.ask(conn)

        def _close_connection(self, conn: Any) -> None:
            if what == "close":
                self.ask(conn)
            conn.close()

        def ask(self, conn: Any) -> None:
            if os.getpid() == parent and not self.asked:
                self.asked = True
                conn.sendall(b"hold\n")
                conn.recv(100)
                if os.getpid() != parent:
                    steps.append("went on")

    def in_child() -> list[Any]:
        who(pool)
        return steps

    parent = os.getpid()
    steps: list[str] = []
    with Pool(1, keepalive=0.01 if what == "keepalive" else None) as pool:
        pool.fill()
        if what == "close":
            pool.dispose()

        assert fork_with_a_reply_pending(server, fork, in_child).result() == []


ENDS = {
    "dropped": "gc.collect(); gevent.sleep(0.01); os._exit(0)",
    "ended": "sys.exit(0)",
    "ended without its hub": "gevent.get_hub().loop; raise SystemExit",
}

FORKING = """if True:
    import gc, os, sys
    sys.path[:0] = sys.argv[1:3]
    import gevent
    from geventpool import ConnectionPool
    from support.servers import Driver

    server = (sys.argv[3], int(sys.argv[4]))
    with_fileno = sys.argv[5] == "with"
    pool = ConnectionPool(3, connect=lambda: Driver(server, with_fileno))
    pool.fill()
    held = pool.acquire()
    held.ask("hello")
    pid = os.fork()
    if not pid:
        del held
        {end}
    os.waitpid(pid, 0)
    answers = [held.ask("after")]
    pool.release(held)
    for _ in range(3):
        with pool.get() as conn:
            answers.append(conn.ask("after"))
    print(answers, pool.stats().dialed)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fileno", ["with", "without"])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.replace(" ", "-"))
def test_no_finalizer_of_a_childs_copy_says_goodbye_on_the_parents_connection(
    server: tuple[str, int], end: str, fileno: str
) -> None:
    """The server answers each line; a goodbye of the child would be answered to the parent."""
    run = subprocess.run(
        [
            *(sys.executable, "-c", FORKING.replace("{end}", ENDS[end])),
            *(str(TESTS), str(ROOT), server[0], str(server[1]), fileno),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.stdout == "['after', 'after', 'after', 'after'] 3\n", run.stderr


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_a_number_that_is_another_file_by_the_fork_is_left_alone(
    server: tuple[str, int], tmp_path: Path
) -> None:
    """A driver that closed behind the pool's back leaves a number, and the next file takes it."""
    with ConnectionPool(1, connect=lambda: Driver(server, with_fileno=True)) as pool:
        conn = pool.acquire()
        number = conn.fileno()
        conn._sock.close()
        until(lambda: not is_open(number))  # it is closed in the next pass of the loop
        file = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        if file != number:
            os.dup2(file, number)
            close_now(file)
        written = Child(raw_fork, lambda: os.write(number, b"mine")).result()
        close_now(number)

        assert written == 4
        assert (tmp_path / "file").read_bytes() == b"mine"
        pool.discard(conn)


@FORKS
def test_callers_in_line_at_the_fork_are_served_in_both_by_their_own_connections(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def caller() -> None:
        served.append(who(pool))

    def in_child() -> list[int]:
        until(lambda: len(served) == 3)
        return served

    served: list[int] = []
    with ConnectionPool(1, connect=SocketFactory(server)) as pool:
        with pool.get() as held:
            mine = int(ask(held, "who"))
            callers = [gevent.spawn(caller) for _ in range(3)]
            gevent.idle()
            assert pool.stats().waiting == 3
            served_in_child = Child(fork, in_child).result()
            assert served == []
        gevent.joinall(callers, timeout=10, raise_error=True)

    assert served == [mine] * 3
    assert len(set(served_in_child)) == 1
    assert mine not in served_in_child


@pytest.mark.slow
@FORKS
def test_a_caller_in_line_at_the_fork_keeps_its_deadline_in_the_child(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def connect() -> Any:
        if os.getpid() != parent:
            raise ConnectionRefusedError
        return gevent.socket.create_connection(server)

    def caller(timeout: float) -> None:
        try:
            with pool.get(timeout=timeout):
                ended[timeout] = "served"
        except PoolTimeout:
            ended[timeout] = "timed out"

    def in_child() -> list[str | None]:
        until(lambda: ended)
        return [ended.get(0.5), ended.get(60)]

    parent = os.getpid()
    ended: dict[float, str] = {}
    with ConnectionPool(1, connect=connect) as pool:
        with pool.get():
            callers = [gevent.spawn(caller, timeout) for timeout in (0.5, 60)]
            gevent.idle()
            child = Child(fork, in_child)
        gevent.joinall(callers, timeout=10)

        assert child.result() == ["timed out", None]
        assert ended[60] == "served"


@FORKS
def test_the_parent_notices_hang_ups_after_a_child_has_come_and_gone(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    with ConnectionPool(3, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        Child(fork, lambda: all_of(pool)).result()
        tell(server, "hang up")
        until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 3)

        assert not set(all_of(pool)) & set(before)


@FORKS
def test_the_pool_of_another_thread_notices_hang_ups_after_a_child_has_come_and_gone(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def in_thread() -> None:
        with ConnectionPool(3, connect=SocketFactory(server)) as pool:
            all_of(pool)
            filled.append(True)
            until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 3)
        gevent.idle()  # no greenlet that is about to begin is left to a hub that is gone

    filled: list[bool] = []
    thread = Thread(in_thread)
    until(lambda: filled)
    Child(fork, lambda: None).result()
    tell(server, "hang up")

    thread.result(40)


@FORKS
def test_a_child_notices_hang_ups_and_takes_no_news_from_the_parent(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def in_child() -> list[Any]:
        first = all_of(pool)
        tell(server, "hang up")  # on the parent's as well
        until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 2)
        return [first, all_of(pool)]

    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        child = Child(fork, in_child)
        until(lambda: pool.stats().closed[Reason.PEER_CLOSED] == 2)
        first, second = child.result()
        after = all_of(pool)

    assert len({*before, *first, *second, *after}) == 8


@pytest.mark.skipif(
    LIBUV, reason="in a fork of a fork, gevent's thread pool does not close a handle of libuv"
)
@FORKS
def test_a_child_of_a_child_opens_its_own_connections_too(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def grandchild() -> list[int]:
        return all_of(pool)

    def child() -> list[list[int]]:
        mine = all_of(pool)
        below = Child(fork, grandchild).result()
        return [mine, below, all_of(pool)]

    with ConnectionPool(3, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        of_child, of_grandchild, of_child_after = Child(fork, child).result()
        after = all_of(pool)

    assert len({*before, *of_child, *of_grandchild}) == 9
    assert sorted(of_child_after) == sorted(of_child)
    assert sorted(after) == sorted(before)


@FORKS
def test_the_keepalive_of_a_child_runs_on_its_own_connections_only(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    class Pool(ConnectionPool[Any]):
        def _new_connection(self) -> Any:
            return gevent.socket.create_connection(server)

        def _keepalive(self, conn: Any) -> None:
            checked.append(int(ask(conn, "who")))

    def in_child() -> list[list[int]]:
        del checked[:]
        mine = all_of(pool)
        until(lambda: len(checked) >= 4)
        return [mine, checked]

    checked: list[int] = []
    with Pool(2, keepalive=0.05) as pool:
        before = all_of(pool)
        until(lambda: len(checked) >= 2)
        mine, checked_in_child = Child(fork, in_child).result()
        del checked[:]
        until(lambda: len(checked) >= 4)

        assert set(checked_in_child) == set(mine)
        assert set(checked) == set(before)


@FORKS
def test_close_in_a_child_closes_the_childs_connections_only(
    server: tuple[str, int], fork: Callable[[], int]
) -> None:
    def in_child() -> str:
        if len(all_of(pool)) == 2:
            pool.close()
        return repr(pool)

    with ConnectionPool(2, connect=SocketFactory(server), name="db") as pool:
        before = all_of(pool)
        in_use, _, rest = Child(fork, in_child).result().partition(" in use")
        assert rest.startswith(", 0 idle, 0 connecting")
        assert in_use.endswith("0")
        until(lambda: tell(server, "open") == "2")

        assert sorted(all_of(pool)) == sorted(before)


def test_a_child_that_never_uses_the_pool_dials_when_its_hub_runs_and_not_before(
    server: tuple[str, int],
) -> None:
    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        all_of(pool)
        dialed = Child(raw_fork, lambda: pool.stats().dialed).result()

        assert dialed == 0
        until(lambda: tell(server, "open") == "2")  # it may be slow to see earlier ones go


def test_a_connection_the_parent_closes_is_gone_even_while_an_idle_child_lives(
    server: tuple[str, int],
) -> None:
    """The child has let go of its copies of what lay idle, so the server sees the end."""

    def in_child() -> None:
        with open(read_end, "rb", closefd=False) as gate:  # blocks: the hub never runs
            gate.read(1)

    read_end, write_end = os.pipe()
    with ConnectionPool(3, connect=SocketFactory(server)) as pool:
        all_of(pool)
        child = Child(raw_fork, in_child)
        pool.close()
        until(lambda: tell(server, "open") == "0")
        os.write(write_end, b"!")
        child.result()
    close_now(read_end)
    close_now(write_end)


def test_a_fork_in_another_thread_leaves_the_child_able_to_make_pools(
    server: tuple[str, int],
) -> None:
    def in_child() -> list[int]:
        with ConnectionPool(2, connect=SocketFactory(server)) as mine:
            return all_of(mine)

    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        child = gevent.get_hub().threadpool.apply(Child, (raw_fork, in_child))
        in_child_of_thread = child.result()

        assert not set(in_child_of_thread) & set(before)
        assert sorted(all_of(pool)) == sorted(before)


def test_limits_shared_between_pools_are_empty_in_a_child(server: tuple[str, int]) -> None:
    def in_child() -> list[Any]:
        used = limit.used
        return [used, len(all_of(one)), len(all_of(other)), limit.used]

    limit = Limit(4, "both")
    connect = SocketFactory(server)
    with ConnectionPool(2, connect=connect, limits=[limit]) as one:
        with ConnectionPool(2, connect=connect, limits=[limit]) as other:
            all_of(one), all_of(other)
            assert Child(raw_fork, in_child).result() == [0, 2, 2, 4]
            assert limit.used == 4


def test_a_child_of_a_pool_with_callers_and_dials_is_whole_after_an_event() -> None:
    """No server at all: what is forked here is a pool in full swing."""
    gate = Event()

    def connect() -> object:
        if os.getpid() == parent:
            gate.wait()
        return object()

    def in_child() -> list[int]:
        pool.fill(timeout=10)
        stats = pool.stats()
        return [stats.idle, stats.opened, stats.waiting]

    parent = os.getpid()
    with ConnectionPool(8, connect=connect) as pool:
        gevent.idle()
        assert pool.stats().connecting > 0
        assert Child(raw_fork, in_child).result() == [8, 8, 0]
        gate.set()
        pool.fill()


def test_children_do_not_wait_in_step() -> None:
    backoff, pool = Backoff(jitter=1), ConnectionPool(1, connect=object)

    def draw() -> list[float]:
        return [backoff.delay(9), pool._bucket.rng.random()]

    one, other = (Child(raw_fork, draw).result() for _ in range(2))
    pool.close()

    assert one[0] != other[0]
    assert one[1] != other[1]


def test_pools_left_by_threads_that_have_ended_keep_no_child_from_its_own(
    server: tuple[str, int],
) -> None:
    def connect() -> Any:
        opened.append(SocketFactory(server)())
        return opened[-1]

    def of_a_thread() -> ConnectionPool[Any]:
        pool = ConnectionPool(1, connect=connect)
        pool.fill()
        gevent.get_hub().destroy(destroy_loop=True)
        return pool

    opened: list[Any] = []
    left = [gevent.get_hub().threadpool.apply(of_a_thread) for _ in range(5)]
    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        in_child = Child(raw_fork, lambda: all_of(pool)).result()

    assert len(left) == len(opened) == 5
    assert not set(in_child) & set(before)
    for sock in opened:
        close_now(sock._sock.detach())  # close() would ask a hub that is gone


@FORKS
def test_what_goes_wrong_with_the_pools_of_one_thread_keeps_no_child_from_its_own(
    server: tuple[str, int], fork: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = forking.let_go
    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        own = pool._runtime
        gone = SimpleNamespace(hub=object(), dead=True, ident=0)
        monkeypatch.setattr(runtimes, "_runtimes", [gone, own])

        def let_own_go(runtime: Any, forked: Any) -> None:
            if runtime is not own:
                raise RuntimeError("its loop is gone")
            let_go(runtime, forked)

        monkeypatch.setattr(forking, "let_go", let_own_go)
        in_child = Child(fork, lambda: all_of(pool)).result()
    assert not set(in_child) & set(before)


@FORKS
def test_what_gevent_raises_as_its_hub_begins_anew_keeps_no_child_from_its_own(
    server: tuple[str, int], fork: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reinit = gevent.reinit

    def reinit_and_raise(hub: Any) -> None:  # as it does of a worker thread's hub that is gone
        reinit(hub)
        raise RuntimeError("a thread's hub is gone")

    resolver = DnsResolver()  # whose hook, which comes first, begins it anew, too
    with ConnectionPool(2, connect=SocketFactory(server)) as pool:
        before = all_of(pool)
        monkeypatch.setattr(forking.gevent, "reinit", reinit_and_raise)
        in_child = Child(fork, lambda: all_of(pool)).result()
    assert not set(in_child) & set(before)
    del resolver
