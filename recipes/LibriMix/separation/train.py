#!/usr/bin/env python3
"""Trains and tests a separator on LibriMix.

    python train.py hparams/spgm-tiny.yaml --data_folder /path/to/LibriSpeech ...

See README.md beside this file for complete commands.
"""

import sys
from pathlib import Path

import speechbrain as sb

from speechbrain_spgm.inference.run import save_model
from speechbrain_spgm.training.brain import SeparationBrain
from speechbrain_spgm.training.evaluation import summarise
from speechbrain_spgm.training.experiment import load_hparams, user_errors
from speechbrain_spgm.training.initialise import initialise

sys.path.append(str(Path(__file__).resolve().parents[1]))
from prepare_data import check_speakers, prepare_list, prepare_training  # noqa: E402


def main() -> None:
    """Reads the command line, trains unless --test_only, tests the best checkpoint."""
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    sb.utils.distributed.ddp_init_group(run_opts)
    hparams = load_hparams(hparams_file, overrides)

    valid_set = prepare_list(hparams, "valid_list", limit=hparams["valid_mixtures"])
    test_set = prepare_list(hparams, "test_list")
    train_set = None
    if not run_opts["test_only"]:
        train_set = prepare_training(hparams)
        check_speakers(train_set, valid_set)
        check_speakers(train_set, test_set)

    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    # From scratch; a checkpoint in the output folder still replaces this.
    initialise(hparams["modules"])
    brain = SeparationBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.fit(
        hparams["epoch_counter"],
        train_set,
        valid_set,
        train_loader_kwargs=hparams["train_loader"],
        valid_loader_kwargs=hparams["eval_loader"],
    )
    brain.evaluate(
        test_set, max_key="si_sdri", test_loader_kwargs=hparams["eval_loader"]
    )
    sb.utils.distributed.run_on_main(
        save_model, args=[hparams, summarise(brain.scores)]
    )


if __name__ == "__main__":
    with user_errors():
        main()
