"""The picture: goodput over time, of each pool."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.overload.pools import CODEL, DEADLINE, PEERS, PLAIN, SALVAGE
from benchmarks.overload.scenario import Outcome

__all__ = ["draw"]

_BIN = 0.5  # seconds

# Colours that are told apart by those who see few of them (Okabe and Ito), and lines without any.
_STYLES: dict[str, dict[str, Any]] = {
    PLAIN: {"color": "#D55E00", "linestyle": "-", "linewidth": 2.2},
    CODEL: {"color": "#0072B2", "linestyle": "-", "linewidth": 2.2},
    SALVAGE: {"color": "#009E73", "linestyle": "--"},
    DEADLINE: {"color": "#CC79A7", "linestyle": "-."},
    "SQLAlchemy": {"color": "#009E73", "linestyle": "--"},
    "psycopg_pool": {"color": "#CC79A7", "linestyle": "-."},
    "redis": {"color": "#E69F00", "linestyle": "-"},
}
_NAMES = {
    PLAIN: "no cure",
    CODEL: "overload=CoDel()",
    SALVAGE: "a salvage hook",
    DEADLINE: "with Deadline(1.0)",
    "SQLAlchemy": "SQLAlchemy QueuePool",
    "redis": "redis-py Blocking…Pool",
}


def draw(outcomes: dict[str, Outcome], picture: Path) -> None:
    """Draw *outcomes*, by the names of their pools, into the PNG file *picture*."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, 2, sharex=True, sharey=True, figsize=(9, 4.8), layout="constrained"
    )
    ours, others = (PLAIN, SALVAGE, DEADLINE, CODEL), (*PEERS, CODEL)
    _panel(panels[0], "geventpool", {name: outcomes[name] for name in ours})
    _panel(panels[1], "other pools", {name: outcomes[name] for name in others})
    panels[0].set_ylabel("answers per second, in the callers' time")
    scenario = outcomes[PLAIN].scenario
    figure.suptitle(
        "10 connections, queries of 20 ms, callers that have 1 s each.  Asked is 0.8 × what can be"
        f" served,\nthen {scenario.load:g} × for {scenario.seconds:g} s (grey), then 0.8 × again",
        fontsize=11,
    )
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=80, pil_kwargs={"optimize": True})
    pyplot.close(figure)


def _panel(panel: Any, title: str, outcomes: dict[str, Outcome]) -> None:
    first = next(iter(outcomes.values()))
    (begin, end), scenario = first.overload, first.scenario
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel("seconds since more was asked than can be served")
    panel.axvspan(0.0, end - begin, color="0.92")
    capacity = first.capacity
    panel.axhline(capacity, color="0.5", linewidth=0.8)
    right = scenario.seconds + scenario.after - 0.3
    panel.text(right, capacity + 8, "can be served", ha="right", fontsize=9, color="0.35")
    for name, outcome in outcomes.items():
        panel.plot(*_curve(outcome), label=_NAMES.get(name, name), **_STYLES[name])
    panel.set_ylim(0, 1.2 * capacity)
    panel.set_xlim(-scenario.before, scenario.seconds + scenario.after)
    panel.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=9
    )


def _curve(outcome: Outcome) -> tuple[list[float], list[float]]:
    """Moments, 0 being the beginning of the overload, and the answers per second round them."""
    begin, end = outcome.overload[0], outcome.after[1]
    first, last = round((outcome.start - begin) / _BIN), int((end - begin) / _BIN)
    found = Counter((at - begin) // _BIN for at in outcome.record.answers)
    bins = range(first, last)
    return [(each + 0.5) * _BIN for each in bins], [found[each] / _BIN for each in bins]
