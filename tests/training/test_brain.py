"""The Brain: learns, resumes exactly, and scores a batch as it scores each alone."""

import copy
import csv
import json
import os

import pytest
import torch
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Encoder,
    SBTransformerBlock,
)
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_spgm.data import Mixture, MixtureList, UserError
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.training.brain import SeparationBrain
from speechbrain_spgm.training.checkpoints import WholeCheckpointer
from speechbrain_spgm.training.initialise import initialise

RATE = 8000


class Tones(SeededDataset):
    """Pairs of a low and a high tone; every third mixture is shorter."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Mixture:
        rng = self.generator(index)
        times = torch.arange(1200 if index % 3 else 900) / RATE
        hertz = torch.tensor([rng.uniform(200, 400), rng.uniform(1000, 2000)])
        sources = 0.1 * torch.sin(2 * torch.pi * times.unsqueeze(1) * hertz)
        return Mixture(str(index), sources.sum(-1), sources)


class Killed(Exception):
    """Stands for a kill signal."""


class FragileBrain(SeparationBrain):
    """Is killed at a chosen training step."""

    killed_at = None
    steps = 0

    def fit_batch(self, batch):
        self.steps += 1
        if self.steps == self.killed_at:
            raise Killed
        return super().fit_batch(batch)


def make_brain(folder, epochs=2, N=16, K=20, **run_opts) -> FragileBrain:
    """A tiny network with its checkpointer, the same for every call."""
    torch.manual_seed(0)
    masknet = SPGMMaskNet(
        N,
        N,
        SBTransformerBlock(1, N, 2, d_ffn=32, dropout=0.0, norm_before=True),
        SPGMBlock(N, "att", chunk_size=K),
        num_layers=2,
        K=K,
        linear_layer_after_inter_intra=False,
    )
    modules = {
        "encoder": Encoder(kernel_size=16, out_channels=N),
        "masknet": masknet,
        "decoder": Decoder(N, 1, kernel_size=16, stride=8, bias=False),
    }
    initialise(modules)
    counter = EpochCounter(limit=epochs)
    folder.mkdir(exist_ok=True)
    return FragileBrain(
        modules,
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
        hparams={
            "sample_rate": RATE,
            "output_folder": folder,
            "train_logger": FileTrainLogger(folder / "train_log.txt"),
            "epoch_counter": counter,
            "warmup_steps": 3,
        },
        run_opts={"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer=WholeCheckpointer(
            folder / "save", {**modules, "epoch_counter": counter}
        ),
    )


def fit(brain, train_set=None, valid_set=None) -> None:
    brain.fit(
        brain.hparams.epoch_counter,
        train_set or Tones(seed=1),
        valid_set or Tones(seed=2),
        train_loader_kwargs={"batch_size": 2, "shuffle": True},
        valid_loader_kwargs={"batch_size": 4},
    )


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole = make_brain(tmp_path / "whole")
    fit(whole)

    # 4 steps an epoch: killed in the second, 1 step after a checkpoint.
    killed = make_brain(tmp_path / "killed", ckpt_interval_steps=3)
    killed.killed_at = 4 + 4
    with pytest.raises(Killed):
        fit(killed)
    resumed = make_brain(tmp_path / "killed", ckpt_interval_steps=3)
    fit(resumed)

    assert resumed.steps == 1
    assert resumed.optimizer_step == whole.optimizer_step == 8
    expected = whole.modules.state_dict()
    for name, value in resumed.modules.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_killed_while_written_is_not_loaded(tmp_path, monkeypatch):
    brain = make_brain(tmp_path / "run", epochs=1)
    fit(brain)
    (good,) = brain.checkpointer.list_checkpoints()

    def kill(*args):
        raise Killed

    # The metafile is renamed last.
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        brain.checkpointer.save_checkpoint()
    monkeypatch.undo()
    again = make_brain(tmp_path / "run", epochs=1)
    assert len(list((tmp_path / "run" / "save").iterdir())) == 2
    assert again.checkpointer.recover_if_possible().path == good.path


def test_scores_do_not_depend_on_the_batch(tmp_path):
    scores = {}
    for batch_size in (1, 4):
        brain = make_brain(tmp_path / str(batch_size), epochs=1)
        fit(brain)
        brain.evaluate(
            Tones(seed=3),
            max_key="si_sdri",
            test_loader_kwargs={"batch_size": batch_size},
        )
        with open(tmp_path / str(batch_size) / "test_results.csv") as file:
            scores[batch_size] = list(csv.DictReader(file))
        summary = json.loads(
            (tmp_path / str(batch_size) / "test_summary.json").read_text()
        )
        improvements = [float(row["si_sdri"]) for row in scores[batch_size]]
        assert summary["n"] == 7
        assert summary["si_sdri"]["mean"] == pytest.approx(
            sum(improvements) / 7, abs=1e-3
        )
    for alone, batched in zip(scores[1], scores[4], strict=True):
        assert alone.pop("id") == batched.pop("id")
        for name, value in alone.items():
            assert float(value) == pytest.approx(float(batched[name]), abs=2e-3)


def test_a_finished_run_is_tested_again_without_training(tmp_path):
    brain = make_brain(tmp_path / "run")
    fit(brain)
    brain.evaluate(Tones(seed=3), max_key="si_sdri")
    again = make_brain(tmp_path / "run", test_only=True)
    fit(again)
    again.evaluate(Tones(seed=3), max_key="si_sdri")
    assert again.steps == 0
    assert again.scores == brain.scores


def test_random_weights_are_not_tested(tmp_path):
    brain = make_brain(tmp_path / "new", test_only=True)
    with pytest.raises(UserError, match="no checkpoint in .*new"):
        brain.evaluate(Tones(seed=3), max_key="si_sdri")


def test_blocks_start_from_different_weights(tmp_path):
    blocks = make_brain(tmp_path / "run").modules.masknet.dual_mdl
    first, second = (dict(block.named_parameters()) for block in blocks)
    same = {name for name, value in first.items() if torch.equal(value, second[name])}
    # What starts at a constant stays the same: norms, and biases of the attention.
    assert all(
        "norm" in name or "in_proj_bias" in name or "out_proj.bias" in name
        for name in same
    )
    assert len(same) < len(first)


def test_two_real_voices_are_learned(shared, tmp_path):
    voices = shared / "voices"
    mixtures = MixtureList(
        voices / "LibriMix-metadata" / "libri2mix_train-clean.csv",
        voices / "LibriSpeech",
        num_spks=2,
        sample_rate=RATE,
        segment_seconds=0.5,
        limit=1,
    )
    brain = make_brain(tmp_path / "run", epochs=1, N=32, K=60)
    crop = copy.deepcopy(mixtures[0])
    fit(brain, train_set=[crop] * 200, valid_set=[crop])
    (score,) = brain.scores
    assert score.si_sdri > 5
