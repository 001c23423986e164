"""contrib.smtp: what SmtpPool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from typing import Any

import gevent.ssl
import pytest

from geventpool import PoolTimeout, Verdict
from geventpool.contrib.smtp import SmtpPool
from geventpool.sockets import StartTLS
from support.certificates import Certificates
from support.small_servers import OwnSmtp

MAIL = "Subject: hello\r\n\r\nhello\r\n"


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Any]:
    with OwnSmtp(str(certificates.certificate), str(certificates.key)) as server:
        yield server


def pool_of(server: Any, **settings: Any) -> SmtpPool:
    return SmtpPool(server.address, 1, **{"timeout": 5, "local_hostname": "test", **settings})


def test_a_mail_is_sent_and_then_there_is_nothing_to_reset(server: Any) -> None:
    with pool_of(server) as pool:
        seen = len(server.log())
        for _ in range(3):
            with pool.get() as conn:
                assert conn.sendmail("anna@example.org", ["bob@example.org"], MAIL) == {}
        assert pool.stats().opened == 1
    assert server.log()[seen:].split() == ["QUIT"]


def test_a_mail_that_was_begun_is_given_up_by_rset(server: Any) -> None:
    with pool_of(server) as pool:
        seen = len(server.log())
        with pytest.raises(KeyError), pool.get() as conn:
            conn.mail("anna@example.org")
            raise KeyError
        with pool.get() as again:
            assert again is conn
            assert again.docmd("XMAIL")[1] == b"none"
    assert server.log()[seen:].split() == ["RSET", "QUIT"]


def test_a_time_limit_that_a_user_gave_its_socket_goes_with_it(server: Any) -> None:
    with pool_of(server) as pool:
        with pool.get() as smtp:
            smtp.sock.settimeout(0.1)
        with pool.get() as again:
            assert again is smtp
            assert again.sock.gettimeout() is None


def test_a_refused_recipient_says_nothing_of_the_connection(server: Any) -> None:
    with pool_of(server) as pool:
        with pytest.raises(smtplib.SMTPRecipientsRefused), pool.get() as conn:
            conn.sendmail("anna@example.org", ["nobody@example.org"], MAIL)
        with pool.get() as again:
            assert again is conn


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (smtplib.SMTPServerDisconnected("gone"), Verdict.BROKEN),
        (smtplib.SMTPResponseException(421, b"going away"), Verdict.BROKEN),
        (smtplib.SMTPResponseException(-1, b"?"), Verdict.BROKEN),
        (smtplib.SMTPSenderRefused(421, b"going away", "anna"), Verdict.BROKEN),
        (smtplib.SMTPSenderRefused(550, b"not you", "anna"), Verdict.FINE),
        (smtplib.SMTPDataError(554, b"spam"), Verdict.FINE),
        (smtplib.SMTPConnectError(421, b"too many connections"), Verdict.SERVER_FULL),
        (smtplib.SMTPConnectError(554, b"not you"), Verdict.BROKEN),
        (smtplib.SMTPAuthenticationError(535, b"no"), Verdict.FATAL),
        (smtplib.SMTPAuthenticationError(454, b"later"), Verdict.FINE),
        (ConnectionResetError(), Verdict.BROKEN),
        (KeyError(), Verdict.FINE),
    ],
)
def test_what_errors_say(server: Any, error: Exception, verdict: Verdict) -> None:
    with pool_of(server) as pool:
        assert pool._classify_error(error) is verdict


def test_a_server_that_says_goodbye_is_not_asked_again(server: Any) -> None:
    with pool_of(server) as pool:
        with pytest.raises(smtplib.SMTPResponseException), pool.get() as conn:
            raise smtplib.SMTPResponseException(*conn.docmd("XGOODBYE"))
        with pool.get() as other:
            assert other is not conn
        with pytest.raises(smtplib.SMTPResponseException):
            other.noop = lambda: other.docmd("XGOODBYE")
            pool._keepalive(other)


def test_it_logs_in_and_a_wrong_password_is_fatal(server: Any) -> None:
    login = {"user": "anna", "starttls": "unverified", "server_hostname": "localhost"}
    with pool_of(server, password="right", **login) as pool, pool.get() as conn:
        assert conn.noop()[0] == 250
    with pool_of(server, password="wrong", **login) as pool:
        with pytest.raises(smtplib.SMTPAuthenticationError), pool.get():
            pass


@pytest.mark.parametrize("by", ["login", "AUTH", "auth in one"])
def test_a_log_in_by_its_user_costs_the_connection(server: Any, by: str) -> None:
    with pool_of(server, starttls="unverified", server_hostname="localhost") as pool:
        with pool.get() as conn:
            if by == "login":
                assert conn.login("anna", "right")[0] == 235
            elif by == "AUTH":
                assert conn.docmd("AUTH", "PLAIN AGFubmEAcmlnaHQ=")[0] == 235
            else:
                assert conn.docmd("auth PLAIN AGFubmEAcmlnaHQ=")[0] == 235
        with pool.get() as other:
            assert other is not conn
            assert other.login("bob", "right")[0] == 235  # once only, says RFC 4954


def test_tls_that_its_user_began_costs_the_connection(server: Any) -> None:
    with pool_of(server) as pool:
        with pool.get() as conn:
            conn.starttls(context=StartTLS("unverified", server.address, "localhost"))
            assert conn.noop()[0] == 250
            with pytest.raises(smtplib.SMTPServerDisconnected, match="STARTTLS"):
                pool._reset_connection(conn)
        with pool.get() as other:
            assert other is not conn
            assert not isinstance(other.sock, gevent.ssl.SSLSocket)


def test_what_the_pool_logged_in_goes_round(server: Any) -> None:
    login = {"user": "anna", "password": "right", "starttls": "unverified"}
    with pool_of(server, server_hostname="localhost", **login) as pool:
        with pool.get() as conn:
            conn.sendmail("anna@example.org", ["bob@example.org"], MAIL)
        with pool.get() as again:
            assert again is conn


def test_by_starttls_the_certificate_is_verified(server: Any, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with pool_of(server, starttls=context, server_hostname="localhost") as pool:
        with pool.get() as conn:
            assert isinstance(conn.sock, gevent.ssl.SSLSocket)
            assert conn.docmd("XECHO", "0 hello")[1] == b"hello"
    with pool_of(server, starttls=True, server_hostname="localhost", timeout=0.3) as pool:
        with pytest.raises(PoolTimeout) as raised, pool.get():
            pass
        assert isinstance(raised.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls": True, "starttls": True}, "which is it to be"),
        ({"sizes": 3}, "no argument 'sizes'"),
    ],
)
def test_bad_arguments_are_named(settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        SmtpPool(("localhost", 25), 1, **settings)
