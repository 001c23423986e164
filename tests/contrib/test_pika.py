"""contrib.pika: what PikaPool has beyond the contract, and RabbitMQ."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pika
import pytest
from gevent import monkey

from geventpool import Verdict
from geventpool.contrib.pika import _HEARTBEAT, PikaPool
from support.servers import require_server
from support.waiting import until

MakePool = Callable[..., PikaPool]
patched = monkey.is_module_patched("socket")


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one connection, closed at the end."""
    if not patched:
        pytest.skip("the pool refuses: its client blocks unless gevent has patched it")
    pools: list[PikaPool] = []

    def make(size: int = 1, query: str = "", **settings: Any) -> PikaPool:
        host, port = require_server("rabbitmq")
        url = f"amqp://guest:guest@{host}:{port}/%2F{query}"
        pools.append(PikaPool(url, size, **{"timeout": 5, **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.mark.slow
def test_in_a_program_that_is_not_patched_it_refuses_with_the_cure() -> None:
    script = "from geventpool.contrib.pika import PikaPool; PikaPool('amqp://localhost/', 1)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: pika would block gevent's hub" in done.stderr
    assert "patch_all()" in done.stderr


def test_the_channel_stays_the_same_from_use_to_use(make: MakePool) -> None:
    pool = make()
    with pool.get() as conn:
        first = conn.channel()
        other = conn.channel()
        assert other is not first
    with pool.get() as conn:
        assert conn.channel() is first
        assert not other.is_open


def test_one_in_which_something_was_set_is_closed(make: MakePool) -> None:
    pool = make()
    with pool.get() as conn:
        first = conn.channel()
        first.basic_qos(prefetch_count=1)
    with pool.get() as conn:
        assert conn.channel() is not first
        assert not first.is_open
    assert pool.stats().opened == 1


def test_a_message_that_was_not_acknowledged_goes_back_to_its_queue(make: MakePool) -> None:
    pool = make(2)
    with pool.get() as conn:
        queue = conn.channel().queue_declare("", arguments={"x-expires": 60000}).method.queue
        conn.channel().basic_publish("", queue, b"hello")
    with pool.get() as conn:
        channel = conn.channel()
        until(lambda: channel.basic_get(queue)[2] == b"hello")
    with pool.get() as conn, pool.get() as other:
        for each in (conn, other):
            assert each.is_open
        until(lambda: other.channel().basic_get(queue, auto_ack=True)[2] == b"hello")
        conn.channel().queue_delete(queue)


def test_what_is_configured_stays_and_is_set_in_each_new_channel(make: MakePool) -> None:
    configured = []

    def configure(channel: Any) -> None:
        configured.append(channel)
        channel.confirm_delivery()

    pool = make(configure=configure)
    for _ in range(2):
        with pool.get() as conn, pytest.raises(pika.exceptions.UnroutableError):
            conn.channel().basic_publish("", "geventpool no such queue", b"", mandatory=True)
    assert len(configured) == 1


def test_after_a_wait_that_ended_silently_the_connection_is_closed(make: MakePool) -> None:
    pool = make()
    with pool.get() as conn, gevent.Timeout(0.02, False):
        conn.process_data_events(10)
    with pool.get() as other:
        assert other is not conn


def test_a_channel_that_the_server_closes_is_nothing_to_the_connection(make: MakePool) -> None:
    pool = make()
    with pytest.raises(pika.exceptions.ChannelClosedByBroker), pool.get() as conn:
        conn.channel().queue_declare("geventpool no such queue", passive=True)
    with pool.get() as again:
        assert again is conn
        assert again.channel().is_open


@pytest.mark.slow
def test_heartbeats_are_served_while_idle(make: MakePool) -> None:
    pool = make(query="?heartbeat=2")
    assert pool.keepalive == 0.5
    with pool.get() as conn:
        pass
    gevent.sleep(6.5)  # without them the server hangs up after two
    with pool.get() as again:
        assert again is conn
        assert again.channel().queue_declare("", exclusive=True)


@pytest.mark.slow
def test_a_heartbeat_that_lies_unread_is_nothing_against_a_connection(make: MakePool) -> None:
    pool = make(query="?heartbeat=1", keepalive=None)
    with pool.get() as conn:
        sock = pool._socket(conn)

    def unread() -> bytes:
        try:
            return sock.recv(100, gevent.socket.MSG_PEEK)  # type: ignore[no-any-return]
        except BlockingIOError:
            return b""

    until(lambda: unread() == _HEARTBEAT)
    with pool.get() as again:
        assert again is conn


@pytest.mark.slow
def test_a_connection_that_an_administrator_closes_is_never_handed_out(make: MakePool) -> None:
    def rabbitmqctl(*arguments: str) -> str:
        done = subprocess.run(["rabbitmqctl", "-q", *arguments], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this user may not administer the server: {done.stderr}")
        return done.stdout

    pool = make()
    with pool.get() as conn:
        port = pool._socket(conn).getsockname()[1]
    connections = rabbitmqctl("list_connections", "pid", "peer_port").splitlines()
    pid = next(line.split()[0] for line in connections if line.split()[-1] == str(port))
    rabbitmqctl("close_connection", pid, "because")
    with pool.get() as other:
        assert other is not conn
        assert other.channel().queue_declare("", exclusive=True)


@pytest.mark.slow
def test_a_dial_that_is_cut_short_leaves_nothing_open(make: MakePool) -> None:
    # What is left open warns as it is collected, and that fails the test.
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = "amqp://guest:guest@{}:{}/%2F".format(*listener.getsockname())
        with PikaPool(url, 2, connect_timeout=0.1, timeout=0.5) as pool:
            until(lambda: pool.stats().dial_failed >= 2)


def test_a_wrong_password_is_fatal(make: MakePool) -> None:
    host, port = require_server("rabbitmq")
    make()
    with PikaPool(f"amqp://guest:wrong@{host}:{port}/%2F", 1, timeout=5) as pool:
        with pytest.raises(pika.exceptions.ProbableAuthenticationError), pool.get():
            pass


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (pika.exceptions.StreamLostError("gone"), Verdict.BROKEN),
        (pika.exceptions.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), Verdict.BROKEN),
        (pika.exceptions.ConnectionClosedByBroker(530, "connection limit"), Verdict.SERVER_FULL),
        (pika.exceptions.ConnectionClosedByBroker(530, "vhost x not found"), Verdict.FATAL),
        (pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND"), Verdict.FINE),
        (pika.exceptions.UnroutableError([]), Verdict.FINE),
        (ConnectionResetError(), Verdict.BROKEN),
        (KeyError(), Verdict.FINE),
    ],
)
def test_what_errors_say(make: MakePool, error: Exception, verdict: Verdict) -> None:
    assert make()._classify_error(error) is verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3],), "parameters must be"),
        (("amqp://localhost/", 1), "no argument 'sizes'"),
    ],
)
def test_bad_arguments_are_named(make: MakePool, arguments: Any, message: str) -> None:
    make()
    settings = {"sizes": 3} if "sizes" in message else {}
    with pytest.raises(TypeError, match=message):
        PikaPool(*arguments, **settings)
