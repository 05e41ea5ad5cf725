"""What every train.py needs around a Brain: the yaml, the datasets, the run itself.

A recipe adds only how its corpus becomes manifests.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import ddp_init_group, if_main_process, run_on_main

from speechbrain_spgm.console import (
    WRONG_INPUT,
    Stream,
    ensure_utf8,
    exit_code,
    surroundings,
)
from speechbrain_spgm.data import DynamicMixing, ManifestDataset, MixtureList
from speechbrain_spgm.data.manifests import ManifestRow, write_manifest
from speechbrain_spgm.data.recordings import (
    find_noise,
    find_voices,
    read_voices,
    tell_lower_rates,
)
from speechbrain_spgm.errors import UserError, first_line, refusal, writing
from speechbrain_spgm.files import check_writable, lock_alone
from speechbrain_spgm.metrics.scores import check_metrics
from speechbrain_spgm.models.published import YAML_FILE
from speechbrain_spgm.training.brain import SeparationBrain
from speechbrain_spgm.training.checkpoints import WholeCheckpointer
from speechbrain_spgm.training.command import record_command
from speechbrain_spgm.training.initialise import initialise, start_from
from speechbrain_spgm.training.ranks import part, rank
from speechbrain_spgm.training.settings import (
    TEST,
    TRAIN,
    VALID,
    Settings,
    check_continued,
    check_stride,
)

logger = logging.getLogger(__name__)
KINDS = ("manifest", "list")  # of files that name mixtures
# What a recipe knows of its corpus: from the built yaml and train, valid or test to the
# mixtures that lie in data_folder.
Scan = Callable[[Mapping[str, Any], str], list[ManifestRow]]
# SpeechBrain greets everybody without torchvision, which no recipe uses.
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision is not available" not in record.getMessage()
)
for talker in ("matplotlib", "PIL"):  # else most of log.txt is about fonts
    logging.getLogger(talker).setLevel(logging.INFO)


class Datasets(NamedTuple):
    """What a run reads; nothing to train or validate on if it only tests."""

    train: ManifestDataset | MixtureList | DynamicMixing | None
    valid: ManifestDataset | MixtureList | None
    test: ManifestDataset | MixtureList


@contextmanager
def user_errors() -> Iterator[None]:
    """Runs a script's work: errors of its user become one sentence and exit code 2.

    So do a full or read-only disk; Ctrl-C gives exit code 130 and SIGTERM 143.
    """
    ensure_utf8()
    try:
        with surroundings():
            yield
    except UserError as error:
        complain(f"Error: {error}")
        code = WRONG_INPUT
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        name = getattr(error, "filename", None) or "A file"
        complain(
            f"Error: {name} cannot be read or written ({reason}): make room, or take "
            "another folder."
        )
        code = WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        if rank() == 0:
            complain(
                str(interrupt)
                or "Interrupted: the same command goes on or begins again."
            )
        code = exit_code(interrupt)
        if not str(interrupt):  # not at the agreed moment: another process may wait
            sys.exit(code)
    else:
        code = 0
    part()  # what main() held is free here
    if code:
        sys.exit(code)


def complain(line: str) -> None:
    """Says something on stderr, wherever that leads."""
    Stream(sys.stderr).write(f"{line}\n")


def build(path: str | Path, text: str) -> dict[str, Any]:
    """Builds a resolved yaml, with the weights to begin with; ``path`` is for words."""
    try:
        hparams = load_hyperpyyaml(text)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Something in {path} or the command line needs the package {error.name}: "
            f"run pip install {error.name}."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a yaml may name any class, with errors of its own
        if refusal(error) is not None:
            raise
        reason = first_line(Exception(*error.args[-1:]))[:200]
        raise UserError(
            f"{path} cannot be built with these values ({type(error).__name__}: "
            f"{reason}): check the command line."
        ) from error
    check_loss(hparams.get("loss"), hparams.get("num_spks", 2))
    modules = hparams.get("modules") or {}
    encoder, decoder = (modules.get(name) for name in ("encoder", "decoder"))
    convolution = getattr(encoder, "conv1d", encoder)
    for one in (convolution, decoder):
        if hasattr(one, "kernel_size") and hasattr(one, "stride"):
            check_stride(*convolution.kernel_size, *decoder.stride)
            break
    if modules:  # from scratch; a checkpoint in the output folder still replaces this
        initialise(modules, hparams.get("filterbank", "random"))
        if hparams.get("start_from") is not None:
            start_from(modules, hparams["start_from"])
        elif hparams.get("start_share"):
            raise UserError(
                f"start_share is {hparams['start_share']}, but there is no start_from "
                "whose weights they could be: give both, or neither."
            )
    return hparams


def check_loss(loss: Callable | None, num_spks: int) -> None:
    """Tries a loss on a second of noise, before a recording is opened."""
    if loss is None:
        return
    # The draws of the run stay as they are; the default device may be another.
    with torch.random.fork_rng([]), torch.device("cpu"):
        est, ref = torch.rand(2, 1, 8000, num_spks).unbind()
        try:
            found = tuple(loss(est, ref, torch.tensor([8000])).loss.shape)
        except Exception as error:
            found = f"{type(error).__name__}: {first_line(error)[:200]}"
    if found != (1,):
        raise UserError(
            f"loss gives no loss of each utterance ({found}): it must take estimates, "
            "references and lengths, and return what pit_si_sdr_loss does."
        )


def join_processes(run_opts: Any) -> None:
    """Joins the other processes of a launch by torchrun, if there is one.

    Raises
    ------
    UserError
        If the backend does not work here.
    """
    if "RANK" in os.environ:
        # Imported later, by the first DistributedDataParallel, it would keep the group.
        import_module("torch._dynamo")
    try:
        ddp_init_group(run_opts)
    except (ValueError, RuntimeError) as error:
        gpus, backend = torch.cuda.device_count(), run_opts["distributed_backend"]
        reason = first_line(error)[:200]
        if backend != "gloo" and int(os.environ.get("LOCAL_RANK", 0)) >= gpus:
            reason = f"this machine has {gpus} GPUs, fewer than processes"
        raise UserError(
            f"The processes cannot be joined by {backend} ({reason}): start fewer with "
            "--nproc_per_node, or train on CPUs with --distributed_backend gloo."
        ) from None


@contextmanager
def claim_folder(settings: Settings) -> Iterator[None]:
    """Keeps a run's folder for this run alone, until the end of the block.

    A folder that was made inside is gone again after an error before the run began.

    Arguments
    ---------
    settings : Settings
        From ``read_settings``.

    Raises
    ------
    UserError
        If the folder holds another experiment, another training works in it, or it
        cannot be made.
    """
    folder = settings.output_folder
    check_continued(settings)
    with ExitStack() as stack:
        stack.enter_context(nothing_new_after_errors(folder))
        run_on_main(lock_folder, args=[folder, stack])
        yield


def lock_folder(folder: Path, stack: ExitStack) -> None:
    """Makes and locks a folder until the stack is left."""
    with writing(f"The output folder {folder}", "take another --output_folder"):
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        lock = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, lock)
    if not lock_alone(lock):
        raise UserError(
            f"Another training works in {folder}: wait for its end, or take another "
            "--output_folder."
        )


def open_datasets(
    hparams: Mapping[str, Any], scan: Scan, test_only: bool = False
) -> Datasets:
    """Finds, prepares and checks all the data that a run needs.

    Each of train, valid and test is the manifest ``<name>_manifest`` if the yaml names
    one, else the LibriMix list ``<name>_list``, else what lies in ``data_folder``; with
    ``dynamic_mixing`` the training mixtures are new in every epoch.

    Arguments
    ---------
    hparams : mapping
        The built yaml of a recipe.
    scan : callable
        Gives the mixtures in ``data_folder``; gets the built yaml, and ``"train"``,
        ``"valid"`` or ``"test"``.
    test_only : bool
        Leave out what only training needs.

    Returns
    -------
    Datasets
        Every file of theirs was opened.

    Raises
    ------
    UserError
        If something is missing or wrong; a new output folder is then gone again.
    """
    check_metrics(hparams["metrics"], hparams["sample_rate"])
    names = [TEST] if test_only else [TRAIN, VALID, TEST]
    if TRAIN in names:
        check_mixing(hparams)
    with nothing_new_after_errors(Path(hparams["output_folder"])):
        manifests = find_manifests(hparams, scan, names)
        datasets = {
            name: open_mixing(hparams)
            if name == TRAIN and hparams["dynamic_mixing"]
            else open_listed(hparams, name, manifests.get(name))
            for name in names
        }
        keep_apart(datasets)
    parts = [getattr(dataset, "recordings", []) for dataset in datasets.values()]
    tell_lower_rates(chain.from_iterable(parts), hparams["sample_rate"])
    return Datasets(datasets.get(TRAIN), datasets.get(VALID), datasets[TEST])


@contextmanager
def nothing_new_after_errors(folder: Path) -> Iterator[None]:
    """Removes a folder that was made inside, and the empty ones above, after an error.

    Example
    -------
    >>> folder = getfixture("tmp_path") / "results" / "1234"
    >>> with user_errors(), nothing_new_after_errors(folder):
    ...     folder.mkdir(parents=True)
    ...     raise UserError("The data folder x does not exist.")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    >>> folder.parent.exists()
    False
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        begun = (folder / YAML_FILE).is_file()
        if new and not begun and if_main_process():
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another run may work there by now
                for path in new[1:]:
                    path.rmdir()
        raise


def check_mixing(hparams: Mapping[str, Any]) -> None:
    """Refuses training data that would not be used."""
    mixing = hparams["dynamic_mixing"]
    unused = ("train_manifest", "train_list")
    if not mixing:
        unused = ("base_folder_dm", "extra_voices")
    for name in unused:
        if hparams.get(name) is not None:
            raise UserError(
                f"{name} is {hparams[name]}, but dynamic_mixing is {mixing}: give "
                f"--dynamic_mixing {not mixing}, or leave {name} out."
            )
    listed = False
    for name in (TRAIN, VALID, TEST):
        manifest, by_list = (hparams.get(f"{name}_{kind}") for kind in KINDS)
        if manifest is not None and by_list is not None:
            raise UserError(
                f"{name}_manifest and {name}_list are both given: leave one out."
            )
        listed |= by_list is not None
    clean = hparams.get("mixture_type", "mix_clean") == "mix_clean"
    if hparams.get("noise_folder") is not None and not mixing and (clean or not listed):
        raise UserError(
            f"noise_folder is {hparams['noise_folder']}, but nothing is mixed with its "
            "noise: give --dynamic_mixing True, or lists and --mixture_type mix_both, "
            "or leave it out."
        )


def find_manifests(
    hparams: Mapping[str, Any], scan: Scan, names: list[str]
) -> dict[str, Path]:
    """The manifest of each of ``names`` but those that come from elsewhere.

    The main process prepares what the yaml does not name; the others wait for it.
    """
    given = {name: hparams[f"{name}_manifest"] for name in names}
    manifests = {name: Path(path) for name, path in given.items() if path is not None}
    missing = [
        name
        for name in names
        if name not in manifests
        and hparams.get(f"{name}_list") is None
        and not (name == TRAIN and hparams["dynamic_mixing"])
    ]
    if missing:
        if hparams["data_folder"] is None:
            raise UserError(
                f"There is no data for {' and '.join(missing)}: give --data_folder, or "
                f"{' and '.join(f'--{name}_manifest' for name in missing)}."
            )
        folder = Path(hparams["output_folder"]) / "manifests"
        prepared = {name: folder / f"{name}.csv" for name in missing}
        run_on_main(write_manifests, args=[hparams, scan, prepared])
        manifests.update(prepared)
    return manifests


def write_manifests(
    hparams: Mapping[str, Any], scan: Scan, paths: Mapping[str, Path]
) -> None:
    """Writes down what lies in ``data_folder``, a manifest for each name."""
    for name, path in paths.items():
        write_manifest(path, scan(hparams, name))


def open_listed(
    hparams: Mapping[str, Any], name: str, manifest: Path | None
) -> ManifestDataset | MixtureList:
    """The mixtures of a manifest, or without one those of the list ``<name>_list``."""
    options = {"num_spks": hparams["num_spks"], "sample_rate": hparams["sample_rate"]}
    if name == TRAIN:
        for knob in ("segment_seconds", "seed", "speeds", "augmentations"):
            options[knob] = hparams[knob]
    elif name == VALID:
        options["limit"] = hparams["valid_mixtures"]
    if manifest is not None:
        return ManifestDataset(manifest, **options)
    if hparams["data_folder"] is None:
        raise UserError(
            f"The mixtures of {name}_list need recordings: give the LibriSpeech folder "
            "as --data_folder."
        )
    return MixtureList(
        hparams[f"{name}_list"],
        hparams["data_folder"],
        mode=hparams["mixture_mode"],
        mixture=hparams.get("mixture_type", "mix_clean"),
        noise_folder=hparams["noise_folder"],
        **options,
    )


def open_mixing(hparams: Mapping[str, Any]) -> DynamicMixing:
    """New training mixtures in every epoch, of all recordings that the yaml names."""
    folder = hparams["base_folder_dm"] or hparams["data_folder"]
    extra = hparams["extra_voices"]
    if folder is None and extra is None:
        raise UserError("There is nothing to mix dynamically: give --base_folder_dm.")
    voices = find_voices(folder, hparams["train_splits"]) if folder is not None else []
    if extra is not None:
        voices += read_voices(extra, split="train")
    if hparams["dynamic_seconds"] is None:
        raise UserError(
            "Mixtures that are mixed dynamically need a duration: give "
            "--dynamic_seconds."
        )
    noise = hparams["noise_folder"]
    if noise is None and hparams.get("mixture_type", "mix_clean") != "mix_clean":
        raise UserError(
            f"To mix {hparams['mixture_type']} dynamically, give --noise_folder."
        )
    return DynamicMixing(
        voices,
        num_spks=hparams["num_spks"],
        sample_rate=hparams["sample_rate"],
        segment_seconds=hparams["dynamic_seconds"],
        mixtures_per_epoch=hparams["mixtures_per_epoch"],
        loudness_db=hparams["loudness_db"],
        speeds=hparams["speeds"],
        cache_audio=hparams["cache_audio"],
        seed=hparams["seed"],
        levels=hparams["levels"],
        noise=find_noise(noise) if noise is not None else (),
        noise_loudness_db=hparams["noise_loudness_db"],
        noise_share=hparams.get("noise_share", 1.0),
        augmentations=hparams["augmentations"],
        join_recordings=hparams.get("join_recordings", False),
        speaker_power=hparams.get("speaker_power", 0),
    )


def keep_apart(datasets: Mapping[str, Any]) -> None:
    """Makes sure that no speaker of validation or test is trained on, where known."""
    trained = getattr(datasets.get(TRAIN), "speakers", set())
    noises = {file.path.resolve() for file in getattr(datasets.get(TRAIN), "noise", ())}
    for name in (VALID, TEST):
        held_out = datasets.get(name)
        shared = sorted(trained & getattr(held_out, "speakers", set()))
        if shared:
            raise UserError(
                f"Speaker {shared[0]} of the list {held_out.path} is also among the "
                "training recordings: separate their splits."
            )
        ids = [entry[0] for entry in getattr(held_out, "entries", ())]
        known = sorted(trained & {name for id in ids for name in speakers_in(id)})
        if known and if_main_process():
            logger.warning(
                f"{len(known)} of the speakers in {held_out.path} are also trained on, "
                f"such as {known[0]}: its result is none for strangers."
            )
        heard = [file.path for file, _ in getattr(held_out, "noises", ())]
        heard = [path for path in heard if path.resolve() in noises]
        if heard and if_main_process():
            logger.warning(
                f"{len(heard)} mixtures of the list {held_out.path} hold noise that "
                f"is also trained on, such as {heard[0]}: give as noise_folder a part "
                "for training alone, such as wham_noise/tr."
            )


def speakers_in(id: str) -> list[str]:
    """The speakers of a mixture of LibriSpeech, as its name has them; else none.

    Example
    -------
    >>> speakers_in("61-70968-0000_8455-210777-0012"), speakers_in("rain-0001")
    (['61', '8455'], [])
    """
    words = [re.fullmatch(r"(\d+)-\d+-\d+", word) for word in id.split("_")]
    return [word[1] for word in words] if all(words) else []


def train_and_test(
    hparams: Mapping[str, Any], run_opts: Any, datasets: Datasets
) -> SeparationBrain:
    """Trains, unless ``--test_only``, and tests the best checkpoint.

    A run that was interrupted continues where it was.

    Arguments
    ---------
    hparams : mapping
        The built yaml of a recipe.
    run_opts : RunOptions
        From SpeechBrain's ``parse_arguments``.
    datasets : Datasets
        From ``open_datasets``.

    Returns
    -------
    brain : SeparationBrain
        With the tested weights in its modules and the test's ``scores``.
    """
    run_on_main(record_command, args=[hparams["output_folder"]])
    brain = SeparationBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=WholeCheckpointer(
            Path(hparams["output_folder"]) / "save",
            {"epoch_counter": hparams["epoch_counter"]},
        ),
    )
    with no_denormals():
        brain.fit(
            hparams["epoch_counter"],
            datasets.train,
            datasets.valid,
            train_loader_kwargs=hparams["train_loader"],
            valid_loader_kwargs=hparams["eval_loader"],
        )
    brain.evaluate(
        datasets.test, max_key="si_sdri", test_loader_kwargs=hparams["eval_loader"]
    )
    return brain


@contextmanager
def no_denormals() -> Iterator[None]:
    """Lets CPUs take numbers below 1e-38 as zero.

    The gradients of sharp attention hold many, and each makes a processor stumble: a
    training step of a small network took twice the time.

    Example
    -------
    >>> with no_denormals():
    ...     print(torch.tensor([1e-39]) * 1)
    tensor([0.])
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
