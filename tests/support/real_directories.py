"""etcd and ZooKeeper of the tests' own, with what other programs would write there."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from geventpool.coordination.etcd import EtcdGateway, text64
from geventpool.coordination.zookeeper import ZooKeeperSession
from geventpool.errors import PoolError
from support.own_servers import OwnEtcd, OwnServer, OwnZooKeeper
from support.waiting import until

__all__ = ["REAL_DIRECTORIES", "EtcdDirectory", "RealDirectory", "ZooKeeperDirectory"]


class RealDirectory:
    """One of them, in a server that the test may stop and start."""

    server: OwnServer

    def __enter__(self) -> Any:
        self.server.__enter__()
        try:
            until(self._answers, "its first answer", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _answers(self) -> bool:
        """Whether it serves; by then its connection is open, and left behind by no test."""
        try:
            self.write("first", "10.0.0.1:80")
        except (OSError, PoolError):
            return False
        return True

    def __exit__(self, *exc_info: Any) -> None:
        self.close()
        self.server.close()

    def resolver(self, at: tuple[str, int] | None = None, **settings: Any) -> Any:
        """A new resolver of its services, that reaches it at another address if need be."""
        raise NotImplementedError

    def write(self, name: str, entry: str, held: bytes = b"") -> None:
        """Write an entry, or write it anew."""
        raise NotImplementedError

    def remove(self, name: str, entry: str) -> None:
        raise NotImplementedError

    def entries(self, name: str) -> dict[str, bytes]:
        """What stands there."""
        raise NotImplementedError

    def addresses(self, name: str) -> list[str]:
        """Those in what programs have announced."""
        return sorted(json.loads(held)["address"] for held in self.entries(name).values())

    def end_leases(self, name: str) -> None:
        """End the lease, or session, of each entry: it is lost to whom it belongs."""
        raise NotImplementedError

    def close(self) -> None:
        """What it has itself open."""


class EtcdDirectory(RealDirectory):
    def __init__(self) -> None:
        self.server = OwnEtcd()
        self.gateway = EtcdGateway(self.server.address)

    def resolver(self, at: tuple[str, int] | None = None, **settings: Any) -> Any:
        from geventpool.directory.etcd import EtcdResolver

        return EtcdResolver(at or self.server.address, **settings)

    def write(self, name: str, entry: str, held: bytes = b"") -> None:
        put = {"key": text64(f"services/{name}/{entry}"), "value": text64(held)}
        self.gateway.ask("/v3/kv/put", put)

    def remove(self, name: str, entry: str) -> None:
        self.gateway.ask("/v3/kv/deleterange", {"key": text64(f"services/{name}/{entry}")})

    def _found(self, name: str) -> list[Any]:
        folder = f"services/{name}/"
        below = {"key": text64(folder), "range_end": text64(folder[:-1] + "0")}
        found = self.gateway.ask("/v3/kv/range", below)[0].get("kvs", [])
        for each in found:
            each["key"] = b64decode(each["key"]).decode().removeprefix(folder)
            each["value"] = b64decode(each.get("value", ""))
        return list(found)

    def entries(self, name: str) -> dict[str, bytes]:
        return {each["key"]: each["value"] for each in self._found(name)}

    def end_leases(self, name: str) -> None:
        for each in self._found(name):
            self.gateway.ask("/v3/lease/revoke", {"ID": each["lease"]})

    def compact(self) -> None:
        """Forget all that was before now."""
        answer, _ = self.gateway.ask("/v3/kv/range", {"key": text64("x")})
        self.gateway.ask("/v3/kv/compaction", {"revision": answer["header"]["revision"]})

    def close(self) -> None:
        self.gateway.close()


class ZooKeeperDirectory(RealDirectory):
    def __init__(self) -> None:
        self.server = OwnZooKeeper("4lw.commands.whitelist=srvr,mntr")
        self.hosts = "{}:{}".format(*self.server.address)
        self.session = ZooKeeperSession(self.hosts)

    def resolver(self, at: tuple[str, int] | None = None, **settings: Any) -> Any:
        from geventpool.directory.zookeeper import ZooKeeperResolver

        hosts = "{}:{}".format(*(at or self.server.address))
        return ZooKeeperResolver(hosts, options={"timeout": 4.0}, **settings)

    def write(self, name: str, entry: str, held: bytes = b"") -> None:
        client, path = self.session.client(), f"/services/{name}/{entry}"
        client.ensure_path(f"/services/{name}")
        if client.exists(path):
            client.set(path, held)
        else:
            client.create(path, held)

    def remove(self, name: str, entry: str) -> None:
        self.session.client().delete(f"/services/{name}/{entry}")

    def entries(self, name: str) -> dict[str, bytes]:
        from kazoo.exceptions import NoNodeError

        client, path = self.session.client(), f"/services/{name}"
        try:
            return {each: client.get(f"{path}/{each}")[0] for each in client.get_children(path)}
        except NoNodeError:
            return {}

    def end_leases(self, name: str) -> None:
        client = self.session.client()
        for each in self.entries(name):
            client.delete(f"/services/{name}/{each}")

    def close(self) -> None:
        self.session.close()


REAL_DIRECTORIES = {"etcd": EtcdDirectory, "zookeeper": ZooKeeperDirectory}
