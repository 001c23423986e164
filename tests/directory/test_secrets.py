"""What is sent as a secret stands in no message, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from geventpool.coordination.json_api import JsonConnection
from geventpool.directory.consul import ConsulResolver
from geventpool.directory.etcd import EtcdResolver
from geventpool.directory.kubernetes import KubernetesResolver
from geventpool.errors import ConnectError
from geventpool.fleet.etcd import EtcdStore
from support.small_kubernetes import SmallKubernetes

SECRETS: list[Any] = [
    "s3cr3t\n",
    "s3cr3t\r\nX: 1",
    "s3cr3t\x00",
    "s3cr3t-\u20ac",
    b"s3cr3t",
    ["s3cr3t"],
]
MAKERS: dict[str, Callable[[Any], object]] = {
    "token": lambda secret: ConsulResolver(token=secret),
    r"headers\['Authorization'\]": lambda secret: EtcdResolver(
        "127.0.0.1:1", headers={"Authorization": secret}
    ),
    r"headers\['X-Key'\]": lambda secret: EtcdStore("127.0.0.1:1", headers={"X-Key": secret}),
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("said", MAKERS)
def test_a_secret_that_cannot_be_sent_is_refused_at_once_and_not_shown(
    said: str, secret: Any
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{said} must be") as caught:
        MAKERS[said](secret)
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("secret", SECRETS)
def test_a_token_that_a_function_returns_is_not_shown(
    secret: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with SmallKubernetes() as cluster:
        made = KubernetesResolver(
            namespace="shop", target=cluster.address, token=lambda: secret, tls=False
        )
        with made as resolver, pytest.raises(ConnectError, match="token must be") as caught:
            resolver.resolve("web")
        assert not cluster.agents
    assert "s3cr3t" not in f"{caught.value} {caught.value.__cause__!r} {caplog.text}"


@pytest.mark.parametrize("held", [b"s3cr3t\nmore", b"s3cr3t\x00"])
def test_a_token_in_a_file_that_cannot_be_sent_is_refused_and_not_shown(
    held: bytes, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_bytes(held)
    with pytest.raises(ValueError, match="^token must be") as caught:
        KubernetesResolver(namespace="shop", target="127.0.0.1:1", token=token, tls=False)
    assert "s3cr3t" not in repr(caught.value)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_header_is_shown_by_a_connection_that_cannot_send_it(secret: Any) -> None:
    def dial() -> None:
        raise AssertionError("nothing is to be sent")

    conn = JsonConnection("any", dial)
    with pytest.raises((TypeError, ValueError), match="^the header X-Token must be") as caught:
        conn.ask("/", {"X-Token": secret}, 1.0)
    assert "s3cr3t" not in f"{caught.value!r} {caught.value.__context__!r}"
