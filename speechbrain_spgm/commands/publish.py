"""``spgm publish``: a trained model becomes a repository on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from speechbrain_spgm.errors import UserError, count, shown, writing

if TYPE_CHECKING:
    from speechbrain_spgm.publishing import Assembled, Uploaded


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The arguments of ``spgm publish``."""
    command = commands.add_parser(
        "publish",
        help="upload a trained model to the Hugging Face Hub",
        description="Assemble a model for the Hub, check it, show its files and its "
        "card, and upload what changed. Only the model, its card, the measured "
        "results, the picture of the curves and an example are published: no optimizer "
        "states, no logs, no file of the run that names local paths.",
    )
    command.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a run's output folder, or a model folder",
    )
    command.add_argument("--repo-id", required=True, metavar="USER/NAME")
    command.add_argument(
        "--dry-run", action="store_true", help="show everything, upload nothing"
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep the assembled files in this folder: a new or empty one, or what an "
        "earlier call wrote for the same repository, which is replaced",
    )
    command.add_argument(
        "--private",
        action="store_true",
        help="only you and those you name can see the repository",
    )
    command.add_argument(
        "--revision",
        metavar="BRANCH",
        help="publish on this branch, made if need be; by default main",
    )
    command.add_argument(
        "--license",
        metavar="ID",
        help="for example cc-by-4.0; by default what the model's card says",
    )
    command.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="ID",
        help="the names of the training data on the Hub",
    )
    command.add_argument(
        "--results",
        type=Path,
        metavar="JSON",
        help="the summary of an evaluation; by default test_summary.json in FOLDER",
    )
    command.add_argument(
        "--example",
        type=Path,
        metavar="AUDIO",
        help="a mixture that you may pass on, published with its separated voices; by "
        "default one of the run's examples if it was tested on LibriMix",
    )
    command.add_argument(
        "--token", help="by default that of hf auth login or of HF_TOKEN"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Assembles, shows and uploads."""
    from speechbrain_spgm.files import temporary_folder
    from speechbrain_spgm.models.sources import shipped_models
    from speechbrain_spgm.publishing import assemble, upload

    name = str(arguments.folder)
    if name in shipped_models() and not arguments.folder.exists():
        raise UserError(
            f"{name} comes with this package and is no training of yours: give a run's "
            "output folder or a model folder."
        )
    with ExitStack() as stack:
        target = arguments.output
        if target is None:
            target = stack.enter_context(temporary_folder()) / "assembled"
        with writing(target, "make room, or give another --output DIR"):
            assembled = assemble(
                arguments.folder,
                target,
                arguments.repo_id,
                licence=arguments.license,
                datasets=tuple(arguments.datasets),
                revision=arguments.revision,
                private=arguments.private,
                summary=arguments.results,
                example=arguments.example,
            )
        show(assembled)
        if arguments.dry_run:
            print("\nDry run: nothing was uploaded.")
        else:
            report(upload(assembled, arguments.token))
    return 0


def show(assembled: Assembled) -> None:
    """The files with their sizes, the card, and what the user should know."""
    terms, files = assembled.terms, assembled.files()
    where = "private" if terms.private else "public"
    licence = shown(terms.licence)
    print(f"{terms.repo}, branch {terms.revision}, {where}, licence {licence}\n")
    width = max(map(len, files))
    for name, size in files.items():
        print(f"  {name:<{width}}  {size:>13,} bytes")
    print("\nREADME.md:\n")
    card = (assembled.folder / "README.md").read_text(encoding="utf-8")
    for line in card.split("\n"):
        print(shown(line.expandtabs(4), longest=None))
    for remark in assembled.remarks:
        print(f"spgm: {remark}", file=sys.stderr)


def report(uploaded: Uploaded) -> None:
    """What the upload did."""
    if uploaded.commit is None:
        print(f"Nothing has changed: {uploaded.address} is up to date.")
    else:
        files = count(len(uploaded.changed), "file")
        commit = shown(uploaded.commit[:7])
        print(f"Published {files} at {uploaded.address} ({commit}):")
        for name in uploaded.changed:
            print(f"  {name}")
    if uploaded.others:
        others = shown(", ".join(uploaded.others))
        print(f"Left as they are there: {others}.")
