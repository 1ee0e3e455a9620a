"""What the page says of a run's evaluations, from the files that the run has."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_page import CLASSES

from clca.app.evaluation_tab import evaluation_html
from clca.app.i18n import Words
from clca.evaluation.stored import evaluations


@pytest.fixture
def run(vines: Path, tmp_path: Path) -> Path:
    """A run that can be changed."""
    return Path(shutil.copytree(vines, tmp_path / "vines"))


def told(run: Path, keep_rate: float | tuple[float, ...] = 0.5) -> str:
    served = SimpleNamespace(run=run, classes=CLASSES, keep_rate=keep_rate)
    return evaluation_html(Words().translator({}), served, evaluations(run))  # type: ignore[arg-type]


def by_class(html: str) -> list[tuple[str, str]]:
    """Class and photographs of each row."""
    table = html.split("By class")[1].split("</table>")[0]
    return re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", table)


def test_the_table_by_class_is_of_the_evaluation_in_the_head_not_of_other_images(run: Path) -> None:
    room = run / "evaluation"
    shutil.copytree(room / "test", room / "herbarium-test")  # as `clca evaluate RUN --data herbarium` leaves it
    numbers = json.loads((room / "test" / "evaluation.json").read_text())
    (room / "herbarium-test" / "evaluation.json").write_text(json.dumps(numbers | {"data": "herbarium"}))
    (room / "herbarium-test" / "classes.csv").write_text("class,images,precision,recall,f1\nbirch,77,1,1,1\n")
    shutil.copytree(room / "test", room / "val")
    (room / "val" / "evaluation.json").write_text(json.dumps(numbers | {"split": "val"}))
    for folder in room.glob("test*"):
        shutil.rmtree(folder)
    html = told(run)
    assert "val: 12 photographs" in html
    assert {images for _, images in by_class(html)} == {"4"}


@pytest.mark.parametrize(
    ("own", "shown", "named"),
    [(0.5, 0.5, None), (0.4, 0.5, "40%"), (0.9, 1.0, "90%"), (0.1, 0.25, "10%"), ((0.2, 0.3), 0.25, "20% 30%")],
)
def test_the_head_names_the_share_that_it_is_of_where_that_is_not_the_models_own(
    run: Path, own: float | tuple[float, ...], shown: float, named: str | None
) -> None:
    for path in (run / "evaluation").glob("*/evaluation.json"):
        numbers = json.loads(path.read_text())
        path.write_text(json.dumps(numbers | {"top1": numbers["keep_rate"]}))  # to tell them apart
    head = told(run, own).split("<h3>By")[0]
    assert f"<b>{shown:.1%}</b>" in head
    assert ("the nearest share that was evaluated" in head) is (named is not None)
    if named is not None:
        assert f"With {shown:.0%} of the patches" in head
        assert f"this model keeps {named}." in head


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.csv", "class,images,precision,recall,f1\nbirch,4,0.5,0.5,0.5\ncedar,x"),
        ("classes.csv", "another,table\n1,2\n"),
        ("classes.csv", ""),
        ("confusion.csv", "true,birch,cedar\nbirch,1,2\ncedar,1"),
        ("confusion.csv", "true,birch\nbirch,99999999999999999999\n"),
        ("confusion.csv", "\0"),
    ],
)
def test_what_is_damaged_is_left_out_and_the_rest_shown(run: Path, file: str, content: str) -> None:
    (run / "evaluation" / "test" / file).write_text(content)
    html = told(run)
    assert "test: 12 photographs of 3 classes" in html
    assert ("Taken for one another" in html) is (file == "classes.csv")
    assert ("By class" in html) is (file != "classes.csv" or "0.5" in content)
