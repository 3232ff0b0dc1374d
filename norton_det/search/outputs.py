"""The outputs of a dense network that count, on the images on which choices are compared."""

from collections.abc import Iterator

from torch import Tensor, nn

from norton_det.calibration.lockstep import Run
from norton_det.models.tasks import Images, as_inputs
from norton_det.structure.network import Network

_PIXELS = 8 * 224 * 224  # at a time


class Outputs:
    """What a network computes on images: its features, or all that its parts predict where these are compressed too.

    The heads of a detector predict for boxes that the network itself has chosen, and which stay the same.

    Args:
        network: dense, in evaluation mode; its scope says what is compressed.
        images: without labels, as the network takes them.
        seed: of the boxes that are drawn.
    """

    def __init__(self, network: Network, images: Images, seed: int) -> None:
        self.images, self._task = as_inputs(images, network.module), network.architecture.task
        whole = not network.architecture.within and self._task.runs_in_parts(network.module)
        self._regions = self._task.regions_of(network.module, self.images, seed=seed) if whole else None

    def __len__(self) -> int:
        return len(self.images)

    def parts(self) -> Iterator[slice]:
        """Yield a few of the images after others."""
        count = max(1, _PIXELS // max(image[0].numel() for image in self.images))
        for start in range(0, len(self), count):
            yield slice(start, start + count)

    def of(self, net: nn.Module, part: slice, images: Images | None = None) -> list[list[Tensor]]:
        """Return the outputs for some of the images, by kind: the features, or the RPN's and the heads'.

        Args:
            net: the network.
            part: which of the images.
            images: the same in other tensors, whose gradient is asked for; None: as they are.
        """
        regions = None if self._regions is None else self._regions.of(part)
        outputs = self._task.outputs_of(net, self.images[part] if images is None else images, regions)
        if len(outputs) > 1:
            del outputs["features"]  # what becomes of them is in the others
        return list(outputs.values())

    def run(self, part: slice) -> Run:
        """Return what runs a network on some of the images."""
        return lambda net: self.of(net, part)
