"""Loading on a GPU, as far as that goes without one: what is run beforehand, and full memory."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.errors import BadInput
from sloserve.model import cuda_load, hardware, load, proved
from sloserve.model.attention import NAME
from sloserve.model.cuda_load import out_of_memory_told, warm_up_steps
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache
from sloserve.model.selftest import check, reference
from sloserve.model.structure import attention_layers, use_attention
from sloserve.model.triton_attention import TritonPath
from sloserve.model.triton_tiles import num_splits, power_of_two, tiling
from sloserve.model.windowtest import check_windows
from sloserve.slo.service import EngineSpec

CPU = torch.device("cpu")


def a_config(kind: str = "llama", **more: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=2,
        **more,
    )
    return config


def variants(row: tuple[int, int], *, group: int, kv_heads: int) -> tuple[int, bool]:
    """What a launch over such a row is compiled for: rows of a tile, and whether keys are split."""
    context, count = row
    sizes = tiling(group=group, max_count=count, head_size=128, itemsize=2)
    splits = num_splits(
        num_programs=-(-count // (sizes.block_m // group)) * kv_heads,
        num_keys=context + count,
        num_processors=132,
    )
    return sizes.block_m, splits > 1


@pytest.mark.parametrize("group", [1, 3, 4, 5, 8, 16])
def test_every_kernel_that_a_step_may_need_is_compiled_beforehand(group: int) -> None:
    steps = warm_up_steps(8192)
    compiled = {variants(step, group=group, kv_heads=2) for step in steps}
    for count in (*range(1, 200), 511, 2048):
        for context in (0, 100, 3000, 8192 - count):
            assert variants((context, count), group=group, kv_heads=2) in compiled
    assert power_of_two(group) <= min(block_m for block_m, _ in compiled)


def test_short_models_are_warmed_up_within_their_length() -> None:
    assert all(context + count <= 20 for context, count in warm_up_steps(20))
    assert warm_up_steps(1) == [(0, 1)]


def test_warming_up_leaves_the_pages_empty() -> None:
    model = a_model(a_config())
    layers = attention_layers(model, max_model_len=512)
    cache = KvCache(
        [layer.shape for layer in layers],
        num_blocks=5,
        block_size=16,
        dtype=torch.float32,
        device=CPU,
        path=Gathered(),
    )
    use_attention(model, NAME)
    for step in ((0, 33), (400, 1), (495, 17)):
        cuda_load._run(model, cache, step)
    assert not any(memory.any() for pair in cache.layers for memory in pair)


def a_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train(False).requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("gemma2", {"head_dim": 16, "sliding_window": 200, "attn_logit_softcapping": 3.0}),
    ],
)
def test_models_pass_the_load_time_tests_with_our_kernel(
    kind: str, more: dict[str, Any], interpreted_kernels: Any
) -> None:
    model = a_model(a_config(kind, **more))
    layers = attention_layers(model, max_model_len=512)
    path = TritonPath(interpreted_kernels, num_processors=8)
    expected = reference(model, max_model_len=512)
    shapes = [layer.shape for layer in layers]
    assert check(model, shapes, expected, max_model_len=512, path=path) <= expected.tolerance
    check_windows(kind, layers, max_model_len=512, dtype=torch.float32, device=CPU, path=path)


def test_a_model_too_large_for_the_device_is_told_with_the_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 24 * 2**30))
    model = torch.nn.Linear(2**10, 2**20, bias=False, dtype=torch.bfloat16, device="meta")
    with (
        pytest.raises(
            BadInput,
            match=r"weights are 2\.0 GiB .* widens them to 4\.0 GiB; the device has 24\.0 GiB, "
            r"of which 3\.0 GiB are free",
        ),
        out_of_memory_told(model, torch.device("cuda")),  # type: ignore[arg-type]
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB")
    with pytest.raises(KeyError), out_of_memory_told(model, CPU):  # type: ignore[arg-type]
        raise KeyError("others pass")


def test_what_torch_keeps_for_later_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    free, kept = 5, 3

    def empty() -> None:
        nonlocal free, kept
        free, kept = free + kept, 0

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 20))
    assert hardware.used_bytes(torch.device("cuda")) == 12


def test_a_kernel_that_cannot_be_run_gives_way_to_torchs(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    class Broken:
        name, block_size = "broken", 16

        def attend(self, *args: Any, **named: Any) -> torch.Tensor:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(proved, "choose_path", lambda asked, **_: Broken())
    folder, spec = a_folder(a_config()), a_model_spec()
    engine = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000)
    with caplog.at_level(logging.WARNING):
        runner = load.load_runner(folder, model=spec, engine=engine)
    assert runner.facts.attention == "torch"
    assert "the broken one does not hold here" in caplog.text
    assert "Failed to find C compiler" in caplog.text
    with pytest.raises(BadInput, match="Failed to find C compiler"):
        load.load_runner(folder, model=spec, engine=replace(engine, attention="compiled"))
