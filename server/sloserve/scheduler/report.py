"""How the replica feels, in the numbers that routing reads."""

from collections.abc import Iterable

from sloserve.perf import StepModel
from sloserve.planner import Probe, Row, Snapshot
from sloserve.slo import SloClass

SECANT_TOKENS = 1024
"""The zero-load line is drawn through a one-token prompt and one of this many tokens."""
IDLE_STEP_FACTOR = 4.0
"""Token supply with no promise running is that of steps of so many empty steps."""


def probe_of(
    slo_class: SloClass,
    *,
    model: StepModel,
    expected: tuple[float, float],
    max_prompt: int,
) -> Probe:
    """
    A class as `Policy.frontier` asks about it; `model` is the stored profile's.

    A slowdown's TTFT is factor * max(w + a0 p, c1 + a1 p) + pairs: of the two lines the steeper
    one is the line, the other's constant goes into the floor (never more than was promised).
    """
    ttft, mean_sd = slo_class.ttft, expected
    fixed_s, per_token_s, per_pair_s, floor_s = ttft.target_s or 0.0, 0.0, 0.0, 0.0
    if ttft.slowdown is not None:
        lines = sorted([(model.a0, model.w), (model.a1, model.c1)])
        (_, flat_s), (slope_s, base_s) = lines
        fixed_s, per_token_s = ttft.slowdown * base_s, ttft.slowdown * slope_s
        per_pair_s = ttft.slowdown * model.d
        floor_s = max(ttft.floor_s, ttft.slowdown * flat_s)
    return Probe(
        slo_class=slo_class.name,
        ttft_fixed_s=fixed_s,
        ttft_per_token_s=per_token_s,
        ttft_per_pair_s=per_pair_s,
        ttft_floor_s=floor_s,
        tpot_s=slo_class.stages[0].tpot_s,
        tightest_tpot_s=slo_class.tightest_stage_tpot_s,
        expected_output=mean_sd[0],
        expected_sd=mean_sd[1],
        max_prompt=max_prompt,
        weight=slo_class.weight,
    )


def zero_load_line(model: StepModel) -> tuple[float, float]:
    """(fixed, per token) seconds of a prompt's prefill alone: the secant, attention included."""
    one_s, many_s = model.prefill_s(1), model.prefill_s(SECANT_TOKENS)
    per_token_s = (many_s - one_s) / (SECANT_TOKENS - 1)
    return one_s - per_token_s, per_token_s


def decode_load(rows: Iterable[Row]) -> tuple[int, int]:
    """(decodes, their context) among some rows."""
    num, context = 0, 0
    for row in rows:
        if row.decodes:
            num += 1
            context += row.num_known
    return num, context


def token_supply_per_s(snapshot: Snapshot) -> float:
    """
    Tokens per second that can still be computed beside the decodes, in steps as long as the
    tightest running promise allows.
    """
    model = snapshot.model
    num, context = decode_load((*snapshot.running, *snapshot.best_effort))
    tightest_s = min((row.tightest_tpot_s for row in snapshot.running), default=0.0)
    step_s = tightest_s - snapshot.margin_s if tightest_s else IDLE_STEP_FACTOR * model.step_s(1)
    if step_s <= 0:
        return 0.0
    room = model.max_chunk(step_s, num_tokens=num, context=context, pairs=0.0, prior=0)
    return max(0, min(room, snapshot.limits.max_batch_tokens - num)) / step_s


def earliest_first_token_s(snapshot: Snapshot, *, num_prompt: int) -> float:
    """
    Seconds until a prompt of this length could have its first token, come now: everything that
    waits for prefill goes first, beside the decodes, in steps of the largest batch.
    """
    num, context = decode_load((*snapshot.running, *snapshot.best_effort))
    queue = sum(r.num_left for r in (*snapshot.running, *snapshot.waiting) if not r.decodes)
    left = queue + num_prompt
    room = max(1, snapshot.limits.max_batch_tokens - num)
    num_steps = -(-left // room)
    whole_s = snapshot.model.step_s(
        left + num * num_steps, context=context * num_steps, pairs=num_prompt * num_prompt / 2
    )
    empty_s = snapshot.model.step_s(0)
    return whole_s + (num_steps - 1) * empty_s
