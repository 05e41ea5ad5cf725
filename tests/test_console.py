"""Closed and full streams, signals and locales: every command survives them."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm import cli
from speechbrain_spgm.commands import info
from speechbrain_spgm.console import Terminated, exit_code, surroundings
from speechbrain_spgm.corpora.command import run_command
from tests.recipes.test_prepare_data import load

ROOT = Path(__file__).resolve().parents[1]
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a line with ``spgm`` in it as a user's shell does."""
    spgm = (
        f"spgm() {{ '{sys.executable}' -m speechbrain_spgm \"$@\"; }}; set -o pipefail"
    )
    return subprocess.run(
        ["bash", "-c", f"{spgm}; {line}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "redirection, code, said",
    [
        (">&- 2>&- <&-", 0, b""),
        ("2>&-", 0, b""),
        ("| true", 0, b""),
        ("> /dev/full", 2, b"No space left on device"),
        ("> /dev/full 2>&-", 2, b""),
    ],
)
def test_streams(tmp_path, redirection, code, said):
    run = shell(f"spgm separate --help {redirection}", tmp_path)
    assert run.returncode == code and said in run.stderr
    assert len(run.stderr.splitlines()) == bool(said)


def test_names_and_files_in_the_c_locale(tmp_path):
    """Nobody's locale changes what is read, written or said."""
    folder = tmp_path / "Müller"
    folder.mkdir()
    wave = 0.1 * np.random.default_rng(0).standard_normal(800)
    for name in ("mix", "s1", "s2"):
        soundfile.write(folder / f"{name}é.wav", wave, 8000)
    text = "id,duration,mix,s1,s2\nü,0.1,mixé.wav,s1é.wav,s2é.wav\n"
    (folder / "test.csv").write_text(text, encoding="utf-8")
    run = shell(
        "spgm evaluate --manifest Müller/test.csv --output results --metrics si_sdr "
        "--views 1",
        tmp_path,
        **C_LOCALE,
    )
    assert run.returncode == 0, run.stderr
    rows = (tmp_path / "results" / "test_results.csv").read_text(encoding="utf-8")
    assert rows.splitlines()[1].startswith("ü,")


class Odd(io.StringIO):
    """A stream without a descriptor, as notebooks have."""


@pytest.mark.parametrize("stream", [None, Odd, io.StringIO])
def test_main_with_any_stdout(monkeypatch, stream):
    out, err = (stream and stream() for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["info"]) == 0
    assert cli.main(["info", "no-such-model"]) == 2
    assert sys.stdout is out and sys.stderr is err
    if stream is not None:
        assert "spgm-small-8k" in out.getvalue() and "no-such-model" in err.getvalue()


def test_a_closed_or_narrow_stream_takes_everything(monkeypatch):
    closed = io.StringIO()
    closed.close()
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(sys, "stdout", narrow)
    with surroundings():
        print("Müller \udcff")
        print("lost", file=sys.stderr)
    narrow.flush()
    assert narrow.buffer.getvalue() == b"M\\xfcller \\udcff\n"


@pytest.fixture
def heard():
    """SIGINT as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_ends_like_ctrl_c(heard, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        monkeypatch.setattr(
            info, "run", lambda _, number=number: signal.raise_signal(number)
        )
        assert cli.main(["info"]) == 128 + number
        assert "interrupted" in capsys.readouterr().err
        parser = load("LibriMix").make_parser()
        words = ["manifests", "--data_folder", "x", "--output_folder", "y"]
        parser.set_defaults()
        arguments = parser.parse_args(words)

        def run(_, number=number):
            signal.raise_signal(number)
            yield ""

        arguments.run = run
        monkeypatch.setattr(parser, "parse_args", lambda _, a=arguments: a)
        assert run_command(parser, words) == 128 + number
        assert "start again to go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    assert exit_code(Terminated()) == 143


def test_no_help_shows_escapes(capsys):
    parsers = [
        cli.make_parser(),
        *(load(c).make_parser() for c in ("LibriMix", "WSJ0Mix")),
    ]
    for parser in parsers:
        texts = [parser.format_help()]
        for action in parser._subparsers._group_actions:
            texts += [command.format_help() for command in action.choices.values()]
        for text in texts:
            assert not re.search(r"%%|%\(", text)


def test_sigterm_before_the_first_step_is_a_sentence(monkeypatch, capsys):
    def make_parser():
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "make_parser", make_parser)
    assert cli.main(["info"]) == 143
    assert re.fullmatch("spgm: interrupted[^\n]*\n", capsys.readouterr().err)
