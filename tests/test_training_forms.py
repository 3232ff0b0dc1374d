"""The forms in which networks train: chosen by measuring, equal in all else."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import norton_det as nd
from norton_det.decompositions import CPConv2d, set_forms
from norton_det.errors import UsageError
from norton_det.setting import spec_of_setting
from norton_det.training_forms import set_fastest_forms, use_form


def forms_of(net: nn.Module) -> dict[str, str]:
    return {name: block.form for name, block in net.named_modules() if isinstance(block, CPConv2d)}


def test_the_fastest_form_of_each_block_is_set(caplog: pytest.LogCaptureFixture) -> None:
    net = nd.build(spec_of_setting("vgg16_bn_cifar", 1, "[0.9]*13")).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="norton_det"):  # other tests lower it
        choices = set_fastest_forms(net, torch.randn(2, 3, 32, 32), repeats=1)
    assert len(choices) == 13
    assert all(choice.milliseconds[choice.form] == min(choice.milliseconds.values()) for choice in choices)
    assert forms_of(net) == {choice.name: choice.form for choice in choices}
    assert "forms of decomposed layers: " in caplog.text
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_was_chosen_before_is_set_again(tmp_path: Path) -> None:
    net = nn.Sequential(CPConv2d(3, 4, 3, 1), CPConv2d(4, 4, 3, 1))
    kept = {"0": "merged", "1": "dense"}
    torch.save({"args": {"forms": kept}}, tmp_path / "checkpoint.pth")
    resume = str(tmp_path / "checkpoint.pth")
    assert use_form(net, "auto", lambda: pytest.fail("measured"), resume=resume) == kept
    assert forms_of(net) == kept
    assert use_form(net, "factored", lambda: pytest.fail("measured")) == {}
    assert set(forms_of(net).values()) == {"factored"}
    with pytest.raises(UsageError, match="unknown form 'fast'"):
        use_form(net, "fast", lambda: None)
    with pytest.raises(UsageError, match="form of '2': no such decomposed layer"):
        set_forms(net, {"2": "dense"})
