"""The errors for what a user can put right."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(ValueError):
    """Wrong input; the message is one sentence naming the value and the remedy.

    Programs catch it at the top, print the message alone and exit with code 2.

    Example
    -------
    >>> raise UserError("num_spks is 3, but the list mix.csv has 2 sources.")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: num_spks is 3, but the list mix.csv has 2 sources.
    """  # noqa: E501


class MissingPackage(UserError):
    """A library that only some uses need is not installed."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Imports a library that only some uses need.

    Arguments
    ---------
    module, package : str
        What to import, and the name under which pip knows its library.
    purpose : str
        What needs it; begins the message.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingPackage
        If the library is not installed.

    Example
    -------
    >>> require("json", "json", "The summary").__name__
    'json'
    >>> require("no_such_module", "no-such-package", "The summary")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.MissingPackage: The summary needs no-such-package: run pip install no-such-package.
    """  # noqa: E501
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPackage(
            f"{purpose} needs {package}: run pip install {package}."
        ) from None
