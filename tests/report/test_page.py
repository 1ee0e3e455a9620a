"""The report's page: whole, self-contained, escaped, the same twice; for finished, half-finished and empty studies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from study_maker import make_run, make_study

from clca.cli.commands.report import run as command
from clca.errors import ClcaError
from clca.report.study.numbers import over_seeds
from clca.report.study.report import report, the_answer
from clca.study.results.table import read_table

pytestmark = pytest.mark.slow

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Checked(HTMLParser):
    """Collects what a page refers to, and what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.labelled: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        self.words = " ".join(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, dict(attributes))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attributes))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def _note(self, tag: str, given: dict[str, str | None]) -> None:
        self.ids += [given["id"]] if given.get("id") else []
        if given.get("href"):
            (self.links if tag in ("a", "use") else self.loads).append(given["href"] or "")
        self.loads += [given["src"] or ""] if "src" in given else []
        if given.get("role") == "img":
            self.labelled += (given.get("aria-labelledby") or "").split() or [f"#{given.get('aria-label')}"]


def check_page(page: Path) -> Checked:
    """Assert what holds of every page."""
    text = page.read_text(encoding="utf-8")
    found = Checked(text)
    assert found.wrong == []
    assert found.open == []
    assert [name for name in found.ids if found.ids.count(name) > 1] == []
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert {name for name in found.labelled if not name.startswith("#")} <= set(found.ids)
    assert all(load.startswith("data:") for load in found.loads)  # nothing is fetched
    assert not re.search(r"@import|url\((?!#)", text)
    assert not any("://" in link for link in found.links)
    for link in found.links:
        if not link.startswith(("#", "../")):
            assert (page.parent / link).stat().st_size > 0, link
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(
        tmp_path_factory.mktemp("studies") / "s",
        reductions=("none", "evit"),
        keep_rates=(0.5, 0.1),
        sizes=(64,),
        failed=(-1,),
        interrupted=(5,),
        missing=(6,),
        error="the loss <b>is</b> not \"finite\" & 'so' on",
        versions=("0.1", "0.2"),
        steps=12,
        name="a <study> & more",
    )


@pytest.fixture(scope="module")
def made(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    report(study, out)
    return out


def test_the_page_is_whole_and_self_contained(made: Path) -> None:
    found = check_page(made / "index.html")
    assert len(found.labelled) > 10
    assert (made / "index.html").stat().st_size < 5_000_000


def test_names_and_errors_are_escaped(made: Path) -> None:
    text = (made / "index.html").read_text(encoding="utf-8")
    assert "<b>is</b>" not in text
    assert "<study>" not in text
    found = Checked(text)
    assert "a <study> & more" in found.words
    assert "the loss <b>is</b> not \"finite\" & 'so' on" in found.words


def test_it_says_what_is_missing_what_failed_and_what_is_mixed(made: Path) -> None:
    words = Checked((made / "index.html").read_text(encoding="utf-8")).words
    assert re.search(r"15\s+finished", words)
    assert re.search(r"1\s+failed\s+1\s+begun, not finished\s+1\s+not begun\s+of\s+18\s+runs", words)
    assert "3 of 18 runs are not finished" in words
    assert "0.1" in words
    assert "the version of clca" in words


def test_a_gain_that_rounds_to_nothing_has_no_sign() -> None:
    row = {"reduction": "evit", "mean": -0.04, "low": -0.3, "high": 0.04, "pairs": 6, "verdict": "no clear difference"}
    numbers = SimpleNamespace(by_reduction=pd.DataFrame([row]), everything=pd.DataFrame([row]))
    assert the_answer(numbers, SimpleNamespace()) == [
        "No clear difference for evit (0.0).",
        "Over all 6 pairs the mean gain is 0.0 points (95 % interval −0.3 to 0.0).",
    ]


def test_it_says_the_numbers_of_its_tables(made: Path) -> None:
    words = Checked((made / "index.html").read_text(encoding="utf-8")).words
    results = pd.read_csv(made / "tables" / "results.csv")
    assert len(results)
    gains = pd.read_csv(made / "tables" / "gains.csv")
    whole = gains["mean"].iloc[0]
    assert f"{whole:+.1f} points" in words
    for value in results.filter(like="top1_mean").to_numpy().ravel():
        if value == value:
            assert f"{value:.1f}" in words


def test_every_figure_and_table_is_a_file_and_a_link(made: Path) -> None:
    links = Checked((made / "index.html").read_text(encoding="utf-8")).links
    files = {f"{path.parent.name}/{path.name}" for path in made.glob("*/*")}
    assert {f"figures/{name}.{form}" for name in
            ("paired-gain", "accuracy-gmacs", "accuracy-time", "keep-rates", "accuracy-boxes", "gradients")
            for form in ("png", "pdf")} <= files  # fmt: skip
    assert files == {link for link in links if "/" in link}
    for path in made.glob("figures/*"):
        assert path.read_bytes()[:4] in (b"\x89PNG", b"%PDF")
    assert not [path for path in made.rglob(".*")]  # no temporary file is left


def test_the_runs_file_holds_every_run_that_has_begun(made: Path) -> None:
    runs = pd.read_csv(made / "tables" / "runs.csv")
    assert runs["state"].value_counts().to_dict() == {"finished": 15, "failed": 1, "interrupted": 1}


def test_two_reports_of_one_folder_are_the_same_bytes(study: Path, made: Path, tmp_path: Path) -> None:
    report(study, tmp_path)
    first = {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    second = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert first.keys() == second.keys()
    assert [str(name) for name in first if first[name] != second[name]] == []


def test_files_of_an_earlier_report_that_are_none_of_this_one_are_gone(tmp_path: Path) -> None:
    folder, out = make_study(tmp_path / "study", arms=("base",), sizes=(64,), seeds=(0,), failed=(0,)), tmp_path / "out"
    report(folder, out)
    for name in ("tables/mine.csv", "figures/mine.png"):
        (out / name).write_text("mine")
    assert {"failures.csv", "failures.tex"} <= {path.name for path in (out / "tables").iterdir()}
    for path in folder.glob("runs/*/failure.json"):
        path.unlink()
    for path in folder.glob("runs/*/run/metrics.jsonl"):
        path.unlink()
    report(folder, out)
    page = Checked((out / "index.html").read_text())
    left = {f"{path.parent.name}/{path.name}" for name in ("tables", "figures") for path in (out / name).iterdir()}
    assert left - set(page.links) == {"tables/mine.csv", "figures/mine.png"}


def test_dark_pages_have_a_value_for_every_colour_of_light_ones(made: Path) -> None:
    text = (made / "index.html").read_text(encoding="utf-8")
    light, dark = (re.findall(r"--([a-z-]+):", part) for part in re.findall(r":root \{([^}]*)\}", text)[:2])
    assert set(light) == set(dark)
    assert set(re.findall(r"var\(--([a-z-]+)\)", text)) - {"panel"} <= set(light)
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert not re.search(r"(fill|stroke):\s*#", drawings)  # nothing that would stay dark on dark


def test_a_study_of_which_nothing_is_finished(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "s", reductions=("evit",), keep_rates=(0.5,), sizes=(64,), seeds=(0,), missing=(0, 1)
    )
    made = report(folder, tmp_path / "out")
    found = check_page(made.page)
    assert made.figures == 0
    assert "no answer yet" in made.answer[0]
    assert "left out, because" in found.words
    assert "No run has begun" in found.words


def test_a_study_without_a_comparison_says_what_is_best_on_each_set(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "s", data=("leaves", "cotton80"), reductions=("evit",), arms=("clca",), sizes=(64,), metrics=False
    )
    made = report(folder, tmp_path / "out")
    first, *best = made.answer
    assert first == "This study does not compare CLCA with its absence."
    cells = over_seeds(read_table(folder)).sort_values("top1_mean").groupby("data").tail(1).set_index("data")
    assert len(best) == 2
    for name, sentence in zip(("cotton80", "leaves"), best, strict=True):
        assert f"{name} · " in sentence
        assert f"evit · {cells.loc[name, 'keep_rate']:g} · 64 px · CLCA" in sentence
        assert f", {cells.loc[name, 'top1_mean']:.1f} ± " in sentence


def test_pages_of_runs_are_linked_and_lead_back(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "s", reductions=("none",), keep_rates=(0.5,), sizes=(64,), seeds=(0,), failed=(1,), steps=6
    )
    made = report(folder, tmp_path / "out", runs=True)
    found = check_page(made.page)
    pages = sorted(path.name for path in (tmp_path / "out" / "runs").iterdir())
    assert made.pages == len(pages) == 2
    assert {f"runs/{name}" for name in pages} <= set(found.links)
    failed = next(name for name in pages if "clca" in name)
    page = check_page(tmp_path / "out" / "runs" / failed)
    assert "../index.html" in page.links
    assert "the loss is not finite at step 12" in page.words
    assert "Traceback" in page.words


def test_the_page_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", classes=30, steps=20)
    assert command([str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "out" / "index.html") in said
    assert "Top-1 " in said
    found = check_page(tmp_path / "out" / "index.html")
    assert "a <b> & 'c'" in found.words
    for name in ("curves", "gradient", "confusion"):
        assert name in found.ids
    assert {"numbers", "hardest", "confused", "settings", "versions"} == {
        path.stem for path in (tmp_path / "out" / "tables").glob("*.tex")
    }
    hardest = pd.read_csv(tmp_path / "out" / "tables" / "hardest.csv")
    assert len(hardest) == 20
    assert hardest["F1"].is_monotonic_increasing


def test_the_page_of_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"train": {"lr": 0.1, "model": {"reduction": "evit"}}}))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    made = report(tmp_path / "run", tmp_path / "out")
    found = check_page(made.page)
    assert "1 steps are logged" in made.answer[0]
    assert "model.reduction" in found.words
    assert "no confusion.csv" in found.words


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda path: None, "there is no such folder"),
        (lambda path: path.mkdir(), "neither a study nor a run"),
        (lambda path: path.write_text("x"), "there is no such folder"),
        (lambda path: (path.mkdir(), (path / "study.json").write_text("{}")), "study"),
    ],
)
def test_what_is_no_study_is_refused_in_one_line(tmp_path: Path, prepare, words: str) -> None:
    prepare(tmp_path / "x")
    with pytest.raises(ClcaError, match=words) as raised:
        report(tmp_path / "x", tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_pages_of_runs_of_one_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClcaError, match="--runs"):
        report(make_run(tmp_path / "run", steps=1), tmp_path / "out", runs=True)


def test_a_folder_that_cannot_be_written_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ClcaError, match="--out"):
        report(study, tmp_path / "out")


def test_what_to_install_is_said(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(ClcaError, match=r"jinja2: pip install 'clca\[study\]'"):
        command([str(study), "--out", str(tmp_path / "out")])


def test_importing_the_room_loads_no_plotting() -> None:
    code = (
        "import sys, clca.report, clca.cli.commands.report, clca.report.page;"
        "print([name for name in ('matplotlib', 'pandas', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
