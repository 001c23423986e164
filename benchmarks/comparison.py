"""How the peers do, side by side.  Nothing here has a bar."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.measure import interleaved, timed
from benchmarks.peers import PEERS, Connection, Peer, version
from benchmarks.rows import crowd, spike
from benchmarks.torture import capacity_left

__all__ = ["HEADINGS", "compare"]

HEADINGS = (
    "pool",
    "uncontended, ns (best)",
    "100 on 10, ns (best)",
    "most / least served",
    "spike, ms",
    "extra connections",
    "left of 4",
)

#: These are no pools: they have nothing to open, and nothing to lose.
_FLOOR = ("gevent LifoQueue", "gevent BoundedSemaphore + deque")


def compare(quick: bool) -> list[tuple[str, ...]]:
    """A line for each pool, in the order of HEADINGS."""
    rounds, operations = (3, 1000) if quick else (15, 3000)
    pools = {name: make(10, Connection) for name, make in PEERS.items()}
    served: dict[str, list[int]] = {}

    def alone(peer: Peer) -> Callable[[], float]:
        return lambda: timed(lambda: peer.cycle(operations)) / operations * 1e9

    def together(name: str, peer: Peer) -> Callable[[], float]:
        def run() -> float:
            seconds, served[name] = crowd(peer, 100, operations)
            return seconds * 1e9

        return run

    uncontended = interleaved(rounds, **{name: alone(peer) for name, peer in pools.items()})
    contended = interleaved(3, **{name: together(name, peer) for name, peer in pools.items()})
    lines = []
    for name, make in PEERS.items():
        pools[name].close()
        milliseconds = extra = left = "-"
        if name not in _FLOOR:
            left = capacity_left(name)
            milliseconds, extra = (f"{figure:.0f}" for figure in spike(make))
        lines.append(
            (
                f"{name} {version(name)}",
                f"{min(uncontended[name]):.0f}",
                f"{min(contended[name]):.0f}",
                f"{max(served[name])} / {min(served[name])}",
                milliseconds,
                extra,
                left,
            )
        )
    return lines
