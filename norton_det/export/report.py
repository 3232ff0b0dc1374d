"""The report of an export."""

from typing import Any

from norton_det.errors import printable
from norton_det.export.contract import Contract
from norton_det.export.differences import TOLERANCES
from norton_det.export.formats import FORMATS
from norton_det.export.network import Exported


def to_dict(done: Exported) -> dict[str, Any]:
    """Return the report as JSON values."""
    contract = done.contract
    return {
        "output": str(done.path),
        "format": done.format,
        "bytes": done.path.stat().st_size,
        "arch": contract.spec.arch if contract.spec else None,
        "outputs": list(contract.outputs),
        "dynamic": list(contract.dynamic),
        "changes": list(contract.changes),
        "check": done.check.to_dict(),
    }


def to_text(done: Exported) -> str:
    """Return the report in words."""
    contract, check = done.contract, done.check
    megabytes = done.path.stat().st_size / 1e6
    name = f": {contract.spec.arch}" if contract.spec else ""
    shape = _shape(contract)
    lines = [f"{printable(str(done.path))}{name}, {FORMATS[done.format].title}, {megabytes:.1f} MB"]
    lines.append(f"{shape} -> {', '.join(contract.outputs)}")
    lines += [f"for the export: {', '.join(contract.changes)}"] if contract.changes else []
    found = check.differences
    sizes = ", ".join(f"{height}x{width}" for height, width in check.sizes[:_SIZES])
    more = ", ..." if len(check.sizes) > _SIZES else ""
    lines.append(f"compared: {found.images} images of {len(check.sizes)} sizes ({sizes}{more})")
    if contract.is_detector:
        lines.append(f"{found.detections} detections above {found.threshold:g}, all with their labels")
        lines.append(f"an image without any detection ({check.without_detection}): none")
    lines += [f"{name} differ by at most {value:.1e}{_units(name)}" for name, value in found.figures().items()]
    return "\n".join(lines)


_SIZES = 4


def _shape(contract: Contract) -> str:
    batch, *image = contract.shape
    if contract.is_detector and batch == "batch":
        return f"a list of images ({', '.join(map(str, image))})"
    return f"images ({', '.join(map(str, contract.shape))})"


def _units(name: str) -> str:
    units = {"outputs": " of the largest value", "boxes": " px", "keypoints": " px"}
    units |= dict.fromkeys(("mask pixels", "mask pixels off the edge", "keypoint ties"), " of all")
    return f"{units.get(name, '')} (limit {TOLERANCES[name]:g})"
