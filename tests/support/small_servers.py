"""The servers of clients for which nobody keeps one at a standard port; each is a test's own.

``shared(OwnSmtp)`` is the address of one that all tests of the run share, started at its first use.
"""

from __future__ import annotations

import atexit
import functools
import grp
import os
import pwd
import socket
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import gevent

from support.own_servers import OwnServer, free_port

__all__ = [
    "OwnDovecot",
    "OwnImap",
    "OwnRabbitMq",
    "OwnSlapd",
    "OwnSmtp",
    "OwnThrift",
    "OwnWebSocket",
    "ports_of_clients",
    "shared",
]

_SCRIPT = Path(__file__).with_name("echo_servers.py")


@functools.cache
def shared(kind: type[OwnServer]) -> tuple[str, int]:
    """The address of the one of that kind that all tests share."""
    server = kind()
    atexit.register(server.close)
    server.__enter__()
    return server.address


def ports_of_clients(address: tuple[str, int]) -> set[Hashable]:
    """From which ports of 127.0.0.1 connections to *address* come, as its server sees it."""
    ours = f"{_number(address[0])}:{address[1]:04X}"
    found: set[Hashable] = set()
    with open("/proc/net/tcp") as table:
        for line in table:
            _, local, remote, state, *_ = line.split()
            if local == ours and state in ("01", "08"):  # ESTABLISHED, CLOSE_WAIT
                found.add(int(remote.partition(":")[2], 16))
    return found


def _number(host: str) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}"


class _Echo(OwnServer):
    """One of those in echo_servers.py; *options*: a certificate and its key, for TLS."""

    program = sys.executable
    kind: ClassVar[str]

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self.user = None  # another one might not read the script, nor what it imports

    def command(self) -> list[str]:
        return [self.program_path, str(_SCRIPT), self.kind, str(self.address[1]), *self.options]


class OwnSmtp(_Echo):
    name = kind = "smtp"


class OwnImap(_Echo):
    name = kind = "imap"


class OwnThrift(_Echo):
    name = kind = "thrift"


class OwnWebSocket(_Echo):
    name = kind = "websocket"


class OwnDovecot(OwnServer):
    """Dovecot: anybody may log in by the password "right"; *options*: a certificate and its key."""

    name = program = "dovecot"

    def prepare(self) -> None:
        host, port = self.address
        user = self.user or pwd.getpwuid(os.getuid()).pw_name
        if self.user is not None:
            self.group = pwd.getpwnam(user).pw_gid
        group = grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name
        tls = "ssl = no"
        if self.options:
            self.hand_over(*map(Path, self.options))
            certificate, key = (self.folder / Path(each).name for each in self.options)
            tls = f"ssl = yes\nssl_cert = <{certificate}\nssl_key = <{key}"
        (self.folder / "dovecot.conf").write_text(
            f"""
protocols = imap
base_dir = {self.folder}/run
state_dir = {self.folder}/state
log_path = /dev/stderr
listen = {host}
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
first_valid_uid = 1
{tls}
disable_plaintext_auth = no
auth_failure_delay = 0
mail_location = maildir:{self.folder}/mail/%u
passdb {{
  driver = static
  args = password=right
}}
userdb {{
  driver = static
  args = uid={user} gid={group} home={self.folder}/mail/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service stats {{
  chroot =
}}
"""
        )

    def command(self) -> list[str]:
        return [self.program_path, "-F", "-c", f"{self.folder}/dovecot.conf"]


class OwnSlapd(OwnServer):
    """OpenLDAP's, whose searches below ``dc=echo`` are answered by echo_servers.py; *options*: a
    certificate and its key."""

    name = program = "slapd"

    _backend: Any = None

    def prepare(self) -> None:
        tls = ""
        if self.options:
            self.hand_over(*map(Path, self.options))
            certificate, key = (self.folder / Path(each).name for each in self.options)
            tls = f"TLSCertificateFile {certificate}\nTLSCertificateKeyFile {key}"
        (self.folder / "slapd.conf").write_text(
            f"""
{tls}
include /etc/ldap/schema/core.schema
modulepath /usr/lib/ldap
moduleload back_sock
pidfile {self.folder}/slapd.pid
database sock
suffix "dc=echo"
socketpath {self.folder}/backend
"""
        )
        command = [sys.executable, str(_SCRIPT), "ldap", f"{self.folder}/backend"]
        user, self.user = self.user, None
        try:
            self._backend = self._popen(command)
        finally:
            self.user = user
        while not (self.folder / "backend").exists():
            assert self._backend.poll() is None, self.log()
            gevent.sleep(0.01)

    def command(self) -> list[str]:
        host, port = self.address
        where = ["-f", f"{self.folder}/slapd.conf", "-h", f"ldap://{host}:{port}"]
        return [self.program_path, "-d", "0", *where]

    def close(self) -> None:
        process, self._backend = self._backend, None
        if process is not None:
            process.kill()
            process.wait()
        super().close()


class OwnRabbitMq(OwnServer):
    name = "rabbitmq"
    program = "rabbitmq-server"

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self._port_of_nodes = free_port()

    def environment(self) -> dict[str, str]:
        folder, port = self.folder, self.address[1]
        return {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"geventpool{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": self.address[0],
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(self._port_of_nodes),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "ERL_CRASH_DUMP": str(folder / "crash"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }

    def prepare(self) -> None:
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text("heartbeat = 60\n")

    def command(self) -> list[str]:
        # Not Debian's wrapper, which runs it as a user of its own.
        real = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        settings = [f"{name}={value}" for name, value in self.environment().items()]
        return ["env", *settings, real if os.path.exists(real) else self.program_path]
