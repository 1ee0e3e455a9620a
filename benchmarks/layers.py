"""Times the layers of a block: plain and fused linear layers, blocks with few and many tokens, DPC-KNN's clustering,
and the forward and backward passes of a training step with PyTorch's own layers and with this library's kernels.

    python benchmarks/layers.py

prints medians of alternating calls, and the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from clca.kernels import dispatch
from clca.kernels.linear import feed_forward, linear
from clca.kernels.tiled_attention import packed_attention
from clca.models.block import attention_branch, mlp_branch
from clca.reductions.dpcknn import assign_clusters
from clca.system.timing import Spread, interleaved, machine, versions

WIDTH = 384  # ViT-S


def main() -> None:
    print(machine(), versions())
    block = timm.create_model("vit_small_patch16_224").eval().blocks[0]
    layers = [(block.attn.qkv, False), (block.attn.proj, False), (block.mlp.fc1, True), (block.mlp.fc2, False)]
    with torch.inference_mode():
        for rows in (6288, 786, 136, 17):
            inputs = [torch.randn(1, rows, layer.in_features) for layer, _ in layers]

            def plain(inputs: list[torch.Tensor] = inputs) -> None:
                for (layer, gelu), x in zip(layers, inputs, strict=True):
                    y = layer(x)
                    if gelu:
                        F.gelu(y)

            def fused(inputs: list[torch.Tensor] = inputs) -> None:
                for (layer, gelu), x in zip(layers, inputs, strict=True):
                    linear(layer, x, gelu=gelu)

            times = interleaved({"plain": plain, "fused": fused}, repeats=15)
            print(f"four layers, {rows} rows: " + ", ".join(f"{k} {_ms(v):.2f} ms" for k, v in times.items()))
        for tokens in (786, 87, 17):
            x = torch.randn(1, tokens, WIDTH)
            times = interleaved({"block": lambda x=x: mlp_branch(block, attention_branch(block, x)[0])}, repeats=40)
            macs = 12 * WIDTH**2 * tokens + 2 * tokens**2 * WIDTH
            milliseconds = _ms(times["block"])
            print(f"block, {tokens} tokens: {milliseconds:.2f} ms, {macs / milliseconds / 1e6:.0f} GMAC/s")
        x = torch.randn(8, 784, WIDTH)
        times = interleaved({"clusters": lambda: assign_clusters(x, 78)}, repeats=10)
        print(f"DPC-KNN, 8 × 784 tokens: {_ms(times['clusters']):.0f} ms")
    _forward_and_backward(block)


def _forward_and_backward(block: Any) -> None:
    """Time both passes in float32, eight images of 786 tokens; they differ only where `clca.kernels.onednn` is used."""
    x = torch.randn(8, 786, WIDTH, requires_grad=True)
    qkv = torch.randn(8, 786, 3, 6, WIDTH // 6, requires_grad=True)
    qkv_layer, mlp = block.attn.qkv, block.mlp

    def fused(qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))

    pairs: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "linear layer 384 → 1152": (x, qkv_layer, lambda x: linear(qkv_layer, x)),
        "feed-forward layers": (x, mlp, lambda x: feed_forward(mlp, x)),
        "attention": (qkv, fused, packed_attention),
    }
    print(f"oneDNN in training: {dispatch.TRAIN_WITH_ONEDNN}")
    for name, (argument, torch_own, ours) in pairs.items():
        ways = {"torch": torch_own, "clca": ours}
        forward = interleaved({k: partial(_forward, way, argument) for k, way in ways.items()}, repeats=15)
        both = interleaved({k: partial(_forward_backward, way, argument) for k, way in ways.items()}, repeats=15)
        times = ", ".join(f"{k} {_ms(forward[k]):.0f} and {_ms(both[k]):.0f} ms" for k in ways)
        print(f"{name}, forward, and forward and backward: {times}")


def _forward(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.no_grad():
        way(x)


def _forward_backward(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    out = way(x)
    out.backward(torch.ones_like(out))


def _ms(seconds: list[float]) -> float:
    return 1000 * Spread.of(seconds).median


if __name__ == "__main__":
    main()
