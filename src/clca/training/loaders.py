"""Which image goes into which batch, with which random numbers: a function of seed, epoch and index alone.

Neither the number of processes nor of workers nor an interruption changes what a batch holds, so a run can be
continued in the middle of an epoch and split over machines.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from clca.errors import ClcaError
from clca.system.processes import launched_number, usable_cores

_ORDER, _AUGMENTATION, _STEP, _MIX = range(4)  # separate streams of random numbers from one seed
_SECONDS_TO_SAVE = 30
_PREFETCHED = 2  # batches that a worker is ahead


def _derived(*numbers: int) -> int:
    """A 64-bit seed from several numbers, without the correlations that seed + epoch would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed what the forward pass draws (stochastic depth, Gumbel noise …) in one part of one step of one process."""
    torch.manual_seed(_derived(_STEP, seed, step, part, rank) % 2**63)


def seed_mixing(seed: int, step: int, part: int) -> None:
    """Seed NumPy, which timm's Mixup draws from; equal in all processes, so that they mix with the same weight."""
    np.random.seed(_derived(_MIX, seed, step, part) % 2**32)  # noqa: NPY002 (the generator that timm uses)


class SeededImages(Dataset[tuple[Tensor, int]]):
    """A data set read by (epoch, index): the augmentation's random numbers depend on these two and the seed only.

    That holds because `data.transforms` draws from torch's global generator and nothing else.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        seed = _derived(_AUGMENTATION, self.seed, epoch, index)
        torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed takes longer than a cached image
        return self.images[index]


class _WholeBatches(Dataset[Any]):
    """A data set that is read by batches, each image being written where it is to be in the batch.

    A worker writes into shared memory that it uses again: new pages take longer than what is written into them. It has
    room for one batch more than it is ahead, so the process it reads for can use a batch until it asks for the next.

    Args:
        images: Gives tensors of one shape with labels.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self.images = images
        self._memory: list[Tensor] = []

    def __getitems__(self, keys: list[Any]) -> list[Tensor]:
        image, label = self.images[keys[0]]
        batch, labels = self._room(len(keys), image), [label]
        batch[0] = image
        for number, key in enumerate(keys[1:], start=1):
            batch[number], label = self.images[key]
            labels.append(label)
        return [batch, torch.tensor(labels)]

    def _room(self, count: int, image: Tensor) -> Tensor:
        shape = (count, *image.shape)
        if get_worker_info() is None:
            return image.new_empty(shape)
        room = self._memory.pop(0) if len(self._memory) > _PREFETCHED else None
        if room is None or room.shape != shape or room.dtype != image.dtype:
            room = image.new_empty(shape).share_memory_()
        self._memory.append(room)
        return room


def _as_it_is(batch: list[Tensor]) -> list[Tensor]:
    return batch


@dataclass(frozen=True)
class Plan:
    """How many images a step takes, and from where.

    Args:
        images: Number of training images.
        batch_size: Images one update sees, over all processes and parts.
        grad_accum: Parts that a process works through for one update.
        processes: Number of processes.
        seed: Of the order of the images.
    """

    images: int
    batch_size: int
    grad_accum: int
    processes: int
    seed: int

    @classmethod
    def fitting(
        cls, images: int, batch_size: int, grad_accum: int, processes: int, seed: int, mixes: bool = False
    ) -> "Plan":
        """A plan whose batch is `batch_size`, or all the images where there are fewer.

        Args:
            images, batch_size, grad_accum, processes, seed: As the plan's.
            mixes: Whether images are mixed, which takes an even number in each part of a batch.

        Raises:
            ClcaError: The batch cannot be divided evenly, or there are fewer images than processes and parts.
        """
        shares = grad_accum * processes * (2 if mixes else 1)
        pairs = " in pairs, as mixup and cutmix need them" if mixes else ""
        if batch_size % shares:
            raise ClcaError(
                f"--batch-size {batch_size} cannot be divided over {processes} processes with --grad-accum "
                f"{grad_accum}{pairs}; choose a multiple of {shares}"
            )
        if images < shares:
            raise ClcaError(
                f"{images} training images are too few for {processes} processes with --grad-accum {grad_accum}{pairs}"
            )
        return cls(images, min(batch_size, images - images % shares), grad_accum, processes, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch; the last partial batch is dropped, as published."""
        return self.images // self.batch_size

    @property
    def share(self) -> int:
        """Images in one part of one process."""
        return self.batch_size // (self.grad_accum * self.processes)

    def order(self, epoch: int) -> list[int]:
        """The images of an epoch in the order in which they are seen."""
        generator = torch.Generator().manual_seed(_derived(_ORDER, self.seed, epoch) % 2**63)
        return torch.randperm(self.images, generator=generator).tolist()


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of every part that process `rank` works through, from update `start` up to `stop`."""

    def __init__(self, plan: Plan, rank: int, start: int, stop: int) -> None:
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


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, _serve_on)


def _serve_on(*_: object) -> None:
    # A queue's time limit reaches every process: serve on while the parent ends its step and saves.
    signal.alarm(_SECONDS_TO_SAVE)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one is the parent's, which is through


def _loader_settings(workers: int, device: torch.device) -> dict[str, Any]:
    return {
        "prefetch_factor": _PREFETCHED if workers else None,
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
        "worker_init_fn": _leave_interrupts_to_the_parent,
    }


def reading_processes(asked: int | None) -> int:
    """Processes that read images: as many as were asked for.

    By default one a core that this process may use, shared among the processes on this machine; at most 8.

    Raises:
        ClcaError: Fewer than none.
    """
    if asked is not None and asked < 0:
        raise ClcaError(f"workers {asked}: cannot be negative; 0 reads the images in this process")
    if asked is not None:
        return asked
    return min(8, max(1, usable_cores() // max(1, launched_number("LOCAL_WORLD_SIZE", 1))))


def train_loader(
    images: Dataset, plan: Plan, rank: int, start: int, stop: int, workers: int, device: torch.device
) -> DataLoader:
    """Batches from update `start` to `stop` without a break between epochs.

    With workers a batch holds until the next is asked for.
    """
    seeded = SeededImages(images, plan.seed)
    settings = _loader_settings(workers, device) | {"batch_sampler": PlannedBatches(plan, rank, start, stop)}
    if device.type not in ("cpu", "cuda"):  # may still be copying when the next is asked for; CUDA has a pinned copy
        return DataLoader(seeded, **settings)
    return DataLoader(_WholeBatches(seeded), collate_fn=_as_it_is, **settings)


def end_workers(loader: DataLoader | None) -> None:
    """End the processes that read for it now: one kept by a reference cycle would hold the program up at its end."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        loader._iterator = None  # type: ignore[union-attr]
        iterator._shutdown_workers()


def eval_loader(
    images: Dataset, count: int, batch_size: int, rank: int, processes: int, workers: int, device: torch.device
) -> DataLoader:
    """Every image exactly once over all processes: this one gets each `processes`-th, without padding."""
    mine = list(range(rank, count, processes))
    return DataLoader(images, batch_size=batch_size, sampler=mine, **_loader_settings(workers, device))
