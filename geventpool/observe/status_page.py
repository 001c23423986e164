"""The status page: a WSGI application that shows every pool of every worker, and changes nothing.

Below the path at which it is mounted::

    /            the page, which updates itself
    /rows        what it fetches each second
    /pools.json  {"workers": [snapshot, ...]}: see snapshot.py
    /metrics     for Prometheus: those of all workers
    /ready       200 if the pools of the worker that answers are filled and none is down, else 503

It is looked up who holds what only of the pools that are open in a browser: to walk the stacks of
thousands each second would be felt.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote

import gevent

from geventpool.observe import history
from geventpool.observe.access import Allow, Environ, access_check
from geventpool.observe.gathering import gather
from geventpool.observe.metrics import metrics_text
from geventpool.observe.rendering import pool_row, status_line, worker_head, worker_tail
from geventpool.observe.snapshot import snapshot
from geventpool.observe.trouble import is_ready

__all__ = ["Application", "StatusPage", "app", "mount"]

Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

_HERE = Path(__file__).parent
_CSS, _JS = ((_HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
_RELOAD = 5  # seconds, where the script does not run
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HTML, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
_REFUSED = (
    "Only clients on this machine may look, by the name localhost and without a proxy.\n"
    "Others are let in by geventpool.observe.StatusPage(allow=...).\n"
)


class _Answer(NamedTuple):
    body: str
    content_type: str = _TEXT
    status: str = "200 OK"
    policy: str = _NOTHING
    headers: tuple[tuple[str, str], ...] = ()


class StatusPage:
    """A WSGI application that shows the pools of all workers; ``geventpool.observe.app`` is one.

    *allow* says which clients may look, at every path: networks and addresses such as
    ``["127.0.0.0/8", "10.1.0.0/16"]``, with which the address of who connects is compared (no
    header is believed: who comes through a proxy is the proxy), or a function that is given the
    WSGI environ, and may ask who is logged in.  None: who connects from this machine, asks for
    localhost or a loopback address, and shows no trace of a proxy (one here that leaves none, as
    nginx's plain ``proxy_pass``, lets everybody in).  Others get 403.  Behind a Unix socket nobody
    is known to be local: a function has to say.

    *timeout*: after so many seconds a worker that does not answer is shown as silent.

    It only reads: GET and HEAD, others get 405.  What looks like a password is hidden.  Raises
    TypeError or ValueError if *allow* or *timeout* is not what it may be.
    """

    def __init__(self, *, allow: Allow = None, timeout: float = 1.0) -> None:
        if not (isinstance(timeout, (int, float)) and 0 < timeout < 1e9):
            raise ValueError(f"timeout: seconds, more than 0, not {timeout!r}")
        self._may_look = access_check(allow)
        self._timeout = timeout
        self._routes: dict[str, Callable[[dict[str, list[str]]], _Answer]] = {
            "/": self._page,
            "/rows": self._rows,
            "/pools.json": self._json,
            "/metrics": self._metrics,
            "/ready": self._ready,
        }

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._answer(environ)
        body = answer.body.encode()
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", answer.policy),
            *_ALWAYS,
            *answer.headers,
        ]
        start_response(answer.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: Environ) -> _Answer:
        if not self._may_look(environ):
            return _Answer(_REFUSED, status="403 Forbidden")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allowed = (("Allow", "GET, HEAD"),)
            return _Answer(
                "Look, do not touch.\n", status="405 Method Not Allowed", headers=allowed
            )
        path, query = environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", "")
        if not path:
            return _to_folder(environ.get("SCRIPT_NAME", ""), query)
        route = self._routes.get(path)
        if route is None:
            return _Answer("There is no such page.\n", status="404 Not Found")
        history.start()
        return route(parse_qs(query))

    # What there is to see

    def _page(self, query: dict[str, list[str]]) -> _Answer:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"{_NOTHING}; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}';"
            " connect-src 'self'; img-src data:"
        )
        body = (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Pools</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f'<noscript><meta http-equiv="refresh" content="{_RELOAD}"></noscript>'
            f'<style nonce="{nonce}">{_CSS}</style></head><body><main>'
            '<header><h1>Pools</h1><button type="button" id="pause" hidden>Pause</button></header>'
            '<p id="notice" role="alert" hidden></p>'
            f'<div id="rows">{self._rows(query).body}</div></main>'
            '<footer>Also here: <a href="pools.json">pools.json</a>, <a href="metrics">metrics</a>,'
            ' <a href="ready">ready</a>.'
            " The charts in a row are of the last minute: in use with those who wait, and how long"
            " they waited.</footer>"
            f'<script nonce="{nonce}">{_JS}</script></body></html>'
        )
        return _Answer(body, _HTML, policy=policy)

    def _rows(self, query: dict[str, list[str]]) -> _Answer:
        opened = query.get("open", [])
        workers = gather(self._timeout, holders=opened, history=True)
        parts = [status_line(workers)]
        for worker in workers:
            parts.append(worker_head(worker))
            for pool in worker["pools"] or ():
                parts.append(pool_row(pool, opened))
                gevent.sleep(0)  # two hundred of them must not hold up those who work here
            parts.append(worker_tail())
        return _Answer("".join(parts), _HTML)

    def _json(self, query: dict[str, list[str]]) -> _Answer:
        """*holders=none* leaves them out, *history=1* adds what the charts are made from."""
        wanted: dict[str, Any] = {
            "holders": query.get("holders", True),
            "history": "history" in query,
        }
        body = json.dumps({"workers": gather(self._timeout, **wanted)}) + "\n"
        return _Answer(body, "application/json")

    def _metrics(self, query: dict[str, list[str]]) -> _Answer:
        body = metrics_text(gather(self._timeout, holders=False))
        return _Answer(body, "text/plain; version=0.0.4; charset=utf-8")

    def _ready(self, query: dict[str, list[str]]) -> _Answer:
        missing = [pool["name"] for pool in snapshot(holders=False)["pools"] if not is_ready(pool)]
        if missing:
            names = ", ".join(map(repr, missing))
            return _Answer(f"not ready: {names}\n", status="503 Service Unavailable")
        return _Answer("ready\n")


#: The status page with its defaults, to be mounted as it is.
app = StatusPage()


def _to_folder(script_name: str, query: str) -> _Answer:
    """The page's links are relative, so that they hold behind a proxy that changes its path, too:
    the page's own address has to end in a slash."""
    last = script_name.rstrip("/").rpartition("/")[2]
    target = quote(last.encode("latin-1")) + "/" if last else "/"
    if query:
        target += f"?{quote(query, safe='=&%+')}"
    text = f'<!DOCTYPE html><title>Pools</title><a href="{escape(target)}">Pools</a>\n'
    return _Answer(text, _HTML, "302 Found", headers=(("Location", target),))


def mount(application: Application, at: str, page: Application | None = None) -> Application:
    """A WSGI application that is *page* (None: ``app``) below the path *at*, as in
    ``"/-/pools"``, and *application* elsewhere.

    Raises ValueError if *at* is no such path.
    """
    if not at.startswith("/") or at.rstrip("/") == "":
        raise ValueError(f"at: a path such as '/-/pools', not {at!r}")
    prefix = at.rstrip("/")
    shown = app if page is None else page

    def mounted(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path != prefix and not path.startswith(prefix + "/"):
            return application(environ, start_response)
        script = environ.get("SCRIPT_NAME", "") + prefix
        below = {**environ, "SCRIPT_NAME": script, "PATH_INFO": path[len(prefix) :]}
        return shown(below, start_response)

    return mounted
