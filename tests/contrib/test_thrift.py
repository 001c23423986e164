"""contrib.thrift: what ThriftPool has beyond the contract.  Nothing needs to be patched."""

from __future__ import annotations

from typing import Any

import pytest
import thriftpy2.protocol
import thriftpy2.transport
from thriftpy2.thrift import TApplicationException

from geventpool.contrib.thrift import ThriftPool
from support.small_servers import OwnThrift, shared
from support.thrift_service import Echo, Refused


def pool_of(**settings: Any) -> ThriftPool:
    return ThriftPool(Echo, shared(OwnThrift), 1, **{"timeout": 5, **settings})


def test_an_exception_of_the_service_is_an_answer() -> None:
    with pool_of() as pool:
        with pytest.raises(Refused, match="because"), pool.get() as client:
            client.refuse()
        with pool.get() as again:
            assert again is client


def test_so_is_what_the_server_says_of_a_method_that_it_has_not() -> None:
    with pool_of() as pool:
        with pytest.raises(TApplicationException), pool.get() as client:
            client.not_there()
        with pool.get() as again:
            assert again is client


def test_after_an_argument_of_the_wrong_type_the_client_is_closed() -> None:
    with pool_of() as pool:
        with pool.get() as client:
            with pytest.raises(Exception, match=r"."):
                client.ask("hello", "not a number")
        with pool.get() as other:
            assert other is not client
            assert other.ask("hello", 0.0) == "hello"


def test_an_answer_that_cannot_be_read_costs_the_client() -> None:
    class Broken(thriftpy2.protocol.TBinaryProtocol):
        def read_struct(self, obj: Any) -> Any:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "no")

    class Factory:
        def get_protocol(self, trans: Any) -> Any:
            return Broken(trans)

    with pool_of(proto_factory=Factory()) as pool:
        with pytest.raises(UnicodeDecodeError), pool.get() as client:
            client.ask("hello", 0.0)
        with pool.get() as other:
            assert other is not client


@pytest.mark.parametrize("name", ["TCyBufferedTransportFactory", "TBufferedTransportFactory"])
def test_transports_may_be_chosen(name: str) -> None:
    factory = getattr(thriftpy2.transport, name)()
    with pool_of(trans_factory=factory) as pool, pool.get() as client:
        assert client.ask("hello", 0.0) == "hello"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keepalive": 1.0}, "keepalive is set, but ping is not"),
        ({"ping": "ping"}, "ping"),
        ({"sizes": 3}, "no argument 'sizes'"),
    ],
)
def test_bad_arguments_are_named(settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ThriftPool(Echo, ("localhost", 9090), 1, **settings)
    with pytest.raises(TypeError, match="service must be a service"):
        ThriftPool(object(), ("localhost", 9090))
