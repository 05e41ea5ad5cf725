"""How a run was started, kept in its output folder."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from speechbrain_spgm.models.sources import COMMAND_FILE


def record_command(
    folder: str | Path,
    argv: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Adds the command of this process to command.txt, unless it is its last line.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> for seed in ("1", "1", "2"):
    ...     record_command(folder, ["/a/train.py", "x.yaml", "--seed", seed], {})
    >>> print((folder / "command.txt").read_text())
    python train.py x.yaml --seed 1
    python train.py x.yaml --seed 2
    <BLANKLINE>
    """
    argv = sys.argv if argv is None else argv
    words = [*launcher(environment), Path(argv[0]).name, *argv[1:]]
    path, line = Path(folder) / COMMAND_FILE, shlex.join(words)
    lines = []
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if lines[-1:] != [line]:
        with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(line + "\n")


def launcher(environment: Mapping[str, str] | None = None) -> list[str]:
    """What starts a script: python, or torchrun with its number of processes.

    Example
    -------
    >>> launcher({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"})
    ['torchrun', '--nproc_per_node', '2']
    """
    environment = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ["python"]
    local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(environment.get("WORLD_SIZE", str(local))) // local
    several = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *several, "--nproc_per_node", str(local)]
