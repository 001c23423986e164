"""Two gunicorn workers, scraped by a real Prometheus that is then asked what it has got."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from geventpool import ConnectionPool
from geventpool.observe import metrics_text, snapshot
from support import ROOT
from support.servers import require_program
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("run_folder")]

REQUESTS = 40
PATIENCE = 60.0

CONF = """
worker_class = "gevent"
workers = 2
from geventpool.gunicorn import child_exit, post_worker_init, worker_exit, worker_int
"""
APP = """
import os
import gevent
from geventpool import ConnectionPool
from geventpool.observe import gather, metrics_text
from geventpool.observe.metrics import CONTENT_TYPE

class Connection:
    def close(self):
        pass

pool = ConnectionPool(2, connect=Connection, name='the "db"', leak_threshold=60)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        body = metrics_text(gather(holders=False))
        start_response("200 OK", [("Content-Type", CONTENT_TYPE)])
    else:
        with pool.get() as conn:
            gevent.sleep(0.02)
            if environ["PATH_INFO"] == "/discard":
                pool.discard(conn)
        body = str(os.getpid())
        start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
"""
SERVER = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: web
    static_configs: [{{targets: ["{target}"]}}]
"""


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends *process* with the ``with``."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def two_workers(where: Path) -> Iterator[str]:
    (where / "gunicorn.conf.py").write_text(CONF)
    (where / "scraped_app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-c", str(where / "gunicorn.conf.py")]
        command += ["--no-control-socket", "--bind", f"fd://{fd}", "--log-level", "warning"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [*command, "scraped_app:app"], cwd=where, env=environ, pass_fds=[fd]
        )
        with ended(process):
            host, port = listener.getsockname()
            yield f"{host}:{port}"


@contextmanager
def prometheus(where: Path, target: str) -> Iterator[str]:
    program = require_program("prometheus")
    config = where / "prometheus.yml"
    config.write_text(SERVER.format(rules=json.dumps(str(ROOT / "docs/alerts.yml")), target=target))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={where / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with ended(subprocess.Popen(command, cwd=where)):
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/-/ready"), "Prometheus", PATIENCE)
        yield url


def answers(url: str) -> bool:
    try:
        fetch(url)
    except OSError:
        return False
    return True


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def query(server: str, expression: str) -> list[dict[str, Any]]:
    """The samples that it finds; what it cannot read raises HTTPError."""
    asked = urllib.parse.urlencode({"query": expression})
    found = json.loads(fetch(f"{server}/api/v1/query?{asked}"))
    assert found["status"] == "success", found
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def value(server: str, expression: str) -> float | None:
    found = query(server, expression)
    return float(found[0]["value"][1]) if found else None


def dashboard() -> list[str]:
    """The expressions of all panels, with what Grafana puts in place of its variables."""
    found = json.loads((ROOT / "docs/grafana.json").read_text())
    expressions = [target["expr"] for panel in found["panels"] for target in panel["targets"]]
    for name, text in (("$instance", ".+"), ("$pool", ".+"), ("$__rate_interval", "10s")):
        expressions = [each.replace(name, text) for each in expressions]
    return expressions


def test_a_prometheus_has_the_figures_of_both_workers(tmp_path: Path) -> None:
    with two_workers(tmp_path) as app, prometheus(tmp_path, app) as server:
        until(lambda: value(server, "sum(geventpool_worker_up)") == 2, "both workers", PATIENCE)
        pids = {fetch(f"http://{app}/") for _ in range(REQUESTS)}
        total = "sum(geventpool_checkouts_total)"
        until(lambda: value(server, total) == REQUESTS, f"{REQUESTS} checkouts", PATIENCE)

        up = {sample["metric"]["pid"] for sample in query(server, "geventpool_worker_up == 1")}
        assert pids <= up
        assert len(up) == 2
        samples = query(server, "geventpool_checkouts_total")
        assert {sample["metric"]["pool"] for sample in samples} == {'the "db"'}
        assert value(server, "sum(geventpool_connections)") == 4
        median = "histogram_quantile(0.5, sum by (le) (geventpool_use_seconds_bucket))"
        assert 0.01 <= (value(server, median) or 0) <= 0.5

        fetch(f"http://{app}/discard")
        for expression in dashboard():
            until(lambda: query(server, expression), f"samples of {expression}", PATIENCE)  # noqa: B023

        # A worker that dies leaves the figures of the other, which go on.
        victim = int(min(up))
        os.kill(victim, signal.SIGKILL)
        gone = f'geventpool_worker_up{{pid="{victim}"}}'
        until(lambda: not query(server, gone), "the dead worker to leave", PATIENCE)
        until(lambda: value(server, "count(geventpool_worker_up)") == 2, "a new one", PATIENCE)

        groups = json.loads(fetch(f"{server}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) == 4
        until(lambda: evaluated(server), "all rules to be evaluated", PATIENCE)


def evaluated(server: str) -> bool:
    groups = json.loads(fetch(f"{server}/api/v1/rules"))["data"]["groups"]
    return all(rule["health"] == "ok" for group in groups for rule in group["rules"])


def test_the_dashboard_asks_for_what_there_is() -> None:
    with ConnectionPool(1, connect=object, name="db") as pool:
        pool.discard(pool.acquire())
        text = metrics_text([snapshot()])
    found = json.loads((ROOT / "docs/grafana.json").read_text())
    variables = [each["query"] for each in found["templating"]["list"]]
    asked = set(re.findall(r"geventpool_\w+", " ".join(dashboard() + variables)))
    there = set(re.findall(r"^(geventpool_\w+)\{", text, re.MULTILINE))
    assert asked - there == set()
    # A dashboard of this schema that does not say so has no legends.
    assert all(panel["options"]["legend"]["showLegend"] for panel in found["panels"])
