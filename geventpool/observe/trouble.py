"""What is wrong with a pool, in words: judged by its snapshot, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["BAD", "WARNING", "WELL", "Trouble", "is_ready", "troubles"]

WELL, WARNING, BAD = "well", "warning", "bad"

_SLOW_HUB, _STALLED_HUB = 0.1, 1.0  # seconds by which a timer is late


class Trouble(NamedTuple):
    """*level* is WARNING or BAD; *word* is what it is called, *text* says it in a sentence."""

    level: str
    word: str
    text: str


def troubles(pool: dict[str, Any]) -> list[Trouble]:
    """What is wrong with *pool*, a pool of a snapshot; the worst first."""
    found = [*_of_the_server(pool), *_of_the_callers(pool), *_of_the_process(pool)]
    return sorted(found, key=lambda trouble: trouble.level != BAD)


def _of_the_server(pool: dict[str, Any]) -> Iterator[Trouble]:
    stats = pool["stats"]
    if pool["addresses"] or pool["endpoints"]:
        yield from _of_several(pool)
    elif _is_down(stats):
        why = f": {stats['last_error']}" if stats["last_error"] else ""
        yield Trouble(BAD, "down", f"No connection can be had, and the last dial failed{why}")
    elif stats["last_error"]:
        text = f"What is open serves, but the last dial failed: {stats['last_error']}"
        yield Trouble(WARNING, "dials fail", text)


def _of_several(pool: dict[str, Any]) -> Iterator[Trouble]:
    out, count = _out(pool)
    if not out:
        return
    level = BAD if len(out) == count else WARNING
    what = "server" if pool["addresses"] else "endpoint"
    word = f"{len(out)} of {count} {what}{'' if count == 1 else 's'} out"
    names = ", ".join(out[:3]) + (f" and {len(out) - 3} more" if len(out) > 3 else "")
    yield Trouble(level, word, f"Dials to them fail, and they are left alone for a while: {names}")


def _out(pool: dict[str, Any]) -> tuple[list[str], int]:
    """Which of the servers, or endpoints, of *pool* cannot be had, and how many there are."""
    if servers := pool["addresses"]:
        return [each["address"] for each in servers if each["state"] != "up"], len(servers)
    endpoints = pool["endpoints"]
    return [each["endpoint"] for each in endpoints if _is_down(each["stats"])], len(endpoints)


def _of_the_callers(pool: dict[str, Any]) -> Iterator[Trouble]:
    stats = pool["stats"]
    waiting, most = stats["waiting"], stats["maximum"]
    if most is not None and stats["in_use"] >= most:
        if waiting:
            text = f"All {most} connections are in use, and {_callers(waiting)}"
            yield Trouble(BAD, "exhausted", text)
        else:
            text = f"All {most} connections are in use: the next caller waits"
            yield Trouble(WARNING, "all in use", text)
    elif waiting:
        yield Trouble(WARNING, "waiting", f"{_callers(waiting).capitalize()} for a connection")
    lately = pool.get("history")
    if lately and (sent_away := sum(lately["minute"]["sent_away"])):
        text = "Callers of the last minute that got no connection"
        yield Trouble(WARNING, f"{sent_away:,} sent away", text)


def _of_the_process(pool: dict[str, Any]) -> Iterator[Trouble]:
    lag = pool["stats"].get("hub_lag")
    if lag is not None and lag >= _SLOW_HUB:
        level = BAD if lag >= _STALLED_HUB else WARNING
        text = "In the last minute a greenlet computed, or a call blocked, and all others waited"
        yield Trouble(level, f"hub lag {lag * 1000:,.0f} ms", text)


def _callers(count: int) -> str:
    return "1 caller waits" if count == 1 else f"{count:,} callers wait"


def _is_down(stats: dict[str, Any]) -> bool:
    """Whether nothing can be had, by the *stats* of a pool of a snapshot."""
    return bool(stats.get("down")) or (stats["last_error"] is not None and not _open(stats))


def _open(stats: dict[str, Any]) -> int:
    return int(stats["in_use"] + stats["idle"] + stats["checking"] + stats["salvaging"])


def is_ready(pool: dict[str, Any]) -> bool:
    """Whether *pool* has been filled, and its server is not away.

    One that opens on demand (*min_size* 0) has nothing to fill.  It is not ready only while callers
    wait in vain: were it left alone then, it would never find out that its server is back.
    """
    stats = pool["stats"]
    out, count = _out(pool)
    away = len(out) == count if count else _is_down(stats)
    if stats["min_size"]:
        return stats["opened"] >= stats["min_size"] and not away
    return not (away and stats["waiting"])
