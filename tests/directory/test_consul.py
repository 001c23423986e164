"""ConsulResolver, against a server that answers as Consul's documentation says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest

from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.directory import consul as module
from geventpool.directory.consul import ConsulResolver
from geventpool.errors import ConnectError, NameNotFound
from support.child import FORKS, Child
from support.managers import Hosts
from support.small_consul import SmallConsul
from support.waiting import until

A, B, C = ("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)


@pytest.fixture
def consul() -> Iterator[SmallConsul]:
    with SmallConsul() as server:
        yield server


@pytest.fixture
def watch(consul: SmallConsul) -> Iterator[Callable[..., ConsulResolver]]:
    """Makes resolvers that are closed in the end."""
    with ExitStack() as stack:

        def make(**settings: Any) -> ConsulResolver:
            resolver = ConsulResolver(
                consul.address, **{"backoff": Backoff(first=0.005, longest=0.01), **settings}
            )
            stack.callback(resolver.close)
            return resolver

        yield make


def knows(resolver: ConsulResolver, *targets: Any) -> None:
    """Wait until these are given out."""
    until(lambda: resolver.resolve("web") == AddressGroup.of(*targets), f"{targets}")


def test_a_change_is_pushed_and_nothing_is_asked_in_between(
    consul: SmallConsul, watch: Any
) -> None:
    consul.register("web", A)
    resolver = watch()
    assert resolver.resolve("web") == AddressGroup.of(A)
    until(lambda: consul.waiting == 1)
    assert len(consul.queries) == 2
    consul.register("web", B)
    knows(resolver, A, B)
    consul.deregister("web", A)
    knows(resolver, B)
    until(lambda: consul.waiting == 1)
    assert len(consul.queries) == 4
    assert [query.get("index") for _, query in consul.queries[:2]] == [None, ["100"]]
    assert consul.queries[1][1]["wait"] == ["60000ms"]


def test_what_changes_in_other_services_is_of_no_interest(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    resolver = watch()
    resolver.resolve("web")
    until(lambda: consul.waiting == 1)
    consul.register("db", B)
    gevent.idle()
    assert len(consul.queries) == 2
    assert resolver.resolve("web") == AddressGroup.of(A)


def test_one_whose_checks_do_not_pass_is_left_out(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    consul.register("web", B, "passing", "critical")
    consul.register("web", C, "passing", "warning")
    strict, lenient = watch(), watch(passing=False)
    assert strict.resolve("web") == AddressGroup.of(A)
    assert lenient.resolve("web") == AddressGroup.of(A, C)
    consul.register("web", B)
    knows(strict, A, B)
    knows(lenient, A, B, C)


def test_weights_are_those_of_the_instances(consul: SmallConsul, watch: Any) -> None:
    weights = {"Passing": 9, "Warning": 2}
    consul.register("web", A, weights=weights)
    consul.register("web", B, "warning", weights=weights)
    assert watch(passing=False).resolve("web") == AddressGroup([[(9, A), (2, B)]])


def test_a_weight_that_is_none_takes_no_server_away(consul: SmallConsul, watch: Any) -> None:
    weights: list[Any] = [10**400, float("inf"), "heavy", None, -1]
    for number, weight in enumerate(weights):
        consul.register("web", ("10.0.0.1", 80 + number), weights={"Passing": weight})
    consul.register("web", B, weights={"Passing": 2})
    expected = [(1.0, ("10.0.0.1", 80 + number)) for number in range(len(weights))]
    assert watch().resolve("web") == AddressGroup([[*expected, (2.0, B)]])


def test_an_instance_without_an_address_has_that_of_its_node(
    consul: SmallConsul, watch: Any
) -> None:
    consul.register("web", ("", 80))
    consul.register("web", ("10.0.0.9", 0))  # it has no port
    consul.register("web", ("10.0.0.8", 0), SocketPath="/run/web.sock")
    expected = AddressGroup.of(("10.1.10.12", 80), "unix:/run/web.sock")
    assert watch().resolve("web") == expected


def test_what_is_asked_is_as_said(consul: SmallConsul, watch: Any) -> None:
    consul.register("web site", A)
    resolver = watch(
        tags=["primary", "v2"], filter="Service.Meta.x == 1", datacenter="dc2", consistency="stale"
    )
    with pytest.raises(NameNotFound):
        resolver.resolve("web site")
    path, query = consul.queries[0]
    assert path == "/v1/health/service/web site"
    assert query == {
        "passing": ["1"],
        "tag": ["primary", "v2"],
        "filter": ["Service.Meta.x == 1"],
        "dc": ["dc2"],
        "stale": ["1"],
    }
    with pytest.raises(NameNotFound):
        watch(consistency="consistent").resolve("db")
    assert "consistent" in consul.queries[-1][1] or "consistent" in consul.queries[-2][1]


def test_an_index_that_goes_back_begins_anew(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    resolver = watch()
    resolver.resolve("web")
    until(lambda: consul.waiting == 1)
    consul.restore()
    until(lambda: consul.waiting == 1 and len(consul.queries) == 4)
    assert [query.get("index") for _, query in consul.queries] == [None, ["100"], None, ["5"]]
    consul.register("web", B)
    knows(resolver, A, B)


def test_an_index_that_would_not_block_is_not_used(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    consul.index_shown = "0"
    resolver = watch(wait=0.2)
    resolver.resolve("web")
    until(lambda: len(consul.queries) > 2)
    assert {query["index"][0] for _, query in consul.queries[1:]} == {"1"}


def test_without_a_change_it_is_asked_again_when_the_wait_is_over(
    consul: SmallConsul, watch: Any
) -> None:
    consul.register("web", A)
    resolver = watch(wait=0.05)
    resolver.resolve("web")
    until(lambda: len(consul.queries) == 4)
    assert resolver.resolve("web") == AddressGroup.of(A)


def test_a_wait_is_a_millisecond_at_least(consul: SmallConsul, watch: Any) -> None:
    """As 0 means Consul's own, of 5 minutes."""
    consul.register("web", A)
    watch(wait=0.0004).resolve("web")
    until(lambda: len(consul.queries) == 2)
    assert consul.queries[1][1]["wait"] == ["1ms"]


def test_the_first_answer_is_not_waited_for_as_a_change_is(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(sock: Any, peer: Any) -> None:
        while sock.recv(65536):
            pass  # and say nothing

    monkeypatch.setattr(module, "_TIMEOUT", 0.05)
    with ConsulResolver(hosts.serve(serve), wait=60.0, timeout=30.0) as resolver:
        with gevent.Timeout(10), pytest.raises(ConnectError, match="does not answer: TimeoutError"):
            resolver.resolve("web")


def test_many_changes_are_not_asked_for_one_by_one(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    resolver = watch()
    resolver.resolve("web")
    until(lambda: consul.waiting == 1)
    began = time.monotonic()
    for number in range(60):
        consul.register("web", ("10.0.1.1", 1000 + number))
        gevent.sleep(0.005)
    until(lambda: len(resolver.resolve("web")) == 61)
    assert len(consul.queries) <= (time.monotonic() - began) / 0.1 + 4


def test_the_token_is_sent_and_shown_nowhere(consul: SmallConsul, watch: Any) -> None:
    consul.register("web", A)
    consul.token = "hunter2"
    assert watch(token="hunter2").resolve("web") == AddressGroup.of(A)
    resolver = watch(token="wrong")
    with pytest.raises(ConnectError, match="does not answer.*status 403: ACL not found") as caught:
        resolver.resolve("web")
    assert "wrong" not in f"{caught.value!r} {resolver!r}"


def test_without_a_leader_the_last_addresses_serve_on(
    consul: SmallConsul, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool.directory")
    consul.register("web", A)
    resolver, stale = watch(wait=0.05), watch(wait=0.05, consistency="stale")
    resolver.resolve("web")
    stale.resolve("web")
    consul.leaderless = True
    until(lambda: "No cluster leader" in caplog.text)
    assert resolver.resolve("web") == AddressGroup.of(A)
    consul.register("web", B)
    knows(stale, A, B)
    assert resolver.resolve("web") == AddressGroup.of(A)
    consul.leaderless = False
    knows(resolver, A, B)
    assert caplog.text.count("does not answer") == caplog.text.count("is back") == 1


def test_as_it_is_away_and_back_the_changes_are_learnt(
    consul: SmallConsul, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consul.register("web", A)
    resolver = watch()
    resolver.resolve("web")
    consul.stop()
    until(lambda: "its last addresses serve on" in caplog.text)
    assert resolver.resolve("web") == AddressGroup.of(A)
    consul.deregister("web", A)
    consul.register("web", B)
    consul.start()
    knows(resolver, B)


@FORKS
def test_a_child_leaves_its_parent_s_watch_alone(
    consul: SmallConsul, watch: Any, fork: Callable[[], int]
) -> None:
    consul.register("web", A)
    resolver = watch()
    resolver.resolve("web")
    until(lambda: consul.waiting == 1)

    def in_child() -> str:
        consul.leave()
        news = resolver._services["web"].news
        news.clear()
        assert news.wait(20), "no answer to the child"
        return str(resolver.resolve("web"))

    assert Child(fork, in_child).result() == str(AddressGroup.of(A))
    assert None in [query.get("index") for _, query in consul.queries[2:]]  # the child's first
    until(lambda: consul.waiting >= 1)
    consul.register("web", B)
    knows(resolver, A, B)


def test_what_is_no_answer_of_consul_s_says_so(watch: Any, hosts: Hosts) -> None:
    def serve(sock: Any, peer: Any) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    with ConsulResolver(hosts.serve(serve)) as resolver:
        with pytest.raises(ConnectError, match="no list of instances"):
            resolver.resolve("web")


def test_a_manager_drains_the_vanished_and_uses_the_new(
    consul: SmallConsul, watch: Any, hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    consul.register("web", old.address)
    manager = manage(watch(), watch_interval=3600.0, watch_hold=0.0)
    with manager.connection("web") as sock:
        assert sock.getpeername() == old.address
    consul.register("web", new.address)
    consul.deregister("web", old.address)
    old.wait_open(0)
    with manager.connection("web") as sock:
        assert sock.getpeername() == new.address


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"wait": 0.0}, ValueError, "wait"),
        ({"wait": 601.0}, ValueError, "wait must be 600 at most"),
        ({"consistency": "strong"}, ValueError, 'consistency must be one of "default"'),
        ({"tags": "v2"}, TypeError, "tags must be a list of strings"),
        ({"tags": 5}, TypeError, "tags must be a list of strings"),
        ({"tags": ["v2", 5]}, TypeError, r"tags\[1\] must be a string"),
        ({"filter": 5}, TypeError, "filter must be a string"),
        ({"datacenter": 5}, TypeError, "datacenter must be a string"),
        ({"token": 5}, TypeError, "token must be a string"),
        ({"token": ""}, ValueError, "token must not be empty"),
        ({"timeout": -1.0}, ValueError, "timeout"),
    ],
)
def test_what_it_cannot_be_made_of_is_named(
    watch: Any, settings: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"^{said}"):
        watch(**settings)
    with pytest.raises(ValueError, match="name must be that of a service of Consul"):
        watch().resolve("")
