"""A process of a fleet: pools of several hubs that keep a real PostgreSQL busy under one cap.

Run as a program, with its settings as JSON; prints what has become of the requests so far, ten
times a second, one JSON object a line; ends when its standard input does.  SIGUSR1 ends its work,
or has it begin again.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import gevent.socket  # noqa: E402

from geventpool import PoolTimeout  # noqa: E402
from geventpool.contrib.psycopg2 import Psycopg2Pool  # noqa: E402
from geventpool.fleet import FleetLimit  # noqa: E402

start_thread = monkey.get_original("_thread", "start_new_thread")


class Counts:
    """What became of the requests of one hub."""

    def __init__(self) -> None:
        self.done = 0
        self.in_vain: list[str] = []
        self.errors: list[str] = []
        self.limit: Any = None


class Work:
    """Whether there is any."""

    is_there = True


def flip() -> None:
    Work.is_there = not Work.is_there


def store_of(settings: dict[str, Any]) -> Any:
    kind, address = settings["store"], settings["address"]
    if kind == "redis":
        import redis

        from geventpool.fleet.redis import RedisStore

        client = redis.Redis(*address, socket_timeout=2.0, socket_connect_timeout=2.0)
        return RedisStore(client)
    if kind == "zookeeper":
        from geventpool.fleet.zookeeper import ZooKeeperStore

        return ZooKeeperStore("{}:{}".format(*address))
    if kind == "etcd":
        from geventpool.fleet.etcd import EtcdStore

        return EtcdStore(tuple(address))
    if kind == "local":
        from geventpool.fleet.local import LocalStore

        os.environ["GEVENTPOOL_RUN_DIR"] = address
        return LocalStore()
    from geventpool.fleet.postgres import PostgresStore

    return PostgresStore(
        Psycopg2Pool(settings["dsn"] + " application_name=store", 1, min_size=0, timeout=2.0)
    )


def run_hub(settings: dict[str, Any], counts: Counts) -> None:
    limit = counts.limit = FleetLimit(
        settings["cap"], store=store_of(settings), name="db", lease=settings["lease"]
    )
    dsn = settings["dsn"] + " application_name=fleet"
    pool = Psycopg2Pool(dsn, settings["cap"], min_size=0, limits=[limit], timeout=30.0)

    def work() -> None:
        while True:
            if not Work.is_there:
                gevent.sleep(0.02)
                continue
            try:
                with pool.get() as conn:
                    conn.cursor().execute("select pg_sleep(%s)", (settings["needs"],))
            except PoolTimeout:
                counts.in_vain.append(repr(limit.stats()))
            except Exception as error:
                counts.errors.append(repr(error))
                gevent.sleep(0.1)
            else:
                counts.done += 1

    gevent.joinall([gevent.spawn(work) for _ in range(settings["callers"])])


def main() -> None:
    settings = json.loads(sys.argv[1])
    gevent.signal_handler(signal.SIGUSR1, flip)
    hubs = [Counts() for _ in range(settings["hubs"])]
    for counts in hubs[1:]:
        start_thread(run_hub, (settings, counts))
    gevent.spawn(run_hub, settings, hubs[0])

    def tell() -> None:
        while True:
            gevent.sleep(0.1)
            said = {
                "done": sum(each.done for each in hubs),
                "in_vain": [each for hub in hubs for each in hub.in_vain],
                "errors": [error for hub in hubs for error in hub.errors],
                "shares": [int(each.limit.maximum) for each in hubs if each.limit],
            }
            os.write(1, json.dumps(said).encode() + b"\n")

    gevent.spawn(tell)
    while True:
        gevent.socket.wait_read(0)
        if not os.read(0, 4096):
            os._exit(0)


if __name__ == "__main__":
    main()
