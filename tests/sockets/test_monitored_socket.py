"""A MonitoredSocket is a socket that counts, whatever goes through it and however."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
import pytest

from geventpool.sockets import MonitoredSocket, SocketFactory, Traffic
from support.servers import EchoServer


@pytest.fixture(params=["plain", "TLS"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, contexts: tuple[Any, Any]) -> Iterator[EchoServer]:
    with EchoServer(ssl_context=contexts[0] if kind == "TLS" else None) as server:
        yield server


@pytest.fixture
def dial(kind: str, contexts: tuple[Any, Any], server: EchoServer) -> Iterator[Callable[[], Any]]:
    """Opens sockets to the server, and closes them in the end."""
    opened = []
    tls = contexts[1] if kind == "TLS" else False
    name = "localhost" if kind == "TLS" else None

    def dial() -> Any:
        opened.append(SocketFactory(server.address, tls=tls, server_hostname=name)())
        return opened[-1]

    yield dial
    for sock in opened:
        sock.close()


@pytest.fixture
def sock(dial: Callable[[], Any], server: EchoServer) -> MonitoredSocket:
    return MonitoredSocket(dial(), address=server.address)


def exactly(receive: Callable[[int], bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += receive(count - len(data))
    return data


def into(sock: MonitoredSocket, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: sock.recv_into(buffer)])


RECEIVE: dict[str, Callable[[MonitoredSocket, int], bytes]] = {
    "recv": lambda sock, count: sock.recv(count),
    "recv with flags": lambda sock, count: sock.recv(count, 0),
    "recv_into": into,
    "recv_into with a count": lambda sock, count: _into_with_count(sock, count),
}
RECEIVE_PLAIN: dict[str, Callable[[MonitoredSocket, int], bytes]] = {
    "recvfrom": lambda sock, count: sock.recvfrom(count)[0],
    "recvfrom_into": lambda sock, count: _from_into(sock, count),
    "recvmsg": lambda sock, count: sock.recvmsg(count)[0],
    "recvmsg_into": lambda sock, count: _msg_into(sock, count),
}
RECEIVE_TLS: dict[str, Callable[[MonitoredSocket, int], bytes]] = {
    "read": lambda sock, count: sock.read(count),
    "read into": lambda sock, count: _read_into(sock, count),
}


def _into_with_count(sock: MonitoredSocket, count: int) -> bytes:
    buffer = bytearray(count + 10)
    return bytes(buffer[: sock.recv_into(buffer, count)])


def _from_into(sock: MonitoredSocket, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: sock.recvfrom_into(buffer)[0]])


def _msg_into(sock: MonitoredSocket, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: sock.recvmsg_into([buffer])[0]])


def _read_into(sock: MonitoredSocket, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: sock.read(count, buffer)])


def check_receive(sock: MonitoredSocket, receive: Callable[[MonitoredSocket, int], bytes]) -> None:
    sock.sendall(b"0123456789")
    before = sock.last_activity

    assert exactly(lambda count: receive(sock, count), 10) == b"0123456789"
    assert sock.bytes_in == sock.bytes_out == 10
    assert sock.receives.count >= 1
    assert sock.last_activity > before


@pytest.mark.parametrize("how", RECEIVE)
def test_what_is_received_counts(sock: MonitoredSocket, how: str) -> None:
    check_receive(sock, RECEIVE[how])


@pytest.mark.parametrize("kind", ["plain"], indirect=True)
@pytest.mark.parametrize("how", RECEIVE_PLAIN)
def test_what_is_received_with_what_comes_along_counts(sock: MonitoredSocket, how: str) -> None:
    check_receive(sock, RECEIVE_PLAIN[how])


@pytest.mark.parametrize("kind", ["TLS"], indirect=True)
@pytest.mark.parametrize("how", RECEIVE_TLS)
def test_what_is_read_from_tls_counts(sock: MonitoredSocket, how: str) -> None:
    check_receive(sock, RECEIVE_TLS[how])


@pytest.mark.parametrize(
    ("data", "size"),
    [(b"12345", 5), (bytearray(b"123"), 3), (memoryview(b"1234"), 4), (b"", 0)],
    ids=["bytes", "bytearray", "memoryview", "nothing"],
)
@pytest.mark.parametrize("method", ["send", "sendall"])
def test_what_is_sent_counts(sock: MonitoredSocket, method: str, data: Any, size: int) -> None:
    getattr(sock, method)(data)

    assert sock.bytes_out == size
    assert exactly(sock.recv, size) == bytes(data)


def test_what_is_sent_counts_in_bytes_and_not_in_items(sock: MonitoredSocket) -> None:
    sock.sendall(memoryview(b"12345678").cast("I"))

    assert sock.bytes_out == 8


@pytest.mark.parametrize("kind", ["plain"], indirect=True)
def test_what_is_sent_in_pieces_counts(sock: MonitoredSocket) -> None:
    assert sock.sendmsg([b"12", b"345"]) == 5
    assert exactly(sock.recv, 5) == b"12345"
    assert sock.bytes_out == 5


@pytest.mark.parametrize("kind", ["TLS"], indirect=True)
def test_what_is_written_to_tls_counts(sock: MonitoredSocket) -> None:
    assert sock.write(b"12345") == 5
    assert exactly(sock.recv, 5) == b"12345"
    assert sock.bytes_out == 5


def test_a_file_that_is_sent_counts(sock: MonitoredSocket, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    with path.open("rb") as file:
        assert sock.sendfile(file) == 1000
    assert exactly(sock.recv, 1000) == b"x" * 1000
    assert sock.bytes_out == 1000


def test_arguments_may_be_given_by_name(sock: MonitoredSocket, kind: str) -> None:
    assert sock.send(data=b"12345", flags=0) == 5
    sock.sendall(data=b"67890", flags=0)
    buffer = bytearray(10)
    exactly(lambda count: sock.recv(bufsize=count, flags=0), 4)
    while sock.bytes_in < 7:
        sock.recv_into(buffer, nbytes=7 - sock.bytes_in, flags=0)
    if kind == "TLS":
        assert exactly(lambda count: sock.read(nbytes=count), 3) == b"890"
    else:
        assert exactly(lambda count: sock.recvmsg(bufsize=count, flags=0)[0], 3) == b"890"
    assert sock.bytes_in == sock.bytes_out == 10


def test_no_count_means_as_many_as_there_is_room_for(sock: MonitoredSocket) -> None:
    for arguments in ((), (0,), (0, 0)):
        sock.sendall(b"12345")
        buffer = bytearray(5)
        exactly(lambda count, to=buffer, more=arguments: bytes(to[: sock.recv_into(to, *more)]), 5)
    assert sock.bytes_in == 15


PEEK: dict[str, Callable[[MonitoredSocket], object]] = {
    "recv": lambda sock: sock.recv(5, socket.MSG_PEEK),
    "recv_into": lambda sock: sock.recv_into(bytearray(5), 5, socket.MSG_PEEK),
    "recvfrom": lambda sock: sock.recvfrom(5, socket.MSG_PEEK),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(5), 5, socket.MSG_PEEK),
    "recvmsg": lambda sock: sock.recvmsg(5, 0, socket.MSG_PEEK),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(5)], 0, socket.MSG_PEEK),
}


@pytest.mark.parametrize("kind", ["plain"], indirect=True)
@pytest.mark.parametrize("how", PEEK)
def test_what_is_only_looked_at_is_not_received(sock: MonitoredSocket, how: str) -> None:
    sock.sendall(b"12345")
    PEEK[how](sock)
    assert sock.bytes_in == 0
    assert sock.receives.count == 1

    assert exactly(sock.recv, 5) == b"12345"
    assert sock.bytes_in == 5


def test_what_goes_through_a_file_of_it_counts(sock: MonitoredSocket) -> None:
    with sock.makefile("rwb") as file:
        file.write(b"a line\n")
        file.flush()
        assert file.readline() == b"a line\n"
    with sock.makefile("rw", encoding="utf-8", newline="\n") as text:
        assert isinstance(text, io.TextIOWrapper)
        text.write("noch eine: ä\n")
        text.flush()
        assert text.readline() == "noch eine: ä\n"

    assert sock.bytes_in == sock.bytes_out == 7 + 14
    assert sock.receives.count >= 2


def test_a_file_of_it_keeps_it_open_and_no_longer(
    sock: MonitoredSocket, server: EchoServer
) -> None:
    file = sock.makefile("rwb")
    sock.close()
    assert sock.closed_at is None
    file.write(b"still here")
    file.flush()
    assert file.read(10) == b"still here"

    file.close()
    assert sock.closed_at is not None
    server.wait_open(0)


def test_closed_now_it_is_closed_whatever_files_of_it_are_open(
    sock: MonitoredSocket, server: EchoServer
) -> None:
    with sock.makefile("rb"):
        sock.close_now()
        assert sock.fileno() == -1
        server.wait_open(0)


def test_it_is_told_how_long_receiving_took() -> None:
    class Slow(EchoServer):
        def serve(self, sock: Any) -> None:
            while data := sock.recv(100):
                gevent.sleep(0.05)
                sock.sendall(data)

    with Slow() as server, closing(SocketFactory(server.address)()) as plain:
        sock = MonitoredSocket(plain)
        for _ in range(2):
            sock.sendall(b"x")
            sock.recv(1)

        assert sock.receives.count == 2
        assert 0.045 <= sock.receives.max < 40  # in seconds, and not in thousands of them
        assert 0.09 <= sock.receives.sum <= 2 * sock.receives.max


def test_a_receive_in_vain_counts_with_the_time_it_took(sock: MonitoredSocket) -> None:
    sock.settimeout(0.05)
    with pytest.raises(TimeoutError):
        sock.recv(1)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
        sock.recv_into(bytearray(1))

    assert sock.receives.count == 2
    assert sock.receives.max >= 0.045
    assert sock.bytes_in == 0


def test_it_has_an_age_until_it_is_closed(sock: MonitoredSocket) -> None:
    before = sock.lifetime
    gevent.sleep(0.01)
    assert sock.lifetime >= before + 0.005

    sock.close()
    end = sock.lifetime
    gevent.sleep(0.01)
    assert sock.lifetime == end


def test_it_has_all_that_a_socket_has(sock: MonitoredSocket, server: EchoServer, kind: str) -> None:
    sock.settimeout(3)

    assert sock.gettimeout() == 3
    assert sock.getpeername() == server.address
    assert sock.fileno() == sock._sock.fileno() >= 0
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.protected == (kind == "TLS")
    if kind == "TLS":
        assert sock.version().startswith("TLS")
    with pytest.raises(AttributeError, match="no_such_thing"):
        sock.no_such_thing  # noqa: B018
    assert str(server.address) in repr(sock)
    with sock as same:
        assert same is sock
    assert sock.fileno() == -1


@pytest.mark.parametrize("kind", ["plain"], indirect=True)
def test_a_detached_socket_is_not_counted_any_more(dial: Callable[[], Any]) -> None:
    traffic = Traffic()
    sock = MonitoredSocket(dial(), traffic)
    assert not sock.detached
    descriptor = sock.detach()
    socket.close(descriptor)

    assert sock.detached
    assert traffic.open == 0
    assert traffic.lifetimes.count == 1


def test_an_address_has_the_sums_of_its_sockets_open_and_closed(dial: Callable[[], Any]) -> None:
    traffic = Traffic()
    assert traffic.last_activity is None
    first, second = (MonitoredSocket(dial(), traffic) for _ in range(2))
    for sock in (first, second):
        sock.sendall(b"12345")
        exactly(sock.recv, 5)
    received = first.receives.count + second.receives.count
    for closed in (0, 1, 2):
        assert (traffic.opened, traffic.open) == (2, 2 - closed)
        assert traffic.bytes_in == traffic.bytes_out == 10
        assert traffic.receives.count == received
        assert traffic.receives.max == max(first.receives.max, second.receives.max)
        assert traffic.last_activity == max(first.last_activity, second.last_activity)
        assert traffic.lifetimes.count == closed
        for sock in (first, second)[closed : closed + 1]:
            sock.close()
            sock.close()  # twice is as good as once
    assert traffic.lifetimes.sum == pytest.approx(first.lifetime + second.lifetime)
    assert "0 open of 2 opened, 10 bytes in" in repr(traffic)


def test_a_socket_that_is_forgotten_is_still_counted(dial: Callable[[], Any]) -> None:
    traffic = Traffic()
    plain = dial()
    sock = MonitoredSocket(plain, traffic)
    sock.sendall(b"12345")
    gone = weakref.ref(sock)
    del sock
    gc.collect()

    assert gone() is None
    assert (traffic.opened, traffic.open, traffic.bytes_out) == (1, 0, 5)


def test_it_is_copied_and_pickled_as_little_as_any_socket(sock: MonitoredSocket) -> None:
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a MonitoredSocket"):
            attempt(sock)


def test_one_that_was_not_made_leaves_in_silence() -> None:
    # What its __del__ raises would be reported as an unraisable exception, and fail this test.
    with pytest.raises(AttributeError):
        MonitoredSocket(object())
    half_made = MonitoredSocket.__new__(MonitoredSocket)
    with pytest.raises(AttributeError, match="'_sock'"):
        half_made.recv(1)
    del half_made
    gc.collect()


def test_times_are_those_of_the_monotonic_clock(sock: MonitoredSocket) -> None:
    assert sock.opened_at <= time.monotonic()
    assert time.monotonic() - sock.last_activity < 60


def test_it_is_made_as_that_of_the_ancestor_is(dial: Callable[[], Any]) -> None:
    sock = MonitoredSocket(dial(), Traffic(), None, "users", "plain", "connected")
    plain = MonitoredSocket(dial())

    assert (sock.name, sock.type, sock.state) == ("users", "plain", "connected")
    assert plain.type == socket.SOCK_STREAM
    sock.close()
    plain.close()
