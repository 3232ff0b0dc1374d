"""Changes of a file: damage, headers that lie, and lies of an author, who computes the checksum again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.faults.files.bases import Base, Read, header_of, rest_of, says
from benchmarks.faults.values import JUNK, changed, dumped
from norton_det.models.tensor_files import DEPLOYMENT_KEY, SHA256_KEY, SPEC_KEY, sha256_of

_LENGTH = 8  # bytes that hold the length of a safetensors header


@dataclass(frozen=True)
class Mutated:
    """A changed file.

    Attributes:
        path: the file.
        what: was changed.
        must: "load" as it says, or be "same" as before or refused, or say something ("say") or be refused, or "refuse".
        says: what it says.
    """

    path: Path
    what: str
    must: Literal["load", "same", "say", "refuse"]
    says: Callable[[], Read]


Change = Callable[[Base, Random, Path, Sequence[Base]], Mutated]


@dataclass(frozen=True)
class Kind:
    """A kind of change, and the files that it is for."""

    change: Change
    suits: Callable[[Base], bool] = lambda base: True


def _damage(edit: Callable[[bytearray, Random, Base], object]) -> Kind:
    def change(base: Base, random: Random, folder: Path, bases: Sequence[Base]) -> Mutated:
        content = bytearray(base.path.read_bytes())
        what = edit(content, random, base)
        path = folder / base.path.name
        path.write_bytes(content)
        return Mutated(path, str(what), "same", lambda: base.original)

    return Kind(change)


def _cut(content: bytearray, random: Random, base: Base) -> str:
    end = random.choice([0, 1, 7, 8, 9, random.randrange(len(content)), len(content) - 1])
    del content[end:]
    return f"cut to {end} bytes"


def _flip(in_header: bool) -> Callable[[bytearray, Random, Base], str]:
    def edit(content: bytearray, random: Random, base: Base) -> str:
        if base.is_pickled:  # its directory is at the end, the pickle at the beginning
            header = [*range(2000), *range(len(content) - 8000, len(content))]
            place = random.choice(header) if in_header else random.randrange(2000, len(content) - 8000)
        else:
            end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
            place = random.randrange(end) if in_header else random.randrange(end, len(content))
        content[place] ^= 1 << random.randrange(8)
        return f"bit of byte {place}"

    return edit


def _block(edit: str) -> Callable[[bytearray, Random, Base], str]:
    def change(content: bytearray, random: Random, base: Base) -> str:
        size = random.choice([1, 16, 512, 4096])
        start, other = (random.randrange(max(1, len(content) - size)) for _ in range(2))
        part = content[start : start + size]
        if edit == "zeros":
            content[start : start + size] = bytes(len(part))
        elif edit == "removed":
            del content[start : start + size]
        elif edit == "inserted":
            content[start:start] = random.randbytes(size)
        elif edit == "appended":
            content.extend(random.randbytes(size))
        elif edit == "random":
            content[start : start + size] = random.randbytes(len(part))
        else:
            content[start : start + size], content[other : other + size] = content[other : other + size], part
        return f"{edit}: {size} bytes at {start}"

    return change


def _header_lie(base: Base, random: Random, folder: Path, bases: Sequence[Base]) -> Mutated:
    """Change the header without computing the checksum again."""
    content = base.path.read_bytes()
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header = json.loads(content[_LENGTH:end])
    if random.random() < 0.3:
        length = random.choice([0, 1, end, 2**20, 2**31, 2**62, len(content)])
        path = folder / base.path.name
        path.write_bytes(length.to_bytes(_LENGTH, "little") + content[_LENGTH:])
        return Mutated(path, f"header of {length} bytes", "same", lambda: base.original)
    name = random.choice([name for name in header if name != "__metadata__"])
    kind = random.choice(["dtype", "shape", "offsets", "rename", "remove", "metadata", "junk"])
    entry = header[name]
    if kind == "dtype":
        entry["dtype"] = random.choice(["F64", "F16", "I32", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X9", 3])
    elif kind == "shape":
        shapes = [[], [0], [1], [-1], [10**9], [2**62, 4], [10**9, 0], entry["shape"][::-1], [1, *entry["shape"]]]
        entry["shape"] = random.choice(shapes)
    elif kind == "offsets":
        first, last = entry["data_offsets"]
        pairs = [[last, first], [0, last], [first + 1, last + 1], [first, 2**60], [-1, last], [first, first]]
        entry["data_offsets"] = random.choice(pairs)
    elif kind == "rename":
        header[random.choice(["other", "", "\x00", "__metadata__x", name + "2"])] = header.pop(name)
    elif kind == "remove":
        del header[name]
    elif kind == "metadata":
        key = random.choice([*header["__metadata__"]])
        header["__metadata__"][key] = random.choice(["", "{}", "[]", "null", "x", header["__metadata__"][key] + " "])
    else:
        header, name = changed(header, random)
    path = folder / base.path.name
    text = dumped(header).encode()
    path.write_bytes(len(text).to_bytes(_LENGTH, "little") + text + content[end:])
    return Mutated(path, f"{kind} of {name}", "same", lambda: base.original)


def _lie(edit: Callable[[dict[str, Any], dict[str, Tensor], Random, Sequence[Base]], str], must: Any = "say") -> Change:
    """Change texts and tensors of a safetensors file, and compute its checksum."""

    def change(base: Base, random: Random, folder: Path, bases: Sequence[Base]) -> Mutated:
        header, tensors = header_of(base.path), load_file(base.path)
        what = edit(header, tensors, random, bases)
        header[SHA256_KEY] = sha256_of(tensors, header)
        path = folder / base.path.name
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)

        def said() -> Read:
            return says(header[SPEC_KEY], tensors, json.loads(header.get(DEPLOYMENT_KEY, "null")))

        return Mutated(path, what, must, said)

    return change


def _text_lie(key: str) -> Change:
    def edit(header: dict[str, Any], tensors: dict[str, Tensor], random: Random, bases: Sequence[Base]) -> str:
        values, where = changed(json.loads(header[key]), random)
        header[key] = dumped(values)
        return f"{where} is {str(values.get(where.partition('.')[0]))[:60]!r}"

    return _lie(edit)


def _huge(header: dict[str, Any], tensors: dict[str, Tensor], random: Random, bases: Sequence[Base]) -> str:
    """Ask for much memory in few bytes."""
    spec = json.loads(header[SPEC_KEY])
    number = random.choice([10**5, 10**7, 10**9, 2**31 - 1])
    place = random.choice(["num_classes", "rank", "anchor_sizes", "min_size", "num_keypoints", "output_size", "ratios"])
    if place == "num_classes":
        spec["num_classes"], spec["classes"] = number, []
    elif place == "rank":
        spec["decompositions"] = {random.choice(["conv1", "layer1.0.conv1", "features.3"]): {"method": "cp"}}
        next(iter(spec["decompositions"].values()))["rank"] = number
    elif place == "anchor_sizes":
        spec["options"]["anchor_sizes"] = [list(range(1, 3000))] * 5
    elif place == "output_size":
        spec["attributes"]["roi_heads.box_roi_pool.output_size"] = [number, number]
    elif place == "ratios":
        sizes = {"sizes": [list(range(1, 9999))] * 5, "aspect_ratios": [list(range(1, 9999))] * 5}
        spec["attributes"] |= {f"rpn.anchor_generator.{name}": value for name, value in sizes.items()}
    else:
        spec["options"][place] = number
    header[SPEC_KEY] = json.dumps(spec)
    return f"{place} {number:.0e}"


def _tensor_lie(header: dict[str, Any], tensors: dict[str, Tensor], random: Random, bases: Sequence[Base]) -> str:
    """Change one tensor so that no network can have it."""
    name = random.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    tensor = tensors[name]
    variances = [name for name in tensors if name.endswith("running_var")]
    kinds = ["NaN", "inf", "int", "complex", "bool", "missing", "more", "transposed", "empty", "float8"]
    kind = random.choice(kinds + ["negative"] * bool(variances))
    if kind in ("NaN", "inf"):
        tensors[name] = tensor.clone()
        tensors[name].view(-1)[random.randrange(tensor.numel())] = float(kind)
    elif kind in ("int", "complex", "bool", "float8"):
        dtype = {"int": torch.int32, "complex": torch.complex64, "bool": torch.bool, "float8": torch.float8_e4m3fn}
        tensors[name] = tensor.to(dtype[kind])
    elif kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors[f"{name}.more"] = tensor.clone()
    elif kind == "transposed":
        tensors[name] = tensor.unsqueeze(0)
    elif kind == "empty":
        tensors[name] = tensor[:0]
    else:
        name = random.choice(variances)
        tensors[name] = -1 - tensors[name].abs()
    return f"{kind}: {name}"


def _swap(header: dict[str, Any], tensors: dict[str, Tensor], random: Random, bases: Sequence[Base]) -> str:
    """Give the tensors another architecture, or another file's."""
    spec = json.loads(header[SPEC_KEY])
    own = spec["arch"]
    names = ("resnet56_cifar", "resnet110_cifar", "vgg16_bn_cifar", "densenet40_cifar", "resnet50", "resnet50_backbone")
    more = ("fasterrcnn_cpresnet50_fpn", "maskrcnn_cpresnet50_fpn", "keypointrcnn_cpresnet50_fpn", "no_such_network")
    spec["arch"] = random.choice([name for name in (*names, *more) if name != own])
    if random.random() < 0.5:
        spec = {key: spec[key] for key in ("version", "arch", "num_classes")}
    header[SPEC_KEY] = json.dumps(spec)
    return f"{own} as {spec['arch']}"


def _harmless(header: dict[str, Any], tensors: dict[str, Tensor], random: Random, bases: Sequence[Base]) -> str:
    """Change what a file may say: names, history, values."""
    spec = json.loads(header[SPEC_KEY])
    spec["provenance"] = {"source": random.choice(["here", "there"]), "more": [1, None, {"a": 2.5}]}
    spec["classes"] = [f"class {i}" for i in range(spec["num_classes"])]
    header[SPEC_KEY] = json.dumps(spec, indent=random.choice([None, 1]))
    name = random.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    tensors[name] = tensors[name] * 0.5
    return f"names, {name}"


def _same(base: Base, random: Random, folder: Path, bases: Sequence[Base]) -> Mutated:
    path = folder / base.path.name
    path.write_bytes(base.path.read_bytes())
    return Mutated(path, "nothing", "load", lambda: base.original)


def _checkpoint_lie(base: Base, random: Random, folder: Path, bases: Sequence[Base]) -> Mutated:
    """Change a field of a training checkpoint, and write it again."""
    content = torch.load(base.path, weights_only=True)
    field = random.choice([*content, "model", "optimizer", "args"])
    if isinstance(content[field], dict) and content[field] and random.random() < 0.7:
        content[field], where = changed(dict(content[field]), random)
        field = f"{field}.{where}"
    else:
        content[field] = random.choice([*JUNK[:16], "abc", {}, [], torch.ones(3), torch.zeros(1).expand(10**9)])
    path = folder / base.path.name
    try:
        torch.save(content, path)
    except UnicodeEncodeError:  # half a letter, which no pickle holds
        return _same(base, random, folder, bases)

    def said() -> Read:
        return says(content["spec"], content["model"], rest_of({"iteration": 0, "window": {}, **content}))

    return Mutated(path, field, "say", said)


def _safe(base: Base) -> bool:
    return not base.is_pickled


KINDS: dict[str, Kind] = {
    "control: unchanged": Kind(_same),
    "control: other names and values": Kind(_lie(_harmless, "load"), _safe),
    "cut off": _damage(_cut),
    "a bit of the header": _damage(_flip(True)),
    "a bit of the data": _damage(_flip(False)),
    **{f"block {edit}": _damage(_block(edit)) for edit in ("zeros", "removed", "inserted", "random", "swapped")},
    "bytes appended": _damage(_block("appended")),
    "header lies": Kind(_header_lie, _safe),
    "lie: spec": Kind(_text_lie(SPEC_KEY), _safe),
    "lie: spec, more": Kind(_text_lie(SPEC_KEY), _safe),
    "lie: sizes": Kind(_lie(_huge, "refuse"), _safe),
    "lie: record of the deployment": Kind(_text_lie(DEPLOYMENT_KEY), lambda base: base.kind == "deployed"),
    "lie: a tensor": Kind(_lie(_tensor_lie, "refuse"), _safe),
    "lie: another architecture": Kind(_lie(_swap, "refuse"), _safe),
    "lie: a field of a checkpoint": Kind(_checkpoint_lie, lambda base: base.is_pickled),
}
