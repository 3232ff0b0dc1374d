"""Arguments that several commands have: their types, their checks, and groups of them."""

import argparse
from pathlib import Path
from typing import Any

from norton_det import json_text
from norton_det.cli.common import Parser
from norton_det.cli.list_rates import ListRates
from norton_det.cli.numbers import FACTOR, SIDE, Number, NumberError, whole
from norton_det.config import COMPRESSION, names_config, ranks_by_layer, read_config
from norton_det.cost.budget import CONVENTIONS, Budget
from norton_det.decompositions import DECOMPOSITIONS, IMPLEMENTATIONS
from norton_det.errors import DataError, UsageError, shown
from norton_det.files import check_name, check_writable
from norton_det.models import ARCHITECTURES
from norton_det.notation import parse_ranks
from norton_det.pruning import CRITERIA
from norton_det.runtime.device import default_device, usable_cores
from norton_det.spec import Rank

Group = argparse._ArgumentGroup
SCOPES = ("backbone", "detector")
"""Of the detectors; classifiers have none."""
_DIGITS = 10  # more than any rank has
CONFIGURATION = "RANK[:RATES]|CONFIG"
"""How a compression configuration is written on the command line; see :func:`parse_configuration`."""


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that an argument is; a ``type`` for ``add_argument``."""
    try:
        return json_text.json_object(text, shown(text))
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pair_of_names(text: str) -> list[str]:
    """Return the two names that an argument "A,B" is; a ``type`` for ``add_argument``."""
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of names; expected A,B")
    return names


def rate_or_auto(text: str) -> float | str:
    """Return the learning rate that an argument is, or "auto"; a ``type`` for ``add_argument``."""
    try:
        return text if text == "auto" else FACTOR(text)
    except NumberError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {error} nor auto") from None


def _is_rank(text: str) -> bool:
    return text.isdecimal() and len(text) < _DIGITS


def rank_or_ranks(text: str) -> int | str | dict[str, Rank]:
    """Return the rank that an argument is, ranks like [2]*9+[3]*18 as text, or by layer; a ``type``."""
    if _is_rank(text):
        return int(text)
    if text.startswith("{"):
        try:
            return ranks_by_layer(json_object(text), "rank")
        except DataError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if not text.startswith("["):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no rank; expected a number, or one for each layer as [2]*9+[3]*18, or by name as JSON"
        )
    try:
        parse_ranks(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def method_or_methods(text: str) -> str | dict[str, Any]:
    """Return the name of a decomposition that an argument is, or names by layer; a ``type`` for ``add_argument``."""
    return json_object(text) if text.startswith("{") else text


def parse_configuration(text: str, arch: str) -> dict[str, Any]:
    """Return the options of :func:`norton_det.compress` for a configuration: "2", "7:[0.]+[0.18]*29" or a config.

    Args:
        text: rank, or rank and pruning rates (rank 0 decomposes nothing); or the file or name of a config.
        arch: the architecture that is compressed.

    Raises:
        DataError: the config is missing or damaged.
        UsageError: the text is none of these, or the config is one of another architecture.
    """
    if names_config(text):
        config = read_config(text)
        if config.arch != arch:
            raise UsageError(f"configuration {text}: is one of {config.arch}; expected one of {arch}")
        return {name: getattr(config, name) for name in COMPRESSION}
    rank, _, rates = text.partition(":")
    if not (_is_rank(rank) or rank.startswith("[")):
        raise UsageError(
            f"configuration {text!r}: expected a rank, a rank and rates as 7:[0.]+[0.18]*29, or a config "
            "(.yaml file or published row)"
        )
    return {"rank": int(rank) or None if _is_rank(rank) else rank, "rates": rates or None}


def check_output(path: str, *suffixes: str, flag: str = "--output") -> None:
    """Check that the file of an argument can be written: a name with one of the suffixes in a folder that exists.

    Raises:
        UsageError: it cannot, for it has another suffix or no folder.
        OSError: the folder cannot be written to, or the name cannot be that of a file.
    """
    if suffixes and Path(path).suffix not in suffixes:
        raise UsageError(f"{flag} {path}: expected a name that ends with {' or '.join(suffixes)}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"{flag} {path}: folder {Path(path).parent} does not exist")
    check_writable(Path(path).parent)
    check_name(path)


def add_compression(parser: Parser) -> Group:
    """Add the arguments that say how a network is compressed; ``-dr`` and ``-cpr`` are the original project's."""
    group = parser.add_argument_group("compression")
    group.add_argument(
        "-dr",
        "--rank",
        type=rank_or_ranks,
        help='of the decomposed layers, or of each as "[0]+[2]*9+[3]*18", 0: dense; or by name as JSON, where * stands '
        "for anything (default: nothing is decomposed)",
    )
    group.add_argument(
        "-cpr",
        "--rates",
        "--compress_rate",
        help='pruning rates, as "[0.]+[0.1]*2+[0.4]*5"; see --list-rates (default: nothing is pruned)',
    )
    text = "print which number of --rates and --rank is which group and layer of an architecture, and stop"
    group.add_argument("--list-rates", action=ListRates, choices=[*ARCHITECTURES], metavar="ARCH", help=text)
    add_methods(group)
    add_scope(group)
    return group


def add_scope(group: Group) -> None:
    """Add ``--scope`` and ``--round-to``."""
    text = "part of a detector that is compressed, and that rank and rates are of (default: backbone, as published)"
    group.add_argument("--scope", choices=SCOPES, metavar="NAME", help=text)
    text = "widths, and ranks that are numbers of channels, are rounded down to multiples"
    group.add_argument("--round-to", default=1, type=whole(1), metavar="N", help=text)


def add_budget(parser: Parser) -> Group:
    """Add the limits of what the compressed network costs."""
    group = parser.add_argument_group("budget")
    add = group.add_argument

    def limit(name: str, letter: str, text: str) -> None:
        add(f"--target-{name}", type=Number(0, 1e18, above=True), metavar=letter, help=f"{text} (default: no limit)")

    limit("macs", "M", "limit of multiply-accumulates for one image")
    limit("params", "P", "limit of parameters")
    limit("activation-memory", "B", "limit of the bytes that a layer needs at once for its inputs and outputs")
    limit("latency-ms", "T", "limit of milliseconds, deployed, on this machine")
    limit("speedup", "X", "the same, as a factor to the dense network's, deployed")
    add("--convention", default="plain", choices=[*CONVENTIONS], metavar="NAME", help="how MACs are counted")
    return group


def budget_of(args: argparse.Namespace) -> Budget:
    """Return the limits of :func:`add_budget`."""
    return Budget(
        args.target_macs,
        args.target_params,
        args.convention,
        args.target_activation_memory,
        args.target_latency_ms,
        args.target_speedup,
    )


def add_methods(group: Group) -> None:
    """Add ``--criterion`` and ``--decomposition``."""
    add = group.add_argument
    add("--criterion", default="pabs", choices=[*CRITERIA], metavar="NAME", help="how filters to remove are chosen")
    add(
        "--decomposition",
        type=method_or_methods,
        choices=[*DECOMPOSITIONS],
        metavar="NAME",
        help="of the layers: cp and tucker2 of k x k convolutions, svd of linear layers and 1x1 convolutions; or by "
        "name as JSON (default: cp; to keep limits with the scope detector, one of the three for each layer)",
    )


def add_implementation(group: Group, *more: str) -> None:
    """Add ``--implementation``; ``more`` are choices beside the implementations."""
    group.add_argument(
        "--implementation",
        "--form",
        dest="implementation",
        default="factored",
        choices=[*IMPLEMENTATIONS, *more],
        metavar="NAME",
        help="how decomposed layers are computed, with equal results",
    )


def add_device(group: Group) -> None:
    """Add ``--device``: the rule of all commands is a GPU if there is one, else the CPU."""
    group.add_argument("--device", default=default_device(), help="cuda or cpu")


def add_image_size(group: Group) -> None:
    """Add ``--min-size`` and ``--max-size`` of a detector that is read from a file."""
    add = group.add_argument
    add("--min-size", type=SIDE, metavar="S", help="length to which the shorter side is scaled (default: as trained)")
    add("--max-size", type=SIDE, metavar="S", help="limit of the longer side (default: as trained)")


def add_max_detections(group: Group) -> None:
    """Add ``--max-detections`` of an evaluation."""
    text = "of a class in an image that are evaluated (default: COCO's, 100 of boxes and masks, 20 of keypoints)"
    group.add_argument("--max-detections", type=whole(1), metavar="N", help=text)


def add_workers(group: Group) -> None:
    """Add ``--workers``: 4 as in torchvision's scripts, but no more than there are cores."""
    workers = min(4, usable_cores())
    group.add_argument(
        "-j", "--workers", default=workers, type=whole(0, 1024), metavar="N", help="processes that load data"
    )
