"""Asks the status page of this process, as a WSGI server would."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from geventpool import observe

__all__ = ["Answer", "get", "pools_shown"]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def get(path: str, application: Any = observe.app, method: str = "GET", **environ: str) -> Answer:
    """What *application* answers, which is checked to be WSGI."""
    path, _, query = path.partition("?")
    defaults: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost:8000",
    }
    setup_testing_defaults(defaults)
    told: list[Any] = []

    def start_response(*words: Any) -> Any:
        told.extend(words[:2])
        return lambda data: None

    chunks = validator(application)({**defaults, **environ}, start_response)
    body = b"".join(chunks).decode()
    chunks.close()  # type: ignore[attr-defined]
    return Answer(int(told[0].split()[0]), dict(told[1]), body)


def pools_shown(**query: str) -> dict[str, Any]:
    """What pools.json says of this process, by the name of the pool."""
    text = "&".join(f"{name}={value}" for name, value in query.items())
    (here,) = json.loads(get(f"/pools.json?{text}").body)["workers"]
    return {pool["name"]: pool for pool in here["pools"]}
