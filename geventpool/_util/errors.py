"""Errors that are kept, and raised in several callers."""

from __future__ import annotations

import copy

__all__ = ["copy_of"]


def copy_of(error: BaseException) -> BaseException:
    """One for each caller: what is raised takes on the frames that it passes, and the original is
    kept by the pool."""
    try:
        own = copy.copy(error)
    except Exception:
        return error  # its class cannot be copied
    if type(own) is not type(error):
        return error
    own.__cause__, own.__context__ = error.__cause__, error.__context__
    return own
