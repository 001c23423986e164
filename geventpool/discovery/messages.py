"""What all resolvers say of a name that they do not find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from geventpool.errors import NameNotFound

__all__ = ["listed", "not_found"]


def not_found(name: str, why: str, tried: Sequence[str]) -> NameNotFound:
    message = f"{name!r} was not found: {why} (tried {'; '.join(tried)})"
    return NameNotFound(message, name=name, tried=tried)


def listed(kind: str, names: Iterable[str]) -> str:
    """All the names, or so many that a message can take."""
    some = sorted(map(str, names))
    more = f" and {len(some) - 10} more" if len(some) > 10 else ""
    return f"{kind}: {', '.join(some[:10]) or 'none'}{more}"
