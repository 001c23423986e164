"""The Flask application of examples/flask_app on our pools, and on those it would have otherwise.

Two gevent workers of gunicorn, PostgreSQL and Redis at the addresses that DATABASE_URL and
REDIS_URL name (else of this machine), and wrk with 64 connections on loopback.  Each request asks
both servers.  The pools take turns, each time in fresh processes: in calm, and with 10 % of the
requests under a ``gevent.Timeout`` of 0.5 to 60 ms.  Counted are the answers that are right.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

from gevent import socket

from benchmarks.measure import median
from benchmarks.peers import version

__all__ = ["HEADINGS", "compare"]

HEADINGS = (
    "pools",
    "in calm, right answers/s",
    "per CPU s",
    "slowest 1 %, s",
    "10 % under Timeouts, right answers/s",
    "per CPU s",
    "slowest 1 %, s",
    "wrong",
    "load",
)

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "web.png"
POOLS = {
    "geventpool": "geventpool",
    "peers": f"psycopg_pool {version('psycopg_pool')} and redis {version('redis')}",
}
SHARES = (0.0, 0.1)
CONNECTIONS = 64


@dataclass
class Run:
    """What wrk counted, and the seconds of CPU time that gunicorn took for it."""

    right: int
    refused: int
    wrong: int
    seconds: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.right / self.seconds


def compare(quick: bool) -> list[tuple[str, ...]]:
    """A line for each, in the order of HEADINGS; and the picture.

    With *quick*: one round of 5 s each, and no picture.
    """
    rounds, seconds = (1, 5) if quick else (3, 15)
    runs: dict[tuple[str, float], list[Run]] = {}
    loads = []
    for _ in range(rounds):
        for share in SHARES:
            for pool in POOLS:
                runs.setdefault((pool, share), []).append(run(pool, share, seconds))
                loads.append(os.getloadavg()[0])
    if not quick:
        draw(runs, PICTURE)
    load = f"{min(loads):.1f} to {max(loads):.1f}"
    return [
        (
            name,
            *(figure for share in SHARES for figure in _figures(runs[pool, share])),
            str(sum(each.wrong for share in SHARES for each in runs[pool, share])),
            load,
        )
        for pool, name in POOLS.items()
    ]


def _figures(runs: list[Run]) -> tuple[str, str, str]:
    """The medians, and of the rates the range if there is one."""
    rates = sorted(each.rate for each in runs)
    span = "" if len(rates) == 1 else f" ({rates[0]:,.0f} to {rates[-1]:,.0f})"
    return (
        f"{median(rates):,.0f}{span}",
        f"{median(each.right / each.cpu for each in runs):,.0f}",
        f"{median(each.p99 for each in runs):.2f}",
    )


def run(pool: str, share: float, seconds: int) -> Run:
    """Serve the application, and have wrk ask it for so many *seconds*."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--bind", f"fd://{fd}"]
        server = subprocess.Popen(
            [*command, "--log-level", "critical", "app:app"],
            cwd=ROOT / "examples" / "flask_app",
            env={**os.environ, "PYTHONPATH": str(ROOT), "POOL": pool, "LIMIT": "timeout"},
            pass_fds=[fd],
            start_new_session=True,
            stderr=subprocess.DEVNULL,  # of the peers: a traceback for each connection that is lost
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await_answer(f"{url}/hello/anna", server)
        cpu = _cpu_seconds(server.pid)
        wrk = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s"]
        done = subprocess.run(
            [*wrk, "-s", str(ROOT / "benchmarks" / "web.lua"), url],
            env={**os.environ, "TIMEOUTS": str(share)},
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=True,
        )
        cpu = _cpu_seconds(server.pid) - cpu
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # a worker whose pool is broken ends by nothing else
        server.wait()
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return Run(**json.loads(result.removeprefix("RESULT ")), cpu=cpu)


def _cpu_seconds(session: int) -> float:
    """What all processes of that session have used so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) == session:  # see proc(5), from the field after the command
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _await_answer(url: str, server: subprocess.Popen[bytes]) -> None:
    ends = monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            if server.poll() is not None or monotonic() > ends:
                raise
            sleep(0.1)


def draw(runs: dict[tuple[str, float], list[Run]], picture: Path) -> None:
    """Draw the median rates into the PNG file *picture*."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, sharex=True, figsize=(9, 2), layout="constrained")
    for panel, share in zip(panels, SHARES, strict=True):
        rates = [median(each.rate for each in runs[pool, share]) for pool in POOLS]
        bars = panel.barh(list(POOLS.values()), rates, color=["tab:blue", "tab:orange"])
        panel.bar_label(bars, [f" {rate:,.0f}" for rate in rates])
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(
            "10 % of the requests under a Timeout" if share else "in calm", loc="left", fontsize=10
        )
        panel.set_xlabel("right answers a second")
    panels[1].set_yticklabels([])
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
