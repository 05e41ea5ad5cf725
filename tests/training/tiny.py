"""Tiny runs; as a script, one process of a run that may be killed or one of several.

python tests/training/tiny.py FOLDER [OPTION=VALUE ...]
"""

import json
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from speechbrain.lobes.models.dual_path import Decoder, Encoder, SBTransformerBlock
from speechbrain.nnet.schedulers import NewBobScheduler
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_spgm.audio import open_audio
from speechbrain_spgm.data import Mixture
from speechbrain_spgm.data.dynamic import DynamicMixing
from speechbrain_spgm.data.recordings import Voice
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.training.brain import SeparationBrain
from speechbrain_spgm.training.checkpoints import WholeCheckpointer
from speechbrain_spgm.training.experiment import join_processes
from speechbrain_spgm.training.initialise import initialise
from speechbrain_spgm.training.ranks import part, rank

RATE = 8000


class Tones(SeededDataset):
    """Pairs of a low and a high tone; every third mixture is shorter."""

    def __init__(self, seed: int, number: int = 7) -> None:
        super().__init__(seed)
        self.seconds = [(1200 if i % 3 else 900) / RATE for i in range(number)]

    def __len__(self) -> int:
        return len(self.seconds)

    def __getitem__(self, index: int) -> Mixture:
        rng = self.generator(index)
        times = torch.arange(round(self.seconds[index] * RATE)) / RATE
        hertz = torch.tensor([rng.uniform(200, 400), rng.uniform(1000, 2000)])
        sources = 0.1 * torch.sin(2 * torch.pi * times.unsqueeze(1) * hertz)
        return Mixture(str(index), sources.sum(-1), sources)


def make_brain(
    folder: Path,
    epochs: int = 2,
    N: int = 16,
    K: int = 20,
    dropout: float = 0.0,
    brain_class: type = SeparationBrain,
    optimizer: type = torch.optim.Adam,
    hparams: dict | None = None,
    modules: dict | None = None,
    **run_opts,
) -> SeparationBrain:
    """A tiny network, or the one given, with its checkpointer; every call the same."""
    torch.manual_seed(0)
    intra = SBTransformerBlock(1, N, 2, d_ffn=32, dropout=dropout, norm_before=True)
    own = {
        "encoder": Encoder(kernel_size=16, out_channels=N),
        "masknet": SPGMMaskNet(
            N,
            N,
            intra,
            SPGMBlock(N, "att", chunk_size=K),
            num_layers=2,
            K=K,
            linear_layer_after_inter_intra=False,
        ),
        "decoder": Decoder(N, 1, kernel_size=16, stride=8, bias=False),
    }
    initialise(own)
    counter = EpochCounter(limit=epochs)
    folder.mkdir(exist_ok=True)
    return brain_class(
        modules or own,
        opt_class=lambda parameters: optimizer(parameters, lr=3e-3),
        hparams={
            "sample_rate": RATE,
            "output_folder": folder,
            "train_logger": FileTrainLogger(folder / "train_log.txt"),
            "epoch_counter": counter,
            "warmup_steps": 3,
            **(hparams or {}),
        },
        run_opts={"device": "cpu", "noprogressbar": True, **run_opts},
        checkpointer=WholeCheckpointer(folder / "save", {"epoch_counter": counter}),
    )


def fit(brain: SeparationBrain, train_set=None, valid_set=None, **loader) -> None:
    """Trains, by default on tones."""
    brain.fit(
        brain.hparams.epoch_counter,
        train_set or Tones(seed=1),
        valid_set or Tones(seed=2),
        train_loader_kwargs={"batch_size": 2, "shuffle": True, **loader},
        valid_loader_kwargs={"batch_size": 3},
    )


def make_voices(folder: Path) -> list[Voice]:
    """Noise bursts of three speakers as files, the same for every call."""
    voices = []
    folder.mkdir(exist_ok=True)
    for speaker in range(3):
        path = folder / f"{speaker}.wav"
        if not path.exists():
            noise = np.random.default_rng(speaker).normal(size=4000)
            wave = 0.05 * np.convolve(noise, np.ones(1 + 4 * speaker), "same")
            soundfile.write(path, wave, RATE)
        voices.append(Voice(str(speaker), open_audio(path)))
    return voices


class Telling(SeparationBrain):
    """Says on stdout which batch it is at."""

    def fit_batch(self, batch):
        print(f"{self.epoch}:{self.step}", flush=True)
        return super().fit_batch(batch)


def full_run(
    folder: Path,
    workers: int = 2,
    batch_size: int = 1,
    brain_class: type = Telling,
    **run_opts,
) -> SeparationBrain:
    """Trains with dynamic mixing, dropout, accumulation, warm-up, new-bob and EMA."""
    brain = make_brain(
        folder,
        epochs=2,
        dropout=0.2,
        brain_class=brain_class,
        hparams={
            "seed": 5,
            "loss_threshold": 5.0,
            "lr_annealing": NewBobScheduler(3e-3, improvement_threshold=0.9),
            "ema_decay": 0.8,
            "average_checkpoints": 2,
            "activation_checkpointing": True,
        },
        **{
            "grad_accumulation_factor": 2,
            "ckpt_interval_steps": 1,
            "max_grad_norm": 1.0,
            **run_opts,
        },
    )
    mixing = DynamicMixing(
        make_voices(folder.parent / "voices"),
        num_spks=2,
        sample_rate=RATE,
        segment_seconds=0.12,
        mixtures_per_epoch=9,
        speeds=(95, 100, 105),
        seed=3,
    )
    fit(brain, train_set=mixing, batch_size=batch_size, num_workers=workers)
    return brain


def state(brain: SeparationBrain) -> dict[str, torch.Tensor]:
    """Everything that a run ends with."""
    moments = brain.optimizer.state_dict()["state"]
    return {
        **brain.networks.state_dict(),
        **brain.ema.state_dict(),
        **{f"adam {i} {k}": v for i, s in moments.items() for k, v in s.items()},
        "lr": torch.tensor(brain.optimizer.param_groups[0]["lr"]),
        "train": torch.tensor([row["train_si_sdr"] for row in brain.progress.history]),
        "valid": torch.tensor([row["valid_si_sdr"] for row in brain.progress.history]),
    }


if __name__ == "__main__":
    options = {k: json.loads(v) for k, v in (text.split("=") for text in sys.argv[2:])}
    join_processes({"distributed_backend": "gloo"})
    brain = full_run(Path(sys.argv[1]), distributed_backend="gloo", **options)
    torch.save(state(brain), Path(sys.argv[1]) / f"end{rank()}.pt")
    del brain  # it holds the group
    part()
