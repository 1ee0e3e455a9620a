"""Where a block's time goes: linear layers plain and fused, blocks of few and many tokens, DPC-KNN's clusters.

    python benchmarks/layers.py

prints medians of calls in turn, and the machine.
"""

from __future__ import annotations

import timm
import torch
from torch.nn import functional as F

from clca.attention import attention_half, mlp_half
from clca.linear import linear
from clca.measure import Spread, interleaved, machine, versions
from clca.reductions.dpcknn import assign_clusters

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
            times = interleaved({"block": lambda x=x: mlp_half(block, attention_half(block, x)[0])}, repeats=40)
            macs = 12 * WIDTH**2 * tokens + 2 * tokens**2 * WIDTH
            milliseconds = _ms(times["block"])
            print(f"block, {tokens} tokens: {milliseconds:.2f} ms, {macs / milliseconds / 1e6:.0f} GMAC/s")
        x = torch.randn(8, 784, WIDTH)
        times = interleaved({"clusters": lambda: assign_clusters(x, 78)}, repeats=10)
        print(f"DPC-KNN, 8 × 784 tokens: {_ms(times['clusters']):.0f} ms")


def _ms(seconds: list[float]) -> float:
    return 1000 * Spread.of(seconds).median


if __name__ == "__main__":
    main()
