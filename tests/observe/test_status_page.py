"""The status page: who may look, what is answered, and that it is harmless."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import gevent
import pytest

from geventpool import ConnectionManager, ConnectionPool, EndpointPool, PoolTimeout, SocketFactory
from geventpool.observe import StatusPage, mount
from geventpool.testing import EchoServer, closed_port
from support.objects import Maker
from support.status_page import get, pools_shown
from support.waiting import until
from support.workers import HANG, worker

pytestmark = pytest.mark.usefixtures("run_folder")


# Who may look


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_who_is_on_this_machine_may_look(address: str) -> None:
    assert get("/", REMOTE_ADDR=address).status == 200


@pytest.mark.parametrize("address", ["10.0.0.1", "192.0.2.7", "2001:db8::1", "", "nonsense"])
@pytest.mark.parametrize("path", ["/", "/rows", "/pools.json", "/metrics", "/ready", "/elsewhere"])
def test_others_may_not(address: str, path: str) -> None:
    with ConnectionPool(1, connect=Maker(), name="not to be seen"):
        answer = get(path, REMOTE_ADDR=address)
    assert answer.status == 403
    assert "not to be seen" not in answer.body
    assert "allow=" in answer.body


def test_what_a_client_says_of_its_address_is_not_believed() -> None:
    claim = {"HTTP_X_FORWARDED_FOR": "127.0.0.1", "HTTP_X_REAL_IP": "127.0.0.1"}
    assert get("/", REMOTE_ADDR="192.0.2.7", **claim).status == 403


@pytest.mark.parametrize(
    "header",
    ["X_FORWARDED_FOR", "X_FORWARDED_PROTO", "FORWARDED", "X_REAL_IP", "VIA", "X_REQUEST_ID"],
)
def test_who_comes_by_way_of_a_proxy_is_not_local(header: str) -> None:
    assert get("/", **{f"HTTP_{header}": "192.0.2.7"}).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("attacker.example.com", 403),
        ("localhost.example.com", 403),
        ("192.0.2.7", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(host: str, status: int) -> None:
    assert get("/", HTTP_HOST=host).status == status


def test_networks_and_addresses_may_be_allowed() -> None:
    page = StatusPage(allow=["10.0.0.0/8", "2001:db8::1"])
    for address, status in [
        ("10.1.2.3", 200),
        ("::ffff:10.1.2.3", 200),
        ("2001:db8::1", 200),
        ("11.0.0.1", 403),
        ("2001:db8::2", 403),
        ("127.0.0.1", 403),
        ("", 403),
    ]:
        assert get("/ready", page, REMOTE_ADDR=address).status == status, address


def test_a_function_may_decide() -> None:
    page = StatusPage(allow=lambda environ: environ.get("REMOTE_USER") == "admin")
    assert get("/ready", page, REMOTE_USER="admin", REMOTE_ADDR="").status == 200
    assert get("/ready", page).status == 403


@pytest.mark.parametrize("allow", [["10.0.0.0/33"], ["example.org"], "10.0.0.0/8", 7])
def test_what_cannot_be_allowed_is_said_at_once(allow: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"allow|iterable"):
        StatusPage(allow=allow)


@pytest.mark.parametrize("timeout", [0, -1, "1", None, float("nan")])
def test_a_timeout_that_is_none_is_said_at_once(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        StatusPage(timeout=timeout)


# What is answered


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/pools.json", "/ready"])
def test_nothing_can_be_done_but_look(method: str, path: str) -> None:
    answer = get(path, method=method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/rows", "/pools.json", "/metrics", "/ready", "/elsewhere"])
def test_a_head_has_the_headers_and_no_body(path: str) -> None:
    answer = get(path, method="HEAD")
    assert answer.body == ""
    assert answer.status == get(path).status
    assert int(answer.headers["Content-Length"]) > 0


def test_a_page_that_is_not_there_is_said_to_be_so() -> None:
    assert get("/pools.jsonx").status == 404
    assert get("//").status == 404


def test_nothing_is_kept_by_a_cache_and_nothing_from_elsewhere_is_run() -> None:
    for path in ("/", "/rows", "/pools.json", "/ready"):
        headers = get(path).headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    first, second = get("/"), get("/")
    (nonce,) = re.findall("script-src 'nonce-([^']+)'", first.headers["Content-Security-Policy"])
    assert nonce not in second.headers["Content-Security-Policy"]
    assert f'<script nonce="{nonce}">' in first.body
    assert len(re.findall("<script", first.body)) == 1
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', first.body)


@pytest.mark.parametrize(
    ("script", "query", "target"),
    [
        ("/pools", "", "pools/"),
        ("/-/deep/pools", "", "pools/"),
        ("/pools", "open=1-2", "pools/?open=1-2"),
        ("/a b", "", "a%20b/"),
        ("/x:y", "", "x%3Ay/"),
        ("/p", 'a="><script>', "p/?a=%22%3E%3Cscript%3E"),
        ("/\u00c3\u00a9", "", "%C3%A9/"),
        ("", "", "/"),
    ],
)
def test_without_its_slash_it_leads_to_where_links_work(
    script: str, query: str, target: str
) -> None:
    answer = get("", SCRIPT_NAME=script, QUERY_STRING=query)
    assert answer.status == 302
    assert answer.headers["Location"] == target
    assert "<script" not in answer.body


def test_it_is_mounted_beside_an_application() -> None:
    def own(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"own: {environ['PATH_INFO']}".encode()]

    both = mount(own, "/-/pools/")
    assert get("/", both).body == "own: /"
    assert get("/-/poolsx", both).body == "own: /-/poolsx"
    assert get("/-/pools", both).headers["Location"] == "pools/"
    assert "<h1>Pools</h1>" in get("/-/pools/", both).body
    assert get("/-/pools/ready", both, SCRIPT_NAME="/site").body == "ready\n"
    for wrong in ("pools", "/", ""):
        with pytest.raises(ValueError, match="at:"):
            mount(own, wrong)


# What is shown


def key_of(name: str) -> str:
    return str(pools_shown()[name]["key"])


def test_a_name_is_text_and_never_markup() -> None:
    evil = '<script>alert("1")</script>&"\''
    with ConnectionPool(1, connect=Maker(), name=evil) as pool, pool.get():
        body = get(f"/?open={key_of(evil)}").body
        assert pools_shown()[evil]["name"] == evil
    assert "<script>alert" not in body
    assert "&lt;script&gt;alert" in body


def test_nothing_else_that_is_not_of_the_page_is_markup_either() -> None:
    evil = "<img src=x onerror=alert(1)>"

    def connect(*endpoint: Any) -> Any:
        raise ConnectionError(evil)

    def use() -> None:
        with pytest.raises(PoolTimeout), pool.get(evil, timeout=0.05):
            pass

    def hold() -> None:
        with held.get():
            done.wait()

    done = gevent.event.Event()
    pool = EndpointPool(connect=connect, name="endpoints")
    held = ConnectionPool(1, connect=Maker(), name="held", track=True)
    with pool, held:
        waiting = gevent.spawn(use)
        holder = gevent.Greenlet(hold)
        holder.name = evil
        holder.start()
        until(lambda: pool.stats().last_error)
        keys = f"open={key_of('endpoints')}&open={key_of('held')}"
        body = get(f"/rows?{keys}").body
        unknown = get(f"/?open={evil}&open=%22%3E%3Cimg+src%3Dx").body
        done.set()
        gevent.joinall([waiting, holder], raise_error=True)
    assert body.count("&lt;img src=x onerror") >= 3
    assert "<img" not in body + unknown


def test_what_is_no_text_is_shown_all_the_same() -> None:
    """Bytes of a path that are no text: what cannot be sent must not take all the rest with it."""

    def connect(endpoint: str) -> Any:
        if endpoint == "bad":
            raise ConnectionError("no \udcff there")
        return Maker()()

    with EndpointPool(connect=connect, name="pool \udcff") as pool, pool.get("at \udcff"):
        with pytest.raises(PoolTimeout), pool.get("bad", timeout=0.05):
            pass
        opened = f"open={key_of('pool ' + chr(92) + 'udcff')}"
        for path in (f"/?{opened}", f"/rows?{opened}"):
            body = get(path).body
            for shown in (r"pool \udcff", r"at \udcff", r"no \udcff there"):
                assert shown in body
        assert "pool" in pools_shown()["pool \\udcff"]["name"]
        assert r"pool \\udcff" in get("/metrics").body


def test_no_secret_is_in_it() -> None:
    def connect() -> Any:
        raise ConnectionError("no login at postgres://me:Hunter2@db/x with password='Hunter2'")

    with ConnectionPool(1, connect=connect, name="redis://:Hunter2@cache/0") as pool:
        until(lambda: pool.stats().last_error)
        key = key_of("redis://***@cache/0")
        for path in (f"/?open={key}", f"/rows?open={key}", "/pools.json", "/metrics", "/ready"):
            answer = get(path)
            assert "Hunter2" not in answer.body
            assert "***@" in answer.body


def test_who_holds_what_is_shown_of_what_is_open_and_of_nothing_else() -> None:
    def of_the_program(pool: Any) -> None:
        with pool.get():
            done.wait()

    done = gevent.event.Event()
    with ConnectionPool(1, connect=Maker(), name="one") as one:
        with ConnectionPool(1, connect=Maker(), name="two") as two:
            holders = [gevent.spawn(of_the_program, pool) for pool in (one, two)]
            until(lambda: one.stats().in_use and two.stats().in_use)
            closed, opened = get("/rows").body, get(f"/rows?open={key_of('one')}").body
            both, none = pools_shown(), pools_shown(holders="none")
            done.set()
            gevent.joinall(holders)
    assert "of_the_program" not in closed
    assert opened.count("Holders (1)") == 1
    assert "of_the_program" in opened
    assert "of_the_program" in both["one"]["holders"][0]["stack"]
    assert "of_the_program" in both["two"]["holders"][0]["stack"]
    assert none["one"]["holders"] == []


def test_inside_are_addresses_errors_and_why_connections_were_closed() -> None:
    with EchoServer() as server, closed_port() as dead:
        pool = ConnectionPool(1, connect=SocketFactory(server.address), name="drained")
        manager = ConnectionManager(name="of servers")
        with pool, manager:
            pool.fill()
            pool.drain()
            for _ in range(5):
                with pytest.raises(OSError):
                    manager.get_connection(dead)
            until(lambda: pool.stats().opened == 2)
            drained = get(f"/rows?open={key_of('drained')}").body
            servers = get(f"/rows?open={key_of('of servers')}").body
    assert "<td>drained</td>" in drained
    assert f"<td>{dead[0]}:{dead[1]}</td><td>down</td>" in servers
    assert "ConnectionRefusedError" in servers
    assert "1 of 1 server out" in servers
    assert '<td>dial</td><td class="number">5</td>' in servers, "why callers got none"
    assert "p99 wait" in drained


def test_trouble_has_a_word() -> None:
    def wait() -> None:
        with pytest.raises(PoolTimeout):
            full.acquire(timeout=0.2)

    with closed_port() as dead, ConnectionPool(1, connect=Maker(), name="full") as full:
        with ConnectionPool(1, connect=SocketFactory(dead), name="away") as away:
            with full.get():
                until(lambda: away.stats().last_error)
                assert "all in use" in get("/rows").body
                waiting = gevent.spawn(wait)
                gevent.sleep(0)
                body = get("/rows").body
                waiting.get()
    assert '<b class="tag bad">exhausted</b>' in body
    assert '<b class="tag bad">down</b>' in body
    assert "1 worker, 2 pools: 2 in trouble." in body


def test_a_pool_that_was_closed_is_shown_no_longer() -> None:
    with ConnectionPool(1, connect=Maker(), name="closed soon"):
        key = key_of("closed soon")
        assert "closed soon" in get(f"/rows?open={key}").body
    assert "closed soon" not in get(f"/rows?open={key}").body


def test_metrics_are_those_of_every_worker(run_folder: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with worker("elsewhere") as other, ConnectionPool(3, connect=Maker(), name="here") as pool:
        pool.fill()
        answer = get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = [
        sample
        for family in text_string_to_metric_families(answer.body)
        for sample in family.samples
    ]
    idle = {
        (sample.labels["pool"], sample.labels["pid"]): sample.value
        for sample in samples
        if sample.name == "geventpool_connections" and sample.labels["state"] == "idle"
    }
    assert idle["here", str(os.getpid())] == 3
    assert ("elsewhere", str(other.pid)) in idle


# Ready


def test_it_is_ready_once_the_pools_are_filled() -> None:
    opening = gevent.event.Event()

    def connect() -> object:
        opening.wait()
        return object()

    with ConnectionPool(2, connect=connect, name="filling") as pool:
        gevent.sleep(0)
        answer = get("/ready")
        assert (answer.status, answer.body) == (503, "not ready: 'filling'\n")
        opening.set()
        pool.fill()
        assert get("/ready")[0] == 200
        with pool.get() as conn:
            pool.discard(conn)
            opening.clear()
            assert get("/ready").status == 200, "one that is replaced is no reason"
        opening.set()


def test_it_is_not_ready_while_the_server_is_away() -> None:
    with EchoServer() as server, ConnectionPool(1, connect=SocketFactory(server.address)) as pool:
        pool.fill()
        assert get("/ready").status == 200
        server.stop()
        until(lambda: pool.stats().last_error)
        assert get("/ready").status == 503


def test_one_that_opens_on_demand_can_come_back_from_an_outage() -> None:
    """Were it not ready until a dial succeeds, nobody would be sent to it, and none would dial."""

    def use() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire(timeout=0.2)

    with closed_port() as dead:
        with ConnectionPool(1, min_size=0, connect=SocketFactory(dead)) as pool:
            assert get("/ready").status == 200
            waiting = gevent.spawn(use)
            until(lambda: pool.stats().last_error)
            assert get("/ready").status == 503
            waiting.get()
            assert get("/ready").status == 200


# Of all workers


@pytest.mark.slow
def test_all_workers_are_shown_a_silent_one_after_a_second(run_folder: Path) -> None:
    page = StatusPage(timeout=0.3)
    with worker("of another") as other, worker("busy", HANG) as busy:
        until(lambda: "of another" in get("/rows", page).body)
        body = get("/rows", page).body
        found = {each["pid"]: each for each in json.loads(get("/pools.json", page).body)["workers"]}
    assert f"worker {other.pid}" in body
    assert f"worker {busy.pid}" in body
    assert "it did not answer within 0.3 s" in body
    assert "1 of the workers silent" in body
    assert found[busy.pid]["pools"] is None
    assert [pool["name"] for pool in found[other.pid]["pools"]] == ["of another"]


def test_the_holders_of_another_worker_are_shown_when_asked_for(run_folder: Path) -> None:
    hold = "\ndef a_request():\n    with pool.get():\n        gevent.sleep(60)\n"
    with worker("other", hold + "gevent.spawn(a_request)\ngevent.wait()") as other:
        shown = json.loads(get("/pools.json?holders=none").body)["workers"]
        (pool,) = next(each for each in shown if each["pid"] == other.pid)["pools"]
        until(lambda: "a_request" in get(f"/rows?open={pool['key']}").body)
        assert pool["holders"] == []
        assert "a_request" not in get("/rows").body
