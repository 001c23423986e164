"""Which servers of a service are given out, by what its directory says and has said."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from geventpool.addresses import Address, AddressGroup, AnyAddress
from geventpool.directory.roster import Roster

A, B, C = Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("10.0.0.3", 80)


def members(*addresses: AnyAddress) -> Mapping[AnyAddress, float]:
    return dict.fromkeys(addresses, 1.0)


def given_out(roster: Roster, now: float) -> frozenset[AnyAddress]:
    group = roster.group(now)
    return frozenset() if group is None else group.addresses


def test_what_the_directory_says_is_given_out_with_its_weights() -> None:
    roster = Roster(300.0)
    assert roster.update({A: 2.0, B: 0.5}, 0.0)
    assert roster.group(0.0) == AddressGroup([[(2.0, A), (0.5, B)]])
    assert not roster.update({B: 0.5, A: 2.0}, 1.0)
    assert roster.update({A: 1.0, B: 0.5}, 2.0)


def test_a_server_that_is_gone_is_gone() -> None:
    roster = Roster(300.0)
    roster.update(members(A, B), 0.0)
    assert roster.update(members(B), 1.0)
    assert given_out(roster, 1.0) == {B}


def test_a_service_that_never_had_a_server_has_none() -> None:
    roster = Roster(300.0)
    assert not roster.is_known
    assert not roster.update({}, 0.0)
    assert roster.is_known
    assert roster.group(0.0) is None
    assert not roster.is_emptied


def test_a_service_that_is_emptied_keeps_its_last_servers_for_a_while() -> None:
    roster = Roster(300.0)
    roster.update(members(A, B), 0.0)
    assert not roster.update({}, 1000.0)
    assert roster.is_emptied
    roster.update({}, 1100.0)  # asked again, it says the same
    assert given_out(roster, 1299.0) == {A, B}
    assert given_out(roster, 1300.0) == frozenset()


def test_those_that_vanished_just_before_the_last_one_are_kept_with_it() -> None:
    roster = Roster(300.0)
    roster.update(members(A, B, C), 0.0)
    roster.update(members(B, C), 100.0)  # long before, and for another reason
    roster.update(members(C), 195.0)
    roster.update({}, 200.0)
    assert given_out(roster, 200.0) == {B, C}


def test_one_that_came_back_in_between_is_kept_once() -> None:
    roster = Roster(300.0)
    roster.update({A: 1.0, B: 1.0}, 0.0)
    roster.update({B: 1.0}, 1.0)
    roster.update({A: 3.0, B: 1.0}, 2.0)
    roster.update({}, 3.0)
    assert roster.group(3.0) == AddressGroup([[(3.0, A), (1.0, B)]])


def test_the_first_server_that_is_back_ends_that() -> None:
    roster = Roster(300.0)
    roster.update(members(A, B), 0.0)
    roster.update({}, 1.0)
    assert roster.update(members(C), 2.0)
    assert given_out(roster, 2.0) == {C}
    assert not roster.is_emptied
    roster.update({}, 3.0)
    assert given_out(roster, 3.0) == {C, A, B}  # all within half a minute


def test_a_service_that_is_emptied_can_be_believed_at_once() -> None:
    roster = Roster(0.0)
    roster.update(members(A), 0.0)
    assert roster.update({}, 1.0)
    assert roster.group(1.0) is None


def test_what_cannot_be_given_out_changes_nothing() -> None:
    roster = Roster(300.0)
    roster.update(members(A, B), 0.0)
    with pytest.raises(ValueError, match="weight"):
        roster.update({C: math.inf}, 1.0)
    assert given_out(roster, 1.0) == {A, B}
    assert not roster.update({}, 2.0)
    assert given_out(roster, 2.0) == {A, B}
