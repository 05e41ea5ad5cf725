"""spgm publish: what is assembled, what is refused, and the way to the Hub and back."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import huggingface_hub
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from hyperpyyaml import load_hyperpyyaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from speechbrain.lobes.models.dual_path import Dual_Path_Model

from speechbrain_spgm import cli
from speechbrain_spgm.commands.publish import report
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.models.convert import convert
from speechbrain_spgm.models.remote import FolderFiles
from speechbrain_spgm.publishing import (
    Assembled,
    Uploaded,
    assemble,
    upload,
)
from speechbrain_spgm.publishing.assemble import copy_picture
from speechbrain_spgm.publishing.privacy import clean_command, find_leaks
from speechbrain_spgm.publishing.source import read_source
from speechbrain_spgm.publishing.upload import upload_errors
from tests.hub_server import TOKEN, Hub, Repository

# Of the Hub's client, about its own HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "user/random"
SECRET = "hf_" + "aB3" * 11
FILES = {
    "README.md",
    "config.json",
    "decoder.ckpt",
    "encoder.ckpt",
    "examples/mixture.flac",
    "examples/mixture_spk1.flac",
    "examples/mixture_spk2.flac",
    "hyperparams.yaml",
    "masknet.ckpt",
    "model.safetensors",
    "test_summary.json",
    "training_curves.png",
}
SUMMARY = {
    "test_set": "test",
    "n": 30,
    "si_sdr": {"mean": 8.1, "ci95": 0.5},
    "si_sdri": {"mean": 8.25, "ci95": 0.4},
}
# Every way of loading that the card names, in a process that knows only the Hub.
LOAD = """
import sys, torch
from huggingface_hub import PyTorchModelHubMixin
from speechbrain.inference.separation import SepformerSeparation
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.models.config import build
from speechbrain_spgm.lobes.separator import separate

class ByMixin(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, config: dict):
        super().__init__()
        self.encoder, self.masknet, self.decoder = build(config)
    @torch.no_grad()
    def separate_batch(self, mix):
        return separate(self.encoder, self.masknet, self.decoder, mix)

repo, folder = sys.argv[1:]
mix = torch.load(f"{folder}/mix.pt")
cpu = {"device": "cpu"}
torch.save([
    SPGMSeparation.from_pretrained(repo, run_opts=cpu).separate_batch(mix),
    SPGMSeparation.from_hparams(source=repo, run_opts=cpu).separate_batch(mix),
    SepformerSeparation.from_hparams(
        source=repo, savedir=f"{folder}/stock", run_opts=cpu
    ).separate_batch(mix),
    ByMixin.from_pretrained(repo).separate_batch(mix),
], f"{folder}/est.pt")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, published) -> Path:
    """What a run of a recipe leaves, full of what must not be published."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(published, run / "model")
    (run / "test_summary.json").write_text(json.dumps(SUMMARY))
    (run / "command.txt").write_text(
        "torchrun --nproc_per_node 2 /home/ann/train.py /home/ann/hparams/spgm.yaml "
        f"--data_folder '/home/ann/my data' --hub_token {SECRET}\n"
    )
    (run / "hyperparams.yaml").write_text(
        "# /home/ann/spgm/hparams/spgm.yaml\n"
        "test_list:\n"
        "data_folder: /home/ann/my data/Libri2Mix\n"
        f"hub_token: {SECRET}\n"
    )
    (run / "env.log").write_text(
        "Python version:\n3.11.7 (main)[GCC 12]\n"
        "torch==2.7.1\nspeechbrain==1.1.0\nx @ file:///home/ann/x\n"
    )
    (run / "train_log.txt").write_text("epoch: 1, /home/ann/spgm\n")
    write_picture(run / "curves.png")
    (run / "save").mkdir()
    for folder in (run / "save", run / "model"):
        torch.save({"optimizer": torch.ones(3)}, folder / "optimizer.ckpt")
    (run / "examples").mkdir()
    mix = torch.randn(500, generator=torch.Generator().manual_seed(1)) / 9
    soundfile.write(run / "examples" / "1_a_mix.wav", mix.numpy(), 8000)
    return run


@pytest.fixture(scope="module")
def ready(finished, tmp_path_factory) -> Assembled:
    """The run, ready to be published."""
    return assemble(finished, tmp_path_factory.mktemp("ready") / "files", REPO)


def write_picture(path: Path, mode: str = "RGB") -> None:
    """A picture that says more than its pixels: PNG texts, EXIF, bytes at the end."""
    texts = PngInfo()
    for add in (texts.add_text, texts.add_itxt):
        add("Software", f"made in /home/ann by {SECRET}")
    texts.add_text("Comment", f"/home/ann {SECRET}", zip=True)
    exif = Image.Exif()
    exif[0x013B] = f"/home/ann {SECRET}"
    Image.new(mode, (5, 4), 1).save(path, pnginfo=texts, exif=exif)
    with path.open("ab") as file:
        file.write(f"/home/ann {SECRET}".encode())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def publish(folder: Path, *options: str) -> int:
    return cli.main(["publish", str(folder), "--repo-id", REPO, *options])


def test_what_is_assembled(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "kept"
    options = ["--dry-run", "--output", str(kept), "--datasets", "openslr/librispeech"]
    assert publish(finished, *options) == 0
    shown = capsys.readouterr()
    assert {
        path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()
    } == FILES
    assert all(name in shown.out for name in FILES)
    for path in filter(Path.is_file, kept.rglob("*")):
        content = path.read_bytes()
        for planted in (b"/home/ann", SECRET.encode(), b"optimizer"):
            assert planted not in content, path
    config = json.loads((kept / "config.json").read_text())
    assert config["speechbrain_interface"] == "SepformerSeparation"
    assert config["speechbrain_spgm"]["licence"] == "cc0-1.0"

    card = ModelCard.load(kept / "README.md")
    assert card.text in shown.out
    data = card.data
    assert (data.license, data.datasets) == ("cc0-1.0", ["openslr/librispeech"])
    assert {"speechbrain", "audio-to-audio", "audio-source-separation"} <= {*data.tags}
    (si_sdri,) = (r for r in data.eval_results if r.metric_type == "si-sdri")
    assert si_sdri.metric_value == 8.25
    assert si_sdri.metric_args == {"n": 30, "ci95": 0.4}
    assert si_sdri.dataset_name == "Libri2Mix test"
    for words in (
        "n = 30",
        "8.25 ± 0.40 dB",
        "torchrun --nproc_per_node 2 train.py hparams/spgm.yaml --data_folder "
        "'/path/to/my data' --hub_token ...",
        "torch 2.7.1",
        f'from_pretrained("{REPO}")',
        f'from_hparams(source="{REPO}")',
        "yip2024spgm",
        "(training_curves.png)",
        "examples/mixture_spk2.flac",
    ):
        assert words in card.text, words

    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        compile(block, "card", "exec")

    # What was published is a model folder, which gives the same files again.
    assert publish(kept, *options[:2], str(tmp_path / "again"), *options[3:]) == 0
    for name in FILES - {"training_curves.png"}:
        assert (tmp_path / "again" / name).read_bytes() == (kept / name).read_bytes()


def test_round_trip_through_the_real_client(hub: Hub, run, model, tmp_path, capsys):
    assert publish(run) == 0
    repository = hub.repositories[REPO]
    assert repository.files().keys() == FILES | {".gitattributes"}
    assert len(repository.branches["main"]) == 2 and not repository.private
    assert "Published 12 files" in capsys.readouterr().out

    mix = torch.randn(2, 900)
    torch.save(mix, tmp_path / "mix.pt")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    loading = [sys.executable, "-c", LOAD, REPO, str(tmp_path)]
    done = subprocess.run(loading, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = model.separate_batch(mix)
    for est in torch.load(tmp_path / "est.pt"):
        assert torch.equal(est, expected)

    # The same once more: nothing is sent. Other results: only what names them.
    hub.asked.clear()
    assert publish(run) == 0
    assert "Nothing has changed" in capsys.readouterr().out
    assert not hub.requests("^PUT|/commit/")
    summary = {**SUMMARY, "si_sdri": {"mean": 9.0, "ci95": 0.3}}
    (run / "test_summary.json").write_text(json.dumps(summary))
    assert publish(run, "--revision", "next") == 0
    assert not hub.requests("^PUT")
    before, after = repository.files("main"), repository.files("next")
    assert {name for name in after if after[name] != before[name]} == {
        "README.md",
        "config.json",
        "test_summary.json",
    }
    assert 'FetchConfig(revision="next")' in after["README.md"].decode()


@pytest.mark.parametrize("where", ["^PUT /large/", "^POST .*/commit/"])
def test_a_connection_cut_in_an_upload(hub: Hub, ready: Assembled, where):
    hub.faults[where] = "cut"
    with pytest.raises(ModelError, match=f"^{REPO} was not published: the connection"):
        upload(ready)
    assert hub.repositories[REPO].files().keys() == {".gitattributes"}
    hub.faults.clear()
    assert {*upload(ready).changed} == FILES
    assert hub.repositories[REPO].files().keys() == FILES | {".gitattributes"}


def test_a_connection_cut_in_a_download(hub: Hub, published, model):
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", files)
    hub.faults["^GET /large/"] = "cut"
    with pytest.raises(ModelError, match=f"^The Hub repository {REPO} .*try again"):
        SPGMSeparation.from_pretrained(REPO, device="cpu")
    hub.faults.clear()
    mix = torch.randn(1, 300)
    loaded = SPGMSeparation.from_pretrained(REPO, device="cpu")
    assert torch.equal(loaded.separate_batch(mix), model.separate_batch(mix))


@pytest.mark.parametrize(
    ("fault", "token", "words"),
    [
        ({}, None, "you are not logged in: run hf auth login"),
        ({}, "wrong", "does not accept the token"),
        ({"repos/create": 403, "^GET /api": 403}, TOKEN, "no right to write"),
        ({"/preupload/": 403}, TOKEN, "no right to write"),
        ({"/info/lfs/": 404}, TOKEN, "does not know the repository"),
        ({"/commit/": 412}, TOKEN, "at the same time: try again"),
        ({"/preupload/": 429}, TOKEN, "asks to slow down"),
        ({"/preupload/": 500}, TOKEN, "answered 500"),
    ],
)
def test_each_refusal_of_the_hub_is_one_sentence(
    hub: Hub, ready: Assembled, monkeypatch, fault, token, words
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "missing")
    hub.faults |= fault
    with pytest.raises(ModelError, match=f"^{REPO} was not published: .*{words}"):
        upload(ready, token)


def test_a_token_is_not_shown(hub: Hub, ready: Assembled):
    assert upload(ready, f" {TOKEN}\r\n").commit is not None
    for token in (f"{SECRET}\rx", f"{SECRET} \x00"):
        with pytest.raises(ModelError, match="was not published") as refused:
            upload(ready, token)
        assert SECRET not in str(refused.value)


def test_a_repository_that_is_public_or_somebody_elses(hub: Hub, ready: Assembled):
    private = ready._replace(terms=ready.terms._replace(private=True))
    upload(private)
    assert hub.repositories[REPO].private
    hub.repositories[REPO].private = False
    with pytest.raises(ModelError, match="is public, so --private cannot be kept"):
        upload(private)
    hub.repositories[REPO].commit("main", {"hyperparams.yaml": b"N: 1\n"})
    with pytest.raises(ModelError, match="already holds another model"):
        upload(ready)
    hub.repositories[REPO].commit("main", {"notes.txt": b"mine\n"})
    assert upload(ready).others == ("notes.txt",)
    assert hub.repositories[REPO].files()["notes.txt"] == b"mine\n"


def test_without_a_network(ready: Assembled, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ModelError, match="the connection to the Hub failed"):
        upload(ready)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set: unset it"):
        upload(ready)
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    "name",
    ["curves.png", "command.txt", "test_summary.json", "hyperparams.yaml", "env.log"]
    + ["examples/1_a_mix.wav", "examples", "model", "model/README.md"],
)
def test_links_out_of_the_folder_are_refused(run, tmp_path, name):
    path, secret_place = run / name, tmp_path / "elsewhere"
    if path.exists():
        path.rename(secret_place)
    else:
        secret_place.write_text("# Mine")
    path.symlink_to(secret_place)
    with pytest.raises(ModelError, match=f"{path.name}.* is a link out of its folder"):
        assemble(run, tmp_path / "assembled", REPO)


def test_links_within_the_folder_are_followed(run, tmp_path):
    (run / "curves.png").rename(run / "save" / "a.png")
    (run / "curves.png").symlink_to(run / "save" / "a.png")
    linked = tmp_path / "linked"
    linked.symlink_to(run)
    assembled = assemble(linked, tmp_path / "assembled", REPO)
    assert assembled.files().keys() == FILES


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16"])
def test_pictures_are_written_again_from_their_pixels(tmp_path, mode):
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    write_picture(old, mode)
    content = old.read_bytes()
    assert b"/home/ann" in content and SECRET.encode() in content
    copy_picture(old, new)
    with Image.open(old) as picture, Image.open(new) as copied:
        assert picture.mode == mode and {"Software", "Comment"} <= picture.info.keys()
        assert picture.getexif() and not copied.getexif()
        assert copied.size == (5, 4) and not copied.info
        assert list(copied.convert("RGBA").tobytes()) == list(
            picture.convert("RGBA").tobytes()
        )
    assert b"/home/ann" not in new.read_bytes()
    assert SECRET.encode() not in new.read_bytes()


def png_that_claims(width: int, height: int) -> bytes:
    """A picture of which there is no more than its size."""
    head = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n cut", png_that_claims(20_000, 10_000)],
    ids=["empty", "GIF", "cut", "huge"],
)
def test_a_damaged_picture_is_one_sentence(run, tmp_path, content):
    (run / "curves.png").write_bytes(content)
    with pytest.raises(ModelError, match="curves.png is damaged or no PNG picture"):
        assemble(run, tmp_path / "assembled", REPO)


def test_a_dry_run_replaces_its_own_output_and_nothing_else(run, tmp_path, capsys):
    kept = tmp_path / "kept"
    options = ["--dry-run", "--output", str(kept)]
    assert publish(run, *options) == 0
    edit_card(run, training_data="other data")
    assert publish(run, *options) == 0
    assert "other data" in (kept / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "kept"}
    before = {path: path.read_bytes() for path in kept.rglob("*.*") if path.is_file()}

    # A refusal leaves it; so it is with what it holds besides, and other repositories.
    edit_card(run, licence="")
    assert publish(run, *options) == 2
    edit_card(run, licence="mit")
    assert publish(run, "--dry-run", "--license", "") == 2
    assert "No licence: give one by --license" in capsys.readouterr().err
    assert publish(kept, *options) == 2  # it would replace what it reads
    assert cli.main(["publish", str(run), "--repo-id", "user/other", *options]) == 2
    (kept / "notes.txt").write_text("mine")
    assert publish(run, *options) == 2
    said = capsys.readouterr().err
    assert said.count(f"{kept} is not empty and no earlier output for") == 3
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_the_disk_refuses_is_one_sentence(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    assert publish(run, "--dry-run", "--output", str(tmp_path / "file" / "kept")) == 2
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(
        "tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "0")]
    )
    assert publish(run, "--dry-run") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "cannot be read or written (" in said[0]
    assert "There is no folder for temporary files (TMPDIR" in said[1]


def test_what_a_stranger_wrote_is_printed_escaped(run, tmp_path, capsys):
    evil = "a\x1b[2Jb\u202ec\rd\x9be"
    (run / "model" / "README.md").write_text(f"# Mine {evil}\n", encoding="utf-8")
    assert publish(run, "--dry-run", "--output", str(tmp_path / "kept")) == 0
    report(Uploaded("https://hub", "\x1b[31m", ("a",), (evil, "b\nc")))
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert not set(text) & {*"\x1b\u202e\r\x9b"}
    assert r"a\x1b[2Jb\u202ec\rd\x9be" in printed.out and r"b\nc" in printed.out
    with pytest.raises(ModelError) as refused:
        with upload_errors(REPO, True):
            raise RuntimeError(f"{evil}\x07")
    assert r"\x1b[2Jb" in str(refused.value)
    assert str(refused.value).isprintable()


def no_results(run: Path) -> None:
    (run / "test_summary.json").unlink()


def empty_results(run: Path) -> None:
    (run / "test_summary.json").write_text('{"n": 0, "si_sdri": {"mean": NaN}}')


def endless_results(run: Path) -> None:
    text = json.dumps(SUMMARY | {"si_sdri": {"mean": 10**400, "ci95": 0}})
    (run / "test_summary.json").write_text(text)


def one_dataset(run: Path) -> None:
    edit_card(run, datasets=5)


def no_licence(run: Path) -> None:
    edit_card(run, licence="")


def private_path(run: Path) -> None:
    edit_card(run, training_data="/data/wsj0, read by us")


def windows_path(run: Path) -> None:
    edit_card(run, training_data="D:\\wsj0")


def secret(run: Path) -> None:
    (run / "model" / "README.md").write_text(f"# Mine\nexport HF_TOKEN={SECRET}\n")


def secret_in_utf16(run: Path) -> None:
    """As Windows PowerShell writes it by >."""
    text = f"# Mine\r\nexport HF_TOKEN={SECRET}\r\n"
    (run / "model" / "README.md").write_bytes(text.encode("utf-16"))


def zero_byte(run: Path) -> None:
    (run / "model" / "README.md").write_text("# Mine\0\n")


def no_model(run: Path) -> None:
    shutil.rmtree(run / "model")


def bad_weights(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    state = load_file(path)
    state["encoder.conv1d.weight"][0] = float("inf")
    save_file(state, path)


def no_spgm(run: Path) -> None:
    """A model of SpeechBrain's, a SepFormer."""
    folder = run / "model"
    convert(FolderFiles(folder), "model", run / "other", "speechbrain")
    shutil.rmtree(folder)
    shutil.move(run / "other", folder)
    text = (folder / "hyperparams.yaml").read_text()
    text = text.replace("inter_model: !ref <inter>", "inter_model: !ref <intra>")
    ours, theirs = SPGMMaskNet, Dual_Path_Model
    text = text.replace(
        f"{ours.__module__}.{ours.__name__}", f"{theirs.__module__}.{theirs.__name__}"
    )
    (folder / "hyperparams.yaml").write_text(text)
    with open(folder / "hyperparams.yaml", encoding="utf-8") as file:
        masknet = load_hyperpyyaml(file)["modules"]["masknet"]
    torch.save(masknet.state_dict(), folder / "masknet.ckpt")


def two_models(run: Path) -> None:
    """Weights in SpeechBrain's layout that are not those of model.safetensors."""
    folder = run / "model"
    convert(FolderFiles(folder), "model", run / "other", "speechbrain")
    for name in ("hyperparams.yaml", "encoder.ckpt", "masknet.ckpt", "decoder.ckpt"):
        shutil.copy(run / "other" / name, folder / name)
    state = torch.load(folder / "decoder.ckpt")
    torch.save({name: -value for name, value in state.items()}, folder / "decoder.ckpt")


def other_views(run: Path) -> None:
    (run / "test_summary.json").write_text(json.dumps(SUMMARY | {"views": 4}))


def half_a_character(run: Path) -> None:
    edit_card(run, training_data="a\udc80b")


def nested_results(run: Path) -> None:
    (run / "test_summary.json").write_text("[" * 100_000)


def edit_card(run: Path, **changes: object) -> None:
    path = run / "model" / "config.json"
    config = json.loads(path.read_text())
    config["speechbrain_spgm"] |= changes
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_results, "No measured results: there is no test_summary.json.*--results"),
        (empty_results, "No measured results: .*must hold n"),
        (endless_results, "No measured results: .*must hold n"),
        (one_dataset, "datasets is 5, but must be a name or a list .*config.json"),
        (other_views, "measured with views 4, but the model's card asks for 1: test"),
        (no_licence, "No licence: give one by --license"),
        (private_path, r"config.json, line \d+, holds a local path \(/data/wsj0\)"),
        (windows_path, r"config.json, line \d+, holds a local path \(D:"),
        (secret, r"README.md, line \d+, holds a Hugging Face token \(hf_a\.\.\.\)"),
        (secret_in_utf16, r"README.md, line \d+, holds a Hugging Face token"),
        (zero_byte, "README.md holds a zero byte: save it as text of UTF-8"),
        (no_model, "has no folder model: test it by train.py --test_only"),
        (bad_weights, "NaN or infinity in encoder"),
        (no_spgm, "is no SPGM separator"),
        (half_a_character, "half a character .*: write its card anew"),
        (nested_results, "No measured results: .* is no JSON"),
        (two_models, "do not load back to the same output by .*hyperparams.yaml"),
    ],
)
def test_what_is_refused(run, tmp_path, spoil, words):
    spoil(run)
    with pytest.raises(ModelError, match=words) as refused:
        assemble(run, tmp_path / "assembled", REPO)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert SECRET not in str(refused.value)


def test_the_views_of_the_results_are_told_again(run, tmp_path):
    edit_card(run, views=4)
    other_views(run)
    first = assemble(run, tmp_path / "1", REPO)
    assert (
        "n = 30 mixtures, 4 views of each:" in (first.folder / "README.md").read_text()
    )
    again = assemble(first.folder, tmp_path / "2", REPO)
    assert json.loads((again.folder / "test_summary.json").read_text())["views"] == 4


def test_a_module_that_separates_nothing_is_left_out(run, tmp_path):
    convert(FolderFiles(run / "model"), "run", tmp_path / "model", "speechbrain")
    shutil.copyfile(run / "test_summary.json", tmp_path / "model/test_summary.json")
    yaml = tmp_path / "model/hyperparams.yaml"
    text = yaml.read_text().replace("modules:\n", "modules:\n    other: !ref <o>\n")
    yaml.write_text(f"o: !new:torch.nn.Identity\n{text}")
    files = assemble(tmp_path / "model", tmp_path / "files", REPO).files()
    assert {"model.safetensors", "masknet.ckpt"} <= files.keys()


def test_the_authors_words_are_kept(run, tmp_path):
    text = "---\nlicense: mit\n---\n# Mine\n\n```bash\n# as it is\n```\n"
    (run / "model" / "README.md").write_text(text)
    first = assemble(run, tmp_path / "1", REPO, licence="my own")
    card = (first.folder / "README.md").read_text()
    assert "## Mine\n\n```bash\n# as it is\n```\n" in card
    assert "license: other\nlicense_name: my-own" in card
    second = assemble(first.folder, tmp_path / "2", REPO)
    assert (second.folder / "README.md").read_text() == card


def test_a_command_of_utf16_is_read(run):
    text = "python train.py hparams/spgm.yaml --data_folder /home/ann/wsj0\r\n"
    (run / "command.txt").write_bytes(text.encode("utf-16"))
    found = read_source(run).command
    assert found == "python train.py hparams/spgm.yaml --data_folder /path/to/wsj0"


def test_recordings_of_unknown_data_are_not_published(run, tmp_path):
    (run / "hyperparams.yaml").write_text("data_folder: /corpora/wsj0-mix\n")
    assembled = assemble(run, tmp_path / "1", REPO)
    assert not (assembled.folder / "examples").exists()
    assert any("--example" in remark for remark in assembled.remarks)
    example = run / "examples" / "1_a_mix.wav"
    assembled = assemble(run, tmp_path / "2", REPO, example=example)
    assert len([*(assembled.folder / "examples").iterdir()]) == 3


@pytest.mark.parametrize("repo", ["random", "a/b/c", "user/a b", "../x", "user/"])
def test_a_wrong_name_of_a_repository(finished, tmp_path, repo):
    with pytest.raises(ModelError, match="is no name of a Hub repository"):
        assemble(finished, tmp_path / "assembled", repo)


@pytest.mark.parametrize("revision", ["a b", "-x", "a'b", "0123456789" * 4])
def test_a_wrong_name_of_a_branch(finished, tmp_path, revision):
    with pytest.raises(ModelError, match="is no branch: give a name"):
        assemble(finished, tmp_path / "assembled", REPO, revision=revision)


@pytest.mark.parametrize(
    "text",
    [
        "in /home/ann/x.wav",
        'data: "/data"',
        "--data_folder=/mnt/corpora/wsj0",
        "[/scratch/a.csv,b]",
        "-I/usr/include",
        "~/speech/wsj0",
        "C:\\Users\\ann",
        '"C:\\\\Users\\\\ann"',
        "D:/speech/wsj0",
        "\\\\server\\share",
        "file:///etc/passwd",
        "AKIA" + "A1B2" * 4,
        "ghp_" + "a1" * 18,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "api_key: 0123456789abcdef0123",
        "https://ann:pass1@example.org/x",
    ],
)
def test_leaks_are_found(text):
    assert len([*find_leaks(f"all is well\n{text}")]) >= 1
    assert all(leak.line == 2 for leak in find_leaks(f"all is well\n{text}"))


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/home/ann and user/name",
        "recipes/LibriMix/separation/train.py or ../data/x",
        "/path/to/LibriSpeech",
        "SI-SDR/SI-SDRi, and/or, 3/4, n/a, km / h",
        '<audio src="examples/a.flac"></audio>',
        'token=os.environ["HF_TOKEN"], token: str',
        "!new:speechbrain.lobes.models.dual_path.Encoder",
        "D: 5, ratio 1:2",
    ],
)
def test_ordinary_text_is_no_leak(text):
    assert not [*find_leaks(text)]


def test_a_cleaned_command_holds_no_leak():
    command = (
        "/opt/py/bin/python3 /home/a/train.py hparams/x.yaml --a /d/e/f --b=~/g/h "
        "--c '[/i/j,C:\\k\\l]' --d '\\\\m\\n\\o' --api_key 12345 --lr 1e-3 data=/p/q"
    )
    cleaned = clean_command(command)
    assert not [*find_leaks(cleaned)]
    assert cleaned == (
        "python3 train.py hparams/x.yaml --a /path/to/f --b=/path/to/h "
        "--c [/path/to/j,/path/to/l] --d /path/to/o --api_key ... --lr 1e-3 "
        "data=/path/to/q"
    )
