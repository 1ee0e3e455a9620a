"""Measuring time and memory so that the results can be trusted.

Candidates are timed in turn, round after round, and compared within a round: whatever slows the machine down for a
while affects all of them. The spread is reported beside the median.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import random
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clca.errors import ClcaError, WorkError
from clca.system.cpu_info import this_cpu
from clca.system.processes import forkserver_context, usable_cores

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd",
         "asimdhp", "bf16", "i8mm", "sve")  # fmt: skip
"""Instruction sets that decide how fast a CPU multiplies matrices."""

# Tokens (eight images of 448 px), in and out of the two linear layers of an MLP, for ViT-S and ViT-B.
MATRICES = ((6280, 384, 1536), (6280, 1536, 384), (6280, 768, 3072), (6280, 3072, 768))


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile of repeated measurements."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        low, middle, high = np.quantile(np.asarray(values, dtype=float), (0.1, 0.5, 0.9))
        return cls(float(middle), float(low), float(high))


def rounds(
    callables: Mapping[str, Callable[[], Any]],
    *,
    warmup: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    failed: Callable[[str, Exception], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Iterator[dict[str, float]]:
    """Time every candidate once a round, for as many rounds as are asked for.

    The order is drawn anew for every round, so that no candidate always runs in the wake of the same other. Python's
    garbage collector is off while a call is timed, and a GPU has finished before the clock is read.

    Args:
        callables: Name → what to time.
        warmup: Untimed calls of each before the first round.
        seed: Of the order.
        device: Where the work is done.
        failed: Called with the name and the error of a candidate that raised, which is then dropped; None re-raises.
        progress: Called with the name of a candidate after each of its calls, untimed ones included.

    Yields:
        Seconds by name, one round a time, until no candidate is left.
    """
    order, draw = list(callables), random.Random(seed)

    def once(name: str) -> float | None:
        try:
            return _timed(callables[name], device)
        except Exception as error:
            if failed is None:
                raise
            order.remove(name)
            failed(name, error)
            return None
        finally:
            if progress is not None:
                progress(name)

    for _ in range(warmup):
        for name in list(order):
            once(name)
    while order:
        draw.shuffle(order)
        found = {name: once(name) for name in list(order)}
        yield {name: found[name] for name in callables if found.get(name) is not None}  # type: ignore[misc]


def interleaved(
    callables: Mapping[str, Callable[[], Any]],
    repeats: int = 7,
    warmup: int = 1,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every candidate in each of `repeats` rounds; entry i of each list comes from round i.

    Args:
        callables: Name → what to time.
        repeats: Rounds.
        warmup: Untimed calls of each before the first round.
        seed: Of the order within each round.
        device: Where the work is done.
        progress: Called with the name of a candidate after each of its calls, untimed ones included.

    Raises:
        ClcaError: If there is nothing to time, or no round.
        Exception: Whatever a candidate raises.
    """
    if not callables or repeats < 1:
        raise ClcaError("nothing to measure: give at least one candidate and one round")
    times: dict[str, list[float]] = {name: [] for name in callables}
    for number, found in enumerate(
        rounds(callables, warmup=warmup, seed=seed, device=device, progress=progress), start=1
    ):
        for name, seconds in found.items():
            times[name].append(seconds)
        if number == repeats:
            break
    return times


def speed_ups(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Spread]:
    """How many times faster than the baseline each candidate is, compared round by round.

    Args:
        times: What `interleaved` returns.
        baseline: Name of the candidate that counts as 1.
    """
    base = np.asarray(times[baseline])
    return {name: Spread.of(list(base / np.asarray(seconds))) for name, seconds in times.items()}


def _timed(function: Callable[[], Any], device: str | torch.device) -> float:
    was_on = gc.isenabled()
    gc.disable()
    try:
        _finish(device)
        begin = perf_counter()
        function()
        _finish(device)
        return perf_counter() - begin
    finally:
        if was_on:
            gc.enable()


def _finish(device: str | torch.device) -> None:
    kind = torch.device(device).type
    if kind != "cpu":
        getattr(torch, kind).synchronize()


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Compute on `count` threads inside the block, on torch's own number if None; gives the number."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ClcaError(f"threads = {count}: at least 1")
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


# -- the machine -----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What a timing depends on: CPU, its family, cores, threads used, instruction sets, memory in GiB, GPU, system."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cpu = this_cpu()
    return {
        "cpu": cpu.name,
        "cpu_family": cpu.family,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in FLAGS if flag in cpu.flags],
        "memory_gib": _memory_gib(),
        "gpu": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
        "system": f"{platform.system()} {platform.machine()}",
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions() -> dict[str, str]:
    """Versions of what a timing depends on."""
    found = {"python": platform.python_version()}
    for name in ("clca", "torch", "timm", "numpy", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def command() -> str:
    """The command line of this process, folders left out of paths."""
    words = [Path(sys.argv[0]).name, *(Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:])]
    return shlex.join(words)


@torch.no_grad()
def matrix_rate(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    repeats: int = 5,
    others: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] | None = None,
) -> float:
    """GMAC/s, 10⁹ multiply-accumulates a second, of the linear layers of ViT-S and ViT-B on eight 448 px images.

    Args:
        dtype: Of both factors.
        device: Where to measure.
        repeats: Rounds; of their medians the best layer's is the machine's rate.
        others: Further functions that compute x [M, K] times weightᵀ [N, K]; the fastest counts.
    """
    on_cpu = torch.device(device).type == "cpu"
    shapes = [(rows if on_cpu else 8 * rows, *widths) for rows, *widths in MATRICES]  # a GPU would be half idle
    factors = {
        shape: (
            torch.randn(shape[0], shape[1], device=device).to(dtype),
            torch.randn(shape[2], shape[1], device=device).to(dtype),
        )
        for shape in shapes
    }
    ways: dict[str, Callable[..., Any]] = {"torch": F.linear, **(others or {})}
    calls = {f"{shape} {name}": partial(way, *factors[shape]) for shape in shapes for name, way in ways.items()}
    seconds = _seconds(calls, repeats, device)
    return max(math.prod(shape) / seconds[f"{shape} {name}"] for shape in shapes for name in ways) / 1e9


def bandwidth(device: str | torch.device = "cpu", repeats: int = 5, mib: int = 256) -> float:
    """GB/s, 10⁹ bytes a second read and written together, of copying `mib` MiB."""
    source = torch.ones(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds({"copy": lambda: target.copy_(source)}, repeats, device)["copy"] / 1e9


def _seconds(calls: Mapping[str, Callable[[], Any]], repeats: int, device: str | torch.device) -> dict[str, float]:
    """Median seconds of one call of each. A GPU is through with one before the clock can be read: it gets many."""
    count = 1 if torch.device(device).type == "cpu" else 20

    def again(call: Callable[[], Any]) -> None:
        for _ in range(count):
            call()

    times = interleaved({name: partial(again, call) for name, call in calls.items()}, repeats, device=device)
    return {name: Spread.of(found).median / count for name, found in times.items()}


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(
    function: Callable[..., Any], *args: Any, device: str | torch.device = "cpu", threads: int | None = None
) -> int:
    """Bytes that a call takes at its worst, above what its process held before.

    The call runs alone in a fresh process, which has loaded its libraries and multiplied a first matrix before it is
    weighed. On Linux the kernel's own high-water mark is reset just before the call, and program code that is read in
    on first use is left out; elsewhere the process's maximum serves, which is the same unless loading took more. On a
    GPU it is what torch's allocator handed out.

    Args:
        function: Picklable, so defined at the top of a module; it makes the model, and runs it.
        *args: Picklable.
        device: Where the work is done.
        threads: As many as this process uses if None.

    Raises:
        WorkError: The call failed, or its process was ended, as the kernel does where memory runs out.
    """
    context = forkserver_context(__name__)
    receiver, sender = context.Pipe(duplex=False)
    count = threads or torch.get_num_threads()
    child = context.Process(target=_weigh, args=(sender, function, args, str(device), count), daemon=True)
    child.start()
    sender.close()
    try:
        found, what = receiver.recv()
    except EOFError:
        child.join()
        raise WorkError(f"its process ended with code {child.exitcode}; out of memory?") from None
    finally:
        receiver.close()
        if child.is_alive():
            child.join(1)
            child.kill()
        child.join()
    if not found:
        raise WorkError(what)
    return what


def _weigh(sender: Any, function: Callable[..., Any], args: tuple[Any, ...], device: str, threads: int) -> None:
    """In the child: weigh the call and send (True, bytes) or (False, why not)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    try:
        torch.set_num_threads(threads)
        warm = torch.randn(256, 256, device=device, requires_grad=True)
        (warm @ warm).sum().backward()  # thread pools and kernels are there before anything is weighed
        del warm
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function(*args)
            peak = torch.cuda.max_memory_allocated()
        else:
            linux = _reset_high_water_mark()
            before = _status("VmRSS") - _status("RssFile") if linux else _largest_ever()
            function(*args)
            peak = _status("VmHWM") - _status("RssFile") if linux else _largest_ever()
        sender.send((True, max(0, peak - before)))
    except BaseException as error:  # whatever it is, the parent reports it
        text = " ".join(str(error).split())
        sender.send((False, f"{type(error).__name__}: {text}" if text else type(error).__name__))


def _status(field: str) -> int:
    """A field of Linux' process status in bytes: VmRSS (current), VmHWM (peak), RssFile (mapped files such as code)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_high_water_mark() -> bool:
    """Reset the peak; True if the kernel did and reports the fields needed."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return min(_status(field) for field in ("VmRSS", "VmHWM", "RssFile")) >= 0
    except (OSError, StopIteration, ValueError):
        return False


def _largest_ever() -> int:
    try:
        import resource
    except ImportError:
        raise ClcaError("this system does not report the memory of a process") from None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
