"""Transforms: the published recipe, reproducible from torch's seed, and a dict that rebuilds the evaluation."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as F

from clca.data.transforms import eval_transform, from_preprocess, preprocess_dict, train_transform
from clca.errors import ClcaError


def picture(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("augmentation", ["none", "medium", "strong"])
def test_train_transform_gives_normalized_square_tensors(augmentation):
    out = train_transform(48, augmentation)(picture())

    assert out.shape == (3, 48, 48)
    assert out.dtype == torch.float32
    assert type(out) is torch.Tensor
    assert -3 < out.min() < out.max() < 3


@pytest.mark.parametrize("augmentation", ["none", "medium", "strong"])
def test_only_torchs_generator_is_drawn_from(augmentation):
    transform = train_transform(32, augmentation)
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(torch.stack([transform(picture(seed=i)) for i in range(6)]))

    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002


def test_evaluation_is_the_published_resize_and_centre_crop():
    image = picture(101, 77)

    resized = F.resize(image, [512, 512], F.InterpolationMode.BICUBIC, antialias=True)
    expected = F.normalize(
        F.to_tensor(F.center_crop(resized, [448, 448])), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )

    torch.testing.assert_close(eval_transform(448)(image), expected, rtol=0, atol=1e-6)  # a float32 rounding or two


def test_recipe_training_is_a_crop_of_the_same_resize():
    image = picture()
    resized = F.to_tensor(F.resize(image, [37, 37], F.InterpolationMode.BICUBIC))

    out = train_transform(32, mean=(0, 0, 0), std=(1, 1, 1))(image)

    crops = [resized[:, top : top + 32, left : left + 32] for top in range(6) for left in range(6)]
    nearest = min((out - candidate).abs().max().item() for crop in crops for candidate in (crop, crop.flip(2)))
    assert nearest < 1e-6


@settings(max_examples=25, deadline=None)
@given(
    st.integers(8, 96), st.tuples(*[st.floats(0.1, 0.9)] * 3), st.tuples(*[st.floats(0.1, 0.9)] * 3),
    st.integers(1, 130), st.integers(1, 130),
)  # fmt: skip
def test_preprocess_dict_rebuilds_the_evaluation_transform(size, mean, std, width, height):
    image = picture(width, height)

    expected = eval_transform(size, mean, std)(image)

    assert torch.equal(from_preprocess(preprocess_dict(size, mean, std))(image), expected)
    assert expected.shape == (3, size, size)


def test_preprocess_names_what_was_done():
    assert preprocess_dict(448) == {
        "img_size": 448, "resize": 512, "interpolation": "bicubic", "square": True,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert preprocess_dict(224)["resize"] == 256


def test_without_square_the_aspect_ratio_stays():
    image = Image.new("RGB", (128, 32), "black")
    image.paste("white", (48, 0, 80, 32))  # the middle square: all that the crop sees where the ratio is kept

    kept = from_preprocess({**preprocess_dict(28, (0, 0, 0), (1, 1, 1)), "square": False})(image)
    squeezed = eval_transform(28, (0, 0, 0), (1, 1, 1))(image)

    assert kept.mean() > 0.95
    assert squeezed.mean() < 0.4


def test_mistakes_are_named():
    with pytest.raises(ClcaError, match=r"'huge'.*none, medium, strong"):
        train_transform(32, "huge")
    with pytest.raises(ClcaError, match="0"):
        eval_transform(0)
    with pytest.raises(ClcaError, match="resize, std"):
        from_preprocess({key: value for key, value in preprocess_dict(32).items() if key not in ("resize", "std")})
    with pytest.raises(ClcaError, match="'cubic'"):
        from_preprocess({**preprocess_dict(32), "interpolation": "cubic"})
