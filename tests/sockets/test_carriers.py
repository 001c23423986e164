"""A driver's connection is watched by what carries its bytes, and asked for that at each look."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import weakref

import gevent
import gevent.socket
import greenlet
import pika
import pytest
from gevent import monkey
from gevent.monkey import get_original

from geventpool.sockets import (
    CLOSED,
    CUT_SHORT,
    REPLACED,
    UNREAD,
    Guard,
    MonitoredSocket,
    SocketFactory,
    carriers,
    descriptors_in,
    watch,
)
from geventpool.sockets.carriers import listed
from support.child import close_now
from support.drivers import CLIENTS, close
from support.servers import EchoServer, require_server

foreign_socket = get_original("socket", "socket")


@pytest.fixture
def client(request):
    client = request.param()
    if client.needs_patching and not monkey.is_module_patched("socket"):
        pytest.skip("the client blocks unless gevent has patched it")
    with contextlib.ExitStack() as stack:
        if client.needs_patching:
            stack.enter_context(client.server)
        client.conn = client.open()
        yield client
        with contextlib.suppress(Exception):  # closed in the test
            close(client, client.conn)


of_each_client = pytest.mark.parametrize("client", CLIENTS, indirect=True)
of_those_that_reconnect = pytest.mark.parametrize(
    "client", [each for each in CLIENTS if each.reconnects], indirect=True
)


def look(probe, conn):
    """Look, having made sure that nothing switches."""
    switches = []
    tracing = greenlet.settrace(lambda *event: switches.append(event))
    try:
        found = probe(conn)
    finally:
        greenlet.settrace(tracing)
    assert not switches
    return found


def number_of(carrier):
    return carrier if isinstance(carrier, int) else carrier.fileno()


def is_open(descriptor):
    return os.path.exists(f"/proc/self/fd/{descriptor}")


def arrived(descriptor):
    gevent.socket.wait_read(descriptor, timeout=5)


@of_each_client
def test_a_driver_is_found_out_without_a_hook(client):
    expected = client.socket(client.conn)

    assert carriers(client.conn) is expected or carriers(client.conn) == expected
    probe = watch(client.conn)
    for _ in range(3):
        assert not look(probe, client.conn)
    assert probe.descriptors == (number_of(expected),)
    if monkey.is_module_patched("socket"):
        assert isinstance(expected, Guard) == client.cuts


@of_each_client
def test_a_reply_nobody_has_read_is_seen(client):
    probe = watch(client.conn)

    client.send(client.conn)

    arrived(number_of(client.socket(client.conn)))
    assert look(probe, client.conn) == UNREAD
    assert look(probe, client.conn) == UNREAD


@of_each_client
def test_a_peer_that_hung_up_is_seen(client):
    probe = watch(client.conn)

    with foreign_socket(fileno=os.dup(number_of(client.socket(client.conn)))) as same:
        same.shutdown(socket.SHUT_RDWR)

    assert look(probe, client.conn)


@of_each_client
def test_a_driver_that_closed_it_is_not_taken_for_who_got_the_number(client):
    probe = watch(client.conn)
    number = number_of(client.socket(client.conn))
    close(client, client.conn)
    with gevent.Timeout(5):
        while is_open(number):  # gevent closes a socket a little later
            gevent.sleep(0)
    with contextlib.ExitStack() as stack:
        while not is_open(number):
            stack.enter_context(foreign_socket())

        assert look(probe, client.conn) == CLOSED


@of_those_that_reconnect
def test_a_driver_that_connected_anew_is_seen_and_may_be_watched_anew(client):
    probe = watch(client.conn)

    client.connect_anew(client.conn)

    assert look(probe, client.conn) == REPLACED
    assert probe.rewatch(client.conn)
    assert probe.descriptors == (number_of(client.socket(client.conn)),)
    assert not look(probe, client.conn)
    client.send(client.conn)
    arrived(number_of(client.socket(client.conn)))
    assert look(probe, client.conn) == UNREAD


@pytest.mark.skipif(not monkey.is_module_patched("socket"), reason="only gevent's get a guard")
@pytest.mark.parametrize("client", [each for each in CLIENTS if each.cuts], indirect=True)
def test_a_wait_of_a_driver_that_ends_silently_is_seen(client):
    probe = watch(client.conn)

    with gevent.Timeout(0.02, False):
        client.wait_in_vain(client.conn)
        raise AssertionError("it did not wait")

    # Some close at once what was cut short; the others would read the reply next.
    assert look(probe, client.conn) in (CUT_SHORT, CLOSED)


def test_a_wait_that_was_cut_short_can_be_forgiven_and_is_seen_again():
    with EchoServer() as server:

        class Polling:
            def __init__(self):
                self.sock = SocketFactory(server.address)()

            def poll(self):
                with gevent.Timeout(0.005, False):
                    self.sock.recv(1)

        conn = Polling()
        probe, careless = watch(conn), watch(conn, guarded=False)
        for _ in range(2):
            conn.poll()
            assert probe.cut_short
            assert look(probe, conn) == CUT_SHORT
            assert not careless.cut_short
            assert not look(careless, conn)
            probe.forgive()
            assert not probe.cut_short
            assert not look(probe, conn)
        conn.sock.close()


def test_a_driver_that_hides_its_socket_is_watched_by_a_hook():
    host, port = require_server("rabbitmq")
    conn = pika.BlockingConnection(pika.ConnectionParameters(host, port))
    assert carriers(conn) is None
    assert watch(conn) is None

    def hidden(conn):
        return conn._impl._transport._sock

    probe = watch(conn, hidden)
    assert not look(probe, conn)
    conn.close()
    assert look(probe, conn) == CLOSED


@pytest.fixture
def pair():
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Holder:
    """Any object with a place for a socket."""

    def __init__(self, sock=None):
        self.sock = sock


@pytest.mark.parametrize(
    "form",
    [
        lambda sock: sock,
        lambda sock: (sock.makefile("rb"), sock.makefile("wb")),
        lambda sock: (sock.makefile("r", encoding="utf-8"), sock),
        lambda sock: (sock, 17, "name"),
        lambda sock: MonitoredSocket(sock),
        lambda sock: Holder(sock),
        lambda sock: (Holder(sock), object()),
    ],
    ids=["socket", "reader, writer", "text, socket", "socket and more", "proxy", "object", "tuple"],
)
def test_every_form_of_a_connection_leads_to_its_socket(pair, form):
    ours, theirs = pair
    conn = form(ours)
    with contextlib.ExitStack() as stack:
        for part in conn if isinstance(conn, tuple) else ():
            if hasattr(part, "readable"):
                stack.callback(part.close)
        assert listed(carriers(conn)) == (ours,)
        probe = watch(conn)
        assert not look(probe, conn)
        assert probe.descriptors == (ours.fileno(),)

        with gevent.Timeout(0.005, False):
            ours.recv(1)

        assert look(probe, conn) == CUT_SHORT
        probe.forgive()
        theirs.sendall(b"x")
        assert look(probe, conn) == UNREAD


@pytest.mark.parametrize("thing", [object(), 7, "text", b"bytes", (), (1, "two"), None, {}])
def test_what_leads_to_no_file_is_not_watched(thing):
    assert carriers(thing) is None
    assert watch(thing) is None


def test_a_file_is_found_in_anything_without_a_property_being_read(pair):
    sock, _ = pair
    number = sock.fileno()

    class Lazy:
        @property
        def sock(self):
            raise AssertionError("it would connect")

    class Driver:
        def __init__(self, **places):
            vars(self).update(places)

    for thing in (sock, sock._sock, Driver(sock=sock), Driver(_sock=sock)):
        assert descriptors_in(thing) == (number,)
    for thing in (Lazy(), Lazy, Driver(sock=None), Driver(other=sock), None, 5, (sock,)):
        assert descriptors_in(thing) == ()


def test_an_object_that_raises_when_it_is_asked_is_not_watched():
    class Wild:
        def __getattr__(self, name):
            raise RuntimeError(name)

    class Odd:
        def fileno(self):
            raise RuntimeError

        @property
        def sock(self):
            raise RuntimeError

    assert watch(Odd()) is None
    with pytest.raises(RuntimeError):
        watch(Odd(), lambda conn: conn.sock)  # a hook may raise, and it is told
    assert watch(Wild()) is None


def test_several_files_are_watched_together():
    pairs = [gevent.socket.socketpair() for _ in range(3)]
    conn = object()
    found = [pairs[0][0], pairs[1][0], pairs[2][0].fileno(), pairs[0][0].fileno()]
    probe = watch(conn, lambda conn: found)

    assert set(probe.descriptors) == {ours.fileno() for ours, _ in pairs}
    for ours, theirs in pairs:
        assert not look(probe, conn)
        theirs.sendall(b"x")
        assert look(probe, conn) == UNREAD
        assert ours.recv(1) == b"x"
    del found[1]
    assert look(probe, conn) == REPLACED
    for each in pairs:
        each[0].close()
        each[1].close()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (lambda: None, CLOSED),
        (lambda: -1, CLOSED),
        (lambda: 1 // 0, CLOSED),
        (lambda: "text", CLOSED),
        (lambda: (), CLOSED),
        (lambda: os.dup(0), REPLACED),
    ],
    ids=["None", "negative", "an error", "nonsense", "nothing", "another number"],
)
def test_whatever_else_the_hook_says_later_the_connection_is_not_the_same(pair, answer, verdict):
    ours, _ = pair
    said = [lambda: ours]
    given = []

    def ask(conn):
        given.append(said[-1]())
        return given[-1]

    conn = object()
    for first in (lambda: ours, ours.fileno):
        said.append(first)
        probe = watch(conn, ask)
        assert not look(probe, conn)
        said.append(answer)
        assert look(probe, conn) == verdict
        if verdict is REPLACED:
            close_now(given[-1])


def test_a_number_that_is_another_files_now_is_seen(pair):
    ours, _ = pair
    number = os.dup(ours.fileno())
    conn = object()
    probe = watch(conn, lambda conn: number)
    assert not look(probe, conn)
    other = foreign_socket()

    os.dup2(other.fileno(), number)

    assert look(probe, conn) == REPLACED
    assert probe.rewatch(conn)
    poller = get_original("select", "poll")()
    poller.register(number, select.POLLIN)
    assert bool(look(probe, conn)) == bool(poller.poll(0))
    other.close()
    close_now(number)
    assert look(probe, conn) == REPLACED
    assert not probe.rewatch(conn)
    assert look(probe, conn) == CLOSED
    assert probe.descriptors == ()


@pytest.mark.parametrize("nonsense", ["text", 1.5, True, object()])
def test_a_hook_that_answers_nonsense_is_told_so(nonsense):
    with pytest.raises(TypeError, match="_socket must return a socket, a file descriptor"):
        watch(object(), lambda conn: nonsense)


@pytest.mark.parametrize("number", [-1, 10**6, 10**100])
def test_a_hook_that_answers_with_no_open_file_is_told_so(number):
    with pytest.raises(ValueError, match=f"_socket returned {number}, which is no open file"):
        watch(object(), lambda conn: number)


def test_a_hook_may_answer_with_what_has_the_socket(pair):
    ours, _ = pair
    conn = object()
    probe = watch(conn, lambda conn: Holder(ours))

    assert probe.descriptors == (ours.fileno(),)
    assert not look(probe, conn)


def test_a_driver_that_connects_at_its_first_use_is_watched_from_then_on(pair):
    ours, theirs = pair
    conn = Holder()
    assert carriers(conn) == ()
    probe = watch(conn)
    assert not look(probe, conn)
    assert probe.descriptors == ()

    conn.sock = ours
    assert not look(probe, conn)
    assert probe.descriptors == (ours.fileno(),)
    theirs.sendall(b"x")
    assert look(probe, conn) == UNREAD

    conn.sock = None
    assert look(probe, conn) == CLOSED


def test_putting_tls_on_it_is_no_secret(pair):
    ours, _ = pair
    conn = Holder(ours)
    probe = watch(conn)
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, gevent.ssl.CERT_NONE

    conn.sock = gevent.ssl.SSLSocket(sock=ours, _context=context, do_handshake_on_connect=False)

    assert look(probe, conn) == REPLACED
    assert probe.rewatch(conn)
    assert not look(probe, conn)
    with gevent.Timeout(0.005, False):
        conn.sock.do_handshake()
    assert look(probe, conn) == CUT_SHORT
    conn.sock.close()


def test_a_probe_keeps_no_connection(pair):
    ours, _ = pair
    conn = Holder(gevent.socket.socket(fileno=ours.detach()))
    probe = watch(conn)
    references = [weakref.ref(conn), weakref.ref(conn.sock)]

    conn.sock.close()
    del conn
    gevent.sleep(0)
    gc.collect()

    assert [reference() for reference in references] == [None, None]
    assert look(probe, Holder()) == CLOSED


def test_a_socket_of_the_standard_library_is_looked_at_without_a_guard():
    ours, theirs = get_original("socket", "socketpair")()
    with ours, theirs:
        for conn in (ours, Holder(ours)):
            probe = watch(conn)
            assert not look(probe, conn)
            theirs.sendall(b"x")
            assert look(probe, conn) == UNREAD
            assert ours.recv(1) == b"x"
            assert not probe.cut_short
    assert look(probe, conn) == CLOSED
