"""Studies on a Ray cluster: two nodes on this machine, of which a worker and then one node die."""

import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from small_study import small_plan

from clca.errors import ClcaError
from clca.study.results.folder import begun_runs, run_folder, state_of
from clca.study.run.driver import run_study
from clca.study.run.ray_executor import OnRay

pytestmark = pytest.mark.slow

# As OnRay sets them; Ray reads them when it is imported, which is here.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with a CPU each, bound to this machine alone."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support"))
    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 10**8}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(**{key: value for key, value in node.items() if key != "include_dashboard"})
    yield made
    made.shutdown()


def kill_what_hangs(out, done, killed):
    """Kill every worker that hangs in a run's first attempt."""
    while not done.wait(0.1):
        for mark in out.glob("runs/*/begun"):
            text = mark.read_text()
            if text and text not in killed and not (mark.parent / "result.json").exists():
                killed.append(text)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(text), signal.SIGKILL)


def test_runs_go_on_when_a_worker_and_a_node_die(cluster, tmp_path):
    plan = small_plan(seeds=1)
    done, killed = threading.Event(), []

    def removed():
        """Kill the second node with all that it does, once a worker has died."""
        while not killed and not done.wait(0.05):
            pass
        cluster.remove_node(cluster.second, allow_graceful=False)

    threads = [
        threading.Thread(target=kill_what_hangs, args=(tmp_path, done, killed)),
        threading.Thread(target=removed),
    ]
    for thread in threads:
        thread.start()
    try:
        result = run_study(plan, tmp_path, OnRay(cluster.address), work="fake_work:forever_once", quiet=True)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert result.complete
    assert killed
    made = Counter(line.split()[0] for line in (tmp_path / "made.txt").read_text().splitlines())
    assert made == Counter({run.name: 1 for run in plan.runs})


def test_what_cannot_be_had_on_a_cluster_is_refused_in_a_line(cluster, tmp_path):
    with pytest.raises(ClcaError, match="no node of the cluster has 64 CPUs and 0 GPUs"):
        run_study(small_plan(), tmp_path, OnRay(cluster.address, cpus=64), work="fake_work:note", quiet=True)
    with pytest.raises(ClcaError, match="no node of the cluster has 1 CPUs and 2 GPUs"):
        run_study(small_plan(), tmp_path, OnRay(cluster.address, gpus=2), work="fake_work:note", quiet=True)
    assert not list(begun_runs(tmp_path))


def test_failures_on_a_cluster_are_those_of_any_run(cluster, tmp_path):
    result = run_study(small_plan(seeds=1), tmp_path, OnRay(cluster.address), work="fake_work:fail", quiet=True)
    assert (result.finished, result.failed) == (2, 2)
    states = Counter(state_of(run_folder(tmp_path, name)) for name in begun_runs(tmp_path))
    assert states == {"finished": 2, "failed": 2}


def test_an_address_without_a_cluster_is_refused_in_a_line(tmp_path):
    with pytest.raises(ClcaError) as caught:
        run_study(small_plan(), tmp_path, OnRay("127.0.0.1:1"), work="fake_work:note", quiet=True)
    assert "--ray-address 127.0.0.1:1: no cluster answers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    executor = OnRay()
    with pytest.raises(ClcaError, match=r"pip install 'clca\[ray\]'"):
        executor.start()
    executor.close()  # as the driver does, whatever happened: it shall not hide the line above
