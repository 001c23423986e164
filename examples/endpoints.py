"""One pool for many places: TCP, TLS and Unix sockets, limited each and all together.

An endpoint is whatever is hashable and says where to connect to.  It needs no introduction, and is
forgotten when it has neither connections nor callers.  Here it is a target of SocketFactory, which
has one factory for each, so that TLS sessions are resumed.
"""

import functools
import ssl
import subprocess
import tempfile
from pathlib import Path

import gevent
import gevent.ssl
from gevent import socket
from gevent.server import StreamServer

from geventpool import EndpointPool, SocketFactory


def main():
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        path = Path(folder) / "shout.sock"
        plain = [start_server() for _ in range(3)]
        secure = start_server(certificate)
        local = start_server(path=path)

        # TCP, or Unix: the endpoints are ("host", port), "host:port", a Path, "unix:/path" ...
        factory = functools.lru_cache(1000)(SocketFactory)
        with EndpointPool(
            connect=lambda endpoint: factory(endpoint)(), max_size=2, total_max_size=4
        ) as pool:
            users = []
            for number in range(12):
                port = plain[number % 3].server_port
                users.append(gevent.spawn(ask, pool, ("127.0.0.1", port), f"greenlet {number}"))
            users.append(gevent.spawn(ask, pool, path, "and one to the socket file"))
            for user in gevent.wait(users):
                print(user.get())

            # There were never more than 4 connections: the longest idle one of another endpoint
            # made room for each who was in line.
            print(pool)
            for endpoint in pool.endpoints():
                print(f"  {endpoint}: {pool.stats(endpoint).opened} opened")

            # One of the servers is about to be taken away: no connection to it stays.
            leaving = pool.endpoints()[0]
            pool.drain(leaving)
            gevent.idle()
            print(f"drained: {leaving not in pool.endpoints()}")

        # TLS: the same, with whom to trust (tls=True: the system's authorities).
        context = ssl.create_default_context(cafile=certificate[0])
        factory = functools.lru_cache(1000)(functools.partial(SocketFactory, tls=context))
        with EndpointPool(connect=lambda endpoint: factory(endpoint)()) as pool:
            print(ask(pool, ("localhost", secure.server_port), "and one in secret"))

        for server in (*plain, secure, local):
            server.stop()


def ask(pool, endpoint, question):
    with pool.get(endpoint) as sock:
        sock.sendall(question.encode())
        return sock.recv(1024).decode()


# Small servers to try it with


def start_server(certificate=None, path=None):
    options = {}
    listener = ("127.0.0.1", 0)
    if path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(128)
    if certificate:
        options["ssl_context"] = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options["ssl_context"].load_cert_chain(*certificate)
    server = StreamServer(listener, shout, **options)
    server.start()
    return server


def shout(sock, address):
    """Be a server: send back each line in capitals."""
    while line := sock.recv(1024):
        sock.sendall(line.upper())


def make_certificate(folder):
    """Have the openssl command make a certificate for localhost; it and its key."""
    certificate, key = folder / "localhost.pem", folder / "localhost.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


if __name__ == "__main__":
    main()
