"""Lean layers: they compute what transformers' do, stand where they can, and nowhere else."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from sloserve.model.compiler import NotCompiled
from sloserve.model.lean.attention import LeanAttention
from sloserve.model.lean.convert import make_lean
from sloserve.model.lean.kernels import GateCall, LayerKernels, NormCall, TurnCall, load_kernels
from sloserve.model.lean.mlp import LeanMlp
from sloserve.model.lean.norm import LeanNorm, ways_to_norm
from sloserve.model.load import load_runner, runner_over
from sloserve.model.profile import cache_folder
from sloserve.model.proved import NotLean
from sloserve.model.structure import attention_layers
from sloserve.slo.service import EngineSpec

DTYPES = (torch.float32, torch.bfloat16)
ENGINE = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = {"num_key_value_heads": 2}


def a_config(kind: str, **changes: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(**{**SIZES, **changes})
    return config


@pytest.fixture(scope="module")
def a_set_of_kernels() -> Callable[[torch.dtype], LayerKernels]:
    def load(dtype: torch.dtype) -> LayerKernels:
        try:
            return load_kernels(dtype, folder=cache_folder("kernels"))
        except NotCompiled as error:
            pytest.skip(str(error))

    return load


def close(found: Tensor, expected: Tensor, *, ulps: float = 2.0) -> bool:
    """Within so many units in the last place of the largest numbers."""
    unit = 2.0**-23 if found.dtype is torch.float32 else 2.0**-8
    error = (found.double() - expected.double()).abs()
    return bool((error <= ulps * unit * expected.double().abs().clamp_min(0.05)).all())


# --- kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 7), (3, 48), (5, 256), (700, 100)])
@pytest.mark.parametrize("round_first", [False, True])
def test_norms_are_right(
    dtype: torch.dtype,
    shape: tuple[int, int],
    round_first: bool,
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:
    torch.manual_seed(1)
    x = (torch.randn(*shape) * 3).to(dtype)
    weight = torch.randn(shape[1])
    out = torch.empty_like(x)
    call = NormCall(
        source=x.data_ptr(), to=out.data_ptr(), weight=weight.data_ptr(), rows=shape[0],
        size=shape[1], source_row=shape[1], epsilon=1e-5, round_first=round_first,
    )  # fmt: skip
    a_set_of_kernels(dtype).norm(call, x.numel())
    wide = x.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if round_first:
        normed = normed.to(dtype).double()
    # summing up takes a few roundings; a number that is rounded first may land beside
    assert close(out, normed * weight.double(), ulps=8 if dtype is torch.float32 else 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "turned"), [(8, 8), (64, 64), (96, 48), (16, 0)])
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_heads_are_turned_and_values_left_alone(
    dtype: torch.dtype,
    size: int,
    turned: int,
    tokens: int,
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:
    torch.manual_seed(2)
    both = torch.randn(tokens, (3 + 2 + 2) * size).to(dtype)  # queries, keys, values
    angles = torch.randn(tokens, max(turned, 1))
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    before = both.clone()
    call = TurnCall(
        heads=both.data_ptr(), cosine=cosine.data_ptr(), sine=sine.data_ptr(), tokens=tokens,
        token_stride=7 * size, num_queries=3, num_keys=2, size=size, turned=turned,
    )  # fmt: skip
    a_set_of_kernels(dtype).turn(call, both.numel())
    heads = before[:, : 5 * size].double().view(tokens, 5, size)
    expected = heads.clone()
    half = turned // 2
    a, b = heads[..., :half], heads[..., half:turned]
    c, s = cosine.double()[:, None], sine.double()[:, None]
    if turned:
        expected[..., :half] = a * c[..., :half] - b * s[..., :half]
        expected[..., half:turned] = b * c[..., half:] + a * s[..., half:]
    assert close(both[:, : 5 * size].view(tokens, 5, size), expected, ulps=64)
    assert torch.equal(both[:, 5 * size :], before[:, 5 * size :])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (3, 48), (40, 1024)])
def test_gates_are_right_for_numbers_of_any_size(
    dtype: torch.dtype,
    gelu: bool,
    shape: tuple[int, int],
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:
    torch.manual_seed(3)
    both = (torch.randn(shape[0], 2 * shape[1]) * 4).to(dtype)
    both[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -50.0])
    out = torch.empty(shape, dtype=dtype)
    call = GateCall(
        source=both.data_ptr(), to=out.data_ptr(), rows=shape[0], size=shape[1], gelu=gelu
    )
    a_set_of_kernels(dtype).gate(call, out.numel())
    gate, up = both.double().chunk(2, dim=-1)
    act = nn.functional.gelu(gate, approximate="tanh") if gelu else nn.functional.silu(gate)
    assert close(out, act * up, ulps=64 if dtype is torch.float32 else 2)


# --- what is replaced -----------------------------------------------------------------------------

NOTHING: dict[str, int] = {}
FOUND: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("llama", GQA, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("llama", {"attention_bias": True, "mlp_bias": True},
     {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("mistral", {**GQA, "sliding_window": 8}, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("qwen2", GQA, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("qwen3", {**GQA, "head_dim": 16}, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("gemma2", {**GQA, "head_dim": 16}, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 9}),
    ("gemma3_text", {**GQA, "head_dim": 16}, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 9}),
    ("phi3", GQA, {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("smollm3", {**GQA, "no_rope_layer_interval": 2},
     {"LeanAttention": 2, "LeanMlp": 2, "LeanNorm": 5}),
    ("mixtral", {**GQA, "num_local_experts": 4}, {"LeanAttention": 2, "LeanNorm": 5}),
    # norms over all heads at once, and pairs side by side: attention stays as it is
    ("olmo2", GQA, {"LeanMlp": 2, "LeanNorm": 9}),
    ("cohere", GQA, {"LeanMlp": 2}),
    ("gpt2", {}, NOTHING),
    ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}, NOTHING),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "expected"), FOUND, ids=lambda v: v if isinstance(v, str) else ""
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_replaced_in_each_family(
    kind: str,
    changes: dict[str, Any],
    expected: dict[str, int],
    dtype: torch.dtype,
    a_folder: Callable[..., Path],
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(a_folder(a_config(kind, **changes)), dtype=dtype)
    model.train(False).requires_grad_(False)
    layers = attention_layers(model, max_model_len=256)
    found = make_lean(model, layers, a_set_of_kernels(dtype), max_model_len=256)
    assert found == expected
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert {kind: num for kind, num in kinds.items() if kind.startswith("Lean")} == expected


class Bent(LlamaRMSNorm):
    """Almost an RMS norm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + 1e-3


class Squared(LlamaMLP):
    """A gated MLP with another gate."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.gate_proj(x).relu().square() * self.up_proj(x))
        return out


def test_modules_that_compute_something_else_stay(
    a_folder: Callable[..., Path], a_set_of_kernels: Callable[[torch.dtype], LayerKernels]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        a_folder(a_config("llama", **GQA)), dtype=torch.float32
    )
    model.train(False).requires_grad_(False)
    model.model.layers[0].mlp.__class__ = Squared
    model.model.layers[1].input_layernorm.__class__ = Bent
    attention = model.model.layers[1].self_attn
    attention.v_proj.register_forward_hook(lambda module, given, out: out * 1.01)
    layers = attention_layers(model, max_model_len=256)
    found = make_lean(model, layers, a_set_of_kernels(torch.float32), max_model_len=256)
    assert found == {"LeanAttention": 1, "LeanMlp": 1, "LeanNorm": 4}
    assert type(model.model.layers[0].mlp) is Squared
    assert type(model.model.layers[1].input_layernorm) is Bent
    assert model.model.layers[1].self_attn is attention


def test_a_module_that_is_called_twice_stays(
    a_folder: Callable[..., Path], a_set_of_kernels: Callable[[torch.dtype], LayerKernels]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        a_folder(a_config("llama", **GQA)), dtype=torch.float32
    )
    model.train(False).requires_grad_(False)
    shared = model.model.layers[0].mlp
    model.model.layers[1].mlp = shared
    layers = attention_layers(model, max_model_len=256)
    found = make_lean(model, layers, a_set_of_kernels(torch.float32), max_model_len=256)
    assert found == {"LeanAttention": 2, "LeanNorm": 5}
    assert model.model.layers[0].mlp is shared


def test_norms_with_more_than_a_weight_are_not_looked_at() -> None:
    assert list(ways_to_norm(nn.LayerNorm(8))) == []
    assert list(ways_to_norm(nn.Linear(8, 8, bias=False))) == []
    assert len(list(ways_to_norm(LlamaRMSNorm(8)))) == 3


# --- in a model that is loaded --------------------------------------------------------------------


def lean_modules(model: nn.Module) -> int:
    return sum(isinstance(m, (LeanAttention, LeanMlp, LeanNorm)) for m in model.modules())


def test_models_are_lean_with_the_compiled_kernel_and_plain_with_torchs(
    a_folder: Callable[..., Path], a_model_spec: Any,
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:  # fmt: skip
    a_set_of_kernels(torch.float32)  # or skipped
    folder = a_folder(a_config("llama", **GQA))
    for attention, num in (("auto", 9), ("compiled", 9), ("torch", 0)):
        engine = EngineSpec(threads=1, dtype="float32", kv_bytes=4_000_000, attention=attention)
        runner = load_runner(folder, model=a_model_spec(), engine=engine)
        assert lean_modules(runner.model) == num
        runner.close()


def test_a_model_that_fails_with_lean_layers_is_read_again_and_served_without(
    a_folder: Callable[..., Path], a_model_spec: Any, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:  # fmt: skip
    a_set_of_kernels(torch.float32)
    right: Any = LeanAttention.forward

    def wrong(self: LeanAttention, *args: Any, **given: Any) -> Any:
        out, none = right(self, *args, **given)
        return out * 1.05, none

    monkeypatch.setattr(LeanAttention, "forward", wrong)
    folder = a_folder(a_config("llama", **GQA))
    with caplog.at_level(logging.WARNING, logger="sloserve.model.load"):
        runner = load_runner(folder, model=a_model_spec(), engine=ENGINE)
    assert lean_modules(runner.model) == 0
    assert "lean layers do not hold here, taking transformers'" in caplog.text
    runner.close()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(NotLean, match="can't be served"):
        runner_over(plain, model=a_model_spec(), engine=ENGINE)


def test_a_replacement_that_raises_is_none(
    a_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    a_set_of_kernels: Callable[[torch.dtype], LayerKernels],
) -> None:  # fmt: skip
    def broken(self: LeanMlp, x: Tensor) -> Tensor:
        raise RuntimeError("no such layout")

    monkeypatch.setattr(LeanMlp, "forward", broken)
    model = AutoModelForCausalLM.from_pretrained(
        a_folder(a_config("llama", **GQA)), dtype=torch.float32
    )
    model.train(False).requires_grad_(False)
    layers = attention_layers(model, max_model_len=256)
    found = make_lean(model, layers, a_set_of_kernels(torch.float32), max_model_len=256)
    assert found == {"LeanAttention": 2, "LeanNorm": 5}
