"""contrib.redis: what GeventConnectionPool has beyond the contract.

Nothing needs to be patched, but for Sentinel.
"""

from __future__ import annotations

import functools
import gc
import random
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import gevent.socket
import pytest
import redis
from gevent import monkey
from redis.backoff import ConstantBackoff, NoBackoff
from redis.cache import CacheConfig
from redis.cluster import LoadBalancingStrategy
from redis.retry import Retry

from geventpool import PoolClosed, PoolTimeout, Verdict
from geventpool.contrib.redis import GeventConnectionPool, GeventSentinelConnectionPool
from geventpool.testing import ChaosProxy, EchoServer
from support.adapters.redis import OwnRedis, OwnSentinel
from support.certificates import Certificates
from support.servers import require_server
from support.waiting import until, until_readable

MakePool = Callable[..., GeventConnectionPool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one connection, closed at the end."""
    pools: list[GeventConnectionPool] = []

    def make(size: int = 1, url: str | None = None, **arguments: Any) -> GeventConnectionPool:
        if url is None:
            host, port = require_server("redis")
            url = f"redis://{host}:{port}"
        made = GeventConnectionPool.from_url(url, size=size, **{"timeout": 5, **arguments})
        pools.append(made)
        return made

    yield make
    for pool in pools:
        pool.close()


def client_of(pool: GeventConnectionPool) -> Any:
    return redis.Redis(connection_pool=pool)


def closed(pool: GeventConnectionPool) -> int:
    return sum(pool.stats().closed.values())


def what_is_raised_in_a_long_wait(client: Any) -> Exception | None:
    try:
        client.blpop("geventpool:nothing", 20)
    except Exception as error:
        return error
    return None


# What redis-py does with a pool


def test_who_shares_a_client_gets_its_own_answers_whatever_happens_to_others(
    make: MakePool,
) -> None:
    pool = make(5)
    pool.fill()
    client = client_of(pool)
    draw = random.Random(1)
    right, given_up = [], []

    def ask(number: int) -> None:
        for turn in range(10):
            token = f"token {number} {turn}"
            with gevent.Timeout(draw.uniform(0.0005, 0.06), False):
                pipeline = client.pipeline(transaction=False)
                if turn % 3 == 0:
                    pipeline.blpop("geventpool:nothing", 0.01)
                pipeline.echo(token)
                right.append(pipeline.execute()[-1].decode() == token)
                right.append(client.echo(token).decode() == token)
                continue
            given_up.append(token)

    gevent.joinall([gevent.spawn(ask, number) for number in range(20)], raise_error=True)

    assert all(right)
    assert min(len(right), len(given_up)) > 10
    until(lambda: pool.stats().in_use == 0)


def test_a_transaction_that_watches_is_on_one_connection_and_leaves_nothing(
    make: MakePool,
) -> None:
    pool = make(2)
    client = client_of(pool)
    client.set("geventpool:watched", 1)
    with client.pipeline() as pipeline:
        pipeline.watch("geventpool:watched")
        assert pool.stats().in_use == 1
        client.set("geventpool:watched", 2)
        pipeline.multi()
        pipeline.set("geventpool:watched", 3)
        with pytest.raises(redis.WatchError):
            pipeline.execute()

    assert pool.stats().in_use == 0
    assert closed(pool) == 0
    assert client.get("geventpool:watched") == b"2"


def test_a_subscriber_has_a_connection_of_its_own_until_it_is_closed(make: MakePool) -> None:
    pool = make(2)
    client = client_of(pool)
    with client.pubsub(ignore_subscribe_messages=True) as subscriber:
        subscriber.subscribe("geventpool:news")
        assert subscriber.get_message(timeout=1) is None
        client.publish("geventpool:news", "hello")
        assert subscriber.get_message(timeout=5)["data"] == b"hello"
        assert pool.stats().in_use == 1

    assert pool.stats().in_use == 0
    until(lambda: closed(pool) == 1)
    assert client.echo("hello") == b"hello"


def test_what_it_is_given_back_and_never_gave_does_it_no_harm(make: MakePool) -> None:
    pool, other = make(), make()
    conn = other.get_connection()

    pool.release(conn)

    assert other.stats().in_use == 1
    other.release(conn)
    other.release(conn)
    assert (pool.stats().in_use, other.stats().in_use) == (0, 0)


Send = Callable[[Any], object]


def execute(*args: Any) -> Send:
    return lambda client: client.execute_command(*args)


def in_a_pipeline(*commands: Any, transaction: bool = False) -> Send:
    def send(client: Any) -> object:
        pipeline = client.pipeline(transaction=transaction)
        for args in commands:
            pipeline.execute_command(*args)
        return pipeline.execute(raise_on_error=False)

    return send


def of_its_own(*args: Any) -> Send:
    """Packed by the user, as for ``send_packed_command``."""

    def send(client: Any) -> object:
        with client.client() as single:
            conn = single.connection
            conn.send_packed_command(conn.pack_command(*args))
            return conn.read_response()

    return send


def subscribe(client: Any) -> object:
    with client.client() as single:
        single.connection.send_packed_command(single.connection.pack_commands([SUBSCRIBE]))
        return single.connection.read_response(push_request=True)


def watch_and_exec(client: Any) -> None:
    with client.client() as single:
        single.execute_command("WATCH", "geventpool:watched")
        with pytest.raises(redis.ResponseError, match="EXEC without MULTI"):
            single.execute_command("EXEC")


SUBSCRIBE = ("subscribe", "geventpool:channel")


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(execute("SELECT", 3), id="SELECT"),
        pytest.param(execute(b"SELECT", 3), id="bytes"),
        pytest.param(execute("select 3"), id="one string"),
        pytest.param(execute(b"select 3"), id="one string of bytes"),
        pytest.param(execute("", "SELECT", 3), id="an empty string first"),
        pytest.param(in_a_pipeline(("SELECT", 3)), id="a pipeline"),
        pytest.param(in_a_pipeline(("SELECT", 3), transaction=True), id="a transaction"),
        pytest.param(of_its_own("SELECT", 3), id="packed by hand"),
        pytest.param(in_a_pipeline(("AUTH", "default", "any")), id="AUTH"),
        pytest.param(in_a_pipeline(("HELLO", 3)), id="HELLO"),
        pytest.param(lambda client: client.reset(), id="RESET"),
        pytest.param(lambda client: client.client_setname("me"), id="client_setname"),
        pytest.param(in_a_pipeline(("CLIENT SETNAME", "me")), id="SETNAME in a pipeline"),
        pytest.param(in_a_pipeline((b"client", b"setname", "me")), id="SETNAME of bytes"),
        pytest.param(in_a_pipeline(("CLIENT", "NO-EVICT", "on")), id="NO-EVICT"),
        pytest.param(execute("WATCH", "geventpool:watched"), id="WATCH"),
        pytest.param(watch_and_exec, id="WATCH, and no MULTI"),
        pytest.param(in_a_pipeline(("MULTI",), ("PING",)), id="MULTI in a pipeline"),
        pytest.param(in_a_pipeline(("EXEC",), ("MULTI",)), id="MULTI after EXEC"),
        pytest.param(subscribe, id="SUBSCRIBE"),
    ],
)
def test_what_leaves_a_state_costs_the_connection_however_it_is_sent(
    make: MakePool, send: Send
) -> None:
    pool = make()
    client = client_of(pool)
    before = client.client_id()

    send(client)

    after = client.client_info()
    assert after["id"] != before
    assert (after["db"], after["name"], after["multi"], after["sub"]) == (0, "", -1, 0)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(in_a_pipeline(("SET", "geventpool:key", "SELECT")), id="a pipeline"),
        pytest.param(in_a_pipeline(("PING",), transaction=True), id="a transaction"),
        pytest.param(in_a_pipeline(("WATCH", "key"), ("MULTI",), ("EXEC",)), id="WATCH to EXEC"),
        pytest.param(in_a_pipeline(("MULTI",), ("DISCARD",)), id="DISCARD"),
        pytest.param(in_a_pipeline(("WATCH", "key"), (b"unwatch",)), id="UNWATCH"),
        pytest.param(in_a_pipeline(("ASKING",), ("GET", "geventpool:key")), id="ASKING"),
        pytest.param(lambda client: client.client_list(), id="CLIENT LIST"),
        pytest.param(execute("CLIENT", "GETNAME"), id="CLIENT GETNAME"),
        pytest.param(lambda client: client.script_exists("0" * 40), id="SCRIPT EXISTS"),
        pytest.param(lambda client: client.lock("geventpool:lock", 1).locked(), id="a lock"),
    ],
)
def test_what_leaves_no_state_leaves_the_connection(make: MakePool, send: Send) -> None:
    client = client_of(make(db=2, client_name="geventpool-test"))
    before = client.client_id()
    send(client)
    assert client.client_id() == before


def test_a_cache_at_the_client_hides_no_state(make: MakePool) -> None:
    with Caching() as server:
        host, port = server.address
        pool = make(url=f"redis://{host}:{port}", protocol=3, cache_config=CacheConfig())
        client = client_of(pool)
        for send in (execute("SELECT", 3), in_a_pipeline(("SELECT", 3))):
            before = closed(pool)
            send(client)
            until(lambda before=before: closed(pool) == before + 1)
        pool.close()


def test_a_client_of_one_connection_gives_it_back(make: MakePool) -> None:
    pool = make()
    with redis.Redis(connection_pool=pool, single_connection_client=True) as client:
        client.ping()
        assert pool.stats().in_use == 1
    assert pool.stats().in_use == 0


def test_disconnect_closes_what_is_idle_and_what_is_in_use_and_others_are_opened(
    make: MakePool,
) -> None:
    pool = make(3)
    pool.fill()
    user = gevent.spawn(what_is_raised_in_a_long_wait, client_of(pool))
    until(lambda: pool.stats().in_use == 1)
    pool.disconnect(inuse_connections=False)
    until(lambda: closed(pool) == 2)
    pool.disconnect()
    assert isinstance(user.get(timeout=5), redis.ConnectionError)
    pool.fill()
    assert client_of(pool).echo("hello") == b"hello"


def test_reset_replaces_every_connection(make: MakePool) -> None:
    pool = make(2)
    pool.fill()
    pool.reset()
    until(lambda: closed(pool) == 2)
    pool.fill()


def test_a_new_token_replaces_what_has_the_old_one(make: MakePool) -> None:
    pool = make()
    pool.fill()
    pool.re_auth_callback(object())
    until(lambda: closed(pool) == 1)


def test_once_closed_it_has_no_connection_for_anybody(make: MakePool) -> None:
    pool = make()
    client = client_of(pool)
    client.ping()
    user = gevent.spawn(what_is_raised_in_a_long_wait, client)
    until(lambda: pool.stats().in_use == 1)

    pool.close()

    assert isinstance(user.get(timeout=5), redis.ConnectionError)
    with pytest.raises(PoolClosed):
        client.ping()


def test_a_client_that_owns_the_pool_closes_it(make: MakePool) -> None:
    pool = make()
    with redis.Redis.from_pool(pool) as client:
        client.ping()
    with pytest.raises(PoolClosed):
        pool.get_connection()


def test_max_connections_is_its_size_where_that_is_not_given() -> None:
    host, port = require_server("redis")
    url = f"redis://{host}:{port}"
    with GeventConnectionPool.from_url(f"{url}?max_connections=3", min_size=0) as pool:
        assert (pool.size, pool.max_connections) == (3, 3)
    with GeventConnectionPool.from_url(url, min_size=0) as pool:
        assert (pool.size, pool.max_connections) == (10, 10)


def test_the_settings_of_a_connection_are_those_of_redis_py(make: MakePool) -> None:
    pool = make(decode_responses=True, client_name="geventpool-test", protocol=2, db=3)
    client = client_of(pool)
    assert client.client_getname() == "geventpool-test"
    assert client.client_info()["db"] == 3
    assert client.client_info()["resp"] == "2"


def test_a_unix_socket_leads_to_it_too(make: MakePool) -> None:
    with OwnRedis("--unixsocket", "socket") as server:
        pool = make(url=f"unix://{server.folder}/socket")
        assert client_of(pool).echo("hello") == b"hello"
        pool.close()


@pytest.mark.slow
def test_tls_is_verified_and_cooperative_and_resumed(
    make: MakePool, certificates: Certificates
) -> None:
    class TlsRedis(OwnRedis):
        def command(self) -> list[str]:
            return [*super().command(), "--port", "0", "--tls-port", str(self.address[1])]

    keys = ["--tls-cert-file", certificates.certificate.name, "--tls-key-file"]
    keys += [certificates.key.name, "--tls-ca-cert-file", certificates.authority.name]
    server = TlsRedis("--tls-auth-clients", "no", *keys)
    server.hand_over(certificates.authority, certificates.certificate, certificates.key)
    with server:
        url = f"rediss://localhost:{server.address[1]}"
        pool = make(3, url=url, ssl_ca_certs=str(certificates.authority))
        pool.fill()
        sleeper = gevent.spawn(client_of(pool).blpop, "geventpool:nothing", 0.2)
        assert client_of(pool).echo("hello") == b"hello"
        assert not sleeper.dead
        sleeper.get()
        conn = pool.get_connection()
        assert conn._sock.session_reused
        pool.release(conn)
        pool.close()

        doubtful = make(url=url, timeout=1, connect_timeout=0.5)
        with pytest.raises(redis.ConnectionError, match="certificate"):
            client_of(doubtful).ping()


# Dials


@pytest.mark.parametrize("retries", [0, 3])
def test_a_dial_is_tried_once_whatever_is_tried_again(make: MakePool, retries: int) -> None:
    class Refusing(EchoServer):
        def serve(self, sock: Any) -> None:
            accepted.append(sock)

    accepted: list[Any] = []
    retry = Retry(ConstantBackoff(0.01), retries)
    with Refusing() as server:
        host, port = server.address
        pool = make(url=f"redis://{host}:{port}", retry=retry, timeout=0.3)
        with pytest.raises(PoolTimeout):
            client_of(pool).ping()
        pool.close()
        assert 0 < len(accepted) <= pool.stats().dialed


def test_a_command_is_tried_again_where_that_is_wanted(make: MakePool) -> None:
    with ChaosProxy(require_server("redis")) as proxy:
        host, port = proxy.address
        pool = make(url=f"redis://{host}:{port}", retry=Retry(NoBackoff(), 1))
        client = redis.Redis(connection_pool=pool, single_connection_client=True)
        with client:
            before = client.client_id()
            client.execute_command("CLIENT", "KILL", "ID", before, "SKIPME", "no")
            after = client.client_id()
            assert after != before
        # What redis-py has connected by itself, the pool did not open.
        until(lambda: closed(pool) == 1)
        assert client_of(pool).client_id() != after
        pool.close()


def test_a_wrong_password_is_said_at_once(make: MakePool) -> None:
    host, port = require_server("redis")
    pool = make(url=f"redis://nobody:wrong@{host}:{port}", timeout=20)
    with gevent.Timeout(5), pytest.raises(redis.AuthenticationError):
        client_of(pool).ping()


# Errors


def test_when_all_are_taken_that_is_an_error_of_both(make: MakePool) -> None:
    pool = make()
    client = client_of(pool)
    held = pool.get_connection()
    pool.timeout = 0.05
    with pytest.raises(redis.exceptions.MaxConnectionsError) as raised:
        client.ping()
    assert isinstance(raised.value, PoolTimeout)
    assert raised.value.in_use == 1
    assert "no connection came free" in str(raised.value)
    assert "no connection came free" in repr(raised.value)
    pool.release(held)


def test_when_the_server_is_away_that_is_an_error_of_both(make: MakePool) -> None:
    pool = make(url="redis://127.0.0.1:1", timeout=0.1)
    with pytest.raises(redis.ConnectionError) as raised:
        client_of(pool).ping()
    assert isinstance(raised.value, PoolTimeout)
    assert not isinstance(raised.value, redis.exceptions.MaxConnectionsError)
    assert "Connection refused" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (redis.ResponseError("unknown command"), Verdict.FINE),
        (redis.WatchError(), Verdict.FINE),
        (redis.DataError(), Verdict.FINE),
        (redis.exceptions.NoScriptError(), Verdict.FINE),
        (ValueError(), Verdict.FINE),
        (redis.ConnectionError(), Verdict.BROKEN),
        (redis.TimeoutError(), Verdict.BROKEN),
        (redis.BusyLoadingError(), Verdict.BROKEN),
        (redis.InvalidResponse(), Verdict.BROKEN),
        (OSError(), Verdict.BROKEN),
        (redis.ConnectionError("max number of clients reached"), Verdict.SERVER_FULL),
        (redis.ReadOnlyError(), Verdict.WRONG_SERVER),
        (redis.AuthenticationError(), Verdict.FATAL),
    ],
    ids=repr,
)
def test_what_an_error_says(make: MakePool, error: Exception, verdict: Verdict) -> None:
    assert make(url="redis://127.0.0.1:1")._classify_error(error) is verdict


def test_an_error_of_a_command_leaves_the_connection_where_it_is(make: MakePool) -> None:
    pool = make()
    client = client_of(pool)
    before = client.client_id()
    with pytest.raises(redis.ResponseError):
        client.execute_command("NONSENSE")
    assert client.client_id() == before


# The rest


def test_keepalive_finds_what_is_dead_in_silence(make: MakePool) -> None:
    with ChaosProxy(require_server("redis")) as proxy:
        host, port = proxy.address
        pool = make(url=f"redis://{host}:{port}", keepalive=0.05, keepalive_timeout=0.1)
        pool.fill()
        until(lambda: pool.stats().checked >= 2)
        assert closed(pool) == 0
        proxy.black_hole()
        until(lambda: closed(pool) >= 1)
        pool.close()


class Caching(EchoServer):
    """As much of a Redis 7.4 as a client with a cache needs, which the Redis here need not be."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.last: Any = None

    def serve(self, sock: Any) -> None:
        self.last = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = b"%3 +proto :3 +server +redis +version +7.4.0 "
        while data := sock.recv(65536):
            for command in data.split(b"*")[1:]:
                name = command.split(b"\r\n")[2]
                self.asked += name == b"GET"
                answer = {b"HELLO": hello, b"GET": b"+value "}.get(name, b"+OK ")
                sock.sendall(answer.replace(b" ", b"\r\n"))


def test_what_is_in_a_client_s_cache_is_forgotten_when_the_server_says_so(make: MakePool) -> None:
    with Caching() as server:
        host, port = server.address
        pool = make(url=f"redis://{host}:{port}", protocol=3, cache_config=CacheConfig())
        client = client_of(pool)
        assert [client.get("key"), client.get("key")] == [b"value", b"value"]
        assert server.asked == 1
        (conn,) = pool._available_connections

        server.last.sendall(b">2\r\n+invalidate\r\n*1\r\n+key\r\n")
        until_readable(conn._conn._sock.fileno())

        assert client.get("key") == b"value"
        assert server.asked == 2
        pool.close()


def test_a_pool_that_was_dropped_is_collected_and_its_sockets_are_closed() -> None:
    host, port = require_server("redis")
    pool = GeventConnectionPool.from_url(f"redis://{host}:{port}", size=2)
    pool.fill()
    client = client_of(pool)
    conns = [weakref.ref(conn) for conn in pool._available_connections]
    assert len(conns) == 2
    dropped = weakref.ref(pool)

    del pool, client

    until(lambda: gc.collect() is not None and dropped() is None)
    until(lambda: not any(conn() for conn in conns))


@pytest.mark.slow
def test_a_cluster_has_a_pool_for_each_node() -> None:
    with OwnRedis("--cluster-enabled", "yes") as server:
        host, port = server.address
        with redis.Redis(host, port) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        cluster = redis.RedisCluster.from_url(
            f"redis://{host}:{port}",
            connection_pool_class=functools.partial(GeventConnectionPool, size=3, timeout=5),
        )
        greenlets = [gevent.spawn(cluster.set, f"key {n}", n) for n in range(30)]
        gevent.joinall(greenlets, raise_error=True)
        assert cluster.get("key 7") == b"7"
        (node,) = cluster.get_nodes()
        pool = node.redis_connection.connection_pool
        assert isinstance(pool, GeventConnectionPool)
        until(lambda: pool.stats().idle == 3)

        server.restart()
        with suppress(redis.ConnectionError):
            cluster.get("key 7")  # maybe one notices
        until(lambda: pool.stats().idle == 3)
        cluster.set("key", "value")
        assert cluster.get("key") == b"value"
        cluster.close()
        pool.close()


@pytest.mark.slow
def test_a_cluster_that_reads_from_replicas_keeps_its_connections() -> None:
    with OwnRedis("--cluster-enabled", "yes") as server:
        host, port = server.address
        with redis.Redis(host, port) as node:
            node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        cluster = redis.RedisCluster.from_url(
            f"redis://{host}:{port}",
            load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN,  # READONLY at each dial
            connection_pool_class=functools.partial(GeventConnectionPool, size=1, timeout=5),
        )
        (node,) = cluster.get_nodes()
        pool = node.redis_connection.connection_pool
        cluster.set("key", "value")
        before = closed(pool)
        for _ in range(3):
            assert cluster.get("key") == b"value"
            assert node.redis_connection.client_info()["flags"] == "r"
        assert closed(pool) == before
        cluster.readonly(target_nodes=[node])
        until(lambda: closed(pool) == before + 1)
        cluster.close()
        pool.close()


@pytest.mark.skipif(monkey.is_module_patched("socket"), reason="only where it would block")
def test_sentinels_are_not_asked_where_that_would_block() -> None:
    sentinel = redis.Sentinel([("127.0.0.1", 1)])
    with pytest.raises(RuntimeError, match="patch_all"):
        sentinel.master_for("shop", connection_pool_class=GeventSentinelConnectionPool)


@pytest.mark.slow
@pytest.mark.skipif(not monkey.is_module_patched("socket"), reason="needs a patched program")
def test_a_master_that_moves_is_followed() -> None:
    with OwnRedis() as one, OwnRedis("--replicaof", *map(str, one.address)) as two:
        monitor = f"sentinel monitor shop {one.address[0]} {one.address[1]} 1"
        quick = (
            "sentinel down-after-milliseconds shop 1000",
            "sentinel failover-timeout shop 3000",
        )
        with OwnSentinel(monitor, *quick) as watcher:
            with redis.Redis(*watcher.address) as admin:
                admin.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 100)
                until(lambda: admin.sentinel_slaves("shop"), "the replica to be known")
                sentinel = redis.Sentinel([watcher.address])
                arguments = {"connection_pool_class": GeventSentinelConnectionPool, "timeout": 5}
                master = sentinel.master_for("shop", size=3, **arguments)
                replica = sentinel.slave_for("shop", size=1, min_size=0, **arguments)
                pool = master.connection_pool
                pool.fill()
                master.set("key", "value")
                assert {conn.port for conn in pool._available_connections} == {one.address[1]}
                until(lambda: replica.get("key") == b"value")

                with pytest.raises(redis.ReadOnlyError):
                    replica.set("key", "no")
                assert replica.connection_pool.stats().opened == 1

                until(lambda: _failover(admin), "a replica fit to take over")
                until(lambda: _writes(master) == two.address[1], "the new master")
                pool.fill()
                assert {conn.port for conn in pool._available_connections} == {two.address[1]}
                pool.close()
                replica.connection_pool.close()


def _failover(admin: Any) -> bool:
    try:
        return bool(admin.execute_command("SENTINEL", "FAILOVER", "shop"))
    except redis.ResponseError:
        return False


def _writes(client: Any) -> int | None:
    """The port of the server that took a write."""
    try:
        with client.client() as single:
            single.set("key", "again")
            return int(single.connection.port)
    except redis.RedisError:
        return None
