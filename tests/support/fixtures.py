"""Fixtures that many files of tests want.  A plugin: tests/conftest.py names it."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import gevent.ssl
import pytest

from geventpool.manager import ConnectionManager
from geventpool.testing import FakeClock
from support.certificates import Certificates, make_certificates
from support.kinds import KINDS, MakePool
from support.managers import Hosts
from support.objects import Maker


@pytest.fixture
def maker() -> Maker:
    """Opens connections that are no sockets: give it to a pool as *connect*."""
    return Maker()


@pytest.fixture
def clock() -> FakeClock:
    """It stands at 1,000 until the test advances it."""
    return FakeClock(1000.0)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of a private authority, and of a server named localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def contexts(certificates: Certificates) -> tuple[Any, Any]:
    """That of the server named localhost, and that of a client that trusts it."""
    server = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(str(certificates.certificate), str(certificates.key))
    return server, gevent.ssl.create_default_context(cafile=str(certificates.authority))


@pytest.fixture(params=KINDS)
def make_pool(request: pytest.FixtureRequest) -> MakePool:
    """Makes a pool of each kind in turn: ``make_pool(size, connect=..., **settings)``."""
    return KINDS[request.param]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Servers at addresses of their own, gone at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield Hosts(stack)


@pytest.fixture
def manage() -> Iterator[Callable[..., ConnectionManager]]:
    """Makes managers that are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **settings: Any) -> ConnectionManager:
            manager = ConnectionManager(*args, **settings)
            # Not without a bound: a test that fails may still hold a socket.
            stack.callback(manager.close, 5.0)
            return manager

        yield make
