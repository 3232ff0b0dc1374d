"""The network that the steps of compression are given, checked once."""

from torch import nn

from norton_det.deployment.record import refuse_deployed
from norton_det.models import ARCHITECTURES
from norton_det.runtime.given import refuse_shared, unwrapped
from norton_det.spec import Spec
from norton_det.structure.describe import described
from norton_det.structure.network import Network


def network_to_compress(net: nn.Module, arch: str | Spec, scope: str | None = None, round_to: int = 1) -> Network:
    """Return a network that is to be compressed with its spec and architecture.

    Args:
        net: dense or compressed; wrappers of torch are taken off.
        arch: registered name of its architecture, or its spec.
        scope: the part of it that is compressed; None is the architecture's default.
        round_to: multiple of the widths and ranks that are chosen.

    Raises:
        UsageError: an unknown scope; the network is of another architecture or spec, or deployed, or two of its
            layers share a module or a tensor.
    """
    net = unwrapped(net)
    refuse_shared(net)
    refuse_deployed(net)
    spec = arch if isinstance(arch, Spec) else None
    return described(net, ARCHITECTURES[spec.arch if spec else str(arch)].scoped(scope).rounding_to(round_to), spec)
