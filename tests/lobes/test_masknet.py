"""The packed network equals SpeechBrain's Dual_Path_Model with SPGM blocks."""

import pytest
import torch
import torch.nn.functional as F
from speechbrain.lobes.models.dual_path import (
    DPTNetBlock,
    Dual_Computation_Block,
    Dual_Path_Model,
    IdentityBlock,
    SBRNNBlock,
    SBTransformerBlock,
)
from torch import nn

from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock

N = 16


def dual_path(
    intra_model: nn.Module | None = None,
    pool: str = "att",
    att_h: int | None = None,
    **kwargs: object,
) -> Dual_Path_Model:
    """A small Dual_Path_Model whose every parameter is random."""
    torch.manual_seed(0)
    intra_model = intra_model or SBTransformerBlock(
        2, N, 4, 32, dropout=0.0, use_positional_encoding=True, norm_before=True
    )
    kwargs = {"linear_layer_after_inter_intra": False, "K": 12, **kwargs}
    model = Dual_Path_Model(
        N, N, intra_model, SPGMBlock(N, pool, att_h), num_layers=2, **kwargs
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


VARIANTS = {
    "att": {},
    "attff": {"att_h": 8},
    "avg": {"pool": "avg"},
    "max": {"pool": "max"},
    "lem": {"pool": "lem"},
    "no modulation": {"pool": "none"},
    "odd chunk": {"K": 7},
    "three speakers": {"num_spks": 3},
    "gln": {"norm": "gln"},
    "linear layers": {"linear_layer_after_inter_intra": True},
    "no skip": {"skip_around_intra": False},
    "norm after": {"intra_model": SBTransformerBlock(1, N, 2, 32, dropout=0.0)},
    "no intra": {"intra_model": IdentityBlock()},
    "rnn": {"intra_model": SBRNNBlock(N, N // 2, 1)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("L", [1, 50])
def test_equals_dual_path_model(variant: str, L: int) -> None:
    reference = dual_path(**VARIANTS[variant])
    x = torch.randn(1, N, L)
    expected = reference(x)
    packed = SPGMMaskNet.from_dual_path(reference)
    assert relative_error(packed(x), expected) <= 2e-6
    with torch.no_grad():
        assert relative_error(packed(x), expected) <= 2e-6


@pytest.mark.parametrize(
    "variant", ["att", "attff", "avg", "max", "lem", "no modulation"]
)
def test_gradients_equal_dual_path_models(variant: str) -> None:
    reference = dual_path(**VARIANTS[variant]).double()
    packed = SPGMMaskNet.from_dual_path(reference)
    x, weight = torch.randn(2, 1, N, 50, dtype=torch.double)
    gradients = []
    for model in (reference, packed):
        reference.zero_grad()
        (model(x) * weight).square().sum().backward()
        gradients.append([p.grad.clone() for p in reference.parameters()])
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_alone(variant: str) -> None:
    packed = SPGMMaskNet.from_dual_path(dual_path(**VARIANTS[variant]))
    frames = [50, 1, 23, 6]
    x = torch.full((4, N, 50), float("nan"))  # what padding holds must not matter
    for utterance, length in zip(x, frames, strict=True):
        utterance[:, :length] = torch.randn(N, length)
    masks = packed(x, torch.tensor(frames))
    for b, length in enumerate(frames):
        alone = packed(x[b : b + 1, :, :length])[:, 0]
        assert relative_error(masks[:, b, :, :length], alone) <= 1e-6
        assert not masks[:, b, :, length:].any()


@torch.no_grad()
def test_rows_per_step_changes_nothing() -> None:
    packed = SPGMMaskNet.from_dual_path(dual_path())
    x = torch.randn(2, N, 50)
    results = []
    for packed.rows_per_step in (None, 0, 1, 3):
        results.append(packed(x))
    for result in results[1:]:
        assert relative_error(result, results[0]) <= 1e-6


def test_shares_parameters_and_names() -> None:
    reference = dual_path()
    packed = SPGMMaskNet.from_dual_path(reference)
    theirs, ours = dict(reference.named_parameters()), dict(packed.named_parameters())
    assert list(theirs) == list(ours)
    assert all(theirs[name] is ours[name] for name in theirs)
    assert packed.state_dict().keys() == reference.state_dict().keys()


def test_same_seed_builds_the_same_network() -> None:
    nets = []
    for kind in (Dual_Path_Model, SPGMMaskNet):
        torch.manual_seed(1)
        intra_model = SBTransformerBlock(1, N, 2, 32)
        nets.append(kind(N, N, intra_model, SPGMBlock(N, "att")))
    for (name, a), b in zip(
        nets[0].named_parameters(), nets[1].parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_autocast_keeps_statistics_residuals_and_attention_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = SPGMMaskNet.from_dual_path(dual_path())
    seen, attended = [], []
    attention = F.scaled_dot_product_attention

    def spy(q: torch.Tensor, *others: object, **settings: object) -> torch.Tensor:
        attended.append(q.dtype)
        return attention(q, *others, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for block in packed.dual_mdl:
        block.inter_mdl.pool.register_forward_hook(
            lambda _, inputs, pooled: seen.append((inputs[0].dtype, pooled.dtype))
        )
    x = torch.randn(1, N, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masks = packed(x.bfloat16())
    assert seen == [(torch.float32, torch.float32)] * 2
    assert set(attended) == {torch.float32}
    assert relative_error(masks.float(), packed(x)) < 0.05


class _Custom(Dual_Path_Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def _with_inter(inter: nn.Module) -> Dual_Path_Model:
    model = dual_path()
    model.dual_mdl[1].inter_mdl = inter
    return model


class _CustomBlock(Dual_Computation_Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def _custom_block() -> Dual_Path_Model:
    model = dual_path()
    model.dual_mdl[1].__class__ = _CustomBlock
    return model


def _custom() -> Dual_Path_Model:
    return _Custom(N, N, nn.Identity(), SPGMBlock(N, "avg"))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: _with_inter(nn.Identity()), "needs an SPGMBlock.*Identity"),
        (lambda: _with_inter(SPGMBlock(N, "avg", chunk_size=9)), "chunk_size=9.*K=12"),
        (lambda: dual_path(norm="cln"), "CumulativeLayerNorm"),
        (lambda: dual_path(K=2501), "ends at 2500.*K=2501"),
        (lambda: dual_path(K=1), "K >= 2"),
        (lambda: dual_path(use_global_pos_enc=True, max_length=N), "global_pos_enc"),
        (lambda: dual_path(nn.BatchNorm1d(12)), "rows are independent.*BatchNorm1d"),
        (lambda: dual_path(DPTNetBlock(N, 2, 8)), "independent, but DPTNetBlock"),
        (_custom_block, "_CustomBlock has a forward of its own"),
        (_custom, "_Custom has a forward of its own"),
    ],
)
def test_what_cannot_be_represented_is_refused(build, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SPGMMaskNet.from_dual_path(build())


def test_negative_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows_per_step is -1"):
        SPGMMaskNet.from_dual_path(dual_path(), rows_per_step=-1)


@pytest.mark.parametrize("frames", [[3], [0, 5], [5, 51]])
def test_wrong_frame_counts_are_refused(frames: list[int]) -> None:
    packed = SPGMMaskNet.from_dual_path(dual_path())
    with pytest.raises(ValueError, match="2 counts from 1 to 50"):
        packed(torch.randn(2, N, 50), torch.tensor(frames))
