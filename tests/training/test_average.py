import pytest
import torch
from torch import nn

from mvar.training.optim import WeightAverage

from .runs import Killed, kill, same_bits


@pytest.fixture
def module():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    return network


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def walk(module):
    """A step of training."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_the_moving_average_with_a_warm_up(module, decay):
    average = WeightAverage(module, decay)
    expected = module[2].weight.tolist()
    for step in range(40):
        walk(module)
        average.update(step)
        past = min(decay, (1 + step) / (10 + step))
        live = module[2].weight.tolist()
        expected = [
            [past * a + (1 - past) * b for a, b in zip(*rows, strict=True)] for rows in zip(expected, live, strict=True)
        ]
    torch.testing.assert_close(average.state()["2.weight"], torch.tensor(expected))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert average.state().keys() == trained == {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}


def test_applied_puts_it_in_and_takes_it_out_again(module):
    average = WeightAverage(module, 0.9)
    walk(module)
    average.update(0)
    live, averages = state(module), {name: t.clone() for name, t in average.state().items()}
    places = [p.data_ptr() for p in module.parameters()]
    with average.applied():
        assert same_bits(state(module), live | averages)
        assert not same_bits(state(module), live)
    assert same_bits(state(module), live)
    with pytest.raises(Killed), average.applied():  # whatever goes wrong inside
        kill(None)
    assert same_bits(state(module), live)
    assert same_bits(average.state(), averages)
    assert places == [p.data_ptr() for p in module.parameters()]  # the optimizer still knows them

    average.take()
    assert same_bits(state(module), live | averages)
    average.update(1)
    assert same_bits(state(module), live | averages)


def test_moved_rows_forget_their_past(module):
    average = WeightAverage(module, 0.9)
    walk(module)
    before = average.state()["2.weight"].clone()
    average.restart("2.weight", torch.tensor([1]))
    average.restart("0.bias", torch.tensor([1]))  # not trained, so there is no average of it
    average.restart("0.weight", torch.tensor([], dtype=torch.long))
    after = average.state()
    assert torch.equal(after["2.weight"][1], module[2].weight[1])
    assert torch.equal(after["2.weight"][0], before[0])
    assert not torch.equal(after["0.weight"], module[0].weight)


def test_without_decay_the_last_weights_count(module):
    average = WeightAverage(module, 0.0)
    walk(module)
    average.update(0)
    live = state(module)
    average.restart("2.weight", torch.tensor([0]))
    with average.applied():
        assert same_bits(state(module), live)
    average.take()
    assert same_bits(state(module), live)
    assert average.state() == {}
