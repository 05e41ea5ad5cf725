"""Code that makes tensors says where and of what: other defaults change nothing."""

import pytest
import soundfile
import torch

from speechbrain_spgm.cli import main
from speechbrain_spgm.data.batch import MixtureBatch
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.lobes import quantised
from tests.training.tiny import Tones

CPU = {"device": "cpu"}


@pytest.fixture
def meta():
    """Tensors without a named device have no numbers."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def speechbrain(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "speechbrain"
    assert main(["convert", str(published), str(folder), "--to", "speechbrain"]) == 0
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("layout", ["published", "speechbrain"])
def test_separation(published, speechbrain, tmp_path, request, layout, precision):
    generator = torch.Generator().manual_seed(1)
    mix = 0.1 * torch.randn(2, 30_000, generator=generator)
    soundfile.write(tmp_path / "mix.wav", mix[0].numpy(), 16_000)

    def results() -> list[torch.Tensor]:
        if layout == "published":
            model = SPGMSeparation.from_pretrained(
                published, device="cpu", precision=precision
            )
        else:
            model = SPGMSeparation.from_hparams(
                speechbrain, run_opts=CPU, precision=precision
            )
        stitched = {"mode": "stitched", "window": 1.0}
        stream = model.stream(0.2)
        return [
            stream.push(mix[0]),
            stream.finish(),
            model.separate_batch(mix[:, :9000], [9000, 4321], views=2),
            model.separate_batch(mix[:, :50].tolist(), torch.ones(2, device="cpu")),
            model.separate_file(tmp_path / "mix.wav"),
            model.separate_file(tmp_path / "mix.wav", **stitched),
        ]

    expected = results()
    quantised._saturates.cache_clear()
    request.getfixturevalue("meta")
    for found, wanted in zip(results(), expected, strict=True):
        assert found.device.type == "cpu" and torch.equal(found, wanted)


def test_commands(published, speechbrain, tmp_path, meta, capsys):
    for source, to in ((published, "speechbrain"), (speechbrain, "published")):
        assert main(["convert", str(source), str(tmp_path / to), "--to", to]) == 0
        assert main(["info", str(source), "--device", "cpu"]) == 0


def test_batches(meta):
    tones = Tones(seed=1)
    with torch.device("cpu"):  # the test's own
        mixtures = [tones[0], tones[1]]
    batch = MixtureBatch.collate(mixtures)
    assert batch.lengths.device.type == batch.mix.device.type == "cpu"
    assert tones._epoch.device.type == "cpu"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_another_default_type(published, speechbrain, precision):
    generator = torch.Generator().manual_seed(1)
    mix = 0.1 * torch.randn(1, 9000, generator=generator)
    model = SPGMSeparation.from_pretrained(published, device="cpu", precision=precision)

    def results() -> list[torch.Tensor]:
        stream = model.stream(0.2)
        parts = [stream.push(mix[0, :10]), stream.push(mix[0]), stream.finish()]
        parts += [stream.finish(), model.separate_batch(mix)]
        again = SPGMSeparation.from_hparams(speechbrain, run_opts=CPU)
        parts.append(again.separate_batch(mix))
        long = mix[0].repeat(3)[:17_000]
        for options in ({"mode": "exact"}, {"mode": "stitched", "window": 1.0}):
            parts.append(model.separate_audio(long, 16_000, full_band=True, **options))
        return parts

    expected = results()
    quantised._saturates.cache_clear()
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == torch.float32 and torch.equal(part, wanted)
