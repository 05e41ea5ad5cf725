"""The weights of a SpeechBrain folder: one .ckpt per entry of its pretrainer.

A .ckpt is a pickle. It is read with ``weights_only``, which builds tensors and plain
containers and calls nothing, and it must hold exactly what its module needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.checkpoints import hook_on_loading_state_dict_checkpoint
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import Tensor, nn

from speechbrain_spgm.models.config import CONFIG_FILE, OBJECT_OF
from speechbrain_spgm.models.published import (
    ModelError,
    check_values,
    misfit,
    read_fields,
)
from speechbrain_spgm.models.sources import is_run
from speechbrain_spgm.models.tensors import read_tensors

PARTS = tuple(OBJECT_OF)  # encoder, masknet, decoder


def loadables(hparams: Mapping[str, Any], source: str) -> dict[str, nn.Module]:
    """The modules that a built yaml wants weights for, by the names of their .ckpt.

    The pretrainer may ask for files of the source only.
    """
    pretrainer = hparams.get("pretrainer")
    parts = hparams.get("modules")
    if is_run(Path(source)) and isinstance(parts, Mapping) and set(PARTS) <= set(parts):
        return {part: parts[part] for part in PARTS}  # from a checkpoint
    if not isinstance(pretrainer, Pretrainer):
        raise ModelError(
            f"The yaml of {source} has no pretrainer: it names no weights to load."
        )
    if pretrainer.custom_hooks:
        raise ModelError(
            f"The pretrainer of {source} has custom_hooks, which run code: if you "
            "trust the source, pass trust_remote_code=True."
        )
    for name, path in pretrainer.paths.items():
        folder, _, file = str(path).rpartition("/")
        # As others published it: the files beside the yaml are the same.
        homes = {source.rstrip("/"), str(hparams.get("pretrained_path")).rstrip("/")}
        if file != f"{name}.ckpt" or folder.rstrip("/") not in homes:
            raise ModelError(
                f"The pretrainer of {source} takes the weights of {name} from {path}, "
                "which lies elsewhere: if you trust it, pass trust_remote_code=True."
            )
    for name, condition in pretrainer.conditions.items():
        if not isinstance(condition, bool | int | str | type(None)):
            raise ModelError(f"The pretrainer's condition for {name} must be a value.")
    modules = {
        name: module
        for name, module in pretrainer.loadables.items()
        if pretrainer.is_loadable(name)
    }
    for name, module in modules.items():
        if not re.fullmatch(r"\w[\w-]*", str(name)):
            raise ModelError(f"The pretrainer's {name!r} is no name of a file.")
        if not isinstance(module, nn.Module):
            raise ModelError(f"The pretrainer's {name} must be a module, but is not.")
    return modules


def load_weights(
    hparams: Mapping[str, Any], source: str, find: Callable[[str], Path]
) -> None:
    """Loads the weights of all modules of a built yaml.

    Refused is a file that holds anything but tensors of exactly these names, and a
    module that gets none.
    """
    wanted = loadables(hparams, source)
    for name, module in wanted.items():
        fit(module, find(f"{name}.ckpt"))
    modules = hparams.get("modules")
    if not isinstance(modules, Mapping):
        raise ModelError(f"The yaml of {source} has no modules: it is no separator.")
    loaded = _parameters(wanted.values())
    for name, module in modules.items():
        if isinstance(module, nn.Module) and not _parameters([module]) <= loaded:
            raise ModelError(
                f"The pretrainer of {source} loads no weights for {name}: "
                "name it there under loadables."
            )


def card_config(find: Callable[[str], Path]) -> dict[str, Any]:
    """What config.json beside a yaml says, unchecked, for ``spgm info``, or nothing."""
    try:
        return read_fields(find(CONFIG_FILE))
    except ModelError:
        return {}


def _parameters(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


def read_ckpt(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a .ckpt, on the CPU, without running anything from it.

    They have the names, of today's SpeechBrain, and shapes of ``wanted``.
    """

    def check(shapes: Mapping[str, list[int]]) -> None:
        problem = misfit(shapes, wanted)
        if problem:
            raise ModelError(f"{path} does not fit its yaml: {problem}.")

    return read_tensors(path, check, hook_on_loading_state_dict_checkpoint)


def fit(module: nn.Module, path: Path) -> None:
    """Puts weights into a module, on the CPU, that needs exactly these.

    Other names or shapes, and values that are not finite, are a ModelError.

    Example
    -------
    >>> import torch
    >>> path = getfixture("tmp_path") / "a.ckpt"
    >>> torch.save({"weight": torch.zeros(1, 1)}, path)
    >>> fit(nn.Linear(1, 1), path)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    speechbrain_spgm.models.tensors.ModelError: ... does not fit its yaml: ... bias.
    """
    state = read_ckpt(path, module.state_dict())
    check_values({k: v for k, v in state.items() if v.is_floating_point()}, path)
    module.float().load_state_dict(state)  # built as torch's default type has it
