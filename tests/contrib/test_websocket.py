"""contrib.websocket: what WebSocketPool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

import ssl
from typing import Any

import gevent.ssl
import pytest
import websocket

from geventpool import Verdict
from geventpool.contrib.websocket import WebSocketPool
from support.certificates import Certificates
from support.small_servers import OwnWebSocket, shared
from support.waiting import until, until_readable


def pool_of(**settings: Any) -> WebSocketPool:
    host, port = shared(OwnWebSocket)
    return WebSocketPool(f"ws://{host}:{port}/", 1, **{"timeout": 5, **settings})


def test_the_keepalive_answers_the_pings_of_the_server() -> None:
    with pool_of() as pool, pool.get() as ws:
        ws.send("ping")
        answered = []
        ws.pong = lambda payload: (answered.append(1), websocket.WebSocket.pong(ws, payload))
        until(lambda: pool._keepalive(ws) or answered)
        ws.send("0 hello")
        assert ws.recv() == "hello"


def test_a_message_in_place_of_the_pong_means_that_it_is_out_of_step() -> None:
    with pool_of() as pool:
        ws = pool.acquire()
        ws.send("0 hello")
        until_readable(ws.sock.fileno())  # else the pong might overtake it
        with pytest.raises(websocket.WebSocketException, match="in place of a pong"):
            pool._keepalive(ws)
        pool.discard(ws)


def test_a_message_that_was_sent_by_half_costs_the_connection() -> None:
    with pool_of() as pool:
        with pool.get() as ws:
            ws.send_frame(websocket.ABNF.create_frame("0 half", websocket.ABNF.OPCODE_TEXT, 0))
        with pool.get() as other:
            assert other is not ws
            other.send_frame(websocket.ABNF.create_frame("0 who", websocket.ABNF.OPCODE_TEXT, 0))
            other.send_frame(websocket.ABNF.create_frame("le", websocket.ABNF.OPCODE_CONT, 1))
            assert other.recv() == "whole"
        with pool.get() as again:
            assert again is other


def test_one_that_has_said_goodbye_is_not_used_again() -> None:
    with pool_of() as pool:
        ws = pool.acquire()
        ws.send_close()
        with pytest.raises(websocket.WebSocketException, match="goodbye"):
            pool._reset_connection(ws)
        pool.discard(ws)


def test_a_server_that_refuses_is_no_matter_of_time() -> None:
    error = websocket.WebSocketBadStatusException("Handshake status %d %s", 403, "Forbidden")
    with pool_of() as pool:
        assert pool._classify_error(error) is Verdict.FATAL
        assert pool._classify_error(websocket.WebSocketTimeoutException()) is Verdict.BROKEN
        assert pool._classify_error(KeyError()) is Verdict.FINE


@pytest.mark.slow
def test_the_certificate_is_that_of_the_host_in_the_url(certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with OwnWebSocket(str(certificates.certificate), str(certificates.key)) as server:
        url = f"wss://localhost:{server.address[1]}/"
        with WebSocketPool(url, 1, target=server.address, tls=context, timeout=5) as pool:
            with pool.get() as ws:
                assert isinstance(ws.sock, gevent.ssl.SSLSocket)
                ws.send("0.1 hello")
                assert ws.recv() == "hello"
            with pool.get() as again:
                assert again is ws


@pytest.mark.parametrize(
    "url",
    [
        "http://user:hunter2@example.org/",
        "ws://user:hunter2@example.org/",
        "ws://user:hunter2/x@example.org",
        "example.org?token=hunter2",
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="url must") as raised:
        WebSocketPool(url)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("url", ["http://example.org/", "ws:///", "example.org"])
def test_bad_urls_are_named(url: str) -> None:
    with pytest.raises(ValueError, match="url must be"):
        WebSocketPool(url)
