"""What directories that are asked over HTTP are called, there and in the list of pools."""

from __future__ import annotations

from typing import Any

import pytest

import geventpool
from geventpool.addresses import AddressGroup
from geventpool.coordination.json_api import host_of
from geventpool.directory.consul import ConsulResolver
from geventpool.directory.etcd import EtcdResolver
from geventpool.errors import ConnectError
from geventpool.fleet.etcd import EtcdStore
from support.managers import Hosts


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (("consul.internal", 8500), "consul.internal:8500"),
        ("[::1]:2379", "[::1]:2379"),
        ("unix:/run/consul", "localhost"),
        (["a:1", "b:2"], "a:1"),
        (("a:1", "b:2"), "a:1"),
        (AddressGroup.of("a:1"), "a:1"),
    ],
)
def test_the_host_of_a_request_is_that_of_its_target(target: object, host: str) -> None:
    assert host_of(target) == host


@pytest.mark.parametrize("make", [ConsulResolver, EtcdResolver])
def test_a_server_is_asked_by_its_own_name(make: Any, hosts: Hosts) -> None:
    asked: list[bytes] = []

    def serve(sock: Any, peer: Any) -> None:
        asked.append(sock.recv(65536))

    address = hosts.serve(serve)
    with make(address) as resolver, pytest.raises(ConnectError):
        resolver.resolve("web")
    assert "Host: {}:{}".format(*address).encode() in asked[0].splitlines()


def test_each_pool_of_etcd_says_what_it_is_for() -> None:
    store = EtcdStore("127.0.0.1:1")
    with EtcdResolver("127.0.0.1:1") as resolver, EtcdResolver("127.0.0.1:1", prefix="other/"):
        with resolver.register("web", "10.0.0.1:80"):
            names = {each.name for each in geventpool.pools()}
    store._etcd.close()
    assert names >= {
        "etcd at 127.0.0.1:1 services/",
        "etcd at 127.0.0.1:1 other/",
        "etcd at 127.0.0.1:1 services/web/10.0.0.1:80",
        "etcd at 127.0.0.1:1 geventpool/fleet/",
    }
