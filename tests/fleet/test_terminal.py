"""``python -m geventpool fleet``: what a store knows of a cap, in a terminal."""

from __future__ import annotations

import uuid

import pytest

from geventpool.__main__ import main
from geventpool.fleet.share import Report
from support.servers import closed_port, require_server


def test_the_processes_that_share_a_cap_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from geventpool.fleet.redis import RedisStore

    url = "redis://{}:{}/0".format(*require_server("redis"))
    store, name = RedisStore(url), uuid.uuid4().hex
    try:
        store.renew(Report(name, 10, "host-1", used=3, has=4, needs=3, wants=4))
        store.renew(Report(name, 10, "host-2", used=1, has=2, needs=1, wants=2))
        assert main(["fleet", url, name]) == 0
        headings = ["process", "share", "used", "needs", "wants", "floor", "generation", "age"]
        heading, one, other, total = capsys.readouterr().out.splitlines()
        assert heading.split() == headings
        assert one.split()[:7] == ["host-1", "4", "3", "3", "4", "1", "0"]
        assert other.split()[:7] == ["host-2", "2", "1", "1", "2", "1", "0"]
        assert total == "2 processes, 4 connections used, 6 counted under the cap"
    finally:
        store.client.delete(store.prefix + name)
        store.client.close()


def test_a_name_that_is_not_known_and_a_store_that_is_away_are_told_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "redis://{}:{}/0".format(*require_server("redis"))
    assert main(["fleet", url, uuid.uuid4().hex]) == 1
    assert "nothing is known" in capsys.readouterr().err
    with closed_port() as (host, port):
        assert main(["fleet", f"redis://{host}:{port}/0", "db"]) == 2
    assert "refused" in capsys.readouterr().err
