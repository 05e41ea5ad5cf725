"""What the docs name exists: modules, functions, files and folders."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "speechbrain_spgm" / "pretrained").rglob("*.md"),
    ]
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
DOTTED = re.compile(r"`(speechbrain_spgm(?:\.\w+)*)`")
# The repository's own folders; a file name with capitals stands for many.
SLASHED = re.compile(
    r"`((?:speechbrain_spgm|tests|recipes|benchmarks|docs|hparams)/[a-z0-9_./]*)`"
)


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [name for name in DOTTED.findall(text) if not is_there(name)]
    wrong += [path for path in SLASHED.findall(text) if not (ROOT / path).exists()]
    wrong += [to for to in LINK.findall(text) if not (page.parent / to).exists()]
    assert not wrong


def test_the_architecture_names_every_room_and_the_way_of_a_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = DOTTED.findall(text)
    assert len(names) > 30
    package = ROOT / "speechbrain_spgm"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {f"speechbrain_spgm.{room}" for room in rooms} <= {*names}
    assert not is_there("speechbrain_spgm.lobes.spgm.SPGM")
    assert not is_there("speechbrain_spgm.nowhere")


def test_what_contributors_are_told_to_edit_exists() -> None:
    """Each name in backticks in CONTRIBUTING.md stands in the code."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "speechbrain_spgm").rglob("*.py")
    )
    names = re.findall(r"`([A-Za-z_]+)`", text.split("## How to add")[1])
    assert len(names) > 8
    wrong = [name for name in names if not re.search(rf"\b{name}\b", code)]
    assert not wrong


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) > 9
    said = "\n".join(
        text_of(node)
        for path in (ROOT / "speechbrain_spgm").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    parts = {part for message in messages for part in message.split("...")}
    assert not [part for part in parts if part not in said]


def text_of(node: ast.AST) -> str:
    """What a string says, with what is filled in left out."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub("%[ds]", "\n", node.value)
    return "\n"


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False
