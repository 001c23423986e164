"""Each of the alert rules in docs/alerts.yml fires when a pool is in the trouble that it is for.

What a pool says while all is well, and what it says once it was brought into trouble, is given to
promtool as a scrape each 15 s; the minutes pass in there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families

from geventpool import Backoff, ConnectionPool
from geventpool.observe import metrics_text, snapshot
from support import ROOT
from support.objects import Maker
from support.servers import require_program
from support.waiting import block, until

RULES = ROOT / "docs" / "alerts.yml"
SOON = Backoff(first=0.01, longest=0.01)
Pool = ConnectionPool[Any]
pytestmark = pytest.mark.slow


@contextmanager
def exhausted(pool: Pool, maker: Maker) -> Iterator[None]:
    """All connections are held, and a caller waits."""
    with pool.get(), pool.get():
        waiter = gevent.spawn(pool.execute, id)
        until(lambda: pool.stats().waiting)
        yield
    waiter.get(timeout=10)


@contextmanager
def server_away(pool: Pool, maker: Maker) -> Iterator[None]:
    """All connections are gone, and no dial succeeds; a caller waits."""
    maker.error = ConnectionRefusedError("refused")
    pool.dispose()
    waiter = gevent.spawn(pool.execute, id)
    until(lambda: pool.stats().dial_failed)
    yield
    maker.error = None
    waiter.get(timeout=10)


@contextmanager
def held_long(pool: Pool, maker: Maker) -> Iterator[None]:
    """A caller has had its connection for longer than leak_threshold."""
    with pool.get():
        until(lambda: pool.stats().held_long)
        yield


@contextmanager
def computing(pool: Pool, maker: Maker) -> Iterator[None]:
    """A greenlet computes for a second, and lets nobody run."""
    block(1.2)
    gevent.sleep(0.01)
    yield


TROUBLES: dict[str, tuple[Callable[[Pool, Maker], Any], set[str]]] = {
    "GeventpoolExhausted": (exhausted, {"instance", "job", "pool"}),
    "GeventpoolDown": (server_away, {"instance", "job", "pool"}),
    "GeventpoolHeldLong": (held_long, {"instance", "job", "pool"}),
    "GeventpoolHubLag": (computing, {"instance", "job", "pid"}),
}


@pytest.fixture(scope="module")
def promtool() -> str:
    return require_program("promtool")


def scraped() -> dict[str, float]:
    """The series of a scrape, with the labels that a server adds, and their values."""
    found = {}
    for family in text_string_to_metric_families(metrics_text([snapshot()])):
        for sample in family.samples:
            labels = {**sample.labels, "job": "web", "instance": "here:80"}
            shown = ",".join(f"{name}={json.dumps(text)}" for name, text in labels.items())
            found[f"{sample.name}{{{shown}}}"] = sample.value
    return found


def firing(alert: str, severity: str, labels: dict[str, str]) -> str:
    shown = {"alertname": alert, "alertstate": "firing", "severity": severity, **labels}
    return f"ALERTS{{{','.join(f'{name}={json.dumps(text)}' for name, text in shown.items())}}}"


@pytest.mark.parametrize("alert", TROUBLES)
def test_it_fires_in_its_trouble_and_not_before(
    maker: Maker, promtool: str, tmp_path: Path, alert: str
) -> None:
    provoke, kept = TROUBLES[alert]
    with ConnectionPool(
        2, connect=maker, backoff=SOON, leak_threshold=0.05, name=f"for {alert}"
    ) as pool:
        pool.fill()
        pool._runtime.hub_lag.forget()  # what other tests have done
        before = scraped()
        with provoke(pool, maker):
            after = scraped()
        labels = {"job": "web", "instance": "here:80", "pool": pool.name}
        labels["pid"] = str(snapshot()["pid"])
    # Ten minutes of the one, then ten of the other; a series that comes later is not there before.
    series = [
        {
            "series": name,
            "values": f"{before[name]}x40 {value}x40" if name in before else f"_x40 {value}x40",
        }
        for name, value in after.items()
    ]
    severity = "critical" if alert == "GeventpoolDown" else "warning"
    fired = firing(alert, severity, {name: labels[name] for name in sorted(kept)})
    query = 'ALERTS{alertstate="firing"}'
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": query, "eval_time": "9m", "exp_samples": []},
                    {
                        "expr": query,
                        "eval_time": "13m",
                        "exp_samples": [{"labels": fired, "value": 1}],
                    },
                ],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps(tests))  # which YAML is, too
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_without_a_test_is_noticed(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line.split()[-1] for line in RULES.read_text().splitlines() if "- alert:" in line]
    assert sorted(names) == sorted(TROUBLES)
