"""Pools for services that are no databases, as in databases.py; small servers for two of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import socket

from benchmarks.clients.load import Ask

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1/0")
WAIT = 30.0  # seconds for a connection, at most


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """A memcached and an HTTP server of our own; what of the environment tells where they are."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    memcached = subprocess.Popen(["memcached", "-u", "nobody", "-l", f"127.0.0.1:{port}"])
    http = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.clients.http_server"], stdout=subprocess.PIPE
    )
    try:
        assert http.stdout is not None
        http_port = http.stdout.readline().decode().strip()
        yield {**os.environ, "MEMCACHED_PORT": str(port), "HTTP_PORT": http_port}
    finally:
        for process in (memcached, http):
            process.kill()
            process.wait()


# redis-py


def _ask_redis(pool: Any) -> Ask:
    import redis

    client = redis.Redis(connection_pool=pool)

    def ask(token: str, seconds: float) -> str:
        if seconds:
            client.blpop("benchmarks:nothing", seconds)
        return client.echo(token).decode()

    return ask


def redis_ours(size: int) -> Ask:
    from geventpool.contrib.redis import GeventConnectionPool

    pool = GeventConnectionPool.from_url(REDIS, size=size, timeout=WAIT)
    pool.fill()
    return _ask_redis(pool)


def redis_blocking(size: int) -> Ask:
    import redis

    return _ask_redis(
        redis.BlockingConnectionPool.from_url(REDIS, max_connections=size, timeout=WAIT)
    )


# memcached: there is nothing that it takes long for


def _memcached() -> tuple[str, int]:
    return ("127.0.0.1", int(os.environ["MEMCACHED_PORT"]))


def _ask_memcached(client: Any) -> Ask:
    def ask(token: str, seconds: float) -> str:
        client.set(token, token, expire=60)
        return client.get(token).decode()

    return ask


def pymemcache_ours(size: int) -> Ask:
    from geventpool.contrib.pymemcache import PymemcachePool

    pool = PymemcachePool(_memcached(), size, timeout=WAIT)
    pool.fill()
    return _ask_memcached(pool)


def pymemcache_pooled(size: int) -> Ask:
    import pymemcache

    return _ask_memcached(
        pymemcache.PooledClient(_memcached(), max_pool_size=size, default_noreply=False)
    )


# HTTP


def http_ours(size: int) -> Ask:
    from geventpool.contrib.http import HttpPool

    pool = HttpPool(f"http://127.0.0.1:{os.environ['HTTP_PORT']}", size, timeout=WAIT)

    def ask(token: str, seconds: float) -> str:
        return pool.request("GET", f"/{token}/{seconds}").body.decode()

    return ask


def _ask_urllib3(manager: Any) -> Ask:
    base = f"http://127.0.0.1:{os.environ['HTTP_PORT']}"

    def ask(token: str, seconds: float) -> str:
        return manager.request("GET", f"{base}/{token}/{seconds}", retries=False).data.decode()

    return ask


def urllib3_ours(size: int) -> Ask:
    from geventpool.contrib.requests import GeventPoolManager

    return _ask_urllib3(GeventPoolManager(size, settings={"timeout": WAIT}))


def urllib3_own(size: int) -> Ask:
    import urllib3

    return _ask_urllib3(urllib3.PoolManager(maxsize=size, block=True))
