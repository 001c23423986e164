"""Many processes under one cap, simulated on the real decision and the rules of FleetLimit.

Nothing runs but ``share.grant``: a process here is a few numbers and does what ``FleetLimit`` does
with its share: asks each second or so, early if it is short or was told to have less, opens only
while its lease holds by a clock of its own that may run 2 % fast or slow, goes down to its floor
after that.  Time goes in ticks of 50 ms.  What callers of a process need at a time is given.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.measure import Row
from geventpool.fleet.share import MEMORY, Claim, Record, Report, grant, max_min

__all__ = ["SCENES", "Fleet", "Process", "Scene", "fleet_cap", "play", "unfairness"]

TICK = 0.05
LEASE, MARGIN, FLOOR = 10.0, 0.1, 1
TO_OPEN = 0.1  # seconds that a dial takes
IS_HELD = 0.5  # seconds for which a caller holds a connection, at most


@dataclass
class Process:
    """One process; *rate*: so many seconds its clock counts in one of the store's."""

    id: str
    rate: float = 1.0
    demand: int = 0
    has: int = 0
    open: int = 0
    number: int = 0
    generation: int = 0
    members: int = 1
    lease_ends: float = -math.inf  # of true time, as its own clock has it
    next_at: float = 0.0
    asked_at: float = -math.inf
    soon: float = 0.2
    told: int = 0  # what the store counts it with, by its last report
    paused_until: float = -math.inf
    cut_off_until: float = -math.inf
    alive: bool = True
    answered: bool = False
    wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def wants(self, now: float, cap: int) -> int:
        while self.wanted and self.wanted[0][0] < now - 30.0:
            self.wanted.popleft()
        usual = statistics.median([each for _, each in self.wanted]) if self.wanted else 0
        return min(cap, max(FLOOR, math.ceil(1.25 * self.demand), math.ceil(usual)))

    @property
    def soonest(self) -> float:
        return max(0.2, self.members / 1000)

    def paused(self, now: float) -> bool:
        return now < self.paused_until


@dataclass
class Trouble:
    """What is looked at: at each tick, and after a shift of the load."""

    most_open: int = 0
    most_over: int = 0  # over the cap, of those that are not paused past their lease
    floors_over: int = 0  # of it: processes that the store has forgotten or never known
    renewals: int = 0
    #: Of what is needed, or of the cap if that is less: how much is open and used, at each tick
    #: that is two renewals or more after a shift of the load.
    used: list[float] = field(default_factory=list)


class Fleet:
    """Processes, their store, and the time."""

    def __init__(self, count: int, cap: int, *, seed: int, drift: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.now, self.cap, self.drift = 0.0, cap, drift
        self.records: dict[str, Record] = {}
        self.learns_until = LEASE
        self.epochs = 0
        self.seen = Trouble()
        self.processes: list[Process] = []
        self._born = 0
        for _ in range(count):
            self.start()

    # What happens to it

    def start(self, generation: int = 0) -> Process:
        self._born += 1
        rate = 1.0 + self.random.uniform(-self.drift, self.drift)
        first = self.now + self.random.uniform(0, 1.0)
        made = Process(f"{self._born:06}", rate, generation=generation, next_at=first)
        self.processes.append(made)
        return made

    def kill(self, process: Process) -> None:
        """By SIGKILL: its sockets are closed by the kernel, and the store knows nothing of it."""
        process.alive, process.open = False, 0
        self.processes.remove(process)

    def release(self, process: Process) -> None:
        self.kill(process)
        self.records.pop(process.id, None)

    def empty_store(self) -> None:
        self.records.clear()
        self.epochs += 1
        self.learns_until = self.now + LEASE

    # What it does

    def run(self, seconds: float, *, watch: bool = False) -> None:
        """Let so much time pass; *watch*: measure utilisation and fairness in it."""
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            for process in self.processes:
                if not process.paused(self.now):
                    self._step(process)
            self._look(watch)

    def _step(self, process: Process) -> None:
        now = self.now
        if now >= process.lease_ends:
            process.has = (
                min(process.has, FLOOR)
                if process.answered
                else FLOOR * (now < process.cut_off_until)
            )
        if process.open > process.has:
            # Idle ones at once; those held, as they come back.
            held = min(process.open, process.demand)
            back = math.ceil(held * TICK / IS_HELD)
            process.open = max(process.has, min(process.open, held) - back)
        wanted = min(process.has, process.demand)
        if process.open < wanted:
            process.open += max(1, math.ceil((wanted - process.open) * TICK / TO_OPEN))
            process.open = min(process.open, wanted)
        short = process.demand > process.open >= process.has
        waited = now - process.asked_at
        has_less = max(process.open, process.has) < process.told
        early = (has_less and waited >= process.soonest) or (short and waited >= process.soon)
        if now >= process.next_at or early:
            self._renew(process, short)

    def _renew(self, process: Process, short: bool) -> None:
        now = self.now
        every = min(max(1.0, process.members / 250), LEASE / 4)
        process.next_at = now + every * self.random.uniform(0.9, 1.1)
        process.asked_at = now
        if now < process.cut_off_until:
            return
        self.seen.renewals += 1
        wants = process.wants(now, self.cap)
        process.wanted.append((now, math.ceil(1.25 * process.demand)))
        process.number += 1
        report = Report(
            "simulated",
            self.cap,
            process.id,
            used=process.open,
            has=process.has,
            needs=min(self.cap, process.demand),
            wants=wants,
            floor=FLOOR,
            lease=LEASE,
            generation=process.generation,
            number=process.number,
        )
        share, self.records = grant(self.records, report, now, learns_until=self.learns_until)
        rarest = max(0.5, process.members / 250)
        helped = not short or share != process.has
        process.soon = process.soonest if helped else min(2 * process.soon, rarest)
        process.told = max(process.open, process.has)
        process.has, process.answered = share, True
        process.members = sum(now < each.expires for each in self.records.values())
        process.lease_ends = now + LEASE * (1 - MARGIN) / process.rate

    def _look(self, watch: bool) -> None:
        seen, now = self.seen, self.now
        late = sum(
            each.open for each in self.processes if each.paused(now) and now >= each.lease_ends
        )
        unknown = sum(
            min(each.open, FLOOR)
            for each in self.processes
            if each.id not in self.records or now >= self.records[each.id].expires + MEMORY * LEASE
        )
        opened = sum(each.open for each in self.processes)
        seen.most_open = max(seen.most_open, opened)
        over = opened - late - self.cap
        seen.most_over = max(seen.most_over, over)
        seen.floors_over = max(seen.floors_over, unknown if over > 0 else 0)
        if watch:
            used = sum(min(each.open, each.demand) for each in self.processes)
            demand = sum(each.demand for each in self.processes)
            seen.used.append(used / max(1, min(demand, self.cap)))


def unfairness(fleet: Fleet) -> int:
    """By how many connections a share is at most from what max-min says of the needs."""
    live = [each for each in fleet.processes if not each.paused(fleet.now)]
    floors = FLOOR * len(fleet.records)
    claims = [Claim(each.id, max(0, each.demand - FLOOR)) for each in live]
    fair = max_min(claims, fleet.cap - floors)
    # Each may open its floor, needed or not, and what none needs is shared for wants alone.
    return max(abs(min(each.has, max(FLOOR, each.demand)) - FLOOR - fair[each.id]) for each in live)


# What happens


def shift(fleet: Fleet, load: float = 1.3) -> None:
    """Let other processes be busy: one in ten needs ten times what the others do; all together
    need *load* times the cap."""
    hot = set(fleet.random.sample(range(len(fleet.processes)), len(fleet.processes) // 10))
    unit = load * fleet.cap / (len(fleet.processes) + 9 * len(hot))
    for place, process in enumerate(fleet.processes):
        process.demand = round(unit * (10 if place in hot else 1))


def surge(fleet: Fleet) -> None:
    """Let those that are not busy need four times as much; the others hold what they have."""
    busiest = max(each.demand for each in fleet.processes)
    for process in fleet.processes:
        if process.demand < busiest:
            process.demand *= 4


def nothing(fleet: Fleet) -> None:
    fleet.run(5.0)


def kills(fleet: Fleet) -> None:
    """One in ten is killed; its successor starts a second later."""
    for _ in range(len(fleet.processes) // 10):
        fleet.kill(fleet.random.choice(fleet.processes))
    fleet.run(1.0)
    for _ in range(round(len(fleet.processes) / 9)):
        fleet.start()
    fleet.run(LEASE + 2)


def deploy(fleet: Fleet) -> None:
    """All are replaced, a tenth at a time: the successors start first, the old give back."""
    for old in [fleet.processes[place::10] for place in range(10)]:
        demands = [each.demand for each in old]
        for demand in demands:
            fleet.start(generation=1).demand = demand
        fleet.run(1.0)
        for each in old:
            each.demand = 0
        fleet.run(1.0)
        for each in old:
            fleet.release(each)
    fleet.run(2.0)


def emptied(fleet: Fleet) -> None:
    """The store forgets all."""
    fleet.empty_store()
    fleet.run(LEASE + 1)


def partition(fleet: Fleet) -> None:
    """A third does not reach the store for 30 s."""
    for process in fleet.processes[::3]:
        process.cut_off_until = fleet.now + 30.0
    fleet.run(31.0)


def paused(fleet: Fleet) -> None:
    """One in a hundred is stopped for longer than its lease, with what it has open."""
    for process in fleet.processes[::100]:
        process.paused_until = fleet.now + LEASE + 5
    fleet.run(LEASE + 6)


@dataclass(frozen=True)
class Scene:
    """Something that happens to *count* processes with a cap of *each* for every one."""

    what: str
    happens: Callable[[Fleet], None]


SCENES = [
    Scene("shifts of the load only", nothing),
    Scene("one in ten killed", kills),
    Scene("rolling deploy", deploy),
    Scene("store emptied", emptied),
    Scene("a third cut off for 30 s", partition),
    Scene("one in 100 paused past its lease", paused),
]


def play(scene: Scene, count: int, *, seed: int, shifts: int = 2) -> tuple[Fleet, int]:
    """The fleet after the scene, and how unfair its shares were at the worst of the shifts."""
    fleet = Fleet(count, 3 * count, seed=seed)
    shift(fleet)
    fleet.run(LEASE + 3)  # a new store learns for one lease
    scene.happens(fleet)
    worst = 0
    for _ in range(shifts):
        for change in (partial(shift, load=0.9), surge):
            change(fleet)
            fleet.run(2.2 * min(max(1.0, count / 250), LEASE / 4))
            fleet.run(3.0, watch=True)
            worst = max(worst, unfairness(fleet))
    return fleet, worst


def fleet_cap(quick: bool) -> list[Row]:
    """The rows of the table: for each scene the cap, the use of it, and fairness."""
    rows = [row for scene in SCENES for row in _judge(scene, 100, shifts=2)]
    rows += [_against_static(100), _against_semaphore(100)]
    if not quick:
        rows += [row for scene in SCENES for row in _judge(scene, 1000, shifts=1)]
    return rows


def _judge(scene: Scene, count: int, *, shifts: int) -> list[Row]:
    fleet, unfair = play(scene, count, seed=count, shifts=shifts)
    seen, cap = fleet.seen, fleet.cap
    name = f"fleet of {count:,}, {scene.what}"
    most = seen.most_over + cap - seen.floors_over
    used = min(seen.used)
    what = f"{name}: used two renewals after a shift | needed or cap"
    return [
        Row(f"{name}: open | cap", f"{most}", f"{cap}", most / cap, 1.0),
        Row(what, f"{used:.3f}", "1", used, 0.95, at_least=True),
        Row(f"{name}: off from max-min | one connection", f"{unfair}", "1", unfair, 1.0),
    ]


def _against_static(count: int) -> Row:
    """What hot processes get of a lease, and of an equal part of the cap each."""
    fleet = Fleet(count, 3 * count, seed=count)
    shift(fleet, load=0.95)
    fleet.run(LEASE + 5)
    top = max(each.demand for each in fleet.processes)
    hot = [each for each in fleet.processes if each.demand == top]
    leased = sum(min(each.open, each.demand) for each in hot)
    static = sum(min(fleet.cap // count, each.demand) for each in hot)
    what = f"fleet of {count:,}: connections of hot processes | static split"
    return Row(what, f"{leased}", f"{static}", leased / static, 3.0, at_least=True)


def _against_semaphore(count: int) -> Row:
    """How often the store is asked, and would be for a permit for each use: to get it, and to give
    it back."""
    fleet = Fleet(count, 3 * count, seed=count)
    shift(fleet)
    fleet.run(LEASE + 5)
    asked = fleet.seen.renewals
    shift(fleet)
    fleet.run(10.0)
    leased = (fleet.seen.renewals - asked) / 10.0
    permits = 2 * sum(min(each.open, each.demand) for each in fleet.processes) / IS_HELD
    what = f"fleet of {count:,}, uses of {IS_HELD} s: store calls a second | a semaphore"
    return Row(what, f"{leased:.0f}", f"{permits:.0f}", leased / permits, 0.5)
