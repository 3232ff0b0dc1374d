"""Which batch norms are folded, and what is left where the network fails."""

from typing import Any

import pytest
import torch
from statistics_of_norms import with_statistics
from torch import Tensor, nn

from norton_det.deployment.autotune import calls_of
from norton_det.deployment.fold_batch_norm import fold_norms, fold_structure
from norton_det.errors import UsageError


class Shared(nn.Module):
    """A norm that is not alone in looking at the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Twice(nn.Module):
    """A convolution that runs twice, with a norm after the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))


@pytest.mark.parametrize("kind", [Shared, Twice])
def test_what_cannot_be_folded_is_left(kind: type[nn.Module]) -> None:
    net: Any = with_statistics(kind())
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = net(x)
        assert fold_norms(net, (x,)) == {}
        torch.testing.assert_close(net(x), expected)


def test_a_norm_is_folded_into_the_layer_before_it() -> None:
    net = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        expected = net(x)
        assert fold_norms(net, (x,)) == {"1": "0"}
        assert isinstance(net[1], nn.Identity)
        torch.testing.assert_close(net(x), expected)
    again = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    fold_structure(again, {"1": "0"})
    assert {name: t.shape for name, t in again.state_dict().items()} == {
        name: t.shape for name, t in net.state_dict().items()
    }
    with pytest.raises(UsageError, match="norm '2' cannot be folded into '0'"):
        fold_structure(net, {"2": "0"})


class Failing(nn.Module):
    """Raises after its layers have run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(self.conv(x))
        raise RuntimeError("out of memory")


def test_no_hook_stays_where_the_network_fails() -> None:
    net, x = Failing().eval(), torch.randn(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        calls_of(net, (x,), lambda layer: True)
    with pytest.raises(RuntimeError, match="out of memory"):
        fold_norms(net, (x,))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
