"""The pools of this process for prometheus_client (extra ``prometheus``): read when it is scraped.

In a single process::

    from prometheus_client import REGISTRY, start_http_server
    from geventpool.observe.prometheus import PoolCollector

    REGISTRY.register(PoolCollector())

A pool that no scrape asks for costs nothing.  Under gunicorn with several workers
prometheus_client leaves custom collectors out: serve ``metrics_text(gather(holders=False))`` of
``geventpool.observe`` there, which needs no prometheus_client.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from geventpool.observe.metrics import families
from geventpool.observe.snapshot import snapshot

__all__ = ["PoolCollector"]


class PoolCollector(Collector):
    """Every open pool and manager of this process, whenever it is asked."""

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now.  Does not block."""
        for family in families([snapshot(holders=False)], pid=False):
            metric = Metric(family.name.removesuffix("_total"), family.help, family.kind)
            for name, labels, value in family.samples():
                metric.add_sample(name, labels, value)
            yield metric

    def describe(self) -> Iterable[Metric]:
        """None: which there are depends on the pools, and to register it must not need any."""
        return ()
