"""What every train.py needs around a Brain: reading the yaml, reporting bad input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from speechbrain_spgm.data.errors import UserError


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a UserError inside into its message alone and exit code 2.

    Example
    -------
    >>> with user_errors():
    ...     raise UserError("The data folder x does not exist.")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def load_hparams(path: str | Path, overrides: str) -> dict[str, Any]:
    """Builds what a HyperPyYAML file describes.

    Arguments
    ---------
    path : str or Path
        The file; ``!include:`` in it is relative to its folder.
    overrides : str
        Keys to replace, as yaml; they must be in the file.

    Returns
    -------
    dict
        The built values.

    Raises
    ------
    UserError
        If the file is missing or no yaml, a placeholder has no value, or an override
        names no key or is given twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return load_hyperpyyaml(file, overrides, overrides_must_match=True)
    except FileNotFoundError as error:
        raise UserError(f"The yaml file {error.filename} does not exist.") from None
    except DuplicateKeyError as error:
        # The problem reads: found duplicate key "x" with value ...
        key = error.problem.split('"')[1]
        raise UserError(f"{key} is given twice: give it once.") from None
    except MarkedYAMLError as error:
        raise UserError(
            f"The file {path} or the command line is not valid yaml: "
            f"{error.problem}, line {error.problem_mark.line + 1}."
        ) from None
    except KeyError as error:
        # HyperPyYAML's own message names the key: "Override 'x' not found in: ..."
        reason = str(error.args[0]).split(" not found in")[0]
        raise UserError(f"{reason} is not a key of {path}: check its name.") from None
    except ValueError as error:
        if "!PLACEHOLDER" not in str(error):
            raise
        key = str(error).split("'")[1]
        raise UserError(f"{key} has no value: give it as --{key} VALUE.") from None
