"""Processes, device and precision of a run, through accelerate."""

import atexit
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs

from clca.errors import ClcaError
from clca.system.processes import keep_freed_memory
from clca.training.config import TrainConfig


def make_accelerator(
    config: TrainConfig | None = None,
    folder: Path | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    serving: bool = False,
) -> Accelerator:
    """The accelerator of a run, or with `config` None of an evaluation.

    Args:
        config: The run, with its device, precision, gradient accumulation and tracker.
        folder: Run folder, for TensorBoard's files.
        device: "auto" or "cpu"; used without `config`.
        precision: "auto", "no", "bf16" or "fp16"; with `config` what "auto" was on the machine that started the run.
        serving: Whether the process waits for requests between its work; it then returns freed memory to the system.

    Raises:
        ClcaError: fp16 without a GPU, or a tracker that is not installed.
    """
    if config is not None:
        device, started_with = config.device, precision
        precision = config.precision if config.precision != "auto" else precision
    on_cpu = _is_cpu(device)
    if precision == "fp16" and on_cpu:
        if config is not None and started_with == "fp16":
            raise ClcaError(
                f"--out {folder}: was started with --precision fp16, which needs a GPU: resume it on a machine with a "
                "GPU, or choose another --out to start again with bf16 or no"
            )
        raise ClcaError("--precision fp16 needs a GPU; on a CPU choose bf16 or no")
    if precision == "auto":
        precision = automatic_precision(device)
    track = config.track if config is not None else "none"
    if track != "none" and importlib.util.find_spec(track) is None:
        raise ClcaError(f"--track {track} needs the package {track}: pip install 'clca[{track}]'")
    if on_cpu and not serving:
        keep_freed_memory()
    # accelerate has one state per process and rejects a second run with other settings (a study has many runs).
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=config.grad_accum if config is not None else 1,
        log_with=track if track != "none" else None,
        project_dir=str(folder) if folder is not None else None,
        # The only buffers are those of batch norm, which are equal in all processes already.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_process_group)
        atexit.register(_leave_process_group)
    return accelerator


def _leave_process_group() -> None:
    """End the threads of the process group, which would end this process with an error if they outlived Python."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def automatic_precision(device: str) -> Literal["no", "bf16"]:
    """The precision that "auto" selects on this machine; device: "auto" or "cpu"."""
    return "bf16" if _bf16_is_fast(_is_cpu(device)) else "no"


def _is_cpu(device: str) -> bool:
    return device == "cpu" or not torch.accelerator.is_available()


def _bf16_is_fast(on_cpu: bool) -> bool:
    if on_cpu:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    return False


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in ("clca", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
