"""The network in what a user gives: without the wrappers of torch, each layer with tensors of its own."""

import logging

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from norton_det.errors import UsageError

logger = logging.getLogger(__name__)

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the network without the wrapper of torch around it; the log says which was taken off.

    Wrappers are ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and what ``torch.compile`` returns.

    Example:
        >>> from torch import nn
        >>> from norton_det.runtime.given import unwrapped
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    while (inner := _inside(net)) is not None:
        logger.info("the model is a %s: the %s inside is used", type(net).__name__, type(inner).__name__)
        net = inner
    return net


def _inside(net: nn.Module) -> nn.Module | None:
    # What torch.compile returns has its class in a module that is slow to import.
    return net.module if isinstance(net, _WRAPPERS) else net._modules.get("_orig_mod")


def refuse_shared(net: nn.Module) -> None:
    """Check that no two layers share a module or a tensor.

    Raises:
        UsageError: two do; the message names both.

    Example:
        >>> from torch import nn
        >>> from norton_det.runtime.given import refuse_shared
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> net[1].weight = net[0].weight
        >>> refuse_shared(net)
        Traceback (most recent call last):
        norton_det.errors.UsageError: '0.weight' and '1.weight' are one tensor; expected a network ...
    """
    first: dict[object, str] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        address = 0 if tensor.is_meta else tensor.data_ptr()  # 0 where there is no memory
        other = first.setdefault((tensor.device, address) if address else id(tensor), name)
        if other != name:
            layers = [each.rpartition(".")[0] for each in (other, name)]
            one = layers[0] != layers[1] and net.get_submodule(layers[0]) is net.get_submodule(layers[1])
            pair, what = (layers, "module") if one else ([other, name], "tensor")
            raise UsageError(
                f"{pair[0]!r} and {pair[1]!r} are one {what}; expected a network whose layers share nothing: they are "
                "changed one by one"
            )


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has hooks: they see its inputs and outputs, or change them."""
    return any(getattr(module, name) for name in ("_forward_hooks", "_forward_pre_hooks"))
