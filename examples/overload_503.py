"""A web application that says 503 to those it cannot serve in time, and serves the others.

It runs itself: a WSGI server, and four times as many requests as its five connections can serve,
then as many as they can.  The exit status says whether that came out as it should.
"""

import math
import sys
from collections import Counter

import gevent
from gevent import socket
from gevent.pywsgi import WSGIServer

from geventpool import CoDel, ConnectionPool, PoolUnavailable


class Connection:
    """Stands for a client of your database: a query takes 20 ms."""

    def query(self):
        gevent.sleep(0.02)
        return b"an answer\n"

    def close(self):
        pass


# Callers here have half a second: so that is the interval, and a tenth of it the target.
pool = ConnectionPool(5, connect=Connection, overload=CoDel(target=0.05, interval=0.5))


def application(environ, start_response):
    """Answer by a query; with 503 and Retry-After if the pool cannot serve it."""
    try:
        with gevent.Timeout(0.5), pool.get() as conn:
            answer = conn.query()
    except PoolUnavailable as error:  # PoolOverloaded, PoolTimeout, PoolDown, ...
        headers = [("Content-Type", "text/plain")]
        if error.retry_after is not None:
            headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after)))))
        start_response("503 Service Unavailable", headers)
        return [b"come back a little later\n"]
    except gevent.Timeout:
        start_response("504 Gateway Timeout", [("Content-Type", "text/plain")])
        return [b"no answer in time\n"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]


server = WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
answers = Counter()


def ask():
    """A request, as a browser makes it; counts what comes back."""
    with socket.create_connection(server.address, timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = b""
        while data := sock.recv(4096):
            reply += data
    head = reply.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    status = head[0].split()[1]
    answers[status] += 1
    if status == "503" and any(line.startswith("Retry-After: ") for line in head):
        answers["with Retry-After"] += 1


def offer(rate, seconds):
    """Have so many requests come in a second, whether the others are answered or not."""
    answers.clear()
    asking = []
    for _ in range(int(seconds * 100)):
        asking += [gevent.spawn(ask) for _ in range(rate // 100)]
        gevent.sleep(0.01)
    gevent.joinall(asking, raise_error=True)
    return dict(answers)


overload = offer(rate=1000, seconds=2.0)
print("four times what can be served:", overload)
relief = offer(rate=100, seconds=1.0)
print("less than that:", relief)
print(pool)
server.stop()
pool.close()

if not overload.get("503") or overload["with Retry-After"] != overload["503"]:
    sys.exit("nobody was told to come back later")
if overload["200"] < 100:
    sys.exit("hardly anybody was served")
if relief["200"] < 90:
    sys.exit("it has not recovered")
