"""Activation checkpointing: the same numbers from less memory."""

import copy

import pytest
import torch
from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock

from speechbrain_spgm.data import UserError
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.training.activations import checkpoint_activations


def make_net(network: type) -> torch.nn.Module:
    intra = SBTransformerBlock(2, 16, 2, d_ffn=64, dropout=0.3, norm_before=True)
    return network(16, 16, intra, SPGMBlock(16, "att"), num_layers=4, K=20)


def learn(net: torch.nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Gradients, and the bytes that wait for the backward pass."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = net(x).square().sum()
    loss.backward()
    return [parameter.grad for parameter in net.parameters()], sum(kept.values())


@pytest.mark.parametrize("network", [SPGMMaskNet, Dual_Path_Model])
def test_gradients_are_the_same_with_dropout(network):
    plain = make_net(network)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
    x = torch.rand(2, 16, 300)
    expected, much = learn(plain, x)
    grads, little = learn(saving, x)
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other, rtol=0, atol=0)
    assert little < much / 3
    assert saving.state_dict().keys() == plain.state_dict().keys()


def test_a_copy_has_weights_of_its_own():
    net = make_net(SPGMMaskNet)
    checkpoint_activations(net)
    other = copy.deepcopy(net)
    x = torch.rand(1, 16, 300)
    net.eval()
    other.eval()
    before = other(x)
    torch.nn.init.zeros_(net.dual_mdl[0].inter_mdl.g_lin.weight)
    torch.testing.assert_close(other(x), before, rtol=0, atol=0)
    assert not torch.allclose(net(x), before)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="knows no blocks of a Linear"):
        checkpoint_activations(torch.nn.Linear(1, 1))
