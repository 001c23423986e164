"""The chain of waiters has two sources: what one of them does, the other does."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geventpool._scheduler.chain import Chain
from geventpool._scheduler.model import Bucket
from geventpool._scheduler.waiter import Waiter

STEPS = st.tuples(
    st.sampled_from(["put in", "take out", "pop", "to the end", "to the front"]),
    st.integers(0, 5),
)


def waiters_of(count: int) -> list[Waiter]:
    bucket = Bucket("any", size=1, min_size=0)
    return [Waiter(bucket, number, None, None) for number in range(count)]


@given(st.lists(STEPS, max_size=40))
def test_a_chain_does_what_an_ordered_dict_does(steps: list[tuple[str, int]]) -> None:
    waiters = waiters_of(6)
    chain, model = Chain(), OrderedDict[Waiter, None]()

    for what, number in steps:
        waiter = waiters[number]
        for each in (chain, model):
            if what == "put in":
                each[waiter] = None
            elif what == "pop":
                each.pop(waiter, None)
            elif waiter not in each:
                with pytest.raises(KeyError):
                    each.move_to_end(waiter)
                with pytest.raises(KeyError):
                    del each[waiter]
            elif what == "take out":
                del each[waiter]
            else:
                each.move_to_end(waiter, last=what == "to the end")

        assert list(chain) == list(model)
        assert (len(chain), bool(chain)) == (len(model), bool(model))
        assert [each in chain for each in waiters] == [each in model for each in waiters]


def test_a_waiter_is_in_one_chain_only_as_far_as_that_chain_knows() -> None:
    [waiter] = waiters_of(1)
    one, other = Chain(), Chain()
    one[waiter] = None

    assert waiter not in other
    assert other.pop(waiter, None) is None
    assert list(one) == [waiter]
    del one[waiter]
    other[waiter] = None
    assert list(other) == [waiter]
    assert not one
