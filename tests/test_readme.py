"""Every command, program and yaml entry that a README shows, tried out.

What the READMEs, and the pages in docs that go on with them, keep to:

- ``python`` blocks are complete programs, run in a folder that holds ``mixture.wav``
  (8 kHz, two people), ``recordings/`` (a folder of such files) and ``in.jsonl`` (a
  manifest of one).
- ``bash`` blocks start in the README's own folder; ``cd`` counts, and so does the
  folder that ``git clone`` makes. ``spgm`` commands are run in the same sample folder.
  Of commands with a pipe those of ``spgm`` are parsed, no others; ``<`` counts.
  Paths that start with ``/path/to/`` stand for the reader's own, a model ``USER/NAME``
  or a short name for one on the Hub: such commands are parsed, not run.
- ``yaml`` blocks hold top-level entries that replace those of SpeechBrain's SepFormer,
  each block on top of those before it; an entry of one line replaces only the class and
  keeps the arguments.
- Other blocks (``bibtex``, ``text``) are not looked at.
"""

import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import soundfile
import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_spgm.cli import main, make_parser
from speechbrain_spgm.models.sources import SHORT_NAMES
from speechbrain_spgm.training.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("recipes/**/README.md"))]
# Pages that go on where README.md ends; their commands start in the clone.
DOCS = (
    "api corpus full_band measure publish separate stream train troubleshooting".split()
)
READMES += [ROOT / "docs" / f"{name}.md" for name in DOCS]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
ENTRY = re.compile(r"^(\w+):.*\n(?:(?:[ \t].*)?\n)*", re.MULTILINE)
ONLY_READ = {"git", "export"}  # commands that change nothing a test could look at

SEPFORMER = (ROOT / "tests" / "sepformer.yaml").read_text(encoding="utf-8")


class Command(NamedTuple):
    """One command of a ``bash`` block and the folder that it is given in."""

    words: list[str]
    folder: Path
    piped: bool = False  # takes what another program gives, or gives it to one


def blocks(language: str) -> list:
    """All blocks of one language as pytest parameters (README, text)."""
    return [
        pytest.param(readme, text, id=f"{readme.relative_to(ROOT)}-{number}")
        for readme in READMES
        if readme.is_file()
        for number, (kind, text) in enumerate(
            BLOCK.findall(readme.read_text(encoding="utf-8")), 1
        )
        if kind == language
    ]


def commands(readme: Path, text: str) -> Iterator[Command]:
    """The commands of a ``bash`` block, one by one."""
    folder = ROOT if readme.parent.name == "docs" else readme.parent
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s", line):
            before, pipe, after = part.partition(" | ")
            part = after if after.startswith("spgm") else before
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]  # a variable for this command
            if words[:1] == ["cd"]:
                cloned = words[1] == "speechbrain_spgm"
                folder = ROOT if cloned else (folder / words[1]).resolve()
                assert folder.is_dir(), f"{readme}: {line}"
            elif words:
                yield Command(words, folder, bool(pipe))


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that programs and ``spgm`` commands run in."""
    files = [ROOT / "demo" / name for name in ("reading-en.flac", "prompt-ru.flac")]
    mixture = sum(soundfile.read(file, frames=8000)[0] for file in files)
    (tmp_path / "recordings").mkdir()
    for name in ("mixture.wav", "recordings/one.wav", "recordings/two.wav"):
        soundfile.write(tmp_path / name, mixture, 8000)
    (tmp_path / "in.jsonl").write_text('{"audio_filepath": "mixture.wav"}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("language", ["bash", "python", "yaml"])
def test_the_readme_shows_each_way_of_use(language: str) -> None:
    assert blocks(language)


@pytest.mark.parametrize(
    "readme", READMES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_and_pictures_exist(readme: Path) -> None:
    links = LINK.findall(readme.read_text(encoding="utf-8"))
    assert not [link for link in links if not (readme.parent / link).exists()]


@pytest.mark.parametrize("readme, text", blocks("python"))
def test_program_runs(readme: Path, text: str, samples: Path) -> None:
    exec(compile(text, str(readme), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("readme, text", blocks("bash"))
def test_commands_work(readme: Path, text: str, request: pytest.FixtureRequest) -> None:
    for command in commands(readme, text):
        name = Path(command.words[0]).name  # or its path in an environment
        if name == "spgm":
            try_spgm(command, request)
        elif name == "make":
            try_make(command)
        elif name in ("python", "python3", "torchrun"):
            try_script(command)
        elif name == "pip":
            try_pip(command)
        elif name == "docker":
            assert (command.folder / "Dockerfile").is_file()  # and tests/test_space.py
        else:
            assert name in ONLY_READ, f"{readme}: no test knows {name}"


def try_spgm(command: Command, request: pytest.FixtureRequest) -> None:
    """Runs a ``spgm`` command, or parses it if it names what only the reader has."""
    arguments, given = command.words[1:], None
    if "<" in arguments:
        *arguments, _, given = arguments
    parsed = make_parser().parse_args(arguments)
    theirs = any("/path/to/" in word or "USER/" in word for word in arguments)
    theirs |= bool(SHORT_NAMES.keys() & set(arguments))  # would be downloaded
    if (
        command.piped
        or theirs
        or arguments[0] == "web"  # tests/web: a page that does not end by itself
        or "ray" in arguments  # tests/bulk/test_cluster.py
        or (parsed.device == "cuda" and not torch.cuda.is_available())
    ):
        return
    samples = request.getfixturevalue("samples")
    if given is not None:
        stdin = SimpleNamespace(buffer=io.BytesIO((samples / given).read_bytes()))
        request.getfixturevalue("monkeypatch").setattr(sys, "stdin", stdin)
    assert main(arguments) == 0
    if getattr(parsed, "output", None):
        outputs = [*(samples / parsed.output).rglob("*_spk*.*")]
        assert len(outputs) >= 2


def try_make(command: Command) -> None:
    """The targets are there."""
    makefile = (command.folder / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in command.words[1:] if "=" not in word]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def try_pip(command: Command) -> None:
    """The files and the extras are there."""
    assert command.words[1] == "install"
    for flag, word in zip(command.words, command.words[1:], strict=False):
        if flag in ("-c", "-r", "--constraint", "--requirement"):
            assert (command.folder / word).is_file(), word
        for extra in re.findall(r"^(?!ray).*\[(.*)\]", word):
            setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
            section = setup.partition("[options.extras_require]")[2]
            for name in extra.split(","):
                assert re.search(rf"^{name} =", section, re.MULTILINE), word


def try_script(command: Command) -> None:
    """The script is there; its arguments, or the keys of its yaml, are known to it."""
    words = command.words[1:]
    if words[:2] == ["-m", "venv"]:
        return
    if words[:1] == ["-m"]:
        assert find_spec(words[1]), words
        return
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, arguments = command.folder / words[place], words[place + 1 :]
    assert script.is_file(), script
    if script.name == "prepare_data.py":
        prepare = runpy.run_path(str(script))
        prepare["make_parser"]().parse_args(arguments)
    elif arguments and arguments[0].endswith(".yaml"):
        yaml = command.folder / arguments[0]
        _, _, overrides = sb.parse_arguments([str(yaml), *arguments[1:]])
        resolve(yaml, overrides)


@pytest.mark.parametrize(
    "readme", READMES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_yaml_entries_fit_into_sepformer(readme: Path) -> None:
    stock = load_hyperpyyaml(SEPFORMER)["MaskNet"]
    entries = {match[1]: match[0] for match in ENTRY.finditer(SEPFORMER)}
    x = torch.randn(1, 64, 260)
    for parameters in blocks("yaml"):
        where, text = parameters.values
        if where != readme:
            continue
        for match in ENTRY.finditer(text):
            key, entry = match[1], match[0]
            assert key in entries, f"{key} is no entry of SpeechBrain's sepformer.yaml"
            if "\n" in entry.strip():
                entries[key] = entry
            else:  # only the class is new
                entries[key] = entry + entries[key].partition("\n")[2]
        hparams = load_hyperpyyaml("".join(entries.values()))
        with torch.no_grad():
            assert hparams["MaskNet"](x).shape == stock(x).shape
        assert "speechbrain_spgm" in text
