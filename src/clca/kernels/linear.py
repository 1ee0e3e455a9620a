"""Linear layers, feed-forward layers and patch embedding by the fastest kernel that may run.

In inference on a CPU oneDNN adds the bias and applies GELU while the product is still in the cache. PyTorch's own
linear layer first copies the bias over the whole result and reads it again for the activation; with the short rows of
a ViT these passes take a quarter of its time. On a GPU the patch embedding, a convolution without overlap, runs as a
matrix product: the libraries' convolution takes much longer for strides of 14 and 16. The numbers agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clca.kernels import dispatch, onednn
from clca.kernels.prepack import operands


def linear(layer: Any, x: Tensor, part: slice = slice(None), gelu: bool = False) -> Tensor:
    """`layer(x)`, or the outputs `part` of it, followed by GELU on request.

    Args:
        layer: A linear layer; `part` needs a plain one.
        x: Tokens, [B, N, C].
        part: Which outputs to compute.
        gelu: Whether the exact GELU follows.
    """
    if dispatch.use_fused_linear(x) and dispatch.is_plain_linear(layer):
        return _fused_linear(layer, x, part, gelu)
    if dispatch.use_onednn_in_training(x) and dispatch.is_plain_linear(layer):
        weight, bias = layer.weight[part], None if layer.bias is None else layer.bias[part]
        if dispatch.use_onednn_linear(x, len(weight)):
            x = onednn.linear(x, weight, bias)
            return F.gelu(x) if gelu else x
    if part == slice(None):
        x = layer(x)
    else:
        x = F.linear(x, layer.weight[part], None if layer.bias is None else layer.bias[part])
    return F.gelu(x) if gelu else x


def _fused_linear(layer: Any, x: Tensor, part: slice, gelu: bool) -> Tensor:
    dtype = dispatch.compute_dtype(x)
    assert dtype is not None
    weight, bias = operands(layer, part, dtype)
    if x.is_cuda:
        x = F.linear(x.to(dtype), weight, bias)
        return F.gelu(x) if gelu else x
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    activation: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
    rows = torch.ops.mkldnn._linear_pointwise(rows, weight, onednn.dense(bias), *activation)
    return rows.view(*x.shape[:-1], rows.shape[-1])


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """`mlp(x)`, the first layer and GELU of timm's Mlp fused where they may be; x [B, N, C]."""
    if dispatch.use_onednn_in_training(x) and dispatch.is_fusable_mlp(mlp, x):
        return onednn.feed_forward(x, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    if not dispatch.use_fused_linear(x) or not dispatch.is_plain_mlp(mlp):
        return mlp(x)
    x = mlp.norm(mlp.drop1(linear(mlp.fc1, x, gelu=True)))
    return mlp.drop2(linear(mlp.fc2, x))


def embed_patches(embed: nn.Module, x: Tensor) -> Tensor:
    """`embed(x)`: images [B, 3, H, W] to patches [B, N, C], on a GPU as a matrix product where it is one."""
    return embed_by_matmul(embed, x) if dispatch.use_matmul_embedding(embed, x) else embed(x)


def embed_by_matmul(embed: Any, x: Tensor) -> Tensor:
    """Images [B, 3, H, W] to patches [B, N, C] without a convolution."""
    proj = embed.proj
    height, width = proj.kernel_size
    patches = x.unflatten(3, (-1, width)).unflatten(2, (-1, height)).permute(0, 2, 4, 1, 3, 5)  # [B, H/h, W/w, 3, h, w]
    return embed.norm(F.linear(patches.flatten(3).flatten(1, 2), proj.weight.flatten(1), proj.bias))
