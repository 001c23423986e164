"""Which of its two builds the package runs as: all Python, or its hot path compiled to C.

The modules named here are compiled from their own ``.py`` files; the ``.pxd`` beside each has its
types for C.  It is all of them or none: where one is missing, or ``PURE_PYTHON`` is set in the
environment (as for gevent), all are loaded from their sources.  ``setup.py`` reads this file, too.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["COMPILED", "MODULES", "PURE_PYTHON"]

#: Compiled together.
MODULES = (
    "geventpool._runtime.clock",
    "geventpool._runtime.desk",
    "geventpool._runtime.fields",
    "geventpool._runtime.slots",
    "geventpool._runtime.waiting",
    "geventpool._scheduler.arbiter",
    "geventpool._scheduler.chain",
    "geventpool._scheduler.inbox",
    "geventpool._scheduler.idle_queue",
    "geventpool._scheduler.ledger",
    "geventpool._scheduler.limit",
    "geventpool._scheduler.line",
    "geventpool._scheduler.model",
    "geventpool._scheduler.places",
    "geventpool._scheduler.scheduler",
    "geventpool._scheduler.verbs",
    "geventpool._scheduler.waiter",
    "geventpool.pools.lease",
)

#: Whether no compiled module is wanted.
PURE_PYTHON = bool(os.environ.get("PURE_PYTHON"))


_ROOT = Path(__file__).parent.parent
_SOURCES = (".py", ".pyx", ".pxd")


def _source_of(name: str) -> Path:
    return _ROOT.joinpath(*name.split(".")).with_suffix(".py")


def _compiled(name: str) -> Path | None:
    """The file that *name* was compiled to; None if it is not there."""
    source = _source_of(name)
    files = (source.with_suffix(suffix) for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


def _is_stale(name: str) -> bool:
    """Whether a source of *name* has changed since that was compiled, as it may in a tree that is
    installed in place."""
    file = _compiled(name)
    sources = (_source_of(name).with_suffix(each) for each in _SOURCES)
    newest = max(each.stat().st_mtime for each in sources if each.exists())
    return file is not None and newest > file.stat().st_mtime


class _Compiled(ExtensionFileLoader):
    """A compiled module that knows its source: tracebacks show its lines."""

    def get_source(self, fullname: str) -> Any:
        return _source_of(fullname).read_text(encoding="utf-8")


class _Finder(MetaPathFinder):
    """Finds all of those modules in the one form, where there are both."""

    _is_geventpools = True

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = _compiled(name) if name in MODULES else None
        if file is None:
            return None
        if COMPILED:
            return spec_from_file_location(name, file, loader=_Compiled(name, str(file)))
        return spec_from_file_location(name, _source_of(name))


#: Of an earlier import of the package, in this process.  Compiled modules are made once in a
#: process, and would not fit to what is imported now.
_earlier = [each for each in sys.meta_path if vars(type(each)).get("_is_geventpools")]

_is_tree = (_ROOT / "setup.py").exists()

#: Whether the compiled modules are what runs.
COMPILED = not (
    PURE_PYTHON
    or _earlier
    or None in map(_compiled, MODULES)
    or (_is_tree and any(map(_is_stale, MODULES)))
)

if __name__ != "__main__":
    sys.meta_path[:] = [_Finder(), *(each for each in sys.meta_path if each not in _earlier)]
