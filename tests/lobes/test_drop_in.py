"""The swap that the README documents, in a SepFormer yaml of SpeechBrain's shape."""

import re
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper
from torch.utils.data import DataLoader

from speechbrain_spgm.lobes.spgm import SPGMBlock

README = Path(__file__).parents[2] / "README.md"
SEPFORMER = """
out_channels: 16
Encoder: !new:speechbrain.lobes.models.dual_path.Encoder
    kernel_size: 16
    out_channels: !ref <out_channels>
SBtfintra: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
    num_layers: 1
    d_model: !ref <out_channels>
    nhead: 4
    d_ffn: 32
    dropout: 0
    use_positional_encoding: True
    norm_before: True
SBtfinter: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
    num_layers: 1
    d_model: !ref <out_channels>
    nhead: 4
    d_ffn: 32
MaskNet: !new:speechbrain.lobes.models.dual_path.Dual_Path_Model
    num_spks: 2
    in_channels: !ref <out_channels>
    out_channels: !ref <out_channels>
    num_layers: 2
    K: 250
    intra_model: !ref <SBtfintra>
    inter_model: !ref <SBtfinter>
    norm: ln
    linear_layer_after_inter_intra: False
    skip_around_intra: True
Decoder: !new:speechbrain.lobes.models.dual_path.Decoder
    in_channels: !ref <out_channels>
    out_channels: 1
    kernel_size: 16
    stride: 8
    bias: False
modules:
    encoder: !ref <Encoder>
    masknet: !ref <MaskNet>
    decoder: !ref <Decoder>
checkpointer: !new:speechbrain.utils.checkpoints.Checkpointer
    checkpoints_dir: !PLACEHOLDER
    recoverables:
        masknet: !ref <MaskNet>
"""
ENTRY = re.compile(r"^SBtfinter: .*\n(?:    .*\n)+", re.MULTILINE)


class StockBrain(sb.Brain):
    """The forward of SpeechBrain's own separation recipe."""

    def compute_forward(self, batch, stage):
        mix_w = self.modules.encoder(batch.sum(-1))
        masks = self.modules.masknet(mix_w)
        return torch.stack([self.modules.decoder(m * mix_w) for m in masks], dim=-1)

    def compute_objectives(self, predictions, batch, stage):
        T = predictions.shape[1]
        return get_si_snr_with_pitwrapper(batch[:, :T], predictions).mean()


def load(folder: Path) -> dict:
    """The SepFormer yaml with the README's entry instead of its own."""
    swap = ENTRY.search(README.read_text()).group()
    assert "SPGMBlock" in swap
    text, count = ENTRY.subn(swap, SEPFORMER)
    assert count == 1
    overrides = {"checkpointer": {"checkpoints_dir": str(folder)}}
    return load_hyperpyyaml(text, overrides)


def test_swapped_yaml_trains_saves_and_reloads(tmp_path: Path) -> None:
    hparams = load(tmp_path)
    masknet = hparams["modules"]["masknet"]
    assert all(isinstance(block.inter_mdl, SPGMBlock) for block in masknet.dual_mdl)
    before = [p.clone() for p in masknet.dual_mdl[0].inter_mdl.parameters()]
    brain = StockBrain(hparams["modules"], torch.optim.Adam, run_opts={"device": "cpu"})
    batches = DataLoader(torch.randn(4, 4016, 2), batch_size=2)  # two of [B, T, spks]
    brain.fit(range(1), batches, progressbar=False)
    after = list(masknet.dual_mdl[0].inter_mdl.parameters())
    assert not any(
        torch.equal(a, b) for a, b in zip(before[2:], after[2:], strict=True)
    )

    hparams["checkpointer"].save_checkpoint()
    torch.manual_seed(1)
    fresh = load(tmp_path)
    fresh["checkpointer"].recover_if_possible()
    x = torch.randn(2, 16, 500)
    assert torch.equal(fresh["modules"]["masknet"](x), masknet(x))
