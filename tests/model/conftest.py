"""Tiny random models of many families, and a driver that makes ragged batches of requests."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sloserve.engine.runner import Runner, Sampled, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.model.load import load_runner
from sloserve.model.runner import TorchRunner
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
    preempted: int = 0
    blocks: list[int] = field(default_factory=list)


class Driver:
    """
    Runs talks through a runner as a scheduler would: prefill in chunks beside decodes, pages
    from a shuffled pool, requests that join later, and preemption by recompute at given steps.
    """

    def __init__(
        self, runner: Runner, *, chunk: int = 7, preempt_every: int | None = None, seed: int = 0
    ) -> None:
        self.runner = runner
        self.chunk = chunk
        self.preempt_every = preempt_every
        self.num_mixed = 0  # steps that held both a prefill chunk and a decode
        self.num_preempted = 0
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
            if self.preempt_every and step % self.preempt_every == self.preempt_every - 1:
                self._preempt(seats)
            rows = [self._row(seat) for seat in seats]
            kinds = {row.count > 1 for row in rows}
            self.num_mixed += len(kinds) == 2
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

    def _preempt(self, seats: list[_Seat]) -> None:
        """The seat that was preempted least often drops its blocks; at most twice each."""
        seat = min(seats, key=lambda seat: seat.preempted)
        if seat.preempted < 2:
            self._free = seat.blocks + self._free
            seat.blocks, seat.computed = [], 0
            seat.preempted += 1
            self.num_preempted += 1

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
        )


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


@pytest.fixture
def a_world(a_folder: Callable[..., Path], a_model_spec: Callable[..., ModelSpec]) -> BuildWorld:
    """Plain model and runner of a configuration."""

    def build(
        config: PreTrainedConfig,
        *,
        max_model_len: int | None = None,
        kv_bytes: int = 4_000_000,
        dtype: str = "float32",
    ) -> World:
        folder = a_folder(config)
        runner = load_runner(
            folder,
            model=a_model_spec(max_model_len=max_model_len),
            engine=EngineSpec(threads=1, dtype=dtype, kv_bytes=kv_bytes),
        )
        plain = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        return World(plain, runner)

    return build
