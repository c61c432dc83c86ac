"""Decode steps as graphs: run here by a graph that replays PyTorch's operators on CPU."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sloserve.engine.runner import StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.batch import Batch, build_batch
from sloserve.model.cuda_flash import FlashPath, varlen_of
from sloserve.model.cuda_graphs import DecodeGraphs, decode_numbers, graph_sizes
from sloserve.model.cuda_runner import GraphRunner
from sloserve.model.kv import KvCache
from sloserve.model.runner import forward

SIZES = (1, 2, 4, 8)
MAX_LEN = 600
GREEDY = SamplingParams(temperature=0.0)


def a_config(kind: str = "llama", **more: Any) -> PreTrainedConfig:
    build: Any = CONFIG_MAPPING[kind]
    config: PreTrainedConfig = build(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LEN,
        eos_token_id=2,
        **more,
    )
    return config


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes down every operator, its tensors and its result; refuses to wait for the device."""

    WAITING = (
        torch.ops.aten.item.default,
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WAITING:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self.taken.append((func, args, kwargs or {}, result))
        return result


class Replayed:
    """
    A graph on CPU, true in what matters: a replay runs the operators that the capture saw, on the
    same tensors, and leaves their results where those of the capture are. No Python runs again.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[Any, Any, Any, Any]] = []

    def capture(self, body: Callable[[], Tensor]) -> Tensor:
        body()
        with Operators() as operators:
            out = body()
        self._taken = operators.taken
        return out

    def replay(self) -> None:
        for func, args, kwargs, result in self._taken:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class World:
    """A small model, a cache full of what came before, and the graphs over both."""

    def __init__(self, runner: Any, path: Any, *, sizes: Sequence[int] = SIZES) -> None:
        self.model = runner.model
        self.cache = KvCache(
            runner.cache.shapes,
            num_blocks=28,
            block_size=256,
            dtype=torch.float32,
            device=torch.device("cpu"),
            path=path,
        )
        self.graphs = DecodeGraphs(
            self.model, self.cache, sizes=sizes, max_model_len=MAX_LEN, new_graph=Replayed
        )

    def fill(self) -> None:
        for memory in (memory for pair in self.cache.layers for memory in pair):
            memory.normal_()

    def rows(self, num: int, *, seed: int) -> list[StepRow]:
        source = random.Random(seed)
        pool = list(range(27))
        source.shuffle(pool)
        return [
            StepRow(
                request_id=i,
                tokens=[source.randrange(64) for _ in range(MAX_LEN)],
                num_prompt=1,
                start=source.choice([0, 3, 255, 256, 400, MAX_LEN - 1]),
                count=1,
                block_table=[pool.pop() for _ in range(3)],
                sample=True,
                sampling=GREEDY,
            )
            for i in range(num)
        ]

    def step(self, rows: Sequence[StepRow]) -> tuple[Batch, Tensor] | None:
        with torch.inference_mode():
            return self.graphs.step(rows)

    def plainly(self, rows: list[StepRow]) -> Tensor:
        batch = build_batch(rows, block_size=256, device=self.cache.device)
        with torch.inference_mode():
            return forward(self.model, batch, self.cache)


@pytest.fixture
def a_graph_world(the_world: Any, varlen: Any) -> Callable[..., World]:
    def build(config: PreTrainedConfig | None = None, *, path: Any = None, **more: Any) -> World:
        config = config or a_config()
        # on a GPU the layers are transformers' own, as they are here with torch's attention
        runner = the_world(f"graphs of {config.model_type}", config, attention="torch").runner
        return World(runner, path or FlashPath(varlen), **more)

    return build


def test_sizes_grow_by_sixteen_at_most_and_reach_every_step() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(5) == (1, 2, 4, 5)
    sizes = graph_sizes(4096)
    assert len(sizes) == 23
    assert sizes[-1] == 256
    for rows in range(1, 257):
        assert min(size for size in sizes if size >= rows) - rows <= 15
    for most in (1, 2, 3, 8, 60, 64, 250, 256):
        assert graph_sizes(most)[-1] == most
        assert len(set(graph_sizes(most))) == len(graph_sizes(most))


def test_a_step_is_padded_with_rows_that_see_nothing_and_write_to_a_page_of_nobody() -> None:
    def row(start: int, table: list[int]) -> StepRow:
        return StepRow(0, list(range(100, 200)), 1, start, 1, table, True, GREEDY)

    rows = [row(5, [9, 4]), row(2, [7, 3, 8])]
    numbers = decode_numbers(rows, size=4, block_size=4, scratch_block=50).tolist()
    assert numbers[:4] == [105, 102, 0, 0]
    assert numbers[4:8] == [5, 2, 0, 0]
    assert numbers[8:12] == [17, 30, 200, 200]
    assert numbers[12:16] == [5, 2, -1, -1]
    assert numbers[16:21] == [0, 2, 3, 3, 3]
    assert numbers[21:] == [9, 4, 7]


@pytest.mark.parametrize("num", [1, 2, 3, 5, 8])
def test_graphs_say_what_the_model_says_however_many_rows(
    num: int, a_graph_world: Callable[..., World]
) -> None:
    world = a_graph_world()
    world.graphs.capture()
    assert world.graphs.sizes == SIZES
    assert not any(memory[:-1].any() for pair in world.cache.layers for memory in pair)
    world.fill()
    for seed in range(3):
        rows = world.rows(num, seed=seed)
        before = [memory.clone() for pair in world.cache.layers for memory in pair]
        expected = world.plainly(rows)
        after = [memory.clone() for pair in world.cache.layers for memory in pair]
        for pair, old in zip(
            world.cache.layers, zip(*[iter(before)] * 2, strict=True), strict=True
        ):
            for memory, filled in zip(pair, old, strict=True):
                memory.copy_(filled)
        found = world.step(rows)
        assert found is not None
        batch, logits = found
        assert batch.sampled == batch.first == list(range(num))
        assert torch.allclose(logits, expected, atol=1e-5)
        held = [memory for pair in world.cache.layers for memory in pair]
        for memory, right in zip(held, after, strict=True):
            assert torch.allclose(memory[:-1], right[:-1], atol=1e-5)  # the last is for padding


def test_only_the_rows_that_sample_get_logits(a_graph_world: Callable[..., World]) -> None:
    world = a_graph_world()
    world.graphs.capture()
    world.fill()
    rows = world.rows(5, seed=9)
    expected = world.plainly(rows)
    rows[1] = replace(rows[1], sample=False)
    rows[4] = replace(rows[4], sample=False)
    found = world.step(rows)
    assert found is not None
    batch, logits = found
    assert batch.sampled == [0, 2, 3]
    assert torch.allclose(logits, expected[[0, 2, 3]], atol=1e-5)


def test_drafts_are_rows_like_any_other(a_graph_world: Callable[..., World]) -> None:
    world = a_graph_world()
    world.graphs.capture()
    world.fill()
    rows = [
        replace(row, start=start, tokens=row.tokens[: start + 1], num_drafts=len(drafts),
                drafts=drafts, sample=start != 3)
        for row, start, drafts in zip(
            world.rows(4, seed=3), [254, 3, 8, 400], [[5, 6, 7], [], [9], []], strict=True
        )
    ]  # fmt: skip
    expected = world.plainly(rows)
    found = world.step(rows)
    assert found is not None
    batch, logits = found
    assert (batch.sampled, batch.first) == ([0, 2, 3], [0, 4, 5, 7])
    assert logits.shape[0] == 7  # each row that samples, followed by its drafts
    assert torch.allclose(logits, expected, atol=1e-5)
    more = [replace(rows[0], drafts=[1] * 8, num_drafts=8)]
    assert world.step(more) is None  # nine places are more than the largest


def test_other_steps_are_left_to_the_model(a_graph_world: Callable[..., World]) -> None:
    world = a_graph_world()
    rows = world.rows(9, seed=1)
    assert world.step(rows[:1]) is None  # nothing is captured yet
    world.graphs.capture()
    assert world.step(rows[:8]) is not None
    assert world.step(rows) is None  # more than the largest
    assert world.step([*rows[:2], replace(rows[2], start=0, count=2)]) is None
    asked = replace(GREEDY, prompt_logprobs=1)
    assert world.step([replace(rows[0], sampling=asked)]) is None


def test_a_model_that_waits_for_the_device_goes_without_graphs(
    a_graph_world: Callable[..., World],
    varlen: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def waiting(*args: Any, **named: Any) -> Tensor:
        named["max_seqlen_k"] = int(named["cu_seqlens_k"].diff().max())
        out: Tensor = varlen(*args, **named)
        return out

    world = a_graph_world(path=FlashPath(waiting))
    with caplog.at_level(logging.WARNING):
        world.graphs.capture()
    assert "without CUDA graphs: operation not permitted" in caplog.text
    assert world.graphs.sizes == ()
    assert world.step(world.rows(1, seed=1)) is None
    world.fill()
    assert torch.isfinite(world.plainly(world.rows(3, seed=1))).all()


def test_a_graph_that_has_frozen_what_changes_is_not_used(
    a_graph_world: Callable[..., World], varlen: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Frozen(FlashPath):
        """Keeps the tables of the step in which it was captured."""

        def attend(self, *args: Any, **named: Any) -> Tensor:
            batch = named["batch"]
            if batch.contexts == [MAX_LEN - 1] * 4:  # what the host knows in a graph
                batch.kept[self.name] = self.__dict__.setdefault("kept", varlen_of(batch))
            return super().attend(*args, **named)

    world = a_graph_world(path=Frozen(varlen), sizes=(4,))
    with caplog.at_level(logging.WARNING):
        world.graphs.capture()
    assert "a graph of 4 rows is off by" in caplog.text
    assert world.graphs.sizes == ()


def test_answers_are_the_same_with_graphs(
    the_world: Any, varlen: Any, a_talk: Any, a_driver: Any
) -> None:
    """Whole requests: prompts in chunks, joins, decodes with and without company."""
    plain = the_world("graphs of llama", a_config(), attention="torch")
    world = World(plain.runner, FlashPath(varlen))
    world.graphs.capture()
    replays = 0
    step = world.graphs.step

    def counting(rows: Sequence[StepRow]) -> Any:
        nonlocal replays
        found = step(rows)
        replays += found is not None
        return found

    world.graphs.step = counting  # type: ignore[method-assign]
    facts = replace(plain.runner.facts, block_size=256, num_blocks=27)
    runner = GraphRunner(world.model, cache=world.cache, facts=facts, graphs=world.graphs)
    source = random.Random(6)
    talks = [
        a_talk([source.randrange(3, 64) for _ in range(n)], num_output=12, joins=joins)
        for n, joins in ((5, 0), (30, 2), (11, 4), (270, 6), (1, 9))
    ]
    a_driver(runner, chunk=40).run(*talks)
    assert replays > 8
    for talk in talks:
        assert talk.output == plain.greedy(talk.prompt, 12)[0]
