"""Learning rate, averaged weights, probe and checkpoint against closed forms."""

from __future__ import annotations

import contextlib
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from edgetl.errors import TrainingError
from edgetl.recipe import Finetune
from edgetl.train import checkpoint, optim, schedules
from edgetl.train.probe import logistic_regression

OPTIONS = Finetune(data="", out="", teacher="", weight_decay=0.3)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [schedules.rate_at(step, kind="cosine", total=100, warmup=10, peak=2.0) for step in range(101)]
    assert rates[0] == pytest.approx(2 / 11)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)  # half way of the cosine
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_norms_and_biases_have_no_weight_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, plain = optim.build_optimizer(module.named_parameters(), OPTIONS).param_groups
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 0.3
    assert [p.ndim for p in plain["params"]] == [1, 1, 1] and plain["weight_decay"] == 0


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_one_kernel_for_all_weights_moves_them_as_a_step_of_each_does(layout: torch.memory_format) -> None:
    def trained(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 4, (2, 3)), nn.Flatten(),
                               nn.Linear(4 * 5 * 4, 3)).to(memory_format=layout)  # fmt: skip
        optimizer = optim.build_optimizer(module.named_parameters(), Finetune(data="", out="", teacher=""))
        if not fused:
            assert optimizer.defaults["fused"]
            optimizer = torch.optim.AdamW(optimizer.param_groups, fused=False, foreach=False)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        images = torch.rand(4, 3, 8, 8).to(memory_format=layout)
        for _ in range(5):
            optimizer.zero_grad()
            module(images).square().sum().backward()
            optimizer.step()
        return list(module.parameters())

    for one, other in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_averaged_weights_follow_their_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average = optim.AveragedWeights(module, 0.5)
    expected, value = 0.0, 0.0
    for step in range(1, 30):
        value += 1.0
        module.weight.data.fill_(value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.values["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_averaged_weights_take_batch_norm_along() -> None:
    module = nn.BatchNorm2d(2)
    average = optim.AveragedWeights(module, 0.9)
    module(torch.randn(8, 2, 3, 3))
    average.update()
    assert average.values["num_batches_tracked"].item() == 1
    assert not torch.equal(average.values["running_mean"], torch.zeros(2))


def test_swapped_gives_the_own_weights_back() -> None:
    module = nn.Linear(2, 2)
    own = module.weight.detach().clone()
    with contextlib.contextmanager(optim.swapped)(module, {"weight": torch.ones(2, 2), "bias": torch.ones(2)}):
        assert torch.equal(module.weight, torch.ones(2, 2))
    assert torch.equal(module.weight, own)


def test_logistic_regression_finds_the_closed_form() -> None:
    """Two points at +-1 with a penalty: the margin m = w2 - w1 solves sigmoid(-m) = penalty * m / 2."""
    features, labels, penalty = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 0.2
    weight, bias = logistic_regression(features, labels, 2, penalty)
    margin = float(weight[1, 0] - weight[0, 0])
    assert 1 / (1 + math.exp(margin)) == pytest.approx(penalty * margin / 2, rel=1e-3)
    assert bias.tolist() == pytest.approx([0, 0], abs=1e-4)


def trained_adam(module: nn.Module) -> torch.optim.Optimizer:
    optimizer = optim.build_optimizer(module.named_parameters(), OPTIONS)
    for _ in range(3):
        module(torch.randn(4, 3, 8, 8)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_an_optimizer_survives_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimizer = trained_adam(module)
    state = checkpoint.State(scalars={"epoch": 3})
    checkpoint.put_optimizer(state, optimizer, names)
    checkpoint.write(tmp_path / "c", state)
    fresh = optim.build_optimizer(module.named_parameters(), OPTIONS)
    loaded = checkpoint.read(tmp_path / "c")
    checkpoint.load_optimizer(loaded, fresh, names)
    assert loaded.scalars["epoch"] == 3
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            assert torch.equal(fresh.state[parameter][slot], value), slot
            assert fresh.state[parameter][slot].stride() == value.stride()


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(TrainingError, match="is a pickle, which edgetl never loads"):
        checkpoint.read(path)
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(TrainingError, match="is a pickle"):
        checkpoint.read(path)


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.write(path, checkpoint.State({"a": torch.ones(100)}))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TrainingError, match="damaged"):
        checkpoint.read(path)


def test_a_checkpoint_of_the_future_says_so(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c", checkpoint.State({"a": torch.ones(1)}, {"schema": 99}))
    with pytest.raises(TrainingError, match="schema 99"):
        checkpoint.read(tmp_path / "c")
