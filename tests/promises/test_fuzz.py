"""All promises at once: every public verb of both pools and of the manager, called at random.

Each round has a seed of its own; ``python -m benchmarks.fuzz --seed <seed> --rounds 1`` plays that
one again, and ``--soak 10`` plays for ten minutes and looks at the memory.
"""

from __future__ import annotations

import pytest

from benchmarks.fuzz.rounds import play
from benchmarks.fuzz.server import serving
from benchmarks.fuzz.soak import Sample, grown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # connections are forgotten on purpose
@pytest.mark.parametrize("first", [0, 100, 200])
def test_pools_and_manager_are_whole_after_any_verbs_in_any_order(first: int) -> None:
    with serving() as port:
        served = sum(play(seed, port) for seed in range(first, first + 15))

    assert served > 50


def a_soak(objects: list[int], resident: float = 40.0) -> list[Sample]:
    return [Sample(60.0 * n, resident, each, 0, 0) for n, each in enumerate(objects)]


def test_a_soak_tells_growth_from_a_warm_up_and_from_ups_and_downs() -> None:
    warm_up = [20_000, 25_000]

    assert grown(a_soak([*warm_up, 30_000, 30_100, 29_950, 30_050, 30_000, 30_100, 30_000])) is None
    assert grown(a_soak([*warm_up, *range(30_000, 32_000, 250)])) == "objects: 30250 became 31500"
