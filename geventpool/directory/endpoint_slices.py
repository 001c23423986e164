"""Which servers the EndpointSlices of a Kubernetes service stand for.

Pure: no I/O.  What the fields mean is in Kubernetes' API reference, ``EndpointSlice`` of
``discovery.k8s.io/v1``: https://kubernetes.io/docs/reference/kubernetes-api/service-resources/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from geventpool.addresses import AnyAddress, address
from geventpool.directory.source import NameUnclear

__all__ = ["ServiceName", "addresses_in"]

#: What the name of a service, a namespace or a port may be.
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"({_LABEL})(?:\.({_LABEL}))?(?::({_LABEL}|[0-9]{{1,5}}))?")


class ServiceName(NamedTuple):
    """``web``, ``web.shop``, ``web:http``, ``web.shop:8080``: a service, its namespace, or None,
    and its port, or None: by its name, or its number at the pods."""

    service: str
    namespace: str | None
    port: str | None

    @classmethod
    def parsed(cls, name: str) -> ServiceName:
        """Raises ValueError for what is no such name."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                'name must be "service", "service.namespace", "service:port" or'
                f' "service.namespace:port", not {name!r}'
            )
        return cls(match[1], match[3], match[5])


class _Server(NamedTuple):
    """An endpoint: how it is doing."""

    ready: bool
    serving: bool  # also while it ends
    terminating: bool


def addresses_in(
    slices: Iterable[Mapping[str, Any]], port: str | None, families: Sequence[str]
) -> dict[AnyAddress, float]:
    """The servers that are ready, all of weight 1.

    Those that end (*terminating*) are not ready.  If no server is ready, those that serve on while
    they end are given out, as kube-proxy does.  Of several families, as in a cluster with both,
    only the first of *families* that has a server to give out is.

    Raises NameUnclear if there are ports, and *port* is none of them, or does not say which.
    """
    slices = list(slices)
    _check_port(slices, port)
    found: dict[str, dict[AnyAddress, _Server]] = {family: {} for family in families}
    for each in slices:
        known = found.get(each.get("addressType", ""))
        if known is not None:
            for server, state in _servers(each, port):
                known[server] = _best(known.get(server), state)
    for wanted in (_is_ready, _serves):
        for known in found.values():
            if chosen := {each: 1.0 for each, state in known.items() if wanted(state)}:
                return chosen
    return {}


def _check_port(slices: Iterable[Mapping[str, Any]], wanted: str | None) -> None:
    """A slice may have other ports than the next, as a service changes: one that fits is enough."""
    ports = [each for one in slices for each in _tcp(one.get("ports") or [])]
    if wanted is not None and ports and not any(_is(each, wanted) for each in ports):
        raise NameUnclear(
            f"no pod of the service has the port {wanted}, but {_shown(ports)}; a number is that at"
            " the pods (targetPort), not that of the service"
        )


def _tcp(ports: list[Any]) -> list[Any]:
    return [each for each in ports if each.get("protocol", "TCP") == "TCP" and each.get("port")]


def _is(port: Any, wanted: str) -> bool:
    return wanted in (port.get("name"), str(port["port"]))


def _shown(ports: list[Any]) -> str:
    shown = (f"{each.get('name') or ''}:{each['port']}".strip(":") for each in ports)
    return ", ".join(dict.fromkeys(shown))


def _is_ready(state: _Server) -> bool:
    return state.ready and not state.terminating


def _serves(state: _Server) -> bool:
    return state.serving and state.terminating


def _best(one: _Server | None, other: _Server) -> _Server:
    """What is said of a server twice: while it moves from one slice to another it is in both."""
    if one is None or _is_ready(other):
        return other
    return one if _is_ready(one) or one.serving else other


def _servers(each: Mapping[str, Any], port: str | None) -> Iterator[tuple[AnyAddress, _Server]]:
    """All of one slice."""
    number = _number(each.get("ports") or [], port)
    if number is None:
        return
    for endpoint in each.get("endpoints") or []:
        conditions = endpoint.get("conditions") or {}
        # What is not known of "ready" is to be taken for true, of "serving" for what "ready" is.
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        state = _Server(
            ready,
            ready if serving is None else bool(serving),
            conditions.get("terminating") is True,
        )
        try:
            # Of several addresses, all of the same server, the first one will do.
            yield address((endpoint["addresses"][0], number)), state
        except (LookupError, TypeError, ValueError):
            continue  # it must not spoil the others


def _number(ports: list[Any], wanted: str | None) -> int | None:
    """The number of the port; None if the slice has no such port."""
    tcp = [each for each in _tcp(ports) if wanted is None or _is(each, wanted)]
    if len({each["port"] for each in tcp}) > 1:
        raise NameUnclear(
            f"the service has several ports, and the name must say which: {_shown(tcp)}"
        )
    return int(tcp[0]["port"]) if tcp else None
