"""A small DNS server on loopback, UDP and TCP, in the hub of the test, stopped after its ``with``.

    with DnsServer() as server:
        server.set("web.test", "A", "10.0.0.1", "10.0.0.2", ttl=30)
        SrvResolver(nameservers=[server.host], port=server.port)

``python tests/support/dns_server.py "web.test A 10.0.0.1"`` is one in a process of its own: it
prints its host and port, and serves until its standard input ends.  Lines on that are commands:
hold, wait, release.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import gevent
import gevent.pool
import gevent.server
import gevent.socket
from gevent.event import Event
from gevent.fileobject import FileObject
from gevent.resolver.ares import Resolver

from geventpool.testing.ports import anywhere, listen

__all__ = ["DnsServer", "Query", "ares_of"]

_never_collected: list[Any] = []


class Query(NamedTuple):
    name: str  # without the dot at its end
    type: str
    by: str  # "udp" or "tcp"
    edns: bool


class DnsServer:
    """Answers what it was told with ``set``; NXDOMAIN for a name, NOERROR for a type that it lacks.

    *queries* has everything that came in.  How it misbehaves may be changed at any time: *lost* (so
    many queries more have no answer), *silent* (none has), *rcode* (this one for every question),
    *truncate* (no record by UDP), *cut* (UDP ends in the middle of one), *knows_edns* (if not:
    FORMERR), *hang_up* (TCP ends after the length), *instead* (makes other bytes of each reply).
    *first* is called with each query by UDP, its reply, and what sends bytes to who has asked.
    Between ``hold()`` and ``release()`` answers wait.  SRV records come with the addresses of their
    targets, as far as they are known.

    Each has a host of its own (127.x.y.z), so that no other takes its port while it is stopped.
    """

    def __init__(self) -> None:
        dice = random.SystemRandom()  # hypothesis seeds the global one
        self.host = ".".join(["127", *(str(dice.randint(1, 254)) for _ in range(3))])
        self.port = 0
        self.queries: list[Query] = []
        self.lost = 0
        self.silent = False
        self.rcode: str | None = None
        self.truncate = False
        self.cut = False
        self.knows_edns = True
        self.hang_up = False
        self.instead: Callable[[bytes], bytes] = bytes
        self.first: Callable[[bytes, bytes, Callable[[bytes], object]], object] | None = None
        self.negative_ttl = 60
        self._records: dict[tuple[dns.name.Name, str], dns.rrset.RRset] = {}
        self._go_on = Event()
        self._go_on.set()
        self._news = Event()
        self._servers: list[Any] = []

    def __enter__(self) -> DnsServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # Up and down

    def start(self) -> None:
        """Listen, at the same port as before if it was stopped."""
        if self.port:
            self._listen(self.port)
        else:
            anywhere(lambda address: self._listen(address[1]))

    def _listen(self, port: int) -> None:
        address = self.host, port
        with contextlib.ExitStack() as opened:
            streams = gevent.socket.socket(fileno=listen(address).detach())
            opened.enter_context(streams)
            datagrams = opened.enter_context(gevent.socket.socket(type=socket.SOCK_DGRAM))
            datagrams.bind(address)
            opened.pop_all()
        tcp = gevent.server.StreamServer(streams, self._serve_tcp, spawn=gevent.pool.Pool())
        udp = _Datagrams(datagrams, self._serve_udp)
        self._servers = [tcp, udp]
        self.port = port
        tcp.start()
        udp.start()

    def stop(self) -> None:
        """Nothing listens any more; no answer is under way."""
        for server in self._servers:
            server.stop(timeout=0)
        self._servers = []

    # What it says

    def set(self, name: str, type: str, *records: str, ttl: int = 30) -> None:
        """These are the records of that type from now on; none: there is no such type."""
        key = dns.name.from_text(name), type
        self._records.pop(key, None)
        if records:
            self._records[key] = dns.rrset.from_text(key[0], ttl, "IN", type, *records)

    def remove(self, name: str) -> None:
        """There is no such name from now on."""
        for key in [key for key in self._records if key[0] == dns.name.from_text(name)]:
            del self._records[key]

    def hold(self) -> None:
        self._go_on.clear()

    def release(self) -> None:
        self._go_on.set()

    # Looking and waiting

    def count(self, name: str, type: str | None = None) -> int:
        """How often it was asked for that."""
        return sum(q.name == name and type in (None, q.type) for q in self.queries)

    def wait_queries(self, count: int, timeout: float = 10.0) -> None:
        """Wait until so many queries have come in, ever."""
        with gevent.Timeout(timeout):
            while len(self.queries) < count:
                self._news.clear()
                self._news.wait()

    # Machinery

    def _serve_udp(self, data: bytes, client: Any, send: Any) -> None:
        query = dns.message.from_wire(data)
        self._note(query, "udp")
        reply = self._reply(query)
        if reply is None:
            return
        wire = reply.to_wire(max_size=65535)
        if self.first is not None:
            self.first(data, wire, lambda other: send(other, client))
        room = query.payload if query.edns >= 0 else 512
        if self.cut or self.truncate or len(wire) > room:
            reply.flags |= dns.flags.TC
            if self.cut:
                wire = reply.to_wire(max_size=65535)[: min(room, len(wire)) - 5]
            else:
                reply.answer, reply.additional = [], []
                wire = reply.to_wire()
        send(self.instead(wire), client)

    def _serve_tcp(self, sock: Any, client: Any) -> None:
        try:
            while len(header := sock.recv(2)) == 2:
                query = dns.message.from_wire(sock.recv(struct.unpack("!H", header)[0]))
                self._note(query, "tcp")
                reply = self._reply(query)
                if reply is None:
                    gevent.sleep(60)
                    return
                wire = self.instead(reply.to_wire(max_size=65535))
                sock.sendall(struct.pack("!H", len(wire)))
                if self.hang_up:
                    return
                for byte in wire:  # as slowly as a network can be
                    sock.sendall(bytes([byte]))
        except OSError:
            pass
        finally:
            sock.close()

    def _note(self, query: dns.message.Message, by: str) -> None:
        question = query.question[0]
        name, type = question.name.to_text(True), dns.rdatatype.to_text(question.rdtype)
        self.queries.append(Query(name, type, by, query.edns >= 0))
        self._news.set()

    def _reply(self, query: dns.message.Message) -> dns.message.Message | None:
        self._go_on.wait()
        if self.silent:
            return None
        if self.lost:
            self.lost -= 1
            return None
        reply = dns.message.make_response(query)
        if not self.knows_edns and query.edns >= 0:
            reply.use_edns(False)
            reply.set_rcode(dns.rcode.FORMERR)
        elif self.rcode is not None:
            reply.set_rcode(dns.rcode.from_text(self.rcode))
        else:
            self._fill(reply, query.question[0])
        return reply

    def _fill(self, reply: dns.message.Message, question: dns.rrset.RRset) -> None:
        name, type = question.name, dns.rdatatype.to_text(question.rdtype)
        while (alias := self._records.get((name, "CNAME"))) and alias not in reply.answer:
            reply.answer.append(alias)
            name = alias[0].target
        records = self._records.get((name, type))
        if records is None:
            known = any(each == name for each, _ in self._records)
            reply.set_rcode(dns.rcode.NOERROR if known else dns.rcode.NXDOMAIN)
            soa = f"ns.test. hostmaster.test. 1 1 1 1 {self.negative_ttl}"
            reply.authority.append(
                dns.rrset.from_text("test.", self.negative_ttl, "IN", "SOA", soa)
            )
            return
        reply.answer.append(records)
        if type == "SRV":
            for target in {record.target for record in records}:
                found = [self._records.get((target, each)) for each in ("A", "AAAA")]
                reply.additional += [rrset for rrset in found if rrset is not None]


class _Datagrams(gevent.server.DatagramServer):
    def __init__(self, sock: Any, serve: Any) -> None:
        super().__init__(sock, spawn=gevent.pool.Pool())
        self._serve = serve

    def handle(self, data: bytes, client: Any) -> None:
        self._serve(data, client, self._answer)

    def _answer(self, data: bytes, client: Any) -> None:
        try:
            self.sendto(data, client)
        except OSError:
            pass  # who asked has gone


def ares_of(server: DnsServer, **settings: Any) -> Any:
    """A resolver of gevent, the one on c-ares, that asks *server*.  Close it afterwards."""
    resolver = Resolver(
        servers=[server.host], udp_port=server.port, tcp_port=server.port, **settings
    )
    # gevent does not close its watchers, and libuv would write to them once they were collected.
    _never_collected.append((resolver.cares, resolver.fork_watcher))
    return resolver


def main(records: list[str]) -> None:
    with DnsServer() as server:
        for record in records:
            name, type, text = record.split(" ", 2)
            server.set(name, type, text)
        print(server.host, server.port, flush=True)
        for line in FileObject(sys.stdin.buffer, "rb", close=False):
            if line == b"hold\n":
                server.hold()
                print("held", flush=True)
            elif line == b"wait\n":
                server.wait_queries(1)
                print("asked", flush=True)
            elif line == b"release\n":
                server.release()
                print("released", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
