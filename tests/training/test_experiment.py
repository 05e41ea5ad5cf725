"""What a user may get wrong on the command line of a train.py."""

import pytest

from speechbrain_spgm.data import UserError
from speechbrain_spgm.training.experiment import load_hparams, user_errors


@pytest.fixture
def yaml(tmp_path):
    path = tmp_path / "net.yaml"
    path.write_text("folder: !PLACEHOLDER\nlr: 0.1\nhalf: !ref <lr> / 2\n")
    return path


def test_overrides_are_applied(yaml):
    hparams = load_hparams(yaml, "folder: here\nlr: 0.4")
    assert hparams == {"folder": "here", "lr": 0.4, "half": 0.2}


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("lr: 1", "^folder has no value: give it as --folder VALUE.$"),
        ("folder: x\nrate: 1", "rate.* is not a key"),
        ("folder: x\nfolder: y", "^folder is given twice"),
        ("folder: [x", "not valid yaml"),
    ],
)
def test_mistakes_are_one_sentence(yaml, overrides, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        load_hparams(yaml, overrides)
    assert "\n" not in str(error.value)


def test_a_missing_include_is_named(yaml):
    yaml.write_text("net: !include:gone.yaml\n")
    with pytest.raises(UserError, match="gone.yaml does not exist"):
        load_hparams(yaml, "")


def test_only_user_errors_lose_their_traceback(capsys):
    with pytest.raises(SystemExit) as exit_, user_errors():
        raise UserError("The list x does not exist.")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "Error: The list x does not exist.\n"
    with pytest.raises(ZeroDivisionError), user_errors():
        _ = 1 / 0
