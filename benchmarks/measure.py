"""Rounds of several contenders in turn, and what to make of their times.

The machine is never quiet.  So contenders take turns (A B C A B C ...) in short rounds, and only
figures of the same run are compared.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Row", "interleaved", "median", "timed"]

median = statistics.median


@dataclass
class Row:
    """One line of the table: *ratio* must not be worse than *bar*."""

    what: str
    ours: str
    reference: str
    ratio: float
    bar: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return self.ratio >= self.bar if self.at_least else self.ratio <= self.bar


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds that *work* takes."""
    began = clock()
    work()
    return clock() - began


def interleaved(rounds: int, **contenders: Callable[[], float]) -> dict[str, list[float]]:
    """Let the contenders take turns; each returns its own figure, which is listed by its name."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # once to warm up
    gc.collect()
    gc.disable()  # a collection would hit whatever happens to run
    try:
        for _ in range(rounds):
            for name, contender in contenders.items():
                figures[name].append(contender())
    finally:
        gc.enable()
    return figures
