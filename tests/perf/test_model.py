"""The step-time model and its inverse."""

from hypothesis import given
from hypothesis import strategies as st

from sloserve.perf import StepModel
from sloserve.perf.model import MAX_CHUNK

seconds = st.floats(0, 0.1)
per_token = st.floats(0, 1e-3)
models = st.builds(
    StepModel,
    w=seconds,
    a0=per_token,
    c1=seconds,
    a1=per_token,
    b=st.floats(0, 1e-6),
    d=st.floats(0, 1e-8),
)


def fits(
    model: StepModel, n: int, time_s: float, m: int, context: float, pairs: float, prior: int
) -> bool:
    """As the contract of `max_chunk` says it."""
    return model.step_s(m + n, context=context, pairs=pairs + n * (prior + n / 2)) <= time_s


@given(
    model=models,
    time_s=st.floats(0, 10),
    m=st.integers(0, 4096),
    context=st.integers(0, 10**7),
    pairs=st.integers(0, 10**8),
    prior=st.integers(0, 10**6),
)
def test_the_largest_chunk_fits_and_one_token_more_does_not(
    model: StepModel, time_s: float, m: int, context: int, pairs: int, prior: int
) -> None:
    n = model.max_chunk(time_s, num_tokens=m, context=context, pairs=pairs, prior=prior)
    assert 0 <= n <= MAX_CHUNK
    if n > 0:
        assert fits(model, n, time_s, m, context, pairs, prior)
    if n < MAX_CHUNK:
        assert not fits(model, n + 1, time_s, m, context, pairs, prior)


@given(
    model=models,
    m=st.integers(0, 4096),
    context=st.integers(0, 10**7),
    pairs=st.integers(0, 10**8),
    prior=st.integers(0, 10**6),
    n=st.integers(1, 10**6),
)
def test_the_largest_chunk_in_the_exact_time_of_a_chunk_is_at_least_that_chunk(
    model: StepModel, m: int, context: int, pairs: int, prior: int, n: int
) -> None:
    time_s = model.step_s(m + n, context=context, pairs=pairs + n * (prior + n / 2))
    found = model.max_chunk(time_s, num_tokens=m, context=context, pairs=pairs, prior=prior)
    assert found >= n
    if found < MAX_CHUNK:
        assert not fits(model, found + 1, time_s, m, context, pairs, prior)


def test_the_knee_is_where_the_pieces_cross(true_model: StepModel) -> None:
    assert true_model.step_s(260) == max(0.0100 + 260e-5, 0.0048 + 260 * 3e-5)
    assert true_model.step_s(259) == 0.0100 + 259 * 1e-5
    assert true_model.step_s(261) == 0.0048 + 261 * 3e-5


def test_an_endless_time_allows_the_largest_chunk_there_is(true_model: StepModel) -> None:
    n = true_model.max_chunk(float("inf"), num_tokens=1, context=0, pairs=0, prior=0)
    assert n == MAX_CHUNK


def test_a_scaled_model_takes_that_much_longer(true_model: StepModel) -> None:
    twice = true_model.scaled(2.0)
    for m in (1, 200, 3000):
        assert twice.step_s(m, context=10_000, pairs=1e6) == 2 * true_model.step_s(
            m, context=10_000, pairs=1e6
        )
