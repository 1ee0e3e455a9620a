"""The command line: what it accepts, how it reports errors, and its exit codes."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from clca.cli.commands.predict import names_from_stdin
from clca.cli.commands.train import arguments
from clca.cli.main import COMMANDS, main
from clca.cli.parsing import read
from clca.training import settings as flags

FLAGS = ["--model", "vit_tiny_patch16_224", "--no-pretrained", "--device", "cpu", "--workers", "0", "--precision", "no"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("alder", "birch"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(0, 120 if name == "alder" else 255, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a model that trains in a second; `clca train` takes backbone_kwargs from a file only."""
    file = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    kwargs = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    file.write_text(
        yaml.safe_dump({"model": {"backbone_kwargs": kwargs, "img_size": 32}, "epochs": 1, "batch_size": 4})
    )
    return file


@pytest.fixture(scope="module")
def run(photos: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    settings = ["--reduction", "evit", "--keep-rate", "0.5", "--lr", "3e-3", "--epochs", "3", "--out", str(out)]
    assert main(["train", str(photos), *FLAGS, "--config", str(tiny), *settings]) == 0
    return out


def error_of(capsys: pytest.CaptureFixture[str], argv: list[str]) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    code = main(argv)
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert error.startswith("clca: ")
    return code, error.removeprefix("clca: ").strip()


def test_settings_reach_the_run(run: Path) -> None:
    settings = json.loads((run / "config.json").read_text())["train"]
    assert (settings["lr"], settings["epochs"], settings["batch_size"]) == (3e-3, 3, 4)
    assert (settings["model"]["reduction"], settings["model"]["keep_rate"]) == ("evit", 0.5)
    assert settings["pretrained"] is False


def test_the_same_command_again_finds_the_run_finished(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run)]) == 0
    printed = capsys.readouterr().out
    assert f"next: clca evaluate {run}" in printed
    assert "best on val" in printed


def test_evaluate_prints_and_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["evaluate", str(run), "--split", "val", "--keep-rate", "0.7", "--device", "cpu", "--workers", "0"]) == 0
    )
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("top-1", "macro accuracy", "GMACs", "images/s", "alder", "birch"))
    assert (run / "evaluation" / "val-keep0.7" / "confusion.png").is_file()


def test_the_cache_is_listed_cleared_and_left_alone(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    argv = ["evaluate", str(run), "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "out")]
    assert main([*argv, "--no-cache"]) == 0
    assert not (tmp_path / "resized").exists()
    plain = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert main(argv) == 0
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {**plain, "images_per_second": 0} == {**again, "images_per_second": 0}
    capsys.readouterr()
    assert main(["data", "cache"]) == 0
    printed = capsys.readouterr().out
    assert str(photos) in printed
    assert "37 × 37" in printed
    assert f" kB of at most 20.00 GB in {tmp_path / 'resized'}" in printed
    assert main(["data", "cache", "--clear"]) == 0
    assert f" kB from {tmp_path}" in capsys.readouterr().out
    assert not list((tmp_path / "resized").glob("*.rows"))


def test_an_unreadable_image_ends_an_evaluation_with_its_name(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    (root / "test" / "birch" / "2.png").write_text("hello")
    code, line = error_of(capsys, ["evaluate", str(run), str(root), "--device", "cpu", "--workers", "0"])
    assert code == 2
    assert line == f"1 of 8 images cannot be used: {root / 'test' / 'birch' / '2.png'}: is text, not an image"


def test_a_run_is_resumed_without_the_cache(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "summary.json").unlink()
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    assert main(["train", "--resume", str(copy), "--no-cache"]) == 0
    assert not (tmp_path / "cache").exists()
    assert (copy / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_predict_as_csv_and_json_lines(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["predict", str(run), str(photos / "test"), "--device", "cpu"]
    assert main([*argv, "--format", "csv", "--top-k", "1"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1"] * 8
    assert {row["class"] for row in rows} <= {"alder", "birch"}
    assert main([*argv, "--format", "jsonl", "--out", str(tmp_path / "answers.jsonl")]) == 0
    objects = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [item["path"] for item in objects] == [row["path"] for row in rows]
    assert all(sum(guess["probability"] for guess in item["top"]) == pytest.approx(1, abs=1e-5) for item in objects)


def test_predict_reads_names_from_stdin_and_skips_bad_files(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("no image")
    names = [str(tmp_path / "bad.jpg"), str(photos / "test" / "alder" / "0.png")]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names) + "\n"))
    assert main(["predict", str(run), "-", "--device", "cpu"]) == 1
    caught = capsys.readouterr()
    assert "0.png" in caught.out
    assert caught.err.splitlines() == [
        f"clca: {tmp_path / 'bad.jpg'}: is text, not an image",
        "clca: 1 of the files could not be read",
    ]


@pytest.mark.parametrize("to_file", [True, False])
def test_predict_has_a_row_for_every_file_that_was_there(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], to_file: bool
) -> None:
    folder = tmp_path / "new"
    (folder / "@eaDir" / "good.png").mkdir(parents=True)
    for name in ("good.png", "-3.png", "@eaDir/good.png/SYNOPHOTO_THUMB_M.png"):
        shutil.copy(photos / "test" / "alder" / "0.png", folder / name)
    for name in ("IMG_1.PSD", "bad.jpg"):
        (folder / name).write_text("no image")
    os.mkfifo(folder / "fifo.jpg")
    reasons = {
        "IMG_1.PSD": "left out because its format is not read: convert it to JPEG or PNG",
        "bad.jpg": "is text, not an image",
        "fifo.jpg": "a FIFO or a device, not an image file",
    }
    told = {}
    for form in ("csv", "jsonl", "table"):
        out = tmp_path / f"answers.{form}"
        argv = ["predict", str(run), str(folder), "--device", "cpu", "--top-k", "1", "--format", form]
        with pytest.warns(UserWarning, match=r"1 image\(s\) are left out because they are in .* \(@eaDir\)") as warned:
            assert main([*argv, *(["--out", str(out)] if to_file else [])]) == 1
        line = f"{folder}: 1 image(s) are left out because their format is not read: 1 .psd, such as IMG_1.PSD; "
        assert [str(one.message).startswith(line) for one in warned] == [True]
        caught = capsys.readouterr()
        told[form] = out.read_text("utf-8-sig") if to_file else caught.out
        assert caught.err.splitlines() == [
            *(f"clca: {folder / name}: {reasons[name]}" for name in ("bad.jpg", "fifo.jpg")),
            "clca: 3 of the files could not be read",
        ]
    assert sorted(os.listdir(tmp_path)) == sorted(["new", *(f"answers.{form}" for form in told if to_file)])

    names = sorted(["good.png", "-3.png", *reasons])
    rows = list(csv.DictReader(io.StringIO(told["csv"], newline="")))
    assert [row["path"] for row in rows] == [str(folder / name) for name in names]
    assert {Path(row["path"]).name: row["error"] for row in rows if row["error"]} == reasons
    assert all(bool(row["class"]) == bool(row["probability"]) == (not row["error"]) for row in rows)
    objects = [json.loads(line) for line in told["jsonl"].splitlines()]
    assert [item["path"] for item in objects] == [str(folder / name) for name in names]
    assert {Path(item["path"]).name: item["error"] for item in objects if not item["top"]} == reasons
    assert all(name in told["table"] for name in names)
    assert all(f"({reason})" in told["table"] for reason in reasons.values())


def test_predict_out_is_left_alone_if_the_work_fails(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "answers.csv").write_text("before")
    monkeypatch.setattr("clca.system.files.CsvWriter.writerow", fail)
    argv = ["predict", str(run), str(photos / "test"), "--device", "cpu", "--format", "csv"]
    assert main([*argv, "--out", str(tmp_path / "answers.csv")]) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_names_may_begin_with_a_byte_order_mark(
    photos: Path, encoding: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(photos / "test" / "alder" / "0.png"), "Rosé.jpg", "赤霞珠.jpg", "last.jpg"]
    stream = io.TextIOWrapper(io.BytesIO((end.join(names) + end).encode(encoding)), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stream)
    assert [name for name in names_from_stdin() if name] == names


def test_a_list_that_is_text_already_loses_its_mark_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffa.jpg\nb.jpg\n"))
    assert names_from_stdin() == ["a.jpg", "b.jpg"]


@pytest.fixture(scope="module")
def odd_names(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Names that are markup, an emoji, a colour of the terminal, two lines, not UTF-8, or long."""
    folder = tmp_path_factory.mktemp("odd")
    names = ["leaf[copy].jpg", ":smile:.jpg", "red\x1b[31m.jpg", "two\rlines.jpg", os.fsdecode(b"caf\xe9.jpg")]
    files = [folder / name for name in (*names, "x" * 200 + ".jpg")]
    for file in files:
        shutil.copy(photos / "test" / "alder" / "0.png", file)
    return sorted(files)


def test_predict_shows_every_name_as_it_is(run: Path, odd_names: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    assert main(["predict", str(run), str(odd_names[0].parent), "--device", "cpu", "--out", str(table)]) == 0
    told = table.read_text()
    for name in (
        "leaf[copy].jpg",
        ":smile:.jpg",
        r"red\x1b[31m.jpg",
        r"two\rlines.jpg",
        r"caf\xe9.jpg",
        "x" * 200 + ".jpg",
    ):
        assert f"{odd_names[0].parent}/{name} " in told
    assert "\x1b" not in told


@pytest.mark.parametrize("to_file", [True, False])
def test_predict_gives_every_name_back(
    run: Path, odd_names: list[Path], tmp_path: Path, to_file: bool, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for form in ("csv", "jsonl"):
        out = tmp_path / form
        argv = ["predict", str(run), str(odd_names[0].parent), "--device", "cpu", "--top-k", "1", "--format", form]
        assert main([*argv, *(["--out", str(out)] if to_file else [])]) == 0
        written = out.read_bytes() if to_file else capfdbinary.readouterr().out
        text = written.decode(errors="surrogateescape")
        if form == "csv":
            assert text.startswith(
                "\ufeff" * to_file + "path,rank,class,probability,unfamiliarity,none_of_these,error\n"
            )
            text = text.removeprefix("\ufeff")
            given = [row["path"] for row in csv.DictReader(io.StringIO(text, newline=""))]
            assert text.count("\r") == 1
        else:
            assert written.decode()
            given = [json.loads(line)["path"] for line in text.splitlines()]
        assert [Path(name) for name in given] == odd_names


def test_a_terminal_without_a_letter_shows_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(["data", "check", "Rosé 赤霞珠"]) == 2
    streams["stderr"].flush()
    told = streams["stderr"].buffer.getvalue()  # type: ignore[attr-defined]
    assert told == b"clca: Ros\xe9 \\u8d64\\u971e\\u73e0: no such file or folder\n"


def test_what_is_told_of_a_name_is_no_command_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = error_of(capsys, ["data", "check", "red\x1b[31m" + os.fsdecode(b"caf\xe9")])
    assert (code, line) == (2, r"red\x1b[31mcaf\xe9: no such file or folder")


def test_predict_takes_any_name_from_stdin(run: Path, odd_names: list[Path]) -> None:
    names = [*map(os.fsencode, odd_names), b"y" * 300 + b".jpg"]
    argv = [
        sys.executable,
        "-m",
        "clca",
        "predict",
        str(run),
        "-",
        "--device",
        "cpu",
        "--format",
        "csv",
        "--top-k",
        "1",
    ]
    done = subprocess.run(argv, input=b"\n".join(names), capture_output=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"clca: {'y' * 300}.jpg: file name too long",
        "clca: 1 of the files could not be read",
    ]
    assert all(name in done.stdout for name in names[:-1])


def test_data_leaves_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["data", "leaves", str(tmp_path / "leaves"), "--cultivars", "2", "--images", "5", "--size", "32"]
    assert main(argv) == 0
    capsys.readouterr()
    main(["data", "check", str(tmp_path / "leaves")])
    assert "cultivar-001" in capsys.readouterr().out


GROUPS = {"data": ["check", "leaves", "cache"], "study": ["plan", "run", "status"]}


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS.items() for name in names]
)
def test_every_command_has_help_with_examples(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([*command, "--help"])
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr().out
    assert code == 0
    assert "clca" in printed
    assert not any(internal in printed for internal in ("(default: )", "default: None", "{None}"))
    assert command in [[group] for group in GROUPS] or f"clca {' '.join(command)}" in printed.split("Examples:")[1]


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize(
    "command",
    [[]] + [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS.items() for name in names],
    ids=" ".join,
)
def test_help_fits_the_terminal_and_says_what_values_are(
    command: list[str], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    printed = capsys.readouterr().out
    told = [
        line for line in printed.splitlines() if not line.startswith(("  clca ", "  torchrun ", "  find ", "  openssl"))
    ]
    assert [line for line in told if len(line) > columns and not line.startswith("usage:")] == []
    assert not re.search(r"\b(STR|INT|FLOAT)\b|\{\w+,", printed)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "no command 'trian': did you mean train?"),
        (["data", "chekc"], "no command 'chekc': did you mean check?"),
        (["train", "photos", "--keep-rats", "0.5"], "no option --keep-rats: did you mean --keep-rates?"),
        (
            ["train", "photos", "--model", "vit_tiny_patch16_224", "--reduction", "evit", "--keep-rates", "0.5"],
            "--keep-rates 0.5: needs at least two different keep rates",
        ),
        (
            ["train", "photos", "--model", "vit_tiny_patch16_224", "--reduction", "evit", "--keep-rates", "1..0.1"],
            "--keep-rates 1..0.1: should be a list of keep rates, or a range such as 0.05..1",
        ),
        (
            ["train", "photos", "--model", "vit_tiny_patch16_224", "--keep-rates", "0.1..1"],
            "--keep-rates 0.1..1: reduction none keeps every token",
        ),
        (
            [
                "train",
                "photos",
                "--model",
                "vit_tiny_patch16_224",
                "--reduction",
                "evit",
                "--keep-rates",
                "0.1",
                "1",
                "--keep-rate",
                "0.05",
            ],
            "--keep-rate: 0.05 is outside of the keep_rates that the model is trained for",
        ),
        (["train", "photos"], "--model is missing"),
        (["train", "--model", "vit_tiny_patch16_224"], "DATA is missing"),
        (["train", "photos", "--lr"], "--lr needs a value"),
        (["evaluate"], "RUN is missing: Run folder"),
        (["evaluate", "nowhere"], "nowhere is neither a local folder nor a model"),
        (["evaluate", "nowhere", "--split", "half"], "--split half: should be 'test', 'val'"),
        (["predict"], "RUN is missing: Run folder"),
        (["predict", "nowhere"], "IMAGES is missing: Files, folders"),
        (["predict", "nowhere", "."], "nowhere is neither a local folder nor a model"),
        (["train", "--resume", "nowhere"], "nowhere: no config.json there"),
        (["train", "--config", "nowhere.yaml"], "--config nowhere.yaml: cannot be read (no such file or directory)"),
        (["train", "--config", "."], "--config .: cannot be read (is a directory)"),
        (["study", "plan", "."], ".: cannot be read (is a directory)"),
        (["data", "check", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = error_of(capsys, argv)
    assert code == 2
    assert error.startswith(line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            ["--model", "vit_tinny_patch16_224"],
            "unknown model 'vit_tinny_patch16_224': did you mean vit_tiny_patch16_224",
        ),
        (["--reduction", "evitt"], "unknown reduction 'evitt'"),
        (["--reduction", "evit", "--keep-rate", "0"], "--keep-rate 0: a keep rate is a share"),
        (["--reduction", "evit", "--keep-rate", "1.5"], "--keep-rate 1.5: a keep rate is a share"),
        (["--reduction", "evit", "--keep-rate", "a"], "--keep-rate a: should be a valid number"),
        (["--reduction", "evit", "--keep-rate", "0.5", "0.5", "0.5", "0.5"], "keep_rate has 4 rates"),
        (["--reduction", "evit", "--locations", "3", "99"], "loc"),
        (["--num-clr", "0", "--no-clc-gap"], ""),
        (["--img-size", "100"], ""),
        (["--weights", "nowhere.pth"], ""),
        (["--epochs", "0"], "--epochs 0: should be greater than or equal to 1"),
    ],
)
def test_a_setting_that_cannot_be_is_told_before_training(
    photos: Path, tmp_path: Path, changes: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = error_of(capsys, ["train", str(photos), *FLAGS, "--out", str(tmp_path / "run"), *changes])
    assert code == 2
    assert error.startswith(line)
    assert "Traceback" not in error


def test_weights_that_are_a_pickle_bomb_do_not_go_off(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    torch.save(_Bomb(tmp_path / "exploded"), tmp_path / "bomb.pth")
    argv = ["train", str(photos), *FLAGS, "--weights", str(tmp_path / "bomb.pth"), "--out", str(tmp_path / "run")]
    code, error = error_of(capsys, argv)
    assert code == 2
    assert "bomb.pth" in error
    assert not (tmp_path / "exploded").exists()


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8\xff\xe0 cut"], ids=["empty", "text", "truncated"])
def test_an_unreadable_image_is_named_before_training(
    photos: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "alder" / "9.jpg").write_bytes(content)
    code, error = error_of(capsys, ["train", str(tmp_path / "photos"), *FLAGS, "--out", str(tmp_path / "run")])
    assert code == 2
    assert error.startswith("1 of 17 images cannot be used: ")
    assert "9.jpg" in error


def test_debug_shows_where_it_happened() -> None:
    with pytest.raises(ValueError, match="no command"):
        main(["trian", "--debug"])


def test_ctrl_c_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("clca.cli.commands.demo.run", interrupted)
    assert error_of(capsys, ["demo"]) == (130, "interrupted")


def test_a_file_of_settings_gives_way_to_flags(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: photos\nmodel: vit_tiny_patch16_224\nlr: 0.01\npretrained: false\nkeep-rate: [0.7, 0.5]\n")
    given = flags.read_file(str(file))
    config = flags.to_config(_given("--lr", "0.02", "--pretrained"), given)
    assert (config.lr, config.pretrained, config.model.keep_rate) == (0.02, True, (0.7, 0.5))
    assert flags.to_config({}, given).pretrained is False
    file.write_text("learning_rate: 1\n")
    with pytest.raises(ValueError, match="no setting is called learning_rate"):
        flags.read_file(str(file))


def _given(*words: str) -> dict[str, object]:
    """The settings of `clca train WORDS`."""
    return read(arguments(), "clca train", words, "")


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from clca.cli.main import main; main(['--help']);"
        "heavy = {'ray', 'gradio', 'matplotlib', 'onnx', 'accelerate', 'sklearn'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
