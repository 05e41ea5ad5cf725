"""Models of strangers: nothing is run, nothing is written, one line says why."""

import io
import json
import os
import pickle
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.inference.separation import SepformerSeparation
from torch.overrides import TorchFunctionMode

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.models.config import build
from speechbrain_spgm.models.convert import write_speechbrain
from speechbrain_spgm.models.safe_yaml import load_safely

CPU = {"device": "cpu"}
YAMLS = Path(__file__).resolve().parents[1] / "yamls"


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def state_of(config: dict) -> dict[str, torch.Tensor]:
    parts = dict(zip(("encoder", "masknet", "decoder"), build(config), strict=True))
    return {k: v.clone() for k, v in torch.nn.ModuleDict(parts).state_dict().items()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """An honest folder in SpeechBrain's layout; not to be changed."""
    from tests.conftest import CONFIG

    folder = tmp_path_factory.mktemp("clean")
    torch.manual_seed(0)
    write_speechbrain(folder, state_of(CONFIG), CONFIG)
    return folder


@pytest.fixture
def folder(clean, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may spoil; the working directory is an empty one."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return shutil.copytree(clean, tmp_path / "model")


@pytest.fixture
def canary(tmp_path) -> Path:
    """What a payload makes."""
    return tmp_path / "canary"


def refused(folder: Path, **kwargs) -> str:
    """Loads a folder; returns the one line that refuses it. It leaves no trace."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(ModelError) as error:
        SPGMSeparation.from_hparams(folder, run_opts=CPU, **kwargs)
    assert sorted(folder.parent.rglob("*")) == before
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def append(folder: Path, text: str) -> None:
    with open(folder / "hyperparams.yaml", "a", encoding="utf-8") as file:
        file.write(text)


def test_an_honest_folder_loads_the_same_everywhere(folder):
    ours = SPGMSeparation.from_hparams(folder, run_opts=CPU)
    trusted = SPGMSeparation.from_hparams(folder, run_opts=CPU, trust_remote_code=True)
    stock = SepformerSeparation.from_hparams(folder, run_opts=CPU)
    mix = torch.randn(1, 999)
    est = ours.separate_batch(mix)
    assert torch.equal(trusted.separate_batch(mix), est)
    assert torch.allclose(stock.separate_batch(mix), est, atol=1e-6)
    assert ours.hparams.config["config_name"] == "random"
    assert os.listdir() == []


def doubling(value: str, tag: str, first: str = "[1, 2]") -> str:
    """Thirty keys, each of which holds the last twice."""
    keys = (f"d{i}: {value.format(tag, i - 1)}\n" for i in range(1, 30))
    return f"d0: {first}\n{''.join(keys)}"


# CANARY is the folder that the payload would make.
HOSTILE = {
    "apply": ("x: !apply:os.mkdir [CANARY]", "key x: !apply:os.mkdir is not allowed"),
    "applyref": ("x: !applyref:os.mkdir [CANARY]", "!applyref:os.mkdir is not"),
    "applyref arguments": (
        "x: !applyref:os.mkdir {_args: [CANARY], _kwargs: {}}",
        "!applyref:os.mkdir is not",
    ),
    "new": (
        "x: !new:subprocess.Popen [[mkdir, CANARY]]",
        "!new:subprocess.Popen is not allowed",
    ),
    "name": ("x: !name:os.mkdir [CANARY]", "!name:os.mkdir is not allowed"),
    "name as a hook": (
        "p: !new:speechbrain.utils.parameter_transfer.Pretrainer\n"
        "    custom_hooks: {masknet: !name:os.mkdir [CANARY]}",
        "key p.custom_hooks.masknet: !name:os.mkdir",
    ),
    "module": ("x: !module:antigravity", "!module:antigravity is not allowed"),
    "python object": (
        "x: !!python/object/apply:os.mkdir [CANARY]",
        "!!python/object/apply:os.mkdir is not allowed",
    ),
    "in a tuple": ("x: (!!python/object/apply:os.mkdir [CANARY])", "python/object"),
    "in a tagged tuple": (
        "x: !tuple (!!python/object/apply:os.mkdir [CANARY])",
        "python/object",
    ),
    "attribute": (
        "a: !new:torch.nn.ReLU\nx: !ref <a.forward>",
        "the reference <a.forward> to an attribute is not allowed",
    ),
    "attribute in a text": (
        'a: !new:torch.nn.ReLU\nb: "<a.forward>"\nx: !ref <b>',
        "!apply:getattr is not allowed",
    ),
    "speechbrain's shell": (
        'x: !apply:speechbrain.utils.superpowers.run_shell ["mkdir CANARY"]',
        "run_shell is not allowed",
    ),
    "speechbrain's import": (
        "x: !apply:speechbrain.utils.superpowers.import_from_path [CANARY]",
        "import_from_path is not allowed",
    ),
    "speechbrain's fetch": (
        "x: !apply:speechbrain.utils.fetching.fetch {filename: a, source: b}",
        "fetch is not allowed",
    ),
    "another model": (
        "x: !apply:speechbrain.inference.separation.SepformerSeparation.from_hparams "
        "[user/other]",
        "from_hparams is not allowed",
    ),
    "re-exported module": (
        "x: !new:speechbrain.lobes.models.dual_path.copy.os.system [mkdir CANARY]",
        "copy.os.system is not allowed",
    ),
    "re-exported in torch.nn": ("x: !new:torch.nn.os.system [a]", "torch.nn.os.system"),
    "a class that is no network": (
        "x: !new:speechbrain.utils.checkpoints.os.system [a]\n"
        "y: !new:torch.nn.Parameter [1]",
        "key y: !new:torch.nn.Parameter is not allowed",
    ),
    "an unknown package": ("x: !new:custom.Network", "!new:custom.Network"),
    "many": (
        "\n".join(f"x{i}: !new:os.a{i}" for i in range(9)),
        "key x2: !new:os.a2 is not allowed; and 6 more",
    ),
    "tag directive": ("%TAG !e! !applyref:", "has a yaml directive"),
    "include out": ("x: !include:../other.yaml", "leads out of the folder"),
    "include absolute": ("x: !include:/etc/hosts", "leads out of the folder"),
    "include encoded": ("x: !include:%2e%2e/other.yaml", "leads out of the folder"),
    "include missing": ("x: !include:other.yaml", "has no other.yaml"),
    "itself": ("x: &a [*a]", "contains itself"),
    "alias bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(
            f"{x}: &{x} [{', '.join([f'*{y}'] * 8)}]\n"
            for y, x in zip("abcdef", "bcdefg", strict=True)
        ),
        "more than 10,000 values",
    ),
    "power": ("a: 9\nx: !ref <a> ** <a> ** <a>", "the power <a> ** <a> ** <a> is not"),
    "half references": ("x: !ref " + "<." * 50_000, "text of 100,000 letters is not"),
    "half references in a text": ("x: " + "<." * 50_000, "text of 100,000 letters"),
    "a hundred thousand half references": ("x: " + "<." * 100_000, "131,072 bytes"),
    "text that doubles": (
        doubling("{0} <d{1}><d{1}>", "!ref", "abc" * 99),
        "make a text",
    ),
    "copied text that doubles": (
        doubling("{0} <d{1}><d{1}>", "!copy", "abc" * 99),
        "make a",
    ),
    "lists that double": (
        doubling("[{0} <d{1}>, {0} <d{1}>]", "!ref"),
        "10,000 values",
    ),
    "copies that double": (
        doubling("[{0} <d{1}>, {0} <d{1}>]", "!copy"),
        "10,000 values",
    ),
    "a list in a text": ("a: [1, 2]\nx: !ref a<a>", "<a> is no single value"),
    "a reference to itself": ("x: !ref <y>\ny: <y>", "leads back to itself"),
    "hidden power": ("a: '**'\nx: !ref 9 <a> 9 <a> 9", "9 ** 9 ** 9 is not allowed"),
    "text times number": ("a: \"'b'\"\nx: !ref <a> * 1000000000", "is not allowed"),
    "included again and again": (
        "x: !include:hyperparams.yaml\ny: !include:hyperparams.yaml",
        "is included more than 20 times",
    ),
    "depth": ("x: " + "[" * 5000, "nested too deeply|no valid yaml"),
    "placeholder": ("x: !PLACEHOLDER", "'x' is a !PLACEHOLDER"),
    "twice": ("sample_rate: 3", "no valid yaml"),
    "huge layer": (
        "x: !new:torch.nn.Linear {in_features: 10000000000, out_features: 1000000}",
        "more than 1,000,000,000 parameters",
    ),
    "large layers": (
        "x:"
        + "\n  - !new:torch.nn.Linear {in_features: 12000, out_features: 12000}" * 9,
        "more than 1,000,000,000 parameters",
    ),
    "large buffers": (
        "x: !new:torch.nn.BatchNorm1d {num_features: 10000000000}",
        "more than 1,000,000,000 parameters",
    ),
    "very many layers": (
        "x: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock\n"
        "    {num_layers: 1000000000, d_model: 2, nhead: 1, d_ffn: 2}",
        "more than 10,000 parts",
    ),
    "negative layer": (
        "x: !new:torch.nn.Linear {in_features: -1, out_features: 3}",
        "cannot be built",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml(folder, canary, name):
    text, words = HOSTILE[name]
    append(folder, text.replace("CANARY", str(canary)) + "\n")
    message = refused(folder)
    assert any(word in message for word in words.split("|")), message
    assert not canary.exists()


def test_the_traps_work(canary):
    """In SpeechBrain's own loader, so that the tests above can fail."""
    for name in ("apply", "applyref", "python object", "in a tuple"):
        load_hyperpyyaml(HOSTILE[name][0].replace("CANARY", str(canary)))
        canary.rmdir()


def test_hostile_yaml_is_run_if_it_is_trusted(folder, canary):
    append(folder, f"x: !apply:os.mkdir [{canary}]\n")
    assert "pass trust_remote_code=True" in refused(folder)
    SPGMSeparation.from_hparams(folder, run_opts=CPU, trust_remote_code=True)
    assert canary.exists()


def test_includes_are_read_and_checked_too(folder, canary):
    (folder / "parts").mkdir()
    (folder / "parts" / "a.yaml").write_text("b: !include:b.yaml\n    n: 5\n")
    inner = folder / "parts" / "b.yaml"
    inner.write_text("n: 3\nm: !ref <n>\n")
    append(folder, "a: !include:parts/a.yaml\n")
    model = SPGMSeparation.from_hparams(folder, run_opts=CPU)
    assert model.hparams.a == {"b": {"n": 5, "m": 5}}

    inner.write_text(f"x: !apply:os.mkdir [{canary}]\n")
    assert "parts/b.yaml, line 1, key x: !apply:os.mkdir" in refused(folder)
    inner.write_text("n: !include:../../model/hyperparams.yaml\n")
    assert "leads out of the folder" in refused(folder)
    inner.unlink()
    (folder.parent / "outside.yaml").write_text("n: 3\n")
    inner.symlink_to("../../outside.yaml")
    assert "is a link out of its folder" in refused(folder)
    inner.unlink()
    inner.write_text("a: !include:a.yaml\n")
    assert "is included more than 20 times" in refused(folder)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["hyperparams.yaml", "masknet.ckpt"])
def test_links_out_of_the_folder(folder, name):
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert f"{name} is a link out of its folder, to {outside}" in refused(folder)


def test_what_an_override_names_is_trusted(folder):
    append(folder, "extra: !new:custom.Network\n")
    assert "!new:custom.Network is not allowed" in refused(folder)
    model = SPGMSeparation.from_hparams(
        folder, run_opts=CPU, overrides={"extra": None, "sample_rate": 16000}
    )
    assert model.hparams.extra is None and model.sample_rate == 16000
    model = SPGMSeparation.from_hparams(
        folder, run_opts=CPU, overrides="extra: !name:collections.Counter"
    )
    assert model.hparams.extra is Counter
    message = refused(folder, overrides={"extra": None, "nothing": 1})
    assert "cannot be built (KeyError" in message


def test_an_override_hides_nothing_but_its_own_key(folder, canary):
    """A key of another type that reads the same is another key."""
    append(folder, f"? !odd sample_rate\n: !applyref:os.mkdir [{canary}]\n")
    refused(folder, overrides={"sample_rate": 16000}, overrides_must_match=False)
    assert not canary.exists()
    replace(folder, "? !odd sample_rate", "? 1")
    message = refused(folder, overrides={"1": 2}, overrides_must_match=False)
    assert "!applyref:os.mkdir is not allowed" in message and not canary.exists()


def test_run_options_are_the_users(folder):
    append(folder, "device: [3]\ncompile: true\ndistributed_launch: true\n")
    model = SPGMSeparation.from_hparams(folder, overrides={"device": "cpu"})
    assert model.device == "cpu" and not model.compile
    assert not model.distributed_launch


@pytest.mark.parametrize(
    ("text", "words"),
    [("3: 4", "makes no separator"), ("config: text", None), ("a b: 3", None)],
)
def test_odd_keys(folder, text, words):
    append(folder, f"{text}\n")
    if words:
        assert words in refused(folder)
    else:
        SPGMSeparation.from_hparams(folder, run_opts=CPU)


@pytest.mark.parametrize("name", ["../model/hyperparams.yaml", "", "."])
def test_the_yaml_is_a_file_of_the_source(folder, name):
    refused(folder, hparams_file=name)
    refused(folder, hparams_file=str(folder / "hyperparams.yaml"))


def test_included_files_mean_the_same_in_every_locale(folder, monkeypatch):
    """A letter of UTF-8 may hold a line break of Latin-1."""
    (folder / "a.yaml").write_text("# \u00c5\nn: 3\n", encoding="utf-8")
    append(folder, "a: !include:a.yaml\n")
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "latin-1")
    model = SPGMSeparation.from_hparams(folder, run_opts=CPU)
    assert model.hparams.a == {"n": 3}


def replace(folder: Path, old: str, new: str) -> None:
    file = folder / "hyperparams.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pretrainer:", "other:", "has no pretrainer"),
        ("modules:", "parts:", "has no modules"),
        ("    masknet: !ref <MaskNet>\n    decoder", "    decoder", "has no masknet"),
        (
            "        masknet: !ref <MaskNet>\n",
            "",
            "loads no weights for masknet: name it there under loadables",
        ),
        (
            "    loadables:",
            "    paths: {masknet: /tmp/masknet.ckpt}\n    loadables:",
            "weights of masknet from /tmp/masknet.ckpt, which lies elsewhere",
        ),
        (
            "    loadables:",
            "    paths: {masknet: https://x.org/masknet.ckpt}\n    loadables:",
            "which lies elsewhere",
        ),
        (
            "        masknet: !ref",
            "        ../canary: !ref",
            "'../canary' is no name of a file",
        ),
        (
            "        decoder: !ref <Decoder>",
            "        decoder: !ref <Decoder>\n        more: text",
            "more must be a module",
        ),
        ("sample_rate: 8000", "sample_rate: -1", "sample_rate: -1, but it must be"),
        ("num_spks: 2\n\n", "num_spks: 1e9\n\n", "num_spks: 1000000000.0, but"),
        (
            "decoder: !ref <Decoder>\n\n",
            "decoder: !ref <Decoder>\n    more: 3\n\n",
            "has a int as module more",
        ),
    ],
)
def test_yaml_that_makes_no_separator(folder, old, new, words):
    replace(folder, old, new)
    assert words in refused(folder)


@pytest.mark.parametrize("name", ["encoder", "masknet", "decoder"])
@pytest.mark.parametrize("kind", ["Identity", "Linear"])
def test_a_module_that_is_no_part_of_a_separator(folder, name, kind):
    new = {"Identity": "!new:torch.nn.Identity {}", "Linear": "!ref <Other>"}[kind]
    key = {"encoder": "Encoder", "masknet": "MaskNet", "decoder": "Decoder"}[name]
    text = (folder / "hyperparams.yaml").read_text()
    text = text.replace(f"    {name}: !ref <{key}>", f"    {name}: {new}")
    layer = "Other: !new:torch.nn.Linear {in_features: 2, out_features: 2}\n"
    (folder / "hyperparams.yaml").write_text(layer + text)
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / f"{name}.ckpt")
    if kind == "Identity":
        torch.save({}, folder / f"{name}.ckpt")
        assert f"has a Identity, which learns nothing, as {name}" in refused(folder)
    else:
        assert f"has a Linear as {name}, but it must be" in refused(folder)


def change(folder: Path, name: str, edit) -> None:
    state = torch.load(folder / f"{name}.ckpt", weights_only=True)
    edit(state)
    torch.save(state, folder / f"{name}.ckpt")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("norm.bias"), "does not fit its yaml: it lacks norm.bias."),
        (lambda s: [s.pop(k) for k in list(s)[:3]], "it lacks conv1d.weight and 2 oth"),
        (lambda s: s.update(extra=torch.ones(1)), "it has the unknown extra."),
        (lambda s: s.update({"norm.bias": torch.ones(3)}), "of shape [3], not [16]"),
        (lambda s: s["norm.bias"].fill_(torch.nan), "holds NaN or infinity in norm"),
        (lambda s: s.update({"norm.bias": [1]}), "must hold named tensors"),
    ],
)
def test_weights_must_be_those_of_the_yaml(folder, edit, words):
    change(folder, "masknet", edit)
    message = refused(folder)
    assert str(folder / "masknet.ckpt") in message and words in message


def zipped_pickle(whole: bytes, payload: Payload) -> bytes:
    """A file of torch.save whose pickle is replaced."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w") as new:
        for item in old.infolist():
            is_pickle = item.filename.endswith("data.pkl")
            content = pickle.dumps(payload) if is_pickle else old.read(item)
            new.writestr(item, content)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_payload_is_not_run(folder, canary, zipped):
    file, payload = folder / "masknet.ckpt", Payload(canary)
    whole = file.read_bytes()
    file.write_bytes(zipped_pickle(whole, payload) if zipped else pickle.dumps(payload))
    assert "masknet.ckpt holds more than tensors, or is damaged" in refused(folder)
    assert not canary.exists()
    if not zipped:
        pickle.loads(file.read_bytes())  # the trap works
        assert canary.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_ckpt(folder, keep):
    file = folder / "encoder.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    message = refused(folder)
    assert "encoder.ckpt is truncated or no file" in message or "damaged" in message


def test_a_missing_ckpt_is_named(folder):
    (folder / "encoder.ckpt").unlink()
    assert "has no encoder.ckpt" in refused(folder)


def test_config_files_of_strangers(folder, config):
    """The published layout: what test_published.py does not hold."""
    (folder / "hyperparams.yaml").unlink()
    file = folder / "config.json"
    good = json.dumps(config)
    for text, words in {
        good[:-1] + ', "sample_rate": 16000}': 'holds the field "sample_rate" twice',
        good.replace("8000", "NaN"): "not valid JSON",
        good.replace("8000", "9" * 5000): "not valid JSON",
        good.replace("8000", "1e400"): "sample_rate is Infinity, but must be a whole",
        good.replace("8000", '"8000"'): 'sample_rate is "8000", but must be a whole',
        f'{good[:-1]}, "x": {"[" * 200}{"]" * 200}}}': "is nested too deeply",
        good + " " * 2**20: "more than 1048576 bytes",
        "[" * 10_000 + "]" * 10_000: "JSON",  # Python 3.14 reads it
    }.items():
        file.write_text(text)
        with pytest.raises(ModelError, match=words):
            SPGMSeparation.from_pretrained(folder)
    file.write_bytes(good.encode("utf-16"))
    with pytest.raises(ModelError, match="is not UTF-8 text"):
        SPGMSeparation.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_a_published_folder(published, tmp_path, name):
    folder = shutil.copytree(published, tmp_path / "model")
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to("../outside")
    with pytest.raises(ModelError, match=f"{name} is a link out of its folder"):
        SPGMSeparation.from_pretrained(folder)


def test_sizes_that_the_weights_do_not_have_take_no_memory(published, tmp_path, config):
    folder = shutil.copytree(published, tmp_path / "model")
    for field, words in {
        "intra_dffn": "of shape",
        "encoder_out_nchannels": "would have .* parameters by config.json",
        "masknet_numlayers": "too few for the 1024 transformer layers",
    }.items():
        value = {"intra_dffn": 2**20, "encoder_out_nchannels": 2**16}.get(field, 1024)
        (folder / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(ModelError, match=words):
            SPGMSeparation.from_pretrained(folder)


class Largest(TorchFunctionMode):
    """How many numbers the largest tensor has that takes memory."""

    numbers = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not made.is_meta:
            self.numbers = max(self.numbers, made.numel())
        return made


NET = "!new:speechbrain.nnet"
# It asks for numbers while it is built.
GABOR = f"{NET}.CNN.GaborConv1d {{out_channels: 8, kernel_size: 9, stride: 1, "
GABOR += "in_channels: 1}"
SINC = f"{NET}.CNN.SincConv {{out_channels: 1, in_channels: 1, kernel_size: %d}}"
POSITIONS = "!new:speechbrain.lobes.models.transformer.Transformer.PositionalEncoding"
LARGE = {
    "device": "x: !new:torch.nn.BatchNorm1d {num_features: 200000, affine: false, "
    "device: cpu}",
    "no parameters": f"x: {SINC % 400_001}",
    "many without parameters": "x:" + f"\n  - {SINC % 20_001}" * 9,
    "dummy input": f"x: {NET}.containers.Sequential {{input_shape: [1, 200000, 1], "
    "a: !name:speechbrain.nnet.linear.Linear {n_neurons: 1}}",
    "after what has no outline": f"x: {GABOR}\ny: {POSITIONS} "
    "{input_size: 2, max_len: 200000}",
    "in what has no outline": f"x: {NET}.containers.Sequential {{a: {GABOR}, "
    "input_shape: [1, 50000, 1], b: !name:speechbrain.nnet.linear.Linear "
    "{n_neurons: 1}}",
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_is_bounded_before_it_is_taken(tmp_path, monkeypatch, name):
    monkeypatch.setattr("speechbrain_spgm.models.safe_yaml.MOST_PARAMETERS", 10**5)
    (tmp_path / "a.yaml").write_text(LARGE[name] + "\n")
    with Largest() as made, pytest.raises(ModelError, match="more than 100,000 param"):
        load_safely(tmp_path.joinpath, "a.yaml")
    assert made.numbers <= 10**5


def test_what_has_no_outline_is_built_all_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text(
        f"x: {GABOR}\n"
        f"y: {NET}.containers.Sequential {{input_shape: [1, 99, 3], "
        "a: !name:speechbrain.nnet.RNN.LSTM {hidden_size: 4}}\n"
        "z: [!ref <x>, !ref <y>]\n"
    )
    made = load_safely(tmp_path.joinpath, "a.yaml")
    torch.manual_seed(0)
    with open(tmp_path / "a.yaml", encoding="utf-8") as file:
        expected = load_hyperpyyaml(file)
    assert made["z"][0] is made["x"] and made["z"][1] is made["y"]
    for name in "xy":
        for ours, theirs in zip(
            made[name].parameters(), expected[name].parameters(), strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["sepformer", "resepformer", "training"])
def test_stock_yamls_pass_unchanged(name, tmp_path, monkeypatch):
    """The network is the one that HyperPyYAML builds, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    hparams = load_safely(YAMLS.joinpath, f"{name}.yaml")
    assert os.listdir() == []
    assert hparams["pretrainer"].loadables.keys() == {"encoder", "masknet", "decoder"}
    modules = hparams["modules"]
    assert modules["masknet"] is hparams["pretrainer"].loadables["masknet"]
    mix_w = modules["encoder"](torch.rand(1, 800))
    assert modules["masknet"](mix_w).shape == (2, *mix_w.shape)
    if name == "sepformer":
        masknet = modules["masknet"]
        assert sum(p.numel() for p in masknet.parameters()) == 25_679_361 - 2 * 16 * 256
        return
    if name == "training":
        left_out = ("optimizer", "lr_scheduler", "checkpointer", "train_logger", "loss")
        assert all(hparams[key] is None for key in left_out)
        assert hparams["speeds"] == (95, 100, 105) and hparams["width"] == 32
        assert not any(key.startswith("__") for key in hparams)
        return
    with open(YAMLS / f"{name}.yaml", encoding="utf-8") as file:
        stock = load_hyperpyyaml(file)["modules"]
    torch.set_rng_state(state)
    for part in modules:
        assert repr(stock[part]) == repr(modules[part])


def test_a_reference_stays_one_object():
    hparams = load_safely(YAMLS.joinpath, "training.yaml")
    first, second = hparams["modules"]["masknet"].dual_mdl
    assert hparams["modules"]["encoder"] is hparams["Encoder"]
    assert first.inter_mdl is not second.inter_mdl


def test_the_command_line_is_as_safe(folder, canary, capsys):
    assert main(["info", str(folder), "--device", "cpu"]) == 0
    assert "receptive chunk" in capsys.readouterr().out
    append(folder, f"x: !apply:os.mkdir [{canary}]\n")
    assert main(["info", str(folder), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--trust-remote-code" in error
    assert not canary.exists()
    assert main(["info", str(folder), "--device", "cpu", "--trust-remote-code"]) == 0
    assert canary.exists()
