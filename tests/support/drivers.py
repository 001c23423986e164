"""Real clients of real servers, and of small ones: how each is opened, asked, and found out."""

from __future__ import annotations

import http.client
import imaplib
import os
import smtplib

import gevent
import psycopg
import psycopg2
import pymemcache
import pymysql
import redis
from psycogreen.gevent import patch_psycopg

from support.servers import EchoServer, require_server

__all__ = ["CLIENTS", "LineServer", "close"]


class LineServer(EchoServer):
    """Says *greeting*, and answers each line by the first word of it that it knows."""

    def __init__(self, greeting, answers):
        super().__init__()
        self.greeting = greeting
        self.answers = answers

    def serve(self, sock):
        sock.sendall(self.greeting)
        with sock.makefile("rb") as lines:
            for line in lines:
                words = line.split()
                for word in words[:2]:
                    if (answer := self.answers.get(word.upper())) is not None:
                        if answer.startswith(b"late "):
                            gevent.sleep(0.1)
                            answer = answer[5:]
                        sock.sendall(answer.replace(b"TAG", words[0]))
                        break


SMTP = (b"220 here\r\n", {b"EHLO": b"250 here\r\n", b"NOOP": b"late 250 done\r\n"})
IMAP = (
    b"* OK here\r\n",
    {b"CAPABILITY": b"* CAPABILITY IMAP4rev1\r\nTAG OK done\r\n", b"NOOP": b"late TAG OK done\r\n"},
)
HTTP = (b"", {b"GET": b"late HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"})
MEMCACHED = (b"", {b"VERSION": b"VERSION 1\r\n", b"GET": b"late END\r\n"})


class Client:
    """One driver: how to open, what carries it, how to ask without reading the reply."""

    cuts = True  # its waits go through a socket of its own, so that a guard sees them
    needs_patching = False
    reconnects = True

    def socket(self, conn):
        return conn._sock


class PyMySQL(Client):
    def open(self):
        host, port = require_server("mariadb")
        return pymysql.connect(host=host, port=port, user="root")

    def send(self, conn):
        conn._execute_command(pymysql.constants.COMMAND.COM_QUERY, "select 1")

    def wait_in_vain(self, conn):
        conn.cursor().execute("select sleep(0.2)")

    def connect_anew(self, conn):
        conn.close()
        conn.connect()


class Redis(Client):
    def open(self):
        host, port = require_server("redis")
        conn = redis.Connection(host=host, port=port)
        conn.connect()
        return conn

    def send(self, conn):
        conn.send_command("PING")

    def wait_in_vain(self, conn):
        conn.send_command("BLPOP", "nothing.ever.comes", 1)
        conn.read_response()

    def close(self, conn):
        conn.disconnect()

    def connect_anew(self, conn):
        conn.disconnect()
        conn.connect()


class Psycopg(Client):
    cuts = False
    reconnects = False

    def open(self):
        host, port = require_server("postgres")
        return psycopg.connect(
            host=host, port=port, user="postgres", dbname="test", autocommit=True
        )

    def socket(self, conn):
        return conn.fileno()

    def send(self, conn):
        conn.pgconn.send_query(b"select 1")


class Psycopg2(Client):
    """With psycogreen's callback, by which it waits in gevent's way."""

    cuts = False
    reconnects = False

    def open(self):
        host, port = require_server("postgres")
        patch_psycopg()  # for all of the process, and again and again
        return psycopg2.connect(host=host, port=port, user="postgres", dbname="test")

    def socket(self, conn):
        return conn.fileno()

    def send(self, conn):
        os.write(conn.fileno(), b"Q\0\0\0\x0dselect 1\0")  # past the driver, which would wait


class OfTheStandardLibrary(Client):
    needs_patching = True  # else it would block the hub, and with it the server

    def __init__(self):
        self.server = LineServer(*self.lines)

    def socket(self, conn):
        return conn.sock


class Smtplib(OfTheStandardLibrary):
    lines = SMTP

    def open(self):
        conn = smtplib.SMTP(*self.server.address)
        conn.ehlo()
        return conn

    def send(self, conn):
        conn.putcmd("noop")

    def wait_in_vain(self, conn):
        conn.noop()

    def connect_anew(self, conn):
        conn.close()
        conn.connect(*self.server.address)


class Imaplib(OfTheStandardLibrary):
    lines = IMAP

    def open(self):
        return imaplib.IMAP4(*self.server.address)

    def send(self, conn):
        conn.send(b"x NOOP\r\n")

    def wait_in_vain(self, conn):
        conn.noop()

    def close(self, conn):
        conn.shutdown()

    def connect_anew(self, conn):
        conn.shutdown()
        conn.open(*self.server.address)


class HttpClient(OfTheStandardLibrary):
    lines = HTTP

    def open(self):
        conn = http.client.HTTPConnection(*self.server.address)
        conn.connect()
        return conn

    def send(self, conn):
        conn.request("GET", "/")

    def wait_in_vain(self, conn):
        conn.request("GET", "/")
        conn.getresponse()

    def connect_anew(self, conn):
        conn.close()
        conn.connect()


class Pymemcache(OfTheStandardLibrary):
    lines = MEMCACHED

    def open(self):
        conn = pymemcache.Client(self.server.address)
        conn.version()
        return conn

    def send(self, conn):
        conn.sock.sendall(b"version\r\n")

    def wait_in_vain(self, conn):
        conn.get("key")

    def connect_anew(self, conn):
        conn.close()
        conn.version()


CLIENTS = [PyMySQL, Redis, Psycopg, Psycopg2, Smtplib, Imaplib, HttpClient, Pymemcache]


def close(client, conn):
    """Close *conn* as its users do."""
    closing = getattr(client, "close", None)
    if closing is None:
        conn.close()
    else:
        closing(conn)
