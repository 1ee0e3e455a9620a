"""Which image is in which batch: the same however many processes, workers and interruptions there are."""

import gc
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from clca import data
from clca.data.transforms import Normalization, preprocess_dict, train_transform
from clca.errors import ClcaError
from clca.evaluation import evaluate, sweep
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.processes import is_first_on_its_machine, is_first_process
from clca.training import TrainConfig, train
from clca.training.loaders import (
    BatchPlan,
    PlannedBatches,
    SeededImages,
    _ignore_interrupts,
    end_workers,
    eval_loader,
    train_loader,
)

CPU = torch.device("cpu")


@given(
    images=st.integers(8, 60),
    share=st.integers(1, 4),
    accum=st.integers(1, 3),
    processes=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_processes_share_the_batches_of_one(images: int, share: int, accum: int, processes: int, seed: int) -> None:
    batch = share * accum * processes
    if images < accum * processes:
        return
    plan = BatchPlan.create(images, batch, accum, processes, seed)
    alone = BatchPlan(images, plan.batch_size, 1, 1, seed)
    steps = 3 * plan.steps_per_epoch
    whole = list(PlannedBatches(alone, 0, 0, steps))
    parts = [list(PlannedBatches(plan, rank, 0, steps)) for rank in range(processes)]
    for step in range(steps):
        together = [
            key for part in range(accum) for rank in range(processes) for key in parts[rank][step * accum + part]
        ]
        assert together == whole[step]


@given(start=st.integers(0, 14))
def test_a_resumed_order_is_the_rest_of_the_whole(start: int) -> None:
    plan = BatchPlan.create(23, 4, 2, 1, seed=3)
    whole = list(PlannedBatches(plan, 0, 0, 15))
    assert list(PlannedBatches(plan, 0, start, 15)) == whole[2 * start :]


def test_an_epoch_sees_no_image_twice_and_epochs_differ() -> None:
    plan = BatchPlan.create(23, 4, 1, 1, seed=3)
    keys = [key for batch in PlannedBatches(plan, 0, 0, 10) for key in batch]
    first, second = ([index for epoch, index in keys if epoch == number] for number in (0, 1))
    assert len(set(first)) == len(first) == 20
    assert first != second


def test_a_set_smaller_than_the_batch_still_trains() -> None:
    plan = BatchPlan.create(7, 32, 1, 2, seed=0)
    assert (plan.batch_size, plan.steps_per_epoch, plan.share) == (6, 1, 3)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(ClcaError, match="--batch-size 32 cannot be divided over 3 processes"):
        BatchPlan.create(100, 32, 1, 3, 0)
    with pytest.raises(ClcaError, match="3 training images are too few"):
        BatchPlan.create(3, 8, 1, 4, 0)


@given(images=st.integers(4, 40), processes=st.integers(1, 2), accum=st.integers(1, 2))
def test_a_set_smaller_than_the_batch_can_be_mixed(images: int, processes: int, accum: int) -> None:
    shares = 2 * processes * accum
    if images < shares:
        with pytest.raises(ClcaError, match=r"too few .* in pairs"):
            BatchPlan.create(images, 48, accum, processes, 0, mixes=True)
        return
    plan = BatchPlan.create(images, 48, accum, processes, 0, mixes=True)
    assert plan.share % 2 == 0 < plan.share
    assert plan.batch_size > images - shares


def test_a_batch_that_processes_cannot_mix_is_refused() -> None:
    assert BatchPlan.create(18, 6, 1, 2, 0).share == 3
    with pytest.raises(ClcaError, match=r"--batch-size 6 cannot .* in pairs, .*; choose a multiple of 4"):
        BatchPlan.create(18, 6, 1, 2, 0, mixes=True)


class Noise(Dataset):
    """Images that are nothing but what the random numbers of their reading were."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(2), index

    def __len__(self) -> int:
        return 11


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    plan = BatchPlan.create(11, 4, 1, 1, seed=5)
    here = [batch[0] for batch in train_loader(Noise(), plan, 0, 0, 4, workers=0, device=CPU)]
    torch.manual_seed(99)
    workers = [batch[0].clone() for batch in train_loader(Noise(), plan, 0, 0, 4, workers=2, device=CPU)]
    assert all(torch.equal(a, b) for a, b in zip(here, workers, strict=True))
    seeded = SeededImages(Noise(), 5)
    assert torch.equal(seeded[1, 3][0], seeded[1, 3][0])
    others = (seeded[2, 3][0], seeded[1, 4][0], SeededImages(Noise(), 6)[1, 3][0])
    assert not any(torch.equal(seeded[1, 3][0], other) for other in others)


class Slow(Dataset):
    """Images that hold their index in the data set; some take longer than others, and one worker than another."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.002 * (index % 3 == 0))
        return torch.full((3, 40, 40), index, dtype=torch.uint8), index


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_holds_until_the_next_is_asked_for(workers: int) -> None:
    """Workers, which are far ahead by then, do not write into what is in use."""
    plan = BatchPlan.create(30, 3, 1, 1, seed=1)
    whole = iter(PlannedBatches(plan, 0, 0, 40))
    for number, (batch, labels) in enumerate(train_loader(Slow(), plan, 0, 0, 40, workers, CPU)):
        if number % 7 == 0:
            time.sleep(0.05)
        assert labels.tolist() == [index for _, index in next(whole)]
        assert torch.equal(batch, labels.to(torch.uint8)[:, None, None, None].expand_as(batch))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [False, True])
def test_a_model_sees_the_same_bits_from_batches_of_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, cache: bool
) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    plan = BatchPlan.create(18, 6, 1, 1, seed=2)
    floats = data.open(images, transform=train_transform(32))
    pixels = data.open(images, transform=train_transform(32, normalize=False))
    if cache:
        data.use_cache([pixels])
    normalize = Normalization(preprocess_dict(32))
    expected = train_loader(floats, plan, 0, 0, 7, workers=0, device=CPU)
    found = train_loader(pixels, plan, 0, 0, 7, workers=workers, device=CPU)
    for (image, label), (pixel, same_label) in zip(expected, found, strict=True):
        assert pixel.dtype == torch.uint8
        assert torch.equal(label, same_label)
        for layout in (torch.contiguous_format, torch.channels_last):
            seen = normalize(pixel, CPU).contiguous(memory_format=layout)
            assert torch.equal(seen, image)
            assert seen.stride() == image.contiguous(memory_format=layout).stride()


@given(processes=st.integers(1, 5), batch=st.integers(1, 6))
def test_evaluation_sees_every_image_exactly_once(processes: int, batch: int) -> None:
    seen = [
        index
        for rank in range(processes)
        for _, labels in eval_loader(Noise(), 11, batch, rank, processes, 0, CPU)
        for index in labels.tolist()
    ]
    assert sorted(seen) == list(range(11))


def test_workers_end_on_request_and_not_when_they_are_garbage_collected() -> None:
    loader = eval_loader(Noise(), 10, 2, 0, 1, workers=2, device=CPU)
    assert len(list(loader)) == 5
    workers = multiprocessing.active_children()
    assert len(workers) == 2  # kept for the next pass
    end_workers(loader)
    assert not multiprocessing.active_children()
    end_workers(loader)
    end_workers(None)
    end_workers(eval_loader(Noise(), 10, 2, 0, 1, workers=0, device=CPU))


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="there are no alarms on this system")
def test_a_reading_process_outlives_one_sigterm_and_not_two() -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=_serve, args=(there,), daemon=True)
    worker.start()
    assert here.recv() == "ready"
    worker.terminate()
    here.send("a batch")
    assert here.poll(20)
    assert here.recv() == "a batch"  # a time limit for all: it still serves
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == -signal.SIGTERM


def _serve(pipe: Connection) -> None:
    _ignore_interrupts(0)
    pipe.send("ready")
    while True:
        pipe.send(pipe.recv())


@pytest.mark.parametrize("work", ["train", "evaluate", "sweep"])
def test_no_reading_process_is_left_behind(
    work: str, make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(epochs=1, workers=0)
    run = train(config, quiet=True).folder
    again = config.model_copy(update={"out": run.with_name("again"), "workers": 1})
    calls: dict[str, Callable[[], object]] = {
        "train": lambda: train(again, quiet=True),
        "evaluate": lambda: evaluate(run, workers=1),
        "sweep": lambda: sweep(run, [0.5, 0.3], workers=1),
    }
    collecting = gc.isenabled()
    gc.disable()  # which would end them by chance
    try:
        calls[work]()
        assert not multiprocessing.active_children()
        monkeypatch.setattr(TokenReducedViT, "forward", _stopped)
        shutil.rmtree(run / "evaluation", ignore_errors=True)
        shutil.rmtree(again.out, ignore_errors=True)
        with pytest.raises(KeyboardInterrupt):
            calls[work]()
        assert not multiprocessing.active_children()
    finally:
        if collecting:
            gc.enable()


def _stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("launched", "first", "first_here"),
    [
        ({}, True, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False, True),  # on the second machine
        ({"RANK": "1"}, False, False),
    ],
)
def test_one_process_a_machine_looks_at_its_images(
    monkeypatch: pytest.MonkeyPatch, launched: dict[str, str], first: bool, first_here: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert (is_first_process(), is_first_on_its_machine()) == (first, first_here)
