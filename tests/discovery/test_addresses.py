"""Addresses: where a server is, in any spelling; and groups of them, with tiers and weights."""

from __future__ import annotations

import copy
import ipaddress
import pathlib
import pickle
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geventpool.addresses import Address, AddressGroup, AnyAddress, UnixAddress, address
from support import named

A, B, C, D = (Address(f"10.0.0.{n}", 80) for n in range(1, 5))

# One address


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (("host", 80), Address("host", 80)),
        (["host", 80], Address("host", 80)),  # as a JSON file has it
        (Address("host", 80), Address("host", 80)),
        ("host:80", Address("host", 80)),
        ("db_1.my-app.internal.:80", Address("db_1.my-app.internal.", 80)),
        ("10.0.0.1:65535", Address("10.0.0.1", 65535)),
        ("[::1]:1", Address("::1", 1)),
        (("::1", 80), Address("::1", 80)),
        (("fe80::1%eth0", 80), Address("fe80::1%eth0", 80)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ((ipaddress.IPv4Address("10.0.0.1"), 80), Address("10.0.0.1", 80)),
        ((ipaddress.IPv6Address("::1"), 80), Address("::1", 80)),
        ("bücher.example:80", Address("bücher.example", 80)),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:x.sock", UnixAddress("x.sock")),
        ("unix:80", UnixAddress("80")),
        (("unix", 80), Address("unix", 80)),
        (UnixAddress("/run/x.sock"), UnixAddress("/run/x.sock")),
        (pathlib.Path("/run/x.sock"), UnixAddress("/run/x.sock")),
        (pathlib.PurePosixPath("/run/x:80"), UnixAddress("/run/x:80")),
    ],
    ids=named,
)
def test_an_address_may_be_spelled_in_many_ways(target: object, expected: AnyAddress) -> None:
    found = address(target)

    assert found == expected
    assert type(found) is type(expected)
    assert [type(part) for part in found] == [type(part) for part in expected]
    assert address(str(found)) == found


def test_an_address_is_the_tuple_that_a_socket_takes() -> None:
    assert Address("10.0.0.1", 80) == ("10.0.0.1", 80)
    assert hash(Address("10.0.0.1", 80)) == hash(("10.0.0.1", 80))
    with socket.socket() as sock:
        sock.bind(Address("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Address("host", 80), "host:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address("unix", 80), "[unix]:80"),
        (UnixAddress("/run/x.sock"), "unix:/run/x.sock"),
    ],
)
def test_an_address_prints_as_it_is_written(found: AnyAddress, text: str) -> None:
    assert str(found) == f"{found}" == text


def test_one_ipv6_address_has_one_spelling() -> None:
    assert address("[2001:DB8:0::0001]:80") == address(("2001:db8::1", 80))


@pytest.mark.parametrize(
    "target",
    [
        *["", "host", "host:", ":80", "host:http", "host:0", "host:65536", "host:-1", "host:8 0"],
        *["host:+80", "host:٣", "host: 80", "host:80\n", "host:" + "9" * 5000, "host:000080"],
        *["::1", "::1:80", "[::1]", "[]:80", "[::1]80", "[::1]:", "[:::1]:80", "1:2:3:80"],
        *["http://host:80", "//host:80", "host/path:80", "user@host:80", "a:1,b:80", "a,b:80"],
        *["ho st:80", "host\0:80", "a..b:80", ".:80", "a" * 64 + ":80", "[a]b:80", "\ud800:80"],
        *["℀.com:80", ".".join("a" * 63 for _ in range(4)) + ":80", "fe80::1%eth0:80"],
        *["[fe80::1%]:80", "[fe80::1%a b]:80", "[fe80::1%a\0]:80"],
        *["unix:", "unix:/a\0b", "unix:/" + "a" * 107, "unix:/\ud800"],
        *[("", 80), ("host", 0), ("host", 65536), ("host", -1), ("host:80", 80), ("[::1]", 80)],
        *[Address("", 80), Address("host", 0), UnixAddress(""), ("unix:/x", 80)],
        *[pathlib.Path("/" + "a" * 107), pathlib.Path("/a\0")],
    ],
    ids=lambda target: ascii(target)[:40],
)
def test_what_nothing_can_connect_to_is_refused(target: object) -> None:
    with pytest.raises(ValueError, match="target must be .*" + re.escape(repr(target)) + ": ."):
        address(target)


@pytest.mark.parametrize(
    "target",
    [
        *[None, 80, 8.0, True, b"host:80", {"host": 80}, {("host", 80)}, object()],
        *[(), ("host",), ("host", "80"), ("host", True), ("host", 80.0), ("host", None)],
        *[("::1", 80, 0, 0), (b"host", 80), (80, "host"), (None, 80), UnixAddress(3)],  # type: ignore[arg-type]
        *[ipaddress.IPv4Address("10.0.0.1"), iter(["host", 80]), Address("host", "80")],  # type: ignore[arg-type]
    ],
    ids=lambda target: named(target)[:30],
)
def test_what_is_no_address_is_refused(target: object) -> None:
    with pytest.raises(TypeError, match="target must be .*" + re.escape(repr(target))):
        address(target)


def test_the_longest_path_that_is_taken_is_the_longest_that_can_be_bound(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    longest = "ü" * 53 + "x"  # 107 bytes
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address(f"unix:{longest}")[0])

    with pytest.raises(ValueError, match="107 bytes"):
        address(f"unix:{longest}x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", Address("host", 443)),
        ("host:80", Address("host", 80)),
        ("10.0.0.1", Address("10.0.0.1", 443)),
        ("::1", Address("::1", 443)),
        ("::1:80", Address("::1:80", 443)),
        ("[::1]", Address("::1", 443)),
        ("[::1]:80", Address("::1", 80)),
        ("unix:/x", UnixAddress("/x")),
        (("host", 80), Address("host", 80)),
    ],
)
def test_with_a_default_port_a_text_needs_none(text: str, expected: AnyAddress) -> None:
    assert address(text, 443) == expected
    assert address(text, default_port=443) == expected


@pytest.mark.parametrize("text", ["", "host:", ":80", "[]", "http://host", "a:b:c", "ho st"])
def test_a_default_port_makes_no_bad_text_good(text: str) -> None:
    with pytest.raises(ValueError, match="target must be"):
        address(text, default_port=443)


@pytest.mark.parametrize("port", [0, 65536, "80", 8.0])
def test_a_default_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"default_port must be 1 to 65535 or None, not {port!r}"):
        address("host", default_port=port)


PIECES = [
    *["host", "a", ".", "..", "-", "_", "unix", "unix:", "/", "/run/x.sock", "http://", "@", ","],
    *[":", "::", "::1", "fe80::1", "%", "%eth0", "[", "]", "1", "80", "0", "65535", "65536", "-1"],
    *["10.0.0.1", "::ffff:10.0.0.1", " ", "\n", "\0", "\t", "٣", "：", "。", "ü", "ß", "\u200d"],
    *["\ud800", "\udc80", "xn--", "xn--a", "ａ", "a" * 64, "b" * 108, "℀", "[::1]:80", "\u0130"],
]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


def outcome(call: Callable[..., Any], *args: object) -> Any:
    """What *call* returns, or the TypeError or ValueError itself; another error fails the test."""
    try:
        return call(*args)
    except (TypeError, ValueError) as error:
        return error


@pytest.mark.slow
@given(text=TEXTS, default_port=st.none() | st.just(443))
@example(text="[::FFFF:10.0.0.1]:00080", default_port=None)
@example(text="[unix]:80", default_port=None)
@example(text="unix", default_port=443)
def test_any_text_is_an_address_that_prints_and_reads_as_itself_or_a_value_error(
    text: str, default_port: int | None
) -> None:
    found = outcome(address, text, default_port)

    if isinstance(found, Exception):
        assert type(found) is ValueError
        assert str(found).startswith("target must be ")
    else:
        assert address(str(found)) == address(found) == found


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)


@given(target=ANYTHING | st.tuples(TEXTS, st.integers(-1, 70_000)))
def test_anything_is_an_address_or_a_value_error_or_a_type_error(target: object) -> None:
    found = outcome(address, target)

    if isinstance(found, Exception):
        assert type(found) in (TypeError, ValueError)
        assert str(found).startswith("target must be ")
    else:
        assert address(str(found)) == address(found) == found


PAIRS = st.tuples(st.integers(-1) | st.floats(), st.just("host:80"))


@given(tiers=ANYTHING | st.lists(st.lists(PAIRS)))
def test_anything_makes_a_group_or_a_value_error_or_a_type_error(tiers: object) -> None:
    group = outcome(AddressGroup, tiers)

    if isinstance(group, Exception):
        assert type(group) in (TypeError, ValueError)
        assert str(group).startswith("tiers")
    else:
        assert len(list(group)) == len(group) > 0
        assert eval(repr(group)) == group


# A group of them


def first_ones(group: AddressGroup, draws: int = 100_000) -> Counter[AnyAddress]:
    draw = random.Random(17).expovariate
    return Counter(group.connect_ordering(draw)[0] for _ in range(draws))


def test_an_address_comes_first_in_proportion_to_its_weight() -> None:
    firsts = first_ones(AddressGroup([[(1, A), (9, B)]]))

    assert set(firsts) == {A, B}
    assert abs(firsts[B] / 100_000 - 0.9) <= 0.01


def test_weights_are_proportional_among_many_and_of_any_size() -> None:
    firsts = first_ones(AddressGroup([[(1e-3, A), (2e-3, B), (3e-3, C), (4e-3, D)]]))

    for place, each in enumerate((A, B, C, D), start=1):
        assert abs(firsts[each] / 100_000 - place / 10) <= 0.01


def test_the_second_address_is_drawn_by_weight_from_those_left() -> None:
    group = AddressGroup([[(2, A), (3, B), (1, C)]])
    draw = random.Random(17).expovariate
    orders = [group.connect_ordering(draw) for _ in range(50_000)]
    seconds = Counter(order[1] for order in orders if order[0] == A)

    assert abs(seconds[B] / seconds.total() - 0.75) <= 0.02


def test_equal_weights_are_shared_evenly() -> None:
    firsts = first_ones(AddressGroup.of(A, B, C, D))

    assert all(abs(firsts[each] / 100_000 - 0.25) <= 0.01 for each in (A, B, C, D))


def test_iterating_draws_a_new_order_each_time() -> None:
    group = AddressGroup.of(A, B, C, D)

    assert len({tuple(group) for _ in range(1_000)}) == 24


def test_one_tier_comes_after_the_other_whatever_the_weights() -> None:
    group = AddressGroup([[(1e-9, A), (0, B)], [(1e9, C)], [(1, D)]])

    assert {tuple(group) for _ in range(1_000)} == {(A, B, C, D)}


def test_weight_0_comes_last_in_its_tier_in_any_order() -> None:
    group = AddressGroup([[(0, A), (0, B), (1e-300, C)], [(1, D)]])

    assert {tuple(group) for _ in range(1_000)} == {(C, A, B, D), (C, B, A, D)}


def test_every_address_is_in_the_order_once() -> None:
    group = AddressGroup([[(1, A), (5, B)], [(0, C), (2.5, D)]])

    assert sorted(group.connect_ordering()) == [A, B, C, D]
    assert len(group) == 4
    assert group.addresses == {A, B, C, D}


def test_a_group_knows_what_is_in_it() -> None:
    group = AddressGroup([[(9, "a:80"), (1, ("b", 80))], [(1, "unix:/x")]])

    assert group.tiers == (
        ((9.0, Address("a", 80)), (1.0, Address("b", 80))),
        ((1.0, UnixAddress("/x")),),
    )
    assert Address("a", 80) in group
    assert ("b", 80) in group
    assert UnixAddress("/x") in group
    assert "a:80" not in group
    assert ("c", 80) not in group


def test_tiers_may_be_anything_that_can_be_iterated_over() -> None:
    def tier() -> Iterator[tuple[int, Address]]:
        yield 9, A
        yield 1, B

    assert AddressGroup(iter([tier()])) == AddressGroup([[(9, A), (1, B)]])


def test_a_group_of_targets_is_one_tier_of_equal_weights() -> None:
    assert AddressGroup.of("a:80", ("b", 80)) == AddressGroup([[(1, ("a", 80)), (1, ("b", 80))]])
    with pytest.raises(ValueError, match="targets must be at least one address"):
        AddressGroup.of()


def test_groups_are_equal_whatever_the_order_within_a_tier() -> None:
    group = AddressGroup([[(1, A), (2, B)], [(1, UnixAddress("/x")), (1, C)]])
    same = AddressGroup([[(2, B), (1, A)], [(1, C), (1, UnixAddress("/x"))]])

    assert group == same
    assert hash(group) == hash(same)


@pytest.mark.parametrize(
    "tiers",
    [
        [[(1, A), (2, B)], [(2, C)]],  # a weight
        [[(2, B)], [(1, C), (1, A)]],  # a tier
        [[(1, C)], [(1, A), (2, B)]],  # the order of tiers
        [[(1, A), (2, B)], [(1, D)]],  # an address
        [[(1, A), (2, B)]],
    ],
)
def test_groups_differ_by_weight_tier_or_address(tiers: list[list[tuple[float, Address]]]) -> None:
    group = AddressGroup([[(1, A), (2, B)], [(1, C)]])

    assert group != AddressGroup(tiers)
    assert group != [A, B, C]


def test_the_repr_of_a_group_makes_an_equal_one() -> None:
    group = AddressGroup([[(9, "a:80"), (0.5, ("::1", 80))], [(1, "unix:/x")]])

    assert repr(group) == "AddressGroup([[(9, 'a:80'), (0.5, '[::1]:80')], [(1, 'unix:/x')]])"
    assert eval(repr(group)) == group


def test_a_group_can_be_copied_and_pickled() -> None:
    group = AddressGroup([[(9, A), (1, "unix:/x")]])

    assert pickle.loads(pickle.dumps(group)) == copy.deepcopy(group) == group
    assert isinstance(pickle.loads(pickle.dumps(group)).tiers[0][0][1], Address)


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ([], "tiers must have at least one tier"),
        ([[]], "tiers[0] must have at least one address"),
        ([[(1, A)], []], "tiers[1] must have at least one address"),
        ([[(1, A), (-1, B)]], "tiers[0][1]: weight must be finite and not negative, not -1"),
        ([[(float("nan"), A)]], "tiers[0][0]: weight must be finite and not negative, not nan"),
        ([[(float("inf"), A)]], "tiers[0][0]: weight must be finite and not negative, not inf"),
        ([[(10**400, A)]], "tiers[0][0]: weight must be finite and not negative, not 1000"),
        ([[(1, "host")]], "tiers[0][0]: target must be"),
    ],
)
def test_a_group_that_cannot_be_is_refused(tiers: list[object], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        AddressGroup(tiers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        (None, "tiers must be [[(weight, address), ...], ...], not None"),
        ("a:80", "tiers must be [[(weight, address), ...], ...], not 'a:80'"),
        (["a:80"], "tiers[0] must be a list of pairs, not 'a:80'"),
        ([None], "tiers[0] must be a list of pairs, not None"),
        ([["a:80"]], "tiers[0][0] must be (weight, address), not 'a:80'"),
        ([[("a", 80)]], "tiers[0][0] must be (weight, address), not ('a', 80)"),
        ([(1, A)], "tiers[0][0] must be (weight, address), not 1"),
        ([[("1", A)]], "tiers[0][0] must be (weight, address), not ('1', "),
        ([[(True, A)]], "tiers[0][0] must be (weight, address), not (True, "),
        ([[(1, A, B)]], "tiers[0][0] must be (weight, address), not (1, "),
        ([[(1, None)]], "tiers[0][0]: target must be"),
    ],
)
def test_tiers_of_another_shape_are_refused(tiers: object, message: str) -> None:
    with pytest.raises(TypeError, match="^" + re.escape(message)):
        AddressGroup(tiers)  # type: ignore[arg-type]
