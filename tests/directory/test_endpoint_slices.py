"""Which servers the EndpointSlices of a service stand for."""

from __future__ import annotations

import pytest

from geventpool.addresses import Address
from geventpool.directory.endpoint_slices import ServiceName, addresses_in
from geventpool.directory.source import NameUnclear
from support.small_kubernetes import endpoint, slice_of

FAMILIES = ("IPv4", "IPv6", "FQDN")
A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


def found(*slices: object, port: str | None = None) -> set[str]:
    return {str(each) for each in addresses_in(slices, port, FAMILIES)}  # type: ignore[arg-type]


def test_all_slices_of_a_service_are_its_servers() -> None:
    one, other = slice_of("web-1", endpoint(A), endpoint(B)), slice_of("web-2", endpoint(C))
    assert found(one, other) == {f"{A}:8080", f"{B}:8080", f"{C}:8080"}
    assert addresses_in([one], None, FAMILIES) == {Address(A, 8080): 1.0, Address(B, 8080): 1.0}
    assert found() == found(slice_of("web-1")) == set()


def test_one_that_is_not_ready_is_left_out_and_one_of_which_nothing_is_known_is_not() -> None:
    assert found(slice_of("web", endpoint(A, ready=False), endpoint(B, ready=None))) == {
        f"{B}:8080"
    }


def test_one_that_terminates_is_left_out_even_if_it_is_said_to_be_ready() -> None:
    """As with publishNotReadyAddresses."""
    ending = endpoint(A, ready=True, serving=True, terminating=True)
    assert found(slice_of("web", ending, endpoint(B))) == {f"{B}:8080"}


def test_if_none_is_ready_those_that_serve_as_they_terminate_are_given_out() -> None:
    serving = endpoint(A, ready=False, serving=True, terminating=True)
    failing = endpoint(B, ready=False, serving=False, terminating=True)
    starting = endpoint(C, ready=False, serving=False)
    assert found(slice_of("web", serving, failing, starting)) == {f"{A}:8080"}
    assert found(slice_of("web", failing, starting)) == set()


def test_one_that_is_in_two_slices_as_it_moves_counts_as_it_is_doing_best() -> None:
    old = slice_of("web-1", endpoint(A, ready=False, serving=True, terminating=True))
    new = slice_of("web-2", endpoint(A))
    assert found(old, new) == found(new, old) == {f"{A}:8080"}
    dead = slice_of("web-3", endpoint(A, ready=False, serving=False, terminating=True))
    assert found(old, dead) == found(dead, old) == {f"{A}:8080"}


def test_the_port_is_that_of_the_name_or_the_only_one() -> None:
    made = slice_of("web", endpoint(A), ports=[("http", 8080), ("metrics", 9090)])
    assert found(made, port="http") == found(made, port="8080") == {f"{A}:8080"}
    assert found(made, port="metrics") == {f"{A}:9090"}
    with pytest.raises(NameUnclear, match="several ports.*: http:8080, metrics:9090"):
        found(made)


@pytest.mark.parametrize("port", ["grpc", "80"])
def test_a_port_that_no_pod_has_is_told_with_those_that_they_have(port: str) -> None:
    made = slice_of("web", endpoint(A), ports=[("http", 8080), ("metrics", 9090)])
    said = f"no pod .* has the port {port}, but http:8080, metrics:9090; .*targetPort"
    with pytest.raises(NameUnclear, match=said):
        found(made, slice_of("web-2", endpoint(B), ports=[("http", 8080)]), port=port)
    assert found(slice_of("web", ports=[]), port=port) == set()


def test_a_slice_without_the_port_takes_no_other_away() -> None:
    old, new = slice_of("web-1", endpoint(A)), slice_of("web-2", endpoint(B), ports=[("grpc", 90)])
    assert found(old, new, port="grpc") == {f"{B}:90"}


def test_each_slice_has_its_own_port_of_that_name() -> None:
    one = slice_of("web-1", endpoint(A), ports=[("http", 8080)])
    other = slice_of("web-2", endpoint(B), ports=[("http", 8081)])
    assert found(one, other, port="http") == {f"{A}:8080", f"{B}:8081"}


def test_ports_that_are_not_of_tcp_are_none() -> None:
    made = slice_of("dns", endpoint(A), ports=[("dns", 53), ("dns-tcp", 53)])
    made["ports"][0]["protocol"] = "UDP"
    made["ports"].append({"name": "quic", "protocol": "UDP", "port": 443})
    assert found(made) == {f"{A}:53"}
    made["ports"] = [{"name": "any"}]  # all ports: it does not say which
    assert found(made) == set()


def test_of_a_service_of_both_families_each_server_is_given_out_once() -> None:
    four = slice_of("web-4", endpoint(A))
    six = slice_of("web-6", endpoint("fd00::1"), endpoint("fd00::2"), family="IPv6")
    assert found(six, four) == {f"{A}:8080"}
    assert found(six) == {"[fd00::1]:8080", "[fd00::2]:8080"}
    assert set(addresses_in([six, four], None, ("IPv6", "IPv4"))) == {
        Address("fd00::1", 8080),
        Address("fd00::2", 8080),
    }
    assert found(slice_of("web", endpoint("a.example.org"), family="FQDN")) == {
        "a.example.org:8080"
    }


def test_what_is_no_address_does_not_spoil_the_others() -> None:
    made = slice_of("web", endpoint("no address"), endpoint(), endpoint(A))
    assert found(made) == {f"{A}:8080"}
    made["endpoints"] = None
    assert found(made) == set()


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("web", ("web", None, None)),
        ("web.shop", ("web", "shop", None)),
        ("web:http", ("web", None, "http")),
        ("web-2.shop:8080", ("web-2", "shop", "8080")),
    ],
)
def test_a_name_is_a_service_with_its_namespace_and_port(name: str, parsed: object) -> None:
    assert ServiceName.parsed(name) == parsed


@pytest.mark.parametrize("name", ["", "Web", "web.", "a.b.c", "web:", "web/x", "-web", "w" * 64])
def test_what_is_no_such_name_is_said_at_once(name: str) -> None:
    with pytest.raises(ValueError, match='name must be "service"'):
        ServiceName.parsed(name)
