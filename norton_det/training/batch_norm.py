"""Batch normalization for training that is fast on the CPU in channels_last for any number of channels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_PIXELS = 16  # as many float32 numbers as the widest vector registers hold


class WideBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of 2D feature maps (Ioffe, Szegedy, 2015): another implementation of ``nn.BatchNorm2d``.

    On the CPU, torch processes maps in channels_last pixel by pixel, which is slow unless the channels fill whole
    vector registers; the channels that pruning leaves seldom do. Here a map of C channels is viewed as one of 16 * C
    channels with a sixteenth of the pixels, and the statistics of the 16 copies of each channel are merged at the end.

    In evaluation, in another memory format, in mixed precision, and without affine parameters or running statistics it
    computes the same as ``nn.BatchNorm2d``, by its code. Arguments, parameters, buffers and state are the same, too.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from norton_det.training.batch_norm import WideBatchNorm2d
        >>> norm = WideBatchNorm2d(5)
        >>> x = torch.randn(2, 5, 4, 4).contiguous(memory_format=torch.channels_last)
        >>> torch.allclose(norm(x), nn.BatchNorm2d(5)(x), atol=1e-5)
        True
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
        weight = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance * (count / (count - 1)), weight)


class _Wide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows, copies = _wide(x)
        mean = _per_channel(rows.mean(0), copies) / copies
        centred = rows - mean.repeat(copies)
        variance = _per_channel(centred.square().mean(0), copies) / copies
        inverse = (variance + eps).rsqrt()
        y = torch.empty_like(x)  # not a view: a ReLU may change it in place
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
        grad_bias = _per_channel(rows.sum(0), copies)
        grad_weight = _per_channel((rows * centred).sum(0), copies) * inverse
        scale = weight * inverse  # d x = scale * (d y - mean(d y) - normalized x * mean(d y * normalized x))
        grad_x = torch.addcmul((-scale * grad_bias / count).repeat(copies), rows, scale.repeat(copies))
        grad_x.addcmul_(centred, (-scale * inverse * grad_weight / count).repeat(copies))
        return _narrow(grad_x, grad), grad_weight, grad_bias, None


def _wide(x: Tensor) -> tuple[Tensor, int]:
    """Return (N, C, H, W) as (N * H * W / copies, copies * C) and ``copies``; a view of a map in channels_last."""
    copies = math.gcd(x.numel() // x.shape[1], _PIXELS)
    return x.permute(0, 2, 3, 1).reshape(-1, copies * x.shape[1]), copies


def _narrow(rows: Tensor, like: Tensor) -> Tensor:
    """Return the inverse of :func:`_wide`: a map of the shape of ``like``, in channels_last."""
    count, channels, height, width = like.shape
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def _per_channel(sums: Tensor, copies: int) -> Tensor:
    return sums.view(copies, -1).sum(0)
