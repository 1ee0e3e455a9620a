"""Numbers that arrive as text are plain decimals, wherever they arrive."""

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clca.cli.main import main
from clca.data.cache.limits import cache_limit
from clca.data.sources.ultra_fgvc import read_ultra_fgvc
from clca.errors import ClcaError
from clca.models.config import validated
from clca.study.plan.config import StudyConfig
from clca.system.numbers import decimal_number, is_whole_number, refuse_odd_number, whole_number
from clca.system.processes import launched_number
from clca.training.config import TrainConfig

ODD = [
    "1_0",
    "1_0e-1",
    "٣",
    "１",
    " 1",
    "1 ",
    "\t1",
    "0x10",
    "1e",
    "e5",
    ".",
    "",
    "+",
    "--1",
    "nan",
    "inf",
    "1e999",
    "1,5",
]


@pytest.mark.parametrize("text", ODD)
def test_what_only_python_takes_for_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="plain"):
        decimal_number(text)
    with pytest.raises(ValueError, match="plain digits"):
        whole_number(text)
    assert not is_whole_number(text)
    if any(letter.isnumeric() for letter in text) or text in ("nan", "inf"):
        with pytest.raises(ValueError, match="plain"):
            refuse_odd_number([0.5, text])


@pytest.mark.parametrize(("text", "value"), [("10", 10), ("-3", -3), ("+7", 7), ("007", 7)])
def test_whole_numbers(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), (".5", 0.5), ("5.", 5), ("1e-4", 1e-4), ("-2.5E3", -2500)])
def test_decimal_numbers(text: str, value: float) -> None:
    assert decimal_number(text) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_is_read(value: float) -> None:
    assert decimal_number(repr(value)) == value


@given(st.text(alphabet="0123456789+-._eE \u0663xnaif", max_size=8))
def test_a_text_is_a_plain_number_or_refused(text: str) -> None:
    try:
        value = decimal_number(text)
    except ValueError:
        return
    assert math.isfinite(value)
    assert text.isascii()
    assert "_" not in text
    assert text == text.strip()


@pytest.mark.parametrize("text", ["1_0e-1", "٣", " 0.5", "nan"])
def test_settings(text: str) -> None:
    with pytest.raises(ClcaError, match="keep_rate"):
        validated(backbone="vit_tiny_patch16_224", keep_rate=text)
    assert validated(backbone="vit_tiny_patch16_224", keep_rate="0.5").keep_rate == 0.5


@pytest.mark.parametrize("name", list(TrainConfig.model_fields))
@pytest.mark.parametrize("text", ["1_0", "0_1e-1", "٣"])
def test_no_setting_of_a_run_takes_odd_numbers(name: str, text: str) -> None:
    usual = {"model": {"backbone": "vit_tiny_patch16_224", "img_size": 32}, "data": {"root": "leaves:"}}
    try:
        made = TrainConfig.model_validate(usual | {name: text})
    except ValidationError:
        return
    assert str(getattr(made, name)) == text  # a setting that is text


@pytest.mark.parametrize("text", ["1_0", "٣", " 5"])
def test_no_seed_of_a_study_takes_odd_numbers(text: str) -> None:
    axes = {"reduction": ["none", "evit"]}
    with pytest.raises(ValidationError, match="plain"):
        StudyConfig(name="a", axes=axes, seeds=[text])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("text", ["1_0", "٣", "-1", "0x1", " 1", "one", ""])
def test_what_torchrun_sets(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ClcaError, match=f"{name} is .*whole number"):
        launched_number(name, 0)


def test_labels_in_lists_of_images(tmp_path: Path) -> None:
    (tmp_path / "anno").mkdir()
    for label in ("٣", "1_0", "0", "-1", "9" * 5000, "99999999"):
        (tmp_path / "anno" / "train.txt").write_text(f"a.png {label}\n", encoding="utf-8")
        with pytest.raises(ClcaError, match=r"train\.txt, line 1: expected `name label` with a label from 1"):
            read_ultra_fgvc(tmp_path, "soygene")
    shutil.rmtree(tmp_path / "anno")
    for label in ("٣", "1_0", "-1", "99999999"):
        for split in ("train", "test"):
            (tmp_path / f"{split}.csv").write_text(f"class_id,dir\n{label},a.png\n", encoding="utf-8")
        with pytest.raises(ClcaError, match="csv, line 2: expected a class_id from 0 and a dir"):
            read_ultra_fgvc(tmp_path, "soygene")


@pytest.mark.parametrize("text", ["1_0", "٣", "nan", "infinity", "0x10", " 5"])
def test_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLCA_CACHE_GB", text)
    with pytest.raises(ClcaError, match="CLCA_CACHE_GB"):
        cache_limit()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--epochs", "1_0", "--epochs 1_0: should be a valid number in plain digits"),
        ("--lr", "1_0e-5", "--lr 1_0e-5: should be a valid number in plain digits"),
        ("--keep-rate", "0_1e-1", "--keep-rate 0_1e-1: should be a valid number in plain digits"),
        ("--locations", "٣", "--locations ٣: should be a valid number in plain digits"),
        ("--lr", "nan", "--lr nan: should be a valid number in plain digits"),
    ],
)
def test_the_command_line(flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "leaves:", "--model", "vit_tiny_patch16_224", flag, value]) == 2
    assert words in capsys.readouterr().err
