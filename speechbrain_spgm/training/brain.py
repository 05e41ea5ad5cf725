"""The one Brain that trains and tests every separation recipe.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import (
    DEFAULT_SAVE_HOOKS,
    Checkpointer,
    get_default_hook,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader, Dataset

from speechbrain_spgm.data import MixtureBatch, UserError
from speechbrain_spgm.data.batching import BucketBatchSampler
from speechbrain_spgm.data.seeded import SeededDataset
from speechbrain_spgm.lobes.chunking import row_seconds
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.statistics import Statistics, statistics_of
from speechbrain_spgm.metrics.report import Worst, format_table, write_results
from speechbrain_spgm.metrics.scores import (
    Score,
    average,
    check_metrics,
    match,
    score_batch,
)
from speechbrain_spgm.metrics.si_sdr import is_kept, pit_si_sdr_loss, training_loss
from speechbrain_spgm.training.activations import checkpoint_activations
from speechbrain_spgm.training.checkpoints import load_best_average, moving_average
from speechbrain_spgm.training.interrupt import StopRequest, leave_signals_to_parent
from speechbrain_spgm.training.progress import Progress
from speechbrain_spgm.training.randomness import seed_step
from speechbrain_spgm.training.ranks import gather, rank, sum_over_ranks, world_size
from speechbrain_spgm.training.schedule import (
    anneal,
    check_scheduler,
    remember_peak,
    warm_up,
)
from speechbrain_spgm.training.show import separate_examples, show_run

logger = get_logger(__name__)
NEWS_SECONDS = 60.0  # between two lines where nobody sees a progress bar


class SeparationBrain(sb.Brain):
    """Trains encoder, masknet and decoder for the best SI-SDR.

    One optimizer step takes ``grad_accumulation_factor`` batches on each rank and
    descends the mean loss of all their utterances, however they are split. A step with
    a loss or gradient that is not finite, on any rank, is left out on all ranks and
    counted.

    Batch number ``step`` of an epoch depends on (seed, epoch, step) alone, what it
    draws included, so a run that was killed and started again ends bit by bit like one
    that was not.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        ``encoder``, ``masknet`` and ``decoder``.
    opt_class : callable, optional
        Builds the optimizer from the parameters.
    hparams : dict, optional
        Needed: ``sample_rate``, ``output_folder``, ``epoch_counter``, and
        ``train_logger`` (one of SpeechBrain's or a list of them). Optional:
        ``seed`` (of the order of the data and of dropout), ``loss`` (of estimates,
        references and lengths, like ``pit_si_sdr_loss``, the default),
        ``statistics`` (what SPGM's averages are over, a name of
        ``lobes.statistics.statistics_of``, by default ``whole``, or a list: each step
        of training draws one of them, validation and test have the first),
        ``loss_threshold`` (training drops utterances with a loss below it),
        ``warmup_steps``,
        ``lr_annealing`` (see ``schedule.anneal``), ``activation_checkpointing``,
        ``ema_decay`` (validates and tests a moving average of the weights),
        ``average_checkpoints`` (tests the mean of that many best checkpoints),
        ``start_share`` (tests a mean in which the first weights have this share),
        ``metrics`` (what a test measures, see ``scores.METRICS``),
        ``num_examples`` (separated mixtures written after each epoch).
    run_opts : RunOptions or dict, optional
        Device, precision, clipping and so on, as in SpeechBrain.
    checkpointer : WholeCheckpointer, optional
        Keeps the last epoch and the best ones by SI-SDRi in validation. What it has to
        save beside the epoch counter is added here.

    Raises
    ------
    UserError
        If an option has no sense, for example fp16 on a CPU.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        opt_class: Callable | None = None,
        hparams: Mapping[str, Any] | None = None,
        run_opts: Any = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        try:
            super().__init__(modules, opt_class, hparams, run_opts, checkpointer)
        except ValueError as error:  # SpeechBrain's words on an option
            raise UserError(str(error)) from None
        except SystemExit as end:
            raise UserError(str(end.code)) from None
        # The bare modules: what self.modules holds gets wrapped for several ranks.
        self.networks = torch.nn.ModuleDict(dict(self.modules.items()))
        self.ema = None
        if self._option("ema_decay") is not None:
            self.ema = moving_average(self.networks, self._option("ema_decay"))
        share = self._option("start_share", 0)
        self.start = deepcopy(self.networks.state_dict()) if share else {}
        if self._option("activation_checkpointing"):
            checkpoint_activations(self.networks["masknet"])
        if self._option("lr_annealing") is not None:
            check_scheduler(self.hparams.lr_annealing)
        self.progress = Progress()
        self.loss = self._option("loss") or pit_si_sdr_loss
        self.seed = self._option("seed", 0)
        self.epoch = 0
        self.train_set: Dataset | None = None
        self.valid_set: Dataset | None = None
        self.test_name = ""
        self.train_stats: dict[str, float] = {}
        self.losses = torch.zeros(0)  # of the last batch [B]
        self.tally = new_tally(self.device)  # of the step under way, this rank's
        self.scores: list[Score] = []
        self.worst = Worst()
        self.audio_seconds = 0.0
        self.stage_start = 0.0
        self.told = time.monotonic()  # when the last line of news came
        self.stop = StopRequest()
        self.stopping = False  # the same on all ranks
        self._add_recoverables()

    def _option(self, name: str, default: Any = None) -> Any:
        return getattr(self.hparams, name, default)

    def _add_recoverables(self) -> None:
        """Puts into checkpoints what exact resumption needs and is not there yet."""
        if self.checkpointer is None:
            return
        present = list(self.checkpointer.recoverables.values())
        wanted = {**self.networks, "lr_annealing": self._option("lr_annealing")}
        for name, thing in wanted.items():
            stateful = get_default_hook(thing, DEFAULT_SAVE_HOOKS) is not None
            if stateful and not any(thing is other for other in present):
                self.checkpointer.add_recoverable(name, thing)
        self.checkpointer.add_recoverable("progress", self.progress, optional_load=True)
        if self.ema is not None:
            self.checkpointer.add_recoverable("ema", self.ema, optional_load=True)

    @property
    def _has_average(self) -> bool:
        """Whether there is a moving average of the weights; it starts at a step."""
        return self.ema is not None and bool(self.ema.n_averaged > 0)

    def compute_forward(self, batch: MixtureBatch, stage: sb.Stage) -> torch.Tensor:
        """Separates a batch; returns the estimates [B, T, spks]."""
        modules = self.networks
        if stage == sb.Stage.TRAIN:
            modules = self.modules  # wrapped: the gradients of all ranks are averaged
        elif stage == sb.Stage.VALID and self._has_average:
            modules = self.ema.module
        return separate(
            modules["encoder"],
            modules["masknet"],
            modules["decoder"],
            batch.mix,
            batch.lengths,
            statistics=self._statistics(stage),
        )

    def _statistics(self, stage: sb.Stage) -> Statistics | None:
        """What SPGM's averages are over; None: whole utterances."""
        asked = self._option("statistics", "whole")
        names = [asked] if isinstance(asked, str) else asked
        if {*names} == {"whole"}:
            return None
        if not isinstance(self.networks["masknet"], SPGMMaskNet):
            raise UserError(
                f"statistics is {asked!r}, but the network is no SPGM network and "
                "looks at whole recordings: leave it out."
            )
        name = names[0]
        if stage == sb.Stage.TRAIN and len(names) > 1:
            drawn = (self.seed, self.epoch, self.step)  # the same on all ranks
            name = np.random.default_rng(drawn).choice(names)
        if name == "whole":
            return None
        stride = self.networks["decoder"].stride[0]
        K, rate = self.networks["masknet"].K, self.hparams.sample_rate
        return statistics_of(name, row_seconds(K, stride, rate))

    def compute_objectives(
        self, estimates: torch.Tensor, batch: MixtureBatch, stage: sb.Stage
    ) -> torch.Tensor:
        """The mean loss, outside of training negative SI-SDR, whose scores are kept."""
        if stage == sb.Stage.TRAIN:
            pit = self.loss(estimates, batch.sources, batch.lengths)
            self.losses = pit.loss.detach()
            return training_loss(pit.loss, self._option("loss_threshold"))
        pit = match(estimates, batch)
        if stage == sb.Stage.VALID:
            self.scores += score_batch(estimates, batch, pit)
        else:
            rate = self.hparams.sample_rate
            scores = score_batch(estimates, batch, pit, self._metrics(), rate)
            self.worst.add(scores, estimates, batch, pit)
            self.scores += scores
        return pit.loss.mean()

    def _metrics(self) -> list[str]:
        """What a test measures."""
        return list(self._option("metrics") or ["si_sdr"])

    def fit_batch(self, batch: MixtureBatch) -> torch.Tensor:
        """Learns from one batch; returns the detached loss."""
        seed_step(self.seed, self.epoch, self.step, rank())
        should_step = self._completes_step()
        self.on_fit_batch_start(batch, should_step)
        seconds = batch.lengths.sum().item() / self.hparams.sample_rate
        batch = batch.to(self.device)
        with self.no_sync(not should_step):
            with self.training_ctx:
                estimates = self.compute_forward(batch, sb.Stage.TRAIN)
                loss = self.compute_objectives(estimates, batch, sb.Stage.TRAIN)
            kept = is_kept(self.losses, self._option("loss_threshold")).sum()
            # The gradient of a sum: all batches of the step share one denominator.
            # A loss that is not finite goes backward too: other ranks wait for it.
            self.scaler.scale(loss * kept).backward()
        self.tally += count(self.losses, kept, seconds)
        if should_step:
            self.optimizers_step()
        self.on_fit_batch_end(batch, estimates, loss, should_step)
        return loss.detach().cpu()

    def optimizers_step(self) -> None:
        """One step on what all ranks have accumulated, or none if it is not finite."""
        asked = self.tally.new_tensor([self.stop.asked])
        loss_sum, utterances, nonfinite, kept, seconds, stop = sum_over_ranks(
            torch.cat([self.tally, asked])
        ).tolist()
        self.stopping = stop > 0
        self.tally = new_tally(self.device)
        self.progress.add(loss_sum, int(utterances))
        self.audio_seconds += seconds

        self.scaler.unscale_(self.optimizer)
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # So far each gradient is the sum over the utterances, averaged over the ranks.
        for parameter in parameters:
            parameter.grad *= world_size() / max(1.0, kept)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm())
        # Equal on all ranks, as the gradients are: all of them decide alike.
        finite = nonfinite == 0 and bool(torch.isfinite(norm))
        if finite and kept:  # as published: no step if all were good enough
            self.scaler.step(self.optimizer)
            self.optimizer_step += 1
            if self.ema is not None:
                self.ema.update_parameters(self.networks)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._watch(finite, int(nonfinite))

    def _max_norm(self) -> float:
        """SpeechBrain documents values below 0 as "do not clip"; null does the same."""
        unlimited = self.max_grad_norm is None or self.max_grad_norm <= 0
        return float("inf") if unlimited else self.max_grad_norm

    def _watch(self, finite: bool, nonfinite_losses: int) -> None:
        """Counts and reports steps left out; gives up when there are only those."""
        if finite:
            self.progress.skipped_in_a_row = 0
            return
        self.progress.skipped += 1
        logger.warning(
            f"Epoch {self.epoch}, batch {self.step}: no step, because "
            + (
                f"the loss of {nonfinite_losses} utterance(s) is not finite."
                if nonfinite_losses
                else "the gradient is not finite."
            )
        )
        # While fp16's scale is still too high, gradients overflow and it is halved.
        if nonfinite_losses or not self.scaler.is_enabled():
            self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row > self.nonfinite_patience:
            raise UserError(
                f"In the last {self.progress.skipped_in_a_row} steps the loss or the "
                "gradient was not finite: lower lr or max_grad_norm, or raise "
                "nonfinite_patience."
            )

    def _completes_step(self) -> bool:
        """Whether this batch is the last of an optimizer step, or of the epoch."""
        last = self.step == self._batches_per_epoch()
        return last or self.step % self.grad_accumulation_factor == 0

    def _batches_per_epoch(self) -> int | None:
        sampler = self.train_sampler
        batches = len(sampler) if isinstance(sampler, BucketBatchSampler) else None
        return min(batches, self.debug_batches) if self.debug and batches else batches

    def _should_save_intra_epoch_ckpt(self, *args: Any) -> bool:
        """As in SpeechBrain, but not while gradients are being accumulated."""
        return self._completes_step() and (
            self.stopping or super()._should_save_intra_epoch_ckpt(*args)
        )

    def _save_intra_epoch_ckpt(self) -> None:
        """As in SpeechBrain; after Ctrl-C or SIGTERM the run ends here."""
        if self.checkpointer is not None:
            super()._save_intra_epoch_ckpt()
        if self.stopping:
            self._leave(f"epoch {self.epoch}, batch {self.step}")

    def _leave(self, where: str) -> None:
        """Ends the run with a line that says what is saved."""
        saved = "nothing is saved"
        if self.checkpointer is not None:
            saved = (
                f"{where} is saved in {self.checkpointer.checkpoints_dir}, the same "
                "command goes on from there"
            )
        self.stop.leave(f"Interrupted: {saved}.")

    def _stop_in_validation(self) -> None:
        """Saves a run as at the end of its training epoch, before this validation."""
        batches = self._batches_per_epoch()
        if batches is not None:
            self.step, self.stopping = batches, True
            self._save_intra_epoch_ckpt()

    def fit(self, *args: Any, progressbar: bool | None = None, **kwargs: Any) -> None:
        """As in SpeechBrain; Ctrl-C and SIGTERM save a checkpoint and end the run."""
        with self.stop.listening():
            super().fit(*args, progressbar=self._with_bar(progressbar), **kwargs)
            if self.stop.asked:
                self._leave("the trained network")

    def _with_bar(self, wanted: bool | None) -> bool:
        """Whether somebody sees a progress bar; others get lines of news."""
        wanted = not self.noprogressbar if wanted is None else wanted
        return wanted and sys.stderr is not None and sys.stderr.isatty()

    def _tell(self, stage: str, result: str = "") -> None:
        """Says now and then where the run is."""
        if time.monotonic() - self.told >= NEWS_SECONDS:
            self.told = time.monotonic()
            of = self._batches_per_epoch() if stage == "training" else None
            batch = f"batch {self.step}" + (f" of {of}" if of else "")
            logger.info(f"Epoch {self.epoch}, {stage}, {batch}{result}.")

    def on_fit_batch_end(self, *args: Any) -> None:
        """News of the training."""
        self._tell("training", f": SI-SDR {self.progress.si_sdr:.2f} dB so far")

    def evaluate_batch(self, batch: MixtureBatch, stage: sb.Stage) -> torch.Tensor:
        """Separates and scores a batch; returns the detached loss."""
        if stage == sb.Stage.VALID and self.stop.asked and world_size() == 1:
            self._stop_in_validation()
        self._tell("validation" if stage == sb.Stage.VALID else "test")
        return super().evaluate_batch(batch.to(self.device), stage)

    def make_dataloader(
        self, dataset: Dataset, stage: sb.Stage, *args: Any, **loader_kwargs: Any
    ) -> DataLoader:
        """A loader of this rank's batches, each of mixtures of similar duration.

        In training every rank gets equally many batches; in validation and test every
        utterance comes up exactly once over all ranks. ``batch_size`` (default 1),
        ``max_batch_seconds`` and ``shuffle`` go to ``BucketBatchSampler``, unless a
        ``sampler`` or ``batch_sampler`` is given.
        """
        if stage == sb.Stage.TRAIN:
            self.train_set = dataset
        elif stage == sb.Stage.VALID:
            self.valid_set = dataset
        loader_kwargs.setdefault("collate_fn", MixtureBatch.collate)
        loader_kwargs.setdefault("worker_init_fn", leave_signals_to_parent)
        if not {"sampler", "batch_sampler"} & loader_kwargs.keys():
            most = loader_kwargs.pop("max_batch_seconds", None)
            size = loader_kwargs.pop("batch_size", None if most else 1)
            loader_kwargs["batch_sampler"] = BucketBatchSampler(
                getattr(dataset, "seconds", [1.0] * len(dataset)),
                size,
                most,
                shuffle=loader_kwargs.pop("shuffle", False) and stage == sb.Stage.TRAIN,
                even=stage == sb.Stage.TRAIN,
                seed=self.seed,
                rank=rank(),
                world_size=world_size(),
            )
        return super().make_dataloader(dataset, stage, *args, **loader_kwargs)

    def _train_loader_specifics(
        self, dataset: Dataset, loader_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Leaves our sampler alone: it knows of the ranks."""
        sampler = loader_kwargs.get("batch_sampler")
        if not isinstance(sampler, BucketBatchSampler):
            return super()._train_loader_specifics(dataset, loader_kwargs)
        self.train_sampler = sampler  # SpeechBrain tells it the epoch
        return loader_kwargs

    def init_optimizers(self) -> None:
        """As in SpeechBrain; the optimizer's rate becomes the one to warm up to."""
        super().init_optimizers()
        remember_peak(self.optimizer)

    def on_fit_start(self) -> None:
        """As in SpeechBrain; a run that has made all its steps begins no epoch."""
        super().on_fit_start()
        if self._optimizer_step_limit_exceeded and self.step == 0:
            self.hparams.epoch_counter.current = self.hparams.epoch_counter.limit

    def on_fit_batch_start(self, batch: MixtureBatch, should_step: bool) -> None:
        """Warms up the learning rate."""
        warm_up(self.optimizer, self.optimizer_step, self._option("warmup_steps", 0))

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        """Starts the stage's statistics; seeds the training mixtures of this epoch."""
        self.scores, self.worst = [], Worst()
        self.stage_start = time.monotonic()
        if stage != sb.Stage.TRAIN:
            return
        self.epoch = epoch
        self.audio_seconds = 0.0
        self.tally = new_tally(self.device)
        if self.step == 0:  # not resumed inside an epoch
            self.progress.start_epoch()
        if isinstance(self.train_set, SeededDataset):
            self.train_set.set_epoch(epoch)

    def on_stage_end(
        self, stage: sb.Stage, stage_loss: float, epoch: int | None = None
    ) -> None:
        """Logs in positive dB; after validation anneals the rate and checkpoints."""
        if stage == sb.Stage.TRAIN:
            seconds = max(time.monotonic() - self.stage_start, 1e-9)
            self.train_stats = {
                "si_sdr": self.progress.si_sdr,
                "skipped": self.progress.skipped,
                "audio_seconds_per_second": self.audio_seconds / seconds,
            }
            return
        self._gather_scores()
        if stage == sb.Stage.VALID:
            self._end_validation(epoch)
        else:
            self._end_test()

    def _gather_scores(self) -> None:
        """Brings together the scores of all ranks."""
        self.scores = sorted(gather(self.scores), key=lambda score: score.id)
        if not self.scores:
            raise UserError("All sources of all mixtures are silent: nothing to score.")

    def _end_validation(self, epoch: int) -> None:
        stats = average(self.scores)
        meta = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"]}
        self._log(meta, train_stats=self.train_stats, valid_stats=stats)
        self.progress.add_row(meta, self.train_stats, stats)
        if self._option("lr_annealing") is not None:
            anneal(self.hparams.lr_annealing, self.optimizer, epoch, -stats["si_sdr"])
        if self.checkpointer is not None:
            # Else NaN would count as the best.
            known = {k: v if math.isfinite(v) else -math.inf for k, v in stats.items()}
            self.checkpointer.save_checkpoint(meta={"epoch": epoch, **known})
            self.checkpointer.keep_newest_and_best(self._averaged(), "si_sdri")
        self._show()

    def _show(self) -> None:
        """Draws the curves and separates examples, on the main process."""
        if not if_main_process():
            return
        examples = []
        if self.valid_set is not None:
            with torch.no_grad(), self.evaluation_ctx:
                examples = separate_examples(
                    lambda batch: self.compute_forward(
                        batch.to(self.device), sb.Stage.VALID
                    ),
                    self.valid_set,
                    self._option("num_examples", 0),
                )
        show_run(
            self.hparams.output_folder,
            self.progress.history,
            examples,
            self.hparams.sample_rate,
        )

    def _end_test(self) -> None:
        meta = {"epoch loaded": self.hparams.epoch_counter.current}
        self._log(meta, test_stats=average(self.scores))
        self.worst.merge(gather(self.worst.kept))
        if if_main_process():
            write_results(
                self.scores,
                self.hparams.output_folder,
                about={"test_set": self.test_name, "metrics": self._metrics()},
                worst=self.worst.examples,
                sample_rate=self.hparams.sample_rate,
            )
            print(format_table(self.scores))

    def _log(self, meta: dict[str, float], **stats: dict[str, float]) -> None:
        """Tells every logger."""
        loggers = self.hparams.train_logger
        for one in loggers if isinstance(loggers, (list, tuple)) else [loggers]:
            one.log_stats(stats_meta=meta, **stats)

    def _averaged(self) -> int:
        """How many checkpoints a test averages."""
        return max(1, self._option("average_checkpoints") or 1)

    def on_evaluate_start(
        self, max_key: str | None = None, min_key: str | None = None
    ) -> None:
        """Loads the weights to test, into the modules; refuses to test random ones."""
        trained = self.optimizer_step > 0  # in this process
        if self.checkpointer is not None and not trained:
            found = self.checkpointer.find_checkpoints(max_key=max_key, min_key=min_key)
            if not found:  # those inside an epoch have no score
                raise UserError(
                    f"There is no checkpoint in {self.checkpointer.checkpoints_dir} of "
                    "a whole epoch: train first, or give the output_folder of a "
                    "finished run."
                )
        super().on_evaluate_start(max_key, min_key)
        if self.checkpointer is not None and self._averaged() > 1:
            number = load_best_average(
                self.checkpointer,
                self._tested_recoverables(),
                self._averaged(),
                max_key,
                min_key,
            )
            logger.info(f"Testing the average of {number} checkpoint(s)")
        if self._has_average:
            self.networks.load_state_dict(self.ema.module.state_dict())
        found = self.networks.state_dict()
        for name, weight in self.start.items():
            if weight.is_floating_point():
                found[name].lerp_(weight.to(found[name]), self._option("start_share"))

    def _tested_recoverables(self) -> dict[str, torch.nn.Module]:
        """What holds the weights to test, by the names in the checkpoints."""
        tested = [self.ema] if self._has_average else list(self.networks.values())
        return {
            name: thing
            for name, thing in self.checkpointer.recoverables.items()
            if any(thing is module for module in tested)
        }

    def evaluate(
        self,
        test_set: Dataset | DataLoader,
        max_key: str | None = None,
        min_key: str | None = None,
        progressbar: bool | None = None,
        test_loader_kwargs: Mapping[str, Any] | None = None,
    ) -> float:
        """As in SpeechBrain; returns the mean loss over all ranks in dB."""
        check_metrics(self._metrics(), self.hparams.sample_rate)
        self.test_name = Path(getattr(test_set, "path", "test")).stem
        kwargs = dict(test_loader_kwargs or {})  # SpeechBrain adds to it
        bar = self._with_bar(progressbar)
        super().evaluate(test_set, max_key, min_key, bar, kwargs)
        return -average(self.scores)["si_sdr"]


def new_tally(device: str | torch.device) -> torch.Tensor:
    """Zeros for the five sums that ``count`` gives."""
    return torch.zeros(5, dtype=torch.float64, device=device)


def count(losses: torch.Tensor, kept: torch.Tensor, seconds: float) -> torch.Tensor:
    """What losses [B] in dB add to the sums over a step; no value leaves its device.

    The sum of the finite, their number, the number of others, kept, seconds.

    Example
    -------
    >>> count(torch.tensor([-3.0, float("nan")]), torch.tensor(2), 4.0).tolist()
    [-3.0, 1.0, 1.0, 2.0, 4.0]
    """
    losses = losses.double()
    finite = torch.isfinite(losses)
    total = losses.where(finite, 0).sum()
    number = finite.sum()
    return torch.stack(
        [total, number, len(losses) - number, kept, total.new_tensor(seconds)]
    )
