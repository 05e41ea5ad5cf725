"""What a run is told: its command line, the values of its yaml, and its folder.

Everything here happens before a network is built or a recording opened, so that a wrong
value costs a second and one sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import date
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.tag import Tag
from speechbrain.utils.run_opts import RunOptions

from speechbrain_spgm.choices import LENGTHS, PRECISIONS, STATISTICS
from speechbrain_spgm.data.levels import LEVELS
from speechbrain_spgm.data.lists import MIXTURES
from speechbrain_spgm.errors import UserError, first_line
from speechbrain_spgm.files import replacing
from speechbrain_spgm.lobes.pooling import POOLINGS, find_pooling
from speechbrain_spgm.lobes.separator import NO_MPS
from speechbrain_spgm.models.config import Rule, either, whole
from speechbrain_spgm.models.published import YAML_FILE
from speechbrain_spgm.training.initialise import FILTERBANKS
from speechbrain_spgm.training.optimizers import OPTIMIZERS

INCLUDE = "!include:"  # the beginning of HyperPyYAML's tag
TRAIN, VALID, TEST = "train", "valid", "test"


def number(words: str, holds: Callable[[float], bool] = lambda x: True) -> Rule:
    """A finite number for which something holds."""
    return Rule(
        lambda: f"a number {words}".strip(),
        lambda x: (
            isinstance(x, (int, float))
            and not isinstance(x, bool)
            and math.isfinite(x)
            and holds(x)
        ),
    )


def one_of(names: Collection[str]) -> Rule:
    """One of some words, or of those that have come since."""
    return Rule(lambda: " or ".join(names), lambda x: isinstance(x, str) and x in names)


def several(one: Rule, words: str, *numbers: int) -> Rule:
    """A list of what another rule allows, of one of these lengths or of any."""

    def holds(x: Any) -> bool:
        right = isinstance(x, (list, tuple)) and all(map(one.holds, x))
        return right and len(x) > 0 and (not numbers or len(x) in numbers)

    return Rule(lambda: words, holds)


NULL = Rule(lambda: "null", lambda x: x is None)
FLAG = Rule(lambda: "True or False", lambda x: isinstance(x, bool))
TEXT = Rule(lambda: "a name", lambda x: isinstance(x, str) and bool(x.strip()))
ABOVE_0 = number("above 0", lambda x: x > 0)
FROM_0 = number("from 0", lambda x: x >= 0)
MAYBE_TEXT, MAYBE_ABOVE_0 = either(TEXT, NULL), either(ABOVE_0, NULL)
SHARE = number("from 0 to 1", lambda x: 0 <= x <= 1)
RANGE_DB = several(number(""), "two numbers in dB, such as [-33, -25]", 2)
SIZE = whole(1, 100_000)
KEYS = Rule(lambda: "keys with values, as in the yaml", lambda x: isinstance(x, dict))
BUILT = Rule(
    lambda: "what !new: or !name: builds, as in the yaml",
    lambda x: isinstance(x, dict),
)

RULES = {
    "num_spks": whole(1, 20),
    "sample_rate": whole(1000, 384_000),
    "mixture_mode": one_of(LENGTHS),
    "mixture_type": one_of(MIXTURES),
    **dict.fromkeys(
        [
            "data_folder",
            *(
                f"{set_}_{kind}"
                for set_ in (TRAIN, VALID, TEST)
                for kind in ("manifest", "list")
            ),
            "base_folder_dm",
            "extra_voices",
            "noise_folder",
            "start_from",
        ],
        MAYBE_TEXT,
    ),
    **dict.fromkeys(["train_set", "output_folder", "model_name"], TEXT),
    "valid_mixtures": either(whole(1), NULL),
    "segment_seconds": MAYBE_ABOVE_0,
    "dynamic_seconds": MAYBE_ABOVE_0,
    "speeds": several(whole(1, 1000), "a list of per cents, such as [95, 100, 105]"),
    "augmentations": Rule(
        lambda: "names with probabilities, such as {shift: 0.5}",
        lambda x: (
            (isinstance(x, list) and all(isinstance(name, str) for name in x))
            or (isinstance(x, dict) and all(map(SHARE.holds, x.values())))
        ),
    ),
    **dict.fromkeys(
        [
            "dynamic_mixing",
            "join_recordings",
            "cache_audio",
            "activation_checkpointing",
        ],
        FLAG,
    ),
    "train_splits": either(TEXT, several(TEXT, "a list of names")),
    "mixtures_per_epoch": either(whole(1), NULL),
    "speaker_power": SHARE,
    "levels": one_of(LEVELS),
    "loudness_db": RANGE_DB,
    "noise_loudness_db": RANGE_DB,
    "noise_share": SHARE,
    "seed": whole(0),
    "number_of_epochs": whole(1),
    "batch_size": either(whole(1), NULL),
    "max_batch_seconds": MAYBE_ABOVE_0,
    "grad_accumulation_factor": whole(1),
    "eval_batch_size": whole(1),
    "metrics": several(TEXT, "a list of names, such as [si_sdr, sdr]"),
    "num_workers": whole(0, 1024),
    "precision": one_of(PRECISIONS[:3]),  # int8 does not train
    "eval_precision": one_of(PRECISIONS[:3]),
    "ckpt_interval_minutes": FROM_0,
    "ckpt_interval_steps": whole(0),
    "num_examples": whole(0),
    "filterbank": one_of(FILTERBANKS),
    "lr": ABOVE_0,
    "final_lr": FROM_0,
    "opt_name": one_of(OPTIMIZERS),
    "max_grad_norm": either(number("(0 or below: no limit)"), NULL),
    "warmup_steps": whole(0),
    "loss_threshold": either(number("in dB"), NULL),
    "nonfinite_patience": whole(0),
    "ema_decay": either(number("between 0 and 1", lambda x: 0 < x < 1), NULL),
    "average_checkpoints": whole(1),
    "start_share": SHARE,
    **dict.fromkeys(["N", "num_blocks", "num_layers", "d_ffn", "nhead"], SIZE),
    "K": whole(2, 100_000),
    "kernel_size": whole(2, 100_000),
    "stride": SIZE,
    "pool": one_of(POOLINGS),
    "statistics": either(
        one_of(STATISTICS), several(one_of(STATISTICS), "a list of them")
    ),
    "att_h": either(SIZE, NULL),
    **dict.fromkeys(["card", "net", "modules", "train_loader", "eval_loader"], KEYS),
    **dict.fromkeys(["loss", "opt_class", "epoch_counter", "train_logger"], BUILT),
    # SpeechBrain's own options
    "debug_batches": whole(1),
    "debug_epochs": Rule(lambda: "a whole number", lambda x: isinstance(x, int)),
    "optimizer_step_limit": either(whole(1), NULL),
    "distributed_backend": one_of(("nccl", "gloo", "mpi")),
}

# May differ when a run goes on: they change neither the weights nor what is measured of
# them in training.
FREE = {
    "output_folder",
    "number_of_epochs",
    "num_workers",
    "precision",
    "activation_checkpointing",
    "cache_audio",
    "ckpt_interval_minutes",
    "ckpt_interval_steps",
    "num_examples",
    "nonfinite_patience",
    "eval_batch_size",
    "metrics",
    "model_name",
    "card",
    "train_logger",
    "test_manifest",
    "test_list",
}
# All that counts when a run is only tested: the network, and which weights are chosen.
NETWORK = {"num_spks", "sample_rate", "net", "modules", "statistics", "ema_decay"} | {
    *("N", "kernel_size", "stride", "K", "num_blocks", "num_layers", "d_ffn"),
    *("nhead", "pool", "att_h"),
}
# Recordings of which the recipe's card knows nothing.
OWN_DATA = ("train_manifest", "extra_voices")
# What only mixtures that are new in every epoch have.
MIXED = (
    *("mixtures_per_epoch", "dynamic_seconds", "join_recordings", "speaker_power"),
    *("levels", "cache_audio", "train_splits"),
)
LEVELLED = ("loudness_db", "noise_loudness_db", "noise_share")
# Made of the values above, or the place of the data, which every command names.
UNNAMED = FREE | {"seed", "data_folder"}


class Settings(NamedTuple):
    """What a run was told: the yaml file, SpeechBrain's options, and the overrides.

    ``overrides`` goes from key to value as yaml text; ``text`` is the yaml with them
    and all references resolved, ``values`` the same as plain values.
    """

    file: str
    run_opts: RunOptions
    overrides: dict[str, str]
    text: str
    values: dict[str, Any]

    @property
    def output_folder(self) -> Path:
        """Where the run writes."""
        return Path(self.values["output_folder"])

    def write_record(self) -> None:
        """Writes ``hyperparams.yaml``: all keys, with what was given for them.

        A test of a finished run leaves the record of its training alone.
        """
        record = self.output_folder / YAML_FILE
        if not (self.run_opts.test_only and record.is_file()):
            head = f"# Generated {date.today()} from:\n# {os.path.abspath(self.file)}\n"
            with replacing(record) as path:
                text = f"{head}# yamllint disable\n{self.text}"
                path.write_text(text, encoding="utf-8")


class Options(RunOptions):
    """SpeechBrain's options, with errors as sentences and exact overrides."""

    @staticmethod
    def _create_parser() -> argparse.ArgumentParser:
        parser = RunOptions._create_parser()
        parser.allow_abbrev = False  # --prec is no key, and no option either

        def error(message: str) -> None:
            message = message.removeprefix("argument ").rstrip(".")
            raise UserError(f"{message}: check the command line.")

        parser.error = error
        return parser

    @staticmethod
    def _convert_to_yaml(overrides: Sequence[str]) -> dict[str, str]:
        return dict(pairs_of(overrides))


def pairs_of(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys on a command line and their values as yaml text.

    Example
    -------
    >>> list(pairs_of(["--lr=0.1", "--speeds", "[90,", "100]", "--train_set", "a #1"]))
    [('lr', '0.1'), ('speeds', '[90, 100]'), ('train_set', '"a #1"')]
    """
    given: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            if key in given:
                raise UserError(f"{key} is given twice: give it once.")
            given[key] = [value] if equals else []
        elif key is None:
            raise UserError(f"{word} belongs to no option: check the command line.")
        elif given[key] and given[key][0][:1] not in ("[", "{", "!", "'", '"'):
            raise UserError(f"{word} belongs to no option: check the command line.")
        else:
            given[key].append(word)
    for key, parts in given.items():
        text = " ".join(parts).strip()
        if not text:
            raise UserError(f"{key} has no value: give it as --{key} VALUE.")
        # A path may hold what means something else in yaml; these begin other values.
        if text[0] not in "[{!'\"" and re.search(r"\s#|:\s|:$|^[#&*|>%@`]", text):
            text = json.dumps(text, ensure_ascii=False)
        yield key, text


def as_yaml(overrides: Mapping[str, str]) -> str:
    """Overrides as SpeechBrain takes them."""
    return "\n".join(f"{key}: {text}" for key, text in overrides.items())


def read_settings(argv: Sequence[str]) -> Settings:
    """Reads and checks a command line, and names the output folder.

    Without ``--output_folder`` every override that makes another experiment becomes a
    part of the folder's name: ``results/spgm,pool=avg/1234``.

    Arguments
    ---------
    argv : sequence of str
        The yaml file, SpeechBrain's run options, and keys of the yaml with values.

    Returns
    -------
    Settings
        All values fit the rules.

    Raises
    ------
    UserError
        If a value cannot be right.
    """
    if "RANK" in os.environ:  # torch.distributed.launch adds what the environment says
        argv = [word for word in argv if not re.match("--local[-_]rank", word)]
    file, run_opts, overrides = Options.from_command_line_args(list(argv))
    run_opts = with_limit(run_opts)
    values = plain(parse(resolve(file, as_yaml(overrides))))
    overrides = {**overrides, **folded(run_opts, values)}
    if "output_folder" not in overrides and "output_folder" in values:
        place = named(Path(values["output_folder"]), overrides)
        overrides["output_folder"] = json.dumps(str(place), ensure_ascii=False)
    text = resolve(file, as_yaml(overrides))
    values = plain(parse(text))
    if "card" not in overrides and any(values.get(key) is not None for key in OWN_DATA):
        text = without_card(text)
    given = {key: run_opts[key] for key in RULES.keys() & run_opts.overridden_args}
    check_settings({**values, **given})
    check_device(run_opts, {**values, **given})
    return Settings(file, run_opts, overrides, text, values)


def without_card(text: str) -> str:
    """A yaml whose card says nothing: it is the recipe's corpus that it speaks of."""
    yaml, stream = YAML(), StringIO()
    tree = yaml.load(text)
    if "card" in tree:
        tree["card"] = {}
    yaml.dump(tree, stream)
    return stream.getvalue()


def with_limit(run_opts: RunOptions) -> RunOptions:
    """The options with a number where SpeechBrain leaves a word."""
    limit = run_opts.optimizer_step_limit
    if isinstance(limit, str) and limit.isdecimal():
        run_opts = Options(**{**vars(run_opts), "optimizer_step_limit": int(limit)})
    return run_opts


def folded(run_opts: RunOptions, values: Mapping[str, Any]) -> dict[str, str]:
    """The run options that are keys of the yaml too, so that the record holds them."""
    given = run_opts.overridden_args
    both = {
        key: json.dumps(run_opts[key])
        for key in sorted(given & values.keys())
        if isinstance(run_opts[key], (int, float, str))
    }
    intervals = ("ckpt_interval_steps", "ckpt_interval_minutes")
    if all(key in given and run_opts[key] > 0 for key in intervals):
        raise UserError(
            "ckpt_interval_steps and ckpt_interval_minutes are both given: give one."
        )
    for key, other in zip(intervals, intervals[::-1], strict=True):
        if key in given and run_opts[key] > 0 and other in values:
            both[other] = "0"  # the yaml's own interval gives way
    return both


def resolve(file: str | Path, overrides: str) -> str:
    """The text of a HyperPyYAML file, on its base, with its references resolved."""
    try:
        stream = StringIO()
        YAML().dump(with_base(file), stream)
        stream.seek(0)
        stream.name = str(file)  # includes are relative to it
        return resolve_references(stream, overrides, True).getvalue()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"The yaml file {error.filename} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"The yaml file {file} cannot be read: {reason}.") from None
    except DuplicateKeyError as error:
        # The problem reads: found duplicate key "x" with value ...
        key = error.problem.split('"')[1]
        raise UserError(f"{key} is given twice: give it once.") from None
    except MarkedYAMLError as error:
        raise UserError(
            f"The file {file} or the command line is not valid yaml: "
            f"{error.problem}, line {error.problem_mark.line + 1}."
        ) from None
    except KeyError as error:
        # HyperPyYAML's own message names the key: "Override 'x' not found in: ..."
        reason = str(error.args[0]).split(" not found in")[0]
        raise UserError(f"{reason} is not a key of {file}: check its name.") from None
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        if "!PLACEHOLDER" in str(error):
            key = str(error).split("'")[1]
            raise UserError(f"{key} has no value: give it as --{key} VALUE.") from None
        raise UserError(
            f"The values given do not fit into {file} ({first_line(error)[:200]}): "
            "check the command line."
        ) from None


def with_base(file: str | Path, above: tuple[str, ...] = ()) -> Any:
    """The nodes of a yaml, over those of the one that its key ``base`` names.

    A key takes the place of the base's whole value; keys in ``without`` go. Includes of
    the base are then named as seen from this file.
    """
    with open(file, encoding="utf-8") as stream:
        own = YAML().load(stream)
    if not isinstance(own, dict) or "base" not in own:
        return own
    place, gone = own.pop("base"), own.pop("without", [])
    path = os.path.join(os.path.dirname(os.path.realpath(file)), str(place))
    if path in above:
        raise UserError(f"The yaml file {path} is its own base: check the key base.")
    tree = with_base(path, (*above, path))
    for key in gone:
        del tree[key]
    for node in tree.values():
        tag = getattr(getattr(node, "tag", None), "value", None) or ""
        if tag.startswith(INCLUDE):
            name = os.path.join(os.path.dirname(place), tag.removeprefix(INCLUDE))
            node.yaml_set_ctag(Tag(suffix=INCLUDE + os.path.normpath(name)))
    tree.update(own)
    return tree


def parse(text: str) -> Mapping[str, Any]:
    """The nodes of a resolved yaml; nothing is built."""
    tree = YAML().load(text)
    if not isinstance(tree, dict):
        raise UserError("The yaml file holds no keys: check it.")
    return tree


def plain(node: Any) -> Any:
    """A node as lists, dicts and scalars; one with a tag stands beside its tag."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if isinstance(node, TaggedScalar):
        return {tag: str(node.value)}
    if isinstance(node, dict):
        value: Any = {str(key): plain(value) for key, value in node.items()}
    elif isinstance(node, (list, tuple)):
        value = [plain(item) for item in node]
    else:
        return node
    return {tag: value} if tag else value


def check_settings(values: Mapping[str, Any]) -> None:
    """Makes sure that every value may be what it is, alone and beside the others.

    ``values`` are as ``plain`` gives them; keys without a rule are passed over.

    Example
    -------
    >>> check_settings({"batch_size": "two"})
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: batch_size is "two", but must be a whole number from 1 or null.
    """  # noqa: E501
    for key, rule in RULES.items():
        if key in values and not rule.holds(values[key]):
            raise UserError(
                f"{key} is {in_words(values[key])}, but must be {rule.words()}."
            )
    width, heads = values.get("N"), values.get("nhead")
    if width is not None and heads is not None and width % heads:
        raise UserError(
            f"N is {width}, which nhead, {heads}, does not divide: change one of them."
        )
    if width is not None and width % 2:
        raise UserError(
            f"N is {width}, but must be even, for the positional encoding: change it."
        )
    if values.get("batch_size", 1) is None and values.get("max_batch_seconds") is None:
        raise UserError("Give batch_size or max_batch_seconds: both are null.")
    hidden = find_pooling(values.get("pool", "att")).hidden
    if values.get("att_h") is not None and not hidden:
        raise UserError(
            f"att_h is {values['att_h']}, but pool is {values['pool']}: att_h belongs "
            "to att, leave it out."
        )
    if {"kernel_size", "stride"} <= values.keys():
        check_stride(values["kernel_size"], values["stride"])


def check_idle(given: Collection[str], values: Mapping[str, Any]) -> None:
    """Refuses what was given on the command line and would change nothing.

    Example
    -------
    >>> check_idle(["noise_share"], {"noise_share": 0.5, "dynamic_mixing": False})
    Traceback (most recent call last):
    ...
    speechbrain_spgm.errors.UserError: noise_share is 0.5, but dynamic_mixing is false: leave noise_share out, or change dynamic_mixing.
    """  # noqa: E501
    idle: dict[str, str] = {}  # key -> the other one that decides
    if values.get("dynamic_mixing") is False:
        idle = dict.fromkeys(MIXED + LEVELLED, "dynamic_mixing")
    elif values.get("dynamic_mixing"):
        if values.get("dynamic_seconds") != values.get("segment_seconds"):
            idle["segment_seconds"] = "dynamic_seconds"
        if values.get("levels") != "librimix":
            idle["loudness_db"] = "levels"
        if values.get("noise_folder") is None:
            idle |= dict.fromkeys(LEVELLED[1:], "noise_folder")
    for key in filter(idle.get, given):
        raise UserError(
            f"{key} is {in_words(values[key])}, but {idle[key]} is "
            f"{in_words(values.get(idle[key]))}: leave {key} out, or change "
            f"{idle[key]}."
        )


def check_stride(kernel_size: int, stride: int) -> None:
    """The encoder steps by half its kernel: the decoder must do the same."""
    if stride != kernel_size // 2:
        raise UserError(
            f"stride is {stride}, but kernel_size is {kernel_size}: the stride must be "
            f"half the kernel size, {kernel_size // 2}; it follows if left out."
        )


def in_words(value: Any) -> str:
    """A value in a sentence."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def check_device(run_opts: RunOptions, values: Mapping[str, Any]) -> None:
    """Makes sure that the device is there and computes in the precision asked for."""
    if run_opts.jit or run_opts.jit_module_keys:
        raise UserError("SpeechBrain's layers cannot be scripted: leave --jit out.")
    device = run_opts.device
    if device is not None:
        try:
            torch.empty(1, device=device)
        except Exception:  # each backend has errors of its own
            raise UserError(
                f"The device {device} is not on this machine: give --device cpu, or "
                "leave it out and a GPU is taken if there is one."
            ) from None
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    kind = torch.device(device or "cpu").type
    if kind == "mps":
        raise UserError(f"{NO_MPS}: give --device cpu.")
    for key in ("precision", "eval_precision"):
        if kind == "cpu" and values.get(key) == "fp16":
            raise UserError(f"{key} is fp16, which a CPU has not: give bf16 or fp32.")


def named(folder: Path, overrides: Mapping[str, str]) -> Path:
    """The folder of an experiment: what is not as in the yaml is in its name.

    Example
    -------
    >>> named(Path("results/spgm/1"), {"pool": "avg", "num_workers": "2"}).as_posix()
    'results/spgm,pool=avg/1'
    """
    parts = []
    for key, text in overrides.items():
        if key not in UNNAMED:
            value = text.strip("\"'")
            if "/" in value and value[0] not in "[{!":
                value = Path(value).stem
            value = re.sub(r"[^\w.+*-]+", "-", value).strip("-")
            parts.append(f",{key}={value}")
    suffix = "".join(parts)
    if len(os.fsencode(suffix)) > 150:
        suffix = f",{sha256(suffix.encode()).hexdigest()[:12]}"
    if not suffix:
        return folder
    return folder.parent.with_name(folder.parent.name + suffix) / folder.name


def check_continued(settings: Settings) -> None:
    """Refuses to go on with another experiment than the folder holds.

    Only differences in what both yamls have count, and of a run that is only tested
    only those in its network.
    """
    folder, record = settings.output_folder, settings.output_folder / YAML_FILE
    trained = any(folder.glob("save/CKPT*/CKPT.yaml"))
    if settings.run_opts.test_only and not trained:
        raise UserError(
            f"There is no checkpoint in {folder}: train first, or give the "
            "--output_folder of a run."
        )
    if not record.is_file() or not trained:
        check_idle(settings.overrides, settings.values)
        return
    try:
        before = plain(parse(record.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, MarkedYAMLError, OSError, UserError):
        raise UserError(
            f"{record} cannot be read, so nobody knows what the run in {folder} is: "
            "take another --output_folder."
        ) from None
    # What may differ is set to what it was: values made of it then agree too.
    same = {
        key: json.dumps(before[key])
        for key in FREE & before.keys() & settings.values.keys()
        if isinstance(before[key], (int, float, str))
    }
    text = resolve(settings.file, as_yaml({**settings.overrides, **same}))
    now = plain(parse(text))
    counted = NETWORK if settings.run_opts.test_only else now.keys() - FREE
    first = list(settings.overrides)  # what the user gave is named first

    def order(key: str) -> tuple[bool, int]:
        place = first.index(key) if key in first else len(first)
        return isinstance(now[key], (dict, list)), place

    for key in sorted((key for key in now if key in counted), key=order):
        found = difference(key, before.get(key, now[key]), now[key])
        if found is not None:
            place, old, new = found
            raise UserError(
                f"{place} is {in_words(new)}, but the run in {folder} was started with "
                f"{in_words(old)}: take another --output_folder." + moved(place, record)
            )


def moved(key: str, record: Path) -> str:
    """What to do if data only lie elsewhere now."""
    if RULES.get(key) is not MAYBE_TEXT:
        return ""
    return f" (If the same files only lie elsewhere now, change {key} in {record}.)"


def difference(place: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    """The first place where two values differ, with both; None if they are the same."""
    if isinstance(old, dict) and isinstance(new, dict) and place.startswith("net"):
        for key in old.keys() & new.keys():
            if found := difference(f"{place}[{key}]", old[key], new[key]):
                return found
        return None
    if old == new or same_path(place, old, new):
        return None
    return place, old, new


def same_path(key: str, old: Any, new: Any) -> bool:
    """Whether two values name the same file in two ways."""
    paths = RULES.get(key) is MAYBE_TEXT and all(isinstance(x, str) for x in (old, new))
    return paths and os.path.realpath(old) == os.path.realpath(new)
