"""What snapshots say, as families of samples, and those in the text format of Prometheus.

Needs nothing but the snapshots: of this process, or of all workers, as ``gather()`` has them.  Of
several processes each sample has the label *pid*: then the counters of a worker that ends take
nothing with them, which a sum would show as a restart of all; sum them where they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["CONTENT_TYPE", "Family", "families", "metrics_text"]

#: What a response with ``metrics_text`` is.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("in_use", "idle", "connecting", "checking", "salvaging", "closing")
_Labels = dict[str, str]


class Family:
    """Samples of one name.  Two of the same labels (pools of one name, say) become one, by
    *combine*."""

    def __init__(
        self, name: str, kind: str, text: str, combine: Callable[[float, float], float]
    ) -> None:
        self.name = name
        self.kind = kind  # "gauge", "counter" or "histogram"
        self.help = text
        self._combine = combine
        self._samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def add(self, value: float, labels: Mapping[str, str], suffix: str = "") -> None:
        """Have one more sample."""
        key = suffix, tuple(labels.items())
        known = self._samples.get(key)
        self._samples[key] = value if known is None else self._combine(known, value)

    def samples(self) -> Iterable[tuple[str, _Labels, float]]:
        """The name, the labels and the value of each."""
        for (suffix, labels), value in self._samples.items():
            yield self.name + suffix, dict(labels), value


def _sum(one: float, other: float) -> float:
    return one + other


#: (name, what it is, the figure of stats)
_GAUGES = (
    ("waiters", "callers that wait in line", "waiting", _sum),
    ("waiters_max", "the most callers that ever stood in line", "waiting_max", max),
    ("connections_max", "connections that there may be at most", "maximum", _sum),
    ("down", "1: nothing is open and dials fail, or callers are sent away for it", "down", max),
    ("longest_held_seconds", "for how long a connection is held by now", "longest_held", max),
    ("hub_lag_seconds", "how late a timer was, at worst in the last minute", "hub_lag", max),
)
#: (the figure of a fleet, what it is)
_FLEET = (
    ("cap", "connections that all processes of a cap may have together", max),
    ("share", "connections that this process may have of a shared cap", _sum),
    ("used", "connections that this process has open under a shared cap", _sum),
    ("needs", "callers that hold or wait for a connection under a shared cap", _sum),
    ("wants", "connections that this process would like under a shared cap", _sum),
    ("members", "processes that share a cap, as the store said last", max),
)
_COUNTERS = (
    ("checkouts_total", "connections given to callers", "acquired"),
    ("checkins_total", "connections that came back fit for use", "released"),
    ("checkout_timeouts_total", "callers that waited in vain", "timed_out"),
    ("abandoned_total", "callers that were killed or timed out in line", "abandoned"),
    ("dials_total", "dials begun", "dialed"),
    ("dial_failures_total", "dials that failed", "dial_failed"),
    ("keepalives_total", "keepalives of the pool's own", "checked"),
    ("held_long_total", "uses that lasted longer than leak_threshold", "held_long"),
)
#: (name, what it is, the label, its values and the figures)
_KINDS = (
    (
        "refusals_total",
        "callers sent away",
        "reason",
        {
            "full": "refused",
            "down": "refused_down",
            "shed": "shed",
            "dial": "refused_dial",
            "limit": "refused_limit",
        },
    ),
    (
        "salvages_total",
        "connections whose use was cut short, and what became of them",
        "outcome",
        {"salvaged": "salvaged", "failed": "salvage_failed"},
    ),
)
_HISTOGRAMS = (
    ("wait_seconds", "waits of callers that found nothing idle and were served", "wait"),
    ("use_seconds", "from hand-out to return", "use"),
    ("create_seconds", "dials that succeeded", "connect"),
)


class _Families:
    """All there are, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Family] = {}

    def add(
        self,
        name: str,
        kind: str,
        text: str,
        value: float | None,
        labels: _Labels,
        suffix: str = "",
        combine: Callable[[float, float], float] = _sum,
    ) -> None:
        """One sample; None stands for no bound, and is left out."""
        if value is None:
            return
        family = self.found.get(name)
        if family is None:
            family = self.found[name] = Family(f"geventpool_{name}", kind, text, combine)
        family.add(float(value), labels, suffix)

    def add_pool(self, pool: Mapping[str, Any], process: _Labels) -> None:
        stats, labels = pool["stats"], {"pool": pool["name"], **process}
        for state in _STATES:
            text = "connections, by what they do"
            self.add("connections", "gauge", text, stats[state], {**labels, "state": state})
        for name, text, figure, combine in _GAUGES:
            self.add(name, "gauge", text, stats[figure], labels, combine=combine)
        for name, text, figure in _COUNTERS:
            self.add(name, "counter", text, stats[figure], labels)
        for name, text, label, figures in _KINDS:
            for value, figure in figures.items():
                self.add(name, "counter", text, stats[figure], {**labels, label: value})
        for reason, count in pool["closed"].items():
            text = "connections that left the pool, by why"
            self.add("discarded_total", "counter", text, count, {**labels, "reason": reason})
        for name, text, figure in _HISTOGRAMS:
            self.add_histogram(name, text, stats[figure], labels)
        self.add_parts(pool, labels)

    def add_histogram(
        self, name: str, text: str, duration: Mapping[str, Any], labels: _Labels
    ) -> None:
        histogram, seen = duration["histogram"], 0
        bounds = [*map(_number, histogram["bounds"]), "+Inf"]
        for bound, count in zip(bounds, histogram["counts"], strict=True):
            seen += count
            self.add(name, "histogram", text, seen, {**labels, "le": bound}, "_bucket")
        self.add(name, "histogram", text, duration["sum"], labels, "_sum")
        self.add(name, "histogram", text, seen, labels, "_count")

    def add_parts(self, pool: Mapping[str, Any], labels: _Labels) -> None:
        """The endpoints of an EndpointPool, the servers of a manager."""
        for each in pool["endpoints"]:
            stats, own = each["stats"], {**labels, "endpoint": each["endpoint"]}
            text = "connections to an endpoint, by what they do"
            for state in _STATES:
                of_state = {**own, "state": state}
                self.add("endpoint_connections", "gauge", text, stats[state], of_state)
            text = "callers that wait for one to an endpoint"
            self.add("endpoint_waiters", "gauge", text, stats["waiting"], own)
        for each in pool["addresses"]:
            own = {**labels, "address": each["address"]}
            up = each["state"] != "down"
            self.add("server_up", "gauge", "1: the server is not marked down", up, own, "", min)
            text = "connections to a server"
            self.add("server_connections", "gauge", text, each["connections"], own)
            text = "uses of a server that last just now"
            self.add("server_outstanding", "gauge", text, each["outstanding"], own)

    def add_fleet(self, fleet: Mapping[str, Any], process: _Labels) -> None:
        """A cap that the process shares with others."""
        labels = {"fleet": fleet["name"], **process}
        for figure, text, combine in _FLEET:
            self.add(f"fleet_{figure}", "gauge", text, fleet[figure], labels, combine=combine)
        if fleet["age"] is not None:
            text = "how old what the store of a shared cap knows of this process is"
            self.add("fleet_age_seconds", "gauge", text, fleet["age"], labels, "", max)
        text = "1: the store of a cap over many processes answers"
        self.add("fleet_store_up", "gauge", text, fleet["lost_for"] is None, labels, "", min)


def families(workers: Sequence[Mapping[str, Any]], *, pid: bool = True) -> list[Family]:
    """What the snapshots of *workers* say; *pid*: with the label that tells them apart.

    One that did not answer has ``geventpool_worker_up`` 0, and nothing else.
    """
    found = _Families()
    for worker in workers:
        process = {"pid": str(worker["pid"])} if pid else {}
        answered = worker["pools"] is not None
        if pid:
            text = "1: the process has answered in time"
            found.add("worker_up", "gauge", text, answered, process)
        for pool in worker["pools"] or ():
            found.add_pool(pool, process)
        for fleet in worker.get("fleets") or ():
            found.add_fleet(fleet, process)
    return list(found.found.values())


def metrics_text(workers: Sequence[Mapping[str, Any]]) -> str:
    """The snapshots of *workers*, ``gather(holders=False)`` or ``[snapshot()]``, in Prometheus's
    text format 0.0.4: the body of a response of the type ``CONTENT_TYPE``.  Does not block.

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines = []
    for family in families(workers):
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for name, labels, value in family.samples():
            shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            lines.append(f"{name}{{{shown}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)
