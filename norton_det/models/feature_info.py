"""What the feature maps of a backbone are, as timm and detectron2 ask for it."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class ShapeSpec(NamedTuple):
    """One feature map, by the names of detectron2's class; height and width depend on the image.

    Attributes:
        channels: of the map.
        height: always None.
        width: always None.
        stride: pixels of the image from one position of the map to the next.
    """

    channels: int
    height: int | None = None
    width: int | None = None
    stride: int = 1


class FeatureInfo:
    """What timm's networks with ``features_only=True`` have as ``feature_info``.

    Args:
        info: for every map that the network has: ``num_chs``, ``reduction`` (its stride) and ``module`` (the name of
            what computes it).
        out_indices: which of them are returned.

    Example:
        >>> from norton_det.models.feature_info import FeatureInfo
        >>> maps = [{"num_chs": 64 * 2**i, "reduction": 2**i, "module": f"layer{i}"} for i in range(5)]
        >>> info = FeatureInfo(maps, (2, 4))
        >>> info.channels(), info.reduction(), info.module_name(), info.channels(3)
        ([256, 1024], [4, 16], ['layer2', 'layer4'], 512)
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{**values, "index": i} for i, values in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return a value of the maps that are returned, of one map, or of several by their indices."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Return all values, or those of some keys, of the same maps as :meth:`get` does."""

        def chosen(i: int) -> dict[str, Any]:
            return {key: self.info[i][key] for key in (self.info[i] if keys is None else keys)}

        if isinstance(idx, int):
            return chosen(idx)
        return [chosen(i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the numbers of channels."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the strides."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the names of the modules that compute the maps."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return all values of one map."""
        return self.info[index]

    def __len__(self) -> int:
        """Return the number of maps that the network has."""
        return len(self.info)
