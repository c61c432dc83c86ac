"""Answers of real models with drafts: the same text, whoever wrote the drafts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.ngram import NgramDrafter
from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput
from sloserve.model.drafting import CATCH_UP_TOKENS, DraftModel
from sloserve.model.gathered import Gathered
from sloserve.model.kv import KvCache
from sloserve.model.load import load_model
from sloserve.model.profile import QUICK, measure_samples, shapes
from sloserve.model.sources import resolve_source
from sloserve.model.structure import attention_layers
from sloserve.scheduler import RunnerDrafts, Speculating
from sloserve.slo.service import EngineSpec, ModelSpec

GREEDY = SamplingParams(temperature=0.0)


def config_of(kind: str, **changes: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**changes)
    return config


def llama(num_layers: int = 3, **changes: Any) -> PreTrainedConfig:
    sizes = {
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config_of("llama", **{**sizes, **changes})


def talks_of(a_talk: Any, sampling: SamplingParams = GREEDY) -> list[Any]:
    """Six prompts, four of which repeat themselves; they join one after the other."""
    prompts = [
        [5 + i % 7 for i in range(23)],
        [9, 4, 9, 4, 9, 4, 9],
        list(range(20, 45)),
        [3 + (i * i) % 11 for i in range(40)],
        [7] * 5,
        [60 + i % 4 for i in range(31)],
    ]
    return [
        a_talk(
            prompt=list(prompt),
            num_output=24 + 3 * number,
            joins=2 * number,
            sampling=replace(sampling, seed=number),
        )
        for number, prompt in enumerate(prompts)
    ]


def answers(
    a_service: Any,
    runner: Any,
    talks: Sequence[Any],
    speculating: Speculating | None,
    *,
    num_blocks: int = 60,
    drafter: DraftModel | None = None,
) -> tuple[list[list[int]], Any]:
    service = a_service(runner, num_blocks=num_blocks, max_batch_tokens=48)
    service.scheduler.speculating = speculating
    service.runner.drafter = drafter
    tokens = [told for told, _ in service.run(*talks)]
    assert service.scheduler.blocks.num_free == num_blocks
    return tokens, service.scheduler.counters


def a_drafter(world: Any, config: PreTrainedConfig, runner: Any) -> DraftModel:
    """A draft model over the blocks of `runner`."""
    shapes = [layer.shape for layer in attention_layers(world.plain, max_model_len=512)]
    cache = KvCache(
        shapes,
        num_blocks=runner.cache.num_blocks,
        block_size=runner.cache.block_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
        path=Gathered(),
    )
    for keys, values in cache.layers:  # whatever others left behind
        keys.fill_(1e3)
        values.fill_(1e3)
    model = world.runner.model
    return DraftModel(model, cache=cache, vocab_size=128, max_len=512, entropy=1)


GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
FAMILIES = {
    "llama": llama(),
    "gemma2": config_of(
        "gemma2",
        **{**llama().to_dict(), "model_type": "gemma2", "head_dim": 8, "sliding_window": 8},
    ),
    "gpt2": config_of("gpt2", eos_token_id=2, **GPT2),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most", [1, 4, None])
def test_greedy_text_is_the_same_with_drafts_out_of_the_text(
    family: str, most: int | None, the_world: Any, a_service: Any, a_talk: Any
) -> None:
    runner = the_world(f"drafted {family}", FAMILIES[family]).runner
    plain, _ = answers(a_service, runner, talks_of(a_talk), None)
    speculating = Speculating(NgramDrafter(), max_draft_tokens=6, fixed=most)
    drafted, counters = answers(a_service, runner, talks_of(a_talk), speculating)
    assert drafted == plain
    assert counters.accepted_drafts > 0


@pytest.mark.parametrize("num_blocks", [60, 14])
def test_preempted_requests_say_the_same_with_drafts(
    num_blocks: int, the_world: Any, a_service: Any, a_talk: Any
) -> None:
    runner = the_world("drafted llama", FAMILIES["llama"]).runner
    plain, _ = answers(a_service, runner, talks_of(a_talk), None)
    speculating = Speculating(NgramDrafter(), fixed=5)
    drafted, counters = answers(
        a_service, runner, talks_of(a_talk), speculating, num_blocks=num_blocks
    )
    assert drafted == plain
    assert (counters.num_preemptions > 0) == (num_blocks < 20)
    assert counters.accepted_drafts > 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_seeded_text_is_the_same_with_and_without_drafts(
    temperature: float, the_world: Any, a_service: Any, a_talk: Any
) -> None:
    runner = the_world("drafted llama", FAMILIES["llama"]).runner
    warm = SamplingParams(temperature=temperature, top_p=0.9, frequency_penalty=0.2)
    plain, _ = answers(a_service, runner, talks_of(a_talk, warm), None)
    speculating = Speculating(NgramDrafter(), fixed=4)
    drafted, counters = answers(a_service, runner, talks_of(a_talk, warm), speculating)
    assert drafted == plain
    assert counters.accepted_drafts + counters.rejected_drafts > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_blocks", [60, 14])
def test_a_draft_model_changes_no_text(
    temperature: float, num_blocks: int, the_world: Any, a_service: Any, a_talk: Any
) -> None:
    runner = the_world("drafted llama", FAMILIES["llama"]).runner
    small = llama(1)
    drafter = a_drafter(the_world("drafting", small), small, runner)
    sampling = SamplingParams(temperature=temperature)
    plain, _ = answers(a_service, runner, talks_of(a_talk, sampling), None)
    drafted, counters = answers(
        a_service,
        runner,
        talks_of(a_talk, sampling),
        Speculating(RunnerDrafts(), fixed=3),
        num_blocks=num_blocks,
        drafter=drafter,
    )
    assert drafted == plain
    assert counters.accepted_drafts + counters.rejected_drafts > 100
    assert not drafter._computed


@pytest.mark.parametrize("num_blocks", [60, 14])
def test_a_model_that_drafts_for_itself_is_always_right(
    num_blocks: int, the_world: Any, a_service: Any, a_talk: Any
) -> None:
    """Its own keys and values are in order, then: catching up, refusals, preemptions."""
    world = the_world("drafted llama", FAMILIES["llama"])
    drafter = a_drafter(world, llama(), world.runner)
    plain, _ = answers(a_service, world.runner, talks_of(a_talk), None)
    drafted, counters = answers(
        a_service,
        world.runner,
        talks_of(a_talk),
        Speculating(RunnerDrafts(), fixed=4),
        num_blocks=num_blocks,
        drafter=drafter,
    )
    assert drafted == plain
    assert counters.rejected_drafts <= 2  # where the two best are all but equal
    assert counters.accepted_drafts > 100


def test_drawn_drafts_come_with_what_they_were_drawn_from(the_world: Any) -> None:
    world = the_world("drafted llama", FAMILIES["llama"])
    drafter = a_drafter(world, llama(), world.runner)
    rows = [
        StepRow(
            request_id=key,
            tokens=[5, 6, 7, 8 + key],
            num_prompt=3,
            start=3,
            count=1,
            block_table=[key],
            sample=True,
            sampling=sampling,
            num_drafts=num,
        )
        for key, (sampling, num) in enumerate(
            [
                (SamplingParams(temperature=1.0, top_k=5), 3),
                (SamplingParams(temperature=0.0), 2),
                (SamplingParams(temperature=1.0, seed=4), 1),
                (SamplingParams(temperature=1.0), 0),
            ]
        )
    ]
    filled, weights = drafter.fill(rows)
    assert [len(row.drafts) for row in filled] == [3, 2, 1, 0]
    assert list(weights) == [0]
    assert weights[0].shape == (3, 128)
    assert torch.allclose(weights[0].sum(-1), torch.ones(3))
    for token, weight in zip(filled[0].drafts, weights[0], strict=True):
        assert weight[token] > 0
        assert int((weight > 0).sum()) == 5


def test_a_long_prompt_is_caught_up_with_beside_several_steps(the_world: Any) -> None:
    world = the_world("drafted llama", FAMILIES["llama"])
    drafter = a_drafter(world, llama(), world.runner)
    drafter._max_len = 4 * CATCH_UP_TOKENS
    tokens = [3 + i % 90 for i in range(2 * CATCH_UP_TOKENS + 5)]
    num_blocks = len(tokens) // world.runner.cache.block_size + 2
    row = StepRow(
        request_id=1,
        tokens=tokens,
        num_prompt=len(tokens) - 1,
        start=len(tokens) - 1,
        count=1,
        block_table=list(range(num_blocks)),
        sample=True,
        sampling=GREEDY,
        num_drafts=2,
    )
    found = [len(drafter.fill([row])[0][0].drafts) for _ in range(4)]
    assert found == [0, 0, 2, 2]


def test_a_request_that_comes_back_with_fewer_blocks_is_not_computed_anew(the_world: Any) -> None:
    world = the_world("drafted llama", FAMILIES["llama"])
    drafter = a_drafter(world, llama(), world.runner)
    drafter._max_len = 4 * CATCH_UP_TOKENS
    tokens = [3 + i % 90 for i in range(CATCH_UP_TOKENS + 14)]
    last = len(tokens) - 1
    blocks = list(range(last // world.runner.cache.block_size + 2))  # the last one for drafts
    row = StepRow(1, tokens, last, last, 1, blocks, True, GREEDY, num_drafts=4)
    assert [len(drafter.fill([row])[0][0].drafts) for _ in range(2)] == [0, 4]
    again = replace(row, block_table=blocks[:-1], num_drafts=1)
    assert len(drafter.fill([again])[0][0].drafts) == 1


def test_a_draft_model_is_loaded_beside_the_large_one_and_shares_its_memory() -> None:
    tiny = resolve_source("builtin://tiny")
    runner, _ = load_model(
        tiny,
        model=ModelSpec(source="builtin://tiny", served_name="tiny", max_model_len=512),
        engine=EngineSpec(threads=1, kv_bytes=40_000_000, max_running=4, dtype="float32"),
        drafter=tiny,
    )
    assert runner.drafter is not None
    assert runner.drafter.cache.num_blocks == runner.cache.num_blocks
    one = 2 * sum(s.num_kv_heads * (s.key_size + s.value_size) for s in runner.cache.shapes)
    assert runner.facts.kv_bytes_per_token == 4 * one
    drafted = [shape for shape in shapes(QUICK, runner.facts, drafts=(1, 4)) if shape.drafts]
    assert len(drafted) == 6
    grid = replace(QUICK, widths=(1, 2, 4), contexts=(16, 64), chunks=(8, 32), priors=(0,))
    grid = replace(grid, repeats=1, budget_s=20.0)
    samples = measure_samples(runner, grid=grid, sampling=GREEDY)
    assert {sample.drafts for sample in samples} == {0, 1, 4}
    runner.close()


def test_a_draft_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = tmp_path / "other"
    llama(1).save_pretrained(other)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=words).save_pretrained(other)
    with pytest.raises(BadInput, match="another tokenizer"):
        load_model(
            resolve_source("builtin://tiny"),
            model=ModelSpec(source="builtin://tiny", served_name="tiny"),
            engine=EngineSpec(threads=1, kv_bytes=40_000_000),
            drafter=other,
        )
