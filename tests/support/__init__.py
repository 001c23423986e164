"""What the tests have in common: servers, connections, strikes, forked children, and the like.

No test is here, and no file of tests imports from another one.
"""

from __future__ import annotations

from pathlib import Path

import gevent

__all__ = ["LIBUV", "ROOT", "TESTS"]

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
#: Whether gevent runs on libuv, ``GEVENT_LOOP=libuv``, and not on libev.
LIBUV = "libuv" in gevent.config.loop.__module__
