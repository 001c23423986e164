"""contrib.http, and nginx."""

from __future__ import annotations

import atexit
import functools
import http.client
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from support.contract import Adapter, Address
from support.descriptors import clients_of
from support.own_servers import OwnServer

__all__ = ["Http", "OwnNginx"]

LARGE = 300_000  # bytes

_CONFIGURATION = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr info; {user}
events {{ worker_connections 256; }}
http {{
    access_log off; default_type text/plain;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    keepalive_timeout {keepalive} {keepalive}; keepalive_requests 100000;
    server {{
        listen {host}:{port}; root {folder};
        location ~ ^/echo/(?<token>.*)$ {{ return 200 $token; }}
        location /slow/ {{ proxy_pass http://unix:{folder}/upstream; proxy_buffering off; }}
        location /large {{ }}
        location /last {{ keepalive_timeout 0; return 200 last; }}
        location / {{ return 404 "nothing here"; }}
    }}
}}
"""


class OwnNginx(OwnServer):
    """*keepalive*: how many seconds it keeps idle connections."""

    name = "nginx"
    program = "nginx"

    def __init__(self, keepalive: str = "60") -> None:
        super().__init__(keepalive)
        # That user need not be able to run this Python; nginx becomes it by itself.
        self.servant, self.user = self.user, None

    def prepare(self) -> None:
        self.folder.chmod(0o755)
        (self.folder / "large").write_bytes(b"x" * LARGE)
        host, port = self.address
        text = _CONFIGURATION.format(
            user=f"user {self.servant} nogroup;" if self.servant else "",
            host=host,
            port=port,
            folder=self.folder,
            keepalive=self.options[0],
        )
        (self.folder / "nginx.conf").write_text(text)

    def command(self) -> list[str]:
        program = str(Path(__file__).parent.parent / "slow_upstream.py")
        nginx = [self.program_path, "-p", str(self.folder), "-e", "stderr", "-c", "nginx.conf"]
        return [sys.executable, program, str(self.folder / "upstream"), *nginx]


@functools.cache
def shared() -> OwnServer:
    """One for all tests that do it no harm."""
    server = OwnNginx().__enter__()
    atexit.register(server.close)
    return server


class Http(Adapter):
    name = "http"
    needs_patching = False
    own_server = OwnNginx
    lost = (http.client.HTTPException, OSError)
    states = (
        *("an answer not waited for", "an answer not read", "a body read by half"),
        *("a request sent by half", "an answer that is the last"),
    )
    protocol_errors = "client sent invalid"

    def shared_address(self) -> Address:
        return shared().address

    def pool(self, address: Address, size: int, *, plain: bool = False, **settings: Any) -> Any:
        from geventpool.contrib.http import HttpPool

        host, port = address
        return HttpPool(f"http://{host}:{port}", size, **{"min_size": size, **settings})

    def ask(self, conn: Any, token: str, seconds: float = 0.0) -> str:
        path = f"/slow/{seconds}/" if seconds else "/echo/"
        answer = conn.exchange("GET", path + token.replace(" ", "_"))
        assert answer.status == 200
        return answer.body.decode().replace("_", " ")  # type: ignore[no-any-return]

    def session(self, conn: Any) -> Hashable:
        return conn.sock.getsockname()[1]  # type: ignore[no-any-return]

    def sessions(self, address: Address) -> set[Hashable]:
        return set(clients_of(address))

    def leave(self, state: str, conn: Any) -> object:
        if state == "a request sent by half":
            conn.putrequest("POST", "/echo/stale")
            conn.putheader("Content-Length", "10")
            return conn.endheaders(b"half")
        if state == "an answer that is the last":
            return conn.exchange("GET", "/last")
        if state == "an answer not waited for":
            return conn.request("GET", "/slow/0.2/stale")
        conn.request("GET", "/large")
        if state == "an answer not read":
            return None
        answer = conn.getresponse()
        assert answer.read(1000) == b"x" * 1000
        return answer

    def remains(self, state: str, conn: Any) -> object:
        return None  # a wrong answer is all that there would be
