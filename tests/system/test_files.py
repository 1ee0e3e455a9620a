"""Where output goes: through symlinks and into FIFOs, not over them; and what is said if it cannot be written."""

import csv
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clca
from clca.cli.main import main
from clca.errors import WorkError
from clca.system.files import read_csv, replacing, write_csv
from clca.training.run_folder import FILES, refuse_run_file


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, for this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if there:
        (folder / "target.csv").write_text("old")
        os.link(folder / "target.csv", folder / "other name of the old one")
    (tmp_path / "link.csv").symlink_to("folder/target.csv")

    write_csv(tmp_path / "link.csv", ["a", "b"], [[1, 2]])

    assert (tmp_path / "link.csv").is_symlink()
    assert (folder / "target.csv").read_text("utf-8") == "\ufeffa,b\n1,2\n"
    if there:  # it was renamed into place, not written over
        assert (folder / "other name of the old one").read_text() == "old"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_link_keeps_its_target_whole_if_the_work_fails(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")

    def rows() -> Iterator[list[int]]:
        yield [1]
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkError, match=r"no space left.*; the previous one, if any, is whole"):
        write_csv(tmp_path / "link", ["a"], rows())

    assert (tmp_path / "target").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_fifo_stays_and_is_given_the_content(tmp_path: Path, temporary_folder: Path, linked: bool) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to("fifo")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # a writer need not wait for one

    write_csv(tmp_path / "link" if linked else fifo, ["a", "b"], [[1, 2]])

    assert os.read(reader, 100) == b"a,b\n1,2\n"
    os.close(reader)
    assert fifo.is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert not list(temporary_folder.iterdir())


def test_a_fifo_whose_reader_leaves_is_told_in_one_line(tmp_path: Path, temporary_folder: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def look_and_leave() -> None:
        with open(fifo, "rb") as file:
            file.read(1)

    reader = threading.Thread(target=look_and_leave, daemon=True)
    reader.start()
    with pytest.raises(WorkError) as caught, replacing(fifo) as temporary:
        temporary.write_bytes(bytes(2**20))
    reader.join()

    assert str(caught.value) == f"{fifo} could not be written (broken pipe)"
    assert not list(temporary_folder.iterdir())


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no names for open files here")
def test_an_open_file_that_is_appended_to_keeps_what_it_holds(tmp_path: Path, temporary_folder: Path) -> None:
    (tmp_path / "all.csv").write_text("kept\n")
    with open(tmp_path / "all.csv", "a") as file:
        write_csv(Path(f"/dev/fd/{file.fileno()}"), ["a", "b"], [[1, 2]])

    assert (tmp_path / "all.csv").read_text() == "kept\na,b\n1,2\n"


@pytest.mark.parametrize("command", [["export", "--to", "pt2"], ["predict", "leaf.png"]])
@pytest.mark.parametrize(
    "out",
    [
        *(f"run/{name}" for name in FILES),  # last.ckpt is not there, but would be taken for the run's
        "other/model.safetensors",
        "other/../run/config.json",
        "folder/config.json",
        "file",
        "weights",
    ],
)
def test_what_a_run_is_made_of_is_not_written_over(
    command: list[str], out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "other"):
        Path(folder).mkdir()
        for name in {*FILES} - {"last.ckpt"}:
            Path(folder, name).write_text("{}")
    Path("run/model.safetensors").rename("weights")
    Path("run/model.safetensors").symlink_to("../weights")
    Path("folder").symlink_to("run")
    Path("file").symlink_to("other/summary.json")
    before = {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}

    assert main([command[0], "run", *command[1:], "--out", out]) == 2

    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"clca: --out {out}: is a file of the run or saved model in " in told
    assert {file: file.read_text() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("images", ["leaf.png", ".", "le*.png"])
def test_a_photograph_is_not_written_over(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("leaf.png").write_bytes(b"a leaf")
    Path("link").symlink_to("leaf.png")
    for out in ("leaf.png", str(tmp_path / "leaf.png"), "link"):
        assert main(["predict", "run", images, "--out", out]) == 2
        assert capsys.readouterr().err == f"clca: --out {out}: is one of the images; choose another name\n"
    assert Path("leaf.png").read_bytes() == b"a leaf"


def test_a_table_gives_every_name_back(tmp_path: Path) -> None:
    names = ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b", "a\r"]
    write_csv(tmp_path / "names.csv", ["name", "length"], ([name, len(name)] for name in names))

    with open(tmp_path / "names.csv", newline="", encoding="utf-8-sig") as file:
        assert list(csv.reader(file)) == [["name", "length"], *([name, str(len(name))] for name in names)]
    assert (tmp_path / "names.csv").read_bytes().startswith(b"\xef\xbb\xbfname,length\n")


FORMULAS = st.sampled_from(
    ["", "=", "+", "-", "@", "\t", "\r", "\n", " =", "\u00a0@", "＝", "\t=", "'", "'=", "''-", "-1"]
)


@given(cells=st.lists(st.builds(str.__add__, FORMULAS, st.text(st.characters(exclude_categories=["Cs"])))))
def test_no_cell_is_a_formula_and_reading_gives_every_text_back(
    cells: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    write_csv(path, ["=head", *cells], [["-name", *cells], ["", 1, -2.5, None, True, np.float64(-0.5), Path("-p")]])

    with open(path, newline="", encoding="utf-8-sig") as file:
        heads, row, numbers = csv.reader(file)
    assert numbers == ["", "1", "-2.5", "", "True", "-0.5", "'-p"]
    for cell, text in zip([*heads, *row], ["=head", *cells, "-name", *cells], strict=True):
        assert cell.endswith(text)
        assert cell[:1] not in tuple("=+-@\t\r\n＝＋－＠")
        assert cell.lstrip()[:1] not in tuple("=+-@＝＋－＠")
    assert read_csv(path)[:2] == [["=head", *cells], ["-name", *cells]]
    path.unlink()


def test_a_table_of_an_earlier_version_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("class,images\n=x,1\n'y,2\n")
    assert read_csv(tmp_path / "table.csv") == [["class", "images"], ["=x", "1"], ["'y", "2"]]


def test_one_place_writes_csv() -> None:
    source = Path(clca.__file__).parent
    written = re.compile(r"csv\.writer\(|DictWriter|\.to_csv\(|from csv import|to_clipboard\(")
    found = {str(path.relative_to(source)) for path in source.rglob("*.py") if written.search(path.read_text("utf-8"))}
    assert found == {os.path.join("system", "files.py")}
    assert len(written.findall((source / "system" / "files.py").read_text("utf-8"))) == 1


def test_other_names_beside_a_run_and_in_other_folders_are_free(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
    for name in ("config.json", "model.onnx"):  # exported before
        (run / name).write_text("{}")
    for out in (run / "model.onnx", run / "new.pt2", other / "model.safetensors", Path("/dev/stdout")):
        refuse_run_file(out, run)


# This device is written to by its open file alone, never by its name: a regular file must not take its place.
FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


@FULL
@pytest.mark.parametrize(
    "call",
    [
        "from clca.cli.main import main; sys.exit(main(['--version']))",  # so little that it waits in the buffer
        "from clca.cli.main import main; sys.exit(main(['data', 'cache', '--help']))",  # SystemExit
        "import clca.cli.main as c; c.dispatch = lambda *_: print('x' * 100_000); sys.exit(c.main([]))",  # more
    ],
)
def test_a_full_standard_output_is_called_by_its_name(call: str) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-c", f"import sys; {call}"], stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert ended.stderr == "clca: standard output could not be written: no space left\n"
    assert ended.returncode == 1


def test_another_full_disk_is_not_blamed_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clca.cli.main.dispatch", fail)

    assert main([]) == 1
    assert capsys.readouterr().err == "clca: no space left\n"


def test_a_warning_of_ours_is_one_line_from_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert main(["--version"]) == 0

    ours, theirs = (
        warnings.formatwarning("look out", UserWarning, name, 1, "code") for name in (clca.__file__, "elsewhere.py")
    )
    assert ours == "clca: warning: look out\n"
    assert theirs == "elsewhere.py:1: UserWarning: look out\n  code\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert warnings.formatwarning("look out", UserWarning, clca.__file__, 1) == ""
