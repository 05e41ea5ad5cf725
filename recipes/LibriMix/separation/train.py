#!/usr/bin/env python3
"""Trains and tests a separator on LibriMix.

    python train.py hparams/spgm.yaml --data_folder /path/to/LibriMix

See README.md beside this file for complete commands.
"""

import sys

import speechbrain as sb

from speechbrain_spgm.corpora.librimix import scan_librimix
from speechbrain_spgm.metrics.scores import summarise
from speechbrain_spgm.training.experiment import (
    build,
    claim_folder,
    join_processes,
    open_datasets,
    train_and_test,
    user_errors,
)
from speechbrain_spgm.training.saving import save_model
from speechbrain_spgm.training.settings import read_settings


def scan(hparams: dict, name: str) -> list:
    """The mixtures in data_folder for training, validation or test."""
    single = hparams["mixture_type"] == "mix_single"  # one speaker of two, and noise
    splits = {"train": hparams["train_set"], "valid": "dev", "test": "test"}
    return scan_librimix(
        hparams["data_folder"],
        splits[name],
        num_spks=2 if single else hparams["num_spks"],
        sample_rate=hparams["sample_rate"],
        mode=hparams["mixture_mode"],
        mixture=hparams["mixture_type"],
    )


def main() -> None:
    """Reads the command line, trains unless --test_only, tests the best checkpoint."""
    settings = read_settings(sys.argv[1:])
    join_processes(settings.run_opts)
    with claim_folder(settings):
        hparams = build(settings.file, settings.text)
        datasets = open_datasets(hparams, scan, settings.run_opts.test_only)
        sb.utils.distributed.run_on_main(settings.write_record)
        sb.create_experiment_directory(str(settings.output_folder))
        brain = train_and_test(hparams, settings.run_opts, datasets)
        sb.utils.distributed.run_on_main(
            save_model, args=[hparams, summarise(brain.scores)]
        )


if __name__ == "__main__":
    with user_errors():
        main()
