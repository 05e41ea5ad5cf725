"""The Brain: learns, resumes exactly, and scores a batch as it scores each alone."""

import copy
import csv
import json
import math
import os
import sys
from contextlib import nullcontext
from statistics import fmean

import pytest
import speechbrain as sb
import torch
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.utils.train_logger import FileTrainLogger, TrainLogger

from speechbrain_spgm.data import Mixture, MixtureBatch, MixtureList, UserError
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.statistics import Running
from speechbrain_spgm.metrics import pictures
from speechbrain_spgm.metrics.pictures import save
from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss
from speechbrain_spgm.training import brain as brain_module
from speechbrain_spgm.training import progress
from speechbrain_spgm.training.brain import SeparationBrain
from tests.training.ranks import touch
from tests.training.tiny import RATE, Tones, fit, make_brain


@pytest.fixture(autouse=True)
def pictures_take_no_time(monkeypatch):
    """They are made, but drawn only where a test looks at one."""
    monkeypatch.setattr(pictures, "save", touch)


class Killed(Exception):
    """Stands for a kill signal."""


class Fragile(SeparationBrain):
    """Is killed at a chosen training batch."""

    killed_at = None
    steps = 0

    def fit_batch(self, batch):
        self.steps += 1
        if self.steps == self.killed_at:
            raise Killed
        return super().fit_batch(batch)


class Broken(Tones):
    """Tones, of which one is not a number."""

    def __getitem__(self, index):
        mixture = super().__getitem__(index)
        return mixture._replace(mix=mixture.mix / 0) if index == 3 else mixture


class Rows(TrainLogger):
    """A logger that keeps what it is told."""

    def __init__(self):
        self.rows = []

    def log_stats(self, stats_meta, **stats):
        self.rows.append({**stats_meta, **stats})


def parameters(brain):
    """A copy of all parameters, by name."""
    return {k: v.clone() for k, v in brain.networks.state_dict().items()}


def assert_same(one, other, **tolerance):
    """The same parameters, exactly if there is no tolerance."""
    assert one.keys() == other.keys()
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    whole = make_brain(tmp_path / "whole")
    fit(whole)

    # 4 steps an epoch: killed in the second, 1 step after a checkpoint.
    killed = make_brain(tmp_path / "killed", brain_class=Fragile, ckpt_interval_steps=3)
    killed.killed_at = 4 + 4
    with pytest.raises(Killed):
        fit(killed)
    resumed = make_brain(
        tmp_path / "killed", brain_class=Fragile, ckpt_interval_steps=3
    )
    fit(resumed)

    assert resumed.steps == 1
    assert resumed.optimizer_step == whole.optimizer_step == 8
    assert_same(parameters(resumed), parameters(whole))


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


def test_a_checkpoint_killed_while_deleted_does_not_count(tmp_path, monkeypatch):
    brain = make_brain(tmp_path / "run", epochs=1)
    brain.checkpointer.save_checkpoint()
    (old,) = brain.checkpointer.list_checkpoints()

    def kill(folder):
        (folder / "masknet.ckpt").unlink()
        raise Killed

    monkeypatch.setattr("shutil.rmtree", kill)
    with pytest.raises(Killed):
        brain.checkpointer.save_and_keep_only()
    monkeypatch.undo()
    assert old not in brain.checkpointer.list_checkpoints()
    assert len(brain.checkpointer.list_checkpoints()) == 1
    brain.checkpointer.save_checkpoint()
    assert not list(brain.checkpointer.checkpoints_dir.glob("*/*.partial"))


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
    again = make_brain(tmp_path / "run", brain_class=Fragile, test_only=True)
    fit(again)
    again.evaluate(Tones(seed=3), max_key="si_sdri")
    assert again.steps == 0
    assert again.scores == brain.scores


def test_random_weights_are_not_tested(tmp_path):
    brain = make_brain(tmp_path / "new", test_only=True)
    with pytest.raises(UserError, match="no checkpoint in .*new"):
        brain.evaluate(Tones(seed=3), max_key="si_sdri")


def test_weights_from_within_an_epoch_are_not_tested(tmp_path):
    brain = make_brain(tmp_path / "run")
    brain.checkpointer.save_checkpoint(end_of_epoch=False)
    brain = make_brain(tmp_path / "run", test_only=True)
    with pytest.raises(UserError, match="of a whole epoch: train first"):
        brain.evaluate(Tones(seed=3), max_key="si_sdri")


def test_the_middle_of_an_epoch_is_continued_by_as_many_ranks(tmp_path, monkeypatch):
    """Each has seen its own part; a whole epoch is continued by any number."""
    for end, continues in ((False, False), (True, True)):
        brain = make_brain(tmp_path / str(end))
        brain.checkpointer.save_checkpoint(end_of_epoch=end)
        with monkeypatch.context() as patch:
            patch.setattr(progress, "world_size", lambda: 2)
            again = make_brain(tmp_path / str(end))
            said = "epoch with world size 1, .*: take as many, not 2"
            with nullcontext() if continues else pytest.raises(UserError, match=said):
                again.checkpointer.recover_if_possible()
        assert make_brain(tmp_path / str(end)).checkpointer.recover_if_possible()


def test_a_wrong_scheduler_costs_no_epoch(tmp_path):
    with pytest.raises(UserError, match="lr_annealing is a NoamScheduler"):
        make_brain(tmp_path, hparams={"lr_annealing": NoamScheduler(1.0, 10)})


def test_ranks_have_equally_many_batches_whatever_the_order(tmp_path, monkeypatch):
    numbers = []
    for rank in (0, 1):
        monkeypatch.setattr(brain_module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(brain_module, "world_size", lambda: 2)
        loader = make_brain(tmp_path).make_dataloader(
            Tones(seed=1, number=5), sb.Stage.TRAIN, batch_size=1
        )
        numbers.append(len(loader))
    assert numbers == [3, 3]


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


def test_each_utterance_of_a_batch_has_the_loss_it_has_alone(tmp_path):
    brain = make_brain(tmp_path / "run")
    mixtures = []
    for index, samples in enumerate((1, 15, 16, 170, 333, 800, 1601, 2400)):
        sources = torch.randn(samples, 2)
        mixtures.append(Mixture(str(index), sources.sum(-1), sources))
    brain.modules.train()
    for batch in [mixtures, *([mixture] for mixture in mixtures)]:
        batch = MixtureBatch.collate(batch)
        estimates = brain.compute_forward(batch, sb.Stage.TRAIN)
        brain.compute_objectives(estimates, batch, sb.Stage.TRAIN)
        if len(batch.ids) == 8:
            together = brain.losses
        else:
            assert brain.losses[0].item() == pytest.approx(
                together[int(batch.ids[0])].item(), abs=1e-4
            )


def test_accumulated_batches_make_one_step(tmp_path):
    """Of unequal length, and the threshold drops one: the mean of all that are kept."""
    tones = Tones(seed=1, number=4)
    tones.set_epoch(1)
    batch = MixtureBatch.collate([tones[i] for i in range(4)])
    brain = make_brain(tmp_path / "manual")
    with torch.no_grad():
        estimates = brain.compute_forward(batch, sb.Stage.TRAIN)
        brain.compute_objectives(estimates, batch, sb.Stage.TRAIN)
    threshold = (brain.losses.sort().values[1] - 1e-3).item()
    estimates = brain.compute_forward(batch, sb.Stage.TRAIN)
    kept = brain.losses > threshold
    pit_si_sdr_loss(estimates, batch.sources, batch.lengths).loss[
        kept
    ].mean().backward()
    rate = 3e-3 / 3  # the first of three steps of warm-up
    expected = {
        name: (parameter - rate * parameter.grad).detach()
        for name, parameter in brain.networks.named_parameters()
    }
    assert kept.sum() == 3

    for batch_size, factor in ((4, 1), (1, 4)):
        brain = make_brain(
            tmp_path / f"{batch_size}",
            epochs=1,
            optimizer=torch.optim.SGD,
            hparams={"loss_threshold": threshold},
            grad_accumulation_factor=factor,
            max_grad_norm=-1,
        )
        fit(brain, train_set=tones, batch_size=batch_size)
        assert brain.optimizer_step == 1
        moved = {name: parameters(brain)[name] for name in expected}
        assert_same(moved, expected, rtol=0, atol=1e-6)


def test_a_run_for_streams_has_their_averages(tmp_path):
    """All but the network of SepFormer, which has none."""
    brain = make_brain(tmp_path, epochs=1, hparams={"statistics": "running"})
    fit(brain)
    sources = torch.randn(2 * RATE, 2, generator=torch.Generator().manual_seed(0))
    batch = MixtureBatch.collate([Mixture("long", sources.sum(1), sources)])
    nets = brain.networks.eval()
    running, whole = (
        separate(**nets, mix=batch.mix, statistics=statistics)
        for statistics in (Running(RATE // 80), None)  # chunks of a second, 80 samples
    )
    est = brain.compute_forward(batch, sb.Stage.VALID)
    assert torch.equal(est, running) and not torch.allclose(est, whole, rtol=1e-3)
    brain.networks["masknet"] = torch.nn.Identity()
    with pytest.raises(UserError, match="^statistics is 'running', but the network is"):
        brain.compute_forward(batch, sb.Stage.VALID)


def test_steps_draw_their_averages_from_a_list(tmp_path):
    """The same ones in every run; validation has the first."""
    names = ["running", "whole"]
    drawn = []
    for run in ("first", "again"):
        brain = make_brain(tmp_path / run, epochs=1, hparams={"statistics": names})
        drawn.append([])
        for brain.step in range(40):
            rule = brain._statistics(sb.Stage.TRAIN)
            drawn[-1].append(isinstance(rule, Running))
            assert isinstance(brain._statistics(sb.Stage.VALID), Running)
    assert drawn[0] == drawn[1] and 10 <= sum(drawn[0]) <= 30
    brain.epoch = 1
    drawn.append([])
    for brain.step in range(40):
        drawn[-1].append(brain._statistics(sb.Stage.TRAIN) is not None)
    assert drawn[2] != drawn[0]
    fit(brain)
    assert brain.optimizer_step > 0
    # Not only when a step draws what another network lacks.
    brain = make_brain(tmp_path, epochs=1, hparams={"statistics": names[::-1]})
    brain.networks["masknet"] = torch.nn.Identity()
    with pytest.raises(UserError, match="^statistics is ..whole., .running.., but"):
        brain._statistics(sb.Stage.VALID)


def test_a_run_that_made_all_its_steps_begins_no_epoch(tmp_path):
    for _ in range(2):
        brain = make_brain(tmp_path, epochs=5, optimizer_step_limit=2)
        fit(brain)
        assert [row["epoch"] for row in brain.progress.history] == [1]
    brain = make_brain(tmp_path, epochs=2, optimizer_step_limit=6)
    fit(brain)  # goes on
    assert [row["epoch"] for row in brain.progress.history] == [1, 2]


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_share_of_the_first_weights_is_tested(tmp_path, ema_decay):
    hparams = {"start_share": 0.25, "ema_decay": ema_decay}
    brain = make_brain(tmp_path / "run", epochs=1, hparams=hparams)
    start = parameters(brain)
    fit(brain)
    trained = parameters(brain)
    if ema_decay:
        trained = {n: p.clone() for n, p in brain.ema.module.named_parameters()}
    brain.evaluate(Tones(seed=2), max_key="si_sdri", progressbar=False)
    wanted = {n: 0.25 * start[n] + 0.75 * trained[n] for n in start}
    assert_same(parameters(brain), wanted, rtol=0, atol=1e-6)
    assert any((start[n] - trained[n]).abs().max() > 1e-3 for n in start)


def test_easy_batches_make_no_step(tmp_path):
    brain = make_brain(tmp_path / "run", epochs=1, hparams={"loss_threshold": 1000})
    start = parameters(brain)
    fit(brain)
    assert brain.optimizer_step == 0
    assert_same(parameters(brain), start)


def test_batches_that_are_not_finite_are_left_out_and_counted(tmp_path):
    rows = Rows()
    brain = make_brain(
        tmp_path / "run",
        epochs=2,
        hparams={"train_logger": [rows, FileTrainLogger(tmp_path / "log.txt")]},
    )
    fit(brain, train_set=Broken(seed=1), batch_size=1)
    assert [row["train_stats"]["skipped"] for row in rows.rows] == [1, 1]
    assert "train skipped: 1" in (tmp_path / "log.txt").read_text()
    assert brain.optimizer_step == 2 * 6
    assert all(torch.isfinite(v).all() for v in parameters(brain).values())
    # Positive dB are good: the mean of what was learned from, and of all validated.
    stats = rows.rows[-1]
    assert stats["train_stats"]["si_sdr"] == pytest.approx(brain.progress.si_sdr)
    assert stats["valid_stats"]["si_sdri"] == pytest.approx(
        fmean(score.si_sdri for score in brain.scores)
    )


def test_gradients_that_are_not_finite_are_left_out(tmp_path):
    brain = make_brain(tmp_path / "run", epochs=1)
    start = parameters(brain)
    brain.modules.decoder.weight.register_hook(lambda grad: grad / 0)
    with pytest.raises(UserError, match="last 4 steps .* not finite"):
        fit(brain, batch_size=1)
    assert_same(parameters(brain), start)


def test_a_moving_average_is_validated_tested_and_left_in_the_modules(tmp_path):
    brain = make_brain(tmp_path / "run", hparams={"ema_decay": 0.5})
    assert not brain.ema.training
    trail = []

    def remember(*args):
        trail.append(parameters(brain))

    brain.optimizers_step = lambda: (SeparationBrain.optimizers_step(brain), remember())
    fit(brain)
    expected = trail[0]
    for weights in trail[1:]:
        expected = {k: (expected[k] + weights[k]) / 2 for k in expected}
    assert_same(brain.ema.module.state_dict(), expected, rtol=0, atol=1e-6)

    validated = [score.si_sdri for score in brain.scores]
    again = make_brain(
        tmp_path / "run", hparams={"ema_decay": 0.5}, test_only=True, epochs=2
    )
    fit(again)
    again.evaluate(Tones(seed=2))  # the newest checkpoint
    assert_same(parameters(again), brain.ema.module.state_dict())
    # The same mixtures but for the epoch, which Tones knows of in training only.
    assert fmean(s.si_sdri for s in again.scores) == pytest.approx(
        fmean(validated), abs=1e-3
    )


def test_the_best_checkpoints_are_kept_and_averaged(tmp_path):
    hparams = {"average_checkpoints": 2}
    brain = make_brain(tmp_path / "run", epochs=4, hparams=hparams)
    fit(brain, train_set=Tones(seed=1, number=2))
    kept = brain.checkpointer.find_checkpoints(max_key="si_sdri")
    history = [row["valid_si_sdri"] for row in brain.progress.history]
    assert [c.meta["si_sdri"] for c in kept[:2]] == sorted(history)[:1:-1]
    assert len(kept) == 2 + (history[-1] not in sorted(history)[2:])

    brain.evaluate(Tones(seed=3), max_key="si_sdri")
    for name in ("encoder", "masknet", "decoder"):
        first, second = (torch.load(c.paramfiles[name]) for c in kept[:2])
        mean = {key: (first[key] + second[key]) / 2 for key in first}
        assert_same(brain.networks[name].state_dict(), mean, rtol=0, atol=1e-7)
        assert not torch.equal(first[key := next(iter(first))], second[key])


def test_a_validation_without_a_number_is_never_the_best(tmp_path, monkeypatch):
    values = iter([3.0, 9.0, math.nan, 4.0])

    def average(scores):
        return dict.fromkeys(("si_sdr", "si_sdri"), next(values))

    monkeypatch.setattr(brain_module, "average", average)
    brain = make_brain(tmp_path / "run", epochs=4)
    fit(brain)
    assert brain.checkpointer.find_checkpoint(max_key="si_sdri").meta["si_sdri"] == 9


def test_bfloat16_keeps_weights_loss_and_residual_in_float32(tmp_path):
    full = make_brain(tmp_path / "fp32")
    short = make_brain(tmp_path / "bf16", precision="bf16")
    fit(full)
    fit(short)
    losses = [row["train_si_sdr"] for row in short.progress.history]
    expected = [row["train_si_sdr"] for row in full.progress.history]
    assert losses == pytest.approx(expected, abs=0.5)
    assert losses != expected
    assert short.losses.dtype == torch.float32
    assert {v.dtype for v in parameters(short).values()} == {torch.float32}


def test_half_precision_on_a_cpu_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="not yet supported on CPU"):
        make_brain(tmp_path / "run", precision="fp16")


def test_a_run_shows_curves_and_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "save", save)
    brain = make_brain(tmp_path / "run", epochs=1, hparams={"num_examples": 1})
    fit(brain)
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    shown = {path.name for path in (tmp_path / "run" / "examples").iterdir()}
    assert {"1_0_mix.wav", "1_0_est1.wav", "1_0_ref2.wav", "1_0.png"} <= shown


def test_a_run_without_matplotlib_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    brain = make_brain(tmp_path / "run", epochs=1, hparams={"num_examples": 1})
    fit(brain)
    assert not (tmp_path / "run" / "curves.png").exists()
    assert (tmp_path / "run" / "examples" / "1_0_mix.wav").exists()


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
