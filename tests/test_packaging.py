"""What gets installed: modules, data, command, versions, licence."""

import ast
import importlib
import pkgutil
import re
import sys
from collections.abc import Container
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import Distribution

import speechbrain_spgm

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
GROUND = {
    "__version__",
    "audio",
    "choices",
    "console",
    "containers",
    "errors",
    "files",
    "media",
    "pcm",
}
MAY_IMPORT = {  # besides itself and the ground
    "lobes": set(),
    "data": {"lobes"},
    "corpora": {"data", "lobes"},
    "metrics": {"data", "lobes"},
    "models": {"lobes"},
    "inference": {"models", "lobes"},
    "training": {"metrics", "data", "models", "lobes"},
    "bulk": {"inference", "metrics", "models", "lobes"},
    "publishing": {"inference", "models", "metrics", "lobes"},
    "web": {"inference", "models", "metrics", "lobes"},
    "commands": {
        "bulk",
        "publishing",
        "web",
        "inference",
        "models",
        "metrics",
        "data",
        "lobes",
    },
}


@pytest.fixture(scope="module")
def config() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def pins(python: str) -> dict[str, str]:
    """The version that constraints.txt names for each package on one Python."""
    versions: dict[str, str] = {}
    for pin in requirements((ROOT / "constraints.txt").read_text(encoding="utf-8")):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonicalize_name(pin.name)
            assert name not in versions, f"{name} is pinned twice"
            versions[name] = str(pin.specifier).removeprefix("==")
    return versions


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tested_versions_are_in_the_declared_ranges(
    config: ConfigParser, python: str
) -> None:
    assert SpecifierSet(config["options"]["python_requires"]).contains(python)
    pinned = pins(python)
    declared = config["options"]["install_requires"]
    for extra in config["options.extras_require"].values():
        declared += extra
    wrong = [
        f"{need}: pinned {pinned.get(canonicalize_name(need.name))}"
        for need in requirements(declared)
        if not need.specifier.contains(pinned.get(canonicalize_name(need.name), "0"))
    ]
    assert not wrong


# What each torchaudio asks for, and beside which of these torches
# `import torch, torchaudio, speechbrain` was seen to work: docs/versions.md.
TORCHES = (
    "2.7.1 2.8.0 2.9.0 2.9.1 2.10.0 2.11.0 2.12.0 2.12.1 2.13.0 2.14.0 2.14.1 2.15.0"
)
TORCHAUDIOS = {
    "2.7.1": ("==2.7.1", "2.7.1"),
    "2.8.0": ("==2.8.0", "2.8.0"),
    "2.9.0": ("==2.9.0", "2.9.0 2.9.1"),
    "2.9.1": ("==2.9.1", "2.9.0 2.9.1"),
    "2.10.0": ("==2.10.0", "2.10.0"),
    "2.11.0": ("", "2.11.0 2.12.0 2.12.1 2.13.0 2.14.0 2.14.1"),
    "2.11.1": (">=2.11", "2.13.0 2.14.0 2.14.1 2.15.0"),
}


def test_only_pairs_that_import_can_be_installed(config: ConfigParser) -> None:
    ours = {
        need.name: need.specifier
        for need in requirements(config["options"]["install_requires"])
    }
    allowed = {
        (torch, torchaudio)
        for torchaudio, (asks, _) in TORCHAUDIOS.items()
        for torch in TORCHES.split()
        if torchaudio in ours["torchaudio"]
        and torch in ours["torch"]
        and torch in SpecifierSet(asks)
    }
    assert allowed <= {
        (torch, torchaudio)
        for torchaudio, (_, beside) in TORCHAUDIOS.items()
        for torch in beside.split()
    }
    assert {("2.7.1", "2.7.1"), ("2.15.0", "2.11.1")} <= allowed
    for python in PYTHONS:
        assert (pins(python)["torch"], pins(python)["torchaudio"]) in allowed


def test_the_description_has_no_link_that_is_dead_elsewhere(
    config: ConfigParser,
) -> None:
    text = config["metadata"]["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("https://") for link in links)
    assert not text.startswith("file:")


def test_no_hint_names_this_package_on_a_registry() -> None:
    # It is on none: hints must work for who installed from a clone or a wheel.
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for file in files + sorted((ROOT / "speechbrain_spgm").rglob("*.py")):
        assert not re.search(
            r"pip install [^\n]*speechbrain[_-]spgm", file.read_text(encoding="utf-8")
        ), file


def test_a_wheel_holds_every_module_and_every_shipped_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["setup.cfg"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {Path(file).resolve() for _, _, file in build.find_all_modules()}
    for _, folder, _, names in build.data_files:
        packed |= {Path(folder, name).resolve() for name in names}

    package = ROOT / "speechbrain_spgm"
    needed = set(package.rglob("*.py"))
    for config in (package / "pretrained").glob("*/config.json"):
        needed |= {config, config.with_name("model.safetensors")}
        needed.add(config.with_name("README.md"))
    assert needed <= packed
    assert distribution.metadata.version == speechbrain_spgm.__version__


def test_the_command_is_there(config: ConfigParser) -> None:
    command, _, place = config["options.entry_points"]["console_scripts"].partition("=")
    module, _, function = place.strip().partition(":")
    assert command.strip() == "spgm"
    assert callable(getattr(importlib.import_module(module), function))


def test_every_module_imports() -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(
            speechbrain_spgm.__path__, prefix="speechbrain_spgm."
        )
    ]
    rooms = {name.split(".")[1] for name in names} - {"__main__", "cli"}
    assert rooms == (MAY_IMPORT.keys() | GROUND) - {"__version__"}
    for name in names:
        importlib.import_module(name)


def test_every_library_that_is_imported_is_declared(config: ConfigParser) -> None:
    declared = {
        canonicalize_name(need.name)
        for need in requirements(config["options"]["install_requires"])
    }
    providers = packages_distributions()  # Python 3.10 does not know all
    missing = {
        top
        for file in (ROOT / "speechbrain_spgm").rglob("*.py")
        for top in {name.split(".")[0] for name in imported_when_run(file)}
        if top not in sys.stdlib_module_names | {"speechbrain_spgm"}
        and declared.isdisjoint(map(canonicalize_name, providers.get(top, [top])))
    }
    assert not missing


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_between_the_rooms_point_one_way(room: str) -> None:
    wrong = []
    for file in (ROOT / "speechbrain_spgm" / room).rglob("*.py"):
        for name in imported(file):
            parts = name.split(".")
            if parts[0] in ("recipes", "tests", "benchmarks", "demo"):
                wrong.append(f"{file.name} imports {name}")
            if parts[0] != "speechbrain_spgm" or len(parts) == 1:
                continue
            if parts[1] not in MAY_IMPORT[room] | GROUND | {room}:
                wrong.append(f"{file.name} imports {name}")
    assert not wrong


def test_no_imports_go_in_a_circle() -> None:
    """Those in functions and for type checkers included."""
    package = ROOT / "speechbrain_spgm"
    modules = {dotted(file): file for file in package.rglob("*.py")}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for module, file in modules.items():
        for name in imported(file):
            sorter.add(module, *(needed_by(module, name, modules) - {module}))
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def dotted(file: Path) -> str:
    """A module's full name."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def needed_by(module: str, name: str, modules: Container[str]) -> set[str]:
    """The modules that an import runs; not the packages in which ``module`` lies."""
    parts = name.split(".")
    runs = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    while name not in modules and name:
        name = name.rpartition(".")[0]
    around = {part for part in runs if f"{module}.".startswith(f"{part}.")} - {name}
    return {part for part in runs - around if part in modules}


@pytest.mark.parametrize(
    ("module", "name", "found"),
    [
        ("p.a.x", "p.b.y.thing", {"p.b", "p.b.y"}),
        ("p.a.x", "p.a.y.thing", {"p.a.y"}),
        ("p.a", "p.a.x.thing", {"p.a.x"}),
        ("p.a.x", "p.version", {"p"}),
        ("p.a.x", "os.path", set()),
    ],
)
def test_what_an_import_runs(module: str, name: str, found: set[str]) -> None:
    modules = {"p", "p.a", "p.a.x", "p.a.y", "p.b", "p.b.y"}
    assert needed_by(module, name, modules) == found


def imported(file: Path) -> list[str]:
    """The full names that a module imports."""
    return names_in(ast.parse(file.read_text(encoding="utf-8")), file)


def imported_when_run(file: Path) -> list[str]:
    """The same without what only type checkers import."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return names_in(tree, file)


def names_in(tree: ast.Module, file: Path) -> list[str]:
    """The full names that the imports of a parsed module name."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def test_the_licence_is_the_whole_apache_licence(config: ConfigParser) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert config["metadata"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    for number, title in [(1, "Definitions"), (9, "Accepting Warranty")]:
        assert f"   {number}. {title}" in text
    assert "END OF TERMS AND CONDITIONS" in text
