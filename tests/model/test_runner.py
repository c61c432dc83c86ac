"""What a step promises beyond greedy tokens: prompt logprobs, quiet prefills, clean ends."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.runner import Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model import hardware, proved
from sloserve.model.load import load_runner
from sloserve.model.sampler import describe
from sloserve.model.selftest import Mismatch, check
from sloserve.slo.service import EngineSpec

VOCABULARY = 64


def a_config() -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING["llama"]
    config: PreTrainedConfig = build(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
    )
    return config


def a_row(tokens: list[int], start: int, count: int, **changes: Any) -> StepRow:
    values: dict[str, Any] = {
        "request_id": 1,
        "tokens": tokens,
        "num_prompt": len(tokens),
        "start": start,
        "count": count,
        "block_table": [4, 2, 7],
        "sample": start + count == len(tokens),
        "sampling": SamplingParams(temperature=0),
    }
    return StepRow(**{**values, **changes})


def test_prompt_logprobs_equal_the_plain_models_over_chunks(
    a_world: Any, a_talk: Any, a_driver: Any
) -> None:
    world = a_world(a_config())
    prompt = [(7 * i) % 61 + 3 for i in range(20)]
    asked = SamplingParams(temperature=0, prompt_logprobs=2, logprobs=0)
    talk = a_talk(prompt, num_output=3, sampling=asked)
    other = a_talk(prompt[::-1], num_output=8, sampling=SamplingParams(prompt_logprobs=0))
    a_driver(world.runner, chunk=7).run(talk, other)
    told = [entry for outcome in talk.outcomes for entry in outcome.prompt]
    assert [entry.token_id for entry in told] == prompt[1:]  # nothing comes before the first
    with torch.inference_mode():
        expected = world.plain(torch.tensor([prompt])).logits[0].log_softmax(-1)
    for position, entry in enumerate(told):
        row = expected[position]
        assert abs(entry.logprob - float(row[entry.token_id])) < 1e-4
        assert [token for token, _ in entry.top] == row.topk(2).indices.tolist()
    assert [entry.token_id for o in other.outcomes for entry in o.prompt] == prompt[::-1][1:]
    assert talk.output == world.greedy(prompt, 3)[0]


def test_a_long_prompts_logprobs_are_widened_in_pieces(
    a_world: Any, a_talk: Any, a_driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloserve.model.runner.PROMPT_ROWS", 3)
    asked = SamplingParams(temperature=0, prompt_logprobs=1)
    prompt = [(7 * i) % 61 + 3 for i in range(20)]
    talk, widest = a_talk(prompt, num_output=1, sampling=asked), 0

    def watched(logprobs: torch.Tensor, *rest: Any) -> Any:
        nonlocal widest
        widest = max(widest, len(logprobs))
        return describe(logprobs, *rest)

    monkeypatch.setattr("sloserve.model.runner.describe", watched)
    world = a_world(a_config())
    a_driver(world.runner, chunk=20).run(talk)
    (pieces,) = [outcome.prompt for outcome in talk.outcomes if outcome.prompt]
    assert [entry.token_id for entry in pieces] == prompt[1:]
    assert widest == 3
    with torch.inference_mode():
        logits = world.plain(torch.tensor([prompt])).logits[0]
    for entry, row in zip(pieces, logits.log_softmax(-1), strict=False):
        assert abs(entry.logprob - float(row[entry.token_id])) < 1e-4


def test_a_step_that_samples_nothing_says_so_for_every_row(a_world: Any) -> None:
    runner = a_world(a_config()).runner
    tokens = list(range(3, 40))
    rows = [a_row(tokens, 0, 10), a_row(tokens, 0, 5, request_id=2, block_table=[0, 1, 3])]
    assert runner.step(rows) == [Sampled(), Sampled()]
    rows = [a_row(tokens, 10, 27), a_row(tokens, 5, 5, request_id=2, block_table=[0, 1, 3])]
    drawn, quiet = runner.step(rows)
    assert drawn.token_id is not None
    assert quiet == Sampled()
    assert 0 < runner.last_forward_s < 60


def test_a_step_leaves_other_blocks_alone(a_world: Any) -> None:
    runner = a_world(a_config()).runner
    runner.step([a_row(list(range(3, 23)), 0, 20)])
    for keys, values in runner.cache.layers:
        written = (keys.abs().sum((2, 3)) > 0) & (values.abs().sum((2, 3)) > 0)
        assert written[4].all()
        assert written[2].tolist() == [True] * 4 + [False] * 12
        others = [block for block in range(runner.facts.num_blocks) if block not in (4, 2)]
        assert not written[others].any()


def test_auto_is_bfloat16_where_the_cpu_computes_it(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(a_config())

    def dtype(native: bool) -> str:
        monkeypatch.setattr(hardware, "computes_bfloat16", lambda device: native)
        engine = EngineSpec(threads=1, kv_bytes=1_000_000)
        return load_runner(folder, model=a_model_spec(), engine=engine).facts.dtype

    assert dtype(True) == "bfloat16"
    assert dtype(False) == "float32"


def test_auto_falls_back_to_float32_where_bfloat16_does_not_hold(
    a_folder: Any, a_model_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(model: Any, *args: Any, **more: Any) -> float:
        if model.dtype is torch.bfloat16:
            raise Mismatch("too far off")
        return check(model, *args, **more)

    monkeypatch.setattr(hardware, "computes_bfloat16", lambda device: True)
    monkeypatch.setattr(proved, "check", picky)
    folder, spec = a_folder(a_config()), a_model_spec()
    engine = EngineSpec(threads=1, kv_bytes=1_000_000)
    assert load_runner(folder, model=spec, engine=engine).facts.dtype == "float32"
    asked = EngineSpec(threads=1, kv_bytes=1_000_000, dtype="bfloat16")
    with pytest.raises(BadInput, match="too far off"):
        load_runner(folder, model=spec, engine=asked)
