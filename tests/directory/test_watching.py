"""What holds for every resolver that watches a directory."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event

from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.directory import WatchingResolver
from geventpool.errors import ConnectError, NameNotFound, WrongHub
from geventpool.testing import FakeClock
from support.child import FORKS, Child, raw_fork
from support.directories import Board
from support.threads import in_thread
from support.waiting import until

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"
QUICK = Backoff(first=0.005, longest=0.01)


@pytest.fixture
def watch() -> Iterator[Callable[..., WatchingResolver]]:
    """Makes resolvers that are closed in the end."""
    with ExitStack() as stack:

        def make(board: Board, **settings: Any) -> WatchingResolver:
            resolver = WatchingResolver(board, **{"backoff": QUICK, **settings})
            stack.callback(resolver.close)
            return resolver

        yield make


def resolved(resolver: WatchingResolver, *targets: str) -> Callable[[], bool]:
    return lambda: resolver.resolve("web") == AddressGroup.of(*targets)


# What is given out


def test_one_watch_answers_all_who_ask(watch: Any) -> None:
    board = Board(web=[A, B])
    resolver = watch(board)
    asking = [gevent.spawn(resolver.resolve, "web") for _ in range(5)]
    gevent.joinall(asking)
    assert {each.value for each in asking} == {AddressGroup.of(A, B)}
    assert board.begun == 1


def test_a_change_is_known_at_once_and_nobody_asked(watch: Any) -> None:
    board = Board(web=[A, B])
    resolver = watch(board)
    resolver.resolve("web")
    board.write("web", B, C)
    gevent.idle()
    assert resolver.resolve("web") == AddressGroup.of(B, C)
    assert board.begun == 1


def test_a_name_without_a_server_is_not_found_until_it_has_one(watch: Any) -> None:
    board = Board()
    resolver = watch(board)
    with pytest.raises(NameNotFound, match="'web' was not found: the board has no server of it"):
        resolver.resolve("web")
    board.write("web", A)
    until(lambda: board.begun == 1 and resolver._services["web"].roster.group(0) is not None)
    assert resolver.resolve("web") == AddressGroup.of(A)


def test_a_directory_that_is_silent_is_waited_for_so_long(watch: Any) -> None:
    board = Board(web=[A])
    board.silent = True
    resolver = watch(board, timeout=0.05)
    with pytest.raises(ConnectError, match=r"the board has not answered within 0\.05 s"):
        resolver.resolve("web")
    board.silent = False
    board.write("web", B)
    until(lambda: resolver._services["web"].roster.is_known)
    assert resolver.resolve("web") == AddressGroup.of(B)


def test_a_directory_that_is_away_at_the_start_is_told_of_at_once_and_asked_again(
    watch: Any,
) -> None:
    board = Board(web=[A])
    board.fail(OSError("no route"))
    resolver = watch(board, timeout=30.0)
    with gevent.Timeout(10), pytest.raises(ConnectError) as caught:
        resolver.resolve("web")
    assert not isinstance(caught.value, NameNotFound)
    assert str(caught.value) == (
        "'web' is not known: the board does not answer: OSError('no route'); it is asked again"
    )
    assert caught.value.__cause__ is board.trouble
    board.trouble = None
    until(lambda: resolver._services["web"].error is None, "another try")
    assert resolver.resolve("web") == AddressGroup.of(A)


@pytest.mark.parametrize("trouble", [OSError("gone"), gevent.Timeout(1), ValueError("no JSON")])
def test_the_last_addresses_serve_on_while_the_directory_is_away(
    watch: Any, caplog: pytest.LogCaptureFixture, trouble: BaseException
) -> None:
    caplog.set_level(logging.INFO, "geventpool.directory")
    board = Board(web=[A])
    resolver = watch(board)
    resolver.resolve("web")
    board.fail(trouble)
    until(lambda: board.begun > 3, "several tries")
    assert resolver.resolve("web") == AddressGroup.of(A)
    board.services["web"] = Board(web=[B]).services["web"]
    board.trouble = None
    until(resolved(resolver, B), "the return")
    assert [record.getMessage() for record in caplog.records] == [
        f"'web': the board does not answer: {trouble!r}; its last addresses serve on",
        "'web': the board is back",
    ]


def test_a_service_that_is_emptied_serves_on_and_that_is_told(
    watch: Any, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(web=[A])
    resolver = watch(board, keep_emptied=60.0, clock=clock)
    resolver.resolve("web")
    board.write("web")
    until(lambda: caplog.messages, "a word of it")
    assert caplog.messages == ["'web': the board has no server of it any more; its last serve on"]
    assert resolver.resolve("web") == AddressGroup.of(A)
    clock.advance(61.0)
    with pytest.raises(NameNotFound):
        resolver.resolve("web")


def test_of_a_service_that_keeps_none_it_is_not_said_that_they_serve_on(
    watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(web=[A])
    resolver = watch(board, keep_emptied=0)
    resolver.resolve("web")
    board.write("web")
    until(lambda: caplog.messages, "a word of it")
    assert caplog.messages == ["'web': the board has no server of it any more; it is not found"]


# Who is told


def test_a_subscriber_is_woken_by_each_change_in_the_greenlet_that_watches(watch: Any) -> None:
    board = Board(web=[A], other=[A])
    resolver = watch(board)
    resolver.resolve("web")
    woken = []
    subscription = resolver.subscribe("web", lambda: woken.append(gevent.getcurrent()))
    board.write("web", B)
    until(lambda: woken)
    assert set(woken) <= board.greenlets
    board.write("web", B)  # nothing new
    board.write("other", B)
    gevent.idle()
    assert len(woken) == 1
    subscription.close()
    board.write("web", C)
    until(resolved(resolver, C))
    assert len(woken) == 1


def test_a_subscription_that_is_dropped_ends(watch: Any) -> None:
    board = Board(web=[A])
    resolver = watch(board)
    woken: list[int] = []
    subscription = resolver.subscribe("web", lambda: woken.append(1))
    dropped = weakref.ref(subscription)
    del subscription
    gc.collect()
    assert dropped() is None
    board.write("web", B)
    until(resolved(resolver, B))
    assert not woken


# What may go wrong


def test_a_caller_that_is_killed_or_timed_out_takes_the_answer_from_no_other(watch: Any) -> None:
    board = Board(web=[A])
    board.silent = True
    resolver = watch(board)
    killed, waiting = (gevent.spawn(resolver.resolve, "web") for _ in range(2))
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        resolver.resolve("web")
    killed.kill()
    board.silent = False
    board.write("web", B)
    assert waiting.get(timeout=10) == AddressGroup.of(B)
    assert board.begun == 1


def test_a_watch_that_was_killed_begins_anew_with_the_next_caller(watch: Any) -> None:
    board = Board(web=[A])
    resolver = watch(board)
    resolver.resolve("web")
    gevent.killall(list(board.greenlets))
    assert not board.open
    board.write("web", B)
    until(resolved(resolver, B))
    assert board.open == 1


def test_a_watch_that_ends_begins_anew(watch: Any) -> None:
    class Brief(Board):
        def watch(self, name: str) -> Any:
            for members in super().watch(name):
                yield members
                return

    board = Brief(web=[A])
    resolver = watch(board)
    resolver.resolve("web")
    until(lambda: board.begun > 2)
    assert resolver.resolve("web") == AddressGroup.of(A)


def test_one_that_stays_away_is_asked_less_and_less_often(watch: Any) -> None:
    board = Board(web=[A])
    board.fail(OSError("no route"))
    resolver = watch(board, backoff=Backoff(first=0.001, factor=20.0, longest=60.0, jitter=0))
    with pytest.raises(ConnectError):
        resolver.resolve("web")
    until(lambda: board.begun == 3)  # after 1 ms, and 20 ms; the next are 0.4 s and 8 s later
    gevent.sleep(0.1)
    assert board.begun <= 4
    assert resolver._services["web"].error.__traceback__ is None  # what is kept holds no frame


def test_what_a_handler_of_the_log_raises_ends_no_watch(
    watch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("broken handler")

    board = Board(web=[A])
    resolver = watch(board)
    resolver.resolve("web")
    log, handler = logging.getLogger("geventpool.directory"), Broken()
    log.addHandler(handler)
    try:
        board.fail(OSError("gone"))
        until(lambda: board.begun > 2)
    finally:
        log.removeHandler(handler)
    board.trouble = None
    board.write("web", B)
    until(resolved(resolver, B))
    assert "broken handler" in capsys.readouterr().err


# The end


def test_close_ends_every_watch_and_then_the_source() -> None:
    board = Board(web=[A], other=[B])
    resolver = WatchingResolver(board)
    resolver.resolve("web")
    resolver.resolve("other")
    resolver.close()
    assert (board.open, board.closed) == (0, 1)
    resolver.close()
    assert board.closed == 1
    with pytest.raises(ConnectError, match="closed"):
        resolver.resolve("web")


def test_a_caller_that_is_killed_as_it_closes_leaves_nothing_open() -> None:
    class Slow(Board):
        def watch(self, name: str) -> Any:
            try:
                yield from super().watch(name)
            finally:
                gevent.sleep(0.05)  # it says goodbye, say

    board = Slow(web=[A])
    resolver = WatchingResolver(board)
    resolver.resolve("web")
    closing = gevent.spawn(resolver.close)
    until(lambda: resolver.closed)
    closing.kill()
    assert not board.closed
    until(lambda: board.closed == 1)


def test_a_resolver_that_is_dropped_ends_its_greenlets_and_its_source() -> None:
    board = Board(web=[A])
    resolver = WatchingResolver(board)
    resolver.resolve("web")
    dropped = weakref.ref(resolver)
    del resolver
    gc.collect()
    assert dropped() is None
    until(lambda: board.closed)
    assert board.open == 0


def test_a_name_that_nobody_asks_for_is_watched_no_longer(watch: Any, clock: FakeClock) -> None:
    board = Board(web=[A], mail=[A], ftp=[A], held=[A])
    resolver = watch(board, clock=clock)
    subscription = resolver.subscribe("held", Event().set)
    for name in ("web", "mail", "held"):
        resolver.resolve(name)
    clock.advance(599)
    resolver.resolve("mail")
    clock.advance(2)
    resolver.resolve("ftp")
    gevent.idle()
    assert set(resolver._services) == {"mail", "ftp", "held"}
    assert board.open == 3
    subscription.close()


def test_there_are_never_more_names_than_that(watch: Any, clock: FakeClock) -> None:
    board = Board()
    resolver = watch(board, max_names=3, clock=clock)
    for number in range(10):
        clock.advance(1)
        with pytest.raises(NameNotFound):
            resolver.resolve(f"guessed-{number}")
    gevent.idle()
    assert set(resolver._services) == {"guessed-7", "guessed-8", "guessed-9"}
    assert board.open == 3


def test_a_name_that_a_caller_waits_for_is_not_ended_to_make_room(watch: Any) -> None:
    board = Board(web=[A], mail=[B])
    board.silent = True
    resolver = watch(board, max_names=1)
    asking = [gevent.spawn(resolver.resolve, name) for name in ("web", "mail")]
    until(lambda: board.open == 2)
    board.silent = False
    board.write("web", A)
    gevent.joinall(asking, timeout=10)
    assert [each.value for each in asking] == [AddressGroup.of(A), AddressGroup.of(B)]


@FORKS
def test_a_child_watches_anew_and_knows_what_its_parent_knew(watch: Any, fork: Any) -> None:
    board = Board(web=[A])
    resolver = watch(board)
    resolver.resolve("web")
    woken: list[int] = []
    subscription = resolver.subscribe("web", lambda: woken.append(1))

    def child() -> list[object]:
        known = str(resolver.resolve("web"))
        until(lambda: (board.open, board.begun) == (1, 2), "a watch of its own")
        board.write("web", B)
        until(resolved(resolver, B))
        return [known, len(woken)]

    assert Child(fork, child).result() == [str(AddressGroup.of(A)), 1]
    assert (board.open, board.begun) == (1, 1)
    subscription.close()


def test_what_the_child_of_another_thread_drops_ends_there() -> None:
    board = Board(web=[A])
    resolvers = [WatchingResolver(board)]
    resolvers[0].resolve("web")

    def child() -> list[int]:
        gevent.reinit()
        board.begun = board.open = 0  # those of the parent do not run here
        resolver = resolvers.pop()
        resolver._services["web"].news.clear()
        resolver.resolve("web")
        until(lambda: board.open == 1, "a watch of its own")
        dropped = weakref.ref(resolver)
        del resolver
        gc.collect()
        assert dropped() is None
        until(lambda: board.closed, "the end")
        return [board.begun, board.open]

    try:
        assert in_thread(lambda: Child(raw_fork, child).result()) == [1, 0]
    finally:
        resolvers[0].close()


# What is refused


def test_another_thread_is_told_that_it_is_not_its_own(watch: Any) -> None:
    resolver = watch(Board(web=[A]))
    resolver.resolve("web")

    def ask() -> None:
        with pytest.raises(WrongHub, match="another thread's"):
            resolver.resolve("web")

    in_thread(ask)


def test_what_can_be_no_name_is_refused_before_anything_is_asked(watch: Any) -> None:
    board = Board()
    resolver = watch(board)
    with pytest.raises(ValueError, match="no slash"):
        resolver.resolve("a/b")
    with pytest.raises(TypeError, match="name must be a string"):
        resolver.resolve(3)
    assert board.begun == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timeout": 0}, "timeout"),
        ({"keep_emptied": -1}, "keep_emptied"),
        ({"max_names": 0}, "max_names"),
        ({"backoff": 3}, "backoff"),
    ],
)
def test_a_bad_argument_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{said} must be"):
        WatchingResolver(Board(), **settings)


def test_a_resolver_says_what_it_is(watch: Any) -> None:
    resolver = watch(Board(web=[A]))
    resolver.resolve("web")
    assert repr(resolver) == "<WatchingResolver the board, 1 names>"
