"""Synthetic leaves: reproducible, with no information in colour and all of it in veins and margin."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import clca.data
from clca.data.datasets import Leaves
from clca.data.synthetic.drawing import Traits, draw_leaf, leaf_detail
from clca.data.synthetic.leaves import TRAIT_RANGES, cultivar_traits, write_leaves
from clca.errors import ClcaError, WorkError


def pixels(leaves: Leaves, index: int) -> np.ndarray:
    return np.asarray(leaves.image(index))


def trait_matrix(leaves: Leaves) -> np.ndarray:
    return np.array([[getattr(leaves.traits(i), name) for name in TRAIT_RANGES] for i in range(len(leaves))])


def accuracy(features: np.ndarray, labels: list[int]) -> float:
    """Of a standardised linear classifier, over five folds."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return float(cross_val_score(model, features, labels, cv=5).mean())


def test_the_dataset_keeps_the_contract():
    leaves = Leaves(cultivars=3, images=10, size=32, split="train")

    image, label = leaves[0]
    assert (image.mode, image.size, label) == ("RGB", (32, 32), 0)
    assert leaves.classes == ["cultivar-001", "cultivar-002", "cultivar-003"]
    assert leaves.labels == [0] * 6 + [1] * 6 + [2] * 6
    assert len(leaves.paths) == len(set(leaves.paths)) == len(leaves) == 18

    leaves.transform = lambda image: image.size
    assert leaves[17] == ((32, 32), 2)


@given(st.integers(2, 9), st.integers(3, 40))
def test_splits_are_disjoint_and_complete_and_none_is_empty(cultivars, images):
    parts = {split: Leaves(cultivars, images, split=split).paths for split in ("train", "val", "test")}

    everything = [path for part in parts.values() for path in part]
    assert len(set(everything)) == len(everything) == cultivars * images
    assert all(parts.values())
    assert set(Leaves(cultivars, images, split="train_val").paths) == {*parts["train"], *parts["val"]}
    assert set(Leaves(cultivars, images, split="all").paths) == set(everything)


def test_same_seed_same_pixels_also_in_another_process():
    program = """
import hashlib
from clca.data.synthetic.leaves import DrawnLeaves
leaves = DrawnLeaves(3, 5, 64, seed=7, split="all", cache=False)
print(hashlib.sha256(b"".join(leaves.image(i).tobytes() for i in (14, 0, 6))).hexdigest())
"""
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip()

    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    one = Leaves(3, 5, 64, seed=7, split="all")
    first = pixels(one, 3)
    here = hashlib.sha256(b"".join(one.image(i).tobytes() for i in (14, 0, 6))).hexdigest()

    assert here == elsewhere
    assert np.array_equal(first, pixels(Leaves(3, 5, 64, seed=7, split="all", cache=False), 3))
    assert not np.array_equal(first, pixels(Leaves(3, 5, 64, seed=8, split="all"), 3))


def test_more_images_and_cultivars_leave_the_others_as_they_are():
    small = Leaves(3, 6, 32, split="all")
    large = Leaves(5, 11, 32, split="all")

    for path in small.paths:
        assert np.array_equal(pixels(small, small.paths.index(path)), pixels(large, large.paths.index(path)))


def test_the_same_leaf_comes_out_at_every_size():
    small, large = (Leaves(2, 5, size, split="all") for size in (64, 256))

    for index in range(5):
        shrunk = np.asarray(large.image(index).resize((64, 64), Image.Resampling.BOX), dtype=float)
        # What differs is the grain of paper and sensor, drawn at the size asked for.
        assert np.abs(shrunk - pixels(small, index)).mean() < 10
        assert small.traits(index) == large.traits(index)


def test_a_changed_picture_does_not_reach_the_cache():
    leaves = Leaves(2, 5, 32)
    leaves.image(0).paste((0, 0, 0), (0, 0, 32, 32))

    assert pixels(leaves, 0).max() > 0


COLOURS = Leaves(cultivars=6, images=40, size=64, difficulty=0.3, split="all")


def test_colour_histograms_do_not_tell_the_cultivars_apart():
    histograms = []
    for index in range(len(COLOURS)):
        image = pixels(COLOURS, index)
        joint = np.histogramdd(image.reshape(-1, 3), bins=(4, 4, 4), range=[(0, 256)] * 3)[0].ravel()
        single = [np.histogram(image[..., channel], bins=16, range=(0, 256))[0] for channel in range(3)]
        histograms.append(np.concatenate([joint, *single]))

    # Chance is 1/6; over 240 leaves its standard deviation is 0.024, and three of them are the margin.
    assert accuracy(np.sqrt(histograms), COLOURS.labels) < 1 / 6 + 0.072


def test_the_traits_tell_them_apart_and_less_so_where_it_is_harder():
    easy, middle, hard = (
        accuracy(trait_matrix(leaves), leaves.labels)
        for leaves in (Leaves(12, 20, difficulty=difficulty, split="all") for difficulty in (0.0, 0.5, 1.0))
    )

    assert easy > 0.99
    assert easy >= middle > hard + 0.05
    assert hard > 3 / 12


def test_difficulty_scales_the_gaps_between_cultivars():
    def spread(difficulty: float) -> np.ndarray:
        return np.std([list(vars(cultivar_traits(c, 0, difficulty)).values()) for c in range(20)], axis=0)

    assert (spread(0.0) > 1.5 * spread(0.5)).all()
    assert (spread(0.5) > 2 * spread(1.0)).all()
    assert (spread(1.0) > 0).all()


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 300), st.floats(0, 1))
def test_cultivars_lie_within_the_ranges_and_apart(seed, cultivar, difficulty):
    ranges = np.array(list(TRAIT_RANGES.values()))

    def place(number: int) -> np.ndarray:
        return (np.array(list(vars(cultivar_traits(number, seed, difficulty)).values())) - ranges[:, 0]) / np.ptp(
            ranges, axis=1
        )

    here = place(cultivar)
    assert ((here >= 0) & (here <= 1)).all()
    assert all(np.abs(place(other) - here).max() > 0.01 for other in range(5) if other != cultivar)


def test_detail_is_where_a_change_of_traits_changes_the_picture():
    traits = cultivar_traits(0)
    finer = Traits(**{**vars(traits), "tooth_density": traits.tooth_density * 1.5, "tooth_depth": 0.03})
    inside, outside = [], []
    for seed in range(6):
        one, other = (
            np.asarray(draw_leaf(each, np.random.default_rng(seed), 128), dtype=float) for each in (traits, finer)
        )
        changed = np.abs(one - other).mean(axis=2)
        detail = leaf_detail(traits, np.random.default_rng(seed), 128)
        assert 0.02 < detail.mean() < 0.35
        inside.append(changed[detail].mean())
        outside.append(changed[~detail].mean())

    assert np.mean(inside) > 3 * np.mean(outside)


def test_the_mask_of_a_leaf_lies_on_that_leaf():
    leaves = Leaves(2, 5, 96, split="all")
    for index in range(len(leaves)):
        detail = leaves.detail_mask(index)
        rows, columns = np.nonzero(detail)
        middle = pixels(leaves, index)[int(rows.mean()), int(columns.mean())].astype(int)
        corner = pixels(leaves, index)[:4, :4].reshape(-1, 3).mean(axis=0)
        assert detail.shape == (96, 96)
        assert np.abs(middle - corner).max() > 25  # the leaf is there, the corner is paper


def test_leaves_vary_widely_within_a_cultivar():
    leaves = Leaves(2, 40, 48, split="all")
    means = np.array([pixels(leaves, i)[16:32, 16:32].mean(axis=(0, 1)) for i in range(40)])
    paper = np.array([pixels(leaves, i)[:3].mean() for i in range(40)])

    assert (means.std(axis=0) > 15).all()
    assert paper.std() > 8


def test_leaves_fit_into_the_frame():
    leaves = Leaves(10, 6, 128, split="all")
    border = [leaves.detail_mask(i) for i in range(len(leaves))]

    assert not any(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any() for mask in border)


def test_written_leaves_are_those_in_memory(tmp_path):
    out = write_leaves(tmp_path / "leaves", cultivars=3, images=6, size=40, seed=3, difficulty=0.2)

    assert json.loads((out / "leaves.json").read_text()) == {
        "format": "clca-leaves-1", "cultivars": 3, "images": 6, "size": 40, "seed": 3, "difficulty": 0.2,
    }  # fmt: skip
    for split in clca.data.SPLITS:
        written = clca.data.open(out, split)
        drawn = clca.data.open("leaves:cultivars=3,images=6,size=40,seed=3,difficulty=0.2", split)
        assert written.classes == drawn.classes
        by_path = {path.relative_to(out): i for i, path in enumerate(written.paths)}
        assert set(by_path) == set(drawn.paths)
        for i, path in enumerate(drawn.paths):
            assert np.array_equal(np.asarray(written[by_path[path]][0]), np.asarray(drawn[i][0]))
    assert not list(out.rglob(".*"))  # no temporary file is left


def test_writing_again_continues_and_enlarges(tmp_path):
    out = write_leaves(tmp_path, cultivars=2, images=4, size=32)
    lost, kept = sorted(out.rglob("*.png"))[:2]
    lost.unlink()
    before = kept.stat().st_mtime_ns

    write_leaves(tmp_path, cultivars=3, images=5, size=32)

    assert lost.exists()
    assert kept.stat().st_mtime_ns == before
    assert len(list(out.rglob("*.png"))) == 15
    with pytest.raises(ClcaError, match="with cultivars 3, not 2; choose a new folder"):
        write_leaves(tmp_path, cultivars=2, images=5, size=32)
    with pytest.raises(ClcaError, match="with seed 0, not 1"):
        write_leaves(tmp_path, cultivars=3, images=5, size=32, seed=1)


def test_folders_with_other_files_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(ClcaError, match="not empty and contains no synthetic leaves"):
        write_leaves(tmp_path, cultivars=2, images=3, size=16)
    with pytest.raises(ClcaError, match="is a file"):
        write_leaves(tmp_path / "thesis.txt", cultivars=2, images=3, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failing_disk_is_reported_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clca.system.files.os.replace", full)

    with pytest.raises(WorkError, match=r"\(no space left\); run the command again to continue"):
        write_leaves(tmp_path / "out", cultivars=2, images=3, size=16)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("leaves:cultivars=1", "cultivars is 1: needs 2 to 999"),
        ("leaves:images=2", "images is 2: needs 3"),
        ("leaves:size=8", "size is 8: needs 16 to 2048"),
        ("leaves:seed=-1", "seed is -1"),
        ("leaves:difficulty=1.5", "difficulty is 1.5: needs 0"),
        ("leaves:difficulty=nan", "difficulty is nan"),
        ("leaves:size=big", "size is 'big', not a number"),
        ("leaves:colour=red", "unknown parameter 'colour': choose from cultivars, images, size, seed, difficulty"),
    ],
)
def test_wrong_parameters_are_named(text, reason):
    with pytest.raises(ClcaError) as caught:
        clca.data.open(text)
    assert reason in str(caught.value)


def test_leaves_open_like_any_other_source():
    assert len(clca.data.open("leaves:cultivars=4,images=10,size=32", "test")) == 8
    assert len(clca.data.open("leaves:cultivars=2,images=5", "val", source="leaves")) == 2
    assert len(clca.data.open("leaves", "train").classes) == 20
    with pytest.raises(ClcaError, match="unknown split"):
        clca.data.open("leaves", "all")
