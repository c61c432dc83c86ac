"""Tiny random models of many families, and a driver that makes ragged batches of requests."""

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sloserve.engine.clock import VirtualClock
from sloserve.engine.events import Broken, Chunk, Event, Generate
from sloserve.engine.loop import Engine
from sloserve.engine.runner import Runner, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.engine.tokenizer import ByteTokenizer
from sloserve.model.batch import Batch
from sloserve.model.load import load_runner
from sloserve.model.runner import TorchRunner
from sloserve.perf import StepModel
from sloserve.perf.correction import OnlineCorrection
from sloserve.planner import Limits
from sloserve.planner.lengths import LengthLaw
from sloserve.planner.policies import make_policy
from sloserve.scheduler import Scheduler
from sloserve.slo import OnInfeasible, Promise, Stage
from sloserve.slo.service import EngineSpec, ModelSpec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(slots=True)
class Talk:
    """One request of a driver: joins at a step, grows by what is sampled."""

    prompt: list[int]
    num_output: int
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0))
    joins: int = 0
    leaves: int | None = None  # is cancelled then, if it is still there
    salt: str = ""
    adapter: str = ""
    outcomes: list[Sampled] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        """The tokens that came out."""
        return [s.token_id for s in self.outcomes if s.token_id is not None]


@dataclass(slots=True)
class _Seat:
    talk: Talk
    key: int
    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


class Driver:
    """
    Runs talks through a runner: prefill in chunks of one size beside decodes, pages from a
    shuffled pool, requests that join later.
    """

    def __init__(self, runner: Runner, *, chunk: int = 7, seed: int = 0) -> None:
        self.runner = runner
        self.chunk = chunk
        self._free = list(range(runner.facts.num_blocks))
        random.Random(seed).shuffle(self._free)
        self._next_key = 0

    def run(self, *talks: Talk) -> None:
        """Until every talk has its tokens."""
        step, waiting, seats = 0, list(talks), list[_Seat]()
        while waiting or seats:
            for talk in [t for t in waiting if t.joins <= step]:
                waiting.remove(talk)
                self._next_key += 1
                seats.append(_Seat(talk, self._next_key, list(talk.prompt)))
            rows = [self._row(seat) for seat in seats]
            for seat, row, sampled in zip(list(seats), rows, self.runner.step(rows), strict=True):
                seat.computed += row.count
                if row.sample or sampled.prompt:
                    seat.talk.outcomes.append(sampled)
                if sampled.token_id is not None:
                    seat.tokens.append(sampled.token_id)
                if len(seat.talk.output) >= seat.talk.num_output:
                    self._free += seat.blocks
                    self.runner.forget(seat.key)
                    seats.remove(seat)
            step += 1

    def _row(self, seat: _Seat) -> StepRow:
        count = min(self.chunk, len(seat.tokens) - seat.computed)
        while len(seat.blocks) * self.runner.facts.block_size < seat.computed + count:
            seat.blocks.append(self._free.pop())
        return StepRow(
            request_id=seat.key,
            tokens=seat.tokens,
            num_prompt=len(seat.talk.prompt),
            start=seat.computed,
            count=count,
            block_table=seat.blocks,
            sample=seat.computed + count == len(seat.tokens),
            sampling=seat.talk.sampling,
            adapter=seat.talk.adapter,
        )


@pytest.fixture(scope="module")
def interpreted_kernels() -> Iterator[ModuleType]:
    """
    Our Triton kernels as Triton's interpreter runs them, on CPU.

    Triton interprets what is imported while TRITON_INTERPRET is set, its own library included: it
    is imported anew for the tests of a module. Its interpreter multiplies bfloat16 as if the bits
    were whole numbers; here the factors are widened first.
    """
    if find_spec("triton") is None:
        pytest.skip("needs triton, which is for Linux: pip install 'sloserve[kernels]'")
    before = _without_triton()
    spec = find_spec("sloserve.model.triton_kernel")
    assert spec is not None
    assert spec.loader is not None
    kernels = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(kernels)
        _mend(import_module("triton.runtime.interpreter"))
        yield kernels
    _without_triton()
    sys.modules.update(before)


def _without_triton() -> dict[str, ModuleType]:
    """Take triton's Python modules out of what is imported; those that were there."""
    names = [n for n in sys.modules if n.partition(".")[0] == "triton" and "._C" not in n]
    return {name: sys.modules.pop(name) for name in names}


def _mend(interpreter: Any) -> None:
    plain, types = interpreter.InterpreterBuilder.create_dot, interpreter.tl

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != types.bfloat16:
            return handle
        wide = interpreter._convert_float(handle.data, types.bfloat16, types.float32, None)
        return type(handle)(wide.view(np.float32).reshape(handle.data.shape), types.float32)

    def create_dot(builder: Any, a: Any, b: Any, *more: Any) -> Any:
        return plain(builder, widened(a), widened(b), *more)

    interpreter.InterpreterBuilder.create_dot = create_dot


@pytest.fixture
def a_talk() -> type[Talk]:
    return Talk


@pytest.fixture
def a_driver() -> type[Driver]:
    return Driver


@dataclass(frozen=True, slots=True)
class World:
    """A plain model and a runner over the same weights."""

    plain: Any  # the transformers model
    runner: TorchRunner

    def greedy(self, prompt: Sequence[int], num_output: int) -> tuple[list[int], torch.Tensor]:
        """Tokens and logits `(num_output, vocabulary)` by transformers' own `generate`."""
        ids = torch.tensor([prompt])
        out = self.plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_output,
            max_new_tokens=num_output,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


BuildWorld = Callable[..., World]


def _weights(config: PreTrainedConfig, folder: Path, dtype: torch.dtype) -> Path:
    """A model with random weights large enough that every layer matters, saved in `folder`."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.5 if "embed" in name else 0.12)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def weights() -> Callable[..., Path]:
    """Random weights of a configuration, saved in a folder."""

    def save(config: PreTrainedConfig, folder: Path) -> Path:
        return _weights(config, folder, torch.float32)

    return save


@pytest.fixture
def a_folder(tmp_path: Path) -> Callable[..., Path]:
    """Random weights of a configuration, saved as a checkpoint."""

    def build(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32) -> Path:
        return _weights(config, tmp_path / "model", dtype)

    return build


@pytest.fixture
def a_model_spec() -> Callable[..., ModelSpec]:
    def build(*, max_model_len: int | None = None) -> ModelSpec:
        return ModelSpec(source="file:///model", served_name="m", max_model_len=max_model_len)

    return build


def _world(
    config: PreTrainedConfig, folder: Path, *, dtype: str = "float32", attention: str = "auto"
) -> World:
    _weights(config, folder, torch.float32)
    runner = load_runner(
        folder,
        model=ModelSpec(source="file:///model", served_name="m", max_model_len=None),
        engine=EngineSpec(threads=1, dtype=dtype, kv_bytes=4_000_000, attention=attention),
    )
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    return World(plain, runner)


@pytest.fixture
def a_world(tmp_path: Path) -> BuildWorld:
    """Plain model and runner of a configuration, built anew."""

    def build(config: PreTrainedConfig, *, dtype: str = "float32") -> World:
        return _world(config, tmp_path / "model", dtype=dtype)

    return build


@pytest.fixture(scope="session")
def the_world(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    """Plain model and runner in float32, built once for each name and attention path."""
    built: dict[tuple[str, str], World] = {}

    def build(name: str, config: PreTrainedConfig, *, attention: str = "auto") -> World:
        if (name, attention) not in built:
            folder = tmp_path_factory.mktemp("family") / "model"
            built[name, attention] = _world(config, folder, attention=attention)
        return built[name, attention]

    return build


class Listening(TorchRunner):
    """
    A runner that keeps the logits of every token it samples. Its pool may be smaller than its
    cache, a step takes 10 virtual ms, and every page starts full of what others left behind.
    """

    def __init__(self, runner: TorchRunner, clock: VirtualClock, *, num_blocks: int) -> None:
        super().__init__(
            runner.model,
            cache=runner.cache,
            facts=replace(runner.facts, num_blocks=num_blocks),
            adapters=runner.adapters,
        )
        self.ranks = runner.ranks
        self.logits: dict[int, list[torch.Tensor]] = {}  # by request id, one row per token
        self.num_mixed = 0  # steps that held both a prefill chunk and a decode
        self.num_padded = 0  # steps that computed more tokens than they had
        self.num_computed_tokens = 0
        self._clock = clock
        for keys, values in self.cache.layers:
            keys.fill_(1e3)
            values.fill_(1e3)

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self._clock.sleep_until(self._clock.now_s() + 0.01)
        return super().step(rows)

    def _outcomes(
        self, rows: Sequence[StepRow], batch: Batch, logits: torch.Tensor
    ) -> list[Sampled]:
        self.num_mixed += 0 < batch.num_decodes < len(batch.contexts)
        self.num_padded += batch.input_ids.shape[1] > batch.slots.shape[0]
        self.num_computed_tokens += batch.slots.shape[0]
        for i, at in enumerate(batch.sampled):
            self.logits.setdefault(rows[at].request_id, []).append(logits[i].clone())
        return super()._outcomes(rows, batch, logits)


class Service:
    """
    The engine as it serves, over a real model: its loop, scheduler and prefix cache, first come
    first served, on virtual time. A pool too small for all requests makes them preempt.
    """

    def __init__(self, runner: TorchRunner, *, num_blocks: int, max_batch_tokens: int) -> None:
        clock = VirtualClock()
        self.runner = Listening(runner, clock, num_blocks=num_blocks)
        self.scheduler = Scheduler(
            make_policy("fcfs"),
            StepModel(w=0.01, a0=0.0, c1=0.0, a1=0.0, b=0.0, d=0.0),
            OnlineCorrection(),
            Limits(
                block_size=runner.facts.block_size,
                num_blocks=num_blocks,
                max_running=8,
                max_batch_tokens=max_batch_tokens,
            ),
            new_law=LengthLaw,
            classes=[],
            max_model_len=runner.facts.max_model_len,
        )
        self.num_cached: list[int] = []  # by talk, in order of arrival: what usage will tell
        self._tokens: dict[str, list[int]] = {}
        self._engine = Engine(
            self.scheduler, self.runner, ByteTokenizer(), clock=clock, emit=self._hear
        )
        self._clock = clock

    def run(self, *talks: Talk) -> list[tuple[list[int], torch.Tensor]]:
        """
        Tokens and logits `(num_output, vocabulary)` of each talk; `joins` and `leaves` count
        turns.
        """
        turn = 0
        while turn <= max(talk.joins for talk in talks) or self._engine.has_work:
            for number, talk in enumerate(talks):
                if talk.joins == turn:
                    self._add(str(number), talk)
                if talk.leaves == turn:
                    self._engine.cancel(str(number))
            self._engine.turn()
            self.scheduler.check_integrity()
            turn += 1
            assert turn < 1000, "it does not come to an end"
        by_arrival = sorted(range(len(talks)), key=lambda number: talks[number].joins)
        heard = {
            number: torch.stack(self.runner.logits.get(request_id, [torch.empty(0)]))
            for request_id, number in enumerate(by_arrival, 1)
        }
        return [(self._tokens[str(number)], heard[number]) for number in range(len(talks))]

    def _add(self, key: str, talk: Talk) -> None:
        sampling = replace(talk.sampling, max_tokens=talk.num_output, ignore_eos=True)
        promise = Promise(
            slo_class="any",
            ttft_s=1e6,
            stages=(Stage("decode", 1e6),),
            on_infeasible=OnInfeasible.DEGRADE,
        )
        self._tokens[key] = []
        self._engine.add(
            Generate(
                key=key,
                prompt=talk.prompt,
                sampling=sampling,
                promise=promise,
                arrival_s=self._clock.now_s(),
                cache_salt=talk.salt,
                adapter=talk.adapter,
            )
        )

    def _hear(self, events: list[tuple[str, Event]]) -> None:
        for key, event in events:
            assert not isinstance(event, Broken), event
            if isinstance(event, Chunk):
                if not self._tokens[key]:
                    self.num_cached.append(event.num_cached)
                self._tokens[key] += event.token_ids


@pytest.fixture
def a_service() -> type[Service]:
    return Service


def _varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    block_table: torch.Tensor,
) -> torch.Tensor:
    num_pages, page, kv_heads, _ = keys.shape
    num_tokens, heads, _ = query.shape
    assert causal
    assert page % 256 == 0
    assert query.stride(-1) == 1
    assert {t.dtype for t in (cu_seqlens_q, cu_seqlens_k, block_table)} == {torch.int32}
    assert block_table.shape[0] == len(cu_seqlens_q) - 1 == len(cu_seqlens_k) - 1
    torch._assert_async((cu_seqlens_q.diff() <= max_seqlen_q).all())
    torch._assert_async((cu_seqlens_k.diff() <= max_seqlen_k).all())
    torch._assert_async((block_table < num_pages).all())
    token = torch.arange(num_tokens, dtype=torch.int32)
    row = torch.searchsorted(cu_seqlens_q, token, right=True) - 1
    lengths = cu_seqlens_k.diff()[row]  # (tokens,)
    position = lengths - cu_seqlens_q[row + 1] + token  # the last query sees the last key
    at = torch.arange(block_table.shape[1] * page)
    seen = (at <= position[:, None]) & (at < lengths[:, None])
    if window_size[0] >= 0:
        seen &= at >= position[:, None] - window_size[0]
    if window_size[1] >= 0:
        seen &= at <= position[:, None] + window_size[1]
    own_keys, own_values = (
        memory[block_table.long()].flatten(1, 2)[row].repeat_interleave(heads // kv_heads, dim=2)
        for memory in (keys, values)
    )  # (tokens, keys, H, D)
    scores = torch.einsum("thd,tkhd->thk", query.float(), own_keys.float()) * softmax_scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("thk,tkhd->thd", weights, own_values.float()).to(query.dtype)


@pytest.fixture
def varlen() -> Callable[..., torch.Tensor]:
    """
    What flash-attn's documentation says of `flash_attn_varlen_func` with a block table, on CPU and
    in any dtype. Waits for nothing, as the real one.
    """
    return _varlen
