"""What the tests have in common: servers, connections, strikes, forked children, and the like.

No test is here, and no file of tests imports from another one.
"""

from __future__ import annotations

import re
from pathlib import Path

import gevent

__all__ = ["LIBUV", "ROOT", "TESTS", "named"]

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
#: Whether gevent runs on libuv, ``GEVENT_LOOP=libuv``, and not on libev.
LIBUV = "libuv" in gevent.config.loop.__module__


def named(value: object) -> str:
    """What *value* is called in the id of a test: its repr, that of each run the same."""
    if isinstance(value, frozenset):
        return f"frozenset({sorted(value)})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
