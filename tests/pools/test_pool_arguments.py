"""Bad input to a ConnectionPool: a clear error at once that names the argument; no harm done."""

from __future__ import annotations

import gc
import inspect
import math
import weakref
from dataclasses import fields
from typing import Any

import gevent
import pytest

from geventpool import Backoff, CoDel, ConnectionPool, EndpointPool, Limit
from geventpool.pools.settings import PoolSettings
from support import named


class PingPool(ConnectionPool[Any]):
    def _keepalive(self, conn: Any) -> None:
        pass


WHOLE = [("three", TypeError), (2.0, TypeError), (True, TypeError), (-1, ValueError)]
SECONDS = [
    ("ten", TypeError),
    (True, TypeError),
    ([1], TypeError),
    (-0.1, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (10**400, ValueError),
]
MORE_THAN_NONE = [*SECONDS, (0, ValueError)]

BAD = [
    *(("size", *bad) for bad in [*WHOLE, (0, ValueError), (None, TypeError)]),
    *(("min_size", *bad) for bad in [*WHOLE, (6, ValueError)]),
    *(("max_overflow", *bad) for bad in WHOLE),
    *(("max_waiting", *bad) for bad in WHOLE),
    *(("max_connecting", *bad) for bad in [*WHOLE, (0, ValueError), (None, TypeError)]),
    *(("max_uses", *bad) for bad in [*WHOLE, (0, ValueError)]),
    *(("timeout", *bad) for bad in SECONDS),
    *(("check_after", *bad) for bad in SECONDS),
    *(("keepalive", *bad) for bad in MORE_THAN_NONE),
    *(("keepalive_timeout", *bad) for bad in [*MORE_THAN_NONE, (None, TypeError)]),
    *(("salvage_timeout", *bad) for bad in [*MORE_THAN_NONE, (None, TypeError)]),
    *(("connect_timeout", *bad) for bad in MORE_THAN_NONE),
    *(("idle_timeout", *bad) for bad in MORE_THAN_NONE),
    *(("max_lifetime", *bad) for bad in MORE_THAN_NONE),
    *(
        ("jitter", *bad)
        for bad in [
            ("much", TypeError),
            (None, TypeError),
            (True, TypeError),
            (-0.1, ValueError),
            (1.1, ValueError),
            (math.nan, ValueError),
        ]
    ),
    ("exc_classes", None, TypeError),
    ("exc_classes", 5, TypeError),
    ("exc_classes", int, TypeError),
    ("exc_classes", (OSError, "KeyError"), TypeError),
    ("exc_classes", OSError(), TypeError),
    ("exc_classes", "OSError", TypeError),
    ("order", "random", ValueError),
    ("order", [], ValueError),
    ("backoff", 0.5, TypeError),
    ("overload", 0.1, TypeError),
    ("overload", CoDel, TypeError),
    ("backoff", Backoff, TypeError),
    ("connect", "127.0.0.1:80", TypeError),
    ("limits", None, TypeError),
    ("limits", 5, TypeError),
    ("limits", Limit(5), TypeError),
    ("limits", [5], TypeError),
    ("listeners", None, TypeError),
    ("listeners", [object()], TypeError),
    ("listeners", object(), TypeError),
    ("name", 5, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=named)
def test_a_bad_argument_is_refused_by_name_with_what_is_wrong_with_it(maker, name, value, error):
    arguments: dict[str, Any] = {"size": 5, "connect": maker, name: value}

    with pytest.raises(error) as raised:
        PingPool(**arguments)

    assert type(raised.value) is error
    assert name in str(raised.value)
    if name not in ("listeners", "limits", "exc_classes", "min_size") and value != 10**400:
        assert repr(value) in str(raised.value)
    gevent.idle()
    assert maker.dials == 0


@pytest.mark.parametrize("kind", [ConnectionPool, EndpointPool])
def test_help_shows_every_setting_by_its_name(kind):
    shown = inspect.signature(kind).parameters

    assert len(fields(PoolSettings)) > 20
    assert {each.name for each in fields(PoolSettings)} <= shown.keys()


@pytest.mark.parametrize("name", ["keepalive", "check_after"])
def test_a_check_without_a_keepalive_to_run_is_refused(maker, name):
    with pytest.raises(ValueError, match=f"{name} is set, but _keepalive is not overridden"):
        ConnectionPool(1, connect=maker, **{name: 10})


def test_more_minimum_than_size_is_refused_with_both_numbers(maker):
    with pytest.raises(ValueError, match=r"min_size \(6\) is more than size \(5\)"):
        ConnectionPool(5, connect=maker, min_size=6)


def test_a_pool_that_cannot_open_connections_is_refused():
    with pytest.raises(TypeError, match="override _new_connection, or give connect="):
        ConnectionPool(1)


def test_a_pool_with_two_ways_to_open_connections_is_refused(maker):
    class MyPool(ConnectionPool):
        def _new_connection(self):
            return maker()

    with pytest.raises(TypeError, match="connect is given and _new_connection overridden"):
        MyPool(1, connect=maker)


def test_the_same_limit_twice_is_refused(maker):
    limit = Limit(5)

    with pytest.raises(ValueError, match="limits holds the same Limit twice"):
        ConnectionPool(1, connect=maker, limits=[limit, limit])


def test_an_unknown_argument_is_refused(maker):
    with pytest.raises(TypeError, match="max_retires"):
        ConnectionPool(1, connect=maker, max_retires=5)


def test_options_are_given_by_name_only(maker):
    with pytest.raises(TypeError, match="positional"):
        ConnectionPool(1, OSError, None, maker)


@pytest.mark.parametrize("maximum", [-1, 2.5, "five", None, True, math.nan])
def test_a_limit_that_is_none_is_refused_when_made_and_when_set(maximum):
    with pytest.raises((TypeError, ValueError), match="maximum"):
        Limit(maximum)
    limit = Limit(3)
    with pytest.raises((TypeError, ValueError), match="maximum"):
        limit.maximum = maximum
    assert limit.maximum == 3


def test_a_pool_refused_for_its_limits_leaves_no_trace_in_them(maker):
    small, large = Limit(1), Limit(10)

    with pytest.raises(ValueError, match="cannot hold the 2 connections"):
        ConnectionPool(2, connect=maker, limits=[large, small])

    assert (small.used, large.used) == (0, 0)
    pool = ConnectionPool(1, connect=maker, limits=[large, small])
    pool.fill(timeout=10)
    assert (small.used, large.used) == (1, 1)


def test_a_refused_pool_is_collected(maker):
    refused = []

    class MyPool(ConnectionPool):
        def __init__(self, *args, **kwargs):
            refused.append(weakref.ref(self))
            super().__init__(*args, **kwargs)

    with pytest.raises(TypeError):
        MyPool(5, connect=maker, listeners=[object()])
    with pytest.raises(ValueError):
        MyPool(5, connect=maker, limits=[Limit(1)])
    gc.collect()

    assert [ref() for ref in refused] == [None, None]


@pytest.mark.parametrize(("timeout", "error"), SECONDS, ids=named)
@pytest.mark.parametrize("verb", ["get", "acquire", "fill", "close"])
def test_a_bad_timeout_of_a_verb_is_refused_even_if_nothing_is_to_be_waited_for(
    maker, verb, timeout, error
):
    pool = ConnectionPool(1, connect=maker)
    pool.fill(timeout=10)

    with pytest.raises(error, match="timeout") as raised:
        getattr(pool, verb)(timeout=timeout)

    assert type(raised.value) is error
    assert pool.stats().idle == 1
    assert not pool._bucket.closed


@pytest.mark.parametrize(("over", "error"), [*SECONDS, (None, TypeError)], ids=named)
def test_a_bad_over_of_drain_is_refused(maker, over, error):
    pool = ConnectionPool(1, connect=maker)
    pool.fill(timeout=10)

    with pytest.raises(error, match="over"):
        pool.drain(over)
    gevent.idle()
    assert maker.opened == 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [*(("size", *bad) for bad in [*WHOLE, (0, ValueError)]), ("min_size", 9, ValueError)],
    ids=named,
)
def test_a_bad_resize_is_refused_and_changes_nothing(maker, name, value, error):
    pool = ConnectionPool(5, connect=maker, min_size=2)

    with pytest.raises(error, match=name):
        pool.resize(**{"size": 6, name: value})

    assert (pool.size, pool.stats().min_size) == (5, 2)


def test_a_resize_whose_minimum_cannot_fit_a_limit_is_refused_and_changes_nothing(maker):
    limit = Limit(3)
    pool = ConnectionPool(5, connect=maker, min_size=1, limits=[limit])
    other = ConnectionPool(1, connect=maker, limits=[limit])

    with pytest.raises(ValueError, match="limits:.*cannot hold"):
        pool.resize(5, min_size=3)
    assert (pool.size, pool.stats().min_size) == (5, 1)
    pool.resize(4, min_size=2)
    assert (pool.size, pool.stats().min_size) == (4, 2)
    assert other.size == 1


@pytest.mark.parametrize("listener", [object(), None, "logger", {}, print], ids=named)
def test_what_cannot_listen_is_refused_as_a_listener(maker, listener):
    pool = ConnectionPool(1, connect=maker)

    with pytest.raises(TypeError, match="listener.*none of the methods of PoolListener"):
        pool.add_listener(listener)

    assert pool.listening == {}


def test_execute_of_a_method_that_is_not_there_loses_no_connection(maker):
    pool = ConnectionPool(1, connect=maker)

    with pytest.raises(AttributeError, match="no_such_method"):
        pool.execute("no_such_method")
    assert pool.stats().in_use == 0
