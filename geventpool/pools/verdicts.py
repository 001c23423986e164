"""What an error says, by the hook ``_classify_error``, and what follows for a connection in use.

The hook is a user's: what it raises, or returns that is no Verdict, is logged and counts as BROKEN.
"""

from __future__ import annotations

import builtins
import logging
from typing import TYPE_CHECKING, Any

from geventpool._runtime.slots import Hold, is_held
from geventpool._util.clock import monotonic
from geventpool.errors import PoolError, Verdict
from geventpool.events import Reason

if TYPE_CHECKING:
    from geventpool.pools.base import BasePool

__all__ = ["discard", "end_use", "mark_broken", "verdict_on_dial", "verdict_on_use"]

_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # not in Python 3.10
_ORDER = list(Verdict)  # the worst last


def verdict_on_use(pool: BasePool[Any], exc: BaseException) -> Verdict:
    """FINE, BROKEN or WRONG_SERVER: what *exc*, which leaves a ``with``, says of the connection.

    A group says the worst of what it has in it.
    """
    found = Verdict.FINE
    if not isinstance(exc, Exception):
        found = Verdict.BROKEN
    elif not isinstance(exc, PoolError):
        found = _ask(pool, exc)
        if found not in (Verdict.FINE, Verdict.WRONG_SERVER):
            found = Verdict.BROKEN
    if pool.strict and found is Verdict.FINE:
        found = Verdict.BROKEN
    within: Any = exc.exceptions if isinstance(exc, _GROUP) else ()
    return _worst(found, *(verdict_on_use(pool, each) for each in within))


def verdict_on_dial(pool: BasePool[Any], error: BaseException) -> Verdict:
    """What *error*, which a dial has raised, says of the server; a kill says nothing of it."""
    found = _ask(pool, error) if isinstance(error, Exception) else Verdict.BROKEN
    within: Any = error.exceptions if isinstance(error, _GROUP) else ()
    return _worst(found, *(verdict_on_dial(pool, each) for each in within))


def end_use(
    pool: BasePool[Any], hold: Hold, conn: Any, exc: BaseException, suspect: bool = True
) -> None:
    """Take back *conn* after *exc* has left its use: kept, looked at closely, or closed."""
    verdict = Verdict.BROKEN  # should the hook be left by a kill
    try:
        verdict = verdict_on_use(pool, exc)
    finally:
        if verdict is Verdict.FINE:
            pool._desk.checkin(pool, hold, conn, suspect)
        else:
            news = verdict is Verdict.WRONG_SERVER and _is_wrong_server(pool, hold)
            pool._desk.discard(pool, hold, conn, _reason(pool, exc), exc)
            if news:
                _say_wrong_server(pool, hold, exc)


def mark_broken(pool: BasePool[Any], hold: Hold, exc: BaseException) -> Reason | None:
    """Have a connection closed, or salvaged, when the last of those that share it is done, if that
    is what *exc* says; returns why."""
    verdict = verdict_on_use(pool, exc)
    if verdict is Verdict.FINE or not is_held(hold):
        return None
    news = verdict is Verdict.WRONG_SERVER and _is_wrong_server(pool, hold)
    reason = _reason(pool, exc)
    pool._runtime.scheduler.mark_for_closing(hold[0], reason)
    if news:
        _say_wrong_server(pool, hold, exc)
    return reason


def discard(pool: BasePool[Any], hold: Hold, conn: Any, exc: BaseException | None) -> None:
    """Close *conn*, as its holder says; *exc*, which is being handled, may say more."""
    news = False
    try:
        if exc is not None and verdict_on_use(pool, exc) is Verdict.WRONG_SERVER:
            news = _is_wrong_server(pool, hold)
    finally:
        pool._desk.discard(pool, hold, conn, Reason.DISCARDED)
    if news and exc is not None:
        _say_wrong_server(pool, hold, exc)


def _is_wrong_server(pool: BasePool[Any], hold: Hold) -> bool:
    """Have all closed that was dialed before now, but what is held by *hold*: whether that is news.

    Does not switch.
    """
    pool._runtime.assert_own_thread(pool)
    return is_held(hold) and pool._runtime.scheduler.wrong_server(hold[0], monotonic())


def _say_wrong_server(pool: BasePool[Any], hold: Hold, exc: BaseException) -> None:
    endpoint = hold[0].bucket.endpoint
    where = "" if endpoint is None else f"{endpoint}: "
    text = f"{where}the server is the wrong one: all connections opened so far are replaced; %r"
    pool._runtime.notifier.log(pool, logging.WARNING, text, exc)


def _reason(pool: BasePool[Any], exc: BaseException) -> Reason:
    """For a connection that *exc* makes unfit for use, as it leaves a ``with``.  CUT_SHORT: not the
    connection is broken, only its use was cut short, and the pool may salvage it."""
    if not pool.has_salvage or isinstance(exc, (Exception, *pool.exc_classes)):
        return Reason.ERROR
    for each in getattr(exc, "exceptions", ()):  # in a group; one of them may say more
        breaks = verdict_on_use(pool, each) is not Verdict.FINE
        if breaks and _reason(pool, each) is Reason.ERROR:
            return Reason.ERROR
    return Reason.CUT_SHORT


def _ask(pool: BasePool[Any], error: Exception) -> Verdict:
    log = pool._runtime.notifier.log
    try:
        found = pool._classify_error(error)
    except Exception:
        log(pool, logging.ERROR, "_classify_error failed at %r", error, exc_info=True)
        return Verdict.BROKEN
    if not isinstance(found, Verdict):
        text = "_classify_error returned %r, which is no Verdict, for %r"
        log(pool, logging.ERROR, text, found, error)
        return Verdict.BROKEN
    return found


def _worst(*verdicts: Verdict) -> Verdict:
    return max(verdicts, key=_ORDER.index)
