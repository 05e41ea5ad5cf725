"""The commands in the headers of the experiment yamls; READMEs have test_readme.py.

A header shows a command, indented, then a table with flags to add to it. Further
indented commands stand alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechbrain_spgm.training.settings import read_settings
from tests.test_readme import BLOCK, ROOT, commands, try_script

YAMLS = sorted(ROOT.glob("recipes/*/separation/hparams/*.yaml"))


def shown(yaml: Path) -> Iterator[str]:
    """The commands of a yaml's header, each on one line."""
    header = re.match(r"(#.*\n)+", yaml.read_text(encoding="utf-8")).group()
    text = re.sub(r"^# ?", "", header, flags=re.MULTILINE).replace("\\\n", " ")
    first, *others = re.findall(r"^    (python .*)$", text, re.MULTILINE)
    for flags in re.findall(r"^\| [^|]+ \| [^|]+ \|(.*)$", text, re.MULTILINE):
        yield f"{first} {flags}"
    yield from others


@pytest.mark.parametrize(
    "yaml", YAMLS, ids=lambda path: f"{path.parts[-4]}-{path.stem}"
)
def test_the_header_shows_commands_that_work(yaml: Path) -> None:
    lines = list(shown(yaml))
    assert len(lines) >= 4
    for line in lines:
        assert f"hparams/{yaml.name}" in line
        for command in commands(yaml.parents[1] / "README.md", line):
            try_script(command)


@pytest.mark.parametrize("corpus", ["LibriMix", "WSJ0Mix"])
def test_each_result_has_a_folder_of_its_own(corpus: str) -> None:
    """All commands of the README's table of results, and those that go on with one."""
    readme = ROOT / "recipes" / corpus / "separation" / "README.md"
    text = readme.read_text(encoding="utf-8")
    section = text.partition("## One command for each result")[2].partition("\n## ")[0]
    folders = {}
    for language, block in BLOCK.findall(section):
        assert language == "bash"
        for command in commands(readme, block):
            yaml, *flags = command.words[2:]
            settings = read_settings([str(command.folder / yaml), *flags])
            place = str(settings.output_folder)
            assert place not in folders, (command.words, folders[place])
            folders[place] = command.words
    assert len(folders) >= 8
    yaml = str(readme.parent / "hparams" / "spgm.yaml")
    for free in (["--num_workers=1"], ["--test_only"], ["--precision=bf16"]):
        place = read_settings([yaml, "--data_folder=x", *free]).output_folder
        assert place.as_posix() == "results/spgm/1234"
