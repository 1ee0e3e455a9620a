"""The ways in which a photograph comes to the page: dropped, pasted, and taken with the camera."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from small_page import SLOW, chromium, draw

pytestmark = pytest.mark.slow

FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DROP = """data => {
    const carried = new DataTransfer(), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    carried.items.add(new File([bytes], 'leaf.png', {type: 'image/png'}));
    return carried;
}"""
COPY = """async data => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    await navigator.clipboard.write([new ClipboardItem({'image/png': new Blob([bytes], {type: 'image/png'})})]);
}"""


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *FAKE_CAMERA])
        context = browser.new_context(permissions=["camera", "clipboard-read", "clipboard-write"])
        found = context.new_page()
        found.set_default_timeout(SLOW)
        yield found
        browser.close()


@pytest.fixture
def fresh(page: Page, address: str) -> Page:
    page.goto(address)
    expect(page.locator("#answer .empty")).to_be_visible()
    return page


@pytest.fixture
def leaf(tmp_path: Path) -> str:
    return base64.b64encode(draw(tmp_path / "leaf.png", 1, 3).read_bytes()).decode()


def test_dropped(fresh: Page, leaf: str) -> None:
    fresh.locator("#photo button").first.dispatch_event("drop", {"dataTransfer": fresh.evaluate_handle(DROP, leaf)})
    expect(fresh.locator("#answer .said")).to_be_visible()


def test_pasted(fresh: Page, leaf: str) -> None:
    fresh.evaluate(COPY, leaf)
    fresh.locator("#photo").get_by_role("button", name="Paste from clipboard").click()
    expect(fresh.locator("#answer .said")).to_be_visible()


def test_taken_with_the_camera(fresh: Page) -> None:
    fresh.locator("#photo").get_by_role("button", name="Capture from camera").click()
    fresh.get_by_text("Click to Access Webcam").click()
    filming = "document.querySelector('#photo video')?.videoWidth > 0"  # else there is nothing to take
    fresh.wait_for_function(filming)
    fresh.get_by_role("button", name="capture photo").click()
    expect(fresh.locator("#answer .said")).to_be_visible()
