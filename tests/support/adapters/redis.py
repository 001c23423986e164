"""contrib.redis, and Redis."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from gevent.select import select

from support import own_servers
from support.contract import Adapter, Address

__all__ = ["OwnRedis", "OwnSentinel", "Redis"]


class OwnRedis(own_servers.OwnRedis):
    def command(self) -> list[str]:
        return [*super().command(), "--loglevel", "verbose"]


class OwnSentinel(own_servers.OwnServer):
    """One Sentinel, which alone decides that a master is down; *options* are lines of its file."""

    name = "sentinel"
    program = "redis-server"

    def prepare(self) -> None:
        host, port = self.address
        config = self.folder / "sentinel.conf"
        config.write_text("\n".join([f"port {port}", f"bind {host}", *self.options, ""]))
        config.chmod(0o666)

    def command(self) -> list[str]:
        return [self.program_path, str(self.folder / "sentinel.conf"), "--sentinel"]


class Redis(Adapter):
    name = "redis"
    needs_patching = False
    server = "redis"
    own_server = OwnRedis
    options = ("--maxclients", "30")
    most = 30
    lost = (redis.ConnectionError, redis.TimeoutError)
    refusal = redis.ReadOnlyError
    states = (
        *("an open transaction", "another database", "a subscription"),
        *("a reply not read", "replies read by half"),
    )

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.redis import GeventConnectionPool

        host, port = address
        return GeventConnectionPool.from_url(f"redis://{host}:{port}", size=size, **settings)

    @contextmanager
    def lease(self, pool: Any) -> Iterator[Any]:
        with redis.Redis(connection_pool=pool, single_connection_client=True) as client:
            yield client

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        if seconds:
            conn.blpop("geventpool:nothing", seconds)
        return conn.echo(token).decode()  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return int(conn.client_id())

    @contextmanager
    def administrator(self, address: Address) -> Iterator[Any]:
        with redis.Redis(*address) as client:
            yield client

    def prepare(self, server: own_servers.OwnServer) -> None:
        pass

    def sessions(self, address: Address) -> set[Hashable]:
        with self.administrator(address) as client:
            with client.client() as own:  # one connection for both
                found = {int(each["id"]) for each in own.client_list()}
                return found - {int(own.client_id())}

    def end_session(self, address: Address, session: Hashable) -> None:
        with self.administrator(address) as client:
            client.execute_command("CLIENT", "KILL", "ID", session)

    def set_read_only(self, address: Address, on: bool) -> None:
        with self.administrator(address) as client:
            client.replicaof(*(("127.0.0.1", 1) if on else ("NO", "ONE")))

    def write(self, conn: Any) -> None:
        conn.set("geventpool:written", 1)

    def leave(self, state: str, conn: Any) -> object:
        raw = conn.connection
        if state == "an open transaction":
            return conn.execute_command("MULTI")
        if state == "another database":
            return conn.execute_command("SELECT", 3)
        if state == "a subscription":
            raw.send_command("SUBSCRIBE", "geventpool:channel")
            return raw.read_response(push_request=True)
        if state == "a reply not read":
            raw.send_command("ECHO", "stale")
            return select([raw._sock], [], [], 5)
        if state == "replies read by half":
            raw.send_packed_command(raw.pack_commands([("ECHO", "one"), ("ECHO", "two")]))
            return raw.read_response()
        raise AssertionError(state)

    def remains(self, state: str, conn: Any) -> object:
        info = conn.client_info()
        found = info["db"], info["multi"], info["sub"]
        return None if found == (0, -1, 0) else found
