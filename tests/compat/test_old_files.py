"""Run folders, studies, exported files and saved models made by an earlier version load, resume and report as then.

`made_by_0_1_0.zip` was written by version 0.1.0 as of commit 50185cf (PyTorch 2.15, timm 1.0.31, one thread), with
`expected.json` beside the files: a finished and an interrupted run and a study on synthetic leaves, four saved models,
and two exported files of the finished run. Processors round differently, hence the tolerances.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import clca
from clca.evaluation import evaluate
from clca.export import load_exported
from clca.report.study.report import study_report
from clca.study.plan.config import StudyConfig
from clca.study.plan.expand import plan
from clca.study.results.table import read_table
from clca.study.run.driver import run_study
from clca.study.run.status import study_status
from clca.training import resume

pytestmark = pytest.mark.slow

SAVED = ("ats", "dynamicvit", "sit", "tome")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("made_by_0_1_0.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def expected(old: Path) -> Any:
    return json.loads((old / "expected.json").read_text())


def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_same_logits(logits: torch.Tensor, then: list[list[float]]) -> None:
    torch.testing.assert_close(logits, torch.tensor(then), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [f"saved-{name}" for name in SAVED])
def test_saved_models_answer_as_then(old: Path, name: str) -> None:
    model = clca.from_pretrained(old / name)
    with torch.no_grad():
        assert_same_logits(model(images()), expected(old)[name])
    assert model.classes == ["a", "b", "c"]


def test_a_finished_run_evaluates_as_then(old: Path) -> None:
    then = expected(old)["run"]
    with torch.no_grad():
        assert_same_logits(clca.from_pretrained(old / "run")(images()), then["logits"])
    now = evaluate(old / "run")
    assert (now.top1, now.confusion.tolist(), now.gmacs) == (then["top1"], then["confusion"], then["gmacs"])
    assert now.loss == pytest.approx(then["loss"], rel=1e-4)


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_exported_files_answer_as_then(old: Path, name: str) -> None:
    exported = load_exported(old / name, threads=1)
    assert_same_logits(exported(images()), expected(old)["run"]["logits"])
    assert exported.classes is not None
    assert len(exported.classes) == 3


def test_an_interrupted_run_ends_as_then(old: Path) -> None:
    then = expected(old)["interrupted"]
    result = resume(old / "interrupted", quiet=True)
    assert result.train["loss"] == pytest.approx(then["train"]["loss"], rel=1e-3)
    assert result.watched is not None
    assert result.watched["loss"] == pytest.approx(then["watched"]["loss"], rel=1e-3)
    with torch.no_grad():
        assert_same_logits(clca.from_pretrained(old / "interrupted")(images()), then["logits"])


def test_a_study_is_complete_and_has_the_same_table(old: Path) -> None:
    then = expected(old)["study"]
    table = read_table(old / "study")
    found = {
        name: {"top1": top1, "gmacs": gmacs}
        for name, top1, gmacs in zip(table["name"], table["top1"], table["gmacs"], strict=True)
    }
    assert found == then
    config = StudyConfig.model_validate(json.loads((old / "study.json").read_text()))
    result = run_study(plan(config), old / "study", quiet=True)
    assert (result.total, result.finished, result.made, result.failed) == (len(then), len(then), 0, 0)
    assert study_status(old / "study").counts["finished"] == len(then)
    study_report(old / "study", old / "report")
    page = (old / "report" / "index.html").read_text()
    assert all(f"{100 * row['top1']:.1f}" in page for row in then.values())
