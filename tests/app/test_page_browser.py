"""The page in a real browser: what a person sees, presses and gets."""

import csv
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright
from small_page import CLASSES, SLOW, chromium, draw, page_of

import clca
from clca.app import PageSettings, identify_tab
from clca.serve.served_model import ServedModel

pytestmark = pytest.mark.slow

DESK, TABLET, PHONE = (1280, 900), (820, 1100), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page, and says at the end whether it asked anyone else, or complained."""
    contexts, strangers, complaints = [], [], []

    def open_(size: tuple[int, int] = DESK, at: str = address, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.on("request", lambda r: strangers.append(r.url) if not r.url.startswith((at, "data:", "blob:")) else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(at)
        expect(page.locator("#answer .empty")).to_be_visible()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert strangers == []
    assert complaints == []


def give(page: Page, photo: Path | dict[str, Any], where: str = "photo") -> None:
    page.locator(f"#{where} input[type=file]").set_input_files(photo)


def said(page: Page, where: str = "answer") -> tuple[str, float]:
    """The class and the share that an answer begins with."""
    found = page.locator(f"#{where} .said")
    expect(found).to_be_visible()
    return found.locator("strong").inner_text(), float(found.locator("span").inner_text().rstrip("%"))


def shares(page: Page, where: str = "answer") -> dict[str, float]:
    rows = page.locator(f"#{where} li .name")
    texts = [rows.nth(k).locator("span").all_inner_texts() for k in range(rows.count())]
    return {name: 0.0 if "<" in share else float(share.rstrip("%")) for name, share in texts}


def alone(vines: Path, photo: Path, keep_rate: float | None = None) -> dict[str, float]:
    """What the model says by itself, in percent, as `clca predict` would."""
    model = clca.from_pretrained(vines)
    if keep_rate is not None:
        model.keep_rate = keep_rate
    (found,) = clca.predict(model, [photo], device="cpu", precision="no", top_k=len(CLASSES))
    return dict(zip(found.classes, (100 * p for p in found.probabilities), strict=True))


def equal(shown: dict[str, float], expected: dict[str, float]) -> bool:
    return shown.keys() == expected.keys() and all(abs(shown[name] - expected[name]) < 0.051 for name in shown)


def test_a_photograph_is_answered_as_the_model_alone_answers_it(
    open_page: Callable[..., Page], vines: Path, tmp_path: Path
) -> None:
    page = open_page()
    for label in range(3):  # the answer changes with the photograph
        photo = draw(tmp_path / f"{label}.png", label, 7 + label)
        expected = alone(vines, photo)
        if label:
            page.locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
            expect(page.locator("#answer .empty")).to_be_visible()
        give(page, photo)
        name, share = said(page)
        best = max(expected, key=expected.__getitem__)
        assert (name, share) == (best, pytest.approx(expected[best], abs=0.51))  # <b> is a name, not HTML
        assert equal(shares(page), expected)
    examples = page.locator("#answer .examples img")
    assert examples.count() == 9
    assert all(examples.nth(k).get_attribute("src").startswith("data:image/") for k in range(9))  # type: ignore[union-attr]
    expect(page.locator("#stages figure")).to_have_count(2)
    stage = re.compile(r"After block 1: \d+ tokens, \d+ of 16 patches")
    expect(page.locator("#stages figcaption").first).to_have_text(stage)


def test_the_slider_runs_the_model_again_and_tells_accuracy_cost_and_time(
    open_page: Callable[..., Page], vines: Path, tmp_path: Path
) -> None:
    page = open_page()
    photo = draw(tmp_path / "leaf.png", 1, 3)
    give(page, photo)
    said(page)
    stored = {
        each["keep_rate"]: each["top1"]
        for each in (json.loads(p.read_text()) for p in (vines / "evaluation").glob("*/evaluation.json"))
    }
    assert set(stored) == {0.25, 0.5, 1.0}
    number = page.locator("#rate input[type=number]")
    costs = {}
    for rate in (0.5, 0.25, 1.0):
        number.fill(str(rate))
        number.press("Enter")
        expect(page.locator("#price")).to_contain_text("of 12 test photographs at this share")
        expected = alone(vines, photo, rate)
        for _ in range(100):  # the answer before may have the same first figure
            if equal(shares(page), expected):
                break
            page.wait_for_timeout(100)
        assert equal(shares(page), expected)
        text = page.locator("#price").inner_text()
        assert f"{100 * stored[rate]:.1f}%" in text
        costs[rate] = float(re.search(r"([\d.e-]+) GMACs", text).group(1))  # type: ignore[union-attr]
        assert re.search(r"[\d.]+ ms", text)
    assert costs[0.25] < costs[0.5] < costs[1.0]
    number.fill("0.4")
    number.press("Enter")
    expect(page.locator("#price")).to_contain_text("at 25% and 50%, the nearest that were evaluated")
    # With the keyboard alone: the arrows move the slider.
    page.locator("#rate input[type=range]").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(number).to_have_value("0.5")
    expect(page.locator("#price")).to_contain_text("of 12 test photographs at this share")


def test_it_says_what_decided_and_gives_the_figure(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    give(page, draw(tmp_path / "leaf.png", 2, 4))
    name, _ = said(page)
    page.locator("#why").click()
    figures = page.locator("#reasons figure")
    expect(figures.first).to_be_visible()
    assert f"Evidence for {name}" in figures.first.inner_text()
    assert figures.count() == 1 + 3  # attention at two locations and the last block
    expect(page.locator("#reasons .bar")).to_have_count(3)
    with page.expect_download() as download:
        page.locator("#figure").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    page.locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    expect(page.locator("#reasons figure")).to_have_count(0)  # of another photograph


HOSTILE = [
    ("leaf.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "SVG"),
    ("leaf.png", b"<!doctype html><script>alert(1)</script>", "HTML"),
    ("leaf.jpg", b"", "empty"),
    ("leaf.webp", b"\xff\xd8\xff\xe0" + b"0" * 100, "damaged"),
    ("<img src=x onerror=alert(1)>.png", b"not an image", "text"),
]


@pytest.mark.parametrize(("name", "content", "told"), HOSTILE)
def test_what_is_no_photograph_is_refused_with_its_reason(
    open_page: Callable[..., Page], tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    page = open_page()
    give(page, {"name": name, "mimeType": "image/png", "buffer": content})
    problem = page.locator("#answer [role=alert]")
    expect(problem).to_contain_text(re.compile(f"cannot be read.*{told}", re.I))
    give_again = draw(tmp_path / "leaf.png", 0, 1)
    page.locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
    give(page, give_again)
    said(page)  # the page goes on


def test_a_bomb_is_refused_before_it_is_unpacked(open_page: Callable[..., Page]) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 30_000
    rows = zlib.compress(bytes(1 + size * 3) * 100)
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    page = open_page()
    give(page, {"name": "leaf.png", "mimeType": "image/png", "buffer": bomb})
    expect(page.locator("#answer [role=alert]")).to_contain_text("million pixels")


def test_two_models_answer_side_by_side(open_page: Callable[..., Page], vines: Path, tmp_path: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Compare").click()
    photo = draw(tmp_path / "leaf.png", 1, 5)
    give(page, photo, "compare-photo")
    said(page, "left-answer")
    said(page, "right-answer")
    number = page.locator("#right-rate input[type=number]")
    number.fill("1")
    number.press("Enter")
    expect(page.locator("#right-price")).to_contain_text("every patch is kept")
    page.wait_for_timeout(500)
    assert equal(shares(page, "left-answer"), alone(vines, photo))
    assert equal(shares(page, "right-answer"), alone(vines, photo, 1.0))


def zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_a_batch_gives_a_table_with_a_row_for_each_file(
    open_page: Callable[..., Page], vines: Path, tmp_path: Path
) -> None:
    photos = [draw(tmp_path / f"{k}.png", k % 3, 20 + k) for k in range(5)]
    inside = {f"folder/{path.name}": path.read_bytes() for path in photos[3:]}
    archive = zipped({**inside, "../../evil.png": photos[0].read_bytes(), "notes.txt": b"hello"})
    page = open_page()
    page.get_by_role("tab", name="Many").click()
    page.locator("#identify-all").click()
    expect(page.locator("#batch-state")).to_contain_text("Choose photographs")
    page.locator("#files input[type=file]").set_input_files(
        [{"name": path.name, "mimeType": "image/png", "buffer": path.read_bytes()} for path in photos[:3]]
        + [{"name": "=cmd().png", "mimeType": "image/png", "buffer": b"<svg/>"},
           {"name": "more.zip", "mimeType": "application/zip", "buffer": archive}]
    )  # fmt: skip
    expect(page.locator("#files td[aria-label='more.zip']")).to_be_visible()
    page.locator("#identify-all").click()
    expect(page.locator("#batch-state")).to_contain_text("5 answered, 3 refused")
    with page.expect_download() as download:
        page.locator("#download").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 8
    for path in photos:
        (row,) = (row for row in rows if row["name"].endswith(path.name) and not row["error"])
        expected = alone(vines, path)
        assert row["class"] == max(expected, key=expected.__getitem__)
        assert 100 * float(row["probability"]) == pytest.approx(expected[row["class"]], abs=0.01)
    refused = [row for row in rows if row["error"]]
    assert not any(row["name"].startswith("=") for row in rows)  # a spreadsheet would compute it
    assert len(refused) == 3
    assert page.locator("#batch-table tbody tr").count() == 8


def test_a_batch_that_is_stopped_keeps_what_it_has_answered(browser: Browser, vines: Path, tmp_path: Path) -> None:
    photos = [draw(tmp_path / f"{number}.png", number % 3, number) for number in range(8)]
    with page_of([vines], max_batch=2) as address, pytest.MonkeyPatch.context() as patch:
        go, answered = threading.Event(), 0
        quick = ServedModel.answers

        def slow(self: ServedModel, rates: Any, images: Any) -> Any:
            nonlocal answered
            if answered >= 2:  # the first two photographs, decoded apart, may come in one call or in two
                assert go.wait(60)
            answered += len(images)
            return quick(self, rates, images)

        patch.setattr(ServedModel, "answers", slow)
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("tab", name="Many").click()
        page.locator("#files input[type=file]").set_input_files(photos)
        page.locator("#identify-all").click()
        rows = page.locator("#batch-table tbody tr")
        expect(rows.first).to_be_visible()
        page.locator("#stop").click()
        expect(page.locator("#batch-state")).to_contain_text("2 of 8")
        expect(page.locator("#identify-all")).to_be_visible()
        go.set()
        with page.expect_download() as download:
            page.locator("#download").click()
        table = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8-sig"))))
        assert [row["name"] for row in table] == ["0.png", "1.png"]
        page.close()


def test_a_zip_with_too_many_files_is_refused(browser: Browser, vines: Path) -> None:
    archive = zipped({f"{k}.png": b"x" for k in range(10_000)})
    with page_of([vines], PageSettings(batch_files=50)) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("tab", name="Many").click()
        upload = {"name": "many.zip", "mimeType": "application/zip", "buffer": archive}
        page.locator("#files input[type=file]").set_input_files(upload)
        expect(page.locator("#files td[aria-label='many.zip']")).to_be_visible()
        page.locator("#identify-all").click()
        expect(page.locator("#batch-state, #batch-table").first).to_contain_text(
            re.compile("many|more than|limit|refused", re.I)
        )
        page.close()


def test_the_evaluation_is_shown(open_page: Callable[..., Page], vines: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="How good").click()
    shown = page.locator("#evaluation")
    expect(shown).to_contain_text("test: 12 photographs of 3 classes")
    assert shown.locator("table").count() == 2  # by keep rate and by class
    assert shown.locator("table").nth(0).locator("tbody tr").count() == 3
    for name in CLASSES:
        expect(shown).to_contain_text(name)


@pytest.mark.parametrize("size", [DESK, TABLET, PHONE], ids=["desk", "tablet", "phone"])
def test_nothing_is_cut_off_at_any_size(open_page: Callable[..., Page], tmp_path: Path, size: tuple[int, int]) -> None:
    page = open_page(size, has_touch=size == PHONE)
    give(page, draw(tmp_path / "leaf.png", 0, 6))
    said(page)
    expect(page.locator("#stages figure")).to_have_count(2)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= size[0]
    answer, photo, price = (page.locator(f"#{name}").bounding_box() for name in ("answer", "photo", "price"))
    assert answer is not None
    assert photo is not None
    assert price is not None
    if size == PHONE:  # below the photograph, before the rest
        assert photo["y"] + photo["height"] <= answer["y"] + 1
        assert answer["y"] + answer["height"] <= price["y"] + 1
    else:
        assert answer["x"] > photo["x"] + photo["width"] - 1


def test_the_page_is_used_with_the_keyboard(open_page: Callable[..., Page], tmp_path: Path) -> None:
    page = open_page()
    page.locator("body").click(position={"x": 2, "y": 2})
    with page.expect_file_chooser() as chooser:
        for _ in range(12):  # to the place where a photograph is chosen
            page.keyboard.press("Tab")
            inside = page.evaluate("!!document.activeElement.closest('#photo')")
            if inside:
                break
        page.keyboard.press("Enter")
    chooser.value.set_files(draw(tmp_path / "leaf.png", 1, 8))
    said(page)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id === 'why' || !!document.activeElement.closest('#why')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#reasons figure").first).to_be_visible()


def test_it_speaks_the_language_of_the_browser(browser: Browser, vines: Path, tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (words / "de.json").write_text(
        json.dumps({"title": "# Welche Sorte ist es?", "no_photo_yet": "Hier steht die Antwort.", "accuracy": "Güte"})
    )
    with page_of([vines], PageSettings(words=words)) as address:
        for locale, title, empty in (
            ("de-AT", "Welche Sorte ist es?", "Hier steht die Antwort."),
            ("en-GB", "Which cultivar is it?", "The answer appears here."),
        ):
            context = browser.new_context(locale=locale)
            page = context.new_page()
            page.goto(address)
            expect(page.locator("#title")).to_have_text(title)
            expect(page.locator("#answer")).to_have_text(empty)
            expect(page.locator("html")).to_have_attribute("lang", locale[:2])
            context.close()


def test_a_browser_is_asked_for_the_token(browser: Browser, vines: Path) -> None:
    token = "0123456789abcdef0123"
    with page_of([vines], token=token) as address:
        for password, answer in ((token, "The answer appears here."), ("guessed", "no_token")):
            context = browser.new_context(http_credentials={"username": "anyone", "password": password})
            page = context.new_page()
            page.goto(address)
            expect(page.locator("body")).to_contain_text(answer)
            context.close()


def test_the_comparison_begins_with_the_photograph_that_is_there(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = open_page()
    give(page, draw(tmp_path / "leaf.png", 1, 5))
    name, _ = said(page)
    page.get_by_role("tab", name="Compare").click()
    assert said(page, "left-answer")[0] == name
    said(page, "right-answer")


def test_a_busy_server_says_so_and_goes_on(browser: Browser, vines: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with page_of([vines], queue=1) as address:
        pages = [browser.new_page() for _ in range(3)]
        for page in pages:
            page.goto(address)
            expect(page.locator("#answer .empty")).to_be_visible()
        photo = draw(tmp_path / "leaf.png", 1, 9)
        for page in pages:
            give(page, photo)
        outcomes = []
        for page in pages:
            expect(page.locator("#answer .said, #answer [role=alert]")).to_be_visible()
            outcomes.append(page.locator("#answer [role=alert]").count())
        assert 0 in outcomes
        give_again = draw(tmp_path / "again.png", 2, 9)
        pages[0].locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).first.click()
        give(pages[0], give_again)
        said(pages[0])
        for page in pages:
            page.close()


def test_a_model_that_is_chosen_answers_at_the_share_that_its_slider_then_says(
    browser: Browser, vines: Path, tmp_path: Path
) -> None:
    other = clca.from_pretrained(vines)
    other.keep_rate = 0.25
    other.save_pretrained(tmp_path / "quarter")
    photo = draw(tmp_path / "leaf.png", 1, 5)
    with page_of([vines, tmp_path / "quarter"]) as address:
        page = browser.new_page()
        page.goto(address)
        give(page, photo)
        said(page)
        expect(page.locator("#stages figcaption").first).to_contain_text("11 tokens")
        choose(page, "model", "quarter")
        expect(page.locator("#rate input[type=number]")).to_have_value("0.25")
        expect(page.locator("#stages figcaption").first).to_contain_text("7 tokens")
        page.get_by_role("tab", name="Compare").click()
        said(page, "left-answer")
        expect(page.locator("#left-stages figcaption").first).to_contain_text("11 tokens")
        choose(page, "left-model", "quarter")
        expect(page.locator("#left-rate input[type=number]")).to_have_value("0.25")
        expect(page.locator("#left-stages figcaption").first).to_contain_text("7 tokens")
        page.close()


def choose(page: Page, where: str, name: str) -> None:
    page.locator(f"#{where} input").click()
    page.get_by_role("option", name=name).locator("visible=true").click()


def test_what_decided_on_an_answer_never_stands_below_another(
    browser: Browser, vines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()
    drawn = identify_tab._draw

    def slowly(found: Any) -> Any:
        begun.set()
        assert go.wait(60)
        try:
            return drawn(found)
        finally:
            ended.set()

    monkeypatch.setattr(identify_tab, "_draw", slowly)
    with page_of([vines]) as address:
        page = browser.new_page()
        page.goto(address)
        give(page, draw(tmp_path / "leaf.png", 1, 5))
        said(page)
        page.locator("#why").click()
        assert begun.wait(60)
        number = page.locator("#rate input[type=number]")
        number.fill("1")
        number.press("Enter")
        expect(page.locator("#price")).to_contain_text("every patch is kept")
        go.set()
        assert ended.wait(60)
        page.wait_for_timeout(1000)  # for what shall not come
        expect(page.locator("#reasons figure")).to_have_count(0)
        page.locator("#why").click()  # and it can be asked again
        expect(page.locator("#reasons figure").first).to_be_visible()
        page.close()
