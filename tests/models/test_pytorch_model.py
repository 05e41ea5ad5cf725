"""The published layout as the authors published it: config.json, pytorch_model.bin."""

import contextlib
import io
import json
import logging
import os
import pickle
import pickletools
import re
import resource
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import huggingface_hub
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.models import tensors
from speechbrain_spgm.models.config import build
from tests.hub_server import Repository

REPO = "user/theirs"
FORMATS = {"zip": True, "old": False}


def theirs(
    published: Path, folder: Path, zipped: bool = True, rate: bool = True
) -> Path:
    """The model of a folder as others would have published it."""
    folder.mkdir()
    config = json.loads((published / "config.json").read_text())
    if not rate:
        del config["sample_rate"]
    (folder / "config.json").write_text(json.dumps(config))
    save(load_file(published / "model.safetensors"), folder, zipped)
    return folder


def save(state: object, folder: Path, zipped: bool = True) -> None:
    torch.save(
        state,
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )


@pytest.fixture
def folder(published, tmp_path) -> Path:
    return theirs(published, tmp_path / "theirs")


def voices(model: SPGMSeparation) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return model.separate_batch(torch.randn(1, 900, generator=generator))


def load(source) -> SPGMSeparation:
    return SPGMSeparation.from_pretrained(source, device="cpu")


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("rate", [True, False])
def test_a_folder_gives_the_same_voices(
    published, model, tmp_path, caplog, zipped, rate
):
    folder = theirs(published, tmp_path / "theirs", zipped, rate)
    with caplog.at_level(logging.WARNING, "speechbrain_spgm"):
        loaded = load(folder)
    assert torch.equal(voices(loaded), voices(model)) and loaded.sample_rate == 8000
    lines = [x.getMessage() for x in caplog.records]
    path = folder / "config.json"
    assert lines == (
        [] if rate else [f"{path} names no sample_rate: 8000 Hz is taken."]
    )


def put_on_the_hub(hub, published: Path, folder: Path, layout: str) -> None:
    """A repository with the config of a folder, and the weights of a layout."""
    files = {"config.json": (folder / "config.json").read_bytes()}
    if layout != "bin":
        whole = (published / "model.safetensors").read_bytes()
        files["model.safetensors"] = whole
    if layout != "safetensors":
        whole = (folder / "pytorch_model.bin").read_bytes()
        files["pytorch_model.bin"] = b"" if layout == "both" else whole
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", files)


def results(source: object, folder: Path, out: Path) -> tuple[list, str]:
    """What separate and evaluate give: samples, a table."""
    options = ["--model", str(source), "--device", "cpu"]
    command = ["separate", str(folder / "mix.wav"), "--output", str(out)]
    assert main([*command, *options]) == 0
    files = sorted(out.iterdir())
    assert len(files) == 2
    manifest = ["--manifest", str(folder / "test.csv"), "--metrics", "si_sdr"]
    with contextlib.redirect_stdout(io.StringIO()) as table:
        assert main(["evaluate", *manifest, *options]) == 0
    return [soundfile.read(file)[0].tolist() for file in files], table.getvalue()


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory) -> Path:
    """A mixture, and a manifest of it."""
    folder = tmp_path_factory.mktemp("mixtures")
    for name in ("mix", "s1", "s2"):
        soundfile.write(folder / f"{name}.wav", 0.1 * torch.randn(8000).numpy(), 8000)
    (folder / "test.csv").write_text(
        "id,duration,mix,s1,s2\n1,1.0,mix.wav,s1.wav,s2.wav\n"
    )
    return folder


@pytest.fixture(scope="module")
def expected(published, mixtures, tmp_path_factory) -> tuple[list, str]:
    """What the same weights give in a folder, in safetensors."""
    return results(published, mixtures, tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize(
    ("layout", "zipped", "rate"),
    [
        ("folder", True, True),
        ("folder", False, False),
        ("bin", True, False),  # on the Hub, like the next ones
        ("bin", False, True),
        ("both", True, False),
        ("safetensors", True, False),
    ],
)
def test_every_command_takes_it(
    hub,
    published,
    model,
    mixtures,
    expected,
    tmp_path,
    monkeypatch,
    layout,
    zipped,
    rate,
):
    source = folder = theirs(published, tmp_path / "theirs", zipped, rate)
    if layout != "folder":
        source = REPO
        put_on_the_hub(hub, published, folder, layout)
    assert main(["info", str(source), "--device", "cpu"]) == 0
    assert results(source, mixtures, tmp_path / "out") == expected
    assert (
        main(["convert", str(source), str(tmp_path / "c"), "--to", "speechbrain"]) == 0
    )
    converted = SPGMSeparation.from_hparams(tmp_path / "c", run_opts={"device": "cpu"})
    exported = []  # what an export would write; its own tests do
    monkeypatch.setattr("speechbrain_spgm.inference.onnx.require_onnx", lambda: None)
    monkeypatch.setattr(
        "speechbrain_spgm.inference.onnx.export_onnx",
        lambda model, _: exported.append(model) or {},
    )
    assert main(["export", str(source), str(tmp_path / "model.onnx")]) == 0
    for loaded in (converted, *exported):
        assert torch.equal(voices(loaded), voices(model))


@pytest.mark.parametrize("to", ["published", "speechbrain"])
@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_convert_keeps_every_bit(published, tmp_path, to, zipped):
    state = load_file(published / "model.safetensors")
    half = {name: value.half() for name, value in state.items()}
    folder = theirs(published, tmp_path / "theirs", zipped, rate=False)
    save(half, folder, zipped)
    out = tmp_path / "out"
    assert main(["convert", str(folder), str(out), "--to", to]) == 0
    if to == "published":
        found = load_file(out / "model.safetensors")
        assert json.loads((out / "config.json").read_text())["sample_rate"] == 8000
    else:
        found = {
            f"{part}.{name}": value
            for part in ("encoder", "masknet", "decoder")
            for name, value in torch.load(out / f"{part}.ckpt").items()
        }
    assert found.keys() == half.keys()
    for name, value in half.items():
        assert found[name].dtype == torch.float16 and torch.equal(found[name], value)


@pytest.mark.parametrize("layout", ["safetensors", "bin", "both"])
def test_the_three_layouts_of_the_hub(
    hub, published, folder, model, monkeypatch, layout
):
    """Of both files only safetensors is downloaded; offline, all load once more."""
    wanted = {"bin": "pytorch_model.bin"}.get(layout, "model.safetensors")
    put_on_the_hub(hub, published, folder, layout)

    assert torch.equal(voices(load(REPO)), voices(model))
    assert len(hub.requests(r"GET /large/")) == 1
    others = {"model.safetensors", "pytorch_model.bin"} - {wanted}
    assert not hub.requests(f"GET .*({'|'.join(others)})")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert torch.equal(voices(load(REPO)), voices(model))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load(folder)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_payloads_are_not_run(folder, tmp_path, zipped):
    file, canary = folder / "pytorch_model.bin", tmp_path / "canary"
    state = torch.load(file)
    large = {**state, "x": bytearray(10)}  # torch would make one of any size
    for hostile in ({**state, "x": Payload(canary)}, Payload(canary), large, [state]):
        save(hostile, folder, zipped)
        message = refused(folder)
        assert "holds more than tensors" in message or "must hold named" in message
    file.write_bytes(pickle.dumps(Payload(canary)))
    assert "holds more than tensors" in refused(folder)
    assert not canary.exists()
    pickle.loads(file.read_bytes())  # the trap works
    assert canary.exists()


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("decoder.weight"), "it lacks decoder.weight;"),
        (lambda s: s.update(extra=torch.ones(1)), "it has the unknown extra;"),
        (
            lambda s: s.update({"decoder.weight": torch.ones(1).expand(10**9, 1, 1)}),
            r"decoder.weight of shape \[1000000000, 1, 1\]",
        ),
        (lambda s: s["decoder.weight"].fill_(torch.nan), "holds NaN or infinity in"),
        (lambda s: s.update({"decoder.weight": torch.ones(16, 1, 16).int()}), "int32"),
        (
            lambda s: s.update({"decoder.weight": s["decoder.weight"].to_sparse()}),
            "holds more than tensors",
        ),
        (lambda s: s.update({"decoder.weight": [1]}), "must hold named tensors"),
        (
            lambda s: s.update({"decoder.weight": s["decoder.weight"].to("meta")}),
            "holds more than tensors",
        ),
        (
            lambda s: s.update(
                {"decoder.weight": s["decoder.weight"].to(torch.float8_e4m3fn)}
            ),
            "holds more than tensors",
        ),
        (lambda s: s.update({"a" * 10**5: torch.ones(1)}), r"unknown a+\.\.\.a+;"),
    ],
)
def test_weights_must_be_those_of_the_config(folder, edit, words, zipped):
    state = torch.load(folder / "pytorch_model.bin")
    edit(state)
    save(state, folder, zipped)
    assert re.search(words, refused(folder))


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("keep", [0, 3, 10, 0.3, 0.9, 0.999])
def test_truncated_files(published, tmp_path, keep, zipped):
    folder = theirs(published, tmp_path / "theirs", zipped)
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    message = refused(folder)
    assert "is truncated or no file of weights" in message or "is damaged" in message


def test_a_pickle_of_any_length_is_not_read(folder, monkeypatch):
    """Old files have no end but their last number: lists in lists, a text of 5 MB."""
    monkeypatch.setattr(tensors, "MOST_WORK", 2**16)  # the true bound takes seconds
    file = folder / "pytorch_model.bin"
    file.write_bytes(b"\x80\x02" + 5 * 2**20 * b"]" + b".")
    assert "describes more than 65,536 objects" in refused(folder)
    file.write_bytes(b"\x80\x02" + text("x" * 5 * 2**20) + b".")
    assert "truncated or no file of weights" in refused(folder)


def text(letters: str) -> bytes:
    """How a pickle makes a text."""
    return b"X" + struct.pack("<I", len(letters)) + letters.encode()


TWICE = b"N\x85q\x00" + b"".join(
    b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60)
)  # a tuple that holds another twice, and so on
COPIES = b"](" + 10**5 * b"K\x01" + b"eq\x00" + 10**4 * b"ctorch\nSize\nh\x00\x85R"
GROWING = {
    "a key": TWICE + b"N",
    "a deep key": b"N" + 10**6 * b"\x85" + b"N",
    "values": text("x") + TWICE,
    "copies of a list": text("x") + b"(" + COPIES + b"t",
}


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", GROWING)
def test_few_bytes_that_build_a_lot(folder, name, zipped):
    """Python would visit 2**60 parts, end itself, or fill the memory."""
    file = folder / "pytorch_model.bin"
    save(torch.load(file), folder, zipped)
    whole = change_pickle(file.read_bytes(), lambda x: x[:-2] + GROWING[name] + b"u.")
    file.write_bytes(whole)
    assert "describes more than 2,097,152 objects" in refused(folder)


def change_pickle(whole: bytes, edit) -> bytes:
    """A file of torch.save whose pickle of names and shapes is another."""
    if not whole.startswith(b"PK"):
        stream = io.BytesIO(whole)
        ends = []
        for _ in range(4):
            list(pickletools.genops(stream))
            ends.append(stream.tell())
        return whole[: ends[2]] + edit(whole[ends[2] : ends[3]]) + whole[ends[3] :]
    with zipfile.ZipFile(io.BytesIO(whole)) as old:
        records = {item.filename: old.read(item) for item in old.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in records.items():
            new.writestr(name, edit(content) if name.endswith(".pkl") else content)
    return buffer.getvalue()


def test_a_zip_file_that_readers_see_in_two_ways(folder):
    """Python takes the directory before the end, torch the one that the end names."""
    file = folder / "pytorch_model.bin"
    large = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x20\x85R"  # 0.5 GB
    honest = change_pickle(file.read_bytes(), lambda x: x)
    theirs = change_pickle(honest, lambda x: large + x[2:])

    def parts(whole: bytes) -> tuple[bytes, bytearray]:
        size, place = struct.unpack("<LL", whole[-10:-2])
        return whole[:place], bytearray(whole[place : place + size])

    records, directory = parts(honest)
    more = len(parts(theirs)[0]) - len(records)
    for entry in re.finditer(rb"PK\x01\x02", bytes(directory)):
        (place,) = struct.unpack_from("<L", directory, entry.start() + 42)
        struct.pack_into("<L", directory, entry.start() + 42, place + more)
    end = honest[-22:-6] + struct.pack("<LH", len(records) + more, 0)
    file.write_bytes(theirs[:-22] + records + directory + end)
    with zipfile.ZipFile(file) as seen:  # the trap works
        assert large not in seen.read("pytorch_model/data.pkl")
    assert large in torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
    assert "truncated or no file of weights" in refused(folder)


def test_a_zip_file_whose_records_have_two_names(folder):
    """Newer Pythons take the one in Info-ZIP's field, torch the other."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as old:
        records = {item.filename: old.read(item) for item in old.infolist()}
    honest = records["pytorch_model/data.pkl"]
    records["pytorch_model/data.pkl"] = b"\x80\x02cbuiltins\nbytearray\nK\x05\x85R."
    names = {"pytorch_model/y": "pytorch_model/data.pkl"}
    names |= {name: name.replace("data.pkl", "x") for name in records}
    with zipfile.ZipFile(file, "w") as new:
        for name, content in {**records, "pytorch_model/y": honest}.items():
            item, other = zipfile.ZipInfo(name), names[name].encode()
            head = (0x7075, 5 + len(other), 1, zlib.crc32(name.encode()))
            item.extra = b"UT\0\0" + struct.pack("<2HBL", *head) + other
            new.writestr(item, content)
    with zipfile.ZipFile(file) as seen:  # the trap works
        if sys.version_info >= (3, 13):
            assert seen.read("pytorch_model/data.pkl") == honest
    theirs = torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
    assert b"bytearray" in theirs
    assert "truncated or no file of weights" in refused(folder)


def test_a_zip_file_of_very_many_records(folder):
    """Each would take some hundred bytes of memory."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file, "a") as new:
        new.comment = b""
        for i in range(1000):
            new.writestr(f"pytorch_model/data/{i:05}{'x' * 5000}", b"")
    assert "bytes besides its numbers: it is not loaded" in refused(folder)


def test_a_large_record_is_not_read_under_the_name_of_a_number(folder):
    """5 MB that end in .pkl."""
    file = folder / "pytorch_model.bin"
    rezipped(file, zipfile.ZIP_STORED, {"pytorch_model/data/x.pkl": bytes(5 * 2**20)})
    assert "bytes besides its numbers: it is not loaded" in refused(folder)


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
def test_one_number_is_no_large_network(folder, config, zipped):
    """0.9 billion weights by config.json, all of them the same number of the file."""
    config = {**config, "encoder_out_nchannels": 4000}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        network = torch.nn.ModuleList(build(config))
    names = ("encoder", "masknet", "decoder")
    network = torch.nn.ModuleDict(dict(zip(names, network, strict=True)))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    save({k: torch.zeros(1).expand(v) for k, v in shapes.items()}, folder, zipped)
    assert re.search("would have .* bytes of numbers, but holds", refused(folder))


def test_an_old_file_must_hold_its_numbers(folder):
    """torch would take whatever is in the memory for those that are missing."""
    file = folder / "pytorch_model.bin"
    save(torch.load(file), folder, zipped=False)
    stream = io.BytesIO(file.read_bytes())
    for _ in range(4):
        list(pickletools.genops(stream))
    whole = stream.getvalue()[: stream.tell()]
    file.write_bytes(whole + pickle.dumps([], 2))  # the names of those that are there
    assert "truncated or no file of weights" in refused(folder)


def test_a_tar_file(folder):
    """torch's oldest format, which may begin as a pickle."""
    with tarfile.open(folder / "pytorch_model.bin", "w") as file:
        for name in ("N.N.N.N.N.", "storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "truncated or no file of weights" in refused(folder)


@pytest.mark.parametrize(
    ("record", "content", "words"),
    [
        ("byteorder", b"big", "in another order of bytes"),  # torch would crash
        ("DATA.PKL", b".", "truncated or no file of weights"),
    ],
)
def test_odd_records_of_a_zip_file(folder, record, content, words):
    file, name = folder / "pytorch_model.bin", f"pytorch_model/{record}"
    rezipped(file, zipfile.ZIP_STORED, {name: content})
    assert words in refused(folder)


def test_weights_that_are_finite_but_give_no_voices(folder, tmp_path, capsys):
    state = torch.load(folder / "pytorch_model.bin")
    save({name: 0 * value + 1e30 for name, value in state.items()}, folder)
    assert main(["convert", str(folder), str(tmp_path / "c"), "--to", "published"]) == 2
    assert "holds NaN or infinity: the training went wrong" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def read_no_numbers(monkeypatch, name: str) -> None:
    """A test fails if more than the outline of a file of weights is loaded."""
    load = tensors._load

    def watched(path, is_zip, meta=False):
        assert meta or path.name != name, "its numbers are read"
        return load(path, is_zip, meta)

    monkeypatch.setattr(tensors, "_load", watched)


@pytest.mark.parametrize("numbers", [25 * 10**8, 10**17])
def test_ten_gigabytes_claimed_by_the_old_format(folder, monkeypatch, numbers):
    """10 GB, or more than there is, for a tensor of 256 numbers."""
    file = folder / "pytorch_model.bin"
    save(torch.load(file), folder, zipped=False)
    whole, short = file.read_bytes(), b"M\x00\x01Nt"  # of one storage
    assert short in whole
    long = b"\x8a\x08" + struct.pack("<q", numbers) + b"Nt"
    file.write_bytes(whole.replace(short, long, 1))
    read_no_numbers(monkeypatch, file.name)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "truncated or no file of weights" in refused(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 100_000  # kB


def rezipped(file: Path, compression: int, extra: dict[str, bytes]) -> None:
    """Writes the records of a zip file anew, and others."""
    with zipfile.ZipFile(file) as old:
        records = {item.filename: old.read(item) for item in old.infolist()}
    with zipfile.ZipFile(file, "w", compression) as new:
        for name, content in {**records, **extra}.items():
            new.writestr(name, content)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "masknet.ckpt"])
@pytest.mark.parametrize("record", ["data/0", "data/99999", "data.pkl", "more"])
def test_zip_bombs(published, tmp_path, monkeypatch, name, record):
    """64 MB of zeros, in some kB or not, under any name: none are unpacked."""
    if name == "masknet.ckpt":
        folder = tmp_path / "a"
        assert (
            main(["convert", str(published), str(folder), "--to", "speechbrain"]) == 0
        )
        stem = "masknet"
    else:
        folder, stem = theirs(published, tmp_path / "a"), "pytorch_model"
    zeros = {f"{stem}/{record}": bytes(2**26)}
    whole = (folder / name).read_bytes()
    unpacked, read = [], zipfile.ZipFile.read

    def watched(self, *arguments):
        text = read(self, *arguments)
        unpacked.append(len(text))
        return text

    monkeypatch.setattr(zipfile.ZipFile, "read", watched)
    read_no_numbers(monkeypatch, name)
    for compression, words in (
        (zipfile.ZIP_DEFLATED, "is compressed inside"),
        (zipfile.ZIP_STORED, "besides its numbers|would unpack to|is truncated"),
    ):
        (folder / name).write_bytes(whole)
        rezipped(folder / name, compression, zeros)
        with pytest.raises(ModelError, match=words):
            load(folder) if stem != "masknet" else SPGMSeparation.from_hparams(
                folder, run_opts={"device": "cpu"}
            )
    assert unpacked and max(unpacked) < 2**20


def test_weights_that_are_compressed(folder):
    """Honest ones too, whatever they unpack to."""
    rezipped(folder / "pytorch_model.bin", zipfile.ZIP_DEFLATED, {})
    assert "is compressed inside" in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pointer_of_git_lfs(published, folder, name):
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    assert "is a pointer of git-lfs, not the weights: get them by" in refused(folder)


def test_no_weights_at_all(folder):
    (folder / "pytorch_model.bin").unlink()
    assert "has no model.safetensors and no pytorch_model.bin" in refused(folder)


def test_safetensors_comes_first(published, folder, model, tmp_path):
    canary = tmp_path / "canary"
    save(Payload(canary), folder)
    shutil.copyfile(published / "model.safetensors", folder / "model.safetensors")
    assert torch.equal(voices(load(folder)), voices(model)) and not canary.exists()


def test_a_shared_or_strided_tensor_is_a_tensor(published, folder, model):
    """Views of one storage, and Parameters, as a state_dict may hold them."""
    state = load_file(published / "model.safetensors")
    flat = torch.cat([value.flatten() for value in state.values()])
    views = flat.split([value.numel() for value in state.values()])
    state = {
        name: torch.nn.Parameter(view.view(value.shape))
        for (name, value), view in zip(state.items(), views, strict=True)
    }
    save(state, folder)
    assert torch.equal(voices(load(folder)), voices(model))
    out = folder.parent / "out"
    assert main(["convert", str(folder), str(out), "--to", "published"]) == 0
    save_file(load_file(out / "model.safetensors"), out / "again.safetensors")
