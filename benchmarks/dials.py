"""How many sockets a second a SocketFactory opens, against the bare calls it is made of."""

from __future__ import annotations

import contextlib
import ssl as stdlib_ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gevent import socket, ssl
from gevent.server import StreamServer

from benchmarks.measure import Row, interleaved, timed
from benchmarks.server import echo_server
from geventpool.sockets import SocketFactory

__all__ = ["dials"]

Connect = Callable[[], Any]


def dials(quick: bool) -> list[Row]:
    """Open a socket and close it: TCP against ``create_connection``, TLS against ``ssl``, which
    makes a full handshake each time, and resumes a session by hand."""
    return [*_tcp(100 if quick else 500, 5 if quick else 25), *_tls(30, 5 if quick else 25)]


def _tcp(count: int, rounds: int) -> list[Row]:
    with echo_server() as address:
        factory = SocketFactory(address)
        ours, bare = _race(count, rounds, factory, lambda: socket.create_connection(address))
    return [_row("dials per second (best), TCP | create_connection", ours, bare, 0.85)]


def _tls(count: int, rounds: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, _tls_echo_server(Path(folder)) as address:
        context = ssl.create_default_context(cafile=str(Path(folder) / "certificate.pem"))

        def bare(session: Any = None) -> Any:
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What context.wrap_socket() does in a program that is monkey-patched.
            return ssl.SSLSocket(
                sock=sock, server_hostname="localhost", _context=context, _session=session
            )

        def forgetful() -> Any:
            factory._tls_sessions.clear()
            return factory()

        factory = SocketFactory(address, tls=context, server_hostname="localhost")
        full = _race(count, rounds, forgetful, bare)
        rows.append(_row("dials per second (best), TLS, full handshake | ssl", *full, 0.8))

        known = bare()
        _talk(known)
        factory = SocketFactory(address, tls=context, server_hostname="localhost")
        first = factory()
        _talk(first)
        with contextlib.closing(known), contextlib.closing(first):
            session = known.session
            resumed = _race(count, rounds, factory, lambda: bare(session))
            again = factory()
            assert again.session_reused, "nothing was resumed"
            again.close()
        rows.append(_row("dials per second (best), TLS, resumed | ssl, resumed", *resumed, 0.85))
        rows.append(_row("dials per second (best), TLS, resumed | ssl", resumed[0], full[1], 1.0))
    return rows


def _race(count: int, rounds: int, ours: Connect, bare: Connect) -> tuple[float, float]:
    """Dials per second of both in their best rounds: a busy machine only slows a round down."""
    times = interleaved(
        rounds,
        ours=lambda: timed(lambda: _open_and_close(ours, count)),
        bare=lambda: timed(lambda: _open_and_close(bare, count)),
    )
    return count / min(times["ours"]), count / min(times["bare"])


def _open_and_close(connect: Connect, count: int) -> None:
    for _ in range(count):
        connect().close()


def _row(what: str, ours: float, reference: float, bar: float) -> Row:
    return Row(what, f"{ours:.0f}", f"{reference:.0f}", ours / reference, bar, at_least=True)


def _talk(sock: Any) -> None:
    """The session tickets of TLS 1.3 come with the first answer."""
    sock.sendall(b"hello")
    sock.recv(5)


@contextlib.contextmanager
def _tls_echo_server(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of an echo server, in a process of its own, as long as the ``with``."""
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, capture_output=True)
    serve = [sys.executable, "-m", "benchmarks.dials", str(folder)]
    with subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())
        try:
            yield "127.0.0.1", port
        finally:
            process.stdin.close()  # which is what it waits for


def _echo(sock: Any, address: object) -> None:
    with contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)
    sock.close()


def _serve(folder: Path) -> None:
    context = ssl.SSLContext(stdlib_ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")

    def talk(raw: Any, address: object) -> None:
        try:
            sock = context.wrap_socket(raw, server_side=True)
        except OSError:
            raw.close()  # the client has gone
        else:
            _echo(sock, address)

    server = StreamServer(("127.0.0.1", 0), talk, backlog=4096)
    server.start()
    print(server.server_port, flush=True)
    socket.wait_read(sys.stdin.fileno())


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
