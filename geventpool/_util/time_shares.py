"""Time that several share."""

from __future__ import annotations

__all__ = ["part_of"]

_LEAST_PART = 2.0  # seconds for each of many servers: enough for a SYN to be lost once


def part_of(left: float, parts: int) -> float:
    """One of *parts* parts of the seconds that are *left*, but enough for a server to answer: as
    long as that leaves half of it for those to come.

    Go's net.Dialer shares its time in this way; but here there is always some left for the next.
    """
    return left if parts == 1 else max(left / parts, min(_LEAST_PART, left / 2))
