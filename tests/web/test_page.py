"""The page in a real browser, where Chromium, Selenium and Gradio are installed.

    SPGM_SCREENSHOT=docs/web.png pytest tests/web/test_page.py

writes the picture that the docs show.
"""

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from speechbrain_spgm.cli import main

if find_spec("gradio") is None:
    pytest.skip("needs gradio (extra web)", allow_module_level=True)
pytest.importorskip("selenium", reason="needs selenium (extra browser)")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("needs chromium and chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; the test waits no longer than it must
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--window-size=1100,1800"
).split()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """``spgm web``: its address, its process and the folder of its files."""
    folder = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-m", "speechbrain_spgm", "web", "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    line = process.stderr.readline()
    address = re.search(r"http://\S+", line)
    if not address:
        process.kill()
        pytest.fail(line + process.stderr.read())
    yield address[0], process, folder
    process.kill()
    process.communicate()


@pytest.fixture
def browser(server, tmp_path):
    """A browser that shows the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.get(server[0])
    yield browser
    browser.quit()


def until(browser, look):
    """What ``look`` finds, as soon as it finds something."""
    return WebDriverWait(browser, PATIENCE).until(lambda _: look())


def find(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def upload(browser, field, *files):
    chooser = until(browser, lambda: find(browser, f"#{field} input[type=file]"))[0]
    chooser.send_keys("\n".join(map(str, files)))
    for file in files:
        until(browser, lambda file=file: file.stem in _text(browser, field))


def _text(browser, field):
    return browser.execute_script(
        "return document.getElementById(arguments[0])?.textContent ?? ''", field
    )


def press(browser):
    until(browser, lambda: find(browser, "#separate"))[0].click()


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The demo's two voices and their sum."""
    folder = tmp_path_factory.mktemp("demo")
    names = ("reading-en.flac", "prompt-ru.flac")
    voices = [soundfile.read(ROOT / "demo" / name)[0] for name in names]
    soundfile.write(folder / "mixture.wav", sum(voices), 8000)
    return folder / "mixture.wav", [ROOT / "demo" / name for name in names]


def test_a_mixture_becomes_voices_pictures_and_files(
    server, browser, mixture, tmp_path
):
    address, process, folder = server
    upload(browser, "recording", mixture[0])
    until(browser, lambda: find(browser, "button.label-wrap"))[0].click()
    upload(browser, "references", *mixture[1])
    press(browser)
    links = until(browser, lambda: find(browser, "#files a[href]"))
    until(browser, lambda: "+" in _text(browser, "scores"))

    def loaded():
        return browser.execute_script(
            "return [...document.querySelectorAll('[id^=picture] img')]"
            ".filter(i => i.complete && i.naturalWidth > 300).length"
        )

    until(browser, lambda: loaded() == 3)
    shown = [
        number
        for number in range(6)
        if find(
            browser,
            f"#player{number} .duration, "
            f"#player{number} audio, #player{number} [data-testid]",
        )
    ]
    assert shown[:3] == [0, 1, 2]
    sound = until(
        browser, lambda: find(browser, "#player1 a[href$='.wav'], #player1 a[href]")
    )
    assert "voice 1" in _text(browser, "player1") and sound

    out = tmp_path / "out"
    arguments = ["separate", str(mixture[0]), "--output", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    expected = {p.name: digest(p.read_bytes()) for p in out.iterdir()}
    found = {}
    for link in links:
        url = link.get_attribute("href")
        with urllib.request.urlopen(url) as answer:
            found[url.rpartition("/")[2]] = digest(answer.read())
    assert expected.items() <= found.items() and len(found) == 3

    foreign = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(n => /^https?:/.test(n) && !n.startsWith(location.origin))"
    )
    assert not foreign
    if target := os.environ.get("SPGM_SCREENSHOT"):
        browser.execute_script("window.scrollTo(0, 0)")
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
        picture.quantize(64).save(target, optimize=True)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_what_cannot_be_separated_gives_a_message(browser, tmp_path):
    (tmp_path / "notes.txt").write_text("This is no sound.\n" * 99)
    hours = tmp_path / "hours.flac"
    with soundfile.SoundFile(hours, "w", 1000, 1) as file:
        for _ in range(10):
            file.write(np.zeros(3600 * 1000, np.int16))
    press(browser)
    until(browser, lambda: "Give a file, or record" in _toasts(browser))
    for file, said in [
        (tmp_path / "notes.txt", "notes.txt is damaged or no audio file"),
        (hours, "hours.flac is longer than 10 minutes: cut it up."),
    ]:
        browser.refresh()
        upload(browser, "recording", file)
        press(browser)
        until(browser, lambda said=said: said in _toasts(browser))
        assert str(tmp_path) not in _toasts(browser)
    assert not find(browser, "#files a[href]")


def _toasts(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.toast-body')]"
        ".map(t => t.textContent).join(' ')"
    )


def test_nothing_is_left_when_the_page_ends(server):
    """The last test here: it ends the page."""
    _, process, folder = server
    assert [*folder.rglob("*.wav")] or [*folder.iterdir()]
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 143
    left = [path.name for path in folder.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]
