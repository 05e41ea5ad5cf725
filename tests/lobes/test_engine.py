"""The fast path: same numbers, same bits for any number of workers, bounded memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

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
from torch.overrides import TorchFunctionMode

from speechbrain_spgm.lobes import engine, separator
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.separator import separate
from speechbrain_spgm.lobes.spgm import SPGMBlock

N = 16


@pytest.fixture(autouse=True)
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short mixtures are decoded in tiles like long ones."""
    monkeypatch.setattr(separator, "DECODED_AT_ONCE", 0)


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
    samples = [5000, 1, 15, 2400]
    mix = torch.full((4, 5000), float("nan"))
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


class Sizes(TorchFunctionMode):
    """Collects the memory behind what PyTorch's functions return: values, places."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, set[int]] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if type(tensor) is Tensor:
                storage = tensor.untyped_storage()
                values = storage.nbytes() // tensor.element_size()
                self.places.setdefault(values, set()).add(storage.data_ptr())
        return result


@torch.no_grad()
def test_only_two_tensors_grow_with_the_filters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, decoder = Encoder(4, N), Decoder(N, 1, 4, stride=2, bias=False)
    masknet = SPGMMaskNet.from_dual_path(dual_path(K=50))
    monkeypatch.setattr(engine, "count_workers", lambda: 1)  # modes are the thread's
    monkeypatch.setattr(engine, "STEP_BYTES", 2**16)
    monkeypatch.setattr(engine, "TILE_FRAMES", 100)
    L = 5000
    with Sizes() as sizes:
        separate(encoder, masknet, decoder, torch.randn(1, 2 * L + 2))
    # The two voices have 4 L values; the encoder's output as a whole would have 16 L.
    large = {values: at for values, at in sizes.places.items() if values > 8.1 * L}
    assert list(large) == [2 * (L + 50) * N]
    assert len(large.popitem()[1]) == 2


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
    layer = packed.dual_mdl[1].intra_mdl.mdl.layers[0]
    projection = layer.self_att.att.out_proj
    layer.self_att.att.out_proj = nn.Linear(N, N).eval()  # another, as plain
    assert engine.suits(packed, x)
    nn.utils.parametrizations.weight_norm(layer.self_att.att.out_proj)
    assert not engine.suits(packed.eval(), x)
    layer.self_att.att.out_proj = projection
    nn.utils.parametrizations.weight_norm(layer.pos_ffn.ffn[0])
    assert not engine.suits(packed.eval(), x)
    assert not engine.suits(packed.train(), x)
    assert not engine.suits_ends(Encoder(16, N), Decoder(N, 1, 16, stride=8))
    assert not engine.suits_ends(nn.Identity(), Decoder(N, 1, 16, bias=False))
