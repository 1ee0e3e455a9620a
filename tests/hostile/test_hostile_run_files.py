"""A run folder from a stranger: each of its files is read within limits, or refused in a line, by every command."""

import copy
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import bounded
from hypothesis import given, settings
from hypothesis import strategies as st
from stranger_models import with_pickle
from stranger_runs import one_thread, read_checkpoints

pytestmark = pytest.mark.slow

OLD = Path(__file__).parents[1] / "compat" / "made_by_0_1_0.zip"
LIMITS: dict[str, Any] = {"memory_mib": 768, "cpu_seconds": 30}
HUGE = 10**18


def old_run(folder: Path, name: str) -> Path:
    """A run of a small model: `run` is finished, `interrupted` has a checkpoint."""
    with zipfile.ZipFile(OLD) as archive:
        archive.extractall(folder, [member for member in archive.namelist() if member.startswith(f"{name}/")])
    return folder / name


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return old_run(tmp_path, "run")


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    return old_run(tmp_path, "interrupted")


def command(*arguments: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, within the limits and without a traceback."""
    outcome = bounded(one_thread, *map(str, arguments), **LIMITS)
    assert not outcome.error, outcome.trace
    code, out, err = outcome.value
    assert "Traceback" not in err, err
    return code, out, err


def refused_in_a_line(*arguments: Any) -> str:
    code, out, err = command(*arguments)
    assert code in (1, 2), (code, out, err)
    line = err.strip().splitlines()[-1]
    assert len(line) < 1500
    assert line.isprintable()
    return line


def commands(folder: Path) -> dict[str, list[Any]]:
    images = "leaves:cultivars=3,images=10,size=40"
    return {
        "resume": ["train", "--resume", folder],
        "evaluate": ["evaluate", folder, "--device", "cpu", "--workers", "0"],
        "report": ["report", folder, "--out", folder.parent / "page"],
        "predict": ["predict", folder, _photograph(folder.parent), "--device", "cpu"],
        "export": ["export", folder, "--out", folder.parent / "a.onnx"],
        "train": ["train", images, "--model", "vit_tiny_patch16_224", "--no-pretrained", "--out", folder],
    }


def _photograph(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 40), (30, 90, 20)).save(folder / "leaf.png")
    return folder / "leaf.png"


# -- config.json -----------------------------------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"train":' * 100_000,
    "huge number": b'{"train": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"train": NaN}',
    "twice": b'{"format": "clca", "train": {}, "train": {}}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b"\xff\xfe{\x00}\x00",
    "many lists": b"[" + b"[]," * 1_000_000 + b"[]]",
    "large": b"{" + b" " * 20_000_000 + b"}",
    "empty": b"",
    "a list": b"[]",
    "half": b'{"format": "clca", "train": {"mo',
}


@pytest.mark.parametrize("text", TEXTS)
def test_configurations_that_are_none(text: str, interrupted: Path) -> None:
    (interrupted / "config.json").write_bytes(TEXTS[text])
    assert "config.json" in refused_in_a_line("train", "--resume", interrupted)


@pytest.mark.parametrize("name", ["evaluate", "predict", "export", "train"])
@pytest.mark.parametrize("text", ["nested", "NaN", "twice", "byte order mark"])
def test_every_command_refuses_them(text: str, name: str, finished: Path) -> None:
    (finished / "config.json").write_bytes(TEXTS[text])
    assert "config.json" in refused_in_a_line(*commands(finished)[name])


@pytest.mark.parametrize("text", ["nested", "NaN", "large", "half"])
@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "summary.json"])
def test_the_report_shows_what_is_left(text: str, file: str, finished: Path) -> None:
    (finished / file).write_bytes(TEXTS[text])
    code, out, err = command("report", finished, "--out", finished.parent / "page")
    assert code == 0 or (code in (1, 2) and err.strip().isprintable()), (out, err)


WRONG: dict[str, tuple[tuple[str, ...], Any]] = {
    "no settings": (("train",), None),
    "settings as a list": (("train",), [1]),
    "epochs as text": (("train", "epochs"), "1_0"),
    "too many epochs": (("train", "epochs"), HUGE),
    "negative epochs": (("train", "epochs"), -1),
    "batch size": (("train", "batch_size"), HUGE),
    "workers": (("train", "workers"), HUGE),
    "rate as a list": (("train", "lr"), [0.1]),
    "model as text": (("train", "model"), "vit"),
    "depth": (("train", "model", "backbone_kwargs", "depth"), 10**9),
    "width": (("train", "model", "backbone_kwargs", "embed_dim"), 96_000),
    "elsewhere": (("train", "model", "backbone_kwargs", "pretrained_cfg_overlay"), {"file": "/etc/passwd"}),
    "side": (("train", "model", "img_size"), 10**9),
    "backbone": (("train", "model", "backbone"), "hf-hub:user/model"),
    "unknown": (("train", "shell"), "rm -rf ~"),
    "no images": (("train", "data", "root"), "/no/such/folder"),
    "absurd leaves": (("train", "data", "root"), f"leaves:cultivars={10**9},images=10,size=40"),
    "absurd size": (("train", "data", "root"), f"leaves:cultivars=3,images=10,size={10**9}"),
    "classes as a number": (("classes",), 5),
    "classes as text": (("classes",), "abc"),
    "classes that are lists": (("classes",), [["a"], ["b"], ["c"]]),
    "other classes": (("classes",), ["a", "b", "c"]),
    "classes that steer a terminal": (("classes",), ["\x1b[2J", "b", "c"]),
    "counts as text": (("resolved", "train_images"), "\x1b[2J" + "x" * 100_000),
    "counts as a list": (("resolved", "train_images"), [[1]] * 100),
    "precision": (("resolved", "precision"), {"a": 1}),
    "started in a number": (("resolved", "started_in"), 7),
    "no resolved": (("resolved",), [1]),
}
READ_ON = {"precision", "started in a number", "no resolved"}  # what is left out, or means what a missing value means


@pytest.mark.parametrize("change", WRONG)
def test_resuming_with_other_values(change: str, interrupted: Path) -> None:
    file = interrupted / "config.json"
    content = json.loads(file.read_text())
    place, value = WRONG[change]
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    file.write_text(json.dumps(content))
    if change in READ_ON:
        code, _, err = command("train", "--resume", interrupted)
        assert code == 0 or err.strip().splitlines()[-1].isprintable()
    else:
        refused_in_a_line("train", "--resume", interrupted)


# -- summary.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": "two"}, {"epochs": None}, {"steps": [1]}, {"kept": 5}, {"kept_epoch": {"a": 1}}, {"train": None},
        {"train": "x"}, {"train": {"loss": 1}}, {"watched": {"top1": "all", "loss": 1}}, {"watched": [1]},
        {"watched": {"top1": 1}}, {"seconds": "long"},
    ],
    ids=str,
)  # fmt: skip
def test_summaries_with_other_values(change: dict[str, Any], finished: Path) -> None:
    file = finished / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "summary.json" in refused_in_a_line("train", "--resume", finished)


@pytest.mark.parametrize("text", TEXTS)
def test_summaries_that_are_none(text: str, finished: Path) -> None:
    (finished / "summary.json").write_bytes(TEXTS[text])
    assert "summary.json" in refused_in_a_line("train", "--resume", finished)


# -- last.ckpt -------------------------------------------------------------------------------------------------------


@cache
def _checkpoint() -> bytes:
    with zipfile.ZipFile(OLD) as archive:
        return archive.read("interrupted/last.ckpt")


def content_of_checkpoint() -> dict[str, Any]:
    return torch.load(io.BytesIO(_checkpoint()), weights_only=True)


def _first_state(content: dict[str, Any]) -> dict[str, Any]:
    return content["optimizer"]["state"][0]


def _progress(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["progress"].update(fields)


def _state(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: _first_state(content).update({name: value})


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another format": lambda c: c.update(format=2),
    "a format that is a list": lambda c: c.update(format=[1]),
    "no progress": lambda c: c.pop("progress"),
    "progress as a list": lambda c: c.update(progress=[1]),
    "unknown progress": _progress(shell="x"),
    "steps beyond the end": _progress(step=HUGE),
    "negative steps": _progress(step=-1),
    "steps as a float": _progress(step=4.0),
    "steps as true": _progress(step=True),
    "steps as a tensor": _progress(step=torch.tensor(4)),
    "epochs without steps": _progress(epochs_done=3),
    "fewer epochs": _progress(epochs_done=0),
    "no images": _progress(seen=0.0),
    "a loss that is no number": _progress(loss_sum=float("nan")),
    "seconds without end": _progress(seconds=float("inf")),
    "no numbers of the epoch": _progress(train=None),
    "numbers that are text": _progress(train={"loss": "x", "top1": 1.0}),
    "best without a loss": _progress(best={"top1": 1.0}),
    "best with a list": _progress(best={"top1": [1.0], "loss": 1.0}),
    "watched as a list": _progress(watched=[1]),
    "tracked as a number": _progress(tracked=5),
    "no optimizer": lambda c: c.pop("optimizer"),
    "optimizer as a list": lambda c: c.update(optimizer=[1]),
    "no state": lambda c: c["optimizer"].pop("state"),
    "groups as text": lambda c: c["optimizer"].update(param_groups="abc"),
    "fewer groups": lambda c: c["optimizer"]["param_groups"].pop(),
    "parameters by text": lambda c: c["optimizer"]["param_groups"][0].update(params=["a"]),
    "state of a parameter that is not there": lambda c: c["optimizer"]["state"].update({10**6: _first_state(c)}),
    "state of a negative parameter": lambda c: c["optimizer"]["state"].update({-1: _first_state(c)}),
    "state by text": lambda c: c["optimizer"]["state"].update(a=_first_state(c)),
    "state as a list": lambda c: c["optimizer"]["state"].update({0: [1]}),
    "state without an average": lambda c: _first_state(c).pop("exp_avg"),
    "state with more": _state("other", torch.zeros(1)),
    "an average of another shape": _state("exp_avg", torch.zeros(3)),
    "an average that spreads": _state("exp_avg_sq", torch.zeros(1)),
    "a large average": _state("exp_avg", torch.zeros(1000, 1000)),
    "an average of whole numbers": _state("exp_avg", torch.zeros(1, 1, 16, dtype=torch.int64)),
    "an average that is a number": _state("exp_avg", 0.5),
    "steps of the optimizer as a table": _state("step", torch.zeros(16)),
    "negative steps of the optimizer": _state("step", torch.tensor(-1.0)),
    "steps of the optimizer that are no number": _state("step", torch.tensor(float("nan"))),
    "no model": lambda c: c.pop("model"),
    "model as a list": lambda c: c.update(model=[1]),
    "a weight as text": lambda c: c["model"].update(cls_token="x"),
    "a weight of another shape": lambda c: c["model"].update(cls_token=torch.zeros(1, 1, 8)),
    "a weight more": lambda c: c["model"].update(other=torch.zeros(1)),
    "a weight less": lambda c: c["model"].pop("cls_token"),
}


@pytest.mark.parametrize("change", CHECKPOINTS)
def test_checkpoints_with_other_values(change: str, interrupted: Path) -> None:
    content = content_of_checkpoint()
    CHECKPOINTS[change](content)
    torch.save(content, interrupted / "last.ckpt")
    assert "last.ckpt" in refused_in_a_line("train", "--resume", interrupted)


def _view(shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """A tensor of four numbers that a pickle makes a larger one of."""

    class Enlarged:
        def __reduce__(self) -> Any:
            storage = torch.zeros(4).storage()
            return torch._utils._rebuild_tensor_v2, (storage, 0, shape, stride, False, {})

    return Enlarged()


def _bomb(file: Path) -> None:
    content = content_of_checkpoint()
    _first_state(content)["exp_avg"] = _view((2**40,), (1,))
    torch.save(content, file)


def _repeated(file: Path) -> None:
    content = content_of_checkpoint()
    _first_state(content)["exp_avg"] = _view((2**40,), (0,))
    torch.save(content, file)


def _packed(file: Path) -> None:
    plain = io.BytesIO()
    torch.save({"model": torch.zeros(20_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))


def _code(file: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, ("touch ran",)

    torch.save({"format": 1, "progress": Runs()}, file)


FILES: dict[str, Callable[[Path], Any]] = {
    "enlarged": _bomb,
    "repeated": _repeated,
    "packed": _packed,
    "code": _code,
    "half": lambda file: file.write_bytes(_checkpoint()[:100_000]),
    "zeros": lambda file: file.write_bytes(bytes(100_000)),
    "text": lambda file: file.write_bytes(b"[" * 100_000),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_that_are_bombs_or_none(name: str, interrupted: Path) -> None:
    file = interrupted / "last.ckpt"
    file.unlink()
    FILES[name](file)
    assert "last.ckpt" in refused_in_a_line("train", "--resume", interrupted)
    assert not (interrupted / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("target", ["fifo", "/dev/zero"])
def test_files_without_an_end(name: str, target: str, finished: Path) -> None:
    file = finished / name
    file.unlink()
    if target == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to(target)
    for each in ("report", "evaluate"):
        code, _, err = command(*commands(finished)[each])
        assert code == 0 or err.strip(), each


@settings(max_examples=15, deadline=None)
@given(
    changes=st.lists(
        st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
        min_size=10,
        max_size=20,
    )
)
def test_any_change_of_the_pickle_of_a_checkpoint(changes: list[list[tuple[int, bytes]]]) -> None:
    files = [with_pickle(_checkpoint(), change) for change in changes]
    outcome = bounded(read_checkpoints, files, memory_mib=256, cpu_seconds=20)
    assert not outcome.error, outcome.trace
    assert all("\n" not in message for message in outcome.value)


# -- what is sound ---------------------------------------------------------------------------------------------------


def test_a_sound_run_is_resumed_within_the_limits(interrupted: Path) -> None:
    shutil.copytree(interrupted, interrupted.parent / "again")
    code, out, err = command("train", "--resume", interrupted)
    assert code == 0, err
    assert "weights: best on val" in out
    assert (interrupted / "summary.json").is_file()


@pytest.mark.parametrize("name", ["evaluate", "report", "predict", "export"])
def test_commands_take_a_sound_run_within_the_limits(name: str, finished: Path) -> None:
    code, _, err = command(*commands(finished)[name])
    assert code == 0, err


def test_settings_of_the_optimizer_are_those_of_the_run(interrupted: Path) -> None:
    """A checkpoint with another learning rate is trained with that of the run: the end is the same."""
    other = interrupted.parent / "other"
    shutil.copytree(interrupted, other)
    content = content_of_checkpoint()
    changed = copy.deepcopy(content)
    for group in changed["optimizer"]["param_groups"]:
        group.update(lr=1e9, weight_decay=1e9, betas=(0.0, 0.0), initial_lr=1e9, maximize=True, lr_scale=5.0)
    torch.save(changed, other / "last.ckpt")
    ends = []
    for folder in (interrupted, other):
        assert command("train", "--resume", folder)[0] == 0
        ends.append(json.loads((folder / "summary.json").read_text())["train"])
    assert ends[0] == ends[1]
