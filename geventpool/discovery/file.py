"""The names in a file, read again when it has changed."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

from geventpool._util.arguments import check_seconds, check_text
from geventpool._util.log import log_safely
from geventpool.addresses import AddressGroup, AnyAddress, address
from geventpool.discovery.messages import listed, not_found

__all__ = ["FileResolver"]

_log = logging.getLogger("geventpool.resolver")


class FileResolver:
    """The names in a JSON or TOML file (by its suffix), read again when it has changed.

    The file has one object, or table, from a name to its addresses::

        {"web": ["10.0.0.1:80", "10.0.0.2:80"],
         "db":  [[[9, "10.0.1.1:5432"], [1, "10.0.1.2:5432"]], ["10.0.2.1:5432"]]}

    Either a list of addresses, one tier with equal weights; or a list of tiers, each a list of
    addresses and of ``[weight, address]``.  Addresses are spelled as in ``addresses.address``.

    At most every *interval* seconds a look-up asks the system whether the file has changed (its
    time, size and inode); reading it blocks, as reading any file does.  If it is broken, or gone,
    what it said last stays in force, and a warning says why: once for each broken version, once
    until it can be read again.  Replace it by a rename, and no look-up will see half of it.

    Raises at construction what is wrong with it: OSError, or ValueError that names the file.
    TOML, before Python 3.11, needs ``tomli``: ImportError if that is not there.
    """

    _is_own = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        interval: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        check_seconds("interval", interval, zero=True, none=False)
        self.path = os.fspath(path)
        self.interval = interval
        self._parse = _parser(self.path)
        self._clock = clock
        self._version: tuple[int, ...] | None  # None: it could not be read, and that was said
        self._version, text = self._read()
        self._groups = self._understand(text)
        self._next_look = clock() + self.interval

    def resolve(self, name: str, /) -> AddressGroup:
        """The addresses of *name*.  Raises NameNotFound if the file has no such name."""
        check_text("name", name)
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + self.interval
            self._look()
        group = self._groups.get(name)
        if group is None:
            tried = (f"{self.path}: {listed('names', self._groups)}",)
            raise not_found(name, f"it is not in {self.path}", tried)
        return group

    def refresh(self, name: str, /) -> AddressGroup:
        """As ``resolve``, but looks whether the file has changed, however short that is ago."""
        self._next_look = -math.inf
        return self.resolve(name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r} {len(self._groups)} names>"

    def _look(self) -> None:
        """Read the file if it is not the version that was read, well or badly, before."""
        try:
            if _version(os.stat(self.path)) == self._version:
                return
            self._version, text = self._read()
            self._groups = self._understand(text)
        except OSError as error:
            # It may pass and leave the file as it was: one file too many open, for instance.
            before, self._version = self._version, None
            if before is not None:
                self._complain(f"{self.path}: {error.strerror}")
        except ValueError as error:
            self._complain(str(error))

    def _complain(self, why: str) -> None:
        log_safely(_log, logging.WARNING, "%s; what it said before stays in force", why)

    def _read(self) -> tuple[tuple[int, ...], bytes]:
        with open(self.path, "rb") as file:
            # Of the open file, and before reading: whatever is written later makes it another.
            return _version(os.fstat(file.fileno())), file.read()

    def _understand(self, text: bytes) -> dict[str, AddressGroup]:
        try:
            names = self._parse(text.decode())
            if not isinstance(names, dict):
                raise ValueError("an object of names is expected")
            return {name: _group(name, value) for name, value in names.items()}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.path}: {error}") from error


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _parser(path: str) -> Callable[[str], Any]:
    match os.path.splitext(path)[1].lower():
        case ".json":
            return json.loads
        case ".toml":
            return _toml_parser(path)
        case suffix:
            raise ValueError(f"path must end in .json or .toml, not {suffix!r}: {path!r}")


def _toml_parser(path: str) -> Callable[[str], Any]:
    for module in ("tomllib", "tomli"):  # the standard library's, from Python 3.11 on
        try:
            parse: Callable[[str], Any] = importlib.import_module(module).loads
            return parse
        except ImportError:
            pass
    raise ImportError(f"{path}: TOML needs Python 3.11, or tomli: pip install tomli; or use JSON")


def _group(name: str, value: Any) -> AddressGroup:
    """What the file says of *name*."""
    try:
        if not isinstance(value, list) or not value:
            raise ValueError("a list of addresses or of tiers is expected")
        tiers = value if all(isinstance(tier, list) for tier in value) else [value]
        return AddressGroup([[_weighted(item) for item in tier] for tier in tiers])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r}: {error}") from error


def _weighted(item: Any) -> tuple[float, AnyAddress]:
    match item:
        case str():
            return 1.0, address(item)
        case [int() | float() as weight, str(target)] if not isinstance(weight, bool):
            return weight, address(target)
        case _:
            raise ValueError(f'"host:port" or [weight, "host:port"] is expected, not {item!r}')
