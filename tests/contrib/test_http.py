"""contrib.http: what HttpPool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest

from geventpool import ConnectError, PoolTimeout, Verdict
from geventpool.contrib.http import HttpPool, ResponseTooLarge
from geventpool.events import Reason
from geventpool.testing import EchoServer
from support.adapters.http import LARGE, OwnNginx, shared
from support.descriptors import LINGER_0

MakePool = Callable[..., HttpPool]


RESET = b"reset"


class Server(EchoServer):
    """Answers each request, which *requests* has, by what *answers* has for it, in order; None:
    it hangs up instead, and after the last one, too.  An answer that ends with RESET is sent
    without that, and the connection reset."""

    def __init__(self, *answers: bytes | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.answers = list(answers)
        self.requests: list[bytes] = []

    def serve(self, sock: Any) -> None:
        while self.answers:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (data := sock.recv(65536)):
                    return
                request += data
            self.requests.append(request)
            if (answer := self.answers.pop(0)) is None:
                return
            sock.sendall(answer.removesuffix(RESET))
            if answer.endswith(RESET):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                return


def ok(body: bytes = b"yes", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


@pytest.fixture
def make() -> Iterator[MakePool]:
    """Makes pools, closed at the end."""
    with ExitStack() as stack:

        def make(server: Any = None, path: str = "", **arguments: Any) -> HttpPool:
            host, port = (server or shared()).address
            return stack.enter_context(
                HttpPool(f"http://{host}:{port}{path}", **{"timeout": 5, **arguments})
            )

        yield make


def test_an_answer_is_a_status_headers_and_a_body(make: MakePool) -> None:
    answer = make().request("GET", "/echo/hello")
    assert (answer.status, answer.reason, answer.body) == (200, "OK", b"hello")
    assert answer.headers["content-type"] == "text/plain"


def test_an_answer_that_is_no_success_is_returned_too(make: MakePool) -> None:
    pool = make()
    assert pool.request("GET", "/echo")[::3] == (404, b"nothing here")
    assert pool.request("GET").status == 404
    assert pool.stats().opened == 1


def test_a_time_limit_that_a_user_gave_its_socket_goes_with_it(make: MakePool) -> None:
    pool = make(size=1, read_timeout=7.0)
    with pool.get() as conn:
        conn.sock.settimeout(0.1)
    with pool.get() as again:
        assert again is conn
        assert again.sock.gettimeout() == 7.0


def test_a_head_has_no_body(make: MakePool) -> None:
    pool = make(size=1)
    answer = pool.request("HEAD", "/large")
    assert (answer.headers["Content-Length"], answer.body) == (str(LARGE), b"")
    assert pool.request("GET", "/echo/hello").body == b"hello"
    assert pool.stats().opened == 1


def test_the_path_and_the_headers_of_a_pool_go_with_every_request(make: MakePool) -> None:
    with Server(ok(), ok(), ok()) as server:
        pool = make(server, "/v1/", headers={"Accept": "text/plain", "X-Key": "one"}, size=1)
        pool.request("GET", "/a?b=c", headers={"X-Key": "two"})
        pool.request("PUT", "/a", b"body")
        first, second = server.requests
    assert first.startswith(b"GET /v1/a?b=c HTTP/1.1\r\n")
    assert b"Accept: text/plain\r\nX-Key: two\r\n" in first
    assert b"X-Key: one\r\n" in second
    assert second.endswith(b"\r\n\r\nbody")
    assert b"Content-Length: 4\r\n" in second


def test_connections_are_opened_as_they_are_needed_and_shared(make: MakePool) -> None:
    pool = make(size=3)
    greenlets = [gevent.spawn(pool.request, "GET", f"/slow/0.01/{n}") for n in range(20)]
    gevent.joinall(greenlets, raise_error=True)
    assert [each.value.body for each in greenlets] == [b"%d" % n for n in range(20)]
    assert pool.stats().opened <= 3


# What may be sent again


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_what_dies_with_an_idle_connection_is_sent_once_more_if_that_is_safe(
    make: MakePool, method: str
) -> None:
    with Server(ok(b""), None, ok(b"")) as server:
        pool = make(server, size=1)
        pool.request("GET", "/first")
        assert pool.request(method, "/second").status == 200
        assert [each.split()[1] for each in server.requests] == [b"/first", b"/second", b"/second"]
        assert pool.stats().opened == 2


@pytest.mark.parametrize(("method", "body"), [("POST", b"x"), ("PATCH", b"x"), ("PUT", [b"x"])])
def test_else_it_is_not(make: MakePool, method: str, body: Any) -> None:
    with Server(ok(), None, ok()) as server:
        pool = make(server, size=1)
        pool.request("GET", "/first")
        with pytest.raises(http.client.RemoteDisconnected):
            pool.request(method, "/second", iter(body) if isinstance(body, list) else body)
        assert len(server.requests) == 2


def test_nor_what_dies_with_a_connection_that_was_new(make: MakePool) -> None:
    with Server(None, ok()) as server:
        pool = make(server, size=1)
        with pytest.raises(http.client.RemoteDisconnected):
            pool.request("GET", "/first")
        assert len(server.requests) == 1


def test_nor_what_was_answered_by_half(make: MakePool) -> None:
    with Server(ok(), ok(b"not all of it")[:-5], ok()) as server:
        server.answers.insert(2, None)
        pool = make(server, size=1, read_timeout=0.2)
        pool.request("GET", "/first")
        with pytest.raises((http.client.IncompleteRead, TimeoutError)):
            pool.request("GET", "/second")
        assert len(server.requests) == 2


def test_nor_what_was_answered_by_half_and_then_reset(make: MakePool) -> None:
    with Server(ok(), ok(b"not all of it")[:-5] + RESET, ok()) as server:
        pool = make(server, size=1)
        pool.request("GET", "/first")
        with pytest.raises(ConnectionResetError):
            pool.request("GET", "/second")
        assert len(server.requests) == 2


def test_it_is_sent_twice_at_most(make: MakePool) -> None:
    with Server(ok(), ok(), None, None, ok()) as server:
        pool = make(server, size=2)
        with pool.get() as one, pool.get() as two:
            one.exchange("GET", "/first")
            two.exchange("GET", "/first")
        with pytest.raises(http.client.RemoteDisconnected):
            pool.request("GET", "/second")
        assert len(server.requests) == 4


# What becomes of a connection


def test_a_connection_that_the_server_will_close_is_not_used_again(make: MakePool) -> None:
    pool = make(size=1)
    assert pool.request("GET", "/last").body == b"last"
    assert pool.request("GET", "/echo/hello").body == b"hello"
    assert pool.stats().opened == 2


def test_nor_is_one_with_an_answer_too_many(make: MakePool) -> None:
    with Server(ok(), ok()) as server:
        server.answers[0] += ok(b"nobody has asked for this" * 1000)
        pool = make(server, size=1)
        assert pool.request("GET", "/first").body == b"yes"
        assert pool.request("GET", "/second").body == b"yes"
        assert pool.stats().opened == 2


def test_nor_is_one_that_has_switched_protocols(make: MakePool) -> None:
    switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\n\r\n"
    with Server(switched, ok()) as server:
        pool = make(server, size=1)
        assert pool.request("GET", "/first").status == 101
        assert pool.request("GET", "/second").status == 200
        assert pool.stats().opened == 2


def test_a_body_is_read_only_so_far(make: MakePool) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 40
    with Server(ok(b"x" * 101), chunked + b"0\r\n\r\n", ok(b"x" * 100)) as server:
        pool = make(server, size=1, max_body=100)
        for _ in range(2):
            with pytest.raises(ResponseTooLarge, match="100"):
                pool.request("GET", "/first")
        assert len(pool.request("GET", "/second").body) == 100
        assert pool.stats().opened == 3


def test_a_long_body_may_be_read_in_parts(make: MakePool) -> None:
    pool = make(size=1, max_body=10)
    with pool.get() as conn:
        conn.request("GET", "/large")
        answer = conn.getresponse()
        assert sum(len(part) for part in iter(lambda: answer.read(1000), b"")) == LARGE
    assert pool.request("GET", "/echo/hello").body == b"hello"
    assert pool.stats().opened == 1


def test_a_server_that_is_silent_costs_no_more_than_read_timeout(make: MakePool) -> None:
    pool = make(size=1, read_timeout=0.1)
    with pytest.raises(TimeoutError):
        pool.request("GET", "/slow/2/hello")
    assert pool.request("GET", "/echo/hello").body == b"hello"


def test_one_is_not_used_again_shortly_before_the_server_would_close_it(make: MakePool) -> None:
    with Server(ok(b"", b"Keep-Alive: timeout=1, max=99"), ok(), ok()) as server:
        pool = make(server, size=1)
        pool.request("GET", "/first")
        gevent.sleep(0.85)
        pool.request("GET", "/second")
        assert pool.stats().closed[Reason.GONE] == 1
        pool.request("GET", "/third")
        assert pool.stats().opened == 2


@pytest.mark.slow
def test_a_server_that_closes_idle_connections_costs_no_request(make: MakePool) -> None:
    with OwnNginx("1") as server:
        pool = make(server, size=4)

        def user(number: int) -> None:
            for turn in range(4):
                token = f"{number}-{turn}".encode()
                # Nothing of these is ever sent twice.
                answer = pool.request("POST", f"/slow/0.01/{number}-{turn}", b"")
                assert (answer.status, answer.body) == (200, token)
                gevent.sleep(0.9 + number * 0.01)

        gevent.joinall([gevent.spawn(user, number) for number in range(20)], raise_error=True)
        assert pool.stats().opened > 4
        pool.close()


def test_keepalive_asks_for_any_answer(make: MakePool) -> None:
    with Server(*[ok(b"")] * 3) as server:
        pool = make(server, size=1, min_size=1, keepalive=0.02, ping_path="/health")
        while pool.stats().checked < 2:
            gevent.sleep(0.01)
        assert server.requests[0].startswith(b"HEAD /health HTTP/1.1\r\n")


# TLS, and arguments


def test_https_is_verified(contexts: tuple[Any, Any]) -> None:
    with Server(ok(), ssl_context=contexts[0]) as server:
        url = f"https://localhost:{server.address[1]}"
        with HttpPool(url, 1, tls=contexts[1], timeout=5) as pool:
            assert pool.request("GET", "/first").body == b"yes"
        assert f"Host: localhost:{server.address[1]}".encode() in server.requests[0]
        with HttpPool(url, 1, timeout=0.3) as pool, pytest.raises(PoolTimeout) as raised:
            pool.request("GET", "/first")
        assert "certificate" in str(raised.value.__cause__)


def test_a_server_that_is_away_is_the_cause() -> None:
    with HttpPool("http://127.0.0.1:1", 1, timeout=0.1) as pool:
        with pytest.raises(PoolTimeout) as raised:
            pool.request("GET", "/")
    assert "refused" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (http.client.RemoteDisconnected(), Verdict.BROKEN),
        (http.client.CannotSendRequest(), Verdict.BROKEN),
        (ResponseTooLarge(), Verdict.BROKEN),
        (ConnectError(), Verdict.BROKEN),
        (ValueError(), Verdict.FINE),
    ],
    ids=repr,
)
def test_what_an_error_says(make: MakePool, error: Exception, verdict: Verdict) -> None:
    assert make()._classify_error(error) is verdict


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.org",
        "https://user:hunter2/x@example.org",
        "https://user:#hunter2@example.org",
        "user:hunter2@example.org",
        "https://[user:hunter2@example.org",
        "https://example.org/?key=hunter2",
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="base_url must") as raised:
        HttpPool(url)
    assert "hunter2" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_a_url_that_is_no_string_is_said_by_its_type() -> None:
    with pytest.raises(TypeError, match="base_url must be a string, not a bytes"):
        HttpPool(b"https://user:hunter2@example.org")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_a_header_of_a_request_replaces_the_pool_s_in_any_case(make: MakePool, name: str) -> None:
    with Server(ok(), ok()) as server:
        pool = make(server, headers={"Authorization": "of the pool", "X-Other": "kept"})
        pool.request("GET", "/", headers={name: "of the request"})
        pool.request("GET", "/")
        own, next_one = (request.lower() for request in server.requests)
        assert own.count(b"authorization:") == 1
        assert b"authorization: of the request\r\n" in own
        assert b"x-other: kept\r\n" in own
        assert b"authorization: of the pool\r\n" in next_one


@pytest.mark.parametrize(
    "url",
    ["example.org", "ftp://example.org", "http://", "http://me:secret@example.org", "http://a?b=c"],
)
def test_a_url_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        HttpPool(url)


def test_a_wrong_argument_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        HttpPool("http://example.org", nonsense=1)
    with pytest.raises(ValueError, match="max_body"):
        HttpPool("http://example.org", max_body=0)
