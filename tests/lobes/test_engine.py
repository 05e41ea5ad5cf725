"""The fast path: same numbers, same bits for any number of workers, bounded memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from speechbrain.lobes.models.dual_path import (
    Decoder,
    Dual_Path_Model,
    Encoder,
    SBRNNBlock,
    SBTransformerBlock,
)
from torch import Tensor, nn

from speechbrain_spgm.lobes import engine
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.spgm import SPGMBlock

N = 16
CLEAR_PEAK = Path("/proc/self/clear_refs")


def transformer(**kwargs: object) -> SBTransformerBlock:
    kwargs = {"norm_before": True, "use_positional_encoding": True, **kwargs}
    return SBTransformerBlock(2, N, 4, 32, dropout=0.1, **kwargs)


def dual_path(
    pool: str = "att", att_h: int | None = None, intra: object = None, **kwargs: object
) -> Dual_Path_Model:
    """A small Dual_Path_Model in evaluation mode; every parameter is random."""
    kwargs = {"linear_layer_after_inter_intra": False, "K": 12, **kwargs}
    model = Dual_Path_Model(
        N, N, intra or transformer(), SPGMBlock(N, pool, att_h), num_layers=2, **kwargs
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


VARIANTS = {
    "att": {},
    "attff": {"att_h": 8},
    "max": {"pool": "max"},
    "no modulation": {"pool": "none"},
    "odd chunk": {"K": 7},
    "three speakers": {"num_spks": 3},
    "gln": {"norm": "gln"},
    "linear layers": {"linear_layer_after_inter_intra": True},
    "no skip": {"skip_around_intra": False},
    "norm after": {"intra": transformer(norm_before=False)},
    "gelu": {"intra": transformer(activation="gelu")},
    "no positions": {"intra": transformer(use_positional_encoding=False)},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("L", [1, 5, 1300])
@torch.no_grad()
def test_equals_dual_path_model(variant: str, L: int) -> None:
    reference = dual_path(**VARIANTS[variant])
    packed = SPGMMaskNet.from_dual_path(reference)
    x = torch.randn(1, N, L)
    assert engine.suits(packed, x)
    assert relative_error(packed(x), reference(x)) <= 2e-6


@torch.no_grad()
def test_error_is_no_more_than_twice_speechbrains() -> None:
    reference = dual_path(K=50)
    x = torch.randn(1, N, 4000)
    exact = dual_path(K=50).double()
    exact.load_state_dict(reference.state_dict())
    exact = exact(x.double())
    ours = SPGMMaskNet.from_dual_path(reference)(x)
    assert relative_error(ours, exact) <= 2 * relative_error(reference(x), exact)


@pytest.mark.parametrize("kernel", [2, 9, 16])
@torch.no_grad()
def test_voices_equal_the_plain_paths(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = model(kernel)
    samples = [9000, 1, 15, 4000]
    mix = torch.full((4, 9000), float("nan"))
    for utterance, T in zip(mix, samples, strict=True):
        utterance[:T] = torch.randn(T)
    est = separate(*parts, mix, torch.tensor(samples))
    for b, T in enumerate(samples):
        alone = separate(*parts, mix[b : b + 1, :T])
        assert torch.equal(est[b, :T], alone[0])
    monkeypatch.setattr(engine, "suits", lambda *_: False)
    plain = separate(*parts, mix, torch.tensor(samples))
    assert est.shape == plain.shape
    assert relative_error(est, plain) <= 2e-6
    assert torch.equal(est == 0, plain == 0)


def model(kernel: int = 16) -> tuple[Encoder, SPGMMaskNet, Decoder]:
    torch.manual_seed(0)
    decoder = Decoder(N, 1, kernel, stride=kernel // 2, bias=False)
    masknet = SPGMMaskNet.from_dual_path(dual_path())
    return Encoder(kernel, N), masknet, decoder


@torch.no_grad()
def test_same_bits_for_any_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, mix = model(), torch.randn(2, 9000)
    results = []
    for workers in (1, 2, 3):
        monkeypatch.setattr(engine, "count_workers", lambda n=workers: n)
        with one_thread():  # as in a worker
            results.append(separate(*parts, mix))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class one_thread:
    """One thread for PyTorch's operators."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def test_many_threads_at_once_get_the_results_of_one() -> None:
    parts = model()
    mixes = [torch.randn(1, 500 + 700 * i) for i in range(6)]

    def work(mix: Tensor) -> Tensor:
        with torch.no_grad():
            return separate(*parts, mix)

    expected = [work(mix) for mix in mixes]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(3):
            for got, wanted in zip(threads.map(work, mixes), expected, strict=True):
                assert torch.equal(got, wanted)


@torch.no_grad()
def test_a_failing_worker_raises_in_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, mix = model(), torch.randn(1, 9000)
    callers = set()

    def broken(*_: object) -> None:
        callers.add(threading.current_thread().name)
        raise ArithmeticError("broken layer")

    monkeypatch.setattr(engine, "count_workers", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "transform", broken)
        with pytest.raises(ArithmeticError, match="broken layer"):
            separate(*parts, mix)
    assert threading.current_thread().name not in callers
    assert separate(*parts, mix).isfinite().all()


@pytest.mark.skipif(not CLEAR_PEAK.exists(), reason="no peak memory of the process")
@torch.no_grad()
def test_only_two_tensors_grow_with_the_filters() -> None:
    encoder, decoder = Encoder(4, N), Decoder(N, 1, 4, stride=2, bias=False)
    masknet = SPGMMaskNet.from_dual_path(dual_path(K=100))
    L = 150_000
    mix = torch.randn(1, 2 * L + 2)
    separate(encoder, masknet, decoder, mix[:, :5000])  # starts the workers
    before = memory("VmRSS")
    CLEAR_PEAK.write_text("5")
    separate(encoder, masknet, decoder, mix)
    frame = 4 * N  # bytes of one frame of the encoder's output
    # Two states of two frames each, 2/8 of a frame for the voices. The encoder's output
    # or the masks as a whole would need one or two more. Scratch is below one here.
    assert 4 * L * frame <= memory("VmHWM") - before <= 5.5 * L * frame


def memory(what: str) -> int:
    """Bytes of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) * 1024


@torch.no_grad()
def test_what_is_not_standard_takes_the_plain_path() -> None:
    x = torch.randn(1, N, 50)
    packed = SPGMMaskNet.from_dual_path(dual_path())
    assert engine.suits(packed, x)
    with torch.enable_grad():
        assert not engine.suits(packed, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not engine.suits(packed, x)
    assert not engine.suits(packed, x.bfloat16())
    assert not engine.suits(packed, x.to("meta"))
    rnn = SPGMMaskNet.from_dual_path(dual_path(intra=SBRNNBlock(N, N // 2, 1)))
    assert not engine.suits(rnn, x)
    linear = packed.dual_mdl[1].intra_mdl.mdl.layers[0].pos_ffn.ffn[0]
    nn.utils.parametrizations.weight_norm(linear)
    assert not engine.suits(packed, x)
    assert not engine.suits(packed.train(), x)
    assert not engine.suits_ends(Encoder(16, N), Decoder(N, 1, 16, stride=8))
    assert not engine.suits_ends(nn.Identity(), Decoder(N, 1, 16, bias=False))
