"""What only a GPU can show: `pytest -m gpu`. Kernels, graphs, draws and memory on the device."""

import random
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model import hardware
from sloserve.model.batch import build_batch
from sloserve.model.choice import choose_path
from sloserve.model.cuda_runner import CudaRunner
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache, LayerShape, bytes_per_token
from sloserve.model.load import load_runner
from sloserve.model.path import AttentionPath
from sloserve.model.runner import forward
from sloserve.model.sampler import Sampler
from sloserve.model.terms import Terms
from sloserve.slo.service import EngineSpec

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device: run `pytest -m gpu` where there is one",
                allow_module_level=True)  # fmt: skip

pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GREEDY = SamplingParams(temperature=0.0)
RAGGED = [(0, 1), (255, 1), (700, 1), (5000, 1), (0, 9), (250, 20), (600, 200), (64, 4)]
CASES = [
    # heads, kv heads, head size, window, softcap, sinks
    (32, 8, 128, None, None, False),
    (8, 8, 64, None, None, False),
    (8, 1, 256, None, None, False),
    (6, 2, 80, None, None, False),
    (4, 2, 32, 100, None, False),
    (16, 8, 256, 300, 50.0, False),
    (64, 8, 64, 128, None, True),
]


def a_config(kind: str = "llama", **more: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=2,
        pad_token_id=0,
        **more,
    )
    return config


def a_row(context: int, count: int, table: list[int], **changes: Any) -> StepRow:
    source = random.Random(context)
    values: dict[str, Any] = {
        "request_id": table[0],
        "tokens": [source.randrange(3, 512) for _ in range(context + count)],
        "num_prompt": 1,
        "start": context,
        "count": count,
        "block_table": table,
        "sample": True,
        "sampling": GREEDY,
    }
    return StepRow(**{**values, **changes})


@pytest.mark.parametrize("name", ["triton", "flash-attn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "size", "window", "softcap", "sinks"), CASES)
def test_every_path_attends_as_torchs_kernels_do_in_float32_on_the_cpu(
    name: str,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    size: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
) -> None:
    torch.manual_seed(3)
    terms = Terms(size**-0.5, window, softcap, torch.randn(heads) if sinks else None)
    shape = LayerShape(kv_heads, size, size)
    if name == "flash-attn" and find_spec("flash_attn") is None:
        pytest.skip("needs flash-attn, which has no wheels: pip install flash-attn builds it")
    try:
        path = choose_path(name, device=GPU, dtype=dtype, layers=[shape], terms=[terms])
    except BadInput as error:
        pytest.skip(error.message)
    page = path.block_size
    pool = list(range(sum(-(-(c + n) // page) for c, n in RAGGED)))
    num_blocks = len(pool) + 1
    random.Random(4).shuffle(pool)
    rows = [a_row(c, n, [pool.pop() for _ in range(-(-(c + n) // page))]) for c, n in RAGGED]
    pages = [torch.randn(num_blocks, page, kv_heads, size).to(dtype) for _ in range(2)]
    num = build_batch(rows, block_size=page, device=CPU).input_ids.shape[1]
    given = [torch.randn(num, n, size).to(dtype) for n in (heads, kv_heads, kv_heads)]

    def attended(path: AttentionPath, device: torch.device, dtype: torch.dtype) -> Tensor:
        cache = KvCache([shape], num_blocks=num_blocks, block_size=page, dtype=dtype,
                        device=device, path=path)  # fmt: skip
        for mine, filled in zip(cache.layers[0], pages, strict=True):
            mine.copy_(filled)
        here = terms
        if terms.sinks is not None:
            here = Terms(terms.scaling, window, softcap, terms.sinks.to(device))
        query, key, value = (t.to(device, dtype).transpose(0, 1) for t in given)
        batch = build_batch(rows, block_size=page, device=device)
        with torch.inference_mode():
            out = path.attend(0, query, key, value, batch=batch, cache=cache, terms=here)
        return out.float().cpu()

    expected = attended(Gathered(), CPU, torch.float32)
    allowed = 1e-4 if dtype is torch.float32 else 3e-2
    assert (attended(path, GPU, dtype) - expected).abs().max() < allowed
    assert (attended(Gathered(), GPU, dtype) - expected).abs().max() < allowed


@pytest.fixture
def a_runner(a_folder: Any, a_model_spec: Any) -> Any:
    """A loaded model on the GPU, and its plain twin on the CPU."""
    opened: list[CudaRunner] = []

    def build(config: PreTrainedConfig | None = None, **engine: Any) -> tuple[CudaRunner, Any]:
        folder = a_folder(config or a_config())
        given = {"dtype": "float32", "kv_bytes": 50_000_000, **engine}
        runner = load_runner(
            folder, model=a_model_spec(), engine=EngineSpec(device="cuda", **given)
        )
        assert isinstance(runner, CudaRunner)
        opened.append(runner)
        return runner, AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )

    yield build
    for runner in opened:
        runner.close()


@pytest.mark.parametrize("asked", ["auto", "triton", "torch"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("qwen3", {"head_dim": 32}),
        ("gemma2", {"head_dim": 32, "sliding_window": 16, "attn_logit_softcapping": 5.0}),
    ],
)
def test_answers_are_those_of_plain_generate(
    asked: str, kind: str, more: dict[str, Any], a_runner: Any, a_talk: Any, a_driver: Any
) -> None:
    runner, plain = a_runner(a_config(kind, **more), attention=asked)
    assert bool(runner.graphs and runner.graphs.sizes) == (asked != "torch")
    source = random.Random(6)
    talks = [
        a_talk([source.randrange(3, 512) for _ in range(n)], num_output=24, joins=joins)
        for n, joins in ((5, 0), (90, 2), (33, 4), (400, 6), (1, 9))
    ]
    a_driver(runner, chunk=64).run(*talks)
    for talk in talks:
        ids = torch.tensor([talk.prompt])
        out = plain.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=24,
            max_new_tokens=24, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert talk.output == out[0, len(talk.prompt) :].tolist()


@pytest.mark.parametrize("num", [1, 3, 8, 21])
def test_graphs_say_what_the_model_says_and_wait_for_nothing(num: int, a_runner: Any) -> None:
    runner, _ = a_runner()
    for memory in (memory for pair in runner.cache.layers for memory in pair):
        memory.normal_()
    rows = [a_row(37 * i % 800, 1, list(range(60 * i, 60 * i + 60))) for i in range(num)]
    with torch.inference_mode():
        batch = build_batch(rows, block_size=runner.facts.block_size, device=GPU)
        expected = forward(runner.model, batch, runner.cache).clone()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = runner.graphs.step(rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert found is not None
    assert torch.allclose(found[1], expected, atol=1e-3)


def waits(runner: CudaRunner, rows: list[StepRow]) -> int:
    """How often a step waited for the device before its end."""
    runner.step(rows)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runner.step(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(seed=1), SamplingParams(top_p=0.9, top_k=40, seed=2)]
)
def test_a_decode_step_waits_once_for_its_tokens(sampling: SamplingParams, a_runner: Any) -> None:
    runner, _ = a_runner()
    rows = [a_row(30 + i, 1, [4 * i, 4 * i + 1, 4 * i + 2], sampling=sampling) for i in range(5)]
    assert waits(runner, rows) == 1


def test_seeds_draw_the_same_tokens_as_on_the_cpu() -> None:
    torch.manual_seed(1)
    logits = torch.randn(32, 5000) * 4
    source = random.Random(1)
    rows = [
        a_row(5, 1, [i], sampling=SamplingParams(
            temperature=source.choice([0.0, 0.5, 1.0]), top_p=source.choice([1.0, 0.8]),
            top_k=source.choice([0, 50]), min_p=source.choice([0.0, 0.02]), seed=i,
            logprobs=source.choice([None, 3]), frequency_penalty=source.choice([0.0, 0.5]),
        ))
        for i in range(32)
    ]  # fmt: skip
    here, there = (
        Sampler(eos_ids=(2,), entropy=7).sample(logits.clone().to(device), rows)
        for device in (CPU, GPU)
    )
    assert [s.token_id for s in here] == [s.token_id for s in there]


def test_a_step_ends_when_the_device_is_done_with_it(a_runner: Any) -> None:
    runner, _ = a_runner()
    (nothing,) = runner.step([a_row(0, 500, list(range(40)), sample=False)])
    assert nothing.token_id is None
    assert torch.cuda.current_stream().query()  # nothing is under way
    assert runner.last_forward_s > 0


def test_memory_is_sized_from_the_fraction_and_kept_to(a_runner: Any) -> None:
    total, before = hardware.memory_bytes(GPU), hardware.used_bytes(GPU)
    fraction = before / total + 0.02
    runner, _ = a_runner(kv_bytes=None, kv_memory_fraction=fraction, max_running=4096)
    facts = runner.facts
    size = facts.num_blocks * facts.block_size * facts.kv_bytes_per_token
    assert facts.kv_bytes_per_token == bytes_per_token(runner.cache.shapes, torch.float32)
    most = 4096 * -(-1024 // facts.block_size)
    assert size <= 0.02 * total
    assert facts.num_blocks == most or size > 0.01 * total
    assert hardware.used_bytes(GPU) <= (fraction + 0.02) * total  # with what graphs take


def test_too_little_memory_is_told_with_the_arithmetic(a_runner: Any) -> None:
    with pytest.raises(BadInput, match=r"blocks x .* bytes = .* could not be allocated"):
        a_runner(kv_bytes=2 * hardware.memory_bytes(GPU), max_running=10**9)
