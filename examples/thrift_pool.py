"""Thrift clients in a pool with the API of pycassa: another server takes over when one is busy.

Needs thriftpy2 (``pip install thriftpy2``); with Apache Thrift, only ``connect`` differs.
"""

import sys
import tempfile
from pathlib import Path

import gevent
from gevent import socket
from gevent.server import StreamServer

from geventpool.compat.pycassa import ConnectionPool, StatsLogger

try:
    import thriftpy2
    from thriftpy2.protocol import TBinaryProtocol
    from thriftpy2.thrift import TClient, TProcessor
    from thriftpy2.transport import TFramedTransport, TSocket, TTransportException
except ImportError:
    print("thriftpy2 is not installed: nothing to show")
    sys.exit()

INTERFACE = """
exception TimedOutException {}
exception NotFoundException {}

service Columns {
    void set_keyspace(1: string keyspace),
    string get(1: string key) throws (1: TimedOutException toe, 2: NotFoundException nfe),
}
"""


def connect(host, port, timeout):
    """Return an open client; *timeout*, in seconds, bounds each of its reads and writes."""
    # gevent's socket, so that this works without monkey-patching, too.
    sock = socket.create_connection((host, port), timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TClient(columns.Columns, TBinaryProtocol(TFramedTransport(TSocket(sock=sock))))


def main():
    well, busy = Columns("well"), Columns("busy")
    servers = [start_server(well), start_server(busy)]
    stats = StatsLogger()
    pool = ConnectionPool(
        "Keyspace1",  # each new connection is told by set_keyspace()
        [f"127.0.0.1:{server.server_port}" for server in servers],
        timeout=2,
        pool_size=4,
        client_factory=connect,
        # After these an operation is tried again on another server; after others it is not.
        retry_on=(OSError, EOFError, TTransportException, columns.TimedOutException),
        listeners=[stats],
    )

    def read(key):
        return pool.execute("get", key)

    greenlets = [gevent.spawn(read, f"key {number}") for number in range(20)]
    print(", ".join(greenlet.get() for greenlet in greenlets))
    print(f"{busy.refused} times the one server was too busy, and the other one answered")
    assert stats.stats["failed"] == busy.refused > 0

    try:
        read("missing")  # the server's answer, and no reason to ask another
    except columns.NotFoundException:
        print("no such key")

    print(pool)
    pool.close()
    for server in servers:
        server.stop()


# Two small servers to try it with


class Columns:
    """Answers; the one called "busy" has no time for every third question."""

    def __init__(self, name):
        self.name = name
        self.asked = self.refused = 0

    def set_keyspace(self, keyspace):
        assert keyspace == "Keyspace1"

    def get(self, key):
        self.asked += 1
        if key == "missing":
            raise columns.NotFoundException
        if self.name == "busy" and self.asked % 3 == 0:
            self.refused += 1
            raise columns.TimedOutException
        return f"value of {key}"


def start_server(handler):
    def serve(sock, address):
        protocol = TBinaryProtocol(TFramedTransport(TSocket(sock=sock)))
        processor = TProcessor(columns.Columns, handler)
        try:
            while True:
                processor.process(protocol, protocol)
        except (TTransportException, OSError):
            pass  # the client has gone
        finally:
            sock.close()

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    return server


with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "columns.thrift")
    path.write_text(INTERFACE)
    columns = thriftpy2.load(str(path), module_name="columns_thrift")

if __name__ == "__main__":
    main()
