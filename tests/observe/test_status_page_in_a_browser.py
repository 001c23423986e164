"""The status page in a real browser: it updates itself, and everybody can use it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import PageProcess, axe_source, browser, eventually
from support.workers import worker

# The driver's sockets are its own to close, and it closes them late.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.may_leak,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

POOLS = """
def a_request_that_hangs(pool):
    with pool.get():
        gevent.sleep(1000)
def open_pools(count):
    for number in range(count):
        pool = pools.setdefault(number, ConnectionPool(2, connect=object, name=f"pool {number}"))
        pool.fill()
pools = {}
open_pools(3)
gevent.spawn(a_request_that_hangs, pools[0])
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))


@pytest.fixture
def process(run_folder: Path) -> Iterator[PageProcess]:
    with PageProcess() as running:
        running.do(POOLS)
        yield running


@pytest.fixture
def page(chromium: Any, process: PageProcess) -> Iterator[Any]:
    """The page, loaded; nothing may be on the browser's console in the end."""
    chromium.get_log("browser")
    chromium.get(process.url)
    yield chromium
    said = [each for each in chromium.get_log("browser") if "rows?" not in each["message"]]
    assert said == []


def run(page: Any, code: str, *words: Any) -> Any:
    return page.execute_script(f"return {code}", *words)


def text(page: Any) -> str:
    return str(run(page, "document.body.innerText"))


def open_row(page: Any, name: str) -> Any:
    """Click on the row of that pool, and wait for what is inside."""
    rows, its_name = "document.querySelectorAll('.pool')", "row.querySelector('.name').textContent"
    find = f"[...{rows}].find(row => {its_name} === arguments[0])"
    row = eventually(lambda: run(page, find, name), f"a row of {name!r}")
    row.find_element("css selector", "summary").click()
    eventually(lambda: run(page, "!!arguments[0].querySelector('h3')", row), "what is inside")
    return row


def test_it_loads_and_updates_itself(page: Any, process: PageProcess) -> None:
    assert "1 worker, 3 pools" in text(page)
    process.do("open_pools(4)")
    eventually(lambda: "pool 3" in text(page), "the new pool")
    assert "1 worker, 4 pools" in text(page)


def test_trouble_is_said_in_words_without_a_reload(page: Any, process: PageProcess) -> None:
    assert "exhausted" not in text(page)
    process.do("for _ in range(2):\n gevent.spawn(a_request_that_hangs, pools[0])\ngevent.sleep(0)")
    eventually(lambda: "exhausted" in text(page), "the trouble")
    assert "in trouble" in text(page)


def test_a_click_opens_who_holds_what_and_an_update_leaves_it_open(
    page: Any, process: PageProcess
) -> None:
    row = open_row(page, "pool 0")
    assert "Holders (1)" in row.text
    holder = row.find_element("css selector", ".holder summary")
    holder.click()
    assert "a_request_that_hangs" in row.find_element("css selector", ".holder pre").text
    process.do("gevent.spawn(a_request_that_hangs, pools[0])")
    eventually(lambda: "Holders (2)" in row.text, "the second holder")
    assert row.find_element("css selector", ".holder pre").is_displayed()
    assert run(page, "document.activeElement === arguments[0]", holder), "the focus has moved"


def test_the_keyboard_is_enough(page: Any) -> None:
    row = eventually(lambda: page.find_elements("css selector", ".pool"), "a row")[0]
    run(page, "arguments[0].querySelector('summary').focus()", row)
    page.switch_to.active_element.send_keys("\n")
    eventually(lambda: "Holders (1)" in row.text, "what is inside")
    page.switch_to.active_element.send_keys("\n")
    eventually(lambda: "Holders (1)" not in row.text, "the end of it")


def test_a_pool_that_is_closed_leaves_and_the_others_stay(page: Any, process: PageProcess) -> None:
    open_row(page, "pool 1")
    stays = open_row(page, "pool 0")
    process.do("pools.pop(1).close()")
    eventually(lambda: "pool 1" not in text(page), "its end")
    assert "Holders (1)" in stays.text
    assert "2 pools" in text(page)


def test_a_worker_that_is_killed_leaves(page: Any) -> None:
    with worker("of a worker") as killed:
        eventually(lambda: f"worker {killed.pid}" in text(page), "the worker")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        eventually(lambda: f"worker {killed.pid}" not in text(page), "its end")
    assert "1 worker, 3 pools" in text(page)


def test_a_worker_that_hangs_is_said_to_be_silent(page: Any) -> None:
    with worker("that hangs") as stopped:
        eventually(lambda: "that hangs" in text(page), "the worker")
        stopped.send_signal(signal.SIGSTOP)
        eventually(lambda: "it did not answer within 1 s" in text(page), "its silence")
        assert "1 of the workers silent" in text(page)
        stopped.send_signal(signal.SIGCONT)
        eventually(lambda: "that hangs" in text(page), "its return")


def test_when_nothing_answers_the_page_says_how_old_it_is(chromium: Any, run_folder: Path) -> None:
    with PageProcess() as process:
        process.do(POOLS)
        chromium.get(process.url)
        os.kill(process.pid, signal.SIGSTOP)
        eventually(lambda: "No answer for" in text(chromium), "a word on the silence")
        assert "pool 0" in text(chromium)
        os.kill(process.pid, signal.SIGCONT)
        eventually(lambda: "No answer for" not in text(chromium), "the end of that")


def test_it_can_be_made_to_stand_still(page: Any, process: PageProcess) -> None:
    page.find_element("id", "pause").click()
    process.do("open_pools(4)")
    asked = "performance.getEntriesByType('resource').length"
    before = run(page, asked)
    page.execute_async_script("setTimeout(arguments[0], 2500)")
    assert run(page, asked) <= before + 1  # one may have been under way
    assert "pool 3" not in text(page)
    page.find_element("id", "pause").click()
    eventually(lambda: "pool 3" in text(page), "the new pool")


def test_two_hundred_pools_are_shown(page: Any, process: PageProcess) -> None:
    process.do("open_pools(200)")
    eventually(lambda: "1 worker, 200 pools" in text(page), "all of them")
    row = open_row(page, "pool 199")
    process.do("gevent.spawn(a_request_that_hangs, pools[199])")
    eventually(lambda: "Holders (1)" in row.text, "an update")
    process.do("late = time.monotonic(); gevent.sleep(0.01); late = time.monotonic() - late - 0.01")
    process.do("assert late < 0.5, late")


def test_a_name_that_is_a_script_is_not_run(page: Any, process: PageProcess) -> None:
    process.do('evil = ConnectionPool(1, connect=object, name="<script>document.title=7</script>")')
    eventually(lambda: "<script>document.title=7</script>" in text(page), "its name")
    open_row(page, "<script>document.title=7</script>")
    page.refresh()
    eventually(lambda: "<script>document.title=7</script>" in text(page), "its name")
    assert page.title == "Pools"
    assert run(page, "document.scripts.length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(
    page: Any, process: PageProcess, axe: str, scheme: str, width: int
) -> None:
    process.do(
        "for _ in range(3):\n gevent.spawn(a_request_that_hangs, pools[0])\n"
        "reserved = closed_port(); dead = reserved.__enter__()\n"
        "away = ConnectionPool(1, connect=SocketFactory(dead), name='away')\n"
        "manager = ConnectionManager(name='servers')\n"
        "for _ in range(5):\n"
        "  try: manager.get_connection(dead)\n"
        "  except OSError: pass\n"
    )
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    try:
        for name in ("pool 0", "pool 1", "away", "servers"):
            open_row(page, name)
        page.find_element("css selector", ".holder summary").click()
        assert {"exhausted", "down"} <= set(text(page).split("\n"))
        assert run(page, "document.body.scrollWidth <= innerWidth"), "it is wider than the screen"
        # The page's own policy forbids what it did not bring along; so does a driver not care.
        page.execute_script(axe)
        found = page.execute_async_script("axe.run().then(arguments[0])")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found["passes"]) > 20
    assert [
        (each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]
    ] == []


def test_without_javascript_it_reloads_and_a_link_opens_a_row(
    process: PageProcess, tmp_path: Path
) -> None:
    from selenium.common.exceptions import StaleElementReferenceException

    off = {"profile.managed_default_content_settings.javascript": 2}
    with browser(tmp_path / "chromium", preferences=off) as page:
        page.get(process.url)
        page.find_element("css selector", "summary").click()
        page.find_element("link text", "Show who holds what").click()

        def says(text: str) -> bool:
            try:
                return text in page.find_element("tag name", "body").text
            except StaleElementReferenceException:  # it was loaded again in between
                return False

        eventually(lambda: says("Holders (1)"), "the row to be open")
        process.do("gevent.spawn(a_request_that_hangs, pools[0])")

        eventually(lambda: says("Holders (2)"), "the page to be loaded again")
