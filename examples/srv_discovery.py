"""A pool finds its servers by SRV records, spreads over them, and follows when they change.

The records say how much each server is to get (weight) and who stands in when all of those are
gone (priority).  Consul, Nomad and Kubernetes (headless services) publish them; here it is a small
DNS server of our own.  Needs dnspython: ``pip install geventpool[dns]``.
"""

import logging
import sys
from collections import Counter

import dns.message
import dns.rrset
import gevent
from gevent.event import Event
from gevent.server import DatagramServer, StreamServer

from geventpool import ConnectionPool, SocketFactory, SrvResolver, Watcher

logging.basicConfig(format="The log says: %(message)s", stream=sys.stdout)

NAME = "_echo._tcp.example.test"


class NameServer(DatagramServer):
    """Answers every question with the same records, and with the addresses of their targets."""

    records = ()

    def handle(self, data, client):
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        name = query.question[0].name
        reply.answer.append(dns.rrset.from_text(name, 1, "IN", "SRV", *self.records))
        reply.additional.append(dns.rrset.from_text("here.test.", 1, "IN", "A", "127.0.0.1"))
        self.sendto(reply.to_wire(), client)


def start_server(name):
    def say_who_it_is(sock, address):
        while sock.recv(1024):
            sock.sendall(name.encode())

    server = StreamServer(("127.0.0.1", 0), say_who_it_is)
    server.start()
    return server


def record(priority, weight, server):
    return f"{priority} {weight} {server.server_port} here.test."


def census(pool):
    """Ask every connection of the pool who is at the other end."""
    pool.fill()
    conns = [pool.acquire() for _ in range(pool.size)]
    for conn in conns:
        conn.sendall(b"who?")
    names = Counter(conn.recv(1024).decode() for conn in conns)
    for conn in conns:
        pool.release(conn)
    return ", ".join(f"{names[name]} to {name}" for name in sorted(names))


large, small, backup = map(start_server, ["large", "small", "backup"])
name_server = NameServer(("127.0.0.1", 0))
name_server.records = [record(1, 3, large), record(1, 1, small), record(2, 1, backup)]
name_server.start()

resolver = SrvResolver(nameservers=["127.0.0.1"], port=name_server.server_port)
print(f"{NAME}, in one order of many:")
for address in resolver.resolve(NAME):
    print(f"    {address}")

# The name is asked for at each dial; the answer is kept for as long as it says, here a second.
connect = SocketFactory(NAME, resolver=resolver)
pool = ConnectionPool(40, connect=connect)
print(f"3 parts to large, 1 to small: {census(pool)}")


def moved(name, added, removed, group):
    """Called in the greenlet of the watcher, once a change has held."""
    print(f"Servers added: {len(added)}, removed: {len(removed)}.  Time for other connections.")
    told.set()


told = Event()
# In a real program it is more like interval=1.0, hold=5.0: who comes and goes is left alone.
with Watcher(resolver, moved, interval=0.2, hold=0.5) as watcher:
    watcher.add(NAME)
    watcher.look()
    name_server.records = [record(1, 1, small), record(2, 1, backup)]
    told.wait()

pool.dispose()  # at once; pool.drain(over=30.0) is gentler, and also has those in use replaced
print(f"large has left:               {census(pool)}")

# A caller that asks for the name while DNS is away gets what was known last.
name_server.stop()
small.stop()
gevent.sleep(1.5)
pool.dispose()
print(f"small and DNS are gone:       {census(pool)}")
pool.close()
