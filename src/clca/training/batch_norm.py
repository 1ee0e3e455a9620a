"""Batch normalisation over all processes, so that several processes compute what one would with the whole batch."""

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
    """`nn.BatchNorm1d` over the batches of all processes, on any device (torch's SyncBatchNorm refuses the CPU).

    Each process must hold equally many entries, which `batches.Plan` sees to.

    Args of forward:
        x: Tensor of shape (B, C) or (B, C, L).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        channel = (1, -1) + (1,) * (x.ndim - 2)
        over = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.autocast(x.device.type, enabled=False):
            z = x.float()
            mean = _SumOverProcesses.apply(z.sum(over)) / count
            centred = z - mean.view(channel)
            variance = _SumOverProcesses.apply(centred.square().sum(over)) / count
            y = centred * torch.rsqrt(variance + self.eps).view(channel)
            if self.affine:
                y = y * self.weight.view(channel) + self.bias.view(channel)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), share)
        return y.to(x.dtype)


def normalise_over_processes(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch norm of `model` see all processes: torch's SyncBatchNorm on GPUs, its plain equal on CPU.

    Names and shapes of parameters stay, so checkpoints fit either way.
    """
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = ProcessBatchNorm1d
    return model
