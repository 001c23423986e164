"""``python -m benchmarks.side_by_side OTHER [probe ...]``: is this checkout slower than that one?

Both take turns in short rounds, each a process of its own, so that neither luck with memory nor a
busy minute of the machine favours one of them.  Compared are the best rounds: whatever else the
machine does can only slow a round down.  Exit status 1 if this checkout is slower (or bigger) than
the other by more than ``--allow`` percent.  Needs what the test suite needs, on a machine that is
quiet now and then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import median
from benchmarks.probe import PROBES, ROOT


def measure(checkout: Path, name: str, number: int) -> float:
    """One figure, by a fresh process; rounds of the same number hash alike."""
    command = [sys.executable, str(ROOT / "benchmarks" / "probe.py"), str(checkout), name]
    environment = {**os.environ, "PYTHONHASHSEED": str(number)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def compare(other: Path, name: str, rounds: int) -> tuple[list[float], list[float]]:
    """The figures of this checkout and of *other*, which begin a round in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    sides = [(ROOT, ours), (other, theirs)]
    for number in range(1, rounds + 1):
        for checkout, figures in sides:
            figures.append(measure(checkout, name, number))
        sides.reverse()
    return ours, theirs


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description="Is this checkout slower than the other one?",
    )
    parser.add_argument("other", type=Path, help="a checkout to compare with, the older one")
    parser.add_argument("probes", nargs="*", metavar="probe", help=", ".join(PROBES))
    parser.add_argument("--rounds", type=int, default=15, help="of each (default: 15)")
    parser.add_argument("--allow", type=float, default=3.0, help="percent (default: 3)")
    options = parser.parse_intermixed_args()
    other = options.other.resolve()
    if not (other / "geventpool" / "__init__.py").exists():
        parser.error(f"no checkout of geventpool: {other}")
    if unknown := sorted(set(options.probes) - set(PROBES)):
        parser.error(f"no such probe: {', '.join(unknown)}")

    slower = []
    print(f"this:  {ROOT}\nother: {other}\n")
    print(f"{'':12}{'this':>12}{'other':>12}{'':7}{'ratio':>7}{'median':>8}")
    for name in options.probes or PROBES:
        ours, theirs = compare(other, name, options.rounds)
        ratio = min(ours) / min(theirs)
        rounds = median(mine / its for mine, its in zip(ours, theirs, strict=True))
        verdict = "as fast"
        if ratio > 1 + options.allow / 100:
            verdict = "SLOWER"
            slower.append(name)
        elif ratio < 1 / (1 + options.allow / 100):
            verdict = "faster"
        if PROBES[name][1] == "bytes":
            verdict = {"as fast": "as big", "SLOWER": "BIGGER", "faster": "smaller"}[verdict]
        print(
            f"{name:12}{min(ours):12,.1f}{min(theirs):12,.1f} {PROBES[name][1]:6}"
            f"{ratio:7.3f}{rounds:8.3f}  {verdict}",
            flush=True,
        )
    print("\nthis, other: the best of the rounds; ratio: of these; median: of the rounds' ratios")
    print(
        f"This checkout is worse by more than {options.allow:g} %: {', '.join(slower)}."
        if slower
        else f"This checkout is nowhere worse by more than {options.allow:g} %."
    )
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
