"""``--list-rates ARCH``: which number of --rates is which channel group, and which number of --rank is which layer."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from norton_det.formatting import table
from norton_det.models import ARCHITECTURES, Architecture
from norton_det.structure.settings import decomposable_layers, dense_network

_NOTATION = """\
"[0.]+[0.1]*2+[0.4]*5" is 0, then 0.1 twice, then 0.4 five times. The rate of a number is the fraction of filters that
is removed: int(width * (1 - rate)) of them are kept. Ranks in this notation are one for each layer, 0 leaves it dense;
"--rank 2" is 2 for all. Layers that write one group (those of a residual stage) keep the same channels."""


class ListRates(argparse.Action):
    """Prints the rates and ranks of an architecture and ends the command, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: object = None) -> None:
        """Print, and end the command."""
        print(list_rates(values))
        parser.exit()


def list_rates(arch: str) -> str:
    """Return what each number of a list of rates, and of a list of ranks, is of.

    Raises:
        UsageError: an unknown architecture.

    Example:
        >>> from norton_det.cli.list_rates import list_rates
        >>> print(list_rates("vgg16_bn_cifar").split("2  ")[0].rstrip())
        vgg16_bn_cifar takes 13 rates:
        <BLANKLINE>
        rate    group          width  layers that write it
        ------  -----------  -------  ----------------------
        1       features.0        64  features.0
    """
    architecture = ARCHITECTURES[arch]
    parts, writers = [], "layers that write it"
    for scope in architecture.scopes or (None,):
        default = " (the default)" if scope == architecture.scope else ""
        where = "" if scope is None else f" with --scope {scope}{default}"
        rates = list(_rates(architecture.scoped(scope)))
        ranks = list(_ranks(arch, scope))
        parts += [
            f"{arch}{where} takes {rates[-1][0]} rates:",
            table(("rate", "group", "width", writers), rates, words=("group", writers)),
            f"{arch}{where} takes {len(ranks)} ranks of cp or tucker2:",
            table(("rank", "layer", "outputs x inputs x kernel"), ranks, words=("layer",)),
        ]
    return "\n\n".join([*parts, _NOTATION])


def _rates(architecture: Architecture) -> Iterator[Sequence[object]]:
    plan = architecture.plan
    for number, entry in enumerate(architecture.rate_order, 1):
        for group in entry.groups:
            first, *others = plan.writers(group)
            yield number, group, plan.widths[group], f"{first} to {others[-1]} ({len(others) + 1})" if others else first


def _ranks(arch: str, scope: str | None) -> Iterator[Sequence[object]]:
    network = dense_network(arch, scope=scope)
    for number, name in enumerate(decomposable_layers(network)[0], 1):
        weight: Any = network.module.get_submodule(name).weight
        yield number, name, " x ".join(map(str, weight.shape))
