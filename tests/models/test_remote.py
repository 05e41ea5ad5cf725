"""The Hub and the web, played by a server on this machine."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import soundfile
import torch

from speechbrain_spgm.inference import AudioFileError, ModelError, SPGMSeparation

COMMIT = "0123456789abcdef" * 2 + "01234567"
REFUSED = {
    "/user/gated/": (403, "GatedRepo"),
    "/user/private/": (401, "RepoNotFound"),
    "/user/blocked/": (403, ""),
    "/user/empty/": (404, "EntryNotFound"),
}


class Handler(BaseHTTPRequestHandler):
    """Serves the files of one folder as user/random on the Hub, and on the web."""

    folder: Path
    asked: list[str]

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        self.asked.append(self.path)
        for prefix, (status, code) in REFUSED.items():
            if self.path.startswith(prefix):
                return self.reply(status, {"X-Error-Code": code})
        if "/resolve/other/" in self.path:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        file = self.folder / self.path.rpartition("/")[2]
        if not file.is_file():
            return self.reply(404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
        self.reply(200, headers, file.read_bytes(), with_body)

    def reply(self, status, headers, body=b"", with_body=True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Not on the tests' stderr."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of the server; its Handler says what was asked for."""
    monkeypatch.setattr(Handler, "folder", tmp_path / "served", raising=False)
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    Handler.folder.mkdir()
    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{served.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield address
    served.shutdown()
    served.server_close()


def test_a_hub_model_takes_two_files_and_no_code(server, published, model, tmp_path):
    for file in published.iterdir():
        (Handler.folder / file.name).write_bytes(file.read_bytes())
    (Handler.folder / "hyperparams.yaml").write_text("x: !apply:os.abort\n")
    cache = tmp_path / "cache"
    loaded = SPGMSeparation.from_pretrained(
        "user/random", cache_dir=cache, device="cpu"
    )
    mix = torch.randn(1, 300)
    assert torch.equal(loaded.separate_batch(mix), model.separate_batch(mix))
    names = {path.rpartition("/")[2] for path in Handler.asked if "/resolve/" in path}
    assert names == {"config.json", "model.safetensors"}
    assert any(f"/{COMMIT}/model.safetensors" in path for path in Handler.asked)


@pytest.mark.parametrize(
    ("source", "revision", "words"),
    [
        ("user/gated", None, "is gated: accept its terms"),
        ("user/private", None, "does not exist or is private"),
        ("user/random", "other", "has no such revision"),
        ("user/empty", None, "has no config.json and model.safetensors.*from_hparams"),
        ("user/blocked", None, r"refuses you \(HTTP 403\): pass a token"),
        ("user/a..b", None, "is no valid name"),
    ],
)
def test_each_trouble_with_the_hub_is_one_sentence(
    server, tmp_path, source, revision, words
):
    with pytest.raises(ModelError, match=f"^The Hub repository {source} .*{words}"):
        SPGMSeparation.from_pretrained(source, revision=revision, cache_dir=tmp_path)


def test_a_recording_from_the_web(server, model, tmp_path, monkeypatch):
    soundfile.write(Handler.folder / "mix.wav", torch.randn(500).numpy() / 9, 8000)
    expected = model.separate_file(Handler.folder / "mix.wav")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert torch.equal(model.separate_file(f"{server}/mix.wav"), expected)
    assert os.listdir() == []
    assert torch.equal(
        model.separate_file(f"{server}/mix.wav", savedir="kept"), expected
    )
    assert os.listdir("kept") == ["mix.wav"] and not Path("kept/mix.wav").is_symlink()
    with pytest.raises(
        AudioFileError, match="other.wav is no local file and could not"
    ):
        model.separate_file(f"{server}/other.wav")


def test_a_recording_on_the_hub(server, model, tmp_path, monkeypatch):
    soundfile.write(Handler.folder / "mix.wav", torch.randn(500).numpy() / 9, 8000)
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub")
    )
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    est = model.separate_file("user/random/mix.wav")
    assert torch.equal(est, model.separate_file(Handler.folder / "mix.wav"))
    assert os.listdir() == []
    with pytest.raises(AudioFileError, match="could not be downloaded"):
        model.separate_file("user/private/mix.wav")
