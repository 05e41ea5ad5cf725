"""The swap that the README documents, in a SepFormer yaml of SpeechBrain's shape."""

import re
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.losses import get_si_snr_with_pitwrapper
from speechbrain.utils.checkpoints import Checkpointer
from torch.utils.data import DataLoader

from speechbrain_spgm.lobes.spgm import SPGMBlock

ROOT = Path(__file__).parents[2]
SEPFORMER = (ROOT / "tests" / "sepformer.yaml").read_text(encoding="utf-8")
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


def load() -> dict:
    """The SepFormer yaml with the README's entry instead of its own."""
    swap = ENTRY.search((ROOT / "README.md").read_text(encoding="utf-8")).group()
    assert "SPGMBlock" in swap
    text, count = ENTRY.subn(swap, SEPFORMER)
    assert count == 1
    return load_hyperpyyaml(text)


def test_swapped_yaml_trains_saves_and_reloads(tmp_path: Path) -> None:
    hparams = load()
    modules = {
        name.lower(): hparams[name] for name in ("Encoder", "MaskNet", "Decoder")
    }
    masknet = modules["masknet"]
    assert all(isinstance(block.inter_mdl, SPGMBlock) for block in masknet.dual_mdl)
    before = [p.clone() for p in masknet.dual_mdl[0].inter_mdl.parameters()]
    brain = StockBrain(modules, torch.optim.Adam, run_opts={"device": "cpu"})
    batches = DataLoader(torch.randn(4, 4016, 2), batch_size=2)  # two of [B, T, spks]
    brain.fit(range(1), batches, progressbar=False)
    after = list(masknet.dual_mdl[0].inter_mdl.parameters())
    # The score's bias, of the pooling, moves the softmax nowhere.
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed[0] and all(changed[2:])

    Checkpointer(tmp_path, modules).save_checkpoint()
    torch.manual_seed(1)
    fresh = load()["MaskNet"]
    Checkpointer(
        tmp_path, {"masknet": fresh}, allow_partial_load=True
    ).recover_if_possible()
    x = torch.randn(2, 64, 500)
    assert torch.equal(fresh(x), masknet(x))
