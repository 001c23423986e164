"""contrib.requests: requests and urllib3 on pools of this package, in a patched program."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import requests
import urllib3
from gevent import monkey

import geventpool
from geventpool.contrib.requests import GeventAdapter, GeventPoolManager
from geventpool.testing import EchoServer
from support.adapters.http import LARGE, OwnNginx, shared
from support.descriptors import clients_of
from support.waiting import until

patched = monkey.is_module_patched("socket")
where_patched = pytest.mark.skipif(not patched, reason="refused: urllib3 would block")


@pytest.fixture
def url() -> str:
    host, port = shared().address
    return f"http://{host}:{port}"


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("http://", GeventAdapter(3, timeout=5))
        yield session


def pool_of(url: str) -> Any:
    name = url.rpartition("/")[2]
    (pool,) = (pool for pool in geventpool.pools() if pool.name == name)
    return pool


@pytest.mark.skipif(patched, reason="only where it would block")
def test_where_it_would_block_that_is_said() -> None:
    with pytest.raises(RuntimeError, match="patch_all"):
        GeventAdapter()


@where_patched
def test_a_wrong_argument_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        GeventAdapter(nonsense=1)
    with pytest.raises(ValueError, match="size"):
        GeventAdapter(0)


@where_patched
def test_there_are_never_more_connections_than_size(session: requests.Session, url: str) -> None:
    def ask(number: int) -> str:
        return session.get(f"{url}/slow/0.01/{number}").text

    greenlets = [gevent.spawn(ask, number) for number in range(30)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value for each in greenlets] == [str(number) for number in range(30)]
    pool = pool_of(url)
    assert pool.stats().opened <= 3
    assert pool.stats().in_use == 0


@where_patched
def test_whatever_is_given_up_everyone_gets_its_own_answer(
    session: requests.Session, url: str
) -> None:
    draw = random.Random(1)
    right, given_up = [], []

    def ask(number: int) -> None:
        for turn in range(10):
            token = f"{number}-{turn}"
            path = f"/slow/0.01/{token}" if turn % 3 == 0 else f"/echo/{token}"
            with gevent.Timeout(draw.uniform(0.0005, 0.1), False):
                right.append(session.get(url + path).text == token)
                continue
            given_up.append(token)

    gevent.joinall([gevent.spawn(ask, number) for number in range(20)], raise_error=True)
    assert all(right)
    assert min(len(right), len(given_up)) > 10
    until(lambda: pool_of(url).stats().in_use == 0)


@where_patched
def test_a_stream_has_its_connection_until_it_was_read_or_closed(
    session: requests.Session, url: str
) -> None:
    with session.get(f"{url}/large", stream=True) as answer:
        assert pool_of(url).stats().in_use == 1
        assert sum(map(len, answer.iter_content(1000))) == LARGE
        assert pool_of(url).stats().in_use == 0
    with session.get(f"{url}/large", stream=True) as answer:
        assert len(answer.raw.read(1000)) == 1000
    until(lambda: pool_of(url).stats().in_use == 0)
    assert session.get(f"{url}/echo/hello").text == "hello"


@where_patched
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_read_by_half_reaches_no_other_request(method: str) -> None:
    class Server(EchoServer):
        def serve(self, sock: Any) -> None:
            while request := sock.recv(65536):
                asked.append(request.split()[0].decode())
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    asked: list[str] = []
    with Server() as server, requests.Session() as session:
        session.mount("http://", GeventAdapter(1, timeout=5))
        host, port = server.address
        url = f"http://{host}:{port}"
        half = session.get(url, stream=True)
        assert half.raw.read(2) == b"he"
        half.raw.release_conn()
        assert pool_of(url).stats().in_use == 0

        assert session.request(method, url).text == "hello"
        assert asked == ["GET", method]
        assert server.opened == 2
        assert session.request(method, url).text == "hello"
        assert server.opened == 2


@where_patched
def test_one_that_was_dropped_gives_it_back(session: requests.Session, url: str) -> None:
    answer = session.get(f"{url}/large", stream=True)
    assert pool_of(url).stats().in_use == 1
    del answer
    until(lambda: gc.collect() is not None and pool_of(url).stats().in_use == 0)


@where_patched
def test_a_connection_that_the_server_will_close_is_not_used_again(
    session: requests.Session, url: str
) -> None:
    assert session.get(f"{url}/last").text == "last"
    assert session.get(f"{url}/echo/hello").text == "hello"
    assert pool_of(url).stats().opened == 2


@where_patched
def test_a_server_that_closes_idle_connections_costs_no_request() -> None:
    with OwnNginx("1") as server, requests.Session() as session:
        host, port = server.address
        session.mount("http://", GeventAdapter(2, timeout=5))
        for _ in range(3):
            assert session.post(f"http://{host}:{port}/slow/0/hello").text == "hello"
            until(lambda: not clients_of(server.address), "the server to close it")


@where_patched
def test_when_all_are_taken_that_is_urllib3_s_error(url: str) -> None:
    manager = GeventPoolManager(1, settings={"timeout": 0.05})
    first = manager.request("GET", f"{url}/large", preload_content=False)
    with pytest.raises(
        urllib3.exceptions.EmptyPoolError, match="no connection came free"
    ) as raised:
        manager.request("GET", f"{url}/echo/hello")
    assert isinstance(raised.value.__cause__, geventpool.PoolTimeout)
    first.close()
    assert manager.request("GET", f"{url}/echo/hello").data == b"hello"
    manager.clear()


@where_patched
def test_a_server_that_is_away_is_an_error_at_once(session: requests.Session) -> None:
    with gevent.Timeout(2), pytest.raises(requests.ConnectionError, match="refused"):
        session.get("http://127.0.0.1:1/")


@where_patched
def test_https_is_verified_by_what_the_session_says(
    contexts: tuple[Any, Any], certificates: Any
) -> None:
    class Server(EchoServer):
        def serve(self, sock: Any) -> None:
            while sock.recv(65536):
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")

    with Server(ssl_context=contexts[0]) as server, requests.Session() as session:
        session.mount("https://", GeventAdapter(2, timeout=5))
        url = f"https://localhost:{server.address[1]}/"
        for _ in range(3):
            assert session.get(url, verify=str(certificates.authority)).text == "yes"
        assert server.opened == 1
        with pytest.raises(requests.exceptions.SSLError):
            session.get(url)


@where_patched
def test_once_a_session_is_closed_no_connection_is_left(url: str) -> None:
    before = clients_of(shared().address)
    with requests.Session() as session:
        session.mount("http://", GeventAdapter(2, min_size=2, timeout=5))
        session.get(f"{url}/echo/hello")
        pool_of(url).fill()
        assert len(clients_of(shared().address) - before) == 2
    until(lambda: gc.collect() is not None and clients_of(shared().address) <= before)
