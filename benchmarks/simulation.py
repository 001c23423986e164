"""Eleven servers under load, one of which turns slow; and a restart of all, one after the other.

The servers are real ones, on 127.0.0.2 to 127.0.0.12, in a process of their own.  An answer takes
them 5 ms on average.  Requests come at random, 1,000 in a second, whether the earlier ones were
answered or not, and wait for their answer for at most 1 s.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.pool import Group

from benchmarks.fleet import Fleet, fleet
from benchmarks.measure import Row
from geventpool.manager import Balance, ConnectionManager
from geventpool.pools import EndpointPool
from geventpool.retry import RetryDetails, retry
from geventpool.sockets import SocketFactory

__all__ = [
    "HOSTS",
    "LeastLoaded",
    "Load",
    "Managed",
    "RoundRobin",
    "one_turns_slow",
    "rolling_restart",
    "simulation",
]

HOSTS = [f"127.0.0.{number}" for number in range(2, 13)]
NEEDS = 0.005  # seconds for an answer, on average
PATIENCE = 1.0  # seconds after which a request has failed
SLOW = 2.0  # seconds for an answer of the server that turns slow
WARM_UP = 2.0  # seconds under load before that

_MOST_LATE = 0.1  # seconds

Address = tuple[str, int]


# Clients, which differ in how they choose a server


class Client(Protocol):
    """Knows all the servers."""

    def ask(self) -> None:
        """Make one request to a server of its choice; raises OSError if there was no answer."""

    def close(self) -> None: ...


class Managed:
    """A ConnectionManager with all its defaults, but for *balance*."""

    def __init__(self, addresses: list[Address], balance: Balance = "p2c") -> None:
        group = [[(1, address) for address in addresses]]
        self.manager = ConnectionManager({"service": group}, balance=balance)

    def ask(self) -> None:
        with self.manager.connection("service", read_timeout=PATIENCE) as sock:
            _echo(sock)

    def close(self) -> None:
        self.manager.close()


class _Chooser:
    """An EndpointPool, and whatever chooses the endpoint."""

    def __init__(self, addresses: list[Address]) -> None:
        self.addresses = addresses
        factories = {each: SocketFactory(each, read_timeout=PATIENCE) for each in addresses}
        # As many as it takes: it is the choice that is put to the test.
        self.pool: EndpointPool[Address, Any] = EndpointPool(
            connect=lambda address: factories[address](), max_size=1000, total_max_size=None
        )

    def choose(self) -> Address:
        raise NotImplementedError

    def ask(self) -> None:
        with self.pool.get(self.choose(), timeout=PATIENCE) as sock:
            _echo(sock)

    def close(self) -> None:
        self.pool.close()


class RoundRobin(_Chooser):
    """One server after the other."""

    def __init__(self, addresses: list[Address]) -> None:
        super().__init__(addresses)
        self._turns = itertools.cycle(addresses)

    def choose(self) -> Address:
        return next(self._turns)


class LeastLoaded(_Chooser):
    """The server with the fewest requests that are not answered yet; one of them, if several."""

    def __init__(self, addresses: list[Address]) -> None:
        super().__init__(addresses)
        self._dice = random.Random(1)
        self._outstanding = dict.fromkeys(addresses, 0)

    def choose(self) -> Address:
        fewest = min(self._outstanding.values())
        return self._dice.choice(
            [each for each, number in self._outstanding.items() if number == fewest]
        )

    def ask(self) -> None:
        address = self.choose()
        self._outstanding[address] += 1
        try:
            with self.pool.get(address, timeout=PATIENCE) as sock:
                _echo(sock)
        finally:
            self._outstanding[address] -= 1


def _echo(sock: Any) -> None:
    sock.sendall(b"x" * 100)
    missing = 100
    while missing:
        data = sock.recv(missing)
        if not data:
            raise ConnectionResetError("the server hung up")
        missing -= len(data)


# What happens to the servers


class Outcomes:
    """What became of requests."""

    def __init__(self) -> None:
        self.answered = 0
        self.errors: list[OSError] = []

    @property
    def total(self) -> int:
        return self.answered + len(self.errors)

    @property
    def failed(self) -> float:
        """The share of the requests that failed."""
        return len(self.errors) / self.total


class Load:
    """Makes requests with *ask*, *rate* per second, for as long as the ``with``; at its end it
    waits for those that are under way."""

    def __init__(self, ask: Callable[[], object], rate: float) -> None:
        self.outcomes = Outcomes()
        self._ask, self._rate = ask, rate
        self._requests = Group()
        self._arrivals: Any = None

    def __enter__(self) -> Load:
        self._arrivals = gevent.spawn(self._arrive)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._arrivals.kill()
        self._requests.join()

    def begin_to_count(self) -> None:
        """Take into *outcomes* what is asked from now on, and nothing from before."""
        self.outcomes = Outcomes()

    def _arrive(self) -> None:
        dice, due = random.Random(1), monotonic()
        while True:
            # What a machine that stood still has missed does not come all at once.
            due = max(due + dice.expovariate(self._rate), monotonic() - _MOST_LATE)
            gevent.sleep(max(due - monotonic(), 0.0))
            self._requests.spawn(self._request, self.outcomes)

    def _request(self, outcomes: Outcomes) -> None:
        try:
            self._ask()
        except OSError as error:
            outcomes.errors.append(error.with_traceback(None))
        else:
            outcomes.answered += 1


@contextlib.contextmanager
def _servers_and(
    make: Callable[[list[Address]], Client], needs: float = NEEDS
) -> Iterator[tuple[Fleet, Client]]:
    with fleet(*HOSTS, needs=needs) as servers:
        client = make(servers.addresses)
        try:
            yield servers, client
        finally:
            client.close()


def one_turns_slow(
    make: Callable[[list[Address]], Client],
    rate: float,
    seconds: float,
    warm_up: float = WARM_UP,
) -> Outcomes:
    """What becomes of the requests of the *seconds* for which the first server is slow."""
    with _servers_and(make) as (servers, client):
        with Load(client.ask, rate) as load:
            gevent.sleep(warm_up)
            load.begin_to_count()
            servers.slow(0, SLOW)
            gevent.sleep(seconds)
        return load.outcomes


def rolling_restart(
    make: Callable[[list[Address]], Client],
    rate: float,
    away: float = 0.5,
    back: float = 0.5,
    warm_up: float = WARM_UP,
    needs: float = NEEDS,
) -> tuple[Outcomes, list[RetryDetails]]:
    """What becomes of the requests while one server after the other goes away, for *away* seconds
    each, with *back* seconds until the next; and each retry, since the beginning."""
    retries: list[RetryDetails] = []
    with _servers_and(make, needs) as (servers, client):
        ask = retry(client.ask, max_failures=2, on_retry=retries.append)
        with Load(ask, rate) as load:
            gevent.sleep(warm_up)
            load.begin_to_count()
            for number in range(len(servers.addresses)):
                servers.away(number)
                gevent.sleep(away)
                servers.back(number)
                gevent.sleep(back)
        return load.outcomes, retries


def simulation(quick: bool) -> list[Row]:
    """Both, with a ConnectionManager that balances by p2c; and the first, with others."""
    rate, seconds = 1000.0, 10.0 if quick else 30.0
    p2c, round_robin, least_loaded = (
        one_turns_slow(make, rate, seconds) for make in (Managed, RoundRobin, LeastLoaded)
    )
    restarted, retries = rolling_restart(Managed, rate)
    what = "one of 11 servers slow, failed, %, p2c"
    return [
        Row(f"{what} | 0.1", _percent(p2c), "0.1", p2c.failed / 0.001, 1.0),
        _against(f"{what} | round robin", p2c, round_robin, 0.05),
        _against(f"{what} | least loaded", p2c, least_loaded, 1.0),
        Row(
            "rolling restart of 11 servers, failed with @retry(max_failures=2)"
            f" ({len(retries)} retries) | requests",
            str(len(restarted.errors)),
            str(restarted.total),
            restarted.failed,
            0.0,
        ),
    ]


def _against(what: str, ours: Outcomes, other: Outcomes, bar: float) -> Row:
    # Nothing failed elsewhere: then the servers were not slow at all, which is no success.
    ratio = ours.failed / other.failed if other.failed else math.inf
    return Row(what, _percent(ours), _percent(other), ratio, bar)


def _percent(outcomes: Outcomes) -> str:
    return f"{100 * outcomes.failed:.3f}"
