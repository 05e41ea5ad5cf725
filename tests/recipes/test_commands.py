"""The commands in the headers of the experiment yamls; READMEs have test_readme.py.

A header shows a command, indented, then a table with flags to add to it. Further
indented commands stand alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_readme import ROOT, commands, try_script

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
