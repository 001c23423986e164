"""``python -m geventpool check``: what is told of a server, and the exit status for scripts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.server import StreamServer

from geventpool.__main__ import main
from geventpool.testing import EchoServer, closed_port
from support.certificates import Certificates


@pytest.fixture
def secure(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[EchoServer]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    with EchoServer(ssl_context=context) as server:
        yield server


def check(*words: object) -> int:
    return main(["check", *map(str, words)])


def test_each_phase_and_what_was_set_on_the_socket_is_told(capsys: Any) -> None:
    with EchoServer() as server:
        assert check(f"localhost:{server.address[1]}") == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines() if line[0] != " "] == [
        "resolve",
        "connect",
        "options",
    ]
    assert "TCP_NODELAY 1" in told
    assert " ms" in told


def test_a_unix_socket_needs_no_name_looked_up(tmp_path: Path, capsys: Any) -> None:
    with EchoServer(path=tmp_path / "echo.sock"):
        assert check(f"unix:{tmp_path / 'echo.sock'}") == 0
    assert "resolve" not in capsys.readouterr().out


def test_who_refuses_is_named_and_the_status_says_so(capsys: Any) -> None:
    with closed_port() as (host, port):
        assert check(f"{host}:{port}") == 1
    told = capsys.readouterr().out
    assert "connect      FAILED" in told
    assert "refused" in told


def test_a_name_that_leads_nowhere_fails(capsys: Any) -> None:
    assert check("no-such-host.invalid:80") == 1
    assert "resolve      FAILED" in capsys.readouterr().out


def test_a_certificate_is_shown_with_its_names_and_the_days_it_has_left(
    secure: EchoServer, capsys: Any
) -> None:
    assert check(f"localhost:{secure.address[1]}", "--tls") == 0
    told = capsys.readouterr().out
    assert "certificate  0: geventpool tests, 2 days left; for localhost" in told
    assert "verify       ok" in told
    assert "TLSv1.3" in told


def test_one_that_is_about_to_expire_fails_if_that_is_asked(
    secure: EchoServer, capsys: Any
) -> None:
    assert check(f"localhost:{secure.address[1]}", "--tls", "--days", "30") == 1
    assert "days left    FAILED: 2, wanted are 30" in capsys.readouterr().out


def test_one_for_another_name_is_shown_all_the_same_and_fails(
    secure: EchoServer, capsys: Any
) -> None:
    words = (f"127.0.0.1:{secure.address[1]}", "--tls", "--sni", "elsewhere")
    assert check(*words) == 1
    told = capsys.readouterr().out
    assert "certificate  0: geventpool tests" in told
    assert "verify       FAILED: Hostname mismatch" in told


def test_a_server_that_speaks_no_tls_fails(capsys: Any) -> None:
    with EchoServer() as server:
        assert check(f"127.0.0.1:{server.address[1]}", "--tls", "--timeout", "5") == 1
    assert "tls          FAILED" in capsys.readouterr().out


def test_one_that_closes_what_is_idle_is_told_with_after_how_long(capsys: Any) -> None:
    def greet_and_go(sock: Any, address: Any) -> None:
        sock.sendall(b"hello")
        gevent.sleep(0.1)

    server = StreamServer(("127.0.0.1", 0), greet_and_go)
    server.start()
    try:
        assert check(f"127.0.0.1:{server.server_port}", "--idle", "20") == 3
    finally:
        server.stop()
    told = capsys.readouterr().out
    assert "5 bytes came unasked" in told
    assert "closed by the server after 0." in told


def test_one_that_keeps_what_is_idle_is_well(capsys: Any) -> None:
    with EchoServer() as server:
        assert check(f"127.0.0.1:{server.address[1]}", "--idle", "0.05") == 0
    assert "still open after 0.05 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["nonsense"], ["host:99999"], ["host:1", "--sni", "x"], ["host:1", "--idle", "-1"]]
)
def test_a_wrong_command_line_is_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        check(*words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
