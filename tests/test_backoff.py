"""Backoff: how long to wait before attempt number n."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventpool.backoff import Backoff


class Dice:
    """A random.Random that always throws the same."""

    def __init__(self, thrown: float) -> None:
        self.thrown = thrown

    def random(self) -> float:
        return self.thrown


def plain(first: float = 1.0, factor: float = 2.0, longest: float = 60.0) -> Backoff:
    return Backoff(first, factor, longest, jitter=0)


def test_without_jitter_the_waits_grow_by_the_factor() -> None:
    backoff = plain(first=0.5, factor=3.0)

    assert [backoff.delay(n) for n in (1, 2, 3, 4)] == [0.5, 1.5, 4.5, 13.5]


def test_there_is_no_wait_before_the_first_failure() -> None:
    backoff = plain()

    assert backoff.delay(0) == 0.0
    assert backoff.delay(-1) == 0.0


def test_no_wait_is_longer_than_longest() -> None:
    backoff = plain(longest=5.0)

    assert [backoff.delay(n) for n in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_factor_of_one_waits_evenly() -> None:
    backoff = plain(first=0.3, factor=1.0)

    assert backoff.delay(1) == backoff.delay(10_000) == 0.3


@pytest.mark.parametrize("factor", [2, 2.0, 10, 1.5])
def test_a_failure_count_beyond_what_a_float_holds_waits_longest(factor: float) -> None:
    backoff = plain(factor=factor)

    assert backoff.delay(100_000) == 60.0


def test_the_jitter_takes_off_a_random_share_of_at_most_itself() -> None:
    least = Backoff(first=8.0, longest=8.0, jitter=0.5, rng=Dice(0.0))  # type: ignore[arg-type]
    half = Backoff(first=8.0, longest=8.0, jitter=0.5, rng=Dice(0.5))  # type: ignore[arg-type]
    most = Backoff(first=8.0, longest=8.0, jitter=0.5, rng=Dice(1.0))  # type: ignore[arg-type]

    assert [least.delay(1), half.delay(1), most.delay(1)] == [8.0, 6.0, 4.0]


def test_the_full_jitter_may_take_off_all() -> None:
    backoff = Backoff(first=8.0, longest=8.0, jitter=1, rng=Dice(1.0))  # type: ignore[arg-type]

    assert backoff.delay(1) == 0.0


def test_two_that_failed_together_do_not_wait_alike() -> None:
    one, other = Backoff(), Backoff()

    assert [one.delay(n) for n in range(1, 9)] != [other.delay(n) for n in range(1, 9)]


def test_the_same_rng_gives_the_same_waits() -> None:
    one, other = Backoff(rng=random.Random(7)), Backoff(rng=random.Random(7))

    assert [one.delay(n) for n in range(1, 9)] == [other.delay(n) for n in range(1, 9)]


@given(
    first=st.floats(1e-6, 1e3),
    factor=st.one_of(st.floats(1.0, 1e3), st.integers(1, 1000)),
    longer=st.floats(1.0, 1e6),
    jitter=st.floats(0.0, 1.0),
    failures=st.integers(1, 3000),
    seed=st.integers(0, 1000),
)
def test_a_wait_lies_between_the_share_left_by_the_jitter_and_the_whole(
    first: float, factor: float, longer: float, jitter: float, failures: int, seed: int
) -> None:
    longest = first * longer
    backoff = Backoff(first, factor, longest, jitter, rng=random.Random(seed))
    logarithm = math.log(first) + (failures - 1) * math.log(factor)
    whole = longest if logarithm > math.log(longest) else math.exp(logarithm)

    delay = backoff.delay(failures)

    assert 0.0 <= delay <= longest
    assert whole * (1 - jitter) * (1 - 1e-6) <= delay <= whole * (1 + 1e-6)


@given(failures=st.integers(1, 2000))
def test_without_jitter_a_wait_is_never_shorter_than_the_one_before(failures: int) -> None:
    backoff = plain(first=0.01, factor=1.1)

    assert backoff.delay(failures) <= backoff.delay(failures + 1)


@pytest.mark.parametrize("name", ["first", "factor", "longest", "jitter"])
@pytest.mark.parametrize("value", ["1", None, True, [1]])
def test_what_is_no_number_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a number"):
        Backoff(**{name: value})


@pytest.mark.parametrize("name", ["first", "factor", "longest", "jitter"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        Backoff(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": -0.1}, "first must be finite and not negative"),
        ({"factor": 0.9}, "factor must be at least 1"),
        ({"first": 2.0, "longest": 1.0}, "longest .* is shorter than first"),
        ({"jitter": -0.1}, "jitter must be finite and not negative"),
        ({"jitter": 1.1}, "jitter must be a share between 0 and 1"),
    ],
)
def test_waits_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backoff(**options)  # type: ignore[arg-type]


def test_a_backoff_may_be_shared_as_it_cannot_be_changed() -> None:
    backoff = Backoff()

    with pytest.raises(FrozenInstanceError):
        backoff.first = 1.0  # type: ignore[misc]


def test_backoffs_are_equal_by_their_numbers() -> None:
    assert Backoff(first=0.1) == Backoff(first=0.1)
    assert Backoff(first=0.1) != Backoff(first=0.2)
    assert pickle.loads(pickle.dumps(Backoff(first=0.1))) == Backoff(first=0.1)


def test_its_repr_shows_the_four_numbers() -> None:
    assert repr(Backoff()) == "Backoff(first=0.05, factor=2.0, longest=1.0, jitter=0.5)"


def test_a_first_wait_of_nothing_stays_nothing_however_long_it_fails() -> None:
    backoff = Backoff(first=0, factor=2, longest=1.0)

    assert [backoff.delay(n) for n in (1, 1024, 1025, 10**9)] == [0.0] * 4
