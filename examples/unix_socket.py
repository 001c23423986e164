"""A pool of connections to a server on this machine, by the path of its Unix socket."""

import tempfile
from pathlib import Path

import gevent
from gevent import socket
from gevent.server import StreamServer

from geventpool import ConnectionPool, SocketFactory


def shout(sock, address):
    """Be a server: send back each line in capitals."""
    while line := sock.recv(1024):
        sock.sendall(line.upper())


def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    server = StreamServer(listener, shout)
    server.start()
    return server


folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "shout.sock"
server = listen(path)

# From here on it is your program.

pool = ConnectionPool(3, connect=SocketFactory(path))  # or "unix:/run/shout.sock"


def ask(number):
    with pool.get() as sock:
        sock.sendall(b"greenlet %d was here\n" % number)
        return sock.recv(1024).decode()


for greenlet in gevent.wait([gevent.spawn(ask, number) for number in range(9)]):
    print(greenlet.get(), end="")
print(pool)

# The server is restarted, and puts a new socket in the place of the old one.  If it had hung up,
# the pool would have replaced the connections by itself; this one has only stopped to listen.
server.stop()
path.unlink()
server = listen(path)
pool.dispose()
pool.fill()
print(ask(99), end="")

pool.close()
server.stop()
folder.cleanup()
