"""A snapshot: every pool of a process in values that JSON can hold, and no secret in it."""

from __future__ import annotations

import json
import time
from typing import Any

import gevent
import pytest

from geventpool import ConnectionManager, ConnectionPool, EndpointPool, SocketFactory
from geventpool.observe import snapshot
from geventpool.observe.secrets import without_secrets
from geventpool.testing import EchoServer, closed_port
from support.waiting import until


def of(name: str) -> Any:
    """What a snapshot says of the pool of that name, by way of JSON."""
    shown = json.loads(json.dumps(snapshot(), allow_nan=False))
    (found,) = [pool for pool in shown["pools"] if pool["name"] == name]
    return found


def test_it_says_who_holds_what_and_where_that_greenlet_is() -> None:
    def held_here() -> None:
        with pool.get():
            done.wait()

    with EchoServer() as server:
        done = gevent.event.Event()
        with ConnectionPool(2, connect=SocketFactory(server.address), name="shown") as pool:
            pool.fill()
            holder = gevent.spawn(held_here)
            gevent.sleep(0)
            shown = of("shown")
            done.set()
            holder.get()
    assert shown["kind"] == "ConnectionPool"
    assert (shown["stats"]["in_use"], shown["stats"]["idle"]) == (1, 1)
    assert "held_here" in shown["holders"][0]["stack"]
    assert shown["holders"][0]["age"] >= 0


def test_each_endpoint_has_figures_of_its_own() -> None:
    with EchoServer() as server:
        pool = EndpointPool(connect=lambda where: SocketFactory(where)(), name="of endpoints")
        with pool, pool.get(server.address):
            shown = of("of endpoints")
    (endpoint,) = shown["endpoints"]
    assert endpoint["endpoint"] == str(server.address)
    assert endpoint["stats"]["in_use"] == 1


def test_a_manager_shows_its_servers_and_what_is_wrong_with_them() -> None:
    with closed_port() as dead, ConnectionManager(name="of servers") as manager:
        for _ in range(5):
            with pytest.raises(OSError):
                manager.get_connection(dead)
        shown = of("of servers")
    (server,) = shown["addresses"]
    assert server["address"] == f"{dead[0]}:{dead[1]}"
    assert server["state"] == "down"
    assert server["down_for"] > 0
    assert "refused" in server["reason"].lower()


def test_no_password_of_an_error_is_in_it() -> None:
    def connect() -> Any:
        raise ConnectionError("no login at postgres://me:Hunter2@db/x with password='Hunter2'")

    with ConnectionPool(1, connect=connect, name="secret") as pool:
        until(lambda: pool.stats().last_error)
        shown = json.dumps(of("secret"))
    assert "Hunter2" not in shown
    assert "no login at postgres://***@db/x" in shown


def test_an_error_as_long_as_a_server_likes_is_cut_and_does_not_take_long() -> None:
    long = ("pass_://" * 50_000) + "@"

    def connect() -> Any:
        raise ConnectionError(long)

    with ConnectionPool(1, connect=connect, name="long") as pool:
        until(lambda: pool.stats().last_error)
        began = time.thread_time()
        shown = json.dumps(of("long"))
        assert time.thread_time() - began < 1.0
    assert "pass_" in shown
    assert len(shown) < 50_000
    began = time.thread_time()
    without_secrets(long[:50_000])
    assert time.thread_time() - began < 1.0


def test_nothing_that_a_terminal_obeys_is_in_it() -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\r\x9b31m\u202e\x7f\0"

    def connect() -> Any:
        raise ConnectionError(f"{hostile}\n\tétage 漢字")

    with ConnectionPool(1, connect=connect, name=f"of {hostile}") as pool:
        until(lambda: pool.stats().last_error)
        (shown,) = [each for each in snapshot()["pools"] if each["name"].startswith("of ")]
    escaped = r"\x1b]0;title\x07\x1b[2J\x0d\x9b31m\u202e\x7f\x00"
    assert shown["name"] == f"of {escaped}"
    assert shown["stats"]["last_error"] == f"ConnectionError: {escaped}\n\tétage 漢字"


def test_what_a_codec_says_of_a_password_is_not_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "Hunter2"

    def connect() -> Any:
        return f"{secret}€".encode("latin-1")

    with ConnectionPool(1, connect=connect, name="secret"):
        until(lambda: "a dial failed" in caplog.text)
        assert "Hunter2" not in json.dumps(of("secret"))
    assert "UnicodeEncodeError: 'latin-1' codec can't encode" in caplog.text
    assert "Hunter2" not in caplog.text


@pytest.mark.parametrize("target", ["http://me:Hunter2@db:1", "me:Hunter2@db:x", "a:Hun/t@er2@db"])
def test_a_target_that_is_refused_shows_no_password(target: str) -> None:
    with pytest.raises(ValueError, match="target must be.*@db") as caught:
        SocketFactory(target)
    assert "Hun" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@host:6379/0", "redis://***@host:6379/0"),
        ("https://user:p%40w@host", "https://***@host"),
        ("https://token@host/path", "https://***@host/path"),
        ("redis://user:p@ss@host", "redis://***@host"),
        ("mysql://u:pw'q@h", "mysql://***@h"),
        ("https://host/path?mail=me", "https://host/path?mail=me"),
        ("password=b'pw', host='db'", "password=***, host='db'"),
        ("{'password': b'pw', 'port': 1}", "{'password': ***, 'port': 1}"),
        ("PASSWORD=SecretStr('pw')", "PASSWORD=***)"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("passphrase='x', auth='me:pw'", "passphrase=***, auth=***"),
        ("host=db password=a,b;c dbname=x", "host=db password=*** dbname=x"),
        ("3 tests passed: all", "3 tests passed: all"),
        ("host=db password=pw dbname=x", "host=db password=*** dbname=x"),
        ("connect(password='a \\' b', host='db')", "connect(password=***, host='db')"),
        ('{"api_key": "abc", "port": 1}', '{"api_key": ***, "port": 1}'),
        ("DB_PASSWORD=pw", "DB_PASSWORD=***"),
        ("http://a/b,http://me:pw@c,http://d/e@f", "http://a/b,http://***@f"),
        ("http://me@c/d http://a/://me:p/w@c", "http://***@c/d http://a/://***@c"),
        ("x-api-key: abc", "x-api-key: ***"),
        ("{'access_key': 'abc', 'private_key': 'abc'}", "{'access_key': ***, 'private_key': ***}"),
        ("request(url, auth=('me', 'pw'), timeout=3)", "request(url, auth=***, timeout=3)"),
        ("Zoo(auth_data=[('digest', 'me:pw')])", "Zoo(auth_data=***])"),
        ("alter user me password 'pw'", "alter user me password ***"),
        ("create user me identified by 'pw'", "create user me identified by ***"),
        ("the author: me", "the author: me"),
        ('password authentication failed for user "me"',) * 2,
        ("nothing to hide: a:b@c", "nothing to hide: a:b@c"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
