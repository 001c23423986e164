"""What every test of the suite is held to: it leaves no greenlet, no socket and no hub error.

A test that provokes an error in the hub (an uncaught exception of a greenlet or of a callback)
takes the fixture ``hub_errors``, looks at it and empties it.  A test that leaves things behind on
purpose is marked ``may_leak``.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import hypothesis
import pytest

from geventpool import COMPILED

pytest.register_assert_rewrite("support")

pytest_plugins = ["geventpool.testing.fixtures", "support.fixtures", "support.workers", "pytester"]

hypothesis.settings.register_profile(
    "geventpool",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # the machine may be busy
)
hypothesis.settings.load_profile("geventpool")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if COMPILED else ():
        if mark := item.get_closest_marker("pure_only"):
            item.add_marker(pytest.mark.skip(f"of the pure build only: {mark.args[0]}"))


def pytest_collection_finish() -> None:
    # All that is there before the first test lives to the end: keep it out of every later
    # collection, and out of every search for greenlets.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    # What a test has logged may be no text, which xdist could not send from its processes.
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True, scope="module")
def what_earlier_modules_left_is_not_searched() -> None:
    # Reports, caches and the like: thousands of tests would search them twice each.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def leaves_nothing_behind(no_leaks: None) -> None:
    """Every test is one that must not leak."""
