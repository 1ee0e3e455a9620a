"""Batch normalisation over all processes, so that they compute what one process would for the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


class ProcessBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all processes, on any device (torch's SyncBatchNorm does not support CPUs).

    Each process must have the same number of entries, which `loaders.BatchPlan` ensures.

    Args of forward:
        x: Tensor of shape (B, C) or (B, C, L).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        channel = (1, -1) + (1,) * (x.ndim - 2)
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.autocast(x.device.type, enabled=False):
            z = x.float()
            mean = _SumOverProcesses.apply(z.sum(dims)) / count
            centered = z - mean.view(channel)
            variance = _SumOverProcesses.apply(centered.square().sum(dims)) / count
            y = centered * torch.rsqrt(variance + self.eps).view(channel)
            if self.affine:
                y = y * self.weight.view(channel) + self.bias.view(channel)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)
        return y.to(x.dtype)


def normalise_over_processes(model: nn.Module, device: torch.device) -> nn.Module:
    """Synchronise every batch norm of `model`: by torch's SyncBatchNorm on GPUs, by `ProcessBatchNorm1d` on a CPU.

    Names and shapes of parameters do not change, so checkpoints fit either way.
    """
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = ProcessBatchNorm1d
    return model
