"""STARTTLS and a login, done once per connection: the caller that gets one may talk at once.

``_new_connection`` is the place for all that comes before the first request.  It may take its time
(connect_timeout bounds it), and it may fail: the pool tries again, after a pause.
"""

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import gevent
from gevent import socket, ssl
from gevent.server import StreamServer

from geventpool import ConnectionPool

USER, PASSWORD = "alice", "open sesame"


class MailPool(ConnectionPool):
    """Connections to a server that wants TLS and a login first."""

    def __init__(self, size, address, context, **options):
        self.address = address
        # Made once: reading the trusted certificates takes longer than connecting does.
        self.context = context
        super().__init__(size, **options)

    def _new_connection(self):
        with ExitStack() as on_failure:  # whatever goes wrong, a Timeout included: nothing stays
            sock = on_failure.enter_context(socket.create_connection(self.address))
            command(sock, "STARTTLS")
            # Verifies the certificate, and that it is this host's, or raises.
            sock = self.context.wrap_socket(sock, server_hostname=self.address[0])
            on_failure.enter_context(sock)
            command(sock, f"LOGIN {USER} {PASSWORD}")
            on_failure.pop_all()  # it is the pool's now
            return sock


def command(sock, text):
    """Send a line, and return the reply to it; OSError if the server did not like it."""
    sock.sendall(text.encode() + b"\n")
    reply = read_line(sock)
    if not reply.startswith("OK"):
        # An OSError: _new_connection has failed; or, in a `with`, the connection is discarded.
        raise OSError(f"the server said: {reply or 'nothing'}")
    return reply


def read_line(sock):
    # Byte by byte: what comes behind the line after STARTTLS is not for us but for TLS.
    line = b""
    while not line.endswith(b"\n") and (byte := sock.recv(1)):
        line += byte
    return line.decode().strip()


def main():
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = make_certificate(Path(folder))
        server = start_server(certificate, key)

        # gevent's SSLContext: the one of the standard library blocks all greenlets in a handshake,
        # in a program that is not monkey-patched.  PROTOCOL_TLS_CLIENT verifies; keep it so.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)  # or load_default_certs()

        with MailPool(3, ("localhost", server.server_port), context) as pool:

            def count_mails():
                with pool.get() as sock:
                    return sock.version(), command(sock, "COUNT")

            for greenlet in gevent.wait([gevent.spawn(count_mails) for _ in range(9)]):
                print(*greenlet.get())
            print(f"{pool.stats().opened} handshakes and logins, for 9 requests")

        # A server with a certificate that we have no reason to trust is not talked to.
        strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        strict.load_default_certs()
        with MailPool(1, pool.address, strict, fail_fast=True) as pool:
            try:
                pool.acquire()
            except ssl.SSLCertVerificationError as error:
                print(f"With the certificates of the system: {error.verify_message}")
        server.stop()


# A small server to try it with


def start_server(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(sock, address):
        try:
            if read_line(sock) != "STARTTLS":
                sock.sendall(b"NO, not in clear text\n")
                return
            sock.sendall(b"OK\n")
            sock = context.wrap_socket(sock, server_side=True)
            if read_line(sock) != f"LOGIN {USER} {PASSWORD}":
                sock.sendall(b"NO\n")
                return
            sock.sendall(b"OK, logged in\n")
            while read_line(sock) == "COUNT":
                gevent.sleep(0.05)
                sock.sendall(b"OK, 7 mails\n")
        except OSError:
            pass  # the client has gone, or does not trust us
        finally:
            sock.close()

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    return server


def make_certificate(folder):
    """Have the openssl command make a certificate for the name "localhost"; it and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
    )
    return certificate, key


if __name__ == "__main__":
    main()
