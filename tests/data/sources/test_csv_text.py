"""CSV files as spreadsheets save them: separators, a first line that names one, and forms of Unicode."""

from pathlib import Path

import pytest
from PIL import Image

from clca.data.sources.folder_csv import read_listing
from clca.data.sources.ultra_fgvc import Published, read_ultra_fgvc
from clca.errors import ClcaError
from clca.system.files import write_csv

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark", "utf-16-be with a mark"]


def encoded(text: str, encoding: str) -> bytes:
    name, _, mark = encoding.partition(" ")
    return (("\ufeff" if mark else "") + text).encode(name)


def a_set(folder: Path) -> list[list[str]]:
    rows = [["path", "label", "split"]]
    for number in range(6):
        Image.new("RGB", (6, 5)).save(folder / f"é{number}.png")
        rows.append([f"é{number}.png", "赤霞珠" if number % 2 else "Rosé", "test" if number > 3 else "train"])
    return rows


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("separator", SEPARATORS)
@pytest.mark.parametrize("first", ["", "sep={}", "SEP={}", '"sep={}"', "sep={};;"])
def test_a_list_is_read_however_a_spreadsheet_saved_it(
    tmp_path: Path, encoding: str, separator: str, first: str
) -> None:
    rows = a_set(tmp_path)
    mark = SEPARATORS[separator]
    lines = [first.format(mark)] * bool(first) + [mark.join(row) for row in rows]
    (tmp_path / "list.csv").write_bytes(encoded("\r\n".join(lines) + "\r\n", encoding))

    listing = read_listing(tmp_path / "list.csv")

    assert listing.classes == ["Rosé", "赤霞珠"]
    assert listing.problems == []
    assert [path.name for path, _ in listing.splits["test"]] == ["é4.png", "é5.png"]


def test_a_separator_in_words_is_understood(tmp_path: Path) -> None:
    rows = a_set(tmp_path)
    (tmp_path / "list.csv").write_text("\n".join(["sep=\\t", *("\t".join(row) for row in rows)]), "utf-8")
    assert len(read_listing(tmp_path / "list.csv").classes) == 2


def test_the_names_of_the_columns_decide_on_the_separator(tmp_path: Path) -> None:
    rows = a_set(tmp_path)
    rows = [[*row, "a, b, c, d" if number else "notes, remarks, and more"] for number, row in enumerate(rows)]
    (tmp_path / "list.csv").write_text("\n".join(";".join(row) for row in rows), "utf-8")
    assert read_listing(tmp_path / "list.csv").classes == ["Rosé", "赤霞珠"]


@pytest.mark.parametrize(("first", "line"), [("", 3), ("sep=;\n", 4)])
def test_a_mistake_is_found_by_its_line_in_the_file(tmp_path: Path, first: str, line: int) -> None:
    a_set(tmp_path)
    (tmp_path / "list.csv").write_text(f"{first}path;label\né0.png;a\né1.png;\n", "utf-8")
    with pytest.raises(ClcaError, match=f"line {line}: path or label is empty"):
        read_listing(tmp_path / "list.csv")


def test_a_list_from_our_own_tables_is_read_back(tmp_path: Path) -> None:
    names = ["=1.png", "-2.png", "@3.png", "'4.png", "'=5.png", "6.png"]
    classes = ["-Rosé", "'=q"]
    for name in names:
        Image.new("RGB", (6, 5)).save(tmp_path / name)
    write_csv(tmp_path / "list.csv", ["path", "label"], ([name, classes[k % 2]] for k, name in enumerate(names)))
    listing = read_listing(tmp_path / "list.csv")
    assert listing.classes == sorted(classes)
    assert listing.problems == []
    assert {path.name for samples in listing.splits.values() for path, _ in samples} == {*names}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_forms_of_unicode_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.csv").write_bytes("path,label\na.png,x\n".encode(encoding))
    with pytest.raises(ClcaError, match=r"seems to be UTF-16 or UTF-32: save it as UTF-8 \(in Excel: "):
        read_listing(tmp_path / "list.csv")


@pytest.mark.parametrize("encoding", ["cp1252", "shift-jis", "gb18030"])
def test_other_encodings_are_refused_with_what_to_do(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.csv").write_bytes(
        ("path,label\na.png,Rosé\n" if encoding == "cp1252" else "赤霞珠").encode(encoding)
    )
    with pytest.raises(ClcaError, match=r"is not a CSV file in UTF-8 .*: save it as UTF-8 \(in Excel: \"CSV UTF-8\"\)"):
        read_listing(tmp_path / "list.csv")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("first", ["", "sep=;\r\n"])
def test_the_published_lists_may_be_saved_by_a_spreadsheet_too(tmp_path: Path, encoding: str, first: str) -> None:
    for split in ("train", "test"):
        names = [f"{cultivar}_{2 if split == 'test' else 1}_{split}.png" for cultivar in (1, 2)]
        for name in names:
            Image.new("RGB", (6, 5)).save(tmp_path / name)
        lines = ["class_id;dir", *(f"{label};{name}" for label, name in enumerate(names))]
        (tmp_path / f"{split}.csv").write_bytes(encoded(first + "\r\n".join(lines), encoding))
    assert read_ultra_fgvc(tmp_path, "soygene", Published(2, 2, 2)).problems == []
