"""What an argument may be; each error begins with its name, and says what is expected."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

__all__ = [
    "check_callable",
    "check_instance",
    "check_number",
    "check_port",
    "check_seconds",
    "check_share",
    "check_text",
    "check_whole",
    "exception_classes",
    "several",
]

T = TypeVar("T")
_LONGEST = 1e9  # seconds: 30 years; timers and sums of times stay well within their ranges


def check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")


def check_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")


def check_instance(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")


# Numbers


def check_whole(name: str, value: object, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")


def check_port(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a port number, not {value!r}")
    if not 0 < value < 65536:
        raise ValueError(f"{name} must be from 1 to 65535, not {value!r}")


def check_number(name: str, value: object) -> None:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative: {value!r}")


def check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share between 0 and 1, not {value!r}")


def check_seconds(name: str, value: object, zero: bool = False, none: bool = True) -> None:
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not (0 <= value <= _LONGEST) or (value == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        no_bound = "; None means no bound" if none else ""
        raise ValueError(f"{name} must be {least} (seconds{no_bound}), not {value!r}")


# Several of a kind


def several(name: str, values: Iterable[T]) -> tuple[T, ...]:
    """All of *values*."""
    try:
        found = iter(values)
    except TypeError:
        raise TypeError(f"{name} must be a list or the like, not {values!r}") from None
    return tuple(found)


def exception_classes(
    name: str, classes: type[BaseException] | Iterable[type[BaseException]]
) -> tuple[type[BaseException], ...]:
    """The exception classes that are meant: one, or several."""
    found = (classes,) if isinstance(classes, type) else several(name, classes)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{name} must be exception classes, not {each!r}")
    return found
