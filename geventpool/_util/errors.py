"""Errors that are kept, raised in several callers, and told of in other errors."""

from __future__ import annotations

import copy
import itertools

__all__ = ["about", "copy_of", "forget_frames", "mark_of", "text_of", "to_ms"]

_MARK = "_geventpool_mark"
_marks = itertools.count(1)


def about(where: object, error: BaseException) -> str:
    """What *error* says, and where it was, unless it says that itself."""
    text = text_of(error) or type(error).__name__
    return text if str(where) in text else f"{where}: {text}"


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


def forget_frames(error: BaseException | None) -> None:
    """Take the tracebacks off *error* and what it comes from: it is kept, as the cause of errors to
    come, and would keep alive every frame of a dial or a look-up, with half-open sockets and the
    pool."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]


def mark_of(error: BaseException, make: bool = False) -> int:
    """A number by which *error* is known again, without being kept alive; 0 if it has none and none
    is to be made.  (Its ``id`` may be another's as soon as it is gone.)"""
    mark, marked = error.__dict__.get(_MARK, (0, 0))
    if marked == id(error):  # not of another that it is a copy of
        return int(mark)
    if not make:
        return 0
    mark = next(_marks)
    error.__dict__[_MARK] = mark, id(error)
    return mark


def text_of(error: BaseException) -> str:
    """``str(error)``, which may be a user's own and fail: then the name of its class."""
    try:
        return str(error)
    except BaseException:
        return f"<{type(error).__name__} without a text>"


def to_ms(seconds: float | None) -> str:
    """*seconds* for a text: a time limit may have been computed, and have any number of digits."""
    return str(seconds if seconds is None else round(seconds, 3))
