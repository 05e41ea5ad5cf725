"""The benchmark of leaks: stretches, assignment and decibels."""

import pytest
import torch

from benchmarks import leak
from speechbrain_spgm.data import Mixture
from speechbrain_spgm.metrics.si_sdr import reorder


class Model:
    """The voices in the other order, each with a tenth of the other."""

    sample_rate = 8000

    def separate_recording(self, recording, views):
        est = torch.stack(self.voices, dim=-1).flip(-1)[None]
        return reorder(est, torch.tensor([[0, 1]])) + 0.1 * est.flip(-1)


class Mixtures(list):
    sample_rate = Model.sample_rate


def test_a_tenth_of_the_other_voice_is_20_db(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    mixtures = Mixtures(
        Mixture("m", sources.sum(1), sources)
        for sources in torch.randn(3, 48000, 2, generator=draw)
    )
    model = Model()
    separate = leak.separate

    def listen(_, sources):
        model.voices = sources.unbind(-1)
        return separate(model, sources)

    monkeypatch.setattr(leak, "separate", listen)
    leaks = leak.study(model, mixtures)
    assert leaks.conversations == pytest.approx([-20] * 6, abs=1e-3)
    assert leaks.alone == pytest.approx([-20] * 3, abs=1e-3)
    table = leak.report(leaks, "a model").splitlines()
    assert (
        table[-1] == "| one voice alone, the other output | 3 | -20.00 ± 0.00 | -20.0 |"
    )
