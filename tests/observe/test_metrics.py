"""Metrics made from snapshots: Prometheus's text format, and the collector for its client."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from geventpool import ConnectionManager, ConnectionPool, EndpointPool, SocketFactory
from geventpool.observe import metrics_text, snapshot
from geventpool.observe.prometheus import PoolCollector
from geventpool.testing import EchoServer, closed_port
from support.objects import Maker


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples, as Prometheus's own client reads them."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    """The one sample of that name that has those labels."""
    wanted = set(labels.items())
    (found,) = [v for (n, has), v in parsed(text).items() if n == name and wanted <= has]
    return found


def test_it_shows_states_counters_and_reasons(maker: Maker) -> None:
    with ConnectionPool(3, connect=maker, name="db") as pool:
        pool.fill()
        pool.discard(pool.acquire())
        pool.fill()
        with pool.get():
            text = metrics_text([snapshot()])
    shown = [value(text, "geventpool_connections", pool="db", state=s) for s in ("in_use", "idle")]
    assert shown == [1, 2]
    assert value(text, "geventpool_checkouts_total", pool="db") == 2
    assert value(text, "geventpool_dials_total", pool="db") == 4
    reason = {"pool": "db", "reason": "discarded by its holder"}
    assert value(text, "geventpool_discarded_total", **reason) == 1
    assert value(text, "geventpool_connections_max", pool="db") == 3


def test_histograms_are_cumulative_and_end_in_infinity(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, name="db") as pool:
        for _ in range(7):
            with pool.get():
                pass
        text = metrics_text([snapshot()])
        stats = pool.stats()
    buckets = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in parsed(text).items()
        if name == "geventpool_use_seconds_bucket" and ("pool", "db") in labels
    ]
    assert [bound for bound, _ in buckets] == [*stats.use.histogram.bounds, float("inf")]
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1][1] == value(text, "geventpool_use_seconds_count", pool="db") == 7
    assert value(text, "geventpool_use_seconds_sum", pool="db") == pytest.approx(stats.use.sum)


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "<script>", "\\n"])
def test_a_name_is_escaped(maker: Maker, name: str) -> None:
    with ConnectionPool(1, connect=maker, name=name):
        text = metrics_text([snapshot()])
    assert value(text, "geventpool_waiters", pool=name) == 0


def test_what_has_no_bound_is_left_out(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, max_overflow=None, name="unbounded"):
        text = metrics_text([snapshot()])
    assert "geventpool_connections_max" not in text


def test_workers_are_told_apart_and_one_that_hangs_is_down(maker: Maker) -> None:
    with ConnectionPool(1, connect=maker, name="db"):
        here = snapshot()
    other = {**here, "pid": 2}
    hung = {"pid": 3, "time": None, "pools": None, "error": "it did not answer"}
    text = metrics_text([{**here, "pid": 1}, other, hung])
    ups = [value(text, "geventpool_worker_up", pid=pid) for pid in ("1", "2", "3")]
    assert ups == [1, 1, 0]
    assert [value(text, "geventpool_waiters", pid=pid) for pid in ("1", "2")] == [0, 0]


def test_two_pools_of_one_name_are_one_sample(maker: Maker) -> None:
    with ConnectionPool(2, connect=maker, name="db") as one:
        with ConnectionPool(3, connect=maker, name="db") as other:
            one.fill()
            other.fill()
            text = metrics_text([snapshot()])
    assert value(text, "geventpool_connections", pool="db", state="idle") == 5


def test_endpoints_and_servers_have_samples_of_their_own() -> None:
    with EchoServer() as server, closed_port() as dead:
        pool = EndpointPool(connect=lambda where: SocketFactory(where)(), name="many")
        with pool, pool.get(server.address), ConnectionManager(name="managed") as manager:
            for _ in range(5):
                with pytest.raises(OSError):
                    manager.get_connection(dead)
            text = metrics_text([snapshot()])
    of = {"pool": "many", "endpoint": str(server.address), "state": "in_use"}
    assert value(text, "geventpool_endpoint_connections", **of) == 1
    assert value(text, "geventpool_server_up", pool="managed") == 0


def test_the_collector_of_prometheus_client_says_the_same_without_a_pid(maker: Maker) -> None:
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    with ConnectionPool(2, connect=maker, name="db") as pool:
        pool.fill()
        with pool.get():
            pass
        gevent.idle()
        text = generate_latest(registry).decode()
        other = metrics_text([snapshot()])
    assert value(text, "geventpool_checkouts_total", pool="db") == 1
    assert value(text, "geventpool_use_seconds_count", pool="db") == 1
    own = {key for key in parsed(text) if key[0].startswith("geventpool_")}
    pid = ("pid", str(snapshot()["pid"]))
    theirs = {(name, labels - {pid}) for name, labels in parsed(other)}
    assert own == {key for key in theirs if key[0] != "geventpool_worker_up"}


def test_a_scrape_after_the_last_pool_has_gone_is_no_error() -> None:
    registry = CollectorRegistry()
    registry.register(PoolCollector())
    assert "geventpool_waiters" not in generate_latest(registry).decode()
