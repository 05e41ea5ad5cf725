"""The command ``spgm``: what it writes, what it says, and its exit codes."""

import argparse
import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_spgm import __version__, cli
from speechbrain_spgm.commands import separate
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.models import sources as module
from speechbrain_spgm.models.config import build
from tests.conftest import CONFIG

THREE = {
    **CONFIG,
    "encoder_out_nchannels": 8,
    "masknet_chunksize": 50,
    "masknet_numspks": 3,
    "intra_use_positional": False,
    "spgm_block_pool": "avg",
}
CARD = {
    "licence": "CC0-1.0",
    "training_data": ["nothing", "at all"],
    "quality": {"test-clean": {"SI-SDRi": "0.1 dB"}},
    "seed": 7,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a model of three speakers and random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "random"
    save_published(folder, *build(THREE), THREE, CARD)
    return str(folder)


@pytest.fixture
def run(capfd, model):
    """Runs the command; gives its exit code and the lines of stdout and stderr."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


def record(path: Path, rate: int = 8000, seconds: float = 0.1, **kind) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(0).uniform(-0.5, 0.5, int(rate * seconds))
    soundfile.write(path, frames, rate, **kind)
    return path


def names(folder: Path) -> list[str]:
    """All files, hidden ones too."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


def voices(*stems: str) -> list[str]:
    return sorted(f"{stem}_spk{i}.wav" for stem in stems for i in (1, 2, 3))


def test_voices_are_those_of_separate_file(run, model, tmp_path):
    source = record(tmp_path / "mix.flac", 44100)
    lost = "spgm: 1 file had a higher rate than the model: content above 4000 Hz"
    for options, how, said in [
        ((), {"full_band": True}, []),
        (("--no-full-band",), {}, [f"{lost} is lost."]),
        (("--normalize", "peak"), {"normalize": "peak", "full_band": True}, []),
    ]:
        out = tmp_path / "a" / "new" / "folder"
        code, stdout, stderr = run(
            "separate", source, "--output", out, "--model", model, *options
        )
        assert code == 0
        assert stdout == [f"Separated 1 file into {out}; 0 failed."]
        assert stderr == said
        assert names(out) == voices("mix")
        separator = SPGMSeparation.from_pretrained(model)
        expected = separator.separate_file(source, **how)[0]
        for i, name in enumerate(voices("mix")):
            samples, rate = soundfile.read(out / name, dtype="float32")
            assert rate == 44100
            assert np.abs(samples - expected[:, i].numpy()).max() <= 1e-6


def test_a_folder_of_good_and_bad_files(run, model, tmp_path):
    folder = tmp_path / "in"
    record(folder / "good.wav", 16000)
    record(folder / "deep" / "er" / "good.OGG", 44100)
    record(folder / ".hidden" / "good.wav")
    (folder / "empty.wav").touch()
    (folder / "text.mp3").write_bytes(b"no sound\n" * 50)
    (folder / "junk.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "notes.txt").write_text("no audio, passed over")
    soundfile.write(folder / "nan.wav", np.full(9, np.nan), 8000, subtype="FLOAT")
    missing = tmp_path / "missing.wav"
    out = tmp_path / "out"
    code, stdout, stderr = run(
        "separate", folder, missing, "--output", out, "--model", model
    )
    assert code == 2
    assert stdout == [f"Separated 2 files into {out}; 5 failed."]
    assert names(out) == voices("good", "deep/er/good")
    bad = ("empty.wav", "junk.mp3", "nan.wav", "text.mp3")
    for line, name in zip(stderr[2:6], bad, strict=True):
        assert line.startswith(f"spgm: {folder / name} ")
    assert f"{folder}: passed over 1 file (1 .txt); name a file itself" in stderr[0]
    assert stderr[1] == f"spgm: {missing} does not exist: check its name."
    assert len(stderr) == 6


def test_a_cut_off_file_is_mentioned_once(run, model, tmp_path):
    """By us alone, although the MP3 decoder would comment on it too."""
    source = record(tmp_path / "a.mp3", seconds=5)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    code, _, (line,) = run("separate", source, "--output", tmp_path, "--model", model)
    assert code == 0 and line.startswith(f"spgm: {source} is cut off: it holds ")


def test_names_that_differ_in_the_ending_only(run, model, tmp_path):
    folder = tmp_path / "in"
    for name in ("a.wav", "a.flac", "b.wav"):
        record(folder / name)
    out = tmp_path / "out"
    # A file that is given twice is separated once.
    given = (folder, folder / "a.wav", folder / ".." / "in")
    code, stdout, _ = run("separate", *given, "--output", out, "--model", model)
    assert code == 0 and stdout == [f"Separated 3 files into {out}; 0 failed."]
    assert names(out) == voices("a.flac", "a.wav", "b")


def test_two_inputs_for_one_output_are_refused(run, model, tmp_path):
    first, second = record(tmp_path / "x" / "a.wav"), record(tmp_path / "y" / "a.wav")
    out = tmp_path / "out"
    code, stdout, stderr = run(
        "separate", first, second, "--output", out, "--model", model
    )
    assert (code, stdout) == (2, []) and not out.exists()
    (line,) = stderr
    assert line.startswith(f"spgm: {first} and {second} would both be separated into")
    assert run("separate", tmp_path, "--output", out, "--model", model)[0] == 0
    assert names(out) == voices("x/a", "y/a")


def test_one_file_of_two_names_keeps_its_first_voices(run, model, tmp_path):
    """Where the folder b is a, as B is b on disks that know no case."""
    source, out = tmp_path / "in", tmp_path / "out"
    record(source / "a" / "x.wav")
    record(source / "b" / "x.wav", seconds=0.2)
    (out / "a").mkdir(parents=True)
    (out / "b").symlink_to("a")
    code, stdout, stderr = run("separate", source, "--output", out, "--model", model)
    assert code == 2 and "1 failed" in stdout[0] and len(stderr) == 1
    assert "b/x.wav would be separated into" in stderr[0]
    assert soundfile.info(out / "a" / "x_spk1.wav").frames == 800


def test_output_beside_or_below_the_input(run, model, tmp_path):
    record(tmp_path / "a.wav")
    for _ in range(2):  # the second run does not separate the voices of the first
        out = tmp_path / "voices"
        code, stdout, _ = run("separate", tmp_path, "--output", out, "--model", model)
        assert code == 0 and "Separated 1 file " in stdout[0]

    assert (
        run("separate", tmp_path / "a.wav", "--output", tmp_path, "--model", model)[0]
        == 0
    )
    before = (tmp_path / "a_spk1.wav").read_bytes()
    code, _, (line,) = run("separate", tmp_path, "--output", tmp_path, "--model", model)
    assert code == 2 and "which is an input itself" in line
    assert (tmp_path / "a_spk1.wav").read_bytes() == before


def test_nothing_to_separate(run, model, tmp_path):
    code, stdout, stderr = run("separate", tmp_path, "--output", tmp_path / "out")
    assert (code, stdout) == (2, [])
    assert stderr[0] == f"spgm: the folder {tmp_path} holds no audio files: check it."
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_made(run, model, tmp_path):
    source = record(tmp_path / "a.wav")
    code, _, (line,) = run(
        "separate", source, "--output", source / "out", "--model", model
    )
    assert code == 2
    assert line.startswith(f"spgm: the output folder {source / 'out'} cannot be made (")


def test_links_are_followed_once_and_real_names_win(run, model, tmp_path):
    folder, other = tmp_path / "in", tmp_path / "other"
    record(folder / "real.wav")
    record(folder / "sub" / "b.wav")
    record(other / "c.wav")
    (folder / "alias.wav").symlink_to("real.wav")
    (folder / "alias").symlink_to("sub")
    (folder / "linked").symlink_to(other)
    (folder / "sub" / "loop").symlink_to("..")
    (other / "back").symlink_to(folder)
    out = tmp_path / "out"
    code, stdout, stderr = run("separate", folder, "--output", out, "--model", model)
    assert (code, stderr) == (0, []) and "Separated 3 files" in stdout[0]
    assert names(out) == voices("real", "sub/b", "linked/c")
    (folder / "dead.wav").symlink_to("nowhere")
    (folder / "self.wav").symlink_to("self.wav")
    code, stdout, stderr = run("separate", folder, "--output", out, "--model", model)
    assert code == 2 and "Separated 3 files" in stdout[0] and "2 failed" in stdout[0]
    assert [line.split(" is ")[1] for line in stderr] == [
        "a link to nothing or to itself."
    ] * 2


def test_media_files_are_read_or_passed_over(run, model, tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    command = ("separate", folder, "--output", out, "--model", model)
    record(folder / "a.wav")
    (folder / "b.m4a").write_bytes(b"no sound" * 99)
    (folder / "c.WEBM").write_bytes(b"no sound" * 99)
    with monkeypatch.context() as patch:
        patch.setattr("speechbrain_spgm.media.is_installed", lambda: False)
        code, stdout, (line,) = run(*command)
    assert code == 2 and "Separated 1 file" in stdout[0] and "2 failed" in stdout[0]
    assert line == (
        f"spgm: {folder}: passed over 2 files (1 .m4a, 1 .webm); "
        "pip install av to read .m4a, .webm."
    )
    monkeypatch.setattr("speechbrain_spgm.media.is_installed", lambda: True)
    code, _, stderr = run(*command)
    assert code == 2 and sum("is damaged or no audio" in line for line in stderr) == 2


def test_folders_that_may_not_be_entered_do_not_stop_the_others(
    run, model, tmp_path, monkeypatch
):
    """Root may enter everything, so the refusal of the system is played."""
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.wav", "listed/b.wav", "closed/c.wav"):
        record(folder / name)
    scandir, stat = os.scandir, Path.stat

    def refuse_list(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_stat(path, **options):
        if path.parent.name == "listed":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", refuse_list)
    monkeypatch.setattr(Path, "stat", refuse_stat)
    arguments = ("separate", folder, folder / "listed" / "b.wav", "--output", out)
    code, stdout, stderr = run(*arguments, "--model", model)
    assert code == 2 and "Separated 1 file" in stdout[0] and names(out) == voices("a")
    for name in ("closed", "listed"):
        assert f"spgm: {folder / name} may not be entered: change its rights." in stderr
    assert any("b.wav may not be reached" in line for line in stderr)


def test_names_that_differ_in_the_endings_of_endings(run, model, tmp_path):
    for name in ("a.wav", "a.flac", "a.wav.mp3", "a"):
        record(tmp_path / "in" / name, format=None if "." in name else "WAV")
    inputs = [tmp_path / "in" / name for name in ("a.wav", "a.flac", "a.wav.mp3", "a")]
    out = tmp_path / "out"
    code, stdout, _ = run("separate", *inputs, "--output", out, "--model", model)
    assert code == 0 and names(out) == voices("a", "a.flac", "a.wav", "a.wav.mp3")


def test_paths_that_are_none(run, model, tmp_path, monkeypatch):
    source = record(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for arguments, words in (
        (["", "--output", "out"], "a path is empty"),
        ([source, "--output", "out", "--device", ""], "a device is empty"),
        ([source, "--output", ""], "a path is empty"),
        (["pipe.wav", "--output", "out"], "pipe.wav is a device or a pipe, not a file"),
        (["/dev/null", "--output", "out"], "/dev/null is a device or a pipe"),
        (["loop", "--output", "out"], "loop cannot be looked up (Too many levels"),
        (["x" * 300, "--output", "out"], "cannot be looked up (File name too long)"),
        ([source, "--output", "loop"], "the output folder loop cannot be made"),
        ([source, "--output", "y" * 300], "cannot be made (File name too long)"),
    ):
        code, stdout, stderr = run("separate", *arguments, "--model", model)
        assert (code, stdout) == (2, []) and words in stderr[0]
    assert sorted(os.listdir()) == ["a.wav", "loop", "pipe.wav"]


def test_names_of_any_bytes(run, model, tmp_path):
    folder, out = (tmp_path / os.fsdecode(name) for name in (b"in\xff", b"out\xff"))
    record(tmp_path / "a.wav")
    folder.mkdir()
    (tmp_path / "a.wav").rename(folder / os.fsdecode(b"\xfe.wav"))
    options = ("--model", model, "--report")
    code, _, stderr = run("separate", folder, "--output", out, *options)
    assert (code, stderr) == (0, []) and len(names(out)) == 4


@pytest.mark.parametrize("piped", [False, True])
def test_standard_input(run, model, tmp_path, monkeypatch, piped):
    source, out = record(tmp_path / "a.wav"), tmp_path / "out"
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(source.read_bytes())
    stdin = open(reader if piped else source)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdin", stdin)
    code, _, stderr = run("separate", "-", "--output", out, "--model", model)
    stdin.close()
    if not piped:
        os.close(reader)
    assert (code, stderr) == (0, []) and names(out) == voices("stdin")
    run("separate", source, "--output", out, "--model", model)
    for i in (1, 2, 3):
        expected = (out / f"a_spk{i}.wav").read_bytes()
        assert (out / f"stdin_spk{i}.wav").read_bytes() == expected


def test_standard_input_that_cannot_be_taken(run, model, tmp_path, monkeypatch):
    """None, a notebook's, or what a voice would be written to."""
    voice = record(tmp_path / "stdin_spk1.wav")
    before = voice.read_bytes()
    with voice.open() as own:
        for stdin, words in (
            (None, "spgm: standard input is closed"),
            (io.StringIO("a"), "spgm: standard input is closed"),
            (own, "stdin_spk1.wav is the recording itself"),
        ):
            monkeypatch.setattr(sys, "stdin", stdin)
            options = ("--output", tmp_path, "--model", model)
            code, _, stderr = run("separate", "-", *options)
            assert code == 2 and words in stderr[0] and len(stderr) == 1
    assert voice.read_bytes() == before and names(tmp_path) == [voice.name]


def test_a_file_called_as_standard_input(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "a.wav").rename("-")
    code, _, stderr = run("separate", "./-", "--output", "out", "--model", model)
    assert (code, stderr) == (0, []) and names(tmp_path / "out") == voices("-")
    stdin = SimpleNamespace(buffer=open("-", "rb"))  # noqa: SIM115
    monkeypatch.setattr(sys, "stdin", stdin)
    both = ("separate", "-", "./-", "--output", "both", "--model", model)
    assert run(*both)[0] == 0 and names(tmp_path / "both") == voices("-", "stdin")
    stdin.buffer.close()


@pytest.mark.parametrize("mode", ["exact", "stitched"])
def test_formats_and_clipping(run, model, tmp_path, mode):
    source = tmp_path / "a.wav"
    loud = np.random.default_rng(0).uniform(-50, 50, 20000)
    soundfile.write(source, loud, 8000, subtype="FLOAT")
    window = () if mode == "exact" else ("--window", 1)
    arguments = ("--model", model, "--mode", mode, *window)
    for format, subtype, kind in (
        ("flac", "16", ("FLAC", "PCM_16")),
        ("wav", "24", ("WAV", "PCM_24")),
        ("ogg", None, ("OGG", "VORBIS")),
    ):
        out = tmp_path / f"{format}"
        options = ("--format", format, *(("--subtype", subtype) if subtype else ()))
        code, _, stderr = run("separate", source, "--output", out, *arguments, *options)
        assert code == 0 and "would clip: they were made quieter" in " ".join(stderr)
        for i in (1, 2, 3):
            found = soundfile.info(out / f"a_spk{i}.{format}")
            assert (found.format, found.subtype, found.frames) == (*kind, 20000)
    peak = (*arguments, "--normalize", "peak", "--format", "flac")
    code, _, stderr = run("separate", source, "--output", tmp_path / "peak", *peak)
    assert code == 0 and "would clip" not in " ".join(stderr)  # 0.001 dB
    code, _, (line,) = run(
        *("separate", source, "--output", tmp_path / "no", *arguments),
        *("--format", "flac", "--subtype", "float"),
    )
    assert code == 2 and "a file of format flac can be 16, 24" in line


def test_a_channel(run, model, tmp_path):
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 800)
    soundfile.write(tmp_path / "two.wav", np.stack([x, -x], 1), 8000, "FLOAT")
    soundfile.write(tmp_path / "one.wav", x, 8000, "FLOAT")
    options = ("--output", tmp_path, "--model", model)
    assert run("separate", tmp_path / "two.wav", *options, "--channel", 1)[2] == []
    run("separate", tmp_path / "one.wav", *options)
    one, two = (tmp_path / f"{name}_spk1.wav" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    code, _, (line,) = run("separate", tmp_path / "two.wav", *options)
    assert code == 0 and "cancel each other out" in line and "--channel 1" in line
    code, _, (line,) = run("separate", tmp_path / "two.wav", *options, "--channel", 0)
    assert code == 2 and "channel is 0" in line


def test_what_c_libraries_print_is_muted(capfd):
    """Also what C keeps in its buffer until the process ends."""
    with separate.quiet_streams():
        ctypes.CDLL(None).puts(b"from the library")
        os.write(2, b"from the library")
    print("ours", flush=True)
    assert capfd.readouterr() == ("ours\n", "")


@pytest.mark.parametrize(
    "command", [["info"], ["separate", "a.wav", "--output", "out"]]
)
def test_a_wrong_model_is_one_sentence(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(record(tmp_path / "a.wav").parent)
    option = ["--model"] if command[0] == "separate" else []
    (tmp_path / "empty").mkdir()
    for source, words in [
        ("no/such/model", "is no folder"),
        ("empty", "has no config"),
    ]:
        code, stdout, (line,) = run(*command, *option, source)
        assert (code, stdout) == (2, []) and words in line
    code, _, (line,) = run(*command, *option, "empty", "--device", "bogus")
    assert code == 2
    assert not (tmp_path / "out").exists()


def test_an_unexpected_failure_stops_one_file_only(run, model, tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav"):
        record(tmp_path / "in" / name)
    separate = SPGMSeparation.separate_recording

    def fail_once(self, recording, *options, **named):
        if recording.name.endswith("a.wav"):
            raise RuntimeError("not enough memory\nand more lines")
        return separate(self, recording, *options, **named)

    monkeypatch.setattr(SPGMSeparation, "separate_recording", fail_once)
    out = tmp_path / "out"
    code, _, (line,) = run(
        "separate", tmp_path / "in", "--output", out, "--model", model
    )
    assert code == 2 and names(out) == voices("b")
    assert line.endswith("a.wav failed (RuntimeError: not enough memory).")


def test_interrupted(run, model, tmp_path, monkeypatch):
    for name in ("a.wav", "b.wav", "c.wav"):
        record(tmp_path / "in" / name)
    write = soundfile.SoundFile.write
    written = []

    def interrupt(file, samples):
        write(file, samples)
        written.append(file)
        if len(written) == 5:  # the second voice of the second file
            raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupt)
    out = tmp_path / "out"
    code, stdout, (line,) = run(
        "separate", tmp_path / "in", "--output", out, "--model", model
    )
    assert (code, stdout) == (130, []) and line.startswith("spgm: interrupted")
    assert names(out) == voices("a")


def test_info(run, model):
    code, stdout, stderr = run("info", model)
    assert (code, stderr) == (0, [])
    facts = dict(line.split("  ", 1) for line in stdout)
    facts = {label.strip(): value.strip() for label, value in facts.items()}
    total = sum(p.numel() for part in build(THREE) for p in part.parameters())
    spgm = 2 * 2 * (8 * 8 + 8)  # two blocks, s_lin and g_lin of 8 filters each
    assert facts == {
        "name": "random",
        "parameters": f"{total:,}",
        "of them SPGM": f"{spgm:,} ({spgm / total:.1%})",
        "sample rate": "8000 Hz",
        "speakers": "3",
        "receptive chunk": "50 ms (50 frames)",
        "licence": "CC0-1.0",
        "training data": "nothing, at all",
        "measured quality: test-clean: SI-SDRi": "0.1 dB",
        "seed": "7",
    }


def test_info_of_a_model_without_a_card(run, model, tmp_path):
    for file in Path(model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    del config["speechbrain_spgm"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    lines = run("info", tmp_path)[1]
    assert [line for line in lines if line.endswith("not stated")] == lines[-3:]


def test_the_shipped_model_is_the_default(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED_MODELS", Path(model).parent)
    monkeypatch.setattr(module, "DEFAULT_MODEL", "random")
    assert run("info")[:2] == run("info", "random")[:2] == run("info", model)[:2]
    source = record(tmp_path / "a.wav")
    assert run("separate", source, "--output", tmp_path / "out")[0] == 0


def test_code_is_only_run_if_it_is_trusted(run, model, tmp_path):
    marker = tmp_path / "ran"
    trap = f"x: !apply:os.mkdir [{marker}]\n"
    both = tmp_path / "both"
    both.mkdir()
    for file in Path(model).iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    (both / "hyperparams.yaml").write_text(trap)
    assert run("info", both)[0] == 0 and not marker.exists()

    (both / "model.safetensors").unlink()
    code, _, stderr = run("info", both)
    assert code == 2 and not marker.exists()
    assert "key x: !apply:os.mkdir is not allowed" in stderr[0] and len(stderr) == 1

    code, _, stderr = run("info", both, "--trust-remote-code")
    assert code == 2 and marker.exists()
    assert "cannot be loaded (KeyError: 'pretrainer')" in stderr[0]


@pytest.mark.parametrize(
    "arguments", [[], ["separate"], ["separate", "x"], ["unknown"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage: spgm" in capsys.readouterr().err


def test_help_and_version_import_nothing_heavy():
    script = (
        "import sys; from speechbrain_spgm.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'speechbrain', 'soundfile'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for arguments, words in [
        (["--version"], __version__),
        (["--help"], "separate"),
        (["separate", "--help"], "searched with all their subfolders"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == 0 and done.stderr == ""
        assert words in " ".join(done.stdout.split())


def test_a_subcommand_is_one_entry(monkeypatch, capsys):
    def count(arguments: argparse.Namespace) -> int:
        if "x" in arguments.words:
            raise UserError("x is no word: leave it out.")
        print(len(arguments.words))
        return 0

    def add_parser(commands: argparse._SubParsersAction) -> None:
        command = commands.add_parser("count", help="count words")
        command.add_argument("words", nargs="+")
        command.set_defaults(run=count)

    entry = SimpleNamespace(add_parser=add_parser)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, entry))
    assert cli.main(["count", "a", "b"]) == 0
    assert cli.main(["count", "x"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "2\n"
    assert printed.err == "spgm: x is no word: leave it out.\n"
    assert "count words" in " ".join(cli.make_parser().format_help().split())


def test_a_card_cannot_write_to_the_terminal(model, tmp_path, capsys):
    folder = Path(shutil.copytree(model, tmp_path / "evil"))
    config = json.loads((folder / "config.json").read_text())
    config["speechbrain_spgm"] = {
        "licence": "MIT\nparameters     1",
        "a\x1b[2Jkey": ["\u202evalue", "\x9b31m"],
        "quality": {"\rx": "y" * 10_000},
    }
    (folder / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() and len(line) < 1100 for line in lines)
    assert sum(line.startswith("parameters") for line in lines) == 1
    assert r"a\x1b[2Jkey" in "".join(lines) and r"\u202evalue" in "".join(lines)
    assert cli.main(["info", f"{folder}\x1b[2J\nspgm: all is well"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said
