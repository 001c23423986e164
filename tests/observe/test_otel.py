"""Metrics for OpenTelemetry, as its SDK collects them."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from geventpool import ConnectionManager, ConnectionPool, EndpointPool, PoolTimeout
from geventpool.observe.otel import durations, instrument
from geventpool.stats import BOUNDS
from geventpool.testing import EchoServer
from support.objects import Maker

POOL = "db.client.connection.pool.name"


class Collected:
    """What a provider of metrics has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def now(self) -> dict[str, Any]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def points(metric: Any, pool: str) -> list[Any]:
    return [point for point in metric.data.data_points if point.attributes[POOL] == pool]


@pytest.fixture
def collected() -> Any:
    found = Collected()
    yield found
    found.provider.shutdown()


def test_gauges_and_counters_are_those_of_the_semantic_conventions(
    maker: Maker, collected: Collected
) -> None:
    instrument(meter_provider=collected.provider)
    with ConnectionPool(3, connect=maker, min_size=1, max_overflow=2, name="db") as pool:
        held = [pool.acquire() for _ in range(5)]
        waiting = [gevent.spawn(pool.acquire) for _ in range(3)]
        gevent.idle()
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0)
        found = collected.now()
        stats = pool.stats()
        gevent.killall(waiting)
        for conn in held:
            pool.release(conn)

    def one(name: str) -> Any:
        (point,) = points(found[name], "db")
        return point.value

    state = {
        point.attributes["db.client.connection.state"]: point.value
        for point in points(found["db.client.connection.count"], "db")
    }
    assert state == {"used": 5, "idle": 0}
    assert one("db.client.connection.idle.max") == 3
    assert one("db.client.connection.idle.min") == 1
    assert one("db.client.connection.max") == 5
    assert one("db.client.connection.pending_requests") == stats.waiting == 3
    assert one("db.client.connection.timeouts") == stats.timed_out == 1
    assert found["db.client.connection.count"].unit == "{connection}"
    assert not found["db.client.connection.count"].data.is_monotonic
    assert found["db.client.connection.timeouts"].data.is_monotonic
    ours = {name for name in found if not name.startswith("db.client.connection.")}
    assert ours
    assert all(name.startswith("geventpool.") for name in ours)


def test_a_named_pool_has_the_three_histograms_in_seconds(
    maker: Maker, collected: Collected
) -> None:
    with ConnectionPool(1, connect=maker, name="timed") as pool:
        instrument(pool, meter_provider=collected.provider)
        instrument(pool, meter_provider=collected.provider)  # nothing is recorded twice
        for _ in range(4):
            with pool.get():
                gevent.sleep(0.002)
        found = collected.now()
        stats = pool.stats()
    for name, count in (("create_time", 1), ("wait_time", 4), ("use_time", 4)):
        metric = found[f"db.client.connection.{name}"]
        (point,) = points(metric, "timed")
        assert (metric.unit, point.count) == ("s", count)
        assert tuple(point.explicit_bounds) == BOUNDS
    (use,) = points(found["db.client.connection.use_time"], "timed")
    assert use.sum == pytest.approx(stats.use.sum, rel=0.2)


def test_a_pool_that_is_not_named_keeps_its_fast_path(maker: Maker, collected: Collected) -> None:
    with ConnectionPool(1, connect=maker, name="fast") as pool:
        instrument(meter_provider=collected.provider)
        pool.fill()
        with pool.get():
            assert pool._bucket.fast_path_open == pool._runtime.ident
        assert points(collected.now()["db.client.connection.count"], "fast")


def test_what_has_no_bound_is_not_observed(maker: Maker, collected: Collected) -> None:
    instrument(meter_provider=collected.provider)
    settings: dict[str, Any] = {"connect": lambda endpoint: maker()}
    endless = EndpointPool[str, Any](total_max_size=None, name="endless", **settings)
    bounded = EndpointPool[str, Any](total_max_size=17, name="bounded", **settings)
    with endless, bounded:
        found = collected.now()
    assert not points(found["db.client.connection.max"], "endless")
    assert [p.value for p in points(found["db.client.connection.idle.max"], "bounded")] == [17]


def test_two_pools_of_one_name_are_one(maker: Maker, collected: Collected) -> None:
    instrument(meter_provider=collected.provider)
    with (
        ConnectionPool(2, connect=maker, name="twin"),
        ConnectionPool(3, connect=maker, name="twin"),
    ):
        found = collected.now()
    assert [p.value for p in points(found["db.client.connection.max"], "twin")] == [5]


def test_a_manager_is_timed_by_a_listener_of_its_own(collected: Collected) -> None:
    with EchoServer() as server:
        listeners = [durations(collected.provider)]
        with ConnectionManager(name="managed", listeners=listeners) as manager:
            with pytest.raises(TypeError, match="named"):
                instrument(manager, meter_provider=collected.provider)
            manager.release_connection(manager.get_connection(server.address))
            found = collected.now()
    for name in ("create_time", "wait_time", "use_time"):
        (point,) = points(found[f"db.client.connection.{name}"], "managed")
        assert point.count == 1


def test_a_name_has_no_secret_and_can_be_sent(maker: Maker, collected: Collected) -> None:
    instrument(meter_provider=collected.provider)
    with ConnectionPool(1, connect=maker, name="redis://me:Hunter2@cache \udcff") as pool:
        instrument(pool, meter_provider=collected.provider)
        pool.release(pool.acquire())
        found = collected.now()
    for name in ("db.client.connection.max", "db.client.connection.use_time"):
        assert len(points(found[name], r"redis://***@cache \udcff")) == 1
    assert "Hunter2" not in str(found)
