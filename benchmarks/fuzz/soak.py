"""Minutes of that, on pools that live as long and on ever new ones: what does it cost in memory?"""

from __future__ import annotations

import gc
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.fuzz.rounds import Round, play

__all__ = ["Sample", "grown", "samples"]

#: By so much may it grow from the first third to the last one: a part of it.
_ALLOWED = {"resident": 0.01, "objects": 0.02}
_STATM = Path("/proc/self/statm")


class Sample(NamedTuple):
    """How things stood at a moment of a soak."""

    seconds: float
    resident: float  # MiB
    objects: int  # that the collector knows
    rounds: int
    served: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:6.0f} s  {self.resident:7.2f} MiB  {self.objects:7d} objects"
            f"  {self.rounds:6d} rounds  {self.served:8d} lent"
        )


def samples(seed: int, port: int, minutes: float) -> Iterator[Sample]:
    """Play for so many *minutes*, from *seed* on; a sample for each minute, and ten at least.

    AssertionError if anything does not hold.
    """
    begun = time.monotonic()
    period = min(60.0, minutes * 6)
    due, rounds, served = period, 0, 0
    with ExitStack() as stack:
        lasting = [Round(random.Random(seed + each), port) for each in range(6)]
        for each in lasting:
            stack.enter_context(each.chaos.watching())
        while due <= minutes * 60 + 1:
            this = lasting[rounds % len(lasting)]
            before = this.chaos.served
            this.go_on()
            this.play()
            this.come_to_rest()
            this.chaos.judge("one that lasts")
            served += this.chaos.served - before + play(seed + 1000 + rounds, port)
            rounds += 1
            passed = time.monotonic() - begun
            if passed >= due:
                due += period
                gc.collect()
                objects = len(gc.get_objects()) + gc.get_freeze_count()
                yield Sample(passed, _resident(), objects, rounds, served)
        for each in lasting:
            each.end()
            each.chaos.judge("one that lasted")


def _resident() -> float:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # the most there ever was


def grown(found: list[Sample]) -> str | None:
    """What has grown by more than is allowed from the first third to the last one, after a fifth of
    warm-up; None if nothing has."""
    settled = found[len(found) // 5 :]
    third = max(1, len(settled) // 3)
    for name, part in _ALLOWED.items():
        values = [float(getattr(each, name)) for each in settled]
        before, after = max(values[:third]), min(values[-third:])
        if after > before * (1 + part):
            return f"{name}: {before:g} became {after:g}"
    return None
