"""The one Brain that trains and tests every separation recipe.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import DataLoader, Dataset

from speechbrain_spgm.data import MixtureBatch, UserError
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.training.evaluation import (
    Score,
    average,
    format_table,
    score_batch,
    write_results,
)
from speechbrain_spgm.training.losses import pit_si_sdr_loss, training_loss
from speechbrain_spgm.training.schedule import anneal, remember_peak, warm_up


class SeparationBrain(sb.Brain):
    """Trains encoder, masknet and decoder for the best SI-SDR.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        ``encoder``, ``masknet`` and ``decoder``.
    opt_class : callable, optional
        Builds the optimizer from the parameters.
    hparams : dict, optional
        Needed: ``sample_rate``, ``output_folder``, ``train_logger``. Optional:
        ``loss_threshold`` (dB; training drops utterances with a loss below it),
        ``warmup_steps``, ``lr_annealing`` (see ``schedule.anneal``).
    run_opts : RunOptions or dict, optional
        Device, precision, clipping and so on, as in SpeechBrain.
    checkpointer : Checkpointer, optional
        Keeps the last epoch and the one with the highest SI-SDRi in validation.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        opt_class: Callable | None = None,
        hparams: Mapping[str, Any] | None = None,
        run_opts: Any = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        self.train_set: Dataset | None = None
        self.train_stats: dict[str, float] = {}
        self.scores: list[Score] = []
        self.audio_seconds = 0.0
        self.stage_start = 0.0

    def compute_forward(self, batch: MixtureBatch, stage: sb.Stage) -> torch.Tensor:
        """Separates a batch; returns the estimates [B, T, spks]."""
        return separate(
            self.modules.encoder,
            self.modules.masknet,
            self.modules.decoder,
            batch.mix,
            batch.lengths,
        )

    def compute_objectives(
        self, estimates: torch.Tensor, batch: MixtureBatch, stage: sb.Stage
    ) -> torch.Tensor:
        """The mean negative SI-SDR in dB; outside of training, scores are kept too."""
        pit = pit_si_sdr_loss(estimates, batch.sources, batch.lengths)
        if stage == sb.Stage.TRAIN:
            threshold = getattr(self.hparams, "loss_threshold", None)
            return training_loss(pit.loss, threshold)
        self.scores += score_batch(estimates, batch, pit)
        return pit.loss.mean()

    def fit_batch(self, batch: MixtureBatch) -> torch.Tensor:
        """One training step; returns the detached loss."""
        self.audio_seconds += batch.lengths.sum().item() / self.hparams.sample_rate
        return super().fit_batch(batch.to(self.device))

    def evaluate_batch(self, batch: MixtureBatch, stage: sb.Stage) -> torch.Tensor:
        """Separates and scores a batch; returns the detached loss."""
        return super().evaluate_batch(batch.to(self.device), stage)

    def make_dataloader(
        self, dataset: Dataset, stage: sb.Stage, *args: Any, **loader_kwargs: Any
    ) -> DataLoader:
        """As in SpeechBrain, with batches of mixtures of unequal length."""
        if stage == sb.Stage.TRAIN:
            self.train_set = dataset
        loader_kwargs.setdefault("collate_fn", MixtureBatch.collate)
        return super().make_dataloader(dataset, stage, *args, **loader_kwargs)

    def init_optimizers(self) -> None:
        """As in SpeechBrain; the optimizer's rate becomes the one to warm up to."""
        super().init_optimizers()
        remember_peak(self.optimizer)

    def on_fit_batch_start(self, batch: MixtureBatch, should_step: bool) -> None:
        """Warms up the learning rate."""
        warmup_steps = getattr(self.hparams, "warmup_steps", 0)
        warm_up(self.optimizer, self.optimizer_step, warmup_steps)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Starts the stage's statistics; seeds the training mixtures of this epoch."""
        self.scores = []
        self.audio_seconds = 0.0
        self.stage_start = time.monotonic()
        if stage == sb.Stage.TRAIN and isinstance(self.train_set, SeededDataset):
            self.train_set.set_epoch(epoch)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Logs in positive dB; after validation anneals the rate and checkpoints."""
        if stage == sb.Stage.TRAIN:
            seconds = time.monotonic() - self.stage_start
            self.train_stats = {
                "si_sdr": -stage_loss,
                "audio_seconds_per_second": self.audio_seconds / seconds,
            }
        elif stage == sb.Stage.VALID:
            self._end_validation(stage_loss, epoch)
        else:
            self._end_test()

    def _end_validation(self, loss: float, epoch: int) -> None:
        self._require_scores()
        stats = average(self.scores)
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]},
            train_stats=self.train_stats,
            valid_stats=stats,
        )
        if getattr(self.hparams, "lr_annealing", None) is not None:
            anneal(self.hparams.lr_annealing, self.optimizer, epoch, loss)
        if self.checkpointer is not None:
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, **stats}, max_keys=["si_sdri"]
            )

    def _end_test(self) -> None:
        self._require_scores()
        self.hparams.train_logger.log_stats(
            stats_meta={"epoch loaded": self.hparams.epoch_counter.current},
            test_stats=average(self.scores),
        )
        if if_main_process():
            write_results(self.scores, self.hparams.output_folder)
            print(format_table(self.scores))

    def _require_scores(self) -> None:
        if not self.scores:
            raise UserError("All sources of all mixtures are silent: nothing to score.")

    def on_evaluate_start(
        self, max_key: str | None = None, min_key: str | None = None
    ) -> None:
        """Loads the best checkpoint, and refuses to test random weights."""
        trained = self.optimizer_step > 0  # in this process
        if self.checkpointer is not None and not trained:
            if not self.checkpointer.list_checkpoints():
                raise UserError(
                    f"There is no checkpoint in {self.checkpointer.checkpoints_dir}: "
                    "train first, or give the output_folder of a finished run."
                )
        super().on_evaluate_start(max_key, min_key)
