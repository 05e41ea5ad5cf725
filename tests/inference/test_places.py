"""Models where SpeechBrain leaves them, and what users give in place of a model."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from speechbrain.inference.separation import SepformerSeparation
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.fetching import LocalStrategy

from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.inference.separation import usable_device
from speechbrain_spgm.training.initialise import start_from
from tests.hub_server import TOKEN, Repository
from tests.inference.test_separation import (
    DUAL_PATH,
    SPGM,
    TRANSFORMER,
    speechbrain_folder,
)

CPU = {"device": "cpu"}
REPO = "user/model"


@pytest.fixture(scope="module")
def speechbrain(published, tmp_path_factory) -> Path:
    """A folder in SpeechBrain's layout; not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "speechbrain"
    assert main(["convert", str(published), str(folder), "--to", "speechbrain"]) == 0
    return folder


@pytest.fixture
def repository(hub, speechbrain) -> Repository:
    hub.repositories[REPO] = Repository()
    files = {file.name: file.read_bytes() for file in speechbrain.iterdir()}
    hub.repositories[REPO].commit("main", files)
    return hub.repositories[REPO]


def voices(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return model.separate_batch(torch.randn(1, 900, generator=generator))


@pytest.mark.parametrize("way", [LocalStrategy.SYMLINK, LocalStrategy.COPY])
@pytest.mark.parametrize("source", ["folder", "hub"])
@pytest.mark.parametrize("loader", [SPGMSeparation, SepformerSeparation])
def test_a_savedir_is_a_model(
    repository, speechbrain, model, tmp_path, loader, source, way, monkeypatch
):
    place = str(speechbrain) if source == "folder" else REPO
    kept = tmp_path / "pretrained_models" / "kept"
    given = loader.from_hparams(place, savedir=kept, run_opts=CPU, local_strategy=way)
    linked = [file.is_symlink() for file in kept.iterdir()]
    assert len(linked) >= 4 and (way == LocalStrategy.COPY or any(linked))
    again = SPGMSeparation.from_hparams(kept, run_opts=CPU)
    assert torch.equal(voices(again), voices(model))
    if loader is SPGMSeparation:  # the card, too, which says how many views it asks for
        assert given.hparams.config and again.hparams.config == given.hparams.config
    assert main(["info", str(kept), "--device", "cpu"]) == 0


def test_a_savedir_has_what_the_yaml_includes(speechbrain, model, tmp_path):
    source = Path(shutil.copytree(speechbrain, tmp_path / "source"))
    yaml = source / "hyperparams.yaml"
    yaml.write_text(f"{yaml.read_text()}sizes: !include:sizes.yaml\n")
    (source / "sizes.yaml").write_text("width: 3\n")
    kept = tmp_path / "kept"
    SPGMSeparation.from_hparams(source, savedir=kept, run_opts=CPU)
    again = SPGMSeparation.from_hparams(kept, run_opts=CPU)
    assert torch.equal(voices(again), voices(model))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("config.json", "secrets/config.json"),
        ("hyperparams.yaml", "secrets/hyperparams.yaml"),
        ("README.md", "secrets/README.md"),
        ("README.md", "other/secret.md"),
        ("masknet.ckpt", "secrets/masknet.ckpt"),
    ],
)
def test_other_links_are_refused(speechbrain, tmp_path, capsys, name, target):
    """Even of the same name, and to a file beside a model under another name."""
    shutil.copytree(speechbrain, tmp_path / "other")
    folder = shutil.copytree(speechbrain, tmp_path / "model")
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / target
    source = speechbrain / name
    secret.write_bytes(source.read_bytes() if source.is_file() else b"secret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    out = tmp_path / "out"
    code = main(["convert", str(folder), str(out), "--to", "published"])
    if name == "config.json":  # only the card: what it says is not taken over
        words = json.loads((out / "config.json").read_text()) if code == 0 else {}
        assert "speechbrain_spgm" not in words
    else:
        assert code == 2 and "is a link out of its folder" in capsys.readouterr().err


def stock_run(folder: Path, inter: str = SPGM) -> Path:
    """What a recipe of SpeechBrain's own leaves: no pretrainer, checkpoints."""
    made = speechbrain_folder(folder.parent / "made", DUAL_PATH, inter)
    folder.mkdir()
    text = (made / "hyperparams.yaml").read_text().partition("pretrainer:")[0]
    text += "output_folder: results\nseed: 1\nlr: 0.1\n"
    text += "opt: !name:torch.optim.Adam\n    lr: !ref <lr>\n"
    (folder / "hyperparams.yaml").write_text(text)
    parts = {}
    for name in ("encoder", "masknet", "decoder"):
        state = torch.load(made / f"{name}.ckpt")
        parts[name] = torch.nn.ParameterDict(
            {key.replace(".", "/"): torch.nn.Parameter(v) for key, v in state.items()}
        )
    checkpointer = Checkpointer(folder / "save", {"counter": torch.nn.Linear(1, 1)})
    for number, loss in enumerate((-3.0, -9.5, -7.0)):
        checkpoint = checkpointer.save_checkpoint(
            meta={"si-snr": loss}, name=f"epoch{number}"
        )
        for name in parts:
            state = torch.load(made / f"{name}.ckpt")
            scale = 1.0 if loss == -9.5 else 0.5
            state = {key: value * scale for key, value in state.items()}
            torch.save(state, checkpoint.path / f"{name}.ckpt")
    return folder


def test_a_run_of_speechbrain_is_its_best_checkpoint(tmp_path, capsys):
    run = stock_run(tmp_path / "run")
    expected = SPGMSeparation.from_hparams(tmp_path / "made", run_opts=CPU)
    loaded = SPGMSeparation.from_hparams(run, run_opts=CPU)
    assert torch.equal(voices(loaded), voices(expected))
    assert main(["info", str(run), "--device", "cpu"]) == 0
    out = tmp_path / "out"
    assert main(["convert", str(run), str(out), "--to", "published"]) == 0
    assert torch.equal(
        voices(SPGMSeparation.from_pretrained(out, device="cpu")), voices(expected)
    )
    modules = {
        name: SPGMSeparation.from_hparams(run, run_opts=CPU).mods[name]
        for name in ("encoder", "masknet", "decoder")
    }
    with torch.no_grad():
        modules["decoder"].weight.zero_()
    start_from(modules, run)
    assert torch.equal(modules["decoder"].weight, expected.mods.decoder.weight)
    capsys.readouterr()
    assert main(["publish", str(run), "--repo-id", "user/x", "--dry-run"]) == 2
    assert "make it a model by spgm convert" in capsys.readouterr().err


def test_a_sepformer_run_is_a_model_too(tmp_path):
    run = stock_run(tmp_path / "run", TRANSFORMER)
    expected = SPGMSeparation.from_hparams(tmp_path / "made", run_opts=CPU)
    loaded = SPGMSeparation.from_hparams(run, run_opts=CPU)
    assert torch.equal(voices(loaded), voices(expected))


def test_a_run_of_ours(published, model, tmp_path, capsys):
    """Its model, or what to do if it has none yet."""
    run = stock_run(tmp_path / "run")
    for file in run.glob("save/*/masknet.ckpt"):
        file.with_name("progress.ckpt").touch()
    for command in (
        ["info", str(run)],
        ["convert", str(run), str(tmp_path / "out"), "--to", "published"],
        ["separate", str(run / "hyperparams.yaml"), "--output", str(tmp_path / "out")]
        + ["--model", str(run)],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"The run {run} has no folder model" in error and "--test_only" in error
    with pytest.raises(UserError, match="start_from is .*has no folder model"):
        start_from({}, run)
    shutil.copytree(published, run / "model")
    assert torch.equal(
        voices(SPGMSeparation.from_pretrained(run, device="cpu")), voices(model)
    )
    assert main(["info", str(run), "--device", "cpu"]) == 0


def test_use_auth_token_is_the_token(repository, model, monkeypatch):
    repository.private = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "missing")
    load = SPGMSeparation.from_hparams
    with pytest.raises(ModelError, match="pass a token"):
        load(REPO)
    assert torch.equal(
        voices(load(REPO, use_auth_token=TOKEN, run_opts=CPU)), voices(model)
    )
    with pytest.raises(ModelError, match="has no config.json and model.safetensors"):
        repository.commit("main", {"README.md": b""})
        SPGMSeparation.from_pretrained(REPO, use_auth_token=TOKEN)


def test_pretrained_path_beside_its_own_files(speechbrain, model, tmp_path):
    folder = shutil.copytree(speechbrain, tmp_path / "model")
    yaml = folder / "hyperparams.yaml"
    text = yaml.read_text().replace("    loadables:", "    PATHS    loadables:")
    paths = "".join(
        f"        {part}: !ref <pretrained_path>/{part}.ckpt\n"
        for part in ("encoder", "masknet", "decoder")
    )
    yaml.write_text(
        "pretrained_path: user/elsewhere\n" + text.replace("PATHS", f"paths:\n{paths}")
    )
    assert torch.equal(
        voices(SPGMSeparation.from_hparams(folder, run_opts=CPU)), voices(model)
    )


def test_a_pointer_of_git_lfs_as_ckpt(speechbrain, tmp_path):
    folder = shutil.copytree(speechbrain, tmp_path / "model")
    (folder / "masknet.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="masknet.ckpt is a pointer of git-lfs"):
        SPGMSeparation.from_hparams(folder)


def test_a_shipped_model_by_its_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = SPGMSeparation.from_pretrained(Path("spgm-small-8k"), device="cpu")
    assert loaded.hparams.config["config_name"] == "spgm-small-8k"


def test_a_web_address_on_the_command_line(hub, repository, capsys):
    address = f"{hub.address}/{REPO}/resolve/main"
    assert main(["info", address, "--device", "cpu"]) == 0
    assert "7,907" in capsys.readouterr().out
    assert main(["info", f"{hub.address}/nothing", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert (
        "could not be downloaded: check the address and your network (HTTP 404)"
        in error
    )
    with pytest.raises(ModelError, match="is a web address, where from_hparams loads"):
        SPGMSeparation.from_pretrained(address)


@pytest.mark.parametrize("device", [99, "99", torch.device("cuda", 99)])
def test_a_number_is_a_gpu(published, device, monkeypatch):
    for load in (
        lambda: usable_device(device),
        lambda: SPGMSeparation.from_pretrained(published, device=device),
    ):
        with pytest.raises(ModelError, match="The device cuda:99 cannot be used on"):
            load()
    asked = []
    monkeypatch.setattr(
        "speechbrain_spgm.inference.separation.usable_device",
        lambda device: asked.append(device) or "cpu",
    )
    SPGMSeparation.from_pretrained(published, device=0)
    assert asked == [0]  # not "none given"


def test_no_mps(published, monkeypatch):
    """It has no double precision; by default it is passed over."""
    where = "speechbrain_spgm.inference.separation.infer_device"
    monkeypatch.setattr(where, lambda: "mps:0")
    assert str(SPGMSeparation.from_pretrained(published).device) == "cpu"
    for device in ("mps", torch.device("mps", 0)):
        with pytest.raises(ModelError, match="Apple's mps has no double .*: take cpu"):
            SPGMSeparation.from_pretrained(published, device=device)


@pytest.mark.parametrize("option", ["data_parallel_backend", "distributed_launch"])
def test_options_of_training(published, option):
    with pytest.raises(ModelError, match=f"{option} is for training"):
        SPGMSeparation.from_pretrained(published, run_opts={option: True, **CPU})


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("precision", "bf16", "precision, 'bf16', has no .* argument precision='bf16'"),
        ("eval_precision", "fp16", "eval_precision, 'fp16', has no effect"),
        ("jit", True, "jit has no effect on an SPGM network: leave it out"),
        ("jit_module_keys", ["encoder"], "jit_module_keys has no effect"),
        ("precison", "bf16", "no run option precison: did you mean precision?"),
        ("nonsense", 1, "no run option nonsense: leave it out"),
    ],
)
def test_run_options_without_effect_are_refused(
    published, speechbrain, option, value, said
):
    for load, source in (
        (SPGMSeparation.from_pretrained, published),
        (SPGMSeparation.from_hparams, speechbrain),
    ):
        with pytest.raises(ModelError, match=said):
            load(source, run_opts={option: value, **CPU})


def test_run_options_that_say_what_is_so_are_taken(published):
    options = {"precision": "bf16", "eval_precision": "fp32", "jit": False, **CPU}
    SPGMSeparation.from_pretrained(published, run_opts=options, precision="bf16")


def test_a_file_in_place_of_a_model(published, tmp_path):
    with pytest.raises(ModelError, match="is a file, no model: give the folder"):
        SPGMSeparation.from_pretrained(published / "model.safetensors")
    assert os.path.exists(published / "model.safetensors")
