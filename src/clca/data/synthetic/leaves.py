"""Synthetic leaves, the built-in data set: cultivars differ only in fine detail, images in everything.

A cultivar is a point in the space of traits (`drawing.Traits`): angle and density of the veins, frequency and depth of
the teeth, depth of the lobes. Its leaves scatter slightly around that point, and vary widely in pose, colour, light,
damage and background, which carry no information about the cultivar.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clca.data.checks.decode import track
from clca.data.synthetic.drawing import Traits, draw_leaf, leaf_detail
from clca.errors import ClcaError, WorkError, reason
from clca.system.files import read_json, temporary_beside
from clca.system.paths import expanded

TRAIT_RANGES: Mapping[str, tuple[float, float]] = {
    "vein_angle": (28.0, 72.0),
    "vein_density": (4.5, 13.0),
    "tertiary_density": (3.0, 14.0),
    "tooth_density": (6.0, 38.0),
    "tooth_depth": (0.004, 0.05),
    "lobe_depth": (0.0, 0.55),
}
"""Lowest and highest value of each trait over all cultivars."""

_FORMAT = "clca-leaves-1"
_PARAMETERS_FILE = "leaves.json"
_JITTER = 0.035  # standard deviation of a trait within a cultivar, as a fraction of its range
_HARDEST_GAP = 0.12  # at difficulty 1 the traits of the cultivars span this fraction of the ranges
_SPLIT_OF = ("train", "test", "val", "train", "train")  # by image number modulo 5: three images fill all splits


def cultivar_traits(cultivar: int, seed: int = 0, difficulty: float = 0.5) -> Traits:
    """The traits at the centre of a cultivar.

    Cultivars follow a low-discrepancy sequence (Roberts' generalised golden ratio) that starts at a point given by the
    seed, so any number of them is well separated, and adding cultivars does not change the earlier ones.
    """
    ratio = 1.0
    for _ in range(60):  # the root of x^(d+1) = x + 1
        ratio = (1 + ratio) ** (1 / (len(TRAIT_RANGES) + 1))
    steps = ratio ** -np.arange(1.0, len(TRAIT_RANGES) + 1)
    start = np.random.default_rng([seed, 6]).random(len(TRAIT_RANGES))
    gap = 1 - (1 - _HARDEST_GAP) * difficulty
    offset = (start + cultivar * steps) % 1 * 2 - 1
    outward = (
        np.sign(offset) * np.abs(offset) ** 0.6
    )  # keep cultivars away from the middle, where they would be similar
    return _traits(0.5 + gap * outward / 2)


def _traits(fractions: NDArray[np.float64]) -> Traits:
    inside = np.clip(fractions, -0.1, 1.1)
    low_high = TRAIT_RANGES.items()
    values = {name: low + part * (high - low) for (name, (low, high)), part in zip(low_high, inside, strict=True)}
    return Traits(**{**values, "lobe_depth": max(0.0, values["lobe_depth"])})


class DrawnLeaves:
    """The leaves of a split, drawn on first access; the arguments are those of `clca.data.Leaves`.

    `clca.data.Leaves` is the same as a torch Dataset; this class does not need torch.
    """

    def __init__(
        self,
        cultivars: int = 20,
        images: int = 30,
        size: int = 224,
        seed: int = 0,
        difficulty: float = 0.5,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        cache: bool = True,
    ) -> None:
        _check(cultivars, images, size, seed, difficulty)
        wanted = {"train_val": ("train", "val"), "all": ("train", "val", "test")}.get(split, (split,))
        if not set(wanted) <= set(_SPLIT_OF):
            raise ClcaError(f"unknown split {split!r}: choose from train, val, train_val, test, all")
        self.size, self.seed, self.difficulty, self.split = size, seed, difficulty, split
        self._turn = np.pi * min(1.0, 1 / 12 + 11 / 6 * difficulty)  # from 0.5 on, leaves have any orientation
        self.transform = transform
        self.classes = [f"cultivar-{cultivar + 1:03d}" for cultivar in range(cultivars)]
        self._leaves = [
            (cultivar, number)
            for cultivar in range(cultivars)
            for number in range(images)
            if _SPLIT_OF[number % 5] in wanted
        ]
        self.labels = [cultivar for cultivar, _ in self._leaves]
        self.paths = [
            Path(_SPLIT_OF[number % 5], self.classes[cultivar], f"{number:04d}.png")
            for cultivar, number in self._leaves
        ]
        self._cache: dict[int, Image.Image] | None = {} if cache else None

    @classmethod
    def from_text(cls, text: str, split: str = "train", transform: Callable[[Image.Image], Any] | None = None) -> Self:
        """Parse "leaves" or "leaves:cultivars=8,images=30,size=96,seed=0,difficulty=0.3".

        Raises:
            ClcaError: A parameter is unknown or not a number.
        """
        types = {"cultivars": int, "images": int, "size": int, "seed": int, "difficulty": float}
        values: dict[str, Any] = {}
        for item in filter(None, text.partition(":")[2].split(",")):
            name, _, value = (part.strip() for part in item.partition("="))
            if name not in types:
                raise ClcaError(f"{text}: unknown parameter {name!r}: choose from {', '.join(types)}")
            try:
                values[name] = types[name](value)
            except ValueError:
                raise ClcaError(f"{text}: {name} is {value!r}, not a number") from None
        return cls(**values, split=split, transform=transform)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.image(index)
        return (image if self.transform is None else self.transform(image)), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """The leaf as an RGB image, before the transform."""
        if self._cache is None:
            return draw_leaf(*self._traits_and_rng(index), self.size, self._turn)
        if index not in self._cache:
            self._cache[index] = draw_leaf(*self._traits_and_rng(index), self.size, self._turn)
        return self._cache[index].copy()

    def detail_mask(self, index: int) -> NDArray[np.bool_]:
        """Mask of the detail that determines the cultivar: veins and margin. Boolean, [size, size]."""
        return leaf_detail(*self._traits_and_rng(index), self.size, self._turn)

    def traits(self, index: int) -> Traits:
        """The traits from which this leaf was drawn."""
        return self._traits_and_rng(index)[0]

    def _traits_and_rng(self, index: int) -> tuple[Traits, np.random.Generator]:
        cultivar, number = self._leaves[index]
        rng = np.random.default_rng([self.seed, cultivar, number])
        centre = cultivar_traits(cultivar, self.seed, self.difficulty)
        spans = np.array([(low, high) for low, high in TRAIT_RANGES.values()])
        values = np.array([getattr(centre, name) for name in TRAIT_RANGES])
        fractions = (values - spans[:, 0]) / (spans[:, 1] - spans[:, 0])
        return _traits(fractions + rng.normal(0, _JITTER, len(spans))), rng


def _check(cultivars: int, images: int, size: int, seed: int, difficulty: float) -> None:
    if not 2 <= cultivars <= 999:
        raise ClcaError(f"cultivars is {cultivars}: needs 2 to 999")
    if not 3 <= images <= 9999:
        raise ClcaError(f"images is {images}: needs 3 to 9999 per cultivar, so that each split has some")
    if not 16 <= size <= 2048:
        raise ClcaError(f"size is {size}: needs 16 to 2048 pixels")
    if seed < 0:
        raise ClcaError(f"seed is {seed}: needs a non-negative integer")
    if not 0 <= difficulty <= 1:
        raise ClcaError(f"difficulty is {difficulty}: needs 0 (easy) to 1 (hard)")


def write_leaves(
    out: str | Path,
    cultivars: int = 20,
    images: int = 30,
    size: int = 224,
    seed: int = 0,
    difficulty: float = 0.5,
    *,
    progress: bool | Callable[[int, int], None] = True,
) -> Path:
    """Write synthetic leaves as `out/{train,val,test}/cultivar-001/0000.png` …, and their parameters as leaves.json.

    Existing files are kept: an interrupted call continues where it stopped, and a set can be enlarged with more
    cultivars or images.

    Args:
        out: A folder that is new, empty, or contains leaves of the same size, seed and difficulty.
        cultivars, images, size, seed, difficulty: As for `clca.data.Leaves`.
        progress: True shows a progress bar on a terminal after two seconds. A function is called after each leaf, with
            the number of leaves written so far and the total.

    Returns:
        The folder.

    Raises:
        ClcaError: A parameter is out of range, or the folder contains something else.
        WorkError: The folder cannot be written.
    """
    out = expanded(out)
    leaves = DrawnLeaves(cultivars, images, size, seed, difficulty, split="all", cache=False)
    parameters = {
        "format": _FORMAT, "cultivars": cultivars, "images": images, "size": size, "seed": seed,
        "difficulty": difficulty,
    }  # fmt: skip
    _check_folder(out, parameters)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_beside(out / _PARAMETERS_FILE) as temporary:
            temporary.write_text(json.dumps(parameters, indent=2) + "\n")
        for index in track(range(len(leaves)), len(leaves), "drawing leaves" if progress is True else None):
            path = out / leaves.paths[index]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with temporary_beside(path) as temporary:
                    leaves.image(index).save(temporary, "PNG")
            if callable(progress):
                progress(index + 1, len(leaves))
    except OSError as error:
        raise WorkError(f"{out}: cannot write ({reason(error)}); run the command again to continue") from error
    return out


def _check_folder(out: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse a folder that contains other files, or leaves with other parameters."""
    if out.exists() and not out.is_dir():
        raise ClcaError(f"{out}: is a file; choose a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    found = read_json(out / _PARAMETERS_FILE)
    if found is None or found.get("format") != _FORMAT:
        raise ClcaError(f"{out}: is not empty and contains no synthetic leaves; choose a new folder")
    for name, value in parameters.items():
        grown = name in ("cultivars", "images") and isinstance(found.get(name), int) and value >= found[name]
        if found.get(name) != value and not grown:
            raise ClcaError(f"{out}: contains leaves with {name} {found.get(name)}, not {value}; choose a new folder")
