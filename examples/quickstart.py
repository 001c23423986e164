"""Twenty greenlets share three connections."""

import gevent
from gevent.server import StreamServer

from geventpool import ConnectionPool, SocketFactory


def shout(sock, address):
    """Be a server, so that there is one to talk to: send back each line in capitals."""
    while line := sock.recv(1024):
        sock.sendall(line.upper())


server = StreamServer(("127.0.0.1", 0), shout)
server.start()

# From here on it is your program.

pool = ConnectionPool(3, connect=SocketFactory(server.address))


def ask(number):
    with pool.get() as sock:
        sock.sendall(b"greenlet %d was here\n" % number)
        return sock.recv(1024).decode()


for greenlet in gevent.wait([gevent.spawn(ask, number) for number in range(20)]):
    print(greenlet.get(), end="")

print(pool)
pool.close()
