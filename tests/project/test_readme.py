"""What README.md shows works.

Its ```python blocks are run one after the other, in one namespace, in a process of their own.
Each host of the example domains that a block names together with a port, as in
``"test.example.org", 2485`` or ``"test.example.org:2485"``, is an echo server meanwhile.

The command lines of its sections "Run it" and "Test it" are run by .ci/run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from support import ROOT, TESTS

README = ROOT / "README.md"

EXAMPLE_HOST = r"[\w.-]*\bexample\.(?:com|net|org)"
EXAMPLE_ADDRESS = re.compile(rf"""(["'])({EXAMPLE_HOST})(\1,\s*|:)(\d+)\b""")

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

# Reads [[line, code], ...] from one file, and writes the traceback or null of each to another.
RUN = """
import json, sys, traceback
snippets = json.load(open(sys.argv[1]))
namespace = {"__name__": "__main__"}
failures = []
for line, code in snippets:
    try:
        exec(compile("\\n" * line + code, "README.md", "exec"), namespace)
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


BLOCKS = list(blocks(README.read_text())) if README.exists() else []
SNIPPETS = [block for block in BLOCKS if block.language == "python"]


def on_loopback(code: str, addresses: dict[tuple[str, str], tuple[str, int]]) -> str:
    """The code with every example address replaced by the one it has for the test."""

    def replace(match: re.Match[str]) -> str:
        host, port = addresses[match[2], match[4]]
        return f"{match[1]}{host}{match[3]}{port}"

    return EXAMPLE_ADDRESS.sub(replace, code)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """The traceback, or None, of each snippet, in order."""
    named = sorted({(m[2], m[4]) for s in SNIPPETS for m in EXAMPLE_ADDRESS.finditer(s.text)})
    files = tmp_path_factory.mktemp("readme")
    echo: Any = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(TESTS), str(len(named))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with echo:
        addresses = dict(zip(named, map(tuple, json.loads(echo.stdout.readline())), strict=True))
        snippets = [(s.line, on_loopback(s.text, addresses)) for s in SNIPPETS]
        (files / "snippets").write_text(json.dumps(snippets))
        command = [sys.executable, "-c", RUN, str(files / "snippets"), str(files / "failures")]
        try:
            ended: Any = subprocess.run(
                command,
                cwd=files,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
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
    return result + [f"never finished:\n{said}"] * (len(SNIPPETS) - len(result))


@pytest.mark.parametrize(
    "number", range(len(SNIPPETS)), ids=[f"line_{snippet.line}" for snippet in SNIPPETS]
)
def test_a_snippet_works(number: int, failures: list[str | None]) -> None:
    if failures[number] is not None:
        pytest.fail(f"README.md, line {SNIPPETS[number].line}:\n{failures[number]}", pytrace=False)


def test_the_readme_has_snippets() -> None:
    assert README.exists()
    assert SNIPPETS


@pytest.mark.parametrize("section", ["Run it", "Test it"])
def test_a_section_is_one_command_line(section: str) -> None:
    found = [block for block in BLOCKS if block.section == section]

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
