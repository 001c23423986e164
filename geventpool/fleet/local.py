"""LocalStore: the records of a fleet in one of its processes, which the others of the machine ask.

For a fleet on one machine that has nothing else to keep them in.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gevent

from geventpool.fleet.share import Grant, Report
from geventpool.fleet.stores import MemoryStore
from geventpool.local_socket import Listener, ask, run_directory

__all__ = ["LocalStore"]

_PATIENCE = 5.0  # seconds for an answer
_SOON = 0.01  # seconds until one that has won the place listens
_TRIES = 10


class LocalStore:
    """A MemoryStore for all processes of one user on one machine, over a Unix socket.

    The socket is in the folder that ``GEVENTPOOL_RUN_DIR`` names, else in one of this user's own.
    The first process that asks answers there from then on, from its hub.  When that process has
    ended, the next that asks takes its place, with nothing: it learns what there is, as every
    store that was emptied does.  While the hub of that process is blocked, or the process is
    stopped, the store is away for all.

    ``close()`` gives up the place; a thread whose hub ends before its process must call it.
    """

    def __init__(self) -> None:
        self._listener: Listener | None = None

    def renew(self, report: Report) -> Grant:
        """See Store.  Raises OSError, or ValueError if the process that answers ended midway, or is
        of another version and does not understand."""
        return Grant(*self._ask(renew=asdict(report)))

    def release(self, name: str, id: str) -> None:
        """See Store.  Raises as ``renew``."""
        self._ask(release=[name, id])

    def close(self) -> None:
        """Answer no longer, if it is this process that does.  Does not block."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _ask(self, **question: Any) -> Any:
        path = run_directory() / "fleet.sock"
        for _ in range(_TRIES):
            listener = self._listener
            try:
                return _understood(ask(path, _PATIENCE, **question))
            except (ConnectionRefusedError, FileNotFoundError):
                pass  # no process listens, or not yet
            if listener is self._listener:
                self.close()  # its socket was taken away
            try:
                self._listener = Listener(path, _answer_from(MemoryStore()), alone=True)
            except BlockingIOError:
                gevent.sleep(_SOON)
        return _understood(ask(path, _PATIENCE, **question))


def _answer_from(store: MemoryStore) -> Any:
    def answer(question: dict[str, Any]) -> Any:
        try:
            if "renew" in question:
                return store.renew(Report(**question["renew"]))
            return store.release(*question["release"])
        except (KeyError, TypeError, ValueError) as error:  # of another version, say
            return {"error": repr(error)}

    return answer


def _understood(answer: Any) -> Any:
    if isinstance(answer, dict):
        raise ValueError(f"the process that answers has not understood: {answer.get('error')}")
    return answer
