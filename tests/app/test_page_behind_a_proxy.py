"""The page below a path of a proxy: everything that it loads, sends and offers is below that path."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from small_page import SLOW, chromium, draw, page_of
from small_proxy import proxy

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "kept"])
def test_the_page_works_below_a_path(vines: Path, tmp_path: Path, strips: bool) -> None:
    with page_of([vines], root_path="/plants/cultivars") as direct, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with proxy(direct, "/plants/cultivars", strips) as address:
            use(browser.new_page(), address, draw(tmp_path / "leaf.png", 1, 3))
        browser.close()


def use(page: Page, address: str, photo: Path) -> None:
    page.set_default_timeout(SLOW)
    strangers: list[str] = []
    page.on("request", lambda r: strangers.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None)
    page.goto(address)
    expect(page.locator("#answer .empty")).to_be_visible()
    page.locator("#photo input[type=file]").set_input_files(photo)
    expect(page.locator("#answer .said")).to_be_visible()
    page.locator("#why").click()
    expect(page.locator("#reasons figure").first).to_be_visible()
    with page.expect_download() as download:
        page.locator("#figure").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.goto(page.get_by_role("link", name="For programs").evaluate("link => link.href"))
    expect(page.locator("h1")).to_contain_text("for programs")
    page.get_by_text("openapi.json").click()
    expect(page.locator("body")).to_contain_text('"/v1/predict"')
    assert strangers == [f"{address.removesuffix('plants/cultivars/')}manifest.json"] * len(strangers)  # Gradio's own
    page.close()
