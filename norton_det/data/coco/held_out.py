"""Division of annotated images into training and validation, for data without a validation set."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from norton_det.errors import DataError, UsageError

logger = logging.getLogger(__name__)

_COPY = ".rf."
"""Before what Roboflow adds to the name of an image in each augmented copy of it."""


@dataclass(frozen=True)
class HeldOut:
    """The part of a data set that is held out for validation, or the rest of it.

    The choice is by a hash of the seed and the file names. It depends neither on ids and order of the images nor on the
    machine, and images that are added later change it little. Augmented copies of an image, as Roboflow writes them,
    stay together.

    Args:
        fraction: of the images that is held out.
        seed: of the choice.
        held_out: this is the part that is held out, not the rest.

    Raises:
        UsageError: the fraction is not between 0 and 1.

    Example:
        >>> from norton_det.data.coco.held_out import HeldOut
        >>> images = [{"id": i, "file_name": f"{i}.png"} for i in range(5)]
        >>> content = {"images": images, "annotations": [], "categories": []}
        >>> train, val = (HeldOut(0.2, 0, held_out).of(content, "data.json") for held_out in (False, True))
        >>> len(train["images"]), len(val["images"])
        (4, 1)
    """

    fraction: float
    seed: int
    held_out: bool

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 < self.fraction < 1:
            raise UsageError(f"val_fraction is {self.fraction}; expected a number between 0 and 1")

    def of(self, content: Mapping[str, Any], name: object) -> dict[str, Any]:
        """Return the content of an annotation file with the images of this part and their annotations.

        Args:
            content: of the file; its entries are complete.
            name: of the file, for messages.

        Raises:
            DataError: a part has no image.
        """
        images = content["images"]
        chosen = self._chosen(images)
        part = [image for image in images if (_source(image) in chosen) == self.held_out]
        if not 0 < len(part) < len(images):
            raise DataError(f"{name}: has {len(images)} images; expected more, to hold out {self.fraction:g} of them")
        if self.held_out:
            text = "%s: %d of %d images are held out for validation (fraction %g, seed %d)"
            logger.info(text, name, len(part), len(images), self.fraction, self.seed)
        others = {image["id"] for image in images} - {image["id"] for image in part}
        annotations = [each for each in content["annotations"] if each["image_id"] not in others]
        return {**content, "images": part, "annotations": annotations}

    def _chosen(self, images: list[dict[str, Any]]) -> set[str]:
        """Return the sources of the images that are held out."""
        counts = Counter(_source(image) for image in images)
        ordered = sorted(counts, key=self._rank)
        before = accumulate((counts[source] for source in ordered), initial=0)
        expected = max(1, round(self.fraction * len(images)))
        return {source for source, count in zip(ordered[:-1], before, strict=False) if count < expected}

    def _rank(self, source: str) -> str:
        return hashlib.sha256(f"{self.seed}:{source}".encode()).hexdigest()


def _source(image: Mapping[str, Any]) -> str:
    """Return the name of what an image is a copy of."""
    return str(image["file_name"]).split(_COPY)[0]
