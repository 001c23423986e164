"""What README.md, CONTRIBUTING.md and docs/ show works, and what they link to is there.

The ```python blocks of a page are run one after the other, in one namespace, in a process of their
own.  (But those of docs/testing.md are a suite, which test_testing.py runs.)  Each host of the
example domains that a block names together with a port, as in ``"test.example.org", 2485`` or
``"test.example.org:2485"``, is an echo server meanwhile.

What a page takes from ``os.environ`` is where a real server is: see ``ENVIRONMENT``.

The command lines of README's sections "Run it" and "Test it" are run by .ci/run.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest

from support import ROOT, TESTS
from support.adapters.http import OwnNginx
from support.adapters.memcached import OwnMemcached
from support.own_servers import OwnEtcd, OwnZooKeeper
from support.servers import require_server
from support.small_servers import OwnImap, OwnSlapd, OwnSmtp, OwnThrift, OwnWebSocket, shared

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

EXAMPLE_HOST = r"[\w.-]*\bexample\.(?:com|net|org)"
EXAMPLE_ADDRESS = re.compile(rf"""(["'])({EXAMPLE_HOST})(\1,\s*|:)(\d+)\b""")

#: What a snippet may take from ``os.environ``: of which server, and what of its address.
ENVIRONMENT: dict[str, tuple[Any, str]] = {
    "DATABASE_URL": ("postgres", "postgresql://postgres@{0}:{1}/postgres"),
    "REDIS_URL": ("redis", "redis://{0}:{1}/0"),
    "MYSQL_HOST": ("mariadb", "{0}"),
    "MYSQL_PORT": ("mariadb", "{1}"),
    "MEMCACHED_HOST": (OwnMemcached, "{0}"),
    "MEMCACHED_PORT": (OwnMemcached, "{1}"),
    "API_URL": (OwnNginx, "http://{0}:{1}"),
    "AMQP_URL": ("rabbitmq", "amqp://guest:guest@{0}:{1}/%2F"),
    "SMTP_SERVER": (OwnSmtp, "{0}:{1}"),
    "IMAP_SERVER": (OwnImap, "{0}:{1}"),
    "LDAP_SERVER": (OwnSlapd, "{0}:{1}"),
    "THRIFT_SERVER": (OwnThrift, "{0}:{1}"),
    "WEBSOCKET_URL": (OwnWebSocket, "ws://{0}:{1}/"),
    "ETCD_SERVER": (OwnEtcd, "{0}:{1}"),
    "ZOOKEEPER_SERVERS": (OwnZooKeeper, "{0}:{1}"),
}

# Starts as many echo servers as it is told, prints their addresses, and serves until its standard
# input ends.  A process of its own, so that a snippet may block.
SERVE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gevent.fileobject import FileObject
from support.servers import EchoServer
servers = [EchoServer() for _ in range(int(sys.argv[2]))]
for server in servers:
    server.start()
print(json.dumps([server.address for server in servers]), flush=True)
FileObject(sys.stdin, "rb").read()
"""

# Reads [[line, code], ...] of a page from one file, and writes the traceback or null of each to
# another.
RUN = """
import json, sys, traceback
snippets = json.load(open(sys.argv[1]))
page = sys.argv[3]
namespace = {"__name__": "__main__"}
failures = []
for line, code in snippets:
    try:
        exec(compile("\\n" * line + code, page, "exec"), namespace)
    except BaseException:
        failures.append(traceback.format_exc())
    else:
        failures.append(None)
    with open(sys.argv[2], "w") as file:
        json.dump(failures, file)
"""


class Block(NamedTuple):
    """A fenced block: the heading above it, its language, the line of its fence, and its text."""

    section: str
    language: str
    line: int
    text: str


def blocks(markdown: str) -> Iterator[Block]:
    section, fence, language, start = "", "", "", 0
    inside: list[str] = []
    for number, line in enumerate(markdown.splitlines(), 1):
        mark = re.match(r"\s{0,3}(`{3,}|~{3,})\s*(\w*)", line)
        if fence:
            if line.strip() == fence:
                yield Block(section, language, start, "\n".join(inside) + "\n")
                fence = ""
            else:
                inside.append(line)
        elif mark:
            fence, language, start, inside = mark[1], mark[2], number, []
        elif line.startswith("## "):
            section = line[3:].strip()


BLOCKS = {page.relative_to(ROOT).as_posix(): list(blocks(page.read_text())) for page in PAGES}
SNIPPETS = {
    page: [block for block in found if block.language == "python"]
    for page, found in BLOCKS.items()
    if page != "docs/testing.md"
}


def on_loopback(code: str, addresses: dict[tuple[str, str], tuple[str, int]]) -> str:
    """The code with every example address replaced by the one it has for the test."""

    def replace(match: re.Match[str]) -> str:
        host, port = addresses[match[2], match[4]]
        return f"{match[1]}{host}{match[3]}{port}"

    return EXAMPLE_ADDRESS.sub(replace, code)


def environment_of(page: str) -> dict[str, str]:
    """Where the servers are that *page* wants; skips, or fails, if one is not there."""
    __tracebackhide__ = True
    code = "".join(snippet.text for snippet in SNIPPETS[page])
    return {
        name: text.format(*(require_server if isinstance(server, str) else shared)(server))
        for name, (server, text) in ENVIRONMENT.items()
        if f'"{name}"' in code
    }


def run_snippets(page: str, files: Path) -> list[str | None]:
    """The traceback, or None, of each snippet of *page*, in order; *files* is an empty folder."""
    snippets = SNIPPETS[page]
    environment = environment_of(page)
    named = sorted({(m[2], m[4]) for s in snippets for m in EXAMPLE_ADDRESS.finditer(s.text)})
    echo: Any = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(TESTS), str(len(named))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with echo:
        addresses = dict(zip(named, map(tuple, json.loads(echo.stdout.readline())), strict=True))
        codes = [(s.line, on_loopback(s.text, addresses)) for s in snippets]
        (files / "snippets").write_text(json.dumps(codes))
        command = [sys.executable, "-c", RUN]
        command += [str(files / "snippets"), str(files / "failures"), page]
        try:
            ended: Any = subprocess.run(
                command,
                cwd=files,
                env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=90,
            )
            said = (ended.stdout + ended.stderr).decode()
        except subprocess.TimeoutExpired:
            said = "not finished after 90 s"
        echo.stdin.close()
        echo.wait(timeout=10)
    result = json.loads((files / "failures").read_text()) if (files / "failures").exists() else []
    return result + [f"never finished:\n{said}"] * (len(snippets) - len(result))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, snippets in SNIPPETS.items() if snippets])
def test_the_snippets_of_a_page_work(page: str, tmp_path: Path) -> None:
    failures = [
        f"{page}, line {snippet.line}:\n{failure}"
        for snippet, failure in zip(SNIPPETS[page], run_snippets(page, tmp_path), strict=True)
        if failure is not None
    ]
    if failures:
        pytest.fail("\n\n".join(failures), pytrace=False)


def test_the_readme_has_snippets() -> None:
    assert SNIPPETS["README.md"]


LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(markdown: str) -> set[str]:
    """What a link to a heading of this page may say behind its ``#``."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", BLOCKS)
def test_what_a_page_links_to_is_there(page: str) -> None:
    missing = []
    for link in LINK.findall((ROOT / page).read_text()):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            missing.append(link)

    assert not missing


@pytest.mark.parametrize("page", BLOCKS)
def test_a_file_that_a_page_names_in_its_text_is_there(page: str) -> None:
    """``geventpool/_scheduler/line.py`` or ``tests/promises/``, in backquotes."""
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:geventpool|tests|benchmarks|docs|examples|\.ci)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


PACKAGE_ROOT = ROOT / "geventpool"


@cache
def members() -> dict[str, set[str]]:
    """The names that the classes of the package define, by the name of the class."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in PACKAGE_ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].update(each.name for each in node.body if hasattr(each, "name"))
    return dict(found)


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/glossary.md"])
def test_the_files_and_classes_that_the_map_names_are_there(page: str) -> None:
    """``_scheduler/line.py``, ``Line`` and ``Scheduler.cancel``, in backquotes."""
    text = (ROOT / page).read_text()
    files = re.findall(r"`((?:_?[a-z]+/)+\w*(?:\.py)?)`", text)
    classes = re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)(?:\.(\w+))?[`(]", text)
    roots = ROOT, PACKAGE_ROOT, PACKAGE_ROOT / "compat", PACKAGE_ROOT / "contrib"
    missing = [name for name in files if not any((root / name).exists() for root in roots)]
    missing += [
        name
        for name, _ in classes
        if not hasattr(builtins, name) and name not in vars(gevent) and name not in members()
    ]
    missing += [
        f"{name}.{verb}"
        for name, verb in classes
        if verb and verb not in members().get(name, set())
    ]

    assert missing == []


def files_by_section(markdown: str) -> list[str]:
    """The files that the first column of each table names, in the folder that stands above it."""
    named, folder = [], ""
    for line in markdown.splitlines():
        if heading := re.match(r"#+ (?:`(\w+/)`)?", line):
            folder = heading[1] or ""
        elif folder and line.startswith("| `"):
            here = "" if folder == "geventpool/" else folder
            named += [here + name for name in re.findall(r"`([\w/]+\.py)`", line.split("|")[1])]
    return named


def test_the_map_says_of_every_file_what_it_is_for() -> None:
    files = [path.relative_to(PACKAGE_ROOT).as_posix() for path in PACKAGE_ROOT.rglob("*.py")]

    named = files_by_section((ROOT / "docs" / "architecture.md").read_text())

    # What a folder is for stands in its own __init__.py.
    assert sorted(named) == sorted(name for name in files if not name.endswith("__init__.py"))


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"])
def test_a_greenlet_and_a_caller_are_it(page: str) -> None:
    words = re.findall(r"\b(?:he|him|his|himself|she|her|whoever)\b", (ROOT / page).read_text())
    assert words == []


@pytest.mark.parametrize("section", ["Run it", "Test it"])
def test_a_section_is_one_command_line(section: str) -> None:
    found = [block for block in BLOCKS["README.md"] if block.section == section]

    assert [block.language for block in found] == ["sh"]
    assert len(found[0].text.strip().splitlines()) == 1
    assert not found[0].text.lstrip().startswith(("#", "$"))


# The test itself


def test_example_addresses_are_replaced() -> None:
    code = """connect(("a.example.org", 80)); connect('b.example.com:81/x'); connect("a.b", 80)"""
    addresses = {
        ("a.example.org", "80"): ("127.0.0.1", 5),
        ("b.example.com", "81"): ("127.0.0.1", 6),
    }

    assert on_loopback(code, addresses) == (
        """connect(("127.0.0.1", 5)); connect('127.0.0.1:6/x'); connect("a.b", 80)"""
    )


def test_blocks_know_their_section_and_line() -> None:
    markdown = "# t\n## Run it\n```sh\n## no section\n```\n\n## Next\n~~~python\nx\n~~~\n"

    assert list(blocks(markdown)) == [
        Block("Run it", "sh", 3, "## no section\n"),
        Block("Next", "python", 8, "x\n"),
    ]
