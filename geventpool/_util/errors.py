"""Errors that are kept, and raised in several callers."""

from __future__ import annotations

import copy

__all__ = ["copy_of", "forget_frames", "text_of"]


def copy_of(error: BaseException) -> BaseException:
    """One for each caller: what is raised takes on the frames that it passes, and the original is
    kept by the pool."""
    cls = type(error)
    try:
        own = copy.copy(error)
    except Exception:  # its class takes other arguments than it keeps
        own = _bare_copy(error)
    if type(own) is not cls:
        own = _bare_copy(error)
    own.__cause__, own.__context__ = error.__cause__, error.__context__
    return own


def _bare_copy(error: BaseException) -> BaseException:
    """A copy made without the ``__init__`` of its class; *error* itself if even that fails."""
    cls = type(error)
    try:
        own = cls.__new__(cls, *error.args)
        own.args = error.args
        own.__dict__.update(error.__dict__)
    except Exception:
        return error
    return own


def forget_frames(error: BaseException) -> None:
    """Take the tracebacks off *error* and what it comes from: it is kept, as the cause of errors to
    come, and would keep alive every frame of the dial, with half-open sockets and the pool."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


def text_of(error: BaseException) -> str:
    """``str(error)``, which may be a user's own and fail: then the name of its class."""
    try:
        return str(error)
    except BaseException:
        return f"<{type(error).__name__} without a text>"
