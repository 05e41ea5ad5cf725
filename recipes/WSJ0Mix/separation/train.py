#!/usr/bin/env python3
"""Trains and tests a separator on WSJ0-mix.

    python train.py hparams/spgm.yaml --data_folder /path/to/wsj0-mix

See README.md beside this file for complete commands.
"""

import sys

import speechbrain as sb

from speechbrain_spgm.data.wsj0mix import scan_wsj0mix
from speechbrain_spgm.inference.run import save_model
from speechbrain_spgm.training.evaluation import summarise
from speechbrain_spgm.training.experiment import (
    load_hparams,
    open_datasets,
    train_and_test,
    user_errors,
)


def scan(hparams: dict, name: str) -> list:
    """The mixtures in data_folder for training, validation or test."""
    return scan_wsj0mix(
        hparams["data_folder"],
        {"train": "tr", "valid": "cv", "test": "tt"}[name],
        num_spks=hparams["num_spks"],
        sample_rate=hparams["sample_rate"],
        mode=hparams["mixture_mode"],
    )


def main() -> None:
    """Reads the command line, trains unless --test_only, tests the best checkpoint."""
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)
    datasets = open_datasets(hparams, scan, run_opts["test_only"])
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    brain = train_and_test(hparams, run_opts, datasets)
    sb.utils.distributed.run_on_main(
        save_model, args=[hparams, summarise(brain.scores)]
    )


if __name__ == "__main__":
    with user_errors():
        main()
