"""Which runs there are of each client's pools, and how the outcomes are judged.

The pools of a client take turns, each run in a process of its own.  The servers are real: see
``contenders.py`` for the variables that name them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.clients.contenders import RIVALS
from benchmarks.clients.load import Outcome
from benchmarks.clients.services import servers
from benchmarks.measure import Row, median

__all__ = ["HEADINGS", "clients"]

HEADINGS = (
    "client",
    "pool",
    "calm: per CPU s",
    "per s",
    "slowest 1 %, ms",
    "15 % Timeouts: per CPU s",
    "per s",
    "slowest 1 %, ms",
    "starving",
    "faults",
    "load",
)

CALM, TIMEOUTS = 0.0, 0.15
LEAST_CALM = 0.95  # of the best of the others, per second of CPU time
LEAST_UNDER_TIMEOUTS = 5.0  # times the best of the others, if it has a fault

Runs = dict[tuple[str, float], list[Outcome]]


def clients(quick: bool) -> tuple[list[Row], list[tuple[str, ...]]]:
    """The bars; and a line for each pool, in the order of HEADINGS.

    With *quick*: one round of 2 s each.
    """
    with servers() as environ:
        return _clients(environ, *((1, 2.0) if quick else (3, 3.0)))


def _clients(
    environ: dict[str, str], rounds: int, seconds: float
) -> tuple[list[Row], list[tuple[str, ...]]]:
    bars, lines = [], []
    for client, names in RIVALS.items():
        print(f"  {client}: {', '.join(names)}", file=sys.stderr)
        runs: Runs = {}
        loads = []
        for turn in range(rounds):
            for share in (CALM, TIMEOUTS):
                for name in names if turn % 2 else names[::-1]:
                    outcome = measure(name, share, seconds, environ)
                    runs.setdefault((name, share), []).append(outcome)
                    loads.append(os.getloadavg()[0])
        bars += _bars(client, names, runs)
        load = f"{min(loads):.1f} to {max(loads):.1f}"
        lines += [(client, *_line(name, runs), load) for name in names]
    return bars, lines


def measure(name: str, share: float, seconds: float, environ: dict[str, str]) -> Outcome:
    """One run, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.clients.load", name, str(share), str(seconds)]
    done = subprocess.run(
        command,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=seconds + 60,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: see there")
    return Outcome(**json.loads(found[0].removeprefix("RESULT ")))


def _bars(client: str, names: tuple[str, ...], runs: Runs) -> list[Row]:
    ours, *others = names
    best = max(others, key=lambda name: _rate_of_cpu(runs[name, CALM]))
    rows = [
        _row(
            f"clients, {client}, calm, per CPU s | {best}",
            _rate_of_cpu(runs[ours, CALM]),
            _rate_of_cpu(runs[best, CALM]),
            LEAST_CALM,
        )
    ]
    for other in others:
        mine, its = _p99(runs[ours, CALM]), _p99(runs[other, CALM])
        what = f"clients, {client}, calm, slowest 1 % | {other}"
        rows.append(Row(what, f"{1000 * mine:.0f} ms", f"{1000 * its:.0f} ms", mine / its, 1.0))
    best = max(others, key=lambda name: _rate(runs[name, TIMEOUTS]))
    if any(each.fault for each in runs[best, TIMEOUTS]):
        rows.append(
            _row(
                f"clients, {client}, 15 % under Timeouts, per s | {best}, which has a fault",
                _rate(runs[ours, TIMEOUTS]),
                _rate(runs[best, TIMEOUTS]),
                LEAST_UNDER_TIMEOUTS,
            )
        )
    for other in others:
        mine, its = _p99(runs[ours, TIMEOUTS]), _p99(runs[other, TIMEOUTS])
        what = f"clients, {client}, 15 % under Timeouts, slowest 1 % | {other}"
        rows.append(Row(what, f"{1000 * mine:.0f} ms", f"{1000 * its:.0f} ms", mine / its, 1.0))
    faults = sum(bool(each.fault) for share in (CALM, TIMEOUTS) for each in runs[ours, share])
    rows.append(Row(f"clients, {client}: runs with a fault | 0", str(faults), "0", faults, 0))
    return rows


def _row(what: str, ours: float, reference: float, bar: float) -> Row:
    ratio = ours / reference if reference else float("inf")
    return Row(what, f"{ours:,.0f}", f"{reference:,.0f}", ratio, bar, at_least=True)


def _rate(runs: list[Outcome]) -> float:
    return median(each.rate for each in runs)


def _rate_of_cpu(runs: list[Outcome]) -> float:
    return median(each.rate_of_cpu for each in runs)


def _p99(runs: list[Outcome]) -> float:
    return median(each.p99 for each in runs)


def _line(name: str, runs: Runs) -> tuple[str, ...]:
    every = [each for share in (CALM, TIMEOUTS) for each in runs[name, share]]
    faults = [each.fault for each in every if each.fault]
    starved = max(each.starved for each in every)
    figures = [
        f"{figure:,.0f}"
        for share in (CALM, TIMEOUTS)
        for figure in (
            _rate_of_cpu(runs[name, share]),
            _rate(runs[name, share]),
            1000 * _p99(runs[name, share]),
        )
    ]
    return (name, *figures, str(starved), faults[-1] if faults else "none")
