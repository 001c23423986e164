"""What the tests of sockets share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def keep() -> Iterator[Callable[[Any], Any]]:
    """``keep(sock)`` returns *sock*, and closes it when the test is over."""
    with contextlib.ExitStack() as kept:

        def keep(sock: Any) -> Any:
            kept.callback(sock.close)
            return sock

        yield keep
