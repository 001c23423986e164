"""Eight worker processes that share twenty connections, and a table of who has how many.

REDIS_URL names the Redis where the shares are; without it, it is that of this machine.  A worker
is busy for some seconds, then the next ones are; one is killed.  Ends by itself.
Needs ``pip install geventpool[redis]``.
"""

import os
import signal
import sys
import time
import uuid

import gevent
from gevent import subprocess

CAP, WORKERS, SECONDS = 20, 8, 12
URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379")


def work(number, host, port, name):
    """One worker: it is busy in a third of the time, as its number says."""
    from gevent import monkey

    monkey.patch_all()  # before redis is imported, which would block else
    from geventpool import ConnectionPool, SocketFactory
    from geventpool.fleet import FleetLimit
    from geventpool.fleet.redis import RedisStore

    limit = FleetLimit(CAP, store=RedisStore(URL), name=name, lease=3.0)
    pool = ConnectionPool(CAP, min_size=0, connect=SocketFactory((host, port)), limits=[limit])

    def ask():
        while True:
            if int(time.time() / 4) % 3 != number % 3:
                gevent.sleep(0.05)
                continue
            with pool.get(timeout=30) as sock:
                sock.sendall(b"hello")
                sock.recv(100)
                gevent.sleep(0.02)

    for _ in range(10):
        gevent.spawn(ask)
    while True:
        print(limit.needs, limit.used, int(limit.maximum), flush=True)
        gevent.sleep(0.1)


def follow(process, said, number):
    for line in process.stdout:
        said[number] = tuple(map(int, line.split()))


def main():
    from geventpool.testing import EchoServer

    name = f"example-{uuid.uuid4().hex}"
    said, most = {}, 0
    with EchoServer() as server:
        arguments = [*map(str, server.address), name]
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, str(number), *arguments], stdout=subprocess.PIPE
            )
            for number in range(WORKERS)
        ]
        readers = [gevent.spawn(follow, each, said, n) for n, each in enumerate(workers)]
        with gevent.Timeout(40):
            while len(said) < WORKERS:
                gevent.sleep(0.1)
        print("share of each worker (* has callers); open at the server; most so far")
        ends, killed = time.monotonic() + SECONDS, False
        while time.monotonic() < ends:
            for _ in range(50):
                gevent.sleep(0.01)
                most = max(most, server.open)
            cells = [
                f"{share:3}{'*' if needs else ' '}" if number in said else "  - "
                for number in range(WORKERS)
                for needs, _, share in [said.get(number, (0, 0, 0))]
            ]
            print(" ".join(cells), f"| {server.open:2} of {CAP} | {most}", flush=True)
            if not killed and time.monotonic() > ends - SECONDS / 2:
                workers[1].send_signal(signal.SIGKILL)  # its share is free when its lease ends
                killed = True
        for each in workers:
            each.kill()
        gevent.joinall(readers)
        for each in workers:
            each.wait()
            each.stdout.close()
    assert most <= CAP, most
    print(f"never more than {CAP} connections: {most} at most")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
