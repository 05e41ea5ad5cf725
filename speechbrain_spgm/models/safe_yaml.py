"""Reads a HyperPyYAML file of unknown origin and builds only what a separator needs.

HyperPyYAML imports and calls whatever a yaml names. Here every tag must be on a list:

- built: network modules of SpeechBrain, torch.nn and this package, the Pretrainer that
  lists the weights, and the AudioNormalizer;
- left out (their value is None): seed calls, optimisers, schedulers, losses, loggers
  and other parts of a training;
- anything else is refused by name before anything is built.

The files are read once. What is built is the very text that was checked.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import pydoc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from io import StringIO
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from hyperpyyaml.core import deref, parse_arithmetic, recursive_update
from ruamel.yaml import YAML, SafeLoader
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from speechbrain.utils.run_opts import RunOptions
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from speechbrain_spgm.models.published import MOST_PARAMETERS, YAML_FILE, ModelError
from speechbrain_spgm.models.tensors import outline

LARGEST_TEXT = 2**17  # bytes of one yaml
LONGEST_SCALAR = 2_000  # letters of one value, before and after references
MOST_LETTERS = 2**18  # of all that references and includes write out
MOST_NODES = 10_000  # of a yaml whose aliases are written out
MOST_FILES = 20  # a yaml and its includes, each as often as it is included
MOST_PARTS = 10_000  # modules and parameters, counted again in what holds them

# Modules whose torch.nn.Module classes may be built: they compute and do nothing else.
NETWORK_MODULES = (
    "speechbrain.lobes.models.conv_tasnet",
    "speechbrain.lobes.models.dual_path",
    "speechbrain.lobes.models.resepformer",
    "speechbrain.lobes.models.transformer.Conformer",
    "speechbrain.lobes.models.transformer.Transformer",
    "speechbrain.nnet.CNN",
    "speechbrain.nnet.RNN",
    "speechbrain.nnet.activations",
    "speechbrain.nnet.attention",
    "speechbrain.nnet.containers",
    "speechbrain.nnet.dropout",
    "speechbrain.nnet.linear",
    "speechbrain.nnet.normalization",
    "speechbrain.nnet.pooling",
    "speechbrain_spgm.lobes.masknet",
    "speechbrain_spgm.lobes.pooling",
    "speechbrain_spgm.lobes.spgm",
    "torch.nn",
)
OTHER_CLASSES = {
    "speechbrain.dataio.preprocess.AudioNormalizer",
    "speechbrain.lobes.models.dual_path.IdentityBlock",
    "speechbrain.utils.parameter_transfer.Pretrainer",
}
FUNCTIONS = {  # activations that a yaml may pass on by !name:
    f"torch.nn.functional.{name}"
    for name in ("elu", "gelu", "leaky_relu", "mish", "relu", "sigmoid", "silu", "tanh")
}
SEED_CALLS = {
    "numpy.random.seed",
    "random.seed",
    "speechbrain.utils.seed_everything",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.manual_seed",
}
TRAINING_PARTS = re.compile(  # not built, whatever their arguments are
    r"(speechbrain\.(augment|nnet\.(losses|schedulers)|processing\.speech_augmentation"
    r"|lobes\.augment|utils\.(checkpoints|epoch_loop|train_logger))"
    r"|speechbrain_spgm\.(data|metrics|training)|torch\.optim)\.[\w.]+"
)

PLAIN_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str")
} | {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:omap"}
REFERENCE_TAGS = {"!ref", "!copy", "!PLACEHOLDER"}
CALL = re.compile(r"!(new|name|apply):([\w.]+)")
INCLUDE = "!include:"
LARGE_NUMBER = re.compile(r"\*\*|['\"].*[*%]|[*%].*['\"]")  # or a long text
DEEP = re.compile(r"([\[{]\s*){100}")  # would keep the yaml's parser busy
TUPLE = re.compile(r"^\(.*\)$")  # what HyperPyYAML takes for a tuple

# Compilers, devices and processes are the user's to choose, by run_opts or overrides.
RUN_OPTIONS = set(RunOptions().as_dict())

REMEDY = (
    "if you trust the source, pass trust_remote_code=True "
    "(on the command line --trust-remote-code)"
)


def load_safely(
    find: Callable[[str], Path],
    name: str = YAML_FILE,
    overrides: Mapping[str, Any] | str | None = None,
    overrides_must_match: bool = True,
) -> dict[str, Any]:
    """Builds what a yaml of unknown origin names, if all of it is harmless.

    Arguments
    ---------
    find : Callable
        From the name of a file of the source to its local path.
    name : str
        The yaml's name.
    overrides : dict or str, optional
        The user's own values, as in ``load_hyperpyyaml``; what they name is trusted.
    overrides_must_match : bool
        Whether each must replace a value.

    Returns
    -------
    hparams : dict
        As from ``load_hyperpyyaml``, but seed calls and parts of a training are None,
        and SpeechBrain's run options (``device``, ``compile``, ...) are not there
        unless they are the user's.

    Raises
    ------
    ModelError
        Naming what is refused, or why the yaml cannot be read or built.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "a.yaml").write_text("width: 3\\nlayer: !new:torch.nn.ReLU\\n")
    >>> load_safely(folder.joinpath, "a.yaml")
    {'width': 3, 'layer': ReLU()}
    >>> _ = (folder / "a.yaml").write_text("x: !apply:os.getcwd\\n")
    >>> try:
    ...     load_safely(folder.joinpath, "a.yaml")
    ... except ModelError as error:
    ...     print(str(error).split(";")[0])
    a.yaml, line 1, key x: !apply:os.getcwd is not allowed
    """
    try:
        trusted: set[str] = set()
        if isinstance(overrides, str):
            own = YAML().compose(overrides)
            overrides = YAML().load(overrides)
            trusted = {node.tag for _, node in _walk(own)} if own else trusted
        replaced = {
            key
            for key, value in (overrides or {}).items()
            if not isinstance(value, Mapping)
        }
        if _include_path("", name) != name:
            raise ModelError(f"{name} must be the name of a file in the source.")
        texts = _read_all(find, name, replaced)
        text = _Resolver(texts).resolve(name, overrides, overrides_must_match)
        hparams = _build(text, name, trusted)
        chosen = RUN_OPTIONS - set(overrides or {})
        return {key: value for key, value in hparams.items() if key not in chosen}
    except ModelError:
        raise
    except RecursionError:
        raise ModelError(f"{name} is nested too deeply.") from None
    except YAMLError as error:
        raise ModelError(f"{name} is no valid yaml ({_one_line(error)}).") from None
    except Exception as error:  # constructors may raise anything
        raise ModelError(
            f"{name} cannot be built ({type(error).__name__}: {_one_line(error)})."
        ) from None


def _read_all(
    find: Callable[[str], Path], name: str, replaced: set[str]
) -> dict[str, str]:
    """The texts of a yaml and its includes, with every tag checked."""
    texts: dict[str, str] = {}
    waiting = [name]
    while waiting:
        file = waiting.pop()
        if file in texts:
            continue
        if len(texts) == MOST_FILES:
            raise ModelError(f"{name} includes more than {MOST_FILES} files.")
        texts[file] = _read(find(file), file)
        root = YAML().compose(texts[file])
        if not isinstance(root, MappingNode):
            raise ModelError(f"{file} must hold keys and values, but does not.")
        if file == name:
            root.value = [
                pair for pair in root.value if not _is_replaced(pair[0], replaced)
            ]
        waiting += _check(root, file, set())
    return texts


def _is_replaced(key: Node, replaced: set[str]) -> bool:
    """Whether the user overrides this very key; one with a tag is another key."""
    return key.tag == "tag:yaml.org,2002:str" and key.value in replaced


def _read(path: Path, name: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST_TEXT + 1)
        text = raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise ModelError(f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ModelError(f"{name} is not UTF-8 text: download it again.") from None
    if len(raw) > LARGEST_TEXT:
        raise ModelError(f"{name} has more than {LARGEST_TEXT:,} bytes.")
    if DEEP.search(text):
        raise ModelError(f"{name} is nested too deeply.")
    if any(line.startswith("%") for line in text.splitlines()):
        raise ModelError(f"{name} has a yaml directive (a line that begins with %).")
    return text


class _Resolver:
    """Writes out references and includes of checked texts, by file, within bounds."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.files = self.letters = self.values = 0

    def resolve(
        self, file: str, overrides: Mapping[str, Any] | None, must_match: bool = False
    ) -> str:
        """The yaml of a file without references and includes."""
        self.files += 1
        if self.files > MOST_FILES:
            raise ModelError(f"{file} is included more than {MOST_FILES} times.")
        self._spend(len(self.texts[file]))
        tree = YAML().load(self.texts[file])
        if overrides:
            recursive_update(tree, overrides, must_match)
        self._write_out("", tree, tree, file)
        text = StringIO()
        YAML().dump(tree, text)
        return text.getvalue()

    def _spend(self, letters: int, values: int = 0) -> None:
        """Takes account of what is written out."""
        self.letters, self.values = self.letters + letters, self.values + values
        if self.letters > MOST_LETTERS or self.values > MOST_NODES:
            raise ModelError(
                "The yaml's references and includes make more of it than "
                f"{MOST_LETTERS:,} letters or {MOST_NODES:,} values: no model needs it."
            )

    def _write_out(self, key: str, node: Any, tree: Any, file: str) -> Any:
        """A node of ruamel's, without references and includes."""
        if isinstance(node, list):
            for i, value in enumerate(node):
                node[i] = self._write_out(f"{key}[{i}]", value, tree, file)
        elif isinstance(node, dict):
            for name, value in node.items():
                node[name] = self._write_out(
                    f"{key}.{name}" if key else str(name), value, tree, file
                )
        tag = node.tag.value or "" if hasattr(node, "tag") else ""
        if tag == "!PLACEHOLDER":
            raise ModelError(f"'{key}' is a !PLACEHOLDER and must be replaced.")
        if tag in ("!ref", "!copy"):
            return self._follow(node.value, tree, tag == "!copy", ())
        if tag.startswith(INCLUDE):
            target = _include_path(file, tag.removeprefix(INCLUDE))
            if target not in self.texts:
                raise ModelError(f"An override may not include a file ({target}).")
            own = dict(node) if isinstance(node, dict) else None
            return YAML().load(self.resolve(target, own))
        return node

    def _follow(
        self, text: Any, tree: Any, is_copy: bool, before: tuple[str, ...]
    ) -> Any:
        """The value of a text with references."""
        found = _references(text) if isinstance(text, str) else []
        if not found:
            return text
        if text in before:
            raise ModelError(f"The yaml's reference {text} leads back to itself.")
        before = *before, text
        if found == [(0, len(text))]:
            value = deref(text.strip("<>"), tree)
            if is_copy:
                self._spend(*_size(value))
                value = deepcopy(value)
            return self._follow(value, tree, is_copy, before)
        pieces, at = [], 0
        for start, stop in found:
            value = deref(text[start:stop].strip("<>"), tree)
            if isinstance(value, list | dict):
                raise ModelError(
                    f"The yaml's {text[start:stop]} is no single value, but part of "
                    "a text."
                )
            pieces += text[at:start], str(value)
            at = stop
        whole = "".join([*pieces, text[at:]])
        self._spend(len(whole))
        if len(whole) > LONGEST_SCALAR:
            raise ModelError(
                f"The yaml's references make a text of {len(whole):,} letters: no "
                "model needs it."
            )
        value = self._follow(whole, tree, is_copy, before)
        if isinstance(value, str) and LARGE_NUMBER.search(value):
            raise ModelError(
                f"The yaml's {value} is not allowed: powers and products of texts may "
                "grow without end."
            )
        return parse_arithmetic(value)


def _references(text: str) -> list[tuple[int, int]]:
    """Where <references> stand in a text: the finds of ``<[^>]*>``, but fast.

    Example
    -------
    >>> _references("<a>/<<b> <")
    [(0, 3), (4, 8)]
    """
    found, stop = [], 0
    while (start := text.find("<", stop)) >= 0 and (end := text.find(">", start)) > 0:
        stop = end + 1
        found.append((start, stop))
    return found


def _size(value: Any) -> tuple[int, int]:
    """Letters and values in what is to be copied, each object once."""
    letters, values, seen, waiting = 0, 0, set(), [value]
    while waiting:
        value = waiting.pop()
        values += 1
        if isinstance(value, str):
            letters += len(value)
        elif isinstance(value, list | dict) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return letters, values


def _build(text: str, name: str, trusted: set[str]) -> dict[str, Any]:
    """Checks the resolved yaml and builds its very nodes."""
    builder = _Builder(text)
    root = builder.get_single_node()
    _check(root, name, trusted, resolved=True)
    with _bounded(name) as (check, sizes):
        if not trusted:  # else what the user named would run twice
            builder.outlined = True
            with sizes, outline():
                builder.construct_document(root)
            builder.outlined = False
            check(builder.built)
        builder.built.clear()
        # What has no outline may make more than its outline did.
        sizes.first_on_meta = True
        careful = nullcontext() if builder.complete and not trusted else sizes
        with careful, torch.device("cpu"):  # whatever the user's default device is
            hparams = builder.construct_document(root)
    return {k: v for k, v in hparams.items() if not str(k).startswith("__")}


class _Sizes(TorchFunctionMode):
    """Tells of the numbers of each tensor that takes memory of its own.

    ``first_on_meta``: before it takes any.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell, self.first_on_meta = tell, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs, known = kwargs or {}, None
        if self.first_on_meta:
            # It fails where numbers are asked for.
            with suppress(Exception), outline():
                args_alike, kwargs_alike = _on_meta(args), _on_meta([*kwargs.items()])
                made = func(*args_alike, **dict(kwargs_alike))
                known = _numbers(made, (args_alike, kwargs_alike))
            self.tell(known or 0)
        made = func(*args, **kwargs)
        if known is None:
            self.tell(_numbers(made, (args, [*kwargs.items()])))
        return made


def _on_meta(value: Any) -> Any:
    """The arguments of a function of torch, without memory for their numbers."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if type(value) in (list, tuple):
        return type(value)(map(_on_meta, value))
    if isinstance(value, dict):
        raise TypeError("a dictionary may be there to be changed")
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, Tensor) and not is_lazy(value):
        if value.layout == torch.strided:
            yield value


def _numbers(made: Any, given: Any) -> int:
    """How many numbers a result has in memory of its own, not in that of arguments."""
    old = {tensor.untyped_storage()._cdata for tensor in _tensors(given)}
    new = (x for x in _tensors(made) if x.untyped_storage()._cdata not in old)
    return sum(tensor.numel() for tensor in new)


@contextmanager
def _bounded(
    name: str,
) -> Iterator[tuple[Callable[[list[nn.Module]], None], _Sizes]]:
    """Refuses too many modules or numbers as they are made; gives a check of all."""
    here, parts, numbers, all_numbers = get_ident(), 0, 0, 0

    def refuse(found: str) -> None:
        raise ModelError(f"{name} describes a network of more than {found}.")

    def count(owner: nn.Module, key: str, value: nn.Module | Tensor | None) -> None:
        nonlocal parts, numbers
        if value is None or get_ident() != here:
            return
        is_module = isinstance(value, nn.Module)
        parts += sum(1 for _ in value.modules()) if is_module else 1
        numbers += 0 if is_module or is_lazy(value) else value.numel()
        if parts > MOST_PARTS:
            refuse(f"{MOST_PARTS:,} parts")
        if numbers > MOST_PARAMETERS:
            refuse(f"{MOST_PARAMETERS:,} parameters")

    def add(made: int) -> None:
        nonlocal all_numbers
        all_numbers += made
        if made > MOST_PARAMETERS or all_numbers > 2 * MOST_PARAMETERS:
            refuse(f"{MOST_PARAMETERS:,} parameters")

    def check(modules: list[nn.Module]) -> None:
        nonlocal parts, numbers, all_numbers
        parts = numbers = all_numbers = 0
        tensors = {
            id(tensor): 0 if is_lazy(tensor) else tensor.numel()
            for module in modules
            for tensor in (*module.parameters(), *module.buffers())
        }
        if sum(tensors.values()) > MOST_PARAMETERS:
            refuse(f"{MOST_PARAMETERS:,} parameters")

    with ExitStack() as hooks:
        for register in (
            register_module_module_registration_hook,
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
        ):
            hooks.callback(register(count).remove)
        yield check, _Sizes(add)


def _check(
    root: Node, file: str, trusted: set[str], resolved: bool = False
) -> list[str]:
    """Refuses what is on no list; returns the files that are included."""
    problems, includes = [], []
    for key, node in _walk(root):
        place = f"key {key}"
        if not resolved:
            place = f"line {node.start_mark.line + 1}, {place}"
        tag = node.tag
        if tag.startswith(INCLUDE) and not resolved:
            included = _include_path(file, tag.removeprefix(INCLUDE))
            if included:
                includes.append(included)
                continue
            problems.append(f"{place}: {tag} leads out of the folder")
        elif tag not in trusted:
            reason = _refusal(node, resolved)
            if reason:
                problems.append(f"{place}: {reason}")
    if problems:
        shown, others = problems[:3], len(problems) - 3
        more = f"; and {others} more" if others > 0 else ""
        raise ModelError(f"{file}, {'; '.join(shown)}{more}; {REMEDY}.")
    return includes


def _walk(root: Node) -> Iterator[tuple[str, Node]]:
    """All nodes with the path of keys that leads there; refuses alias bombs."""
    waiting: list[tuple[str, Node, frozenset[int]]] = [("", root, frozenset())]
    for _ in range(MOST_NODES):
        if not waiting:
            return
        key, node, above = waiting.pop()
        yield key or "(top)", node
        if isinstance(node, ScalarNode):
            continue
        if id(node) in above:
            raise ModelError(f"The yaml's key {key} contains itself.")
        inside = above | {id(node)}
        children = []
        for i, child in enumerate(node.value):
            if isinstance(node, MappingNode):
                label = f"{key}.{child[0].value}" if key else str(child[0].value)
                children += [(label, part, inside) for part in child]
            else:
                children.append((f"{key}[{i}]", child, inside))
        waiting += reversed(children)
    raise ModelError(
        f"The yaml has more than {MOST_NODES:,} values: no model needs it."
    )


def _include_path(file: str, target: str) -> str | None:
    """Where an include leads, relative to the source; None if out of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
    outside = target.startswith(("/", "~")) or path.split("/")[0] in ("..", ".")
    return None if outside or re.search(r"[\\:\x00]", target) else path


def _refusal(node: Node, resolved: bool) -> str | None:
    """Why a node may not be there, or None."""
    tag = node.tag
    if isinstance(node, ScalarNode) and len(node.value) > LONGEST_SCALAR:
        return f"a text of {len(node.value):,} letters is not allowed"
    if tag in PLAIN_TAGS or tag == "!tuple":
        return None
    if tag in REFERENCE_TAGS and not resolved:
        text = node.value if isinstance(node, ScalarNode) else ""
        if any("." in text[start:stop] for start, stop in _references(text)):
            return f"the reference {text} to an attribute is not allowed"
        if "**" in text:
            return f"the power {text} is not allowed"
        return None
    call = CALL.fullmatch(tag)
    if call and _purpose(*call.groups()) is not None:
        return None
    return f"{tag.replace('tag:yaml.org,2002:', '!!')} is not allowed"


def _purpose(kind: str, name: str) -> str | Callable[..., Any] | None:
    """What a tag stands for: something to build, ``"left out"``, or None: refused."""
    if kind == "apply":
        return "left out" if name in SEED_CALLS else None
    if TRAINING_PARTS.fullmatch(name):
        return "left out"
    module, _, attribute = name.rpartition(".")
    if kind == "name" and name in FUNCTIONS:
        return getattr(importlib.import_module(module), attribute)
    if name not in OTHER_CLASSES and module not in NETWORK_MODULES:
        return None
    found = getattr(importlib.import_module(module), attribute, None)
    if not inspect.isclass(found):
        return None
    if name in OTHER_CLASSES:
        return found
    home = found.__module__
    at_home = home in NETWORK_MODULES or home.startswith("torch.nn.modules.")
    return found if issubclass(found, nn.Module) and at_home else None


class _Builder(SafeLoader):
    """A loader that knows plain values, tuples, and the calls that were checked."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.built: list[nn.Module] = []
        self.outlined, self.complete = False, True

    def construct_object(self, node: Node, deep: bool = True) -> Any:
        """Builds a node with all that it holds, so that no argument is half-built."""
        return super().construct_object(node, deep=True)

    def text(self, node: Node) -> Any:
        """A string; HyperPyYAML reads a plain (1, 2) as a tuple."""
        value = self.construct_scalar(node)
        tuple_like = node.style is None and TUPLE.match(value)
        return _tuple(value) if tuple_like else value

    def tuple(self, node: Node) -> tuple:
        """What is tagged as a tuple."""
        return _tuple(self.construct_scalar(node))

    def call(self, kind: str, name: str, node: Node) -> Any:
        """Builds, passes on or leaves out what a checked tag names."""
        purpose = _purpose(kind, name) or pydoc.locate(name)  # named by the user
        if purpose is None:
            raise ModelError(f"There is no {name}: check the overrides.")
        if purpose == "left out":
            return None
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if isinstance(node, MappingNode):
            kwargs = self.construct_mapping(node, deep=True)
        elif isinstance(node, SequenceNode):
            args = self.construct_sequence(node, deep=True)
        if kind == "name":
            return partial(purpose, *args, **kwargs) if args or kwargs else purpose
        try:
            made = purpose(*args, **kwargs)
        except Exception as error:
            if not self.outlined or isinstance(error, ModelError):
                raise
            self.complete = False  # it asks for numbers, or is wrong in any case
            return None
        if isinstance(made, nn.Module):
            self.built.append(made)
        return made


_Builder.add_constructor("tag:yaml.org,2002:str", _Builder.text)
_Builder.add_constructor("!tuple", _Builder.tuple)
for _kind in ("new", "name", "apply"):
    _Builder.add_multi_constructor(
        f"!{_kind}:", lambda self, name, node, kind=_kind: self.call(kind, name, node)
    )


def _tuple(text: str) -> tuple:
    """The plain values of ``(1, 2)``; tags inside are an error."""
    return tuple(SafeLoader(f"[{text[1:-1]}]").get_single_data())


def _one_line(error: Exception) -> str:
    """An error's message on one line, not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
