"""contrib.imap: what ImapPool has beyond the contract, with Dovecot."""

from __future__ import annotations

import imaplib
import ssl
from collections.abc import Iterator
from typing import Any

import gevent.ssl
import pytest

from geventpool import PoolTimeout, Verdict
from geventpool.contrib.imap import ImapPool
from support.certificates import Certificates
from support.small_servers import OwnDovecot, OwnImap, shared
from support.waiting import until

MAIL = b"Subject: hello\r\n\r\nhello\r\n"

pytestmark = pytest.mark.slow  # the server takes a second to start


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Any]:
    with OwnDovecot(str(certificates.certificate), str(certificates.key)) as server:
        yield server


def pool_of(server: Any, user: str = "anna", **settings: Any) -> ImapPool:
    login = {"user": user, "password": "right", "timeout": 5}
    return ImapPool(server.address, 1, **{**login, **settings})


def count(conn: Any) -> int:
    return int(conn.select("INBOX", readonly=True)[1][0])


@pytest.mark.parametrize("by", ["UNSELECT", "EXAMINE and CLOSE"])
def test_on_return_a_mailbox_is_unselected_and_nothing_is_expunged(server: Any, by: str) -> None:
    with pool_of(server, by.lower().replace(" ", "-")) as pool:
        with pool.get() as conn:
            assert conn.has_unselect  # though it is not said before the log-in
            conn.has_unselect = by == "UNSELECT"
            conn.append("INBOX", None, None, MAIL)
            conn.select("INBOX")
            conn.store("1", "+FLAGS", r"(\Deleted)")
        with pool.get() as conn:
            assert conn.state == "AUTH"
            assert conn.response("EXISTS")[1] == [None]
            assert count(conn) == 1
        assert pool.stats().opened == 1


def test_a_time_limit_that_a_user_gave_its_socket_goes_with_it(server: Any) -> None:
    with pool_of(server) as pool:
        with pool.get() as imap:
            imap.sock.settimeout(0.1)
        with pool.get() as again:
            assert again is imap
            assert again.sock.gettimeout() is None


def test_what_one_fetched_is_none_of_the_next_ones(server: Any) -> None:
    with pool_of(server, "bob") as pool:
        with pool.get() as conn:
            conn.append("INBOX", None, None, MAIL)
            conn.select("INBOX")
            conn._simple_command("FETCH", "1", "(FLAGS)")
        with pool.get() as conn:
            assert conn.response("FETCH")[1] == [None]
        assert pool.stats().opened == 1


def test_enabled_utf8_cannot_be_taken_back_so_the_connection_is_closed() -> None:
    pool = ImapPool(shared(OwnImap), 1, user="anna", password="right", timeout=5)
    with pool:
        with pool.get() as conn:
            conn.utf8_enabled = True
        with pool.get() as other:
            assert other is not conn


@pytest.mark.parametrize("command", ["PROXYAUTH", "LOGIN", "authenticate", "ENABLE"])
def test_a_log_in_by_its_user_costs_the_connection(command: str) -> None:
    pool = ImapPool(shared(OwnImap), 1, user="anna", password="right", timeout=5)
    with pool:
        with pool.get() as conn:
            conn.state = "AUTH" if command in ("PROXYAUTH", "ENABLE") else "NONAUTH"
            assert conn.xatom(command, "bob", '"right"')[0] == "OK"
            conn.state = "AUTH"
        with pool.get() as other:
            assert other is not conn
            assert other.noop()[0] == "OK"
        with pool.get() as again:
            assert again is other


def test_proxyauth_costs_the_connection(server: Any) -> None:
    with pool_of(server) as pool:
        with pytest.raises(imaplib.IMAP4.error), pool.get() as conn:
            conn.proxyauth("bob")  # which this server does not know
        with pool.get() as other:
            assert other is not conn


def test_a_wrong_password_is_fatal(server: Any) -> None:
    with pool_of(server, password="wrong", timeout=10) as pool:
        with pytest.raises(imaplib.IMAP4.error) as raised, pool.get():
            pass
        assert pool._classify_error(raised.value) is Verdict.FATAL


def test_a_command_that_is_refused_says_nothing_of_the_connection(server: Any) -> None:
    with pool_of(server) as pool:
        with pytest.raises(imaplib.IMAP4.error), pool.get() as conn:
            conn.fetch("1", "(FLAGS)")  # no mailbox is selected
        with pool.get() as again:
            assert again is conn


def test_at_the_end_it_logs_out(server: Any) -> None:
    seen = len(server.log())
    with pool_of(server) as pool, pool.get() as conn:
        assert conn.noop()[0] == "OK"
    until(lambda: "Logged out" in server.log()[seen:])


def test_by_starttls_the_certificate_is_verified(server: Any, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with pool_of(server, starttls=context, server_hostname="localhost") as pool:
        with pool.get() as conn:
            assert isinstance(conn.sock, gevent.ssl.SSLSocket)
            assert count(conn) >= 0
    with pool_of(server, starttls=True, server_hostname="localhost", timeout=0.5) as pool:
        with pytest.raises(PoolTimeout) as raised, pool.get():
            pass
        assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)


def test_the_password_may_be_asked_for_at_each_dial(server: Any) -> None:
    asked = []

    def password() -> str:
        asked.append(1)
        return "right"

    with pool_of(server, password=password) as pool:
        pool.fill()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either user and password, or authenticate"),
        ({"user": "anna", "tls": True, "starttls": True}, "which is it to be"),
        ({"user": "anna", "sizes": 3}, "no argument 'sizes'"),
    ],
)
def test_bad_arguments_are_named(settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ImapPool(("localhost", 143), 1, **settings)
