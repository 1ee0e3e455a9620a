"""`clca study` as it is typed."""

from pathlib import Path

import pytest
import yaml
from small_study import BASE, SMALL

from clca.cli.main import main

pytestmark = pytest.mark.slow


def write_study(folder, **changes):
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(path)


def test_plan_says_how_many_runs_by_axis_and_what_they_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["study", "plan", write_study(tmp_path), "--gmacs-per-second", "100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "small: 4 runs" in said
    assert "evit: 2, tome: 2" in said
    assert "4 not begun" in said
    assert "MACs in all" in said
    assert "100.0 GMAC/s, as given" in said
    assert not (tmp_path / "runs").exists()  # a plan starts nothing


def test_plan_of_a_study_without_images_says_what_is_not_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "plan", "ablation", "--data-folder", "nowhere", "--no-cost"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "132 runs" in said
    assert "missing here: nowhere/soygene, nowhere/soylocal" in said


def test_status_counts_and_names_failures(tmp_path, monkeypatch, capsys):
    from small_study import small_plan

    from clca.study.run.driver import run_study

    monkeypatch.chdir(tmp_path)
    run_study(small_plan(), tmp_path / "out", work="fake_work:fail", quiet=True)
    assert main(["study", "status", "out", "--table"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "8 runs: 4 finished, 4 failed" in said
    assert "failed 4 times: the loss is not finite at step 3" in said
    assert "best so far: 51.0%" in said
    assert "results.parquet" in said


def one_line(capsys):
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_mistakes_end_in_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/study.json").write_text('{"format": "clca-st')
    wrong = [
        (["study", "plan", "nothing.yaml"], "no such study"),
        (["study", "plan", write_study(tmp_path), "--only", "arm"], "write an axis and its values"),
        (["study", "run", write_study(tmp_path), "--jobs", "0"], "at least one"),
        (["study", "run", write_study(tmp_path), "--jobs", "2", "--ray"], "choose one"),
        (["study", "run", write_study(tmp_path), "--gpus-per-run", "1"], "is for --ray"),
        (["study", "run", write_study(tmp_path), "--gpus", "0"], "is for --jobs"),
        (["study", "run", write_study(tmp_path), "--shard", "5/4"], "--shard 5/4"),
        (["study", "run", "ablation", "--data-folder", "nowhere"], "no such images: nowhere/soygene"),
        (["study", "status", "nowhere"], "holds no study"),
        (["study", "status", "half"], "study.json: is damaged; run clca study run again"),
        (["study", "stats"], "did you mean status?"),
    ]
    for words, said in wrong:
        assert main(words) == 2, words
        assert said in one_line(capsys)


def test_failed_runs_end_in_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    study = write_study(tmp_path, axes={"reduction": ["evit"], "lr": [1e9]}, base={**BASE, "min_lr": 0.0, "epochs": 8})
    assert main(["study", "run", study, "--out", "out"]) == 1
    said = capsys.readouterr()
    assert "0 of 1 runs are finished, 0 of them now, 1 failed" in " ".join(said.out.split())
    assert "not finite" in said.err
