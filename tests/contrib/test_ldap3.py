"""contrib.ldap3: what Ldap3Pool has beyond the contract, and OpenLDAP's slapd."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import gevent.ssl
import ldap3
import pytest
from ldap3.core.exceptions import (
    LDAPCommunicationError,
    LDAPInvalidCredentialsResult,
    LDAPSocketReceiveError,
)

from geventpool import NotInUse, PoolTimeout, Verdict
from geventpool.contrib.ldap3 import Ldap3Pool
from support.adapters.small import Ldap3
from support.certificates import Certificates
from support.small_servers import OwnSlapd

USER = "cn=admin,dc=echo"


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[Any]:
    with OwnSlapd(str(certificates.certificate), str(certificates.key)) as server:
        yield server


def pool_of(server: Any, **settings: Any) -> Ldap3Pool:
    login = {"user": USER, "password": "right", "timeout": 5}
    return Ldap3Pool(server.address, 1, **{**login, **settings})


def test_it_is_bound_and_says_so(server: Any) -> None:
    with pool_of(server) as pool, pool.get() as conn:
        assert conn.extend.standard.who_am_i() == f"dn:{USER}"
        pool._keepalive(conn)


def test_a_wrong_password_is_fatal(server: Any) -> None:
    with pool_of(server, password="wrong") as pool:
        with pytest.raises(LDAPInvalidCredentialsResult), pool.get():
            pass


def test_the_password_may_be_asked_for_at_each_dial(server: Any) -> None:
    asked = []

    def password() -> str:
        asked.append(1)
        return "right"

    with pool_of(server, password=password) as pool:
        pool.fill()
    assert len(asked) == 1


def test_no_error_of_the_pool_shows_the_password(server: Any) -> None:
    with pool_of(server, sasl_credentials="right") as pool:
        with pool.get() as conn:
            pass
        with pytest.raises(NotInUse) as raised:
            pool.release(conn)
    assert USER in str(raised.value)
    assert "right" not in f"{raised.value} {raised.value!r} {conn} {conn!r}"


def test_what_is_not_found_says_nothing_of_the_connection(server: Any) -> None:
    with pool_of(server, raise_exceptions=True) as pool:
        with pytest.raises(ldap3.core.exceptions.LDAPNoSuchObjectResult), pool.get() as conn:
            conn.search("dc=elsewhere", "(cn=0 hello)")
        with pool.get() as again:
            assert again is conn


def test_one_that_was_closed_does_not_open_itself_again(server: Any) -> None:
    with pool_of(server) as pool:
        with pytest.raises(LDAPCommunicationError), pool.get() as conn:
            conn.unbind()
            conn.bind()
        with pool.get() as other:
            assert other is not conn
            assert other.extend.standard.who_am_i() == f"dn:{USER}"


def test_a_request_whose_answer_was_not_read_costs_the_connection(server: Any) -> None:
    with pool_of(server) as pool:
        with pool.get() as conn:
            Ldap3().leave("a reply not read", conn)
        with pool.get() as other:
            assert other is not conn


def test_safe_sync_is_a_strategy_too_and_those_with_threads_are_not(server: Any) -> None:
    with pool_of(server, client_strategy=ldap3.SAFE_SYNC) as pool, pool.get() as conn:
        _, _, response, _ = conn.search("dc=echo", "(cn=0 hello)", attributes=["description"])
        assert response[0]["attributes"]["description"] == ["hello"]
    with pytest.raises(ValueError, match="client_strategy must be SYNC or SAFE_SYNC"):
        pool_of(server, client_strategy=ldap3.ASYNC)


def test_a_limit_to_the_wait_for_answers_is_kept(server: Any) -> None:
    with pool_of(server, receive_timeout=0.1) as pool:
        with pytest.raises(LDAPCommunicationError), pool.get() as conn:
            conn.search("dc=echo", "(cn=5 hello)")
        with pool.get() as other:
            assert other is not conn


def test_binding_is_up_to_the_pool(server: Any) -> None:
    for name in ("auto_bind", "lazy"):
        with pytest.raises(TypeError, match=f"{name} is no argument here"):
            pool_of(server, **{name: True})


def test_by_starttls_the_certificate_is_verified(server: Any, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.authority))
    with pool_of(server, starttls=context, server_hostname="localhost") as pool:
        with pool.get() as conn:
            assert isinstance(conn.socket, gevent.ssl.SSLSocket)
            conn.search("dc=echo", "(cn=0.1 hello)", attributes=["description"])
            assert conn.entries[0].description == "hello"
    with pool_of(server, starttls=True, server_hostname="localhost", timeout=0.3) as pool:
        with pytest.raises(PoolTimeout) as raised, pool.get():
            pass
        assert "CERTIFICATE_VERIFY_FAILED" in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (LDAPSocketReceiveError("gone"), Verdict.BROKEN),
        (ldap3.core.exceptions.LDAPBusyResult(result=51), Verdict.SERVER_FULL),
        (ldap3.core.exceptions.LDAPUnavailableResult(result=52), Verdict.BROKEN),
        (ldap3.core.exceptions.LDAPNoSuchObjectResult(result=32), Verdict.FINE),
        (ldap3.core.exceptions.LDAPInvalidFilterError("("), Verdict.FINE),
        (ConnectionResetError(), Verdict.BROKEN),
    ],
)
def test_what_errors_say(server: Any, error: Exception, verdict: Verdict) -> None:
    with pool_of(server) as pool:
        assert pool._classify_error(error) is verdict
