"""A folder of geventpool imports only from the rows above its own, and nothing but gevent.

So there is no import circle, and a reader of a file knows where to go next: up.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from support import ROOT, TESTS

PACKAGE = ROOT / "geventpool"

NOUNS = {
    *("errors", "events", "stats", "addresses", "backoff"),
    *("overload", "registry", "retry_budget"),
}
ROW_0 = {*NOUNS, "_compiled", "_util"}
GEVENT = frozenset({"gevent", "greenlet"})
PUBLIC = {*NOUNS, "deadline", "retry", "local_socket"}
PUBLIC |= {"sockets", "discovery", "pools", "manager"}


class Row(NamedTuple):
    """What the files of a row may import; each file its own folder, too."""

    members: set[str]  # folders, and files of the package itself
    may_import: set[str]
    never: frozenset[str] = frozenset()  # of the outside, however far up
    only_public: bool = False  # what a folder hands on, or its seam; no file within it
    apart: bool = False  # each file, or folder, in it by itself


ROWS = (
    Row(ROW_0, may_import=ROW_0, never=GEVENT),
    Row({"_scheduler"}, may_import=ROW_0, never=GEVENT | {"time", "socket", "logging"}),
    Row({"sockets", "discovery", "retry", "deadline", "local_socket"}, may_import=ROW_0),
    Row({"_runtime"}, may_import={*ROW_0, "_scheduler"}),
    Row({"pools"}, may_import={*ROW_0, "_scheduler", "_runtime", "sockets"}),
    Row({"manager"}, may_import={*ROW_0, "pools", "sockets", "discovery"}),
    # What it was before it moved, as its old name is in the examples.
    Row({"health"}, may_import={"manager"}),
    Row({"coordination"}, may_import=PUBLIC, only_public=True),
    Row({"fleet", "directory"}, may_import={*PUBLIC, "coordination"}, only_public=True),
    Row({"observe", "testing"}, may_import=PUBLIC, only_public=True),
    Row({"gunicorn"}, may_import={*PUBLIC, "observe", "fleet"}, only_public=True),
    Row({"demo"}, may_import={*PUBLIC, "_compiled", "observe", "fleet"}, only_public=True),
    Row({"compat", "contrib"}, may_import=PUBLIC, only_public=True, apart=True),
    Row({"__main__"}, may_import={*PUBLIC, "demo"}, only_public=True),
)
ROW_OF = {member: row for row in ROWS for member in row.members}

#: The module with what adapters, manager and compat need of a pool and its callers do not.
SEAM = "geventpool.pools.extension"

#: What ``geventpool.testing`` needs of a private folder.
CLOCK = {f"geventpool._runtime.jump.{name}" for name in ("clock_jumped", "read_by", "real")}

#: What of a row whose files are each by itself is built on the pools of the others there.
CLIENT_POOLS = {f"geventpool.contrib.{name}" for name in ("psycopg", "psycopg2", "pymysql")}
BUILT_ON = {
    "contrib/psycopg": {"geventpool.contrib._postgres"},
    "contrib/psycopg2": {"geventpool.contrib._postgres"},
    "contrib/django": CLIENT_POOLS,
    "contrib/sqlalchemy": {*CLIENT_POOLS, "geventpool.contrib.mysqlclient"},
}

#: A folder that hands on nothing: each of its files is imported by itself, as it may want a client.
BY_FILE = {"coordination"}

#: A file that is pure in a row that is not.
PURE = {"demo/verdicts.py": GEVENT | {"time"}}

# The top-level packages a file may import besides the standard library.
ALLOWED = {"gevent", "greenlet", "geventpool"}

# An optional client that one file alone imports, as in {"contrib/redis.py": {"redis"}}.
CLIENTS: dict[str, set[str]] = {
    "contrib/django/mysql/base.py": {"django", "pymysql"},
    "contrib/django/postgresql/base.py": {"django", "psycopg"},
    "contrib/django/wrapper.py": {"django"},
    "contrib/ldap3.py": {"ldap3"},
    "contrib/pika.py": {"pika"},
    "contrib/psycopg.py": {"psycopg"},
    "contrib/psycopg2.py": {"psycogreen", "psycopg2"},
    "contrib/pymemcache.py": {"pymemcache"},
    "contrib/pymysql.py": {"pymysql"},
    "contrib/redis.py": {"redis"},
    "contrib/requests.py": {"requests", "urllib3"},
    "contrib/sqlalchemy.py": {"sqlalchemy"},
    "contrib/thrift.py": {"thriftpy2"},
    "contrib/websocket.py": {"websocket"},
    "coordination/zookeeper.py": {"kazoo"},
    "directory/zookeeper.py": {"kazoo"},
    "discovery/_srv_wire.py": {"dns"},
    "fleet/redis.py": {"redis"},
    "fleet/zookeeper.py": {"kazoo"},
    "observe/otel.py": {"opentelemetry"},
    "observe/prometheus.py": {"prometheus_client"},
    "observe/top.py": {"rich"},
    "testing/fixtures.py": {"pytest"},
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
MODULES = [name for name in FILES if name != "__init__.py"]
FOLDERS = sorted(name.rpartition("/")[0] for name in FILES if name.endswith("/__init__.py"))


def module_of(name: str) -> str:
    """The dotted name of a file, by its path below geventpool/."""
    return ".".join(("geventpool", *name.removesuffix(".py").split("/"))).removesuffix(".__init__")


SOURCES = {module_of(name): name for name in FILES}


@cache  # a file is read again for each that imports it
def imported(name: str, source: str, type_checking: bool = True) -> list[tuple[int, str]]:
    """(line, absolute dotted name) for every import in a file of geventpool, at any depth.

    A ``from package import name`` gives ``package.name``.  *type_checking*: those under
    ``if TYPE_CHECKING:``, too.
    """
    package = ("geventpool", *name.split("/")[:-1])
    found: list[tuple[int, str]] = []
    todo: list[ast.AST] = [ast.parse(source, name)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            todo += node.body if type_checking else []
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append((node.lineno, alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            for alias in node.names:
                found.append((node.lineno, f"{module}.{alias.name}"))
        todo += ast.iter_child_nodes(node)
    return found


def module_in(target: str) -> str:
    """The module of geventpool that *target*, which may be a name in one, is from."""
    return target if target in SOURCES else target.rpartition(".")[0]


def row_of(name: str) -> Row:
    """The row of a file, by its path below geventpool/."""
    member = name.removesuffix(".py").split("/")[0]
    if member not in ROW_OF:
        pytest.fail(f"geventpool/{name} has no row: give it a row in {Path(__file__).name}")
    return ROW_OF[member]


def never_in(name: str) -> frozenset[str]:
    """What of the outside a file must not import, however far up."""
    return PURE.get(name, row_of(name).never)


def why_wrong(name: str, target: str) -> str | None:
    """Why a file may not import *target*, or None if it may."""
    row = row_of(name)
    own, *below = name.removesuffix(".py").split("/")
    home = module_of(own)
    if row.apart and len(below) > 1:
        home = f"{home}.{below[0]}"  # a package that is there by itself
    member = target.split(".")[1]
    if member not in ROW_OF:
        return "which is in no row: a public name comes from the file that defines it"
    if below and f"{target}.".startswith(f"{home}.") and not (row.apart and len(below) == 1):
        # By way of the folder it would go round.
        return "which comes from its own folder" if module_in(target) == home else None
    if own == "testing" and target in CLOCK:
        return None
    if module_in(target) in BUILT_ON.get("/".join((own, *below[:1])), ()):
        return None
    if member not in row.may_import:
        return "which is in no row above it"
    in_a_file = module_in(target).count(".") > 1 and member not in BY_FILE
    if row.only_public and in_a_file and module_in(target) != SEAM:
        return f"of which {member} hands on nothing"
    return None


def wrong_imports(name: str, source: str) -> dict[str, str]:
    """What is wrong with the imports of a file: one line each, by the module that is imported."""
    wrong = {}
    for line, target in imported(name, source):
        if target.split(".")[0] == "geventpool" and (why := why_wrong(name, target)):
            wrong[module_in(target)] = f"geventpool/{name}:{line} imports {target}, {why}"
    return wrong


def all_that_is_imported(name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield (file, what of the outside it imports), for a file and all that it imports."""
    seen.add(name)
    for _, target in imported(name, (PACKAGE / name).read_text(), type_checking=False):
        if target.split(".")[0] != "geventpool":
            yield name, target
        elif (source := SOURCES.get(module_in(target), name)) not in seen:
            yield from all_that_is_imported(source, seen)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_from_rows_above_it(name: str) -> None:
    wrong = wrong_imports(name, (PACKAGE / name).read_text())

    assert not wrong, "\n".join(wrong.values())


@pytest.mark.parametrize("name", [name for name in MODULES if never_in(name)])
def test_what_is_pure_stays_pure_however_far_up_one_looks(name: str) -> None:
    never = never_in(name)
    found = [
        f"geventpool/{file} imports {target}, which geventpool/{name} must not"
        for file, target in all_that_is_imported(name, set())
        if target.split(".")[0] in never
    ]

    assert not found, "\n".join(found)


def test_no_file_leads_back_to_itself() -> None:
    graph = {
        name: {
            SOURCES[module_in(target)]
            for _, target in imported(name, (PACKAGE / name).read_text(), type_checking=False)
            if target.split(".")[0] == "geventpool" and module_in(target) in SOURCES
        }
        for name in MODULES
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_says_what_is_in_it_and_defines_nothing(folder: str) -> None:
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())

    assert ast.get_docstring(tree)
    for node in tree.body[1:]:
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert is_all or isinstance(node, ast.ImportFrom), f"line {node.lineno}"


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
    nodes = list(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module in {"__future__", "typing"}:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.body  # what is had under that name at run time is the package
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


# Who writes what the scheduler decides by


#: What only the scheduler changes, by the files and classes that say what there is.
DECIDED = {
    "_scheduler/model.py": {"Slot", "Bucket"},
    "_scheduler/waiter.py": {"Waiter"},
    "_scheduler/limit.py": {"Limit"},
    "_scheduler/places.py": {"Places"},
}
#: What is called like a field of theirs, and is another thing's.
NAMESAKES = {
    *("found.slot", "owner.closed", "self._session.closed"),
    *("server.dials", "failed_dials.error"),
}
#: The two moves of the fast path, from IDLE to IN_USE and back.
FAST_PATH = {("pools/lease.py", "Lease.__enter__"), ("pools/lease.py", "Lease.__exit__")}


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield each attribute that is assigned to or deleted in *tree*."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node


def fields_of(tree: ast.AST, classes: set[str]) -> set[str]:
    """The names of what the instances of *classes* are made of."""
    fields: set[str] = set()
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef) and cls.name in classes:
            fields.update(node.attr for node in written(cls) if is_self(node))
            for node in cls.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
                    fields.update(ast.literal_eval(node.value))
    return fields


def is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


FIELDS = {
    field
    for name, classes in DECIDED.items()
    for field in fields_of(ast.parse((PACKAGE / name).read_text()), classes)
} - {"name"}  # by which nothing is decided


def meddling(name: str, source: str) -> list[str]:
    """Where a file assigns to a field of a Slot, Waiter, Bucket or Limit: one line each."""
    tree = ast.parse(source)
    excused = set()
    for cls in tree.body:
        for node in cls.body if isinstance(cls, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef) and (name, f"{cls.name}.{node.name}") in FAST_PATH:
                excused.update(written(node))
    return [
        f"geventpool/{name}:{node.lineno} sets {ast.unparse(node)}"
        for node in written(tree)
        if node.attr in FIELDS and not is_self(node) and node not in excused
        if ast.unparse(node) not in NAMESAKES
    ]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("_scheduler/")])
def test_only_the_scheduler_changes_what_it_decides_by(name: str) -> None:
    assert meddling(name, (PACKAGE / name).read_text()) == []


def test_the_fields_that_only_the_scheduler_changes_are_found() -> None:
    assert {"state", "since", "uses", "waiters", "_idle", "fast_path_open", "used"} <= FIELDS
    assert not {"conn", "ref", "use_count", "pins"} & FIELDS


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("_runtime/desk.py", "def f(slot):\n    slot.state = IDLE", 1),
        ("_runtime/desk.py", "slot.uses += 1\nslot.conn = None", 1),
        ("pools/base.py", "a.bucket.size, b = 1, 2\ndel waiter.slot", 2),
        ("pools/base.py", "class A:\n    def f(self):\n        self.size = 3", 0),
        ("pools/lease.py", "class Lease:\n    def __enter__(self):\n        slot.state = 1", 0),
        ("pools/lease.py", "class Lease:\n    def other(self):\n        slot.state = 1", 1),
    ],
)
def test_a_change_from_outside_is_found(name: str, source: str, count: int) -> None:
    assert len(meddling(name, source)) == count


# The test itself


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pools/base.py", "from .. import manager"),  # up
        ("pools/base.py", "from ..manager.health import HealthPolicy"),
        ("pools/base.py", "import geventpool.manager"),
        ("pools/base.py", "from geventpool.discovery import StaticResolver"),
        ("pools/base.py", "from geventpool import ConnectionPool"),  # round, by the package
        ("pools/base.py", "from geventpool.pools import ConnectionPool"),  # and by the folder
        ("sockets/factory.py", "from ..discovery.dns import DnsResolver"),  # sideways
        ("discovery/srv.py", "from geventpool.sockets import SocketFactory"),
        ("retry.py", "from geventpool.sockets import SocketFactory"),
        ("_runtime/runtime.py", "from geventpool.sockets import make_probe"),
        ("manager/names.py", "def f():\n    from .._runtime.runtime import Runtime"),
        ("manager/names.py", "from .._scheduler.scheduler import Scheduler"),
        ("errors.py", "if TYPE_CHECKING:\n    from geventpool.pools.base import BasePool"),
        ("_util/log.py", "from .._scheduler.state import State"),
        ("contrib/redis.py", "from ..observe import page"),
        ("contrib/redis.py", "from .other import page"),
        ("contrib/django/wrapper.py", "from geventpool.contrib.redis import RedisPool"),
        ("compat/gsocketpool/pool.py", "from geventpool.compat.pycassa.pool import ConnectionPool"),
        ("compat/gsocketpool/pool.py", "from geventpool.compat.gsocketpool import Connection"),
        ("compat/gsocketpool/pool.py", "from geventpool.compat import gsocketpool"),
        ("contrib/redis.py", "from .._util.log import say"),
        ("contrib/redis.py", "from geventpool.pools.lease import DEFAULT"),
        ("testing/clock.py", "from geventpool.sockets.factory import SocketFactory"),
        ("testing/clock.py", "from geventpool._runtime.runtime import Runtime"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(name: str, source: str) -> None:
    assert len(wrong_imports(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "pools/base.py",
            "from .. import errors, sockets\nfrom .._scheduler.scheduler import Scheduler\n"
            "from .lease import Lease\nimport geventpool.sockets\nimport ssl",
        ),
        ("pools/__init__.py", "from geventpool.pools.lease import Lease"),
        ("contrib/redis.py", "from ..pools import ConnectionPool"),
        ("compat/gsocketpool/pool.py", "from .connection import Connection"),
        ("contrib/redis.py", "from geventpool.pools.extension import checkin"),
        ("contrib/django/mysql/base.py", "from geventpool.contrib.pymysql import PyMySQLPool"),
        ("testing/chaos.py", "from geventpool.testing.ends import hang_up"),
        ("testing/clock.py", "from geventpool._runtime.jump import clock_jumped"),
    ],
)
def test_an_import_from_a_row_above_is_fine(name: str, source: str) -> None:
    assert wrong_imports(name, source) == {}


# The tests


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_imported_from_a_file_of_tests(path: Path) -> None:
    found = imported(path.name, path.read_text())
    wrong = [target for _, target in found if target.startswith(("test_", "tests.", "conftest"))]

    assert not wrong, f"{path.name} imports {', '.join(wrong)}: tests/support is the place for it"
