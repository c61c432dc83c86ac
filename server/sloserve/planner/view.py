"""A snapshot as the play-forward wants it: decodes, prefills, holders of blocks."""

from dataclasses import dataclass, field
from math import ceil

from sloserve.perf import StepModel
from sloserve.planner.feasibility import Decode, Field, Job
from sloserve.planner.memory import Holder, holder
from sloserve.planner.types import Row, Snapshot


@dataclass(slots=True, eq=False)
class Ask:
    """One that waits for a promise: a `Candidate` of the selection."""

    row: Row
    job: Job
    holder: Holder
    due_s: float
    density: float
    value: float
    firm: bool

    @property
    def id(self) -> int:
        """The request's id."""
        return self.row.id


@dataclass(slots=True)
class View:
    """The promised requests that run, times relative to now and `margin_s` taken off."""

    decodes: list[tuple[float, Row]] = field(default_factory=list)  # (due, row)
    jobs: list[Job] = field(default_factory=list)  # sorted
    holders: list[Holder] = field(default_factory=list)
    lost: list[Row] = field(default_factory=list)  # the next token can't be in time any more
    field: Field = field(default_factory=lambda: Field(()))


def view(snapshot: Snapshot, *, margin_s: float, without: frozenset[int] = frozenset()) -> View:
    """The running rows, less those in `without`."""
    now = snapshot.now_s
    seen = View()
    decodes: list[Decode] = []
    base = now + margin_s
    for row in snapshot.running:
        if row.id in without:
            continue
        due = row.due_s
        if due < now or not row.kept:
            seen.lost.append(row)
            continue
        known, computed, output = row.num_known, row.num_computed, row.num_output
        left = row.expected_output
        if left > row.max_output:
            left = float(row.max_output)
        if output > 0 and known - computed == 1:
            decodes.append(Decode(due - base, row.tpot_s, known, ceil(left) if left > 1 else 1))
            seen.decodes.append((due - base, row))
        else:
            seen.jobs.append(job_of(row, base))
        seen.holders.append(Holder(known, left, row.expected_sd * row.expected_sd))
    seen.jobs.sort()
    seen.field = Field(decodes)
    return seen


def job_of(row: Row, base_s: float) -> Job:
    """A row that prefills, or will; `base_s` is now plus the margin."""
    left = ceil(min(float(row.max_output), row.expected_output)) - 1
    return Job(
        row.due_s - base_s,
        row.id,
        row.num_known - row.num_computed,
        row.num_computed,
        row.tpot_s,
        row.anchored or row.num_output > 0,
        left if left > 0 else 0,
    )


def ask_of(row: Row, base_s: float, model: StepModel, *, firm: bool) -> Ask:
    """A waiting row as a candidate. Value per demand: weight over prefill time at full steps."""
    job = job_of(row, base_s)
    return Ask(
        row=row,
        job=job,
        holder=holder(row),
        due_s=row.due_s,
        density=row.weight / work_s(model, job.rem, job.prior),
        value=row.weight,
        firm=firm,
    )


def work_s(model: StepModel, rem: int, prior: int) -> float:
    """Seconds a prefill adds to full steps: its tokens and its attention pairs."""
    return model.a1 * rem + model.d * rem * (prior + rem / 2) + 1e-9


def solo_s(model: StepModel, rem: int, prior: int) -> float:
    """The least seconds until a prefill's token: all of it in one step, nothing beside it."""
    return model.prefill_s(rem, prior=prior)
