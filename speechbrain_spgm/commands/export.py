"""``spgm export``: a model as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechbrain_spgm.commands.common import SOURCE, load_model
from speechbrain_spgm.errors import writing


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the arguments of ``spgm export``."""
    command = commands.add_parser(
        "export",
        help="write a model as an ONNX file",
        description="Write a model as an ONNX file (opset 18): input mix [1, samples], "
        "output est [1, samples, speakers], of any length, at the model's sample rate. "
        "The file is compared with PyTorch at five lengths from 1 to 30 s and is only "
        "written if no sample differs by more than 1e-4. Needs the extra onnx.",
    )
    command.add_argument("model", metavar="MODEL", help=SOURCE)
    command.add_argument("output", metavar="OUT.onnx", type=Path, help="what to write")
    command.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run whatever the model's hyperparams.yaml names",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit code."""
    from speechbrain_spgm.inference.onnx import OPSET, export_onnx, require_onnx

    require_onnx()
    arguments.device = "cpu"
    model = load_model(arguments)
    with writing(str(arguments.output), "take another name"):
        errors = export_onnx(model, arguments.output)
    for seconds, error in errors.items():
        print(f"{seconds:g} s: differs from PyTorch by at most {error:.1e}")
    print(f"Wrote {arguments.output} (ONNX, opset {OPSET}).")
    return 0
