"""Runs on a Ray cluster, or on this machine through Ray."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from clca.errors import ClcaError
from clca.study.run.job import Job, Outcome, perform
from clca.system.numbers import is_whole_number

_SPARE_JOBS = 2  # submitted beyond the slots, so that a free slot need not wait for the driver
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_COUNT_EVERY = 5.0  # seconds between two counts of the slots of the cluster


class OnRay:
    """Makes runs as Ray tasks, each where its CPUs and its share of a GPU are free.

    A task whose worker or node dies is reported as lost, and can be submitted again to another one. Every node needs
    the study's folder under the same path, and this package.

    Args:
        address: Of a running cluster ("auto" for the one on this machine); None starts one that ends with this process.
        cpus: CPUs per run; a whole number or a fraction.
        gpus: GPUs per run; with 0.25, four runs share one.
    """

    def __init__(self, address: str | None = None, cpus: float = 1, gpus: float = 0) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus
        self._ray: Any = None
        self._running: dict[Any, Job] = {}
        self._stopping = False
        self._slots = 0
        self._counted = 0.0

    def start(self) -> None:
        """Join the cluster, or start one.

        Raises:
            ClcaError: Ray is not installed, there is no such cluster, or no node has the resources for a run.
        """
        # Ray reads these when it is imported. Under `uv run` it would start every worker by uv in an environment of its
        # own, which may fail; and it would listen on this machine's external address, which others can reach.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        if self.address is None or _host(self.address) in _LOOPBACK:
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError:
            raise ClcaError("--ray needs the package ray: pip install 'clca[ray]'") from None
        self._ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            _check_address(self.address)
            ray.init(address=self.address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClcaError(
                f"--ray-address {self.address}: no cluster answers ({' '.join(str(error).split())})"
            ) from None
        self._task = ray.remote(_perform).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0, name="clca run"
        )
        if self._count_slots() == 0:
            there = {name: f"{count:g}" for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            self.close()
            raise ClcaError(
                f"no node of the cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs for a run (all have {there}); "
                "see --cpus-per-run and --gpus-per-run"
            )

    def _count_slots(self) -> int:
        """Number of runs that the cluster can make at the same time now; nodes can be added and lost."""
        if time.monotonic() - self._counted > _COUNT_EVERY:
            self._counted = time.monotonic()
            self._slots = 0
            for node in self._ray.nodes():
                if node["Alive"]:
                    have = node["Resources"]
                    shares = [have.get("CPU", 0) / self.cpus] if self.cpus else []
                    shares += [have.get("GPU", 0) / self.gpus] if self.gpus else []
                    self._slots += int(min(shares, default=1) + 1e-9)
        return self._slots

    def free_slots(self) -> int:
        return 0 if self._stopping else self._count_slots() + _SPARE_JOBS - len(self._running)

    def most_at_once(self) -> int:
        return self._count_slots()

    def submit(self, job: Job) -> None:
        self._running[self._task.remote(job)] = job

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._running:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds, fetch_local=True)
        if done:  # and all others that are ready by now
            done, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._outcome(reference) for reference in done]

    def _outcome(self, reference: Any) -> Outcome:
        job = self._running.pop(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return Outcome(job.name, "interrupted")
        except self._ray.exceptions.RayTaskError as error:  # an error outside the run itself
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, KeyboardInterrupt):
                return Outcome(job.name, "interrupted")
            return Outcome(job.name, "lost", " ".join(str(cause).split())[-300:])
        except self._ray.exceptions.RayError as error:
            return Outcome(job.name, "lost", f"its worker or node died ({type(error).__name__})")

    def stop(self) -> None:
        self._stopping = True
        for reference in self._running:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        self._running.clear()
        if self._ray is not None and self._ray.is_initialized():
            self._ray.shutdown()

    def describe(self) -> str:
        where = "on Ray here" if self.address is None else f"on the Ray cluster at {self.address}"
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{where}, {self._count_slots()} at once, {self.cpus:g} CPU{gpus} each"


def _host(address: str) -> str:
    return address.removeprefix("ray://").rpartition(":")[0]


def _check_address(address: str | None) -> None:
    """Check within seconds that a cluster listens at an address; Ray itself retries for minutes.

    Raises:
        OSError: No connection is possible.
    """
    if address is None or not is_whole_number(address.rpartition(":")[2]):
        return
    port = int(address.rpartition(":")[2])
    with socket.create_connection((_host(address), port), timeout=10):
        pass


def _perform(job: Job) -> Outcome:
    return perform(job)
