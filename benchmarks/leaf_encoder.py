"""Pretrains `clca_leaf_tiny`, the small encoder that comes with the library, on synthetic leaves.

    python benchmarks/leaf_encoder.py OUT --hours 1.5

draws leaves of many cultivars into a file under OUT, then trains a plain ViT on them for the given time: four depths
each predict the cultivar and the traits that the leaf was drawn from, so that the CLS tokens of all of them describe
it. It can be stopped and started again. It writes OUT/clca_leaf_tiny.safetensors in half precision and a line every
hundred steps to OUT/log.jsonl. The cultivars are those of seeds 1000 to 1002; `clca demo` measures it on
others.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import tyro
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from clca.data.synthetic.leaves import TRAIT_RANGES, DrawnLeaves
from clca.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from clca.models import leaf_encoder  # registers the encoder with timm
from clca.system.files import replacing

DIFFICULTIES = (0.0, 0.25, 0.5)
DEPTHS = (3, 6, 9, 12)  # blocks after which the CLS token is read
_SEED = 1000
_SIDE = 184  # pixels of the drawn leaves; the encoder sees crops of 160
_TRAITS = tuple(TRAIT_RANGES)
_FEWER_PATCHES = 0.5  # share of the time in which half of the patches are dropped at random, which halves a step
_EXCHANGE_BEFORE = 10  # block (from 0) before which each image gets the CLS token of another


@dataclass
class Pretraining:
    """Sizes of the pretraining."""

    out: tyro.conf.Positional[Path]
    """Folder for the leaves, the checkpoint, the log and the weights."""
    hours: float = 1.5
    """Time of the training, without the drawing; the learning rate falls to zero at its end."""
    cultivars: int = 200
    """Cultivars of each of three difficulties."""
    images: int = 60
    """Leaves of each cultivar."""
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    processes: int = 2
    """That draw leaves, and threads that train."""
    device: str = "cpu"


def main(settings: Pretraining) -> None:
    settings.out.mkdir(parents=True, exist_ok=True)
    pixels, labels, traits = draw(settings)
    train(settings, pixels, labels, traits)
    draw_curves(settings.out)


# -- leaves ----------------------------------------------------------------------------------------------------


def draw(settings: Pretraining) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels [N, S, S, 3] in 8 bits, the cultivar [N] and the traits [N, 6] between 0 and 1."""
    file, per_set = settings.out / "leaves.npy", settings.cultivars * settings.images
    total = len(DIFFICULTIES) * per_set
    shape = (total, _SIDE, _SIDE, 3)
    if not file.exists():
        unfinished, drawn = file.with_suffix(".part"), settings.out / "drawn.txt"
        if not unfinished.exists():
            np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape).flush()
            drawn.write_text("")
        done = {int(line) for line in drawn.read_text().split()}
        parts = [(unfinished, shape, settings, start) for start in range(0, total, 240) if start not in done]
        with multiprocessing.get_context("spawn").Pool(settings.processes) as pool, drawn.open("a") as log:
            ends = track(pool.imap_unordered(_draw_part, parts), "drawing leaves", len(parts), console=Console())
            for start in ends:
                log.write(f"{start}\n")
                log.flush()
        unfinished.replace(file)
    pixels = np.load(file, mmap_mode="r")
    sets = [_leaves(settings, number) for number in range(len(DIFFICULTIES))]
    labels = np.concatenate([np.array(leaves.labels) + n * settings.cultivars for n, leaves in enumerate(sets)])
    spans = np.array([TRAIT_RANGES[name] for name in _TRAITS])
    values = np.array(
        [[getattr(leaves.traits(i), name) for name in _TRAITS] for leaves in sets for i in range(len(leaves))]
    )
    return pixels, labels, (values - spans[:, 0]) / (spans[:, 1] - spans[:, 0])


def _leaves(settings: Pretraining, number: int) -> DrawnLeaves:
    difficulty = DIFFICULTIES[number]
    return DrawnLeaves(settings.cultivars, settings.images, _SIDE, _SEED + number, difficulty, split="all", cache=False)


def _draw_part(part: tuple[Path, tuple[int, ...], Pretraining, int]) -> int:
    file, shape, settings, start = part
    pixels = np.lib.format.open_memmap(file, "r+", np.uint8, shape)
    sets, per_set = (
        [_leaves(settings, number) for number in range(len(DIFFICULTIES))],
        settings.cultivars * settings.images,
    )
    for index in range(start, min(start + 240, shape[0])):
        number, leaf = divmod(index, per_set)
        pixels[index] = np.asarray(sets[number].image(leaf))
    pixels.flush()
    return start


# -- training --------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """The encoder, and at each of four depths a linear layer that reads its normalised CLS token."""

    def __init__(self, cultivars: int) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            leaf_encoder.clca_leaf_tiny.__name__,
            pretrained=False,
            num_classes=0,
            drop_path_rate=0.05,
            patch_drop_rate=0.5,
        )
        # As in large pretrained encoders, the last blocks shall read the patches, not pass on what CLS holds.
        self.exchange = False
        self.encoder.blocks[_EXCHANGE_BEFORE].register_forward_pre_hook(self._exchange_cls)
        width = self.encoder.embed_dim
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in DEPTHS)
        self.heads = nn.ModuleList(nn.Linear(width, cultivars + len(_TRAITS)) for _ in DEPTHS)

    def _exchange_cls(self, block: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Give each image of the batch [B, N, C] the CLS token of another."""
        x = given[0]
        if self.exchange:
            x = torch.cat([x[:, :1].detach().roll(1, 0), x[:, 1:]], dim=1)
        return (x, *given[1:])

    def forward(self, images: Tensor) -> list[Tensor]:
        indices = [depth - 1 for depth in DEPTHS]
        tokens = self.encoder.forward_intermediates(
            images, indices=indices, return_prefix_tokens=True, intermediates_only=True, output_fmt="NLC"
        )
        return [head(norm(cls[:, 0])) for head, norm, (_, cls) in zip(self.heads, self.norms, tokens, strict=True)]


def train(settings: Pretraining, pixels: np.ndarray, labels: np.ndarray, traits: np.ndarray) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(settings.processes)
    cultivars = int(labels.max()) + 1
    network = Network(cultivars).to(settings.device).train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
    )
    targets = torch.from_numpy((traits - traits.mean(0)) / traits.std(0)).float()
    classes = torch.from_numpy(labels)
    checkpoint, spent, step = settings.out / "checkpoint.pt", 0.0, 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(stored["network"])
        optimizer.load_state_dict(stored["optimizer"])
        spent, step = stored["spent"], stored["step"]
    mean, std = (torch.tensor(v, device=settings.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    rng = np.random.default_rng([0, step])
    limit, begin, saved, before = settings.hours * 3600, time.monotonic(), time.monotonic(), spent
    sums, steps = np.zeros(4), 0  # since the last line of the log
    while spent < limit:
        share = spent / limit
        warm = min(1.0, step / 300)
        network.encoder.patch_drop.prob = 0.5 if share < _FEWER_PATCHES else 0.0
        network.exchange = share >= _FEWER_PATCHES
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm * 0.5 * (1 + math.cos(math.pi * share))
        chosen = np.sort(rng.choice(len(pixels), settings.batch_size, replace=False))
        images = _augmented(torch.from_numpy(pixels[chosen]).to(settings.device), rng)
        images = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.autocast(settings.device, torch.bfloat16):
            outputs = network(images.contiguous())
        wanted, values = classes[chosen].to(settings.device), targets[chosen].to(settings.device)
        loss = torch.zeros((), device=settings.device)
        for number, output in enumerate(outputs):
            output = output.float()
            named = nn.functional.cross_entropy(output[:, :cultivars], wanted, label_smoothing=0.1)
            measured = nn.functional.mse_loss(output[:, cultivars:], values)
            loss = loss + (named + 2 * measured) * (1.0 if number == len(DEPTHS) - 1 else 0.5)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        spent = before + time.monotonic() - begin
        hits = (outputs[-1][:, :cultivars].argmax(1) == wanted).float().mean().item()
        early = nn.functional.mse_loss(outputs[0][:, cultivars:].float(), values).item()
        sums += [loss.item(), hits, measured.item(), early]
        steps += 1
        if step % 100 == 0 or spent >= limit:
            means = [round(float(v), 4) for v in sums / steps]
            line = {"step": step, "hours": round(spent / 3600, 4)}
            line |= dict(zip(("loss", "top1", "traits_mse", "traits_mse_block3"), means, strict=True))
            with (settings.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            sums[:], steps = 0, 0
        if time.monotonic() - saved > 120 or spent >= limit:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "spent": spent, "step": step}
            with replacing(checkpoint) as temporary:
                torch.save(state, temporary)
            _save(network, settings.out / "clca_leaf_tiny.safetensors")
            saved = time.monotonic()


def _augmented(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop of 160 pixels, flips and quarter turns, the same for the batch but drawn anew at each step."""
    top, left = rng.integers(0, _SIDE - 160 + 1, 2)
    images = images[:, top : top + 160, left : left + 160]
    parts = []
    for part in images.chunk(4):
        part = torch.rot90(part, int(rng.integers(4)), (1, 2))
        parts.append(part.flip(2) if rng.random() < 0.5 else part)
    return torch.cat(parts)


def draw_curves(folder: Path) -> None:
    """OUT/curves.png: what OUT/log.jsonl has of the training, over the hours."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    hours = [line["hours"] for line in lines]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    traits, top1 = figure.subplots(1, 2)
    traits.plot(hours, [line["traits_mse_block3"] for line in lines], label="after block 3")
    traits.plot(hours, [line["traits_mse"] for line in lines], label="after the last block")
    traits.set(xlabel="hours", ylabel="error of the traits (1: the mean)", ylim=(0, 1.05))
    traits.legend(frameon=False)
    top1.plot(hours, [100 * line["top1"] for line in lines])
    top1.set(xlabel="hours", ylabel="top-1 of the training cultivars, %", ylim=(0, None))
    for axes in (traits, top1):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "curves.png", dpi=150)


def _save(network: Network, file: Path) -> None:
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in network.encoder.state_dict().items()}
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with replacing(file) as temporary:
        save_file(state, temporary)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main(tyro.cli(Pretraining))
