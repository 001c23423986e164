"""What a forked child does with connections that are its parent's: nothing, for ever.

To drop one would run its finalizer, and that of many a driver says goodbye to the server, on the
socket that the parent goes on to use.  A mere ``subprocess.run()`` in a patched program forks in
Python, and would end the parent's sessions so.
"""

from __future__ import annotations

import os
from typing import Any

from gevent.monkey import get_original

try:
    import ctypes
except ImportError:  # an interpreter built without it: then until the interpreter ends
    ctypes = None  # type: ignore[assignment]

__all__ = ["identity_of", "leave_to_parent"]

#: In a patched program that of ``os`` waits for the hub.
_close = get_original("os", "close")
_kept: list[Any] = []


def identity_of(descriptor: int) -> tuple[int, int] | None:
    """What tells the file behind *descriptor* from the next one of that number; None if closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def leave_to_parent(conn: object, descriptor: int | None, identity: tuple[int, int] | None) -> None:
    """See to it that this process neither finalizes *conn* nor reaches its server through it.

    The null device takes the place of *descriptor*, if it still is the file of that *identity*.
    Called in a child, inside fork; does not switch, and calls nothing of the user's.
    """
    if ctypes is not None:
        # What only a variable of a module keeps would be finalized as the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))
    else:
        _kept.append(conn)
    if descriptor is None or identity is None or identity_of(descriptor) != identity:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        return  # no descriptor left
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        _close(null)
