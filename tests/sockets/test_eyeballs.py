"""The addresses of one host are raced: the first to answer wins, and nothing else stays open."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import socket
import time

import gevent
import gevent.socket
import greenlet
import pytest

from geventpool.sockets.happy_eyeballs import Candidate, connect, interleaved
from support.descriptors import Servers, open_sockets
from support.strikes import STRIKES, strike_everywhere

V4, V6 = socket.AF_INET, socket.AF_INET6
LONG = 30.0  # a stagger that is over in a test that hangs only


def make(candidate):
    sock = gevent.socket.socket(candidate.family)
    sock.setblocking(False)
    return sock


class Hosts:
    """Candidates that take a connection, refuse it or do not answer at all."""

    def __init__(self, keep):
        self.servers = Servers(keep)

    def live(self, name="live"):
        return Candidate(V4, self.servers.live(), name)

    def dead(self, name="dead"):
        return Candidate(V4, self.servers.dead(), name)

    def silent(self, name="silent"):
        return Candidate(V4, self.servers.silent(), name)


@pytest.fixture
def hosts(keep):
    return Hosts(keep)


# In which order


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", ""),
        ("4a", "4a"),
        ("6a 6b 4a 4b", "6a 4a 6b 4b"),
        ("4a 4b 4c 6a", "4a 6a 4b 4c"),
        ("6a 4a 4b 4c", "6a 4a 4b 4c"),
        ("4a 4a 6a 4a", "4a 6a"),
    ],
)
def test_families_take_turns_and_the_first_one_begins(given, wanted):
    def candidates(text):
        return [Candidate(V4 if name[0] == "4" else V6, name, name) for name in text.split()]

    assert interleaved(candidates(given)) == candidates(wanted)


# Who wins


def test_the_one_address_there_is_wins_and_no_other_runs(hosts, keep):
    live = hosts.live()
    left, failed = [live], []
    ran = set()
    tracing = greenlet.settrace(lambda _, args: ran.update(args))
    try:
        sock, winner = connect(left, make, failed)
    finally:
        greenlet.settrace(tracing)

    assert keep(sock).getpeername() == live.sockaddr
    assert (winner, left, failed) == (live, [], [])
    assert ran <= {gevent.getcurrent(), gevent.get_hub()}


def test_an_address_that_answers_in_time_is_the_only_one_dialed(hosts, keep):
    first, second = hosts.live("first"), hosts.live("second")
    made = []

    sock, winner = connect([first, second], lambda each: made.append(each) or make(each), [])

    keep(sock)
    assert winner is first
    assert made == [first]


def test_after_the_stagger_the_next_address_is_tried_and_the_silent_one_is_let_go(hosts, keep):
    silent, live = hosts.silent(), hosts.live()
    left, failed = [silent, live], []
    began, dialed = time.monotonic(), []
    before = open_sockets()

    def note(candidate):
        dialed.append(time.monotonic() - began)
        return make(candidate)

    sock, winner = connect(left, note, failed, stagger=0.1)

    assert winner is live
    assert keep(sock).getpeername() == live.sockaddr
    assert 0.09 <= dialed[1] - dialed[0] < LONG
    assert (left, failed) == ([silent], [])
    assert len(open_sockets() - before) == 1


def test_the_stagger_is_a_quarter_of_a_second_as_rfc_8305_recommends():
    assert inspect.signature(connect).parameters["stagger"].default == 0.25


def test_a_failed_attempt_starts_the_next_one_at_once(hosts, keep):
    dead, live = hosts.dead(), hosts.live()
    left, failed = [dead, live], []
    began = time.monotonic()

    sock, winner = connect(left, make, failed, stagger=LONG)

    keep(sock)
    assert time.monotonic() - began < LONG
    assert winner is live
    assert left == []
    assert [(name, error.errno) for name, error in failed] == [("dead", errno.ECONNREFUSED)]


def test_an_address_that_fails_late_does_not_end_the_attempts_of_the_others(hosts, keep):
    silent, dead, live = hosts.silent(), hosts.dead(), hosts.live()
    left, failed = [silent, dead, live], []

    sock, winner = connect(left, make, failed, stagger=0.05)

    keep(sock)
    assert winner is live
    assert left == [silent]
    assert [name for name, _ in failed] == ["dead"]


@pytest.mark.slow
def test_an_address_that_took_its_time_may_still_win(hosts, keep):
    slow, silent = hosts.silent("slow"), hosts.silent()
    listener = hosts.servers.listeners[slow.sockaddr]

    def make_room():
        while True:
            listener.accept()[0].close()

    room = gevent.spawn_later(0.05, make_room)
    try:
        # The system sends its SYN again after a second.
        sock, winner = connect([slow, silent], make, [], stagger=0.02)
    finally:
        room.kill()

    keep(sock)
    assert winner is slow


def test_none_wins_if_all_fail_and_all_errors_are_kept_in_order(hosts):
    candidates = [hosts.dead(name) for name in "abc"]
    failed = []
    before = open_sockets()

    assert connect(candidates, make, failed) is None

    assert [name for name, _ in failed] == ["a", "b", "c"]
    for name, error in failed:
        assert isinstance(error, ConnectionRefusedError)
        assert str(error) == f"[Errno {errno.ECONNREFUSED}] Connection refused ({name})"
        assert error.__traceback__ is None
    assert candidates == []
    assert open_sockets() == before


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(9999, ("x", 1), "odd"),
        Candidate(socket.AF_UNIX, "/x" * 100, "odd"),
        Candidate(socket.AF_UNIX, "/no/such/socket", "odd"),
    ],
    ids=["family", "long path", "no path"],
)
def test_what_fails_before_there_is_anything_to_wait_for_is_a_failure_too(hosts, keep, candidate):
    failed = []

    sock, winner = connect([candidate, hosts.live()], make, failed, stagger=LONG)

    keep(sock)
    assert winner.name == "live"
    [(name, error)] = failed
    assert name == "odd"
    assert isinstance(error, OSError)


@pytest.fixture
def full(tmp_path, keep):
    """A listener on a Unix socket whose accept queue is full, and the candidate that it is."""
    listener = keep(gevent.socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "sock"))
    listener.listen(0)
    listener.setblocking(False)
    filler = keep(gevent.socket.socket(socket.AF_UNIX))
    filler.connect(str(tmp_path / "sock"))
    return listener, Candidate(socket.AF_UNIX, str(tmp_path / "sock"), "full")


def test_a_full_accept_queue_of_a_unix_socket_is_waited_out(full, keep):
    listener, candidate = full
    failed, queued = [], []

    def connect_soon():
        return connect([candidate], make, failed, queued=queued.append)

    with gevent.Timeout(10):
        dialer = gevent.spawn(connect_soon)
        while not queued:
            gevent.sleep(0)
        for _ in range(3):
            gevent.sleep(0.01)
        assert not dialer.ready()
        keep(listener.accept()[0])
        sock, connected_to = dialer.get()

    keep(sock).sendall(b"hello")
    assert keep(listener.accept()[0]).recv(5) == b"hello"
    assert connected_to is candidate
    assert queued == [candidate]  # told once
    assert failed == []


@pytest.mark.parametrize("strike", STRIKES, ids=repr)
def test_a_full_accept_queue_is_left_with_nothing_open(full, strike, keep):
    listener, candidate = full
    before = open_sockets()
    mine = set()

    def make_and_note(candidate):
        sock = make(candidate)
        mine.add(f"socket:[{os.fstat(sock.fileno()).st_ino}]")
        return sock

    def accept():
        with contextlib.suppress(BlockingIOError):
            keep(listener.accept()[0])

    def wait_for_room():
        filler = gevent.socket.socket(socket.AF_UNIX)
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(candidate.sockaddr)  # full it was, and full it is
        timer = gevent.get_hub().loop.timer(0.005)
        timer.start(accept)
        try:
            return connect([candidate], make_and_note, [])[0]
        finally:
            timer.close()
            filler.close()

    def mine_open():
        return len((open_sockets() - before) & mine)

    assert strike_everywhere(strike, wait_for_room, mine_open) >= 1


def test_a_listener_that_goes_while_its_queue_is_full_is_a_failure(full, tmp_path):
    listener, candidate = full
    failed, queued = [], []
    dialer = gevent.spawn(connect, [candidate], make, failed, queued=queued.append)
    while not queued:
        gevent.sleep(0)

    listener.close()

    assert dialer.get(timeout=10) is None
    assert [error.errno for _, error in failed] == [errno.ECONNREFUSED]


def test_a_connection_to_itself_is_refused(hosts):
    holder = gevent.socket.socket()
    holder.bind(("127.0.0.1", 0))
    address = holder.getsockname()
    failed = []

    def make_from_there(_):
        holder.setblocking(False)
        return holder

    assert connect([Candidate(V4, address, "me")], make_from_there, failed) is None

    assert [error.errno for _, error in failed] == [errno.ECONNREFUSED]
    assert holder.fileno() == -1


# Whatever ends it, nothing stays open


class Impatient(OSError):
    pass


def test_a_timeout_of_the_caller_is_no_failed_address(hosts):
    failed = []
    before_all = [hosts.silent("a"), hosts.silent("b"), hosts.live()]
    left = list(before_all)
    before = open_sockets()
    impatient = Impatient("enough")

    with pytest.raises(Impatient) as caught, gevent.Timeout(0.05, impatient):
        connect(left, make, failed, stagger=0.03)

    assert caught.value is impatient
    assert open_sockets() == before
    assert (left, failed) == (before_all, [])


def test_what_make_raises_by_mistake_goes_through_and_closes_the_others(hosts):
    silent, live = hosts.silent(), hosts.live()
    before = open_sockets()

    def make_one(candidate):
        if candidate is live:
            raise ZeroDivisionError
        return make(candidate)

    with pytest.raises(ZeroDivisionError):
        connect([silent, live], make_one, [], stagger=0.01)

    assert open_sockets() == before


@pytest.mark.slow
@pytest.mark.parametrize("strike", STRIKES, ids=repr)
def test_nothing_is_open_wherever_a_race_is_cancelled(strike, hosts):
    candidates = [hosts.silent("a"), hosts.dead("b"), hosts.silent("c"), hosts.live("d")]
    before = open_sockets()

    def race():
        return connect(list(candidates), make, [], stagger=0.005)[0]

    assert strike_everywhere(strike, race, lambda: len(open_sockets() - before)) > 2
