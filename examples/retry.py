"""The server goes away in the middle of ten requests, and comes back: they are sent again.

While it is away, callers wait in line, and the pool tries it now and then.  What the pool does not
do is to send again a request that was cut short: whether that is right, only you know.  @retry is
how you say so.
"""

import logging
import sys

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from geventpool import Backoff, ConnectionPool, RetryBudget, SocketFactory, retry

logging.basicConfig(format="The log says: %(message)s", stream=sys.stdout)


def slow_echo(sock, address):
    while line := sock.recv(1024):
        gevent.sleep(0.2)
        sock.sendall(line)


def start(address):
    """Start the server; its greenlets are kept, so that all can be stopped with it."""
    server = StreamServer(address, slow_echo, spawn=Pool())
    server.start()
    return server


server = start(("127.0.0.1", 0))
pool = ConnectionPool(10, connect=SocketFactory(server.address))
pool.fill()

# Shared by all functions that use this server.  When it is in trouble, every request fails, and
# retries without a bound would be the load it cannot bear: grant 1 for 5 requests, and 2 a second.
budget = RetryBudget(share=0.2, min_per_second=2.0)


def tell(details):
    print(
        f"{details.function} failed after {details.elapsed:.1f} s: {details.error};"
        f" again in {details.wait:.2f} s"
    )


# Waits of up to 0.1 s, 0.2 s, ..., 1 s, each shortened at random, so that they spread.
@retry(
    backoff=Backoff(first=0.1, longest=1.0),
    max_failures=5,
    deadline=10.0,
    budget=budget,
    on_retry=tell,
)
def ask(number):
    with pool.get() as sock:
        sock.sendall(b"%d\n" % number)
        reply = sock.recv(1024)
        if not reply:
            raise ConnectionError("the server hung up")  # an OSError: the connection is discarded
        return int(reply)


greenlets = [gevent.spawn(ask, number) for number in range(10)]
gevent.sleep(0.1)  # half a reply

address = server.address
server.stop(timeout=0)
print(f"The server is gone: {pool}")
gevent.sleep(1.0)
print(f"It is still gone:   {pool}")
server = start(address)
print("It is back.")

gevent.joinall(greenlets)
print("The replies:", *[greenlet.get() for greenlet in greenlets])
print(f"{budget}, {pool.stats().dial_failed} dials failed meanwhile.")
pool.close()
