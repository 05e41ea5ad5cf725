"""Models from the Hub: its real client, and a hub on this machine."""

import os
import time

import huggingface_hub
import pytest
import torch

from speechbrain_spgm.audio import AudioFileError
from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.models import remote
from speechbrain_spgm.models.convert import convert
from speechbrain_spgm.models.remote import FolderFiles
from tests.hub_server import TOKEN, Repository

CPU = {"device": "cpu"}
REPO = "user/model"


@pytest.fixture(scope="module")
def files(published, tmp_path_factory) -> dict[str, bytes]:
    """A repository in SpeechBrain's layout."""
    folder = tmp_path_factory.mktemp("model") / "speechbrain"
    convert(FolderFiles(published), "random", folder, "speechbrain")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def repository(hub, files) -> Repository:
    """The same on the hub."""
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit("main", files)
    return hub.repositories[REPO]


def same(loaded: SPGMSeparation, model: SPGMSeparation) -> bool:
    mix = torch.randn(1, 300)
    return torch.equal(loaded.separate_batch(mix), model.separate_batch(mix))


def offline(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


def test_a_speechbrain_repository(hub, repository, files, model, monkeypatch, tmp_path):
    """All files are of one commit, and are there without a network afterwards."""
    monkeypatch.chdir(tmp_path)
    loaded = SPGMSeparation.from_hparams(REPO, run_opts=CPU)
    assert same(loaded, model)
    assert loaded.hparams.config["config_name"] == "random"
    commit = repository.find("main")
    assert len(hub.requests(f"/resolve/{commit}/")) >= 4  # all but the first
    assert os.listdir() == ["cache"]

    hub.asked.clear()
    offline(monkeypatch)
    assert same(SPGMSeparation.from_hparams(REPO, run_opts=CPU), model)
    assert hub.asked == []
    with pytest.raises(ModelError, match="user/other is not in the cache and the Hub"):
        SPGMSeparation.from_hparams("user/other")


def test_revision_token_and_cache(hub, repository, files, model, tmp_path, monkeypatch):
    repository.private = True
    repository.branches["v1"] = list(repository.branches["main"])
    repository.commit("main", {**files, "hyperparams.yaml": b"x: !apply:os.abort\n"})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "missing")
    with pytest.raises(ModelError, match="does not exist or is private.*pass a token"):
        SPGMSeparation.from_hparams(REPO, revision="v1")
    place = {"token": TOKEN, "cache_dir": tmp_path / "elsewhere"}
    loaded = SPGMSeparation.from_hparams(REPO, revision="v1", run_opts=CPU, **place)
    assert same(loaded, model)
    assert (tmp_path / "elsewhere" / "models--user--model").is_dir()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match="!apply:os.abort is not allowed"):
        SPGMSeparation.from_hparams(REPO, **place)
    with pytest.raises(ModelError, match="has no such revision"):
        SPGMSeparation.from_hparams(REPO, revision="v2", **place)
    with pytest.raises(ModelError, match="has no config.json and model.safetensors"):
        SPGMSeparation.from_pretrained(REPO, revision="v1", **place)


def test_half_a_download_is_no_harm(hub, repository, model):
    hub.faults["^GET /large/"] = "cut"
    with pytest.raises(ModelError, match=f"^The Hub repository {REPO} .*try again"):
        SPGMSeparation.from_hparams(REPO)
    hub.faults.clear()
    assert same(SPGMSeparation.from_hparams(REPO, run_opts=CPU), model)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, r"refuses you \(HTTP 401\): pass a token that may read it"),
        (403, r"refuses you \(HTTP 403\): pass a token that may read it"),
        (503, r"cannot be had from the Hub now \(HTTP 503\): try again later"),
    ],
)
@pytest.mark.parametrize(
    "load", [SPGMSeparation.from_pretrained, SPGMSeparation.from_hparams]
)
def test_each_answer_of_the_hub_is_one_sentence(hub, repository, load, fault, words):
    hub.faults["/resolve/"] = fault
    with pytest.raises(ModelError, match=f"^The Hub repository {REPO} {words}.$"):
        load(REPO)


def test_a_repository_that_lacks_a_file(hub, repository, files):
    kept = {name: text for name, text in files.items() if name != "masknet.ckpt"}
    repository.commit("main", kept)
    with pytest.raises(ModelError, match="has no hyperparams.yaml or lacks a file"):
        SPGMSeparation.from_hparams(REPO)


def test_the_command_takes_both_layouts(hub, repository, capsys):
    assert main(["info", REPO, "--device", "cpu"]) == 0
    assert "7,907" in capsys.readouterr().out


def test_a_model_on_the_web(hub, repository, files, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = f"{hub.address}/{REPO}/resolve/main"
    loaded = SPGMSeparation.from_hparams(address, run_opts=CPU)
    assert same(loaded, model) and os.listdir() == []
    saved = SPGMSeparation.from_hparams(address, savedir="kept", run_opts=CPU)
    assert same(saved, model)
    names = {"hyperparams.yaml", "encoder.ckpt", "masknet.ckpt", "decoder.ckpt"}
    names.add("config.json")  # which says how many views the model asks for
    assert set(os.listdir("kept")) == names
    assert not any(os.path.islink(f"kept/{name}") for name in names)
    with pytest.raises(ModelError, match="could not be downloaded: check the address"):
        SPGMSeparation.from_hparams(f"{hub.address}/user/nothing/resolve/main")


@pytest.mark.parametrize("fault", ["slow", "endless", "wait", "continue", "mute"])
def test_answers_without_an_end(hub, repository, monkeypatch, fault):
    """The waits are shortened: a download may take 20 s and 1 s per 20 kB."""
    monkeypatch.setattr(remote, "SLOWEST_START", 0.4)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(remote, "SLOWEST_RATE", 1e9)
    monkeypatch.setattr(hub, "faults", {"GET|HEAD": fault})
    web = f"{hub.address}/{REPO}/resolve/main"
    began = time.monotonic()
    with pytest.raises(ModelError, match=f"^The Hub repository {REPO} [^\n]*$"):
        SPGMSeparation.from_hparams(REPO)
    with pytest.raises(ModelError, match=f"^{web}/.* could not be downloaded: [^\n]*$"):
        SPGMSeparation.from_hparams(web)
    with pytest.raises(AudioFileError, match=r"mix.wav is no local file[^\n]*$"):
        with remote.local_audio(f"{web}/mix.wav"):
            pass
    assert time.monotonic() - began < 20
