"""A server hangs up on who is silent for a second.  A PING in time keeps the connections open."""

import gevent
from gevent.server import StreamServer

from geventpool import ConnectionPool, SocketFactory

hung_up = 0


def impatient(sock, address):
    """A server, or a firewall on the way to it: PONG to a PING, and no patience."""
    global hung_up
    while True:
        with gevent.Timeout(1.0, False):
            if not sock.recv(1024):
                return  # the client has closed the connection
            sock.sendall(b"PONG\n")
            continue
        hung_up += 1
        return


class PingedPool(ConnectionPool):
    def _keepalive(self, sock):
        """Called for each connection that was not used for a while; if it raises, that one goes."""
        sock.sendall(b"PING\n")
        if sock.recv(5) != b"PONG\n":
            raise ConnectionError("no PONG")


server = StreamServer(("127.0.0.1", 0), impatient)
server.start()
connect = SocketFactory(server.address)

# In a real program it is more like keepalive=30.
for kind, keepalive in (ConnectionPool, None), (PingedPool, 0.3):
    hung_up = 0
    pool = kind(5, connect=connect, keepalive=keepalive)
    pool.fill()
    gevent.sleep(2.5)

    stats = pool.stats()
    print(f"{kind.__name__}: {stats.checked} PINGs; the server hung up {hung_up} times")
    # Hung up on or not, the pool has noticed and replaced what was lost: no caller gets a dead one.
    with pool.get() as sock:
        sock.sendall(b"PING\n")
        reply = sock.recv(5).decode().strip()
    print(f"    {stats.opened} connections were opened, {stats.idle} are idle; one says {reply}")
    pool.close()
