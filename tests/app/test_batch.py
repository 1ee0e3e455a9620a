"""Many photographs and zips through the endpoint's models: a row for each, in order, and nobody else kept waiting."""

import asyncio
import csv
import io
import struct
import threading
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_endpoint import CLASSES, TOLERANCE, alone, by_class, make_app, photo, tiny_model

from clca.app import batch
from clca.app import zip_reader as archive
from clca.app.batch import BatchLimits, Progress, Row, classify
from clca.app.batch_table import COLUMNS, cells, summary, write_csv
from clca.app.zip_reader import ArchiveLimits
from clca.errors import ClcaError, WorkError
from clca.serve.errors import Refusal
from clca.serve.upload import Upload
from clca.system.files import harmless_cell

pytestmark = pytest.mark.slow

MODEL = tiny_model()
Files = list[tuple[str, Path]]


def with_service(work: Callable[[Any], Awaitable[Any]], **limits: Any) -> Any:
    """What `work` gives, run with the service of an endpoint, which is empty again afterwards."""

    async def main() -> Any:
        app = make_app(MODEL, **limits)
        async with app.router.lifespan_context(app), asyncio.timeout(60):
            service = app.state.service
            found = await work(service)
            assert service.under_way == service.held_bytes == 0
            return found

    try:
        return asyncio.run(main())
    finally:
        MODEL.keep_rate = 0.5  # as `tiny_model` made it: a request's own rate stays until the next request


def start(service: Any, files: Files, limits: BatchLimits | None = None, top_k: int = 5) -> Any:
    served = service.find(None)
    return classify(service, served, served.keep_rate, files, limits, top_k)


def progress_of(files: Files, limits: BatchLimits | None = None, **of_the_service: Any) -> list[Progress]:
    async def work(service: Any) -> list[Progress]:
        return [progress async for progress in start(service, files, limits)]

    return with_service(work, **of_the_service)


def rows_of(files: Files, limits: BatchLimits | None = None, **of_the_service: Any) -> list[Row]:
    return [row for progress in progress_of(files, limits, **of_the_service) for row in progress.rows]


def refused(files: Files, limits: BatchLimits | None = None) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        progress_of(files, limits)
    return caught.value.status, caught.value.code


def probabilities(row: Row) -> torch.Tensor:
    assert row.error is None
    return by_class({"classes": row.classes, "probabilities": row.probabilities})


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def code(row: Row) -> str | None:
    return row.error and row.error.code


# -- answers ---------------------------------------------------------------------------------------------------------


def test_three_hundred_photographs_get_the_models_own_answers_in_order(tmp_path: Path) -> None:
    photos = {f"vine {k % 7}/{k:03}.png": photo(k, size=(20, 24)) for k in range(300)}
    steps = progress_of([("leaves.zip", zipped(tmp_path / "0", photos))])
    rows = [row for step in steps for row in step.rows]
    assert [row.name for row in rows] == list(photos)
    expected = torch.stack([alone(MODEL, data) for data in photos.values()])
    torch.testing.assert_close(torch.stack([probabilities(row) for row in rows]), expected, atol=TOLERANCE, rtol=0)
    # Only then would a mixed-up row be seen.
    assert torch.cdist(expected, expected).fill_diagonal_(1).min() > 2 * TOLERANCE
    assert [step.done for step in steps] == [*range(0, 300, 16), 300]
    assert {step.total for step in steps} == {300}


def test_images_and_zips_are_mixed_and_told_by_content(tmp_path: Path) -> None:
    one, two, three, four = (photo(k, kind=kind) for k, kind in enumerate(["PNG", "JPEG", "BMP", "PNG"]))
    inside = {"a/": b"", "b/good.png": two, "b/.DS_Store": b"x", "notes.txt": b"Chardonnay", "../x.png": one}
    files = [
        ("one.zip", saved(tmp_path / "0", one)),
        ("two.jpg", zipped(tmp_path / "1", inside)),
        ("page.png", saved(tmp_path / "2", b"<html><script>alert(1)</script>")),
        ("drawing.png", saved(tmp_path / "3", b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
        ("empty.png", saved(tmp_path / "4", b"")),
        ("cut.png", saved(tmp_path / "5", four[:400])),
        ("again.zip", zipped(tmp_path / "6", {"deep.zip": (tmp_path / "1").read_bytes(), "good.bmp": three})),
        ("broken.zip", saved(tmp_path / "7", b"PK\3\4" + bytes(99))),
        ("other.zip", saved(tmp_path / "8", b"Rar!\x1a\x07\1\0" + bytes(99))),
        ("gone.png", tmp_path / "9"),
        ("link.png", tmp_path / "10"),
        ("four\u202egpj.png", saved(tmp_path / "11", four)),
    ]
    (tmp_path / "10").symlink_to("/etc/passwd")
    steps = progress_of(files)
    rows = [row for step in steps for row in step.rows]
    assert [(row.name, code(row)) for row in rows] == [
        ("one.zip", None),
        ("two.jpg/b/good.png", None),
        ("two.jpg/notes.txt", "not_an_image"),
        ("two.jpg/../x.png", "unsafe_name"),
        ("page.png", "not_an_image"),
        ("drawing.png", "not_an_image"),
        ("empty.png", "not_an_image"),
        ("cut.png", "damaged"),
        ("again.zip/deep.zip", "archive_in_archive"),
        ("again.zip/good.bmp", None),
        ("broken.zip", "damaged_zip"),
        ("other.zip", "unknown_archive"),
        ("gone.png", "unreadable"),
        ("link.png", "unreadable"),
        ("four�gpj.png", None),
    ]
    assert steps[-1].done == steps[-1].total == len(rows)
    assert steps[-1].left_out == 2
    for row, data in zip([row for row in rows if row.error is None], (one, two, three, four), strict=True):
        torch.testing.assert_close(probabilities(row), alone(MODEL, data), atol=TOLERANCE, rtol=0)
    told = " ".join(row.error.message for row in rows if row.error)
    assert str(tmp_path) not in told
    assert "clca-" not in told


@given(good=st.lists(st.booleans(), min_size=1, max_size=40), batch=st.integers(1, 9), held=st.integers(2_000, 40_000))
@settings(max_examples=8, deadline=None)
def test_each_file_gets_one_row_whatever_its_neighbours_and_the_room(
    tmp_path_factory: pytest.TempPathFactory, good: list[bool], batch: int, held: int
) -> None:
    folder = tmp_path_factory.mktemp("photographs")
    files = [
        (f"{k}.png", saved(folder / str(k), photo(k, size=(9, 9)) if fine else b"no")) for k, fine in enumerate(good)
    ]
    rows = rows_of(files, max_batch=batch, queue=batch + 3, held_bytes=held, file_bytes=1_000)
    assert [row.name for row in rows] == [name for name, _ in files]
    assert [row.error is None for row in rows] == good
    for row, (_, path) in zip(rows, files, strict=True):
        if row.error is None:
            torch.testing.assert_close(probabilities(row), alone(MODEL, path.read_bytes()), atol=TOLERANCE, rtol=0)


def test_the_keep_rate_and_the_number_of_classes_are_those_asked_for(tmp_path: Path) -> None:
    data = photo(4)

    async def work(service: Any) -> Row:
        files = [("a.png", saved(tmp_path / "0", data))]
        async for progress in classify(service, service.find(None), 0.25, files, top_k=2):
            rows = progress.rows
        return rows[0]

    row = with_service(work)
    expected = alone(MODEL, data, keep_rate=0.25).topk(2)
    assert row.classes == tuple(CLASSES[k] for k in expected.indices)
    assert row.probabilities == pytest.approx(expected.values.tolist(), abs=TOLERANCE)
    assert row.probabilities != pytest.approx(alone(MODEL, data, keep_rate=0.5).topk(2).values.tolist(), abs=1e-3)


# -- limits ----------------------------------------------------------------------------------------------------------


def test_too_much_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    monkeypatch.setattr("clca.serve.service.decode", lambda *arguments: computed.append(arguments))
    image = saved(tmp_path / "0", photo(0))
    archive = zipped(tmp_path / "1", {f"{k}.png": photo(k) for k in range(3)})
    assert refused([]) == (422, "no_image")
    assert refused([("a.png", image)] * 4, BatchLimits(files=3)) == (413, "too_many_files")
    assert refused([("a.png", image), ("a.zip", archive)], BatchLimits(files=3)) == (413, "too_many_files")
    assert refused([("a.png", image), ("a.zip", archive)], BatchLimits(files=2)) == (413, "too_many_files")
    few = BatchLimits(archive=ArchiveLimits(files=2))
    assert refused([("a.png", image), ("a.zip", archive)], few) == (413, "too_many_files")
    assert refused([("a.zip", archive)] * 3, BatchLimits(archives=2)) == (413, "too_many_archives")
    assert refused([("a.zip", saved(tmp_path / "2", b"PK\3\4"))]) == (422, "damaged_zip")
    assert not computed
    with pytest.raises(ClcaError, match="wait_seconds"):
        BatchLimits(wait_seconds=0)


def test_ten_thousand_photographs_in_a_zip_are_refused_with_its_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "0", {f"{k}.png": b"x" for k in range(10_000)})
    assert refused([("small.zip", archive)]) == (413, "too_many_files")
    with pytest.raises(Refusal, match=r"^small\.zip lists more than"):
        progress_of([("small.zip", archive), ("a.png", saved(tmp_path / "1", photo(0)))])


def test_long_files_and_pixels_are_refused_each_by_itself(tmp_path: Path) -> None:
    good, long, wide = photo(1, size=(9, 9)), photo(2, size=(60, 60)), photo(3, size=(30, 40))
    files = [("zip", zipped(tmp_path / "0", {"good": good, "long": long, "wide": wide}))]
    files += [(name, saved(tmp_path / name, data)) for name, data in (("good", good), ("long", long), ("wide", wide))]
    rows = rows_of(files, file_bytes=len(wide), pixels=1_000)
    assert [code(row) for row in rows] == [None, "file_too_long", "too_many_pixels"] * 2


def test_a_picture_that_is_a_decompression_bomb_is_refused_in_a_zip_as_well(tmp_path: Path) -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + bytes(4) + bytes(99)
    rows = rows_of([("a.zip", zipped(tmp_path / "0", {"bomb.png": bomb, "good.png": photo(1)}))])
    assert [row.error is None for row in rows] == [False, True]
    assert rows[0].error is not None
    assert rows[0].error.status in (413, 422)


# -- the service's room ----------------------------------------------------------------------------------------------


def test_where_there_is_no_room_it_waits_and_goes_on(tmp_path: Path) -> None:
    files = [(f"{k}.png", saved(tmp_path / str(k), photo(k))) for k in range(10)]

    async def work(service: Any) -> list[Row]:
        rows: list[Row] = []

        async def batch() -> None:
            async for progress in start(service, files):
                rows.extend(progress.rows)

        with service.place() as place:
            place.more_images(service.settings.queue - 1)
            task = asyncio.create_task(batch())
            await asyncio.sleep(0.4)
            assert not rows
            assert not task.done()
            assert service.under_way == service.settings.queue
        await task
        return rows

    rows = with_service(work)
    assert [code(row) for row in rows] == [None] * 10


def test_where_there_is_no_room_for_long_every_row_says_so(tmp_path: Path) -> None:
    files = [(f"{k}.png", saved(tmp_path / str(k), photo(k))) for k in range(9)]

    async def work(service: Any) -> list[Row]:
        with service.place() as place:
            place.more_bytes(service.settings.held_bytes)
            limits = BatchLimits(wait_seconds=0.1)
            return [row async for progress in start(service, files, limits) for row in progress.rows]

    rows = with_service(work, max_batch=2)
    assert [row.name for row in rows] == [name for name, _ in files]
    assert [code(row) for row in rows] == ["busy"] * 9


def test_when_the_service_stops_the_rest_says_so(tmp_path: Path) -> None:
    files = [(f"{k}.png", saved(tmp_path / str(k), photo(k))) for k in range(9)]

    async def work(service: Any) -> list[Row]:
        rows: list[Row] = []
        async for progress in start(service, files):
            rows.extend(progress.rows)
            service.accepts = len(rows) < 4
        return rows

    rows = with_service(work, max_batch=2)
    assert [code(row) for row in rows] == [None] * 4 + ["stopping"] * 5


def test_it_takes_a_part_of_the_room_and_others_are_answered_meanwhile(tmp_path: Path) -> None:
    files = [("a.zip", zipped(tmp_path / "0", {f"{k}.png": photo(k) for k in range(60)}))]

    async def work(service: Any) -> tuple[int, int]:
        most = others = 0
        served = service.find(None)
        async for progress in start(service, files):
            assert service.under_way == 0  # nothing is held while the page draws
            if progress.done:
                continue
            task = asyncio.create_task(_last(start(service, files)))
            while not task.done():
                most = max(most, service.under_way)
                with service.place():
                    (answer,) = await service.answer([Upload("b", bytearray(photo(99)))], served, 0.5, 1)
                assert not isinstance(answer, Refusal)
                others += 1
            assert (await task).done == 60
        return most, others

    most, others = with_service(work, queue=16, max_batch=16)
    assert 1 <= most <= 4  # a quarter, which is not more than what the page itself has under way
    assert others >= 3


async def _last(steps: Any) -> Progress:
    async for step in steps:
        last = step
    return last


def test_a_model_that_fails_spoils_only_what_it_failed_on(tmp_path: Path) -> None:
    files = [(f"{k}.png", saved(tmp_path / str(k), photo(k))) for k in range(6)]

    async def work(service: Any) -> list[Row]:
        served = service.find(None)
        whole, calls = served.answers, []

        def failing(rates: Any, images: Any) -> Any:
            calls.append(len(images))
            if len(calls) == 2:
                raise RuntimeError("out of memory at /home/me")
            return whole(rates, images)

        served.answers = failing
        return [row async for progress in start(service, files) for row in progress.rows]

    rows = with_service(work, max_batch=2, wait_ms=5000)  # full batches wait for nobody
    assert [code(row) for row in rows] == [None, None, "failed", "failed", None, None]
    assert "/home" not in str(rows[2].error)


# -- its end ---------------------------------------------------------------------------------------------------------


def test_cancelled_while_the_model_computes_it_ends_and_gives_back_its_room(tmp_path: Path) -> None:
    files = [("a.zip", zipped(tmp_path / "0", {f"{k}.png": photo(k) for k in range(40)}))]

    async def work(service: Any) -> None:
        served = service.find(None)
        whole, go, begun, calls = served.answers, threading.Event(), threading.Event(), []

        def slow(rates: Any, images: Any) -> Any:
            calls.append(len(images))
            begun.set()
            assert go.wait(20)
            return whole(rates, images)

        served.answers = slow
        task = asyncio.create_task(_last(start(service, files)))
        await asyncio.to_thread(begun.wait, 20)
        assert service.under_way == 16
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await task
        assert service.under_way == service.held_bytes == 0
        go.set()
        await asyncio.sleep(0.2)
        assert len(calls) == 1  # nothing of it is computed any more
        await _reader_ended()

    with_service(work)


def test_cancelled_while_a_zip_is_read_it_ends_and_the_zip_is_closed_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [("a.zip", zipped(tmp_path / "0", {f"{k}.png": photo(k) for k in range(40)}))]
    begun, go, events = threading.Event(), threading.Event(), []

    class Slow(batch.Archive):
        def read(self, member: Any) -> bytearray:
            begun.set()
            assert go.wait(20)
            events.append("read")
            return super().read(member)

        def close(self) -> None:
            events.append("close")
            super().close()

    monkeypatch.setattr(batch, "Archive", Slow)

    async def work(service: Any) -> None:
        task = asyncio.create_task(_last(start(service, files)))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await task
        assert events == []
        go.set()
        await _reader_ended()
        assert events == ["read", "close"]  # the one that was being read, and no further one

    with_service(work)


@pytest.mark.parametrize("closes", [True, False])
def test_closed_or_left_half_way_nothing_of_it_stays(tmp_path: Path, closes: bool) -> None:
    files = [("a.zip", zipped(tmp_path / "0", {f"{k}.png": photo(k) for k in range(40)}))]

    async def work(service: Any) -> None:
        steps = start(service, files)
        assert (await anext(steps)).done == 0
        assert (await anext(steps)).done == 16
        if closes:
            await steps.aclose()
        del steps
        await _reader_ended()

    with_service(work)


async def _reader_ended() -> None:
    while any(thread.name.startswith("clca-batch") for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


def test_the_event_loop_is_free_while_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    opened = archive.Archive.__init__, archive.Archive.read
    monkeypatch.setattr(
        archive.Archive, "__init__", lambda *given: (seen.add(threading.get_ident()), opened[0](*given))[1]
    )
    monkeypatch.setattr(archive.Archive, "read", lambda *given: (seen.add(threading.get_ident()), opened[1](*given))[1])
    assert len(rows_of([("a.zip", zipped(tmp_path / "0", {"a.png": photo(1)}))])) == 1
    assert len(seen) == 1
    assert threading.get_ident() not in seen


# -- the table -------------------------------------------------------------------------------------------------------


def a_table() -> list[Row]:
    return [
        Row("Öküzgözü 1.jpg", ("alder", "birch", "cedar", "date"), (0.7, 0.2, 0.05, 0.05)),
        Row("=HYPERLINK(1).jpg", ("-1", "birch"), (0.6, 0.4)),
        Row('b,";=1.jpg', error=Refusal(422, "damaged", "+damaged")),
        Row("a.jpg", ("alder",), (1.0,)),
    ]


def test_the_table_is_read_alike_by_pandas_and_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    write_csv(a_table(), path)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    table = pandas.read_csv(path, keep_default_na=False)
    assert tuple(table.columns) == COLUMNS
    assert table["name"].tolist() == ["Öküzgözü 1.jpg", "'=HYPERLINK(1).jpg", 'b,";=1.jpg', "a.jpg"]
    assert table["class"].tolist() == ["alder", "'-1", "", "alder"]
    assert table["third_probability"].tolist() == ["0.05", "", "", ""]
    assert table["error"].tolist() == ["", "", "'+damaged", ""]
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == table["name"].tolist()
    assert float(lines[0]["probability"]) == 0.7


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_csv([Row("\ud800")], path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
    with pytest.raises(WorkError):
        write_csv([], tmp_path / "none" / "table.csv")


@given(text=st.text(), before=st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "\n", " =", "\u00a0@", "＝", "\t="]))
def test_no_cell_is_a_formula_and_none_loses_its_text(text: str, before: str) -> None:
    text = before + text
    line = [harmless_cell(cell) for cell in cells(Row(text, (text,), (0.5,), Refusal(422, "x", text)))]
    for cell in (line[0], line[1], line[-1]):
        assert isinstance(cell, str)
        assert cell.endswith(text)
        assert cell[:1] not in tuple("=+-@\t\r\n＝＋－＠")
        assert cell.lstrip()[:1] not in tuple("=+-@＝＋－＠")
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerow(line)
    assert len(next(csv.reader(io.StringIO(file.getvalue(), newline="")))) == len(COLUMNS)


def test_the_summary_counts_classes_and_reasons() -> None:
    assert summary(a_table()) == {
        "images": 4,
        "answered": 3,
        "refused": 1,
        "none_of_these": 0,
        "classes": {"alder": 2, "-1": 1},
        "reasons": {"damaged": 1},
    }
    assert summary([])["classes"] == {}
