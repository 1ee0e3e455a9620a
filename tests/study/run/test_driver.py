"""Making a study's runs: once each, whatever dies, fills up, fails or is stopped meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pandas
import pytest
from small_study import BASE, small_plan, study_command
from waiting import until

from clca.data.synthetic.leaves import write_leaves
from clca.errors import ClcaError, WorkError
from clca.report.study.numbers import over_seeds, paired_gains
from clca.report.study.report import study_report
from clca.study.results.folder import begun_runs, run_folder, state_of
from clca.study.results.table import read_table
from clca.study.run.driver import run_study
from clca.study.run.executors import LocalProcesses
from clca.study.run.job import Outcome, perform
from clca.study.run.status import study_status

pytestmark = pytest.mark.slow

QUICK = {"work": "fake_work:note", "quiet": True}


def made(out):
    """How often each run was made."""
    return Counter(line.split()[0] for line in (out / "made.txt").read_text().splitlines())


def test_every_run_is_made_once_and_the_table_has_them_all(tmp_path):
    plan = small_plan()
    result = run_study(plan, tmp_path, **QUICK)
    assert (result.total, result.finished, result.made, result.failed) == (8, 8, 8, 0)
    assert made(tmp_path) == Counter({run.name: 1 for run in plan.runs})
    again = run_study(plan, tmp_path, **QUICK)
    assert (again.finished, again.made) == (8, 0)
    table = read_table(tmp_path)
    assert sorted(table["name"]) == sorted(run.name for run in plan.runs)
    assert set(table["state"]) == {"finished"}
    assert dict(zip(table["seed"], table["top1"], strict=True)) == {0: 0.5, 1: 0.51}
    assert set(table["axis.keep_rate"]) == {"0.5", "0.25"}


@pytest.mark.parametrize("processes", [0, 2])
def test_a_log_that_cannot_be_written_fails_its_run_alone(tmp_path, processes):
    plan = small_plan(seeds=1)
    log = run_folder(tmp_path, plan.runs[0].name) / "log.txt"
    log.mkdir(parents=True)
    result = run_study(plan, tmp_path, LocalProcesses(processes) if processes else None, **QUICK)
    assert (result.finished, result.failed) == (3, 1)
    assert f"{log}: cannot be written (is a directory)" in (log.parent / "failure.json").read_text()
    log.rmdir()
    assert run_study(plan, tmp_path, retry_failed=True, **QUICK).complete


def test_runs_beside_one_another_share_the_processes_that_read_images(tmp_path):
    base = {key: value for key, value in BASE.items() if key != "workers"}
    run_study(small_plan(base=base, seeds=1), tmp_path, threads=2, **QUICK)
    described = json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())
    assert described["train"]["workers"] == 2


def test_a_larger_study_makes_only_what_is_new(tmp_path):
    run_study(small_plan(seeds=1), tmp_path, **QUICK)
    result = run_study(small_plan(seeds=3), tmp_path, **QUICK)
    assert (result.total, result.made) == (12, 8)
    assert set(made(tmp_path).values()) == {1}


def test_the_table_is_rebuilt_from_the_folders(tmp_path):
    plan = small_plan()
    run_study(plan, tmp_path, **QUICK)
    before = read_table(tmp_path)
    (tmp_path / "results.parquet").unlink()
    assert read_table(tmp_path).equals(before)
    (tmp_path / "results.parquet").write_bytes(b"damaged")
    assert read_table(tmp_path).equals(before)
    for foreign in (before.drop(columns="name"), pandas.DataFrame({"name": before["name"], "state": "finished"})):
        foreign.to_parquet(tmp_path / "results.parquet")
        assert read_table(tmp_path).equals(before)
    run_study(plan, tmp_path, **QUICK)
    (run_folder(tmp_path, plan.runs[0].name) / "result.json").unlink()
    assert Counter(read_table(tmp_path)["state"]) == {"finished": 7, "interrupted": 1}


def test_the_table_on_disk_has_the_runs_of_every_driver(tmp_path):
    plan = small_plan()
    for part in (plan.runs[:3], plan.runs[3:]):
        run_study(plan, tmp_path, runs=part, **QUICK)
    assert set(pandas.read_parquet(tmp_path / "results.parquet")["name"]) == {run.name for run in plan.runs}


def test_a_run_that_was_made_anew_is_not_told_from_the_old_table(tmp_path):
    plan = small_plan()
    run_study(plan, tmp_path, **QUICK)
    result = run_folder(tmp_path, plan.runs[0].name) / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "top1": 0.99}))
    later = time.time() + 1
    os.utime(result, (later, later))
    assert read_table(tmp_path)["top1"].max() == 0.99


def test_what_a_killed_process_left_half_made_is_removed_after_a_day(tmp_path):
    old, new = tmp_path / "runs" / f".{uuid.uuid4().hex}", tmp_path / "runs" / f".{uuid.uuid4().hex}"
    theirs = tmp_path / "runs/.git"
    for folder in (old, new, theirs):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{")
    for folder in (old, theirs):
        os.utime(folder, (time.time() - 90000,) * 2)
    run_study(small_plan(seeds=1), tmp_path, **QUICK)
    assert not old.exists()
    assert new.exists()
    assert theirs.exists()
    assert len(read_table(tmp_path)) == 4


ARMS = {"reduction": ["evit"], "arm": {"base": {"cla": False, "clc": False}, "clca": {}}}


def test_runs_of_the_study_before_it_was_changed_are_no_part_of_its_results(tmp_path):
    run_study(small_plan(axes=ARMS), tmp_path, **QUICK)
    (tmp_path / "runs/notes.txt").write_text("beside the runs")
    changed = small_plan(axes=ARMS, base={**BASE, "epochs": 2})
    run_study(changed, tmp_path, runs=changed.runs[:1], **QUICK)
    assert list(read_table(tmp_path)["name"]) == [changed.runs[0].name]
    found = study_status(tmp_path)
    assert (found.counts["finished"], found.counts["not begun"], found.others) == (1, 3, 4)
    written = study_report(tmp_path, tmp_path / "report")
    assert "1 of 4 runs are finished" in written.answer[0]
    assert "4 runs in the folder are of the study as it was before" in written.page.read_text()
    run_study(small_plan(axes=ARMS), tmp_path, **QUICK)  # and changed back
    assert len(read_table(tmp_path)) == 4


def test_runs_on_sets_that_are_not_here_are_results_all_the_same(tmp_path):
    def sets(folder):
        return {"one": {"data": BASE["data"]}, "two": {"data": str(folder / "vines")}}

    write_leaves(tmp_path / "a" / "vines", 3, 5, 40, progress=False)
    there = small_plan(axes={"data": sets(tmp_path / "a")}, seeds=1)
    here = small_plan(axes={"data": sets(tmp_path / "b")}, seeds=1)
    run_study(there, tmp_path / "out", runs=there.only({"data": ["two"]}), **QUICK)
    run_study(here, tmp_path / "out", runs=here.only({"data": ["one"]}), **QUICK)
    assert set(read_table(tmp_path / "out")["data"]) == {"leaves", "vines"}


def test_names_that_are_not_utf8_are_told_as_well_as_they_can_be(tmp_path):
    sets = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/vi\xf1a", b"/uva")]
    for classes, place in enumerate(sets, 3):
        write_leaves(place, classes, 5, 40, progress=False)
    plan = small_plan(axes={"data": sets, "reduction": ["evit", "tome"]}, seeds=1)
    result = run_study(plan, tmp_path / "out", work="fake_work:fail_by_name", quiet=True)
    assert (result.finished, result.failed) == (2, 2)
    run_study(plan, tmp_path / "out", **QUICK)
    table = read_table(tmp_path / "out")
    assert set(table["data"]) == {"vi\\udcf1a", "uva"}
    assert len(pandas.read_parquet(tmp_path / "out/results.parquet")) == 4
    assert "vi\\udcf1a: cannot be read" in next(tmp_path.glob("out/runs/*vi_a*tome*/log.txt")).read_text()
    page = study_report(tmp_path / "out", tmp_path / "report").page.read_text(encoding="utf-8")
    assert "vi\\udcf1a" in page
    assert study_status(tmp_path / "out").counts["failed"] == 2


def test_another_studys_folder_is_refused(tmp_path):
    run_study(small_plan(), tmp_path, **QUICK)
    with pytest.raises(ClcaError, match="holds the study small, not other"):
        run_study(small_plan(name="other"), tmp_path, **QUICK)


def test_images_that_are_not_there_are_refused_before_anything_is_begun(tmp_path):
    with pytest.raises(ClcaError, match="no such images"):
        run_study(small_plan(base={**BASE, "data": str(tmp_path / "none")}), tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_sets_that_are_not_here_do_not_keep_others_from_being_studied(tmp_path):
    sets = {"here": {"data": BASE["data"]}, "away": {"data": str(tmp_path / "none")}}
    plan = small_plan(axes={"data": sets, "reduction": ["evit"]})
    result = run_study(plan, tmp_path / "out", runs=plan.only({"data": ["here"]}), **QUICK)
    assert (result.total, result.finished) == (2, 2)


# -- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 2])
def test_a_failed_run_keeps_its_traceback_stays_failed_and_is_retried_when_asked(tmp_path, processes):
    def run(**more):
        executor = LocalProcesses(processes) if processes else None
        return run_study(small_plan(), tmp_path, executor, work="fake_work:fail", quiet=True, **more)

    first = run()
    assert (first.finished, first.failed) == (4, 4)
    failed = [name for name in begun_runs(tmp_path) if state_of(run_folder(tmp_path, name)) == "failed"]
    assert len(failed) == 4
    failure = json.loads((run_folder(tmp_path, failed[0]) / "failure.json").read_text())
    assert failure["error"] == "the loss is not finite at step 3"
    assert "in fail" in failure["traceback"]
    assert "WorkError" in (run_folder(tmp_path, failed[0]) / "log.txt").read_text()
    assert run().failed == 4
    assert set(read_table(tmp_path)["error"].dropna()) == {"the loss is not finite at step 3"}

    assert run(retry_failed=True).failed == 4
    assert json.loads((run_folder(tmp_path, failed[0]) / "failure.json").read_text())["attempt"] == 2
    (tmp_path / "mended").touch()
    assert run().failed == 4
    mended = run(retry_failed=True)
    assert (mended.finished, mended.failed, mended.made) == (8, 0, 4)
    assert set(made(tmp_path).values()) == {1}


def test_a_mistake_in_the_program_is_a_failure_with_its_kind(tmp_path):
    result = run_study(small_plan(seeds=1), tmp_path, work="fake_work:crash", quiet=True)
    assert result.failed == 4
    assert set(read_table(tmp_path)["error"]) == {"ZeroDivisionError: division by zero"}


def test_a_run_that_kills_its_process_three_times_is_given_up_and_the_others_go_on(tmp_path):
    result = run_study(small_plan(seeds=1), tmp_path, LocalProcesses(2), work="fake_work:die", quiet=True)
    assert (result.finished, result.failed) == (2, 2)
    assert all("SIGKILL" in error and "3 times" in error for error in read_table(tmp_path)["error"].dropna())


def test_a_full_disk_stops_the_study_and_marks_nothing_as_failed(tmp_path):
    result = run_study(small_plan(), tmp_path, work="fake_work:fill", quiet=True)
    assert "no space left" in result.full
    assert (result.finished, result.failed) == (0, 0)
    (tmp_path / "room").touch()
    assert run_study(small_plan(), tmp_path, work="fake_work:fill", quiet=True).complete


# -- several at once, and death -----------------------------------------------------------------------------------


def test_processes_make_every_run_once(tmp_path):
    plan = small_plan(seeds=4)
    result = run_study(plan, tmp_path, LocalProcesses(3), **QUICK)
    assert result.complete
    assert made(tmp_path) == Counter({run.name: 1 for run in plan.runs})
    assert len({line.split()[1] for line in (tmp_path / "made.txt").read_text().splitlines()}) > 1


def test_a_killed_worker_is_replaced_and_its_run_made(tmp_path):
    plan = small_plan(seeds=1)

    def kill():
        until(lambda: list(tmp_path.glob("runs/*/begun")), 30)
        for mark in tmp_path.glob("runs/*/begun"):
            until(mark.read_text, 30)
            os.kill(int(mark.read_text()), signal.SIGKILL)

    killers = [threading.Thread(target=kill)]
    killers[0].start()
    # One process hangs at every first attempt, so each of the four runs must be killed once.
    alive = threading.Event()

    def keep_killing():
        while not alive.wait(0.05):
            for mark in tmp_path.glob("runs/*/begun"):
                text = mark.read_text()
                if text and not (mark.parent / "result.json").exists():
                    try:
                        os.kill(int(text), signal.SIGKILL)
                    except ProcessLookupError:
                        continue

    killers.append(threading.Thread(target=keep_killing))
    killers[1].start()
    try:
        result = run_study(plan, tmp_path, LocalProcesses(2), work="fake_work:forever_once", quiet=True)
    finally:
        alive.set()
        for killer in killers:
            killer.join()
    assert result.complete
    assert set(made(tmp_path).values()) == {1}


DRIVER = """
import sys
from clca.study.run.driver import run_study
from clca.study.run.executors import LocalProcesses
from small_study import small_plan
if __name__ == "__main__":
    result = run_study(small_plan(seeds={seeds}), sys.argv[1], {executor}, work="fake_work:{work}", quiet=True)
    print(result.finished, result.made, result.failed, result.interrupted)
"""


def driver(tmp_path, work, executor="LocalProcesses(2)", seeds=6):
    script = tmp_path / f"driver-{executor}.py"
    script.write_text(DRIVER.format(work=work, executor=executor, seeds=seeds))
    here = str(Path(__file__).parents[2] / "support")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_drivers_on_one_folder_make_every_run_once(tmp_path):
    drivers = [driver(tmp_path, "among_three"), driver(tmp_path, "among_three", "None")]
    printed = [one.communicate(timeout=120)[0].split() for one in drivers]
    assert [words[0] for words in printed] == ["24", "24"]  # both see all of it finished
    assert sum(int(words[1]) for words in printed) == 24
    assert all(int(words[1]) > 0 for words in printed)
    assert set(made(tmp_path / "out").values()) == {1}
    assert len(made(tmp_path / "out")) == 24


class Overtaken(LocalProcesses):
    """Another driver makes each run between our driver's look at it and the worker's."""

    def submit(self, job):
        assert perform(job, own_process=False).kind == "finished"
        super().submit(job)


def test_runs_that_another_driver_makes_before_a_worker_looks_are_not_counted_as_made_here(tmp_path):
    result = run_study(small_plan(seeds=1), tmp_path, Overtaken(2), **QUICK)
    assert (result.total, result.finished, result.made) == (4, 4, 0)
    assert set(made(tmp_path).values()) == {1}


def test_after_the_death_of_the_driver_its_workers_end_and_another_goes_on(tmp_path):
    one = driver(tmp_path, "slowly")
    until((tmp_path / "out/made.txt").exists, 30)
    one.kill()
    one.communicate()
    result = run_study(small_plan(seeds=6), tmp_path / "out", LocalProcesses(2), work="fake_work:slowly", quiet=True)
    assert result.complete
    assert set(made(tmp_path / "out").values()) == {1}


def test_a_signal_lets_runs_save_themselves_and_ends_the_study(tmp_path):
    one = study_command(tmp_path, "run", "study.yaml", "--jobs", "2", "--out", "out", study={"seeds": 3})
    until(lambda: list(tmp_path.glob("out/runs/*/run/metrics.jsonl")), 120)
    one.send_signal(signal.SIGTERM)
    _, error = one.communicate(timeout=120)
    assert one.returncode == 143, error
    assert "the same command continues" in error
    states = Counter(state_of(run_folder(tmp_path / "out", name)) for name in begun_runs(tmp_path / "out"))
    assert states["failed"] == 0
    assert states["finished"] < 12
    from clca.study.run.claim import holder

    assert not any(holder(run_folder(tmp_path / "out", name)) for name in begun_runs(tmp_path / "out"))


def test_ctrl_c_in_this_process_ends_after_the_run_and_goes_on_later(tmp_path):
    plan = small_plan()
    result = run_study(plan, tmp_path, work="fake_work:interrupted", quiet=True)
    assert result.interrupted
    assert 0 < result.finished < 8
    (tmp_path / "again").touch()
    assert run_study(plan, tmp_path, work="fake_work:interrupted", quiet=True).complete
    assert set(made(tmp_path).values()) == {1}


class Dying(LocalProcesses):
    """Every process ends before it has made anything."""

    def __init__(self):
        super().__init__(1)
        self.given = []

    def start(self):
        pass

    def free_slots(self):
        return 1 - len(self.given)

    def submit(self, job):
        self.given.append(job)

    def wait(self, seconds):
        lost, self.given = self.given, []
        return [Outcome(job.name, "lost", "its process ended") for job in lost]


def test_a_pretraining_whose_process_dies_time_and_again_is_tried_with_every_command(tmp_path):
    plan = small_plan(axes={"reduction": ["evit"]}, seeds=1, pretraining={"lr": 0.001})
    for _ in range(3):
        with pytest.raises(WorkError, match="tried 3 times"):
            run_study(plan, tmp_path, Dying(), quiet=True)
    assert run_study(plan, tmp_path, **QUICK).complete


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_run_whose_result_cannot_be_read_is_made_again(tmp_path, content):
    plan = small_plan()
    run_study(plan, tmp_path, **QUICK)
    (run_folder(tmp_path, plan.runs[0].name) / "result.json").write_text(content)
    result = run_study(plan, tmp_path, **QUICK)
    assert (result.total, result.finished, result.made) == (8, 8, 1)
    assert set(read_table(tmp_path)["state"]) == {"finished"}


# -- the real work ------------------------------------------------------------------------------------------------


def test_a_real_run_leaves_a_run_folder_and_a_full_row(tmp_path):
    plan = small_plan(axes={"reduction": ["evit"], "arm": {"base": {"cla": False, "clc": False}, "clca": {}}}, seeds=1)
    result = run_study(plan, tmp_path, threads=1, quiet=True)
    assert result.complete, (tmp_path / "runs" / plan.runs[0].name / "log.txt").read_text()
    table = read_table(tmp_path)
    numbers = ["top1", "gmacs", "computed_gmacs", "params", "images_per_second", "train_seconds", "grad_max", "steps"]
    assert table[numbers].notna().all().all()
    assert list(table["arm"].sort_values()) == ["base", "clca"]
    assert list(table["data"].unique()) == ["leaves"]
    assert pandas.api.types.is_float_dtype(table["top1"])
    folder = tmp_path / "runs" / plan.runs[0].name / "run"
    assert {"config.json", "metrics.jsonl", "model.safetensors", "summary.json"} <= {p.name for p in folder.iterdir()}
    assert not (folder / "last.ckpt").exists()
    assert len(list((tmp_path / "data").iterdir())) == 1  # the leaves were drawn once


def test_all_runs_start_from_the_pretrained_weights(tmp_path):
    from safetensors.torch import load_file

    plan = small_plan(
        axes={"reduction": ["evit"], "arm": {"frozen": {"freeze_backbone": True}}},
        seeds=1,
        pretraining=[{"clc": False, "reduction": "none"}, {"cla": False, "clc": False, "reduction": "none"}],
    )
    result = run_study(plan, tmp_path, threads=1, quiet=True)
    assert result.complete
    first = load_file(tmp_path / "runs" / plan.pretraining[1].name / "run/model.safetensors")
    other = load_file(tmp_path / "runs" / plan.runs[0].name / "run/model.safetensors")
    assert first["blocks.0.attn.qkv.weight"].equal(other["blocks.0.attn.qkv.weight"])
    assert len(read_table(tmp_path)) == 1


def test_a_run_that_was_begun_goes_on_where_the_studys_folder_was_moved_to(tmp_path):
    plan = small_plan(axes={"reduction": ["evit"]}, seeds=1, pretraining={"clc": False, "reduction": "none"})
    assert run_study(plan, tmp_path / "here", threads=1, quiet=True).complete
    (run_folder(tmp_path / "here", plan.runs[0].name) / "result.json").unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    result = run_study(plan, tmp_path / "there", threads=1, quiet=True)
    assert (result.finished, result.failed, result.made) == (1, 0, 1)
    config = json.loads(next(tmp_path.glob("there/runs/leaves*/run/config.json")).read_text())["train"]
    assert Path(config["weights"]).is_relative_to(tmp_path / "there")
    assert Path(config["data"]["root"]).is_relative_to(tmp_path / "there")


def test_a_pretraining_that_fails_is_told_and_nothing_else_begins(tmp_path):
    with pytest.raises(WorkError, match="the pretraining failed"):
        run_study(small_plan(pretraining={"epochs": 2}), tmp_path, work="fake_work:crash", quiet=True)
    assert not list(begun_runs(tmp_path))


def test_a_list_of_keep_rates_is_another_setting_than_its_mean_also_in_runs_made_before_the_table_said_it(tmp_path):
    axes = {"keep_rate": [0.5, [0.75, 0.5, 0.25]], "arm": {"base": {"cla": False, "clc": False}, "clca": {}}}
    plan = small_plan(base={**BASE, "reduction": "evit", "locations": [0, 1, 2]}, axes=axes, seeds=1)
    run_study(plan, tmp_path, **QUICK)
    table = read_table(tmp_path)
    assert table["keep_rate"].tolist() == [0.5] * 4
    assert sorted(table["keep_rates"].dropna()) == ["0.75 0.5 0.25"] * 2
    assert set(table["locations"]) == {"0 1 2"}
    assert over_seeds(table)["n"].tolist() == [1, 1, 1, 1]
    assert len(paired_gains(table)) == 2
    study_report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report/index.html").read_text()
    assert "0.75 0.5 0.25" in page
    assert "blocks 0 1 2" in page
    (tmp_path / "results.parquet").unlink()
    for run in plan.runs:
        for file in ("result.json", "run.json"):
            path = run_folder(tmp_path, run.name) / file
            content = json.loads(path.read_text())
            for name in ("keep_rates", "locations"):
                (content if file == "result.json" else content["row"]).pop(name)
            path.write_text(json.dumps(content))
    assert read_table(tmp_path).equals(table)


def test_leaves_are_drawn_where_a_study_asks_for_them_and_as_it_asks(tmp_path, monkeypatch):
    named = small_plan(base={**BASE, "source": "leaves"}, seeds=1)
    run_study(named, tmp_path / "named", runs=named.runs[:1], work="fake_work:look", quiet=True)
    assert read_table(tmp_path / "named")["train_images"].tolist() == [12]
    write_leaves(tmp_path / "leaves", 3, 5, 40, progress=False)
    monkeypatch.chdir(tmp_path)
    found = small_plan(base={**BASE, "data": "leaves"}, seeds=1)
    run_study(found, tmp_path / "found", runs=found.runs[:1], **QUICK)
    assert not (tmp_path / "found/data").exists()
