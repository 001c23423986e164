"""TLS that a client begins in the middle."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import pytest

from geventpool.sockets import SocketFactory, StartTLS
from support.servers import EchoServer, IdServer, ask


def test_what_it_wraps_is_cooperative_and_keeps_its_time_limit(contexts: tuple[Any, Any]) -> None:
    server_context, context = contexts
    start_tls = StartTLS(context, server_hostname="localhost")
    with IdServer(ssl_context=server_context, late_share=1.0, late_by=0.05) as server:
        sock = SocketFactory(server.address, read_timeout=5)()
        with start_tls.wrap_socket(sock, server_hostname="another", ignored=True) as secured:
            assert secured.gettimeout() == 5
            waiting = gevent.spawn(ask, secured, "hello")
            gevent.sleep(0.01)
            assert not waiting.ready()
            assert waiting.get() == "hello"


def test_it_remembers_a_wait_that_was_cut_short(contexts: tuple[Any, Any]) -> None:
    server_context, context = contexts
    start_tls = StartTLS(context, ("localhost", 25))
    with EchoServer(ssl_context=server_context) as server:
        with start_tls.wrap_socket(SocketFactory(server.address)()) as secured:
            assert not secured.cut_short
            with gevent.Timeout(0.01, False):
                secured.recv(1)
            assert secured.cut_short


def test_sessions_are_resumed(contexts: tuple[Any, Any]) -> None:
    server_context, context = contexts
    start_tls = StartTLS(context, "localhost:25")
    reused = []
    with EchoServer(ssl_context=server_context) as server:
        for _ in range(2):
            with start_tls.wrap_socket(SocketFactory(server.address)()) as secured:
                assert ask(secured, "hello") == "hello"  # the ticket comes with it
                reused.append(secured.session_reused)
    assert reused == [False, True]


def test_of_another_host_it_takes_no_certificate_and_closes_the_socket(
    contexts: tuple[Any, Any],
) -> None:
    server_context, context = contexts
    with EchoServer(ssl_context=server_context) as server:
        sock = SocketFactory(server.address)()
        with pytest.raises(ssl.SSLCertVerificationError):
            StartTLS(context, "elsewhere.example.org:25").wrap_socket(sock)
        assert sock.fileno() == -1


def test_a_handshake_that_is_cut_short_closes_the_socket() -> None:
    with gevent.socket.socket() as listener:  # which never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        sock = SocketFactory(listener.getsockname())()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
            StartTLS("unverified", "localhost:25").wrap_socket(sock)
        assert sock.fileno() == -1


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="tls must be"):
        StartTLS(False, "localhost:25")
    with pytest.raises(ValueError, match="needs server_hostname"):
        StartTLS(True, Path("/run/mail"))
