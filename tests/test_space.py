"""The container and the Space run the page that the docs describe."""

import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

import speechbrain_spgm
from speechbrain_spgm.cli import make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "separate.md"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what follows each."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [tuple(line.split(" ", 1)) for line in lines]


def web() -> list[Requirement]:
    """What the page needs besides the package."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.extras_require"]["web"].split()
    return [Requirement(line) for line in lines]


def test_the_container_shows_its_page_where_the_docs_say(steps) -> None:
    by_name = dict(steps)
    run = re.search(
        r"^docker run .*-p (\d+):(\d+) (\S+)$", PAGE.read_text(encoding="utf-8"), re.M
    )
    build = re.search(
        r"^docker build -t (\S+) \.$", PAGE.read_text(encoding="utf-8"), re.M
    )
    assert run and build and run[3] == build[1]
    assert run[2] == by_name["EXPOSE"]
    assert by_name["CMD"] == '["/opt/spgm/bin/python", "space/app.py"]'
    assert ("RUN", "/opt/spgm/bin/pip install --no-cache-dir '.[web]'") in steps


def test_the_container_pairs_a_torch_with_its_torchaudio(steps) -> None:
    (line,) = (rest for name, rest in steps if name == "RUN" and "torch==" in rest)
    versions = dict(word.split("==") for word in shlex.split(line) if "==" in word)
    text = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"| {versions['torchaudio']} | torch {versions['torch']} |" in text


def test_the_app_is_the_command_on_the_port_that_is_given() -> None:
    code = (
        "import runpy, speechbrain_spgm.cli as cli\n"
        "cli.main = lambda argv: print(argv) or 0\n"
        "runpy.run_path('space/app.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PORT": "8123"},
    )
    argv = eval(result.stdout)
    arguments = make_parser().parse_args(argv)
    assert (arguments.host, arguments.port) == ("0.0.0.0", 8123)
    assert not arguments.share


def test_the_space_says_what_it_needs() -> None:
    text = (ROOT / "space" / "README.md").read_text(encoding="utf-8")
    block = YAML(typ="safe").load(text.split("---")[1])
    assert (ROOT / "space" / block["app_file"]).is_file()
    assert block["sdk"] == "gradio" and len(block["short_description"]) <= 60
    gradio = next(need for need in web() if need.name == "gradio")
    assert gradio.specifier.contains(block["sdk_version"])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={block['sdk_version']}" in pins
    wheel, *others = (
        (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").split()
    )
    version = speechbrain_spgm.__version__
    assert wheel == f"./speechbrain_spgm-{version}-py3-none-any.whl"
    assert [Requirement(line) for line in others] == web()
