"""Sockets are opened before a deadline or not at all, and a look at one never waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import ipaddress
import os
import re
import resource
import select
import socket
import ssl
import subprocess
import sys
import time
import warnings
import weakref
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path

import gevent
import gevent.event
import gevent.socket
import gevent.ssl
import greenlet
import pytest
from gevent.monkey import get_original

from geventpool._runtime.hangups import HangupWatcher
from geventpool.addresses import Address, AddressGroup, UnixAddress
from geventpool.errors import ConnectError, MultiConnectFailure, NameNotFound
from geventpool.sockets import SocketFactory, close, fileno, make_probe
from geventpool.sockets import factory as factory_module
from geventpool.sockets.dial import Dial
from support import ROOT
from support.certificates import make_certificates, make_expired, make_revocation_list
from support.descriptors import (
    LINGER_0,
    Servers,
    fill_backlog,
    listening,
    no_descriptor_left,
    open_sockets,
    reset_on_close,
)
from support.servers import EchoServer, closed_port
from support.strikes import STRIKES, strike_everywhere
from support.waiting import until

TLS_VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
KINDS = ["TCP", "Unix", *TLS_VERSIONS]


@pytest.fixture
def listener(keep):
    return keep(listening("127.0.0.1"))


@pytest.fixture
def unix_listener(keep, tmp_path):
    return keep(listening(str(tmp_path / "sock")))


@pytest.fixture
def trusting(certificates):
    """Contexts that trust the private authority, by the module they are made with."""

    def make(module=gevent.ssl):
        return module.create_default_context(cafile=str(certificates.authority))

    return make


@pytest.fixture
def serve_tls(listener, certificates, keep):
    """Start to accept one TLS connection; returns the greenlet that ends with it."""

    def serve(version=None, listener=listener):
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificates.certificate), str(certificates.key))
        if version is not None:
            context.minimum_version = context.maximum_version = version

        def accept():
            raw = listener.accept()[0]
            # What a test sends is there at once, not when the tickets have been acknowledged.
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                return keep(context.wrap_socket(raw, server_side=True))
            except OSError as error:  # the client did not like us
                raw.close()
                return error

        return gevent.spawn(accept)

    return serve


@pytest.fixture
def connect(listener, unix_listener, serve_tls, trusting, keep):
    """Return both ends of a new connection: a factory's, and the server's."""

    def connect(kind):
        if kind == "Unix":
            path = Path(unix_listener.getsockname())
            return keep(SocketFactory(path)()), keep(unix_listener.accept()[0])
        address = listener.getsockname()
        if kind == "TCP":
            return keep(SocketFactory(address)()), keep(listener.accept()[0])
        server = serve_tls(TLS_VERSIONS[kind])
        client = SocketFactory(address, tls=trusting(), server_hostname="localhost")()
        return keep(client), server.get()

    return connect


@pytest.fixture
def connect_foreign(listener, unix_listener, serve_tls, trusting, keep):
    """The same, but with the program's own ``socket`` and ``ssl``, whatever they are."""

    def connect(kind):
        if kind == "Unix":
            client = keep(socket.socket(socket.AF_UNIX))
            client.connect(unix_listener.getsockname())
            return client, keep(unix_listener.accept()[0])
        client = socket.create_connection(listener.getsockname())
        if kind == "TCP":
            return keep(client), keep(listener.accept()[0])
        server = serve_tls(TLS_VERSIONS[kind])
        client = keep(
            trusting(ssl).wrap_socket(
                client, server_hostname="localhost", do_handshake_on_connect=False
            )
        )
        client.setblocking(False)  # the server is in this very thread
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                gevent.socket.wait_read(client.fileno())
        client.setblocking(True)
        return client, server.get()

    return connect


class Resolver:
    """A resolver that answers at once with *answers*, or only once ``answer`` is set."""

    def __init__(self, *answers, hangs=False):
        self.answers = answers
        self.asked = gevent.event.Event()
        self.answer = gevent.event.Event()
        if not hangs:
            self.answer.set()

    def getaddrinfo(self, *_):
        self.asked.set()
        self.answer.wait()
        family = socket.AF_INET
        return [(family, socket.SOCK_STREAM, 0, "", address) for address in self.answers]


@pytest.fixture
def resolve(monkeypatch):
    resolvers = []

    def use(*answers, hangs=False):
        resolver = Resolver(*answers, hangs=hangs)
        resolvers.append(resolver)
        monkeypatch.setattr(gevent.get_hub(), "resolver", resolver)
        return resolver

    yield use
    for resolver in resolvers:
        resolver.answer.set()
    gevent.sleep(0)  # a look-up that its caller gave up ends when it is answered


class Clock:
    """The time of dials, which stands still; *alarms* are those of their Timeouts that run."""

    def __init__(self):
        self.now = 100.0
        self.alarms = []

    def advance(self, seconds):
        """Let time pass: what it makes due goes off, in its order, and has gone when it returns."""
        ends_at = self.now + seconds
        while alarm := min((a for a in self.alarms if a.due <= ends_at), key=_due, default=None):
            self.now = max(self.now, alarm.due)
            gevent.get_hub().loop.run_callback(alarm.owner.throw, alarm)
            until(lambda alarm=alarm: alarm not in self.alarms)
        self.now = ends_at


def _due(alarm):
    return alarm.due


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    class Alarm(gevent.Timeout):
        def start(self):
            self.owner = gevent.getcurrent()
            self.due = clock.now + self.seconds
            clock.alarms.append(self)

        def close(self):
            clock.alarms.remove(self)
            super().close()

    monkeypatch.setattr("geventpool.sockets.dial.Timeout", Alarm)
    monkeypatch.setattr("geventpool.sockets.dial.monotonic", lambda: clock.now)
    return clock


def outcome(call):
    """What *call* returns or raises, whatever it is: nothing of it reaches the hub."""
    try:
        return call()
    except BaseException as error:
        return error


def readable(sock):
    poller = get_original("select", "poll")()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def arrived(sock):
    """Wait until something has come for *sock*: bytes, an end, an error."""
    gevent.socket.wait_read(sock.fileno(), timeout=5)


# Opening.


@pytest.mark.parametrize("form", ["tuple", "text"])
def test_a_factory_returns_an_open_gevent_socket(listener, keep, form):
    host, port = listener.getsockname()
    target = (host, port) if form == "tuple" else f"{host}:{port}"

    client = keep(SocketFactory(target)())

    server = keep(listener.accept()[0])
    server.sendall(b"hello")
    assert isinstance(client, gevent.socket.socket)
    assert client.recv(5) == b"hello"


@pytest.mark.parametrize("form", ["tuple", "text"])
def test_a_factory_opens_ipv6(keep, form):
    listener = keep(listening("::1"))
    port = listener.getsockname()[1]

    client = keep(SocketFactory(("::1", port) if form == "tuple" else f"[::1]:{port}")())

    assert client.getsockname() == keep(listener.accept()[0]).getpeername()


def test_a_socket_comes_with_nodelay_and_without_a_timeout(listener, keep):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(3.0)
    try:
        client = keep(SocketFactory(listener.getsockname())())
    finally:
        socket.setdefaulttimeout(before)

    assert client.gettimeout() is None
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("tls", [False, True])
def test_read_timeout_is_the_timeout_of_the_returned_socket(
    listener, keep, serve_tls, trusting, tls
):
    server = serve_tls() if tls else None
    options = {"tls": trusting(), "server_hostname": "localhost"} if tls else {}

    client = keep(SocketFactory(listener.getsockname(), read_timeout=1.5, **options)())

    assert client.gettimeout() == 1.5
    if server is not None:
        server.get()


def test_addresses_are_tried_one_after_the_other(listener, keep, resolve):
    with closed_port() as refusing:
        resolve(refusing, listener.getsockname())

        client = keep(SocketFactory("two.test:80")())

    assert listener.getsockname() == client.getpeername()


def test_an_address_of_a_family_the_machine_lacks_is_passed_over(listener, keep, resolve):
    resolver = resolve(listener.getsockname())
    known = resolver.getaddrinfo()
    resolver.getaddrinfo = lambda *_: [(9999, socket.SOCK_STREAM, 0, "", ("x", 1)), *known]

    assert keep(SocketFactory("two.test:80")()).getpeername() == listener.getsockname()


def test_a_refused_connection_stays_connection_refused():
    with closed_port() as (host, port):
        before = open_sockets()

        with pytest.raises(ConnectionRefusedError, match=f"refused .{host}:{port}") as caught:
            SocketFactory((host, port))()

        assert caught.value.errno == errno.ECONNREFUSED
        assert before == open_sockets()


def test_an_error_is_gone_as_soon_as_it_is_let_go_of(stuck):
    """No cycle through the frames of the dial, with all that they hold."""
    gone = None
    gc.disable()
    try:
        try:
            stuck.factory(connect_timeout=0.01)()
        except ConnectError as error:
            gone = weakref.ref(error)

        assert gone is not None
        assert gone() is None
    finally:
        gc.enable()
    stuck.assert_nothing_is_left()


def test_what_the_resolver_raises_passes_through(resolve):
    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    resolve().getaddrinfo = getaddrinfo

    with pytest.raises(socket.gaierror):
        SocketFactory("nowhere.test:80")()


def test_a_look_up_that_was_killed_is_an_error(resolve):
    def getaddrinfo(*_):
        raise gevent.GreenletExit

    resolve().getaddrinfo = getaddrinfo

    with pytest.raises(NameNotFound, match=r"look-up of host\.test was killed"):
        SocketFactory("host.test:80")()


def test_what_the_resolver_says_is_said_of_the_address(resolve):
    resolver = resolve()

    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    resolver.getaddrinfo = getaddrinfo

    with pytest.raises(socket.gaierror) as caught:
        SocketFactory(("nowhere.test", 8080))()

    assert caught.value.errno == socket.EAI_NONAME
    assert str(caught.value).endswith("Name or service not known (nowhere.test:8080)")


FIRST_DIAL_WITHOUT_DESCRIPTORS = """
import errno, os, resource, sys, time
import gevent
if sys.argv[1] == "patched":
    from gevent import monkey
    monkey.patch_all()
from geventpool import SocketFactory
factory = SocketFactory((sys.argv[3], 9), connect_timeout=5)
gevent.sleep(0.001)
if sys.argv[2] == "later":
    try:
        factory()
    except OSError:
        pass
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
lowest = os.dup(0)
gevent.monkey.get_original("os", "close")(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
began = time.monotonic()
try:
    factory()
except BaseException as error:
    failed = error
took = time.monotonic() - began
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
number = errno.errorcode.get(failed.errno)
print(type(failed).__name__, number, sys.argv[3] in str(failed), took < 3)
"""


@pytest.mark.parametrize("name", ["localhost", "no-such-host.invalid", "bücher.invalid"])
@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("patched", ["plain", "patched"])
def test_without_a_descriptor_a_look_up_says_so_and_does_not_hang(name, when, patched):
    """In a process of its own: what was imported once is there for ever."""
    script = ["-W", "ignore", "-c", FIRST_DIAL_WITHOUT_DESCRIPTORS, patched, when, name]
    ended = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )

    assert ended.stdout == "OSError EMFILE True True\n", ended.stderr


def test_a_name_without_an_address_is_not_found(resolve):
    resolve()

    with pytest.raises(NameNotFound, match=r"nowhere\.test") as caught:
        SocketFactory("nowhere.test:80")()

    assert caught.value.name == "nowhere.test"


# TLS.


@pytest.mark.parametrize("module", [gevent.ssl, ssl], ids=["gevent.ssl", "ssl"])
@pytest.mark.parametrize("version", TLS_VERSIONS)
def test_tls_is_verified_with_the_given_context_and_cooperative(
    listener, keep, serve_tls, trusting, version, module
):
    server = serve_tls(TLS_VERSIONS[version])
    factory = SocketFactory(
        listener.getsockname(), tls=trusting(module), server_hostname="localhost"
    )

    client = keep(factory())

    assert isinstance(client, gevent.ssl.SSLSocket)
    assert version.replace(" ", "v") == client.version()
    assert client.getpeercert()
    gevent.spawn(server.get().sendall, b"hello")
    assert client.recv(5) == b"hello"  # would never come if recv did not let the server run


def test_a_context_made_before_patching_is_accepted_and_cooperative(
    listener, keep, serve_tls, certificates
):
    context = get_original("ssl", "SSLContext")(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(str(certificates.authority))
    server = serve_tls()

    client = keep(SocketFactory(listener.getsockname(), tls=context, server_hostname="localhost")())

    assert isinstance(client, gevent.ssl.SSLSocket)
    gevent.spawn(server.get().sendall, b"hello")
    assert client.recv(5) == b"hello"


@pytest.fixture
def trusted_by_the_system(certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))


@pytest.mark.usefixtures("trusted_by_the_system")
@pytest.mark.parametrize("host", ["localhost", "localhost."])
def test_tls_true_verifies_against_the_host(listener, keep, resolve, serve_tls, host):
    resolve(listener.getsockname())
    server = serve_tls()
    factory = SocketFactory((host, 443), tls=True)

    keep(factory())

    assert isinstance(server.get(), gevent.ssl.SSLSocket)
    assert factory.context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_tls_true_is_tls_1_2_or_later_whatever_the_system_allows(monkeypatch):
    lenient = ssl.create_default_context()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        lenient.minimum_version = ssl.TLSVersion.TLSv1
    monkeypatch.setattr("geventpool.sockets.tls.create_default_context", lambda: lenient)

    assert SocketFactory("host:443", tls=True).context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.usefixtures("trusted_by_the_system")
def test_tls_true_refuses_a_certificate_of_another_host(listener, resolve, serve_tls):
    resolve(listener.getsockname())
    server = serve_tls()
    before = open_sockets()

    with pytest.raises(ssl.SSLCertVerificationError, match=r"other\.test"):
        SocketFactory("other.test:443", tls=True)()

    server.get()
    assert before == open_sockets()


def test_tls_true_refuses_an_unknown_authority(listener, serve_tls):
    server = serve_tls()
    before = open_sockets()

    with pytest.raises(ssl.SSLCertVerificationError):
        SocketFactory(listener.getsockname(), tls=True, server_hostname="localhost")()

    server.get()
    assert before == open_sockets()


def test_a_certificate_that_has_expired_is_refused(certificates, trusting):
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_expired(certificates), certificates.key)
    with EchoServer(ssl_context=context) as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")

        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            factory()

        server.wait_open(0)


def test_an_international_name_is_verified_as_it_stands_in_certificates(
    tls_server, resolve, trusting
):
    """In its ASCII form: RFC 5890."""
    with tls_server() as server:
        resolve(server.address)

        with pytest.raises(ssl.SSLCertVerificationError, match=r"'xn--bcher-kva\.test'"):
            SocketFactory("bücher.test:443", tls=trusting())()


def test_only_unverified_talks_to_anybody(listener, keep, serve_tls):
    server = serve_tls()

    client = keep(SocketFactory(listener.getsockname(), tls="unverified")())

    assert client.version() == server.get().version()


def test_a_socket_that_fails_while_it_is_wrapped_is_closed(listener, monkeypatch, trusting):
    def fail(*_, **__):
        raise ValueError("no session for you")

    monkeypatch.setattr(gevent.ssl.SSLSocket, "_SSLSocket__create_sslobj", fail)
    factory = SocketFactory(listener.getsockname(), tls=trusting())
    before = open_sockets()

    with pytest.raises(ValueError, match="no session") as caught:
        factory()

    assert before == open_sockets()
    del caught  # held until here, with all its frames


# Several servers.


@pytest.fixture
def servers(keep):
    return Servers(keep)


def in_order(*addresses):
    return AddressGroup([[(1, each)] for each in addresses])


class Answering:
    """A resolver that knows one name."""

    def __init__(self, group):
        self.group = group
        self.asked = 0

    def resolve(self, name, /):
        gevent.sleep(0)
        self.asked += 1
        if name != "db":
            raise NameNotFound(f"no {name}", name=name)
        return self.group


def test_every_way_to_name_a_server_leads_to_it(servers, keep):
    live = servers.live()
    ways = [
        live,
        tuple(live),
        str(live),
        (ipaddress.ip_address(live.ip), live.port),
        [tuple(live)],
        AddressGroup.of(live),
    ]

    for way in ways:
        assert keep(SocketFactory(way)()).getpeername() == live
    resolver = Answering(AddressGroup.of(live))
    assert keep(SocketFactory("db", resolver=resolver)()).getpeername() == live


@pytest.mark.parametrize("form", [Path, "unix:{}".format, UnixAddress])
def test_a_unix_socket_is_opened_by_its_path(unix_listener, keep, form):
    path = unix_listener.getsockname()

    client = keep(
        SocketFactory(form(path), options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 9999)])()
    )

    server = keep(unix_listener.accept()[0])
    server.sendall(b"hello")
    assert isinstance(client, gevent.socket.socket)
    assert client.recv(5) == b"hello"
    assert client.gettimeout() is None


def test_a_missing_unix_socket_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"unix:{tmp_path}/none"):
        SocketFactory(tmp_path / "none")()


def test_the_calls_of_a_factory_spread_over_a_list(servers, keep):
    addresses = [servers.live() for _ in range(3)]
    factory = SocketFactory(addresses)

    opened = [keep(factory()).getpeername() for _ in range(9)]

    assert Counter(opened) == dict.fromkeys(addresses, 3)
    assert opened[:3] == opened[3:6] == opened[6:]


def test_factories_do_not_all_begin_with_the_same_server(servers, keep):
    addresses = [servers.live() for _ in range(2)]

    first = {keep(SocketFactory(addresses)()).getpeername() for _ in range(40)}

    assert first == set(addresses)


def test_a_server_that_refuses_is_passed_over_wherever_the_list_begins(servers, keep):
    dead, live = servers.dead(), servers.live()
    factory = SocketFactory([dead, live])

    assert {keep(factory()).getpeername() for _ in range(4)} == {live}


def test_a_server_whose_name_leads_nowhere_is_passed_over(servers, keep, resolve):
    live = servers.live()

    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    resolve().getaddrinfo = getaddrinfo

    assert keep(SocketFactory(in_order("nowhere.test:80", live))()).getpeername() == live


def test_a_group_is_tried_in_its_order(servers, keep):
    dead, second, third = servers.dead(), servers.live(), servers.live()
    factory = SocketFactory(in_order(dead, second, third))

    assert {keep(factory()).getpeername() for _ in range(10)} == {second}


def test_a_resolver_is_asked_at_each_call(servers, keep):
    old, new = servers.live(), servers.live()
    resolver = Answering(AddressGroup.of(old))
    factory = SocketFactory("db", resolver=resolver)
    assert keep(factory()).getpeername() == old
    resolver.group = AddressGroup.of(new)

    assert keep(factory()).getpeername() == new
    assert resolver.asked == 2


def test_a_name_the_resolver_does_not_know_is_not_found():
    with pytest.raises(NameNotFound, match="no cache"):
        SocketFactory("cache", resolver=Answering(None))()


def test_what_all_servers_said_is_in_one_error(servers, resolve):
    first, second = servers.dead(), servers.dead()
    resolve()
    before = open_sockets()

    with pytest.raises(MultiConnectFailure) as caught:
        SocketFactory(in_order(first, "empty.test:80", second))()

    errors = caught.value.errors
    assert [address for address, _ in errors] == [first, ("empty.test", 80), second]
    assert [type(error) for _, error in errors] == [
        ConnectionRefusedError,
        NameNotFound,
        ConnectionRefusedError,
    ]
    message = str(caught.value)
    assert "3 attempts to connect failed" in message
    assert message.count(str(first)) == 2  # it is in the list of servers, and refused once
    assert open_sockets() == before


def test_what_all_addresses_of_a_host_said_is_in_one_error(servers, resolve):
    dead = [servers.dead(), servers.dead()]
    resolve(*dead, dead[0])

    with pytest.raises(MultiConnectFailure, match=r"two\.test:80: 2 attempts") as caught:
        SocketFactory("two.test:80")()

    assert [address for address, _ in caught.value.errors] == dead
    assert all(type(address) is Address for address, _ in caught.value.errors)


def test_a_silent_address_of_a_host_costs_a_quarter_of_a_second(servers, keep, resolve):
    silent, live = servers.silent(), servers.live()
    resolve(silent, live)
    began = time.monotonic()

    client = keep(SocketFactory("two.test:80")())

    assert client.getpeername() == live
    assert 0.2 < time.monotonic() - began < 5


def test_a_silent_server_does_not_use_up_the_time_of_the_next_one(servers, keep, clock):
    silent, live = servers.silent(), servers.live()

    dialer = gevent.spawn(SocketFactory(in_order(silent, live), connect_timeout=8))
    until(lambda: len(clock.alarms) == 2)  # the deadline, and that of the first server
    clock.advance(3.9)
    assert not dialer.ready()
    clock.advance(0.1)

    assert keep(dialer.get(timeout=10)).getpeername() == live


@pytest.mark.slow
def test_real_time_passes_too(servers, keep):
    silent, live = servers.silent(), servers.live()
    began = time.monotonic()

    client = keep(SocketFactory(in_order(silent, live), connect_timeout=3)())

    assert client.getpeername() == live
    assert time.monotonic() - began >= 1.5


def test_each_server_gets_its_part_of_what_is_left_and_the_last_one_the_rest(servers, clock):
    silent = [servers.silent() for _ in range(3)]
    before = open_sockets()

    dialer = gevent.spawn(outcome, SocketFactory(in_order(*silent), connect_timeout=0.8))
    until(lambda: clock.alarms)
    clock.advance(0.8)
    failure = dialer.get(timeout=10)

    assert open_sockets() == before
    assert type(failure) is MultiConnectFailure
    assert [address for address, _ in failure.errors] == silent
    # Half of it as long as that is less than 2 s: a server that gets 0.1 s of 1 is not tried.
    assert [str(error) for _, error in failure.errors] == [
        f"{silent[0]}: not open after 0.4 s: connecting to {silent[0]} 0.400 s",
        f"{silent[1]}: not open after 0.2 s: connecting to {silent[1]} 0.200 s",
        f"{silent[2]}: not open after 0.8 s: connecting to {silent[0]} 0.400 s,"
        f" connecting to {silent[1]} 0.200 s, connecting to {silent[2]} 0.200 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "parts"), [(20, [2.5] * 8), (10, [2, 2, 2, 2, 1, 0.5, 0.25, 0.25])]
)
def test_many_servers_get_two_seconds_or_more_while_they_last(clock, seconds, parts):
    dial = Dial("many", None)
    began, ends = clock.now, []
    for share in range(8, 0, -1):
        with dial.part("one", share, began + seconds) as ends_at:
            ends.append(ends_at)
        clock.now = ends_at

    assert [after - before for before, after in pairwise([began, *ends])] == parts


def test_without_a_bound_no_request_is_cut_short():
    dial = Dial("many", None)

    with dial.part("one", 3, float("inf")) as ends_at:
        assert ends_at == float("inf")


def test_when_the_time_is_over_the_failures_before_are_told_too(servers, clock):
    dead, silent = servers.dead(), servers.silent()

    dialer = gevent.spawn(outcome, SocketFactory(in_order(dead, silent), connect_timeout=5))
    until(lambda: len(clock.alarms) == 1)  # that of the first server is over
    clock.advance(5)

    (first, refused), (second, late) = dialer.get(timeout=10).errors
    assert (first, second) == (dead, silent)
    assert isinstance(refused, ConnectionRefusedError)
    assert str(late).startswith(f"{silent}: not open after 5 s: ")
    assert str(late).endswith(f"connecting to {silent} 5.000 s")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_number_is_not_sent_to_the_resolver_nor_to_another_greenlet(keep, resolve, host):
    listener = keep(listening(host))
    resolver = resolve()
    factory = SocketFactory((host, listener.getsockname()[1]))
    ran = set()
    tracing = greenlet.settrace(lambda _, args: ran.update(args))
    try:
        keep(factory())
    finally:
        greenlet.settrace(tracing)

    assert not resolver.asked.is_set()
    assert ran <= {gevent.getcurrent(), gevent.get_hub()}


# Settings of the socket.


def tcp_settings(sock):
    names = ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    values = [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    return [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *values]


def test_a_socket_comes_with_keepalive_and_a_user_timeout(listener, keep):
    client = keep(SocketFactory(listener.getsockname())())

    alive, nodelay, idle, interval, count, user_timeout = tcp_settings(client)
    assert (alive, nodelay) == (1, 1)
    assert (idle, interval, count) == (15, 5, 3)
    assert user_timeout == 30_000 >= 1000 * (idle + interval * count)


def test_keepalive_and_user_timeout_are_settable_and_none_leaves_them_to_the_system(listener, keep):
    bare = keep(gevent.socket.socket())
    system = tcp_settings(bare)

    ours = keep(SocketFactory(listener.getsockname(), keepalive=(60, 7, 2), user_timeout=1.5)())
    none = keep(SocketFactory(listener.getsockname(), keepalive=None, user_timeout=None)())

    assert tcp_settings(ours) == [1, 1, 60, 7, 2, 1500]
    assert tcp_settings(none) == [0, 1, *system[2:]]


def test_what_the_platform_does_not_have_is_left_out(listener, keep, monkeypatch):
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT")
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    client = keep(SocketFactory(listener.getsockname())())
    monkeypatch.undo()

    alive, nodelay, idle, interval, _, user_timeout = tcp_settings(client)
    assert (alive, nodelay, interval, user_timeout) == (1, 1, 5, 0)
    assert idle != 15


def test_options_are_set_after_ours_and_before_connecting(listener, keep):
    options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
        (socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0),
    ]
    client = keep(SocketFactory(listener.getsockname(), options=iter(options))())

    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == LINGER_0


def test_an_option_the_system_refuses_is_named_and_nothing_stays_open(listener):
    before = open_sockets()

    with pytest.raises(OSError, match=r"option \(6, 9999, 1\)"):
        SocketFactory(listener.getsockname(), options=[(6, 9999, 1)])()

    assert open_sockets() == before


@pytest.mark.parametrize("source", ["127.0.0.3", ("127.0.0.3", 0)])
def test_the_source_address_is_the_near_end(listener, keep, source):
    client = keep(SocketFactory(listener.getsockname(), source_address=source)())

    assert client.getsockname()[0] == "127.0.0.3"


def test_a_source_address_picks_the_family_to_resolve(listener, resolve, keep):
    resolver = resolve(listener.getsockname())
    families = []
    answer = resolver.getaddrinfo
    resolver.getaddrinfo = lambda host, port, family, *_: families.append(family) or answer()

    keep(SocketFactory("host.test:80", source_address="127.0.0.1")())

    assert families == [socket.AF_INET]


def test_a_source_address_that_is_not_ours_is_an_error_of_the_system(listener):
    before = open_sockets()

    with pytest.raises(OSError) as caught:
        SocketFactory(listener.getsockname(), source_address="240.0.0.1")()

    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert open_sockets() == before


# TLS goes on to the next one.


@pytest.fixture
def tls_server(certificates):
    """Make servers that share a context: then what one of them issues, another one resumes."""

    def make(version=None, context=None, **options):
        if context is None:
            context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(str(certificates.certificate), str(certificates.key))
            if version is not None:
                context.minimum_version = context.maximum_version = version
        return EchoServer(ssl_context=context, **options)

    return make


class NoTLS(EchoServer):
    def serve(self, sock):
        sock.sendall(b"220 this is no TLS\r\n")


@pytest.mark.parametrize("several", ["servers", "addresses"])
def test_where_tls_fails_the_next_one_is_tried(tls_server, keep, resolve, trusting, several):
    with NoTLS() as plain, tls_server() as secure:
        resolve(plain.address, secure.address)
        target = in_order(plain.address, secure.address)
        if several == "addresses":
            target = "two.test:443"

        client = keep(SocketFactory(target, tls=trusting(), server_hostname="localhost")())

        assert client.getpeername() == secure.address
        plain.wait_open(0)


class Peer(EchoServer):
    """Does one thing instead of a handshake, and hangs up."""

    def __init__(self, act):
        super().__init__()
        self.serve = act


def hang_up(sock):
    pass


def hang_up_after_the_hello(sock):
    sock.recv(65536)


def reset_after_the_hello(sock):
    sock.recv(65536)
    reset_on_close(sock)


def send_garbage(sock):
    sock.sendall(bytes(range(256)) * 20)


def send_an_alert(sock):
    sock.recv(65536)
    sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal, handshake_failure


def send_half_a_hello(sock):
    sock.recv(65536)
    sock.sendall(b"\x16\x03\x03\x00\x7a\x02\x00")


def send_garbage_and_reset(sock):
    send_garbage(sock)
    reset_on_close(sock)


UNWILLING = [hang_up, reset_on_close, hang_up_after_the_hello, reset_after_the_hello]
UNWILLING += [send_garbage, send_an_alert, send_half_a_hello]


@pytest.mark.parametrize("act", UNWILLING)
def test_a_handshake_that_the_peer_does_not_finish_is_an_error_and_leaves_nothing(act, trusting):
    with Peer(act) as peer:
        before = open_sockets()

        with pytest.raises((ssl.SSLError, ConnectionError)):
            SocketFactory(peer.address, tls=trusting(), server_hostname="localhost")()

        peer.wait_open(0)
        assert open_sockets() == before


@pytest.mark.parametrize("act", [hang_up, reset_on_close, send_garbage, send_garbage_and_reset])
def test_after_a_connection_that_was_over_before_its_handshake_the_next_one_is_tried(
    act, tls_server, keep, resolve, trusting, monkeypatch
):
    connect = factory_module.connect
    is_connected = gevent.event.Event()

    def connect_and_wait(*args, **kwargs):
        connected = connect(*args, **kwargs)
        if not is_connected.is_set():
            is_connected.set()
            peer.wait_opened(1)
            peer.wait_open(0)
            arrived(connected[0])
        return connected

    def act_when_it_is_connected(sock):
        is_connected.wait()
        act(sock)

    monkeypatch.setattr("geventpool.sockets.factory.connect", connect_and_wait)
    with Peer(act_when_it_is_connected) as peer, tls_server() as secure:
        resolve(peer.address, secure.address)
        factory = SocketFactory("two.test:443", tls=trusting(), server_hostname="localhost")
        before = open_sockets()

        client = keep(factory())

        assert client.getpeername() == secure.address
        secure.wait_open(1)
        assert len(open_sockets() - before) == 2  # both ends


def test_what_tls_had_to_say_is_kept_with_the_address(keep, resolve, trusting, tls_server):
    with NoTLS() as plain, tls_server() as secure:
        resolve(plain.address, secure.address)
        before = open_sockets()

        with pytest.raises(MultiConnectFailure, match="'other'") as caught:
            SocketFactory("two.test:443", tls=trusting(), server_hostname="other")()

        (first, garbage), (second, stranger) = caught.value.errors
        assert (first, second) == (plain.address, secure.address)
        assert type(garbage) is ssl.SSLError
        assert type(stranger) is ssl.SSLCertVerificationError
        plain.wait_open(0)
        secure.wait_open(0)
        assert open_sockets() == before


@pytest.mark.parametrize("several", ["servers", "addresses"])
def test_a_handshake_that_hangs_gets_a_part_of_the_time(
    listener, tls_server, keep, resolve, trusting, clock, several
):
    mute = listener.getsockname()
    with tls_server() as secure:
        resolve(mute, secure.address)
        target = in_order(mute, secure.address) if several == "servers" else "two.test:443"
        factory = SocketFactory(
            target, tls=trusting(), server_hostname="localhost", connect_timeout=4
        )

        dialer = gevent.spawn(factory)
        hello = keep(listener.accept()[0])
        assert hello.recv(1)
        clock.advance(2)

        assert keep(dialer.get(timeout=10)).getpeername() == secure.address


def test_each_server_must_have_the_certificate_of_its_own_host(tls_server, keep, resolve, trusting):
    with tls_server() as secure:
        resolve(secure.address)

        with pytest.raises(MultiConnectFailure, match=r"other\.test") as caught:
            SocketFactory(["other.test:443", "elsewhere.test:443"], tls=trusting())()
        assert {type(error) for _, error in caught.value.errors} == {ssl.SSLCertVerificationError}
        keep(SocketFactory(in_order("other.test:443", "localhost:443"), tls=trusting())())


def test_tls_goes_over_a_unix_socket_if_a_server_hostname_is_given(
    tls_server, keep, trusting, tmp_path
):
    with tls_server(path=tmp_path / "tls") as server:
        client = keep(
            SocketFactory(tmp_path / "tls", tls=trusting(), server_hostname="localhost")()
        )
        client.sendall(b"hello")

        assert client.recv(5) == b"hello"
        assert client.getpeercert()
        assert server.open == 1


# TLS sessions are resumed.


def talk(sock):
    """What was sent after the handshake, session tickets, is read with the answer."""
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
@pytest.mark.parametrize("version", TLS_VERSIONS)
def test_the_session_of_an_earlier_socket_is_resumed(tls_server, keep, trusting, version, closed):
    with tls_server(TLS_VERSIONS[version]) as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        first = keep(factory())
        talk(first)
        if closed:
            first.close()

        second = keep(factory())

        assert not first.session_reused
        assert second.session_reused
        talk(second)
        second.close()
        for _ in range(3):
            assert keep(factory()).session_reused


def test_a_socket_whose_ticket_was_not_read_does_not_take_the_place_of_an_earlier_one(
    tls_server, keep, trusting, monkeypatch
):
    monkeypatch.setattr("geventpool.sockets.tls._SESSION_AGE", 0.0)
    with tls_server(ssl.TLSVersion.TLSv1_3) as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        first = keep(factory())
        fresh = keep(factory())
        talk(first)
        first.close()
        fresh.close()

        assert keep(factory()).session_reused


def test_a_session_is_that_of_one_server_and_one_name(tls_server, keep, trusting, monkeypatch):
    context = trusting()
    context.check_hostname = False
    with tls_server() as one, tls_server() as other:
        factory = SocketFactory(
            in_order(one.address, other.address), tls=context, server_hostname="localhost"
        )
        talk(keep(factory()))
        # What another thread reads from is not asked for its session.
        monkeypatch.setattr("geventpool.sockets.tls._thread_id", lambda: 0)
        assert factory._tls_session(Address(*one.address))._latest() is None
        monkeypatch.undo()
        assert factory._tls_session(Address(*one.address))._latest() is not None

        one.stop()
        assert factory._tls_session(Address(*other.address))._latest() is None
        talk(keep(factory()))
        assert keep(factory()).session_reused

        factory.server_hostname = "other"

        assert not keep(factory()).session_reused


def test_a_session_made_without_verification_does_not_stand_in_for_it(tls_server, keep, trusting):
    with tls_server() as server:
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        factory = SocketFactory(server.address, tls=context, server_hostname="localhost")
        talk(keep(factory()))
        assert keep(factory()).session_reused

        context.verify_mode = ssl.CERT_REQUIRED

        with pytest.raises(ssl.SSLCertVerificationError):
            factory()


@pytest.mark.parametrize("version", TLS_VERSIONS)
def test_a_session_the_server_has_forgotten_is_a_full_handshake(
    tls_server, keep, trusting, version
):
    with tls_server(TLS_VERSIONS[version]) as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        talk(keep(factory()))
        address = server.address
        server.stop()
        with tls_server(TLS_VERSIONS[version]) as restarted:
            restarted.stop()
            restarted.address = address
            restarted.start()

            second = keep(factory())

            assert not second.session_reused
            talk(second)
            assert keep(factory()).session_reused


def test_while_a_session_is_new_no_other_one_is_asked_for(tls_server, keep, trusting, monkeypatch):
    asked = []
    session = gevent.ssl.SSLSocket.session

    def ask_for(sock):
        asked.append(sock)
        return session.fget(sock)

    monkeypatch.setattr(gevent.ssl.SSLSocket, "session", property(ask_for, session.fset))
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        talk(keep(factory()))
        for _ in range(10):
            sock = factory()
            assert sock.session_reused
            sock.close()
        assert len(asked) == 1
        monkeypatch.setattr("geventpool.sockets.tls._SESSION_AGE", 0.0)
        factory().close()
        assert len(asked) > 1


DAY = 86400.0


def resumes(factory):
    """Whether the next socket resumes a session; it has read what it takes for another one."""
    with factory() as sock:
        talk(sock)
        return sock.session_reused


@pytest.mark.parametrize("authority_days", [1, 30], ids=["authority", "server"])
@pytest.mark.parametrize("version", TLS_VERSIONS)
def test_no_session_is_resumed_once_a_certificate_it_was_verified_by_has_ended(
    tmp_path, monkeypatch, version, authority_days
):
    made = make_certificates(tmp_path, authority_days)
    served = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(str(made.certificate), str(made.key))
    served.minimum_version = served.maximum_version = TLS_VERSIONS[version]
    context = gevent.ssl.create_default_context(cafile=str(made.authority))
    now, end = time.time(), min(2, authority_days) * DAY
    monkeypatch.setattr("geventpool.sockets.tls._SESSION_AGE", 0.0)
    monkeypatch.setattr("geventpool.sockets.tls.wall_clock", lambda: now)
    with EchoServer(ssl_context=served) as server:
        factory = SocketFactory(server.address, tls=context, server_hostname="localhost")
        assert not resumes(factory)
        now += end - 60
        assert [resumes(factory) for _ in range(3)] == [True] * 3
        now += 120

        # Really it has not ended yet: else this would be refused
        assert [resumes(factory) for _ in range(3)] == [False] * 3


def test_a_socket_opened_before_leaves_no_session_when_the_certificate_has_ended(
    tls_server, trusting, monkeypatch
):
    monkeypatch.setattr("geventpool.sockets.tls._SESSION_AGE", 0.0)
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        old = factory()
        talk(old)
        with monkeypatch.context() as later:
            later.setattr("geventpool.sockets.tls.wall_clock", lambda: time.time() + 3 * DAY)
            old.close()

        assert not resumes(factory)


def test_what_is_not_verified_does_not_end_with_a_certificate(
    certificates, tls_server, monkeypatch
):
    with tls_server() as server:
        factory = SocketFactory(server.address, tls="unverified")
        assert not resumes(factory)
        monkeypatch.setattr("geventpool.sockets.tls.wall_clock", lambda: time.time() + 3 * DAY)

        assert resumes(factory)


def test_an_hour_after_it_was_verified_a_peer_is_verified_anew_however_often_it_was_resumed(
    tls_server, trusting, monkeypatch
):
    now = 1000.0
    monkeypatch.setattr("geventpool.sockets.tls.monotonic", lambda: now)
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        reused = []
        for _ in range(9):  # every ten minutes
            reused.append(resumes(factory))
            now += 600

        assert reused == [False, *[True] * 5, False, True, True]


def load_the_clients_certificate_anew(context, certificates):
    context.load_cert_chain(str(certificates.certificate), str(certificates.key))


def be_strict_or_lax(context, certificates):
    context.verify_flags ^= ssl.VERIFY_X509_STRICT  # set by default from Python 3.13 on


def load_a_revocation_list(context, certificates):
    context.load_verify_locations(str(make_revocation_list(certificates)))


def load_and_ask_for_revocation_lists(context, certificates):
    load_a_revocation_list(context, certificates)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


@pytest.mark.parametrize(
    "change",
    [
        load_the_clients_certificate_anew,
        be_strict_or_lax,
        load_a_revocation_list,
        load_and_ask_for_revocation_lists,
    ],
)
@pytest.mark.parametrize("module", [gevent.ssl, ssl])
def test_no_session_is_resumed_across_a_change_of_its_context(
    tls_server, trusting, tmp_path, change, module
):
    made = make_certificates(tmp_path)
    context = trusting(module)
    context.load_verify_locations(str(made.authority))
    load_the_clients_certificate_anew(context, made)
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=context, server_hostname="localhost")
        assert [resumes(factory) for _ in range(2)] == [False, True]

        change(context, made)

        if change is load_and_ask_for_revocation_lists:
            with pytest.raises(ssl.SSLCertVerificationError):
                factory()  # of the server's own authority there is none
        else:
            assert [resumes(factory) for _ in range(2)] == [False, True]


def test_a_context_that_counts_its_certificates_is_what_it_was(trusting, certificates):
    context = trusting()
    address = ("localhost", 443)
    with contextlib.suppress(OSError):
        SocketFactory(address, tls=context, connect_timeout=1)()
    factory = SocketFactory(address, tls=context)
    for _ in range(3):
        factory._tls_session(Address(*address))
    with pytest.raises(OSError):
        context.load_cert_chain("/nowhere")
    context.load_cert_chain(certfile=str(certificates.certificate), keyfile=str(certificates.key))
    gone = weakref.ref(context)

    del context, factory
    gc.collect()

    assert gone() is None


def test_sessions_are_forgotten_when_asked_to(tls_server, keep, trusting):
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        still_open = keep(factory())
        talk(still_open)
        assert resumes(factory)

        factory.forget_sessions()
        still_open.close()

        assert not resumes(factory)
        assert resumes(factory)


def test_the_certificate_of_a_link_local_address_is_that_of_the_address(keep, trusting):
    factory = SocketFactory(("fe80::1%lo", 443), tls=trusting())

    assert factory._hostname(Address("fe80::1%lo", 443)) == "fe80::1"


def test_a_session_of_another_context_is_forgotten(tls_server, keep, trusting):
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        talk(keep(factory()))
        factory.context = trusting()

        second = keep(factory())

        assert not second.session_reused
        talk(second)


def test_a_failed_handshake_is_not_tried_again_with_the_same_session(tls_server, keep, trusting):
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        talk(keep(factory()))
        server.stop()
        plain = NoTLS()
        plain.address = server.address
        with plain, pytest.raises(ssl.SSLError):
            factory()
        server.start()

        assert not keep(factory()).session_reused


def test_a_factory_does_not_keep_the_sockets_it_opened(tls_server, trusting):
    with tls_server() as server:
        factory = SocketFactory(server.address, tls=trusting(), server_hostname="localhost")
        sock = factory()
        talk(sock)
        gone = weakref.ref(sock)

        sock.close()
        del sock
        gc.collect()

        assert gone() is None


def test_a_factory_remembers_the_sessions_of_a_bounded_number_of_servers(
    tls_server, keep, trusting, monkeypatch
):
    monkeypatch.setattr("geventpool.sockets.tls._MOST_TLS_SESSIONS", 2)
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(tls_server()).address for _ in range(3)]
        resolver = Answering(None)
        factory = SocketFactory(
            "db", resolver=resolver, tls=trusting(), server_hostname="localhost"
        )

        def reused(address):
            resolver.group = AddressGroup.of(address)
            sock = keep(factory())
            talk(sock)
            return sock.session_reused

        assert [reused(address) for address in addresses] == [False] * 3
        assert [reused(address) for address in reversed(addresses)] == [True, True, False]
        assert len(factory._tls_sessions._sessions) == 2


# What is wrong with the arguments is said at once.


@pytest.mark.parametrize(
    "target",
    [
        *["", "host", "host:", ":80", "host:http", "host:0", "host:65536", "host:-1", "host:8 0"],
        *["::1", "::1:80", "[::1]", "[]:80", "http://host:80", "ho st:80", "host\0:80", "a..b:80"],
        *[("", 80), ("host", 0), ("host", 65536), ("x" * 64, 80), ("host", -1)],
    ],
)
def test_a_bad_target_is_refused_by_name(target):
    with pytest.raises(ValueError, match="target must be .*" + re.escape(repr(target))):
        SocketFactory(target)


@pytest.mark.parametrize(
    "target", [None, 80, b"host:80", ("host",), ("host", "80"), ("host", True), ("::1", 80, 0, 0)]
)
def test_a_target_of_a_wrong_type_is_refused_by_name(target):
    with pytest.raises(TypeError, match="target must be"):
        SocketFactory(target)


@pytest.mark.parametrize("tls", [None, 1, 0, "", "verified", "yes", object()])
def test_tls_is_never_guessed(tls):
    with pytest.raises(TypeError, match="tls must be"):
        SocketFactory("host:80", tls=tls)


def test_a_server_hostname_without_tls_is_refused():
    with pytest.raises(ValueError, match="server_hostname"):
        SocketFactory("host:80", server_hostname="other")


@pytest.mark.parametrize("name", ["", ".host"])
def test_a_server_hostname_no_handshake_can_start_with_is_refused(name):
    with pytest.raises(ValueError, match="server_hostname"):
        SocketFactory("host:80", tls="unverified", server_hostname=name)


def test_a_context_for_servers_is_refused():
    with pytest.raises(ValueError, match="tls"):
        SocketFactory("host:80", tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


@pytest.mark.parametrize("name", ["connect_timeout", "read_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_duration_is_more_than_nothing_or_none(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        SocketFactory("host:80", **{name: value})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keepalive": (1, 2)}, TypeError),
        ({"keepalive": 15}, TypeError),
        ({"keepalive": (15.5, 5, 3)}, TypeError),
        ({"keepalive": (0, 5, 3)}, ValueError),
        ({"keepalive": (15, 40000, 3)}, ValueError),
        ({"keepalive": (15, 5, 128)}, ValueError),
        ({"options": 5}, TypeError),
        ({"options": [(1, 2)]}, TypeError),
        ({"options": [(1, 2, "x")]}, TypeError),
        ({"source_address": 5}, TypeError),
        ({"source_address": ("127.0.0.1", "80")}, TypeError),
        ({"source_address": "localhost"}, ValueError),
        ({"source_address": ("127.0.0.1", 65536)}, ValueError),
        ({"resolver": object()}, TypeError),
    ],
)
def test_a_bad_setting_is_refused_by_name(options, error):
    [name] = options
    with pytest.raises(error, match=name):
        SocketFactory("host:80", **options)


@pytest.mark.parametrize("target", ["", None, ("host", 80)])
def test_with_a_resolver_the_target_is_a_name(target):
    with pytest.raises((TypeError, ValueError), match="target must be a name"):
        SocketFactory(target, resolver=Answering(None))


@pytest.mark.parametrize("target", [[], ["host:80", "host"], [None], ["host:80", [("host", 80)]]])
def test_a_bad_list_is_refused_by_name(target):
    with pytest.raises((TypeError, ValueError), match="target must be"):
        SocketFactory(target)


def test_tls_over_a_unix_socket_needs_a_name(trusting):
    for target in ("unix:/x", ["host:443", "unix:/x"], AddressGroup.of("unix:/x")):
        with pytest.raises(ValueError, match="unix:/x needs server_hostname"):
            SocketFactory(target, tls=trusting())


def test_tls_with_a_resolver_needs_a_name_if_it_is_verified(trusting):
    with pytest.raises(ValueError, match="server_hostname"):
        SocketFactory("db", resolver=Answering(None), tls=trusting())
    SocketFactory("db", resolver=Answering(None), tls="unverified")


def test_a_source_address_for_a_unix_socket_is_refused():
    with pytest.raises(ValueError, match="source_address"):
        SocketFactory("unix:/x", source_address="127.0.0.1")


def test_the_repr_says_the_target_and_how_it_is_secured(trusting):
    assert repr(SocketFactory(("host", 80))) == "<SocketFactory host:80>"
    assert repr(SocketFactory("[::1]:80")) == "<SocketFactory [::1]:80>"
    assert repr(SocketFactory("host:443", tls=trusting())) == "<SocketFactory host:443 TLS>"
    assert (
        repr(SocketFactory("host:443", tls="unverified"))
        == "<SocketFactory host:443 TLS unverified>"
    )
    lax = trusting()
    lax.check_hostname = False
    lax.verify_mode = ssl.CERT_NONE
    assert repr(SocketFactory("host:443", tls=lax)) == "<SocketFactory host:443 TLS unverified>"
    assert repr(SocketFactory(["a:1", "b:2"])) == "<SocketFactory a:1, b:2>"
    assert repr(SocketFactory(Path("/x"))) == "<SocketFactory unix:/x>"
    five = AddressGroup.of(*(f"{letter}:1" for letter in "abcde"))
    assert repr(SocketFactory(five)) == "<SocketFactory a:1, b:1, c:1 and 2 more>"
    assert repr(SocketFactory("db", resolver=Answering(five))) == "<SocketFactory db>"


# One deadline over all phases; and whatever ends a phase, nothing stays open.


class Stuck:
    """A way to open a socket that stays in one *phase* for ever."""

    def __init__(self, phase, listener, keep, resolve, context):
        self.phase = phase
        self.listener = listener
        self.options = {}
        resolver = resolve(listener.getsockname(), hangs=phase == "resolving")
        if phase == "connecting":
            fill_backlog(listener, keep)
        if phase == "TLS handshake":
            self.options["tls"] = context
        self.resolver = resolver
        self.before = open_sockets()

    def factory(self, connect_timeout=None, target="stuck.test:80"):
        return SocketFactory(target, connect_timeout=connect_timeout, **self.options)

    def reached(self):
        """Wait until a greenlet that was just spawned is in the phase."""
        if self.phase == "resolving":
            assert self.resolver.asked.wait(5)
        elif self.phase == "connecting":
            until(lambda: len(open_sockets() - self.before) == 1)
        else:
            server = self.listener.accept()[0]
            assert server.recv(1)  # the client's hello
            self.before |= {f"socket:[{os.fstat(server.fileno()).st_ino}]"}
            return server
        return None

    def assert_nothing_is_left(self, server=None):
        assert not open_sockets() - self.before
        if server is not None:
            with server:
                while server.recv(1000):
                    pass


PHASES = ["resolving", "connecting", "TLS handshake"]


@pytest.fixture(params=PHASES)
def stuck(request, listener, keep, resolve, trusting):
    return Stuck(request.param, listener, keep, resolve, trusting())


def test_the_deadline_ends_every_phase_and_says_which_took_the_time(stuck, clock):
    dialer = gevent.spawn(outcome, stuck.factory(connect_timeout=5))
    server = stuck.reached()

    clock.advance(5)
    failure = dialer.get(timeout=10)

    stuck.assert_nothing_is_left(server)
    assert type(failure) is ConnectError
    address = "{}:{}".format(*stuck.listener.getsockname())
    told = ["resolving stuck.test", f"connecting to {address}", f"TLS handshake with {address}"]
    *earlier, last = told[: PHASES.index(stuck.phase) + 1]
    spent = ", ".join([*(f"{phase} 0.000 s" for phase in earlier), f"{last} 5.000 s"])
    assert str(failure) == f"stuck.test:80: not open after 5 s: {spent}"


def test_the_deadline_is_never_started_again(listener, keep, resolve, clock):
    fill_backlog(listener, keep)
    resolver = resolve(listener.getsockname(), hangs=True)
    before = open_sockets()

    dialer = gevent.spawn(outcome, SocketFactory("slow.test:80", connect_timeout=4))
    assert resolver.asked.wait(10)
    clock.advance(3)
    resolver.answer.set()
    until(lambda: len(open_sockets() - before) == 1)
    clock.advance(0.9)
    gevent.sleep(0)
    assert not dialer.ready()
    clock.advance(0.1)

    told = r"resolving slow\.test 3\.000 s, connecting to 127\.0\.0\.1:\d+ 1\.000 s$"
    assert re.search(told, str(dialer.get(timeout=10)))


def test_a_kill_in_any_phase_leaves_nothing_open(stuck):
    dialer = gevent.spawn(stuck.factory())
    server = stuck.reached()

    dialer.kill()

    stuck.assert_nothing_is_left(server)
    assert isinstance(dialer.value, gevent.GreenletExit)


class Impatient(OSError):
    pass


@pytest.mark.parametrize("exception", [None, Impatient("a caller's own")], ids=["plain", "OSError"])
def test_a_timeout_of_the_caller_passes_through_every_phase(stuck, servers, exception):
    # Other addresses and servers would be tried if that were taken for what the system says.
    dead, live = servers.dead(), servers.live()
    stuck.resolver.answers += (dead,)
    stuck.before |= open_sockets()
    factory = stuck.factory(connect_timeout=50, target=in_order("stuck.test:80", live))
    timeout = exception or gevent.Timeout()

    dialer = gevent.spawn(outcome, factory)
    server = stuck.reached()
    dialer.kill(timeout)

    assert dialer.value is timeout
    stuck.assert_nothing_is_left(server)


def test_a_timeout_that_is_not_ours_learns_what_took_the_time(stuck):
    """A pool's connect_timeout, above all: it is set before ours and would know nothing."""
    timeout = gevent.Timeout()

    dialer = gevent.spawn(outcome, stuck.factory(connect_timeout=50))
    server = stuck.reached()
    dialer.kill(timeout)

    assert dialer.value is timeout
    stuck.assert_nothing_is_left(server)
    cause = timeout.__cause__
    assert type(cause) is ConnectError
    assert re.search(rf"not open after \S+ s: .*{stuck.phase} [^,]* \d+\.\d+ s$", str(cause))
    assert cause.__traceback__ is None


def test_what_tls_has_to_say_is_said_of_the_address(trusting):
    with Peer(hang_up_after_the_hello) as peer:
        factory = SocketFactory(peer.address, tls=trusting(), server_hostname="localhost")
        with pytest.raises(OSError, match=re.escape(f"({peer.address[0]}:{peer.address[1]})")):
            factory()

    with EchoServer() as plain:
        factory = SocketFactory(plain.address, tls=trusting(), server_hostname="localhost")
        with pytest.raises(ssl.SSLError) as caught:
            factory()
        assert str(caught.value).endswith(f"({plain.address[0]}:{plain.address[1]})")
        assert caught.value.library == "SSL"
        assert caught.value.reason in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "told"), [(5, "5"), (0.5, "0.5"), (0.0625, "0.062"), (1234.56789, "1234.568")]
)
def test_no_digit_beyond_a_millisecond_is_told(clock, servers, seconds, told):
    dialer = gevent.spawn(outcome, SocketFactory(servers.silent(), connect_timeout=seconds))
    until(lambda: clock.alarms)
    clock.advance(seconds)

    assert f"not open after {told} s: connecting to" in str(dialer.get(timeout=10))


def test_a_full_accept_queue_is_waited_out_until_the_deadline(unix_listener, keep, clock):
    path = unix_listener.getsockname()
    unix_listener.listen(0)
    keep(SocketFactory(f"unix:{path}")())
    factory = SocketFactory(f"unix:{path}", connect_timeout=5)

    dialer = gevent.spawn(outcome, factory)
    until(lambda: clock.alarms)
    clock.advance(4.9)
    gevent.sleep(0.01)
    assert not dialer.ready()
    clock.advance(0.2)

    error = dialer.get(timeout=10)
    assert type(error) is ConnectError
    assert error.errno == errno.EAGAIN  # so that no server is blamed
    assert re.search(
        rf"not open after 5 s: .*accept queue full: unix:{path} \d\.\d+ s$", str(error)
    )

    keep(unix_listener.accept()[0])
    keep(factory())


def test_who_is_still_looked_up_when_time_is_over_is_not_to_blame(resolve, clock):
    resolver = resolve(hangs=True)
    dialer = gevent.spawn(outcome, SocketFactory(("slow.test", 80), connect_timeout=5))
    resolver.asked.wait()
    clock.advance(5)

    assert dialer.get(timeout=10).errno == errno.EAGAIN


def test_who_does_not_answer_is_to_blame(servers, clock):
    dialer = gevent.spawn(outcome, SocketFactory(servers.silent(), connect_timeout=5))
    until(lambda: clock.alarms)
    clock.advance(5)

    assert dialer.get(timeout=10).errno is None


@pytest.mark.parametrize("strike", STRIKES, ids=repr)
def test_nothing_is_open_wherever_a_dial_is_cancelled(
    strike, servers, resolve, tls_server, trusting, monkeypatch
):
    """Two servers with two addresses each, to be looked up; the first does not speak TLS."""
    soon = partial(factory_module.connect, stagger=0.005)
    monkeypatch.setattr(factory_module, "connect", soon)
    with NoTLS() as plain, tls_server() as secure:
        silent, dead = servers.silent(), servers.dead()
        resolver = resolve()

        def getaddrinfo(host, *_):
            gevent.sleep(0)
            answers = [dead, plain.address] if host == "first.test" else [silent, secure.address]
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", each) for each in answers]

        resolver.getaddrinfo = getaddrinfo
        factory = SocketFactory(
            in_order("first.test:443", "second.test:443"),
            tls=trusting(),
            server_hostname="localhost",
            connect_timeout=20,
        )
        mine = set()
        make = factory._make

        def make_and_note(candidate):
            sock = make(candidate)
            mine.add(f"socket:[{os.fstat(sock.fileno()).st_ino}]")
            return sock

        def dial():
            factory._servers._failures.clear()  # each time by way of the first
            return factory()

        factory._make = make_and_note
        assert strike_everywhere(strike, dial, lambda: len(open_sockets() & mine)) > 6


def test_a_deadline_that_is_kept_does_not_fire_later(listener, keep, clock):
    keep(SocketFactory(listener.getsockname(), connect_timeout=5)())

    assert clock.alarms == []


# Looking.


def nothing(client, server):
    pass


def some_bytes(client, server):
    server.sendall(b"unasked for")
    arrived(client)


def bytes_within_tls(client, server):
    """All of a record has been read from the descriptor, but not all from the session."""
    server.sendall(b"hello")
    assert client.recv(1) == b"h"
    assert not readable(client)


def end(client, server):
    server.close()
    arrived(client)


def bytes_then_end(client, server):
    server.sendall(b"bye")
    end(client, server)


def reset(client, server):
    if client.family == socket.AF_UNIX:
        client.sendall(b"never read")
    reset_on_close(server)
    server.close()
    arrived(client)


def close_notify(client, server):
    server.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):  # the client's own
        server.unwrap()
    arrived(client)


def close_notify_then_end(client, server):
    close_notify(client, server)
    server.close()


def end_of_tls_on_both_sides(client, server):
    unwrapping = gevent.spawn(server.unwrap)
    arrived(client)
    client.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.unwrap()
    unwrapping.get()
    client.settimeout(None)
    assert not readable(client)


def closing(client, server):
    client.close()


ANY_KIND = [some_bytes, end, bytes_then_end, reset, closing]
TLS_ONLY = [bytes_within_tls, close_notify, close_notify_then_end, end_of_tls_on_both_sides]
BAD_STATES = [(kind, state) for kind in KINDS for state in ANY_KIND]
BAD_STATES += [(kind, state) for kind in TLS_VERSIONS for state in TLS_ONLY]


@pytest.fixture(params=["factory's", "program's"])
def new_connection(request, connect, connect_foreign):
    return connect if request.param == "factory's" else connect_foreign


def take_a_look(probe):
    """Return what the look returns, having made sure that it did not switch."""
    switches = []
    tracing = greenlet.settrace(lambda *event: switches.append(event))
    try:
        found = probe()
    finally:
        greenlet.settrace(tracing)
    assert not switches
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_connection_looks_clean_again_and_again(new_connection, kind):
    client, server = new_connection(kind)
    probe = make_probe(client)

    for _ in range(3):
        assert not take_a_look(probe)
        server.sendall(b"ping")
        assert client.recv(4) == b"ping"
        client.sendall(b"pong")
        assert server.recv(4) == b"pong"


def test_unread_session_tickets_of_tls_1_3_look_clean(new_connection):
    client, server = new_connection("TLS 1.3")
    arrived(client)
    assert readable(client)

    assert not take_a_look(make_probe(client))
    assert not readable(client)
    assert client.gettimeout() is None  # as it was
    server.sendall(b"ping")
    assert client.recv(4) == b"ping"


@pytest.mark.parametrize(
    ("kind", "state"), BAD_STATES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_connection_that_is_dead_or_dirty_looks_bad(new_connection, kind, state):
    client, server = new_connection(kind)
    probe = make_probe(client)

    state(client, server)

    assert take_a_look(probe)


def test_unread_bytes_behind_session_tickets_look_bad(new_connection):
    client, server = new_connection("TLS 1.3")
    probe = make_probe(client)
    arrived(client)

    some_bytes(client, server)

    assert take_a_look(probe) == "unread bytes"


def test_an_end_behind_session_tickets_looks_bad(new_connection):
    client, server = new_connection("TLS 1.3")
    probe = make_probe(client)

    server.shutdown(socket.SHUT_WR)
    arrived(client)

    assert take_a_look(probe)


@pytest.mark.parametrize("kind", KINDS)
def test_looking_is_allowed_in_a_hub_callback(connect, kind):
    client, _ = connect(kind)
    if kind == "TLS 1.3":
        arrived(client)
    found = gevent.event.AsyncResult()
    probe = make_probe(client)

    gevent.get_hub().loop.run_callback(lambda: found.set(probe()))

    assert not found.get(timeout=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_socket_is_not_taken_for_the_one_that_got_its_number(new_connection, kind):
    client, _ = new_connection(kind)
    other, _ = new_connection("TCP")
    probe = make_probe(client)
    number = client.fileno()
    client.close()
    os.dup2(other.fileno(), number)

    try:
        assert take_a_look(probe) == "closed"
    finally:
        os.close(number)


@pytest.mark.parametrize("kind", [*KINDS, "program's"])
def test_a_look_does_not_keep_the_connection(listener, unix_listener, serve_tls, trusting, kind):
    address = listener.getsockname()
    if kind == "program's":
        client = socket.create_connection(address)
    elif kind == "TCP":
        client = SocketFactory(address)()
    elif kind == "Unix":
        client = SocketFactory(Path(unix_listener.getsockname()))()
    else:
        server = serve_tls(TLS_VERSIONS[kind])
        client = SocketFactory(address, tls=trusting(), server_hostname="localhost")()
        server.get()
    probe = make_probe(client)
    assert not probe()
    gone = weakref.ref(client)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was not closed: so what
        del client
        gc.collect()

    assert gone() is None
    assert take_a_look(probe) == "closed"


@pytest.mark.parametrize("kind", KINDS)
def test_a_descriptor_above_1024_is_looked_at(connect, kind):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        # Whatever is opened next gets a number above: the lower ones are taken.
        fillers = [os.open("/dev/null", os.O_RDONLY)]
        while fillers[-1] < 1100:
            fillers.append(fcntl.fcntl(fillers[0], fcntl.F_DUPFD, 0))
        try:
            client, server = connect(kind)
        finally:
            for filler in fillers:
                os.close(filler)
        probe = make_probe(client)

        assert client.fileno() > 1024
        assert not probe()
        some_bytes(client, server)
        assert probe()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_socket_closed_before_gets_a_look_that_says_so(keep):
    sock = gevent.socket.socket()
    sock.close()

    assert make_probe(sock)() == "closed"


@pytest.mark.parametrize("thing", [None, object(), 3, "socket"])
def test_there_is_no_look_for_what_is_not_a_socket(thing):
    assert make_probe(thing) is None


def test_without_a_descriptor_left_hang_ups_are_not_watched_until_there_is_one(connect):
    client, server = connect("TCP")
    told = []
    hangups = HangupWatcher(gevent.get_hub(), told.append)
    with no_descriptor_left():
        assert not hangups.watch(client.fileno(), "client")
        assert hangups.unsupported

    assert hangups.watch(client.fileno(), "client")
    end(client, server)
    hangups.poll()
    hangups.abandon()

    assert told == ["client"]


# The descriptor, and closing.


def test_fileno_is_the_descriptor_of_a_connection(listener):
    assert listener.fileno() == fileno(listener)


class Odd:
    def __init__(self, answer):
        self.answer = answer

    def fileno(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("thing", [object(), Odd(-1), Odd(None), Odd("3"), Odd(ValueError())])
def test_fileno_is_none_where_there_is_no_descriptor(thing):
    assert fileno(thing) is None


def test_fileno_is_none_for_a_closed_socket(listener):
    listener.close()

    assert fileno(listener) is None


@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit(), KeyboardInterrupt()])
def test_fileno_does_not_swallow_a_cancellation(error):
    with pytest.raises(type(error)):
        fileno(Odd(error))


def test_close_calls_close(listener):
    close(listener)

    assert listener.fileno() == -1


@pytest.mark.parametrize("thing", [None, object(), type("Odd", (), {"close": 3})()])
def test_close_leaves_alone_what_has_no_close(thing):
    close(thing)


def test_what_close_raises_is_raised():
    class Broken:
        def close(self):
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        close(Broken())
