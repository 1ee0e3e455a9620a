"""From an RGB image to a tensor: the published recipe (METHOD.md, section 7), two stronger ones, and the evaluation's.

Every random choice here draws from torch's global CPU generator and from nothing else (torchvision v2's random
crops, flips, TrivialAugmentWide, RandAugment, ColorJitter and RandomErasing do), so `torch.manual_seed(s)` before a
call fixes its result; Python's and numpy's generators are never touched.

Where only scaling and normalisation follow the crop and flip, a transform can leave these two to `Normalization`, which
does them once a batch on the model's device: a batch of bytes is put together and moved in a quarter of the memory.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from clca.errors import ClcaError
from clca.models.limits import LARGEST_SIDE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Augmentation = Literal["none", "medium", "strong"]
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class SquareResize:
    """RGB image → RGB image of size × size pixels, the same every time."""

    size: int
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Image.Image:
        return _resize(self.size, square=True, interpolation=self.interpolation)(image)


@dataclass(frozen=True)
class ResizeFirst:
    """A transform that begins with a resize to one shape without chance in it, whose result can thus be kept.

    Attributes:
        resize: The first part.
        rest: The others; takes the resized image as PIL image or as uint8 `tv_tensors.Image` [3, H, W], and gives the
            same bits and draws the same random numbers for both.
    """

    resize: SquareResize
    rest: Callable[[Image.Image | tv_tensors.Image], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        return self.rest(self.resize(image))


def train_transform(
    img_size: int,
    augmentation: Augmentation = "none",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    normalize: bool = True,
) -> Transform:
    """The transform of training images: RGB image → float tensor [3, img_size, img_size].

    Args:
        img_size: Side of the square result, in pixels.
        augmentation: "none" is the published recipe: square bicubic resize to img_size/0.875, random crop, horizontal
            flip. "medium" adds the published stronger one: random resized crop (torchvision's default area of 8 to
            100 %) in place of resize and crop, TrivialAugmentWide, erasing with probability 0.3. "strong": random
            resized crop, RandAugment (two operations of magnitude 9), colour jitter 0.3, erasing with probability
            0.4. What is not done to one image alone (label smoothing, stochastic depth, mixup, CutMix) is training's.
        mean: Per channel, of values in 0 … 1.
        std: The same.
        normalize: False leaves scaling and normalisation to `Normalization` with augmentation "none", which then gives
            uint8. The others erase what is normalised already, and give floats in any case.

    Raises:
        ClcaError: For an unknown augmentation or an impossible size.
    """
    _check_size(img_size)
    bicubic = InterpolationMode.BICUBIC
    random_resized_crop = v2.RandomResizedCrop(img_size, interpolation=bicubic, antialias=True)
    flip = v2.RandomHorizontalFlip()
    to_tensor = _to_tensor(mean, std, normalize or augmentation != "none")
    if augmentation == "none":
        return ResizeFirst(SquareResize(_resize_for(img_size)), v2.Compose([v2.RandomCrop(img_size), flip, *to_tensor]))
    if augmentation == "medium":
        trivial = v2.TrivialAugmentWide(interpolation=bicubic)
        return v2.Compose([random_resized_crop, flip, trivial, *to_tensor, v2.RandomErasing(0.3)])
    if augmentation == "strong":
        random_augment = v2.RandAugment(num_ops=2, magnitude=9, interpolation=bicubic)
        jitter = v2.ColorJitter(0.3, 0.3, 0.3)
        return v2.Compose([random_resized_crop, flip, random_augment, jitter, *to_tensor, v2.RandomErasing(0.4)])
    raise ClcaError(f"unknown augmentation {augmentation!r}: choose from {', '.join(get_args(Augmentation))}")


def eval_transform(
    img_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    normalize: bool = True,
) -> Transform:
    """The transform of evaluation: the same square resize as in training, then the centre crop.

    Args:
        img_size, mean, std: As of `train_transform`.
        normalize: False gives uint8 and leaves scaling and normalisation to `Normalization`.
    """
    return from_preprocess(preprocess_dict(img_size, mean, std), normalize=normalize)


def preprocess_dict(
    img_size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> dict[str, Any]:
    """What a saved model carries to rebuild its evaluation transform; plain JSON values."""
    _check_size(img_size)
    return {
        "img_size": img_size,
        "resize": _resize_for(img_size),
        "interpolation": "bicubic",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "square": True,
    }


def from_preprocess(preprocess: dict[str, Any], *, normalize: bool = True) -> Transform:
    """The evaluation transform that a `preprocess_dict` describes.

    `square` False scales the shorter side to `resize` and keeps the aspect ratio.

    Args:
        preprocess: What the model was saved with.
        normalize: False gives uint8 and leaves scaling and normalisation to `Normalization`.

    Raises:
        ClcaError: Where a key is missing, a value is not of its kind, or the interpolation is unknown.
    """
    if not isinstance(preprocess, dict):
        raise ClcaError(f"the model's preprocess must be settings by name, not {str(preprocess)[:60]!r}")
    missing = [key for key in ("img_size", "resize", "interpolation", "mean", "std", "square") if key not in preprocess]
    if missing:
        raise ClcaError(f"the model's preprocess lacks {', '.join(missing)}: was it saved by clca?")
    _check_size(preprocess["img_size"])
    _check_size(preprocess["resize"], "the model's preprocess: resize")
    for key in ("mean", "std"):
        _check_channels(key, preprocess[key])
    if not isinstance(preprocess["square"], bool):
        raise ClcaError(f"the model's preprocess: square must be true or false, not {preprocess['square']!r}")
    resize = _resize(preprocess["resize"], preprocess["square"], preprocess["interpolation"])
    rest = [v2.CenterCrop(preprocess["img_size"]), *_to_tensor(preprocess["mean"], preprocess["std"], normalize)]
    if preprocess["square"]:
        return ResizeFirst(SquareResize(preprocess["resize"], preprocess["interpolation"]), v2.Compose(rest))
    return v2.Compose([resize, *rest])


def transformed(transform: Transform, read: Callable[[tuple[int, str] | None], Image.Image]) -> Tensor:
    """What a transform makes of an image that another process decodes, which resizes it there if it can.

    Args:
        transform: RGB image → tensor.
        read: Called with side and interpolation of a square to resize to, or None; gives the RGB image, as
            `clca.data.decoding.Decoders.image` does.
    """
    if isinstance(transform, ResizeFirst):
        return transform.rest(read((transform.resize.size, transform.resize.interpolation)))
    return transform(read(None))


def _resize_for(img_size: int) -> int:
    return round(img_size / 0.875)


def _resize(size: int, square: bool, interpolation: str = "bicubic") -> v2.Resize:
    known = [mode.value for mode in InterpolationMode]
    if interpolation not in known:
        raise ClcaError(f"unknown interpolation {interpolation!r}: choose from {', '.join(sorted(known))}")
    return v2.Resize([size, size] if square else [size], InterpolationMode(interpolation), antialias=True)


class Normalization:
    """Scaling and normalisation of a batch, where transforms have left them out; the same bits as theirs.

    On a CPU the result stays in one place until the next call, which overwrites it: fresh memory for every batch takes
    several times as long as the arithmetic.

    Args:
        preprocess: Of the model; `mean` and `std` count.
    """

    def __init__(self, preprocess: dict[str, Any]) -> None:
        self._mean_std = torch.tensor([preprocess["mean"], preprocess["std"]], dtype=torch.float32)[..., None, None]
        self._kept: Tensor | None = None

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """Take images to a device, as a model wants them.

        Args:
            images: uint8 or normalised float32 [B, 3, H, W]; floats are left as they are.
            device: The model's.
        """
        images = images.to(device, non_blocking=True)
        if images.dtype != torch.uint8:
            return images
        self._mean_std = self._mean_std.to(device)
        if device.type != "cpu":
            return self._normalize(images.to(torch.float32))
        if self._kept is None or self._kept.shape != images.shape:
            self._kept = torch.empty(images.shape)
        for kept, image in zip(self._kept, images, strict=True):  # one by one they stay in the processor's cache
            self._normalize(kept.copy_(image))
        return self._kept

    def _normalize(self, images: Tensor) -> Tensor:
        mean, std = self._mean_std
        return images.mul_(1 / 255).sub_(mean).div_(std)  # as v2.ToDtype and v2.Normalize do it


def _to_tensor(mean: Sequence[float], std: Sequence[float], normalize: bool) -> list[torch.nn.Module]:
    pixels = [v2.ToImage(), _ChannelsFirst()]
    if not normalize:
        return [*pixels, v2.ToPureTensor()]
    to_float = v2.ToDtype(torch.float32, scale=True)
    in_place = v2.Normalize(list(mean), list(std), inplace=True)  # of what to_float has just made
    return [*pixels, to_float, in_place, v2.ToPureTensor()]


class _ChannelsFirst(torch.nn.Module):
    """Order pixels in memory as their shape says: arithmetic on a PIL image's R G B R G B … takes twice as long."""

    def forward(self, image: tv_tensors.Image) -> tv_tensors.Image:
        return tv_tensors.wrap(image.contiguous(), like=image)


def _check_size(size: int, what: str = "image size") -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ClcaError(f"{what} {size!r} is not a positive whole number of pixels")
    if size > _resize_for(LARGEST_SIDE):  # a stranger's file would take all memory
        raise ClcaError(f"{what} {size} is beyond all use: at most {_resize_for(LARGEST_SIDE)} pixels")


def _check_channels(what: str, values: Sequence[float]) -> None:
    """One number for each of red, green and blue; deviations are divided by."""
    above = -math.inf if what == "mean" else 0
    three = isinstance(values, (list, tuple)) and len(values) == 3
    if not three or not all(isinstance(value, (int, float)) and above < value < math.inf for value in values):
        kind = "numbers" if what == "mean" else "numbers above 0"
        raise ClcaError(f"the model's preprocess: {what} must be three {kind}, not {str(values)[:60]!r}")
