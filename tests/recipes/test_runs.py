"""Toy runs of every experiment yaml, as a user starts them.

That is train.py with the flags in LibriMix.csv and WSJ0Mix.csv, whose paths are
relative to the folder of small corpora in conftest.py. All but one run in this process.
"""

import csv
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from speechbrain.inference.separation import SepformerSeparation

from speechbrain_spgm.data import UserError
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.metrics import pictures
from speechbrain_spgm.training.experiment import lock_folder
from speechbrain_spgm.training.settings import read_settings

ROOT = Path(__file__).resolve().parents[2]
ROWS = {}
for table in sorted(Path(__file__).parent.glob("*.csv")):
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ROWS[f"{row['Dataset']}-{Path(row['Hparam_file']).stem}"] = row


def command(name: str, output: Path, *flags: str) -> list[str]:
    """train.py and its arguments; later flags replace those of the row."""
    row = ROWS[name]
    merged = {
        flag.split("=")[0]: flag
        for flag in [*row["test_debug_flags"].split(), f"--output_folder={output}"]
    }
    merged |= {flag.split("=")[0]: flag for flag in flags}
    files = [str(ROOT / row[column]) for column in ("Script_file", "Hparam_file")]
    return [*files, *merged.values()]


@pytest.fixture
def train(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Runs train.py in this process, where it must leave nothing behind."""
    monkeypatch.chdir(corpora)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    # The first would close pytest's own log handlers, the others take seconds.
    monkeypatch.setattr(sb.utils.logger, "setup_logging", lambda *args: None)
    monkeypatch.setattr(sb.utils.logger, "get_environment_description", str)
    monkeypatch.setattr(pictures, "save", lambda figure, path: Path(path).touch())

    def run(name: str, *flags: str) -> Path:
        argv = command(name, tmp_path / "results" / "out", *flags)
        monkeypatch.setattr(sys, "argv", argv)
        runpy.run_path(argv[0], run_name="__main__")
        (output,) = (a.partition("=")[2] for a in argv if "output_folder" in a)
        return Path(output)

    return run


def epochs(output: Path) -> list[str]:
    """What the lines of train_log.txt are about."""
    lines = (output / "train_log.txt").read_text().splitlines()
    return [line.split(", ")[0].split(" - ")[0] for line in lines]


def check_files(name: str, output: Path, missing: tuple[str, ...] = ()) -> None:
    """The row's test_debug_checks."""
    wanted = ROWS[name]["test_debug_checks"].removeprefix("file_exists=[").rstrip("]")
    for file in wanted.split(","):
        assert (output / file).is_file() or file in missing, file


def test_every_yaml_has_a_row() -> None:
    yamls = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("recipes/*/separation/hparams/*.yaml")
    }
    assert {row["Hparam_file"] for row in ROWS.values()} == yamls
    for row in ROWS.values():
        for column in ("Script_file", "Data_prep_file", "Readme_file"):
            assert (ROOT / row[column]).is_file(), row[column]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_run_trains_resumes_and_tests(
    name: str, train: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    output = train(name)
    assert epochs(output) == ["epoch: 1", "epoch loaded: 1"]
    assert "SI-SDRi" in capsys.readouterr().out
    once = json.loads((output / "test_summary.json").read_text())

    train(name, "--number_of_epochs=2")
    assert epochs(output)[2] == "epoch: 2"
    twice = json.loads((output / "test_summary.json").read_text())
    assert twice["n"] == once["n"] >= 2

    check_files(name, output, missing=("log.txt",))
    assert once["sdri"]["mean"] == pytest.approx(
        once["sdr"]["mean"] - once["sdr_mix"]["mean"], abs=1e-3
    )
    if name.endswith("sepformer"):
        model = SepformerSeparation.from_hparams(
            str(output / "model"),
            savedir=str(output / "model"),
            run_opts={"device": "cpu"},
        )
    else:
        model = SPGMSeparation.from_pretrained(output / "model", device="cpu")
    spks = model.mods.masknet.num_spks
    assert model.separate_batch(torch.randn(1, 800)).shape == (1, 800, spks)


def test_noise_for_one_speaker(train: Callable[..., Path], tmp_path: Path) -> None:
    """mix_single: the first speaker of two and noise, mixed dynamically too."""
    flags = ["--mixture_type=mix_single", "--num_spks=1"]
    train("LibriMix-spgm", *flags)
    flags += [
        "--dynamic_mixing=True",
        "--dynamic_seconds=0.5",
        "--mixtures_per_epoch=2",
    ]
    flags += ["--base_folder_dm=tests/samples/LibriSpeech"]
    flags += ["--noise_folder=tests/samples/noise", f"--output_folder={tmp_path}/b"]
    assert epochs(train("LibriMix-spgm", *flags)) == ["epoch: 1", "epoch loaded: 1"]


def test_a_loss_is_one_key(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from speechbrain_spgm.metrics.si_sdr import pit_si_sdr_loss\n\n\n"
    code += "def loss(*batch):\n    pit = pit_si_sdr_loss(*batch)\n"
    code += "    return pit._replace(loss=0 * pit.loss + 7)\n"
    (tmp_path / "own_losses.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    output = train("WSJ0Mix-spgm", "--loss=!name:own_losses.loss")
    first, _ = (output / "train_log.txt").read_text().splitlines()
    assert "train si_sdr: -7.00e+00" in first
    assert "!name:own_losses.loss" in (output / "hyperparams.yaml").read_text()


def test_a_word_without_dashes_belongs_to_no_value() -> None:
    yaml = str(ROOT / "recipes/LibriMix/separation/hparams/spgm.yaml")
    with pytest.raises(UserError, match="lr belongs to no option"):
        read_settings([yaml, "--output_folder", "out", "lr", "0.1"])
    values = read_settings([yaml, "--speeds", "[90,", "100]"]).values
    assert values["speeds"] == [90, 100]


@pytest.mark.parametrize(
    "name, licence",
    [("LibriMix-spgm", "CC-BY-4.0"), ("LibriMix-spgm-small", None)],
)
def test_the_card_speaks_of_the_recipes_own_corpus_only(
    name: str, licence: str | None, train: Callable[..., Path]
) -> None:
    output = train(name)
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["speechbrain_spgm"].get("licence") == licence
    assert ("training_data" in config["speechbrain_spgm"]) == bool(licence)
    train(name, "--test_only", "--card={licence: MIT, training_data: mine}")
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["speechbrain_spgm"]["licence"] == "MIT"


def test_only_testing_needs_no_training_data(train: Callable[..., Path]) -> None:
    train("LibriMix-spgm-small")
    own = "tests/samples/own"
    flags = ["--test_only", "--train_manifest=gone.csv", "--valid_manifest=gone.csv"]
    output = train("LibriMix-spgm-small", *flags, f"--test_manifest={own}/valid.csv")
    assert epochs(output) == ["epoch: 1", "epoch loaded: 1", "epoch loaded: 1"]
    record = (output / "hyperparams.yaml").read_text()
    assert "gone.csv" not in record  # it goes on saying what was trained


def test_a_folder_belongs_to_one_experiment(
    train: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    output = train("LibriMix-spgm", "--pool=avg")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    for flag, old, only_tested in [
        ("--pool=max", '"avg"', True),
        ("--N=16", "8", True),
        ("--num_spks=3", "2", True),
        ("--kernel_size=12", "16", True),
        ("--seed=2", "1234", False),
        ("--lr=0.1", "0.00015", False),
        ("--loss_threshold=-20", "-30", False),
        ("--max_grad_norm=1", "5.0", False),  # a run option of SpeechBrain's too
        ("--speeds=[100]", "[95, 100, 105]", False),
        ("--augmentations={shift: 0.5}", "{}", False),
        ("--data_folder=tests/samples", '"tests/samples/LibriMix"', False),
        ("--net={dropout: 0.1}", "0.0", True),
        ("--statistics=running", '"whole"', True),
        ("--ema_decay=0.9", "null", True),
    ]:
        key, _, new = flag[2:].partition("=")
        for more in ([], ["--test_only"])[: 1 + only_tested]:
            capsys.readouterr()
            with pytest.raises(SystemExit) as end:
                train("LibriMix-spgm", "--pool=avg", flag, *more)
            (line,) = capsys.readouterr().err.splitlines()
            assert end.value.code == 2
            assert line.startswith(f"Error: {key}") and "--output_folder" in line
            assert f"was started with {old}:" in line and str(output) in line
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert after == before

    same = ["--pool=avg", "--num_workers=1", "--precision=bf16", "--metrics=[si_sdr]"]
    here = Path("tests/samples/LibriMix").absolute()
    train("LibriMix-spgm", *same, f"--data_folder={here}", "--ckpt_interval_steps=2")
    assert epochs(output) == ["epoch: 1", "epoch loaded: 1", "epoch loaded: 1"]
    train("LibriMix-spgm", "--test_only", "--lr=0.1", "--seed=2", "--pool=avg")


def test_two_trainings_in_one_folder(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "results" / "out"
    with ExitStack() as other:
        lock_folder(folder, other)
        with pytest.raises(SystemExit) as end:
            train("LibriMix-spgm")
        assert end.value.code == 2
        assert "Another training works in" in capsys.readouterr().err
        assert not list(folder.iterdir())
    train("LibriMix-spgm")


MISTAKES = {
    "no data": (
        "LibriMix-spgm-small",
        ["--test_manifest=null"],
        "There is no data for test: give --data_folder, or --test_manifest.",
    ),
    "no folder": (
        "WSJ0Mix-spgm",
        ["--data_folder=tests/nowhere"],
        "The data folder tests/nowhere does not exist",
    ),
    "other speakers": ("WSJ0Mix-spgm", ["--num_spks=4"], "4speakers"),
    "other speakers in a manifest": (
        "LibriMix-spgm-small",
        ["--num_spks=3"],
        "train.csv has 2 source(s) per mixture, but num_spks is 3",
    ),
    "no folder at that rate": ("LibriMix-spgm", ["--sample_rate=16000"], "wav16k"),
    "another rate": (
        "LibriMix-spgm-small",
        ["--sample_rate=16000"],
        "is at 8000 Hz, but sample_rate is 16000",
    ),
    "a missing file": (
        "LibriMix-spgm-small",
        ["--valid_manifest=tests/samples/own/missing.csv"],
        "gone.wav does not exist",
    ),
    "a truncated file": (
        "LibriMix-spgm-small",
        ["--test_manifest=tests/samples/own/truncated.csv"],
        "cut.wav",
    ),
    "no manifest, after others were written": (
        "WSJ0Mix-spgm",
        ["--test_manifest=gone.csv"],
        "The list gone.csv does not exist.",
    ),
    "no lists": (
        "LibriMix-spgm-tiny",
        ["--test_list=tests/samples/gone.csv"],
        "The list tests/samples/gone.csv does not exist.",
    ),
    "a speaker on both sides": (
        "LibriMix-spgm-tiny",
        ["--train_splits=[train-clean-100,dev-clean]"],
        "Speaker 4 of the list",
    ),
    "a filterbank that does not fit": (
        "WSJ0Mix-spgm",
        ["--filterbank=fourier", "--N=10", "--data_folder=tests/nowhere"],
        "filterbank fourier needs N a multiple of 4, but N is 10",
    ),
    "levels that are drawn otherwise": (
        "WSJ0Mix-spgm-tiny",
        ["--loudness_db=[-40, -30]"],
        'but levels is "wsj0mix": leave loudness_db out, or change levels.',
    ),
    "crops of mixtures that have a length": (
        "WSJ0Mix-spgm-tiny",
        ["--segment_seconds=0.4"],
        "segment_seconds is 0.4, but dynamic_seconds is 0.5: leave segment_seconds out",
    ),
    "nothing to mix": (
        "LibriMix-spgm-small",
        ["--dynamic_mixing=True", "--train_manifest=null"],
        "There is nothing to mix dynamically: give --base_folder_dm.",
    ),
    "a manifest beside dynamic mixing": (
        "LibriMix-spgm-small",
        ["--dynamic_mixing=True"],
        "give --dynamic_mixing False, or leave train_manifest out.",
    ),
    "voices without dynamic mixing": (
        "WSJ0Mix-spgm",
        ["--base_folder_dm=tests/samples/wsj0"],
        "give --dynamic_mixing True, or leave base_folder_dm out.",
    ),
    "a list beside a manifest": (
        "LibriMix-spgm-small",
        ["--train_list=tests/samples/train.csv"],
        "train_manifest and train_list are both given",
    ),
    "noise for nothing": (
        "WSJ0Mix-spgm",
        ["--noise_folder=tests/samples/noise"],
        "nothing is mixed with its noise",
    ),
    "a test of nothing": (
        "LibriMix-spgm-small",
        ["--test_only"],
        "There is no checkpoint in",
    ),
    "no loss": (
        "LibriMix-spgm-small",
        ["--loss=!new:torch.nn.L1Loss"],
        "loss gives no loss of each utterance (TypeError",
    ),
    "a split that is a path": (
        "WSJ0Mix-spgm-tiny",
        ["--train_splits=/tests/samples/wsj0/si_tr_s"],
        "name folders in",
    ),
    "no such optimizer": (
        "WSJ0Mix-spgm-small",
        ["--opt_name=sgd", "--data_folder=tests/nowhere"],
        'opt_name is "sgd", but must be adam or muon.',
    ),
    "no such metric": (
        "WSJ0Mix-spgm",
        ["--metrics=[si_sdr,pesk]"],
        "There is no metric 'pesk'",
    ),
    "no duration": (
        "LibriMix-sepformer",
        ["--dynamic_seconds=null"],
        "Mixtures that are mixed dynamically need a duration: give --dynamic_seconds.",
    ),
    "no noise": (
        "LibriMix-sepformer",
        ["--mixture_type=mix_both"],
        "To mix mix_both dynamically, give --noise_folder.",
    ),
}


# Flags that cannot be right, and what the sentence says of them.
WRONG = {
    "--batch_size=two": 'batch_size is "two", but must be a whole number from 1',
    "--batch_size=0": "batch_size is 0",
    "--batch_size=1.5": "batch_size is 1.5",
    "--batch_size=null": "batch_size or max_batch_seconds",
    "--lr=high": 'lr is "high", but must be a number above 0.',
    "--lr=.nan": "lr is",
    "--lr=.inf": "lr is",
    "--lr=-1e-3": "lr is",
    "--lr=[0.1]": "lr is [0.1]",
    "--lr=": "lr has no value: give it as --lr VALUE.",
    "--num_workers=-1": "num_workers is -1",
    "--grad_accumulation_factor=0": "grad_accumulation_factor is 0",
    "--grad_accumulation_factor=two": "grad_accumulation_factor: invalid int value",
    "--number_of_epochs=-2": "number_of_epochs is -2",
    "--pool=mean": "att or avg or max or lem or none.",
    "--nhead=3": "N is 8, which nhead, 3, does not divide",
    "--N=9": "N is 9",
    "--N=": "N has no value",
    "--K=1": "K is 1",
    "--kernel_size=a b": 'kernel_size is "a b"',
    "--stride=7": "stride is 7, but kernel_size is 16: the stride must be half",
    "--seed=-1": "seed is -1",
    "--seed=true": "seed is true, but must be a whole number from 0.",
    "--ema_decay=1": "ema_decay is 1",
    "--speeds=fast": 'speeds is "fast"',
    "--speeds=[0]": "speeds is [0]",
    "--loudness_db=[-33]": "loudness_db is [-33]",
    "--metrics=si_sdr": "metrics is",
    "--dynamic_mixing=maybe": "dynamic_mixing is",
    "--mixture_mode=mean": "mixture_mode is",
    "--filterbank=mel": "random or fourier",
    "--precision=fp8": "precision: invalid choice: 'fp8'",
    "--precision=fp16": "precision is fp16, which a CPU has not",
    "--device=cuda:99": "The device cuda:99 is not on this machine: give --device cpu",
    "--device=gpu": "The device gpu is not on this machine",
    "--max_grad_norm=nan": "max_grad_norm is",
    "--no_such_key=1": "no_such_key' is not a key of",
    "--pool": "pool has no value",
    "--lr: 1=2": "",
    "--train_logger=!new:no.such.Class": "There is no such class as no.such.Class",
    "--lr_annealing=!new:torch.nn.Linear": "cannot be built with these values",
    "--optimizer_step_limit=x": "optimizer_step_limit is",
    "--levels=loud": 'levels is "loud", but must be librimix or wsj0mix.',
    "--loss=si_snr": 'loss is "si_snr"',
    "--loss=!name:no.such.loss": "There is no such entity as no.such.loss",
    "--card=x": 'card is "x", but must be keys with values',
    "--modules=x": "modules is",
    "--train_loader=[1]": "train_loader is [1]",
    "--opt_class=Adam": 'opt_class is "Adam", but must be what !new: or !name: builds',
    "--epoch_counter=5": "epoch_counter is 5",
    "--augmentations={shift: often}": 'augmentations is {"shift": "often"}',
    "--augmentations=[{shift: 0.5}]": 'augmentations is [{"shift": 0.5}]',
    "--augmentations={shift: 2}": 'augmentations is {"shift": 2}',
    "--jit": "leave --jit out",
    "--start_from=tests/gone": "start_from is tests/gone: ",
    "--start_share=0.5": "start_share is 0.5, but there is no start_from",
    "--speaker_power=0.3": "but dynamic_mixing is false: leave speaker_power out",
    "--cache_audio=True": "cache_audio is true, but dynamic_mixing is false",
    "--noise_share=0.5": "but dynamic_mixing is false: leave noise_share out",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_values_are_one_sentence_before_any_work(
    flag: str,
    train: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    with pytest.raises(SystemExit) as end:
        train("WSJ0Mix-spgm", "--data_folder=tests/nowhere", flag)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ") and WRONG[flag] in line
    assert "nowhere" not in line and not list(tmp_path.iterdir())


def test_both_intervals_and_neither() -> None:
    yaml = str(ROOT / "recipes/LibriMix/separation/hparams/spgm-tiny.yaml")
    steps = read_settings([yaml, "--ckpt_interval_steps", "7"])
    assert steps.values["ckpt_interval_minutes"] == 0
    with pytest.raises(UserError, match="both given: give one"):
        minutes = ["--ckpt_interval_minutes", "1"]
        read_settings([yaml, "--ckpt_interval_steps", "7", *minutes])


def test_kernel_size_alone_leads_the_stride() -> None:
    for yaml in ROOT.glob("recipes/*/separation/hparams/*.yaml"):
        for size in (20,):
            settings = read_settings([str(yaml), "--kernel_size", str(size)])
            assert settings.values["stride"] == size // 2


def test_paths_are_what_they_are() -> None:
    """What means something to yaml or the parser may be in a name."""
    yaml = str(ROOT / "recipes/LibriMix/separation/hparams/spgm.yaml")
    for path in ("/a=b/c d", "/a #1", "/x: y", "/é", "/a,b", "@x", "/{b}"):
        for words in (["--data_folder", path], [f"--data_folder={path}"]):
            assert read_settings([yaml, *words]).values["data_folder"] == path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_sentence(
    mistake: str,
    train: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    name, flags, sentence = MISTAKES[mistake]
    with pytest.raises(SystemExit) as exit_:
        train(name, *flags)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ") and sentence in line
    assert not list(tmp_path.iterdir())


def test_lower_rates_are_said_once(
    train: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Recordings at 8 kHz cannot fill mixtures at 16 kHz: it trains, and says so."""
    train("LibriMix-spgm-tiny", "--sample_rate=16000")
    (record,) = (r for r in caplog.records if "lower rate" in r.getMessage())
    assert "6 of 6 recordings" in record.getMessage()
    assert "above 4000 Hz they hold nothing" in record.getMessage()


def test_lists_with_noise_validate_and_test_with_noise(
    train: Callable[..., Path], corpora: Path, capsys, caplog
) -> None:
    lines = (corpora / "tests/samples/dev.csv").read_text().splitlines()
    noisy = corpora / "tests/samples/noisy.csv"
    rows = [f"{line},noise/1.wav,0.5" for line in lines[1:]]
    noisy.write_text("\n".join([f"{lines[0]},noise_path,noise_gain", *rows]))
    lists = [f"--valid_list={noisy}", f"--test_list={noisy}"]
    flags = ["--mixture_type=mix_both", "--noise_folder=tests/samples/noise", *lists]
    output = train("LibriMix-spgm-tiny", *flags)
    assert "noise that is also trained on" in caplog.text
    summary = json.loads((output / "test_summary.json").read_text())
    other = train("LibriMix-spgm-tiny", f"--output_folder={output}2")
    clean = json.loads((other / "test_summary.json").read_text())
    assert summary["si_sdr_mix"]["mean"] < clean["si_sdr_mix"]["mean"] - 0.1
    capsys.readouterr()
    with pytest.raises(SystemExit):  # the lists of the table have none
        train("LibriMix-spgm-tiny", *flags[:2], f"--output_folder={output}3")
    assert "has no column noise_path" in capsys.readouterr().err


def test_two_processes(corpora: Path, tmp_path: Path) -> None:
    """torchrun, as a user starts it."""
    name = "WSJ0Mix-spgm"
    argv = command(name, tmp_path / "out", "--distributed_backend=gloo")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher.append("--local-addr=127.0.0.1")  # the machine's name may have no address
    run = subprocess.run(
        [sys.executable, *launcher, *argv],
        cwd=corpora,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("SI-SDRi") == 1
    check_files(name, tmp_path / "out")
    assert epochs(tmp_path / "out") == ["epoch: 1", "epoch loaded: 1"]
    started = (tmp_path / "out" / "command.txt").read_text()
    assert started.startswith("torchrun --nproc_per_node 2 train.py")
    scores = (tmp_path / "out" / "test_results.csv").read_text().splitlines()
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert len(scores) == 3  # a header and two mixtures, one of each process
