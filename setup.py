"""Builds the hot path as C where that can be done, and the package without it where it cannot.

What is compiled stands in ``geventpool/_compiled.py``.  It is all of it or none: where the compiler
fails, or ``PURE_PYTHON`` is set, nothing compiled is installed, and nothing of an earlier build is
left.  What is not about that is in ``setup.cfg``.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
WHAT = runpy.run_path(str(ROOT / "geventpool" / "_compiled.py"), run_name="__main__")
MODULES, PURE_PYTHON = WHAT["MODULES"], WHAT["PURE_PYTHON"]

DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # types for C are in the .pxd files only
    "auto_pickle": False,
    "embedsignature": True,
    "embedsignature.format": "clinic",  # what inspect.signature reads
    "nonecheck": True,  # AttributeError, as in Python, and no crash
}


def source_of(module: str) -> str:
    """The file that *module* is compiled from, below the root: its ``.pyx`` twin, if it has one."""
    path = Path(*module.split("."))
    return str(twin if (twin := path.with_suffix(".pyx")).exists() else path.with_suffix(".py"))


class BuildAll(build_ext):
    """Compiles all modules, or none."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        if self.inplace:
            forget_compiled()
        super().run()

    def build_extensions(self) -> None:
        try:
            self.extensions[:] = self._translate()
            super().build_extensions()
        except Exception as error:
            print(f"geventpool: not compiled, all of it is Python: {error!r}", file=sys.stderr)
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions[:] = []

    def _translate(self) -> list[Any]:
        from Cython.Build import cythonize
        import greenlet

        extensions = cythonize(
            self.extensions,
            build_dir=self.build_temp,
            compiler_directives=DIRECTIVES,
            include_path=[str(ROOT)],
            nthreads=0,
        )
        for each in extensions:
            self._set_up(each, str(Path(greenlet.__file__).parent.parent))
        return list(extensions)

    def _set_up(self, extension: Any, include: str) -> None:
        extension.include_dirs.append(include)
        # What setuptools adds to each that it knows from the beginning.
        extension._full_name = self.get_ext_fullname(extension.name)
        extension._links_to_dynamic = False
        extension._needs_stub = False
        extension._file_name = self.get_ext_filename(extension._full_name)


class BuildSources(build_py):
    """Leaves nothing of an earlier build in a tree that is installed in place without one."""

    def run(self) -> None:
        if PURE_PYTHON and self.editable_mode:
            forget_compiled()
        super().run()


def forget_compiled() -> None:
    """Remove what an earlier build in place has left in the tree for this Python, of whatever."""
    for file in (ROOT / "geventpool").rglob(f"*{EXTENSION_SUFFIXES[0]}"):
        file.unlink()


os.chdir(ROOT)
setup(
    cmdclass={"build_ext": BuildAll, "build_py": BuildSources},
    ext_modules=[]
    if PURE_PYTHON
    else [
        Extension(
            module,
            [source_of(module)],
            # The package has no use for one that is older than the twin in Python, either.
            depends=[str(Path(*module.split(".")).with_suffix(".py"))],
            extra_compile_args=["-O2", "-g0"],
        )
        for module in MODULES
    ],
)
