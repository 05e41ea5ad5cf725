"""What strangers wrote, on a terminal."""

import io
import unicodedata

import pytest
from torch._utils import ExceptionWrapper

from speechbrain_spgm.audio import AudioFileError
from speechbrain_spgm.errors import UserError, shown
from speechbrain_spgm.inference.progress import Bar

BAD = [chr(code) for code in (*range(32), *range(127, 160))]
BAD += list("\u00ad\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff")
BAD += ["\ud800", "\udcff", "\U000e0041"]


@pytest.mark.parametrize("character", BAD, ids=ascii)
def test_no_control_character_is_printed(character):
    text = f"before{character}[31mafter"
    for line in (shown(text), str(UserError(text))):
        assert line == f"before{ascii(character)[1:-1]}[31mafter"
        line.encode("utf-8")


def test_what_a_loader_process_refuses_is_one_sentence():
    try:
        raise AudioFileError("the file a: b.wav\n is damaged: copy it again.")
    except AudioFileError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(AudioFileError) as caught:
        wrapped.reraise()
    assert str(caught.value) == "the file a: b.wav\\n is damaged: copy it again."


def test_ordinary_text_stays_as_it_is():
    text = "é ± 本 \U0001f600 а́ \\n 'quoted' \"too\"  a\u00a0b"
    assert shown(text) == text
    assert all(unicodedata.category(character) != "Cc" for character in shown(text))


@pytest.mark.parametrize("length", [9, 10, 11, 50])
def test_long_text_loses_its_middle(length):
    text = "".join(map(str, range(100)))
    line = shown(text, length)
    head, _, tail = line.partition("...")
    assert len(line) == length
    assert text.startswith(head) and text.endswith(tail) and min(head, tail)
    assert shown(text, None) == shown(text, len(text)) == text
    message = str(UserError("the file " + "x" * 100_000 + " is wrong: mend it."))
    assert len(message) <= 4000 and message.endswith(" is wrong: mend it.")


def test_a_bar_shows_names_without_control_characters(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    with Bar(True, desc="chunks of \x1b[2J\na.wav", total=2, file=terminal) as bar:
        bar.refresh()
    assert "chunks of \\x1b[2J\\na.wav: " in terminal.getvalue()
