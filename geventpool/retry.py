"""Call a function again when its connection broke: the ``retry`` decorator.

A pool never replays a request by itself, as it cannot know what the server has seen; who writes
``@retry`` says that calling the function once more is right.  Here is only that loop: no
connection is touched, and nothing but an Exception the caller named is ever held back.  The waits
are those of ``backoff.py``, and how many there may be is the RetryBudget of ``retry_budget.py``.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

import gevent

from geventpool._util.arguments import (
    check_callable,
    check_instance,
    check_seconds,
    check_whole,
    exception_classes,
)
from geventpool._util.clock import monotonic
from geventpool._util.deadlines import active as deadlines
from geventpool._util.deadlines import ends_at
from geventpool.backoff import Backoff
from geventpool.errors import PoolError
from geventpool.retry_budget import RetryBudget

__all__ = ["RetryBudget", "RetryDetails", "retry"]

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("geventpool.retry")

# Every wait goes through _sleep and every look at the time through _clock, looked up at each use,
# so that tests can replace them here.
_sleep: Callable[[float], object] = gevent.sleep
_clock: Callable[[], float] = monotonic

_RETRYING = "Connection broken in '{f}' (error: '{e}'); retrying with new connection."
_GIVING_UP = "Max retries reached for '{f}'. Aborting."


class _Decorator(Protocol):
    """What ``retry(...)`` returns: it keeps the signature of the function it is given."""

    def __call__(self, f: Callable[P, R], /) -> Callable[P, R]: ...


class _Logger(Protocol):
    """A logging.Logger, a LoggerAdapter, or what else has their ``log``."""

    def log(self, level: int, msg: str, /) -> object: ...


@overload
def retry(
    f: Callable[P, R],
    exc_classes: type[Exception] | Iterable[type[Exception]] = ...,
    logger: _Logger | None = ...,
    retry_log_level: int = ...,
    retry_log_message: str = ...,
    max_failures: int | None = ...,
    interval: float = ...,
    max_failure_log_level: int = ...,
    max_failure_log_message: str = ...,
    *,
    backoff: Backoff | None = ...,
    deadline: float | None = ...,
    budget: RetryBudget | None = ...,
    on_retry: Callable[[RetryDetails], object] | None = ...,
) -> Callable[P, R]: ...


@overload
def retry(
    f: None = ...,
    exc_classes: type[Exception] | Iterable[type[Exception]] = ...,
    logger: _Logger | None = ...,
    retry_log_level: int = ...,
    retry_log_message: str = ...,
    max_failures: int | None = ...,
    interval: float = ...,
    max_failure_log_level: int = ...,
    max_failure_log_message: str = ...,
    *,
    backoff: Backoff | None = ...,
    deadline: float | None = ...,
    budget: RetryBudget | None = ...,
    on_retry: Callable[[RetryDetails], object] | None = ...,
) -> _Decorator: ...


def retry(
    f: Callable[..., Any] | None = None,
    exc_classes: type[Exception] | Iterable[type[Exception]] = (OSError,),
    logger: _Logger | None = None,
    retry_log_level: int = logging.INFO,
    retry_log_message: str = _RETRYING,
    max_failures: int | None = None,
    interval: float = 0,
    max_failure_log_level: int = logging.ERROR,
    max_failure_log_message: str = _GIVING_UP,
    *,
    backoff: Backoff | None = None,
    deadline: float | None = None,
    budget: RetryBudget | None = None,
    on_retry: Callable[[RetryDetails], object] | None = None,
) -> Callable[..., Any]:
    """Return *f* made to call itself again, with the same arguments, when it fails.

    Write ``@retry``, ``@retry(max_failures=5)``, or keep a set of options with
    ``functools.partial(retry, max_failures=5)``.  Beneath ``@staticmethod`` and ``@classmethod``
    it goes, not on top of them.

    *exc_classes*: the exception class, or classes, that call for a retry; all of them Exceptions.
    What is not an Exception (gevent.Timeout, GreenletExit, KeyboardInterrupt) always goes through
    at once.  So does a PoolError, even one that is an OSError as well, unless *exc_classes* names
    PoolError or a subclass of it that matches: a pool that is full is not helped by more callers.

    *max_failures*: N allows N + 1 attempts; None, the default, any number.
    *interval*: seconds between two attempts; 0 still lets other greenlets run.
    *backoff*: a Backoff, takes the place of *interval*.
    *deadline*: seconds for the whole call, waits included.  If the next wait would end after it,
    there is none; nor if it would end after a Deadline that the caller is under.  It does not
    interrupt an attempt that is under way; a Deadline and a gevent.Timeout do.
    *budget*: a RetryBudget, shared with other functions, that may refuse a retry.

    *logger*: told of each retry (*retry_log_level*, *retry_log_message*), and of the end when one
    of the last four, or a Deadline, said no (*max_failure_log_level*, *max_failure_log_message*).
    The messages may use ``{f}``, the function's name, and ``{e}``, the error.  None: nothing is
    logged.
    *on_retry*: called with a RetryDetails before each wait.  What it raises is logged, on the
    logger ``geventpool.retry``, and the retry goes on; what is not an Exception goes through.

    A call raises what its last attempt raised, at once, without a wait.  No option changes after
    the decoration, and no state is kept between calls but in *budget*.

    Raises TypeError or ValueError, at the decoration, for an option that makes no sense; TypeError
    for generator and coroutine functions, as calling them runs nothing that could be retried.
    """
    policy = _Policy(
        exc_classes=_exceptions(exc_classes),
        max_failures=max_failures,
        delay=_delay(interval, backoff),
        deadline=deadline,
        budget=budget,
        retrying=_Message("retry_log", logger, retry_log_level, retry_log_message),
        giving_up=_Message(
            "max_failure_log", logger, max_failure_log_level, max_failure_log_message
        ),
        on_retry=on_retry,
    )
    if f is None:
        return policy.decorate
    return policy.decorate(f)


@dataclass(frozen=True)
class RetryDetails:
    """One retry that is about to happen, as told to *on_retry*."""

    function: str
    """Name of the function that will be called again."""

    failures: int
    """How many attempts of this call have failed so far, from 1."""

    error: Exception
    """What the last attempt raised."""

    wait: float
    """Seconds until the next attempt."""

    elapsed: float
    """Seconds since the call began, waits included."""


@dataclass(frozen=True)
class _Policy:
    """The options of one retry, checked: what to do after a failure."""

    exc_classes: tuple[type[Exception], ...]
    max_failures: int | None
    delay: Callable[[int], float]
    deadline: float | None
    budget: RetryBudget | None
    retrying: _Message
    giving_up: _Message
    on_retry: Callable[[RetryDetails], object] | None

    def __post_init__(self) -> None:
        if self.max_failures is not None:
            check_whole("max_failures", self.max_failures)
        check_seconds("deadline", self.deadline, zero=True)
        if self.budget is not None:
            check_instance("budget", self.budget, RetryBudget)
        if self.on_retry is not None:
            check_callable("on_retry", self.on_retry)

    def decorate(self, f: Callable[P, R], /) -> Callable[P, R]:
        _refuse_what_cannot_be_retried(f)
        name = _name_of(f)

        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            call = _Call(_clock(), _seconds_left())
            failures = 0
            if self.budget is not None:
                self.budget.deposit()
            while True:
                try:
                    return f(*args, **kwargs)
                except self.exc_classes as error:
                    failures += 1
                    wait = self._wait_after(error, failures, name, call)
                    if wait is None:
                        raise
                # Outside the except, so that the wait does not keep alive the error, and by its
                # traceback the connection of the failed attempt.
                _sleep(wait)

        # For a callable that has no name of its own; wraps puts in those that there are.
        wrapper.__name__ = wrapper.__qualname__ = name
        return functools.wraps(f)(wrapper)

    def _wait_after(self, error: Exception, failures: int, name: str, call: _Call) -> float | None:
        """Seconds to wait before the next attempt; None: there shall be none."""
        if isinstance(error, PoolError) and not self._names_pool_error(error):
            return None
        wait = self.delay(failures)
        if not self._may_retry(failures, wait, call):
            self.giving_up.log(name, error)
            return None
        self.retrying.log(name, error)
        self._tell(RetryDetails(name, failures, error, wait, _clock() - call.started_at))
        # Again, as a log handler or on_retry may have taken its time.
        if self._too_late(wait, call):
            self.giving_up.log(name, error)
            return None
        return wait

    def _names_pool_error(self, error: PoolError) -> bool:
        return any(issubclass(c, PoolError) and isinstance(error, c) for c in self.exc_classes)

    def _may_retry(self, failures: int, wait: float, call: _Call) -> bool:
        if self.max_failures is not None and failures > self.max_failures:
            return False
        if self._too_late(wait, call):
            return False
        # The budget comes last: it is charged only for a retry that nothing else forbids.
        return self.budget is None or self.budget.withdraw()

    def _too_late(self, wait: float, call: _Call) -> bool:
        after = _clock() - call.started_at + wait
        return (self.deadline is not None and after > self.deadline) or after > call.seconds_left

    def _tell(self, details: RetryDetails) -> None:
        if self.on_retry is None:
            return
        try:
            self.on_retry(details)
        except Exception:
            _log.exception("on_retry of %r failed; the retry goes on", details.function)


class _Call(NamedTuple):
    """A call of a decorated function: when it began, and for how long its caller then had time."""

    started_at: float
    seconds_left: float


def _seconds_left() -> float:
    """Until the nearest Deadline that the caller is under; math.inf if there is none."""
    return ends_at(gevent.getcurrent()) - monotonic() if deadlines else math.inf


class _Message:
    """One message a retry may log, with its level; nothing is said without a logger."""

    def __init__(self, option: str, logger: _Logger | None, level: int, template: str) -> None:
        if logger is not None and not callable(getattr(logger, "log", None)):
            raise TypeError(f"logger must have a method log(), as logging.Logger: {logger!r}")
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"{option}_level must be an int, as logging.INFO, not {level!r}")
        _check_template(f"{option}_message", template)
        self._logger = logger
        self._level = level
        self._template = template

    def log(self, name: str, error: Exception) -> None:
        if self._logger is None:
            return
        try:
            self._logger.log(self._level, self._template.format(f=name, e=error))
        except Exception:
            # Such as an error whose __str__ fails: the caller must get that error, not this one.
            _log.exception("could not log %r for %r", self._template, name)


# What the options are checked with


def _delay(interval: float, backoff: Backoff | None) -> Callable[[int], float]:
    check_seconds("interval", interval, zero=True, none=False)
    if backoff is None:
        return lambda failures: interval
    check_instance("backoff", backoff, Backoff)
    if interval:
        raise ValueError(f"give interval ({interval!r} s) or backoff ({backoff!r}), not both")
    return backoff.delay


def _exceptions(given: type[Exception] | Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    classes = exception_classes("exc_classes", given)
    if not classes:
        raise ValueError("exc_classes is empty; to retry nothing, say max_failures=0")
    for each in classes:
        if not issubclass(each, Exception):
            raise TypeError(
                f"exc_classes must hold subclasses of Exception; {each.__qualname__} is none,"
                " it means that the caller wants to stop"
            )
    return cast("tuple[type[Exception], ...]", classes)


def _check_template(option: str, template: str) -> None:
    if not isinstance(template, str):
        raise TypeError(f"{option} must be a str, not {template!r}")
    try:
        template.format(f="f", e=_AnyError())
    except Exception as error:
        raise ValueError(
            f"{option} cannot be formatted with {{f}} and {{e}}: {template!r} ({error!r})"
        ) from error


class _Anything:
    """Stands for an attribute of an error to come, as in ``{e.args[0]:>5}``."""

    def __getattr__(self, name: str) -> _Anything:
        return self

    def __getitem__(self, key: object) -> _Anything:
        return self

    def __format__(self, spec: str) -> str:
        return ""


class _AnyError(Exception):
    """Stands for an error to come, whatever its class."""

    args: Any = _Anything()

    def __getattr__(self, name: str) -> _Anything:
        return _Anything()


def _refuse_what_cannot_be_retried(f: object) -> None:
    if isinstance(f, (staticmethod, classmethod)):
        raise TypeError(f"f: put retry beneath @{type(f).__name__}, not on top of it")
    if isinstance(f, type) and issubclass(f, BaseException):
        raise TypeError(f"f must be the function to retry; say exc_classes={f.__qualname__}")
    if not callable(f):
        raise TypeError(f"f must be the function to retry, not {f!r}")
    inner = _beneath_partials(f)
    # A class is looked at as itself: calling it does not run its instances' __call__.
    for function in (inner, type(inner).__call__):
        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                f"f must not be a generator or coroutine function: calling {_name_of(f)!r} runs"
                " nothing yet, so retry could not run it again"
            )


def _name_of(f: object) -> str:
    inner = _beneath_partials(f)
    name = getattr(inner, "__name__", None)
    return name if isinstance(name, str) else type(inner).__name__


def _beneath_partials(f: object) -> object:
    while isinstance(f, functools.partial):
        f = f.func
    return f
