"""Three servers behind one name; one of them dies and comes back, and nobody's request fails.

The name is "paymentserv".  Servers are chosen by p2c: of two drawn at random, the less loaded one.
"""

import contextlib
import time
from collections import Counter

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer

from geventpool import Backoff
from geventpool.health import HealthPolicy
from geventpool.manager import ConnectionManager


def echo(sock, address):
    with contextlib.suppress(OSError):
        while line := sock.recv(1024):
            gevent.sleep(0.002)
            sock.sendall(line)


def start(address):
    """Start a server; its greenlets are kept, so that all can be stopped with it."""
    server = StreamServer(address, echo, spawn=Pool())
    server.start()
    return server


servers = [start((f"127.0.0.{number}", 0)) for number in (2, 3, 4)]
first, second, third = (server.address for server in servers)

manager = ConnectionManager(
    {"paymentserv": [[(1, first), (1, second), (1, third)]]},
    balance="p2c",
    # One failure marks a server down, for half a second at first, or somewhat less.
    health=HealthPolicy(failures=1, backoff=Backoff(first=0.5, longest=10.0), slow_start=1.0),
    timeout=2.0,
    max_per_address=20,
)


def ask(question):
    """Send a request.  Whether it may be sent again if it fails, only you know: this one may."""
    for attempt in range(3):
        try:
            with manager.connection("paymentserv", read_timeout=0.5) as sock:
                sock.sendall(question)
                if sock.recv(1024) != question:
                    raise ConnectionError("the server hung up")  # closed, and the server to blame
                return sock.address
        except OSError:
            if attempt == 2:
                raise


def requests(number):
    """Send *number* requests, five at a time, and print who has answered."""
    answers = Counter(Pool(5).imap_unordered(ask, [b"?"] * number))
    print("  ", ", ".join(f"{address.ip}: {answers[address]}" for address in sorted(answers)))


print("All are well:")
requests(300)

servers[1].stop(timeout=0)
print(f"{second[0]} has died:")
requests(300)
print("  ", manager.servers[second].marked_down_error(time.monotonic()))

servers[1] = start(second)
gevent.sleep(0.6)
print("It is back, one request probes it, and its share grows:")
for _ in range(3):
    requests(200)

print(manager)
print(manager.traffic(first))
manager.close()
