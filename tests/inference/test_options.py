"""Options are spelled once: what is refused, what is filled in, who knows them."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest

from speechbrain_spgm.audio import FORMATS, SUBTYPES
from speechbrain_spgm.cli import make_parser
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.inference.options import MODES, STATISTICS, WRITING, Options

MODEL = SimpleNamespace(
    num_spks=2, views=3, row_seconds=0.25
)  # what options ask of a model


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("normalize", "loud", "normalize is 'loud'"),
        ("mode", "fast", "mode is 'fast'.*auto, exact, stitched"),
        ("mode", ["exact"], "mode is"),
        ("max_memory", "much", "'much' is no amount of memory"),
        ("max_memory", 1.5, "max_memory is 1.5"),
        ("max_memory", True, "max_memory is True"),
        ("max_memory", 0, "max_memory is 0"),
        ("max_memory", -5, "max_memory is -5"),
        ("window", 0.5, "window is 0.5 s"),
        ("window", float("nan"), "window is nan s"),
        ("window", "15", "window is '15'.* seconds"),
        ("overlap", 6, "overlap is 6 s.*5 s"),
        ("overlap", "2", "overlap is '2'.* seconds"),
        ("views", 9, "views is 9"),
        ("views", 2.0, "views is 2.0"),
        ("statistics", "median", "statistics is 'median'.*whole, running, window"),
        ("statistics_seconds", 8, "statistics_seconds is 8.*running or window"),
        ("channel", 0, "channel is 0"),
        ("channel", "1", "channel is '1'"),
        ("format", "wma", "format is 'wma'"),
        ("subtype", "12", "subtype is '12'"),
    ],
)
def test_a_wrong_value_is_one_sentence(name, value, said):
    with pytest.raises(UserError, match=said) as caught:
        Options.of({name: value}).checked(MODEL)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_is_left_open_is_filled_in():
    options = Options(window=6, max_memory="1K").checked(MODEL, "a.flac")
    assert (options.overlap, options.views, options.max_memory) == (2, 3, 1024)
    assert (options.format, options.form.subtype) == ("flac", "PCM_24")
    assert options.checked(MODEL) == options  # nothing is left to fill in


def test_statistics_are_given_in_seconds():
    def rule(statistics, seconds=None, model=MODEL):
        chosen = {"statistics": statistics, "statistics_seconds": seconds}
        return Options.of(chosen).checked(model).rule(model)

    assert rule("whole") is None
    assert (rule("window").chunks, rule("window", 3).chunks) == (32, 12)
    assert (rule("running").warm_up, rule("running").keep) == (4, 1)
    assert rule("running", 0.25).keep == pytest.approx(0.3679, abs=1e-4)
    assert rule("running", 1e-300).keep > 0  # the newest chunk alone
    assert rule("window", float("inf")).chunks > 1e6
    for wrong in (0, float("nan"), "8"):
        with pytest.raises(UserError, match="statistics_seconds is"):
            rule("window", wrong)
    other = SimpleNamespace(num_spks=2, views=1, row_seconds=None)
    with pytest.raises(UserError, match="is no SPGM network.*leave it out"):
        rule("window", model=other)


def test_too_many_voices_are_not_stitched():
    crowd = SimpleNamespace(num_spks=7, views=1)
    with pytest.raises(UserError, match="7 outputs.*exact mode"):
        Options(mode="stitched").checked(crowd)
    Options().checked(crowd)


@pytest.mark.parametrize("name", Options.names())
def test_every_option_is_described_where_it_stands(name):
    assert f"\n{name} : " in inspect.getdoc(Options)
    text = inspect.getdoc(SPGMSeparation.separate_file)
    assert (f"``{name}``" in text or f"{name} : " in text) != (name in WRITING)


def test_the_command_knows_the_options_and_their_defaults():
    command = ["separate", "a.wav", "--output", "b"]
    chosen = vars(make_parser().parse_args(command))
    defaults = dataclasses.asdict(Options())
    known = chosen.keys() & defaults.keys()
    assert known == defaults.keys() - {"overlap", "progress"}
    assert {n: chosen[n] for n in known - {"format"}} == {
        n: defaults[n] for n in known - {"format"}
    }


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--format", FORMATS),
        ("--subtype", SUBTYPES),
        ("--mode", MODES),
        ("--statistics", STATISTICS),
    ],
)
def test_the_command_offers_every_value(option, values):
    command = ["separate", "a.wav", "--output", "b", option]
    for value in values:
        make_parser().parse_args([*command, value])
    with pytest.raises(SystemExit):
        make_parser().parse_args([*command, "another"])


def test_unknown_names_are_refused_before_anything_is_read(model, tmp_path):
    absent = tmp_path / "absent.wav"
    outputs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    with pytest.raises(UserError, match="no option windows: did you mean window"):
        model.separate_file(absent, windows=3)
    with pytest.raises(UserError, match="no option gain: take normalize, .* or chan"):
        model.separate_audio([0.0], 8000, gain=3)
    with pytest.raises(UserError, match="no option format"):
        model.separate_file(absent, format="flac")
    with pytest.raises(UserError, match="no option subtypes: did you mean subtype"):
        model.separate_to_files(absent, outputs, subtypes="16")
