"""Images from anybody: every bomb is refused or read soon, in little memory, wherever an image can come in."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bombs import FOREIGN, HARMLESS, REFUSED, jpeg_with_exif_that_claims_gigabytes, large_png, noise, plain_ppm, saved
from bounded import bounded, refused, run_clca
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clca.app.settings import PageSettings
from clca.app.upload_parser import page_limits
from clca.app.zip_reader import ArchiveLimits
from clca.data import decoding, image_bounds, images
from clca.data.checks.decode import BadImage, inspect_images
from clca.data.decoding import Decoders
from clca.data.image_formats import EXTENSIONS, FORMATS, UnreadableImage
from clca.data.images import decode_image, read_image
from clca.errors import ClcaError
from clca.models.saving import save_pretrained
from clca.serve import ServeSettings

pytestmark = pytest.mark.slow

ALL = {**FOREIGN, **REFUSED, **HARMLESS}
PIXELS = 50_000_000
KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "BMP", "GIF", "PPM")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every bomb, each under a name that says what it is, with an ending that says something else; and a photograph."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (name, make) in enumerate(ALL.items()):
        (folder / f"{name}{('.jpg', '.png', '.ppm')[number % 3]}").write_bytes(make())
    (folder / "good.jpg").write_bytes(noise("JPEG", (200, 150)))
    return folder


def file_of(folder: Path, name: str) -> Path:
    return next(folder.glob(f"{name}.*"))


# -- Python ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOREIGN)
def test_a_format_that_is_not_read_is_named_with_what_to_do(folder: Path, name: str) -> None:
    path = file_of(folder, name)
    message = refused(read_image, path, PIXELS, cpu_seconds=2, memory_mib=256)
    assert message.startswith(f"{path}: is ")
    assert "convert it to JPEG" in message or "is not an image of a known format" in message or "is text" in message
    assert not Path("/tmp/owned").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_photograph_is_is_refused_soon(folder: Path, name: str) -> None:
    path = file_of(folder, name)
    assert refused(read_image, path, PIXELS, cpu_seconds=2, memory_mib=256).startswith(str(path))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_costs_nothing_may_be_read_and_nothing_else_is_raised(folder: Path, name: str) -> None:
    outcome = bounded(read_image, file_of(folder, name), PIXELS, cpu_seconds=10, memory_mib=1024)
    assert not outcome.error or ClcaError.__name__ in outcome.error, outcome.trace


def test_the_formats_are_those_that_people_photograph_in_and_no_other_is_ever_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pillow's plug-ins of other formats are not even asked to open a file."""
    assert FORMATS == ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "BMP", "GIF", "PPM")
    assert not {".eps", ".jp2", ".psd", ".ico", ".pfm"} & EXTENSIONS
    opened: list[Any] = []
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **named: opened.append(named) or plain(*given, **named))
    for make in ALL.values():
        with pytest.raises(ClcaError) if make in (*FOREIGN.values(), *REFUSED.values()) else _anything():
            decode_image(make(), PIXELS)
    assert all(len(named["formats"]) == 1 and named["formats"][0] in FORMATS for named in opened)
    opened.clear()
    for make in FOREIGN.values():
        with pytest.raises(UnreadableImage) as error:
            decode_image(make(), PIXELS)
        assert error.value.code == "not_an_image"
    assert not opened


class _anything:
    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: Any) -> bool:
        return isinstance(error, ClcaError)


@pytest.mark.parametrize("white", [1, 7, 254, 4095, 65535])
@pytest.mark.parametrize("magic", ["P5", "P6"])
def test_binary_pnm_of_any_white_is_read_as_pillow_reads_it(magic: str, white: int) -> None:
    kind = np.dtype(np.uint8 if white < 256 else ">u2")
    numbers = np.random.default_rng(0).integers(0, white + 1, (20, 30, 3 if magic == "P6" else 1)).astype(kind)
    found, _ = decode_image(f"{magic} 30 20 {white}\n".encode() + numbers.tobytes())
    expected = np.rint(numbers.astype(float) * 255 / white)
    assert np.abs(np.asarray(found).astype(float) - expected).max() <= 1e-6 or white == 65535
    assert np.abs(np.asarray(found).astype(float) - expected).max() <= 0.5


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([noise(kind) for kind in KINDS]),
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "double"]), st.binary(max_size=8)),
             min_size=1, max_size=6),
)  # fmt: skip
@example(noise("JPEG"), [(0.0, "insert", b"")])
def test_a_damaged_file_gives_a_picture_or_a_reason(data: bytes, changes: list[tuple[float, str, bytes]]) -> None:
    for where, what, held in changes:
        place = int(where * len(data))
        if what == "flip":
            data = data[:place] + held + data[place + len(held) :]
        elif what == "cut":
            data = data[:place] + data[place + 1 + len(held) ** 2 :]
        elif what == "insert":
            data = data[:place] + held + data[place:]
        else:
            data = data[:place] + data[place // 2 :]
    reason = None
    try:
        image, kind = decode_image(data, 1_000_000)
    except ClcaError as error:
        reason = str(error)
    if reason is not None:
        assert reason.strip()
        assert "\n" not in reason
    else:
        assert image.mode == "RGB"
        assert kind.split()[0] in FORMATS


# -- processes that can be ended ---------------------------------------------------------------------------------------


def test_an_image_that_takes_too_long_is_given_up_and_the_next_is_read() -> None:
    with Decoders(1, seconds=0.1) as decoders:
        for _ in range(2):
            with pytest.raises(UnreadableImage, match=r"takes longer than 0.1 s to decode: convert it") as error:
                decoders.image(large_png(9000))
            assert error.value.code == "too_slow"
            assert decoders.image(noise("PNG"))[0].size == (24, 16)


def test_slow_images_hold_up_no_quick_one_and_too_many_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clca.data.decoding._SLOW_AFTER", 0.02)
    slow, quick = large_png(9_000), noise("PNG")  # seconds, in which another process starts
    codes: list[str] = []

    def send() -> None:
        try:
            decoders.image(slow)
            codes.append("read")
        except UnreadableImage as error:
            codes.append(error.code)

    with Decoders(1, slow=1) as decoders:
        assert decoders.image(quick)[0].size == (24, 16)
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(send) for _ in range(4)]
            time.sleep(0.3)
            assert decoders.image(quick)[0].size == (24, 16)
        assert all(job.exception() is None for job in jobs)
        assert sorted(codes)[:1] == ["busy"]
        assert "read" in codes


def test_an_image_beyond_the_memory_is_refused_and_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clca.data.decoding._MIN_BYTES", 64 << 20)
    monkeypatch.setattr("clca.data.decoding._BYTES_PER_PIXEL", 0)
    with Decoders(1) as decoders:
        with pytest.raises(UnreadableImage, match="not enough memory"):
            decoders.image(large_png(9000))
        assert decoders.image(noise("PNG"))[0].size == (24, 16)


def test_a_decoder_that_dies_takes_no_one_with_it() -> None:
    with Decoders(1) as decoders:
        decoders.image(noise("PNG"))
        process = decoders._idle[0]._process
        timer = threading.Timer(0.05, os.kill, (process.pid, signal.SIGSEGV))
        timer.start()
        with pytest.raises(UnreadableImage, match=r"its decoder failed \(SIGSEGV\)"):
            decoders.image(large_png(9_000))
        assert decoders.image(noise("PNG"))[0].size == (24, 16)
        assert process.poll() == -signal.SIGSEGV


def test_processes_end_with_the_block_that_has_them() -> None:
    with Decoders(2) as decoders:
        decoders.image(noise("PNG"))
        processes = [each._process for each in decoders._idle]
    assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)


def test_what_a_process_gives_is_what_is_read_here(tmp_path: Path) -> None:
    with Decoders(1) as decoders:
        for kind in KINDS:
            (tmp_path / "photo").write_bytes(noise(kind))
            here = read_image(tmp_path / "photo")
            for source in (tmp_path / "photo", noise(kind)):
                assert decoders.image(source)[0].tobytes() == here.tobytes()
        with pytest.raises(ClcaError) as error:
            decoders.image(tmp_path / "gone")
        assert str(error.value) == "no such file"


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small_endpoint import tiny_model

    path = tmp_path_factory.mktemp("model") / "tiny"
    save_pretrained(tiny_model(), path)
    return path


def test_predict_answers_the_photograph_among_the_bombs(folder: Path, saved_model: Path) -> None:
    arguments = ("predict", str(saved_model), str(folder), "--format", "jsonl", "--device", "cpu")
    outcome = bounded(run_clca, *arguments, memory_mib=4096, cpu_seconds=60)
    assert not outcome.error, outcome.trace
    code, out, err = outcome.value
    assert code == 1
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == sorted(map(str, folder.iterdir()))
    assert all(bool(row["top"]) == (row["error"] is None) for row in rows)
    answered = {Path(row["path"]).stem for row in rows if row["top"]}
    assert "good" in answered
    assert answered <= {"good", *HARMLESS}
    lines = [line for line in err.splitlines() if line.startswith(f"clca: {folder}")]
    named = {Path(line.removeprefix("clca: ").split(": ")[0]).stem for line in lines}
    assert named | answered == {"good", *ALL}
    assert len(lines) == len(named)
    assert not named & answered


def test_data_check_names_every_bomb(folder: Path) -> None:
    found = inspect_images(sorted(folder.iterdir()), workers=2, progress=False)
    bad = {one.path.stem for one in found if isinstance(one, BadImage)}
    assert {*FOREIGN, *REFUSED} <= bad
    assert "good" not in bad
    assert all("\n" not in one.reason and str(folder) not in one.reason for one in found if isinstance(one, BadImage))


# -- the endpoint and the page -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from small_endpoint import make_app, running

    with running(make_app(decode_seconds=1.0)) as (address, _):
        yield address


def test_the_endpoint_refuses_each_and_goes_on(address: str, folder: Path) -> None:
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        for name in ALL:
            answer = client.post("/v1/predict", content=file_of(folder, name).read_bytes())
            if answer.status_code == 200 and name in HARMLESS:
                continue
            error = answer.json()["error"]
            assert answer.status_code in (413, 415, 422), (name, error)
            assert "/tmp" not in error["message"]
        assert client.post("/v1/predict", content=noise("JPEG")).status_code == 200


@pytest.mark.parametrize(
    "make", [plain_ppm, jpeg_with_exif_that_claims_gigabytes, lambda: large_png(7_000),
             lambda: saved("JPEG", (4_000, 4_000), progressive=True)],
    ids=["plain PPM", "EXIF", "large PNG", "large JPEG"],
)  # fmt: skip
def test_four_at_once_keep_no_other_client_waiting(address: str, make: Callable[[], bytes]) -> None:
    """Nor do two in each request."""
    bomb, photo = make(), noise("JPEG")
    over = asyncio.Event()

    async def attack(client: httpx.AsyncClient) -> int:
        files = [("images", (f"{k}.jpg", bomb)) for k in range(2)]
        return (await client.post("/v1/predict", files=files)).status_code

    async def ask(client: httpx.AsyncClient) -> list[tuple[int, float]]:
        found = []
        while not over.is_set() or len(found) < 5:
            began = time.monotonic()
            answer = await client.post("/v1/predict", content=photo)
            found.append((answer.status_code, time.monotonic() - began))
        return found

    async def main() -> tuple[list[int], list[tuple[int, float]]]:
        async with httpx.AsyncClient(base_url=address, timeout=120, trust_env=False) as client:
            asking = asyncio.create_task(ask(client))
            codes = await asyncio.gather(*(attack(client) for _ in range(4)))
            over.set()
            return codes, await asking

    codes, answers = asyncio.run(main())
    assert all(code in (200, 413, 415, 422, 429) for code in codes), codes
    assert {code for code, _ in answers} == {200}
    assert max(seconds for _, seconds in answers) < 30, answers  # generous: a busy machine


def identify(client: Any, name: str, content: bytes) -> str:
    """What the page answers to a photograph."""
    return str(client.ask("photo", "change", "tiny", 0.5, client.upload(name, content))["answer"])


def test_the_page_refuses_each_and_goes_on(folder: Path, saved_model: Path) -> None:
    from page_client import PageClient
    from small_page import page_of

    with page_of([saved_model], decode_seconds=1.0) as address:
        client = PageClient(address)
        for name in (
            *("plain_ppm", "eps_that_writes_a_file", "bmp_of_runs_of_one_pixel", "png_of_a_huge_size"),
            *("jpeg_of_very_many_scans", "tiff_of_tags_that_claim_gigabytes", "webp_of_a_huge_canvas"),
        ):
            outcome = identify(client, f"{name}.jpg", file_of(folder, name).read_bytes())
            assert "convert" in outcome or "limit" in outcome or "damaged" in outcome, (name, outcome)
            assert "/tmp" not in outcome
        assert "birch" in identify(client, "good.jpg", noise("JPEG", (64, 48)))


# -- the manual --------------------------------------------------------------------------------------------------------


def test_the_manual_names_the_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "strangers-files.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[3] for line in page.splitlines() if line.startswith("| ")}
    serve, app, zips = ServeSettings(), PageSettings(), ArchiveLimits()
    assert rows["photographs"].strip() == (
        f"{images.MAX_PIXELS // 10**6} million pixels, {images.MAX_BYTES >> 30} GiB, one side {images._MAX_ASPECT} "
        f"times the other, {image_bounds.MAX_PARTS:,} header parts, PNG chunks or TIFF strips, {image_bounds._SCANS} "
        f"JPEG scans; {decoding.SECONDS:g} s of processor time and {decoding._MIN_BYTES >> 20} MiB + "
        f"{decoding._BYTES_PER_PIXEL} bytes per pixel of memory"
    )
    assert rows["uploads to `clca serve` and `clca app`"].strip() == (
        f"{serve.pixels // 10**6} million pixels, {serve.decode_seconds:g} s of processor time (`--decode-seconds`); "
        f"`serve`: {serve.file_bytes >> 20} MiB a file, {serve.files} files and {serve.request_bytes >> 20} MiB a "
        f"request; `app`: {page_limits(app, serve).files:,} files and {app.upload_bytes >> 30} GiB an upload"
    )
    assert rows["zip uploads of `clca app`"].strip() == (
        f"{zips.files:,} files, {zips.entries:,} entries, {zips.member_bytes >> 20} MiB a file, "
        f"{zips.total_bytes >> 30} GiB unpacked, and {zips.ratio} times the size of the zip beyond 256 MiB"
    )
