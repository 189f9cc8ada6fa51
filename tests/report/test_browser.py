"""The page of a run in a real browser."""

import shutil
from pathlib import Path

import pytest

from auxin.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_section(grown_run: Path, tmp_path: Path, width: int, scheme: str) -> None:
    page_file = write_report(shutil.copytree(grown_run, tmp_path / "run"))
    said: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else said.append(r.url))
        page.goto(page_file.as_uri())
        for name in ("headline", "growth", "learning", "ladder", "similarity", "events", "gradcam", "setup"):
            assert page.locator(f"section#{name}").is_visible(), name
        visible = [figure for figure in page.locator("svg.plot").all() if figure.is_visible()]
        assert len(visible) == 7  # of the figures with a variant for phones, one each
        assert all(figure.bounding_box()["width"] <= width for figure in visible)
        pictures = page.locator("#gradcam img").all()
        assert all(picture.evaluate("image => image.naturalWidth") > 0 for picture in pictures)
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways for
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.querySelector('svg.plot text')).fill")
        bright = [sum(map(float, colour[4:-1].split(","))) / 3 for colour in (paper, ink)]
        assert (bright[0] > bright[1]) == (scheme == "light")
        browser.close()
    assert said == []
