"""How even the load is when each process uses a part of a large service: without sockets."""

from __future__ import annotations

from collections import Counter

from benchmarks.measure import Row
from geventpool.addresses import AddressGroup, AnyAddress
from geventpool.manager import Subset

__all__ = ["Part", "parts", "subset"]

#: Which servers each process uses.
Part = frozenset[AnyAddress]

_SIZE = 12


class _Place:
    def __init__(self, place: int) -> None:
        self.place = place


def parts(group: AddressGroup, processes: int, size: int, *, places: bool) -> list[Part]:
    """What each of so many processes uses of *group*, by their keys or by their places."""
    members = range(processes)
    if places:
        return [Subset(size, fleet=_Place(number)).of(group) for number in members]
    return [Subset(size, key=f"process {number}").of(group) for number in members]


def subset(quick: bool) -> list[Row]:
    """400 processes, 200 servers: connections, the busiest server, and what a new server moves."""
    processes, servers = (100, 50) if quick else (400, 200)
    addresses = [f"10.0.{number >> 8}.{number & 255}:80" for number in range(servers + 1)]
    group, larger = AddressGroup.of(*addresses[:-1]), AddressGroup.of(*addresses)
    rows = []
    for how, places, most, furthest in (("keys", False, 1.7, 2.0), ("places", True, 1.1, 10.0)):
        chosen = parts(group, processes, _SIZE, places=places)
        load = Counter(each for part in chosen for each in part)
        busiest, average = max(load.values()), sum(load.values()) / servers
        after = parts(larger, processes, _SIZE, places=places)
        moved = sum(len(new - old) for new, old in zip(after, chosen, strict=True))
        fair = processes * _SIZE / (servers + 1)
        what = f"{processes} processes, Subset({_SIZE}) of {servers} servers, by {how}"
        connections, all_of_them = sum(load.values()), processes * servers
        rows += [
            Row(
                f"{what}: connections | without",
                str(connections),
                str(all_of_them),
                connections / all_of_them,
                _SIZE / servers,
            ),
            Row(
                f"{what}: the busiest server | the average",
                str(busiest),
                f"{average:.1f}",
                busiest / average,
                most,
            ),
            Row(
                f"{what}: moved by one server more | its part",
                str(moved),
                f"{fair:.1f}",
                moved / fair,
                furthest,
            ),
        ]
    return rows
