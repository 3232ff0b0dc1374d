"""Batch normalization in training, fast in channels_last on the CPU for any number of channels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PIXELS = 16  # side by side: as many numbers as the widest vector registers hold


class WideBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of 2D feature maps (Ioffe, Szegedy, 2015): ``nn.BatchNorm2d``, computed in another way.

    On the CPU torch goes through maps in channels_last pixel by pixel, and is slow unless the channels fill whole
    vector registers, which those that pruning leaves seldom do. Here a map of C channels is seen as one of 16 * C with
    a sixteenth of the pixels, and the statistics of each channel's 16 copies are put together at the end.

    Where that does not apply (evaluation, another memory format, mixed precision, no affine parameters or no running
    statistics) it is ``nn.BatchNorm2d``. The arguments, parameters and buffers are the same, and so is the state.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        if not self._applies(x):
            return super().forward(x)
        y, mean, variance = _Wide.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, x.numel() // x.shape[1])
        normalized: Tensor = y
        return normalized

    def _applies(self, x: Tensor) -> bool:
        in_place = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return in_place and self.training and self.affine and self.track_running_stats and x.dtype == self.weight.dtype

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows, copies = _wide(x)
        mean = _per_channel(rows.mean(0), copies) / copies
        centred = rows - mean.repeat(copies)
        variance = _per_channel(centred.square().mean(0), copies) / copies
        inverse = (variance + eps).rsqrt()
        y = torch.empty_like(x)  # no view: a ReLU may work in place on it
        torch.addcmul(bias.repeat(copies), centred, (weight * inverse).repeat(copies), out=_wide(y)[0])
        ctx.save_for_backward(centred, weight, inverse)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, weight, inverse = ctx.saved_tensors
        rows, copies = _wide(grad)
        count = len(rows) * copies
        of_bias = _per_channel(rows.sum(0), copies)
        of_weight = _per_channel((rows * centred).sum(0), copies) * inverse
        scale = weight * inverse  # d x = scale * (d y - mean(d y) - normalized x * mean(d y * normalized x))
        of_x = torch.addcmul((-scale * of_bias / count).repeat(copies), rows, scale.repeat(copies))
        of_x.addcmul_(centred, (-scale * inverse * of_weight / count).repeat(copies))
        return _narrow(of_x, grad), of_weight, of_bias, None


def _wide(x: Tensor) -> tuple[Tensor, int]:
    """Return (N, C, H, W) as (N * H * W / copies, copies * C), without copying what is in channels_last."""
    copies = math.gcd(x.numel() // x.shape[1], _PIXELS)
    return x.permute(0, 2, 3, 1).reshape(-1, copies * x.shape[1]), copies


def _narrow(rows: Tensor, like: Tensor) -> Tensor:
    """Return what :func:`_wide` made wide, in the shape that it had, in channels_last."""
    count, channels, height, width = like.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _per_channel(sums: Tensor, copies: int) -> Tensor:
    return sums.view(copies, -1).sum(0)
