"""A model folder from a stranger: refused in a line, before memory is taken, or loaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
from bounded import bounded, refused, refused_by_command_line
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stranger_models import (
    CLASSES,
    PREPROCESS,
    edited,
    good_folder,
    load,
    load_and_run,
    photographs,
    tiny_model,
    with_kwargs,
    with_top,
)

import clca
from clca.models.pretrained import from_pretrained
from clca.models.stored_model import BACKBONE_SETTINGS

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"memory_mib": 320, "cpu_seconds": 10}
HUGE = 10**9


def test_a_sound_folder_is_loaded_within_the_limits(tmp_path: Path) -> None:
    outcome = bounded(load_and_run, str(good_folder(tmp_path / "m")), **LIMITS)
    assert outcome.value == [1, 5], outcome.trace


# -- settings of the backbone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"depth": 20_000},
        {"depth": HUGE},
        {"depth": 129},
        {"depth": 128},
        {"depth": -1},
        {"depth": 0},
        {"depth": 4.0},
        {"depth": True},
        {"depth": "4"},
        {"depth": [4]},
        {"depth": None},
        {"depth": 10**400},
        {"embed_dim": 960_000},
        {"embed_dim": 2**62},
        {"embed_dim": 8190},
        {"embed_dim": -24},
        {"embed_dim": 0},
        {"mlp_ratio": 1e9},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": -4},
        {"mlp_ratio": 0},
        {"mlp_ratio": [4, 4]},
        {"num_heads": HUGE},
        {"num_heads": 0},
        {"num_heads": 5},
        {"patch_size": 0},
        {"patch_size": -4},
        {"patch_size": HUGE},
        {"patch_size": [4, 4, 4]},
        {"patch_size": [[4, 4], [4, 4]]},
        {"patch_size": 1},
        {"in_chans": HUGE},
        {"reg_tokens": HUGE},
        {"reg_tokens": 100},
        {"img_size": HUGE},
        {"img_size": [HUGE, HUGE]},
        {"init_values": "big"},
        {"init_values": [1e-5]},
        {"init_values": 1e300},
        {"drop_path_rate": -1},
        {"drop_path_rate": 2},
        {"drop_rate": "half"},
        {"patch_drop_rate": HUGE},
        {"qkv_bias": HUGE},
        {"qkv_bias": "yes"},
        {"class_token": False},
        {"pos_embed": "rotary"},
        {"global_pool": ["token"]},
        {"weight_init": "../x"},
        {"act_layer": "os.system"},
        {"act_layer": {"gelu": 1}},
        {"act_layer": 3},
        {"norm_layer": "batchnorm2d"},
        {"norm_layer": "timm.layers.LayerNorm"},
        {"norm_layer": ["layernorm"]},
        {"attn_layer": "torch.nn.MultiheadAttention"},
    ],
    ids=lambda kwargs: "-".join(f"{key}={str(value)[:20]}" for key, value in kwargs.items()),
)
def test_settings_of_the_backbone_out_of_bounds(kwargs: dict[str, Any], tmp_path: Path) -> None:
    message = refused(load, str(with_kwargs(tmp_path / "m", **kwargs)), **LIMITS)
    assert str(tmp_path / "m") in message
    assert len(message) < 700


@pytest.mark.parametrize(
    "name",
    [
        "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "checkpoint_path", "features_only",
        "scriptable", "exportable", "no_jit", "device", "dtype", "pretrained_strict", "pretrained_filter_fn",
        "pretrained_custom_load", "pretrained_model_args", "feature_cfg", "model_cfg", "kwargs_filter", "out_indices",
        "embed_layer", "block_fn", "mlp_layer", "use_naflex", "self", "", "depth ", "__class__", "num_classes",
        "\x1b[31m", "a" * 5000,
    ],
)  # fmt: skip
def test_what_else_timm_takes_is_refused_by_name(name: str, tmp_path: Path) -> None:
    value = ["/etc", {"file": "/etc/passwd", "url": "http://127.0.0.1:1/x"}, None][len(name) % 3]
    message = refused(load, str(with_kwargs(tmp_path / "m", **{name: value})), **LIMITS)
    assert "backbone_kwargs has" in message
    assert message.isprintable()
    assert name[:60].strip() in message or not name.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 1_000_000},
        {"num_classes": 999_999, "cla": False},
        {"num_classes": HUGE},
        {"num_classes": -1},
        {"num_classes": "5x"},
        {"num_classes": "0_5"},
        {"num_classes": "٥"},
        {"img_size": HUGE},
        {"img_size": [16_384, 16_384]},
        {"img_size": [16] * 100_000},
        {"img_size": 4096},
        {"num_clr": 1024},
        {"num_clr": HUGE},
        {"cla_width": 1024},
        {"cla_width": HUGE},
        {"keep_rate": [0.5] * 1_000},
        {"keep_rate": [2] * 400_000},
        {"keep_rate": [[0.5]] * 1_000},
        {"keep_rate": 0},
        {"keep_rate": "0_1e-1"},
        {"keep_rate": "nan"},
        {"keep_rate": {"a": 1}},
        {"locations": [HUGE]},
        {"locations": [-1]},
        {"locations": [1, 1]},
        {"locations": list(range(1_000))},
        {"locations": list(range(500_000))},
        {"locations": [10**4000]},
        {"locations": "12"},
        {"backbone_kwargs": [1]},
        {"backbone_kwargs": "depth=3"},
        {"backbone_kwargs": {str(number): 1 for number in range(300_000)}},
        {str(number): 1 for number in range(300_000)},
        {"reduction": "sit", "keep_rate": 1.0},
        {"reduction": "dynamicvit"},
        {"reduction": "os.path"},
        {"reduction": "clca.reductions.tome"},
        {"reduction": "../../evil.py"},
        {"reduction": "e" * 3_000_000},
        {"reduction": ["evit"]},
    ],
    ids=lambda fields: "-".join(f"{key}={str(value)[:20]}" for key, value in list(fields.items())[:2]),
)
def test_settings_of_the_model_out_of_bounds(fields: dict[str, Any], tmp_path: Path) -> None:
    message = refused(load, str(edited(tmp_path / "m", **fields)), **LIMITS)
    assert len(message) < 900
    assert message.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:user/model", "hf_hub:user/model", "local-dir:/etc", "local_dir:/etc", "file:///etc/passwd",
        "https://example.invalid/model", "/etc/passwd", "../model", "clca_vit", "resnet50", "vit_giant_patch14_224",
        "eva_giant_patch14_224", "convnext_xxlarge", "vit_tiny_patch16_224.hf-hub:a/b", "vit_tiny_patch16_224.*",
        "vit_*", "[vit]", "", ".", "\x1b[2J", "v" * 3_000_000, "timm/deit_tiny_patch16_224",
    ],
)  # fmt: skip
def test_names_of_backbones(name: str, tmp_path: Path) -> None:
    message = refused(load, str(edited(tmp_path / "m", backbone=name)), memory_mib=512, cpu_seconds=30)
    assert len(message) < 900
    assert message.isprintable()


# -- classes and preprocessing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classes",
    [
        [*CLASSES[1:], "\x1b]0;owned\x07"],
        [*CLASSES[1:], "\x1b[2J"],
        [*CLASSES[1:], "\x9b31m"],
        [*CLASSES[1:], "a\x00b"],
        [*CLASSES[1:], "\u202egnp.exe"],
        [*CLASSES[1:], "x" * 1_000_000],
        [*CLASSES[1:], 5],
        [*CLASSES[1:], None],
        [*CLASSES[1:], ["a"]],
        {name: 1 for name in CLASSES},
        ["a"] * 900_000,
        "x" * 1_000_000,
        7,
    ],
    ids=lambda classes: repr(classes)[-20:],
)
def test_classes(classes: Any, tmp_path: Path) -> None:
    message = refused(load, str(with_top(tmp_path / "m", classes=classes)), **LIMITS)
    assert "class" in message or "larger" in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "change",
    [
        {"img_size": HUGE}, {"img_size": 65}, {"img_size": 0}, {"img_size": "16"}, {"img_size": True},
        {"resize": HUGE}, {"resize": 16_384}, {"resize": -3}, {"resize": [18, 18]}, {"resize": 18.0},
        {"mean": []}, {"mean": [0.5] * 100_000}, {"mean": ["a"] * 3}, {"mean": 0.5}, {"mean": {"r": 1}},
        {"mean": [1e300, 0, 0]}, {"std": [0, 0, 0]}, {"std": [-1, 1, 1]}, {"std": [1e-300] * 3}, {"std": None},
        {"interpolation": 3}, {"interpolation": "\x1b[0m"}, {"interpolation": "a" * 10_000}, {"square": 1},
        {"square": "no"},
    ],
    ids=str,
)  # fmt: skip
def test_preprocessing(change: dict[str, Any], tmp_path: Path) -> None:
    message = refused(load, str(with_top(tmp_path / "m", preprocess=PREPROCESS | change)), **LIMITS)
    assert "preprocess" in message
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "preprocess", ["x", 3, [1], {str(number): 1 for number in range(100_000)}], ids=lambda p: str(p)[:9]
)
def test_preprocessing_that_is_none(preprocess: Any, tmp_path: Path) -> None:
    assert refused(load, str(with_top(tmp_path / "m", preprocess=preprocess)), **LIMITS).isprintable()


@pytest.mark.parametrize("change", [{"mean": [0.5]}, {"interpolation": "cubic-ish"}, {"mean": [0.5] * 4}])
def test_preprocessing_that_a_use_refuses(change: dict[str, Any], tmp_path: Path) -> None:
    folder = with_top(tmp_path / "m", preprocess=PREPROCESS | change)
    image = photographs(tmp_path / "images") / "test" / "Merlot" / "0.png"
    refused_by_command_line("predict", str(folder), str(image), memory_mib=768, cpu_seconds=30)


# -- the text of config.json -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"model":' * 100_000,
        b'{"model":' + b"[" * 500 + b"]" * 500 + b"}",
        b"[]," * 1_000_000,
        b"[" + b"[]," * 1_000_000 + b"[]]",
        b'{"model": 1e999999}',
        b'{"model": {"num_classes": ' + b"9" * 5_000 + b"}}",
        b'{"model": {"num_classes": ' + b"9" * 3_000_000 + b"}}",
        b'{"model": NaN}',
        b'{"model": -Infinity}',
        b'{"model": {}, "model": {}}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b"\xff" * 100,
        b"\x00" * 100,
        b"",
        b"null",
        b'"' + b"a" * 3_000_000,
        b'"' + b"\\u0000" * 500_000 + b'"',
        b"{" + b" " * 5_000_000 + b"}",
        b'{"model": {"backbone": {"a": {}}}}',
        b'{"model": {"": 1}}',
    ],
    ids=lambda text: f"{text[:24]!r}{len(text)}",
)
def test_texts_that_are_no_configuration(text: bytes, tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    (folder / "config.json").write_bytes(text)
    message = refused(load, str(folder), **LIMITS)
    assert "config.json" in message
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["fifo", "folder", "zero", "loop", "dangling", "terminal"])
def test_files_that_are_none(name: str, what: str, tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    file = folder / name
    file.unlink()
    if what == "fifo":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        target = {"zero": "/dev/zero", "loop": str(file), "dangling": "/no/such/file", "terminal": "/dev/tty"}[what]
        file.symlink_to(target)
    assert name in refused(load, str(folder), **LIMITS)


# -- the command line ------------------------------------------------------------------------------------------------

_BAD = {
    "deep": lambda folder: with_kwargs(folder, depth=HUGE),
    "wide": lambda folder: with_kwargs(folder, embed_dim=960_000),
    "classes": lambda folder: edited(folder, num_classes=1_000_000),
    "elsewhere": lambda folder: with_kwargs(folder, pretrained_cfg_overlay={"file": "/etc/passwd"}),
    "hub": lambda folder: edited(folder, backbone="hf-hub:user/model"),
}


@pytest.mark.parametrize("bad", _BAD)
@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "serve", "app", "tune", "benchmark"])
def test_commands_refuse_a_strangers_folder(command: str, bad: str, tmp_path: Path) -> None:
    folder = str(_BAD[bad](tmp_path / "m"))
    images = photographs(tmp_path / "images")
    words = {
        "predict": [folder, str(images / "test" / "Merlot" / "0.png")],
        "evaluate": [folder, str(images)],
        "export": [folder, "--out", str(tmp_path / "m.onnx")],
        "serve": [folder, "--port", "0"],
        "app": [folder, "--port", "0"],
        "tune": [folder, "--data", str(images), "--gmacs", "1"],
        "benchmark": ["--models", folder],
    }[command]
    line = refused_by_command_line(command, *words, memory_mib=1024, cpu_seconds=60)
    assert "config.json" in line or "model.safetensors" in line, line
    assert len(line) < 900


# -- what is saved can be loaded -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"init_values": 1e-5, "qk_norm": True},
        {"drop_path_rate": 0.1, "pre_norm": True},
        {"reg_tokens": 4, "no_embed_class": True},
        {"act_layer": "quick_gelu", "norm_layer": "rmsnorm"},
        {"mlp_ratio": 2, "qkv_bias": False, "proj_bias": False, "weight_init": "jax"},
        {"dynamic_img_size": True, "fc_norm": True, "global_pool": "avg", "cla": False},
        {"patch_size": (4, 8), "img_size": (16, 32)},
        {"device": "cpu", "cache_dir": "/nowhere", "pretrained_cfg_overlay": {"mean": (0.1, 0.1, 0.1)}},
        {"scriptable": False, "exportable": True},
    ],
    ids=str,
)
def test_what_python_makes_and_saves_is_loaded(kwargs: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**kwargs)
    model.preprocess = None
    model.save_pretrained(tmp_path)
    assert bounded(load_and_run, str(tmp_path), **LIMITS).value == [1, 5]
    assert from_pretrained(tmp_path).config.model_dump(mode="json") == model.config.model_dump(mode="json")


def test_every_backbone_that_fits_is_within_the_limits_of_a_file() -> None:
    """The widest and deepest of timm's, with room above them."""
    for name in ("vit_giant_patch14_224", "vit_gigantic_patch14_224", "vit_huge_patch14_224", "deit3_huge_patch14_224"):
        with __import__("torch").device("meta"):
            model = timm.create_model(name)
        assert BACKBONE_SETTINGS["embed_dim"].fits(2 * model.embed_dim)
        assert BACKBONE_SETTINGS["depth"].fits(2 * len(model.blocks))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 129, "embed_dim": 6}, "depth = 129"),
        ({"norm_layer": "batchnorm1d"}, "norm_layer"),
    ],
)
def test_what_load_would_refuse_is_not_saved(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(clca.ClcaError, match=words) as stopped:
        tiny_model(**change).save_pretrained(tmp_path / "m")
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "m").exists()


def test_classes_and_preprocessing_that_load_would_refuse_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    for classes in ([*CLASSES[1:], "\x1b[0m"], [*CLASSES[1:], "x" * 1001]):
        model.classes = classes
        with pytest.raises(clca.ClcaError, match="the model: "):
            model.save_pretrained(tmp_path / "m")
    model.classes, model.preprocess = list(CLASSES), PREPROCESS | {"resize": 10_000}
    with pytest.raises(clca.ClcaError, match="the model: preprocess: resize"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


# -- anything at all -------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [0, -1, 1, 2**31, 2**63, 10**9, 10**18, 1e308, -0.0, 1e-320, "", "4", "nan", "1_0", "/etc", "../x"]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_PLACES = st.sampled_from(
    [("model", name) for name in clca.models.config.ModelConfig.model_fields]
    + [("model", "backbone_kwargs", name) for name in (*BACKBONE_SETTINGS, "pretrained_cfg", "x")]
    + [("preprocess", name) for name in PREPROCESS]
    + [("classes",), ("preprocess",), ("model",), ("format",)]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(place=("model", "backbone_kwargs", "depth"), value=20_000)
@example(place=("model", "backbone_kwargs", "patch_size"), value=[4, 0])
@example(place=("model", "backbone_kwargs", "num_heads"), value=0)
@example(place=("model", "keep_rate"), value=[])
@example(place=("model", "locations"), value=[])
@example(place=("model", "img_size"), value=[16])
@example(place=("preprocess", "mean"), value=[True, True, True])
@given(place=_PLACES, value=_VALUES)
def test_any_value_at_any_place_gives_a_model_or_one_line(place: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    folder = good_folder(tmp_path / "m")
    content = json.loads((folder / "config.json").read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (folder / "config.json").write_text(json.dumps(content))
    try:
        from_pretrained(folder)
    except clca.ClcaError as refusal:
        message = str(refusal)
    else:
        return
    assert "\n" not in message
    assert len(message) < 1500
