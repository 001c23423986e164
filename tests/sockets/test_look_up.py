"""Two look-ups of one host are under way at a time: a dead name leaves threads to others."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import AsyncResult

from geventpool import ConnectError, SocketFactory
from geventpool.addresses import Address
from geventpool.sockets.look_up import look_up
from support.child import FORKS, Child, close_now
from support.waiting import until

ANYHOW = socket.AF_UNSPEC


def infos(host: str, port: int) -> list[Any]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]


class Book:
    """A resolver whose questions are answered by hand: ``asked`` has an AsyncResult for each."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, int], AsyncResult[Any]]] = []

    def getaddrinfo(self, host: str, port: int, *_: Any) -> Any:
        answer: AsyncResult[Any] = AsyncResult()
        self.asked.append(((host, port), answer))
        return answer.get()

    def answer(self, number: int, host: str = "10.0.0.1") -> None:
        (_, port), answer = self.asked[number]
        answer.set(infos(host, port))


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    book = Book()
    monkeypatch.setattr(gevent.get_hub(), "resolver", book)
    yield book
    for number in range(len(book.asked)):
        book.answer(number)
    gevent.sleep(0)


def outcome(server: Address, family: int) -> Any:
    try:
        return look_up(server, family)
    except BaseException as error:
        return error


def looking_up(host: str = "slow.test", port: int = 80, family: int = ANYHOW) -> Any:
    greenlet = gevent.spawn(outcome, Address(host, port), family)
    gevent.sleep(0)
    gevent.sleep(0)  # and the greenlet that it has made asks
    return greenlet


def test_of_one_host_two_look_ups_are_under_way_and_others_have_their_answer(book: Book) -> None:
    callers = [looking_up() for _ in range(20)]
    assert len(book.asked) == 2

    book.answer(1, "10.0.0.7")
    gevent.joinall(callers[1:], timeout=10, raise_error=True)

    assert {caller.value[0][4] for caller in callers[1:]} == {("10.0.0.7", 80)}
    assert len(book.asked) == 2
    assert not callers[0].ready()  # its own look-up is still under way
    book.answer(0)
    callers[0].get(timeout=10)


def test_other_hosts_and_other_families_are_looked_up_meanwhile(book: Book) -> None:
    for _ in range(3):
        looking_up()

    others = [looking_up("web.test"), looking_up(family=socket.AF_INET6)]

    assert [asked for asked, _ in book.asked[2:]] == [("web.test", 80), ("slow.test", 80)]
    for number in (2, 3):
        book.answer(number)
    gevent.joinall(others, timeout=10, raise_error=True)


def test_who_waits_does_not_get_the_answer_for_another_port(book: Book) -> None:
    looking_up(), looking_up()
    caller = looking_up(port=443)

    book.answer(0)
    until(lambda: len(book.asked) == 3)
    book.answer(2)

    assert caller.get(timeout=10)[0][4] == ("10.0.0.1", 443)


@pytest.mark.parametrize("answer", [socket.gaierror(socket.EAI_AGAIN, "try again"), []], ids=repr)
def test_who_waits_asks_itself_if_the_look_up_brings_nothing(book: Book, answer: Any) -> None:
    looking_up(), looking_up()
    caller = looking_up()

    if isinstance(answer, Exception):
        book.asked[0][1].set_exception(answer)
    else:
        book.asked[0][1].set(answer)
    until(lambda: len(book.asked) == 3)
    book.answer(2)

    assert caller.get(timeout=10)[0][4] == ("10.0.0.1", 80)


@pytest.mark.parametrize(
    "strike",
    [
        lambda caller: caller.kill(),
        lambda caller: caller.kill(gevent.Timeout()),
        lambda caller: caller.kill(KeyError("a caller's own")),
    ],
    ids=["kill", "timeout", "exception"],
)
def test_callers_that_give_up_end_no_look_up_and_lose_none(
    book: Book, strike: Callable[[Any], None]
) -> None:
    """In the very pass in which an answer comes, too."""
    callers = [looking_up() for _ in range(6)]
    for caller in callers[:4]:
        strike(caller)
    assert len(book.asked) == 2
    looking_up()
    assert len(book.asked) == 2  # those that nobody waits for are under way all the same

    book.asked[0][1].set_exception(socket.gaierror(socket.EAI_AGAIN, "try again"))
    gevent.sleep(0)
    strike(callers[4])
    until(lambda: len(book.asked) == 3)
    book.answer(2)

    assert callers[5].get(timeout=10)[0][4] == ("10.0.0.1", 80)


def test_a_host_is_forgotten_when_nothing_is_under_way(book: Book) -> None:
    callers = [looking_up() for _ in range(3)]
    hub: Any = gevent.get_hub()
    assert [*hub._geventpool_look_ups[1]] == [("slow.test", ANYHOW)]

    book.answer(0)
    book.answer(1)
    gevent.joinall(callers, timeout=10, raise_error=True)

    assert hub._geventpool_look_ups[1] == {}


def test_a_dial_that_waits_for_a_look_up_is_over_in_its_time(book: Book) -> None:
    looking_up(), looking_up()

    with pytest.raises(ConnectError, match=r"not open after 0\.05 s: resolving slow\.test"):
        SocketFactory("slow.test:80", connect_timeout=0.05)()


@FORKS
def test_a_child_does_not_wait_for_look_ups_of_its_parent(fork: Any, book: Book) -> None:
    looking_up(), looking_up()

    class Answers:
        def getaddrinfo(self, host: str, port: int, *_: Any) -> Any:
            return infos("10.0.0.9", port)

    def in_child() -> Any:
        gevent.get_hub().resolver = Answers()  # type: ignore[assignment]
        with gevent.Timeout(5):
            return look_up(Address("slow.test", 80), ANYHOW)[0][4]

    assert Child(fork, in_child).result() == ["10.0.0.9", 80]


def test_a_dead_name_takes_two_of_the_ten_threads_in_which_gevent_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By gevent's own resolver: only what the system says is made up."""
    from gevent.resolver import thread

    ends, end = os.pipe()  # no Event: in a patched program that would not block a thread
    real = thread.Resolver(gevent.get_hub())
    asked: list[str] = []

    class System:
        def getaddrinfo(self, host: str, port: int, *_: Any) -> Any:
            return real.pool.apply(self._ask, (host, port))

        def _ask(self, host: str, port: int) -> Any:
            asked.append(host)
            if host == "dead.test":
                os.read(ends, 1)
            return infos("127.0.0.1", port)

    monkeypatch.setattr(gevent.get_hub(), "resolver", System())
    try:
        callers = [looking_up("dead.test") for _ in range(20)]
        until(lambda: asked.count("dead.test") == 2)
        with gevent.Timeout(10):
            assert look_up(Address("web.test", 80), ANYHOW) == infos("127.0.0.1", 80)
        assert asked.count("dead.test") == 2
    finally:
        monkeypatch.undo()
        close_now(end)
        gevent.joinall(callers, timeout=10)
        close_now(ends)
