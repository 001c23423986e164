"""A pool in a gunicorn application.  Start something to talk to, and then the application:

    python examples/gunicorn_app.py &
    cd examples && gunicorn -c gunicorn.conf.py gunicorn_app:app    # --preload works as well

and ask it: ``curl http://127.0.0.1:8000/hello``.  ``LINE_ECHO`` names another line-echo server.
"""

import json
import os

from geventpool import ConnectionPool, PoolTimeout, SocketFactory, retry

LINE_ECHO = os.environ.get("LINE_ECHO", "127.0.0.1:2485")

# At module level, one pool per worker.  With --preload this line runs once, in the master, and each
# worker finds a pool that leaves the master's connections alone and opens its own.
pool = ConnectionPool(
    10, connect=SocketFactory(LINE_ECHO, connect_timeout=2.0), timeout=5.0, name="echo"
)


@retry(max_failures=3, interval=0.05)  # asking twice does no harm here
def echo(line: bytes) -> bytes:
    with pool.get() as sock:
        sock.sendall(line + b"\n")
        reply = b""
        while not reply.endswith(b"\n"):
            data = sock.recv(4096)
            if not data:
                raise ConnectionError("the server hung up in the middle of a reply")
            reply += data
        return reply[:-1]


def app(environ, start_response):
    """Answer with what the echo server says to the path, and with who asked it."""
    line = f"{os.getpid()} {environ['PATH_INFO'].strip('/')}"
    try:
        status, body = "200 OK", {"pid": os.getpid(), "reply": echo(line.encode()).decode()}
    except PoolTimeout as error:  # tell the client at once rather than let it wait, too
        status, body = "503 Service Unavailable", {"pid": os.getpid(), "error": str(error)}
    payload = json.dumps(body).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))]
    start_response(status, headers)
    return [payload]


if __name__ == "__main__":
    from gevent.server import StreamServer

    def serve(sock, address):
        for line in sock.makefile("rb"):
            sock.sendall(line)

    host, _, port = LINE_ECHO.rpartition(":")
    print(f"a line-echo server at {LINE_ECHO}")
    StreamServer((host, int(port)), serve).serve_forever()
