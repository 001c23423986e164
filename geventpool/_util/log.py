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
        log.log(level, message, *args, exc_info=exc_info)
    except Exception:
        traceback.print_exc()
