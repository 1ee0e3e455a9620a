"""The resized-image cache: the same bits, never a stale one, whole or not there, within its limits."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from clca import data
from clca.cli.main import main
from clca.data.cache import fill as cache_fill
from clca.data.cache import limits as cache_limits
from clca.data.cache import row_file as row_file
from clca.data.cache.fill import use_cache
from clca.data.cache.limits import cache_folder, cached_sets, clear_cache
from clca.data.cache.row_file import SUFFIX, UNFINISHED, read_row_file
from clca.data.datasets import ImageDataset
from clca.data.decoding import Decoders
from clca.data.transforms import ResizeFirst, eval_transform, from_preprocess, preprocess_dict, train_transform
from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.study.plan.cost_model import StudyCosts

pytestmark = pytest.mark.slow

SIZE = 28  # resized to 32 × 32: 3072 bytes a row


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLCA_CACHE_GB", raising=False)
    return tmp_path / "cache" / "resized"


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draw(root: Path, images: int = 4, splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for split_number, split in enumerate(splits):
        for label in range(2):
            (root / split / f"class{label}").mkdir(parents=True)
            for number in range(images):
                name = f"{number}.png"
                noise(100 * split_number + 10 * label + number).save(root / split / f"class{label}" / name)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos")


@pytest.fixture
def varied(tmp_path: Path) -> Path:
    """What scanners, phones and downloads leave, and shapes from one pixel on."""
    root = tmp_path / "varied"
    for label in ("a", "b"):
        folder = root / "train" / label
        folder.mkdir(parents=True)
        rotated = Image.Exif()
        rotated[0x0112] = 6
        noise(1).save(folder / "rotated.jpg", exif=rotated)
        noise(2).convert("CMYK").save(folder / "cmyk.jpg")
        noise(3).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
        grey = np.random.default_rng(4).integers(0, 65536, (20, 50), dtype=np.uint16)
        Image.fromarray(grey).save(folder / "sixteen.png")
        alpha = np.random.default_rng(5).integers(0, 256, (33, 31, 4), dtype=np.uint8)
        Image.fromarray(alpha).save(folder / "alpha.png")
        noise(6).convert("1").save(folder / "bits.png")
        noise(7).convert("L").save(folder / "grey.webp", lossless=True)
        noise(8, 1, 1).save(folder / "dot.png")
        noise(9, 3, 200).save(folder / "stripe.bmp")
        noise(10, 32, 32).save(folder / "fits.png")
    return root


def opened(root: Path, split: str = "train", transform=None) -> ImageDataset:
    dataset = data.open(root, split, transform=transform or train_transform(SIZE))
    assert isinstance(dataset, ImageDataset)
    return dataset


def cached(root: Path, split: str = "train", transform=None) -> ImageDataset:
    dataset = opened(root, split, transform)
    result = use_cache([dataset], progress=False)
    assert (result.bad, result.unread, result.problem) == ([], [], None)
    return dataset


def all_of(dataset: ImageDataset) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that were decoded for the cache."""
    seen: list[Path] = []

    decode = Decoders.image

    def counting(decoders: Decoders, path: Path, resize: Any = None) -> tuple[Image.Image, str]:
        seen.append(path)
        return decode(decoders, path, resize)

    monkeypatch.setattr(Decoders, "image", counting)
    return seen


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and no image file can be read from then on."""

    def refuse(path: Path) -> Image.Image:
        raise AssertionError(f"{path} was decoded")

    def apply() -> None:
        monkeypatch.setattr("clca.data.datasets.read_image", refuse)
        monkeypatch.setattr(Decoders, "image", lambda decoders, path, resize=None: refuse(path))

    return apply


def row_files(cache: Path) -> list[Path]:
    return sorted(cache.glob(f"*{SUFFIX}"))


# -- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False], ids=["floats", "bytes"])
@pytest.mark.parametrize("transform", [train_transform, eval_transform], ids=["train", "eval"])
def test_every_kind_of_image_comes_out_the_same_with_the_same_random_numbers(varied, transform, normalize, no_decoding):
    transform = transform(SIZE, normalize=normalize)
    plain = all_of(opened(varied, transform=transform))
    state = torch.get_rng_state()
    dataset = cached(varied, transform=transform)
    no_decoding()

    assert torch.equal(all_of(dataset), plain)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 2**31), st.booleans())
def test_the_rest_of_a_transform_does_the_same_to_a_row_as_to_an_image(crop, resize, seed, training):
    preprocess = {**preprocess_dict(crop), "resize": resize}  # a crop larger than the image is padded
    transform = train_transform(crop) if training else from_preprocess(preprocess)
    assert isinstance(transform, ResizeFirst)
    image = transform.resize(noise(seed % 1000))
    row = tv_tensors.Image(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()))

    torch.manual_seed(seed)
    from_image, after_image = transform.rest(image), torch.get_rng_state()
    torch.manual_seed(seed)
    from_row, after_row = transform.rest(row), torch.get_rng_state()

    assert torch.equal(from_image, from_row)
    assert torch.equal(after_image, after_row)


def test_other_transforms_read_the_files(photos, no_decoding):
    dataset = cached(photos)
    for transform in (train_transform(SIZE, "medium"), eval_transform(2 * SIZE), None):
        dataset.transform = transform
        plain = opened(photos)
        plain.transform = transform
        torch.manual_seed(0)
        expected = plain[1][0]
        torch.manual_seed(0)
        assert torch.equal(dataset[1][0], expected) if transform else dataset[1][0].tobytes() == expected.tobytes()
    no_decoding()
    dataset.transform = None
    with pytest.raises(AssertionError, match="was decoded"):
        dataset[1]


def test_what_cannot_be_cached_is_left_as_it_is(photos, cache):
    medium = opened(photos, transform=train_transform(SIZE, "medium"))
    oblong = opened(photos, transform=from_preprocess({**preprocess_dict(SIZE), "square": False}))
    leaves = data.open("leaves:cultivars=2,images=5,size=32", transform=train_transform(SIZE))
    result = use_cache([medium, oblong, leaves])
    assert result.problem is None
    assert not cache.exists()


# -- once, and again what has changed ------------------------------------------------------------------------------


def test_an_image_is_decoded_once_for_all_splits_and_openings(photos, reads, cache):
    train, val = opened(photos), opened(photos, "val", eval_transform(SIZE))
    use_cache([train, val], progress=False)
    assert sorted(reads) == sorted(train.paths + val.paths)
    assert len(row_files(cache)) == 1

    cached(photos), cached(photos, "train_val"), cached(photos, "val")
    assert len(reads) == len(train) + len(val)
    test = cached(photos, "test")
    assert sorted(reads[len(train) + len(val) :]) == sorted(test.paths)
    [one] = cached_sets()
    assert (one.root, one.side, one.images) == (str(photos.resolve()), 32, len(train) + len(val) + len(test))


def test_another_size_and_another_library_are_other_rows(photos, reads, monkeypatch):
    cached(photos)
    cached(photos, transform=eval_transform(2 * SIZE))
    assert len(reads) == 16
    monkeypatch.setattr(cache_fill, "READER_VERSION", cache_fill.READER_VERSION + 1)
    cached(photos)
    monkeypatch.setattr(cache_fill, "version", lambda name: "0.1")
    cached(photos)
    assert len(reads) == 32


@pytest.mark.parametrize("how", ["other size", "same size and times", "renamed over", "folders swapped"])
def test_a_changed_file_never_gives_a_stale_pixel(photos, reads, how):
    """BMPs of one shape have one size; times can be set back; a swap of folders changes no file at all."""
    for path in photos.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
        os.utime(path.with_suffix(".bmp"), (10**9, 10**9))
    before = cached(photos)
    open_before = cached(photos)
    changed = before.paths[2]
    if how == "other size":
        noise(77, 50, 50).save(changed)
    elif how == "same size and times":
        noise(77).save(changed)
        os.utime(changed, (10**9, 10**9))
    elif how == "renamed over":
        noise(77).save(photos / "new.bmp")
        os.utime(photos / "new.bmp", (10**9, 10**9))
        os.replace(photos / "new.bmp", changed)
    else:
        a, b = photos / "train" / "class0", photos / "train" / "class1"
        a.rename(photos / "aside"), b.rename(a), (photos / "aside").rename(b)

    expected = all_of(opened(photos))
    assert torch.equal(all_of(open_before), expected)
    del reads[:]
    assert torch.equal(all_of(cached(photos)), expected)
    assert len(reads) == (8 if how == "folders swapped" else 1)


def test_files_written_in_quick_succession_are_distinguished(tmp_path):
    """Two writes within one tick of the file system's clock, of one size: only the second may be seen."""
    root = draw(tmp_path / "quick", images=3)
    path = root / "train" / "class0" / "0.bmp"
    for round_ in range(6):
        noise(round_).save(path)
        dataset = cached(root)
        noise(round_ + 50).save(path)
        fresh = cached(root)
        assert torch.equal(all_of(fresh), all_of(opened(root)))
        assert torch.equal(all_of(dataset), all_of(opened(root)))


def test_added_and_removed_files(photos, reads):
    cached(photos)
    del reads[:]
    noise(88).save(photos / "train" / "class0" / "9.png")
    (photos / "train" / "class1" / "0.png").unlink()
    dataset = cached(photos)
    assert [path.name for path in reads] == ["9.png"]
    assert torch.equal(all_of(dataset), all_of(opened(photos)))
    dataset.paths[0].unlink()
    with pytest.raises(ClcaError, match=r"0\.png: no such file"):
        dataset[0]


def test_many_small_additions_end_in_one_file(photos, cache, reads):
    for number in range(20):
        noise(number + 300).save(photos / "train" / "class0" / f"more{number}.png")
        dataset = cached(photos)
        assert len(row_files(cache)) <= 8
    assert len(reads) == 8 + 20
    assert torch.equal(all_of(dataset), all_of(opened(photos)))


def test_rows_of_files_that_are_gone_do_not_pile_up(photos, cache):
    for round_ in range(4):
        for path in (photos / "train").rglob("*.png"):
            noise(round_ * 50 + int(path.stem)).save(path)
        cached(photos)
    held = [read_row_file(path) for path in row_files(cache)]
    assert sum(file.count for file in held if file is not None) <= 16


# -- whole or not there --------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    middle = len(whole) - 200  # in the index
    path.unlink()  # as another program would; who maps the old file keeps it
    path.write_bytes({
        "empty": b"", "cut": whole[:-1], "half": whole[: len(whole) // 2], "foreign": b"no rows" * 1000,
        "longer": whole + b"\0", "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "rows lost": whole[3072:],
    }[how])  # fmt: skip


@pytest.mark.parametrize("how", ["empty", "cut", "half", "foreign", "longer", "flipped", "rows lost"])
def test_a_damaged_file_is_made_anew(photos, cache, reads, how):
    cached(photos)
    [path] = row_files(cache)
    damage(path, how)
    assert read_row_file(path) is None
    dataset = cached(photos)
    assert len(reads) == 16
    assert row_files(cache) != [path]
    assert torch.equal(all_of(dataset), all_of(opened(photos)))


@pytest.mark.parametrize("how", ["bytes changed", "cut off", "emptied"])
def test_a_file_damaged_while_it_is_read_gives_no_wrong_pixel_and_ends_nothing(photos, cache, reads, how):
    expected = all_of(opened(photos))
    dataset = cached(photos)
    [path] = row_files(cache)
    if how == "bytes changed":
        with path.open("r+b") as file:
            file.seek(3 * 3072 + 100)
            file.write(bytes(50))
    else:
        os.truncate(path, 3 * 3072 + 5 if how == "cut off" else 0)

    assert torch.equal(all_of(dataset), expected)
    assert not path.exists()  # what is damaged is made anew, once
    del reads[:]
    assert torch.equal(all_of(cached(photos)), expected)
    assert len(reads) == 8
    assert torch.equal(all_of(cached(photos)), expected)
    assert len(reads) == 8


def test_a_damaged_row_is_not_copied_into_another_file(photos, cache, reads):
    cached(photos)
    [path] = row_files(cache)
    with path.open("r+b") as file:
        file.write(bytes(50))
    for number in range(8):  # so many files are made into one
        noise(number + 300).save(photos / "train" / "class0" / f"more{number}.png")
        cached(photos)

    dataset = cached(photos)
    assert len(row_files(cache)) < 8
    assert torch.equal(all_of(dataset), all_of(opened(photos)))


def test_who_reads_a_file_keeps_it_when_it_is_removed(photos, cache, no_decoding):
    expected = all_of(opened(photos))
    dataset = cached(photos)
    sent = pickle.dumps(dataset)
    assert clear_cache() > 8 * 3072
    assert row_files(cache) == []
    assert torch.equal(all_of(pickle.loads(sent)), expected)  # a process that comes too late reads the images
    no_decoding()
    assert torch.equal(all_of(dataset), expected)


def test_unreadable_images_are_named_and_the_others_kept(photos, reads):
    bad = [photos / "train" / "class0" / "1.png", photos / "train" / "class1" / "3.png"]
    bad[0].write_bytes(b"")
    bad[1].write_text("hello")
    dataset = opened(photos)
    result = use_cache([dataset], progress=False)
    assert [(one.path, one.reason) for one in result.bad] == [
        (bad[0], "the file is empty (0 bytes)"),
        (bad[1], "is text, not an image"),
    ]
    assert dataset.resized is not None
    assert len(dataset.resized) == 6
    noise(1).save(bad[0]), noise(2).save(bad[1])
    del reads[:]
    cached(photos)
    assert sorted(reads) == bad


def fill_slowly(root: Path, counted: Any) -> None:
    """In a process of its own: fill the cache, and send how many images that took."""

    decode = Decoders.image

    def slowly(decoders: Decoders, path: Path, resize: Any = None) -> tuple[Image.Image, str]:
        with counted:
            counted.value += 1
        time.sleep(0.01)
        return decode(decoders, path, resize)

    Decoders.image = slowly  # type: ignore[assignment, method-assign]
    dataset = cached(root)
    assert dataset.resized is not None
    assert len(dataset.resized) == len(dataset)


def start_filling(root: Path) -> tuple[Any, Any]:
    context = multiprocessing.get_context("fork")
    counted = context.Value("i", 0)
    process = context.Process(target=fill_slowly, args=(root, counted))
    process.start()
    return process, counted


def test_of_two_processes_at_once_one_reads_and_the_other_waits(tmp_path, cache):
    root = draw(tmp_path / "two", images=20, splits=("train",))
    both = [start_filling(root), start_filling(root)]
    for process, _ in both:
        process.join(120)
        assert process.exitcode == 0
    assert sorted(counted.value for _, counted in both) == [0, len(opened(root))]
    assert len(row_files(cache)) == 1


def test_killed_at_any_time_it_leaves_nothing_that_is_taken_for_whole(tmp_path, cache):
    root = draw(tmp_path / "killed", images=20, splits=("train",))
    chance, killed_within = random.Random(time.time_ns()), 0
    for _ in range(6):
        process, counted = start_filling(root)
        at, deadline = chance.randint(0, 32), time.monotonic() + 60
        while counted.value < at and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.join()
        killed_within += bool(list(cache.glob(f"*{UNFINISHED}")))
        assert all(read_row_file(path) is not None for path in row_files(cache))
        assert all(read_row_file(path) is None for path in cache.glob(f"*{UNFINISHED}"))
    assert killed_within
    dataset = cached(root)
    assert torch.equal(all_of(dataset), all_of(opened(root)))
    assert not list(cache.glob(f"*{UNFINISHED}"))


def test_what_a_killed_process_left_of_another_set_is_removed_and_what_is_being_written_is_not(photos, cache):
    from filelock import FileLock

    cache.mkdir(parents=True)
    dead, alive = cache / f"dead.1{UNFINISHED}", cache / f"alive.1{UNFINISHED}"
    dead.write_bytes(b"0"), alive.write_bytes(b"0")
    with FileLock(cache / "alive.lock"):
        cached(photos)
        clear_cache()
    assert not dead.exists()
    assert alive.exists()


# -- never the reason that a run fails -----------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_full_disk_is_said_and_all_images_are_still_looked_at(photos, cache, monkeypatch, after):
    bad = photos / "train" / "class1" / "3.png"
    bad.write_text("hello")
    write, count = row_file.RowWriter._write, iter(range(100))

    def full(self, content: bytes) -> None:
        if next(count) >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, content)

    monkeypatch.setattr(row_file.RowWriter, "_write", full)
    dataset = opened(photos)
    bad.write_text("hello") if after < 8 else noise(1).save(bad)
    result = use_cache([dataset], progress=False)
    assert result.problem == (f"the resized images are not cached: {cache} cannot be written (no space left)")
    assert [one.path for one in result.bad] == ([bad] if after < 8 else [])
    assert result.unread == []
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    assert dataset[0][0].shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_said_and_not_waited_for(photos, cache, monkeypatch, error):
    import fcntl

    def no_lock(file: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_lock)
    dataset = opened(photos)
    result = use_cache([dataset], progress=False)
    assert result.problem == (
        f"the resized images are not cached: {cache} cannot be written ({os.strerror(error).lower()})"
    )
    assert torch.equal(all_of(dataset), all_of(opened(photos)))


def test_a_folder_that_cannot_be_written_is_said(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "file"))
    dataset = opened(photos)
    result = use_cache([dataset], progress=False)
    assert result.problem is not None
    assert "file/resized cannot be written (not a directory)" in result.problem
    assert result.unread == dataset.paths
    assert torch.equal(all_of(dataset), all_of(opened(photos)))


@pytest.mark.parametrize("setting", ["~no_such_user_here/x", None])
def test_without_a_home_folder_nothing_is_cached_and_the_result_gives_the_reason(photos, monkeypatch, setting, capsys):
    monkeypatch.delenv("CLCA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if setting:
        monkeypatch.setenv("CLCA_CACHE", setting)
    else:
        monkeypatch.setattr(Path, "home", lambda: Path("~no_such_user_here").expanduser())
    dataset = opened(photos)

    result = use_cache([dataset], progress=False)

    where = f"CLCA_CACHE is {setting!r}" if setting else "CLCA_CACHE is not set"
    line = f"{where} and there is no such home folder: set it to a folder"
    assert result.problem == f"the resized images are not cached: {line}"
    assert result.unread == dataset.paths
    assert torch.equal(all_of(dataset), all_of(opened(photos)))
    assert use_cache([]).problem is None
    assert main(["data", "cache"]) == 2
    assert capsys.readouterr().err == f"clca: {line}\n"
    costs = StudyCosts()
    costs.of(ModelConfig(backbone="vit_tiny_patch16_224", backbone_kwargs={"qk_norm": True}), 2)
    costs.save()


def test_a_set_is_listed_by_its_name_as_it_is(tmp_path, capsys):
    cached(draw(tmp_path / "set[bold]:smile:\x1b[31m", images=2))
    assert main(["data", "cache"]) == 0
    listed = capsys.readouterr().out
    assert r"set[bold]:smile:\x1b[31m" in "".join(
        line.split("│")[1].strip() for line in listed.splitlines() if "│" in line
    )
    assert "\x1b" not in listed


def test_a_limit_may_be_none(photos, monkeypatch, capsys):
    monkeypatch.setenv("CLCA_CACHE_GB", "inf")
    cached(photos)
    assert main(["data", "cache"]) == 0
    assert " of any size in " in capsys.readouterr().out


def test_a_disk_that_is_nearly_full_is_left_alone(photos, cache, monkeypatch):
    usage = type("usage", (), {"free": 10**9})
    monkeypatch.setattr(cache_limits.shutil, "disk_usage", lambda _: usage)
    result = use_cache([opened(photos)], progress=False)
    assert result.problem is not None
    assert "is too full" in result.problem
    assert row_files(cache) == []


# -- bounded -------------------------------------------------------------------------------------------------------


def test_a_set_above_the_limit_is_not_cached_and_removes_nothing(photos, tmp_path, cache, monkeypatch):
    other = draw(tmp_path / "other", images=2)
    cached(other)
    monkeypatch.setenv("CLCA_CACHE_GB", "0.00002")
    result = use_cache([opened(photos)], progress=False)
    assert result.problem is not None
    assert "the limit (CLCA_CACHE_GB) is 2e-05" in result.problem
    assert len(result.unread) == 8
    assert [one.root for one in cached_sets()] == [str(other)]


def test_the_least_recently_used_go_first_and_never_those_in_use(tmp_path, monkeypatch):
    sets = [draw(tmp_path / name, images=4) for name in ("a", "b", "c", "d")]
    monkeypatch.setenv("CLCA_CACHE_GB", str(3.5 * 8 * 3072 / 1e9))  # three sets of eight images
    held = cached(sets[0])
    for number, root in enumerate(sets[:3]):
        cached(root)
        for path in row_files(cache_folder()):
            if path.name.startswith(root.name):
                os.utime(path, (number + 1, number + 1))
    cached(sets[1])  # used again: now c is the oldest that nobody holds
    cached(sets[3])
    assert {Path(one.root).name for one in cached_sets()} == {"a", "b", "d"}
    assert held.resized is not None
    assert sum(one.bytes for one in cached_sets()) <= 3.5 * 8 * 3072


def test_rows_of_other_splits_do_not_keep_a_set_out(photos, monkeypatch):
    """The old file holds training and watched images; what is wanted alone would fit."""
    use_cache([opened(photos), opened(photos, "val")], progress=False)
    monkeypatch.setenv("CLCA_CACHE_GB", str(17 * 3400 / 1e9))
    dataset = cached(photos, "train_val")
    assert dataset.resized is not None
    del dataset
    noise(1).save(photos / "train" / "class0" / "0.png")
    assert torch.equal(all_of(cached(photos)), all_of(opened(photos)))


@pytest.mark.parametrize("setting", ["lots", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(photos, monkeypatch, setting):
    monkeypatch.setenv("CLCA_CACHE_GB", setting)
    with pytest.raises(ClcaError, match=f"CLCA_CACHE_GB is '{setting}': give a number"):
        use_cache([opened(photos)])


def test_an_invalid_limit_argument_is_named_in_the_error(photos):
    with pytest.raises(ClcaError, match=r"^cache_gb is -1: give a number"):
        use_cache([opened(photos)], gigabytes=-1.0)


def test_where_it_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache" / "resized"
    monkeypatch.delenv("CLCA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "clca" / "resized"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "clca" / "resized"


def test_near_empty_images_are_known_also_once_they_are_cached(photos, cache, reads):
    empty = [photos / "train" / f"class{label}" / "blank.png" for label in range(2)]
    for path in empty:
        Image.new("RGB", (60, 40), (0, 3, 0)).save(path)

    first = use_cache([opened(photos)], progress=False)
    del reads[:]
    second = use_cache([opened(photos)], progress=False)
    other = use_cache([opened(photos, "val")], progress=False)

    assert sorted(first.near_empty) == sorted(second.near_empty) == empty
    assert other.near_empty == []
    assert not set(reads) & set(empty)


def test_near_empty_images_stay_known_when_files_are_merged(photos, cache):
    for number in range(12):  # more than are kept as files of their own
        Image.new("RGB", (60, 40), (number, 0, 0)).save(photos / "train" / "class0" / f"blank{number}.png")
        found = use_cache([opened(photos)], progress=False).near_empty
        assert len(found) == number + 1
    assert len(list(cache.glob("*.rows"))) < 12


@pytest.mark.parametrize("value", ["x", [-1], [1.5], None, {}, [2**40]])
def test_an_index_with_other_near_empty_rows_is_not_used(photos, cache, value):
    use_cache([opened(photos)], progress=False)
    (path,) = cache.glob("*.rows")
    content = path.read_bytes()
    start = content.index(b'{"format"')
    index = {**json.loads(content[start:-20]), "near_empty": value}
    text = json.dumps(index).encode()
    path.write_bytes(content[:start] + text + struct.pack("<IQ8s", zlib.crc32(text), len(text), b"CLCAROWS"))

    assert read_row_file(path) is None
