"""The help of a command comes from the fields that it sets."""

import pytest
from pydantic import BaseModel

from clca.app.settings import PageSettings
from clca.benchmark.config import BenchmarkConfig
from clca.cli.arguments import arguments_of
from clca.cli.commands import app, benchmark, serve, train
from clca.cli.help_text import description_of, help_text, with_flags
from clca.models.config import ModelConfig
from clca.serve.settings import ServeSettings
from clca.training.config import DataConfig, TrainConfig


def test_the_help_of_every_training_flag_is_the_description_of_its_field() -> None:
    arguments = train.arguments()
    fields = {**ModelConfig.model_fields, **DataConfig.model_fields, **TrainConfig.model_fields}
    fields |= {"model": ModelConfig.model_fields["backbone"], "data": DataConfig.model_fields["root"]}
    listed = {argument.name for argument in arguments} - {"config", "resume"}
    assert listed == fields.keys() - {"backbone", "root", "num_classes", "backbone_kwargs"}
    for argument in arguments:
        if argument.name in listed:
            description = fields[argument.name].description
            assert description
            assert description_of(argument, arguments).startswith(with_flags(description, arguments))


@pytest.mark.parametrize(
    ("command", "settings", "own"),
    [
        (benchmark.Benchmark, BenchmarkConfig, {"memory"}),
        (serve.Serve, ServeSettings, set()),
        (app.App, PageSettings, set()),
    ],
)
def test_flags_share_description_and_default_with_the_settings_they_fill(
    command: type[BaseModel], settings: type[BaseModel], own: set[str]
) -> None:
    shared = (command.model_fields.keys() & settings.model_fields.keys()) - own
    assert len(shared) > 3
    for name in shared:
        flag, setting = command.model_fields[name], settings.model_fields[name]
        assert (flag.description, flag.default) == (setting.description, setting.default), name


def test_names_in_backticks_become_flags() -> None:
    arguments = train.arguments()
    text = help_text(arguments, "clca train", "Train.", {"run options": "Only `precision` counts."})
    assert "from --warmup-lr, part of --epochs" in " ".join(text.split())
    assert "Only --precision counts." in text
    assert arguments_of(benchmark.Benchmark)[0].flag == "--models"
