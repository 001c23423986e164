"""One of the processes of a machine has the records of all of them, until it ends."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest

from geventpool.fleet import FleetLimit
from geventpool.fleet.local import LocalStore
from geventpool.fleet.share import Report
from geventpool.local_socket import Listener, ask
from support import ROOT
from support.child import FORKS, Child, close_now, raw_fork
from support.waiting import until, until_readable

#: Serves, as it is the first; its limit needs five of the ten.
HOLDER = """
import gevent
from geventpool import ConnectionPool
from geventpool.fleet import FleetLimit
from geventpool.fleet.local import LocalStore
limit = FleetLimit(10, store=LocalStore(), name="db", lease=2.0)
pool = ConnectionPool(10, connect=object, min_size=0, limits=[limit])
held = [pool.acquire() for _ in range(5)]
print("ready", flush=True)
gevent.wait()
"""


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert made.stdout is not None
    try:
        assert made.stdout.readline() == b"ready\n"
        yield made
    finally:
        made.kill()
        made.wait()
        made.stdout.close()


@pytest.fixture
def stores(run_folder: Path) -> Iterator[Callable[[], LocalStore]]:
    made: list[LocalStore] = []

    def make() -> LocalStore:
        made.append(LocalStore())
        return made[-1]

    yield make
    for each in made:
        each.close()


def report(id: str, number: int, has: int = 0, wants: int = 3) -> Report:
    return Report("db", 10, id, has, has, wants, wants, number=number, lease=1000.0)


def test_all_ask_the_first(stores: Callable[[], LocalStore], run_folder: Path) -> None:
    first, second = stores(), stores()
    first.renew(report("a", 1))
    second.renew(report("b", 1))
    assert first.renew(report("a", 2)).members == 2
    second.release("db", "b")
    assert first.renew(report("a", 3)).members == 1
    assert (run_folder / "fleet.sock").stat().st_mode & 0o777 == 0o600


def test_another_takes_over_and_learns(stores: Callable[[], LocalStore]) -> None:
    first, second = stores(), stores()
    epoch = first.renew(report("a", 1)).epoch
    assert second.renew(report("b", 1)).epoch == epoch
    first.close()
    answer = second.renew(report("b", 2, has=3))
    assert answer.epoch != epoch
    assert answer[:2] == (3, 1)
    assert first.renew(report("a", 2, has=4))[:2] == (4, 2)


def test_of_many_that_come_at_once_one_has_the_place(stores: Callable[[], LocalStore]) -> None:
    made = [stores() for _ in range(20)]
    asked = [gevent.spawn(each.renew, report(str(n), 1)) for n, each in enumerate(made)]
    gevent.joinall(asked, raise_error=True)
    assert len({each.value.epoch for each in asked}) == 1
    assert made[0].renew(report("0", 2)).members == 20


@pytest.mark.slow
def test_one_that_is_killed_leaves_the_place_to_another(run_folder: Path) -> None:
    store = LocalStore()
    with process(HOLDER) as first:
        limit = FleetLimit(10, store=store, name="db", lease=2.0)
        try:
            until(lambda: limit.members == 2, "an answer")
            epoch = limit.epoch
            first.kill()
            until(lambda: limit.epoch != epoch, "an answer of the successor")
            until(lambda: limit.lost_at is None, "no loss")
            until(lambda: limit.members == 1, "the end of its lease")
        finally:
            limit.close()
            store.close()


@FORKS
def test_a_child_asks_its_parent_and_keeps_no_place(
    stores: Callable[[], LocalStore], fork: Callable[[], int]
) -> None:
    store = stores()
    epoch = store.renew(report("a", 1)).epoch

    def live() -> str:
        answer = store.renew(report("b", 1))
        gevent.sleep(0.5)
        return answer.epoch

    child = Child(fork, live)
    numbers = itertools.count(2)
    until(lambda: store.renew(report("a", next(numbers))).members == 2, "the child's report")
    store.close()  # while the child is there
    assert stores().renew(report("c", 1))[1:] != (2, epoch)
    assert child.result() == epoch


@FORKS
def test_a_child_that_runs_no_hub_keeps_no_place(run_folder: Path, fork: Callable[[], int]) -> None:
    run_folder.mkdir(mode=0o700)
    path = run_folder / "one.sock"
    first = Listener(path, lambda question: "first", alone=True)
    assert ask(path, 5.0) == "first"  # by now it waits for the next one
    go, going = os.pipe()
    there, says = os.pipe()

    def wait_without_a_hub() -> int:
        os.write(says, b"x")
        return len(os.read(go, 1))

    child = Child(fork, wait_without_a_hub)
    until_readable(there)
    path.rename(run_folder / "two.sock")  # where it can be asked once it is closed
    first.close()
    gevent.sleep(0)  # gevent closes it in its hub
    second = Listener(path, lambda question: "second", alone=True)
    try:
        with pytest.raises(ConnectionRefusedError):
            ask(run_folder / "two.sock", 5.0)
        assert ask(path, 5.0) == "second"
    finally:
        second.close()
        os.write(going, b"x")
        assert child.result() == 1
        for each in (go, going, there, says):
            close_now(each)


def test_a_child_that_is_forked_meanwhile_delays_no_answer(run_folder: Path) -> None:
    run_folder.mkdir(mode=0o700)
    go, going = os.pipe()
    children = []

    def answer(question: object) -> str:
        children.append(Child(raw_fork, lambda: len(os.read(go, 1))))
        return "told"

    listener = Listener(run_folder / "one.sock", answer)
    try:
        assert ask(run_folder / "one.sock", 5.0) == "told"
    finally:
        listener.close()
        os.write(going, b"x")
        assert children[0].result() == 1
        close_now(go)
        close_now(going)


def test_a_place_whose_socket_was_taken_away_is_made_again(
    stores: Callable[[], LocalStore], run_folder: Path
) -> None:
    first, second = stores(), stores()
    epoch = first.renew(report("a", 1)).epoch
    (run_folder / "fleet.sock").unlink()
    with pytest.raises(OSError):
        second.renew(report("b", 1))  # the place is taken, but not its own
    assert first.renew(report("a", 2)).epoch != epoch
    assert second.renew(report("b", 2)).members == 2


def test_one_that_ends_takes_no_socket_away_that_is_not_its_own(run_folder: Path) -> None:
    run_folder.mkdir(mode=0o700)
    path = run_folder / "one.sock"
    first = Listener(path, lambda question: "first")
    second = Listener(path, lambda question: "second")
    first.close()
    assert ask(path, 5.0) == "second"
    second.close()
    assert not path.exists()


@pytest.mark.parametrize(
    "question", [{"renew": {"name": "db", "more": 1}}, {"renew": 5}, {"release": 5}, {"other": 1}]
)
def test_a_question_of_another_version_is_answered_and_harms_nothing(
    stores: Callable[[], LocalStore], question: dict[str, object]
) -> None:
    store = stores()
    epoch = store.renew(report("a", 1)).epoch
    with pytest.raises(ValueError, match="has not understood"):
        store._ask(**question)
    assert store.renew(report("a", 2)).epoch == epoch


def test_one_that_does_not_answer_costs_who_asks_no_time_of_its_processor(
    run_folder: Path,
) -> None:
    run_folder.mkdir(mode=0o700)
    path = run_folder / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as first:
        deaf.bind(str(path))
        deaf.listen(0)
        first.connect(str(path))  # more it takes not
        before = time.process_time()
        with pytest.raises(TimeoutError):
            ask(path, 0.3)
        assert time.process_time() - before < 0.15


def test_a_place_that_is_taken_is_said_to_be(run_folder: Path) -> None:
    run_folder.mkdir(mode=0o700)
    path = run_folder / "one.sock"
    first = Listener(path, lambda question: "first", alone=True)
    with pytest.raises(BlockingIOError):
        Listener(path, lambda question: "second", alone=True)
    assert ask(path, 5.0) == "first"
    first.close()
    first.close()
    second = Listener(path, lambda question: "second", alone=True)
    assert ask(path, 5.0) == "second"
    second.close()
    assert not path.exists()
