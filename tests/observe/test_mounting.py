"""The status page within Flask, within Django, and in gunicorn's workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent import socket

from geventpool import ConnectionPool, observe
from support import ROOT
from support.browser import eventually
from support.objects import Maker
from support.status_page import get

pytestmark = pytest.mark.usefixtures("run_folder")


def test_flask_serves_it_beside_its_own_pages() -> None:
    import flask

    app = flask.Flask("site")
    app.add_url_rule("/", "home", lambda: "home")
    app.wsgi_app = observe.mount(app.wsgi_app, "/-/pools")  # type: ignore[assignment, arg-type]
    with ConnectionPool(1, connect=Maker(), name="of the site"):
        client = app.test_client()
        assert client.get("/").text == "home"
        assert client.get("/-/pools").location == "pools/"
        assert "of the site" in client.get("/-/pools/").text
        assert client.post("/-/pools/").status_code == 405
    assert client.get("/-/pools/", environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code == 403


DJANGO = """
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from geventpool import ConnectionPool, observe
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
urlpatterns = [path("", lambda request: HttpResponse("home"))]
pool = ConnectionPool(1, connect=object, name="of the site")
application = observe.mount(get_wsgi_application(), "/-/pools")
"""


@pytest.mark.filterwarnings("default")  # Django's own
def test_django_serves_it_beside_its_own_pages(tmp_path: Path) -> None:
    (tmp_path / "site_of_django.py").write_text(DJANGO)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from site_of_django import application
from support.status_page import get
assert get("/", application).body == "home"
assert "of the site" in get("/-/pools/", application).body
"""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environ = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, env=environ, check=True, timeout=60)


def test_it_is_an_application_by_itself() -> None:
    assert "<h1>Pools</h1>" in get("/", observe.app).body


APPLICATION = """
from geventpool import ConnectionPool
from geventpool.observe import app as application  # noqa: F401
pool = ConnectionPool(2, connect=object, name="of a worker")
"""


@contextmanager
def gunicorn(folder: Path) -> Iterator[str]:
    """Two workers with a pool and the page; where they are."""
    (folder / "site_of_gunicorn.py").write_text(APPLICATION)
    conf = ROOT / "examples" / "gunicorn.conf.py"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "-c", str(conf), "--no-control-socket"]
        command += ["--bind", f"fd://{fd}", "--log-level", "error", "--chdir", str(folder)]
        process = subprocess.Popen(
            [*command, "site_of_gunicorn"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[fd],
        )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=60)


def workers_at(url: str) -> dict[int, Any]:
    with urllib.request.urlopen(url + "pools.json", timeout=30) as reply:
        return {worker["pid"]: worker["pools"] for worker in json.load(reply)["workers"]}


@pytest.mark.slow
@pytest.mark.may_leak  # urllib's sockets, in a patched process
def test_each_worker_of_a_gunicorn_is_shown_by_whichever_answers(tmp_path: Path) -> None:
    def shown() -> dict[int, Any]:
        return workers_at(url)

    with gunicorn(tmp_path) as url:
        eventually(lambda: len(shown()) == 2, "two workers")
        first, second = shown()
        for _ in range(10):
            assert shown().keys() == {first, second}
        assert [pool["name"] for pool in shown()[first]] == ["of a worker"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: first not in shown(), "the end of one")
        eventually(lambda: len(shown()) == 2, "another in its place")
        assert second in shown()
        with urllib.request.urlopen(url + "ready", timeout=30) as reply:
            assert reply.read() == b"ready\n"
