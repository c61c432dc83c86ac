"""
From measured steps to coefficients: least squares on the relative error, none below zero.

The larger of two affine pieces is one hinge. With u, v, a0, b, d, k2 >= 0 and a knee t >= 0

    T = u + a0*m + v*max(t, m) + b*K + d*A + k2*s
    w = u + v*t        a0 = a0        c1 = u        a1 = a0 + v

is every model with a1 >= a0 and w >= c1, and for a fixed t it is linear. So: a non-negative
least squares for each knee worth trying, the best of them, and a finer search around it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sloserve.errors import BadInput, Failed
from sloserve.perf.model import StepModel
from sloserve.perf.samples import BatchKind, Sample

MIN_SAMPLES = 8
MAX_KNEES = 24
MAX_MAPE = 0.25
MAX_P95 = 0.75


@dataclass(frozen=True, slots=True)
class FitError:
    """How far predictions were off, as shares of the measured time."""

    mape: float  # mean of |predicted - measured| / measured
    p95: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The model and its error on the samples it was fitted to."""

    model: StepModel
    mape: float
    p95: float
    by_kind: dict[BatchKind, FitError]


class BadFit(Failed):
    """The samples don't follow the step-time model; `fit` holds the best that was found."""

    def __init__(self, message: str, fit: Fit) -> None:
        super().__init__(message)
        self.fit = fit


def fit(samples: Sequence[Sample], *, max_mape: float = MAX_MAPE, max_p95: float = MAX_P95) -> Fit:
    """
    The step-time model nearest to `samples`, by the sum of squared relative errors.

    Raises BadInput on samples that can't determine a model, and BadFit when the best model
    misses by more than `max_mape` on average (overall or for a kind of batch), or by more than
    `max_p95` at the 95th percentile: planning with it would break promises in silence.
    """
    _check(samples)
    knees = _knees(samples)
    solve = _solver(samples)
    best = min(range(len(knees)), key=lambda i: solve(knees[i])[0])
    low, high = knees[max(0, best - 1)], knees[min(len(knees) - 1, best + 1)]
    knee = min(_golden(lambda t: solve(t)[0], low, high), knees[best], key=lambda t: solve(t)[0])
    _, (u, a0, v, b, d, k2) = solve(knee)
    model = StepModel(w=u + v * knee, a0=a0, c1=u, a1=a0 + v, b=b, d=d, k2=k2)
    result = evaluate(model, samples)
    _refuse_bad(result, max_mape=max_mape, max_p95=max_p95)
    return result


def evaluate(model: StepModel, samples: Sequence[Sample]) -> Fit:
    """The error of a given model on `samples`, overall and per kind of batch."""
    by_kind: dict[BatchKind, list[float]] = {}
    for sample in samples:
        by_kind.setdefault(sample.kind, []).append(
            abs(predict_s(model, sample) / sample.time_s - 1)
        )
    everything = _error([e for errors in by_kind.values() for e in errors])
    kinds = {kind: _error(by_kind[kind]) for kind in BatchKind if kind in by_kind}
    return Fit(model, everything.mape, everything.p95, kinds)


def predict_s(model: StepModel, sample: Sample) -> float:
    """Seconds that `model` expects for the sample's batch."""
    return model.step_s(
        sample.num_tokens, context=sample.context, pairs=sample.pairs, drafts=sample.drafts
    )


def _check(samples: Sequence[Sample]) -> None:
    if len(samples) < MIN_SAMPLES:
        raise BadInput(
            f"got {len(samples)} samples; a step-time model needs at least {MIN_SAMPLES}",
            field="samples",
        )
    for i, sample in enumerate(samples):
        numbers = (sample.num_tokens, sample.context, sample.pairs, sample.drafts)
        if not (math.isfinite(sample.time_s) and sample.time_s > 0):
            raise BadInput(f"took {sample.time_s} s; must be above 0", field=f"samples[{i}]")
        if any(not math.isfinite(x) or x < 0 for x in numbers) or sample.num_tokens == 0:
            raise BadInput(
                f"is {sample}; needs tokens, and no number below 0", field=f"samples[{i}]"
            )
    if len({s.num_tokens for s in samples}) < 2:
        raise BadInput(
            f"all have {samples[0].num_tokens} tokens; measure batches of several sizes",
            field="samples",
        )


def _knees(samples: Sequence[Sample]) -> list[float]:
    """0 (one affine piece), and batch sizes at even ranks."""
    sizes = sorted({s.num_tokens for s in samples})
    step = max(1, math.ceil(len(sizes) / MAX_KNEES))
    return [0.0, *map(float, sizes[::step])]


_Solution = tuple[float, list[float]]


def _solver(samples: Sequence[Sample]) -> Callable[[float], _Solution]:
    """
    Solves for one knee: (sum of squared relative errors, the six coefficients).

    Columns are divided by the measured time, so the right side is all ones and residuals are
    relative errors.
    """
    fixed = [(1.0, float(s.num_tokens), 0.0, s.context, s.pairs, float(s.drafts)) for s in samples]
    solved: dict[float, _Solution] = {}

    def solve(knee: float) -> _Solution:
        if knee not in solved:
            rows = [
                [x / s.time_s for x in (*f[:2], max(knee, f[1]) if knee else 0.0, *f[3:])]
                for f, s in zip(fixed, samples, strict=True)
            ]
            solved[knee] = _non_negative(rows)
        return solved[knee]

    return solve


def _non_negative(rows: list[list[float]]) -> _Solution:
    """
    x >= 0 with the least |rows @ x - 1|^2, by trying every set of columns that may be in use.

    The optimum is an ordinary least squares on its own support, so the best of the 2^6
    unconstrained solutions that have no negative part is it.
    """
    num = len(rows[0])
    columns = list(zip(*rows, strict=True))
    scale = [math.sqrt(math.fsum(x * x for x in c)) for c in columns]
    used = [j for j in range(num) if scale[j] > 0]
    unit = {j: [x / scale[j] for x in columns[j]] for j in used}
    gram = {
        (i, j): math.fsum(x * y for x, y in zip(unit[i], unit[j], strict=True))
        for i in used
        for j in used
    }
    right = {j: math.fsum(unit[j]) for j in used}
    best, answer = float(len(rows)), [0.0] * num
    for subset in _subsets(used):
        matrix = [[gram[i, j] for j in subset] + [right[i]] for i in subset]
        x = _linear_solve(matrix)
        if x is None or min(x) < 0:
            continue
        loss = len(rows) - math.fsum(x[k] * right[j] for k, j in enumerate(subset))
        if loss < best:
            best, answer = loss, [0.0] * num
            for k, j in enumerate(subset):
                answer[j] = x[k] / scale[j]
    return best, answer


def _subsets(items: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.chain.from_iterable(
        itertools.combinations(items, size) for size in range(1, len(items) + 1)
    )


def _linear_solve(matrix: list[list[float]]) -> list[float] | None:
    """Gaussian elimination with pivoting of [A | y]; None when columns depend on each other."""
    n = len(matrix)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(matrix[r][i]))
        if abs(matrix[pivot][i]) < 1e-11:  # columns have norm 1
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for row in matrix[i + 1 :]:
            factor = row[i] / matrix[i][i]
            for k in range(i, n + 1):
                row[k] -= factor * matrix[i][k]
    x = [0.0] * n
    for i in reversed(range(n)):
        known = math.fsum(matrix[i][k] * x[k] for k in range(i + 1, n))
        x[i] = (matrix[i][n] - known) / matrix[i][i]
    return x


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """A minimum between `low` and `high` by golden section, to a fraction of the interval."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(20):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return (low + high) / 2


def _error(errors: list[float]) -> FitError:
    ranked = sorted(errors)
    p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]
    return FitError(math.fsum(ranked) / len(ranked), p95, len(ranked))


def _refuse_bad(result: Fit, *, max_mape: float, max_p95: float) -> None:
    worst, error = max(result.by_kind.items(), key=lambda item: item[1].mape)
    if result.mape <= max_mape and error.mape <= 1.5 * max_mape and result.p95 <= max_p95:
        return
    raise BadFit(
        f"measured steps don't follow the step-time model: off by {result.mape:.0%} on average "
        f"(at most {max_mape:.0%} allowed), {result.p95:.0%} at the 95th percentile (at most "
        f"{max_p95:.0%}), worst in {worst} batches with {error.mape:.0%} on average. Was the "
        "machine busy with something else? Measure again on a quiet one, or give a profile.",
        result,
    )
