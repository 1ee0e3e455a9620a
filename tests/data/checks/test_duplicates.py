"""Duplicates: the same picture saved again is the same, the same scene in other colours is not."""

import io
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from clca.data.checks.decode import Inspection
from clca.data.checks.duplicates import near_duplicates
from clca.data.checks.report import check
from clca.data.decoder import is_near_empty, thumbnail_of

COATS = {
    "brown": (120, 80, 45), "red": (150, 50, 40), "black": (40, 35, 35), "cream": (215, 195, 150),
    "yellow": (200, 170, 60), "green": (110, 130, 60),
}  # fmt: skip
GROUNDS = {"white": (255, 255, 255), "paper": (243, 241, 235), "black": (12, 12, 14), "blue": (70, 110, 170)}
SAME_GREY = {"red": (178, 60, 60), "green": (50, 124, 60), "blue": (60, 90, 208)}  # of the same luminance


def seed(
    coat: tuple[int, ...], ground: tuple[int, ...], side: int = 224, width: float = 0.2, noise: int = 0
) -> Image.Image:
    """A seed on plain ground, in the same place every time, with noise of its own."""
    rows, columns = np.indices((side, side)) / side - 0.5
    inside = np.clip(side * (1 - np.hypot(rows / (0.35 * width), columns / (0.5 * width))) * width / 4, 0, 1)[..., None]
    levels = inside * np.array(coat) + (1 - inside) * np.array(ground)
    levels += np.random.default_rng(noise).normal(0, 2, (side, side, 1))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


COPIES = {
    "saved again": saved_again,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "other shape": lambda image: image.resize((image.width * 2, image.height)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.95),
}


def inspected(*images: Image.Image) -> list[Inspection]:
    found = []
    for number, image in enumerate(images):
        thumbnail = np.asarray(thumbnail_of(image))
        digest = bytes([number])
        found.append(Inspection(f"{number}.png", image.size, "PNG RGB", digest, thumbnail, is_near_empty(image)))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("width", [0.08, 0.2, 0.6])
@pytest.mark.parametrize("side", [224, 500])
@pytest.mark.parametrize("ground", GROUNDS)
def test_seeds_of_other_coats_are_different(ground, side, width):
    coats = [coat for coat in COATS.values() if np.abs(np.array(coat) - GROUNDS[ground]).max() > 40]
    images = [seed(coat, GROUNDS[ground], side, width, number) for number, coat in enumerate(coats)]

    assert near_duplicates(inspected(*images)) == []


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_of_the_same_grey_are_different(ground):
    images = [seed(coat, GROUNDS[ground], noise=number) for number, coat in enumerate(SAME_GREY.values())]
    assert np.ptp([np.asarray(image.convert("L"))[112, 112] for image in images]) <= 12

    assert near_duplicates(inspected(*images)) == []


def test_a_whole_picture_in_other_colours_is_different():
    leaf = np.random.default_rng(0).integers(60, 160, (8, 8, 3)).astype(np.uint8)
    leaf[..., 1] += 60
    image = Image.fromarray(leaf).resize((224, 224), Image.Resampling.BICUBIC)
    bands = image.split()

    assert near_duplicates(inspected(image, Image.merge("RGB", (bands[1], bands[0], bands[2])))) == []


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("width", [0.1, 0.3, 0.6])
def test_a_copy_of_a_seed_is_the_same(how, ground, width):
    for coat in COATS.values():
        if np.abs(np.array(coat) - GROUNDS[ground]).max() > 40:
            image = seed(coat, GROUNDS[ground], 256, width)
            assert near_duplicates(inspected(image, COPIES[how](image))) == [[0, 1]]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_real_photograph_is_the_same_and_others_are_not(shared, how):
    paths = [
        path
        for folder in ("grapevine_leaves5", "rice_bd8")
        for path in sorted((shared / "data" / folder / "train").rglob("*.jpg"))[::60]
    ]
    images = [Image.open(path).convert("RGB") for path in paths]
    assert len(images) > 8

    groups = near_duplicates(inspected(*images, *map(COPIES[how], images)))

    assert groups == [[number, number + len(images)] for number in range(len(images))]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_order_of_two_images_does_not_matter(data):
    cells = data.draw(st.binary(min_size=27, max_size=27))
    image = Image.frombytes("RGB", (3, 3), cells).resize((48, 48), Image.Resampling.BICUBIC)
    other = data.draw(st.sampled_from(list(COPIES.values())))(image)

    assert near_duplicates(inspected(image, other)) == near_duplicates(inspected(other, image))
    assert near_duplicates(inspected(image, image)) in ([[0, 1]], [])  # the latter if it is nearly empty


def test_coat_colours_are_no_wrong_labels(tmp_path):
    """What the user sees: a set of seeds of three coats, and a copy that is in the wrong class."""
    names = ("brown", "red", "cream")
    for number, name in enumerate(names):
        for split, count in (("train", 3), ("test", 1)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = seed(COATS[name], GROUNDS["paper"], 160, 0.2 + 0.1 * i + (split == "test") * 0.35, number)
                image.save(tmp_path / split / name / f"{i}.png")
    assert check(tmp_path).duplicates == []

    saved_again(Image.open(tmp_path / "train" / "red" / "2.png")).save(tmp_path / "train" / "brown" / "copy.png")
    (group,) = check(tmp_path).duplicates

    assert sorted(group.paths) == ["train/brown/copy.png", "train/red/2.png"]
    assert group.classes == ["brown", "red"]


def test_images_that_differ_in_colour_alone_are_not_nearly_empty():
    grey = seed(SAME_GREY["red"], SAME_GREY["green"], width=0.4)
    assert np.ptp(np.asarray(grey.convert("L")).astype(int)) < 40

    assert not is_near_empty(grey)
    assert is_near_empty(Image.new("RGB", (50, 40), (3, 90, 200)))
    for first, second in combinations(SAME_GREY.values(), 2):
        assert not is_near_empty(seed(first, second))
