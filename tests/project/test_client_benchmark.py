"""``python -m benchmarks clients`` counts what it says that it counts."""

from __future__ import annotations

import gevent
import gevent.socket
import pytest
from gevent.event import Event

from benchmarks.clients.load import GREENLETS, STUCK, Outcome, run

pytestmark = pytest.mark.slow


def loaded(ask, share: float = 0.0, seconds: float = 0.3) -> Outcome:
    outcome = run(lambda size: ask, share, seconds)
    gevent.sleep(0)  # those that are killed end
    return outcome


def test_right_answers_are_counted() -> None:
    def ask(token: str, seconds: float) -> str:
        gevent.sleep(0.01)
        return token

    outcome = loaded(ask)
    assert outcome.right >= GREENLETS
    assert (outcome.wrong, outcome.given_up, outcome.fault) == (0, 0, "")
    assert outcome.p99 < 1.0


def test_the_answer_to_another_is_wrong() -> None:
    def ask(token: str, seconds: float) -> str:
        gevent.sleep(0.01)
        return "token-0" if token.endswith("7") else token

    outcome = loaded(ask)
    assert 0.05 < outcome.wrong / (outcome.wrong + outcome.right) < 0.2
    assert "wrong" in outcome.fault


def test_errors_and_requests_given_up_are_counted() -> None:
    def ask(token: str, seconds: float) -> str:
        gevent.sleep(0.1)
        if token.endswith("7"):
            raise LookupError(token)
        return token

    outcome = loaded(ask, share=0.15)
    assert outcome.given_up > 0
    assert outcome.error == "LookupError"
    assert outcome.errors > 0


def test_those_that_starve_show_in_the_slowest_one_percent() -> None:
    """Five of 200 callers starve, which is far less than one request in a hundred."""
    starving: list[str] = []

    def ask(token: str, seconds: float) -> str:
        gevent.sleep(0)
        if token != "token" and len(starving) < 5:
            starving.append(token)
            Event().wait()
        return token

    outcome = loaded(ask, seconds=1.0)
    assert outcome.right > 5 * 200
    assert outcome.p99 > 0.5


def test_a_pool_that_serves_nobody_any_more_is_stuck() -> None:
    def ask(token: str, seconds: float) -> str:
        if token != "token":
            Event().wait()
        return token

    outcome = loaded(ask, seconds=STUCK + 0.1)
    assert outcome.stuck
    assert outcome.right == 0


def test_a_pool_that_opens_more_than_it_may_has_a_fault() -> None:
    sockets: list[gevent.socket.socket] = []

    def ask(token: str, seconds: float) -> str:
        if len(sockets) < 30:
            sockets.append(gevent.socket.socket())
        gevent.sleep(0.01)
        return token

    outcome = loaded(ask)
    for sock in sockets:
        sock.close()
    assert outcome.sockets >= 30
    assert f"{outcome.sockets} connections" in outcome.fault
