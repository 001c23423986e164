"""The two builds of the package, all Python and with its hot path compiled, are one to a user."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import geventpool
from geventpool._compiled import MODULES
from support import ROOT, TESTS

PURE = {"PURE_PYTHON": "1"}
ENVIRON = {name: value for name, value in os.environ.items() if name not in PURE}

compiled_only = pytest.mark.skipif(not geventpool.COMPILED, reason="it is not compiled")

WHERE_FROM = """
import importlib, json, sys
import geventpool
from geventpool._compiled import MODULES
files = [importlib.import_module(name).__file__ for name in MODULES]
print(json.dumps([geventpool.COMPILED, files]))
"""

#: The signature of everything public, by its name.
SIGNATURES = """
import importlib, inspect, json, re
import geventpool

found = {}

def add(name, thing):
    try:
        signature = inspect.signature(thing).replace(return_annotation=inspect.Signature.empty)
        found[name] = re.sub("0x[0-9a-f]+", "0x...", str(signature))
    except (TypeError, ValueError):
        found[name] = None

for module in ("geventpool", "geventpool.pools", "geventpool.manager", "geventpool.sockets"):
    namespace = importlib.import_module(module)
    for name in namespace.__all__:
        thing = getattr(namespace, name)
        if name != "Lease":  # which only get() makes
            add(f"{module}.{name}", thing)
        if inspect.isclass(thing):
            for member in dir(thing):
                if not member.startswith("_") and callable(getattr(thing, member)):
                    add(f"{module}.{name}.{member}", getattr(thing, member))
print(json.dumps(found))
"""

#: As a test runner does that forgets what its tests have imported.
IMPORTED_ANEW = """
import json, sys
import geventpool
for name in [name for name in sys.modules if name.partition(".")[0] == "geventpool"]:
    del sys.modules[name]
import geventpool
from geventpool.testing import EchoServer
with EchoServer() as server:
    with geventpool.ConnectionPool(2, connect=geventpool.SocketFactory(server.address)) as pool:
        pool.fill(timeout=5)
        with pool.get() as sock:
            sock.sendall(b"right\\n")
            print(json.dumps([pool.stats().idle, sock.recv(10).decode()]))
"""

#: An error that goes through what is compiled.
FAILS = """
import traceback
import geventpool
pool = geventpool.ConnectionPool(1, connect=list)
conn = pool.acquire()
try:
    with pool.get(timeout=0):
        pass
except geventpool.PoolTimeout:
    traceback.print_exc()
"""


def run(script: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """*script* in a process of its own, away from the tree, with the package of that root."""
    environ = {**ENVIRON, **environment, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


def said(script: str, root: Path = ROOT, **environment: str) -> Any:
    done = run(script, root, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_with_pure_python_set_no_module_is_a_compiled_one() -> None:
    compiled, files = said(WHERE_FROM, **PURE)

    assert not compiled
    assert [Path(file).suffix for file in files] == [".py"] * len(MODULES)


@compiled_only
def test_compiled_all_of_those_modules_are() -> None:
    compiled, files = said(WHERE_FROM)

    assert compiled
    assert [Path(file).suffix for file in files] == [".so"] * len(MODULES)


@compiled_only
@pytest.mark.parametrize("missing", [MODULES[0], MODULES[-1]])
def test_where_one_is_missing_none_is_a_compiled_one(tmp_path: Path, missing: str) -> None:
    shutil.copytree(ROOT / "geventpool", tmp_path / "geventpool")
    folder, _, name = missing.rpartition(".")
    for file in tmp_path.joinpath(*folder.split(".")).glob(f"{name}.*.so"):
        file.unlink()

    compiled, files = said(WHERE_FROM, tmp_path)

    assert not compiled
    assert [Path(file).suffix for file in files] == [".py"] * len(MODULES)


@compiled_only
def test_where_a_source_is_newer_none_is_a_compiled_one(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "geventpool", tmp_path / "geventpool")
    shutil.copy(ROOT / "setup.py", tmp_path)  # a tree that is installed in place
    assert said(WHERE_FROM, tmp_path)[0]

    source = tmp_path / "geventpool" / "pools" / "lease.py"
    later = source.stat().st_mtime + 1e6
    os.utime(source, (later, later))

    compiled, files = said(WHERE_FROM, tmp_path)
    assert not compiled
    assert [Path(file).suffix for file in files] == [".py"] * len(MODULES)


def test_the_package_is_imported_without_its_sources_too(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "geventpool", tmp_path / "geventpool", ignore=ignored)
    compileall.compile_dir(tmp_path, quiet=2, legacy=True)
    for source in (tmp_path / "geventpool").rglob("*.py"):
        source.unlink()

    compiled, files = said(WHERE_FROM, tmp_path)

    assert not compiled
    assert [Path(file).suffix for file in files] == [".pyc"] * len(MODULES)


def test_imported_anew_in_one_process_the_package_works_in_whatever_build() -> None:
    assert said(IMPORTED_ANEW) == [1, "right\n"]


@compiled_only
def test_what_is_public_has_the_same_signature_in_both_builds() -> None:
    compiled, pure = said(SIGNATURES), said(SIGNATURES, **PURE)

    differ = {name: (each, compiled[name]) for name, each in pure.items() if each != compiled[name]}
    assert differ == {}
    assert pure["geventpool.Limit"] == "(maximum: 'float', name: 'str | None' = None)"


@compiled_only
@pytest.mark.slow
def test_whatever_the_one_build_takes_or_refuses_so_does_the_other() -> None:
    file = str(TESTS / "support" / "takes.py")
    script = f"import runpy; runpy.run_path({file!r}, run_name='__main__')"
    (compiled, found), (pure, expected) = said(script), said(script, **PURE)

    assert (compiled, pure) == (True, False)
    differ = {name for name, each in expected.items() if each != found[name]}
    # A mock of a method that is no Python function is not told on which pool it is called; and what
    # is no pool is a TypeError to C, and has no attributes of one to Python.
    assert differ == {"autospec get", "ConnectionPool.get(3)"}
    assert len(found) == len(expected) > 500
    assert expected["get(Decimal Decimal('0.5'))"].startswith("TypeError: timeout must be")
    for number in ("int 1", "float 0.5", "Float 0.5", "NoneType None"):
        assert expected[f"get({number})"] == "'Conn'"
    assert expected["trace"] == expected["profile"] == "'traced'"


@pytest.mark.parametrize("environment", [{}, PURE], ids=["as it is", "pure"])
def test_a_traceback_shows_the_lines_it_leads_through(environment: dict[str, str]) -> None:
    done = run(FAILS, **environment)

    assert "PoolTimeout" in done.stderr
    assert "desk.acquire(pool, bucket, timeout)" in done.stderr
    assert "raise error from cause" in done.stderr


# How it is built


def build_in_place(tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What an editable installation does, in a copy of the tree."""
    shutil.copytree(
        ROOT / "geventpool",
        tree / "geventpool",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "setup.py", "-q", "build_py", "build_ext", "--inplace"]
    return subprocess.run(
        command,
        cwd=tree,
        env={**ENVIRON, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )


def compiled_in(tree: Path) -> list[str]:
    return sorted(file.name for file in (tree / "geventpool").rglob("*.so"))


def test_without_cython_nothing_is_compiled_and_all_is_well(tmp_path: Path) -> None:
    (tmp_path / "Cython").mkdir()
    (tmp_path / "Cython" / "__init__.py").write_text("raise ImportError('none here')")

    done = build_in_place(tmp_path / "tree", PYTHONPATH=str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "all of it is Python" in done.stderr
    assert compiled_in(tmp_path / "tree") == []  # of an earlier build, neither
    assert said(WHERE_FROM, tmp_path / "tree")[0] is False


def test_with_pure_python_set_nothing_is_compiled_and_nothing_kept(tmp_path: Path) -> None:
    done = build_in_place(tmp_path / "tree", **PURE)

    assert done.returncode == 0, done.stderr
    assert compiled_in(tmp_path / "tree") == []


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("after", [0, 3], ids=["none", "some that it compiles"])
def test_where_the_compiler_fails_nothing_is_compiled_and_all_is_well(
    tmp_path: Path, after: int
) -> None:
    pytest.importorskip("Cython")
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\n"
        f"[ $(ls {tmp_path}/calls-* 2>/dev/null | wc -l) -lt {after} ] || exit 1\n"
        f': >"$(mktemp {tmp_path}/calls-XXXXXX)"\nexec gcc "$@"\n'
    )
    compiler.chmod(0o755)

    done = build_in_place(tmp_path / "tree", CC=str(compiler))

    assert done.returncode == 0, done.stderr
    assert "all of it is Python" in done.stderr
    assert compiled_in(tmp_path / "tree") == []
    assert said(WHERE_FROM, tmp_path / "tree")[0] is False
