"""KubernetesResolver, against a server that answers as Kubernetes' API server does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from geventpool.addresses import AddressGroup
from geventpool.backoff import Backoff
from geventpool.directory import kubernetes as module
from geventpool.directory.kubernetes import KubernetesResolver
from geventpool.errors import ConnectError, NameNotFound
from geventpool.testing import ChaosProxy
from support.certificates import Certificates, make_certificates
from support.managers import Hosts
from support.small_kubernetes import SmallKubernetes, endpoint, slice_of
from support.waiting import until

A, B, C = "10.1.0.1", "10.1.0.2", "10.1.0.3"


@pytest.fixture
def cluster() -> Iterator[SmallKubernetes]:
    with SmallKubernetes() as server:
        yield server


@pytest.fixture
def watch(cluster: SmallKubernetes) -> Iterator[Callable[..., KubernetesResolver]]:
    """Makes resolvers that are closed in the end."""
    with ExitStack() as stack:

        def make(**settings: Any) -> KubernetesResolver:
            defaults = {
                "namespace": "shop",
                "target": cluster.address,
                "token": lambda: "a token",
                "tls": False,
                "backoff": Backoff(first=0.005, longest=0.01),
            }
            resolver = KubernetesResolver(**{**defaults, **settings})
            stack.callback(resolver.close)
            return resolver

        yield make


@pytest.fixture
def proxy(cluster: SmallKubernetes) -> Iterator[ChaosProxy]:
    """On the way to the cluster."""
    with ChaosProxy(cluster.address) as way:
        yield way


def knows(resolver: KubernetesResolver, *hosts: str, name: str = "web", port: int = 8080) -> None:
    """Wait until these are given out."""
    expected = AddressGroup.of(*((host, port) for host in hosts))
    until(lambda: resolver.resolve(name) == expected, f"{hosts}")


def test_a_change_of_any_slice_is_pushed_after_one_list(
    cluster: SmallKubernetes, watch: Any
) -> None:
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    assert resolver.resolve("web") == AddressGroup.of((A, 8080))
    until(lambda: cluster.watching == 1)
    cluster.put(slice_of("web-2", endpoint(B)))
    knows(resolver, A, B)
    cluster.put(slice_of("web-1", endpoint(A), endpoint(C)))
    knows(resolver, A, B, C)
    cluster.delete("web-2")
    knows(resolver, A, C)
    assert (len(cluster.lists), len(cluster.watches)) == (1, 1)
    assert cluster.watches[0]["resourceVersion"] == ["1001"]
    assert cluster.watches[0]["allowWatchBookmarks"] == ["true"]


def test_what_changes_between_the_list_and_the_watch_is_not_missed(
    cluster: SmallKubernetes, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put(slice_of("web-1", endpoint(A)))
    original = module._Slices.watch

    def late(self: Any) -> Any:
        if not cluster.watches:
            cluster.put(slice_of("web-2", endpoint(B)))
        return original(self)

    monkeypatch.setattr(module._Slices, "watch", late)
    knows(watch(), A, B)
    assert len(cluster.lists) == 1


def test_a_watch_that_ends_is_begun_again_where_it_was(
    cluster: SmallKubernetes, watch: Any
) -> None:
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    cluster.put(slice_of("web-2", endpoint(B)))
    knows(resolver, A, B)
    cluster.end_watches()
    until(lambda: len(cluster.watches) == 2)
    assert cluster.watches[1]["resourceVersion"] == ["1002"]
    cluster.put(slice_of("web-3", endpoint(C)))
    knows(resolver, A, B, C)
    assert len(cluster.lists) == 1


def test_a_bookmark_keeps_a_quiet_watch_from_being_too_old(
    cluster: SmallKubernetes, watch: Any
) -> None:
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    for number in range(20):  # of which this one hears nothing
        cluster.put(slice_of(f"db-{number}", endpoint(B), service="db"))
    version = cluster.bookmark()
    gevent.idle()
    cluster.end_watches()
    until(lambda: len(cluster.watches) == 2)
    assert cluster.watches[1]["resourceVersion"] == [str(version)]
    assert resolver.resolve("web") == AddressGroup.of((A, 8080))


@pytest.mark.parametrize("by_status", [False, True])
def test_a_version_that_is_gone_has_all_listed_anew(
    cluster: SmallKubernetes,
    watch: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    by_status: bool,
) -> None:
    monkeypatch.setattr(module, "_AGAIN", 0.01)
    cluster.gone_by_status = by_status
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    cluster.put(slice_of("web-1", endpoint(B)))
    knows(resolver, B)
    cluster.put(slice_of("db-1", endpoint(B), service="db"))
    cluster.end_watches()
    cluster.put(slice_of("web-1", endpoint(C)))
    cluster.compact()
    knows(resolver, C)
    until(lambda: len(cluster.lists) == 2 and cluster.watching == 1)
    assert resolver.resolve("web") == AddressGroup.of((C, 8080))
    assert "does not answer" not in caplog.text  # that is how it is meant to be


def test_one_that_terminates_is_given_out_no_more(
    cluster: SmallKubernetes, watch: Any, hosts: Hosts, manage: Any
) -> None:
    old, new = hosts.servers(2)
    addresses = [server.address for server in (old, new)]
    ports = [[("http", port)] for _, port in addresses]
    hosts_of = [host for host, _ in addresses]
    cluster.put(slice_of("web-1", endpoint(hosts_of[0]), ports=ports[0]))
    manager = manage(watch(), watch_interval=3600.0, watch_hold=0.0)
    held = manager.get_connection("web:http")
    with manager.connection("web:http"):
        pass
    cluster.put(slice_of("web-2", endpoint(hosts_of[1]), ports=ports[1]))
    ending = endpoint(hosts_of[0], ready=False, serving=True, terminating=True)
    cluster.put(slice_of("web-1", ending, ports=ports[0]))
    old.wait_open(1)  # the idle one is gone
    with manager.connection("web:http") as sock:
        assert sock.getpeername() == new.address
    held.sendall(b"ping")
    assert held.recv(4) == b"ping"
    manager.release_connection(held)
    old.wait_open(0)


def test_names_say_which_namespace_and_port(cluster: SmallKubernetes, watch: Any) -> None:
    ports = [("http", 8080), ("metrics", 9090)]
    cluster.put(slice_of("web-1", endpoint(A), ports=ports))
    cluster.put(slice_of("web-1", endpoint(B), ports=ports, namespace="other"))
    resolver = watch()
    knows(resolver, A, name="web:http")
    knows(resolver, A, name="web:9090", port=9090)
    knows(resolver, B, name="web.other:metrics", port=9090)
    with pytest.raises(ConnectError, match="several ports.*http:8080, metrics:9090"):
        resolver.resolve("web")
    with pytest.raises(NameNotFound):
        resolver.resolve("db")
    with pytest.raises(ValueError, match="name must be"):
        resolver.resolve("Web")


def test_a_name_without_its_port_is_watched_on_and_the_directory_not_said_to_be_away(
    cluster: SmallKubernetes, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool.directory")
    ports = [("http", 8080), ("metrics", 9090)]
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    with pytest.raises(NameNotFound, match="no pod of the service has the port 80, .*targetPort"):
        resolver.resolve("web:80")
    knows(resolver, A)
    until(lambda: cluster.watching == 2)
    cluster.put(slice_of("web-1", endpoint(A), ports=ports))
    until(lambda: "several ports" in caplog.text)
    knows(resolver, A)  # its last ones serve on
    cluster.put(slice_of("web-1", endpoint(B)))
    knows(resolver, B)
    assert (len(cluster.lists), len(cluster.watches)) == (2, 2)
    assert "does not answer" not in caplog.text
    assert len([each for each in caplog.messages if each.startswith("'web':")]) == 2


@pytest.mark.parametrize("reset", [False, True])
def test_a_watch_that_is_cut_is_begun_again_where_it_was(
    cluster: SmallKubernetes,
    watch: Any,
    proxy: ChaosProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reset: bool,
) -> None:
    monkeypatch.setattr(module, "_SHORT", 0.0)
    caplog.set_level(logging.INFO, "geventpool.directory")
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch(target=proxy.address)
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    cluster.put(slice_of("web-2", endpoint(B)))
    knows(resolver, A, B)
    assert (proxy.rst if reset else proxy.fin)() == 1
    cluster.put(slice_of("web-3", endpoint(C)))
    knows(resolver, A, B, C)
    assert (len(cluster.lists), len(cluster.watches)) == (1, 2)
    assert cluster.watches[1]["resourceVersion"] == ["1002"]
    assert not caplog.messages


def test_the_token_is_read_anew_as_it_rotates(
    cluster: SmallKubernetes, watch: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    cluster.tokens = {"first"}
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch(token=token)
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    token.write_text("second\n")
    cluster.tokens = {"second"}
    cluster.bookmark()
    gevent.idle()
    cluster.end_watches()
    until(lambda: len(cluster.watches) == 2)
    assert cluster.agents == ["Bearer first", "Bearer first", "Bearer second"]
    cluster.tokens = {"third"}
    cluster.bookmark()
    gevent.idle()
    cluster.end_watches()
    until(lambda: "status 401" in caplog.text)
    assert resolver.resolve("web") == AddressGroup.of((A, 8080))
    assert "second" not in caplog.text
    token.write_text("third\n")
    cluster.put(slice_of("web-1", endpoint(B)))
    knows(resolver, B)


def test_a_pod_needs_to_be_told_nothing(
    certificates: Certificates, contexts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "namespace").write_text("shop")
    (tmp_path / "token").write_text("a token")
    (tmp_path / "ca.crt").write_bytes(certificates.authority.read_bytes())
    monkeypatch.setattr(module, "_ACCOUNT", tmp_path)
    with SmallKubernetes(ssl_context=contexts[0]) as cluster:
        cluster.tokens = {"a token"}
        cluster.put(slice_of("web-1", endpoint(A)))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.address[1]))
        with KubernetesResolver() as resolver:
            assert resolver.resolve("web") == AddressGroup.of((A, 8080))
            assert f"localhost:{cluster.address[1]}" in repr(resolver)


def test_a_server_that_another_authority_vouches_for_is_not_asked(
    certificates: Certificates, contexts: Any, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(make_certificates(tmp_path).authority.read_bytes())
    with SmallKubernetes(ssl_context=contexts[0]) as cluster:
        cluster.put(slice_of("web-1", endpoint(A)))
        made = KubernetesResolver(
            namespace="shop",
            target=("localhost", cluster.address[1]),
            token=lambda: "a token",
            ca=ca,
            backoff=Backoff(first=0.005, longest=0.01),
        )
        with made as resolver:
            with pytest.raises(ConnectError, match="does not answer.*CERTIFICATE_VERIFY_FAILED"):
                resolver.resolve("web")
            assert not cluster.agents
            ca.write_bytes(certificates.authority.read_bytes())  # as it rotates
            until(lambda: len(cluster.watches) == 1)
            assert resolver.resolve("web") == AddressGroup.of((A, 8080))


def test_outside_of_a_pod_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ACCOUNT", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OSError, match="namespace"):
        KubernetesResolver()
    with pytest.raises(OSError, match="target must be given outside of a pod"):
        KubernetesResolver(namespace="shop")
    with pytest.raises(OSError, match="token"):
        KubernetesResolver(namespace="shop", target="api:443", tls=True)
    with pytest.raises(OSError, match="No such file"):
        KubernetesResolver(namespace="shop", target="api:443", token=lambda: "")
    with pytest.raises(ValueError, match="name must be"):
        KubernetesResolver(namespace="Shop", target="api:443", tls=True)
    with pytest.raises(TypeError, match="ca and tls must not both be given"):
        KubernetesResolver(namespace="shop", target="api:443", tls=True, ca="ca.crt")
    with pytest.raises(ValueError, match="families must be some of IPv4, IPv6, FQDN"):
        KubernetesResolver(namespace="shop", families=["v4"])
    for families in (None, "IPv4", 4):
        with pytest.raises(TypeError, match="^families must be a list of IPv4, IPv6, FQDN"):
            KubernetesResolver(namespace="shop", families=families)  # type: ignore[arg-type]


def test_as_it_is_away_and_back_the_changes_are_learnt(
    cluster: SmallKubernetes, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geventpool.directory")
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    cluster.stop()
    until(lambda: "its last addresses serve on" in caplog.text)
    assert resolver.resolve("web") == AddressGroup.of((A, 8080))
    cluster.put(slice_of("web-1", endpoint(B)))
    cluster.start()
    knows(resolver, B)
    until(lambda: "is back" in caplog.text)


def test_a_server_that_ends_each_watch_at_once_is_asked_ever_less(
    cluster: SmallKubernetes, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.put(slice_of("web-1", endpoint(A)))
    resolver = watch()
    resolver.resolve("web")
    until(lambda: cluster.watching == 1)
    cluster.end_watches()
    until(lambda: "the watch has ended at once" in caplog.text)
    assert resolver.resolve("web") == AddressGroup.of((A, 8080))
    until(lambda: cluster.watching == 1)
    cluster.put(slice_of("web-1", endpoint(B)))
    knows(resolver, B)
