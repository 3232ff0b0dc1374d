"""Equal implementations of RoIAlign: torchvision's own module with the same parameters, computed in another way."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from norton_det.deployment.implementations.base import (
    NO_IMPLEMENTATIONS,
    Implementations,
    implementations_of,
    itself,
    with_class,
)
from norton_det.registry import Registry


class GatheredRoIAlign(MultiScaleRoIAlign):
    """RoIAlign (He et al., "Mask R-CNN", arXiv:1703.06870) as sums of weighted rows of a table.

    Each bin is a sum over the neighbours of its sampling points. A feature map in channels_last is a table with a row
    of channels for each spatial position, so that all bins are one ``embedding_bag``, which is vectorised over channels
    and parallel over bins. The bins are returned in channels_last. Where a graph is traced, exported, compiled or
    scripted, torchvision's own is what it holds.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool feature maps (N, C, H, W) by name and boxes (K, 4) of each image -> (sum K, C, h, w)."""
        if _in_graph():
            pooled: Tensor = super().forward(x, boxes, image_shapes)
            return pooled
        if self.scales is None or self.map_levels is None:  # torchvision sets them in its forward
            super().forward(x, [box[:0] for box in boxes], image_shapes)
        assert self.scales is not None
        maps = [feature for name, feature in x.items() if name in self.featmap_names]
        rois = torch.cat(boxes)
        images = torch.repeat_interleave(
            torch.arange(len(boxes), device=rois.device), torch.tensor([len(box) for box in boxes], device=rois.device)
        )
        if len(maps) == 1:
            return self._pool(maps[0], rois, images, self.scales[0])
        assert self.map_levels is not None
        levels = self.map_levels(boxes)
        height, width = self.output_size
        # Zeros, as in torchvision: a box without an area (right of left, not a number) is on no level.
        pooled = maps[0].new_zeros(len(rois), height, width, maps[0].shape[1]).permute(0, 3, 1, 2)
        for level, (features, scale) in enumerate(zip(maps, self.scales, strict=True)):
            (chosen,) = torch.where(levels == level)
            pooled[chosen] = self._pool(features, rois[chosen], images[chosen], scale)
        return pooled

    def __prepare_scriptable__(self) -> MultiScaleRoIAlign:
        """Return what ``torch.jit.script`` compiles in place of this module: torchvision's."""
        sampling: dict[str, Any] = {"canonical_scale": self.canonical_scale, "canonical_level": self.canonical_level}
        return MultiScaleRoIAlign(self.featmap_names, self.output_size, self.sampling_ratio, **sampling)

    def _pool(self, features: Tensor, boxes: Tensor, images: Tensor, scale: float) -> Tensor:
        channels, height, width = features.shape[1:]
        exact = torch.promote_types(features.dtype, torch.float32)  # as torchvision computes it under autocast
        left, top, right, bottom = (boxes.to(exact) * scale).unbind(1)
        rows, by_row = self._neighbours(top, bottom, self.output_size[0], height)
        columns, by_column = self._neighbours(left, right, self.output_size[1], width)
        first = (images * (height * width)).view(-1, 1, 1, 1, 1)
        positions = first + width * rows[:, :, None, :, None] + columns[:, None, :, None, :]
        weights = by_row[:, :, None, :, None] * by_column[:, None, :, None, :]
        table = features.permute(0, 2, 3, 1).reshape(-1, channels).to(exact)
        positions, weights = (bins.flatten(3).flatten(0, 2) for bins in (positions, weights))
        bags = F.embedding_bag(positions, table, per_sample_weights=weights, mode="sum")
        return bags.to(features.dtype).view(len(boxes), *self.output_size, channels).permute(0, 3, 1, 2)

    def _neighbours(self, start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
        """Return the neighbours of the sampling points of each bin along one axis.

        Args:
            start: of the boxes (K,), in pixels of the feature map.
            end: likewise.
            bins: b, number of bins of a box.
            size: of the feature map, in pixels.

        Returns:
            Positions (K, b, 2 s), int64, and their weights, for s sampling points: two neighbours of each.
        """
        points = self.sampling_ratio
        step = ((end - start).clamp(min=1) / bins)[:, None, None]
        bin_ = torch.arange(bins, device=start.device)[:, None]
        point = torch.arange(points, device=start.device) + 0.5
        at = start[:, None, None] + bin_ * step + point * step / points
        inside = (at >= -1) & (at <= size)
        at = torch.where(inside, at, 0.0).clamp(0, size - 1)  # a point that is no number lies outside, and has a place
        low = at.floor()
        fraction = at - low
        positions = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long()
        weights = torch.stack([1 - fraction, fraction], -1) * (inside.to(at) / points)[..., None]
        return positions.flatten(2), weights.flatten(2)


def _in_graph() -> bool:
    """Tell whether a graph is being made, which would hold the numbers of boxes and their positions as constants."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined,no-untyped-call]


ROI_ALIGN: Implementations = Registry("implementation")
ROI_ALIGN.register("roi_align", itself)
ROI_ALIGN.register("gathered", with_class(GatheredRoIAlign))


@implementations_of.register
def _(layer: MultiScaleRoIAlign) -> Implementations:
    # Without a fixed number of sampling points, it depends on the box.
    return ROI_ALIGN if type(layer) is MultiScaleRoIAlign and layer.sampling_ratio > 0 else NO_IMPLEMENTATIONS
