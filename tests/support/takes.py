"""What users do with pools, leases and limits besides calling them as they are meant to be called.

Run by itself it prints, as JSON, what comes of each: that has to be the same in both builds.
"""

from __future__ import annotations

import copy
import cProfile
import inspect
import json
import pickle
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

import gevent

import geventpool
from geventpool import ConnectionPool, Deadline, EndpointPool, Lease, Limit


class Conn:
    def ping(self, number: int = 1) -> int:
        return number


class Number:
    """Like one of numpy's: it is no float, and can be made one."""

    def __repr__(self) -> str:
        return "Number"

    def __float__(self) -> float:
        return 0.5

    __index__ = __int__ = lambda self: 1


class Float(float):
    """Like numpy.float64."""


class Int(int):
    pass


NUMBERS: list[Any] = [
    *(0, 1, 0.5, True, -1, -0.0, 1e300, 10**400, float("nan"), float("inf")),
    *(Float(0.5), Int(1), Number(), Decimal("0.5"), Fraction(1, 2), 1j, "1", b"1", [], None),
]


def pool(**settings: Any) -> ConnectionPool[Any]:
    return ConnectionPool(2, connect=Conn, **{"timeout": 1, **settings})


def endpoints(**settings: Any) -> EndpointPool[Any, Any]:
    return EndpointPool(connect=lambda endpoint: Conn(), **{"timeout": 1, **settings})


def by_with(lease: Any) -> str:
    with lease as conn:
        return type(conn).__name__


def by_hand(it: Any, *args: Any, **kwargs: Any) -> None:
    it.release(it.acquire(*args, **kwargs))


def seconds() -> Iterator[tuple[str, Callable[[], object]]]:
    for number in NUMBERS:
        name = f"{type(number).__name__} {number!r}"[:40]
        yield f"get({name})", lambda n=number: by_with(pool().get(n))
        yield f"get(timeout={name})", lambda n=number: by_with(pool().get(timeout=n))
        yield f"endpoints.get({name})", lambda n=number: by_with(endpoints().get("e", n))
        yield f"acquire({name})", lambda n=number: by_hand(pool(), n)
        yield f"endpoints.acquire({name})", lambda n=number: by_hand(endpoints(), "e", n)
        for setting in ("timeout", "max_lifetime", "idle_timeout", "jitter", "salvage_timeout"):
            yield (
                f"pool({setting}={name})",
                lambda n=number, s=setting: by_with(pool(**{s: n}).get()),
            )
        if not (isinstance(number, int) and number > 2):  # else it opens them
            yield f"size={name}", lambda n=number: by_with(ConnectionPool(n, connect=Conn).get())
            yield f"resize({name})", lambda n=number: pool().resize(n)
        yield f"max_uses={name}", lambda n=number: by_with(pool(max_uses=n).get())
        yield f"fill({name})", lambda n=number: pool().fill(n)
        yield f"drain({name})", lambda n=number: pool().drain(n)
        yield f"close({name})", lambda n=number: pool().close(n)
        yield f"Limit({name})", lambda n=number: repr(Limit(n))
        yield f"maximum={name}", lambda n=number: setattr(Limit(1), "maximum", n)
        yield f"limited by {name}", lambda n=number: by_with(pool(limits=[Limit(n)]).get())
        yield f"Deadline({name})", lambda n=number: Deadline(n).close()


class Mine(ConnectionPool[Any]):
    """Overrides verbs and hooks."""

    said: list[str]

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.said.append("get")
        return super().get(*args, **kwargs)

    def release(self, conn: Any) -> None:
        self.said.append("release")
        super().release(conn)

    def _is_alive(self, conn: Any) -> bool:
        self.said.append("_is_alive")
        return True


class MyLease(Lease[Any]):
    """Overrides what a ``with`` calls, and has an attribute more."""

    def __enter__(self) -> Any:
        self.mine = True
        return super().__enter__()


def overriding() -> list[str]:
    mine = Mine(1, connect=Conn)
    mine.said = []
    mine.execute("ping")
    mine.release(mine.acquire())
    mine._reset_connection = lambda conn: mine.said.append("reset")  # type: ignore[method-assign]
    mine.execute("ping")
    return mine.said


def at_the_instance() -> list[str]:
    class Sets(ConnectionPool[Any]):
        def __init__(self) -> None:
            self._reset_connection = lambda conn: said.append("reset")  # type: ignore[method-assign]
            super().__init__(1, connect=Conn)

    said: list[str] = []
    Sets().execute("ping")
    return said


def with_a_lease_of_my_own() -> bool:
    it = pool()
    it._lease = MyLease
    with it.get() as conn:
        return isinstance(conn, Conn)


def patched(target: Any, name: str, **how: Any) -> list[str]:
    it = pool()
    target = it if target is None else target
    with mock.patch.object(target, name, **how) as replaced:
        getattr(it, name)(timeout=1)
    return [str(call) for call in replaced.call_args_list]


def traced(tool: str) -> str:
    """What coverage, debuggers and profilers do."""
    it, seen = pool(), []

    def trace(frame: Any, event: str, arg: Any) -> Any:
        seen.append(frame.f_code.co_name)
        return trace

    if tool == "profiler":
        cProfile.Profile().runcall(by_hand, it)
        return "profiled"
    tracing = sys.settrace if tool == "trace" else sys.setprofile
    before = sys.gettrace() if tool == "trace" else sys.getprofile()
    tracing(trace)
    try:
        by_hand(it)
        by_with(it.get())
    finally:
        tracing(before)
    return "traced" if "by_hand" in seen else "not traced"


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """All but numbers."""
    for wrong in ({"timeout": 1, "timeuot": 1}, {"endpoint": 1}):
        yield f"get(**{wrong})", lambda w=wrong: by_with(pool().get(**w))
        yield f"acquire(**{wrong})", lambda w=wrong: by_hand(pool(), **w)
    yield "get(1, 2)", lambda: by_with(pool().get(1, 2))  # type: ignore[call-arg]
    yield "ConnectionPool.get(pool)", lambda: by_with(ConnectionPool.get(pool()))
    yield "ConnectionPool.get(self=pool)", lambda: by_with(ConnectionPool.get(self=pool()))
    yield "ConnectionPool.get(3)", lambda: by_with(ConnectionPool.get(3))  # type: ignore[type-var]
    yield "execute", lambda: [pool().execute("ping", number=3), pool().execute(Conn.ping, 4)]
    makers: list[tuple[str, Callable[[], Any]]] = [
        ("lease", lambda: pool().get()),
        ("local lease", lambda: pool(greenlet_local=True).get()),
        ("endpoint lease", lambda: endpoints().get("e")),
        ("pool", pool),
        ("limit", lambda: Limit(3, "three")),
        ("stats", lambda: pool().stats().in_use),
    ]
    for name, make in makers:
        for what in (weakref.ref, copy.copy, copy.deepcopy, pickle.dumps, hash, bool, len, iter):
            if not (name == "pool" and what in (copy.copy, copy.deepcopy)):  # below
                yield f"{what.__name__}({name})", lambda m=make, w=what: type(w(m())).__name__
        yield f"{name}.unknown", lambda m=make: m().unknown
        yield f"{name}.unknown = 1", lambda m=make: setattr(m(), "unknown", 1)
        yield f"type({name})", lambda m=make: [c.__qualname__ for c in type(m()).__mro__[:-1]]
        yield f"repr({name})", lambda m=make: repr(m())
        yield f"{name} == itself", lambda m=make: (lambda it: [it == it, it == m()])(m())
        yield f"autospec of {name}", lambda m=make: mock.create_autospec(m()) is not None
        yield f"dir({name})", lambda m=make: [each for each in dir(m()) if each[0] != "_"]
    yield "Lease[int]", lambda: str(Lease[int])
    yield "Lease()", lambda: type(Lease()).__name__
    yield "a lease that was never get()'s", lambda: by_with(Lease())
    yield "left and not entered", lambda: pool().get().__exit__(None, None, None)
    yield "isinstance", lambda: isinstance(endpoints().get("e"), Lease)
    yield "overriding", overriding
    yield "at the instance", at_the_instance
    yield "my lease", with_a_lease_of_my_own
    for name in ("get", "acquire", "fill"):
        yield f"patch {name} of a pool", lambda n=name: patched(None, n)
        yield f"patch {name} of the class", lambda n=name: patched(ConnectionPool, n)
        yield f"autospec {name}", lambda n=name: patched(ConnectionPool, n, autospec=True)
    yield "Mock(spec=Lease)", lambda: mock.MagicMock(spec=Lease).__enter__() is not None
    for tool in ("profiler", "trace", "profile"):
        yield tool, lambda t=tool: traced(t)
    for cls in (ConnectionPool, EndpointPool, Lease, Limit):
        for member in ("", *(each for each in vars(cls) if each[0] != "_")):
            thing = getattr(cls, member) if member else cls
            yield f"doc of {cls.__name__} {member}", lambda t=thing: inspect.getdoc(t)
            yield f"name of {cls.__name__} {member}", lambda t=thing: getattr(t, "__name__", None)


def outcome(call: Callable[[], object], words: bool) -> str:
    """What *call* returns or raises; with the *words* of that, if they are our own."""
    try:
        with gevent.Timeout(10):
            said = repr(call())
    except (Exception, gevent.Timeout) as error:
        said = f"{type(error).__name__}: {error}" if words else type(error).__name__
    return re.sub(r"0x[0-9a-f]+|-\d+'", "...", said)


if __name__ == "__main__":
    found = {name: outcome(call, words=True) for name, call in seconds()}
    found |= {name: outcome(call, words=False) for name, call in calls()}
    print(json.dumps([geventpool.COMPILED, found]))
