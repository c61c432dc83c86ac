"""Measuring a runner: a simulated one gives its own coefficients back."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sloserve.engine.clock import VirtualClock
from sloserve.engine.runner import ModelFacts, Sampled, StepRow
from sloserve.engine.sim import SimRunner
from sloserve.errors import BadInput
from sloserve.model.profile import (
    FULL,
    QUICK,
    Grid,
    cache_path,
    cached_profile,
    measure,
    measure_samples,
    shapes,
)
from sloserve.perf import BadFit, BatchKind, StepModel, load_profile, save_profile

TRUE = StepModel(w=0.0040, a0=2e-5, c1=0.0025, a1=6e-5, b=8e-8, d=5e-9)
FACTS = ModelFacts(
    name="sim",
    vocab_size=256,
    max_model_len=8192,
    eos_ids=(0,),
    block_size=16,
    num_blocks=8192,
    kv_bytes_per_token=1024,
    dtype="float32",
    device="cpu",
    hardware="a simulated CPU, 2 threads",
)


class Recording(SimRunner):
    """Also keeps what it was asked to do."""

    def __init__(self, *, facts: ModelFacts = FACTS, noise: float = 0.0) -> None:
        self.clock = VirtualClock()
        super().__init__(TRUE, facts, self.clock, noise=noise)
        self.steps: list[Sequence[StepRow]] = []
        self.forgotten: set[int] = set()

    def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
        self.steps.append(rows)
        return super().step(rows)

    def forget(self, request_id: int) -> None:
        self.forgotten.add(request_id)


def test_measuring_a_simulated_runner_gives_its_model_back() -> None:
    runner = Recording()
    profile = measure(runner, model="builtin://sim", threads=2, clock=runner.clock.now_s)
    for name in ("w", "a0", "c1", "a1", "b", "d"):
        assert getattr(profile.step, name) == pytest.approx(getattr(TRUE, name), rel=0.02)
    assert profile.mape < 1e-3
    assert set(profile.by_kind) == set(BatchKind)
    assert (profile.model, profile.dtype, profile.threads) == ("builtin://sim", "float32", 2)
    assert profile.hardware == FACTS.hardware


def test_noise_is_tolerated_and_told() -> None:
    runner = Recording(noise=0.05)
    profile = measure(runner, model="m", threads=2, clock=runner.clock.now_s)
    assert 0.005 < profile.mape < 0.06
    assert profile.step.step_s(16, context=4096) == pytest.approx(
        TRUE.step_s(16, context=4096), rel=0.05
    )


def test_a_machine_too_noisy_to_measure_is_refused() -> None:
    runner = Recording(noise=1.5)
    with pytest.raises(BadFit, match="busy"):
        measure(runner, model="m", threads=2, clock=runner.clock.now_s)


def test_a_busy_moment_is_measured_again() -> None:
    class BusyAtFirst(Recording):
        """Every third of the first 200 steps takes ten times as long."""

        def step(self, rows: Sequence[StepRow]) -> list[Sampled]:
            start_s = self.clock.now_s()
            sampled = super().step(rows)
            if len(self.steps) < 200 and len(self.steps) // 6 % 3 == 0:
                self.clock.sleep_until(start_s + 10 * (self.clock.now_s() - start_s))
            return sampled

    runner = BusyAtFirst()
    profile = measure(runner, model="m", threads=2, clock=runner.clock.now_s)
    assert profile.mape < 0.01


def test_rows_are_what_the_loop_would_send_and_share_no_block() -> None:
    runner = Recording()
    measure_samples(runner, grid=QUICK, clock=runner.clock.now_s)
    for rows in runner.steps:
        blocks = [block for row in rows for block in row.block_table]
        assert len(blocks) == len(set(blocks))
        assert max(blocks) < FACTS.num_blocks
        for row in rows:
            assert row.start + row.count == len(row.tokens) <= FACTS.max_model_len
            assert len(row.block_table) * FACTS.block_size >= len(row.tokens)
            assert row.sample
    assert runner.forgotten == {row.request_id for rows in runner.steps for row in rows}


def test_batches_that_do_not_fit_are_left_out() -> None:
    small = ModelFacts(
        **{f: getattr(FACTS, f) for f in FACTS.__slots__}
        | {"max_model_len": 600, "num_blocks": 128}
    )
    found = shapes(QUICK, small)
    assert found
    assert all(sum(s.held_tokens) <= 128 * 16 and max(s.held_tokens) <= 600 for s in found)


def test_too_small_a_memory_is_refused_with_the_numbers() -> None:
    tiny = ModelFacts(
        **{f: getattr(FACTS, f) for f in FACTS.__slots__} | {"max_model_len": 32, "num_blocks": 4}
    )
    with pytest.raises(BadInput, match=r"holds 64 tokens and a request 32"):
        measure_samples(Recording(facts=tiny), grid=QUICK)


def test_a_slow_machine_ends_within_its_budget_having_seen_large_and_small_batches() -> None:
    slow = TRUE.scaled(100)
    clock = VirtualClock()
    runner = SimRunner(slow, FACTS, clock)
    samples = measure_samples(runner, grid=QUICK, clock=clock.now_s)
    assert clock.now_s() < 1.5 * QUICK.budget_s
    assert len(samples) >= 12
    assert max(s.time_s for s in samples) > QUICK.longest_s


def test_progress_counts_up_to_the_end() -> None:
    runner = Recording()
    told: list[tuple[int, int]] = []
    measure_samples(
        runner,
        grid=QUICK,
        clock=runner.clock.now_s,
        on_progress=lambda done, total, what: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == len(shapes(QUICK, FACTS))


@pytest.mark.parametrize("grid", [QUICK, FULL])
def test_both_grids_hold_every_kind_of_batch(grid: Grid) -> None:
    found = shapes(grid, FACTS)
    assert {bool(s.decodes) for s in found} == {bool(s.chunks) for s in found} == {True, False}
    assert any(s.decodes and s.chunks for s in found)
    assert len(set(found)) == len(found)


def test_a_profile_is_found_again_by_hardware_model_dtype_attention_and_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOSERVE_CACHE", str(tmp_path))
    facts, model = replace(FACTS, attention="torch"), "hf://org/name"
    runner = Recording()
    profile = measure(runner, model="hf://org/name", threads=2, clock=runner.clock.now_s)
    assert cached_profile(facts, model=model, threads=2) is None
    path = cache_path(facts, model=model, threads=2)
    assert path.parent == tmp_path / "profiles"
    save_profile(profile, path)
    assert cached_profile(facts, model=model, threads=2) == profile == load_profile(path)
    assert cached_profile(facts, model=model, threads=1) is None
    assert cached_profile(facts, model="hf://org/other", threads=2) is None
    for other in (
        replace(facts, hardware="another CPU"),
        replace(facts, dtype="bfloat16"),
        replace(facts, attention="compiled"),
    ):
        assert cached_profile(other, model=model, threads=2) is None


def test_a_broken_file_in_the_cache_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOSERVE_CACHE", str(tmp_path))
    path = cache_path(FACTS, model="builtin://tiny", threads=1)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert cached_profile(FACTS, model="builtin://tiny", threads=1) is None
