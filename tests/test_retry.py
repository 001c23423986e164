"""retry: what is called again, what is not, and what the waits cost; RetryBudget."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import gevent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geventpool._util.clock import monotonic as real
from geventpool.backoff import Backoff
from geventpool.errors import (
    ConnectError,
    OutOfSockets,
    PoolClosed,
    PoolError,
    PoolFull,
    PoolOverloaded,
    PoolTimeout,
    PoolUnavailable,
)
from geventpool.retry import RetryBudget, RetryDetails, retry

# Not `import geventpool.retry as ...`: that takes the attribute of the package, the function.
module = sys.modules[retry.__module__]
DEFAULT_SLEEP, DEFAULT_CLOCK = module._sleep, module._clock


class FakeTime:
    """A clock that only sleeping, and what a test says, moves; all waits are noted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(module, "_sleep", fake.sleep)
    monkeypatch.setattr(module, "_clock", fake.clock)
    return fake


class Log:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def log(self, level: int, msg: str) -> None:
        self.lines.append((level, msg))


class Flaky:
    """Something to call that fails with each of *errors*, once each, and then returns "done"."""

    def __init__(self, *errors: BaseException, takes: Callable[[], None] = lambda: None) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.takes = takes

    def __call__(self) -> str:
        self.calls += 1
        self.takes()
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def broken(times: int) -> list[OSError]:
    return [ConnectionResetError(f"broken {n}") for n in range(1, times + 1)]


# The ways to write it


def test_bare_it_retries_until_it_works() -> None:
    left = broken(3)

    @retry
    def send() -> str:
        if left:
            raise left.pop()
        return "done"

    assert send() == "done"
    assert left == []


def test_called_without_options_it_does_the_same() -> None:
    left = broken(3)

    @retry()
    def send() -> str:
        if left:
            raise left.pop()
        return "done"

    assert send() == "done"


def test_the_documented_form_with_options_works() -> None:  # fault G8 of geventconnpool: TypeError
    calls = []

    @retry(max_failures=5)
    def send() -> None:
        calls.append(1)
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        send()
    assert len(calls) == 6


def test_with_a_logger_the_retry_happens_and_is_logged(  # fault G8: AttributeError, func_name
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("test.retry")
    left = broken(1)

    @retry(exc_classes=(OSError,), logger=log, max_failures=5, interval=2)
    def send() -> str:
        if left:
            raise left.pop()
        return "done"

    with caplog.at_level(logging.INFO, "test.retry"):
        result = send()

    assert result == "done"
    assert caplog.record_tuples == [
        (
            "test.retry",
            logging.INFO,
            "Connection broken in 'send' (error: 'broken 1'); retrying with new connection.",
        )
    ]


def test_with_a_logger_the_real_error_comes_out_at_the_end() -> None:  # fault G8
    log = Log()

    @retry(logger=log, max_failures=0)
    def send() -> None:
        raise OSError("the real one")

    with pytest.raises(OSError, match="the real one"):
        send()
    assert log.lines == [(logging.ERROR, "Max retries reached for 'send'. Aborting.")]


@pytest.mark.parametrize("called", [False, True])
def test_a_partial_keeps_a_set_of_options(called: bool) -> None:
    resilient = functools.partial(retry, max_failures=2)
    send = Flaky(*broken(9))

    wrapped = resilient()(send) if called else resilient(send)

    with pytest.raises(OSError, match="broken 3"):
        wrapped()


def test_a_partial_can_be_refined_where_it_is_used(time: FakeTime) -> None:
    resilient = functools.partial(retry, max_failures=2, interval=1)

    @resilient(max_failures=1)
    def send() -> None:
        raise OSError

    with pytest.raises(OSError):
        send()
    assert time.sleeps == [1]


def test_the_options_of_the_ancestor_may_be_given_by_position(time: FakeTime) -> None:
    log = Log()
    send = Flaky(KeyError("a"), KeyError("b"))

    wrapped = retry(
        send, (KeyError,), log, logging.DEBUG, "again {f}", 1, 7, logging.CRITICAL, "end {f}"
    )

    with pytest.raises(KeyError, match="b"):
        wrapped()
    assert time.sleeps == [7]
    assert log.lines == [(logging.DEBUG, "again Flaky"), (logging.CRITICAL, "end Flaky")]


def test_the_options_that_the_ancestor_did_not_have_are_keyword_only() -> None:
    parameters = inspect.signature(retry).parameters.values()

    only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    assert only == ["backoff", "deadline", "budget", "on_retry"]


def test_arguments_and_result_go_through_on_each_attempt() -> None:
    seen: list[tuple[Any, ...]] = []

    @retry
    def send(*args: int, **kwargs: int) -> int:
        seen.append((args, kwargs))
        if len(seen) == 1:
            raise OSError
        return 42

    assert send(1, 2, key=3) == 42
    assert seen == [((1, 2), {"key": 3})] * 2


class Client:
    def __init__(self) -> None:
        self.left: list[OSError] = broken(1)

    @retry
    def method(self, word: str) -> tuple[Client, str]:
        if self.left:
            raise self.left.pop()
        return self, word

    @classmethod
    @retry(max_failures=1)
    def of_class(cls, word: str) -> tuple[type[Client], str]:
        return cls, word

    @staticmethod
    @retry
    def static(word: str) -> str:
        return word


def test_methods_of_all_kinds_are_bound_as_before() -> None:
    client = Client()

    assert client.method("a") == (client, "a")
    assert Client.of_class("b") == client.of_class("b") == (Client, "b")
    assert Client.static("c") == client.static("c") == "c"


def test_the_function_keeps_its_name_docstring_and_signature() -> None:
    @retry(max_failures=1)
    def send(data: bytes, *, flags: int = 0) -> int:
        """Send it."""
        return len(data) + flags

    assert send.__name__ == "send"
    assert send.__qualname__.endswith("<locals>.send")
    assert send.__doc__ == "Send it."
    assert send.__module__ == __name__
    assert str(inspect.signature(send)) == "(data: 'bytes', *, flags: 'int' = 0) -> 'int'"


def fail() -> None:
    raise OSError("broken")


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (functools.partial(fail), "fail"),
        (functools.partial(functools.partial(fail)), "fail"),
        (Flaky(*broken(1)), "Flaky"),
        (functools.partial(Flaky(*broken(1))), "Flaky"),
        (Flaky(*broken(1)).__call__, "__call__"),
        (lambda: fail(), "<lambda>"),
    ],
)
def test_what_has_no_name_of_its_own_gets_a_sensible_one(f: Callable[[], Any], name: str) -> None:
    log = Log()
    wrapped = retry(f, logger=log, max_failures=0, max_failure_log_message="{f}")

    with pytest.raises(OSError):
        wrapped()

    assert log.lines == [(logging.ERROR, name)]
    assert wrapped.__name__ == name


# How often


@pytest.mark.parametrize("max_failures", [0, 1, 5])
def test_max_failures_allows_one_attempt_more(max_failures: int) -> None:
    send = Flaky(*broken(99))

    with pytest.raises(OSError):
        retry(send, max_failures=max_failures)()

    assert send.calls == max_failures + 1


def test_without_max_failures_it_goes_on_and_on() -> None:
    send = Flaky(*broken(5000))

    assert retry(send)() == "done"
    assert send.calls == 5001


def test_each_call_counts_its_own_failures() -> None:
    send = Flaky(*broken(2))
    wrapped = retry(send, max_failures=2)
    wrapped()
    send.errors = list(broken(2))

    assert wrapped() == "done"


def test_what_is_raised_is_the_last_error_itself_with_its_traceback() -> None:
    errors = broken(3)
    send = Flaky(*errors)

    with pytest.raises(OSError) as caught:
        retry(send, max_failures=2)()

    assert caught.value is errors[2]
    assert caught.value.__context__ is None
    assert caught.traceback[-1].name == "__call__"  # of Flaky, where it was raised


# How long


def test_between_two_attempts_it_waits_the_interval_but_not_after_the_last(time: FakeTime) -> None:
    send = Flaky(*broken(9))

    with pytest.raises(OSError):
        retry(send, max_failures=2, interval=0.5)()

    assert time.sleeps == [0.5, 0.5]  # the ancestor slept three times


def test_with_an_interval_of_zero_other_greenlets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sleep", gevent.sleep)
    mended: list[bool] = []

    @retry
    def send() -> str:
        if not mended:
            raise OSError
        return "done"

    other = gevent.spawn(mended.append, True)

    with gevent.Timeout(5):
        assert send() == "done"
    other.join()


def test_the_sleeping_is_cooperative_and_the_clock_monotonic_by_default() -> None:
    assert DEFAULT_SLEEP is gevent.sleep
    assert DEFAULT_CLOCK is real


def test_a_backoff_takes_the_place_of_the_interval(time: FakeTime) -> None:
    send = Flaky(*broken(4))

    retry(send, backoff=Backoff(first=1, factor=2, longest=5, jitter=0))()

    assert time.sleeps == [1, 2, 4, 5]


def test_no_attempt_begins_after_the_deadline_and_no_sleep_ends_after_it(time: FakeTime) -> None:
    send = Flaky(*broken(99))
    started = time.now

    with pytest.raises(OSError, match="broken 4"):
        retry(send, interval=3, deadline=10)()

    assert time.sleeps == [3, 3, 3]  # at 9 s, three more would be 12
    assert time.now - started == 9


def test_a_sleep_may_end_at_the_very_deadline(time: FakeTime) -> None:
    send = Flaky(*broken(99))

    with pytest.raises(OSError, match="broken 3"):
        retry(send, interval=5, deadline=10)()

    assert time.sleeps == [5, 5]


def test_the_deadline_counts_the_attempts_too(time: FakeTime) -> None:
    def take_four_seconds() -> None:
        time.now += 4

    send = Flaky(*broken(99), takes=take_four_seconds)

    with pytest.raises(OSError, match="broken 2"):
        retry(send, interval=1, deadline=9.5)()

    assert time.sleeps == [1]


def test_the_deadline_does_not_interrupt_an_attempt(time: FakeTime) -> None:
    def take_an_hour() -> None:
        time.now += 3600

    send = Flaky(takes=take_an_hour)

    assert retry(send, deadline=1)() == "done"


def test_each_call_has_the_whole_deadline(time: FakeTime) -> None:
    send = Flaky(*broken(2))
    wrapped = retry(send, interval=1, deadline=2)
    wrapped()
    send.errors = list(broken(2))

    assert wrapped() == "done"


def test_the_deadline_is_logged_as_the_end() -> None:
    log = Log()

    with pytest.raises(OSError):
        retry(Flaky(*broken(99)), logger=log, interval=3, deadline=2)()

    assert log.lines == [(logging.ERROR, "Max retries reached for 'Flaky'. Aborting.")]


def test_a_slow_listener_cannot_move_a_sleep_beyond_the_deadline(time: FakeTime) -> None:
    def listen(details: RetryDetails) -> None:
        time.now += 5

    send = Flaky(*broken(99))

    with pytest.raises(OSError, match="broken 1"):
        retry(send, interval=3, deadline=6, on_retry=listen)()

    assert time.sleeps == []


def test_a_deadline_of_zero_means_one_attempt(time: FakeTime) -> None:
    def take_a_moment() -> None:
        time.now += 1e-6

    send = Flaky(*broken(99), takes=take_a_moment)

    with pytest.raises(OSError, match="broken 1"):
        retry(send, deadline=0)()


def test_while_it_waits_it_does_not_keep_what_the_failed_attempt_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Connection:
        pass

    connections: list[weakref.ref[Connection]] = []
    alive_in_sleep: list[bool] = []
    monkeypatch.setattr(
        module, "_sleep", lambda wait: alive_in_sleep.append(connections[-1]() is not None)
    )

    @retry
    def send() -> None:
        connection = Connection()
        connections.append(weakref.ref(connection))
        if len(connections) == 1:
            raise OSError("broken")

    send()

    assert alive_in_sleep == [False]


# What is retried


def test_by_default_any_oserror_is_retried_and_nothing_else() -> None:
    assert retry(Flaky(ConnectError("no server"), TimeoutError(), BrokenPipeError()))() == "done"
    for error in (ValueError("x"), KeyError("x"), EOFError()):
        send = Flaky(error)
        with pytest.raises(type(error)):
            retry(send)()
        assert send.calls == 1


@pytest.mark.parametrize(
    "exc_classes",
    [KeyError, LookupError, (ValueError, KeyError), [KeyError], {KeyError}, iter([KeyError])],
)
def test_exc_classes_may_be_a_class_or_any_iterable_of_classes(exc_classes: Any) -> None:
    wrapped = retry(Flaky(KeyError("a"), KeyError("b")), exc_classes=exc_classes)

    assert wrapped() == "done"


@pytest.mark.parametrize(
    "error", [gevent.Timeout(), gevent.GreenletExit(), KeyboardInterrupt(), SystemExit()]
)
def test_what_is_not_an_exception_is_never_retried(error: BaseException) -> None:
    log = Log()
    send = Flaky(error)

    with pytest.raises(type(error)) as caught:
        retry(send, exc_classes=Exception, logger=log)()

    assert caught.value is error
    assert send.calls == 1
    assert log.lines == []


def test_a_kill_during_the_wait_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sleep", gevent.sleep)
    send = Flaky(*broken(99))
    caller = gevent.spawn(retry(send, interval=3600))
    gevent.idle()

    caller.kill(timeout=5)

    assert caller.dead
    assert send.calls == 1


@pytest.mark.parametrize(
    "error",
    [PoolTimeout("x"), PoolClosed("x"), PoolFull("x"), PoolOverloaded("x"), OutOfSockets("x")],
)
@pytest.mark.parametrize("exc_classes", [OSError, Exception, (TimeoutError, ConnectError, OSError)])
def test_a_pool_error_is_not_retried_though_it_be_an_oserror(
    error: PoolError, exc_classes: Any
) -> None:
    log = Log()
    send = Flaky(error)

    with pytest.raises(PoolError):
        retry(send, exc_classes=exc_classes, logger=log)()

    assert send.calls == 1
    assert log.lines == []


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (PoolTimeout("x"), PoolTimeout),
        (PoolTimeout("x"), PoolError),
        (PoolTimeout("x"), (OSError, PoolTimeout)),
        (OutOfSockets("x"), OutOfSockets),
        (OutOfSockets("x"), (PoolError,)),
        (PoolFull("x"), (OSError, PoolFull)),
        (PoolOverloaded("x"), PoolOverloaded),
        (PoolOverloaded("x"), (OSError, PoolFull)),
        (PoolOverloaded("x"), PoolUnavailable),
    ],
)
def test_a_pool_error_that_the_caller_names_is_retried(error: PoolError, named: Any) -> None:
    assert retry(Flaky(error), exc_classes=named)() == "done"


def test_naming_one_pool_error_does_not_name_another() -> None:
    send = Flaky(PoolTimeout("x"))

    with pytest.raises(PoolTimeout):
        retry(send, exc_classes=(OSError, PoolFull))()


# What is told


def test_each_retry_is_logged_with_function_and_error_and_the_end_once() -> None:
    log = Log()
    wrapped = retry(
        Flaky(*broken(9)),
        logger=log,
        max_failures=2,
        retry_log_level=logging.WARNING,
        retry_log_message="{f}: {e}, 100 %s",
        max_failure_log_level=logging.CRITICAL,
        max_failure_log_message="{f}: {e!r}",
    )

    with pytest.raises(OSError):
        wrapped()

    assert log.lines == [
        (logging.WARNING, "Flaky: broken 1, 100 %s"),
        (logging.WARNING, "Flaky: broken 2, 100 %s"),
        (logging.CRITICAL, "Flaky: ConnectionResetError('broken 3')"),
    ]


def test_without_a_logger_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)

    with pytest.raises(OSError):
        retry(Flaky(*broken(9)), max_failures=2)()

    assert caplog.records == []


def test_the_caller_hears_of_each_retry_before_its_wait(time: FakeTime) -> None:
    errors = broken(3)
    told: list[RetryDetails] = []
    sleeps_before: list[int] = []

    def listen(details: RetryDetails) -> None:
        told.append(details)
        sleeps_before.append(len(time.sleeps))

    with pytest.raises(OSError):
        retry(Flaky(*errors), max_failures=2, interval=2, on_retry=listen)()

    assert told == [
        RetryDetails(function="Flaky", failures=1, error=errors[0], wait=2, elapsed=0.0),
        RetryDetails(function="Flaky", failures=2, error=errors[1], wait=2, elapsed=2.0),
    ]
    assert sleeps_before == [0, 1]


def test_what_is_told_cannot_be_changed() -> None:
    details = RetryDetails("f", 1, OSError(), 0.0, 0.0)

    with pytest.raises(FrozenInstanceError):
        details.wait = 5  # type: ignore[misc]


def test_a_listener_that_fails_is_logged_and_breaks_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def listen(details: RetryDetails) -> None:
        raise ValueError("a bug of the listener")

    assert retry(Flaky(*broken(1)), on_retry=listen)() == "done"
    (record,) = caplog.records
    assert record.name == "geventpool.retry"
    assert record.levelno == logging.ERROR
    assert "a bug of the listener" in caplog.text


@pytest.mark.parametrize("error", [gevent.Timeout(), gevent.GreenletExit(), KeyboardInterrupt()])
def test_what_a_listener_raises_goes_through_if_it_is_no_exception(error: BaseException) -> None:
    def listen(details: RetryDetails) -> None:
        raise error

    send = Flaky(*broken(1))

    with pytest.raises(type(error)):
        retry(send, on_retry=listen)()
    assert send.calls == 1


class Unprintable(OSError):
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


def test_an_error_that_cannot_be_printed_is_still_the_one_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    send = Flaky(Unprintable(), Unprintable())
    wrapped = retry(send, logger=Log(), max_failures=1, max_failure_log_message="{e}")

    with pytest.raises(Unprintable):
        wrapped()

    assert send.calls == 2
    assert [record.name for record in caplog.records] == ["geventpool.retry"] * 2


def test_a_logger_that_fails_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class BadLog:
        def log(self, level: int, msg: str) -> None:
            raise OSError("disk full")

    assert retry(Flaky(*broken(1)), logger=BadLog())() == "done"
    assert "disk full" in caplog.text


# What makes no sense is said at the decoration


@pytest.mark.parametrize("option", ["retry_log_message", "max_failure_log_message"])
@pytest.mark.parametrize(
    "template", ["{g}", "{}", "{0}", "{f", "f}", "{f!x}", "{e:>10}", "{f:d}", "{f.nothing}"]
)
def test_a_template_that_cannot_be_formatted_is_refused(option: str, template: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} cannot be formatted"):
        retry(**{option: template})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("{{f}} {f:>6}|", "{f}  Flaky|"),
        ("{e.errno:05d} {e.args[1]:.3} {e!s:>20}|", "00111 ref  [Errno 111] refused|"),
        ("{e.__class__.__name__}", "ConnectionRefusedError"),
    ],
)
def test_a_template_may_use_what_the_error_has(template: str, expected: str) -> None:
    log = Log()

    retry(Flaky(ConnectionRefusedError(111, "refused")), logger=log, retry_log_message=template)()

    assert log.lines == [(logging.INFO, expected)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exc_classes": 5}, TypeError, "exc_classes must be a list or the like, not 5"),
        ({"exc_classes": None}, TypeError, "exc_classes must be"),
        ({"exc_classes": "OSError"}, TypeError, "exc_classes must be exception classes, not 'O'"),
        ({"exc_classes": (OSError, 5)}, TypeError, "exc_classes must be exception classes, not 5"),
        ({"exc_classes": (OSError("x"),)}, TypeError, "exc_classes must be exception classes"),
        ({"exc_classes": int}, TypeError, "exc_classes must be exception classes"),
        ({"exc_classes": ()}, ValueError, "exc_classes is empty"),
        ({"exc_classes": gevent.Timeout}, TypeError, "exc_classes must hold .* Timeout is none"),
        ({"exc_classes": (OSError, KeyboardInterrupt)}, TypeError, "KeyboardInterrupt is none"),
        ({"exc_classes": BaseException}, TypeError, "exc_classes .* BaseException is none"),
        ({"exc_classes": gevent.GreenletExit}, TypeError, "GreenletExit is none"),
        ({"logger": "root"}, TypeError, "logger must have a method log"),
        ({"retry_log_level": "INFO"}, TypeError, "retry_log_level must be an int"),
        ({"max_failure_log_level": None}, TypeError, "max_failure_log_level must be an int"),
        ({"retry_log_message": None}, TypeError, "retry_log_message must be a str"),
        ({"max_failure_log_message": b"x"}, TypeError, "max_failure_log_message must be a str"),
        ({"max_failures": -1}, ValueError, "max_failures must be at least 0, not -1"),
        ({"max_failures": 1.5}, TypeError, "max_failures must be a whole number"),
        ({"max_failures": True}, TypeError, "max_failures must be a whole number"),
        ({"interval": -1}, ValueError, "interval must be 0 or more .seconds., not -1"),
        ({"interval": math.inf}, ValueError, "interval must be 0 or more .seconds., not inf"),
        ({"interval": None}, TypeError, "interval must be a number"),
        ({"interval": "1"}, TypeError, "interval must be a number"),
        ({"deadline": -1}, ValueError, "deadline must be 0 or more .*, not -1"),
        ({"deadline": math.nan}, ValueError, "deadline must be 0 or more .*, not nan"),
        ({"deadline": "1"}, TypeError, "deadline must be a number"),
        ({"backoff": 5}, TypeError, "backoff must be a Backoff, not 5"),
        ({"backoff": Backoff}, TypeError, "backoff must be a Backoff"),
        ({"backoff": Backoff(), "interval": 1}, ValueError, "interval .*or backoff .*not both"),
        ({"budget": 0.2}, TypeError, "budget must be a RetryBudget, not 0.2"),
        ({"on_retry": "print"}, TypeError, "on_retry must be callable, not 'print'"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retry(**options)
    with pytest.raises(error, match=message):
        retry(fail, **options)


def test_an_interval_of_zero_goes_with_a_backoff() -> None:
    assert retry(Flaky(), interval=0, backoff=Backoff())() == "done"


def numbers() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    await asyncio.sleep(0)


async def async_numbers() -> Any:
    yield 1


class Numbers:
    def method(self) -> Iterator[int]:
        yield 1

    def __call__(self) -> Generator[int]:
        yield 1


class Coroutine:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "f",
    [
        numbers,
        coroutine,
        async_numbers,
        functools.partial(numbers),
        Numbers().method,
        Numbers(),
        functools.partial(Numbers()),
        Coroutine(),
    ],
)
def test_what_runs_nothing_when_called_is_refused(f: Any) -> None:
    with pytest.raises(TypeError, match="generator or coroutine function"):
        retry(f)
    with pytest.raises(TypeError, match="generator or coroutine function"):
        retry(max_failures=1)(f)


def test_a_class_whose_instances_are_generators_may_be_called_again() -> None:
    assert isinstance(retry(Numbers)(), Numbers)


@pytest.mark.parametrize("f", [(OSError,), 5, "send"])
def test_what_cannot_be_called_is_refused(f: Any) -> None:
    with pytest.raises(TypeError, match="f must be the function to retry"):
        retry(f)


def test_exception_classes_in_the_place_of_the_function_are_refused() -> None:
    with pytest.raises(TypeError, match="say exc_classes=OSError"):
        retry(OSError)


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_on_top_of_a_method_decorator_it_says_where_it_belongs(kind: Any) -> None:
    with pytest.raises(TypeError, match=f"put retry beneath @{kind.__name__}"):
        retry(kind(fail))


# The budget


def spend(budget: RetryBudget) -> int:
    """Withdraw all there is."""
    granted = 0
    while budget.withdraw():
        granted += 1
    return granted


def test_a_call_deposits_its_share_once_and_each_retry_withdraws_one(time: FakeTime) -> None:
    budget = RetryBudget(share=0.5, min_per_second=1, window=10, clock=time.clock)

    retry(Flaky(*broken(3)), budget=budget)()

    assert budget.balance == 10 + 0.5 - 3


def test_a_call_that_succeeds_only_deposits(time: FakeTime) -> None:
    budget = RetryBudget(share=0.5, min_per_second=0, clock=time.clock)
    wrapped = retry(Flaky(), budget=budget)

    wrapped()
    wrapped()

    assert budget.balance == 1.0


def test_when_the_budget_refuses_the_last_error_is_raised_and_the_end_logged(
    time: FakeTime,
) -> None:
    log = Log()
    budget = RetryBudget(share=0, min_per_second=0.2, window=10, clock=time.clock)
    send = Flaky(*broken(9))

    with pytest.raises(OSError, match="broken 3"):
        retry(send, budget=budget, logger=log, retry_log_message="again")()

    assert [text for _, text in log.lines] == [
        "again",
        "again",
        "Max retries reached for 'Flaky'. Aborting.",
    ]
    assert len(time.sleeps) == 2


def test_two_functions_share_a_budget(time: FakeTime) -> None:
    budget = RetryBudget(share=0, min_per_second=0.3, window=10, clock=time.clock)
    retry(Flaky(*broken(2)), budget=budget)()
    other = Flaky(*broken(2))

    with pytest.raises(OSError, match="broken 2"):
        retry(other, budget=budget)()


@pytest.mark.parametrize("options", [{"max_failures": 0}, {"deadline": 1, "interval": 2}])
def test_a_retry_that_is_forbidden_anyway_costs_no_token(
    time: FakeTime, options: dict[str, Any]
) -> None:
    budget = RetryBudget(share=0, min_per_second=1, window=10, clock=time.clock)

    with pytest.raises(OSError):
        retry(Flaky(*broken(9)), budget=budget, **options)()

    assert budget.balance == 10


def test_a_pool_error_costs_no_token(time: FakeTime) -> None:
    budget = RetryBudget(share=0, min_per_second=1, window=10, clock=time.clock)

    with pytest.raises(PoolTimeout):
        retry(Flaky(PoolTimeout("x")), budget=budget)()

    assert budget.balance == 10


def test_five_calls_pay_for_one_retry_by_default(time: FakeTime) -> None:
    budget = RetryBudget(min_per_second=0, clock=time.clock)
    for _ in range(4):
        budget.deposit()
    assert not budget.withdraw()

    budget.deposit()

    assert budget.withdraw()
    assert not budget.withdraw()


def test_a_new_budget_holds_its_reserve(time: FakeTime) -> None:
    budget = RetryBudget(clock=time.clock)

    assert budget.balance == 100
    assert spend(budget) == 100
    assert budget.balance == 0


def test_a_refused_retry_takes_nothing(time: FakeTime) -> None:
    budget = RetryBudget(share=0.5, min_per_second=0, clock=time.clock)
    budget.deposit()

    assert not budget.withdraw()
    assert budget.balance == 0.5


@pytest.mark.parametrize("share", [0.1, 0.29, 0.7, 1.1, 3.3])
def test_no_retry_is_lost_to_rounding(time: FakeTime, share: float) -> None:
    budget = RetryBudget(share=share, min_per_second=0, clock=time.clock)
    for _ in range(100):
        budget.deposit()

    assert spend(budget) == round(share * 100)


def test_deposits_expire_with_the_window(time: FakeTime) -> None:
    budget = RetryBudget(share=1, min_per_second=0, window=10, clock=time.clock)
    budget.deposit()

    time.now += 9.75
    assert budget.balance == 1
    time.now += 0.25
    assert budget.balance == 0


def test_the_reserve_is_there_again_after_the_window_and_not_before(time: FakeTime) -> None:
    budget = RetryBudget(share=0, min_per_second=0.5, window=10, clock=time.clock)
    time.now += 0.19  # late in a part of the window
    assert spend(budget) == 5

    time.now += 10
    assert spend(budget) == 0
    time.now += 0.2
    assert spend(budget) == 5


def test_retries_paid_by_deposits_do_not_touch_the_next_window(time: FakeTime) -> None:
    budget = RetryBudget(share=1, min_per_second=0.5, window=10, clock=time.clock)
    for _ in range(20):
        budget.deposit()
    assert spend(budget) == 25

    time.now += 1000

    assert budget.balance == 5


def test_steady_failures_are_retried_at_nearly_the_whole_share(time: FakeTime) -> None:
    budget = RetryBudget(share=0.2, min_per_second=0, window=10, clock=time.clock)
    granted = 0
    for _ in range(20_000):  # 100 calls a second, for 20 windows
        time.now += 0.01
        budget.deposit()
        granted += budget.withdraw()

    assert 0.97 * 4000 <= granted <= 4000


def test_a_clock_that_goes_back_does_no_harm(time: FakeTime) -> None:
    budget = RetryBudget(share=1, min_per_second=0.5, window=10, clock=time.clock)
    time.now += 5
    budget.deposit()
    time.now -= 100

    assert spend(budget) == 6
    time.now += 101
    assert spend(budget) == 0


def test_its_memory_does_not_grow_with_the_calls(time: FakeTime) -> None:
    budget = RetryBudget(clock=time.clock)

    def cells() -> int:
        return len(budget._calls._counts) + len(budget._retries._counts)

    before = cells()
    for _ in range(10_000):
        time.now += 0.01
        budget.deposit()
        budget.withdraw()

    assert cells() == before < 200


# A window of 800 ticks has parts of 16: steps within a part, to the next, and of nearly a window.
TICK = 1 / 64
WINDOW = 800 * TICK


@given(
    share=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
    reserve=st.integers(0, 4),
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 18), st.integers(780, 820)),
            st.integers(0, 4),
            st.integers(0, 8),
        ),
        max_size=30,
    ),
)
@example(share=0.0, reserve=4, steps=[(15, 0, 4), (799, 0, 4)])  # the reserve back too early
@example(share=1.0, reserve=0, steps=[(0, 4, 0), (805, 0, 4)])  # deposits that outlive the window
def test_retries_never_exceed_the_share_of_the_calls_plus_the_reserve_in_any_window(
    share: float, reserve: int, steps: list[tuple[int, int, int]]
) -> None:
    now = 0.0
    budget = RetryBudget(share, reserve / WINDOW, WINDOW, clock=lambda: now)
    calls: list[float] = []
    retries: list[float] = []

    for passed, called, failed in steps:
        now += passed * TICK
        for _ in range(called):
            budget.deposit()
            calls.append(now)
        granted = [now for _ in range(failed) if budget.withdraw()]
        retries += granted

        if granted:
            recent_calls = sum(now - WINDOW < at for at in calls)
            recent_retries = sum(now - WINDOW < at for at in retries)
            assert recent_retries <= share * recent_calls + reserve


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"share": -0.1}, ValueError, "share must be finite and not negative: -0.1"),
        ({"share": math.nan}, ValueError, "share must be finite"),
        ({"share": "0.2"}, TypeError, "share must be a number, not '0.2'"),
        ({"share": True}, TypeError, "share must be a number"),
        ({"min_per_second": -1}, ValueError, "min_per_second must be .* not negative"),
        ({"min_per_second": None}, TypeError, "min_per_second must be a number"),
        ({"window": 0}, ValueError, "window must be more than 0 .seconds., not 0"),
        ({"window": -1}, ValueError, "window must be more than 0 .seconds., not -1"),
        ({"window": math.inf}, ValueError, "window must be more than 0 .seconds., not inf"),
        ({"window": None}, TypeError, "window must be a number"),
        ({"clock": 5}, TypeError, "clock must be callable, not 5"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RetryBudget(**options)


def test_its_repr_is_a_status_line(time: FakeTime) -> None:
    budget = RetryBudget(clock=time.clock)
    with contextlib.suppress(OSError):
        retry(Flaky(*broken(9)), budget=budget, max_failures=2)()

    assert repr(budget) == "<RetryBudget share=0.2 min_per_second=10 window=10 s: 98.2 left>"
