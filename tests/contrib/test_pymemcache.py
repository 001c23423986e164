"""contrib.pymemcache: what PymemcachePool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from pymemcache import exceptions

from geventpool import PoolTimeout, Verdict
from geventpool.contrib.pymemcache import PymemcachePool
from geventpool.events import Reason
from geventpool.testing import ChaosProxy, EchoServer
from support.adapters.memcached import shared
from support.waiting import until

MakePool = Callable[..., PymemcachePool]


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools of one client, closed at the end."""
    pools: list[PymemcachePool] = []

    def make(size: int = 1, **arguments: Any) -> PymemcachePool:
        server = arguments.pop("server", None) or shared().address
        pools.append(PymemcachePool(server, size, **{"timeout": 5.0, **arguments}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_it_has_the_methods_of_a_client(make: MakePool) -> None:
    cache = make(2)
    cache.flush_all()
    assert cache.set("a", "1") is True
    assert cache.get("a") == b"1"
    assert cache.get("b", "nothing") == "nothing"
    assert cache.set_many({"b": 2, "c": 3}) == []
    assert cache.get_many(["a", "b", "x"]) == {"a": b"1", "b": b"2"}
    assert cache.add("a", 5) is False
    assert cache.replace("a", 6) is True
    assert cache.append("a", "7") is True
    assert cache.prepend("a", "5") is True
    assert cache["a"] == b"567"
    assert cache.incr("a", 3) == 570
    assert cache.decr("a", 70) == 500
    value, token = cache.gets("a")
    assert cache.cas("a", b"9", token) is True
    assert cache.cas("a", b"9", token) is False
    assert set(cache.gets_many(["a", "b"])) == {"a", "b"}
    assert cache.touch("a", 60) is True
    cache["d"] = b"4"
    assert cache.delete("d") is True
    del cache["c"]
    assert cache.delete_many(["a", "b"]) is True
    assert cache.get_multi(["a", "b", "c", "d"]) == {}
    assert cache.version() == cache.raw_command("version").split()[1]
    assert value == b"500"


def test_the_pool_s_own_methods_are_there_too(make: MakePool) -> None:
    cache = make(2)
    with cache.get() as client, cache.get(timeout=1) as other:
        assert client is not other
        assert client.set("key", "value") is True
        assert cache.stats().in_use == 2
    assert cache.execute("get", "key") == b"value"
    assert cache.execute(lambda client: client.get("key")) == b"value"
    assert b"pid" in cache.execute("stats")


def test_each_call_is_served_by_a_connection_of_the_pool_and_gives_it_back(make: MakePool) -> None:
    cache = make(3)
    greenlets = [
        gevent.spawn(lambda n=n: (cache.set(f"key{n}", str(n)), cache.get(f"key{n}")))
        for n in range(50)
    ]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [(True, b"%d" % n) for n in range(50)]
    assert cache.stats().opened == 3


def test_a_command_waits_for_its_reply_unless_it_is_told_not_to(make: MakePool) -> None:
    cache = make()
    with pytest.raises(exceptions.MemcacheServerError):
        cache.set("large", b"x" * 2_000_000)
    assert make(default_noreply=True).set("large", b"x") is True


def test_so_do_items_whose_client_has_them_not_wait(make: MakePool) -> None:
    cache = make()
    with pytest.raises(exceptions.MemcacheServerError):
        cache["large"] = b"x" * 2_000_000
    cache["small"] = b"x"
    del cache["small"]
    with pytest.raises(KeyError):
        cache["small"]


def test_a_client_that_has_connected_by_itself_is_not_used_again(make: MakePool) -> None:
    cache = make()
    with cache.get() as client:
        client.close()
        client.set("key", "value")
        again = client.sock.getsockname()
    with cache.get() as client:
        assert client.sock.getsockname() != again
    assert cache.stats().closed[Reason.GONE] == 1


def test_a_client_that_has_closed_its_connection_is_not_used_again(make: MakePool) -> None:
    cache = make()
    cache.version()
    with cache.get() as client:
        client.close()
    cache.version()
    assert cache.stats().opened == 2


def test_arguments_of_the_client_are_the_client_s(make: MakePool) -> None:
    cache = make(key_prefix=b"mine:")
    cache.set("key", "value")
    assert make().get("mine:key") == b"value"


def test_a_wrong_argument_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        PymemcachePool(("127.0.0.1", 1), nonsense=1)


def test_a_server_that_takes_connections_and_answers_nothing_is_no_memcached(
    make: MakePool,
) -> None:
    class Silent(EchoServer):
        def serve(self, sock: Any) -> None:
            while sock.recv(65536):
                pass

    with Silent() as server:
        cache = make(server=server.address, timeout=0.3, connect_timeout=0.1)
        with gevent.Timeout(5), pytest.raises(PoolTimeout) as raised:
            cache.get("key")
        assert raised.value.__cause__ is not None
        cache.close()


def test_a_server_that_hangs_costs_no_more_than_socket_timeout(make: MakePool) -> None:
    with ChaosProxy(shared().address) as proxy:
        cache = make(server=proxy.address, socket_timeout=0.1)
        cache.version()
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            cache.get("key")
        proxy.normal()
        assert cache.get("never") is None
        cache.close()


def test_keepalive_finds_what_is_dead_in_silence(make: MakePool) -> None:
    with ChaosProxy(shared().address) as proxy:
        cache = make(server=proxy.address, keepalive=0.05, keepalive_timeout=0.1)
        cache.fill()
        until(lambda: cache.stats().checked >= 2)
        proxy.black_hole()
        until(lambda: cache.stats().closed[Reason.KEEPALIVE] >= 1)
        cache.close()


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (exceptions.MemcacheUnexpectedCloseError(), Verdict.BROKEN),
        (exceptions.MemcacheUnknownError(), Verdict.BROKEN),
        (OSError(), Verdict.BROKEN),
        (exceptions.MemcacheIllegalInputError(), Verdict.FINE),
        (exceptions.MemcacheServerError(), Verdict.FINE),
        (KeyError("key"), Verdict.FINE),
    ],
    ids=repr,
)
def test_what_an_error_says(make: MakePool, error: Exception, verdict: Verdict) -> None:
    assert make(min_size=0)._classify_error(error) is verdict
