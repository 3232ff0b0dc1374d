"""Training and evaluation of classifiers: the loops, the moving average, the schedules."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler

import norton_det as nd
from norton_det.channels.narrow import ChannelMap
from norton_det.errors import UsageError
from norton_det.evaluation.accuracy import evaluate
from norton_det.training import NonFiniteLossError, TrainingState, TrainOptions, train_one_epoch
from norton_det.training.classification import Classification
from norton_det.training.ema import adjusted_decay, moving_average
from norton_det.training.optim import make_optimizer, make_schedule

CPU = torch.device("cpu")


def state_of(net: nn.Module, lr: float = 0.1, **others: object) -> TrainingState:
    optimizer = SGD(net.parameters(), lr=lr)
    schedule = make_schedule(optimizer, "steplr", epochs=9)
    return TrainingState(net, nd.Spec("resnet56_cifar", 3), optimizer, schedule, **others)


def task(**options: float) -> Classification:
    return Classification(lambda epoch, start: [], lambda: [], CPU, 3, **options)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 3, 2, 2), torch.randint(3, (5,))) for _ in range(count)]


class Answers(nn.Module):
    """Logits that are the image itself."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_evaluate_counts_what_is_right() -> None:
    logits = torch.randn(23, 8)
    labels = torch.randint(8, (23,))
    result = evaluate(Answers(), list(zip(logits.split(5), labels.split(5), strict=True)), CPU)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)  # how many classes come before the right one
    assert (result.images, result.correct1, result.correct5) == (23, int((ranks < 1).sum()), int((ranks < 5).sum()))
    assert result.top1 == pytest.approx(100 * result.correct1 / 23)
    few = evaluate(Answers(), [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))], CPU)
    assert few.top5 == 100, "with fewer than five classes all are among the first five"


def test_an_epoch_of_plain_sgd_is_what_it_says() -> None:
    net, data = linear(), batches(4)
    reference = linear()
    reference.load_state_dict(net.state_dict())
    state = state_of(net)
    assert train_one_epoch(net, state, data, task(label_smoothing=0.1), TrainOptions())
    losses = []
    for images, labels in data:
        target = nn.functional.one_hot(labels, 3) * 0.9 + 0.1 / 3
        loss = -(target * reference(images).log_softmax(1)).sum(1).mean()
        reference.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for parameter in reference.parameters():
            parameter.data -= 0.1 * parameter.grad
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert state.step == 4
    assert state.loss == pytest.approx(sum(losses))


def test_stopping_and_going_on_is_one_epoch() -> None:
    mixing, options = task(mixup_alpha=0.4, cutmix_alpha=0.4), TrainOptions(clip_grad_norm=0.5)
    net, data = linear(), batches(4)
    other = linear()
    other.load_state_dict(net.state_dict())
    assert train_one_epoch(net, state_of(net), data, mixing, options)
    state = state_of(other)
    assert not train_one_epoch(other, state, data, mixing, options, stop=lambda: state.step == 1)
    assert state.step == 2
    torch.manual_seed(1234)
    assert train_one_epoch(other, state, data[2:], mixing, options)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_clipping_bounds_the_step() -> None:
    net = linear()
    before = [p.detach().clone() for p in net.parameters()]
    train_one_epoch(net, state_of(net, lr=1), batches(1), task(), TrainOptions(clip_grad_norm=0.01))
    moved = torch.cat([(a - b).flatten() for a, b in zip(net.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    net, data = linear(), batches(2)
    data[1][0][0] = float("inf")
    state = state_of(net)
    train_one_epoch(net, state, data[:1], task(), TrainOptions())
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(NonFiniteLossError, match="loss is nan in batch 1 of epoch 0"):
        train_one_epoch(net, state, data[1:], task(), TrainOptions())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_the_average_follows_its_formula_and_copies_integers() -> None:
    net = nn.Sequential(ChannelMap([5, 2, -1]), nn.BatchNorm2d(3))
    average = moving_average(net, decay=0.9)
    expected = net[1].weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            net[1].weight.copy_(torch.randn(3))
            net[1].running_mean.copy_(torch.randn(3))
            net[1].num_batches_tracked += 1
        average.update_parameters(net)
        expected = net[1].weight.detach().clone() if step == 0 else 0.9 * expected + 0.1 * net[1].weight.detach()
    assert torch.allclose(average.module[1].weight, expected, atol=1e-6)
    assert not torch.equal(average.module[1].running_mean, net[1].running_mean)
    assert average.module[0].index.tolist() == [5, 2, -1]
    assert average.module[1].num_batches_tracked == 5


def test_the_adjusted_decay_forgets_alike_per_epoch() -> None:
    # 1000 images an epoch: with 10 or 40 of them between updates, what is left after an epoch is about the same.
    few, many = (adjusted_decay(0.99999, images=images, epochs=4) ** (1000 / images) for images in (10, 40))
    assert few == pytest.approx(many, rel=1e-4)
    assert adjusted_decay(0.5, images=100, epochs=1) == 0


def test_the_average_is_a_copy_during_the_warm_up() -> None:
    net = linear()
    average = moving_average(net, decay=0.9)
    state = state_of(net, ema=average)
    options = TrainOptions(ema_steps=1, ema_warmup_epochs=1)
    train_one_epoch(net, state, batches(3), task(), options)
    assert torch.equal(average.module[1].weight, net[1].weight)
    state.epoch, state.step = 0, 0
    train_one_epoch(net, state, batches(3), task(), options)
    assert not torch.equal(average.module[1].weight, net[1].weight)


def rates(schedule: LRScheduler, count: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["steplr", "multisteplr", "exponentiallr", "cosineannealinglr"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_schedule_by_iterations_meets_the_one_by_epochs(name: str, warmup: int) -> None:
    def schedule(per_epoch: int) -> LRScheduler:
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        options = {"steps": [4, 6], "step_size": 3, "gamma": 0.3, "lr_min": 0.01, "warmup_method": "linear"}
        return make_schedule(optimizer, name, epochs=8, warmup_epochs=warmup, per_epoch=per_epoch, **options)

    by_epoch, by_iteration = rates(schedule(1), 8), rates(schedule(5), 40)
    assert by_iteration[::5] == pytest.approx(by_epoch)
    assert by_epoch[warmup] == pytest.approx(1)
    assert by_epoch[7] < 0.4
    if warmup:
        assert by_epoch[:2] == pytest.approx([0.01, 0.505])


def test_weight_decay_by_kind() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    optimizer = make_optimizer(
        net, "rmsprop", lr=1, momentum=0, weight_decay=0.1, norm_weight_decay=0.2, bias_weight_decay=0.3
    )
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    (conv, norm) = net
    assert [decays[id(p)] for p in (conv.weight, conv.bias, norm.weight, norm.bias)] == [0.1, 0.3, 0.2, 0.3]
    with pytest.raises(UsageError, match="lr_warmup_epochs is 3; expected at least 0 and less than epochs"):
        make_schedule(optimizer, "steplr", epochs=3, warmup_epochs=3)
    with pytest.raises(UsageError, match="unknown lr_warmup_method 'x'"):
        make_schedule(optimizer, "steplr", epochs=3, warmup_epochs=1, warmup_method="x")
