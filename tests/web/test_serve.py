"""How the page begins and what it clears away, without Gradio and a browser."""

import os
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from speechbrain_spgm.errors import UserError
from speechbrain_spgm.web import page


@pytest.fixture
def launch(monkeypatch):
    """Begins a page that is none: Gradio's part is what the test says."""
    monkeypatch.setattr(page, "offline_theme", lambda: None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")

    def launch(gradio, **options):
        fake = SimpleNamespace(launch=gradio, close=lambda **_: None)
        monkeypatch.setattr(page, "build_page", lambda *_: fake)
        page.serve(lambda name: None, say=lambda line: None, **options)

    return launch


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_no_port(launch, port):
    with pytest.raises(UserError, match=f"port is {port}, but must be from 1 to 65535"):
        launch(lambda **_: pytest.fail("it began"), port=port)


@pytest.mark.parametrize("port", [None, 1, 65535])
def test_each_port_is_tried(launch, port):
    def taken(server_port, **_):
        assert server_port == port
        raise OSError

    with pytest.raises(UserError, match="take another --port"):
        launch(taken, port=port)


def test_what_gradio_raises_is_one_sentence(launch):
    def fail(**_):
        raise ValueError("When localhost is not accessible, ...\nand more")

    with pytest.raises(UserError, match=r"on 127.0.0.1 \(When localhost.*: check --ho"):
        launch(fail)


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_is_asked_for_the_page(launch, monkeypatch, name):
    monkeypatch.setenv(name, "uni.edu")

    def look(**_):
        for name in ("no_proxy", "NO_PROXY"):
            hosts = os.environ[name].split(",")
            assert hosts[0] == "uni.edu"
            assert {"localhost", "127.0.0.1", "192.168.1.2"} <= set(hosts)
        raise OSError

    with pytest.raises(UserError, match="take another --port"):
        launch(look, host="192.168.1.2")


def test_uploads_that_broke_off_are_removed(launch, monkeypatch, tmp_path):
    """Two hours after they came, by the clock of the files."""
    monkeypatch.setattr(page, "temporary_folder", lambda: nullcontext(tmp_path))
    (tmp_path / "gradio" / "a").mkdir(parents=True)
    old, other = tmp_path / "gradio" / "a" / "old.wav", tmp_path / "other"
    for path in (old, other):
        path.touch()
    begin, seen = time.time(), []

    def minutes_later(seconds):
        seen.append(old.exists())
        if len(seen) == 3:
            raise KeyboardInterrupt
        monkeypatch.setattr(time, "time", lambda: begin + 7140 + 120 * (len(seen) - 1))

    monkeypatch.setattr(time, "sleep", minutes_later)
    with pytest.raises(KeyboardInterrupt):
        launch(lambda **_: (None, "address", None))
    assert seen == [True, True, False] and other.exists()
