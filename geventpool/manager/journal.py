"""What happens to servers: for the log, and for those that keep a ranking of them.

A log handler may switch, and the one that learns of a change is in the middle of something.  So a
change is noted here, and told later.
"""

from __future__ import annotations

import math
from collections import deque
from logging import INFO, WARNING, Logger
from typing import NamedTuple

from geventpool._util.log import log_safely
from geventpool.addresses import AnyAddress

__all__ = ["Journal", "Transition"]

_MOST_UNTOLD = 1000  # if no manager takes them out


class Transition(NamedTuple):
    """The server at *address* has gone down, or is back.

    *seconds*: for how long it is to be left alone, or how long it was away.  *dials* and *refused*:
    how many dials there were meanwhile, and callers that got no connection.
    """

    address: AnyAddress
    is_up: bool
    why: str
    seconds: float
    dials: int
    refused: int

    def __str__(self) -> str:
        if self.is_up:
            dials = "1 dial" if self.dials == 1 else f"{self.dials} dials"
            callers = "1 caller" if self.refused == 1 else f"{self.refused} callers"
            text = f"{self.address} is back after {self.seconds:.1f} s and {dials}"
            return f"{text}; {callers} got no connection meanwhile"
        until = "" if math.isinf(self.seconds) else f" for {self.seconds:.1f} s"
        return f"{self.address} is marked down{until}{self.why}"


class Journal:
    """The *transitions* that were not told yet; *version* changes with whatever decides which
    server is to be used."""

    def __init__(self) -> None:
        self.version = 0
        self.transitions: deque[Transition] = deque(maxlen=_MOST_UNTOLD)

    def tell(self, log: Logger) -> None:
        """Log what was not told yet.  May switch, if a handler does."""
        while self.transitions:
            each = self.transitions.popleft()
            log_safely(log, INFO if each.is_up else WARNING, "%s", each)
