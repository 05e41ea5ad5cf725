"""What the page does with a recording, without a browser."""

import zipfile

import pytest
import soundfile
import torch

from speechbrain_spgm.audio import read_audio, write_audio
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.web.work import score, separate

RATE = 16000


@pytest.fixture
def recording(tmp_path):
    """A second of noise, and the two voices that make it."""
    voices = torch.rand(RATE, 2) - 0.5
    for i, voice in enumerate(voices.T):
        write_audio(tmp_path / f"ref{i}.wav", voice, RATE)
    write_audio(tmp_path / "talk.wav", voices.sum(1), RATE)
    return tmp_path / "talk.wav"


def test_files_are_those_of_the_library_with_pictures_and_scores(
    model, recording, tmp_path
):
    folder, steps = tmp_path / "out", []
    folder.mkdir()
    references = [recording.with_name(f"ref{i}.wav") for i in range(2)]
    outcome = separate(
        model, recording, folder, references, 1, lambda *step: steps.append(step)
    )
    expected = model.separate_file(recording, full_band=True)[0]
    with zipfile.ZipFile(outcome.archive) as archive:
        assert archive.namelist() == ["talk_spk1.wav", "talk_spk2.wav"]
        for i, path in enumerate(outcome.voices):
            assert torch.equal(read_audio(path).samples, expected[:, i])
            assert archive.read(path.name) == path.read_bytes()
    assert len(outcome.pictures) == 3 and not outcome.remarks
    assert all(p.read_bytes()[1:4] == b"PNG" for p in outcome.pictures)
    assert steps[-1][0] == steps[-1][1] > 0
    assert "| ref0.wav |" in outcome.scores and "| ref1.wav |" in outcome.scores


def test_voices_find_their_references():
    voices = torch.randn(RATE, 2)
    table = score(voices.flip(1), voices, voices.sum(1), [_path("a"), _path("b")])
    assert [line.split("|")[2].strip() for line in table.splitlines()[2:]] == ["2", "1"]


def _path(name):
    from pathlib import Path

    return Path(name)


@pytest.mark.parametrize(
    ("names", "minutes", "said"),
    [
        ([], 0.01, "talk.wav is longer than 0.01 minutes: cut it up."),
        (["ref0.wav"], 1, "There are 1 reference, but the model gives 2 voices"),
        (["ref0.wav", "short.wav"], 1, "short.wav lasts 0.50 s, the recording 1.00 s"),
        (["ref0.wav", "text.wav"], 1, "text.wav is damaged or no audio file"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    model, recording, tmp_path, names, minutes, said
):
    soundfile.write(tmp_path / "short.wav", torch.rand(RATE // 2).numpy(), RATE)
    (tmp_path / "text.wav").write_text("no sound\n" * 99)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(UserError, match=said) as error:
        separate(model, recording, folder, [tmp_path / n for n in names], minutes)
    assert str(tmp_path) not in str(error.value)
    assert not [*folder.iterdir()]
