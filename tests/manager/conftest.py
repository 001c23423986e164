"""Servers and managers that are gone at the end of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from geventpool.manager import ConnectionManager
from support.managers import Hosts


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        yield Hosts(stack)


@pytest.fixture
def manage() -> Iterator[Callable[..., ConnectionManager]]:
    """Makes managers that are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **settings: Any) -> ConnectionManager:
            manager = ConnectionManager(*args, **settings)
            # Not without a bound: a test that fails may still hold a socket.
            stack.callback(manager.close, 5.0)
            return manager

        yield make
