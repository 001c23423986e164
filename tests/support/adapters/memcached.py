"""contrib.pymemcache, and memcached."""

from __future__ import annotations

import atexit
import functools
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from pymemcache.exceptions import MemcacheUnexpectedCloseError

from support.contract import Adapter, Address
from support.descriptors import clients_of
from support.own_servers import OwnServer
from support.waiting import until_readable

__all__ = ["OwnMemcached", "Pymemcache"]


class OwnMemcached(OwnServer):
    """With something before it that is slow now and then, as memcached never is: see
    support/slow_memcached.py."""

    name = "memcached"
    program = "memcached"

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        # That user need not be able to run this Python; memcached becomes it by itself.
        self.servant, self.user = self.user, None

    def command(self) -> list[str]:
        program = str(Path(__file__).parent.parent / "slow_memcached.py")
        options = ["-s", str(self.folder / "socket"), "-m", "16", *self.options]
        options += ["-u", self.servant] if self.servant else []
        return [sys.executable, program, str(self.address[1]), self.program_path, *options]


@functools.cache
def shared() -> OwnServer:
    """One for all tests that do it no harm."""
    server = OwnMemcached().__enter__()
    atexit.register(server.close)
    return server


class Pymemcache(Adapter):
    name = "pymemcache"
    needs_patching = False
    own_server = OwnMemcached
    lost = (MemcacheUnexpectedCloseError, OSError)
    states = ("a reply not read",)

    def shared_address(self) -> Address:
        return shared().address

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.pymemcache import PymemcachePool

        return PymemcachePool(address, size, **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        key = f"slow-{seconds}-{token}" if seconds else token
        key = key.replace(" ", "_")
        conn.set(key, token, expire=60)
        return conn.get(key).decode()  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return conn.sock.getsockname()[1]  # type: ignore[no-any-return]

    def sessions(self, address: Address) -> set[Hashable]:
        return set(clients_of(address))

    def leave(self, state: str, conn: Any) -> object:
        assert state == "a reply not read"
        conn.set("stale", "not yours", expire=60)
        conn.sock.sendall(b"get stale\r\n")
        return until_readable(conn.sock.fileno())

    def remains(self, state: str, conn: Any) -> object:
        return conn.get("never")
