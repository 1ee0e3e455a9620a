"""Settings as data: their documentation, and the one line on what is wrong with them."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from clca.app import PageSettings
from clca.benchmark import BenchmarkConfig
from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.serve import ServeSettings
from clca.study.plan.config import AxisValue, StudyConfig
from clca.system.settings import Settings, StrictSettings, explain
from clca.training import DataConfig, TrainConfig


class Inner(Settings):
    """A part."""

    rate: Annotated[float, Field(gt=0)] | tuple[float, ...] = Field(1.0, description="A rate.")


class Outer(Settings):
    """The whole."""

    name: str = Field(description="What it is called.")
    inner: Inner = Inner()
    mode: Literal["a", "b"] = Field("a", description="How it works.")
    sizes: tuple[int, ...] = Field((), description="In pixels.")
    on: bool = Field(True, description="Whether it works.")

    @field_validator("mode")
    @classmethod
    def _is_made(cls, mode: str) -> str:
        if mode == "b":
            raise ValueError("b is not made yet")
        return mode

    @model_validator(mode="after")
    def _fits_together(self) -> "Outer":
        if len(self.sizes) > 2:
            raise ValueError("sizes: two at most")
        return self


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "name is missing: What it is called"),
        ({"name": "x", "mode": "c"}, "mode c: should be 'a' or 'b'"),
        ({"name": "x", "mode": "b"}, "mode b: b is not made yet"),
        ({"name": "x", "mod": "a"}, "mod: no such setting; did you mean mode?"),
        ({"name": "x", "foo": 1}, "foo: no such setting; choose from name, inner, mode, sizes, on"),
        ({"name": "x", "sizes": ["1", "a"]}, "sizes a: should be a valid integer"),
        ({"name": "x", "sizes": [1, 2, 3]}, "sizes: two at most"),
        ({"name": "x", "on": "perhaps"}, "on perhaps: should be true or false"),
        ({"name": "x", "inner": {"rate": "fast"}}, "inner.rate fast: should be a valid number"),
        ({"name": "x", "inner": {"rate": [0.5, "b"]}}, "inner.rate b: should be a valid number"),
        ({"name": "x", "inner": {"rat": 1}}, "inner.rat: no such setting; did you mean rate?"),
        ({"mode": "c", "name": "\n"}, "mode c: should be 'a' or 'b'"),
        ({"name": 3, "on": []}, "name 3: should be a valid string; on []: should be true or false"),
        ({"name": {"long": "x" * 100}}, "name: should be a valid string"),
    ],
)
def test_what_is_wrong_is_one_line(values: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    assert explain(caught.value, Outer) == line


def test_settings_are_spelled_as_the_user_wrote_them() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"name": "x", "inner": {"rate": -1}})
    assert explain(caught.value, Outer, lambda path: f"--{path[-1]}").startswith("--rate -1: should be greater than 0")


def test_strict_settings_raise_the_line_itself() -> None:
    class Strict(StrictSettings):
        number: int = Field(1, ge=1, description="A number.")

    with pytest.raises(ClcaError, match=r"^number 0: should be greater than or equal to 1$"):
        Strict(number=0)
    assert Strict(number=2).number == 2


@pytest.mark.parametrize(
    "settings",
    [ModelConfig, DataConfig, TrainConfig, StudyConfig, AxisValue, BenchmarkConfig, ServeSettings, PageSettings],
)
def test_every_setting_is_described_where_it_is_defined_and_in_the_docstring(settings: type[Settings]) -> None:
    for name, info in settings.model_fields.items():
        assert info.description, name
        assert f"    {name}: {info.description}" in (settings.__doc__ or ""), name


def test_a_token_is_not_shown_in_an_error() -> None:
    with pytest.raises(ClcaError) as caught:
        ServeSettings(token="s3cret")
    assert "s3cret" not in str(caught.value)
