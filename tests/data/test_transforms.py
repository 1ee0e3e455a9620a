"""Transforms: the published recipe, reproducible from torch's seed, and a dict that rebuilds the evaluation."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as F

from clca.data.transforms import Normalization, eval_transform, from_preprocess, preprocess_dict, train_transform
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


CPU = torch.device("cpu")
UNIT = st.floats(0.01, 0.99)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 4), st.tuples(UNIT, UNIT, UNIT), st.tuples(UNIT, UNIT, UNIT),
    st.sampled_from(["train", "square", "shorter side"]), st.integers(0, 2**31),
)  # fmt: skip
def test_normalising_a_batch_gives_the_bits_of_normalising_each_image(size, count, mean, std, kind, seed):
    preprocess = preprocess_dict(size, mean, std)

    def batch(normalize: bool) -> torch.Tensor:
        if kind == "train":
            transform = train_transform(size, "none", mean, std, normalize=normalize)
        else:
            transform = from_preprocess({**preprocess, "square": kind == "square"}, normalize=normalize)
        torch.manual_seed(seed)
        return torch.stack([transform(picture(seed=seed % 99 + number)) for number in range(count)])

    expected, state = batch(True), torch.get_rng_state()
    pixels = batch(False)

    assert torch.equal(torch.get_rng_state(), state)
    assert pixels.dtype == torch.uint8
    assert type(pixels) is torch.Tensor
    normalized = Normalization(preprocess)(pixels, CPU)
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous()
    assert torch.equal(normalized, expected)


def test_every_byte_in_every_channel_is_normalised_as_before():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    preprocess = preprocess_dict(16)
    expected = F.normalize(F.to_tensor(pixels[0].permute(1, 2, 0).numpy()), preprocess["mean"], preprocess["std"])
    at_once = from_preprocess(preprocess)(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize((18, 18), 0))

    normalized = Normalization(preprocess)(pixels, CPU)

    torch.testing.assert_close(normalized[1], expected, rtol=0, atol=1e-6)
    assert set(at_once.flatten().tolist()) <= set(normalized.flatten().tolist())


@pytest.mark.parametrize("augmentation", ["medium", "strong"])
def test_what_is_erased_after_normalisation_stays_a_float(augmentation):
    outs = []
    for normalize in (True, False):
        torch.manual_seed(4)
        transform = train_transform(24, augmentation, normalize=normalize)
        outs.append(torch.stack([transform(picture(seed=number)) for number in range(8)]))

    assert torch.equal(*outs)
    assert Normalization(preprocess_dict(24))(outs[1], CPU) is outs[1]


def test_batches_of_other_shapes_follow_one_another():
    """The memory that is used again never shows, in a training step either."""
    normalization, transform = Normalization(preprocess_dict(8)), eval_transform(8)
    layer = torch.nn.Conv2d(3, 2, 8)
    for count in (3, 3, 1, 4):
        images = [picture(8, 8, seed=10 * count + number) for number in range(count)]
        pixels = torch.stack([eval_transform(8, normalize=False)(image) for image in images])
        expected = torch.stack([transform(image) for image in images])
        layer.weight.grad = None
        layer(normalization(pixels, CPU)).square().sum().backward()
        kept = layer.weight.grad
        layer.weight.grad = None
        layer(expected).square().sum().backward()
        assert torch.equal(kept, layer.weight.grad)
        with torch.no_grad():
            assert torch.equal(normalization(pixels, CPU), expected)


def test_mistakes_are_named():
    with pytest.raises(ClcaError, match=r"'huge'.*none, medium, strong"):
        train_transform(32, "huge")
    with pytest.raises(ClcaError, match="0"):
        eval_transform(0)
    with pytest.raises(ClcaError, match="resize, std"):
        from_preprocess({key: value for key, value in preprocess_dict(32).items() if key not in ("resize", "std")})
    with pytest.raises(ClcaError, match="'cubic'"):
        from_preprocess({**preprocess_dict(32), "interpolation": "cubic"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(({"mean": value}, "mean must be three numbers, not ") for value in ("x", 3, None, [0.5], ["a", 0, 0])),
        ({"mean": [math.nan, 0.5, 0.5]}, "mean must be three numbers, not "),
        ({"std": [0.5, 0.5, 0]}, "std must be three numbers above 0, not "),
        *(({key: 10**9}, "1000000000 is too large: at most 18725 pixels") for key in ("img_size", "resize")),
        *(({"resize": value}, f"resize {value!r} is not a positive") for value in ("x", 36.5, None, 0, [36, 36])),
        ({"img_size": "32"}, "image size '32' is not a positive"),
        ({"square": "no"}, "square must be true or false, not 'no'"),
        ({"interpolation": ["bicubic"]}, "unknown interpolation ['bicubic']"),
    ],
)
def test_a_damaged_preprocess_is_named(damage, message):
    with pytest.raises(ClcaError) as refused:
        from_preprocess({**preprocess_dict(32), **damage})
    assert message in str(refused.value)


@pytest.mark.parametrize("damaged", ["x", [1, 2]])
def test_a_preprocess_that_is_no_settings_is_named(damaged):
    with pytest.raises(ClcaError, match="preprocess must be settings by name"):
        from_preprocess(damaged)
