"""Sockets are opened before a deadline or not at all, and a look at one never waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import re
import resource
import select
import signal
import socket
import ssl
import struct
import time
import warnings
import weakref

import gevent
import gevent.event
import gevent.socket
import gevent.ssl
import greenlet
import pytest
from gevent.monkey import get_original

from certificates import make_certificates
from geventpool.errors import ConnectError, NameNotFound
from geventpool.sockets import SocketFactory, close, fileno, look

LINGER_0 = struct.pack("ii", 1, 0)  # close() sends RST
TLS_VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
KINDS = ["TCP", *TLS_VERSIONS]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def watchdog():
    """A look that blocks stops the whole process, gevent's timers too: only a signal helps."""

    def bark(*_):
        raise AssertionError("blocked for 20 s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def keep():
    """``keep(sock)`` returns *sock*, and closes it when the test is over."""
    with contextlib.ExitStack() as kept:

        def keep(sock):
            kept.callback(sock.close)
            return sock

        yield keep


def listening(host):
    """Not gevent.socket.create_server(): without patching it makes the stdlib's blocking socket."""
    sock = gevent.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.bind((host, 0))
    sock.listen()
    return sock


@pytest.fixture
def listener(keep):
    return keep(listening("127.0.0.1"))


@pytest.fixture
def trusting(certificates):
    """Contexts that trust the private authority, by the module they are made with."""

    def make(module=gevent.ssl):
        return module.create_default_context(cafile=str(certificates.authority))

    return make


@pytest.fixture
def serve_tls(listener, certificates, keep):
    """Start to accept one TLS connection; returns the greenlet that ends with it."""

    def serve(version=None):
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificates.certificate), str(certificates.key))
        if version is not None:
            context.minimum_version = context.maximum_version = version

        def accept():
            raw = listener.accept()[0]
            # What a test sends is there at once, not when the tickets have been acknowledged.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                return keep(context.wrap_socket(raw, server_side=True))
            except OSError as error:  # the client did not like us
                raw.close()
                return error

        return gevent.spawn(accept)

    return serve


@pytest.fixture
def connect(listener, serve_tls, trusting, keep):
    """Return both ends of a new connection: a factory's, and the server's."""

    def connect(kind):
        address = listener.getsockname()
        if kind == "TCP":
            return keep(SocketFactory(address)()), keep(listener.accept()[0])
        server = serve_tls(TLS_VERSIONS[kind])
        client = SocketFactory(address, tls=trusting(), server_hostname="localhost")()
        return keep(client), server.get()

    return connect


@pytest.fixture
def connect_foreign(listener, serve_tls, trusting, keep):
    """The same, but with the program's own ``socket`` and ``ssl``, whatever they are."""

    def connect(kind):
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
    def use(*answers, hangs=False):
        resolver = Resolver(*answers, hangs=hangs)
        monkeypatch.setattr(gevent.get_hub(), "resolver", resolver)
        return resolver

    return use


def open_sockets():
    """What this process has open: compared before and after, it shows a leak at once."""
    links = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(f"/proc/self/fd/{name}"))
    return {link for link in links if link.startswith("socket:")}


def fill_backlog(listener, keep):
    """Connect to *listener* until it answers no more."""
    listener.listen(0)
    for _ in range(10):
        filler = keep(gevent.socket.socket())
        filler.settimeout(0.1)
        try:
            filler.connect(listener.getsockname())
        except TimeoutError:
            return
    raise AssertionError("the listener takes any number of connections")


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
    assert type(client) is gevent.socket.socket
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
    nobody = listening("127.0.0.1")
    refusing = nobody.getsockname()
    nobody.close()
    resolve(refusing, listener.getsockname())

    client = keep(SocketFactory("two.test:80")())

    assert listener.getsockname() == client.getpeername()


def test_an_address_of_a_family_the_machine_lacks_is_passed_over(listener, keep, resolve):
    resolver = resolve(listener.getsockname())
    known = resolver.getaddrinfo()
    resolver.getaddrinfo = lambda *_: [(9999, socket.SOCK_STREAM, 0, "", ("x", 1)), *known]

    assert keep(SocketFactory("two.test:80")()).getpeername() == listener.getsockname()


def test_a_refused_connection_stays_connection_refused(listener):
    address = listener.getsockname()
    listener.close()
    before = open_sockets()

    with pytest.raises(ConnectionRefusedError, match=f"refused .127.0.0.1:{address[1]}") as caught:
        SocketFactory(address)()

    assert caught.value.errno == errno.ECONNREFUSED
    assert before == open_sockets()


def test_what_the_resolver_raises_passes_through(resolve):
    def getaddrinfo(*_):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    resolve().getaddrinfo = getaddrinfo

    with pytest.raises(socket.gaierror):
        SocketFactory("nowhere.test:80")()


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
    monkeypatch.setattr("geventpool.sockets.create_default_context", lambda: lenient)

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


def test_the_repr_says_the_target_and_how_it_is_secured(trusting):
    assert repr(SocketFactory(("host", 80))) == "<SocketFactory host:80>"
    assert repr(SocketFactory("[::1]:80")) == "<SocketFactory [::1]:80>"
    assert repr(SocketFactory("host:443", tls=trusting())) == "<SocketFactory host:443 TLS>"
    assert (
        repr(SocketFactory("host:443", tls="unverified"))
        == "<SocketFactory host:443 TLS unverified>"
    )


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

    def factory(self, connect_timeout=None):
        return SocketFactory("stuck.test:80", connect_timeout=connect_timeout, **self.options)

    def reached(self):
        """Wait until a greenlet that was just spawned is in the phase."""
        if self.phase == "resolving":
            assert self.resolver.asked.wait(5)
        elif self.phase == "connecting":
            gevent.sleep(0)
            assert len(open_sockets() - self.before) == 1
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


@pytest.fixture(params=["resolving", "connecting", "TLS handshake"])
def stuck(request, listener, keep, resolve, trusting):
    return Stuck(request.param, listener, keep, resolve, trusting())


def test_the_deadline_ends_every_phase_and_says_which_took_the_time(stuck):
    with pytest.raises(ConnectError) as caught:
        stuck.factory(connect_timeout=0.1)()

    stuck.assert_nothing_is_left()
    message = str(caught.value)
    assert message.startswith("stuck.test:80: not open after 0.1 s: resolving ")
    phases = message.split(" s: ")[1].split(", ")
    took = {phase: float(phase.split()[-2]) for phase in phases}
    longest = max(took, key=took.get)
    assert longest.startswith(stuck.phase)
    assert took[longest] >= 0.09


def test_the_deadline_is_never_started_again(listener, keep, resolve):
    fill_backlog(listener, keep)
    resolver = resolve(listener.getsockname(), hangs=True)
    timer = gevent.spawn_later(0.3, resolver.answer.set)
    began = time.monotonic()

    with pytest.raises(ConnectError, match=r"resolving 0\.[23].*connecting to 127.0.0.1.* 0\.[01]"):
        SocketFactory("slow.test:80", connect_timeout=0.4)()

    assert time.monotonic() - began < 0.6
    timer.join()


def test_a_kill_in_any_phase_leaves_nothing_open(stuck):
    dialer = gevent.spawn(stuck.factory())
    server = stuck.reached()

    dialer.kill()

    stuck.assert_nothing_is_left(server)
    assert isinstance(dialer.value, gevent.GreenletExit)


class Impatient(OSError):
    pass


@pytest.mark.parametrize("exception", [None, Impatient("a caller's own")], ids=["plain", "OSError"])
def test_a_timeout_of_the_caller_passes_through_every_phase(stuck, resolve, exception):
    # The second address would be tried if the caller's exception were taken for the system's.
    stuck.resolver.answers *= 2

    with (
        pytest.raises(type(exception) if exception else gevent.Timeout) as caught,
        gevent.Timeout(0.05, exception) as timeout,
    ):
        stuck.factory(connect_timeout=5)()

    assert caught.value is (exception or timeout)
    stuck.assert_nothing_is_left()


def test_a_deadline_that_is_kept_does_not_fire_later(listener, keep):
    keep(SocketFactory(listener.getsockname(), connect_timeout=0.02)())

    gevent.sleep(0.04)


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
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
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


def take_a_look(look_at_it):
    """Return what the look returns, having made sure that it did not switch."""
    switches = []
    tracing = greenlet.settrace(lambda *event: switches.append(event))
    try:
        found = look_at_it()
    finally:
        greenlet.settrace(tracing)
    assert not switches
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_connection_looks_clean_again_and_again(new_connection, kind):
    client, server = new_connection(kind)
    look_at_it = look(client)

    for _ in range(3):
        assert not take_a_look(look_at_it)
        server.sendall(b"ping")
        assert client.recv(4) == b"ping"
        client.sendall(b"pong")
        assert server.recv(4) == b"pong"


def test_unread_session_tickets_of_tls_1_3_look_clean(new_connection):
    client, server = new_connection("TLS 1.3")
    arrived(client)
    assert readable(client)

    assert not take_a_look(look(client))
    assert not readable(client)
    assert client.gettimeout() is None  # as it was
    server.sendall(b"ping")
    assert client.recv(4) == b"ping"


@pytest.mark.parametrize(
    ("kind", "state"), BAD_STATES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_connection_that_is_dead_or_dirty_looks_bad(new_connection, kind, state):
    client, server = new_connection(kind)
    look_at_it = look(client)

    state(client, server)

    assert take_a_look(look_at_it)


def test_unread_bytes_behind_session_tickets_look_bad(new_connection):
    client, server = new_connection("TLS 1.3")
    look_at_it = look(client)
    arrived(client)

    some_bytes(client, server)

    assert take_a_look(look_at_it) == "unread bytes"


def test_an_end_behind_session_tickets_looks_bad(new_connection):
    client, server = new_connection("TLS 1.3")
    look_at_it = look(client)

    server.shutdown(socket.SHUT_WR)
    arrived(client)

    assert take_a_look(look_at_it)


@pytest.mark.parametrize("kind", KINDS)
def test_looking_is_allowed_in_a_hub_callback(connect, kind):
    client, _ = connect(kind)
    if kind == "TLS 1.3":
        arrived(client)
    found = gevent.event.AsyncResult()
    look_at_it = look(client)

    gevent.get_hub().loop.run_callback(lambda: found.set(look_at_it()))

    assert not found.get(timeout=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_socket_is_not_taken_for_the_one_that_got_its_number(new_connection, kind):
    client, _ = new_connection(kind)
    other, _ = new_connection("TCP")
    look_at_it = look(client)
    number = client.fileno()
    client.close()
    os.dup2(other.fileno(), number)

    try:
        assert take_a_look(look_at_it) == "closed"
    finally:
        os.close(number)


@pytest.mark.parametrize("kind", [*KINDS, "program's"])
def test_a_look_does_not_keep_the_connection(listener, serve_tls, trusting, kind):
    address = listener.getsockname()
    if kind == "program's":
        client = socket.create_connection(address)
    elif kind == "TCP":
        client = SocketFactory(address)()
    else:
        server = serve_tls(TLS_VERSIONS[kind])
        client = SocketFactory(address, tls=trusting(), server_hostname="localhost")()
        server.get()
    look_at_it = look(client)
    assert not look_at_it()
    gone = weakref.ref(client)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was not closed: so what
        del client
        gc.collect()

    assert gone() is None
    assert take_a_look(look_at_it) == "closed"


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
        look_at_it = look(client)

        assert client.fileno() > 1024
        assert not look_at_it()
        some_bytes(client, server)
        assert look_at_it()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_socket_closed_before_gets_a_look_that_says_so(keep):
    sock = gevent.socket.socket()
    sock.close()

    assert look(sock)() == "closed"


@pytest.mark.parametrize("thing", [None, object(), 3, "socket"])
def test_there_is_no_look_for_what_is_not_a_socket(thing):
    assert look(thing) is None


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
