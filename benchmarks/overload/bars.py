"""Which overloads are measured, and how the outcomes are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.overload.picture import draw
from benchmarks.overload.pools import BOTH, CODEL, OURS, PEERS, PLAIN, SALVAGE
from benchmarks.overload.scenario import (
    NORMAL,
    Outcome,
    Scenario,
    in_virtual_time,
    on_real_sockets,
    real_capacity,
)
from benchmarks.peers import version

__all__ = ["HEADINGS", "overload"]

HEADINGS = (
    "overload",
    "dial, ms",
    "retries",
    "pool",
    "goodput",
    "answered after",
    "normal after, s",
    "re-dials per 1,000",
    "in order",
    "",
)

LEAST_GOODPUT = 0.95
LATEST_NORMAL = 2.0  # seconds
MOST_REDIALS = 1.0  # per 1,000 requests
MOST_REFUSED = 0.01  # percent, at 0.8 times what can be served
MOST_REFUSED_OF_BURSTS = 1.0  # percent, at as much, 25 at a time
LOST = 0.5  # of what is asked: a pool that answers less is lost

#: (times what can be served, for so many seconds)
_LOADS = ((1.1, 20.0), (1.5, 10.0), (2.0, 8.0), (5.0, 4.0))
_HEADLINE = Scenario(1.5, 10.0)
_EVEN = replace(_HEADLINE, even=True)
_OVERLOADS = [
    *(
        Scenario(load, seconds, dial, retries)
        for load, seconds in _LOADS
        for dial in (0.005, 0.1)
        for retries in (0, 2)
    ),
    _EVEN,
    *(Scenario(NORMAL, 10.0, retries=retries, slowness=3.0) for retries in (0, 2)),
]
_CALM = Scenario(NORMAL, 100.0)
_BURSTS = Scenario(NORMAL, 400.0, burst=25)  # one minute of them is not like another
_REAL = Scenario(1.5, 10.0, before=5.0, after=15.0)

Outcomes = dict[str, list[Outcome]]  # by the name of the pool


def overload(quick: bool, picture: Path | None) -> tuple[list[Row], list[tuple[str, ...]]]:
    """The bars; and a line for each run, in the order of HEADINGS.

    The runs on real sockets are drawn into the file *picture*.  With *quick*, there is one overload
    in virtual time, and those on real sockets take a third of the time.
    """
    overloads = [_HEADLINE] if quick else _OVERLOADS
    virtual: Outcomes = {name: [] for name in OURS}
    for scenario in overloads:
        for name in OURS if scenario.load == _HEADLINE.load else (PLAIN, CODEL, BOTH):
            virtual[name].append(in_virtual_time(OURS[name], scenario))
    calm, bursts = (in_virtual_time(OURS[CODEL], each) for each in (_CALM, _BURSTS))

    part = 1 / 3 if quick else 1.0
    scenario = replace(
        _REAL, before=_REAL.before * part, seconds=_REAL.seconds * part, after=_REAL.after * part
    )
    capacity = real_capacity(10.0 * part)
    real = {
        name: [on_real_sockets(make, scenario, capacity)]
        for name, make in {**OURS, **PEERS}.items()
    }
    if picture is not None:
        draw({name: outcome for name, [outcome] in real.items()}, picture)
    return (
        [
            *_bars("virtual, CoDel", virtual[CODEL]),
            *_bars("virtual, salvage alone", [o for o in virtual[SALVAGE] if _for_salvage(o)]),
            _bar("virtual, CoDel, refused at 0.8 × load, %", 100 * calm.refused, MOST_REFUSED),
            _bar(
                "virtual, CoDel, refused of bursts of 25, %",
                100 * bursts.refused,
                MOST_REFUSED_OF_BURSTS,
            ),
            *_bars("real sockets, CoDel", real[CODEL]),
            *_bars("real sockets, salvage alone", real[SALVAGE]),
            *_lost("virtual", [each for each in virtual[PLAIN] if each.scenario == _HEADLINE]),
            *_lost("real sockets", real[PLAIN]),
        ],
        [*_lines("virtual", virtual), *_lines(f"of {capacity:.0f}/s, real", real)],
    )


def _bars(what: str, outcomes: list[Outcome]) -> list[Row]:
    """The worst of *outcomes*, against each of the bars."""
    runs = f" ({len(outcomes)} runs)" if len(outcomes) > 1 else ""
    goodput = min(each.goodput for each in outcomes)
    astray = sum(not each.record.in_order for each in outcomes)
    return [
        _bar(f"{what}: goodput{runs}", goodput, LEAST_GOODPUT, at_least=True),
        _bar(f"{what}: normal after, s", max(o.normal_after for o in outcomes), LATEST_NORMAL),
        _bar(f"{what}: re-dials per 1,000", max(o.redials for o in outcomes), MOST_REDIALS),
        _bar(f"{what}: runs with hand-overs out of order", astray, 0),
    ]


def _lost(where: str, outcomes: list[Outcome]) -> list[Row]:
    """What goes for nothing without a cure: else the bars above would prove nothing."""
    after = max(each.answered_after for each in outcomes)
    goodput = max(each.goodput for each in outcomes)
    return [
        _bar(f"{where}, without a cure: goodput, must be missed", goodput, LOST),
        _bar(f"{where}, without a cure: answered after, must be missed", after, LOST),
    ]


def _bar(what: str, figure: float, bar: float, *, at_least: bool = False) -> Row:
    return Row(f"overload, {what} | {bar:g}", f"{figure:.4g}", f"{bar:g}", figure, bar, at_least)


def _for_salvage(outcome: Outcome) -> bool:
    """Whether salvage alone is a cure for it: not where callers ask again, which makes more than
    1.5 × load of it, nor for queries of one length, which it cancels just before their end."""
    return not outcome.scenario.retries and not outcome.scenario.even


def _ok(outcome: Outcome) -> bool:
    return all(row.ok for row in _bars("", [outcome]))


def _lines(where: str, outcomes: Outcomes) -> list[tuple[str, ...]]:
    return [
        (
            f"{outcome.scenario}, {where}",
            f"{1000 * outcome.scenario.dial:g}",
            str(outcome.scenario.retries),
            f"{name} {version(name)}" if name in PEERS else name,
            f"{outcome.goodput:.2f}",
            f"{outcome.answered_after:.3f}",
            f"{outcome.normal_after:.2f}",
            f"{outcome.redials:.1f}",
            "yes" if outcome.record.in_order else "no",
            "PASS" if _ok(outcome) else "FAIL",
        )
        for name, several in outcomes.items()
        for outcome in several
    ]
