"""Takes the pictures of the status page in docs/ anew: ``python .ci/screenshots.py``, two minutes.

Needs chromium and chromedriver, the extra ``test``, and Pillow.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gevent
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.browser import browser  # noqa: E402

# Paths of the machine on which it is taken are of no interest.
_SHORTEN = """
for (const stack of document.querySelectorAll("pre"))
  stack.textContent = stack.textContent.replaceAll(arguments[0], "/srv/app/")
    .replaceAll(arguments[1], "/srv/lib/gevent");
"""
FILLED = 70  # seconds until the charts of a minute are


def picture(page: Any, name: str, scheme: str, width: int, height: int, opened: str = "") -> None:
    """The page as a file in docs/, with that pool open."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.refresh()
    for row in page.find_elements("css selector", ".pool") if opened else ():
        if row.find_element("css selector", ".name").text == opened:
            row.find_element("css selector", "summary").click()
            time.sleep(2)
            page.execute_script("document.querySelector('.holder summary').click()")
            page.find_element("id", "pause").click()  # else its holder may be gone in a moment
            page.execute_script(_SHORTEN, f"{ROOT}/examples/", gevent.__path__[0])
    time.sleep(1)
    file = ROOT / "docs" / name
    page.save_screenshot(str(file))
    with Image.open(file) as taken:
        few = taken.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Have the example run, and look at its page."""
    command = [sys.executable, str(ROOT / "examples" / "status_page.py"), "--seconds", "120"]
    example: Any = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    try:
        url = example.stdout.readline().strip()
        time.sleep(FILLED)
        with tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as page:
            page.get(url)
            picture(page, "page-light.png", "light", 1200, 700, opened="search")
            picture(page, "page-dark.png", "dark", 1200, 420)
            picture(page, "page-phone.png", "light", 390, 700)
    finally:
        example.kill()
        example.wait()


if __name__ == "__main__":
    main()
