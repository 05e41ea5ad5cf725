"""Manifests: what is written is read, and what is broken is named."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechbrain_spgm.data import ManifestDataset, UserError
from speechbrain_spgm.data.manifests import ManifestRow, read_manifest, write_manifest

HEADER = "id,duration,mix,s1,s2,noise\n"


def row(folder: Path, id: str, noise: bool = False) -> ManifestRow:
    files = [folder / part / f"{id}.wav" for part in ("mix", "s1", "s2")]
    extra = folder / "noise" / f"{id}.wav" if noise else None
    return ManifestRow(id, 7 / 3, files[0], tuple(files[1:]), extra)


def test_rows_come_back_sorted_with_files_relative_where_possible(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "elsewhere"
    rows = [row(inside, "b,ü", noise=True), row(outside, "a")]
    write_manifest(inside / "x.csv", rows)
    assert read_manifest(inside / "x.csv", num_spks=2) == rows[::-1]
    text = (inside / "x.csv").read_text(encoding="utf-8")
    assert text.startswith(HEADER)
    assert str(outside / "mix" / "a.wav") in text and str(inside) not in text


def test_the_same_manifest_is_not_written_again(tmp_path):
    path = tmp_path / "x.csv"
    write_manifest(path, [row(tmp_path, "a"), row(tmp_path, "b")])
    before = path.stat()
    write_manifest(path, [row(tmp_path, "b"), row(tmp_path, "a")])
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    write_manifest(path, [row(tmp_path, "a")])
    assert len(read_manifest(path)) == 1


def test_wrong_rows_are_not_written(tmp_path):
    path = tmp_path / "x.csv"
    good = row(tmp_path, "a")
    for rows, message in [
        ([good, row(tmp_path, "a")], "id a comes twice"),
        ([good, good._replace(id="b", sources=good.sources[:1])], "b has 1 sources"),
        ([], "no rows"),
    ]:
        with pytest.raises(UserError, match=message):
            write_manifest(path, rows)
    assert not path.exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x.csv cannot be written"):
        write_manifest(tmp_path / "file" / "x.csv", [row(tmp_path, "a")])


@pytest.mark.parametrize(
    "text, message",
    [
        (HEADER + "a,1,m,x,y,\na,1,m,x,y,\n", "Line 3 of .*x.csv repeats the id a"),
        (HEADER + "a,1,m,x,y\n", "Line 2 of .*x.csv has not as many values"),
        (HEADER + "a,1,m,x,,\n", "Line 2 of .*x.csv has no value for s2"),
        (HEADER + "a,one,m,x,y,\n", "Line 2 of .*x.csv has the duration 'one'"),
        (HEADER + "a,nan,m,x,y,\n", "duration 'nan'"),
        (HEADER + "a,-1,m,x,y,\n", "duration '-1'"),
        ("id,duration,mix,s1,s3\na,1,m,x,y\n", "no column s2"),
        ("id,mix,s1\na,m,x\n", "no column duration"),
        (HEADER, "no rows"),
    ],
)
def test_broken_manifests_are_named(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "x.csv")


def test_the_number_of_speakers_is_checked(tmp_path):
    write_manifest(tmp_path / "x.csv", [row(tmp_path, "a")])
    with pytest.raises(UserError, match="2 source.* num_spks is 3"):
        read_manifest(tmp_path / "x.csv", num_spks=3)


def test_a_manifest_without_the_noise_column_is_read(tmp_path):
    (tmp_path / "x.csv").write_text("id,duration,mix,s1\na,1,m.wav,/else/s.wav\n")
    expected = ManifestRow("a", 1.0, tmp_path / "m.wav", (Path("/else/s.wav"),))
    assert read_manifest(tmp_path / "x.csv") == [expected]


def columns_of_speechbrain(file, row) -> dict[str, str]:
    parts = {"mix": row.mix, "noise": row.noise}
    parts |= {f"s{i}": path for i, path in enumerate(row.sources, 1)}
    columns = {"ID": row.id, "duration": "1.0"}  # whatever it is
    for part, path in parts.items():
        columns |= {f"{part}_wav": str(path), f"{part}_wav_format": "wav"}
        columns[f"{part}_wav_opts"] = ""
    return columns


def columns_of_asteroid(file, row) -> dict[str, str]:
    sources = {f"source_{i}_path": str(p) for i, p in enumerate(row.sources, 1)}
    return {
        "mixture_ID": row.id,
        "mixture_path": str(row.mix),
        **sources,
        "noise_path": str(row.noise),
        "length": str(round(8000 * row.duration)),
    }


@pytest.mark.parametrize("columns", [columns_of_speechbrain, columns_of_asteroid])
@pytest.mark.parametrize("spks", [1, 2, 3])
def test_lists_of_other_toolkits(tmp_path, columns, spks):
    rows = []
    for id, frames in (("b", 900), ("a", 1300)):
        paths = [tmp_path / f"{id}{k}.wav" for k in range(spks + 2)]
        for path in paths:
            soundfile.write(path, np.full(frames, 0.1), 8000)
        mix, noise, *sources = paths
        rows.append(ManifestRow(id, frames / 8000, mix, tuple(sources), noise))
    with (tmp_path / "other.csv").open("w", newline="") as file:
        tables = [columns(tmp_path, row) for row in rows]
        writer = csv.DictWriter(file, list(tables[0]))
        writer.writeheader()
        writer.writerows(tables)
    assert read_manifest(tmp_path / "other.csv", spks) == rows[::-1]
    mixtures = ManifestDataset(tmp_path / "other.csv", spks, 8000)
    assert [len(mixture.mix) for mixture in mixtures] == [1300, 900]
    with pytest.raises(UserError, match="num_spks is 4"):
        read_manifest(tmp_path / "other.csv", 4)
