"""What the command line reports about arguments that are wrong: plain sentences, one line, exit code 2."""

import warnings
from pathlib import Path
from typing import Annotated

import pytest

from clca import create_model
from clca.cli.arguments import Arguments, KeepRate, Spelling, Switch
from clca.cli.main import COMMANDS, main
from clca.cli.parsing import parse
from clca.data.transforms import preprocess_dict
from clca.errors import ClcaError
from clca.evaluation import evaluate
from clca.models.saving import save_pretrained


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line on stderr."""
    assert main(argv) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.count("\n") == 1, caught.err
    assert caught.err.startswith("clca: ")
    return caught.err.removeprefix("clca: ").strip()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that drops no token."""
    model = create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, patch_size=8, embed_dim=32, num_heads=2)
    model.classes, model.preprocess = ["alder", "birch"], preprocess_dict(32)
    folder = tmp_path_factory.mktemp("dense")
    save_pretrained(model, folder)
    return folder


def test_train_without_arguments_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, ["train"])
    assert line.startswith("DATA is missing: Folder with train/")
    assert "; --model is missing: Name of a timm ViT" in line
    assert line.endswith("; see clca train --help")


@pytest.mark.parametrize(
    "command",
    [[name] for name in COMMANDS if name not in ("demo", "benchmark", "data", "study", "train")]
    + [["data", "check"], ["data", "leaves"], ["study", "plan"], ["study", "run"], ["study", "status"]],
    ids=" ".join,
)
def test_every_command_without_arguments_names_what_is_missing(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, command)
    assert "Required options" not in line
    assert " is missing: " in line or line.startswith("give one budget")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["evaluate"],
            "RUN is missing: Run folder, saved model's folder or hub id; see clca evaluate --help",
        ),
        (["evaluate", "--foo"], "no option --foo: see clca evaluate --help"),
        (["train", "--resume"], "--resume needs a value"),
        (["train", "--config"], "--config needs a value"),
        (["train", "--config", "--model", "x"], "--config needs a value"),
        (["evaluate", "x", "--split", "foo"], "--split foo: should be 'test', 'val', 'train', 'train_val' or 'all'"),
        (["benchmark", "--precisions", "fp32", "no"], "--precisions no: should be 'fp32', 'bf16' or 'fp16'"),
        (["evaluate", "x", "--batch-size", "many"], "--batch-size many: should be a valid integer"),
        (["evaluate", "x", "--workers", "1.5"], "--workers 1.5: should be a valid integer"),
        (["evaluate", "x", "--cache-gb", "a"], "--cache-gb a: should be a valid number"),
        (["evaluate", "x", "--sweep", "much"], "--sweep much: should be a valid number"),
        (["tune", "x", "--img-sizes", "224", "a"], "--img-sizes a: should be a valid integer"),
        (["train", "--foo", "3"], "no option --foo: see clca train --help"),
        (["train", "--batchsize=3"], "no option --batchsize: did you mean --batch-size?"),
        (["evaluate", "x", "y", "z"], "unexpected argument 'z': see clca evaluate --help"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_mistake_is_one_plain_sentence(
    argv: list[str], line: str, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert refused(capsys, argv) == line


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["train", "photos", "--model", "vit_tiny_patch16_224", "--keep-rate"], "--keep-rate"),
        (["train", "photos", "--keep-rate", "--model", "vit_tiny_patch16_224"], "--keep-rate"),
        (["train", "photos", "--model", "vit_tiny_patch16_224", "--locations", "--seed", "1"], "--locations"),
        (["evaluate", "x", "--keep_rate"], "--keep-rate"),
        (["predict", "x", "y", "--keep-rate"], "--keep-rate"),
        (["export", "x", "--images", "--keep-rate", "0.5"], "--images"),
        (["tune", "x", "--gmacs", "5", "--keep-rates"], "--keep-rates"),
        (["study", "run", "x", "--gpus"], "--gpus"),
    ],
)
def test_an_option_of_several_values_needs_one(argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, argv) == f"{flag} needs a value"


class Example(Arguments):
    """An example."""

    run: Annotated[str, Spelling("RUN", positional=True)]
    more: Annotated[tuple[str, ...], Spelling("MORE", positional=True)] = ()
    keep_rate: KeepRate = None
    lr: float = 1.0
    cla: bool = True
    quick: Switch = False
    only: Annotated[tuple[str, ...], Spelling(repeated=True)] = ()


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["a"], {"run": "a"}),
        (["a", "b", "--lr", "2", "c"], {"run": "a", "more": ("b", "c"), "lr": 2.0}),
        (["--lr=2", "--lr", "3", "a"], {"run": "a", "lr": 3.0}),
        (["a", "--lr", "-1"], {"run": "a", "lr": -1.0}),
        (["a", "--keep-rate", "0.5"], {"run": "a", "keep_rate": 0.5}),
        (["a", "--keep_rate", "0.5", "0.25"], {"run": "a", "keep_rate": (0.5, 0.25)}),
        (["--keep-rate", "0.5", "0.25", "a"], {"run": "a", "keep_rate": (0.5, 0.25)}),
        (["a", "--no-cla", "--quick"], {"run": "a", "cla": False, "quick": True}),
        (["a", "--only", "x", "--only", "y"], {"run": "a", "only": ("x", "y")}),
        (["-", "--", "--lr"], {"run": "-", "more": ("--lr",)}),
    ],
)
def test_values_are_read_wherever_they_stand(argv: list[str], values: dict[str, object]) -> None:
    chosen = parse(Example, "example", argv)
    assert {name: getattr(chosen, name) for name in chosen.model_fields_set} == values


def test_a_switch_takes_no_value() -> None:
    with pytest.raises(ClcaError, match=r"^--quick takes no value$"):
        parse(Example, "example", ["a", "--quick=yes"])
    with pytest.raises(ClcaError, match=r"^--cla takes no value$"):
        parse(Example, "example", ["a", "--no-cla=yes"])


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("batch_size", -2), ("workers", -3)])
def test_an_evaluation_refuses_impossible_numbers(
    setting: str, value: int, dense: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClcaError, match=rf"^{setting} {value}: "):
        evaluate(dense, "no/such/images", **{setting: value})  # type: ignore[arg-type]
    flag = f"--{setting.replace('_', '-')}"
    for words in ([], ["--sweep", "0.5"]):
        assert refused(capsys, ["evaluate", str(dense), flag, str(value), *words]).startswith(f"{setting} {value}: ")


def test_a_keep_rate_is_refused_where_no_token_is_dropped(dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{dense} drops no tokens, so it has no keep rate: omit --keep-rate"
    for command in ("evaluate", "predict"):  # before any image is looked at
        assert refused(capsys, [command, str(dense), "no/such/images", "--keep-rate", "0.5"]) == line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "no/such/images" in refused(capsys, ["evaluate", str(dense), "no/such/images", "--keep-rate", "1"])


def test_the_library_only_warns_of_a_keep_rate_that_changes_nothing(dense: Path) -> None:
    with pytest.warns(UserWarning, match="keeps every token"), pytest.raises(ClcaError, match="no/such/images"):
        evaluate(dense, "no/such/images", keep_rate=0.5)


def test_a_wrong_keep_rate_is_told_before_images_are_read(dense: Path) -> None:
    with pytest.raises(ClcaError, match="a keep rate is a share"):
        evaluate(dense, "no/such/images", keep_rate=1.5)
