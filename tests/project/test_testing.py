"""What geventpool.testing promises to other people's suites."""

from __future__ import annotations

import _socket
import contextlib
import errno
import re
import socket as stdlib_socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.socket
import gevent.ssl
import pytest
from gevent.event import Event
from gevent.monkey import get_original
from gevent.server import StreamServer

from geventpool._runtime import clock as hot_clock
from geventpool._runtime import runtime
from geventpool.backoff import Backoff
from geventpool.errors import PoolTimeout
from geventpool.events import Reason
from geventpool.pools import ConnectionPool
from geventpool.retry import RetryBudget, retry
from geventpool.sockets import SocketFactory
from geventpool.testing import ChaosProxy, EchoServer, FakeClock, closed_port, no_retry_delays
from geventpool.testing.ports import listen
from support import ROOT
from support.certificates import make_certificates
from support.descriptors import no_descriptor_left, reset_on_close
from support.waiting import until

ProxyMaker = Callable[[object], ChaosProxy]

retry_module = sys.modules[retry.__module__]


@pytest.fixture
def proxy(chaos_proxy: ProxyMaker, echo_server: EchoServer) -> ChaosProxy:
    return chaos_proxy(echo_server.address)


@pytest.fixture
def connect() -> Iterator[Callable[[Any], Any]]:
    """Opens a socket that gives up after 10 s and is closed when the test ends."""
    with contextlib.ExitStack() as sockets:
        yield lambda address: sockets.enter_context(
            gevent.socket.create_connection(address, timeout=10)
        )


def echo(sock: Any, data: bytes) -> bytes:
    sock.sendall(data)
    return read(sock, len(data))


def read(sock: Any, size: int) -> bytes:
    answer = b""
    while len(answer) < size and (data := sock.recv(65536)):
        answer += data
    return answer


def assert_silent(sock: Any) -> None:
    """Nothing comes, for a while."""
    __tracebackhide__ = True
    sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        sock.recv(100)
    sock.settimeout(10)


# ChaosProxy: passing on


def test_a_proxy_passes_everything_on_and_counts(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB
    client = connect(proxy.address)
    answers = gevent.spawn(read, client, len(data))
    client.sendall(data)

    assert answers.get(timeout=10) == data
    assert echo(connect(proxy.address), b"hello") == b"hello"
    assert (proxy.connections, proxy.accepted, echo_server.open) == (2, 2, 2)
    client.close()
    proxy.wait_connections(1)
    assert (proxy.connections, proxy.accepted) == (1, 2)


def test_a_unix_socket_is_a_target_too(
    tmp_path: Path, chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    with EchoServer(path=tmp_path / "socket") as server:
        proxy = chaos_proxy(tmp_path / "socket")

        assert echo(connect(proxy.address), b"hello") == b"hello"
        assert server.open == 1


def test_tls_goes_through(server_context: Callable[[Any], Any], chaos_proxy: ProxyMaker) -> None:
    with EchoServer(ssl_context=server_context(gevent.ssl)) as server:
        proxy = chaos_proxy(server.address)
        factory = SocketFactory(proxy.address, tls="unverified")
        with contextlib.closing(factory()) as sock:
            assert echo(sock, b"hello") == b"hello"


class Script(StreamServer):
    """Serves one client with *serve*, and keeps what that returns or raises."""

    def __init__(self, serve: Callable[[Any], Any]) -> None:
        super().__init__(("127.0.0.1", 0))
        self.result: Any = gevent.event.AsyncResult()
        self._serve_one = serve

    def handle(self, sock: Any, address: object) -> None:
        try:
            sock.settimeout(10)
            self.result.set(self._serve_one(sock))
        except OSError as error:
            self.result.set(error)
        finally:
            sock.close()

    def __enter__(self) -> Script:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def test_a_client_that_has_said_all_still_gets_its_answer(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    def serve(sock: Any) -> None:
        assert read(sock, 1000) == b"question"  # up to the end
        sock.sendall(b"answer")

    with Script(serve) as server:
        client = connect(chaos_proxy(server.address).address)
        client.sendall(b"question")
        client.shutdown(stdlib_socket.SHUT_WR)

        assert read(client, 1000) == b"answer"
        server.result.get(timeout=10)


def test_an_answer_is_whole_even_if_its_client_reads_after_everybody_has_left(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    with Script(lambda sock: sock.sendall(bytes(1_000_000))) as server:
        proxy = chaos_proxy(server.address)
        client = connect(proxy.address)
        client.shutdown(stdlib_socket.SHUT_WR)
        server.result.get(timeout=10)
        proxy.wait_connections(0)

        assert len(read(client, 2_000_000)) == 1_000_000


@pytest.mark.parametrize("resets", [False, True])
def test_how_the_target_ends_is_how_the_client_sees_it_end(
    resets: bool, chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    def serve(sock: Any) -> None:
        if resets:
            reset_on_close(sock)

    with Script(serve) as server:
        client = connect(chaos_proxy(server.address).address)
        if resets:
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        else:
            assert client.recv(100) == b""


@pytest.mark.parametrize("resets", [False, True])
def test_how_the_client_ends_is_how_the_target_sees_it_end(
    resets: bool, chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    arrived = Event()

    def serve(sock: Any) -> list[bytes]:
        hello = sock.recv(100)
        arrived.set()
        return [hello, sock.recv(100)]

    with Script(serve) as server:
        proxy = chaos_proxy(server.address)
        client = connect(proxy.address)
        client.sendall(b"hello")
        assert arrived.wait(10)  # a reset would overtake it
        if resets:
            reset_on_close(client)
        client.close()
        seen = server.result.get(timeout=10)
        proxy.wait_connections(0)

    if resets:
        assert isinstance(seen, ConnectionResetError)
    else:
        assert seen == [b"hello", b""]


def test_a_client_is_reset_when_the_target_is_not_there(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    with closed_port() as nowhere:
        proxy = chaos_proxy(nowhere)
        with pytest.raises(ConnectionResetError):
            connect(proxy.address).recv(100)
        proxy.wait_connections(0)

        assert proxy.accepted == 1


@pytest.mark.slow
def test_a_target_that_does_not_read_stops_the_client(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    """As without the proxy: what it holds does not grow."""
    leave = Event()
    with Script(lambda sock: leave.wait(60)) as server:
        client = connect(chaos_proxy(server.address).address)
        client.settimeout(1.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200_000_000:
                sent += client.send(bytes(1_000_000))
        leave.set()

    assert sent < 200_000_000


@pytest.mark.slow
def test_a_client_that_does_not_read_stops_the_target(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    def flood(sock: Any) -> int:
        sock.settimeout(1.0)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 200_000_000:
                sent += sock.send(bytes(1_000_000))
        return sent

    with Script(flood) as server:
        connect(chaos_proxy(server.address).address)

        assert server.result.get(timeout=60) < 200_000_000


# ChaosProxy: what it does once


def test_fin_ends_every_connection_in_an_orderly_way_and_new_ones_are_welcome(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    clients = [connect(proxy.address) for _ in range(3)]
    for client in clients:
        assert echo(client, b"hello") == b"hello"

    assert proxy.fin() == 3
    assert proxy.connections == 0
    assert [client.recv(100) for client in clients] == [b"", b"", b""]
    echo_server.wait_open(0)
    assert echo(connect(proxy.address), b"again") == b"again"
    assert proxy.accepted == 4


def test_fin_is_no_reset_even_if_the_client_has_sent_what_was_not_read(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"hello") == b"hello"
    client.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
    proxy.black_hole()
    for _ in range(3):
        client.sendall(b"unread")
        gevent.sleep(0.01)  # the first is read and held back

    assert proxy.fin() == 1
    assert client.recv(100) == b""
    client.sendall(b"and more")  # after a reset it could not


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_the_end_has_reached_the_clients_when_it_returns(
    proxy: ChaosProxy, reset: bool, begun: bool
) -> None:
    with contextlib.closing(_socket.socket()) as client:
        client.connect(proxy.address)
        client.setblocking(False)
        proxy.refuse()  # accepts it, and its greenlets have not begun
        if begun:
            gevent.sleep(0.02)
        assert (proxy.rst() if reset else proxy.fin()) == 1

        if reset:
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        else:
            assert client.recv(100) == b""


def test_rst_resets_every_connection(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"hello") == b"hello"

    assert proxy.rst() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    echo_server.wait_open(0)
    assert echo(connect(proxy.address), b"again") == b"again"


def test_a_half_closed_client_reads_the_end_and_is_still_heard(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    half_closed = Event()

    def serve(sock: Any) -> bytes:
        sock.sendall(b"hello")
        half_closed.wait(10)
        sock.sendall(b"unheard")
        return read(sock, 8)

    with Script(serve) as server:
        proxy = chaos_proxy(server.address)
        client = connect(proxy.address)
        assert client.recv(100) == b"hello"

        assert proxy.half_close() == 1
        half_closed.set()
        assert client.recv(100) == b""
        assert proxy.half_close() == 0  # once is all there is
        assert proxy.connections == 1
        client.sendall(b"question")
        assert server.result.get(timeout=10) == b"question"
        client.close()
        proxy.wait_connections(0)


# ChaosProxy: how data flows


def test_nothing_comes_out_of_a_black_hole_until_it_ends(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    proxy.black_hole()
    later = connect(proxy.address)
    for sock in (client, later):
        sock.sendall(b"hello")
        assert_silent(sock)
    echo_server.fin_all()
    assert_silent(client)  # not even that

    proxy.normal()
    with contextlib.suppress(ConnectionResetError):  # the server has left, and we had sent more
        assert client.recv(100) == b""
    assert echo(connect(proxy.address), b"after") == b"after"


def test_a_reset_by_the_target_does_not_come_out_of_a_black_hole_until_it_ends(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    go = Event()

    def serve(sock: Any) -> None:
        sock.sendall(b"hello")
        go.wait(10)
        reset_on_close(sock)

    with Script(serve) as server:
        proxy = chaos_proxy(server.address)
        client = connect(proxy.address)
        assert client.recv(100) == b"hello"
        proxy.black_hole()
        go.set()
        server.result.get(timeout=10)
        assert_silent(client)
        proxy.normal()

        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_a_reset_by_the_client_does_not_come_out_of_a_black_hole_until_it_ends(
    chaos_proxy: ProxyMaker, connect: Callable[[Any], Any]
) -> None:
    def serve(sock: Any) -> bytes:
        sock.sendall(b"hello")
        data: bytes = sock.recv(100)
        return data

    with Script(serve) as server:
        proxy = chaos_proxy(server.address)
        client = connect(proxy.address)
        assert client.recv(100) == b"hello"
        proxy.black_hole()
        reset_on_close(client)
        client.close()
        server.result.wait(timeout=0.1)
        assert not server.result.ready()
        assert proxy.connections == 1
        proxy.normal()

        assert isinstance(server.result.get(timeout=10), ConnectionResetError)
        proxy.wait_connections(0)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_black_hole_keeps_a_new_connection_and_its_target_from_each_other(
    is_there: bool, proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    if not is_there:
        echo_server.stop()
    proxy.black_hole()
    client = connect(proxy.address)
    assert_silent(client)

    assert echo_server.opened == 0
    proxy.normal()
    if is_there:
        assert echo(client, b"hello") == b"hello"
    else:
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_that_the_target_is_not_there_does_not_come_out_of_a_black_hole_either(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    entered, go = Event(), Event()

    def dial() -> Any:
        entered.set()
        go.wait(10)
        raise ConnectionRefusedError

    proxy._dial = dial  # type: ignore[assignment]
    client = connect(proxy.address)
    assert entered.wait(10)
    proxy.black_hole()
    go.set()
    assert_silent(client)

    proxy.normal()
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_what_went_into_a_black_hole_arrives_when_it_ends(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    proxy.black_hole()
    client.sendall(b"hello")
    assert_silent(client)
    proxy.normal()

    assert read(client, 5) == b"hello"


@pytest.mark.slow
def test_an_answer_is_delayed_once(proxy: ChaosProxy, connect: Callable[[Any], Any]) -> None:
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    proxy.delay(1.5)
    began = time.monotonic()

    assert echo(client, b"hello") == b"hello"
    assert 1.5 <= time.monotonic() - began < 3.0


def test_a_delay_ends_for_what_is_held_back_too(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    proxy.delay(3600)
    client.sendall(b"hello")
    assert_silent(client)
    proxy.normal()

    assert read(client, 5) == b"hello"


def test_a_dribbled_answer_comes_byte_by_byte(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    proxy.dribble(pause=0.005)
    client.sendall(b"0123456789" * 5)
    pieces = []
    while sum(map(len, pieces)) < 50:
        pieces.append(client.recv(100))

    assert b"".join(pieces) == b"0123456789" * 5
    assert len(pieces) > 25  # a late reader may find two
    proxy.normal()
    assert echo(client, b"after") == b"after"


def test_a_dribble_ends_in_the_middle_of_an_answer(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    proxy.dribble(pause=3600)
    client.sendall(b"hello")
    assert client.recv(100) == b"h"
    proxy.normal()

    assert read(client, 4) == b"ello"


# ChaosProxy: new connections


def test_refused_means_refused_and_open_connections_go_on(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    proxy.refuse()
    proxy.refuse()  # no news

    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connect(proxy.address)
    assert echo(client, b"meanwhile") == b"meanwhile"
    address = proxy.address
    proxy.normal()
    assert proxy.address == address
    assert echo(connect(address), b"after") == b"after"
    assert (proxy.connections, proxy.accepted) == (2, 2)


def test_who_is_connected_before_the_refusal_is_served(proxy: ChaosProxy) -> None:
    raw = _socket.socket()
    raw.connect(proxy.address)  # without a switch, so nothing has accepted it
    proxy.refuse()
    with gevent.socket.socket(fileno=raw.detach()) as client:
        client.settimeout(10)

        assert echo(client, b"hello") == b"hello"


def test_no_other_takes_the_port_while_connections_are_refused(
    proxy: ChaosProxy, connect: Callable[[Any], Any]
) -> None:
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    proxy.refuse()
    with pytest.raises(OSError) as caught:
        listen(proxy.address)

    assert caught.value.errno == errno.EADDRINUSE
    with contextlib.closing(stdlib_socket.socket()) as other:
        with pytest.raises(OSError, match="in use"):
            other.bind(proxy.address)
    proxy.normal()
    assert echo(connect(proxy.address), b"after") == b"after"
    assert echo(client, b"after") == b"after"


# ChaosProxy: the end


@pytest.mark.parametrize(
    "trouble",
    [
        ChaosProxy.normal,
        ChaosProxy.black_hole,
        ChaosProxy.refuse,
        ChaosProxy.half_close,
        lambda proxy: proxy.delay(3600),
        lambda proxy: proxy.dribble(3600),
    ],
    ids=["normal", "black_hole", "refuse", "half_close", "delay", "dribble"],
)
def test_a_closed_proxy_leaves_nothing_behind_whatever_it_was_doing(
    trouble: Callable[[ChaosProxy], object],
    echo_server: EchoServer,
    connect: Callable[[Any], Any],
) -> None:
    proxy = ChaosProxy(echo_server.address)
    client = connect(proxy.address)
    assert echo(client, b"before") == b"before"
    trouble(proxy)
    client.sendall(b"hello")
    gevent.sleep(0.02)
    greenlets = [g for link in list(proxy._links) for g in link.greenlets]
    proxy.close()

    assert greenlets
    assert all(greenlet.dead for greenlet in greenlets)
    assert proxy.connections == 0
    assert read(client, 100) in (b"", b"h", b"hello")
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.address)
    proxy.close()
    with pytest.raises(RuntimeError, match="closed"):
        proxy.normal()
    assert "closed" in repr(proxy)


def test_a_proxy_that_is_closed_during_its_dial_leaves_nothing_behind(
    connect: Callable[[Any], Any], chaos_proxy: ProxyMaker
) -> None:
    entered, proxy = Event(), chaos_proxy(("127.0.0.1", 1))

    def dial() -> Any:
        entered.set()
        gevent.sleep(3600)

    proxy._dial = dial  # type: ignore[assignment]
    client = connect(proxy.address)
    assert entered.wait(10)
    proxy.close()

    assert client.recv(100) == b""


def test_a_proxy_that_is_closed_just_as_its_dial_succeeds_leaves_nothing_behind(
    proxy: ChaosProxy, echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    reach = proxy._dial

    def dial() -> Any:
        # What fin() does, while who dials has been woken and cannot be told any more.
        [link] = links = list(proxy._links)
        target = reach()
        link.end(reset=False)
        link.greenlets[0].kill(block=False)
        links_seen.extend(links)
        return target

    links_seen: list[Any] = []
    proxy._dial = dial  # type: ignore[assignment]
    client = connect(proxy.address)

    assert client.recv(100) == b""
    [link] = links_seen
    link.greenlets[0].join(timeout=10)
    assert link._target.closed
    echo_server.wait_open(0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda proxy: ChaosProxy("nowhere"), ValueError),
        (lambda proxy: ChaosProxy(None), TypeError),
        (lambda proxy: proxy.delay(-1), ValueError),
        (lambda proxy: proxy.delay(float("inf")), ValueError),
        (lambda proxy: proxy.delay("1"), TypeError),
        (lambda proxy: proxy.dribble(-1), ValueError),
    ],
)
def test_nonsense_is_refused(
    proxy: ChaosProxy, make: Callable[[ChaosProxy], object], error: type[Exception]
) -> None:
    with pytest.raises(error, match="target|seconds|pause"):
        make(proxy)


def test_a_proxy_says_what_it_does(proxy: ChaosProxy, echo_server: EchoServer) -> None:
    host, port = proxy.address
    target = "{}:{}".format(*echo_server.address)
    proxy.black_hole()
    proxy.refuse()

    assert repr(proxy) == (
        f"<ChaosProxy {host}:{port} -> {target} black hole, refusing, 0 open, 0 accepted>"
    )


# EchoServer


def test_waiting_for_what_does_not_come_fails_the_test(echo_server: EchoServer) -> None:
    with pytest.raises(AssertionError, match=r"waited 0.01 s for 1 open: <EchoServer .* 0 open"):
        echo_server.wait_open(1, timeout=0.01)
    with pytest.raises(AssertionError, match="1 opened"):
        echo_server.wait_opened(1, timeout=0.01)


@pytest.mark.parametrize("end", [EchoServer.fin_all, EchoServer.stop])
def test_an_orderly_end_is_no_reset_even_if_the_client_has_sent_what_was_not_read(
    end: Callable[[EchoServer], object], echo_server: EchoServer, connect: Callable[[Any], Any]
) -> None:
    client = connect(echo_server.address)
    assert echo(client, b"hello") == b"hello"
    client.sendall(b"unread")  # without a switch
    end(echo_server)

    assert client.recv(100) == b""
    client.sendall(b"and more")  # after a reset it could not


@pytest.fixture
def server_context(tmp_path: Path) -> Callable[[Any], Any]:
    """Makes a context for a server, by the module that it is given."""

    def make(module: Any) -> Any:
        made = make_certificates(tmp_path)
        context = module.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        return context

    return make


@pytest.mark.parametrize("module", [ssl, gevent.ssl], ids=["ssl", "gevent.ssl"])
def test_a_tls_server_is_cooperative_whatever_made_its_context(
    module: Any, server_context: Callable[[Any], Any]
) -> None:
    with EchoServer(ssl_context=server_context(module)) as server:
        with contextlib.closing(SocketFactory(server.address, tls="unverified")()) as sock:
            assert echo(sock, b"hello") == b"hello"


@pytest.mark.parametrize("end", [EchoServer.fin_all, EchoServer.rst_all, EchoServer.stop])
def test_a_tls_handshake_is_cut_short_in_whatever_moment(
    end: Callable[[EchoServer], object],
    server_context: Callable[[Any], Any],
    connect: Callable[[Any], Any],
) -> None:
    def send_and_keep_the_hub_from_seeing_it() -> None:
        client.sendall(b"\x03\x01")
        get_original("time", "sleep")(0.05)

    with EchoServer(ssl_context=server_context(gevent.ssl)) as server:
        client = connect(server.address)
        client.sendall(b"\x16")
        server.wait_open(1)
        gevent.idle()
        gevent.spawn(send_and_keep_the_hub_from_seeing_it)
        gevent.sleep(0.02)  # over in the same loop pass in which the two bytes are seen, and first
        end(server)

        assert server.open == 0
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""


def test_a_server_without_a_descriptor_left_says_so_and_goes_on_when_there_is_one(
    echo_server: EchoServer, hub_errors: list[BaseException]
) -> None:
    raw = _socket.socket()
    raw.connect(echo_server.address)  # without a switch, so nothing has accepted it
    with no_descriptor_left():
        until(lambda: hub_errors)
        for _ in range(200):
            gevent.sleep(0.001)  # 0 would not let the hub look at its sockets

    assert {getattr(error, "errno", None) for error in hub_errors} == {errno.EMFILE}
    assert len(hub_errors) < 100
    hub_errors.clear()
    with gevent.socket.socket(fileno=raw.detach()) as client:
        client.settimeout(10)
        assert echo(client, b"hello") == b"hello"


def test_a_server_whose_path_is_gone_stops(tmp_path: Path) -> None:
    with EchoServer(path=tmp_path / "socket") as server:
        (tmp_path / "socket").unlink()

    assert "stopped" in repr(server)


def test_a_server_that_runs_is_not_started_again(echo_server: EchoServer) -> None:
    with pytest.raises(RuntimeError, match="running"):
        echo_server.start()


# no_retry_delays


def failing(**options: Any) -> list[float]:
    """The waits of a function that always fails, under retry with these *options*."""
    waits: list[float] = []

    @retry(on_retry=lambda details: waits.append(details.wait), **options)
    def fail() -> None:
        raise OSError

    with pytest.raises(OSError):
        fail()
    return waits


def test_retries_without_delays_are_as_many_as_with(no_retry_delays: None) -> None:
    began = time.monotonic()

    assert failing(max_failures=5, interval=3600) == [3600] * 5
    backoff = Backoff(first=100, factor=2, longest=300, jitter=0)
    assert failing(max_failures=4, backoff=backoff) == [100, 200, 300, 300]
    assert time.monotonic() - began < 10


def test_a_deadline_holds_without_delays(no_retry_delays: None) -> None:
    assert failing(interval=100, deadline=350) == [100, 100, 100]
    assert failing(interval=100, deadline=350) == [100, 100, 100]  # the next call has its own


def test_the_waits_that_one_greenlet_skips_are_not_time_for_another(no_retry_delays: None) -> None:
    calls = [gevent.spawn(failing, interval=100, deadline=350) for _ in range(10)]

    assert [call.get(timeout=10) for call in calls] == [[100, 100, 100]] * 10


def test_other_greenlets_run_between_attempts_without_delays(no_retry_delays: None) -> None:
    @retry(interval=3600)
    def wait_for_it() -> str:
        if not arrived:
            raise OSError
        return "done"

    arrived: list[int] = []
    gevent.spawn_later(0.01, arrived.append, 1)

    assert wait_for_it() == "done"


def test_delays_are_back_after_the_with() -> None:
    before = retry_module._sleep, retry_module._clock
    with no_retry_delays():
        with no_retry_delays():
            assert failing(interval=100, deadline=350) == [100, 100, 100]
        assert retry_module._sleep is not before[0]
    with pytest.raises(KeyError), no_retry_delays():
        raise KeyError

    assert (retry_module._sleep, retry_module._clock) == before


def test_delays_are_skipped_in_all_threads(no_retry_delays: None) -> None:
    def call() -> list[float]:
        return failing(max_failures=2, interval=3600)

    assert gevent.get_hub().threadpool.spawn(call).get(timeout=10) == [3600] * 2


@pytest.mark.parametrize("others", [no_retry_delays, FakeClock])
def test_delays_are_skipped_until_the_last_with_is_left_in_whatever_order(
    others: Callable[[], Any],
) -> None:
    """Those of two threads, say."""
    before = retry_module._sleep, retry_module._clock
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(others())
        second.enter_context(no_retry_delays())
        first.close()

        assert failing(max_failures=2, interval=3600) == [3600] * 2
        first.enter_context(others())
        second.close()
        assert (retry_module._sleep, retry_module._clock) != before

    assert (retry_module._sleep, retry_module._clock) == before


# FakeClock


def test_a_fake_clock_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock(start=5)
    assert clock() == clock() == 5.0
    clock.advance(0.5)

    assert clock() == 5.5
    assert repr(clock) == "<FakeClock at 5.5 s>"
    with clock:
        clock.advance(1)
    assert clock() == 6.5


@pytest.mark.parametrize(("seconds", "error"), [(-1, ValueError), (float("nan"), ValueError)])
def test_a_fake_clock_does_not_go_back(seconds: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="seconds"):
        FakeClock().advance(seconds)


def test_a_budget_is_refilled_by_a_fake_clock() -> None:
    clock = FakeClock()
    budget = RetryBudget(share=0.0, min_per_second=1, window=10, clock=clock)
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]
    clock.advance(10.2)

    assert budget.withdraw()


def test_connections_expire_when_the_clock_jumps(echo_server: EchoServer) -> None:
    connect = SocketFactory(echo_server.address)
    with FakeClock() as clock:
        with ConnectionPool(3, connect=connect, max_lifetime=3600, jitter=0) as pool:
            pool.fill()
            clock.advance(3500)
            gevent.idle()
            assert echo_server.opened == 3
            clock.advance(101)
            echo_server.wait_opened(6)
            echo_server.wait_open(3)
            pool.fill()

            assert pool.stats().closed[Reason.EXPIRED] == 3
            clock.advance(3700)  # and once more: the reaper goes on
            echo_server.wait_opened(9)


def test_extras_idle_out_when_the_clock_jumps(echo_server: EchoServer) -> None:
    connect = SocketFactory(echo_server.address)
    with FakeClock() as clock:
        with ConnectionPool(3, connect=connect, min_size=1, idle_timeout=60) as pool:
            with pool.get(), pool.get(), pool.get():
                pass
            echo_server.wait_open(3)
            clock.advance(61)
            echo_server.wait_open(1)

            assert pool.stats().closed[Reason.IDLE] == 2


def test_keepalives_run_when_the_clock_jumps(echo_server: EchoServer) -> None:
    class Checked(ConnectionPool[Any]):
        def _keepalive(self, conn: Any) -> None:
            checked.append(conn)

    checked: list[Any] = []
    connect = SocketFactory(echo_server.address)
    with FakeClock() as clock, Checked(2, keepalive=600, connect=connect) as pool:
        pool.fill()
        gevent.idle()
        assert checked == []
        for count, seconds in enumerate((601, 10, 601), 1):
            clock.advance(seconds)  # half of the idle ones at a time
            until(lambda: len(checked) == count and pool.stats().idle == 2)  # noqa: B023

    assert len(set(map(id, checked[:2]))) == 2


def test_a_caller_in_line_is_late_when_the_clock_jumps(echo_server: EchoServer) -> None:
    def ask(timeout: float) -> str:
        try:
            with pool.get(timeout=timeout):
                return "served"
        except PoolTimeout:
            return "late"

    connect = SocketFactory(echo_server.address)
    with FakeClock() as clock, ConnectionPool(1, connect=connect) as pool:
        with pool.get():
            callers = [gevent.spawn(ask, timeout) for timeout in (100, 300)]
            gevent.idle()
            clock.advance(101)

            assert callers[0].get(timeout=10) == "late"
            assert pool.stats().waiting == 1
            assert pool.holders()[0].age > 100
        assert callers[1].get(timeout=10) == "served"


def test_a_back_off_is_over_when_the_clock_jumps(
    proxy: ChaosProxy, echo_server: EchoServer
) -> None:
    backoff = Backoff(first=1000, longest=1000, jitter=0)
    proxy.refuse()
    connect = SocketFactory(proxy.address)
    with FakeClock() as clock, ConnectionPool(1, connect=connect, backoff=backoff) as pool:
        until(lambda: pool.stats().dial_failed == 1)
        proxy.normal()
        clock.advance(1001)
        until(lambda: pool.stats().idle == 1)

        assert pool.stats().dialed == 2


def test_the_waits_and_the_deadline_of_a_retry_see_the_clock_jump() -> None:
    waiting = Event()

    @retry(interval=100, deadline=250, on_retry=lambda _: waiting.set())
    def fail() -> None:
        attempts.append(1)
        raise OSError

    def call() -> None:
        with pytest.raises(OSError):
            fail()

    attempts: list[int] = []
    with FakeClock() as clock:
        caller = gevent.spawn(call)
        for _ in range(2):
            assert waiting.wait(10)
            waiting.clear()
            gevent.idle()
            clock.advance(100)
        caller.get(timeout=10)

    assert len(attempts) == 3


@pytest.mark.parametrize("outer", [FakeClock, no_retry_delays])
def test_a_fake_clock_and_skipped_delays_stand_in_each_other(outer: Callable[[], Any]) -> None:
    clock = FakeClock()
    inner = no_retry_delays() if outer is FakeClock else clock

    @retry(interval=100, deadline=360)
    def fail() -> None:
        attempts.append(1)
        if len(attempts) == 2:
            clock.advance(150)
        raise OSError

    attempts: list[int] = []
    with clock if outer is FakeClock else no_retry_delays(), inner:
        with pytest.raises(OSError):
            fail()

    assert len(attempts) == 3  # at 0, 100 and 350 s


def test_the_jumps_are_taken_back_at_the_end_of_the_with() -> None:
    clock = FakeClock()
    before = retry_module._clock, retry_module._sleep
    with pytest.raises(KeyError), clock:
        clock.advance(1e6)
        assert retry_module._clock() > time.monotonic() + 9e5
        with pytest.raises(RuntimeError, match="already"):
            clock.__enter__()
        raise KeyError

    assert (retry_module._clock, retry_module._sleep) == before
    assert vars(runtime)["monotonic"] is hot_clock.real
    assert hot_clock.monotonic() < time.monotonic() + 1
    with clock:  # a second time: from now on
        assert retry_module._clock() < time.monotonic() + 1e5


def test_clocks_may_overlap_and_their_jumps_add_up() -> None:
    before = retry_module._clock, retry_module._sleep
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        one, other = first.enter_context(FakeClock()), second.enter_context(FakeClock())
        one.advance(1e6)
        other.advance(1e8)
        assert retry_module._clock() - time.monotonic() == pytest.approx(1.01e8, abs=1e4)
        first.close()
        assert retry_module._clock() - time.monotonic() == pytest.approx(1e8, abs=1e4)

    assert (retry_module._clock, retry_module._sleep) == before


def test_a_jump_does_not_switch(echo_server: EchoServer) -> None:
    ran: list[int] = []
    connect = SocketFactory(echo_server.address)
    with FakeClock() as clock, ConnectionPool(2, connect=connect, max_lifetime=10) as pool:
        pool.fill()
        gevent.idle()
        bystander = gevent.spawn(ran.append, 1)
        clock.advance(100)
        assert not ran
        bystander.join()


# Fixtures


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Another's suite, run in a process of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest("pytest_plugins = ['geventpool.testing.fixtures']\n")
    return pytester


def run(suite: pytest.Pytester, *options: str, runner: str = "pytest") -> pytest.RunResult:
    program = "import gevent.monkey, pytest, sys; "
    if runner == "pytest-gevent":  # what that does, without having to know where it is
        program += "gevent.monkey.patch_all(); "
    program += "sys.exit(pytest.main())"
    return suite.run(sys.executable, "-c", program, "-p", "no:cacheprovider", "-rE", *options)


LEAKS = """
import gevent, gevent.socket, pytest
from gevent.event import Event

kept = []
pytestmark = pytest.mark.usefixtures("no_leaks")

def a_greenlet_that_stays():
    Event().wait()

def broken():
    raise LookupError("nobody joins me")

def test_greenlet():
    kept.append(gevent.spawn(a_greenlet_that_stays))
    gevent.idle()

def test_greenlet_about_to_start():
    kept.append(gevent.spawn_later(3600, a_greenlet_that_stays))

def test_socket():
    kept.append(gevent.socket.create_server(("127.0.0.1", 0)))

def test_hub_error():
    gevent.spawn(broken).join()

def test_callback_error():
    gevent.get_hub().loop.run_callback(broken)
    gevent.idle()

def test_innocent_afterwards():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["pytest", "pytest-gevent"])
def test_each_kind_of_leak_fails_a_test_and_the_message_says_which(
    suite: pytest.Pytester, runner: str
) -> None:
    suite.makepyfile(LEAKS)
    result = run(suite, runner=runner)

    result.assert_outcomes(passed=6, errors=5)
    text = result.stdout.str()
    of = {
        name: re.split(r"\n_{3,}|\n={3,}", text.split(f"ERROR at teardown of {name} ")[1])[0]
        for name in (
            "test_greenlet",
            "test_greenlet_about_to_start",
            "test_socket",
            "test_hub_error",
            "test_callback_error",
        )
    }
    assert "0 sockets and 1 greenlets were left behind" in of["test_greenlet"]
    assert "in a_greenlet_that_stays" in of["test_greenlet"]
    assert "not started yet" in of["test_greenlet_about_to_start"]
    assert "1 sockets and 0 greenlets were left behind" in of["test_socket"]
    assert re.search(r"socket \d+: \('127.0.0.1', \d+\) -> nobody", of["test_socket"])
    for name in ("test_hub_error", "test_callback_error"):
        assert "1 errors reached the hub" in of[name]
        assert "LookupError: nobody joins me" in of[name]


NO_LEAKS = """
import gevent, gevent.socket, pytest
from gevent.event import Event

kept = []
pytestmark = pytest.mark.usefixtures("no_leaks")

@pytest.mark.may_leak
def test_that_may():
    kept.append(gevent.spawn(Event().wait))
    kept.append(gevent.socket.socket())

def test_that_cleans_up_a_little_late():
    gevent.spawn_later(0.1, gevent.socket.socket().close)

def test_that_expects_an_error(hub_errors):
    gevent.spawn(int, "x").join()
    assert [type(e) for e in hub_errors] == [ValueError]
    hub_errors.clear()

def test_that_fails_anyway():
    kept.append(gevent.spawn(Event().wait))
    gevent.spawn(int, "x").join()
    assert False

def test_that_skips():
    kept.append(gevent.spawn(Event().wait))
    pytest.skip("halfway")

def test_all_fixtures(echo_server, chaos_proxy, no_retry_delays):
    with gevent.socket.create_connection(chaos_proxy(echo_server.address).address) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"

@pytest.mark.may_leak
def test_an_error_is_never_fine():
    gevent.spawn(int, "x").join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["pytest", "pytest-gevent"])
def test_who_may_leak_or_failed_anyway_is_left_alone(suite: pytest.Pytester, runner: str) -> None:
    suite.makepyfile(NO_LEAKS)
    result = run(suite, "--strict-markers", runner=runner)

    result.assert_outcomes(passed=5, failed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines(["ERROR *test_an_error_is_never_fine*"])


@pytest.mark.slow
def test_the_fixtures_do_not_disturb_a_suite_that_does_not_ask(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_plain(): pass")

    run(suite, "-W", "error").assert_outcomes(passed=1)


LATE = """
import gc, gevent, gevent.socket, pytest
import geventpool.testing.fixtures

@pytest.mark.usefixtures("no_leaks")
def test_that_got_no_processor_for_a_second_when_it_was_about_to_finish(monkeypatch):
    def close():
        for _ in range(10):
            gevent.sleep(0)
        sock.close()

    sock = gevent.socket.socket()
    gevent.spawn(close)
    geventpool.testing.fixtures._PATIENCE = 0.0  # as if it were over at the first look

@pytest.mark.may_leak
@pytest.mark.usefixtures("no_leaks")
def test_whose_garbage_complains():
    cycle = [gevent.socket.socket()]
    cycle.append(cycle)

def test_that_collects_the_garbage_of_others():
    gc.collect()
"""


@pytest.mark.slow
def test_no_server_is_blamed_for_a_busy_machine_or_for_the_garbage_of_others(
    suite: pytest.Pytester,
) -> None:
    suite.makepyfile(LATE)
    result = run(suite, "-W", "error")

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["ERROR *test_whose_garbage_complains*"])


@pytest.mark.slow
def test_the_page_about_testing_works(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page = (ROOT / "docs" / "testing.md").read_text()
    conftest, tests = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    pytester.makeconftest(conftest)
    pytester.makepyfile(tests)
    result = run(pytester, "-W", "error")

    result.assert_outcomes(passed=tests.count("def test_"))
