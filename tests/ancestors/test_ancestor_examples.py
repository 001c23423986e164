"""The examples in the documents of the libraries that this one descends from.

Each is here as it stands there, but for its import lines, Python 3 (bytes, print) and the
formatter; a test is named after the document.  The comment above an example says which lines
of the document it is, and what else had to change.  The hosts that the documents name are servers
on loopback, and where a document only describes (a signature, a sentence), so does the test.
"""

# The examples are not ours to improve: `raise socket.error`, a bare `except:`, `.format`.
# ruff: noqa: E722, RUF059, SIM103, UP032

from __future__ import annotations

import contextlib
import functools
import imaplib
import inspect
import ipaddress
import logging
import operator
import os
import ssl as stdlib_ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import psycopg
import pytest
import redis
from gevent import socket, ssl
from redis.backoff import NoBackoff
from redis.retry import Retry

from geventpool import (
    Address,
    AddressGroup,
    AddressGroupMap,
    Backoff,
    ConnectInfo,
    ConnectionManager,
    ConnectionPool,
    MarkedDownError,
    MonitoredSocket,
    MultiConnectFailure,
    NameNotFound,
    OutOfSockets,
    PoolTimeout,
    Reason,
    ServerModel,
    ServerModelDirectory,
    retry,
)
from geventpool.compat import generic_connection_pool, gsocketpool, pycassa
from geventpool.testing import FakeClock
from support import ROOT
from support.certificates import Certificates
from support.servers import EchoServer, closed_port, require_server
from support.waiting import until

PATIENCE = 10.0


@pytest.fixture
def at_end() -> Iterator[contextlib.ExitStack]:
    """Closes what the examples leave open."""
    with contextlib.ExitStack() as stack:
        yield stack


# How programs import what the documents describe.  pycassa is gone from the package index.
IMPORTS = """
import gsocketpool
import gsocketpool.exceptions
from gsocketpool import Connection, ConnectionNotFoundError, Pool, PoolExhaustedError, TcpConnection
from gsocketpool.connection import Connection, TcpConnection
from gsocketpool.exceptions import ConnectionNotFoundError, PoolExhaustedError
from gsocketpool.pool import ConnectionReaper, Pool
import generic_connection_pool.threading
import generic_connection_pool.contrib.socket as socket_managers
from generic_connection_pool import BaseConnectionPool, ConnectionPoolClosedError
from generic_connection_pool.asyncio import BaseConnectionManager, ConnectionPool
from generic_connection_pool.asyncio.pool import ConnectionPool
from generic_connection_pool.common import BaseConnectionPool, ConnectionT, EndpointT
from generic_connection_pool.contrib import socket, socket_async, unix, unix_async
from generic_connection_pool.contrib.socket import SocketAlivenessCheckingMixin
from generic_connection_pool.contrib.socket import SslSocketAlivenessCheckingMixin
from generic_connection_pool.contrib.socket import Hostname, IpAddress, Port
from generic_connection_pool.contrib.socket import SslEndpoint, TcpEndpoint
from generic_connection_pool.contrib.socket import SslSocketConnectionManager
from generic_connection_pool.contrib.socket import TcpSocketConnectionManager
from generic_connection_pool.contrib.socket_async import StreamAlivenessCheckingMixin
from generic_connection_pool.contrib.socket_async import Stream, TcpStreamEndpoint
from generic_connection_pool.contrib.socket_async import TcpSocketConnectionManager
from generic_connection_pool.contrib.socket_async import TcpStreamConnectionManager
from generic_connection_pool.contrib.unix import CheckSocketAlivenessMixin, UnixSocketEndpoint
from generic_connection_pool.contrib.unix import UnixSocketConnectionManager
from generic_connection_pool.contrib.unix_async import UnixSocketConnectionManager
from generic_connection_pool.contrib.unix_async import UnixSocketStreamConnectionManager
from generic_connection_pool.exceptions import BaseError, ConnectionPoolClosedError
from generic_connection_pool.exceptions import ConnectionPoolIsFull, ConnectionPoolNotFound
from generic_connection_pool.threading import BaseConnectionManager, ConnectionPool
from generic_connection_pool.threading.pool import ConnectionPool
import pycassa.pool
from pycassa.logging.pool_logger import PoolLogger
from pycassa.logging.pool_stats_logger import StatsLogger
from pycassa.pool import AllServersUnavailable, ConnectionPool, ConnectionWrapper
from pycassa.pool import InvalidRequestError, MaximumRetryException, NoConnectionAvailable
from pycassa.pool import PoolListener, QueuePool
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", IMPORTS.strip().splitlines())
def test_an_import_changes_by_its_prefix_alone(line: str) -> None:
    if "pycassa" not in line:
        exec(line, {})  # that of the library itself
    keyword, module, rest = line.split(" ", 2) if " " in line[7:] else (*line.split(" "), "")
    changed = f"{keyword} geventpool.compat.{module} {rest}"
    # In an interpreter of its own, where no other line has made the modules known yet.
    subprocess.run([sys.executable, "-c", changed], check=True, env={"PYTHONPATH": str(ROOT)})


def in_documented_order(call: Any) -> str:
    """The parameters of *call* as a document would write them, without ``self``."""
    found = inspect.signature(call).parameters.values()
    texts = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in found
        if p.name != "self"
    ]
    return ", ".join(texts).replace("mappingproxy({})", "{}")


# support.connection_mgr
#
# No example in this document either: names, signatures and what they are for.


@pytest.mark.parametrize(
    ("call", "documented"),
    [
        (Address, "ip, port"),  # line 15
        (AddressGroup, "tiers"),  # line 22
        (AddressGroupMap, ""),  # line 32
        (
            ConnectInfo,  # line 36
            "connect_timeout_ms, response_timeout_ms, max_connect_retry,"
            " transient_markdown_enabled, markdown",
        ),
        (ConnectionManager, "address_groups=None, address_aliases=None, ssl_context=None"),
        (
            ConnectionManager.get_connection,  # line 59
            "name_or_addr, ssl=False, sock_type=None, read_timeout=None",
        ),
        (ConnectionManager.get_all_addrs, "name"),
        (ServerModel, "address"),  # line 80
        (ServerModelDirectory, ""),
    ],
)
def test_connection_mgr_names_and_signatures(call, documented):
    parameters = [p for p in inspect.signature(call).parameters.values() if p.name != "self"]
    found = [
        p.name if p.default is p.empty or "=" not in documented else f"{p.name}={p.default!r}"
        for p in parameters
    ]
    documented_ones = documented.split(", ") if documented else []
    assert found[: len(documented_ones)] == documented_ones
    others = parameters[len(documented_ones) :]
    assert all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in others)


def test_connection_mgr_the_tuples_have_their_fields_where_they_are_documented():
    # Lines 15 to 20 and 36 to 50.
    assert Address("10.0.0.1", 80) == ("10.0.0.1", 80)
    info = ConnectInfo(1, 2, 3, False, True)
    assert (info[0], info.connect_timeout_ms) == (1, 1)
    assert (info[4], info.markdown) == (True, True)
    assert (info[2], info.max_connect_retry) == (3, 3)
    assert (info[1], info.response_timeout_ms) == (2, 2)
    assert (info[3], info.transient_markdown_enabled) == (False, False)


@pytest.mark.parametrize(
    "error", [MarkedDownError, MultiConnectFailure, NameNotFound, OutOfSockets]
)
def test_connection_mgr_the_exceptions_are_socket_errors(error):
    # Line 7.
    assert issubclass(error, socket.error)


def test_connection_mgr_iterate_over_an_address_group_and_try_each_address(at_end):
    at, spare = [at_end.enter_context(EchoServer()) for _ in range(2)]
    refusing = at_end.enter_context(closed_port())

    # Lines 24 to 30: `tiers` as there, and the simplest way to use a group.
    weight = 1
    group = AddressGroup(
        [[(weight, refusing), (weight, at.address)], [(weight, spare.address)]]  # tiers
    )
    connected = None
    for address in group:
        try:
            connected = socket.create_connection(address)
            break
        except socket.error:
            pass

    with connected:
        assert connected.getpeername() == at.address
    for _ in range(20):  # a tier is exhausted before the next
        assert [tuple(each) for each in group][2] == spare.address
        assert len(list(group)) == 3
    first = [tuple(next(iter(group))) for _ in range(50)]
    assert set(first) == {refusing, at.address}


def test_connection_mgr_the_address_group_map_pulls_in_addresses_lazily():
    # Line 34.
    asked = []

    def missing(name):
        asked.append(name)
        return AddressGroup([[(1, ("10.0.0.1", 80))]])

    groups = AddressGroupMap(missing=missing)
    assert not asked
    with ConnectionManager(groups) as manager:
        for _ in range(2):
            assert manager.get_all_addrs("db-r") == [("10.0.0.1", 80)]
    assert asked == ["db-r"]


@pytest.fixture
def paymentserv(at_end: contextlib.ExitStack) -> EchoServer:
    return at_end.enter_context(EchoServer())


@pytest.fixture
def manager(
    at_end: contextlib.ExitStack, paymentserv: EchoServer, certificates: Certificates
) -> ConnectionManager:
    """What knows the two names of line 3; the second is an alias."""
    context = stdlib_ssl.create_default_context(cafile=certificates.authority)
    groups = {"paymentserv": [[(1, paymentserv.address)]]}
    aliases = {"occ-conf": "paymentserv"}
    return at_end.enter_context(ConnectionManager(groups, aliases, context))


@pytest.mark.parametrize("name", ["paymentserv", "occ-conf"])
def test_connection_mgr_from_a_name_to_an_open_connection(manager, paymentserv, name):
    # Lines 3 to 7.
    sock = manager.get_connection(name)

    assert sock.getpeername() == paymentserv.address
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    manager.release_connection(sock)
    assert manager.get_connection(name) is sock
    manager.release_connection(sock)


def test_connection_mgr_or_it_raises_a_socket_error(at_end, manager):
    # Line 7, and 57 of a name that is not known.
    ports = [at_end.enter_context(closed_port()) for _ in range(2)]
    group = AddressGroup([[(1, port) for port in ports]])

    with pytest.raises(NameNotFound):
        manager.get_connection("nobody")
    with pytest.raises(NameNotFound):
        manager.get_all_addrs("nobody")
    with pytest.raises(ConnectionRefusedError):
        manager.get_connection(ports[0])
    began = time.monotonic()
    with pytest.raises(MultiConnectFailure) as caught:
        manager.get_connection(group)
    assert time.monotonic() - began < PATIENCE
    assert len(caught.value.errors) == 2


def test_connection_mgr_get_addr_is_the_first_of_get_all_addrs(manager, paymentserv):
    # Lines 54 to 57; the name of the first of the two is not in the document.
    assert manager.get_all_addrs("paymentserv") == [paymentserv.address]
    assert manager.get_addr("occ-conf") == manager.get_all_addrs("occ-conf")[0]


def test_connection_mgr_transient_markdown_keeps_track_of_connection_failures(at_end, paymentserv):
    # Line 11, 2: an address that has failed is not tried again for a while.
    refusing = at_end.enter_context(closed_port())
    tiers = [[(1, refusing)], [(1, paymentserv.address)]]
    manager = at_end.enter_context(ConnectionManager({"paymentserv": tiers}))
    for _ in range(20):
        with manager.connection("paymentserv") as sock:
            assert sock.getpeername() == paymentserv.address
        if refusing in {server.address for server in manager.servers.values() if server.down_until}:
            break
    else:
        pytest.fail("never marked down")


def test_connection_mgr_socket_throttling_keeps_track_of_total_open_sockets(at_end, paymentserv):
    # Lines 11, 3, and 79.
    groups = {"paymentserv": [[(1, paymentserv.address)]]}
    manager = at_end.enter_context(ConnectionManager(groups, max_sockets=2))
    held = [manager.get_connection("paymentserv") for _ in range(2)]

    with pytest.raises(OutOfSockets):
        manager.get_connection("paymentserv")
    assert paymentserv.peak == 2
    for sock in held:
        manager.release_connection(sock)


def test_connection_mgr_read_timeout(manager, paymentserv):
    # Lines 11, 4, and 59.
    sock = manager.get_connection("paymentserv", read_timeout=0.02)

    with pytest.raises(socket.timeout):
        sock.recv(1)
    manager.discard_connection(sock)


@pytest.mark.parametrize("how", ["True", "a context"])
def test_connection_mgr_ssl_wraps_the_socket(at_end, certificates, how):
    # Lines 61 to 63: True is the context of the manager.
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificates.certificate, certificates.key)
    server = at_end.enter_context(EchoServer(ssl_context=serving))
    context = stdlib_ssl.create_default_context(cafile=certificates.authority)
    groups = {"paymentserv": [[(1, ("localhost", server.address[1]))]]}
    manager = at_end.enter_context(
        ConnectionManager(groups, ssl_context=context if how == "True" else None)
    )

    sock = manager.get_connection("paymentserv", ssl=True if how == "True" else context)
    assert sock.version().startswith("TLSv1.")
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    manager.release_connection(sock)


def test_connection_mgr_sock_type_makes_the_thing_that_should_be_pooled(manager):
    # Lines 64 to 68.
    class Protocol:
        def __init__(self, sock):
            self.sock = sock
            sock.sendall(b"handshake")
            self.greeting = sock.recv(9)

        def close(self):
            self.sock.close()

    conn = manager.get_connection("paymentserv", sock_type=Protocol)
    assert type(conn) is Protocol
    assert conn.greeting == b"handshake"
    manager.release_connection(conn)
    assert manager.get_connection("paymentserv", sock_type=Protocol) is conn
    manager.release_connection(conn)


def test_connection_mgr_a_monitored_socket_allows_its_lifetime_to_be_monitored(manager):
    # Lines 70 to 76.
    with manager.connection("paymentserv") as sock:
        assert type(sock) is MonitoredSocket
        flags = 0
        assert sock.send(b"data", flags) == 4
        sock.sendall(b"more", flags)
        received = b""
        while len(received) < 8:
            received += sock.recv(100, flags)
        assert (sock.bytes_out, sock.bytes_in) == (8, 8)
        assert 0 < sock.lifetime < PATIENCE


def test_connection_mgr_a_server_model_estimates_the_open_connections(manager, paymentserv):
    # Lines 82 to 86.
    with manager.connection("paymentserv"), manager.connection("paymentserv"):
        model = manager.servers[Address(*paymentserv.address)]
        assert isinstance(manager.servers, ServerModelDirectory)
        assert isinstance(model, ServerModel)
        assert len(model.active_connections) == 2


# the README of geventconnpool


class PingServer(EchoServer):
    """Answers each line by its first word: ``PING`` with ``PONG``, and most with ``OK``.

    *answers* may be changed.  *asked* is what has come in, ``[(port of the client, line), ...]``.
    After the answer ``OK`` to a ``STARTTLS`` it speaks TLS.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.context = context
        self.answers = {b"PING": b"PONG\n", b"LOGIN": b"", b"STARTTLS": b"OK\n"}
        self.asked: list[tuple[int, bytes]] = []

    def serve(self, sock: Any) -> None:
        unread = b""
        port = sock.getpeername()[1]
        with contextlib.ExitStack() as stack:
            while data := sock.recv(65536):
                *lines, unread = (unread + data).split(b"\n")
                for line in lines:
                    self.asked.append((port, line))
                    answer = self.answers.get(line.partition(b":")[0], b"OK")
                    sock.sendall(answer)
                    if line == b"STARTTLS" and answer == b"OK\n":
                        sock = stack.enter_context(self.tls(sock))

    def tls(self, sock: Any) -> Any:
        assert self.context is not None
        return self.context.wrap_socket(sock, server_side=True)

    def count(self, line: bytes) -> int:
        return sum(asked == line for _, asked in self.asked)


@pytest.fixture
def example_org(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> Iterator[PingServer]:
    """The server at ``("test.example.org", 2485)``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    create_connection = socket.create_connection

    def connect(address: Any, *args: Any, **kwargs: Any) -> Any:
        if address == ("test.example.org", 2485):
            address = server.address
        return create_connection(address, *args, **kwargs)

    with PingServer(context) as server:
        monkeypatch.setattr(socket, "create_connection", connect)
        yield server


# Lines 11 to 15.
class MyPool(ConnectionPool):
    def _new_connection(self):
        return socket.create_connection(("test.example.org", 2485))


def test_geventconnpool_20_connections_are_kept_open(example_org, at_end):
    # Line 18.
    pool = MyPool(20)  # always keep 20 connections open

    at_end.enter_context(pool)
    example_org.wait_open(20)
    example_org.fin_all()
    example_org.wait_opened(40)
    example_org.wait_open(20)
    assert example_org.peak == 20


def test_geventconnpool_ping(example_org, at_end):
    pool = at_end.enter_context(MyPool(20))

    # Lines 20 to 23.
    with pool.get() as c:
        c.send(b"PING\n")
        if c.recv(5) != b"PONG\n":
            raise socket.error("something awful happened")

    assert [line for _, line in example_org.asked] == [b"PING"]


def test_geventconnpool_a_socket_error_discards_and_another_is_opened_in_background(
    example_org, at_end
):
    pool = at_end.enter_context(MyPool(20))
    example_org.wait_open(20)
    example_org.answers[b"PING"] = b"PANG\n"

    # Lines 20 to 23, and what lines 24 to 27 say of it.
    with pytest.raises(socket.error, match="^something awful happened$"):
        with pool.get() as c:
            c.send(b"PING\n")
            if c.recv(5) != b"PONG\n":
                raise socket.error("something awful happened")

    example_org.wait_opened(21)
    example_org.wait_open(20)
    assert pool.stats().closed[Reason.ERROR] == 1
    assert c.fileno() == -1


def test_geventconnpool_any_other_exception_puts_the_connection_back(example_org, at_end):
    pool = at_end.enter_context(MyPool(1))

    # Lines 27 and 28.
    with pytest.raises(ValueError, match="^no special meaning$"), pool.get() as c:
        raise ValueError("no special meaning")

    with pool.get() as again:
        assert again is c
    assert example_org.opened == 1


def test_geventconnpool_exc_classes(example_org, at_end):
    # Line 34.
    pool = MyPool(20, exc_classes=(socket.error, imaplib.IMAP4.error))

    at_end.enter_context(pool)
    pool.fill()
    for error in imaplib.IMAP4.error("no such mailbox"), socket.error("reset"):
        with pytest.raises(type(error)), pool.get():
            raise error
    example_org.wait_opened(22)
    with pytest.raises(ValueError), pool.get():
        raise ValueError
    assert pool.stats().closed[Reason.ERROR] == 2


def test_geventconnpool_retry_uses_a_different_connection_for_each_attempt(example_org, at_end):
    pool = at_end.enter_context(MyPool(20))
    pool.fill()

    # Lines 38 to 44.
    @retry
    def senddata(data):
        with pool.get() as c:
            c.send(data)
            if c.recv(2) != b"OK":
                raise socket.error("something awful happened")

    answers = iter([b"NO", b"KO", b"??", b"OK"])
    example_org.answers = SimpleNamespace(get=lambda word, default: next(answers))
    senddata(b"some data\n")
    assert [line for _, line in example_org.asked] == [b"some data"] * 4
    assert len({port for port, _ in example_org.asked}) == 4


class ImapServer(EchoServer):
    """As much of an IMAP server as a client needs to select a mailbox.

    The first *refusals* times that is refused; *asked* is ``[(port of the client, command), ...]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        self.asked: list[tuple[int, str]] = []

    def serve(self, sock: Any) -> None:
        sock.sendall(b"* OK ready\r\n")
        with sock.makefile("rb") as lines:
            for line in lines:
                tag, _, command = line.decode().strip().partition(" ")
                sock.sendall(self.answer(command, sock.getpeername()[1]).format(tag).encode())

    def answer(self, command: str, port: int) -> str:
        self.asked.append((port, command))
        if command == "CAPABILITY":
            return "* CAPABILITY IMAP4REV1\r\n{} OK done\r\n"
        if command == "SELECT INBOX":
            if self.refusals > 0:
                self.refusals -= 1
                return "{} BAD try again\r\n"
            return "* 3 EXISTS\r\n{} OK [READ-WRITE] done\r\n"
        return "{} OK done\r\n"

    def ports_of(self, command: str) -> list[int]:
        return [port for port, asked in self.asked if asked == command]


class Imap(imaplib.IMAP4):
    """imaplib, cooperative in a program that is not patched, too."""

    def _create_socket(self, timeout: float | None = None) -> Any:
        return socket.create_connection((self.host, self.port), timeout)


class ImapPool(ConnectionPool):
    """The document shows no such pool: it has only the function that uses it."""

    def __init__(self, server: ImapServer, *args: Any, **kwargs: Any) -> None:
        self.address = server.address
        super().__init__(*args, **kwargs)

    def _new_connection(self) -> Any:
        c = Imap(*self.address)
        c.login("user", "password")
        return c

    def _close_connection(self, c: Any) -> None:
        c.shutdown()  # its close() closes a mailbox


@pytest.fixture
def imap_server() -> Iterator[ImapServer]:
    with ImapServer() as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that ``retry`` would have waited."""
    waits: list[float] = []

    def note(seconds: float) -> None:
        waits.append(seconds)
        gevent.sleep(0)

    monkeypatch.setattr(sys.modules[retry.__module__], "_sleep", note)
    return waits


@pytest.mark.parametrize("refusals", [0, 2, 5, 100])
def test_geventconnpool_retry_with_a_logger_and_max_failures_and_interval(
    imap_server, at_end, caplog, waits, refusals
):
    pool = ImapPool(imap_server, 20, exc_classes=(socket.error, imaplib.IMAP4.error))
    at_end.enter_context(pool)
    pool.fill()
    caplog.set_level(logging.INFO)
    imap_server.refusals = refusals

    # Lines 55 to 63.
    logging.basicConfig()
    log = logging.getLogger()

    @retry(exc_classes=(socket.error, imaplib.IMAP4.error), logger=log, max_failures=5, interval=2)
    def senddata(data):
        with pool.get() as c:
            typ, data = c.select("INBOX")

    if refusals <= 5:
        senddata("data")
    else:
        with pytest.raises(imaplib.IMAP4.error, match="try again"):
            senddata("data")
    attempts = min(refusals + 1, 6)
    ports = imap_server.ports_of("SELECT INBOX")
    assert len(ports) == len(set(ports)) == attempts
    assert waits == [2] * (attempts - 1)
    told = [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "root"]
    retrying = (
        "Connection broken in 'senddata' (error: 'SELECT command error: BAD [b'try again']');"
        " retrying with new connection."
    )
    assert told[: attempts - 1] == [(logging.INFO, retrying)] * (attempts - 1)
    gave_up = [(logging.ERROR, "Max retries reached for 'senddata'. Aborting.")]
    assert told[attempts - 1 :] == (gave_up if refusals > 5 else [])
    pool.fill()  # imaplib leaves its socket open if it is killed while connecting


def test_geventconnpool_a_set_of_options_for_retry_by_partial(waits):
    # Lines 64 to 67; the options are those of lines 59 and 60.
    stubborn = functools.partial(retry, exc_classes=(socket.error,), max_failures=5, interval=2)
    calls = []

    @stubborn
    def senddata(data):
        calls.append(data)
        raise socket.error("something awful happened")

    with pytest.raises(socket.error):
        senddata("data")
    assert calls == ["data"] * 6
    assert waits == [2] * 5


MY_LOGIN_NAME, MY_PASS = "jsmith", "havebadpass"


@pytest.fixture
def starttls_pool(certificates: Certificates) -> type[ConnectionPool]:
    # Lines 72 to 90.  ssl.wrap_socket(s), which verified nothing and is gone from Python 3.12,
    # is here the method of a context.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority)

    class MyPool(ConnectionPool):
        def _new_connection(self):
            s = socket.create_connection(("test.example.org", 2485))
            s.send(b"STARTTLS\n")
            res = s.recv(3)
            if res == b"OK\n":
                s = context.wrap_socket(s, server_hostname="localhost")
            elif res == b"NO\n":
                pass
            else:
                raise socket.error("invalid response to STARTTLS")
            s.send(b"LOGIN: %s\n" % MY_LOGIN_NAME.encode())
            s.send(b"PASS: %s\n" % MY_PASS.encode())
            res = s.recv(2)
            if res != b"OK":
                raise socket.error("authentication failed")
            return s

    return MyPool


@pytest.mark.parametrize(("answer", "kind"), [(b"OK\n", ssl.SSLSocket), (b"NO\n", socket.socket)])
def test_geventconnpool_starttls_and_login_are_part_of_opening(
    example_org, at_end, starttls_pool, answer, kind
):
    example_org.answers[b"STARTTLS"] = answer
    pool = at_end.enter_context(starttls_pool(3))

    pool.fill()
    assert [line for _, line in sorted(example_org.asked, key=lambda asked: asked[0])] == 3 * [
        b"STARTTLS",
        b"LOGIN: jsmith",
        b"PASS: havebadpass",
    ]
    for _ in range(6):
        with pool.get() as c:
            # (The pool's guard makes its class a subclass of what it was.)
            assert isinstance(c, kind)
            assert isinstance(c, ssl.SSLSocket) is (kind is ssl.SSLSocket)
            c.send(b"PING\n")
            assert c.recv(5) == b"PONG\n"
    assert example_org.opened == 3


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the example leaves them
@pytest.mark.parametrize(
    ("word", "message"),
    [(b"STARTTLS", "invalid response to STARTTLS"), (b"PASS", "authentication failed")],
)
def test_geventconnpool_a_socket_error_while_opening_is_retried_automatically(
    example_org, at_end, starttls_pool, word, message
):
    well, example_org.answers[word] = example_org.answers.get(word, b"OK"), b"WHAT"

    # Lines 91 to 94.
    pool = at_end.enter_context(starttls_pool(3))
    example_org.wait_opened(2)
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.05)
    assert type(caught.value.__cause__) is OSError
    assert str(caught.value.__cause__) == message

    example_org.answers[word] = well
    pool.fill(timeout=PATIENCE)
    example_org.wait_open(3)
    with pool.get() as c:
        c.send(b"PING\n")
        assert c.recv(5) == b"PONG\n"


MY_AWS_KEY_ID, MY_AWS_SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG"


class Boto:
    """Stands in for boto, which runs on Python 2 only: a table is a hash in Redis."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.connected = 0

    def connect_dynamodb(self, key_id: str, secret_key: str) -> Any:
        assert (key_id, secret_key) == (MY_AWS_KEY_ID, MY_AWS_SECRET_KEY)
        client = redis.Redis(
            *self.address, single_connection_client=True, retry=Retry(NoBackoff(), 0)
        )
        client.ping()
        self.connected += 1
        return SimpleNamespace(get_table=lambda name: Table(name, client))


class Table:
    def __init__(self, name: str, client: redis.Redis) -> None:
        self.name, self.client = f"geventpool-test-{os.getpid()}-{name}", client

    def put_item(self, key: str, value: str) -> None:
        self.client.hset(self.name, key, value)

    def get_item(self, key: str) -> str:
        return self.client.hget(self.name, key).decode()

    def delete(self) -> None:
        self.client.delete(self.name)

    def close(self) -> None:
        self.client.close()


def users_pool(boto: Boto) -> type[ConnectionPool]:
    # Lines 96 to 105; the exception that it imports does not exist, and is not used.
    class UsersPool(ConnectionPool):
        def _new_connection(self):
            try:
                c = boto.connect_dynamodb(MY_AWS_KEY_ID, MY_AWS_SECRET_KEY)
                return c.get_table("users")
            except:
                raise socket.error("error connecting to AWS")  # noqa: B904

    return UsersPool


def test_geventconnpool_what_is_pooled_need_not_be_a_socket(at_end):
    boto = Boto(require_server("redis"))
    pool = at_end.enter_context(users_pool(boto)(3))

    with pool.get() as users:
        users.put_item("jsmith", "John Smith")
    try:
        with pool.get() as one, pool.get() as two, pool.get() as three:
            tables = {one, two, three}
            assert [table.get_item("jsmith") for table in tables] == ["John Smith"] * 3
    finally:
        users.delete()
    assert all(type(table) is Table for table in tables)
    assert len(tables) == boto.connected == 3


def test_geventconnpool_a_bare_except_while_opening_does_no_harm(at_end):
    with closed_port() as address:
        backoff = Backoff(first=60, longest=60)  # redis leaves its socket open if it is killed
        pool = at_end.enter_context(users_pool(Boto(address))(3, backoff=backoff))
        until(lambda: pool.stats().dial_failed, "a dial to fail")
        with pytest.raises(PoolTimeout) as caught:
            pool.acquire(timeout=0.01)
    assert str(caught.value.__cause__) == "error connecting to AWS"


def test_geventconnpool_a_bare_except_swallows_neither_connect_timeout_nor_close():
    dialing = gevent.event.Event()

    class Hanging(Boto):
        def connect_dynamodb(self, key_id: str, secret_key: str) -> Any:
            dialing.set()
            gevent.event.Event().wait()

    pool = users_pool(Hanging(("127.0.0.1", 0)))(3, connect_timeout=0.02)
    until(lambda: pool.stats().dial_failed, "a dial to fail")
    with pytest.raises(PoolTimeout) as caught:
        pool.acquire(timeout=0.01)
    assert str(caught.value.__cause__) == "error connecting to AWS"
    dialing.clear()
    assert dialing.wait(PATIENCE)
    pool.close(timeout=PATIENCE)
    assert pool.stats().connecting == 0


def test_geventconnpool_tcp_keepalive(example_org, at_end):
    # Lines 123 to 129.
    class MyPool(ConnectionPool):
        def _new_connection(self):
            s = socket.create_connection(("test.example.org", 2485))
            s._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return s

    pool = at_end.enter_context(MyPool(20))
    with pool.get() as c:
        assert c.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_geventconnpool_application_level_keepalive(example_org, at_end):
    clock = at_end.enter_context(FakeClock())

    # Lines 135 to 144.
    class MyPool(ConnectionPool):
        def _new_connection(self):
            return socket.create_connection(("test.example.org", 2485))

        def _keepalive(self, c):
            c.send(b"PING\n")
            if c.recv(5) != b"PONG\n":
                raise socket.error

    pool = MyPool(20, keepalive=30)

    # Lines 145 to 149: every 30 seconds, per each connection.
    began = time.monotonic()
    at_end.enter_context(pool)
    pool.fill()
    for rounds in 1, 2:
        clock.advance(29 - (time.monotonic() - began))
        gevent.idle()
        assert len(example_org.asked) == 20 * (rounds - 1)
        clock.advance(1 + (time.monotonic() - began))
        began = time.monotonic()
        until(lambda: len(example_org.asked) >= 20 * rounds - 10, "half of the pings")  # noqa: B023
        clock.advance(0)
        until(lambda: example_org.count(b"PING") == 20 * rounds, "a ping each")  # noqa: B023
        until(lambda: pool.stats().idle == 20, "rest")
    assert len({port for port, _ in example_org.asked}) == example_org.opened == 20

    example_org.answers[b"PING"] = b"PANG\n"
    clock.advance(30)
    until(lambda: pool.stats().closed[Reason.KEEPALIVE] >= 10, "the broken ones to be discarded")
    example_org.wait_opened(30)


# the README and the API reference of gsocketpool


@pytest.fixture
def port() -> Iterator[int]:
    """Of an echo server; in the document it is 2000."""
    with EchoServer() as server:
        yield server.address[1]


def test_gsocketpool_basic_usage(port, at_end, capsys):
    # Lines 10 to 18, and 158 to 166 again; the port is another.
    from geventpool.compat.gsocketpool import Pool, TcpConnection

    options = dict(host="localhost", port=port)  # noqa: C408
    pool = Pool(TcpConnection, options)

    with pool.connection() as conn:
        conn.send(b"hello")
        print(conn.recv().decode())

    # Line 19.
    at_end.enter_context(pool)
    assert capsys.readouterr().out == "hello\n"
    assert pool.size == 1


# Lines 34 to 79.  What it is derived from, and the modules it uses, the document does not import.
class TcpConnection(gsocketpool.Connection):
    def __init__(self, host, port, lifetime=600, timeout=None):
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._host = host
        self._port = port
        self._lifetime = lifetime
        self._timeout = timeout
        self._connected = False
        self._created = None

    @property
    def socket(self):
        return self._sock

    def open(self):
        self._sock.connect((self._host, self._port))
        if self._timeout:
            self._sock.settimeout(self._timeout)

        self._connected = True
        self._created = time.time()

    def close(self):
        if self._connected:
            self._sock.close()
            self._connected = False

    def is_connected(self):
        return self._connected

    def is_expired(self):
        if time.time() - self._created > self._lifetime:
            return True
        else:
            return False

    def send(self, data):
        assert self._connected

        self._sock.send(data)

    def recv(self, size=1024):
        assert self._connected

        return self._sock.recv(size)


def test_gsocketpool_a_connection_class_of_ones_own(port, at_end):
    pool = gsocketpool.Pool(TcpConnection, dict(host="localhost", port=port, timeout=5))  # noqa: C408
    at_end.enter_context(pool)

    for word in b"hello", b"again":
        with pool.connection() as conn:
            assert type(conn) is TcpConnection
            conn.send(word)
            assert conn.recv() == word
            assert conn.socket.gettimeout() == 5
    assert pool.size == 1
    assert conn.is_connected()

    pool.drop(conn)
    assert not conn.is_connected()
    assert pool.size == 0


def test_gsocketpool_one_of_ones_own_that_is_expired_is_reaped(port, at_end, monkeypatch):
    pool = gsocketpool.Pool(
        TcpConnection,
        dict(host="localhost", port=port),  # noqa: C408
        initial_connections=3,
        reap_interval=0.02,
    )
    at_end.enter_context(pool)
    assert pool.size == 3

    with pool.connection() as held:
        later = time.time() + 601
        monkeypatch.setattr(time, "time", lambda: later)
        until(lambda: pool.size == 1, "the idle ones to be reaped")
        assert held.is_connected()


@pytest.mark.parametrize(
    ("call", "documented"),
    [
        # Lines 135, 149, 203, 223, 239, 251, 267 and those of the methods of Connection.
        (gsocketpool.TcpConnection, "host, port, lifetime=600, timeout=None"),
        (
            gsocketpool.Pool,
            "factory, options={}, initial_connections=0, max_connections=200,"
            " reap_expired_connections=True, reap_interval=180",
        ),
        (gsocketpool.Pool.acquire, "retry=10, retried=0"),
        (gsocketpool.Pool.drop, "conn"),
        (gsocketpool.Pool.drop_expired, ""),
        (gsocketpool.Pool.release, "conn"),
        (gsocketpool.Connection.close, ""),
        (gsocketpool.Connection.get, ""),
        (gsocketpool.Connection.is_connected, ""),
        (gsocketpool.Connection.is_expired, ""),
        (gsocketpool.Connection.open, ""),
        (gsocketpool.Connection.reconnect, ""),
    ],
)
def test_gsocketpool_signatures(call, documented):
    assert in_documented_order(call) == documented


def test_gsocketpool_acquire_release_and_drop(port, at_end):
    options = dict(host="localhost", port=port)  # noqa: C408
    pool = at_end.enter_context(gsocketpool.Pool(TcpConnection, options, max_connections=1))

    conn = pool.acquire()
    with pytest.raises(gsocketpool.exceptions.PoolExhaustedError):
        pool.acquire(retry=0)
    pool.release(conn)
    with pytest.raises(gsocketpool.exceptions.ConnectionNotFoundError):
        pool.release(conn)
    pool.drop(conn)
    with pytest.raises(gsocketpool.exceptions.ConnectionNotFoundError):
        pool.drop(conn)


# the developer interface of generic-connection-pool, and its README
#
# The document has no example: it lists names, signatures and sentences.  The two examples are those
# of the page that it belongs to.  What is async there is not so here.


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        (
            "BaseConnectionPool",  # line 2
            "idle_timeout=60.0, max_lifetime=3600.0, min_idle=1, max_size=10, total_max_size=100",
        ),
        ("ConnectionPoolClosedError", ""),  # line 14
        ("threading.BaseConnectionManager", ""),
        ("threading.BaseConnectionManager.create", "endpoint, timeout=None"),
        ("threading.BaseConnectionManager.dispose", "endpoint, conn, timeout=None"),
        ("threading.BaseConnectionManager.on_acquire", "endpoint, conn"),
        (
            "threading.ConnectionPool",  # line 47
            "connection_manager, acquire_timeout=None, background_collector=False,"
            " dispose_batch_size=0, dispose_timeout=None, min_idle=1, max_size=10",
        ),
        ("threading.ConnectionPool.connection", "endpoint, timeout=None"),
        ("threading.ConnectionPool.acquire", "endpoint, timeout=None"),
        ("asyncio.BaseConnectionManager.create", "endpoint"),  # line 82
        ("asyncio.BaseConnectionManager.dispose", "endpoint, conn"),
        ("asyncio.BaseConnectionManager.check_aliveness", "endpoint, conn"),
        ("asyncio.BaseConnectionManager.on_acquire", "endpoint, conn"),
        (
            "asyncio.ConnectionPool",  # line 110
            "connection_manager, acquire_timeout=None, background_collector=False,"
            " dispose_batch_size=0, dispose_timeout=None, min_idle=1, max_size=10",
        ),
        ("asyncio.ConnectionPool.connection", "endpoint, timeout=None"),
        ("asyncio.ConnectionPool.acquire", "endpoint, timeout=None"),
        ("contrib.socket.SocketAlivenessCheckingMixin", ""),  # line 145
        ("contrib.socket.TcpSocketConnectionManager", ""),
        ("contrib.socket.TcpSocketConnectionManager.create", "endpoint, timeout=None"),
        ("contrib.socket.TcpSocketConnectionManager.dispose", "endpoint, conn, timeout=None"),
        ("contrib.socket.SslSocketAlivenessCheckingMixin", ""),
        ("contrib.socket.SslSocketConnectionManager", "ssl"),
        ("contrib.socket_async.SocketAlivenessCheckingMixin", ""),
        ("contrib.socket_async.TcpSocketConnectionManager", ""),
        ("contrib.socket_async.TcpSocketConnectionManager.create", "endpoint"),
        ("contrib.socket_async.TcpSocketConnectionManager.dispose", "endpoint, conn"),
        ("contrib.socket_async.StreamAlivenessCheckingMixin", ""),
        ("contrib.socket_async.TcpStreamConnectionManager", "ssl=None"),
        ("contrib.unix.CheckSocketAlivenessMixin", ""),
        ("contrib.unix.UnixSocketConnectionManager", ""),
        ("contrib.unix_async.UnixSocketConnectionManager", ""),
        ("contrib.unix_async.UnixSocketStreamConnectionManager", ""),
    ],
)
def test_generic_connection_pool_names_and_signatures(name, documented):
    found = operator.attrgetter(name)(generic_connection_pool)

    assert callable(found)
    if documented:
        assert f"{in_documented_order(found)},".startswith(f"{documented},")


@pytest.fixture
def endpoint() -> Iterator[tuple[str, int]]:
    with EchoServer() as server:
        yield server.address


class EchoManager(generic_connection_pool.threading.BaseConnectionManager):
    """Lines 18 to 46: what a manager must have, ``create`` and ``dispose``, and may have."""

    def __init__(self):
        self.acquired = []
        self.disposed = []

    def create(self, endpoint, timeout=None):
        return socket.create_connection(endpoint, timeout)

    def dispose(self, endpoint, conn, timeout=None):
        self.disposed.append(conn)
        conn.close()

    def on_acquire(self, endpoint, conn):
        self.acquired.append((endpoint, conn))


class AsyncEchoManager(generic_connection_pool.asyncio.BaseConnectionManager):
    """Lines 80 to 109, where no method has a timeout, and a check is documented, too."""

    def __init__(self):
        self.acquired = []
        self.disposed = []
        self.checked = []

    def create(self, endpoint):
        return socket.create_connection(endpoint)

    def dispose(self, endpoint, conn):
        self.disposed.append(conn)
        conn.close()

    def check_aliveness(self, endpoint, conn):
        self.checked.append(conn)
        return len(self.checked) != 2

    def on_acquire(self, endpoint, conn):
        self.acquired.append((endpoint, conn))


def test_generic_connection_pool_create_and_dispose_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        generic_connection_pool.threading.BaseConnectionManager()


@pytest.mark.parametrize("manager_class", [EchoManager, AsyncEchoManager])
def test_generic_connection_pool_a_manager_and_its_pool(endpoint, at_end, manager_class):
    manager = manager_class()
    pool = at_end.enter_context(generic_connection_pool.ConnectionPool(manager))

    # Lines 60 to 78.
    with pool.connection(endpoint) as conn:
        conn.sendall(b"hello")
        assert conn.recv(5) == b"hello"
    again = pool.acquire(endpoint, timeout=5)
    assert again is conn
    pool.release(again, endpoint)
    assert manager.acquired == [(endpoint, conn)] * 2
    if manager_class is AsyncEchoManager:
        assert manager.checked == [conn]
        with pool.connection(endpoint) as other:  # the check says that conn is dead
            assert other is not conn
    pool.close()
    assert {conn, again} <= set(manager.disposed)


def test_generic_connection_pool_acquire_raises_timeout_error(endpoint, at_end):
    pool = generic_connection_pool.ConnectionPool(EchoManager(), acquire_timeout=0.03, max_size=1)
    at_end.enter_context(pool)

    with pool.connection(endpoint, timeout=PATIENCE):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            pool.acquire(endpoint)
        assert time.monotonic() - began >= 0.03
        with pytest.raises(TimeoutError), pool.connection(endpoint, timeout=0.01):
            pass


def test_generic_connection_pool_max_size_and_total_max_size(at_end):
    servers = [at_end.enter_context(EchoServer()) for _ in range(2)]
    pool = generic_connection_pool.ConnectionPool(
        EchoManager(), acquire_timeout=0.01, max_size=2, total_max_size=3
    )
    at_end.enter_context(pool)

    held = [pool.acquire(servers[0].address, timeout=PATIENCE) for _ in range(2)]
    with pytest.raises(TimeoutError):
        pool.acquire(servers[0].address)
    held.append(pool.acquire(servers[1].address, timeout=PATIENCE))
    with pytest.raises(TimeoutError):
        pool.acquire(servers[1].address)
    assert pool.get_size() == 3
    for conn in held:
        pool.release(conn)


def test_generic_connection_pool_idle_timeout_min_idle_and_max_lifetime(endpoint, at_end):
    clock = at_end.enter_context(FakeClock())
    pool = generic_connection_pool.threading.ConnectionPool(
        EchoManager(), background_collector=True, min_idle=2, max_size=5
    )
    at_end.enter_context(pool)
    began = time.monotonic()
    for conn in [pool.acquire(endpoint) for _ in range(5)]:
        pool.release(conn, endpoint)

    clock.advance(59 - (time.monotonic() - began))
    gevent.idle()
    assert pool.get_size() == 5
    clock.advance(1 + (time.monotonic() - began))
    until(lambda: pool.get_size() == 2, "the extra connections to be disposed of")
    assert len(pool._connection_manager.disposed) == 3
    clock.advance(3540)
    until(lambda: len(pool._connection_manager.disposed) == 5, "the others to be disposed of")


def test_generic_connection_pool_connection_pool_already_closed(endpoint):
    pool = generic_connection_pool.ConnectionPool(EchoManager())
    pool.close()

    with pytest.raises(generic_connection_pool.ConnectionPoolClosedError):
        pool.acquire(endpoint)


CONTRIB = {
    "socket.TcpSocketConnectionManager": lambda face, context: face(),
    "socket.SslSocketConnectionManager": lambda face, context: face(context),
    "socket_async.TcpSocketConnectionManager": lambda face, context: face(),
    "socket_async.TcpStreamConnectionManager": lambda face, context: face(),
    "socket_async.TcpStreamConnectionManager with ssl": lambda face, context: face(ssl=context),
    "unix.UnixSocketConnectionManager": lambda face, context: face(),
    "unix_async.UnixSocketConnectionManager": lambda face, context: face(),
    "unix_async.UnixSocketStreamConnectionManager": lambda face, context: face(),
}


@pytest.mark.parametrize("name", CONTRIB)
def test_generic_connection_pool_contrib(at_end, tmp_path, certificates, name):
    # Lines 143 to 217.
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificates.certificate, certificates.key)
    context = stdlib_ssl.create_default_context(cafile=certificates.authority)
    face = operator.attrgetter(name.split()[0])(generic_connection_pool.contrib)
    is_tls, is_unix = "ssl" in name.lower(), "Unix" in name
    server = EchoServer(
        ssl_context=serving if is_tls else None, path=tmp_path / "socket" if is_unix else None
    )
    at_end.enter_context(server)
    endpoint: Any
    if is_unix:
        endpoint = Path(server.address)
    elif is_tls or "Stream" in name:
        endpoint = ("localhost", server.address[1])
    else:
        endpoint = (ipaddress.IPv4Address(server.address[0]), server.address[1])
    pool = generic_connection_pool.ConnectionPool(CONTRIB[name](face, context), max_size=1)
    at_end.enter_context(pool)

    def ask(question: bytes) -> Any:
        with pool.connection(endpoint, timeout=PATIENCE) as conn:
            if "Stream" in name:
                reader, writer = conn
                writer.write(question)
                assert reader.readline() == question
            else:
                conn.sendall(question)
                assert conn.recv(100) == question
            return conn

    assert ask(b"hello\n") is ask(b"again\n")
    assert server.opened == 1
    server.fin_all()  # the aliveness check sees that
    ask(b"alive?\n")
    assert server.opened == 2
    pool.close()
    server.wait_open(0)


class WebServer(EchoServer):
    """Answers each request with its path; *paths* are those asked for."""

    def __init__(self, context: Any) -> None:
        super().__init__(ssl_context=context)
        self.paths: list[str] = []

    def serve(self, sock: Any) -> None:
        with sock.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"GET "):
                    path = line.split()[1]
                    self.paths.append(path.decode())
                if line.startswith(b"Host: "):
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
                    sock.sendall(answer % (len(path), path))


def test_generic_connection_pool_readme_https_pool(at_end, certificates, capsys):
    # The host is another, as is the authority that its certificate is of.
    from geventpool.compat.generic_connection_pool import (
        ConnectionPool,
        SslSocketConnectionManager,
    )

    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificates.certificate, certificates.key)
    server = at_end.enter_context(WebServer(serving))
    here = f"https://localhost:{server.address[1]}"

    Hostname = str
    Port = int
    Endpoint = tuple[Hostname, Port]
    Connection = socket.socket

    http_pool = ConnectionPool[Endpoint, Connection](
        SslSocketConnectionManager(
            stdlib_ssl.create_default_context(cafile=certificates.authority)
        ),
        idle_timeout=30.0,
        max_lifetime=600.0,
        min_idle=3,
        max_size=20,
        total_max_size=100,
        background_collector=True,
    )

    def fetch(url: str, timeout: float = 5.0) -> None:
        url = urllib.parse.urlsplit(url)
        port = url.port or 443 if url.scheme == "https" else 80

        with http_pool.connection(endpoint=(url.hostname, port), timeout=timeout) as sock:
            request = ("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n\r\n").format(
                host=url.hostname, path=url.path
            )

            sock.write(request.encode())

            response = HTTPResponse(sock)
            response.begin()
            status, body = response.getcode(), response.read(response.length)

            print(status)
            print(body)

    try:
        fetch(f"{here}/wiki/HTTP")  # http connection opened
        fetch(f"{here}/wiki/Python_(programming_language)")  # http connection reused
    finally:
        http_pool.close()

    printed = capsys.readouterr().out.splitlines()
    assert printed == ["200", "b'/wiki/HTTP'", "200", "b'/wiki/Python_(programming_language)'"]
    assert server.opened == 1


class DbConnectionManager(generic_connection_pool.threading.BaseConnectionManager):
    """generic_connection_pool.contrib.psycopg2.DbConnectionManager, for psycopg 3."""

    def __init__(self, dsn_params):
        self._dsn_params = dsn_params
        self.created = []

    def create(self, endpoint, timeout=None):
        self.created.append(endpoint)
        return psycopg.connect(**self._dsn_params[endpoint])

    def dispose(self, endpoint, conn, timeout=None):
        conn.close()

    def check_aliveness(self, endpoint, conn, timeout=None):
        try:
            with conn.cursor() as cur:
                cur.execute("SELECT 1;")
                cur.fetchone()
        except (psycopg.Error, OSError):
            return False

        return True

    def on_acquire(self, endpoint, conn):
        self._rollback_uncommitted(conn)

    def on_release(self, endpoint, conn):
        self._rollback_uncommitted(conn)

    def _rollback_uncommitted(self, conn):
        if conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            conn.rollback()


def test_generic_connection_pool_readme_postgres_pool(capsys):
    # The master and its replicas are one server.
    from geventpool.compat.generic_connection_pool import ConnectionPool

    host, port = require_server("postgres")
    Endpoint = str
    Connection = psycopg.Connection

    dsn_params = dict(dbname="test", user="postgres", port=port)  # noqa: C408

    manager = DbConnectionManager(
        dsn_params={
            "master": dict(dsn_params, host=host),
            "replica-1": dict(dsn_params, host=host),
            "replica-2": dict(dsn_params, host=host),
        },
    )
    pg_pool = ConnectionPool[Endpoint, Connection](
        manager,
        acquire_timeout=2.0,
        idle_timeout=60.0,
        max_lifetime=600.0,
        min_idle=3,
        max_size=10,
        total_max_size=15,
        background_collector=True,
    )

    try:
        # connection opened
        with pg_pool.connection(endpoint="master") as conn:
            cur = conn.cursor()
            cur.execute("SELECT * FROM pg_stats;")
            print(cur.fetchone())
        master = conn

        # connection opened
        with pg_pool.connection(endpoint="replica-1") as conn:
            cur = conn.cursor()
            cur.execute("SELECT * FROM pg_stats;")
            print(cur.fetchone())

        # connection reused
        with pg_pool.connection(endpoint="master") as conn:
            cur = conn.cursor()
            cur.execute("SELECT * FROM pg_stats;")
            print(cur.fetchone())
        assert conn is master

    finally:
        pg_pool.close()

    assert manager.created == ["master", "replica-1"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert all("pg_catalog" in line for line in printed)
    assert master.closed


# pycassa.pool


# Of Cassandra's own interface, what the document speaks of.
CASSANDRA = """
exception TimedOutException {}
exception UnavailableException {}
exception AuthenticationException { 1: required string why }

enum ConsistencyLevel { ONE = 1 }
struct ColumnParent { 3: required string column_family }
struct Column { 1: required binary name, 2: optional binary value, 3: optional i64 timestamp }
struct ColumnDef { 1: required binary name, 2: required string validation_class }
struct CfDef {
    1: required string keyspace, 2: required string name,
    13: optional list<ColumnDef> column_metadata
}
struct KsDef { 1: required string name, 5: required list<CfDef> cf_defs }
struct AuthenticationRequest { 1: required map<string, string> credentials }

service Cassandra {
    void login(1: required AuthenticationRequest auth_request)
        throws (1: AuthenticationException authnx),
    void set_keyspace(1: required string keyspace),
    void insert(1: required binary key, 2: required ColumnParent column_parent,
                3: required Column column, 4: required ConsistencyLevel consistency_level)
        throws (2: UnavailableException ue, 3: TimedOutException te),
    KsDef describe_keyspace(1: required string keyspace),
}
"""


@pytest.fixture(scope="module")
def cassandra(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The interface, as thriftpy2 makes it of the text above."""
    thriftpy2 = pytest.importorskip("thriftpy2")
    path = tmp_path_factory.mktemp("thrift") / "cassandra.thrift"
    path.write_text(CASSANDRA)
    return thriftpy2.load(str(path), module_name="cassandra_thrift")


class Cassandra(EchoServer):
    """A node: *stored* is ``{(keyspace, column family, key, column): (value, timestamp)}``.

    The first *refusals* inserts time out.  *logins* are the credentials it was shown.
    """

    def __init__(self, cassandra: Any) -> None:
        super().__init__()
        self.cassandra = cassandra
        self.refusals = 0
        self.stored: dict[tuple[str, str, bytes, bytes], tuple[bytes, int]] = {}
        self.logins: list[dict[str, str]] = []

    def serve(self, sock: Any) -> None:
        from thriftpy2.protocol import TBinaryProtocol
        from thriftpy2.thrift import TProcessor
        from thriftpy2.transport import TFramedTransport, TSocket, TTransportException

        protocol = TBinaryProtocol(TFramedTransport(TSocket(sock=sock)))
        processor = TProcessor(self.cassandra.Cassandra, Session(self))
        try:
            while True:
                processor.process(protocol, protocol)
        except TTransportException:
            pass  # the client has gone


class Session:
    """What a node knows of a client."""

    def __init__(self, node: Cassandra) -> None:
        self.node = node
        self.keyspace = ""

    def login(self, auth_request: Any) -> None:
        self.node.logins.append(auth_request.credentials)

    def set_keyspace(self, keyspace: str) -> None:
        self.keyspace = keyspace

    def insert(self, key: bytes, parent: Any, column: Any, consistency_level: int) -> None:
        if self.node.refusals > 0:
            self.node.refusals -= 1
            raise self.node.cassandra.TimedOutException
        where = (self.keyspace, parent.column_family, _bytes(key), _bytes(column.name))
        self.node.stored[where] = _bytes(column.value), column.timestamp

    def describe_keyspace(self, keyspace: str) -> Any:
        cassandra = self.node.cassandra
        column = cassandra.ColumnDef(name="col", validation_class="UTF8Type")
        family = cassandra.CfDef(keyspace=keyspace, name="Standard1", column_metadata=[column])
        return cassandra.KsDef(name=keyspace, cf_defs=[family])


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode()  # as thriftpy2 reads a binary


class ColumnFamily:
    """pycassa.ColumnFamily, as far as the document uses it."""

    def __init__(self, cassandra: Any, pool: Any, column_family: str) -> None:
        self.cassandra, self.pool, self.column_family = cassandra, pool, column_family

    def insert(self, key: str, columns: dict[str, str]) -> int:
        timestamp = int(time.time() * 1e6)
        parent = self.cassandra.ColumnParent(column_family=self.column_family)
        one = self.cassandra.ConsistencyLevel.ONE
        for name, value in columns.items():
            column = self.cassandra.Column(name=name, value=value, timestamp=timestamp)
            self.pool.execute("insert", key, parent, column, one)
        return timestamp


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, cassandra: Any) -> Iterator[dict[str, Cassandra]]:
    """The servers ``10.0.0.4:9160``, ``10.0.0.5:9160`` and ``localhost:9160``.

    What a program must add, it adds before it uses pycassa: the client, and its errors.  The
    document's ``ColumnFamily`` is in pycassa, and not in pycassa.pool.
    """
    from thriftpy2.protocol import TBinaryProtocol
    from thriftpy2.thrift import TClient
    from thriftpy2.transport import TFramedTransport, TSocket, TTransportException

    def connect(host: str, port: int, timeout: float | None) -> Any:
        address = nodes[f"{host}:{port}"].address
        sock = socket.create_connection(address, timeout=timeout and timeout + PATIENCE)
        return TClient(cassandra.Cassandra, TBinaryProtocol(TFramedTransport(TSocket(sock=sock))))

    def prepare(self: Any, client: Any) -> None:
        if self.credentials is not None:
            client.login(cassandra.AuthenticationRequest(credentials=self.credentials))
        client.set_keyspace(self.keyspace)

    retry_on = OSError, EOFError, TTransportException
    retry_on += cassandra.TimedOutException, cassandra.UnavailableException
    monkeypatch.setattr(pycassa.ConnectionPool, "client_factory", staticmethod(connect))
    monkeypatch.setattr(pycassa.ConnectionPool, "retry_on", retry_on)
    monkeypatch.setattr(pycassa.ConnectionPool, "_prepare", prepare)
    family = functools.partial(ColumnFamily, cassandra)
    monkeypatch.setattr(pycassa, "ColumnFamily", family, raising=False)
    names = "10.0.0.4:9160", "10.0.0.5:9160", "localhost:9160"
    with contextlib.ExitStack() as stack:
        nodes = {name: stack.enter_context(Cassandra(cassandra)) for name in names}
        yield nodes


def test_pycassa_example_usage(nodes, at_end):
    # Lines 27 to 29.
    pool = pycassa.ConnectionPool(
        keyspace="Keyspace1", server_list=["10.0.0.4:9160", "10.0.0.5:9160"], prefill=False
    )
    assert pool.stats().opened == 0
    cf = pycassa.ColumnFamily(pool, "Standard1")
    printed = cf.insert("key", {"col": "val"})

    # Line 30: the time, in microseconds.
    at_end.enter_context(pool)
    assert abs(printed - time.time() * 1e6) < 60e6
    stored = {**nodes["10.0.0.4:9160"].stored, **nodes["10.0.0.5:9160"].stored}
    assert stored == {("Keyspace1", "Standard1", b"key", b"col"): (b"val", printed)}


def test_pycassa_an_operation_that_timed_out_is_tried_on_a_different_node(nodes, at_end):
    # Line 45, of a pool whose idle connections are to one node, but for one at most.
    pool = pycassa.ConnectionPool("Keyspace1", ["10.0.0.4:9160"], pool_size=2, max_retries=1)
    at_end.enter_context(pool)
    pool.set_server_list(["10.0.0.4:9160", "10.0.0.5:9160"])
    four, five = nodes["10.0.0.4:9160"], nodes["10.0.0.5:9160"]
    assert four.opened == 2
    four.refusals = 100

    pycassa.ColumnFamily(pool, "Standard1").insert("key", {"col": "val"})
    assert four.refusals == 99
    assert five.stored
    assert not four.stored


@pytest.mark.slow
def test_pycassa_maximum_retry_exception(nodes, at_end):
    pool = at_end.enter_context(pycassa.ConnectionPool("Keyspace1"))
    cf = pycassa.ColumnFamily(pool, "Standard1")

    # Line 45: up to max_retries times, 5 by default.
    nodes["localhost:9160"].refusals = 6
    with pytest.raises(pycassa.MaximumRetryException):
        cf.insert("key", {"col": "val"})
    assert nodes["localhost:9160"].refusals == 0

    nodes["localhost:9160"].refusals = 5
    cf.insert("key", {"col": "val"})
    assert nodes["localhost:9160"].stored


def test_pycassa_listeners(nodes, at_end):
    told: list[Any] = []

    # Lines 145 to 154, with something to do, and arguments for the dots.
    from geventpool.compat.pycassa import ConnectionPool, PoolListener

    class MyListener(PoolListener):
        def connection_created(self, dic):
            """perform connect operations"""
            told.append((self, dic["level"], dic["connection"]))

    first = MyListener()

    # create a new pool with a listener
    p = ConnectionPool("Keyspace1", listeners=[first])

    # or add a listener after the fact
    p.add_listener(second := MyListener())

    at_end.enter_context(p)
    assert [who for who, _, _ in told] == [first] * 5
    p.dispose()
    conn = p.get()
    assert told[5:] == [(first, "debug", conn), (second, "debug", conn)]
    p.put(conn)


def test_pycassa_the_parameters_of_a_pool():
    # Line 5; the two factories stand there as functions of pycassa, and servers as a list.
    documented = (
        "keyspace, server_list=('localhost:9160',), credentials=None, timeout=0.5,"
        " use_threadlocal=True, pool_size=5, prefill=True, socket_factory=None,"
        " transport_factory=None, "
    )
    assert in_documented_order(pycassa.ConnectionPool).startswith(documented)
    # Lines 31 to 47.
    defaults = {
        name: inspect.signature(pycassa.ConnectionPool).parameters["max_overflow"].default
        if name == "max_overflow"
        else getattr(pycassa.ConnectionPool, name)
        for name in ("max_overflow", "pool_timeout", "recycle", "max_retries", "logging_name")
    }
    assert list(defaults.values()) == [0, 30, 10000, 5, None]


def test_pycassa_the_methods_of_a_pool(nodes, at_end, cassandra):
    # Lines 7 to 99.
    who = {"username": "jsmith", "password": "havebadpass"}
    pool = pycassa.ConnectionPool(
        "Keyspace1",
        lambda: ["10.0.0.4:9160", "10.0.0.5"],
        credentials=who,
        use_threadlocal=False,
        pool_size=2,
        max_overflow=1,
        pool_timeout=0,
    )
    at_end.enter_context(pool)
    four, five = nodes["10.0.0.4:9160"], nodes["10.0.0.5:9160"]
    assert four.open == five.open == 1
    assert four.logins == five.logins == [who]
    assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 2, 0, 0)

    conns = [pool.get() for _ in range(3)]
    assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 0, 3, 1)
    with pytest.raises(pycassa.NoConnectionAvailable):
        pool.get()
    family = conns[0].get_keyspace_description(use_dict_for_col_metadata=True)["Standard1"]
    assert list(family.column_metadata) == [b"col"]
    assert family.keyspace == "Keyspace1"
    pool.put(conns[0])  # discarded upon checkin, as there are more than pool_size
    until(lambda: not pool.overflow(), "the extra one to be closed")
    pool.put(conns[1])
    with pytest.raises(pycassa.InvalidRequestError):
        pool.put(conns[1])
    conns[2].return_to_pool()
    assert (pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow()) == (2, 2, 0, 0)

    # Lines 61, 65, 71 and 75.
    assert pool.execute("describe_keyspace", "Keyspace2").name == "Keyspace2"
    pool.dispose()
    until(lambda: four.open == five.open == 0, "all to be closed")
    pool.set_server_list(["localhost:9160"])
    pool.fill()
    assert pool.checkedin() == nodes["localhost:9160"].open == 2


def test_pycassa_all_servers_unavailable(nodes):
    for node in nodes.values():
        node.stop()

    # Line 103.
    with pytest.raises(pycassa.AllServersUnavailable):
        pycassa.ConnectionPool("Keyspace1", ["10.0.0.4:9160", "10.0.0.5:9160"])


def test_pycassa_with_use_threadlocal_get_returns_the_same_connection(nodes, at_end):
    pool = at_end.enter_context(pycassa.ConnectionPool("Keyspace1"))

    # Line 17; a thread is a greenlet here.
    mine = pool.get()
    assert pool.get() is mine
    other = gevent.spawn(lambda: [pool.get(), pool.get()])
    one, two = other.get(timeout=PATIENCE)
    assert one is two is not mine
    pool.put(mine)
    one.return_to_pool()
    assert pool.checkedin() == 5


def test_pycassa_each_event_has_its_documented_fields(nodes, at_end):
    # Lines 156 to 234: the fields of each event, beside `pool_id` and `level`, which all have.
    documented = {
        "connection_checked_in": {"connection"},
        "connection_checked_out": {"connection"},
        "connection_created": {"connection"},
        "connection_disposed": {"connection", "message"},
        "connection_failed": {"error", "server", "connection"},
        "connection_recycled": {"old_conn", "new_conn"},
        "pool_at_max": {"pool_max"},
        "pool_disposed": set(),
        "server_list_obtained": {"server_list"},
    }
    told: dict[str, dict[str, Any]] = {}
    pool = pycassa.ConnectionPool(
        "Keyspace1",
        listeners=[{name: functools.partial(told.__setitem__, name) for name in documented}],
        logging_name="example",
        pool_size=1,
        pool_timeout=0,
        recycle=3,
        use_threadlocal=False,
    )
    at_end.enter_context(pool)

    nodes["localhost:9160"].refusals = 1
    pycassa.ColumnFamily(pool, "Standard1").insert("key", {"col": "val"})
    conn = pool.get()
    with pytest.raises(pycassa.NoConnectionAvailable):
        pool.get()
    conn.describe_keyspace("Keyspace1")
    conn.describe_keyspace("Keyspace1")
    pool.put(conn)
    until(lambda: "connection_recycled" in told, "a connection to be recycled")
    assert told["connection_recycled"]["old_conn"] is conn
    assert told["connection_failed"]["server"] == "localhost:9160"
    assert told["server_list_obtained"]["server_list"] == ["localhost:9160"]
    assert told["pool_at_max"]["pool_max"] == 1
    pool.dispose()
    until(lambda: "pool_disposed" in told, "the pool to be disposed of")
    assert told.keys() == documented.keys()
    for name, fields in documented.items():
        assert {"pool_id", "level"} | fields <= told[name].keys(), name
        assert told[name]["pool_id"] == "example"
        assert told[name]["level"] in ("debug", "info", "warn", "error", "critical")
