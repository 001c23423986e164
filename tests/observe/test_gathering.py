"""The processes of a group are asked for their snapshots over sockets of their own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from geventpool import ConnectionPool, observe
from geventpool.local_socket import ask, run_directory
from geventpool.observe import worker_socket
from support.child import FORKS, Child
from support.objects import Maker
from support.workers import HANG, worker


def names(answer: dict[str, Any]) -> list[str]:
    return [pool["name"] for pool in answer["pools"]]


def test_every_process_of_the_group_answers_for_itself(run_folder: Path) -> None:
    with worker("first") as first, worker("second") as second:
        with ConnectionPool(1, connect=Maker(), name="own"):
            answers = {each["pid"]: each for each in observe.gather()}
    assert answers.keys() == {os.getpid(), first.pid, second.pid}
    assert names(answers[first.pid]) == ["first"]
    assert names(answers[second.pid]) == ["second"]
    assert "own" in names(answers[os.getpid()])


def test_a_process_whose_hub_is_busy_says_so_in_time(run_folder: Path) -> None:
    with worker("busy", HANG) as busy:
        began = time.monotonic()
        (answer,) = [each for each in observe.gather(0.2) if each["pid"] == busy.pid]
        assert time.monotonic() - began < 5
    assert answer["pools"] is None
    assert answer["error"] == "it did not answer within 0.2 s"


def test_the_socket_of_one_that_was_killed_is_swept_away(run_folder: Path) -> None:
    with worker("killed") as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert [each.pid for each in worker_socket.workers(run_folder)] == [killed.pid]
        assert killed.pid not in [each["pid"] for each in observe.gather()]
        assert worker_socket.workers(run_folder) == []


def left_behind(path: Path, age: float) -> None:
    """A socket at which nobody listens any more, made *age* seconds ago."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    os.utime(path, (time.time() - age,) * 2)


def test_what_a_group_that_was_killed_as_a_whole_has_left_is_swept_as_one_begins(
    run_folder: Path,
) -> None:
    with worker("of another group") as other:
        (there,) = run_folder.iterdir()
        there.rename(run_folder / f"1-{other.pid}.sock")
        with worker("killed") as killed:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        left_behind(run_folder / f"2-{killed.pid}.sock", age=0)
        assert len(worker_socket.workers(run_folder)) == 3
        with worker("new") as new:
            assert {each.pid for each in worker_socket.workers(run_folder)} == {other.pid, new.pid}


def test_a_socket_whose_process_id_is_anothers_by_now_is_swept(run_folder: Path) -> None:
    path = run_directory() / f"{os.getpid()}-{os.getppid()}.sock"
    left_behind(path, age=3)
    (answer,) = [each for each in observe.gather() if each["pid"] == os.getppid()]
    assert answer["error"] == "it does not listen"  # it may have just begun
    left_behind_for_long = time.time() - 60
    os.utime(path, (left_behind_for_long,) * 2)
    assert os.getppid() not in [each["pid"] for each in observe.gather()]
    assert not path.exists()


def test_one_that_ends_takes_its_socket_away(run_folder: Path) -> None:
    with worker("ending", "gevent.sleep(0)") as ending:
        assert ending.wait() == 0
        assert worker_socket.workers(run_folder) == []


def test_processes_of_another_group_are_not_asked(run_folder: Path) -> None:
    with worker("ours"):
        assert [each["pid"] for each in observe.gather(group=1)] == []


def test_only_its_user_may_ask_or_write_there(run_folder: Path) -> None:
    path = observe.listen().path
    assert stat.S_IMODE(run_folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_others_may_write_to_is_refused(run_folder: Path) -> None:
    run_folder.mkdir()
    run_folder.chmod(0o770)
    with pytest.raises(PermissionError, match="0700"):
        observe.listen()
    assert [each["pid"] for each in observe.gather()] == [os.getpid()]


def test_a_link_in_place_of_the_folder_is_refused(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    run_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        observe.listen()


def test_to_listen_twice_is_to_listen_once(run_folder: Path) -> None:
    assert observe.listen() == observe.listen()
    assert len(worker_socket.workers(run_folder)) == 1


def test_one_that_says_nothing_holds_nobody_up(run_folder: Path) -> None:
    path = observe.listen().path
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(str(path))
        assert gevent.spawn(ask, path, 10.0).get()["pid"] == os.getpid()


@FORKS
def test_a_child_does_not_answer_for_its_parent(run_folder: Path, fork: Callable[[], int]) -> None:
    path = observe.listen().path
    gevent.sleep(0)
    child = Child(fork, lambda: gevent.sleep(0.3))
    for _ in range(20):
        assert ask(path, 10.0)["pid"] == os.getpid()
    child.result()
    assert path.exists()


def test_who_needs_no_holders_gets_none(run_folder: Path) -> None:
    with worker("busy", "conn = pool.acquire(); gevent.wait()") as busy:
        answers = [observe.gather(holders=each) for each in (True, False)]
    held = [
        len(pool["holders"])
        for answer in answers
        for process in answer
        if process["pid"] == busy.pid
        for pool in process["pools"]
    ]
    assert held == [1, 0]


def test_a_run_time_folder_of_another_user_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of a master that root has started: its workers are another user's."""
    monkeypatch.delenv("GEVENTPOOL_RUN_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_directory() == tmp_path / "geventpool"
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(PermissionError):  # as only its owner may make it; but it was tried there
        run_directory()
    assert (tmp_path / f"geventpool-{other}").is_dir()
