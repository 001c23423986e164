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
    "geventpool._runtime.slots",
    "geventpool._runtime.waiting",
    "geventpool._scheduler.arbiter",
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


def _source_of(name: str) -> Path:
    return _ROOT.joinpath(*name.split(".")).with_suffix(".py")


def _compiled(name: str) -> Path | None:
    """The file that *name* was compiled to; None if it is not there."""
    source = _source_of(name)
    files = (source.with_suffix(suffix) for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


#: Whether the compiled modules are what runs.
COMPILED = not PURE_PYTHON and None not in map(_compiled, MODULES)


class _Compiled(ExtensionFileLoader):
    """A compiled module that knows its source: tracebacks show its lines."""

    def get_source(self, fullname: str) -> Any:
        return _source_of(fullname).read_text(encoding="utf-8")


class _Finder(MetaPathFinder):
    """Finds all of those modules in the one form."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in MODULES:
            return None
        if COMPILED and (file := _compiled(name)):
            return spec_from_file_location(name, file, loader=_Compiled(name, str(file)))
        return spec_from_file_location(name, _source_of(name))


sys.meta_path.insert(0, _Finder())
