"""Which OS thread this is."""

from __future__ import annotations

from collections.abc import Callable

from gevent import monkey

__all__ = ["get_ident"]

#: The id of the OS thread, whether or not the program is monkey-patched.
get_ident: Callable[[], int] = monkey.get_original("_thread", "get_ident")
