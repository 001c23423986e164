"""What stands in a directory of one server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from geventpool.addresses import Address, address
from geventpool.directory.member import check_name, member_of, read_member, write_member

A = Address("10.0.0.1", 443)
ENTRY = "10.0.0.9:80"


@pytest.mark.parametrize(
    ("held", "target", "weight"),
    [
        (b"", ENTRY, 1.0),
        (b" \n", ENTRY, 1.0),
        (b"10.0.0.1:443\n", A, 1.0),
        (b"[2001:db8::1]:443", ("2001:db8::1", 443), 1.0),
        (b"db1.internal:5432", ("db1.internal", 5432), 1.0),
        ({"address": "10.0.0.1:443"}, A, 1.0),
        ({"address": "10.0.0.1:443", "weight": 2.5}, A, 2.5),
        ({"address": "10.0.0.1:443", "weight": 0}, A, 0.0),
        ({"weight": 3}, ENTRY, 3.0),
        # Curator's ServiceInstance, gRPC's resolver for etcd, Finagle's ServerSets, others' own
        ({"name": "web", "id": "7", "address": "10.0.0.1", "port": 443, "sslPort": None}, A, 1.0),
        ({"Op": 0, "Addr": "10.0.0.1:443", "Metadata": None}, A, 1.0),
        ({"serviceEndpoint": {"host": "10.0.0.1", "port": 443}, "status": "ALIVE"}, A, 1.0),
        ({"host": "10.0.0.1", "port": 443}, A, 1.0),
        # A weight that is none says nothing.
        ({"address": "10.0.0.1:443", "weight": -1}, A, 1.0),
        ({"address": "10.0.0.1:443", "weight": True}, A, 1.0),
        (b'{"address": "10.0.0.1:443", "weight": NaN}', A, 1.0),
        (b'{"address": "10.0.0.1:443", "weight": Infinity}', A, 1.0),
        (b'{"address": "10.0.0.1:443", "weight": 1%s}' % (b"0" * 400), A, 1.0),
        ({"address": "10.0.0.1:443", "weight": None}, A, 1.0),
        ({"address": "10.0.0.1:443", "weight": "heavy"}, A, 1.0),
        ({"address": "10.0.0.1:443", "weight": [2]}, A, 1.0),
    ],
)
def test_an_entry_is_read_in_each_spelling(held: Any, target: Any, weight: float) -> None:
    text = held if isinstance(held, bytes) else json.dumps(held).encode()
    assert read_member(ENTRY, text) == (address(target), weight)


@pytest.mark.parametrize(
    ("entry", "held"),
    [
        ("member_0001", b""),
        (ENTRY, b"no address"),
        (ENTRY, b"\xff"),
        (ENTRY, b"{"),
        (ENTRY, b'{"address": 3}'),
        (ENTRY, b'{"address": "10.0.0.1"}'),
        (ENTRY, b'{"address": "10.0.0.1", "port": "many"}'),
        (ENTRY, b'{"serviceEndpoint": {}}'),
        (ENTRY, b'{"a":' * 100_000),
        ("lock", b'{"weight": 1}'),
    ],
)
def test_what_has_no_address_is_none(entry: str, held: bytes) -> None:
    assert read_member(entry, held) is None


def test_what_is_written_is_read_again() -> None:
    assert read_member("any", write_member(A, 2.5)) == (A, 2.5)


@pytest.mark.parametrize("name", ["web", "shop/web", "shop.web-2", "größe"])
def test_a_service_may_have_such_a_name(name: str) -> None:
    check_name(name)


def test_a_server_may_be_spelled_in_each_way() -> None:
    assert member_of(("10.0.0.1", 443)) == member_of("10.0.0.1:443") == A
    with pytest.raises(TypeError):
        member_of(3)
