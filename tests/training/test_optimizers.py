"""Muon for matrices and Adam for the rest, each as PyTorch has it."""

import copy

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain import parse_arguments
from torch import nn

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.training.optimizers import MuonAdam, make_optimizer

needs_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9 has no Muon"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.PReLU(), nn.Linear(4, 6))


def train(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        x = torch.randn(5, 6)
        net(x).sub(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)
    )


@needs_muon
def test_each_weight_moves_as_with_pytorchs_optimizer_alone() -> None:
    a, b = network(), network()
    train(a, [make_optimizer(a.parameters(), "muon", 0.01)], 4)
    matrices = [p for p in b.parameters() if p.ndim == 2]
    others = [p for p in b.parameters() if p.ndim != 2]
    settings = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
    alone = [
        torch.optim.Muon(matrices, 0.01, **settings),
        torch.optim.Adam(others, 0.01),
    ]
    train(b, alone, 4)
    assert equal(a, b) and not equal(a, network())


@needs_muon
def test_takes_groups_of_parameters_as_speechbrain_makes_them() -> None:
    one, other = network(), network()
    train(one, [MuonAdam(one.parameters(), 0.01)], 2)
    groups = [{"params": [p], "weight_decay": 0.0} for p in other.parameters()]
    train(other, [MuonAdam(groups, 0.01)], 2)
    assert equal(one, other)


@needs_muon
def test_goes_on_from_a_checkpoint_and_follows_the_learning_rate() -> None:
    net = network()
    optimizer = MuonAdam(net.parameters(), 0.01)
    train(net, [optimizer], 3)
    other = copy.deepcopy(net)
    resumed = MuonAdam(other.parameters(), 0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, [optimizer], 3)
    train(other, [resumed], 3)
    assert equal(net, other)

    for group in resumed.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(other)
    train(other, [resumed], 3)
    assert equal(other, before)


def test_the_command_line_reaches_the_yaml() -> None:
    # SpeechBrain takes the beginning of its own options' names for these options.
    yaml = "recipes/LibriMix/separation/hparams/spgm-small.yaml"
    _, _, overrides = parse_arguments([yaml, "--opt_name", "muon"])
    assert load_hyperpyyaml(overrides) == {"opt_name": "muon"}


def test_says_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no optimizer sgd: take adam or muon"):
        make_optimizer(network().parameters(), "sgd")
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match="has no Muon: install 2.9 or newer"):
        make_optimizer(network().parameters(), "muon")
