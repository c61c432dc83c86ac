"""A snapshot as the play-forward wants it: decodes, prefills, holders of blocks."""

from dataclasses import dataclass
from math import ceil

from sloserve.perf import StepModel
from sloserve.planner.feasibility import Field, Job
from sloserve.planner.memory import Holder, Totals, holder
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


@dataclass(slots=True, eq=False)
class View:
    """The promised requests that run, times relative to now and the margin taken off."""

    decodes: list[tuple[float, Row]]  # (due, row)
    jobs: list[Job]  # sorted
    lost: list[Row]  # the next token can't be in time any more
    totals: Totals
    field: Field

    rows: list[Row]  # all but the lost

    def holders(self) -> list[Holder]:
        """Everyone as holders of blocks; asked for only when memory is tight."""
        return [holder(row) for row in self.rows]


def view(snapshot: Snapshot, *, margin_s: float, without: frozenset[int] = frozenset()) -> View:
    """The running rows, less those in `without`. One pass: this is paid at every step."""
    now = snapshot.now_s
    base = now + margin_s
    rows: list[Row] = []
    lost: list[Row] = []
    jobs: list[Job] = []
    waiting_turn: list[tuple[float, Row]] = []
    decodes: list[tuple[float, float, int, int]] = []
    life = variance = 0.0
    for row in snapshot.running:
        if without and row.id in without:
            continue
        due = row.due_s
        if due < now or not row.kept:
            lost.append(row)
            continue
        known = row.num_known
        left = row.expected_output
        if left > row.max_output:
            left = float(row.max_output)
        life += known + left
        variance += row.expected_sd * row.expected_sd
        rows.append(row)
        if known - row.num_computed == 1 and row.num_output > 0:
            due -= base
            decodes.append((due, row.tpot_s, known, int(left + 0.999999) or 1))
            waiting_turn.append((due, row))
        else:
            jobs.append(job_of(row, base))
    jobs.sort()
    totals = Totals(life, variance, len(rows))
    return View(waiting_turn, jobs, lost, totals, Field(decodes), rows)


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
