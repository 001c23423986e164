"""etcd and ZooKeeper as directories: what they tell is known, while they are away and after."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gevent
import pytest

from geventpool.addresses import AddressGroup
from geventpool.errors import ConnectError, NameNotFound
from support import ROOT
from support.child import FORKS, Child
from support.managers import Hosts
from support.real_directories import REAL_DIRECTORIES, EtcdDirectory, RealDirectory
from support.waiting import until, until_readable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@pytest.fixture(scope="module", params=REAL_DIRECTORIES)
def shared(request: pytest.FixtureRequest) -> Iterator[RealDirectory]:
    """One that is never away."""
    with REAL_DIRECTORIES[request.param]() as directory:
        yield directory


@pytest.fixture(params=REAL_DIRECTORIES)
def own(request: pytest.FixtureRequest) -> Iterator[RealDirectory]:
    """One that the test may stop."""
    with REAL_DIRECTORIES[request.param]() as directory:
        yield directory


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def resolver_of() -> Iterator[Callable[..., Any]]:
    """Makes resolvers that are closed in the end."""
    with ExitStack() as stack:
        yield lambda directory, **more: stack.enter_context(directory.resolver(**more))


@pytest.fixture
def resolver(shared: RealDirectory, resolver_of: Any) -> Any:
    return resolver_of(shared)


def is_known(resolver: Any, name: str, *targets: str) -> Callable[[], bool]:
    return lambda: resolver.resolve(name) == AddressGroup.of(*targets)


# What is read


def test_a_change_is_known_within_a_second(shared: RealDirectory, resolver: Any, name: str) -> None:
    shared.write(name, A)
    shared.write(name, B)
    assert resolver.resolve(name) == AddressGroup.of(A, B)
    took = []
    for _ in range(5):
        for change, now in ((shared.write, (A, B, C)), (shared.remove, (A, B))):
            change(name, C)
            began = time.monotonic()
            until(is_known(resolver, name, *now))
            took.append(time.monotonic() - began)
    assert sorted(took)[len(took) // 2] < 1.0


def test_weights_are_read_and_what_is_no_address_is_left_out(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    shared.write(name, "one", json.dumps({"address": A, "weight": 3}).encode())
    shared.write(name, "two", B.encode())
    shared.write(name, "three", b"no address at all")
    shared.write(name, "four", b"\xff\xfe")
    shared.write(name, C)
    assert resolver.resolve(name) == AddressGroup([[(3, A), (1, B), (1, C)]])
    shared.write(name, "one", json.dumps({"address": A, "weight": 1}).encode())
    until(is_known(resolver, name, A, B, C))


def test_a_service_that_does_not_exist_is_not_found_and_then_it_is(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    with pytest.raises(NameNotFound, match=f"'{name}' was not found"):
        resolver.resolve(name)
    shared.write(name, A)

    def is_found() -> bool:
        try:
            return bool(resolver.resolve(name) == AddressGroup.of(A))
        except NameNotFound:
            return False

    until(is_found)


def test_a_service_below_another_is_another(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    shared.write(name, A)
    shared.write(f"{name}/inner", B)
    shared.write(f"{name}-too", C)
    assert resolver.resolve(name) == AddressGroup.of(A)
    assert resolver.resolve(f"{name}/inner") == AddressGroup.of(B)


def test_a_service_of_many_servers_is_known(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    many = [f"10.0.1.{number}:80" for number in range(1, 101)]
    for each in many:
        shared.write(name, each)
    assert resolver.resolve(name) == AddressGroup.of(*many)


@pytest.mark.parametrize("bad", ["", "/", "a//b", "..", "a/../b", "/a", "a/", "a\n"])
def test_what_can_be_no_name_is_refused(resolver: Any, bad: str) -> None:
    with pytest.raises(ValueError, match="name must be that of a service"):
        resolver.resolve(bad)


def test_a_caller_that_is_killed_as_it_waits_takes_the_answer_from_no_other(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    shared.write(name, A)
    killed, waiting = (gevent.spawn(resolver.resolve, name) for _ in range(2))
    gevent.sleep(0)
    killed.kill()
    assert waiting.get(timeout=20) == AddressGroup.of(A)


@FORKS
def test_a_child_watches_by_itself_and_leaves_the_parents_watch_alone(
    shared: RealDirectory, resolver: Any, name: str, fork: Any
) -> None:
    shared.write(name, A)
    resolver.resolve(name)

    def child() -> bool:
        until(is_known(resolver, name, A, B), seconds=20)
        resolver.close()
        return True

    forked = Child(fork, child)
    gevent.sleep(0.05)
    shared.write(name, B)
    until(is_known(resolver, name, A, B))
    assert forked.result()
    shared.write(name, C)
    until(is_known(resolver, name, A, B, C))


def test_a_resolver_that_is_dropped_leaves_nothing_behind(shared: RealDirectory, name: str) -> None:
    shared.write(name, A)
    resolver = shared.resolver()
    assert resolver.resolve(name) == AddressGroup.of(A)
    dropped = weakref.ref(resolver)
    del resolver
    gc.collect()
    assert dropped() is None  # what it had open is looked for after each test


# While it is away


def test_the_last_addresses_serve_on_while_it_is_away_and_changes_are_known_after(
    own: RealDirectory, resolver_of: Any
) -> None:
    own.write("web", A)
    resolver = resolver_of(own)
    assert resolver.resolve("web") == AddressGroup.of(A)
    own.server.stop(signal.SIGKILL)
    until(lambda: resolver._services["web"].error is not None, "the loss")
    assert resolver.resolve("web") == AddressGroup.of(A)
    with pytest.raises(ConnectError, match="'other' is not known") as caught:
        resolver.resolve("other")
    assert not isinstance(caught.value, NameNotFound)
    own.server.start()
    until(lambda: resolver._services["web"].error is None, "the return", 60)
    own.write("web", B)
    until(is_known(resolver, "web", A, B))


def test_one_that_is_away_at_the_start_is_found_later(own: RealDirectory, resolver_of: Any) -> None:
    own.write("web", A)
    own.server.stop()
    resolver = resolver_of(own)
    with pytest.raises(ConnectError, match="'web' is not known: .* does not answer"):
        resolver.resolve("web")
    own.server.start()

    def is_found() -> bool:
        try:
            return bool(resolver.resolve("web") == AddressGroup.of(A))
        except ConnectError:
            return False

    until(is_found, seconds=60)


def test_one_that_falls_silent_is_noticed_and_is_back(
    own: RealDirectory, resolver_of: Any, chaos_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geventpool.directory import etcd

    monkeypatch.setattr(etcd, "_SILENCE", 0.5)
    own.write("web", A)
    proxy = chaos_proxy(own.server.address)
    resolver = resolver_of(own, at=proxy.address)
    resolver.resolve("web")
    proxy.black_hole()  # no packet comes, and nothing is closed
    until(lambda: resolver._services["web"].error is not None, "the loss", 60)
    assert resolver.resolve("web") == AddressGroup.of(A)
    own.write("web", B)
    proxy.normal()
    until(is_known(resolver, "web", A, B), seconds=60)
    resolver.close()


def test_changes_that_are_forgotten_are_read_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with EtcdDirectory() as directory, directory.resolver() as resolver:
        directory.write("web", A)
        source = resolver._source
        read = source._etcd.ask

        def slowly(path: str, question: Any) -> Any:
            answer = read(path, question)
            if path == "/v3/kv/range" and not directory.entries("later"):
                directory.write("web", B)
                directory.write("later", C)
                directory.compact()  # before the watch begins
            return answer

        monkeypatch.setattr(source._etcd, "ask", slowly)
        assert resolver.resolve("web") == AddressGroup.of(A)
        until(is_known(resolver, "web", A, B))
        assert not caplog.messages  # etcd was never away


# What a program announces


def test_what_is_registered_is_found_with_its_weight_until_it_is_closed(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    first = resolver.register(name, A, weight=3.0)
    second = resolver.register(name, B)
    assert first.wait(20)
    assert second.wait(20)
    assert resolver.resolve(name) == AddressGroup([[(3, A), (1, B)]])
    assert shared.addresses(name) == [A, B]
    first.close()
    assert shared.addresses(name) == [B]
    until(is_known(resolver, name, B))
    second.close()
    assert not shared.entries(name)
    assert repr(second).startswith(f"<Registration '{name}' {B} closed, ")


def test_a_registration_outlives_its_lease(shared: RealDirectory, resolver: Any, name: str) -> None:
    with resolver.register(name, A, lease=2.0) as registration:
        assert registration.wait(20)
        gone = 0
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            gone += A not in shared.addresses(name)
            gevent.sleep(0.05)
        assert not gone
        assert registration.announced


def test_a_registration_that_is_lost_is_announced_again(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    with resolver.register(name, A, lease=2.0) as registration:
        assert registration.wait(20)
        shared.end_leases(name)
        assert not shared.entries(name)
        until(lambda: A in shared.addresses(name), "it again", 20)
        until(lambda: registration.announced)


def test_an_address_is_there_as_long_as_one_of_its_processes_is(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    killed = resolver.register(name, A, lease=2.0)
    assert killed.wait(20)
    killed._greenlet.kill()  # as if its process was gone
    with resolver.register(name, A, lease=2.0) as successor:
        assert successor.wait(20)
        with resolver.register(name, A) as third:
            assert third.wait(20)
            assert shared.addresses(name).count(A) >= 2
        ends = time.monotonic() + 6
        while time.monotonic() < ends:
            assert A in shared.addresses(name)
            assert resolver.resolve(name) == AddressGroup.of(A)
            gevent.sleep(0.1)
    killed.close()


def test_a_registration_is_there_again_after_the_directory_was_away(
    own: RealDirectory, resolver_of: Any
) -> None:
    resolver = resolver_of(own)
    with resolver.register("web", A, lease=2.0) as registration:
        assert registration.wait(20)
        own.server.stop(signal.SIGKILL)
        until(lambda: not registration.announced, "the loss", 60)
        own.server.start()
        until(lambda: registration.announced, "the return", 60)
        assert A in own.addresses("web")


ANNOUNCE = """
import sys
import gevent
sys.path.insert(0, sys.argv[1])
from support.real_directories import REAL_DIRECTORIES
kind, host, port, name, address, how = sys.argv[2:]
if kind == "etcd":
    from geventpool.directory.etcd import EtcdResolver
    resolver = EtcdResolver((host, int(port)))
else:
    from geventpool.directory.zookeeper import ZooKeeperResolver
    resolver = ZooKeeperResolver(f"{host}:{port}")
registration = resolver.register(name, address, lease=3.0)
assert registration.wait(30)
print("announced", flush=True)
if how == "stay":
    gevent.sleep(600)
"""


@contextmanager
def announced(directory: RealDirectory, name: str, how: str) -> Iterator[Any]:
    """A process that announces A, and has done so."""
    host, port = directory.server.address
    kind = directory.server.name
    command = [sys.executable, "-c", ANNOUNCE, str(ROOT / "tests"), kind, host, str(port)]
    process: Any = subprocess.Popen(
        [*command, name, A, how],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        fd = process.stdout.fileno()
        until_readable(fd)
        assert os.read(fd, 100).startswith(b"announced")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_process_that_is_killed_is_gone_from_the_directory_within_its_lease(
    shared: RealDirectory, resolver: Any, name: str
) -> None:
    with announced(shared, name, "stay") as process:
        shared.write(name, B)
        until(is_known(resolver, name, A, B))
        process.kill()
        began = time.monotonic()
        until(is_known(resolver, name, B))
        assert time.monotonic() - began < 3.0 + 3.0  # the servers look at leases now and then


def test_a_process_that_ends_is_gone_from_the_directory_as_it_ends(
    shared: RealDirectory, name: str
) -> None:
    with announced(shared, name, "end") as process:
        until(lambda: process.poll() is not None)
        assert process.returncode == 0
        assert not shared.entries(name)


@FORKS
def test_in_a_child_nothing_of_a_registration_goes_on(
    shared: RealDirectory, resolver: Any, name: str, fork: Any
) -> None:
    with resolver.register(name, A, lease=2.0) as registration:
        assert registration.wait(20)

        def child() -> list[bool]:
            gevent.sleep(1.0)
            registration.close()
            return [registration.announced, registration.closed, registration._greenlet.dead]

        assert Child(fork, child).result() == [False, True, True]
        assert registration.announced
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            assert A in shared.addresses(name)
            gevent.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", A), "name must be that of a service"),
        (("web", "unix:/run/web"), "address must be a host and a port"),
        (("web", "0.0.0.0:80"), "address must be one that others can reach"),
        (("web", "nowhere"), "there is no port"),
    ],
)
def test_what_can_be_no_server_is_refused(resolver: Any, arguments: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolver.register(*arguments)
    with pytest.raises(ValueError, match="lease must be 2 s or more"):
        resolver.register("web", A, lease=1.0)
    with pytest.raises(ValueError, match="weight"):
        resolver.register("web", A, weight=-1.0)


# With a manager


def test_a_manager_follows_what_the_servers_announce(
    shared: RealDirectory, resolver: Any, name: str, hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    leaving = resolver.register(name, old.address)
    assert leaving.wait(20)
    manager = manage(resolver, watch_interval=3600.0, watch_hold=0.0)
    held = manager.get_connection(name)
    with manager.connection(name):
        pass
    coming = resolver.register(name, new.address)
    assert coming.wait(20)
    leaving.close()
    until(lambda: old.open == 1, "the end of the idle one")
    with manager.connection(name) as sock:
        assert sock.getpeername() == new.address
    held.sendall(b"ping")
    assert held.recv(4) == b"ping"
    manager.release_connection(held)
    until(lambda: not old.open, "the end of the held one")
    coming.close()
