"""A service that is asked over HTTP and answers in JSON: one connection to it."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from geventpool.addresses import Address, AddressGroup, address

__all__ = ["ApiError", "JsonConnection", "check_header", "host_of"]

_LONGEST = 200  # characters of an answer that is shown
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def check_header(name: str, value: object) -> None:
    """Raises TypeError or ValueError if *value* cannot be sent as that of a header.

    The error says *name*, and nothing of the value, which may be a secret: http.client's own has
    all of it.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not of type {type(value).__name__}")
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{name} must be Latin-1 text without line ends or control characters")


def host_of(target: object) -> str:
    """What a connection to *target* calls its host, in the header Host: of several, the first."""
    several = [target, *target] if isinstance(target, (Sequence, AddressGroup)) else [target]
    for each in several:
        try:
            known = address(each)
        except (TypeError, ValueError):
            continue
        return str(known) if isinstance(known, Address) else "localhost"
    return "localhost"


class ApiError(OSError):
    """It answered, but not with what was asked for; *status* is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"status {status}: {text[:_LONGEST].strip()}")
        self.status = status


class JsonConnection(http.client.HTTPConnection):
    """One connection of http.client's to *host* (see ``host_of``), over sockets that *dial* opens:
    gevent's, whether or not the program is patched.

    It is opened as it is needed, and again if the server has closed it after an answer.  What it
    raises: OSError, of which ApiError is one, or http.client.HTTPException.
    """

    def __init__(self, host: str, dial: Callable[[], Any]) -> None:
        super().__init__(host)
        self._dial = dial

    def connect(self) -> None:
        self.sock = self._dial()

    def fileno(self) -> int:
        """That of its socket, for a pool."""
        return int(self.sock.fileno())

    def ask(
        self, path: str, headers: Mapping[str, str], silence: float, question: Any = None
    ) -> tuple[Any, http.client.HTTPMessage]:
        """What GET *path* is answered with, or POST with a *question*, and the headers of the
        answer.

        Raises TimeoutError once nothing has come for *silence* seconds.
        """
        answer = self._send(path, headers, silence, question)
        return _parsed(answer.status, answer.read()), answer.headers

    def stream(
        self, path: str, headers: Mapping[str, str], silence: float, question: Any = None
    ) -> Generator[dict[str, Any], None, None]:
        """One line of the answer after the other, until it ends, or is cut.  Raises as ``ask``.

        The connection is closed then, and opened again as it is needed: whether the answer was
        ended, or cut with the server or on the way, its next question is answered.
        """
        try:
            with self._send(path, headers, silence, question) as answer:
                for line in _lines(answer):
                    found = _parsed(answer.status, line)
                    if not isinstance(found, dict):
                        raise ApiError(answer.status, f"no JSON object: {line[:100]!r}")
                    yield found
        finally:
            self.close()

    def _send(
        self, path: str, headers: Mapping[str, str], silence: float, question: Any
    ) -> http.client.HTTPResponse:
        for name, value in headers.items():
            check_header(f"the header {name}", value)
        if self.sock is None:
            self.connect()
        self.sock.settimeout(silence)
        if question is None:
            self.request("GET", path, headers=dict(headers))
        else:
            self.request("POST", path, json.dumps(question), dict(headers))
        answer = self.getresponse()
        if answer.status != 200:
            raise ApiError(answer.status, answer.read().decode(errors="replace"))
        return answer


def _lines(answer: http.client.HTTPResponse) -> Generator[bytes, None, None]:
    """The lines that have come as a whole."""
    try:
        while line := answer.readline():
            yield line
    except (ConnectionError, http.client.IncompleteRead):
        pass


def _parsed(status: int, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(status, f"no JSON: {text[:100]!r}") from error
