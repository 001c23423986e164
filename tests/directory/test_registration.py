"""What a program announces of itself, in a directory of the test's own."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool.backoff import Backoff
from geventpool.directory import registration as module
from geventpool.directory.registration import EntryLost, Registering, Registration, close_all
from geventpool.errors import WrongHub
from support.child import FORKS, Child
from support.threads import in_thread
from support.waiting import until

A = "10.0.0.1:80"


class Entry:
    """An entry that the test may lose, in a directory that it may take away."""

    def __init__(self) -> None:
        self.there = False
        self.trouble: BaseException | None = None
        self.announced = self.kept = self.withdrawn = 0

    def _ask(self) -> None:
        gevent.sleep(0)
        if self.trouble is not None:
            raise self.trouble

    def announce(self) -> None:
        self._ask()
        self.announced += 1
        self.there = True

    def keep(self) -> None:
        self._ask()
        if not self.there:
            raise EntryLost("it was taken out")
        self.kept += 1

    def withdraw(self) -> None:
        self._ask()
        self.withdrawn += 1
        self.there = False

    def __str__(self) -> str:
        return "the board"


class Board(Registering):
    def __init__(self) -> None:
        self.entry = Entry()

    def _entry(self, name: str, entry: str, held: bytes, lease: float) -> Entry:
        return self.entry


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOKS", 1000)
    monkeypatch.setattr(module, "BACKOFF", Backoff(first=0.001, longest=0.002))


@pytest.fixture
def board() -> Iterator[Board]:
    yield Board()
    close_all()


def test_it_is_announced_kept_and_withdrawn(board: Board) -> None:
    entry = board.entry
    registration = board.register("web", A)
    assert repr(registration) == "<Registration 'web' 10.0.0.1:80 not announced, the board>"
    assert registration.wait(10)
    assert repr(registration) == "<Registration 'web' 10.0.0.1:80 announced, the board>"
    until(lambda: entry.kept > 3)
    registration.close()
    assert (entry.announced, entry.withdrawn, entry.there) == (1, 1, False)
    assert not registration.announced
    registration.close()
    assert entry.withdrawn == 1


def test_nobody_needs_to_hold_it(board: Board) -> None:
    board.register("web", A)
    gc.collect()
    until(lambda: board.entry.kept > 3)


def test_one_that_is_lost_is_announced_again_and_both_are_told(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool.directory")
    registration = board.register("web", A)
    assert registration.wait(10)
    board.entry.there = False
    until(lambda: board.entry.announced == 2)
    until(lambda: registration.announced)
    assert caplog.messages == [
        "'web': 10.0.0.1:80 is not announced at the board: EntryLost('it was taken out');"
        " it is tried again",
        "'web': 10.0.0.1:80 is announced again at the board",
    ]


@pytest.mark.parametrize("trouble", [OSError("gone"), gevent.Timeout(1), RuntimeError("odd")])
def test_it_is_tried_again_while_the_directory_is_away(
    board: Board, caplog: pytest.LogCaptureFixture, trouble: BaseException
) -> None:
    board.entry.trouble = trouble
    registration = board.register("web", A)
    assert not registration.wait(0.01)
    until(lambda: registration.error is trouble)
    board.entry.trouble = None
    assert registration.wait(10)
    assert registration.error is None
    assert len([each for each in caplog.messages if "is not announced" in each]) == 1
    board.entry.trouble = trouble
    until(lambda: not registration.announced)


def test_one_that_cannot_be_removed_is_told_of_and_let_go(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    registration = board.register("web", A)
    assert registration.wait(10)
    board.entry.trouble = OSError("gone")
    registration.close()
    assert registration.closed
    assert any("was not removed at the board: OSError('gone')" in each for each in caplog.messages)


def test_a_caller_that_is_killed_as_it_closes_has_it_removed_all_the_same(board: Board) -> None:
    registration = board.register("web", A)
    assert registration.wait(10)
    closing = gevent.spawn(registration.close)
    gevent.sleep(0)
    closing.kill()
    until(lambda: board.entry.withdrawn == 1)


def test_it_is_removed_once_nothing_else_is_under_way(board: Board) -> None:
    order: list[str] = []
    keeping = Event()

    class Slow(Entry):
        def keep(self) -> None:
            keeping.set()
            try:
                gevent.sleep(600)
            finally:
                gevent.sleep(0.01)  # a connection is closed, say
                order.append("kept")

        def withdraw(self) -> None:
            order.append("withdrawn")

    board.entry = Slow()
    registration = board.register("web", A)
    assert keeping.wait(10)
    registration.close()
    assert order == ["kept", "withdrawn"]


def test_all_are_closed_together(board: Board) -> None:
    other = Board()
    for each in (board, other):
        assert each.register("web", A).wait(10)
    close_all()
    assert (board.entry.withdrawn, other.entry.withdrawn) == (1, 1)


def test_one_that_a_with_has_left_is_removed(board: Board) -> None:
    with board.register("web", A) as registration:
        assert registration.wait(10)
    assert board.entry.withdrawn == 1


def test_one_that_another_thread_closes_is_left_as_it_is(board: Board) -> None:
    registration = board.register("web", A)
    assert registration.wait(10)

    def close() -> None:
        with pytest.raises(WrongHub, match="another thread's"):
            registration.close()

    in_thread(close)
    assert registration.announced
    kept = board.entry.kept
    until(lambda: board.entry.kept > kept)
    registration.close()
    assert board.entry.withdrawn == 1


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "said"),
    [
        ((5, A), {}, TypeError, "^name must be a string, not 5"),
        (("web", A), {"weight": float("inf")}, ValueError, "^weight must be (?!.*seconds)"),
        (("web", A), {"weight": "2"}, TypeError, "^weight must be (?!.*seconds)"),
        (("web", "[::ffff:0.0.0.0]:80"), {}, ValueError, "^address must be one that others"),
        (("web", "[::]:80"), {}, ValueError, "^address must be one that others"),
        (("web", "224.0.0.1:80"), {}, ValueError, "^address must be one that others"),
        (("web", "[ff02::1]:80"), {}, ValueError, "^address must be one that others"),
    ],
)
def test_what_can_be_no_server_is_named(
    board: Board, arguments: Any, settings: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        board.register(*arguments, **settings)
    assert not board.entry.announced


@FORKS
def test_a_child_has_none(board: Board, fork: Any) -> None:
    registration = board.register("web", A)
    assert registration.wait(10)

    def child() -> list[Any]:
        kept = board.entry.kept
        gevent.sleep(0.05)
        close_all()
        registration.close()
        return [registration.closed, board.entry.kept - kept, board.entry.withdrawn]

    assert Child(fork, child).result() == [True, 0, 0]
    assert isinstance(registration, Registration)
    assert registration.announced
