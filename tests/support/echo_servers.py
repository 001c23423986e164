"""Small servers that echo, as real ones cannot: ``python echo_servers.py smtp 2525``.

Each runs in a process of its own, with asyncio or threads, as ``small_servers.py`` starts it.  A
request is the text ``"SECONDS TOKEN"``: so many seconds later the token comes back.  Of each there
is a way to end the session of a client, which is known by the port it comes from.  With a
certificate and its key after the port, SMTP has STARTTLS, and WebSocket TLS.
"""

from __future__ import annotations

import asyncio
import os
import socket
import socketserver
import ssl
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

HOST = "127.0.0.1"
THRIFT = """
exception Refused { 1: string why }
service Echo {
    string ask(1: string token, 2: double seconds),
    void ping(),
    void refuse() throws (1: Refused refused),
    void end_session(1: i32 port),
}
"""


def tls_context() -> Any:
    if len(sys.argv) < 5:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[3:5])
    return context


def parse(request: str) -> tuple[float, str]:
    seconds, _, token = request.partition(" ")
    return float(seconds), token


# SMTP


async def smtp(port: int) -> None:
    from aiosmtpd.smtp import SMTP

    open_sessions: dict[int, Any] = {}
    context = tls_context()

    class Server(SMTP):
        def connection_made(self, transport: Any) -> None:
            open_sessions[transport.get_extra_info("peername")[1]] = transport
            super().connection_made(transport)

        async def smtp_XECHO(self, arg: str) -> None:
            seconds, token = parse(arg)
            await asyncio.sleep(seconds)
            await self.push(f"250 {token}")

        async def smtp_XMAIL(self, arg: str) -> None:
            """Whether a mail was begun."""
            await self.push(f"250 {'open' if self.envelope.mail_from is not None else 'none'}")

        async def smtp_XGOODBYE(self, arg: str) -> None:
            await self.push("421 the server goes away")

        async def smtp_QUIT(self, arg: str) -> None:
            print("QUIT", flush=True)  # for the log
            await super().smtp_QUIT(arg)

        async def smtp_RSET(self, arg: str) -> None:
            print("RSET", flush=True)
            await super().smtp_RSET(arg)

        async def smtp_XEND(self, arg: str) -> None:
            open_sessions.pop(int(arg)).abort()
            await self.push("250 OK")

    class Handler:
        async def handle_RCPT(
            self, server: Any, session: Any, envelope: Any, address: str, options: Any
        ) -> str:
            if address.startswith("nobody@"):
                return "550 there is nobody of that name"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "250 OK"

    def login(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> Any:
        from aiosmtpd.smtp import AuthResult

        return AuthResult(success=data.password == b"right", handled=False)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Server(
            Handler(),
            authenticator=login,
            auth_require_tls=False,
            hostname="echo",
            tls_context=context,
        ),
        HOST,
        port,
    )
    await server.serve_forever()


# IMAP: what the contract asks for; test_imap.py has a real server


class Imap:
    """One session.  ``XECHO SECONDS TOKEN`` is answered by ``* XECHO TOKEN``."""

    sessions: dict[int, asyncio.StreamWriter] = {}  # noqa: RUF012

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.selected = ""

    async def serve(self) -> None:
        port = self.writer.get_extra_info("peername")[1]
        self.sessions[port] = self.writer
        self.writer.write(b"* OK [CAPABILITY IMAP4rev1 UNSELECT] echo\r\n")
        try:
            while line := await self.reader.readline():
                tag, _, rest = line.decode().strip().partition(" ")
                name, _, argument = rest.partition(" ")
                await self.answer(tag, name.upper(), argument)
                await self.writer.drain()
                if name.upper() == "LOGOUT":
                    break
        except ConnectionError:
            pass
        finally:
            self.sessions.pop(port, None)
            self.writer.close()

    async def answer(self, tag: str, name: str, argument: str) -> None:
        said, how = [], "OK"
        if name == "CAPABILITY":
            said = ["CAPABILITY IMAP4rev1 UNSELECT"]
        elif name == "LOGIN" and not argument.endswith('"right"'):
            how = "NO [AUTHENTICATIONFAILED]"
        elif name in ("SELECT", "EXAMINE"):
            self.selected = argument
            said = ["1 EXISTS", "OK [UIDVALIDITY 1] ok"]
        elif name == "UNSELECT":
            self.selected = ""
        elif name == "XECHO":
            seconds, token = parse(argument)
            await asyncio.sleep(seconds)
            said = [f"XECHO {token}"]
        elif name == "XSELECTED":
            said = [f"XSELECTED {self.selected}"]
        elif name == "XEND":
            self.sessions.pop(int(argument)).transport.abort()
        elif name == "LOGOUT":
            said = ["BYE"]
        for line in said:
            self.writer.write(f"* {line}\r\n".encode())
        self.writer.write(f"{tag} {how} done\r\n".encode())


async def imap(port: int) -> None:
    server = await asyncio.start_server(lambda r, w: Imap(r, w).serve(), HOST, port)
    await server.serve_forever()


# WebSocket


async def websocket(port: int) -> None:
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed

    sessions: dict[int, Any] = {}

    async def handler(connection: Any) -> None:
        peer = connection.remote_address[1]
        sessions[peer] = connection
        try:
            async for message in connection:
                what, _, argument = message.partition(" ")
                if what == "end":
                    sessions[int(argument)].transport.abort()
                    await connection.send("ended")
                elif what == "twice":
                    await connection.send(argument)
                    await connection.send(argument)
                elif what == "ping":
                    await connection.ping()
                elif what == "parts":
                    await connection.send(in_parts(argument))
                else:
                    seconds, token = parse(message)
                    await asyncio.sleep(seconds)
                    await connection.send(token)
        except ConnectionClosed:
            pass
        finally:
            sessions.pop(peer, None)

    async def in_parts(rest: str) -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(0.05)
        yield rest

    async with serve(handler, HOST, port, compression=None, ssl=tls_context()):
        await asyncio.Future()


# Thrift


def thrift(port: int) -> None:
    import tempfile

    import thriftpy2
    from thriftpy2.protocol import TBinaryProtocolFactory
    from thriftpy2.server import TThreadedServer
    from thriftpy2.thrift import TProcessor
    from thriftpy2.transport import TBufferedTransportFactory, TServerSocket

    with tempfile.NamedTemporaryFile("w", suffix=".thrift") as file:
        file.write(THRIFT)
        file.flush()
        module: Any = thriftpy2.load(file.name, module_name="echo_thrift")
    sessions: dict[int, Any] = {}

    class Server(TThreadedServer):  # type: ignore[misc]
        def handle(self, client: Any) -> None:
            sessions[client.sock.getpeername()[1]] = client.sock
            super().handle(client)

    class Handler:
        def ask(self, token: str, seconds: float) -> str:
            time.sleep(seconds)
            return token

        def ping(self) -> None:
            pass

        def refuse(self) -> None:
            raise module.Refused(why="because")

        def end_session(self, port: int) -> None:
            sessions.pop(port).shutdown(socket.SHUT_RDWR)

    server = Server(
        TProcessor(module.Echo, Handler()),
        TServerSocket(host=HOST, port=port, client_timeout=None),
        iprot_factory=TBinaryProtocolFactory(),
        itrans_factory=TBufferedTransportFactory(),
        daemon=True,
    )
    server.serve()


# LDAP: what slapd asks, by its back-sock, for the answers to a search


class LdapBackend(socketserver.StreamRequestHandler):
    """A search for ``(cn=SECONDS TOKEN)`` finds an entry whose description is TOKEN."""

    def handle(self) -> None:
        asked = {}
        first = self.rfile.readline().decode().strip()
        for line in self.rfile:
            name, _, value = line.decode().strip().partition(": ")
            if not name:
                break
            asked[name] = value
        if first == "SEARCH":
            seconds, token = parse(asked["filter"].removeprefix("(cn=").removesuffix(")"))
            time.sleep(seconds)
            entry = f"dn: cn=echo,dc=echo\nobjectClass: device\ncn: echo\ndescription: {token}\n\n"
            self.wfile.write(entry.encode())
        refused = first == "BIND" and asked["cred"] != "right"
        self.wfile.write(b"RESULT\ncode: %d\n" % (49 if refused else 0))


def ldap(path: str) -> None:
    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(path, LdapBackend) as server:
        os.chmod(path, 0o777)
        server.serve_forever()


if __name__ == "__main__":
    kind, where = sys.argv[1:3]
    if kind == "ldap":
        ldap(where)
    elif kind == "thrift":
        thrift(int(where))
    else:
        asyncio.run({"smtp": smtp, "imap": imap, "websocket": websocket}[kind](int(where)))
