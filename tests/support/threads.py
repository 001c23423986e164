"""Threads of the operating system, whether or not the program is monkey-patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey
from gevent.event import Event

__all__ = ["Thread", "get_ident", "in_thread"]

start_new_thread = monkey.get_original("_thread", "start_new_thread")
get_ident = monkey.get_original("_thread", "get_ident")


class Thread:
    """A thread of the operating system, with its own hub if *function* needs one."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._ended = gevent.get_hub().loop.async_()
        self._event = Event()
        self._ended.start(self._event.set)
        self.ident = 0
        self.value: Any = None
        self.error: BaseException | None = None
        start_new_thread(self._run, ())

    def _run(self) -> None:
        self.ident = get_ident()
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error.with_traceback(None)
        finally:
            hub = gevent._hub_local.get_hub_if_exists()  # type: ignore[attr-defined]
            if hub is not None:
                hub.destroy(destroy_loop=True)
            self._ended.send()

    def result(self, seconds: float = 10.0) -> Any:
        assert self._event.wait(seconds), "the thread hangs"
        self._ended.close()
        if self.error is not None:
            raise self.error
        return self.value


def in_thread(function: Callable[[], Any]) -> Any:
    return Thread(function).result()
