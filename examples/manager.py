"""Three servers behind one name; one of them dies and comes back, and no request fails.

The name is "paymentserv".  Servers are chosen by p2c: of two drawn at random, the less loaded one.
"""

import time
from collections import Counter

import gevent
from gevent.pool import Pool

from geventpool import Backoff
from geventpool.health import HealthPolicy
from geventpool.manager import ConnectionManager
from geventpool.testing import EchoServer


class Server(EchoServer):
    def serve(self, sock):
        while line := sock.recv(1024):
            gevent.sleep(0.002)
            sock.sendall(line)


servers = [Server() for _ in range(3)]
for server in servers:
    server.start()
addresses = [server.address for server in servers]

manager = ConnectionManager(
    {"paymentserv": [[(1, address) for address in addresses]]},
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
    print("  ", ", ".join(f"port {port}: {answers[host, port]}" for host, port in addresses))


print("All are well:")
requests(300)

servers[1].stop()
print("The second has died:")
requests(300)
print("  ", manager.servers[addresses[1]].marked_down_error(time.monotonic()))

servers[1].start()
gevent.sleep(0.6)
print("It is back, one request probes it, and its share grows:")
for _ in range(3):
    requests(200)

print(manager)
print(manager.traffic(addresses[0]))
manager.close()
for server in servers:
    server.stop()
