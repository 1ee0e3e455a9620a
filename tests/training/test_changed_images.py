"""A run whose images were moved, or have changed since it was started or finished."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import draw

from clca.cli import main as cli
from clca.errors import ClcaError
from clca.training import TrainConfig, resume, train, trainer
from clca.training.image_list import ListedImage, changes, read_images, write_images
from clca.training.run_folder import RunFolder

Make = Callable[..., TrainConfig]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", classes=3, images=4)


def interrupt(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    one_step = trainer._Trainer._one_step
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Trainer, "_one_step", lambda self, batches: one_step(self, batches) or True)
        with pytest.raises(trainer.Interrupted):
            train(config, quiet=True)


@pytest.mark.parametrize("relative", [False, True])
def test_an_interrupted_run_goes_on_where_its_images_were_moved_to(
    make_config: Make, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    config = make_config(data={"root": str(photos)})
    interrupt(config, monkeypatch)
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(ClcaError, match="no such file or folder"):
        resume(tmp_path / "run", quiet=True)
    monkeypatch.chdir(tmp_path)
    place = "moved" if relative else str(moved)
    assert cli.main(["train", place, "--resume", str(tmp_path / "run")]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (stored["train"]["data"]["root"], stored["resolved"]["started_in"]) == (place, str(tmp_path))
    assert resume(tmp_path / "run", quiet=True).steps == 4  # finished: its settings name the new place
    monkeypatch.chdir("/")
    assert RunFolder(tmp_path / "run").images.root == str(moved)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("new", "1 new (train/class0/more.png)"),
        ("missing", "1 missing (val/class2/0.png)"),
        ("changed", "1 changed (train/class1/0.png)"),
        ("renamed", "1 missing (train/class1/0.png); 1 new (train/class1/other.png)"),
        ("class", "16 missing (test/class0/0.png"),
    ],
)
def test_elsewhere_other_images_are_refused_by_name(
    make_config: Make, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], change: str, message: str,
) -> None:  # fmt: skip
    interrupt(make_config(data={"root": str(photos)}), monkeypatch)
    other = photos.rename(tmp_path / "other")
    one = other / "train" / "class1" / "0.png"
    if change == "new":
        shutil.copy(one, other / "train" / "class0" / "more.png")
    elif change == "missing":
        (other / "val" / "class2" / "0.png").unlink()
    elif change == "changed":
        one.write_bytes(one.read_bytes() + b"more")
    elif change == "renamed":
        one.rename(one.with_name("other.png"))
    else:
        for name in ("class0",):
            for split in other.iterdir():
                (split / name).rename(split / "zinnia")
        message = "12 missing (test/class0/0.png, test/class0/1.png, test/class0/2.png and 9 more); 12 new (test/zinnia"
    before = (tmp_path / "run" / "config.json").read_bytes()
    assert cli.main(["train", str(other), "--resume", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "its images have changed since it was started" in error
    assert message in error
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_finished_run_says_what_has_changed_since_and_the_two_ways_on(
    make_config: Make, photos: Path, tmp_path: Path
) -> None:
    config = make_config(data={"root": str(photos)})
    result = train(config, quiet=True)
    assert train(config, quiet=True) == result
    shutil.copy(photos / "test" / "class0" / "0.png", photos / "train" / "class0" / "more.png")
    with pytest.raises(ClcaError, match=r"finished, but its images have changed since: 1 image is new\. Two ways"):
        train(config, quiet=True)
    shutil.copytree(photos / "train" / "class0", photos / "train" / "oak")
    (photos / "val" / "class1" / "0.png").unlink()
    with pytest.raises(ClcaError) as refused:
        train(config, quiet=True)
    said = str(refused.value)
    assert "6 images and the class 'oak' are new; 1 image is gone" in said
    assert "--out NEW" in said
    assert f"clca train {photos} --from {tmp_path / 'run'}" in said
    assert said.count("\n") == 0
    shutil.rmtree(photos)  # images that are gone altogether change nothing
    assert train(config, quiet=True) == result


def test_of_a_set_split_by_rule_a_new_image_counts_once(make_config: Make, images: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(images / "train", tmp_path / "photos")
    config = make_config(data={"root": str(photos)})
    train(config, quiet=True)
    for number in range(5):  # they move others to another split
        shutil.copy(photos / "class0" / "0.png", photos / "class0" / f"x{number}.png")
    with pytest.raises(ClcaError, match=r"since: 5 images are new\. Two ways on"):
        train(config, quiet=True)


def test_a_finished_run_of_an_earlier_version_says_how_many(make_config: Make, photos: Path, tmp_path: Path) -> None:
    config = make_config(data={"root": str(photos)})
    train(config, quiet=True)
    (tmp_path / "run" / "images.csv").unlink()
    shutil.copy(photos / "test" / "class0" / "0.png", photos / "train" / "class0" / "more.png")
    with pytest.raises(ClcaError, match=r"have changed since: 12 train images then and 13 now\. Two ways on"):
        train(config, quiet=True)


def test_a_finished_run_learns_where_its_images_are_now(make_config: Make, photos: Path, tmp_path: Path) -> None:
    train(make_config(data={"root": str(photos)}), quiet=True)
    moved = photos.rename(tmp_path / "moved")
    resume(tmp_path / "run", moved, quiet=True)
    assert RunFolder(tmp_path / "run").config.data.root == str(moved)
    shutil.copytree(moved / "train" / "class0", moved / "train" / "oak")
    with pytest.raises(ClcaError, match="4 images and the class 'oak' are new"):
        resume(tmp_path / "run", moved, quiet=True)


NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)
LISTS = st.dictionaries(
    st.sampled_from(["train", "watched", "unused"]),
    st.lists(st.builds(ListedImage, NAMES, st.integers(0, 10**9), NAMES), max_size=6, unique_by=lambda i: i.path),
)


@settings(deadline=None, max_examples=30)  # it writes files
@given(lists=LISTS)
def test_what_is_listed_is_read_again(lists: dict[str, list[ListedImage]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("list") / "images.csv"
    write_images(path, lists)
    found = read_images(path)
    assert found is not None
    last = {image.path: 0 for images in lists.values() for image in images}
    if len(last) == sum(map(len, lists.values())):  # no path in two splits
        assert not changes(found, lists)


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n", b"split,path,bytes,class\ntrain,a,x,b\n", b"split,path,bytes,class\ntrain,a\n",
                b"split,path,bytes,class\ntrain,a,-1,b\n", b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_list_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.csv").write_bytes(content)
    assert read_images(tmp_path / "images.csv") is None
    assert read_images(tmp_path) is None
