"""A line in the log; a handler that raises breaks nothing of what the line is about."""

from __future__ import annotations

import logging
import traceback
from typing import Any

__all__ = ["log_safely"]


def log_safely(
    log: logging.Logger, level: int, message: str, *args: object, exc_info: Any = None
) -> None:
    """Log *message*.  What a handler raises is printed; a Timeout or a kill goes on its way."""
    try:
        log.log(level, message, *map(_shown, args), exc_info=exc_info)
    except Exception:
        traceback.print_exc()


def _shown(argument: object) -> object:
    """What a codec raises has all of the text in its ``repr``: a password that cannot be sent."""
    if isinstance(argument, UnicodeError):
        return f"{type(argument).__name__}: {argument}"
    return argument
