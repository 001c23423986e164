"""TLS: verified by default, with a certificate of one's own if the server wants one, and resumed.

A full handshake is work for both sides, and with TLS 1.2 one more round trip.  When a pool replaces
a connection, it resumes the session of an earlier one instead.
"""

import ssl
import subprocess
import tempfile
from pathlib import Path

import gevent.ssl
from gevent.server import StreamServer

from geventpool import ConnectionPool, SocketFactory


def main():
    with tempfile.TemporaryDirectory() as folder:
        ours = make_certificate(Path(folder), "client")
        theirs = make_certificate(Path(folder), "localhost")
        server = start_server(theirs, clients=ours)
        address = ("localhost", server.server_port)

        # With a certificate from a public authority it is SocketFactory("host:443", tls=True).
        # A context says more: whom to trust, who we are, which protocols we speak (ALPN).
        context = ssl.create_default_context(cafile=theirs[0])
        context.load_cert_chain(*ours)
        context.set_alpn_protocols(["shout/1"])

        with ConnectionPool(2, connect=SocketFactory(address, tls=context)) as pool:
            with pool.get() as sock:
                print(f"{sock.version()}, {sock.selected_alpn_protocol()}:", ask(sock, "who am I?"))
            pool.fill()

            pool.drain()  # replace all connections, as max_lifetime does all the time
            pool.fill()
            with pool.get() as sock:
                print("again:", ask(sock, "and now?"), f"(resumed: {sock.session_reused})")

        # Who is not trusted is not talked to, and the error says why.
        for what, options in (
            ("the system's authorities", {"tls": True}),
            ("another name", {"tls": context, "server_hostname": "bank.example"}),
        ):
            try:
                SocketFactory(address, **options)().close()
            except ssl.SSLCertVerificationError as error:
                print(f"with {what}: {error.verify_message}")
        server.stop()


def ask(sock, question):
    sock.sendall(question.encode())
    return sock.recv(1024).decode()


# A small server to try it with


def start_server(certificate, clients):
    # gevent's: with that of the standard library, a handshake would stop all greenlets.
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(clients[0])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["shout/1"])

    def shout(raw, address):
        try:
            with context.wrap_socket(raw, server_side=True) as sock:
                [[(_, name)]] = sock.getpeercert()["subject"]
                while line := sock.recv(1024):
                    sock.sendall(f"{line.decode().upper()} says {name}".encode())
        except OSError:
            raw.close()  # the client does not trust us, or has gone

    server = StreamServer(("127.0.0.1", 0), shout)
    server.start()
    return server


def make_certificate(folder, name):
    """Have the openssl command make a certificate for *name*; it and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", f"subjectAltName=DNS:{name}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


if __name__ == "__main__":
    main()
