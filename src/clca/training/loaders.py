"""Batches of images. Their content and random numbers depend on the seed, the epoch and the index alone.

Neither the number of processes or workers nor an interruption changes a batch, so a run can be resumed in the middle of
an epoch and distributed over machines.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from clca.errors import ClcaError
from clca.system.processes import launched_number, usable_cores

_ORDER, _AUGMENTATION, _STEP, _MIX, _RATES = range(5)  # separate streams of random numbers from one seed
_SECONDS_TO_SAVE = 30
_PREFETCHED = 2  # batches that a worker loads in advance


def _derived_seed(*numbers: int) -> int:
    """A 64-bit seed derived from several numbers, without the correlations that seed + epoch would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed the forward pass (stochastic depth, Gumbel noise …) of one part of a step in one process."""
    torch.manual_seed(_derived_seed(_STEP, seed, step, part, rank) % 2**63)


def seed_mixing(seed: int, step: int, part: int) -> None:
    """Seed NumPy, which timm's Mixup uses; the same in all processes, so that they mix with the same weight."""
    np.random.seed(_derived_seed(_MIX, seed, step, part) % 2**32)  # noqa: NPY002 (the generator that timm uses)


def drawn_index(seed: int, step: int, count: int) -> int:
    """An index below `count`, drawn for a step; the same in all its parts and in all processes."""
    return _derived_seed(_RATES, seed, step) % count


class SeededImages(Dataset[tuple[Tensor, int]]):
    """A data set indexed by (epoch, index): its augmentation depends on these two and the seed alone.

    This relies on `data.transforms` using torch's global generator and no other.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        seed = _derived_seed(_AUGMENTATION, self.seed, epoch, index)
        torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed takes longer than reading a cached image
        return self.images[index]


class _BatchedImages(Dataset[Any]):
    """A data set indexed by batch, which writes each image directly into the batch.

    A worker reuses shared memory, because allocating new pages takes longer than filling them. It has one buffer more
    than the batches it prefetches, so that a batch stays valid until the next one is requested.

    Args:
        images: A data set of tensors of equal shape with labels.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self.images = images
        self._buffers: list[Tensor] = []

    def __getitems__(self, keys: list[Any]) -> list[Tensor]:
        image, label = self.images[keys[0]]
        batch, labels = self._buffer(len(keys), image), [label]
        batch[0] = image
        for number, key in enumerate(keys[1:], start=1):
            batch[number], label = self.images[key]
            labels.append(label)
        return [batch, torch.tensor(labels)]

    def _buffer(self, count: int, image: Tensor) -> Tensor:
        """Memory for `count` images like this one, [count, 3, H, W]."""
        shape = (count, *image.shape)
        if get_worker_info() is None:
            return image.new_empty(shape)
        buffer = self._buffers.pop(0) if len(self._buffers) > _PREFETCHED else None
        if buffer is None or buffer.shape != shape or buffer.dtype != image.dtype:
            buffer = image.new_empty(shape).share_memory_()
        self._buffers.append(buffer)
        return buffer


def _identity(batch: list[Tensor]) -> list[Tensor]:
    return batch


@dataclass(frozen=True)
class BatchPlan:
    """How many images each step uses, and which.

    Args:
        images: Number of training images.
        batch_size: Images per update, over all processes and parts.
        grad_accum: Parts per update in each process.
        processes: Number of processes.
        seed: Seed of the order of the images.
        shares: Probability of each image in every draw, [images]; None to draw each once an epoch.
    """

    images: int
    batch_size: int
    grad_accum: int
    processes: int
    seed: int
    shares: Tensor | None = field(default=None, compare=False)

    @classmethod
    def create(
        cls,
        images: int,
        batch_size: int,
        grad_accum: int,
        processes: int,
        seed: int,
        mixes: bool = False,
        shares: Tensor | None = None,
    ) -> "BatchPlan":
        """A plan with batches of `batch_size`, or of all images if there are fewer.

        Args:
            images, batch_size, grad_accum, processes, seed, shares: As for the class.
            mixes: Whether images are mixed, which needs an even number in each part of a batch.

        Raises:
            ClcaError: The batch cannot be divided evenly, or there are fewer images than processes times parts.
        """
        parts = grad_accum * processes * (2 if mixes else 1)
        pairs = " in pairs, as mixup and cutmix need them" if mixes else ""
        if batch_size % parts:
            raise ClcaError(
                f"--batch-size {batch_size} cannot be divided over {processes} processes with --grad-accum "
                f"{grad_accum}{pairs}; choose a multiple of {parts}"
            )
        if images < parts:
            raise ClcaError(
                f"{images} training images are too few for {processes} processes with --grad-accum {grad_accum}{pairs}"
            )
        return cls(images, min(batch_size, images - images % parts), grad_accum, processes, seed, shares)

    @property
    def steps_per_epoch(self) -> int:
        """Updates per epoch; the last partial batch is dropped, as in the published recipe."""
        return self.images // self.batch_size

    @property
    def share(self) -> int:
        """Images per part in one process."""
        return self.batch_size // (self.grad_accum * self.processes)

    def order(self, epoch: int) -> list[int]:
        """Indices of the images of an epoch, in order."""
        generator = torch.Generator().manual_seed(_derived_seed(_ORDER, self.seed, epoch) % 2**63)
        if self.shares is not None:
            return torch.multinomial(self.shares, self.images, replacement=True, generator=generator).tolist()
        return torch.randperm(self.images, generator=generator).tolist()


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of each part of process `rank`, from update `start` up to `stop`."""

    def __init__(self, plan: BatchPlan, rank: int, start: int, stop: int) -> None:
        self.plan, self.rank, self.start, self.stop = plan, rank, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.plan.grad_accum

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        plan, epoch, order = self.plan, -1, []
        for step in range(self.start, self.stop):
            if step // plan.steps_per_epoch != epoch:
                epoch = step // plan.steps_per_epoch
                order = plan.order(epoch)
            first = step % plan.steps_per_epoch * plan.batch_size
            for part in range(plan.grad_accum):
                begin = first + (part * plan.processes + self.rank) * plan.share
                yield [(epoch, index) for index in order[begin : begin + plan.share]]


def _ignore_interrupts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _exit_later)


def _exit_later(*_: object) -> None:
    # A job scheduler signals every process: keep working while the parent finishes its step and saves.
    signal.alarm(_SECONDS_TO_SAVE)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second signal comes from the parent, which has finished


def _loader_settings(workers: int, device: torch.device) -> dict[str, Any]:
    return {
        "prefetch_factor": _PREFETCHED if workers else None,
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
        "worker_init_fn": _ignore_interrupts,
    }


def reading_processes(asked: int | None) -> int:
    """Number of processes that read images; None: one per available core and training process, at most 8.

    Raises:
        ClcaError: The number is negative.
    """
    if asked is not None and asked < 0:
        raise ClcaError(f"workers {asked}: cannot be negative; 0 reads the images in this process")
    if asked is not None:
        return asked
    return min(8, max(1, usable_cores() // max(1, launched_number("LOCAL_WORLD_SIZE", 1))))


def train_loader(
    images: Dataset, plan: BatchPlan, rank: int, start: int, stop: int, workers: int, device: torch.device
) -> DataLoader:
    """Batches from update `start` to `stop`, without a break between epochs.

    With workers a batch is valid until the next one is requested.
    """
    seeded = SeededImages(images, plan.seed)
    settings = _loader_settings(workers, device) | {"batch_sampler": PlannedBatches(plan, rank, start, stop)}
    if device.type not in ("cpu", "cuda"):  # the copy to the device may outlast the batch; CUDA has a pinned copy
        return DataLoader(seeded, **settings)
    return DataLoader(_BatchedImages(seeded), collate_fn=_identity, **settings)


def end_workers(loader: DataLoader | None) -> None:
    """End the loader's workers now: one kept alive by a reference cycle would delay the end of the program."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        loader._iterator = None  # type: ignore[union-attr]
        iterator._shutdown_workers()


def eval_loader(
    images: Dataset, count: int, batch_size: int, rank: int, processes: int, workers: int, device: torch.device
) -> DataLoader:
    """Every image exactly once over all processes: this one reads every `processes`-th, without padding."""
    mine = list(range(rank, count, processes))
    return DataLoader(images, batch_size=batch_size, sampler=mine, **_loader_settings(workers, device))
