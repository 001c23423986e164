"""A guarded socket remembers that a wait on it was cut short, however silently."""

from __future__ import annotations

import gc
import random
import socket
import time
import weakref
from collections import deque

import gevent
import gevent.event
import gevent.lock
import gevent.socket
import gevent.ssl
import pytest
from gevent.monkey import get_original

from geventpool import ConnectionManager
from geventpool.sockets import Guard, SocketFactory, guard
from geventpool.sockets.guard import forgive, was_cut_short
from support.servers import EchoServer, IdServer, ask


class Wrapped(Exception):
    """What a driver makes of a time-out."""


def end_silently(sock):
    with gevent.Timeout(0.005, False):
        sock.recv(1)


def be_killed_and_swallow_it(sock):
    def read():
        try:
            sock.recv(1)
        except gevent.GreenletExit:
            pass

    reader = gevent.spawn(read)
    gevent.sleep(0)
    reader.kill()


def time_out_and_wrap_it(sock):
    def ask():
        try:
            sock.recv(1)
        except TimeoutError as error:
            raise Wrapped from error

    sock.settimeout(0.005)
    with pytest.raises(Wrapped):
        ask()
    sock.settimeout(None)


def give_up_a_line(sock):
    with sock.makefile("rb") as file, gevent.Timeout(0.005, False):
        file.readline()


def give_up_sending(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with gevent.Timeout(0.005, False):
        sock.sendall(b"x" * 10_000_000)


CUTS = [
    end_silently,
    be_killed_and_swallow_it,
    time_out_and_wrap_it,
    give_up_a_line,
    give_up_sending,
]


class Mute(EchoServer):
    """Answers nothing, and reads nothing."""

    def serve(self, sock):
        self.sock = sock
        gevent.event.Event().wait()


@pytest.fixture(params=["TCP", "TLS"])
def dial(request, certificates):
    """Connect to a server that answers nothing, with a socket of the kind and class wanted."""
    context = None
    if request.param == "TLS":
        context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificates.certificate), str(certificates.key))
    dialed = []
    with Mute(ssl_context=context) as server:

        def dial(born_guarded=True):
            tls = False if context is None else "unverified"
            sock = SocketFactory(server.address, tls=tls)()
            if not born_guarded:
                sock.close()
                sock = gevent.socket.socket()
                sock.connect(server.address)
                if context is not None:
                    ours = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
                    ours.check_hostname, ours.verify_mode = False, gevent.ssl.CERT_NONE
                    sock = gevent.ssl.SSLSocket(sock=sock, _context=ours)
            dialed.append(sock)
            return sock

        yield dial
        for sock in dialed:
            sock.close()


@pytest.mark.parametrize("cut", CUTS)
def test_a_wait_that_is_cut_short_is_remembered(dial, cut):
    sock = dial()
    assert not was_cut_short(sock)

    cut(sock)

    assert was_cut_short(sock)


@pytest.mark.parametrize("cut", CUTS)
def test_any_socket_of_gevents_gets_a_guard(dial, cut):
    sock = dial(born_guarded=False)
    assert not isinstance(sock, Guard)

    assert guard(sock)

    assert not was_cut_short(sock)
    cut(sock)
    assert was_cut_short(sock)


def test_a_request_sent_in_part_is_remembered_where_no_wait_was_cut_short():
    ours, theirs = gevent.socket.socketpair()
    with ours, theirs:
        assert guard(ours)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.settimeout(0.05)

        def read_slowly():
            while True:  # so that no single wait takes as long
                gevent.socket.wait_read(theirs.fileno())
                theirs.recv(4096)
                gevent.sleep(0.01)

        reader = gevent.spawn(read_slowly)
        try:
            with pytest.raises(TimeoutError):
                ours.sendall(b"x" * 10_000_000)
        finally:
            reader.kill()

        assert was_cut_short(ours)


def test_a_wait_that_ends_well_is_no_news():
    with IdServer(late_share=1.0, late_by=0.001) as server, SocketFactory(server.address)() as sock:
        for number in range(10):
            assert ask(sock, str(number)) == str(number)
        with gevent.Timeout(0.001, False):
            gevent.sleep(1)  # not on the socket

        assert not was_cut_short(sock)


def test_what_does_not_wait_is_not_cut_short(dial):
    sock = dial()
    sock.settimeout(0.0)

    with pytest.raises((BlockingIOError, gevent.ssl.SSLWantReadError)):
        sock.recv(1)

    assert not was_cut_short(sock)


def test_what_was_forgiven_is_remembered_anew(dial):
    sock = dial()
    end_silently(sock)

    forgive(sock)

    assert not was_cut_short(sock)
    end_silently(sock)
    assert was_cut_short(sock)


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_guard_stays_when_tls_is_put_on_a_socket(certificates, when):
    context = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(certificates.certificate), str(certificates.key))
    ours = gevent.ssl.SSLContext(gevent.ssl.PROTOCOL_TLS_CLIENT)
    ours.load_verify_locations(str(certificates.authority))
    with Mute(ssl_context=context) as server:
        plain = SocketFactory(server.address)()
        if when == "before":
            end_silently(plain)
        with gevent.ssl.SSLSocket(sock=plain, server_hostname="localhost", _context=ours) as sock:
            assert was_cut_short(sock) == (when == "before")
            if when == "after":
                end_silently(sock)

            assert was_cut_short(sock)
            assert plain.fileno() == -1


def test_a_descriptor_can_be_taken_from_a_guarded_socket():
    ours, theirs = gevent.socket.socketpair()
    with theirs:
        assert guard(ours)
        end_silently(ours)
        with gevent.socket.socket(fileno=ours.detach()) as taken:
            theirs.sendall(b"hello")
            assert taken.recv(5) == b"hello"
        assert was_cut_short(ours)
        assert ours.fileno() == -1


def test_a_subclass_keeps_what_it_is():
    class Mine(gevent.socket.socket):
        def __init__(self, *args):
            super().__init__(*args)
            self.mark = "kept"

        def _wait(self, *args):
            waits.append(args)
            super()._wait(*args)

    waits = []
    with Mine() as sock, Mine() as other:
        before = repr(sock)
        assert guard(sock)
        assert guard(other)
        assert isinstance(sock, Mine)
        assert type(sock) is type(other)
        assert sock.mark == "kept"
        assert repr(sock) == before

    ours, theirs = gevent.socket.socketpair()
    with theirs, Mine(ours.family, ours.type, 0, ours.detach()) as sock:
        assert guard(sock)
        end_silently(sock)
        assert was_cut_short(sock)
    assert len(waits) == 1


def test_what_is_not_gevents_gets_no_guard():
    foreign = get_original("socket", "socket")()
    with foreign:
        assert not guard(foreign)
        assert not was_cut_short(foreign)
        forgive(foreign)
    assert not guard(object())
    assert not guard(None)


def test_a_class_that_takes_no_subclass_is_left_alone():
    class Final(gevent.socket.socket):
        def __init_subclass__(cls, **kwargs):
            raise RuntimeError("this is the last one")

    with Final() as sock:
        assert not guard(sock)
        assert type(sock) is Final


def test_a_class_is_not_kept_for_its_guard():
    def use():
        class Mine(gevent.socket.socket):
            pass

        with Mine() as sock:
            assert guard(sock)
        return weakref.ref(Mine)

    reference = use()
    gevent.sleep(0)
    gc.collect()
    assert reference() is None


def test_a_managers_socket_has_a_guard():
    with Mute() as server, ConnectionManager({"mute": [[(1, server.address)]]}) as manager:
        sock = manager.get_connection("mute")
        end_silently(sock)
        assert was_cut_short(sock._sock)
        sock.close()


def test_sixty_greenlets_with_silent_timeouts_never_read_the_reply_of_another():
    """Ten sockets handed on from one to the next; one reply in five is late."""
    made, answers = [], []
    with IdServer(late_share=0.2, late_by=0.03, seed=7) as server:
        dial = SocketFactory(server.address)
        idle = deque(dial() for _ in range(10))
        made.extend(idle)
        free = gevent.lock.Semaphore(10)

        def caller(number):
            for turn in range(10):
                question, answer = f"{number}.{turn}", None
                with free:
                    sock = idle.popleft()
                    with gevent.Timeout(random.Random(question).uniform(0.005, 0.025), False):
                        answer = ask(sock, question)
                    if was_cut_short(sock):
                        sock.close()
                        sock = dial()
                        made.append(sock)
                    idle.append(sock)
                if answer is not None:
                    answers.append((question, answer))

        gevent.joinall([gevent.spawn(caller, number) for number in range(60)], raise_error=True)
        for sock in made:
            sock.close()

    assert len(made) > 20  # some were cut short
    assert len(answers) > 300
    assert [pair for pair in answers if pair[0] != pair[1]] == []


def test_a_wait_costs_about_a_microsecond_more_at_most():
    def echoes(guarded):
        ours, theirs = gevent.socket.socketpair()

        def serve():
            while data := theirs.recv(10):
                theirs.sendall(data)

        with ours, theirs:
            if guarded:
                assert guard(ours)
            server = gevent.spawn(serve)
            began = time.process_time()
            for _ in range(2000):
                ours.sendall(b"x")
                ours.recv(10)
            took = (time.process_time() - began) / 2000
            ours.shutdown(socket.SHUT_WR)
            server.join()
        return took

    plain, guarded = zip(*((echoes(False), echoes(True)) for _ in range(9)), strict=True)
    assert min(guarded) - min(plain) < 3e-6
