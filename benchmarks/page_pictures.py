"""Takes the screenshots of the page for the manual, in Chromium.

python benchmarks/page_pictures.py runs/vines runs/plain --photo leaf.jpg --batch photos/test/*/*1.jpg
"""

from __future__ import annotations

import argparse
import io
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from clca.app import create_app
from clca.serve import ServeSettings
from clca.serve.server import listen, make_server

SLOW = 120_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--photo", required=True)
    parser.add_argument("--batch", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    app = create_app(options.runs, ServeSettings(precision="no", local=True))
    listening, ready = listen("127.0.0.1", 0), threading.Event()
    server = make_server(app, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    ready.wait()
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
            at = f"http://127.0.0.1:{listening.getsockname()[1]}"
            wide = browser.new_page(viewport={"width": 1120, "height": 800})
            phone = browser.new_page(viewport={"width": 390, "height": 844})
            for page in (wide, phone):
                page.set_default_timeout(SLOW)
                page.goto(at)
                page.set_input_files("#photo input[type=file]", options.photo)
                page.wait_for_selector("#stages figure")
            take(phone, options.out / "page-phone.webp")
            wide.click("#why")
            wide.wait_for_selector("#reasons figure")
            take(wide, options.out / "page-identify.webp", whole=True)
            if options.batch:
                wide.get_by_role("tab", name="Many").click()
                wide.set_input_files("#files input[type=file]", options.batch)
                wide.wait_for_timeout(2000)
                wide.click("#identify-all")
                wide.wait_for_selector("#download")
                take(wide, options.out / "page-batch.webp", whole=True)
            wide.get_by_role("tab", name="How good").click()
            wide.wait_for_selector("#evaluation table")
            take(wide, options.out / "page-evaluation.webp", whole=True)
            browser.close()
    finally:
        server.handle_exit(15)
        thread.join()


def take(page: Page, path: Path, whole: bool = False) -> None:
    """Save a screenshot of the window, or of the whole page."""
    page.wait_for_timeout(800)
    page.mouse.move(0, 0)
    picture = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    picture.save(path, quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
