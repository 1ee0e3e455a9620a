"""What the command line says of words that it cannot take: plain sentences, one line, exit code 2."""

import warnings
from pathlib import Path

import pytest

from clca import create_model
from clca.cli.main import COMMANDS, main
from clca.cli.parsing import _reworded, value_of
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


def test_train_without_words_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, ["train"])
    assert line.startswith("DATA is missing: Folder with train/")
    assert "; --model is missing: Name of a timm ViT" in line
    assert line.endswith("; clca train --help says more")


@pytest.mark.parametrize(
    "command",
    [[name] for name in COMMANDS if name not in ("demo", "benchmark", "data", "study", "train")]
    + [["data", "check"], ["data", "leaves"], ["study", "plan"], ["study", "run"], ["study", "status"]],
    ids=" ".join,
)
def test_no_command_without_words_shows_the_parsers_wording(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, command)
    assert "Required options" not in line
    assert " is missing: " in line or line.startswith(("give one budget", "no model to serve"))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["evaluate"],
            "RUN is missing: Run folder, or a saved model's folder or hub id; clca evaluate --help says more",
        ),
        (["evaluate", "--foo"], "RUN is missing: clca evaluate --help says what it is"),
        (["train", "--resume"], "--resume needs a value"),
        (["train", "--config"], "--config needs a value"),
        (["train", "--config", "--model", "x"], "--config needs a value"),
        (["evaluate", "x", "--split", "foo"], "--split is 'foo': choose from test, val, train, train_val"),
        (["benchmark", "--precisions", "fp32", "no"], "--precisions is 'no': choose from fp32, bf16, fp16"),
        (["evaluate", "x", "--batch-size", "many"], "--batch-size is 'many': needs a whole number"),
        (["evaluate", "x", "--workers", "1.5"], "--workers is '1.5': needs a whole number"),
        (["evaluate", "x", "--cache-gb", "a"], "--cache-gb is 'a': needs a number"),
        (["evaluate", "x", "--sweep", "much"], "--sweep is 'much': needs a number"),
        (["tune", "x", "--img-sizes", "224", "a"], "--img-sizes is '224 a': needs a whole number"),
        (["train", "--foo", "3"], "no option --foo: clca train --help lists what there is"),
        (["train", "--batchsize=3"], "no option --batchsize: did you mean --batch-size?"),
        (["evaluate", "x", "y", "z"], "'z' is one word too many: clca evaluate --help says what there is"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "80", "200"])  # tyro breaks its lines there
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
        (["evaluate", "x", "--keep_rate"], "--keep_rate"),
        (["predict", "x", "y", "--keep-rate"], "--keep-rate"),
        (["export", "x", "--images", "--keep-rate", "0.5"], "--images"),
        (["tune", "x", "--gmacs", "5", "--keep-rates"], "--keep-rates"),
        (["study", "run", "x", "--gpus"], "--gpus"),
    ],
)
def test_an_option_of_several_values_needs_one(argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, argv) == f"{flag} needs a value"


def test_what_is_not_known_of_the_parser_stays_one_line() -> None:
    assert _reworded("Something new is wrong.", "clca train") == "Something new is wrong.; clca train --help says more"


def test_a_value_is_found_before_the_rest_is_parsed() -> None:
    assert value_of("--config", []) == ""
    assert value_of("--config", ["--config"]) == ""
    assert value_of("--config", ["a", "--config", "b.yaml"]) == "b.yaml"
    assert value_of("--config", ["--config=b=c.yaml"]) == "b=c.yaml"


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
    line = f"{dense} drops no tokens, so it has no keep rate: leave --keep-rate away"
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
