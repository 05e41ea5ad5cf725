"""prepare_data.py of each recipe: from recordings and lists to manifests."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.corpora.command import run_command
from speechbrain_spgm.data.manifests import read_manifest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load(corpus: str) -> ModuleType:
    path = RECIPES / corpus / "prepare_data.py"
    spec = importlib.util.spec_from_file_location(f"prepare_{corpus}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(corpus: str, command: str, **options) -> int:
    """Runs the command with the options, as from a shell."""
    words = [command]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return run_command(load(corpus).make_parser(), words)


@pytest.fixture
def data(tmp_path) -> Path:
    """Three recordings as WSJ0 and as LibriSpeech, two noises, and lists of both."""
    rng = np.random.default_rng(0)
    for folder in ("wsj0/si_tr_s", "LibriSpeech/dev-clean", "wham/cv", "lists"):
        (tmp_path / folder).mkdir(parents=True)
    for i, name in enumerate("abc"):
        samples = rng.uniform(-0.3, 0.3, 8000 + 100 * i)
        soundfile.write(tmp_path / f"wsj0/si_tr_s/{name}.wav", samples, 16000)
        soundfile.write(tmp_path / f"LibriSpeech/dev-clean/{name}.flac", samples, 16000)
    soundfile.write(
        tmp_path / "wham/cv/n.wav", rng.uniform(-0.3, 0.3, (9000, 2)), 16000
    )
    lists = tmp_path / "lists"
    for spks in (2, 3):
        pairs = [f"wsj0/si_tr_s/{name}.wav 0.5" for name in "abc"[:spks]]
        (lists / f"mix_{spks}_spk_tr.txt").write_text(" ".join(pairs))
    header, row = "mixture_ID", "m"
    for i, name in enumerate("ab", start=1):
        header += f",source_{i}_path,source_{i}_gain"
        row += f",dev-clean/{name}.flac,0.5"
    header, row = f"{header},noise_path,noise_gain", f"{row},cv/n.wav,0.2"
    (lists / "libri2mix_dev-clean.csv").write_text(f"{header}\n{row}\n")
    (lists / "libri2mix_dev-clean_info.csv").write_text("speaker\n")
    return tmp_path


def wsj0(data: Path) -> dict:
    return {
        "wsj0_folder": data,
        "lists": data / "lists",
        "output_folder": data / "out",
        "jobs": 1,
    }


def librimix(data: Path) -> dict:
    return {
        "librispeech_folder": data / "LibriSpeech",
        "lists": data / "lists",
        "output_folder": data / "out",
        "noise_folder": data / "wham",
        "types": ["mix_clean", "mix_both", "mix_single"],
        "jobs": 1,
    }


def test_wsj0mix_is_made_and_listed(data, capsys):
    options = wsj0(data) | {"sample_rates": [8000, 16000], "modes": ["min", "max"]}
    assert prepare("WSJ0Mix", "generate", **options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("28 files written, 0 mixtures were there already")
    assert len(lines) == 9
    for spks in (2, 3):
        for rate, mode, samples in [
            (8000, "min", 4000),
            (16000, "max", 7900 + spks * 100),
        ]:
            path = data / f"out/{spks}speakers/wav{rate // 1000}k/{mode}/tr.csv"
            (row,) = read_manifest(path, num_spks=spks)
            assert row.duration == samples / rate
            assert all(file.is_file() for file in (row.mix, *row.sources))

    options = {"data_folder": data / "out", "output_folder": data / "manifests"}
    assert prepare("WSJ0Mix", "manifests", splits="tr", num_spks=3, **options) == 0
    assert capsys.readouterr().out == f"{data / 'manifests' / 'tr.csv'}\n"
    (row,) = read_manifest(data / "manifests/tr.csv", num_spks=3)
    assert row.mix.parent == data / "out/3speakers/wav8k/min/tr/mix"


def test_librimix_is_made_and_listed(data, capsys):
    assert prepare("LibriMix", "generate", **librimix(data)) == 0
    assert capsys.readouterr().out.startswith("6 files written")
    assert prepare("LibriMix", "generate", **librimix(data)) == 0
    assert capsys.readouterr().out.startswith("0 files written, 1 mixtures were there")
    options = {"data_folder": data / "out", "output_folder": data, "splits": "dev"}
    for mixture, spks in [("mix_clean", 2), ("mix_both", 2), ("mix_single", 1)]:
        generated = data / f"out/Libri2Mix/wav8k/min/dev_{mixture}.csv"
        assert prepare("LibriMix", "manifests", type=mixture, **options) == 0
        scanned = read_manifest(data / f"dev_{mixture}.csv", num_spks=spks)
        assert scanned == read_manifest(generated, num_spks=spks)
        assert (scanned[0].noise is None) == (mixture == "mix_clean")


@pytest.mark.parametrize("corpus, options", [("WSJ0Mix", wsj0), ("LibriMix", librimix)])
def test_under_torchrun_the_first_process_writes_the_manifests(
    data, capsys, monkeypatch, corpus, options
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, manifests in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert prepare(corpus, "generate", **options(data)) == 0
        capsys.readouterr()
        assert bool(list(data.glob("out/*/wav8k/min/*.csv"))) == manifests


@pytest.mark.parametrize(
    "corpus, command, change, message",
    [
        ("WSJ0Mix", "generate", {"wsj0_folder": "nowhere"}, "nowhere does not exist"),
        ("WSJ0Mix", "generate", {"lists": "no.txt"}, "list no.txt does not exist"),
        ("LibriMix", "generate", {"librispeech_folder": "nowhere"}, "nowhere does not"),
        ("LibriMix", "generate", {"noise_folder": "nowhere"}, "nowhere does not"),
        ("LibriMix", "generate", {"lists": "."}, "holds no list libri*mix_*.csv"),
        ("WSJ0Mix", "manifests", {"data_folder": "nowhere"}, "nowhere does not exist"),
        ("LibriMix", "manifests", {"data_folder": "lists"}, "holds no folders"),
    ],
)
def test_mistakes_end_with_one_sentence(
    data, capsys, monkeypatch, corpus, command, change, message
):
    monkeypatch.chdir(data)
    options = {"data_folder": data, "output_folder": data / "out"}
    if command == "generate":
        options = (wsj0 if corpus == "WSJ0Mix" else librimix)(data)
    assert prepare(corpus, command, **options | change) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert output.err.startswith("Error: ") and message in output.err
    assert not (data / "out").exists()


@pytest.mark.parametrize("corpus", ["WSJ0Mix", "LibriMix"])
@pytest.mark.parametrize("words", [["--help"], ["generate", "-h"], ["manifests", "-h"]])
def test_help(capsys, corpus, words):
    with pytest.raises(SystemExit) as end:
        load(corpus).make_parser().parse_args(words)
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage:")
