"""Which attention a GPU gets, and that flash-attn is asked for the right thing."""

import logging
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model import cuda_paths
from sloserve.model.batch import build_batch
from sloserve.model.choice import choose_path
from sloserve.model.cuda_flash import FlashPath
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache, LayerShape
from sloserve.model.path import AttentionPath
from sloserve.model.terms import Terms

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
LAYERS = [LayerShape(2, 64, 64)]
RAGGED = [(0, 1), (255, 1), (256, 1), (700, 1), (0, 9), (250, 20), (511, 2), (100, 156)]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with a GPU and these packages."""

    def install(*names: str) -> None:
        here = {name: SimpleNamespace(flash_attn_varlen_func=None) for name in names}
        monkeypatch.setattr(cuda_paths, "find_spec", here.get)

        def load(name: str) -> Any:
            return here["triton"] if "triton" in name else here[name]

        monkeypatch.setattr(cuda_paths, "import_module", load)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(multi_processor_count=132),
        )

    return install


def chosen(asked: str = "auto", **changes: Any) -> str:
    given: dict[str, Any] = {"dtype": torch.bfloat16, "layers": LAYERS, "terms": [Terms(0.1)]}
    return choose_path(asked, device=CUDA, **{**given, **changes}).name


def test_a_gpu_gets_our_kernel_or_flash_attn_where_that_is_installed(
    installed: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    installed("triton")
    with caplog.at_level(logging.INFO):
        assert chosen() == "triton"
    assert "attention on cuda: triton; not flash-attn: it is not installed" in caplog.text
    installed("triton", "flash_attn")
    assert chosen() == "flash-attn"
    assert chosen("triton") == "triton"
    assert chosen("torch") == "torch"
    installed()
    assert chosen() == "torch"


def test_a_package_that_cannot_be_imported_is_passed_over_and_named(
    installed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    installed("triton", "flash_attn")

    def broken(name: str) -> Any:
        if name == "flash_attn":
            raise ImportError("undefined symbol: _ZN3c105ErrorC2E")
        return SimpleNamespace()

    monkeypatch.setattr(cuda_paths, "import_module", broken)
    with caplog.at_level(logging.INFO):
        assert chosen() == "triton"
    assert "not flash-attn: it is installed, but can't be imported: undefined" in caplog.text
    with pytest.raises(BadInput, match="undefined symbol"):
        chosen("flash-attn")


def test_what_flash_attn_cannot_compute_goes_to_our_kernel(
    installed: Callable[..., None],
) -> None:
    installed("triton", "flash_attn")
    assert chosen(dtype=torch.float32) == "triton"
    assert chosen(layers=[LayerShape(2, 192, 128)]) == "triton"
    assert chosen(layers=[LayerShape(2, 512, 512)]) == "triton"
    assert chosen(terms=[Terms(0.1, sinks=torch.zeros(4))]) == "triton"
    assert chosen(terms=[Terms(0.1, window=64, softcap=30.0)]) == "flash-attn"


def test_a_path_that_is_asked_for_and_cannot_be_had_is_refused(
    installed: Callable[..., None],
) -> None:
    installed()
    with pytest.raises(BadInput, match=r"triton can't be had: .*it is not installed; allowed on"):
        chosen("triton")
    installed("flash_attn")
    with pytest.raises(BadInput, match="float32"):
        chosen("flash-attn", dtype=torch.float32)
    with pytest.raises(BadInput, match="it is for another device"):
        chosen("compiled")
    for name in ("triton", "flash-attn"):
        with pytest.raises(BadInput, match="another device than cpu"):
            choose_path(name, device=CPU, dtype=torch.float32, layers=LAYERS)


def test_flash_attn_is_given_what_torchs_kernels_see(varlen: Any) -> None:
    for terms in (Terms(0.2), Terms(0.125, window=100), Terms(0.1, softcap=2.0)):
        out = attended(FlashPath(varlen), terms)
        assert torch.allclose(out, attended(Gathered(), terms), atol=1e-5)


def attended(path: AttentionPath, terms: Terms) -> torch.Tensor:
    """A ragged step over pages of 256 tokens, (P, H, D)."""
    torch.manual_seed(2)
    pool = list(range(24))
    random.Random(2).shuffle(pool)
    rows = [
        StepRow(
            request_id=i,
            tokens=range(context + count),
            num_prompt=1,
            start=context,
            count=count,
            block_table=[pool.pop() for _ in range(-(-(context + count) // 256))],
            sample=False,
            sampling=SamplingParams(),
        )
        for i, (context, count) in enumerate(RAGGED)
    ]
    batch = build_batch(rows, block_size=256, device=CPU)
    cache = KvCache(
        [LayerShape(2, 32, 32)],
        num_blocks=24,
        block_size=256,
        dtype=torch.float32,
        device=CPU,
        path=path,
    )
    for memory in cache.layers[0]:
        memory.normal_()
    num = batch.input_ids.shape[1]
    query, key, value = (torch.randn(num, n, 32).transpose(0, 1) for n in (4, 2, 2))
    with torch.inference_mode():
        out = path.attend(0, query, key, value, batch=batch, cache=cache, terms=terms)
    assert not out[batch.slots.shape[0] :].any()
    return out
