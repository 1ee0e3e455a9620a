"""Transforms from an RGB image to a tensor: the recipe of Rios et al., ICASSP 2025, two stronger ones, evaluation.

All randomness comes from torch's global CPU generator (as in torchvision v2's random crops, flips, TrivialAugmentWide,
RandAugment, ColorJitter and RandomErasing), so `torch.manual_seed(s)` before a call fixes its result. The generators of
Python and numpy are not used.

If only scaling and normalisation follow the crop and flip, a transform can leave these to `Normalization`, which does
so once per batch on the model's device: a batch of bytes takes a quarter of the memory to collate and transfer.
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
    """RGB image → RGB image of size × size pixels; deterministic."""

    size: int
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Image.Image:
        return _resize(self.size, square=True, interpolation=self.interpolation)(image)


@dataclass(frozen=True)
class ResizeFirst:
    """A transform that begins with a deterministic resize to a fixed shape, whose result can be cached.

    Attributes:
        resize: The first step.
        rest: The remaining steps. They accept the resized image as a PIL image or as a uint8 `tv_tensors.Image`
            [3, H, W], and give bit-identical results and draw the same random numbers for both.
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
    """Build the transform of training images: RGB image → float tensor [3, img_size, img_size].

    Args:
        img_size: Side of the square result, in pixels.
        augmentation: "none" is the published recipe: square bicubic resize to img_size/0.875, random crop, horizontal
            flip. "medium" is the published stronger one: random resized crop (torchvision's default area of 8 to
            100 %) instead of resize and crop, horizontal flip, TrivialAugmentWide, erasing with probability 0.3.
            "strong": random resized crop, horizontal flip, RandAugment (two operations of magnitude 9), colour jitter
            0.3, erasing with probability 0.4. Augmentations of batches or of the model (label smoothing, stochastic
            depth, mixup, CutMix) are settings of training.
        mean: Mean of each channel, for values in 0 … 1.
        std: Standard deviation of each channel.
        normalize: False leaves scaling and normalisation to `Normalization` if augmentation is "none"; the result is
            then uint8. The other augmentations erase after normalisation, so they always return floats.

    Raises:
        ClcaError: The augmentation is unknown or the size is invalid.
    """
    _check_size(img_size)
    bicubic = InterpolationMode.BICUBIC
    random_resized_crop = v2.RandomResizedCrop(img_size, interpolation=bicubic, antialias=True)
    flip = v2.RandomHorizontalFlip()
    to_tensor = _to_tensor(mean, std, normalize or augmentation != "none")
    if augmentation == "none":
        return ResizeFirst(
            SquareResize(_resize_side(img_size)), v2.Compose([v2.RandomCrop(img_size), flip, *to_tensor])
        )
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
    """Build the transform of evaluation: the same square resize as in training, then a centre crop.

    Args:
        img_size, mean, std: As for `train_transform`.
        normalize: False returns uint8 and leaves scaling and normalisation to `Normalization`.
    """
    return from_preprocess(preprocess_dict(img_size, mean, std), normalize=normalize)


def preprocess_dict(
    img_size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> dict[str, Any]:
    """The settings of an evaluation transform, as stored with a model; plain JSON values."""
    _check_size(img_size)
    return {
        "img_size": img_size,
        "resize": _resize_side(img_size),
        "interpolation": "bicubic",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "square": True,
    }


def from_preprocess(preprocess: dict[str, Any], *, normalize: bool = True) -> Transform:
    """Build the evaluation transform that a `preprocess_dict` describes.

    `square` False scales the shorter side to `resize` and keeps the aspect ratio.

    Args:
        preprocess: The settings stored with the model.
        normalize: False returns uint8 and leaves scaling and normalisation to `Normalization`.

    Raises:
        ClcaError: A key is missing, a value has the wrong type or range, or the interpolation is unknown.
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


def apply_transform(transform: Transform, read: Callable[[tuple[int, str] | None], Image.Image]) -> Tensor:
    """Apply a transform to an image that another process decodes and, if the transform begins with a resize, resizes.

    Args:
        transform: RGB image → tensor.
        read: Called with the side and interpolation of the square resize, or None; returns the RGB image, as
            `clca.data.decoding.Decoders.image` does.
    """
    if isinstance(transform, ResizeFirst):
        return transform.rest(read((transform.resize.size, transform.resize.interpolation)))
    return transform(read(None))


def _resize_side(img_size: int) -> int:
    return round(img_size / 0.875)


def _resize(size: int, square: bool, interpolation: str = "bicubic") -> v2.Resize:
    known = [mode.value for mode in InterpolationMode]
    if interpolation not in known:
        raise ClcaError(f"unknown interpolation {interpolation!r}: choose from {', '.join(sorted(known))}")
    return v2.Resize([size, size] if square else [size], InterpolationMode(interpolation), antialias=True)


class Normalization:
    """Scale and normalise a batch of uint8 images, bit-identical to a transform with `normalize=True`.

    On a CPU the result is a buffer that the next call overwrites: allocating memory for every batch takes several times
    as long as the arithmetic.

    Args:
        preprocess: The model's preprocessing; `mean` and `std` are used.
    """

    def __init__(self, preprocess: dict[str, Any]) -> None:
        self._mean_std = torch.tensor([preprocess["mean"], preprocess["std"]], dtype=torch.float32)[..., None, None]
        self._buffer: Tensor | None = None

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """Move images to a device and normalise them.

        Args:
            images: uint8 or normalised float32 [B, 3, H, W]; floats are only moved.
            device: The device of the model.
        """
        images = images.to(device, non_blocking=True)
        if images.dtype != torch.uint8:
            return images
        self._mean_std = self._mean_std.to(device)
        if device.type != "cpu":
            return self._normalize(images.to(torch.float32))
        if self._buffer is None or self._buffer.shape != images.shape:
            self._buffer = torch.empty(images.shape)
        for target, image in zip(self._buffer, images, strict=True):  # a single image stays in the processor's cache
            self._normalize(target.copy_(image))
        return self._buffer

    def _normalize(self, images: Tensor) -> Tensor:
        mean, std = self._mean_std
        return images.mul_(1 / 255).sub_(mean).div_(std)  # the same operations as in v2.ToDtype and v2.Normalize


def _to_tensor(mean: Sequence[float], std: Sequence[float], normalize: bool) -> list[torch.nn.Module]:
    pixels = [v2.ToImage(), _ChannelsFirst()]
    if not normalize:
        return [*pixels, v2.ToPureTensor()]
    to_float = v2.ToDtype(torch.float32, scale=True)
    in_place = v2.Normalize(list(mean), list(std), inplace=True)  # on the new tensor from to_float
    return [*pixels, to_float, in_place, v2.ToPureTensor()]


class _ChannelsFirst(torch.nn.Module):
    """Make the tensor contiguous: arithmetic on the interleaved channels of a PIL image takes twice as long."""

    def forward(self, image: tv_tensors.Image) -> tv_tensors.Image:
        return tv_tensors.wrap(image.contiguous(), like=image)


def _check_size(size: int, what: str = "image size") -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ClcaError(f"{what} {size!r} is not a positive whole number of pixels")
    if size > _resize_side(LARGEST_SIDE):  # an untrusted file could exhaust memory
        raise ClcaError(f"{what} {size} is too large: at most {_resize_side(LARGEST_SIDE)} pixels")


def _check_channels(what: str, values: Sequence[float]) -> None:
    """Require one number for each of red, green and blue; standard deviations must be positive."""
    above = -math.inf if what == "mean" else 0
    three = isinstance(values, (list, tuple)) and len(values) == 3
    if not three or not all(isinstance(value, (int, float)) and above < value < math.inf for value in values):
        kind = "numbers" if what == "mean" else "numbers above 0"
        raise ClcaError(f"the model's preprocess: {what} must be three {kind}, not {str(values)[:60]!r}")
