"""What a model may be named by, and a Hub that answers late, oddly or not at all."""

import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator

import huggingface_hub
import pytest
import torch

from speechbrain_spgm.cli import main
from speechbrain_spgm.inference import ModelError, SPGMSeparation
from speechbrain_spgm.models import remote, sources
from speechbrain_spgm.models.sources import SHIPPED_MODELS, locate
from tests.hub_server import Repository

CPU = {"device": "cpu"}


@pytest.fixture
def authors(hub, published) -> dict[str, Repository]:
    """Small models in the authors' repositories of the hub on this machine."""
    config = json.loads((published / "config.json").read_text())
    del config["sample_rate"], config["speechbrain_spgm"]
    weights = (published / "model.safetensors").read_bytes()
    for name in ("spgm-base", "spgm-opt"):
        files = {"config.json": json.dumps(config).encode()}
        hub.repositories[f"yipjiaqi/{name}"] = Repository()
        hub.repositories[f"yipjiaqi/{name}"].commit(
            "main", {**files, "model.safetensors": weights}
        )
    return hub.repositories


@pytest.mark.parametrize(
    ("name", "si_sdri"), [("spgm-base", "22.7"), ("spgm-opt", "23.0")]
)
def test_short_names(authors, hub, model, tmp_path, monkeypatch, capsys, name, si_sdri):
    monkeypatch.chdir(tmp_path)
    loaded = SPGMSeparation.from_pretrained(name, device="cpu")
    assert hub.requests(f"/yipjiaqi/{name}/resolve/main/config.json")
    mix = torch.randn(1, 300)
    assert torch.equal(loaded.separate_batch(mix), model.separate_batch(mix))
    for given in (name, f"yipjiaqi/{name}"):
        assert main(["info", given, "--device", "cpu"]) == 0
        shown = capsys.readouterr().out
        assert f"{si_sdri} dB SI-SDRi on WSJ0-2Mix, as its authors report" in shown
        assert "dynamic mixing" in shown and f"see the card of yipjiaqi/{name}" in shown
    assert main(["convert", name, "out", "--to", "speechbrain"]) == 0
    folder = tmp_path / name  # only a model takes the name's place
    folder.mkdir()
    assert locate(name) == f"yipjiaqi/{name}"
    (folder / "pytorch_model.bin").touch()
    assert locate(name).resolve() == folder


def test_each_way_to_name_a_model(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results" / "1234"
    run.mkdir(parents=True)
    (run / "model").symlink_to(published)
    for source, place in {
        "spgm-small-8k": SHIPPED_MODELS / "spgm-small-8k",
        SHIPPED_MODELS / ".." / "pretrained": SHIPPED_MODELS / ".." / "pretrained",
        published: published,
        run: run / "model",
        "user/name": "user/name",
        "https://huggingface.co/user/name": "user/name",
        "https://x.org/model": "https://x.org/model",
    }.items():
        assert locate(source) == place
    assert locate() == locate(sources.Path("spgm-small-8k"))


@pytest.mark.parametrize("source", ["", "nothing", "a/b/c", "/nowhere", "a b/c"])
def test_what_names_no_model(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="is no folder, no model that goes by a name"):
        locate(source)


def answering(answer) -> Iterator[str]:
    """The address of a server that does what ``answer(connection)`` does."""
    server = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            answer(connection, ended)

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    ended.set()
    server.close()


def silence(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait(60)


def drip(connection: socket.socket, ended: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not ended.wait(0.2):
        connection.sendall(b"a")


def continue_for_ever(connection: socket.socket, ended: threading.Event) -> None:
    while not ended.wait(0.01):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def no_hub(connection: socket.socket, ended: threading.Event) -> None:
    connection.recv(9999)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def wait_long(connection: socket.socket, ended: threading.Event) -> None:
    connection.recv(9999)
    connection.sendall(
        b"HTTP/1.1 429 Slow down\r\nRetry-After: 100000\r\nContent-Length: 0\r\n\r\n"
    )


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """Sets the Hub's address; nothing is cached, and answers are due in a second."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("no_proxy", "*")

    def set_endpoint(address: str) -> None:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    yield set_endpoint
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "is not in the cache and the Hub cannot be reached: go online once"),
        ("name", "is not in the cache and the Hub cannot be reached: go online once"),
        (silence, "is not in the cache and the Hub cannot be reached: go online once"),
        (drip, "is not in the cache and the Hub cannot be reached: go online once"),
        (
            continue_for_ever,
            "is not in the cache and the Hub cannot be reached: go onl",
        ),
        (no_hub, "could not be downloaded|is at a server that is no Hub"),
        (wait_long, "cannot be had from the Hub now (HTTP 429): try again later"),
    ],
)
def test_the_answer_comes_soon_and_in_one_sentence(
    endpoint, caplog, capfd, answer, words
):
    talk = answering(answer) if callable(answer) else iter(())
    addresses = {None: closed_port(), "name": "http://no-such-name.invalid"}
    endpoint(addresses[answer] if answer in addresses else next(talk))
    for load in (SPGMSeparation.from_pretrained, SPGMSeparation.from_hparams):
        start = time.monotonic()
        with pytest.raises(ModelError) as error:
            load("user/name")
        assert time.monotonic() - start < 3
        message = str(error.value)
        assert (
            message.startswith("The Hub repository user/name ") and "\n" not in message
        )
        assert any(part in message for part in words.split("|")), message
    assert not caplog.messages and capfd.readouterr() == ("", "")
    list(talk)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ETag", '"../../../../escaped"'),
        ("ETag", '"/escaped"'),
        ("ETag", '".."'),
        ("X-Linked-Etag", '"a/../../../../escaped"'),
        ("X-Repo-Commit", "../../../escaped"),
    ],
)
def test_headers_do_not_lead_out_of_the_cache(
    hub, monkeypatch, tmp_path, header, value
):
    from tests.hub_server import Handler

    hub.repositories["user/odd"] = Repository()
    hub.repositories["user/odd"].commit("main", {"config.json": b"{}"})
    send = Handler.send_header
    monkeypatch.setattr(
        Handler,
        "send_header",
        lambda self, name, text: send(self, name, value if name == header else text),
    )
    if header == "X-Linked-Etag":
        end = Handler.end_headers
        monkeypatch.setattr(
            Handler,
            "end_headers",
            lambda self: (send(self, header, value), end(self))[1],
        )
    before = set(tmp_path.rglob("*"))
    cache = tmp_path / "a" / "b" / "c"  # so deep that all ways out end in tmp_path
    with pytest.raises(ModelError, match="is at a server that is no Hub"):
        SPGMSeparation.from_pretrained("user/odd", cache_dir=cache)
    new = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert "escaped" not in new


def test_sizes_are_bounded(hub, published, config):
    """A config has at most 1 MB, weights what their network needs."""
    files = {"config.json": json.dumps(config).encode() + b" " * 2**20}
    hub.repositories["user/large"] = Repository()
    repository = hub.repositories["user/large"]
    repository.commit("main", files)
    with pytest.raises(ModelError, match="holds a file of more than the 1048576 bytes"):
        SPGMSeparation.from_pretrained("user/large")
    files = {"config.json": json.dumps(config).encode()}
    repository.commit("main", {**files, "model.safetensors": bytes(2**25)})
    with pytest.raises(ModelError, match="holds a file of more than the [0-9]{7} byt"):
        SPGMSeparation.from_pretrained("user/large")
    assert not hub.requests("GET /large/")


def test_a_body_without_end_is_cut(hub, published, monkeypatch):
    from tests.hub_server import Handler

    def endless(self, name: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        block = bytes(2**20)
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")

    monkeypatch.setattr(Handler, "large", endless)
    hub.repositories["user/endless"] = Repository()
    files = {file.name: file.read_bytes() for file in published.iterdir()}
    hub.repositories["user/endless"].commit("main", files)
    with pytest.raises(ModelError, match="holds a file of more than the|could not be"):
        SPGMSeparation.from_pretrained("user/endless")


@pytest.mark.parametrize("disable", [False, True])
def test_a_bar_ends_what_is_too_long_or_late(disable):
    """Also one that TQDM_DISABLE switches off, and in a thread that was left alone."""
    late, ended = threading.Event(), threading.Event()
    bar = remote.bounded(10, late)(initial=4, file=io.StringIO(), disable=disable)
    bar.update(6)
    bar.update(-6)  # a download that begins again
    bar.update(6)
    with pytest.raises(remote.TooLarge):
        bar.update(1)

    bar = remote.bounded(10, late)(file=io.StringIO(), disable=disable)

    def trickle() -> None:
        with pytest.raises(remote.TooSlow):
            while True:
                bar.update(0)
        ended.set()

    with pytest.raises(TimeoutError):
        remote.within(0.01, trickle, late)
    assert ended.wait(5)


@pytest.mark.network
@pytest.mark.parametrize("name", ["spgm-base", "spgm-opt"])
def test_the_authors_own_models(name):
    """Skipped where the Hub cannot be reached."""
    from pathlib import Path

    import soundfile

    try:
        model = SPGMSeparation.from_pretrained(name, device="cpu")
    except ModelError as error:
        if "cannot be reached" in str(error):
            pytest.skip(str(error))
        raise
    demo = Path(__file__).resolve().parents[2] / "demo"
    parts = [demo / "reading-en.flac", demo / "prompt-ru.flac"]
    read = [
        torch.from_numpy(soundfile.read(x, 24_000, dtype="float32")[0]) for x in parts
    ]
    mix = sum(read).unsqueeze(0)
    voices = model.separate_batch(mix)
    assert voices.shape == (1, 24_000, 2) and voices.isfinite().all()
    assert (voices.sum(-1) - mix).norm() < mix.norm()
