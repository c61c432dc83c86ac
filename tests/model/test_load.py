"""What loading refuses, and what it says; what it sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.errors import BadInput
from sloserve.model import linear
from sloserve.model.allocator import malloc_environment
from sloserve.model.gathered import Gathered
from sloserve.model.hardware import used_bytes
from sloserve.model.kv import KvCache, LayerShape, bytes_per_token, num_blocks_for
from sloserve.model.load import load_runner
from sloserve.model.selftest import Mismatch, check, reference
from sloserve.model.structure import attention_layers
from sloserve.model.terms import Unsupported
from sloserve.slo.service import EngineSpec

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=2_000_000)


def a_config(kind: str = "llama", **changes: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


def test_facts_tell_what_was_loaded(a_folder: Any, a_model_spec: Any) -> None:
    folder = a_folder(a_config(num_key_value_heads=2, head_dim=8))
    runner = load_runner(folder, model=a_model_spec(max_model_len=100), engine=ENGINE)
    facts = runner.facts
    assert (facts.name, facts.vocab_size, facts.max_model_len) == ("m", 64, 100)
    assert facts.eos_ids == (2,)
    assert facts.kv_bytes_per_token == 2 * 2 * (8 + 8) * 4  # layers, heads, K and V, float32
    assert facts.num_blocks == 2_000_000 // (256 * 16)
    assert (facts.dtype, facts.device) == ("float32", "cpu")
    assert "1 thread" in facts.hardware
    runner.close()


def test_phases_are_told(a_folder: Any, a_model_spec: Any) -> None:
    told: list[tuple[str, int, int]] = []
    folder = a_folder(a_config())
    load_runner(
        folder, model=a_model_spec(), engine=ENGINE, on_phase=lambda *phase: told.append(phase)
    )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert told[0] == ("loading weights", 0, size)
    assert told[1] == ("loading weights", size, size)
    assert [name for name, _, _ in told[2:]] == [
        "preparing attention",
        "testing the model",
        "allocating the KV cache",
    ]


@pytest.mark.parametrize("kind", ["falcon", "bloom", "mamba", "gptj"])
def test_families_with_an_attention_of_their_own_are_refused_by_name(
    kind: str, a_folder: Any, a_model_spec: Any
) -> None:
    folder = a_folder(a_config(kind))
    with pytest.raises(Unsupported, match=f"(?i){kind}"):
        load_runner(folder, model=a_model_spec(max_model_len=64), engine=ENGINE)


def test_layers_that_keep_other_state_are_refused_by_name(a_folder: Any, a_model_spec: Any) -> None:
    config = a_config(
        "jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    with pytest.raises(Unsupported, match=r"(?i)layers \[0\].*mamba"):
        load_runner(a_folder(config), model=a_model_spec(), engine=ENGINE)


def test_chunked_masks_are_refused_though_the_tokens_of_the_test_would_not_show_them() -> None:
    config = a_config(
        "llama4_text",
        max_position_embeddings=8192,
        head_dim=8,
        num_key_value_heads=2,
        attention_chunk_size=4096,
        num_local_experts=2,
        num_experts_per_tok=1,
        intermediate_size_mlp=32,
    )
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(Unsupported, match="mask is not causal"):
        attention_layers(model, max_model_len=8192)
    assert attention_layers(model, max_model_len=4096)  # no request reaches a second chunk


def test_a_long_rope_is_cut_where_its_factors_change(a_folder: Any, a_model_spec: Any) -> None:
    factors = [1.0 + i for i in range(4)]
    config = a_config(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 4,
            "long_factor": factors,
            "original_max_position_embeddings": 64,
        }
    )
    folder = a_folder(config)
    runner = load_runner(folder, model=a_model_spec(), engine=ENGINE)
    assert runner.facts.max_model_len == 64
    with pytest.raises(BadInput, match="longrope"):
        load_runner(folder, model=a_model_spec(max_model_len=65), engine=ENGINE)


LONG_ROPES = [
    {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [1.0 + i for i in range(4)],
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "dynamic", "factor": 4.0},
]


@pytest.mark.parametrize("kind", LONG_ROPES, ids=lambda kind: kind["rope_type"])
def test_a_rope_that_follows_the_longest_position_is_served_up_to_there_and_named_past_it(
    kind: dict[str, Any],
) -> None:
    config = a_config(rope_parameters={"rope_theta": 10000.0, **kind}, max_position_embeddings=64)
    plain = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    plain.train(False)
    shapes = [layer.shape for layer in attention_layers(plain, max_model_len=64)]
    expected = reference(plain, max_model_len=64)
    assert check(plain, shapes, expected, max_model_len=64, path=Gathered()) <= expected.tolerance
    with pytest.raises(Mismatch, match=kind["rope_type"]):
        check(plain, shapes, expected, max_model_len=256, path=Gathered())


def test_no_memory_for_the_kv_cache_is_told_with_the_arithmetic(
    a_folder: Any, a_model_spec: Any
) -> None:
    engine = EngineSpec(threads=1, dtype="float32", kv_bytes=100_000)
    with pytest.raises(BadInput) as raised:
        load_runner(a_folder(a_config()), model=a_model_spec(), engine=engine)
    text = raised.value.message
    assert "no memory for the KV cache" in text
    assert "256 tokens needs 16 blocks x 16 tokens x 512 bytes = 128.0 KiB" in text
    assert "97.7 KiB (engine.kvCache.size)" in text


def test_a_memory_fraction_below_what_is_in_use_is_told(a_folder: Any, a_model_spec: Any) -> None:
    engine = EngineSpec(threads=1, dtype="float32", kv_memory_fraction=0.0001)
    with pytest.raises(BadInput, match=r"memoryFraction 0.0001 x .* in use"):
        load_runner(a_folder(a_config()), model=a_model_spec(), engine=engine)


def test_the_cache_is_never_larger_than_all_running_requests_can_fill(
    a_folder: Any, a_model_spec: Any
) -> None:
    engine = EngineSpec(threads=1, dtype="float32", max_running=3)
    runner = load_runner(a_folder(a_config()), model=a_model_spec(), engine=engine)
    assert runner.facts.num_blocks == 3 * 256 // 16


def test_blocks_are_counted_in_whole_pages_over_all_layers() -> None:
    layers = [LayerShape(2, 64, 64), LayerShape(4, 32, 16)]
    assert bytes_per_token(layers, torch.bfloat16) == 2 * (2 * 128 + 4 * 48)
    num_blocks = num_blocks_for(
        1_000_000,
        layers=layers,
        dtype=torch.bfloat16,
        block_size=16,
        max_model_len=16,
        budget_note="",
    )
    assert num_blocks == 1_000_000 // (16 * 896)


def test_the_memory_of_the_cache_is_zero_and_taken_only_when_used() -> None:
    def resident() -> int:
        return used_bytes(torch.device("cpu"))

    before = resident()
    cache = KvCache(
        [LayerShape(2, 64, 64)],
        num_blocks=40_000,
        block_size=16,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        path=Gathered(),
    )
    size = 40_000 * 16 * bytes_per_token(cache.shapes, torch.bfloat16)
    assert size > 300_000_000
    assert resident() - before < size // 10
    keys, values = cache.layers[0]
    assert float(keys[[0, 39_999]].abs().sum() + values[[0, 39_999]].abs().sum()) == 0
    cache.release()


def test_memory_that_the_system_does_not_give_is_told() -> None:
    with pytest.raises(BadInput, match=r"no memory for the KV cache: .* could not be allocated"):
        KvCache(
            [LayerShape(64, 128, 128)],
            num_blocks=1 << 34,
            block_size=16,
            dtype=torch.float32,
            device=torch.device("cpu"),
            path=Gathered(),
        )


def test_requests_past_the_models_positions_are_refused(a_folder: Any, a_model_spec: Any) -> None:
    with pytest.raises(BadInput, match=r"257 is too long.*256 positions"):
        load_runner(a_folder(a_config()), model=a_model_spec(max_model_len=257), engine=ENGINE)


def test_folders_without_a_model_are_refused(tmp_path: Path, a_model_spec: Any) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(BadInput) as raised:
            load_runner(path, model=a_model_spec(), engine=ENGINE)
        return raised.value.message

    assert "is no folder" in refusal(tmp_path / "nothing")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "no *.safetensors" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not really")
    assert "can't be loaded" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA" in refusal(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(a_folder: Any, a_model_spec: Any) -> None:
    folder = a_folder(a_config())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks 1 .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_runner(folder, model=a_model_spec(), engine=ENGINE)


def test_cuda_without_a_gpu_is_told(a_folder: Any, a_model_spec: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match="no GPU"):
        load_runner(a_folder(a_config()), model=a_model_spec(), engine=EngineSpec(device="cuda"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_linears_compute_the_same(dtype: torch.dtype) -> None:
    if not linear.can_pack(dtype):
        pytest.skip(f"oneDNN does not pack {dtype} here")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 80), nn.Sequential(nn.ReLU(), nn.Linear(80, 8, bias=False)))
    plain.to(dtype).requires_grad_(False)
    x = torch.randn(1, 37, 48, dtype=dtype)
    expected = plain(x)
    assert linear.pack_linears(plain) == 2
    with torch.inference_mode():
        assert torch.allclose(plain(x), expected, atol=1e-5 if dtype is torch.float32 else 2e-2)


def test_without_the_private_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(nn.Module):
        def __init__(self, *_: object) -> None:
            raise AttributeError("no such operator")

    monkeypatch.setattr(linear, "PackedLinear", Gone)
    assert not linear.can_pack(torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_the_malloc_settings_keep_freed_memory_in_the_process() -> None:
    """A buffer of 64 MiB is faulted in anew every time by default, and once with the settings."""
    code = (
        "import ctypes, resource\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.malloc.argtypes = [ctypes.c_size_t]\n"
        "libc.free.argtypes = [ctypes.c_void_p]\n"
        "for _ in range(4):\n"
        "    p = libc.malloc(64 << 20); ctypes.memset(p, 1, 64 << 20); libc.free(p)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )

    def faults(extra: dict[str, str]) -> int:
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **extra}, capture_output=True, check=True
        )
        return int(done.stdout)

    settings = malloc_environment()
    if not settings:
        pytest.skip("libc is not glibc")
    assert faults(settings) < faults({}) / 2
