"""A file of geventpool imports only from the rows above its own, and nothing but gevent.

So there is no import circle, and whoever reads a file knows where to go next: up.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "geventpool"

ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "backoff", "events", "_arguments", "_log", "_fork"),
    ("_slots",),
    ("_core", "_crew", "_timers", "_watch", "addresses", "_sentinel", "_eyeballs", "_look"),
    ("_cache", "watcher"),
    ("_dns",),
    ("_engine", "sockets", "resolver", "health", "monitored", "retry"),
    ("_face",),
    ("pool", "endpoints", "names"),
    ("_socket_pool",),
    ("manager",),
    ("status", "metrics", "testing", "__main__", "contrib", "compat"),
)
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}

# The top-level packages a file may import besides the standard library.
ALLOWED = {"gevent", "greenlet", "geventpool"}

# An optional client that one file alone imports, as in {"contrib/redis.py": {"redis"}}.
CLIENTS: dict[str, set[str]] = {
    "_dns.py": {"dns"},
    "testing/fixtures.py": {"pytest"},
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [name for name in FILES if name != "__init__.py"]


def imported(name: str, source: str, type_checking: bool = True) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) for every import in a file of geventpool, at any depth.

    A ``from package import name`` yields ``package.name``.  *type_checking*: those under
    ``if TYPE_CHECKING:``, too.
    """
    package = ("geventpool", *name.split("/")[:-1])
    todo: list[ast.AST] = [ast.parse(source, name)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            todo += node.body if type_checking else []
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        todo += ast.iter_child_nodes(node)


def row_of(name: str) -> int:
    """The row of a file, by its path below geventpool/."""
    module = name.removesuffix(".py").split("/")[0]
    if module not in ROW_OF:
        pytest.fail(f"geventpool/{name} has no row: give it a row in {Path(__file__).name}")
    return ROW_OF[module]


def wrong_directions(name: str, source: str) -> list[str]:
    """What is wrong with the imports of a file: one line each."""
    wrong = []
    own_row = row_of(name)
    for line, target in imported(name, source):
        package, _, rest = target.partition(".")
        if package != "geventpool":
            continue
        module = rest.split(".")[0]
        if name.startswith("testing/") and target.startswith("geventpool.testing."):
            continue  # its files are one thing, those of contrib/ and compat/ are not
        if module not in ROW_OF:
            why = "which is in no row: a public name comes from the file that defines it"
        elif ROW_OF[module] >= own_row:
            why = f"which is in row {ROW_OF[module]}"
        else:
            continue
        wrong.append(f"geventpool/{name}:{line}, in row {own_row}, imports {target}, {why}")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_from_rows_above_it(name: str) -> None:
    wrong = wrong_directions(name, (PACKAGE / name).read_text())

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", FILES)
def test_gevent_is_the_only_dependency(name: str) -> None:
    allowed = ALLOWED | sys.stdlib_module_names | CLIENTS.get(name, set())
    found = imported(name, (PACKAGE / name).read_text(), type_checking=False)
    foreign = {target.split(".")[0] for _, target in found} - allowed

    assert not foreign, f"geventpool/{name} imports {', '.join(sorted(foreign))}"


def test_the_package_holds_nothing_but_the_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    names: list[str] = []
    assigned = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        if isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id] = ast.literal_eval(node.value)  # a literal, or it fails
        else:
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert is_docstring, f"geventpool/__init__.py:{node.lineno}: not a public name"

    assert set(assigned) == {"__all__", "__version__"}
    assert isinstance(assigned["__version__"], str)
    assert sorted(set(assigned["__all__"]) - {"__version__"}) == sorted(names)
    assert not [name for name in names if name.startswith("_")]


# The test itself

@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pool.py", "from . import manager"),  # up
        ("pool.py", "from .endpoints import EndpointPool"),  # sideways
        ("pool.py", "from .pool import ConnectionPool"),  # round
        ("pool.py", "from geventpool import ConnectionPool"),  # round, by way of the package
        ("pool.py", "import geventpool.manager"),
        ("errors.py", "if TYPE_CHECKING:\n    from geventpool.events import PoolStats"),
        ("errors.py", "def f():\n    from ._core import Core"),
        ("contrib/redis.py", "from ..status import page"),
        ("contrib/redis.py", "from .other import page"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(name: str, source: str) -> None:
    assert len(wrong_directions(name, source)) == 1


def test_an_import_from_a_row_above_is_fine() -> None:
    source = "from . import errors\nfrom ._core import Core\nimport geventpool.sockets\nimport ssl"

    assert wrong_directions("pool.py", source) == []
    assert wrong_directions("contrib/redis.py", "from ..pool import ConnectionPool") == []
