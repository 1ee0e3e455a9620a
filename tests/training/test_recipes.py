"""Recipes are defaults: what is given stays, in Python, on the command line and in studies alike."""

from typing import Any

import pytest
from pydantic import ValidationError

from clca.cli import main as cli
from clca.cli.commands import train as command
from clca.models.config import ModelConfig
from clca.training.config import TrainConfig
from clca.training.recipes import recipes
from clca.training.settings import to_config

DATA = {"root": "photos"}
MODEL = {"backbone": "vit_tiny_patch16_224"}


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": DATA, "model": MODEL, **settings})


@pytest.mark.parametrize("name", recipes())
def test_each_is_valid_and_known_to_the_setting(name: str) -> None:
    made = config(recipe=name)
    flat = made.model_dump()
    for setting, value in recipes()[name].settings.items():
        found = flat[setting]
        assert (found.items() >= value.items()) if isinstance(value, dict) else found == value


def test_published_is_what_no_recipe_is() -> None:
    assert config(recipe="published") == config()


@pytest.mark.parametrize("model", [MODEL | {"clc": True}, ModelConfig(backbone="vit_tiny_patch16_224", clc=True)])
def test_what_is_given_stays(model: Any) -> None:
    made = TrainConfig.model_validate({"data": DATA, "model": model, "recipe": "best", "lr": 0.5, "epochs": 3})
    assert (made.lr, made.epochs, made.model.clc, made.model.cla_head) == (0.5, 3, True, "linear")
    assert made.layer_decay == recipes()["best"].settings["layer_decay"]


def test_a_run_keeps_the_settings_that_its_recipe_had() -> None:
    """config.json holds every setting, so that a recipe that changes later changes no run."""
    stored = config(recipe="best").model_dump(mode="json") | {"lr": 0.125}
    assert TrainConfig.model_validate(stored).lr == 0.125


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="published"):
        config(recipe="fast")


def test_quick_trains_no_epochs() -> None:
    with pytest.raises(ValidationError, match="epochs: 30 are trained by the recipes published and best"):
        config(recipe="quick", epochs=30)


@pytest.mark.parametrize(
    ("words", "recipe"),
    [
        ([], "quick"),
        (["--recipe", "best"], "best"),
        (["--no-pretrained"], "published"),
        (["--no-pretrained", "--weights", "a.pth"], "quick"),
        (["--config", "some.yaml"], "published"),
    ],
)
def test_the_command_takes_quick_where_there_are_pretrained_features(
    words: list[str], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr("clca.training.settings.read_file", lambda _: {})
    monkeypatch.setattr("clca.training.train", lambda made: (seen.append(made), pytest.skip.Exception)[1])
    with pytest.raises(AttributeError):  # of the result, which is none
        command.run(["photos", "--model", "vit_tiny_patch16_224", *words])
    assert [made.recipe for made in seen] == [recipe]


def test_epochs_with_the_default_recipe_are_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "photos", "--model", "vit_tiny_patch16_224", "--epochs", "30"]) == 2
    assert "--epochs: 30 are trained by the recipes published and best" in capsys.readouterr().err


def test_flags_win_over_the_recipe() -> None:
    made = to_config({"data": "photos", "model": "vit_tiny_patch16_224", "recipe": "quick", "clc": "true"}, {})
    assert made.model.clc
    assert made.probe == "only"
