"""The adapters whose servers are small, or started by the tests: mail, LDAP, Thrift, WebSocket."""

from __future__ import annotations

import imaplib
import smtplib
from collections.abc import Hashable
from typing import Any

import ldap3
import thriftpy2.transport
import websocket
from gevent.socket import wait_read
from ldap3.core.exceptions import LDAPCommunicationError

from support.contract import Adapter, Address
from support.small_servers import (
    OwnImap,
    OwnSlapd,
    OwnSmtp,
    OwnThrift,
    OwnWebSocket,
    ports_of_clients,
    shared,
)

__all__ = ["Imap", "Ldap3", "Smtp", "Thrift", "WebSocket"]


class Small(Adapter):
    """What does not depend on the client: a session is known by the port it comes from."""

    needs_patching = False

    def shared_address(self) -> Address:
        return shared(self.own_server)

    def session(self, conn: Any) -> Hashable:
        return conn.sock.getsockname()[1]  # type: ignore[no-any-return]

    def sessions(self, address: Address) -> set[Hashable]:
        return ports_of_clients(address)


class Smtp(Small):
    name = "smtp"
    own_server = OwnSmtp
    lost = (smtplib.SMTPServerDisconnected, OSError)
    states = ("a mail begun", "a mail with a recipient", "a reply not read", "a mail body awaited")

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.smtp import SmtpPool

        return SmtpPool(address, size, local_hostname="test", **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        return conn.docmd("XECHO", f"{seconds} {token}")[1].decode()  # type: ignore[no-any-return]

    def end_session(self, address: Address, session: Hashable) -> None:
        with smtplib.SMTP(*address, local_hostname="test") as conn:
            conn.docmd("XEND", str(session))

    def leave(self, state: str, conn: Any) -> object:
        if state == "a reply not read":
            return conn.putcmd("XECHO", "0.05 left")
        assert conn.mail("anna@example.org")[0] == 250
        if state != "a mail begun":
            assert conn.rcpt("bob@example.org")[0] == 250
        if state == "a mail body awaited":
            assert conn.docmd("DATA")[0] == 354
        return None

    def remains(self, state: str, conn: Any) -> object:
        return conn.docmd("XMAIL")[1] != b"none"


class Imap(Small):
    name = "imap"
    own_server = OwnImap
    lost = (imaplib.IMAP4.abort, OSError)
    states = ("a mailbox", "a mailbox read-only", "a reply not read", "data not fetched")

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.imap import ImapPool

        return ImapPool(address, size, user="anna", password="right", **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        imaplib.Commands.setdefault("XECHO", ("AUTH", "SELECTED"))
        conn._simple_command("XECHO", f"{seconds} {token}")
        return conn.response("XECHO")[1][0].decode()  # type: ignore[no-any-return]

    def end_session(self, address: Address, session: Hashable) -> None:
        conn = imaplib.IMAP4(*address)
        conn.login("anna", "right")
        conn.xatom("XEND", str(session))
        conn.logout()

    def leave(self, state: str, conn: Any) -> object:
        if state == "a reply not read":
            imaplib.Commands.setdefault("XECHO", ("AUTH", "SELECTED"))
            return conn._command("XECHO", "0.05 left")
        if state == "data not fetched":
            conn.untagged_responses["XECHO"] = [b"left"]
            return None
        return conn.select("INBOX", readonly=state == "a mailbox read-only")

    def remains(self, state: str, conn: Any) -> object:
        conn.xatom("XSELECTED")
        selected = conn.response("XSELECTED")[1]
        return conn.state != "AUTH" or conn.response("XECHO")[1] != [None] or selected != [b""]


class Thrift(Small):
    name = "thrift"
    own_server = OwnThrift
    lost = (thriftpy2.transport.TTransportException, OSError)
    states = ("an answer not read", "half a call")

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.thrift import ThriftPool
        from support.thrift_service import Echo

        settings = {"ping": lambda client: client.ping(), **settings}
        return ThriftPool(Echo, address, size, **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        return conn.ask(token, seconds)  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return conn._tsocket.sock.getsockname()[1]  # type: ignore[no-any-return]

    def end_session(self, address: Address, session: Hashable) -> None:
        from thriftpy2.rpc import client_context

        from support.thrift_service import Echo

        with client_context(Echo, *address) as client:
            client.end_session(session)

    def leave(self, state: str, conn: Any) -> object:
        if state == "an answer not read":
            return conn._send("ask", token="left", seconds=0.0)
        try:
            conn.ask(object(), 0.0)
        except Exception as error:
            return error
        raise AssertionError("that is no argument of it")

    def remains(self, state: str, conn: Any) -> object:
        return conn.ask("mine", 0.0) != "mine"


class WebSocket(Small):
    name = "websocket"
    own_server = OwnWebSocket
    lost = (websocket.WebSocketException, OSError)
    states = ("a message not read", "a message read by half", "a goodbye", "a time limit")

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.websocket import WebSocketPool

        return WebSocketPool(f"ws://{address[0]}:{address[1]}/", size, **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        conn.send(f"{seconds} {token}")
        return conn.recv()  # type: ignore[no-any-return]

    def end_session(self, address: Address, session: Hashable) -> None:
        conn = websocket.create_connection(f"ws://{address[0]}:{address[1]}/")
        conn.send(f"end {session}")
        conn.recv()
        conn.close()

    def leave(self, state: str, conn: Any) -> object:
        if state == "a message not read":
            conn.send("twice left")
            conn.recv()
            return wait_read(conn.sock.fileno(), timeout=10)  # the second has arrived
        if state == "a goodbye":
            return conn.send_close()
        if state == "a time limit":
            return conn.settimeout(0.01)
        conn.send("parts left")
        return conn.cont_frame.add(conn.recv_frame())

    def remains(self, state: str, conn: Any) -> object:
        conn.send("0.05 mine")
        return conn.recv() != "mine"


class Ldap3(Small):
    name = "ldap3"
    own_server = OwnSlapd
    lost = (LDAPCommunicationError, OSError)
    states = ("bound as another", "unbound", "a reply not read", "entries")

    def has(self, *methods: str) -> bool:
        return "end_session" not in methods and super().has(*methods)  # slapd knows no such thing

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.ldap3 import Ldap3Pool

        return Ldap3Pool(address, size, user="cn=admin,dc=echo", password="right", **settings)

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        conn.search("dc=echo", f"(cn={seconds} {token})", attributes=["description"])
        return conn.response[0]["attributes"]["description"][0]  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return conn.socket.getsockname()[1]  # type: ignore[no-any-return]

    def leave(self, state: str, conn: Any) -> object:
        if state == "bound as another":
            return conn.rebind("cn=other,dc=echo", "right")
        if state == "unbound":
            return conn.unbind()
        if state == "entries":
            return self.ask(conn, "left")
        request = ldap3.operation.search.search_operation(
            *("dc=echo", "(cn=0.05 left)", ldap3.SUBTREE, ldap3.DEREF_ALWAYS, ["description"]),
            *(0, 0, False, False, False),
        )
        return conn.send("searchRequest", request, None)

    def remains(self, state: str, conn: Any) -> object:
        if state == "entries":
            return conn.response
        return conn.extend.standard.who_am_i() != "dn:cn=admin,dc=echo"
