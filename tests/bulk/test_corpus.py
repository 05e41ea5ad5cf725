"""A corpus is separated whole, whatever happens to the processes that do it."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.faults import Child
from speechbrain_spgm.bulk import corpus
from speechbrain_spgm.bulk.corpus import Threads, separate_corpus
from speechbrain_spgm.bulk.ledger import Ledger, digits_for
from speechbrain_spgm.bulk.manifest import Manifest, Shard
from speechbrain_spgm.cli import main
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import TEMPORARY
from speechbrain_spgm.inference.options import Options

FLAC = Options(format="flac")
ODD = "été\n" + os.fsdecode(b"\xff") + "\u202e.wav"


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with in.jsonl: whole recordings of 0.1 to 0.3 s and parts of one."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        x = 0.1 * rng.standard_normal(rng.integers(800, 2400))
        soundfile.write(tmp_path / f"{i}.wav", x, 8000)
        rows.append({"audio_filepath": f"{i}.wav", "lang": "en", "speaker": f"s{i}"})
    x = 0.1 * rng.standard_normal(16000)
    soundfile.write(tmp_path / "long.flac", x, 8000)
    for offset in (0.25, 1.5):
        rows.append({"audio_filepath": "long.flac", "offset": offset, "duration": 0.2})
    rows.append(rows[3] | {"lang": "fr"})  # the same recording again
    write(tmp_path / "in.jsonl", rows)
    return tmp_path


def write(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    """All files but the state and the lists of shards."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ".spgm" not in path.relative_to(folder).parts
        and "-of-" not in path.name
    }


def run(model, recordings: Path, output: str, *arguments: object) -> int:
    """``spgm separate --manifest``."""
    words = ["--manifest", recordings / "in.jsonl", "--output", recordings / output]
    words += ["--model", model, *arguments]
    return main(["separate", *map(str, words)])


def test_rows_come_out_in_order_with_all_their_fields(model, recordings):
    outcome = separate_corpus(
        model, Manifest(recordings / "in.jsonl"), recordings / "out", FLAC
    )
    assert outcome == (14, 0, {})
    rows, voices = (read(recordings / name) for name in ("in.jsonl", "out/out.jsonl"))
    assert len(voices) == 2 * len(rows) == 30
    assert [v["speaker"] for v in voices] == [1, 2] * 15
    for voice, row in zip(voices, [row for row in rows for _ in range(2)], strict=True):
        mine = {**row, **{f"mixture_{k}": row.get(k) for k in ("speaker", "duration")}}
        del mine["speaker" if "speaker" in row else "duration"]
        wanted = {name: value for name, value in mine.items() if value is not None}
        assert wanted.items() <= voice.items()
        samples, rate = soundfile.read(recordings / "out" / voice["path"])
        assert voice["duration"] == len(samples) / rate
        level = 10 * np.log10(np.mean(samples**2))
        assert voice["level"] == pytest.approx(level, abs=0.01)
        assert voice["mode"] == "exact" and voice["seam_confidence"] is None
    assert voices[6]["path"] == voices[28]["path"]  # one recording, two rows
    part = {"audio_filepath": "long.flac", "offset": 1.5, "duration": 0.2}
    found = [v for v in voices if v.get("offset") == 1.5]
    assert len({v["path"] for v in found}) == 2
    cut, rate = soundfile.read(recordings / part["audio_filepath"], start=12000)
    soundfile.write(recordings / "cut.flac", cut[:1600], rate)
    names = [recordings / f"cut{i}.flac" for i in (1, 2)]
    model.separate_to_files(recordings / "cut.flac", names)
    for name, voice in zip(names, found, strict=True):
        assert name.read_bytes() == (recordings / "out" / voice["path"]).read_bytes()


def test_tables_and_folders(model, published, recordings, capsys):
    rows = "id,duration,mix,note\na,0.1,0.wav,x\nb,,1.wav,\n"
    (recordings / "in.csv").write_text("\ufeff" + rows)
    out = recordings / ".hidden"
    separate_corpus(model, Manifest(recordings / "in.csv"), out, FLAC)
    voices = read(out / "out.jsonl")
    assert [(v["id"], v["mix"], v["note"]) for v in voices[::2]] == [
        ("a", "0.wav", "x"),
        ("b", "1.wav", ""),
    ]
    assert voices[0]["duration"] == 0.1 < voices[2]["duration"]
    folder = ["--manifest", recordings, "--output", recordings / "all"]
    words = [*folder, "--model", published, "--format", "wav"]
    assert main(["separate", *map(str, words)]) == 0
    voices = read(recordings / "all" / "out.jsonl")
    assert [v["audio_filepath"] for v in voices] == sorted(
        [path.name for path in recordings.glob("*.*") if path.suffix[1:2] in ("w", "f")]
        * 2
    )
    assert all(v["path"].endswith(".wav") for v in voices)
    assert "13 recordings" in capsys.readouterr().out


def test_quotes_in_a_table_take_no_rows_with_them(published, recordings, capsys):
    rows = 'audio_filepath,text\n0.wav,"he said\n1.wav,hello\n2.wav,bye\n'
    (recordings / "in.csv").write_text(rows)
    words = ["--manifest", str(recordings / "in.csv"), "--model", str(published)]
    assert main(["separate", *words, "--output", str(recordings / "out")]) == 2
    assert (
        "is no table (after line 1: unexpected end of data)" in capsys.readouterr().err
    )
    assert not list((recordings / "out").rglob("*.flac"))
    (recordings / "in.csv").write_text("audio_filepath,text\n0.wav\n,hello\n1.wav,x\n")
    problems = [row.problem for row in Manifest(recordings / "in.csv")]
    assert problems == [
        f"row {n} of in.csv has not as many values as the header, or no path: "
        "correct it."
        for n in (1, 2)
    ] + [None]


def test_fields_never_take_the_place_of_others(model, recordings):
    row = {"audio_filepath": "0.wav", "duration": 0.1, "mixture_duration": 7}
    row |= {"remarks": "mine", "error": "old"}
    write(recordings / "in.jsonl", [row, row | {"audio_filepath": "gone.wav"}])
    manifest = Manifest(recordings / "in.jsonl")
    separate_corpus(model, manifest, recordings / "out", FLAC)
    voice = read(recordings / "out" / "out.jsonl")[0]
    assert voice["duration"] == 0.1 and voice["error"] == "old"
    assert voice["mixture_duration"] == 7 and voice["mixture_remarks"] == "mine"
    assert voice["mixture_mixture_duration"] == 0.1 and "remarks" not in voice
    (failed,) = read(recordings / "out" / "failed.jsonl")
    assert failed["mixture_error"] == "old" and "does not exist" in failed["error"]


@pytest.mark.parametrize(
    "given, said",
    [
        (["--manifest", "in.jsonl", "--shard", ""], "the shard is ''"),
        (["--manifest", ""], "a path is empty"),
        (["--manifest", "in.jsonl", "--output", ""], "a path is empty"),
        (["--manifest", "in.jsonl", "--num-gpus", "0.5"], "--engine ray"),
        (["--manifest", "in.jsonl", "--ray-address", "auto"], "--engine ray"),
        (["--manifest", "in.jsonl", "--workers", "50000"], "from 1 to 256"),
        (["--manifest", ".", "--output", "."], "take another output folder"),
        (["--manifest", "o/voices", "--output", "o"], "take another output folder"),
        (["--manifest", "out.jsonl", "--output", "."], "would be replaced"),
        (["--manifest", "x" * 300], "does not exist"),
        (["."], ""),
        ([".", "--shard", "3/200"], "--shard goes with --manifest"),
        (
            [".", "--mode", "exact", "--window", "5"],
            "--window has no effect in the exact",
        ),
        (
            ["--manifest", ".", "--mode", "stitched", "--max-memory", "4G"],
            "--max-memory has no effect in the stitched",
        ),
        ([".", "--scores", "agreement"], "--scores goes with --manifest"),
        ([".", "--no-resume"], "--no-resume goes with --manifest"),
        ([".", "--engine", "ray"], "--engine goes with --manifest"),
        (
            "--manifest in.jsonl --scores residual --normalize peak".split(),
            "at their own levels",
        ),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(
    given, said, published, recordings, monkeypatch, capsys
):
    monkeypatch.chdir(recordings)
    (recordings / "o" / "voices").mkdir(parents=True)
    rows = (recordings / "in.jsonl").read_text()
    (recordings / "out.jsonl").write_text(rows)
    words = ["separate", "--model", str(published), "--output", "new", *given]
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert (recordings / "out.jsonl").read_text() == rows
    assert bool(list(recordings.rglob("*_spk1.*"))) == (said == "")


def test_what_a_folder_hides_counts_as_failed(published, recordings, capsys):
    (recordings / "dead.wav").symlink_to("nowhere.wav")
    words = ["--manifest", recordings, "--output", recordings / "out"]
    words += ["--model", published]
    assert main(["separate", *map(str, words)]) == 2
    out = capsys.readouterr().out
    assert "Separated 13 recordings" in out and "1 failed." in out


def test_a_folder_of_any_name(model, recordings):
    folder = recordings / os.fsdecode(b"out\xff")
    manifest = Manifest(recordings / "in.jsonl")
    outcome = separate_corpus(model, manifest, folder, FLAC, scores=["residual"])
    assert not outcome.failures and len(list(folder.rglob("*.flac"))) == 28


def test_the_newest_journal_counts(tmp_path):
    (tmp_path / "a.flac").write_bytes(b"x")
    voice = {"path": "a.flac", "bytes": 1}
    ledgers = [Ledger(tmp_path) for _ in range(4)]
    for level, ledger in enumerate(ledgers):
        ledger.add("k" * 20, [voice | {"level": level}])
        ledger.close()
        os.utime(ledger.journal, ns=(10**18 + level, 10**18 + level))
    newest = ledgers[2]
    os.utime(newest.journal, ns=(10**18 + 9, 10**18 + 9))
    last = Ledger(tmp_path)
    last.load(["k" * 20])
    assert last.places["k" * 20][0] == newest.journal


def test_a_bad_row_costs_itself_only_and_is_tried_again(published, recordings, capsys):
    (recordings / ODD).write_bytes((recordings / "0.wav").read_bytes())
    (recordings / "damaged.wav").write_bytes(b"RIFF" + bytes(100))
    bad = [
        {"audio_filepath": "missing\n\u202e.wav"},
        {"audio_filepath": "damaged.wav"},
        {"audio_filepath": "0.wav", "offset": 5},
        {"audio_filepath": "0.wav", "offset": "soon"},
        {"audio_filepath": "0.wav", "duration": 0},
        {"audio_filepath": "a\0b.wav"},
        {"audio_filepath": "\ud800.wav"},
        {"text": "no path"},
    ]
    rows = read(recordings / "in.jsonl")[:2] + bad
    rows.append({"audio_filepath": ODD, "snr": float("nan")})
    write(recordings / "in.jsonl", rows)
    with open(recordings / "in.jsonl", "a") as file:
        file.write("\n" + "[" * 100_000 + "\n")
    assert run(published, recordings, "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and all(line.isprintable() for line in said)
    failed = read(recordings / "out" / "failed.jsonl")
    assert [row.get("audio_filepath") for row in failed[:7]] == [
        row["audio_filepath"] for row in bad[:7]
    ]
    sentences = [row["error"] for row in failed]
    assert len(sentences) == 9
    parts = "exist damaged 'soon' name name".split()
    parts[2:2] = ["ends before second 5"]
    parts[4:4] = ["0, but"]
    for sentence, part in zip(sentences, [*parts, "row 10", "row 12"], strict=True):
        assert part in sentence and sentence.endswith(".")
    voices = read(recordings / "out" / "out.jsonl")
    assert [v["audio_filepath"] for v in voices[::2]] == ["0.wav", "1.wav", ODD]
    assert voices[-1]["snr"] == "NaN"  # a text, as other readers refuse the number

    (recordings / bad[0]["audio_filepath"]).write_bytes(
        (recordings / "1.wav").read_bytes()
    )
    before = tree(recordings / "out")
    assert run(published, recordings, "out") == 2
    assert "Separated 1 recording into" in capsys.readouterr().out
    after = tree(recordings / "out")
    assert len(read(recordings / "out" / "failed.jsonl")) == 8
    kept = {name: text for name, text in before.items() if ".jsonl" not in name}
    assert kept.items() < after.items()
    write(recordings / "in.jsonl", rows[:3])
    assert run(published, recordings, "out") == 0
    assert not (recordings / "out" / "failed.jsonl").exists()


def test_shards_are_one_run_and_the_last_run_joins_them(published, recordings):
    assert run(published, recordings, "one") == 0
    for shard in ("1/3", "3/3", "2/3"):
        assert run(published, recordings, "three", "--shard", shard) == 0
    out = recordings / "three"
    lists = [read(out / f"out-{i}-of-3.jsonl") for i in (1, 2, 3)]
    assert [len(rows) for rows in lists] == [10, 10, 10]
    assert not (out / "out.jsonl").exists()
    journals = set((out / ".spgm").glob("journal*"))
    assert len(journals) == 3
    assert run(published, recordings, "three") == 0
    assert set((out / ".spgm").glob("journal*")) == journals  # nothing was done again
    assert tree(out) == tree(recordings / "one")
    for shard in ("0/3", "4/3", "1/0", "3", "-1/3"):
        assert run(published, recordings, "three", f"--shard={shard}") == 2


def test_kills_change_nothing(published, recordings):
    assert run(published, recordings, "whole") == 0
    wanted = tree(recordings / "whole")
    draw, out, killed = random.Random(0), recordings / "out", 0
    for _ in range(200):
        child = Child(lambda: run(published, recordings, "out"))
        # A moment after it has begun to write.
        while not out.exists():
            assert time.monotonic() < child.began + 100
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.04))
        os.kill(child.pid, signal.SIGKILL)
        outcome = child.wait()
        killed += outcome.code == -signal.SIGKILL
        names = [path.name for path in out.rglob("*.flac")]
        assert not [name for name in names if f"voices/{name}" not in wanted]
        if killed == 5 or outcome.code == 0:
            break
    assert killed
    assert run(published, recordings, "out") == 0
    assert tree(out) == wanted
    assert not [path for path in out.rglob("*") if TEMPORARY.fullmatch(path.name)]


def test_several_at_once(published, recordings):
    assert run(published, recordings, "one") == 0
    words = [["--shard", f"{i}/3"] for i in (1, 2, 3, 3)]
    children = [
        Child(lambda more=more: run(published, recordings, "out", *more))
        for more in words
    ]
    ended = [child.wait() for child in children]
    codes = [outcome.code for outcome in ended]
    assert codes[:2] == [0, 0] and codes[2:] in ([0, 0], [0, 2], [2, 0])
    for outcome in ended:
        if outcome.code:
            assert "another process works on shard 3/3" in outcome.said
    assert run(published, recordings, "out") == 0
    assert tree(recordings / "out") == tree(recordings / "one")


def test_a_shard_is_locked_while_it_is_worked_on(tmp_path):
    with Ledger(tmp_path).locked(Shard(3, 3)):
        with Ledger(tmp_path).locked(Shard(2, 3)):
            pass
        with pytest.raises(UserError, match="another process works on shard 3/3"):
            with Ledger(tmp_path).locked(Shard(3, 3)):
                pass
    with Ledger(tmp_path).locked(Shard(3, 3)):
        pass


def test_workers_give_the_same_bits_and_batches_the_same_voices(model, recordings):
    manifest = Manifest(recordings / "in.jsonl")
    for name, engine in (
        ("alone", Threads(model, workers=1)),
        ("two", Threads(model, workers=2)),
        ("batches", Threads(model, batch=(4, 1.0))),
    ):
        separate_corpus(model, manifest, recordings / name, FLAC, engine=engine)
    alone = tree(recordings / "alone")
    assert alone == tree(recordings / "two")
    assert len(alone) == 29
    batches = tree(recordings / "batches")
    # Without AVX-512 the last bits were seen to depend on what else is in a batch.
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert alone == batches
    assert alone.keys() == batches.keys()
    for name in filter(lambda name: name.endswith(".flac"), alone):
        one, batched = (
            soundfile.read(recordings / way / name)[0] for way in ("alone", "batches")
        )
        assert np.abs(one - batched).max() < 2e-6


@pytest.mark.parametrize("options", [{"workers": 2}, {"batch": (4, 1.0)}])
def test_threads_that_begin_meanwhile_keep_their_number(
    model, recordings, monkeypatch, options
):
    separate, seen = type(model).separate_batch, []

    def watched(self, *given, **named):
        begun = []
        new = threading.Thread(target=lambda: begun.append(torch.get_num_threads()))
        new.start()
        new.join()
        seen.append((torch.get_num_threads(), *begun))
        return separate(self, *given, **named)

    monkeypatch.setattr(type(model), "separate_batch", watched)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        engine, manifest = Threads(model, **options), Manifest(recordings / "in.jsonl")
        separate_corpus(model, manifest, recordings / "o", FLAC, engine=engine)
        assert set(seen) == {(1, 2)} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_batch_is_as_large_as_it_may_be(model, recordings, monkeypatch):
    sizes, seen = [], threading.Event()
    separate = type(model).separate_batch

    def watched(self, mix, lengths=None, *rest, **options):
        if lengths is not None:
            sizes.append((len(mix), mix.shape[1]))
            if len(sizes) == 1:
                seen.wait(0.3)  # meanwhile the others come
        if len(mix) == 3:
            raise RuntimeError("out of memory")  # then each is tried alone
        return separate(self, mix, lengths, *rest, **options)

    monkeypatch.setattr(type(model), "separate_batch", watched)
    engine = Threads(model, batch=(3, 100.0))
    manifest = Manifest(recordings / "in.jsonl")
    outcome = separate_corpus(model, manifest, recordings / "o", FLAC, engine=engine)
    assert not outcome.failures and (3 in {size for size, _ in sizes})


def test_other_options_or_a_full_disk_end_a_run(
    model, published, recordings, monkeypatch, capsys
):
    assert run(published, recordings, "out") == 0
    assert run(published, recordings, "out", "--normalize", "peak") == 2
    assert "made with normalize None, not 'peak'" in capsys.readouterr().err
    assert run(published, recordings, "out", "--no-resume") == 0
    assert "Separated 14 recordings" in capsys.readouterr().out

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus, "check_writable", full)
    rows = read(recordings / "in.jsonl")
    write(recordings / "in.jsonl", [*rows, {"audio_filepath": "missing.wav"}])
    assert run(published, recordings, "out") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert run(published, recordings, "out", "x.wav") == 2


def test_no_folder_gets_too_many_files():
    for rows in (1, 250, 251, 100_000, 36_000_000):
        for speakers in (2, 3):
            mean = rows * speakers / 16 ** digits_for(rows, speakers)
            assert mean <= 500  # the number varies by less than its root times ten


def test_a_voice_made_quieter_lacks_nothing_of_the_mixture(model, recordings):
    noise = np.random.default_rng(0).standard_normal(4000)
    soundfile.write(recordings / "0.wav", 8 * noise, 8000, subtype="FLOAT")
    write(recordings / "in.jsonl", [{"audio_filepath": "0.wav"}])
    manifest, out = Manifest(recordings / "in.jsonl"), recordings / "o"
    options = Options(format="flac", consistent=True)
    separate_corpus(model, manifest, out, options, scores=["residual"])
    voice = read(out / "out.jsonl")[0]
    assert "quieter" in " ".join(voice["remarks"]) and voice["residual"] == -60


def test_scores_stand_in_the_rows(model, published, recordings, capsys):
    assert run(published, recordings, "o", "--scores", "residual,agreement") == 0
    voices = read(recordings / "o" / "out.jsonl")
    assert all({"residual", "agreement"} <= set(voice) for voice in voices)
    voice = next(v for v in voices if v.get("offset") == 1.5)
    mix = soundfile.read(recordings / "long.flac", start=12000, stop=13600)[0]
    pair = [v["path"] for v in voices if v["path"][:27] == voice["path"][:27]]
    rest = mix - sum(soundfile.read(recordings / "o" / path)[0] for path in pair)
    residual = 20 * np.log10(np.std(rest) / np.std(mix))
    assert voice["residual"] == pytest.approx(residual, abs=0.01)
    capsys.readouterr()
    words = ["--manifest", recordings / "in.jsonl", "--model", published]
    assert main(["evaluate", "--no-references", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "| shared energy |" in out and "n = 15; 0 failed." in out
    for more in (["--limit", "5"], ["--metrics", "sdr"], ["--jobs", "2"]):
        assert main(["evaluate", "--no-references", *map(str, words), *more]) == 2
        assert f"{more[0]} needs references: leave it out." in capsys.readouterr().err
    none = ["--no-references", *map(str, words), "--scores", " ,"]
    assert main(["evaluate", *none]) == 2
    assert "scores is empty: name one" in capsys.readouterr().err
    write(recordings / "bad.jsonl", [{"audio_filepath": "gone.wav"}])
    bad = ["--manifest", recordings / "bad.jsonl", "--model", published]
    assert main(["evaluate", "--no-references", *map(str, bad)]) == 2
    assert "bad.jsonl could be separated: check it." in capsys.readouterr().err
    assert main(["evaluate", *map(str, words), "--scores", "residual"]) == 2
    assert "--scores goes with --no-references" in capsys.readouterr().err
    assert run(published, recordings, "o", "--scores", "mos") == 2
    assert "there is no score 'mos'" in capsys.readouterr().err
