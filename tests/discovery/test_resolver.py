"""StaticResolver and FileResolver (DNS: test_dns_resolver.py, the Watcher: test_watcher.py)."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from geventpool.addresses import Address, AddressGroup, Resolver, UnixAddress
from geventpool.discovery import FileResolver, StaticResolver
from geventpool.errors import NameNotFound
from geventpool.testing import FakeClock

A, B, C = Address("10.0.0.1", 80), Address("10.0.0.2", 80), Address("10.0.0.3", 80)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [r for r in caplog.records if r.name == "geventpool.resolver"]
    return [r.getMessage() for r in records if r.levelno == logging.WARNING]


# Static


def test_a_static_resolver_knows_its_groups() -> None:
    group = AddressGroup.of("10.0.0.1:80")
    resolver: Resolver = StaticResolver({"web": group, "db": [[(9, A), (1, B)], [(1, C)]]})

    assert resolver.resolve("web") is group
    assert resolver.resolve("db") == AddressGroup([[(9, A), (1, B)], [(1, C)]])


def test_an_alias_leads_to_a_name_or_an_address_through_any_number_of_others() -> None:
    aliases = {
        "a": "b",
        "b": "c",
        "c": "web",
        "d": "e",
        "e": "10.0.0.3:80",
        "f": ("10.0.0.3", 80),
        "g": Path("/run/x.sock"),
        "h": "unix:/run/x.sock",
    }
    resolver = StaticResolver({"web": AddressGroup.of(A, B)}, aliases)

    for name in "a", "b", "c":
        assert resolver.resolve(name) is resolver.resolve("web")
    for name in "d", "e", "f":
        assert resolver.resolve(name) == AddressGroup.of(C)
    for name in "g", "h":
        assert resolver.resolve(name) == AddressGroup.of(UnixAddress("/run/x.sock"))


def test_an_alias_goes_before_a_group_of_the_same_name() -> None:
    resolver = StaticResolver({"web": AddressGroup.of(A)}, {"web": B})

    assert resolver.resolve("web") == AddressGroup.of(B)


@pytest.mark.parametrize("loop", [{"a": "a"}, {"a": "b", "b": "c", "c": "a"}, {"x": "a", "a": "a"}])
def test_aliases_that_go_round_are_an_error_at_construction(loop: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="aliases go round in a circle: .*a -> .*a"):
        StaticResolver({"web": AddressGroup.of(A)}, loop)


@pytest.mark.parametrize("target", ["nowhere", None, ("host", 0), 80])
def test_an_alias_that_leads_nowhere_is_an_error_at_construction(target: Any) -> None:
    with pytest.raises(ValueError, match="aliases lead nowhere: x -> "):
        StaticResolver({}, {"x": target})


def test_a_name_that_a_static_resolver_does_not_have_is_not_found() -> None:
    resolver = StaticResolver({"web": AddressGroup.of(A)}, {"www": "web"})

    with pytest.raises(NameNotFound, match="'db' was not found") as caught:
        resolver.resolve("db")
    assert caught.value.name == "db"
    assert caught.value.tried == ("groups: web", "aliases: www")


def test_a_static_resolver_without_names_is_one(  # was: an empty dict was taken for None
) -> None:
    with pytest.raises(NameNotFound, match="groups: none"):
        StaticResolver({}).resolve("db")


def test_an_empty_group_is_an_error_at_construction() -> None:
    with pytest.raises(ValueError):
        StaticResolver({"web": []})


# A file


JSON = {
    "web": ["10.0.0.1:80", "10.0.0.2:80"],
    "db": [[[9, "10.0.0.1:80"], "10.0.0.2:80"], ["10.0.0.3:80"]],
}
TOML = """
web = ["10.0.0.1:80", "10.0.0.2:80"]
db = [[[9, "10.0.0.1:80"], "10.0.0.2:80"],
      ["10.0.0.3:80"]]  # if all else fails
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(JSON))
    return path


def replace(path: Path, text: str | bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.rename(path)


@pytest.mark.parametrize(
    "suffix",
    [
        ".json",
        pytest.param(
            ".toml", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
        ),
    ],
)
def test_a_file_has_names_with_addresses_or_tiers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"names{suffix}"
    path.write_text(json.dumps(JSON) if suffix == ".json" else TOML)
    resolver: Resolver = FileResolver(path)

    assert resolver.resolve("web") == AddressGroup.of(A, B)
    assert resolver.resolve("db") == AddressGroup([[(9, A), (1, B)], [(1, C)]])
    with pytest.raises(NameNotFound) as caught:
        resolver.resolve("mail")
    assert caught.value.name == "mail"
    assert caught.value.tried == (f"{path}: names: db, web",)


def test_toml_without_a_parser_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "tomllib", "tomli":
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ImportError, match="pip install tomli"):
        FileResolver(tmp_path / "names.toml")


def test_a_changed_file_is_read_again_at_most_once_in_an_interval(
    path: Path, clock: FakeClock
) -> None:
    resolver = FileResolver(path, interval=5, clock=clock)
    replace(path, '{"web": ["10.0.0.3:80"]}')
    clock.advance(4.9)
    assert resolver.resolve("web") == AddressGroup.of(A, B)
    clock.advance(0.2)

    assert resolver.resolve("web") == AddressGroup.of(C)
    replace(path, '{"web": ["10.0.0.1:80"]}')
    clock.advance(4.9)
    assert resolver.resolve("web") == AddressGroup.of(C)


def test_a_file_that_has_not_changed_is_not_read(path: Path, clock: FakeClock) -> None:
    resolver = FileResolver(path, clock=clock)
    found = resolver.resolve("web")
    clock.advance(10)

    assert resolver.resolve("web") is found


@pytest.mark.parametrize("what", ["time", "size", "inode"])
def test_each_of_time_size_and_inode_tells_of_a_change(
    path: Path, clock: FakeClock, what: str
) -> None:
    old = '{"web": ["10.0.0.1:80"]}'
    new = old.replace(".1:", ".30:" if what == "size" else ".3:")
    replace(path, old)
    resolver = FileResolver(path, clock=clock)
    stat = path.stat()
    if what == "inode":
        keep = path.with_suffix(".kept")
        path.rename(keep)  # else the number may be used again
        replace(path, new)
    else:
        path.write_text(new)
    if what != "time":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    clock.advance(10)

    assert resolver.resolve("web").addresses <= {C, Address("10.0.0.30", 80)}


BROKEN = [
    "{",
    "[]",
    "\xff".encode("latin-1"),
    "[" * 100_000,
    '{"web": []}',
    '{"web": "10.0.0.1:80"}',
    '{"web": [80]}',
    '{"web": ["10.0.0.1"]}',
    '{"web": [[9, "10.0.0.1:80"]]}',
    '{"web": [[[-1, "10.0.0.1:80"]]]}',
    '{"web": [[[NaN, "10.0.0.1:80"]]]}',
    '{"web": [[[true, "10.0.0.1:80"]]]}',
    '{"web": [[]]}',
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, text: str | bytes
) -> None:
    resolver = FileResolver(path, interval=1, clock=clock)
    replace(path, text)
    for _ in range(3):
        clock.advance(2)
        assert resolver.resolve("web") == AddressGroup.of(A, B)

    (warning,) = warnings(caplog)
    assert warning.startswith(str(path))
    replace(path, text)  # another version, no better
    clock.advance(2)
    assert resolver.resolve("web") == AddressGroup.of(A, B)
    assert len(warnings(caplog)) == 2
    replace(path, '{"web": ["10.0.0.3:80"]}')
    clock.advance(2)
    assert resolver.resolve("web") == AddressGroup.of(C)


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_file_that_is_broken_from_the_start_is_an_error(path: Path, text: str | bytes) -> None:
    replace(path, text)

    with pytest.raises(ValueError, match=f"^{path}: "):
        FileResolver(path)


@pytest.mark.parametrize("how", ["deleted", "a directory", "truncated", "half written"])
def test_a_file_that_is_lost_keeps_what_it_said_says_so_once_and_may_come_back(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    resolver = FileResolver(path, clock=clock)
    text = path.read_text()
    for _ in range(2):
        match how:
            case "deleted":
                path.unlink()
            case "a directory":
                path.unlink()
                path.mkdir()
            case "truncated":
                path.write_text("")
            case _:
                path.write_text(text[:20])
        for _ in range(3):
            clock.advance(2)
            assert resolver.resolve("web") == AddressGroup.of(A, B)
        (warning,) = warnings(caplog)
        assert warning.startswith(f"{path}: ")
        caplog.clear()
        if how == "a directory":
            path.rmdir()
        replace(path, text.replace("10.0.0.1", "10.0.0.9"))
        clock.advance(2)
        assert resolver.resolve("web") == AddressGroup.of("10.0.0.9:80", B)
        replace(path, text)
        clock.advance(2)
        assert resolver.resolve("web") == AddressGroup.of(A, B)

    assert warnings(caplog) == []


def test_a_file_that_could_not_be_opened_is_read_when_it_can_be(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing about the file tells of that: it is the one that could not be opened."""
    resolver = FileResolver(path, clock=clock)
    replace(path, '{"web": ["10.0.0.3:80"]}')
    clock.advance(2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # one file too many open
    try:
        during = resolver.resolve("web")
        clock.advance(2)
        resolver.resolve("web")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert during == AddressGroup.of(A, B)
    (warning,) = warnings(caplog)
    assert "Too many open files" in warning
    clock.advance(2)

    assert resolver.resolve("web") == AddressGroup.of(C)


def test_a_log_handler_that_raises_does_not_break_the_resolver(
    path: Path, clock: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log today")

    resolver = FileResolver(path, clock=clock)
    handler = Broken()
    logging.getLogger("geventpool.resolver").addHandler(handler)
    try:
        replace(path, "{")
        clock.advance(2)
        assert resolver.resolve("web") == AddressGroup.of(A, B)
    finally:
        logging.getLogger("geventpool.resolver").removeHandler(handler)
    assert "no log today" in capsys.readouterr().err


def test_a_file_that_is_not_there_or_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileResolver(tmp_path / "names.json")
    with pytest.raises(ValueError, match=r"path must end in \.json or \.toml, not '\.yaml'"):
        FileResolver(tmp_path / "names.yaml")
    with pytest.raises(ValueError, match="interval must be"):
        FileResolver(tmp_path / "names.json", interval=-1)


def test_resolvers_say_what_they_are(path: Path) -> None:
    assert repr(StaticResolver({"web": [[(1, A)]]}, {"www": "web"})) == "<StaticResolver 2 names>"
    assert repr(FileResolver(path)) == f"<FileResolver '{path}' 2 names>"
