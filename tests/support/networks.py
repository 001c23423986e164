"""Hosts of a test's own: network namespaces with two networks, of which links may be cut.

Servers are in a namespace of their own, with an address in each network; each host has a leg in
both.  No packet leaves the namespaces.  Where they may not be made, tests are skipped, or, with
``GEVENTPOOL_REQUIRE_SERVERS=1``, fail.
"""

from __future__ import annotations

import os
import pwd
import secrets
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import pytest

__all__ = ["Hosts", "Place"]

NETWORKS = {"store": "10.77.1", "database": "10.77.2"}


class Place(NamedTuple):
    """A *namespace*, and an address in it."""

    namespace: str
    host: str = ""

    def inside(self, command: list[str], user: str | None = None) -> list[str]:
        """The command that runs *command* there, with the same process id."""
        there = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        if user is not None:
            there += [f"--setuid={pwd.getpwnam(user).pw_uid}"]
        return [*there, "--", *command]


class Hosts:
    """So many hosts; ``place("store")`` is where a server is put that all of them reach by the
    network of that name."""

    def __init__(self, count: int) -> None:
        self._start = f"gp{secrets.token_hex(3)}"
        self._switch = f"{self._start}-switch"
        self.hosts = [Place(f"{self._start}-{number}") for number in range(1, count + 1)]

    def place(self, network: str) -> Place:
        return Place(self._switch, f"{NETWORKS[network]}.1")

    def cut(self, host: Place, network: str) -> None:
        """From now on what goes between *host* and that network is lost without a word."""
        _ip("-n", self._switch, "link", "set", self._port(host, network), "nomaster")

    def mend(self, host: Place, network: str) -> None:
        """... until now."""
        _ip("-n", self._switch, "link", "set", self._port(host, network), "master", network)

    def _port(self, host: Place, network: str) -> str:
        return f"{network[:5]}{self.hosts.index(host)}"

    def __enter__(self) -> Hosts:
        __tracebackhide__ = True
        try:
            self._make()
        except (OSError, subprocess.CalledProcessError) as error:
            self._remove()
            said = getattr(error, "stderr", None) or error
            reason = f"network namespaces may not be made here: {said}"
            if os.environ.get("GEVENTPOOL_REQUIRE_SERVERS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return self

    def __exit__(
        self,
        exc_class: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _make(self) -> None:
        switch = self._switch
        for namespace in (switch, *(host.namespace for host in self.hosts)):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
        for network, start in NETWORKS.items():
            _ip("-n", switch, "link", "add", "name", network, "type", "bridge")
            _ip("-n", switch, "addr", "add", f"{start}.1/24", "dev", network)
            _ip("-n", switch, "link", "set", network, "up")
            for number, host in enumerate(self.hosts):
                port, own = self._port(host, network), host.namespace
                ends = ("netns", switch, "type", "veth", "peer", "name", network, "netns", own)
                _ip("link", "add", "name", port, *ends)
                _ip("-n", own, "addr", "add", f"{start}.{number + 2}/24", "dev", network)
                _ip("-n", own, "link", "set", network, "up")
                _ip("-n", switch, "link", "set", port, "master", network, "up")

    def _remove(self) -> None:
        for namespace in (self._switch, *(host.namespace for host in self.hosts)):
            with suppress(OSError, subprocess.CalledProcessError):
                _ip("netns", "del", namespace)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
