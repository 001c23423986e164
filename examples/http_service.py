"""A web service that asks another one: a pool of HTTP connections, and a server that is restless.

It serves itself, for a moment: a backend that is slow now and then and closes idle connections, and
a front that asks it for each of its own requests.
"""

import gevent
from gevent.pywsgi import WSGIServer

from geventpool import PoolUnavailable
from geventpool.contrib.http import HttpPool
from geventpool.overload import CoDel


def backend(environ, start_response):
    """Squares a number: /square/12; slowly if that is 13."""
    number = int(environ["PATH_INFO"].rpartition("/")[2])
    gevent.sleep(2 if number == 13 else 0.002)
    body = b"%d" % (number * number)
    headers = [("Content-Length", str(len(body))), ("Keep-Alive", "timeout=1")]
    if number % 10 == 7:
        headers.append(("Connection", "close"))
    start_response("200 OK", headers)
    return [body]


def front(environ, start_response):
    """Asks the backend, within half a second; 503 and 504 are for what it has no answer to."""
    status, body = "200 OK", b""
    try:
        with gevent.Timeout(0.5):
            body = api.request("GET", environ["PATH_INFO"]).body
    except gevent.Timeout:
        status = "504 Gateway Timeout"
    except PoolUnavailable:
        status = "503 Service Unavailable"
    start_response(status, [("Content-Length", str(len(body)))])
    return [body]


servers = [WSGIServer(("127.0.0.1", 0), serve, log=None) for serve in (backend, front)]
for server in servers:
    server.start()
ports = [server.server_port for server in servers]
api = HttpPool(f"http://127.0.0.1:{ports[0]}", 10, timeout=5, overload=CoDel())
service = HttpPool(f"http://127.0.0.1:{ports[1]}", 50, timeout=5)

# 200 requests, of which 50 are under way at a time; the backend never sees more than 10.
greenlets = [gevent.spawn(service.request, "GET", f"/square/{20 + n}") for n in range(200)]
gevent.joinall(greenlets, raise_error=True)
answers = [greenlet.value for greenlet in greenlets]
for number, answer in enumerate(answers, 20):
    assert answer.status == 503 or int(answer.body) == number * number
print(sum(answer.status == 200 for answer in answers), "of 200 answers, each its own")
print("connections to the backend at once:", api.stats().maximum)

# One that takes too long is given up; nobody else gets its late answer.
slow = gevent.spawn(service.request, "GET", "/square/13")
print("meanwhile:", service.request("GET", "/square/12").body.decode())
print("given up:", slow.get().status, slow.get().reason)
print("then:", service.request("GET", "/square/14").body.decode())

# The backend will have closed what is idle for a second; the pool knows, and asks by another one.
before = api.stats().opened
gevent.sleep(1.1)
print("later:", service.request("GET", "/square/15").body.decode())
assert api.stats().opened > before

api.close()
service.close()
for server in servers:
    server.stop()
