"""A pool of PostgreSQL connections: transactions, a query given up, a server that hangs up.

DATABASE_URL names the server; without it, it is that of this machine.
Needs ``pip install geventpool[psycopg]``.
"""

from gevent import monkey

monkey.patch_all()  # before psycopg is imported, which would block else

import os

import gevent

from geventpool.contrib.psycopg import PsycopgPool

url = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1/postgres")
pool = PsycopgPool(url, 5, timeout=10, kwargs={"application_name": "example"})


def transfer(amount):
    """Both updates take place, or none: the second may not go below 0."""
    with pool.connection() as conn:
        update = "update example_account set balance = balance + %s where name = %s"
        conn.execute(update, (amount, "anna"))
        conn.execute(update, (-amount, "bert"))


def balances():
    with pool.get() as conn:
        return conn.execute("select name, balance from example_account order by name").fetchall()


def square(number):
    with pool.get() as conn:
        return conn.execute("select %s::int * %s::int", (number, number)).fetchone()[0]


with pool.connection() as conn:
    conn.execute("drop table if exists example_account")
    conn.execute("create table example_account (name text, balance int check (balance >= 0))")
    conn.execute("insert into example_account values ('anna', 0), ('bert', 100)")

transfer(70)
try:
    transfer(70)
except Exception as error:
    print("refused:", type(error).__name__)
print("committed once:", balances())

# 100 greenlets on 5 connections; each gets its own answer.
greenlets = [gevent.spawn(square, number) for number in range(100)]
gevent.joinall(greenlets, raise_error=True)
assert [greenlet.value for greenlet in greenlets] == [n * n for n in range(100)]
print("100 answers right")

# A query that takes too long: its caller goes on at once, and nobody else gets the late answer.
try:
    with gevent.Timeout(0.2), pool.get() as conn:
        conn.execute("select pg_sleep(10)")
except gevent.Timeout:
    print("given up; then:", square(12))

# An administrator ends all sessions but its own, and waits until they have ended: the pool opens
# others, and no caller notices.
with pool.get() as conn:
    ended = conn.execute(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity"
        " where application_name = 'example' and pid <> pg_backend_pid()"
    ).fetchone()[0]
print(f"{ended} sessions ended; then:", square(13))

with pool.connection() as conn:
    conn.execute("drop table example_account")
pool.close()
