"""Redis as a cache: a command given up, a transaction, news, and a server that ends a session.

REDIS_URL names the server; without it, it is that of this machine.
Needs ``pip install geventpool[redis]``.
"""

from gevent import monkey

monkey.patch_all()  # for redis-py's locks, which sleep between two looks

import os

import gevent
import redis

from geventpool.contrib.redis import GeventConnectionPool

url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
pool = GeventConnectionPool.from_url(url, size=5, timeout=10, client_name="example-cache")
cache = redis.Redis(connection_pool=pool)
computed = []


def square(number):
    """From the cache if it is there; else computed, once, however many want it meanwhile."""
    key = f"example:square:{number}"
    with cache.lock(f"{key}:lock", timeout=5, sleep=0.01):
        if (found := cache.get(key)) is None:
            computed.append(number)
            gevent.sleep(0.02)
            found = number * number
            cache.set(key, found, ex=10)
    return int(found)


# 100 greenlets on 5 connections, and ten numbers.
for key in cache.scan_iter("example:*"):
    cache.delete(key)
greenlets = [gevent.spawn(square, number % 10) for number in range(100)]
gevent.joinall(greenlets, raise_error=True)
assert [greenlet.value for greenlet in greenlets] == [(n % 10) ** 2 for n in range(100)]
print("100 answers right,", len(computed), "of them computed")

# A command that takes too long: its caller goes on at once, and nobody else gets the late reply.
with gevent.Timeout(0.1, False):
    cache.blpop("example:nothing", 10)
print("given up; then:", square(12))


# A transaction: if anybody else changes the account, it is done again.
def withdraw(pipeline):
    balance = int(pipeline.get("example:account"))
    pipeline.multi()
    pipeline.set("example:account", balance - 1)


cache.set("example:account", 20)
greenlets = [gevent.spawn(cache.transaction, withdraw, "example:account") for _ in range(20)]
gevent.joinall(greenlets, raise_error=True)
print("20 withdrawals leave", int(cache.get("example:account")))

# A subscriber has a connection of its own until it is closed.
with cache.pubsub(ignore_subscribe_messages=True) as subscriber:
    subscriber.subscribe("example:news")
    subscriber.get_message(timeout=1)
    cache.publish("example:news", "hello")
    print("news:", subscriber.get_message(timeout=1)["data"].decode())

# An administrator ends the sessions; the pool opens others.
ours = [each["id"] for each in cache.client_list() if each["name"] == "example-cache"]
with redis.Redis.from_url(url) as administrator:
    for session in ours:
        administrator.execute_command("CLIENT", "KILL", "ID", session)
print(len(ours), "sessions ended; then:", square(13))
pool.close()
