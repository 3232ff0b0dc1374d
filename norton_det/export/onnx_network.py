"""``norton_det.load_onnx``: an exported file as a network, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton_det.errors import DataError, UsageError, one_line
from norton_det.export.contract import INPUT, Contract
from norton_det.export.onnx_graph import import_onnx, open_session
from norton_det.models.detector_calls import LOGITS
from norton_det.models.tasks import Images
from norton_det.spec import Spec
from norton_det.storage import is_file


class OnnxNetwork(nn.Module):
    """An ONNX file of ``norton-det export``, called as the network that it was made of. It is run by onnxruntime.

    Args:
        path: the file.
        providers: what runs it, in onnxruntime's words.

    Attributes:
        session: onnxruntime's session, for what is not offered here.
        contract: what the file says about itself.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        super().__init__()
        self.session = _open(path, providers)
        self.contract = Contract.from_metadata(self.session.get_modelmeta().custom_metadata_map, path)
        self.eval()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes by label; empty where they are not known."""
        return self.contract.class_names

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """The names of the keypoints; empty where there are none or they are not known."""
        return self.contract.keypoint_names

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a detector predicts, in COCO's words: "bbox", and "segm" or "keypoints"; empty: no detector."""
        further = {"masks": "segm", "keypoints": "keypoints"}
        found = ("bbox", *(kind for output, kind in further.items() if output in self.contract.outputs))
        return found if self.contract.is_detector else ()

    @property
    def spec(self) -> Spec | None:
        """The spec of the network; None where it has none."""
        return self.contract.spec

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to images before, and what the network does itself: mean, standard deviation, sizes."""
        return dict(self.contract.preprocessing)

    @torch.no_grad()
    def forward(self, images: Images) -> Any:
        """Run the network: a list of images for a detector, else a batch (N, 3, H, W); outputs are on the CPU."""
        if self.contract.is_detector:
            return [self._run(image[None]) for image in images]
        if not isinstance(images, Tensor):
            raise UsageError(f"images is a {type(images).__name__}; expected a tensor (N, 3, H, W)")
        one_by_one = "batch" not in self.contract.dynamic and len(images) > 1
        parts = [self._run(part) for part in (images.split(1) if one_by_one else [images])]
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return outputs[LOGITS] if self.contract.kind == LOGITS else outputs

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Run the graph on images (N, 3, H, W)."""
        self._check(images)
        array = images.detach().to("cpu", torch.float32).numpy()
        try:
            found = self.session.run([*self.contract.names.values()], {INPUT: array})
        except Exception as error:  # onnxruntime's errors have no common class; of an image that it scales to nothing
            raise DataError(f"images {tuple(images.shape)}: cannot be computed: {one_line(error)}") from None
        return {name: torch.from_numpy(values) for name, values in zip(self.contract.outputs, found, strict=True)}

    def _check(self, images: Tensor) -> None:
        expected = [*self.session.get_inputs()[0].shape]
        wrong = images.ndim != 4 or any(
            isinstance(side, int) and side != given for side, given in zip(expected, images.shape, strict=True)
        )
        if wrong:
            shape = ", ".join(map(str, expected))
            raise UsageError(f"images are {tuple(images.shape)}; expected ({shape}), for which the file was written")


def load_onnx(path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> OnnxNetwork:
    """Return the network in an ONNX file of ``norton-det export`` or :func:`norton_det.export_network`.

    It takes images as the network did of which the file was made: a detector a list of images (3, H, W), 0 to 1, of any
    sizes, a classifier or a backbone a batch (N, 3, H, W). It returns the same kind of outputs, on the CPU. It knows
    its ``class_names``, ``keypoint_names``, ``preprocessing`` and ``spec``; ``norton_det.predict`` takes it.

    Args:
        path: the file.
        providers: of onnxruntime, in order of preference; "CUDAExecutionProvider" needs onnxruntime-gpu. As many
            threads are used as torch uses.

    Raises:
        DataError: the file is missing or damaged, or was not written by this package.
        UsageError: onnxruntime is not installed, or has no such provider.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from torch import nn
        >>> import norton_det as nd
        >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = nd.export_network(net, f"{folder}/net.onnx", class_names=["cat", "dog"], image_size=(32, 32))
        ...     again = nd.load_onnx(f"{folder}/net.onnx")
        >>> again(torch.rand(5, 3, 40, 48)).shape, again.class_names
        (torch.Size([5, 2]), ('cat', 'dog'))
    """
    return OnnxNetwork(path, providers)


def _open(path: str | Path, providers: Sequence[str]) -> Any:
    _, onnxruntime = import_onnx()
    if not is_file(path):
        raise DataError(f"{path}: no such file; expected one of norton-det export")
    known = onnxruntime.get_available_providers()
    if unknown := [provider for provider in providers if provider not in known]:
        raise UsageError(f"provider {unknown[0]!r} is not available; expected some of: {', '.join(known)}")
    try:
        return open_session(str(path), providers)
    except Exception as error:  # onnxruntime's errors have no common class
        raise DataError(f"{path}: cannot be read as ONNX: {str(error).splitlines()[0]}") from None
