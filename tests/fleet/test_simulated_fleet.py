"""The promises of a cap over many processes, in a short run of the benchmark's simulation."""

from __future__ import annotations

import pytest

from benchmarks.fleet_cap import SCENES, Scene, play


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.what.replace(" ", "_"))
def test_the_cap_holds_and_shares_follow_the_load(scene: Scene) -> None:
    fleet, unfair = play(scene, 40, seed=7)
    assert fleet.seen.most_over <= fleet.seen.floors_over
    assert fleet.seen.most_open >= 0.95 * fleet.cap  # it was full, so that the cap meant something
    assert min(fleet.seen.used) >= 0.95
    assert unfair <= 1
