"""
Play the demand forward over the real timeline: can every promise be kept?

The hot core of the planner: plain loops over floats and tuples. A step is formed as the engine
will form it, so the first step of an accepted play-forward *is* the next batch:

    room  = earliest due token among decodes - now
    brief = room / safety                                a straggling step is still in time
    cap   = min(step limit, brief)                       the step's length at most
    look  = max(step limit, T(all decodes))              the next step's length at most
    in    = decodes due before now + safety (cap + look) the others can wait another such step
            (fewer when those take longer than brief; lock-step, when memory is tight: all)
    fill  = prefill chunks by deadline, while T(batch) <= cap and no finished prefill is late

Decodes are not walked one by one. Those not yet touched lie in a list sorted by due time per
tier (TPOT); those served together stay together as one clump, which is due as a whole with its
earliest member. So one step takes O(tiers * log decodes + finished prefills).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from math import inf, sqrt
from typing import NamedTuple

from sloserve.errors import Reason
from sloserve.perf import StepModel

MAX_STEPS = 4000
"""A play-forward longer than this is taken for infeasible."""

EPSILON_S = 1e-9
"""Rounding of sums of floats."""


class Decode(NamedTuple):
    """A decode at the start; times relative to the start of the coming step, margin taken off."""

    due_s: float
    tpot_s: float
    context: int  # tokens in the cache
    left: int  # tokens still to come, >= 1


class Job(NamedTuple):
    """A prefill (new, half done, or of a preempted request); sorts by deadline."""

    due_s: float
    id: int
    rem: int  # tokens to compute, >= 1; the last one emits a token
    prior: int  # tokens in the cache
    tpot_s: float
    anchored: bool  # due times go on from due_s, not from the emission
    left: int  # tokens to come after that one


class Machine(NamedTuple):
    """The step model and the limits of one step."""

    model: StepModel
    limit_s: float
    max_batch_tokens: int
    reserve_s: float = 0.0  # of every step, kept free for best effort
    min_chunk: int = 1
    safety: float = 1.0  # of the earliest decode's slack a step uses one part in so many


class First(NamedTuple):
    """The first step: decodes due before `cut_s` are in, and these chunks (job id, tokens)."""

    cut_s: float
    chunks: tuple[tuple[int, int], ...]
    predicted_s: float  # the reserve included when there are chunks
    cap_s: float  # the step may last so long
    busy: bool = False  # prefills are left over


class Play(NamedTuple):
    """What came of a play-forward; `late_by_s` is by how much the first late unit missed."""

    ok: bool
    first: First
    reason: Reason = Reason.NONE
    late_id: int | None = None  # the late job; None: a decode
    late_by_s: float = 0.0
    finished: tuple[tuple[int, float], ...] = ()  # (job id, seconds until its token)


class Field:
    """The decodes at the start, sorted once for any number of play-forwards."""

    __slots__ = ("contexts", "dues", "exits", "life", "lives", "num", "pre", "taus", "total")

    def __init__(self, decodes: Iterable[tuple[float, float, int, int]]) -> None:
        """`decodes` as `Decode`s, or as plain tuples of its fields."""
        tiers: dict[float, list[tuple[float, float, int, int]]] = {}
        for decode in decodes:
            tier = tiers.get(decode[1])
            if tier is None:
                tiers[decode[1]] = [decode]
            else:
                tier.append(decode)
        self.taus: list[float] = sorted(tiers)
        self.dues: list[list[float]] = []
        self.pre: list[list[int]] = []  # prefix sums of contexts
        self.exits: list[list[float]] = []  # due times of last tokens, sorted
        self.lives: list[list[float]] = []  # tokens left, sorted (lock-step: steps until gone)
        self.num = 0
        self.total = 0  # sum of contexts
        self.life = 0  # sum of contexts at their ends
        for tau in self.taus:
            tier = tiers[tau]
            tier.sort()
            pre, exits, total, life = [0], [], 0, 0
            for due, _, context, left in tier:
                total += context
                life += left
                pre.append(total)
                exits.append(due + (left - 1) * tau)
            exits.sort()
            self.dues.append([d[0] for d in tier])
            self.pre.append(pre)
            self.exits.append(exits)
            self.lives.append(sorted([float(d[3]) for d in tier]))
            self.num += len(tier)
            self.total += total
            self.life += total + life


def play(
    field: Field,
    jobs: Sequence[Job],
    machine: Machine,
    *,
    lockstep: bool = False,
    max_steps: int = MAX_STEPS,
) -> Play:
    """
    Run `jobs` (sorted) beside the decodes until every prefill is done and the decodes are in a
    steady state. With `max_steps` 1 only the first step is formed, and taken for feasible
    unless it is late itself.
    """
    model, limit, max_tokens, reserve, min_chunk, safety = machine
    w, a0, c1, a1, b, d = model.w, model.a0, model.c1, model.a1, model.b, model.d
    taus = field.taus
    dues, pre = field.dues, field.pre
    # lock-step counts steps until a decode is gone, else due times of last tokens count
    exits: list[list[float]] = list(field.lives if lockstep else field.exits)
    copied = [False] * len(taus)
    if jobs:
        known = set(taus)
        extra = [tau for tau in {job[4] for job in jobs} if tau not in known]
        if extra:
            taus = taus + extra
            dues = dues + [[] for _ in extra]
            pre = pre + [[0] for _ in extra]
            exits += [[] for _ in extra]
            copied += [True] * len(extra)
    tiers = range(len(taus))
    index = {tau: i for i, tau in enumerate(taus)}
    at = [0] * len(taus)  # first decode not yet touched
    gone = [0] * len(taus)  # exits already accounted
    debt = [0] * len(taus)  # exits whose clump was elsewhere
    rings: list[list[tuple[float, int, float]]] = [[] for _ in tiers]  # (due, count, context)
    num_all, ctx_all = field.num, float(field.total)
    life = float(field.life)

    t = 0.0
    steps = 0
    j, num_jobs = 0, len(jobs)
    rem = prior = 0
    if num_jobs:
        rem, prior = jobs[0][2], jobs[0][3]
    finished: list[tuple[int, float]] = []
    first: First | None = None
    fluid: bool | None = None

    while True:
        # 1. how long may the step be
        due_min = inf
        for i in tiers:
            ring = rings[i]
            if ring and ring[0][0] < due_min:
                due_min = ring[0][0]
            k = at[i]
            if k < len(dues[i]) and dues[i][k] < due_min:
                due_min = dues[i][k]
        room = due_min - t
        low, high = w + a0 * num_all, c1 + a1 * num_all
        all_s = (low if low > high else high) + b * ctx_all
        if j == num_jobs:
            if first is not None:
                if num_all == 0:
                    return Play(True, first, finished=tuple(finished))
                if fluid is None:
                    fluid = _steady(machine.model, taus, dues, rings, at, num_all, ctx_all, life)
                if fluid and all_s <= room:
                    return Play(True, first, finished=tuple(finished))
        elif jobs[j][0] < t:
            assert first is not None or t == 0.0
            return Play(
                False,
                first or First(inf, (), all_s, room),
                Reason.TTFT,
                jobs[j][1],
                t - jobs[j][0],
                tuple(finished),
            )
        brief = room / safety
        cap = brief if brief < limit else limit
        look = all_s if all_s > limit else limit

        # 2. which decodes are in
        if lockstep or (j == num_jobs and all_s <= brief):
            cut = inf
        else:
            cut = t + safety * (cap + look)
            if all_s > brief:
                cut = _narrow(
                    t, room, brief, cut, machine.model, dues, pre, at, rings, min(cap + look, room)
                )
        m, context, num_gone = 0, 0.0, 0
        for i in tiers:
            ring, due_list, k = rings[i], dues[i], at[i]
            count, ctx, lowest = 0, 0.0, inf
            if k < len(due_list) and due_list[k] < cut:
                end = bisect_left(due_list, cut, k) if cut < inf else len(due_list)
                count, ctx, lowest = end - k, float(pre[i][end] - pre[i][k]), due_list[k]
                at[i] = end
            if ring and ring[0][0] < cut:
                if ring[0][0] < lowest:
                    lowest = ring[0][0]
                end = 0
                for clump in ring:
                    if clump[0] >= cut:
                        break
                    count += clump[1]
                    ctx += clump[2]
                    end += 1
                del ring[:end]
            if count:
                m += count
                context += ctx
                # who got the last token: all units due before `cut` have been served
                by_due = cut if cut < inf else lowest + EPSILON_S
                level = steps + 1.5 if lockstep else by_due
                out = debt[i]
                k, ends = gone[i], exits[i]
                while k < len(ends) and ends[k] < level:
                    k += 1
                out += k - gone[i]
                gone[i] = k
                if out:
                    leave = out if out < count else count
                    debt[i] = out - leave
                    num_gone += leave
                    left_ctx = ctx * leave / count
                    ctx_all -= left_ctx
                    ctx -= left_ctx
                    count -= leave
                if count:
                    insort(ring, (lowest + taus[i], count, ctx + count))
        low, high = w + a0 * m, c1 + a1 * m
        fixed = b * context
        step_s = (low if low > high else high) + fixed
        if m and step_s > room + EPSILON_S:
            if first is None:
                first = First(cut, (), step_s, room)
            return Play(False, first, Reason.TPOT, None, step_s - room, tuple(finished))
        ctx_all += m - num_gone
        num_all -= num_gone

        # 3. prefill chunks by deadline
        chunks: list[tuple[int, int]] = []
        ended: list[Job] = []
        if j < num_jobs:
            pairs = 0.0
            budget = cap - reserve - fixed
            served = m
            while m < max_tokens:
                # the largest chunk that fits: the root of each affine piece, the least of them
                rest = budget - d * pairs
                space = rest - w - a0 * m
                other = rest - c1 - a1 * m
                if space <= 0.0 or other <= 0.0:
                    break
                if d > 0.0:
                    slope = a0 + d * prior
                    n_low = (sqrt(slope * slope + 2.0 * d * space) - slope) / d
                    slope = a1 + d * prior
                    n_high = (sqrt(slope * slope + 2.0 * d * other) - slope) / d
                else:
                    n_low = space / a0 if a0 > 0.0 else inf
                    n_high = other / a1 if a1 > 0.0 else inf
                fit = n_low if n_low < n_high else n_high
                if fit > max_tokens - m:
                    fit = max_tokens - m
                if fit + EPSILON_S >= rem:
                    job = jobs[j]
                    m += rem
                    pairs += rem * (prior + rem / 2)
                    chunks.append((job[1], rem))
                    ended.append(job)
                    if job[0] - t - reserve - fixed < budget:
                        budget = job[0] - t - reserve - fixed
                        low, high = w + a0 * m, c1 + a1 * m
                        over = (low if low > high else high) + d * pairs - budget
                        if over > EPSILON_S:
                            if first is None:
                                first = First(cut, tuple(chunks), step_s, cap)
                            return Play(False, first, Reason.TTFT, job[1], over, tuple(finished))
                    j += 1
                    if j == num_jobs:
                        break
                    rem, prior = jobs[j][2], jobs[j][3]
                    continue
                n = int(fit)
                if n >= min_chunk or (n > 0 and served == 0):
                    m += n
                    pairs += n * (prior + n / 2)
                    chunks.append((jobs[j][1], n))
                    rem -= n
                    prior += n
                break
            if m > served:
                low, high = w + a0 * m, c1 + a1 * m
                step_s = (low if low > high else high) + fixed + d * pairs + reserve
            elif served == 0:
                # nothing fits an empty step: the limit is too tight for a single token
                if first is None:
                    first = First(cut, (), step_s, cap)
                return Play(False, first, Reason.TTFT, jobs[j][1], inf, tuple(finished))
            cap = budget + fixed + reserve
        t += step_s
        if first is None:
            first = First(cut, tuple(chunks), step_s, cap, j < num_jobs)
        for job in ended:
            finished.append((job[1], t))
            left = job[6]
            if left > 0:
                i = index[job[4]]
                tau = job[4]
                due = (job[0] if job[5] else t) + tau
                ctx = float(job[2] + job[3] + 1)
                insort(rings[i], (due, 1, ctx))
                if not copied[i]:
                    exits[i] = exits[i][:]
                    copied[i] = True
                end_key = steps + 1.0 + left if lockstep else due + (left - 1) * tau
                insort(exits[i], end_key, gone[i])
                num_all += 1
                ctx_all += ctx
                life += ctx + left
        steps += 1
        if steps >= max_steps:
            if max_steps < MAX_STEPS:
                return Play(True, first, finished=tuple(finished))
            reason = Reason.TTFT if j < num_jobs else Reason.TPOT
            late = jobs[j][1] if j < num_jobs else None
            return Play(False, first, reason, late, inf, tuple(finished))


def _narrow(
    t: float,
    room: float,
    length_s: float,
    cut: float,
    model: StepModel,
    dues: list[list[float]],
    pre: list[list[int]],
    at: list[int],
    rings: list[list[tuple[float, int, float]]],
    window: float,
) -> float:
    """
    The widest cut whose decodes fit into `length_s`, when all of them together would not.

    Tries smaller windows of due times; the narrowest holds only what is due within the room.
    """
    for share in (1.0, 0.75, 0.5, 0.25, 0.1, 0.0):
        tried = cut if share == 1.0 else t + room + share * window + EPSILON_S
        m, context = 0, 0.0
        for i, ring in enumerate(rings):
            end = bisect_left(dues[i], tried, at[i])
            m += end - at[i]
            context += pre[i][end] - pre[i][at[i]]
            for clump in ring:
                if clump[0] >= tried:
                    break
                m += clump[1]
                context += clump[2]
        if model.step_s(m, context=context) <= length_s:
            return tried
    return tried


def _steady(
    model: StepModel,
    taus: list[float],
    dues: list[list[float]],
    rings: list[list[tuple[float, int, float]]],
    at: list[int],
    num_all: int,
    ctx_all: float,
    life: float,
) -> bool:
    """
    The fluid test: do the decodes alone fit for good, contexts grown to their ends?

    First all of them in every step of the tightest TPOT; else tier l takes tau/TPOT_l tokens a
    step of tau, the tightest TPOT.
    """
    counts = [
        len(due_list) - k + sum(clump[1] for clump in ring)
        for due_list, k, ring in zip(dues, at, rings, strict=True)
    ]
    used = [tau for tau, count in zip(taus, counts, strict=True) if count]
    if not used:
        return True
    tau = min(used)
    peak = life if life > ctx_all else ctx_all
    if model.step_s(num_all, context=peak) <= tau:
        return True
    share = sum(n * tau / tier for n, tier in zip(counts, taus, strict=True)) / num_all
    return model.step_s(1 + int(num_all * share), context=peak * share) <= tau


def merged(jobs: Sequence[Job], extra: Job) -> list[Job]:
    """`jobs` (sorted) with one more in its place."""
    more = list(jobs)
    insort(more, extra)
    return more
