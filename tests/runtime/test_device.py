"""Devices that tensors cannot be put on, or read from, are refused by name."""

from pathlib import Path

import pytest
import torch
from conftest import Refused, tool

from norton_det.errors import UsageError
from norton_det.runtime.device import check_device

KINDS = ("cpu", "cuda", "meta", "mps", "xla", "xpu", "hpu", "mtia", "vulkan", "lazy", "privateuseone", "none", "")


@pytest.mark.filterwarnings("ignore:.*no longer used as device type")
@pytest.mark.parametrize("kind", [*KINDS, "cuda:9999", "\x1b[31m", "a" * 3000])
def test_a_device_is_usable_or_refused(kind: str) -> None:
    try:
        check_device(kind)
    except UsageError as error:
        message = str(error)
        assert kind != "cpu"
        assert message.isprintable()
        assert len(message) < 300
        assert message.endswith("cpu or cuda" if torch.cuda.is_available() else "; expected cpu")
        assert len(kind) > 100 or repr(kind)[1:-1] in message
    else:
        assert torch.ones(1, device=kind).tolist() == [1]


def test_commands_refuse_a_device_without_values(small_net: Path, classes: Path, refused: Refused) -> None:
    words = ["--checkpoint", str(small_net), "--data-path", str(classes), "--device", "meta"]
    refused(lambda: tool("eval_cls").main(words), 2, "device meta: not available here")
