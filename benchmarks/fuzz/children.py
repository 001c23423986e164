"""Forked children, which are waited for here and now: the server is another process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from gevent import monkey

__all__ = ["well_in_child"]

_fork = monkey.get_original("os", "fork")
_waitpid = monkey.get_original("os", "waitpid")


def well_in_child(look: Callable[[], object]) -> bool:
    """Whether *look*, called in a child of this process, raises nothing.

    If it lets the hub run, no greenlet may be left that goes on in the child with what it has.
    """
    child = _fork()
    if child:
        return bool(_waitpid(child, 0)[1] == 0)
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)  # an end, whatever happens
        look()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
