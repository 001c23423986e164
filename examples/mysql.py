"""A pool of MySQL or MariaDB connections, in a program that is not patched.

MYSQL_HOST and MYSQL_PORT name the server; without them, it is that of this machine.  The user is
root, without a password.
Needs ``pip install geventpool[pymysql]``.
"""

import os

import gevent
import pymysql

from geventpool import retry
from geventpool.contrib.pymysql import PyMySQLPool

pool = PyMySQLPool(
    5,
    host=os.environ.get("MYSQL_HOST", "127.0.0.1"),
    port=int(os.environ.get("MYSQL_PORT", "3306")),
    user="root",
    autocommit=True,  # so that a return costs no rollback, unless a transaction is open
    timeout=10,
)


# Asking twice does no harm here, so a connection that broke is no error yet.
@retry(exc_classes=(pymysql.OperationalError, pymysql.InterfaceError), max_failures=3)
def square(number):
    with pool.get() as conn, conn.cursor() as cursor:
        cursor.execute("select %s * %s", (number, number))
        return cursor.fetchone()[0]


# 100 greenlets on 5 connections; each gets its own answer.
greenlets = [gevent.spawn(square, number) for number in range(100)]
gevent.joinall(greenlets, raise_error=True)
assert [greenlet.value for greenlet in greenlets] == [n * n for n in range(100)]
print("100 answers right")

# A query that takes too long: its caller goes on at once, and nobody else gets the late answer.
try:
    with gevent.Timeout(0.2), pool.get() as conn, conn.cursor() as cursor:
        cursor.execute("select sleep(10)")
except gevent.Timeout:
    print("given up; then:", square(12))

# What one leaves open, the next does not see.
with pool.get() as conn:
    conn.begin()
with pool.get() as conn, conn.cursor() as cursor:
    cursor.execute("select connection_id()")
    print("a session in no transaction:", not conn.server_status & 1)

# An administrator ends a session under its user's hands: @retry takes another one.
with pool.get() as conn, pool.get() as other, other.cursor() as cursor:
    cursor.execute(f"kill {conn.thread_id()}")
print("one session ended; then:", square(13))
pool.close()
