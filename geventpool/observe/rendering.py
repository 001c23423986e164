"""The status page as HTML: rows from snapshots.  Every text that is not of this file is escaped."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from geventpool.observe.charts import chart
from geventpool.observe.history import MINUTES, SECONDS
from geventpool.observe.trouble import BAD, WELL, troubles

__all__ = ["number", "pool_row", "seconds", "status_line", "worker_head", "worker_tail"]

_MOST_HOLDERS, _MOST_PLACES = 50, 100
_IN_THE_ROW = ("in_use", "idle", "waiting")
_ALL_WELL = "all well"
_CHARTS = (("in_use", "in use"), ("waiting", "waiting"), ("wait", "wait"))


def seconds(value: float | None) -> str:
    """A time as people read it."""
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return f"{value * 1000:.2f} ms"
    if value < 0.9995:
        return f"{value * 1000:.3g} ms" if value < 0.1 else f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def number(value: float | None) -> str:
    if value is None:
        return "no bound"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def status_line(workers: Sequence[dict[str, Any]]) -> str:
    """One sentence on all of them, which a screen reader says when it changes."""
    pools = [pool for worker in workers for pool in worker["pools"] or ()]
    mute = sum(worker["pools"] is None for worker in workers)
    bad = sum(_level(pool) == BAD for pool in pools)
    level = BAD if bad or mute else WELL
    parts = [f"{bad} in trouble" if bad else "none in trouble"] if pools else []
    parts += [f"{mute} of the workers silent"] if mute else []
    text = f"{_count(len(workers), 'worker')}, {_count(len(pools), 'pool')}"
    text = f"{text}: {', '.join(parts)}" if parts else text
    return f'<p id="status" class="{level}" role="status">{text}.</p>'


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _level(pool: dict[str, Any]) -> str:
    found = troubles(pool)
    return found[0].level if found else WELL


def worker_head(worker: dict[str, Any]) -> str:
    """The beginning of a worker's section."""
    pid = int(worker["pid"])
    text = f'<section data-key="{pid}" aria-labelledby="w{pid}"><h2 id="w{pid}">worker {pid}</h2>'
    if worker["pools"] is None:
        why = escape(str(worker["error"]))
        return f'{text}<p class="silent"><b class="tag bad">silent</b> {why}</p>'
    if not worker["pools"]:
        text += "<p>It has no pool that is open.</p>"
    return text + "".join(_table("Caps shared with other processes", _fleet_rows(worker)))


def _fleet_rows(worker: dict[str, Any]) -> list[list[Any]]:
    fleets = worker.get("fleets") or ()
    names = ("name", "cap", "share", "used", "needs", "wants", "members")
    return [
        [*names, "age", "store"],
        *(
            [
                *(each[name] for name in names),
                seconds(each["age"]),
                "answers"
                if each["lost_for"] is None
                else f"lost for {seconds(each['lost_for'])}: {each['last_error']}",
            ]
            for each in fleets
        ),
    ]


def worker_tail() -> str:
    return "</section>"


def pool_row(pool: dict[str, Any], opened: Collection[str]) -> str:
    """The row of a pool; *opened* are the keys of those whose inside is shown."""
    key, found = pool["key"], troubles(pool)
    level = found[0].level if found else WELL
    tags = [(each.level, each.word) for each in found] or [(WELL, _ALL_WELL)]
    shown = "".join(f'<b class="tag {each}">{escape(word)}</b>' for each, word in tags)
    history = pool.get("history") or {"minute": {}, "hour": {}}
    is_open = key in opened
    inside = _inside(pool, found, history) if is_open else _closed(key, opened)
    return (
        f'<details class="pool {level}" data-key="{escape(key)}"{" open" if is_open else ""}>'
        f'<summary><span class="who"><b class="name">{escape(pool["name"])}</b>'
        f' <i class="kind">{escape(pool["kind"])}</i></span><span class="tags">{shown}</span>'
        f'<span class="figures">{_row_figures(pool["stats"], history)}</span>'
        f'<span class="charts">{_row_charts(pool["stats"], history["minute"])}</span></summary>'
        f'<div class="inside">{inside}</div></details>'
    )


def _row_figures(stats: dict[str, Any], history: dict[str, Any]) -> str:
    minute = history["minute"]
    most = "" if stats["maximum"] is None else f"of {number(stats['maximum'])} "
    figures = (
        (number(stats["in_use"]), f"{most}in use"),
        (number(stats["idle"]), "idle"),
        (number(stats["waiting"]), "waiting"),
        (seconds(_last(minute, "wait")), "wait"),
        (seconds(history.get("wait_p99", 0.0)), "p99 wait"),
        (f"{_last(minute, 'served'):,.0f}", "a second"),
    )
    return "".join(
        f'<span class="figure"><b>{value}</b> <i>{called}</i></span>' for value, called in figures
    )


def _row_charts(stats: dict[str, Any], minute: dict[str, Any]) -> str:
    use = chart(
        f"the last minute: {_span(minute, 'in_use')} in use, {_span(minute, 'waiting')} waiting",
        ("use", minute.get("in_use", ())),
        ("queue", minute.get("waiting", ())),
        places=SECONDS,
        top=stats["maximum"] if (stats["maximum"] or 0) < 1000 else None,
    )
    waits = chart(
        f"wait in the last minute: {seconds(max(minute.get('wait') or [0.0]))} at most",
        ("wait", minute.get("wait", ())),
        places=SECONDS,
        top=0.001,
    )
    return use + waits


def _last(minute: dict[str, Any], name: str) -> float:
    values = minute.get(name)
    return float(values[-1]) if values else 0.0


def _span(minute: dict[str, Any], name: str) -> str:
    values = minute.get(name) or [0]
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def _closed(key: str, opened: Collection[str]) -> str:
    """What is shown until it is fetched; without JavaScript, how to get it."""
    query = urlencode([("open", each) for each in (*sorted(opened), key)])
    return f'<p><a href="?{escape(query)}">Show who holds what</a></p>'


# Inside


def _inside(pool: dict[str, Any], found: Iterable[Any], history: dict[str, Any]) -> str:
    parts = [*_troubles(found), _history(history), *_holders(pool["holders"] or ())]
    parts += _table("Addresses", _address_rows(pool["addresses"]))
    parts += _table("Endpoints", _endpoint_rows(pool["endpoints"]))
    parts += _errors(pool["stats"])
    parts += _counted("Callers that got no connection, by why", "callers", pool.get("refusals", {}))
    parts += _counted("Closed, by reason", "connections", pool["closed"])
    parts += _durations(pool["stats"])
    parts += _figures(pool["stats"])
    return "".join(parts)


def _troubles(found: Iterable[Any]) -> Iterator[str]:
    rows = [
        f'<li><b class="tag {each.level}">{escape(each.word)}</b> {escape(each.text)}.</li>'
        for each in found
    ]
    if rows:
        yield f'<ul class="plain">{"".join(rows)}</ul>'


def _history(history: dict[str, Any]) -> str:
    charts = []
    for span, places in (("minute", SECONDS), ("hour", MINUTES)):
        for name, called in _CHARTS:
            values = history[span].get(name, ())
            most = max(values, default=0)
            said = seconds(most) if name == "wait" else number(most)
            kind = {"in_use": "use", "waiting": "queue"}.get(name, name)
            drawn = chart(
                f"{called}, last {span}: at most {said}",
                (kind, values),
                places=places,
                top=0.001 if name == "wait" else 1,
            )
            text = f"{called}, last {span}: at most <b>{said}</b>"
            charts.append(f"<figure>{drawn}<figcaption>{text}</figcaption></figure>")
    return f'<div class="history">{"".join(charts)}</div>'


def _holders(holders: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"<h3>Holders ({len(holders)})</h3>"
    if not holders:
        yield "<p>Nothing is held just now.</p>"
        return
    rows = []
    for place, holder in enumerate(holders[:_MOST_HOLDERS]):
        who = holder["greenlet"] or "none: the greenlet has ended"
        where = f" of {holder['endpoint']}" if holder["endpoint"] else ""
        stacks = "".join(
            f"<p>{title}</p><pre>{escape(stack.rstrip())}</pre>"
            for title, stack in (
                ("Now at", holder["stack"]),
                ("Acquired at", holder["where"]),
            )
            if stack
        )
        key = escape(f"{place} {who}")
        since = f"<b>{seconds(holder['age'])}</b>{_innermost(holder['stack'])}"
        rows.append(
            f'<details class="holder" data-key="{key}"><summary>{since}{escape(where)}'
            f" by {escape(who)}</summary>{stacks}</details>"
        )
    yield "".join(rows)
    if len(holders) > _MOST_HOLDERS:
        yield f"<p>and {len(holders) - _MOST_HOLDERS} more, which hold it for less long</p>"


def _innermost(stack: str | None) -> str:
    """The line of the program that it waits in, as a hint in the row."""
    lines = [line.strip() for line in (stack or "").splitlines() if line.startswith("  File ")]
    own = [line for line in lines if "/gevent/" not in line] or lines
    return f" in <code>{escape(own[-1].rpartition(', in ')[2])}</code>" if own else ""


def _address_rows(servers: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    yield ["address", "state", "left alone for", "in use", "latency", "dials", "failed", "why"]
    for server in servers:
        failed = server["failed"]
        yield [
            server["address"],
            server["state"],
            seconds(server["down_for"]),
            server["outstanding"],
            seconds(server["latency"]),
            server["dials"],
            "–" if failed is None else f"{seconds(failed)} ago",
            server["reason"] or "",
        ]


def _endpoint_rows(endpoints: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    yield ["endpoint", "in use", "idle", "waiting", "last dial error"]
    for each in endpoints:
        stats = each["stats"]
        figures = [stats[name] for name in _IN_THE_ROW]
        yield [each["endpoint"], *figures, stats["last_error"] or ""]


def _errors(stats: dict[str, Any]) -> Iterator[str]:
    errors = stats.get("errors")
    if errors:
        latest = [[_clock(when), text] for when, text in reversed(errors)]
        yield from _table("Last errors", [["when", "what"], *latest])
    elif stats["last_error"]:
        yield f"<h3>Last dial error</h3><pre>{escape(stats['last_error'])}</pre>"


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def _counted(title: str, what: str, counts: dict[str, int]) -> list[str]:
    """How many there were of each kind, the most first."""
    most_first = sorted(counts.items(), key=lambda item: -item[1])
    return _table(title, [["reason", what], *map(list, most_first)])


def _durations(stats: dict[str, Any]) -> list[str]:
    rows = [
        [_as_words(name), each["count"], seconds(_mean(each)), seconds(each["max"])]
        for name, each in stats.items()
        if isinstance(each, dict) and {"count", "sum", "max"} <= each.keys()
    ]
    return _table("Times", [["of", "measured", "mean", "longest"], *rows])


def _mean(duration: dict[str, Any]) -> float:
    return float(duration["sum"] / duration["count"]) if duration["count"] else 0.0


def _figures(stats: dict[str, Any]) -> Iterator[str]:
    """Every other figure there is, whatever it is called."""
    plain = {
        name: value
        for name, value in stats.items()
        if (value is None and name == "maximum")
        or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }
    cells = "".join(
        f"<div><dt>{escape(_as_words(name))}</dt><dd>{number(value)}</dd></div>"
        for name, value in plain.items()
    )
    yield f'<h3>Figures</h3><dl class="all">{cells}</dl>'


def _as_words(name: str) -> str:
    return name.replace("_", " ")


def _table(title: str, rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table with a head; nothing if there is nothing below the head."""
    head, *body = rows
    if not body:
        return []
    names = "".join(f'<th scope="col">{escape(str(each))}</th>' for each in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in body[:_MOST_PLACES])
    more = f"<p>and {len(body) - _MOST_PLACES} more</p>" if len(body) > _MOST_PLACES else ""
    return [
        f'<h3>{escape(title)}</h3><div class="wide" tabindex="0" role="group"'
        f' aria-label="{escape(title)}"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{more}"
    ]


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f'<td class="number">{number(value)}</td>'
    return f"<td>{escape(str(value))}</td>"
