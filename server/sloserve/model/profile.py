"""
Measure how long steps take on this machine, and keep the answer.

A sparse set of batches: decodes of several widths and contexts, prefill chunks
with and without a prior, and both side by side. Every batch runs once to warm up and a few times
to be timed; the median counts. Seconds in all, minutes with `full`.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sloserve.engine.runner import ModelFacts, Runner, StepRow
from sloserve.engine.sampling import SamplingParams
from sloserve.errors import BadInput, SloserveError
from sloserve.model import hardware
from sloserve.perf import BadFit, Profile, Sample, fit, load_profile, sample_of
from sloserve.perf.fit import MAX_MAPE, MAX_P95
from sloserve.slo.service import ServiceSpec

MIN_BATCHES = 12
DRAFTS = (1, 4)

OnProgress = Callable[[int, int, str], None]
"""Called with batches done, batches in all, and what was measured."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Which batches are measured, how often, and when it is enough."""

    widths: tuple[int, ...]  # decodes of a batch
    contexts: tuple[int, ...]  # tokens each of them looks back on
    chunks: tuple[int, ...]  # tokens of a prefill chunk
    priors: tuple[int, ...]  # tokens before the chunk
    repeats: int
    budget_s: float  # for all batches together; those not reached are left out

    @property
    def batch_s(self) -> float:
        """Repeating one batch ends after this long, with one timing at least."""
        return self.budget_s / 40

    @property
    def longest_s(self) -> float:
        """Once a step took this long, larger batches are left out."""
        return self.budget_s / 12


QUICK = Grid(
    widths=(1, 2, 4, 8, 16, 32, 64),
    contexts=(32, 256, 1024),
    chunks=(16, 64, 128, 256, 512, 1024),
    priors=(0, 1024),
    repeats=5,
    budget_s=20.0,
)
FULL = Grid(
    widths=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    contexts=(16, 128, 512, 1024, 2048, 4096),
    chunks=(8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
    priors=(0, 256, 1024, 4096),
    repeats=11,
    budget_s=180.0,
)


@dataclass(frozen=True, slots=True)
class Shape:
    """
    One batch to measure: decodes by context, and prefill chunks as (prior, count). The runner
    writes `drafts` for each decode.
    """

    decodes: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()
    drafts: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        decodes = len(self.decodes) * (1 + self.drafts)
        return decodes + sum(count for _, count in self.chunks)

    @property
    def held_tokens(self) -> tuple[int, ...]:
        """Tokens whose keys and values each row needs."""
        decodes = [context + self.drafts for context in self.decodes]
        return (*decodes, *(prior + count for prior, count in self.chunks))

    def __str__(self) -> str:
        parts = []
        if self.decodes:
            drafted = f" with {self.drafts} drafts" if self.drafts else ""
            parts.append(f"{len(self.decodes)} decodes at {self.decodes[0]}{drafted}")
        parts += [f"a chunk of {count} after {prior}" for prior, count in self.chunks]
        return " and ".join(parts)


def shapes(grid: Grid, facts: ModelFacts, *, drafts: Sequence[int] = ()) -> list[Shape]:
    """
    The batches of `grid` that fit the model's length and KV memory, smallest first. `drafts` are
    the numbers of them that decodes also get, where the runner has a draft model.
    """
    found = [Shape(decodes=(c,) * w) for w in grid.widths for c in grid.contexts]
    found += [Shape(chunks=((p, n),)) for n in grid.chunks for p in grid.priors]
    found += [
        Shape(decodes=(context,) * width, chunks=((0, count),))
        for width in grid.widths[2::2]
        for context in grid.contexts[1:3]
        for count in grid.chunks[1::2]
    ]

    found += [  # short ones: the draft model has caught up with them after one step
        Shape(decodes=(grid.contexts[0],) * width, drafts=num)
        for width in grid.widths[:5:2]
        for num in drafts
    ]

    def fits(shape: Shape) -> bool:
        blocks = sum(-(-held // facts.block_size) for held in shape.held_tokens)
        return blocks <= facts.num_blocks and max(shape.held_tokens) <= facts.max_model_len

    return sorted(filter(fits, found), key=lambda s: (s.num_tokens, sum(s.held_tokens)))


def measure(
    runner: Runner,
    *,
    model: str,
    threads: int,
    grid: Grid = QUICK,
    sampling: SamplingParams | None = None,
    on_progress: OnProgress = lambda done, total, what: None,
    clock: Callable[[], float] = time.perf_counter,
    max_mape: float = MAX_MAPE,
    max_p95: float = MAX_P95,
) -> Profile:
    """
    Drive `runner` through the batches of `grid` and fit the step-time model.

    Overwrites the runner's KV memory: nothing else may run on it. `clock` is the one that the
    runner's steps take time on; `sampling` is what rows ask for (default: the runner's own
    defaults, as most requests do). A first bad fit may be a busy moment: everything is measured
    once more, and the quicker of both counts. Raises BadFit when steps follow no model even so,
    BadInput when too few batches fit this model's memory.
    """

    def samples() -> list[Sample]:
        return measure_samples(
            runner, grid=grid, sampling=sampling, on_progress=on_progress, clock=clock
        )

    timed = samples()
    try:
        found = fit(timed, max_mape=max_mape, max_p95=max_p95)
    except BadFit:
        timed = _quicker(timed, samples())
        found = fit(timed, max_mape=max_mape, max_p95=max_p95)
    facts = runner.facts
    return Profile(
        hardware=facts.hardware,
        model=model,
        dtype=facts.dtype,
        threads=threads,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        step=found.model,
        mape=found.mape,
        p95=found.p95,
        by_kind=found.by_kind,
        source=f"measured by sloserve {importlib.metadata.version('sloserve')}, "
        f"{len(timed)} batches",
        kv_tokens=facts.num_blocks * facts.block_size,
        kv_bytes_per_token=facts.kv_bytes_per_token,
    )


def measure_samples(
    runner: Runner,
    *,
    grid: Grid,
    sampling: SamplingParams | None = None,
    on_progress: OnProgress = lambda done, total, what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Sample]:
    """The timed batches (`measure`), not fitted yet."""
    drafts = DRAFTS if getattr(runner, "drafter", None) is not None else ()
    wanted = _spread(shapes(grid, runner.facts, drafts=drafts))
    if len(wanted) < MIN_BATCHES:
        raise BadInput(
            f"only {len(wanted)} batches can be measured: the KV cache holds "
            f"{runner.facts.num_blocks * runner.facts.block_size} tokens and a request "
            f"{runner.facts.max_model_len}; give engine.kvCache.size more, or a profile"
        )
    params = sampling or getattr(runner, "defaults", None) or SamplingParams()
    samples: list[Sample] = []
    begun_s, num_tokens_at_most = clock(), float("inf")
    for done, shape in enumerate(wanted):
        on_progress(done, len(wanted), str(shape))
        if shape.num_tokens > num_tokens_at_most:
            continue
        rows = _rows(shape, facts=runner.facts, sampling=params)
        times_s = _times(runner, rows, grid=grid, clock=clock)
        for row in rows:
            runner.forget(row.request_id)
        time_s = statistics.median(times_s)
        if time_s > 0:
            samples.append(
                sample_of(
                    decodes=shape.decodes,
                    chunks=shape.chunks,
                    time_s=time_s,
                    drafts=shape.drafts,
                )
            )
        if time_s > grid.longest_s:
            num_tokens_at_most = min(num_tokens_at_most, shape.num_tokens)
        if clock() - begun_s > grid.budget_s and len(samples) >= MIN_BATCHES:
            break
    on_progress(len(wanted), len(wanted), "")
    return samples


def _quicker(first: list[Sample], second: list[Sample]) -> list[Sample]:
    """Of the batches in both lists, the shorter times; those in one list as they are."""
    best: dict[tuple[int, float, float, int], Sample] = {}
    for sample in (*first, *second):
        key = (sample.num_tokens, sample.context, sample.pairs, sample.drafts)
        if key not in best or sample.time_s < best[key].time_s:
            best[key] = sample
    return list(best.values())


def _spread(items: list[Shape]) -> list[Shape]:
    """Every fourth first, then those between: whenever time runs out, all sizes were seen."""
    return [*items[::4], *items[2::4], *items[1::2]]


def _times(
    runner: Runner, rows: Sequence[StepRow], *, grid: Grid, clock: Callable[[], float]
) -> list[float]:
    """Seconds of each timed step; one before them is to warm up."""
    begun_s = clock()
    runner.step(rows)
    times_s: list[float] = []
    while len(times_s) < grid.repeats:
        start_s = clock()
        runner.step(rows)
        end_s = clock()
        times_s.append(end_s - start_s)
        if end_s - begun_s > grid.batch_s:
            break
    return times_s


def _rows(shape: Shape, *, facts: ModelFacts, sampling: SamplingParams) -> list[StepRow]:
    """Rows on blocks of their own, as if everything before them had been computed."""
    rows: list[StepRow] = []
    next_block = 0
    held = shape.held_tokens
    parts = [(context - 1, 1, True) for context in shape.decodes]
    parts += [(prior, count, False) for prior, count in shape.chunks]
    for request_id, (start, count, decodes) in enumerate(parts):
        num_known = start + count
        num_blocks = -(-held[request_id] // facts.block_size)
        tokens = [(7 * i + request_id) % facts.vocab_size for i in range(num_known)]
        rows.append(
            StepRow(
                request_id=request_id,
                tokens=tokens,
                num_prompt=num_known - 1 if decodes else num_known,
                start=start,
                count=count,
                block_table=range(next_block, next_block + num_blocks),
                sample=True,
                sampling=sampling,
                num_drafts=shape.drafts if decodes else 0,
            )
        )
        next_block += num_blocks
    return rows


def profile_key(spec: ServiceSpec, facts: ModelFacts, *, drafter: str = "") -> tuple[str, int]:
    """
    The model and the compute threads as profiles name them, by whoever writes or looks for one.

    The model: source, revision and the source of its `drafter`, if there is one. Threads: those
    that the replica was given, all ranks' together (torch's own count is one rank's); 0 where
    they mean nothing.
    """
    model = f"{spec.model.source}@{spec.model.revision}"
    if drafter:
        model += f" drafted by {drafter}"
    threads = spec.engine.threads or hardware.num_cores()
    return model, threads if facts.device == "cpu" else 0


def cache_folder(kind: str = "profiles") -> Path:
    """Where such things are kept: SLOSERVE_CACHE, else the user's cache, `sloserve`."""
    given = os.environ.get("SLOSERVE_CACHE")
    if given:
        return Path(given).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "sloserve" / kind


def cache_path(facts: ModelFacts, *, model: str, threads: int) -> Path:
    """
    The file for this hardware, model, dtype, attention path, thread count and number of ranks.

    The versions of sloserve and torch are in the key, too: a new one may be quicker.
    """
    versions = [_version("sloserve"), _version("torch")]
    parts = [facts.hardware, model, facts.dtype, facts.attention, threads, *versions]
    if facts.tensor_parallel_size > 1:
        parts.append(f"tp{facts.tensor_parallel_size}")
    key = json.dumps(parts)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    name = re.sub(r"[^\w.]+", "-", model.rpartition("://")[2]).strip("-.")[-60:]
    return cache_folder() / f"{name}-{facts.dtype}-{threads}t-{digest}.json"


def cached_profile(facts: ModelFacts, *, model: str, threads: int) -> Profile | None:
    """The profile measured before, if there is one that can be read."""
    path = cache_path(facts, model=model, threads=threads)
    try:
        return load_profile(path)
    except SloserveError:
        return None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
