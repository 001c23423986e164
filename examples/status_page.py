"""A service with its own status page: servers, pools with traffic, and the page to watch them.

    python examples/status_page.py --seconds 600 --port 8000

and open http://127.0.0.1:8000/-/pools/ meanwhile.  Two pools are well; one is too small for what is
asked of it; the server of one is away.  In the end it asks its own page for all that, and the exit
status says whether that was there.
"""

import argparse
import json
import random
import sys

import gevent
from gevent import socket
from gevent.pywsgi import WSGIServer

from geventpool import ConnectionManager, ConnectionPool, PoolError, SocketFactory, observe
from geventpool.testing import EchoServer, closed_port

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0, help="of the service (default: a free one)")
parser.add_argument("--seconds", type=float, default=4.0, help="how long to go on (default: 4)")
options = parser.parse_args()


def application(environ, start_response):
    """Stands for yours."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the pools: /-/pools/\n"]


def use(pool, hold, pause):
    """What a greenlet of a service does, again and again."""
    while True:
        gevent.sleep(random.expovariate(1 / pause))
        try:
            with pool.get(timeout=2.0) as sock:
                run_a_query(sock, random.expovariate(1 / hold))
        except PoolError:
            pass  # your users would get a 503


def run_a_query(sock, seconds):
    """Ask, and wait for the answer."""
    gevent.sleep(seconds)
    sock.sendall(b"hello\n")
    sock.recv(100)


def call(manager):
    """Use a service that has several servers."""
    while True:
        gevent.sleep(random.expovariate(20))
        with manager.connection("payment") as sock:
            run_a_query(sock, 0.005)


def fetch(path):
    """The status and the body of a page, as a browser sees them."""
    with socket.create_connection(server.address, timeout=10) as sock:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        sock.sendall(request.encode())
        head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


with EchoServer() as echo, closed_port() as nobody:
    connect = SocketFactory(echo.address)
    users = ConnectionPool(10, connect=connect, name="users")
    search = ConnectionPool(3, connect=connect, name="search", track=True)
    mail = ConnectionPool(5, connect=SocketFactory(nobody), name="mail", down_after=1.0)
    payment = ConnectionManager({"payment": [[(1, echo.address), (1, nobody)]]}, name="payment")
    working = [gevent.spawn(use, users, 0.02, 0.1) for _ in range(20)]
    working += [gevent.spawn(use, search, 0.2, 0.05) for _ in range(12)]
    working += [gevent.spawn(use, mail, 0.1, 0.3) for _ in range(3)]
    working += [gevent.spawn(call, payment) for _ in range(3)]

    server = WSGIServer(
        ("127.0.0.1", options.port), observe.mount(application, "/-/pools"), log=None
    )
    server.start()
    observe.listen()  # for python -m geventpool dump; the hooks of geventpool.gunicorn see to it
    print(f"http://127.0.0.1:{server.server_port}/-/pools/", flush=True)
    fetch("/-/pools/")  # from now on it remembers
    gevent.sleep(options.seconds)

    status, page = fetch("/-/pools/")
    ready, why = fetch("/-/pools/ready")
    workers = json.loads(fetch("/-/pools/pools.json")[1])["workers"]
    holders = {pool["name"]: len(pool["holders"]) for pool in workers[0]["pools"]}
    print(f"page: {status}; ready: {ready}, {why.strip()}; holders: {holders}")
    server.stop()
    gevent.killall(working)
    for pool in (users, search, mail, payment):
        pool.close(timeout=1.0)

if status != 200 or not all(word in page for word in ("users", "exhausted", "down")):
    sys.exit("the page does not show what is wrong")
if ready != 503 or holders["search"] != 3:
    sys.exit(f"ready says {ready}, and of the pool that is too small {holders['search']} are held")
